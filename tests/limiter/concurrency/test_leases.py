"""Places of requests that are under way at once, as each worker tells the store of its own."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import suppress
from random import Random
from threading import Event
from typing import Any

import anyio
import pytest
from starlette.types import Message, Receive, Scope, Send

from ratelimit import MemoryStore, RateLimiter, RateLimitMiddleware, Rule, RuleSet, Store
from ratelimit.decisions import Check, Decision
from ratelimit.stores.redis import RedisStore
from tests.support.asgi import ask, call, http_scope
from tests.support.proxy import Proxy
from tests.support.servers import Server

LEASE = 1.0  # seconds, the shortest there is
THIRD = 0.6  # seconds: a third of that, and what a loaded machine takes beside


class Slow:
    """An application that counts how many of its calls are under way, and ends when it is told."""

    def __init__(self) -> None:
        self.now = self.most = self.calls = 0
        self.go_on = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.calls += 1
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await self.go_on.wait()
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"ok"})
        finally:
            self.now -= 1


@pytest.fixture(params=["memory", "redis"])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    if request.param == "memory":
        async with MemoryStore() as memory:
            yield memory
        return
    server: Server = request.getfixturevalue("redis_server")
    server.command("FLUSHALL")
    async with RedisStore(server.url, deadline=5) as shared:
        yield shared


def worker(store: Store, most: int = 5, **options: Any) -> RateLimiter:
    """A limiter, whose places are its own as those of another process would be."""
    of_set = {key: options.pop(key) for key in ("workers", "on_store_failure") if key in options}
    rule = Rule("exports", concurrency=most, lease=LEASE, **options)
    return RateLimiter(RuleSet([rule], **of_set), store=store)


async def left(limiter: RateLimiter) -> int:
    """The places that are left to a client."""
    (decision,) = await limiter.peek("exports", "192.0.2.1")
    return decision.remaining


async def becomes(limiter: RateLimiter, number: int, within: float) -> float:
    """Seconds until so many places are left; fails where that takes too long."""
    began = time.monotonic()
    found = -1
    while time.monotonic() - began < within:
        found = await left(limiter)
        if found == number:
            return time.monotonic() - began
        await asyncio.sleep(0.01)
    raise AssertionError(f"{found} places are left, not {number}, after {within} s")


def known(limiters: Iterable[RateLimiter]) -> list[Any]:
    """The counters of which these limiters still know anything."""
    return [
        (each.held, each.pending, each.in_doubt, each.users)
        for limiter in limiters
        for of_loop in limiter._leases._workers.values()
        for each in of_loop.counters.values()
    ]


async def until(holds: Callable[[], object]) -> None:
    """Waits for what happens in this event loop, or in a thread; the suite's timeout ends it."""
    while not holds():  # noqa: ASYNC110  # it is many things
        await asyncio.sleep(0.002)


async def begin(app: Any, inner: Slow, count: int) -> list[asyncio.Task[Any]]:
    """Requests that are under way."""
    tasks = [asyncio.create_task(ask(app)) for _ in range(count)]
    await until(lambda: inner.now >= count)
    return tasks


async def test_never_are_more_under_way_than_the_rule_says(store: Store) -> None:
    """Two workers, requests that last at random, and every third client leaves: 5 at once."""
    rng = Random(7)
    now = most = 0

    async def inner(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        try:
            await asyncio.sleep(rng.random() / 100)
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"ok"})
        finally:
            now -= 1

    workers = [worker(store), worker(store)]
    apps = [RateLimitMiddleware(inner, each) for each in workers]
    passed = 0

    async def client(number: int) -> None:
        nonlocal passed
        asking = asyncio.create_task(ask(apps[number % 2]))
        if number % 3 == 0:
            await asyncio.sleep(rng.random() / 100)
            asking.cancel()
        with suppress(asyncio.CancelledError):
            answer = await asking
            passed += answer.status == 200

    for _ in range(40):
        await asyncio.gather(*(client(number) for number in range(50)))
    assert most == 5
    assert passed > 100
    await becomes(workers[0], 5, within=THIRD)
    await until(lambda: not known(workers))


