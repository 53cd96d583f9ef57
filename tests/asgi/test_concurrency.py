"""A concurrency on a route, in a middleware or without one, as servers and clients meet it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from fastapi import Depends, FastAPI
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket

from ratelimit import MemoryStore, RateLimit, RateLimiter, RateLimitMiddleware, Rule, limit
from ratelimit.rules.ruleset import RuleSet
from tests.support.asgi import ask, call, websocket_scope


def of_one(**options: Any) -> RateLimiter:
    return RateLimiter([Rule("exports", concurrency=1, **options)], store=MemoryStore())


async def until(holds: Callable[[], bool]) -> None:
    while not holds():  # noqa: ASYNC110  # the suite's timeout ends it
        await asyncio.sleep(0)


async def left(limiter: RateLimiter, rule: str = "exports") -> int:
    (decision,) = await limiter.peek(rule, "192.0.2.1")
    return decision.remaining


def test_requests_one_after_another_each_find_the_place_free() -> None:
    """Also where each has an event loop of its own, as with a client of tests."""

    async def endpoint(request: Request) -> Response:
        return PlainTextResponse("ok")

    app = Starlette(routes=[Route("/", endpoint)])
    app.add_middleware(RateLimitMiddleware, limiter=of_one())
    client = TestClient(app)
    assert [client.get("/").status_code for _ in range(5)] == [200] * 5


async def test_an_endpoint_of_its_own_is_limited_by_how_many_run() -> None:
    go_on = asyncio.Event()
    limiter = RateLimiter(store=MemoryStore())

    @limit(concurrency=2, limiter=limiter, name="slow")
    async def slow(request: Request) -> Response:
        await go_on.wait()
        return PlainTextResponse("ok")

    app = Starlette(routes=[Route("/", slow)])
    tasks = [asyncio.create_task(ask(app)) for _ in range(2)]
    await until(lambda: limiter.in_flight["slow"] >= 2)
    refused = await ask(app)
    assert refused.status == 429
    assert refused.problem["violated-policies"] == ["slow"]
    go_on.set()
    assert [(await each).status for each in tasks] == [200, 200]
    assert await left(limiter, "slow") == 2


async def test_an_endpoint_that_raises_gives_its_place_up() -> None:
    limiter = RateLimiter(store=MemoryStore())

    @limit(concurrency=1, limiter=limiter, name="slow")
    async def slow(request: Request) -> Response:
        raise RuntimeError

    app = Starlette(routes=[Route("/", slow)])
    for _ in range(2):
        with pytest.raises(RuntimeError):
            await ask(app)
    assert await left(limiter, "slow") == 1


async def test_a_dependency_holds_its_place_until_fastapi_is_done() -> None:
    """Without a middleware: to the last byte of a stream."""
    limiter = RateLimiter(store=MemoryStore())
    app = FastAPI()
    during: list[int] = []

    @app.get("/", dependencies=[Depends(RateLimit(concurrency=1, limiter=limiter, name="slow"))])
    async def endpoint() -> StreamingResponse:
        async def parts() -> AsyncIterator[bytes]:
            during.append(await left(limiter, "slow"))
            yield b"1"
            during.append(await left(limiter, "slow"))
            yield b"2"

        return StreamingResponse(parts())

    @app.get("/bad", dependencies=[Depends(RateLimit(concurrency=1, limiter=limiter, name="bad"))])
    async def bad() -> None:
        raise RuntimeError

    for _ in range(2):
        assert (await ask(app)).body == b"12"
        with pytest.raises(RuntimeError):
            await ask(app, "/bad")
    assert during == [0] * 4
    assert await left(limiter, "slow") == 1
    assert await left(limiter, "bad") == 1


@pytest.mark.parametrize(("until", "during"), [("response", 1), ("done", 0)])
async def test_a_background_task_has_a_place_where_the_rule_says_so(
    until: str, during: int
) -> None:
    limiter = of_one(until=until)
    found: list[int] = []

    async def later() -> None:
        found.append(await left(limiter))

    async def endpoint(request: Request) -> Response:
        return PlainTextResponse("ok", background=BackgroundTask(later))

    app = Starlette(routes=[Route("/", endpoint)])
    app.add_middleware(RateLimitMiddleware, limiter=limiter)
    await ask(app)
    assert found == [during]
    assert await left(limiter) == 1


async def test_a_socket_holds_its_place_for_as_long_as_it_is_open() -> None:
    limiter = of_one()
    during: list[int] = []

    async def socket(websocket: WebSocket) -> None:
        await websocket.accept()
        during.append(await left(limiter))
        assert (await call(app, websocket_scope())).messages[0]["code"] == 1008
        await websocket.close()

    app = Starlette(routes=[WebSocketRoute("/", socket)])
    app.add_middleware(RateLimitMiddleware, limiter=limiter)
    await call(app, websocket_scope(), [{"type": "websocket.connect"}])
    assert during == [0]
    assert await left(limiter) == 1


async def test_the_places_of_two_rules_are_taken_together_or_not_at_all() -> None:
    rules = [
        Rule("everybody", concurrency=2, by="global"),
        Rule("each", concurrency=1),
    ]
    limiter = RateLimiter(RuleSet(rules), store=MemoryStore())
    go_on = asyncio.Event()

    async def endpoint(request: Request) -> Response:
        await go_on.wait()
        return PlainTextResponse("ok")

    app = Starlette(routes=[Route("/", endpoint)])
    app.add_middleware(RateLimitMiddleware, limiter=limiter)
    first = asyncio.create_task(ask(app))
    await until(lambda: limiter.in_flight.total() >= 2)
    assert (await ask(app)).problem["violated-policies"] == ["each"]
    second = asyncio.create_task(ask(app, client=("192.0.2.2", 1)))
    await until(lambda: limiter.in_flight.total() >= 4)
    third = await ask(app, client=("192.0.2.3", 1))
    assert third.problem["violated-policies"] == ["everybody"]
    assert limiter.in_flight == {"everybody": 2, "each": 2}
    go_on.set()
    await asyncio.gather(first, second)
    assert limiter.in_flight.total() == 0


async def test_legacy_fields_tell_of_a_concurrency_without_a_window() -> None:
    rules = RuleSet([Rule("exports", "9/minute", concurrency=2)], headers=("legacy", "draft-03"))
    limiter = RateLimiter(rules, store=MemoryStore())

    async def endpoint(request: Request) -> Response:
        return PlainTextResponse("ok")

    app = Starlette(routes=[Route("/", endpoint)])
    app.add_middleware(RateLimitMiddleware, limiter=limiter)
    answer = await ask(app)
    assert answer.headers["x-ratelimit-limit"] == "2"
    assert answer.headers["x-ratelimit-remaining"] == "1"
    assert answer.headers["ratelimit-limit"] == "2, 9;w=60"


async def test_a_banned_identity_holds_no_place_and_others_do() -> None:
    ban: dict[str, Any] = {"after": 2, "within": "1m", "for": "10m"}
    limiter = RateLimiter(
        [Rule("exports", "1/hour", concurrency=2, ban=ban, algorithm="fixed_window")],
        store=MemoryStore(),
    )
    app = Starlette(routes=[Route("/", _plain)])
    app.add_middleware(RateLimitMiddleware, limiter=limiter)
    statuses = [(await ask(app)).status for _ in range(6)]
    assert statuses == [200] + [429] * 5
    assert limiter.banned == 1
    assert (await ask(app, client=("192.0.2.2", 1))).status == 200
    assert limiter.in_flight.total() == 0
    worker = limiter._leases._worker()
    assert worker.counters == {}


async def _plain(request: Request) -> Response:
    return PlainTextResponse("ok")
