"""Mistakes in limits on routes are told when an application starts, not request by request."""

import logging
from typing import Any

import pytest
from fastapi import Depends, FastAPI
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Message

from ratelimit import RateLimit, RateLimiter, RateLimitMiddleware, Rule, limit
from tests.support.asgi import Inner, limiter


async def start(app: ASGIApp) -> list[Message]:
    """What an application says when a server starts it, and stops it at once."""
    incoming = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])
    sent: list[Message] = []

    async def receive() -> Message:
        return next(incoming)

    async def send(message: Message) -> None:
        sent.append(message)

    await app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, receive, send)
    return sent


async def refused(app: ASGIApp) -> str:
    """The sentence with which an application refuses to start."""
    with pytest.raises(ValueError, match="a limit on a route cannot hold: ") as caught:
        await start(app)
    return str(caught.value)


async def ok(request: Request) -> Response:
    return PlainTextResponse("ok")


def starlette(*routes: Any, limits: RateLimiter | None = None) -> Starlette:
    app = Starlette(routes=list(routes))
    app.add_middleware(RateLimitMiddleware, limiter=limits or limiter())
    return app


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"by": "cleint"}, "limits by cleint, which is not registered; did you mean by='client'"),
        ({"by": ["client", "tennant"]}, "limits by tennant, which is not registered; did you mean"),
        ({"cost": "sise"}, "has the cost sise, which is not registered; did you mean 'size'"),
        ({"limit": {"free": "1/minute"}, "tier": "plann"}, "the tier plann, which is not registe"),
    ],
)
async def test_a_name_that_nobody_registered_is_told_at_the_start(
    options: dict[str, Any], said: str
) -> None:
    limits = RateLimiter(
        identities={"tenant": lambda _: "t"}, costs={"size": lambda _: 1}, tiers={"plan": str}
    )
    endpoint = limit(**({"limit": "1/minute"} | options))(ok)
    told = await refused(starlette(Mount("/in", routes=[Route("/x", endpoint)]), limits=limits))
    assert f"/in/x ({ok.__module__}.ok): rule " in told
    assert said in told
    assert "; pass RateLimiter(..., " in told


async def test_all_such_mistakes_are_told_at_once_also_those_of_dependencies() -> None:
    app = FastAPI()
    app.add_middleware(RateLimitMiddleware, limiter=limiter())
    app.get("/a", dependencies=[Depends(RateLimit("1/minute", by="userr"))])(lambda: "ok")
    app.get("/b")(limit("1/minute", by="glob")(lambda: "ok"))
    app.get("/c", dependencies=[Depends(RateLimit("1/minute", by=lambda: "me"))])(lambda: "ok")
    told = await refused(app)
    assert told.count("is not registered") == 2
    assert "/a (" in told
    assert "did you mean by='user'" in told
    assert "did you mean by='global'" in told


async def test_the_server_is_told_why_the_application_does_not_start() -> None:
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "lifespan.startup"}

    async def send(message: Message) -> None:
        sent.append(message)

    app = starlette(Route("/", limit("1/minute", by="cleint")(ok)))
    with pytest.raises(ValueError, match="cannot hold"):
        await app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, receive, send)
    assert [each["type"] for each in sent] == ["lifespan.startup.failed"]
    assert "limits by cleint" in sent[0]["message"]


async def test_a_limit_is_held_to_the_limiter_that_will_decide_it() -> None:
    knows = RateLimiter(identities={"tenant": lambda _: "t"})
    endpoint = limit("1/minute", by="tenant")(ok)
    guard = Middleware(RateLimitMiddleware, limiter=knows)
    inner = Starlette(routes=[Route("/", endpoint)], middleware=[guard])
    own = limit("1/minute", by="tenant", limiter=knows)(ok)
    app = starlette(
        Mount("/a", app=inner),
        Mount("/b", routes=[Route("/", endpoint)], middleware=[guard]),
        Route("/c", endpoint, middleware=[guard]),
        Route("/d", own),
    )
    sent = await start(app)
    assert sent[0]["type"] == "lifespan.startup.complete"
    unknown = limit("1/minute", by="tenant", limiter=limiter())(ok)
    assert "/e (" in await refused(starlette(Route("/e", unknown), limits=knows))


async def test_a_rule_by_route_in_front_of_no_routes_is_told_at_the_start(
    caplog: pytest.LogCaptureFixture,
) -> None:
    by_route = limiter(Rule("r", "1/minute", by="route"))
    await start(RateLimitMiddleware(Inner(), by_route))
    assert caplog.text.count("routes-unknown: a rule counts by route, but no routes") == 1
    caplog.clear()
    await start(RateLimitMiddleware(Inner(), limiter(Rule("r", "1/minute"))))
    await start(starlette(Route("/", ok), limits=by_route))
    assert "routes-unknown" not in caplog.text


@pytest.mark.parametrize("path", ["/users/:id", "/users/<int:id>", "/*/users"])
def test_a_path_in_the_words_of_another_framework_is_told_at_the_start(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "ratelimit"):
        RateLimiter([Rule("api", "1/minute", path=path)])
    assert "foreign-path: rule 'api': " in caplog.text