async def test_a_refused_request_is_told_that_too_many_are_under_way(store: Store) -> None:
    inner = Slow()
    app = RateLimitMiddleware(inner, worker(store, 2))
    tasks = await begin(app, inner, 2)
    answer = await ask(app)
    assert answer.status == 429
    assert answer.headers["ratelimit-policy"] == '"exports";q=2;qu="concurrent-requests"'
    assert answer.headers["retry-after"] in ("1", "2")
    assert answer.headers["ratelimit"] == f'"exports";r=0;t={answer.headers["retry-after"]}'
    assert answer.problem["violated-policies"] == ["exports"]
    assert "at once" in answer.problem["detail"]
    inner.go_on.set()
    passed = [await each for each in tasks]
    assert [each.status for each in passed] == [200, 200]
    assert passed[1].headers["ratelimit"] == '"exports";r=0'
    # No cache repeats the denial: the place is free.
    assert (await ask(app)).status == 200


async def test_a_concurrency_and_the_rates_beside_it_pass_together_or_not_at_all(
    store: Store,
) -> None:
    rule = Rule("exports", "3/hour", algorithm="fixed_window", concurrency=2, lease=LEASE)
    limiter = RateLimiter([rule], store=store)
    inner = Slow()
    app = RateLimitMiddleware(inner, limiter)
    tasks = await begin(app, inner, 2)
    for _ in range(3):
        refused = await ask(app)
        assert refused.problem["violated-policies"] == ["exports:concurrency"]
    inner.go_on.set()
    await asyncio.gather(*tasks)
    assert (await ask(app)).status == 200
    refused = await ask(app)
    assert refused.problem["violated-policies"] == ["exports"]
    rate, at_once = await limiter.peek("exports", "192.0.2.1")
    assert (rate.remaining, at_once.remaining) == (0, 2)


async def test_places_are_held_to_the_last_byte(store: Store) -> None:
    """Longer than a lease, by a worker that renews its word."""
    go_on = asyncio.Event()

    async def stream(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"1", "more_body": True})
        await go_on.wait()
        await send({"type": "http.response.body", "body": b"2"})
        await asyncio.Event().wait()  # as a background task, which is not the response

    limiter = worker(store, 1)
    app = RateLimitMiddleware(stream, limiter)
    task = asyncio.create_task(ask(app))
    other = worker(store, 1)
    await becomes(other, 0, within=5)
    ends = time.monotonic() + 1.5 * LEASE
    while time.monotonic() < ends:
        assert await left(other) == 0
        await asyncio.sleep(0.02)
    go_on.set()
    await becomes(other, 1, within=5)
    task.cancel()


@pytest.mark.parametrize("ending", ["returns", "raises", "is cancelled"])
async def test_until_done_a_place_is_held_until_the_call_has_ended(
    store: Store, ending: str
) -> None:
    go_on = asyncio.Event()

    async def inner(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})
        await go_on.wait()
        if ending == "raises":
            raise RuntimeError

    limiter = worker(store, 1, until="done")
    app = RateLimitMiddleware(inner, limiter)
    task = asyncio.create_task(ask(app))
    await becomes(limiter, 0, within=5)
    await asyncio.sleep(0.05)
    assert await left(limiter) == 0
    if ending == "is cancelled":
        task.cancel()
    go_on.set()
    with suppress(RuntimeError, asyncio.CancelledError):
        await task
    await becomes(limiter, 1, within=5)
    assert known([limiter]) == []


@pytest.mark.parametrize(
    "last",
    [
        {"type": "http.response.pathsend", "path": "/etc/hostname"},
        {"type": "http.response.trailers", "headers": [], "more_trailers": False},
    ],
    ids=lambda last: last["type"],
)
async def test_the_last_message_may_be_a_file_or_trailers(last: Message) -> None:
    limiter = worker(MemoryStore(), 1)
    sent: list[int] = []

    async def inner(scope: Scope, receive: Receive, send: Send) -> None:
        trailers = last["type"].endswith("trailers")
        start = {"type": "http.response.start", "status": 200, "headers": [], "trailers": trailers}
        await send(start)
        if trailers:
            await send({"type": "http.response.body", "body": b"ok"})
        sent.append(await left(limiter))
        await send(last)
        sent.append(await left(limiter))

    await ask(RateLimitMiddleware(inner, limiter))
    assert sent == [0, 1]


