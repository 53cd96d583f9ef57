"""A denial is repeated in process, for a while, without a round trip."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from ratelimit import Algorithm, Check, Decision, Limit, RedisStore
from ratelimit.decisions import identity_digest
from ratelimit.stores.redis import deny_cache
from ratelimit.testing import ManualClock
from tests.support.servers import Server

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


@pytest.mark.parametrize("cost", [1, 2, 5])
async def test_a_denial_is_not_repeated_while_a_smaller_cost_could_pass(
    store: RedisStore, cost: int
) -> None:
    """Whoever takes what is left moves the instant at which more than that is there."""
    await store.decide([Check(LIMIT, "someone", 6 - cost)])
    dear, cheap = Check(LIMIT, "someone", cost), Check(LIMIT, "someone", cost - 1)
    (before,) = await store.decide([dear])
    await store.decide([cheap])
    (after,) = await store.decide([dear])
    assert (before.remaining, after.remaining) == (cost - 1, 0)
    assert before.retry_after_us == 12_000_000
    assert after.retry_after_us == 12_000_000 * cost


async def test_in_a_fixed_window_a_denial_at_any_cost_holds_until_its_end(
    store: RedisStore, server: Server
) -> None:
    """Where all is taken: no cost passes any sooner."""
    limit = Limit("5/hour", algorithm="fixed_window")
    await store.decide([Check(limit, "someone", 5)])
    before = scripts_run(server)
    for _ in range(3):
        for cost in (1, 3, 6):
            (decision,) = await store.decide([Check(limit, "someone", cost)])
            assert (decision.allowed, decision.remaining) == (False, 0)
            assert (decision.retry_after_us is None) is (cost == 6)
    assert scripts_run(server) - before == 3


async def test_a_give_back_is_seen_at_once_and_leaves_it_on(
    store: RedisStore, server: Server
) -> None:
    """It voids what was told of that counter, now and then, and nothing that others were told."""
    strangers = await exhaust(store, "a stranger")
    for _ in range(3):
        taken = Check(LIMIT, "someone", 5)
        (decision,) = await store.decide([taken])
        check = Check(LIMIT, "someone")
        await store.decide([check])
        await store.decide([taken.given_back(decision)])
        assert (await store.decide([check]))[0].allowed
        await store.reset([check])
    check = await exhaust(store)
    before = scripts_run(server)
    for _ in range(5):
        assert not (await store.decide([check]))[0].allowed
        assert not (await store.decide([strangers]))[0].allowed
    assert scripts_run(server) - before == 0


async def test_a_charge_that_does_not_ask_is_seen_at_once(store: RedisStore) -> None:
    """A debt takes longer to pay off than what was told before."""
    check = await exhaust(store)
    await store.decide([Check(LIMIT, "someone", 2).forced()])
    (decision,) = await store.decide([check])
    assert decision.retry_after_us == 36_000_000


async def test_what_is_charged_to_a_limit_that_did_not_refuse_is_seen_at_once(
    store: RedisStore,
) -> None:
    """A refused request is told of all its limits as they are now."""
    window = Limit("9/hour", algorithm="fixed_window")
    check = await exhaust(store)
    for taken in range(1, 4):
        await store.decide([Check(window, "everybody")])
        told = [await store.decide([check, Check(window, "everybody")]) for _ in range(2)]
        assert [decisions[1].remaining for decisions in told] == [9 - taken] * 2
    assert store.denials_repeated == 3


@pytest.mark.parametrize("algorithm", list(Algorithm))
async def test_limits_beside_the_one_that_refuses_cost_no_trip(
    store: RedisStore, server: Server, algorithm: Algorithm
) -> None:
    """While nobody charges them, and time gives nothing back to them."""
    beside = Check(Limit("20/day", algorithm=algorithm), "someone")
    check = await exhaust(store)
    await store.decide([beside._replace(cost=6)])
    before = scripts_run(server)
    for _ in range(5):
        decisions = await store.decide([check, beside])
        assert [decision.remaining for decision in decisions] == [0, 14]
    assert scripts_run(server) - before == 1


@pytest.mark.parametrize("change", ["give back", "reset"])
async def test_what_another_worker_does_is_seen_within_a_second(
    store: RedisStore, server: Server, clock: ManualClock, change: str
) -> None:
    """A denial is repeated for a second at most, whatever its `retry_after`."""
    taken = Check(LIMIT, "someone", 5)
    (decision,) = await store.decide([taken])
    check = Check(LIMIT, "someone")
    await store.decide([check])
    async with RedisStore(server.url, clock=clock, deadline=10) as other:
        if change == "reset":
            await other.reset([check])
        else:
            await other.decide([taken.given_back(decision)])
    clock.advance(us=999_999)
    assert not (await store.decide([check]))[0].allowed
    clock.advance(us=1)
    assert (await store.decide([check]))[0].allowed


def test_longer_than_a_second_is_refused(server: Server) -> None:
    """What another worker gives back would be seen too late."""
    with pytest.raises(ValueError, match=r"deny_cache is 2.5 s; it is at most 1 s, within which"):
        RedisStore(server.url, deny_cache=2.5)


async def test_a_clock_that_steps_back_is_asked_again(
    store: RedisStore, server: Server, clock: ManualClock
) -> None:
    """A remembered denial of the future is none."""
    check = await exhaust(store)
    clock.advance(us=-5)
    before = scripts_run(server)
    await store.decide([check])
    assert scripts_run(server) - before == 1


async def test_what_can_never_pass_is_asked_again_while_others_pass(
    store: RedisStore, server: Server
) -> None:
    """What is left is told, and others may take it."""
    check = Check(LIMIT, "someone", 6)
    for left in (5, 4, 3):
        (decision,) = await store.decide([check])
        assert (decision.allowed, decision.retry_after, decision.remaining) == (False, None, left)
        await store.decide([Check(LIMIT, "someone")])


async def test_a_shadow_denial_alone_is_not_repeated(store: RedisStore, server: Server) -> None:
    """The request passed, and its other checks have to be charged."""
    await store.decide([Check(LIMIT, "a", 5)])
    checks = [Check(LIMIT, "a", shadow=True), Check(LIMIT, "b")]
    left = [(await store.decide(checks))[1].remaining for _ in range(3)]
    assert left == [4, 3, 2]


async def test_it_is_bounded(store: RedisStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest denial goes first, and is asked for again; a request is as large as its checks."""
    monkeypatch.setattr(deny_cache, "MOST_CHECKS", 3)
    for key in "abcde":
        await exhaust(store, key)
    assert len(store._denials.entries) == 3
    await asyncio.gather(*(store.decide([Check(LIMIT, key)]) for key in "abcde"))
    assert len(store._denials.entries) == 3
    for keys, left in (("ab", 2), ("ba", 1), ("abcd", 1), ("a", 2), ("ab", 2)):
        await store.decide([Check(LIMIT, key) for key in keys])
        assert len(store._denials.entries) == left


