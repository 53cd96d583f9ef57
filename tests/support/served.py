"""What the uvicorn tests serve: each test counts under an ``x-test`` of its own."""

import os
from contextlib import suppress

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from ratelimit import RateLimiter, RateLimitMiddleware, Rule


async def read(request: Request) -> Response:
    with suppress(ClientDisconnect):
        await request.body()
    return PlainTextResponse("ok", headers={"x-pid": str(os.getpid())})


async def socket(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.close()


def make() -> Starlette:
    """A new application; uvicorn calls this in each of its workers."""
    rules = [
        Rule("api", "20/hour", algorithm="sliding_log", by="header:x-test"),
        Rule("slow", "2/second", algorithm="leaking_bucket", by="header:x-test", path="/slow"),
    ]
    paths = ["/", "/slow", "/{rest:path}"]
    app = Starlette(routes=[WebSocketRoute("/ws", socket)])
    app.router.routes += [Route(path, read, methods=["GET", "POST"]) for path in paths]
    app.add_middleware(RateLimitMiddleware, limiter=RateLimiter(rules))
    return app
