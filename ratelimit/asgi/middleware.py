"""ASGI in, ASGI out, nothing else."""

# Else the annotations of a function within a function are made anew for each request.
from __future__ import annotations

import logging
from collections.abc import Awaitable
from operator import itemgetter
from typing import Any, Final

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ratelimit.asgi.answer import SCOPE_KEY, answer, answer_refused
from ratelimit.asgi.ending import ended, send_and_tell
from ratelimit.asgi.places import NOTHING, Readers, readers
from ratelimit.asgi.routing import EXEMPT, PRIORITIZED, Ahead, below, router_below
from ratelimit.asgi.sockets import charged, limited
from ratelimit.asgi.start import mistakes, rules_on
from ratelimit.asgi.waiting import take_turn
from ratelimit.limiter.limiter import Admission, RateLimiter
from ratelimit.rules.paths import normalised, route_path

__all__ = ["RateLimitMiddleware"]


_LOG: Final = logging.getLogger("ratelimit")
_NAME: Final = itemgetter(0)  # of a header field


class RateLimitMiddleware:
    """Puts a limiter's rules in front of an application, whole or mounted.

    ``app.add_middleware(RateLimitMiddleware, limiter=limiter)``. A refused request never reaches
    the application; an accepted one waits its turn where a leaking bucket says so; every response
    carries the rate-limit fields. The limiter's store is closed when the application shuts down.

    Raises TypeError for a limiter of another type.
    """

    def __init__(self, app: ASGIApp, limiter: RateLimiter) -> None:
        if not isinstance(limiter, RateLimiter):
            raise TypeError(f"limiter is a RateLimiter, not {type(limiter).__name__}")
        self.app = app
        self.limiter = limiter
        self._router = router_below(app)
        self._reads: Readers | None = None
        self._reads_otherwise = True
        """Whether something further in may take a path for another one; looked up when asked."""
        answer_refused(app)
        _warn_of_cors_inside(app)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            if scope["type"] == "lifespan":
                await self._look_at_routes(scope, receive, send)
                self.limiter.start()
                send = self._closing(send)
            await self.app(scope, receive, send)
            return
        limiter = self.limiter
        route, before = None, 0
        if EXEMPT or not limiter.is_plain:
            route, before = self._ahead(scope), charged(scope)
        admission = await limiter.admit(scope, route)
        try:
            if self._reads_otherwise and admission.refusal is None:
                await self._admit_as_read(admission, scope, route)
            if (admission.turns or limiter.waits.count) and admission.refusal is None:
                receive = await take_turn(admission, receive)
            if admission.refusal is not None:
                await admission.give_back()
                await answer(self.limiter, admission.refusal, scope, receive, send)
                return
        except BaseException as error:  # it was cancelled before the application was called
            ended(admission, error)
            raise
        app = self.app
        if limiter.limits_messages and scope["type"] == "websocket":
            app = limited(app, limiter, admission, before)
        if scope.get(SCOPE_KEY) is admission:  # a middleware further out writes the fields
            admission.limiter = self.limiter
            await app(scope, receive, send)
            return
        scope[SCOPE_KEY] = admission

        # Not a coroutine function: who calls it awaits what the server gave, without one between.
        def send_with_fields(message: Message) -> Awaitable[None]:
            if message["type"] == "http.response.start":
                # Read only now, since limits on the route may have added theirs.
                ours = admission.headers()
                if ours:
                    headers = [*message.get("headers", ())]
                    names = [*map(_NAME, headers)]  # the application's own fields stay
                    for field in ours:
                        if field[0] not in names:
                            headers.append(field)  # noqa: PERF401  # a comprehension is a call more
                    message = {**message, "headers": headers}
            return send_and_tell(admission, message, send) if admission.held else send(message)

        try:
            await app(scope, receive, send_with_fields)
        except BaseException as error:
            if admission.held:
                ended(admission, error)
            raise
        if admission.held:
            ended(admission, None)
        # A server keeps the scope of a connection's last request, and all that is in there: ten
        # objects for each connection, and a garbage collection for every 64 requests.
        scope.pop(SCOPE_KEY, None)

    def _ahead(self, scope: Scope) -> Ahead | None:
        """The route that a request will meet, where something depends on it."""
        limiter = self.limiter
        shedder = limiter.shedder
        sheds = shedder is not None and shedder.watching and PRIORITIZED
        if sheds or limiter.asks_routes or EXEMPT or limiter.events.has_listener:
            return Ahead(below(self._router, scope), scope, rules_on)
        return None

    async def _admit_as_read(self, admission: Admission, scope: Scope, route: Any) -> None:
        """Decides the rules of each path, too, that something further in takes this one for."""
        if self._reads is None:
            self._reads = readers(self.app)
            self._reads_otherwise = self._reads != NOTHING
        here = route_path(scope)
        paths = {here, *(route_path({**scope, "root_path": each}) for each in self._reads.roots)}
        if self._reads.files and here.endswith(("/", "/.", "/..")):
            paths |= {normalised(each).rstrip("/") or "/" for each in paths}
        for path in sorted(paths - {here}):
            read = {**scope, "path": path, "root_path": "", SCOPE_KEY: admission}
            await self.limiter.admit(read, route)
            if admission.refusal is not None:
                return

    async def _look_at_routes(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuses to start where a limit on a route could only fail, request by request."""
        if self.limiter.asks_routes and self._router is None and "app" not in scope:
            _LOG.warning(
                "routes-unknown: a rule counts by route, but no routes can be seen in what this "
                "middleware stands in front of, so its requests are counted by address instead; "
                "write a rule for each path"
            )
        try:
            found = mistakes(self.app, self.limiter)
        except Exception:  # noqa: BLE001  # a look at somebody's routes is not his outage
            _LOG.exception("routes-unknown: the limits on routes could not be looked at")
            return
        if found:
            text = "a limit on a route cannot hold: " + "; ".join(found)
            await receive()
            await send({"type": "lifespan.startup.failed", "message": text})
            raise ValueError(text)

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