async def test_a_disconnect_alone_gives_nothing_up(store: Store) -> None:
    go_on = asyncio.Event()
    gone = asyncio.Event()

    async def inner(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        assert (await receive())["type"] == "http.disconnect"
        gone.set()
        await go_on.wait()

    limiter = worker(store, 1)
    received: list[Message] = [{"type": "http.request", "body": b""}, {"type": "http.disconnect"}]
    app = RateLimitMiddleware(inner, limiter)
    task = asyncio.create_task(call(app, http_scope(), received))
    await gone.wait()
    assert await left(limiter) == 0
    go_on.set()
    await task
    await becomes(limiter, 1, within=5)


@pytest.mark.parametrize("cancels", ["asyncio", "anyio"])
async def test_a_cancelled_plain_endpoint_holds_its_place_until_its_thread_has_returned(
    store: Store, cancels: str
) -> None:
    running, go_on = Event(), Event()

    def endpoint() -> None:
        running.set()
        go_on.wait(20)

    async def inner(scope: Scope, receive: Receive, send: Send) -> None:
        await anyio.to_thread.run_sync(endpoint)

    limiter = worker(store, 1)
    app = RateLimitMiddleware(inner, limiter)

    async def under_anyio() -> None:
        with anyio.CancelScope() as scope:
            scopes.append(scope)
            await ask(app)

    scopes: list[anyio.CancelScope] = []
    task: asyncio.Task[Any] = asyncio.create_task(
        ask(app) if cancels == "asyncio" else under_anyio()
    )
    await until(running.is_set)
    if cancels == "asyncio":
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
    else:
        scopes[0].cancel()
    await asyncio.sleep(0.1)
    assert await left(limiter) == 0
    go_on.set()
    await becomes(limiter, 1, within=5)
    await asyncio.gather(task, return_exceptions=True)


async def test_a_request_that_is_refused_further_in_gives_its_place_up(store: Store) -> None:
    at_once, one = worker(store, 3), RateLimiter([Rule("one", "1/hour")], store=MemoryStore())
    inner = RateLimitMiddleware(_ok, one)
    app = RateLimitMiddleware(inner, at_once)
    assert [(await ask(app)).status for _ in range(3)] == [200, 429, 429]
    await becomes(at_once, 3, within=5)


async def _ok(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"ok"})


async def test_a_request_that_is_cancelled_while_it_waits_its_turn_gives_its_place_up(
    store: Store,
) -> None:
    rule = Rule(
        "exports", "1/minute", algorithm="leaking_bucket", burst=9, max_delay=None,
        concurrency=3, lease=LEASE,
    )  # fmt: skip
    limiter = RateLimiter([rule], store=store)
    app = RateLimitMiddleware(_ok, limiter)
    assert (await ask(app)).status == 200
    task = asyncio.create_task(ask(app))
    await until(lambda: limiter.waiting)
    assert (await limiter.peek("exports", "192.0.2.1"))[1].remaining == 2
    task.cancel()
    await until(lambda: not limiter.in_flight.total())
    assert (await limiter.peek("exports", "192.0.2.1"))[1].remaining == 3


async def test_a_rule_in_shadow_counts_what_is_under_way_and_refuses_nobody(store: Store) -> None:
    inner = Slow()
    limiter = worker(store, 2, mode="shadow")
    app = RateLimitMiddleware(inner, limiter)
    tasks = await begin(app, inner, 3)
    assert limiter.counts["exports", "shadow-denied"] == 1
    assert limiter.in_flight["exports"] == 2
    assert await left(limiter) == 0
    inner.go_on.set()
    await asyncio.gather(*tasks)
    await becomes(limiter, 2, within=5)


