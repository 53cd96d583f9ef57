"""An application whose clients are refused once, and which remembers what it has told them.

A client is told apart by its ``x-who``, or by its key to the model. A request of 60 tokens, or one
for a page, takes most of what three seconds allow.
"""

import os

from fastapi import Depends, FastAPI
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ratelimit import RateLimit, RateLimiter, RateLimitMiddleware, Rule, RuleSet, TokenEstimate
from tests.support.language_model import complete

ANSWERS: dict[str, list[dict[str, str]]] = {}


def who(connection: HTTPConnection) -> str:
    key = connection.headers.get("authorization", "").removeprefix("Bearer ")
    return connection.headers.get("x-who", key)


class Remembering:
    """Keeps the status and the fields of every answer, by client."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def keeping(message: Message) -> None:
            if message["type"] == "http.response.start":
                told = {name.decode(): value.decode() for name, value in message["headers"]}
                answer = told | {"status": str(message["status"])}
                ANSWERS.setdefault(who(HTTPConnection(scope)), []).append(answer)
            await send(message)

        inner = scope["type"] == "http" and not scope["path"].startswith("/told/")
        await self.app(scope, receive, keeping if inner else send)


rules = RuleSet(
    [Rule("pages", "1/3s", path="/page", by="who", algorithm="sliding_log")],
    store=os.environ.get("STORE", "memory://"),
    deadline_us=5_000_000,
    headers=["openai"],
    retry_hints=True,
)
app = FastAPI()
app.add_middleware(RateLimitMiddleware, limiter=RateLimiter(rules, identities={"who": who}))
app.add_middleware(Remembering)
tokens = RateLimit(
    "100/3s",
    by="who",
    unit="tokens",
    cost=TokenEstimate("output-tokens"),
    algorithm="sliding_log",
)


@app.get("/page")
async def page() -> dict[str, str]:
    return {"a": "page"}


@app.get("/told/{who}")
async def told(who: str) -> list[dict[str, str]]:
    return ANSWERS.get(who, [])


app.post("/v1/chat/completions", dependencies=[Depends(tokens)])(complete)
