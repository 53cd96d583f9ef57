"""Thousands of requests in one queue: in order, punctual, and nothing for those who left."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable

import pytest
import pytest_asyncio
from starlette.types import Message, Receive, Scope, Send

from ratelimit import (
    Check,
    Limit,
    MemoryStore,
    RateLimiter,
    RateLimitMiddleware,
    RedisStore,
    Rule,
    Store,
)
from ratelimit.limiter.queueing.line import Line, Place
from tests.support.asgi import http_scope
from tests.support.servers import Server

PER_SECOND = 100


@pytest_asyncio.fixture(params=["memory", "redis"])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    """A store that decides by the clock that runs."""
    opened: Store = MemoryStore()
    if request.param == "redis":
        server: Server = request.getfixturevalue("redis_server")
        server.command("FLUSHALL")
        opened = RedisStore(server.url, deadline=10)
    yield opened
    await opened.aclose()


class Offered:
    """So many requests, all made at once, and when each came through."""

    def __init__(self, store: Store, count: int) -> None:
        rule = Rule(
            "queue", f"{PER_SECOND}/second", algorithm="leaking_bucket", by="global",
            burst=count, max_delay=30, max_waiting=count,
        )  # fmt: skip
        self.limiter = RateLimiter([rule], store=store)
        self.app = RateLimitMiddleware(self.run, self.limiter)
        self.ran: list[tuple[int, float]] = []
        self.statuses: dict[int, int] = {}
        self.gone = [asyncio.Event() for _ in range(count)]

    async def run(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.ran.append((scope["number"], time.monotonic()))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def ask(self, number: int) -> None:
        first = [{"type": "http.request", "body": b"", "more_body": False}]

        async def receive() -> Message:
            if first:
                return first.pop()
            await self.gone[number].wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.statuses[number] = message["status"]

        await self.app(http_scope(number=number), receive, send)

    def last(self) -> list[int]:
        """Every third of those who wait, but for the hundred that go on next."""
        waiting = set(range(len(self.gone))) - self.statuses.keys()
        return sorted(waiting)[100::3]


class Promises:
    """What the store has promised, and how late bare sleeps of that length are beside it."""

    def __init__(self, ahead: float) -> None:
        self.ahead = ahead
        """Seconds by which the store's clock is ahead of this process's."""
        self.due: dict[int, float] = {}
        """By the number of the request, in the order of the store."""
        self.bare: dict[int, float] = {}
        self.tasks: list[asyncio.Task[None]] = []

    def made(self, place: Place) -> None:
        due = place.due_us / 1_000_000 - self.ahead
        task = asyncio.current_task()
        number = int(task.get_name()) if task else 0
        self.due[number] = due
        self.tasks.append(asyncio.create_task(self._sleep(number, place.decision.delay)))

    async def _sleep(self, number: int, delay: float) -> None:
        await asyncio.sleep(delay)
        self.bare[number] = time.monotonic() - self.due[number]


async def ahead(store: Store) -> float:
    """Seconds by which a store's clock is ahead of this process's, and at most so much more."""
    look = Check(Limit("1/second"), "k", 0)
    found = []
    for _ in range(50):
        before = time.monotonic()
        (decision,) = await store.decide([look])
        found.append(decision.at_us / 1_000_000 - before)
    return min(found)


@pytest.mark.parametrize("count", [200, pytest.param(2_000, marks=pytest.mark.slow)])
async def test_who_stays_runs_in_order_and_never_before_the_instant_that_was_promised(
    store: Store, count: int, monkeypatch: pytest.MonkeyPatch, say: Callable[[str], None]
) -> None:
    """A third leave while they wait: all others run, each at a place, and the bucket is exact."""
    promises = Promises(await ahead(store))
    join = Line.join

    def joins(line: Line[object], place: Place, request: object, now_us: int) -> None:
        promises.made(place)
        join(line, place, request, now_us)

    monkeypatch.setattr(Line, "join", joins)
    offered = Offered(store, count)
    tasks = [asyncio.create_task(offered.ask(number), name=str(number)) for number in range(count)]
    async with asyncio.timeout(60):
        while sum(offered.limiter.counts.values()) < count:  # noqa: ASYNC110  # in real time
            await asyncio.sleep(0.001)
    left = offered.last()
    for number in left:
        offered.gone[number].set()
    await asyncio.gather(*tasks, *promises.tasks)
    stayed = [number for number in promises.due if number not in left]
    assert len(offered.ran) == count - len(left)
    ran = {number: at for number, at in offered.ran if number in promises.due}
    assert [*ran] == stayed
    assert {offered.statuses[number] for number in left} == {499}
    places = sorted(promises.due.values())
    late = [at - due for at, due in zip(ran.values(), places, strict=False)]
    assert min(late) > -0.002  # of two clocks that are read one after the other
    bare = [promises.bare[number] for number in stayed]
    for name, each in (("late", late), ("bare sleeps", bare)):
        say(f"{count} {name}: p50 {at(each, 0.5):.1f} ms, p99 {at(each, 0.99):.1f} ms")
    if count > 1_000:
        assert at(late, 0.99) <= at(bare, 0.99) + 5
    assert not offered.limiter.waits.rooms
    await offered.limiter.aclose()


def at(seconds: list[float], part: float) -> float:
    """A quantile, in milliseconds."""
    return sorted(seconds)[int(len(seconds) * part)] * 1_000
