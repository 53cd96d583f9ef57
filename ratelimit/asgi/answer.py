"""From a refusal to the response that the client gets, wherever it was raised."""

import logging
import sys
from collections.abc import Callable
from contextlib import suppress
from inspect import isawaitable
from typing import Any, Final

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from ratelimit.asgi.endpoints import is_async
from ratelimit.identity.connections import connection
from ratelimit.limiter.limiter import RateLimiter
from ratelimit.responses.headers import RateLimitExceeded, Refusal, Refused
from ratelimit.responses.problems import CLIENT_GONE

__all__ = [
    "ROUTE_KEY", "SCOPE_KEY", "answer", "answer_refused", "refused", "register_refused", "respond",
]  # fmt: skip

_LOG: Final = logging.getLogger("ratelimit")

SCOPE_KEY: Final = "ratelimit"
"""Scope key of the outermost middleware's admission, whose fields that middleware will write."""


ROUTE_KEY: Final = "ratelimit.route"
"""Scope key of the first admission on a route that no middleware stands around."""


async def answer(
    limiter: RateLimiter, refusal: Refusal, scope: Scope, receive: Receive, send: Send
) -> None:
    """Answers a request, or a WebSocket's handshake, with a limiter's refusal."""
    if _cannot_be_answered(scope):
        await send({"type": "websocket.close", "code": 1008, "reason": _reason(refusal)})
        return
    response = await _response(limiter, refusal, scope)
    with suppress(*([OSError] if refusal.status == CLIENT_GONE else [])):
        await response(scope, receive, send)


def _reason(refusal: Refusal) -> str:
    """The reason that a WebSocket is closed with: when to come back, in less than 123 bytes."""
    seconds = dict(refusal.headers).get(b"retry-after")
    return refusal.title + (f"; try again in {seconds.decode()} s" if seconds else "")


def _cannot_be_answered(scope: Scope) -> bool:
    """Whether this is a WebSocket's handshake which the server can only close."""
    extensions = scope.get("extensions") or {}
    return scope["type"] == "websocket" and "websocket.http.response" not in extensions


async def _response(limiter: RateLimiter | None, refusal: Refusal, scope: Scope) -> Response:
    if limiter is None or refusal.status == CLIENT_GONE:  # which nobody reads
        response = refusal.response()
    else:
        response = await respond(limiter, scope, refusal)
    if scope.get("method") == "HEAD":
        response.body = b""
    return _ends(response, scope) if scope["type"] == "websocket" else response


def _ends(response: Response, scope: Scope) -> Response:
    """A response to a handshake, after which the connection is of no use.

    Some servers would leave it open as an upgraded one, and write a body without its length.
    """
    if scope.get("http_version", "1.1").startswith("1"):  # a later one has no such field
        response.headers["connection"] = "close"
    return response if "content-length" in response.headers else _Whole(response)


class _Whole(Response):
    """A streamed response as one whole, so that its length is known."""

    def __init__(self, streamed: Response) -> None:
        super().__init__(status_code=streamed.status_code)
        self.raw_headers = streamed.raw_headers
        self.background = streamed.background
        self._streamed = streamed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        chunks: list[bytes] = []
        start: Message = {}

        async def keep(message: Message) -> None:
            if message["type"] == "websocket.http.response.start":
                start.update(message)
            else:
                chunks.append(message.get("body", b""))

        await self._streamed(scope, receive, keep)
        body = b"".join(chunks)
        start["headers"] = [*start["headers"], (b"content-length", b"%d" % len(body))]
        await send(start)
        await send({"type": "websocket.http.response.body", "body": body})


async def respond(limiter: RateLimiter, scope: Scope, refusal: Refusal) -> Response:
    """The application's own response to a refusal, or the usual one by Accept.

    The refusal's fields are added to the application's response where it has not set them.
    """
    if limiter.response is not None:
        try:
            response = limiter.response(connection(scope), refusal)
            if isawaitable(response):
                response = await response
            _add_fields(response, refusal)
        except Exception:  # noqa: BLE001  # a fault in an answer is not the application's outage
            _LOG.exception("response-failed: the response callable raised; a problem is sent")
        else:
            return response  # type: ignore[no-any-return]  # what it is said to give
    accept = [value for name, value in scope.get("headers", ()) if name == b"accept"]
    return refusal.rendered(b",".join(accept).decode("latin-1") or None).response()


def _add_fields(response: Response, refusal: Refusal) -> None:
    """Adds a refusal's fields to a response of the application's, where that has not set them."""
    for name, value in refusal.headers:
        if name not in (b"content-type", b"content-length", b"vary"):
            response.headers.setdefault(name.decode("latin-1"), value.decode("latin-1"))


async def refused(request: Request | WebSocket, error: Exception) -> Response | None:
    """The exception handler that answers what a route's limit raises as the middleware would."""
    if not isinstance(error, Refused):
        raise error
    scope = request.scope
    if isinstance(request, WebSocket) and _cannot_be_answered(scope):
        await request.close(1008, _reason(error.refusal))
        return None
    admission = scope.get(SCOPE_KEY) or scope.get(ROUTE_KEY)
    return await _response(admission and admission.limiter, error.refusal, scope)


def answer_refused(app: Any) -> None:
    """Registers `refused` with the application around which this middleware is being put.

    Only Starlette's own exception middleware can catch what a route raises, and it stands further
    in; an application that has a handler of its own for it keeps that one.
    """
    while app is not None and not isinstance(app, ExceptionMiddleware):
        app = getattr(app, "app", None)
    if app is not None:
        # Starlette has no public way in once it has put its middlewares together.
        register_refused(app._exception_handlers, app._status_handlers)  # noqa: SLF001


def register_refused(handlers: dict[Any, Any], status_handlers: dict[int, Any]) -> None:
    """Adds `refused` to an application's handlers, unless it handles the case itself.

    What it answers itself then gets the fields of the refusal.
    """
    fastapi = sys.modules.get("fastapi.exceptions")
    # FastAPI's own HTTPException is none of ours, but is meant by whoever handles it.
    kinds = (*RateLimitExceeded.__mro__, getattr(fastapi, "HTTPException", None))
    for table, kind in ((status_handlers, 429), *((handlers, kind) for kind in kinds)):
        handler = table.get(kind)
        module = getattr(handler, "__module__", "").partition(".")[0]
        if handler is not None and module not in ("starlette", "fastapi", "ratelimit"):
            table[kind] = _WithFields(handler)
    if not isinstance(handlers.get(HTTPException), _WithFields):
        own = handlers.get(kinds[-1])
        handlers.setdefault(Refused, own if isinstance(own, _WithFields) else refused)


class _WithFields:
    """An exception handler of the application's; its answer to a refusal gets the fields."""

    def __init__(self, handler: Callable[..., Any]) -> None:
        self.handler = handler

    async def __call__(self, request: Any, error: Exception) -> Any:
        if is_async(self.handler):
            response = await self.handler(request, error)
        else:
            response = await run_in_threadpool(self.handler, request, error)
        if isinstance(error, Refused) and isinstance(response, Response):
            _add_fields(response, error.refusal)
            if request.scope["type"] == "websocket":
                response = _ends(response, request.scope)
        return response
