"""Own answers to a refusal, functions over a connection, and limits that are off."""

import inspect
from collections.abc import AsyncIterator
from typing import Any

import pytest
from fastapi import Depends, FastAPI, WebSocket
from fastapi import HTTPException as FastAPIHTTPException
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute

import ratelimit.testing
from ratelimit import RateLimit, RateLimiter, RateLimitExceeded, RateLimitMiddleware, limit
from tests.support.asgi import ask, call, limiter, statuses, websocket_scope


def envelope(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": "mine"}, 429, headers={"RateLimit": "mine"})


async def envelope_async(request: Request, error: Exception) -> Response:
    return envelope(request, error)


async def ok(request: Request) -> Response:
    return PlainTextResponse("ok")


@pytest.mark.parametrize("middleware", [True, False])
@pytest.mark.parametrize("handler", [envelope, envelope_async])
@pytest.mark.parametrize("kind", [RateLimitExceeded, HTTPException, 429, FastAPIHTTPException])
async def test_an_answer_of_the_applications_own_gets_the_fields_that_it_has_not_set(
    kind: Any, handler: Any, middleware: bool
) -> None:
    app = FastAPI(exception_handlers={kind: handler})
    app.get("/")(limit("1/minute", limiter=limiter())(lambda: "ok"))
    if middleware:
        app.add_middleware(RateLimitMiddleware, limiter=limiter())
    await ask(app)
    for _ in range(2):
        answer = await ask(app)
        assert (answer.status, answer.problem) == (429, {"error": "mine"})
        assert int(answer.headers["retry-after"]) > 0
        assert answer.headers["ratelimit"] == "mine"
        assert answer.headers["ratelimit-policy"] == '"lambda";q=1;w=60'
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["content-type"] == "application/json"


async def test_what_a_handler_answers_to_other_errors_stays_as_it_is() -> None:
    async def teapot(request: Request) -> Response:
        raise HTTPException(429)

    app = Starlette(
        routes=[Route("/", teapot), Route("/limited", limit("1/minute", limiter=limiter())(ok))],
        exception_handlers={HTTPException: envelope},
    )
    await statuses(app, "/limited", "/limited")
    answer = await ask(app)
    assert (answer.status, answer.problem) == (429, {"error": "mine"})
    assert "retry-after" not in answer.headers


# --- off -----------------------------------------------------------------------------------------


@limit("1/minute")
@limit("2/minute", by="global")
async def double(number: int) -> int:
    return 2 * number


@limit("1/minute")
def triple(number: int) -> int:
    return 3 * number


class Controller:
    @limit("1/minute")
    def method(self, number: int) -> int:
        return number


async def test_without_limits_a_function_is_the_plain_one_that_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with ratelimit.testing.disabled():
        assert await double(4) == 8
        assert triple(4) == 12
        assert Controller().method(5) == 5
    monkeypatch.setenv("RATELIMIT_ENABLED", "0")
    assert await double(4) == 8
    assert triple(4) == 12
    monkeypatch.delenv("RATELIMIT_ENABLED")
    off = RateLimiter(enabled=False)
    assert limit("1/minute", limiter=off)(lambda: "ok")() == "ok"
    for function in (triple, Controller().method):
        with pytest.raises(RuntimeError, match="was called without a request; where none is "):
            function(4)
    with pytest.raises(RuntimeError, match=r"ratelimit\.testing\.disabled\(\)"):
        await double(4)


async def test_without_limits_frameworks_call_it_as_before() -> None:
    def plain(request: Request) -> Response:
        return PlainTextResponse("ok")

    app = Starlette(routes=[Route("/", limit("1/minute")(plain)), Route("/a", limit("1/s")(ok))])
    with ratelimit.testing.disabled():
        assert await statuses(app, "/", "/", "/a", "/a") == [200] * 4
    assert inspect.iscoroutinefunction(double)


# --- functions over the connection ---------------------------------------------------------------


async def test_a_function_gets_the_kind_of_connection_that_it_is_asked_about() -> None:
    seen: list[tuple[str, type]] = []

    def who(request: Request) -> str:
        seen.append((request.method, type(request)))
        return request.method

    def size(socket: WebSocket) -> int:
        seen.append((socket.url.path, type(socket)))
        return 1

    async def chat(socket: WebSocket) -> None:
        await socket.accept()

    app = Starlette(
        routes=[
            Route(
                "/", limit("1/minute", by="who", methods=["GET", "PUT"])(ok), methods=["GET", "PUT"]
            ),
            WebSocketRoute("/chat", limit("1/minute", cost=size)(chat)),
        ]
    )
    app.add_middleware(
        RateLimitMiddleware, limiter=RateLimiter(identities={"who": who}, store="memory://")
    )
    assert await statuses(app, "/", "/") == [200, 429]
    assert await statuses(app, "/", method="PUT") == [200]
    connect = [{"type": "websocket.connect"}]
    sent = (await call(app, websocket_scope("/chat"), connect)).messages
    assert sent[0]["type"] == "websocket.accept"
    assert seen == [("GET", Request)] * 2 + [("PUT", Request), ("/chat", WebSocket)]
    assert issubclass(Request, HTTPConnection)


def streamed(_: object, __: object) -> Response:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"not "
        yield b"now"

    return StreamingResponse(pieces(), 429, media_type="text/plain")


@pytest.mark.parametrize(("version", "ends"), [("1.1", "close"), ("2", None)])
@pytest.mark.parametrize("whose", ["limiter", "handler", "nobody"])
async def test_an_answer_to_a_handshake_has_its_length_and_ends_the_connection(
    version: str, ends: str | None, whose: str
) -> None:
    """As one piece, whoever gives it; HTTP/2 has no field for the end."""

    async def chat(websocket: WebSocket) -> None:
        await websocket.accept()

    app = FastAPI()
    if whose == "handler":
        once = RateLimit("1/minute", limiter=limiter())
        app.add_api_websocket_route("/", chat, dependencies=[Depends(once)])
        app.add_exception_handler(RateLimitExceeded, streamed)
    else:
        app.add_api_websocket_route("/", limit("1/minute")(chat))
        own = streamed if whose == "limiter" else None
        app.add_middleware(RateLimitMiddleware, limiter=RateLimiter(response=own))
    connect = [{"type": "websocket.connect"}]
    scope = websocket_scope(http_version=version, extensions={"websocket.http.response": {}})
    await call(app, dict(scope), connect)
    answer = await call(app, dict(scope), connect)
    assert answer.status == 429
    assert answer.headers["content-length"] == str(len(answer.body))
    assert answer.headers.get("connection") == ends
    assert "retry-after" in answer.headers
    assert len(answer.messages) == 2
    assert whose == "nobody" or answer.body == b"not now"
