"""What the tests of requests that wait serve: ``/state`` tells which handlers ran.

Each test counts under an ``x-test`` of its own.
"""

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from ratelimit import RateLimiter, RateLimitMiddleware, Rule, limit


def make() -> Starlette:
    """A new application; uvicorn calls this."""
    rules = [
        Rule(
            "queue",
            "3/second",
            algorithm="leaking_bucket",
            burst=40,
            path="/queue",
            by="header:x-test",
        ),
    ]
    limiter = RateLimiter(rules)
    ran: list[str] = []

    async def run(request: Request) -> Response:
        ran.append(request.query_params["n"] + (await request.body()).decode())
        return PlainTextResponse("ok")

    @limit("3/second", algorithm="leaking_bucket", burst=40, by="header:x-test")
    async def run_limited(request: Request) -> Response:
        return await run(request)

    async def state(_: Request) -> Response:
        return JSONResponse({"ran": ran, "waiting": limiter.waiting})

    async def reset(_: Request) -> Response:
        ran.clear()
        return PlainTextResponse("ok")

    app = Starlette(
        routes=[
            Route("/queue", run, methods=["GET", "POST"]),
            Route("/limited", run_limited, methods=["GET", "POST"]),
            Route("/state", state),
            Route("/reset", reset),
        ]
    )
    app.add_middleware(RateLimitMiddleware, limiter=limiter)
    return app