async def test_whom_nothing_limits_holds_no_place(store: Store) -> None:
    """An override's own limit leaves the concurrency as it is; `unlimited` lifts that as well."""
    overrides = {"192.0.2.1": "unlimited", "192.0.2.2": "100/minute", "192.0.2.3": "blocked"}
    limiter = worker(store, 1, overrides=overrides)
    inner = Slow()
    app = RateLimitMiddleware(inner, limiter)
    tasks = await begin(app, inner, 3)
    assert limiter.in_flight["exports"] == 0
    assert await limiter.peek("exports", "192.0.2.1") == ()
    tasks.append(asyncio.create_task(ask(app, client=("192.0.2.2", 1))))
    await until(lambda: inner.now >= 4)
    refused = await ask(app, client=("192.0.2.2", 1))
    assert refused.problem["violated-policies"] == ["exports:concurrency"]
    assert (await ask(app, client=("192.0.2.3", 1))).status == 403
    inner.go_on.set()
    await asyncio.gather(*tasks)


async def test_the_places_of_a_dead_worker_are_free_after_its_lease_and_not_before(
    store: Store,
) -> None:
    dead, living = worker(store, 3), worker(store, 3)
    inner = Slow()
    tasks = await begin(RateLimitMiddleware(inner, dead), inner, 2)
    began = time.monotonic()
    await dead._leases.aclose()  # its renewals stop, as those of a process that was killed
    assert await left(living) == 1
    await becomes(living, 3, within=5)
    assert time.monotonic() - began > LEASE / 2
    for task in tasks:
        task.cancel()


async def test_a_store_that_has_forgotten_is_told_within_a_third_of_a_lease(
    redis_server: Server,
) -> None:
    async with RedisStore(redis_server.url, deadline=5) as store:
        limiter, other = worker(store), worker(store)
        inner = Slow()
        tasks = await begin(RateLimitMiddleware(inner, limiter), inner, 3)
        redis_server.command("FLUSHALL")
        assert await left(other) == 5
        await becomes(other, 2, within=THIRD)
        inner.go_on.set()
        await asyncio.gather(*tasks)
        await becomes(other, 5, within=THIRD)
        assert known([limiter]) == []


async def test_a_word_that_counts_too_much_or_too_little_is_put_right(redis_server: Server) -> None:
    """As after a release that was lost, or a failover to an older state."""
    redis_server.command("FLUSHALL")
    async with RedisStore(redis_server.url, deadline=5) as store:
        limiter = worker(store)
        inner = Slow()
        app = RateLimitMiddleware(inner, limiter)
        tasks = await begin(app, inner, 2)
        (key,) = redis_server.ask("KEYS", "rl:*:exports")
        field, word = redis_server.ask("HGETALL", key)
        for wrong in ("1", "4"):
            redis_server.ask("HSET", key, field, word[:29] + wrong)
            assert await left(limiter) == 5 - int(wrong)
            await becomes(limiter, 3, within=THIRD)
        # Where the serial is another one as well, the next request sees to it before it asks.
        serial = f"{int(word[16:29]) - 3:013d}"
        redis_server.ask("HSET", key, field, word[:16] + serial + "0")
        tasks += await begin(app, inner, 3)
        await becomes(limiter, 2, within=THIRD)
        inner.go_on.set()
        await asyncio.gather(*tasks)
        await becomes(limiter, 5, within=THIRD)


LATE = """
local words = redis.call('HGETALL', KEYS[1])
local serial, count = string.sub(words[2], 17, 29) + 0, string.sub(words[2], 30) + 0
local word = string.format('%s%013.0f%.0f', string.sub(words[2], 1, 16), serial + 2, count + 2)
return redis.call('HSET', KEYS[1], words[1], word)
"""
"""Two charges that come through long after their worker has given them up."""


async def test_a_charge_that_comes_late_under_load_takes_no_place_for_long(
    redis_server: Server,
) -> None:
    """There is always a charge on its way, so that no renewal alone could tell."""
    redis_server.command("FLUSHALL")
    now = most = 0

    async def inner(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.03)
        now -= 1
        await _ok(scope, receive, send)

    async with Proxy(redis_server.port) as proxy, RedisStore(proxy.url, deadline=5) as store:
        proxy.delay = 0.005
        limiter = worker(store, 5)
        app = RateLimitMiddleware(inner, limiter)
        ends = False

        async def client() -> None:
            while not ends:
                await ask(app)

        tasks = [asyncio.create_task(client()) for _ in range(12)]
        await until(lambda: most == 5)
        (key,) = redis_server.ask("KEYS", "rl:*:exports")
        for _ in range(3):
            redis_server.ask("EVAL", LATE, "1", key)
            await asyncio.sleep(0.1)  # in which end those that were under way
            most = 0
            await until(lambda: most == 5)  # noqa: B023  # waited for here
        ends = True
        await asyncio.gather(*tasks)


