"""What is held of a request learns how the request ends, once each, in the order of things."""

from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest
from fastapi import Depends, FastAPI
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from ratelimit import RateLimit, RateLimitMiddleware, Rule, limit
from ratelimit.asgi.answer import ROUTE_KEY, SCOPE_KEY
from tests.support.asgi import ask, call, http_scope, limiter, websocket_scope

Told = list[object]


class Recorder:
    """Writes down what it is told."""

    def __init__(self, told: Told) -> None:
        self._told = told

    def answered(
        self, status: int, headers: Sequence[tuple[bytes, bytes]]
    ) -> Coroutine[Any, Any, None]:
        async def note() -> None:
            self._told.append(status)

        return note()

    def sent(self) -> None:
        self._told.append("sent")

    def ended(self, error: BaseException | None) -> None:
        self._told.append(f"ended {type(error).__name__}" if error else "ended")

    def withdrawn(self) -> None:
        self._told.append("withdrawn")


Inner = Callable[[Scope, Receive, Send], Coroutine[Any, Any, None]]


async def told_of(messages: Sequence[Message | Exception], scope: Scope) -> Told:
    """What is told while an application behind the middleware sends these messages."""
    told: Told = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope[SCOPE_KEY].held.append(Recorder(told))
        for each in messages:
            if isinstance(each, Exception):
                raise each
            await send(each)
            told.append("-")

    guarded = RateLimitMiddleware(app, limiter(Rule("all", "9/minute")))

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(_: Message) -> None:
        told.append("on its way")

    try:
        await guarded(scope, receive, send)
    except ZeroDivisionError:
        told.append("raised")
    return told


def start(status: int = 200, **more: object) -> Message:
    return {"type": "http.response.start", "status": status, "headers": [], **more}


def body(*, more: bool) -> Message:
    return {"type": "http.response.body", "body": b"x", "more_body": more}


async def test_the_status_is_told_before_the_start_is_sent_and_the_end_behind_the_last_byte() -> (
    None
):
    told = await told_of([start(401), body(more=True), body(more=False)], http_scope())
    assert told == [
        401, "on its way", "-", "on its way", "-", "on its way", "sent", "-", "ended",
    ]  # fmt: skip


async def test_trailers_end_a_response_that_has_announced_them() -> None:
    last: Message = {"type": "http.response.trailers", "headers": []}
    told = await told_of([start(trailers=True), body(more=False), last], http_scope())
    assert told[-5:] == ["-", "on its way", "sent", "-", "ended"]
    assert told.count("sent") == 1


async def test_a_file_that_the_server_sends_ends_its_response() -> None:
    file: Message = {"type": "http.response.pathsend", "path": "/a"}
    assert (await told_of([start(), file], http_scope()))[-3:] == ["sent", "-", "ended"]


async def test_an_exception_is_told_without_a_status_where_nothing_was_sent() -> None:
    assert await told_of([ZeroDivisionError()], http_scope()) == [
        "ended ZeroDivisionError", "raised",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([{"type": "websocket.accept"}, {"type": "websocket.close"}], [101, "sent"]),
        ([{"type": "websocket.close"}], [403, "sent"]),
        (
            [
                {"type": "websocket.http.response.start", "status": 418, "headers": []},
                {"type": "websocket.http.response.body", "body": b""},
            ],
            [418, "sent"],
        ),
    ],
)
async def test_a_handshake_has_a_status_as_well(
    messages: list[Message], expected: list[object]
) -> None:
    told = await told_of(messages, websocket_scope())
    assert [each for each in told if each not in ("-", "on its way")] == [*expected, "ended"]


async def test_what_is_held_is_withdrawn_where_something_further_in_refuses() -> None:
    told: Told = []

    @limit("1/minute", name="inner")
    async def endpoint(_: Request) -> Response:
        return PlainTextResponse("ok")

    async def before(scope: Scope, receive: Receive, send: Send) -> None:
        scope[SCOPE_KEY].held.append(Recorder(told))
        await inner(scope, receive, send)

    inner = Starlette(routes=[Route("/", endpoint)])
    app = RateLimitMiddleware(before, limiter(Rule("all", "9/minute")))
    assert (await ask(app)).status == 200
    assert told == [200, "sent", "ended"]
    assert (await ask(app)).status == 429
    assert told[3:] == ["withdrawn"]


@pytest.mark.parametrize(
    ("raises", "expected"),
    [
        (None, [203, "sent", "ended"]),
        (HTTPException(418), [418, "ended HTTPException"]),
        (ValueError("x"), [500, "ended ValueError"]),
    ],
)
async def test_without_a_middleware_the_end_of_the_endpoint_is_the_end(
    raises: Exception | None, expected: list[object]
) -> None:
    told: Told = []
    app = FastAPI()

    async def hold(request: Request) -> None:
        request.scope[ROUTE_KEY].held.append(Recorder(told))

    @app.get("/", status_code=203, dependencies=[Depends(RateLimit("5/minute")), Depends(hold)])
    @limit("3/minute", name="inner", limiter=limiter())
    async def endpoint() -> str:
        if raises is not None:
            raise raises
        return "ok"

    try:
        await call(app, http_scope())
    except ValueError as error:
        assert error is raises  # noqa: PT017  # Starlette raises it again behind its answer
    assert told == expected
