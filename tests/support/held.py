"""An application whose endpoints count how many of them are under way, in all its processes.

They count in a Redis of their own, ``COUNTS``, so that what is done to that of the limiter, whose
rules are in the file ``RULES``, does not touch the count.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import redis
import redis.asyncio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from ratelimit import RateLimiter, RateLimitMiddleware

ENTER = """
redis.call('HINCRBY', KEYS[1], ARGV[1], 1)
redis.call('INCR', KEYS[3])
local now = 0
for _, each in ipairs(redis.call('HVALS', KEYS[1])) do now = now + each end
if now > tonumber(redis.call('GET', KEYS[2]) or 0) then redis.call('SET', KEYS[2], now) end
return now
"""
KEYS = ("now", "most", "entered")
PID = str(os.getpid())


def make() -> Starlette:
    """The application; uvicorn calls this in each of its processes."""
    url = os.environ["COUNTS"]
    counts: Any = redis.asyncio.from_url(url)
    plainly: Any = redis.from_url(url)

    @asynccontextmanager
    async def counted() -> AsyncIterator[None]:
        await counts.eval(ENTER, 3, *KEYS, PID)
        try:
            yield
        finally:
            await asyncio.shield(counts.hincrby("now", PID, -1))

    async def slow(request: Request) -> Response:
        async with counted():
            await asyncio.sleep(float(request.query_params["for"]))
        return PlainTextResponse(PID)

    def plain(request: Request) -> Response:
        plainly.eval(ENTER, 3, *KEYS, PID)
        try:
            time.sleep(float(request.query_params["for"]))
        finally:
            plainly.hincrby("now", PID, -1)
        return PlainTextResponse(PID)

    async def stream(request: Request) -> Response:
        async def parts() -> AsyncIterator[bytes]:
            async with counted():
                until = time.monotonic() + float(request.query_params["for"])
                while time.monotonic() < until:
                    yield b"."
                    await asyncio.sleep(0.2)

        return StreamingResponse(parts())

    async def hold_up(request: Request) -> Response:
        time.sleep(float(request.query_params["for"]))  # noqa: ASYNC251  # that is the point
        return PlainTextResponse(PID)

    routes = [Route("/slow", slow), Route("/plain", plain), Route("/stream", stream)]
    app = Starlette(routes=[*routes, Route("/hold-up", hold_up)])
    app.add_middleware(RateLimitMiddleware, limiter=RateLimiter.from_file(os.environ["RULES"]))
    return app