async def test_a_charge_whose_reply_was_lost_leaves_no_place_behind(redis_server: Server) -> None:
    redis_server.command("FLUSHALL")
    async with Proxy(redis_server.port) as proxy, RedisStore(proxy.url, deadline=0.2) as store:
        limiter = worker(store, on_store_failure="deny")
        inner = Slow()
        inner.go_on.set()
        app = RateLimitMiddleware(inner, limiter)
        assert (await ask(app)).status == 200
        proxy.swallow_replies = True
        assert (await ask(app)).status == 503
        async with RedisStore(redis_server.url, deadline=5) as other:
            assert await left(worker(other)) == 4
            proxy.swallow_replies = False
            await proxy.cut()
            await becomes(worker(other), 5, within=4)
        await until(lambda: not known([limiter]))


async def test_while_the_store_is_away_each_worker_has_its_share(redis_server: Server) -> None:
    redis_server.command("FLUSHALL")
    async with Proxy(redis_server.port) as proxy, RedisStore(proxy.url, deadline=0.2) as store:
        limiter = worker(store, 6, on_store_failure="local", workers=2)
        inner = Slow()
        app = RateLimitMiddleware(inner, limiter)
        tasks = await begin(app, inner, 2)
        proxy.refuse()
        await proxy.cut()
        # Of its share of three, it has two under way.
        answers = [asyncio.create_task(ask(app)) for _ in range(4)]
        await until(lambda: sum(each.done() for each in answers) >= 3)
        assert sorted(each.result().status for each in answers if each.done()) == [429] * 3
        assert inner.now == 3
        await proxy.accept()
        async with RedisStore(redis_server.url, deadline=5) as other:
            await becomes(worker(other, 6), 3, within=4)
            inner.go_on.set()
            await asyncio.gather(*tasks, *answers)
            await becomes(worker(other, 6), 6, within=4)


async def test_what_was_let_through_while_the_store_was_away_counts_when_it_is_back(
    redis_server: Server,
) -> None:
    """It may be more than the rule says; then nobody is let in until it is below."""
    redis_server.command("FLUSHALL")
    async with Proxy(redis_server.port) as proxy, RedisStore(proxy.url, deadline=0.2) as store:
        limiter = worker(store, 3)
        inner = Slow()
        app = RateLimitMiddleware(inner, limiter)
        proxy.refuse()
        tasks = await begin(app, inner, 5)
        await proxy.accept()
        async with RedisStore(redis_server.url, deadline=5) as other:
            await becomes(worker(other, 3), 0, within=4)
            for task in tasks[:2]:
                task.cancel()
            await until(lambda: inner.now <= 3)
            assert (await ask(RateLimitMiddleware(inner, worker(other, 3)))).status == 429
            inner.go_on.set()
            await asyncio.gather(*tasks, return_exceptions=True)
            await becomes(worker(other, 3), 3, within=4)


async def test_a_loop_that_was_held_up_loses_and_doubles_nothing(store: Store) -> None:
    """Its word has run out: it is told again before another request is let in."""
    limiter, other = worker(store, 4), worker(store, 4)
    inner, others = Slow(), Slow()
    app, theirs = RateLimitMiddleware(inner, limiter), RateLimitMiddleware(others, other)
    tasks = await begin(app, inner, 3)
    time.sleep(1.2 * LEASE)  # noqa: ASYNC251  # that is the point
    statuses = await asyncio.gather(*(asyncio.wait_for(_status(app), 5) for _ in range(2)))
    assert statuses.count(429) >= 1
    inner.go_on.set()
    others.go_on.set()
    await asyncio.gather(*tasks)
    await becomes(other, 4, within=THIRD)
    assert (await ask(theirs)).status == 200


