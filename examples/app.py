"""A FastAPI application whose limits come from a rule file, and from a decorator.

uvicorn --app-dir examples app:app
"""

import os
from pathlib import Path

from fastapi import FastAPI

from ratelimit import RateLimiter, RateLimitMiddleware, limit

limiter = RateLimiter.from_file(
    Path(__file__).with_name("rules.yaml"), store=os.environ.get("STORE") or None
)
app = FastAPI(title="ratelimit demo")
app.add_middleware(RateLimitMiddleware, limiter=limiter)


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


@app.get("/{algorithm}")
async def limited(algorithm: str) -> dict[str, str]:
    """Limited by the rule whose path this is."""
    return {"passed": algorithm}
