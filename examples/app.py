"""A FastAPI application whose limits come from a rule file, and from a decorator.

uvicorn --app-dir examples app:app

STORE in the environment is where the counters live, RULES another rule file.
"""

import os
from importlib.util import find_spec
from pathlib import Path

from fastapi import FastAPI
from starlette.requests import HTTPConnection

from ratelimit import Dashboard, RateLimiter, RateLimitMiddleware, limit

limiter = RateLimiter.from_file(
    os.environ.get("RULES") or Path(__file__).with_name("rules.yaml"),
    store=os.environ.get("STORE") or None,
    watch=find_spec("watchfiles") is not None,  # so that it may be edited while this runs
)
app = FastAPI(title="ratelimit demo")
app.add_middleware(RateLimitMiddleware, limiter=limiter)


def from_this_machine(connection: HTTPConnection) -> bool:
    """Whether the live page is open to whoever asks; behind a proxy, ask who is signed in."""
    return connection.client is not None and connection.client.host in ("127.0.0.1", "::1")


app.mount("/ratelimit", Dashboard(limiter, allow=from_this_machine))


@app.get("/")
async def index() -> dict[str, str]:
    """Not limited: no rule matches it."""
    return {"try": "/token-bucket, /leaking-bucket, /fixed-window, /sliding-log, /sliding-counter"}


@app.get("/health")
async def health() -> dict[str, object]:
    """The store, its breaker and the workers, for whoever watches."""
    return limiter.health()


@app.get("/report")
@limit("2/minute")
def report() -> dict[str, str]:
    """Limited where it is defined; the function is an ordinary one and takes no request."""
    return {"report": "ready"}


@app.get("/{path:path}")
async def limited(path: str) -> dict[str, str]:
    """Limited by the rules that match this path."""
    return {"passed": path}