async def _status(app: Any) -> int:
    """The status of a request that ends at once where it is refused, else 0."""
    task = asyncio.create_task(ask(app))
    await asyncio.wait([task], timeout=0.5)
    return task.result().status if task.done() else 0


class Delayed(RedisStore):
    """A store whose renewals take 200 ms."""

    renewed = 0

    async def decide_apart(self, checks: Sequence[Check]) -> tuple[Decision, ...]:
        await asyncio.sleep(0.1)
        decisions = await super().decide_apart(checks)
        await asyncio.sleep(0.1)
        self.renewed += 1
        return decisions


async def test_renewals_that_are_overtaken_by_many_charges_neither_add_nor_take_places(
    redis_server: Server,
) -> None:
    redis_server.command("FLUSHALL")
    rng = Random(3)
    now = most = 0

    async def inner(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(rng.random() / 50)
        now -= 1
        await _ok(scope, receive, send)

    async with Delayed(redis_server.url, deadline=5) as one:
        limiters = [worker(one, 20), worker(one, 20)]
        apps = [RateLimitMiddleware(inner, each) for each in limiters]
        passed = refused = 0

        async def client(number: int) -> None:
            nonlocal passed, refused
            while one.renewed < 8:
                answer = await ask(apps[number % 2])
                passed += answer.status == 200
                refused += answer.status == 429
                await asyncio.sleep(0.01)

        await asyncio.gather(*(client(number) for number in range(60)))
        assert most == 20
        assert passed > 100
        assert refused > 100
        await becomes(limiters[0], 20, within=THIRD)


async def test_a_cancelled_request_whose_charge_is_on_its_way_keeps_no_place(
    redis_server: Server,
) -> None:
    """A thousand of them: whatever was charged is given up as soon as that is known."""
    redis_server.command("FLUSHALL")
    async with RedisStore(redis_server.url, deadline=5) as store:
        limiter = worker(store, 1_000)
        app = RateLimitMiddleware(_ok, limiter)
        for _ in range(10):
            tasks = [asyncio.create_task(ask(app)) for _ in range(100)]
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        await until(lambda: not known([limiter]))
        assert await left(limiter) == 1_000


async def test_health_tells_when_a_word_is_beyond_its_lease(redis_server: Server) -> None:
    async with Proxy(redis_server.port) as proxy, RedisStore(proxy.url, deadline=0.2) as store:
        limiter = worker(store)
        inner = Slow()
        tasks = await begin(RateLimitMiddleware(inner, limiter), inner, 1)
        assert "late_leases" not in limiter.health()
        proxy.swallow_requests = True
        await until(lambda: "late_leases" in limiter.health())
        assert limiter.health()["status"] == "degraded"
        proxy.swallow_requests = False
        await proxy.cut()
        await until(lambda: "late_leases" not in limiter.health())
        inner.go_on.set()
        await asyncio.gather(*tasks)


async def test_identities_without_a_place_take_no_memory() -> None:
    store = MemoryStore()
    limiter = worker(store, 1)
    app = RateLimitMiddleware(_ok, limiter)
    for number in range(20_000):
        await ask(app, client=(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", 1))
    assert known([limiter]) == []
    assert store.statistics().keys == 0


async def test_limiters_and_forked_processes_have_names_of_their_own() -> None:
    store = MemoryStore()
    one, two = worker(store), worker(store)
    names = set()
    for limiter in (one, two):
        found = limiter._leases._worker()
        names.add((found._first, found._second))
    assert len(names) == 2
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        found = one._leases._worker()
        os.write(writes, b"1" if (found._first, found._second) in names else b"2")
        os._exit(0)
    os.waitpid(child, 0)  # noqa: ASYNC222  # it ends at once
    assert os.read(reads, 1) == b"2"


async def test_a_charge_by_name_leaves_a_concurrency_alone(store: Store) -> None:
    limiter = worker(store, 1)
    assert (await limiter.charge("exports", "192.0.2.1")) == ()
    assert await left(limiter) == 1
    decisions: tuple[Decision, ...] = await limiter.peek("exports", "192.0.2.1")
    assert str(decisions[0].limit) == "1 at once"
