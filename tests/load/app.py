"""The application that is flooded: routes of a few instructions, so that the limiter is the load.

Run as a module's application (``tests.load.app:app``) it is limited by the rule file that RULES
names.
"""

import asyncio
import logging
import os
import socket
import time
from collections.abc import Mapping
from typing import Any, Final

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from ratelimit import RateLimiter, RateLimitMiddleware
from ratelimit.limiter.limiter import Admission

WORKS: Final = 0.004  # seconds of an endpoint that computes, which is what the loop is late by
WAITS: Final = 0.1  # seconds of a sync endpoint that waits, in one of 40 threads
COMPUTES: Final = 0.12  # seconds; a password hash, in an endpoint that is `async def`


class Http(HttpToolsProtocol):
    """HTTP that sends a response's body without waiting until its head was acknowledged.

    On asyncio's loop the sockets of several workers lack TCP_NODELAY, and each response takes 40
    ms: no flood.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        connection = transport.get_extra_info("socket")
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


class Counting(RateLimiter):
    """One that counts what the store did not decide, and how often its breaker opened."""

    degraded = 0
    opened = 0

    async def admit(self, scope: Mapping[str, Any], app: Any = None) -> Admission:
        admission = await super().admit(scope, app)
        refusal = admission.refusal
        self.degraded += bool(admission.degraded) or (refusal and refusal.status == 503) or False
        return admission

    def changed(self, state: str) -> None:
        """Hears of the breaker."""
        self.opened += state == "open"


def _compute(seconds: float) -> None:
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass


def _application(rules: str) -> Starlette:
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
    limiter = Counting.from_file(rules)
    limiter.on_breaker_change = limiter.changed

    async def answer(request: Request) -> PlainTextResponse:
        return PlainTextResponse("ok")

    async def log_in(request: Request) -> PlainTextResponse:
        _compute(COMPUTES)
        return PlainTextResponse("ok")

    async def work(request: Request) -> PlainTextResponse:
        _compute(WORKS)
        return PlainTextResponse("ok")

    def wait(request: Request) -> PlainTextResponse:
        time.sleep(WAITS)
        return PlainTextResponse("ok")

    async def block(request: Request) -> PlainTextResponse:
        time.sleep(float(request.query_params["seconds"]))  # noqa: ASYNC251  # on purpose
        return PlainTextResponse("ok")

    async def state(request: Request) -> JSONResponse:
        counts = {"/".join(key): count for key, count in limiter.counts.items()}
        return JSONResponse(
            {
                "pid": os.getpid(),
                "degraded": limiter.degraded,
                "opened": limiter.opened,
                "counts": counts,
                "health": limiter.health(),
            }
        )

    paths: dict[str, Any] = {"/x": answer, "/free": answer, "/login": log_in, "/state": state}
    paths |= {"/busy": work, "/busy/pay": work, "/wait": wait, "/wait/pay": wait, "/block": block}
    app = Starlette(routes=[Route(path, endpoint) for path, endpoint in paths.items()])
    app.add_middleware(RateLimitMiddleware, limiter=limiter)
    return app


if "RULES" in os.environ:
    app = _application(os.environ["RULES"])
