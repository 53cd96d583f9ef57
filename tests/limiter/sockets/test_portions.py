"""Units charged ahead for the messages of one identity, by several connections and workers."""

from collections.abc import Iterator
from contextlib import AsyncExitStack
from random import Random

import pytest

from ratelimit import Check
from ratelimit.rules.sockets import most_ahead
from ratelimit.stores.redis import RedisStore
from ratelimit.testing import ManualClock
from tests.support.asgi import CLIENT, Counting
from tests.support.servers import Server
from tests.support.sockets import Chat, clock_of_sockets, limit_of, rule


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[ManualClock]:
    with clock_of_sockets(monkeypatch) as clock:
        yield clock


both = pytest.mark.parametrize("distant", [False, True], ids=["in process", "distant"])


async def test_what_is_held_serves_a_message_only_in_part_and_once(clock: ManualClock) -> None:
    chat = Chat(rule("", bytes="1000/hour", on_excess="drop"), distant=True)
    look = Check(limit_of(chat, "bytes"), CLIENT[0], 0, "chat~ws:bytes")
    async with chat.connection() as connection:
        for number in range(1, 12):
            await connection.talk(["x" * 7 * number])
            (lease,) = chat.limiter.sockets.leases.values()
            (decision,) = await chat.store.decide([look])
            sent = sum(map(len, chat.inner.heard))
            assert decision.remaining == 1000 - sent - lease.held
            assert lease.held < 100
    assert sent == 7 * 11 * 12 // 2


async def test_what_is_refused_again_is_the_same_question(clock: ManualClock) -> None:
    """So that a store that remembers refusals needs no trip for it."""
    chat = Chat(rule("100/hour", on_excess="drop"), distant=True)
    async with chat.connection() as one, chat.connection() as two:
        await one.talk("a" * 100)
        trips = len(chat.trips)
        await two.talk("b" * 10)
    assert chat.trips[trips + 1 :] == [[(1, 0)]] * 9


async def test_two_workers_share_an_identitys_messages_over_the_store(clock: ManualClock) -> None:
    store = Counting(clock)
    workers = [Chat(rule("100/minute", on_excess="drop"), store=store) for _ in range(2)]
    async with workers[0].connection() as one, workers[1].connection() as two:
        for _ in range(100):
            await one.talk("a")
            await two.talk("b")
    heard = sum(len(each.inner.heard) for each in workers)
    assert heard <= 100  # what is held ahead was charged before
    assert heard >= 100 - 2 * 9


@both
async def test_a_connection_leaves_the_limit_as_if_only_what_passed_had_been_charged(
    distant: bool, clock: ManualClock
) -> None:
    chat = Chat(rule("1000/hour", on_excess="drop"), distant=distant)
    async with chat.connection() as connection:
        for number in range(120):
            await connection.talk([f"{number}"])
    (look,) = await chat.store.decide(
        [Check(limit_of(chat, "messages"), CLIENT[0], 0, "chat~ws:messages")]
    )
    assert look.remaining == 1000 - 120
    assert len(chat.limiter.sockets.leases) == 0
    if distant:
        assert len(chat.trips) < 15  # for 120 messages
        assert chat.limiter.sockets.connections is not None
        assert chat.limiter.sockets.connections.statistics().keys == 0


async def test_whoever_sends_rarely_has_nothing_charged_ahead(clock: ManualClock) -> None:
    chat = Chat(rule("100/second"), distant=True)
    async with chat.connection() as connection:
        for _ in range(20):
            clock.advance(0.2)
            await connection.talk("a")
    assert chat.trips == [[(1, 0)]] * 20


async def test_what_is_charged_ahead_is_used_within_its_time_or_given_back(
    clock: ManualClock,
) -> None:
    chat = Chat(rule("100/second", on_excess="drop"), distant=True)
    async with chat.connection() as connection:
        await connection.talk("a" * 4)  # one, one and one more, and one of four
        (lease,) = chat.limiter.sockets.leases.values()
        assert lease.held == 3
        clock.advance(0.089)
        await connection.talk("a")
        assert lease.held == 2
        clock.advance(0.002)
        await connection.talk("a")
    charged, shadow, returned = 0, 1, 3
    assert chat.trips == [
        [(1, charged)],
        [(1, charged), (1, shadow)],
        [(1, charged), (3, shadow)],
        [(2, returned)],
        [(1, charged), (1, shadow)],
        [(1, returned)],
    ]
    assert len(chat.inner.heard) == 6


async def test_many_connections_leave_nothing_behind(clock: ManualClock) -> None:
    chat = Chat(rule("5/second", bytes="100/second", on_excess="drop"), distant=True)
    open_ones = [chat.connection(client=(f"192.0.2.{n}", 1)) for n in range(200)]
    for each in open_ones:
        await each.__aenter__()
        each.sends(*["x" * 9] * 20)
    for each in open_ones:
        await each.settled()
    assert len(chat.inner.heard) == 5 * 200
    assert len(chat.limiter.sockets.leases) == 2 * 200
    for each in open_ones:
        await each.__aexit__()
    connections = chat.limiter.sockets.connections
    assert connections is not None
    assert (len(chat.limiter.sockets.leases), connections.statistics().keys) == (0, 0)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("text", ["100/second", "30/second burst 60", "7/second"])
async def test_no_window_lets_more_through_than_the_bound_that_check_prints(
    seed: int, text: str, clock: ManualClock
) -> None:
    """Of one identity, over four workers that share a store, whenever it sends to whichever."""
    random = Random(seed)
    store = Counting(clock)
    workers = [Chat(rule(text, on_excess="drop"), store=store) for _ in range(4)]
    passed: list[int] = []
    async with AsyncExitStack() as stack:
        connections = [await stack.enter_async_context(each.connection()) for each in workers]
        for _ in range(60):
            clock.advance(random.choice([0, 0.001, 0.05, 0.1, 0.3, 2]))
            worker = random.randrange(4)
            before = len(workers[worker].inner.heard)
            await connections[worker].talk("x" * random.choice([1, 5, 40]))
            passed += [clock()] * (len(workers[worker].inner.heard) - before)
    limit = limit_of(workers[0], "messages")
    for start in set(passed):
        for us in (0, 10_000, 100_000, 500_000, 1_000_000, 3_000_000):
            inside = sum(start <= at <= start + us for at in passed)
            gained = us * limit.quota // limit.window_us
            assert inside <= limit.capacity + gained + most_ahead(limit)


async def test_over_redis_an_identity_takes_few_trips_and_gives_back_what_is_left(
    redis_server: Server,
) -> None:
    stores = [RedisStore(redis_server.url, deadline=10) for _ in range(2)]
    workers = [Chat(rule("1000/hour", on_excess="drop"), store=store) for store in stores]
    look = Check(limit_of(workers[0], "messages"), CLIENT[0], 0, "chat~ws:messages")
    await stores[0].reset([look])
    async with workers[0].connection() as one, workers[1].connection() as two:
        one.sends(*map(str, range(300)))
        two.sends(*map(str, range(300)))
        while sum(len(each.inner.heard) for each in workers) < 600:
            await one.settled()
    assert [each.inner.heard for each in workers] == [[*map(str, range(300))]] * 2
    (decision,) = await stores[0].decide([look])
    assert 400 <= decision.remaining <= 401  # what an hour's bucket gains meanwhile
    for each in workers:
        assert sum(each.store.trips.buckets) < 20  # for a handshake and 300 messages
        await each.limiter.aclose()