def test_a_change_that_is_not_remembered_any_more_voids_what_was_asked_before_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Denials are asked again rather than repeated in spite of it."""
    monkeypatch.setattr(deny_cache, "MOST_CHANGES", 2)
    cache = deny_cache.DenyCache(1_000_000, lambda: 7)
    denied = (Decision(LIMIT, False, 0, 12_000_000, 60_000_000, 0, level=12_000_000),)
    checks = (Check(LIMIT, "someone"),)
    cache.keep(checks, denied, 7)
    for key, repeated in (("a", True), ("b", True), ("b", True), ("c", False)):
        cache.changed([Check(LIMIT, key)])
        assert (cache.find(checks) is not None) is repeated
    cache.keep(checks, denied, 7)
    assert cache.find(checks) is not None


@pytest.mark.parametrize("change", ["counter", "all"])
def test_what_was_asked_before_a_change_and_answered_after_it_is_not_remembered(
    change: str,
) -> None:
    """Nobody knows which came first."""
    cache = deny_cache.DenyCache(1_000_000, lambda: 7)
    denied = (Decision(LIMIT, False, 0, 12_000_000, 60_000_000, 0, level=12_000_000),)
    checks = (Check(LIMIT, "someone"),)
    before = cache.changes
    if change == "all":
        cache.clear()
    else:
        cache.changed(checks)
    cache.learn(checks, denied, 7, before)
    assert cache.find(checks) is None
    cache.learn(checks, denied, 7, cache.changes)
    assert cache.find(checks) == (denied[0]._replace(at_us=7),)


def test_a_long_identity_is_kept_as_its_digest_and_is_no_other() -> None:
    """A client chooses how long it is, and what is written in it."""
    cache = deny_cache.DenyCache(1_000_000, lambda: 7)
    denied = (Decision(LIMIT, False, 0, 12_000_000, 60_000_000, 0, level=12_000_000),)
    long = "\ud800" + 60_000 * "x"
    cache.keep((Check(LIMIT, long),), denied, 7)
    ((_, kept, *_),) = cache.entries
    assert kept == identity_digest(long).encode()
    assert cache.find((Check(LIMIT, long),)) is not None
    assert cache.find((Check(LIMIT, long + "y"),)) is None
    assert cache.find((Check(LIMIT, identity_digest(long)),)) is None


def test_when_all_are_over_nothing_is_looked_up() -> None:
    """Most services deny nobody most of the time."""
    now = [7]
    cache = deny_cache.DenyCache(1_000_000, lambda: now[0])
    denied = (Decision(LIMIT, False, 0, 12_000_000, 60_000_000, 0, level=12_000_000),)
    for key in "abc":
        cache.keep((Check(LIMIT, key),), denied, now[0])
    now[0] += 1_000_000
    assert cache.find((Check(LIMIT, "d"),)) is None
    assert cache.entries == {}


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
    denied = (Decision(LIMIT, False, 0, 12_000_000, 60_000_000, 0, level=12_000_000),)
    cache.now = lambda: 5_000_000_000
    cache.keep(checks, denied, 4_900_000_000)
    cache.now = lambda: 5_899_999_999
    (found,) = cache.find(checks) or ()
    assert (found.retry_after_us, found.reset_after_us) == (11_100_001, 59_100_001)
    cache.now = lambda: 5_900_000_000
    assert cache.find(checks) is None
