"""A FastAPI application with other middleware beside its limits, in the order that works.

uvicorn --app-dir examples order:app
"""

from fastapi import FastAPI
from starlette.authentication import AuthCredentials, AuthenticationBackend, SimpleUser
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import HTTPConnection

from ratelimit import RateLimiter, RateLimitMiddleware, Rule

TOKENS = {"token-of-alice": "alice", "token-of-bob": "bob"}
LOOKED_UP: list[str] = []
"""The tokens that were asked for: what a database would have had to answer."""


class Tokens(AuthenticationBackend):
    """Knows a user by a bearer token."""

    async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, SimpleUser] | None:
        """The user whose token it is; None for anybody else."""
        token = conn.headers.get("authorization", "").removeprefix("Bearer ")
        if not token:
            return None
        LOOKED_UP.append(token)
        name = TOKENS.get(token)
        return (AuthCredentials(["user"]), SimpleUser(name)) if name else None


clients = RateLimiter([Rule("clients", "20/minute", by="client")])
users = RateLimiter([Rule("users", "5/minute", by="user", on_missing="skip")])

app = FastAPI(
    middleware=[  # the first one is outermost: it sees requests first and answers last
        Middleware(
            CORSMiddleware,
            allow_origins=["https://app.example"],
            allow_headers=["Authorization"],
            expose_headers=["Retry-After", "RateLimit", "RateLimit-Policy"],
        ),
        Middleware(GZipMiddleware),
        Middleware(RateLimitMiddleware, limiter=clients),
        Middleware(AuthenticationMiddleware, backend=Tokens()),
        Middleware(RateLimitMiddleware, limiter=users),
    ]
)


@app.get("/items")
async def items() -> list[str]:
    """Long enough to be compressed."""
    return ["an item"] * 100
