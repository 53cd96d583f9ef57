"""ASGI in, ASGI out, nothing else."""

# Else the annotations of a function within a function are made anew for each request.
from __future__ import annotations

import logging
from collections.abc import Awaitable
from typing import Any, Final

import anyio
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from ratelimit.headers import Refusal, Refused
from ratelimit.limiter import RateLimiter
from ratelimit.routing import EXEMPT, below, router_below

__all__ = ["RateLimitMiddleware", "answer"]

SCOPE_KEY: Final = "ratelimit"
"""Where the outermost middleware leaves its admission, which it will write the fields of."""

ROUTE_KEY: Final = "ratelimit.route"
"""Where the first limit on a route leaves its admission, if no middleware stands around it."""

_LOG: Final = logging.getLogger("ratelimit")


class RateLimitMiddleware:
    """Puts a limiter's rules in front of an application, whole or mounted.

    ``app.add_middleware(RateLimitMiddleware, limiter=limiter)``. A refused request never reaches
    the application; an accepted one waits its turn where a leaking bucket says so; every response
    carries the rate-limit fields. The limiter's store is closed when the application shuts down.
    """

    def __init__(self, app: ASGIApp, limiter: RateLimiter) -> None:
        self.app = app
        self.limiter = limiter
        self._router = router_below(app)
        _answer_refused(app)
        _warn_of_cors_inside(app)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            if scope["type"] == "lifespan":
                self.limiter.start()
                send = self._closing(send)
            await self.app(scope, receive, send)
            return
        limiter = self.limiter
        app = below(self._router, scope) if limiter.asks_routes or EXEMPT else None
        admission = await limiter.admit(scope, app)
        if admission.refusal is not None:
            await admission.give_back()
            await answer(self.limiter, admission.refusal, scope, receive, send)
            return
        if admission.delay_us:
            delay_us, admission.delay_us = admission.delay_us, 0
            await anyio.sleep(delay_us / 1_000_000)
        if scope.get(SCOPE_KEY) is admission:  # a middleware further out writes the fields
            admission.limiter = self.limiter
            await self.app(scope, receive, send)
            return
        scope[SCOPE_KEY] = admission

        # Not a coroutine function: who calls it awaits what the server gave, without one between.
        def send_with_fields(message: Message) -> Awaitable[None]:
            if message["type"] == "http.response.start":
                # Read only now, since limits on the route may have added theirs.
                ours = admission.headers()
                if ours:
                    headers = list(message.get("headers", ()))
                    for field in ours:
                        for name, _ in headers:
                            if name == field[0]:  # the application's own
                                break
                        else:
                            headers.append(field)
                    message = {**message, "headers": headers}
            return send(message)

        await self.app(scope, receive, send_with_fields)
        # A server keeps the scope of a connection's last request, and all that is in there: ten
        # objects for each connection, and a garbage collection for every 64 requests.
        scope.pop(SCOPE_KEY, None)

    def _closing(self, send: Send) -> Send:
        """Closes the store when the application has shut down, before the server hears of it."""

        async def send_after_closing(message: Message) -> None:
            if message["type"] in ("lifespan.shutdown.complete", "lifespan.shutdown.failed"):
                try:
                    await self.limiter.aclose()
                except Exception:  # noqa: BLE001  # the shutdown is the application's
                    _LOG.exception("close-failed: the store did not close; the shutdown goes on")
            await send(message)

        return send_after_closing


async def answer(
    limiter: RateLimiter, refusal: Refusal, scope: Scope, receive: Receive, send: Send
) -> None:
    """Answers a request, or a WebSocket's handshake, with a limiter's refusal."""
    if _cannot_be_answered(scope):
        await send({"type": "websocket.close", "code": 1008, "reason": refusal.title})
        return
    response = await _response(limiter, refusal, scope)
    await response(scope, receive, send)


def _cannot_be_answered(scope: Scope) -> bool:
    """Whether this is a WebSocket's handshake which the server can only close."""
    extensions = scope.get("extensions") or {}
    return scope["type"] == "websocket" and "websocket.http.response" not in extensions


async def _response(limiter: RateLimiter | None, refusal: Refusal, scope: Scope) -> Response:
    response = await limiter.answer(scope, refusal) if limiter else refusal.response()
    if scope.get("method") == "HEAD":
        response.body = b""
    return response


async def refused(request: Request | WebSocket, error: Exception) -> Response | None:
    """The exception handler that answers what a route's limit raises as the middleware would."""
    if not isinstance(error, Refused):
        raise error
    scope = request.scope
    if isinstance(request, WebSocket) and _cannot_be_answered(scope):
        await request.close(1008, error.refusal.title)
        return None
    admission = scope.get(SCOPE_KEY) or scope.get(ROUTE_KEY)
    return await _response(admission and admission.limiter, error.refusal, scope)


def _answer_refused(app: Any) -> None:
    """Registers `refused` with the application around which this middleware is being put.

    Only Starlette's own exception middleware can catch what a route raises, and it stands further
    in; an application that has a handler of its own for it keeps that one.
    """
    while app is not None and not isinstance(app, ExceptionMiddleware):
        app = getattr(app, "app", None)
    if app is not None:
        # Starlette has no public way in once it has put its middlewares together.
        register_refused(app._exception_handlers, app._status_handlers)  # noqa: SLF001


def _warn_of_cors_inside(app: Any) -> None:
    """Says that a browser will hide every refusal from the scripts of other origins.

    What stands further in is seen as it is put together: a chain of middlewares, or an application
    that has not built its own yet.
    """
    while app is not None:
        waiting = [each.cls for each in getattr(app, "user_middleware", ())]
        if isinstance(app, CORSMiddleware) or CORSMiddleware in waiting:
            _LOG.warning(
                "cors-inside: CORSMiddleware stands further in than RateLimitMiddleware, so a "
                "refusal has no Access-Control-Allow-Origin, and a browser shows it to no script; "
                "put CORSMiddleware further out (with add_middleware: add it last)"
            )
            return
        app = getattr(app, "app", None)


def register_refused(handlers: dict[Any, Any], status_handlers: dict[int, Any]) -> None:
    """Adds `refused` to an application's handlers, unless it handles the case itself."""
    general = handlers.get(HTTPException)
    default = getattr(general, "__module__", "").partition(".")[0] in ("starlette", "fastapi")
    if 429 not in status_handlers and default:
        handlers.setdefault(Refused, refused)
