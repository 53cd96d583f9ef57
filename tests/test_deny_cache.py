"""A denial is repeated in process, for a while, without a round trip."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from ratelimit import Algorithm, Check, Decision, Limit, RedisStore
from ratelimit.stores import deny_cache
from ratelimit.testing import ManualClock
from tests.servers import Server

LIMIT = Limit("5/minute", algorithm="token_bucket")


@pytest.fixture
def server(redis_server: Server) -> Server:
    """The run's server, empty."""
    redis_server.command("FLUSHALL")
    return redis_server


@pytest_asyncio.fixture
async def store(server: Server, clock: ManualClock) -> AsyncIterator[RedisStore]:
    """A store that repeats denials for up to a second of its clock."""
    opened = RedisStore(server.url, clock=clock, deadline=10)
    yield opened
    await opened.aclose()


def scripts_run(server: Server) -> int:
    """How many scripts the server has been sent."""
    said = server.command("INFO", "commandstats")
    found = said.partition("cmdstat_evalsha:calls=")[2].partition(",")[0]
    return int(found or 0)


async def exhaust(store: RedisStore, key: str = "someone") -> Check:
    """Takes all there is; returns a check that is denied from now on."""
    check = Check(LIMIT, key)
    await store.decide([Check(LIMIT, key, 5)])
    (denied,) = await store.decide([check])
    assert not denied.allowed
    return check


async def test_a_flood_costs_one_trip_per_second(
    store: RedisStore, server: Server, clock: ManualClock
) -> None:
    """However often it is asked meanwhile; the hits are counted."""
    check = await exhaust(store)
    before = scripts_run(server)
    for _ in range(3):
        for _ in range(50):
            (decision,) = await store.decide([check])
            assert not decision.allowed
        clock.advance(1)
    assert scripts_run(server) - before == 2
    assert store.denials_repeated == 148


@pytest.mark.parametrize("algorithm", list(Algorithm))
async def test_what_is_told_counts_on(
    store: RedisStore, clock: ManualClock, algorithm: Algorithm
) -> None:
    """`retry_after` and `reset_after` are those of now, and the promise is kept to the tick."""
    limit = Limit("2/500ms", algorithm=algorithm)
    check = Check(limit, "someone")
    await store.decide([Check(limit, "someone", 2)])
    (first,) = await store.decide([check])
    clock.advance(us=70_001)
    (later,) = await store.decide([check])
    assert store.denials_repeated == 1
    assert first.retry_after_us is not None
    assert later.retry_after_us == first.retry_after_us - 70_001
    assert later.reset_after_us == first.reset_after_us - 70_001
    clock.advance(us=later.retry_after_us - 1)
    assert not (await store.decide([check]))[0].allowed
    clock.advance(us=1)
    assert (await store.decide([check]))[0].allowed


async def test_a_cheaper_request_is_asked_for(store: RedisStore) -> None:
    """Only the same checks at the same costs are the same request."""
    await store.decide([Check(LIMIT, "someone", 3)])
    for cost, passes in ((4, False), (3, False), (2, True)):
        (decision,) = await store.decide([Check(LIMIT, "someone", cost)])
        assert decision.allowed is passes


async def test_a_reset_is_seen_at_once(store: RedisStore) -> None:
    """What this process forgets, it does not go on denying."""
    check = await exhaust(store)
    await store.reset([check])
    assert (await store.decide([check]))[0].allowed


async def test_a_give_back_is_seen_at_once_and_turns_it_off_for_the_rule(
    store: RedisStore, server: Server
) -> None:
    """Elsewhere more may be given back, which this process could not see."""
    taken = Check(LIMIT, "someone", 5)
    (decision,) = await store.decide([taken])
    check = Check(LIMIT, "someone")
    await store.decide([check])
    await store.decide([taken.given_back(decision)])
    assert (await store.decide([check]))[0].allowed
    await exhaust(store, "someone else")
    before = scripts_run(server)
    for _ in range(5):
        await store.decide([Check(LIMIT, "someone else")])
    assert scripts_run(server) - before == 5


async def test_a_clock_that_steps_back_is_asked_again(
    store: RedisStore, server: Server, clock: ManualClock
) -> None:
    """A remembered denial of the future is none."""
    check = await exhaust(store)
    clock.advance(us=-5)
    before = scripts_run(server)
    await store.decide([check])
    assert scripts_run(server) - before == 1


async def test_what_can_never_pass_is_repeated_as_never(store: RedisStore, server: Server) -> None:
    """For the longest span at most, as everything else."""
    check = Check(LIMIT, "someone", 6)
    before = scripts_run(server)
    for _ in range(5):
        (decision,) = await store.decide([check])
        assert (decision.allowed, decision.retry_after) == (False, None)
    assert scripts_run(server) - before == 1


async def test_a_shadow_denial_alone_is_not_repeated(store: RedisStore, server: Server) -> None:
    """The request passed, and its other checks have to be charged."""
    await store.decide([Check(LIMIT, "a", 5)])
    checks = [Check(LIMIT, "a", shadow=True), Check(LIMIT, "b")]
    left = [(await store.decide(checks))[1].remaining for _ in range(3)]
    assert left == [4, 3, 2]


async def test_it_is_bounded(store: RedisStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest denial goes first, and is asked for again."""
    monkeypatch.setattr(deny_cache, "MOST_ENTRIES", 3)
    for key in "abcde":
        await exhaust(store, key)
    assert len(store._denials.entries) == 3
    await asyncio.gather(*(store.decide([Check(LIMIT, key)]) for key in "abcde"))
    assert len(store._denials.entries) == 3


async def test_it_can_be_turned_off(server: Server, clock: ManualClock) -> None:
    """With `deny_cache=0` every request is asked for."""
    async with RedisStore(server.url, clock=clock, deadline=10, deny_cache=0) as store:
        check = await exhaust(store)
        before = scripts_run(server)
        for _ in range(4):
            await store.decide([check])
        assert scripts_run(server) - before == 4
        assert store.denials_repeated == 0


def test_without_a_clock_it_counts_nanoseconds_and_tells_microseconds() -> None:
    """The process's own clock is read as it is, for every decision."""
    cache = deny_cache.DenyCache(1_000_000, None)
    assert cache.now is time.monotonic_ns
    checks = (Check(LIMIT, "someone"),)
    denied = (Decision(LIMIT, False, 0, 12_000_000, 60_000_000, 0),)
    cache.now = lambda: 5_000_000_000
    cache.keep(checks, denied, 4_900_000_000)
    cache.now = lambda: 5_899_999_999
    (found,) = cache.find(checks) or ()
    assert (found.retry_after_us, found.reset_after_us) == (11_100_001, 59_100_001)
    cache.now = lambda: 5_900_000_000
    assert cache.find(checks) is None
