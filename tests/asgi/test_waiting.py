"""Leaking buckets: an accepted request really waits for its turn."""

import asyncio
import time
from itertools import pairwise
from typing import Any

import anyio
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from ratelimit import MemoryStore, RateLimiter, RateLimitMiddleware, Rule, limit
from tests.support.asgi import Counting, Inner, ask, http_scope, limiter

LEAKING = "leaking_bucket"
TURN = 0.05  # seconds, at 20 per second


class Arrivals(Inner):
    """Remembers when each request came through, and with which path."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[tuple[str, float]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.times.append((scope["path"], time.monotonic()))
        await super().__call__(scope, receive, send)


async def test_concurrent_requests_leave_in_order_and_at_the_buckets_pace() -> None:
    """Of five at 20 a second each leaves no sooner than the store said, about 50 ms apart."""
    inner = Arrivals()
    rule = Rule("slow", "20/second", algorithm=LEAKING)
    app = RateLimitMiddleware(inner, RateLimiter([rule], store=MemoryStore()))
    start = time.monotonic()
    answers = []
    async with anyio.create_task_group() as tasks:
        for number in range(5):

            async def one(number: int = number) -> None:
                answers.append(await ask(app, f"/{number}"))

            tasks.start_soon(one)
    assert [path for path, _ in inner.times] == ["/0", "/1", "/2", "/3", "/4"]
    assert [answer.status for answer in answers] == [200] * 5
    waits = [at - start for _, at in inner.times]
    for number, wait in enumerate(waits):
        assert number * TURN - 0.01 <= wait <= number * TURN + 0.3
    for before, after in pairwise(waits):
        assert after - before > TURN / 2


async def test_a_request_waits_as_long_as_the_stores_delay_says() -> None:
    """On a clock that stands still the third request in a bucket waits two turns."""
    store = Counting()
    rule = Rule("slow", "20/second", algorithm=LEAKING)
    app = RateLimitMiddleware(Inner(), limiter(rule, store=store))
    taken = []
    for _ in range(3):
        start = time.monotonic()
        await ask(app)
        taken.append(time.monotonic() - start)
    delays = [decision.delay for (decision,) in store.answered]
    assert delays == [0.0, TURN, 2 * TURN]
    for delay, took in zip(delays, taken, strict=True):
        assert delay - 0.005 <= took <= delay + 0.3


async def test_a_full_queue_is_refused_at_once_and_max_delay_cuts_it() -> None:
    app = RateLimitMiddleware(
        Inner(), limiter(Rule("slow", "20/second", algorithm=LEAKING, burst=9, max_delay=0.05))
    )
    await ask(app)
    await ask(app)
    start = time.monotonic()
    answer = await ask(app)
    assert time.monotonic() - start < TURN
    assert answer.status == 429
    assert answer.headers["retry-after"] == "1"


async def test_a_request_under_several_buckets_waits_for_the_slowest_alone() -> None:
    rules = [
        Rule("fast", "50/second", algorithm=LEAKING),
        Rule("slow", "20/second", algorithm=LEAKING),
    ]
    app = RateLimitMiddleware(Inner(), limiter(*rules))
    await ask(app)
    start = time.monotonic()
    await ask(app)
    assert TURN - 0.005 <= time.monotonic() - start < TURN + 0.3


@pytest.mark.parametrize("refusing", [True, False])
async def test_a_shadow_bucket_and_a_refused_request_make_nobody_wait(refusing: bool) -> None:
    rules = [Rule("slow", "1/second", algorithm=LEAKING, mode="shadow", burst=9)]
    if refusing:
        rules = [
            Rule("slow", "1/second", algorithm=LEAKING, burst=9),
            Rule("one", "1/minute"),
        ]
    app = RateLimitMiddleware(Inner(), limiter(*rules))
    await ask(app)
    start = time.monotonic()
    answer = await ask(app)
    assert time.monotonic() - start < 0.9
    assert answer.status == (429 if refusing else 200)


async def test_a_route_with_a_leaking_bucket_waits_too_after_the_middlewares_wait() -> None:
    @limit("20/second", algorithm=LEAKING)
    async def endpoint(request: Request) -> Response:
        return PlainTextResponse("ok")

    app = Starlette(routes=[Route("/", endpoint)])
    app.add_middleware(RateLimitMiddleware, limiter=limiter())
    start = time.monotonic()
    await ask(app)
    await ask(app)
    await ask(app)
    assert time.monotonic() - start >= 3 * TURN - 0.01


async def test_a_request_that_is_cancelled_while_it_waits_never_reaches_the_application() -> None:
    inner = Inner()
    app = RateLimitMiddleware(inner, limiter(Rule("slow", "2/second", algorithm=LEAKING)))
    await ask(app)

    async def nothing(*_: Any) -> Any: ...

    waiting = asyncio.create_task(app(http_scope(), nothing, nothing))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert len(inner.scopes) == 1
