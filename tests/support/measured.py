"""An application for several workers that shows the metrics of all: RULES names its rule file."""

import os

from prometheus_client import CollectorRegistry, make_asgi_app
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route

from ratelimit import RateLimiter, RateLimitMiddleware
from ratelimit.insight.metrics.prometheus import PrometheusMetrics


async def counted(request: Request) -> Response:
    return PlainTextResponse("ok", headers={"x-worker": str(os.getpid())})


def make() -> Starlette:
    """A new application; uvicorn calls this in each of its workers."""
    limiter = RateLimiter.from_file(os.environ["RULES"])
    registry = CollectorRegistry()
    registry.register(PrometheusMetrics(limiter, shared=True))
    routes = [Route("/counted", counted), Mount("/metrics", make_asgi_app(registry))]
    app = Starlette(routes=routes)
    app.add_middleware(RateLimitMiddleware, limiter=limiter)
    return app
