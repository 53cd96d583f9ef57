"""ASGI in, ASGI out, nothing else."""

import logging
from typing import Any, Final

import anyio
from starlette.exceptions import HTTPException
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from ratelimit.headers import Refusal, Refused
from ratelimit.limiter import RateLimiter
from ratelimit.routing import below, router_below

__all__ = ["RateLimitMiddleware", "send_refusal"]

SCOPE_KEY: Final = "ratelimit"
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

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            await self._serve(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self.app(scope, receive, self._closing(send))
        else:
            await self.app(scope, receive, send)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        admission = await self.limiter.admit(scope, below(self._router, scope))
        if admission.refusal is not None:
            await admission.give_back()
            await send_refusal(admission.refusal, scope, send)
            return
        if admission.delay_us:
            delay_us, admission.delay_us = admission.delay_us, 0
            await anyio.sleep(delay_us / 1_000_000)
        if scope.get(SCOPE_KEY) is admission:  # a middleware further out writes the fields
            await self.app(scope, receive, send)
            return
        scope[SCOPE_KEY] = admission

        async def send_with_fields(message: Message) -> None:
            if message["type"] == "http.response.start":
                # Read only now, since limits on the route may have added theirs.
                fields = admission.headers()
                headers = list(message.get("headers", ()))
                if fields and not any(name == fields[0][0] for name, _ in headers):
                    message = {**message, "headers": [*headers, *fields]}
            await send(message)

        await self.app(scope, receive, send_with_fields)

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


async def send_refusal(refusal: Refusal, scope: Scope, send: Send) -> None:
    """Answers a request, or a WebSocket's handshake, with a refusal."""
    prefix = "http"
    if scope["type"] == "websocket":
        if not _can_deny(scope):
            await send({"type": "websocket.close", "code": 1008, "reason": refusal.title})
            return
        prefix = "websocket.http"
    await send(
        {
            "type": f"{prefix}.response.start",
            "status": refusal.status,
            "headers": list(refusal.headers),
        }
    )
    body = b"" if scope.get("method") == "HEAD" else refusal.body
    await send({"type": f"{prefix}.response.body", "body": body})


def _can_deny(websocket: Scope) -> bool:
    """Whether the server can answer a WebSocket's handshake with a response."""
    return "websocket.http.response" in (websocket.get("extensions") or {})


async def refused(request: Request | WebSocket, error: Exception) -> Response | None:
    """The exception handler that answers what a route's limit raises as the middleware would."""
    if not isinstance(error, Refused):
        raise error
    if isinstance(request, WebSocket) and not _can_deny(request.scope):
        await request.close(1008, error.refusal.title)
        return None
    response = error.refusal.response()
    if request.scope.get("method") == "HEAD":
        response.body = b""
    return response


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


def register_refused(handlers: dict[Any, Any], status_handlers: dict[int, Any]) -> None:
    """Adds `refused` to an application's handlers, unless it handles the case itself."""
    general = handlers.get(HTTPException)
    default = getattr(general, "__module__", "").partition(".")[0] in ("starlette", "fastapi")
    if 429 not in status_handlers and default:
        handlers.setdefault(Refused, refused)
