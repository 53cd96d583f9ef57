"""The contestants of http.py: one FastAPI application, bare and behind each library's limits.

All of them limit by the client's address and write their header fields. A store is ``memory://``
or the URI of a Redis.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fastapi import Depends, FastAPI, HTTPException, Request, Response
from limits import RateLimitItemPerDay
from limits.aio import storage as limits_storage
from limits.aio.strategies import FixedWindowRateLimiter
from slowapi import Limiter, _rate_limit_exceeded_handler
from slowapi.errors import RateLimitExceeded
from slowapi.middleware import SlowAPIASGIMiddleware, SlowAPIMiddleware
from slowapi.util import get_remote_address
from throttled.asyncio import MemoryStore as ThrottledMemory
from throttled.asyncio import RedisStore as ThrottledRedis
from throttled.asyncio import Throttled
from throttled.asyncio.rate_limiter import per_day

from ratelimit import (
    Check,
    Limit,
    MemoryStore,
    RateLimit,
    RateLimiter,
    RateLimitMiddleware,
    Rule,
    limit,
)
from ratelimit.stores.redis import RedisStore

MEMORY = "memory://"
PATIENCE = 10.0  # seconds: no contestant may give up where the machine is busy
CONNECTIONS = 1024
PATH = "/hello"
"""What is asked for; the applications have other routes before and after it."""

Endpoint = Callable[..., Any]


async def hello() -> dict[str, str]:
    """The endpoint that is asked; small, so that little hides what a limit adds."""
    return {"hello": "world"}


def application(endpoint: Endpoint = hello, dependencies: Sequence[Any] = ()) -> FastAPI:
    """Nine routes, of which the fifth is asked for."""
    app = FastAPI()
    for number in range(4):
        app.get(f"/before{number}/{{item_id}}")(other)
    app.get(PATH, dependencies=dependencies)(endpoint)
    for number in range(4):
        app.get(f"/after{number}/{{item_id}}")(other)
    return app


async def other(item_id: int) -> dict[str, int]:
    """What nobody asks for."""
    return {"item": item_id}


def bare(store: str, quota: int) -> FastAPI:  # noqa: ARG001  # the shape of a build
    """No limits."""
    return application()


# --- ours ----------------------------------------------------------------------------------------


def limiter(rules: Sequence[Rule], store: str) -> RateLimiter:
    """Ours, deciding in process by LuaJIT or in Redis."""
    if store == MEMORY:
        return RateLimiter(rules, store=MemoryStore(runtime="luajit21"))
    return RateLimiter(rules, store=RedisStore(store, deadline=PATIENCE))


def ours(algorithm: str | None = "fixed_window", matching: int = 1, others: int = 0) -> Any:
    """The middleware: so many rules match the request, among so many others that do not."""

    def build(store: str, quota: int) -> FastAPI:
        rules = [Rule(f"api{i}", f"{quota + i}/day", algorithm=algorithm) for i in range(matching)]
        for i in range(others):
            path = f"/service{i}" if i % 2 else f"/service{i}/{{item_id:int}}"
            rules.append(Rule(f"service{i}", "9/minute", path=path, methods=["GET", "POST"]))
        app = application()
        app.add_middleware(RateLimitMiddleware, limiter=limiter(rules, store))
        return app

    return build


def by_hand(store: str, quota: int) -> FastAPI:  # noqa: ARG001  # the shape of a build
    """One check of one limit and two fields: what nobody can do without."""
    app = application()
    app.add_middleware(ByHand, quota=quota)
    return app


class ByHand:
    """A middleware as it would be written by hand."""

    def __init__(self, app: Any, quota: int) -> None:
        self.app = app
        self.limit = Limit.of(quota, 86_400_000_000, algorithm="fixed_window")
        self.policy = b'"api";q=%d;w=86400' % quota
        self.store = MemoryStore(runtime="luajit21")

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        (decision,) = await self.store.decide([Check(self.limit, scope["client"][0], 1, "api")])

        async def send_with_fields(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] += [
                    (b"ratelimit-policy", self.policy),
                    (b"ratelimit", b'"api";r=%d' % decision.remaining),
                ]
                if not decision.allowed:
                    message["headers"].append((b"retry-after", b"%d" % decision.retry_after))
            await send(message)

        if decision.allowed:
            await self.app(scope, receive, send_with_fields)
        else:
            await Response(status_code=429)(scope, receive, send_with_fields)


def ours_decorated(store: str, quota: int) -> FastAPI:
    """``@limit`` on the endpoint, with no middleware."""
    limits = limiter([], store)

    async def own() -> dict[str, str]:
        return {"hello": "world"}

    return application(limit(f"{quota}/day", algorithm="fixed_window", limiter=limits)(own))


def ours_dependency(store: str, quota: int) -> FastAPI:
    """``Depends(RateLimit(...))`` on the route, with no middleware."""
    rate = RateLimit(f"{quota}/day", algorithm="fixed_window", limiter=limiter([], store))
    return application(dependencies=[Depends(rate)])


# --- the others ----------------------------------------------------------------------------------


def slowapi(middleware: type | None) -> Any:
    """Its middleware and default limits; without one, its decorator."""

    def build(store: str, quota: int) -> FastAPI:
        text = f"{quota}/day"
        options: dict[str, Any] = {} if store == MEMORY else {"max_connections": CONNECTIONS}
        limiter = Limiter(
            get_remote_address, headers_enabled=True, storage_uri=store, storage_options=options,
            default_limits=[text] if middleware else [],
        )  # fmt: skip
        if middleware:
            app = application()
            app.add_middleware(middleware)
        else:

            async def own(request: Request, response: Response) -> dict[str, str]:  # noqa: ARG001
                return {"hello": "world"}

            app = application(limiter.limit(text)(own))
        app.state.limiter = limiter
        app.add_exception_handler(RateLimitExceeded, _rate_limit_exceeded_handler)  # type: ignore[arg-type]
        return app

    return build


def limits_dependency(store: str, quota: int) -> FastAPI:
    """Limits has no web layer: a dependency, as its users write one."""
    storage: Any
    if store == MEMORY:
        storage = limits_storage.MemoryStorage()
    else:
        storage = limits_storage.RedisStorage(
            f"async+{store}", implementation="redispy", max_connections=CONNECTIONS
        )
    strategy = FixedWindowRateLimiter(storage)
    item = RateLimitItemPerDay(quota)

    async def check(request: Request, response: Response) -> None:
        client = request.client.host if request.client else ""
        passes = await strategy.hit(item, client)
        stats = await strategy.get_window_stats(item, client)
        fields = {
            "x-ratelimit-limit": str(quota),
            "x-ratelimit-remaining": str(stats.remaining),
            "x-ratelimit-reset": str(int(stats.reset_time)),
        }
        if not passes:
            raise HTTPException(429, headers={**fields, "retry-after": "60"})
        response.headers.update(fields)

    return application(dependencies=[Depends(check)])


def throttled_dependency(store: str, quota: int) -> FastAPI:
    """throttled-py in a dependency; the release measured has no FastAPI layer."""
    options = {"CONNECTION_POOL_KWARGS": {"max_connections": CONNECTIONS}}
    kept: Any = (
        ThrottledMemory(options={"MAX_SIZE": 1_000_000})
        if store == MEMORY
        else ThrottledRedis(server=store, options=options)
    )
    throttle = Throttled(using="fixed_window", quota=per_day(quota), store=kept)

    async def check(request: Request, response: Response) -> None:
        result = await throttle.limit(request.client.host if request.client else "")
        fields = {
            "x-ratelimit-limit": str(result.state.limit),
            "x-ratelimit-remaining": str(result.state.remaining),
            "x-ratelimit-reset": str(int(result.state.reset_after)),
        }
        if result.limited:
            retry = str(int(result.state.retry_after) + 1)
            raise HTTPException(429, headers={**fields, "retry-after": retry})
        response.headers.update(fields)

    return application(dependencies=[Depends(check)])


def redis_sdk(store: str, quota: int) -> FastAPI:
    """fastapi-redis-sdk's middleware with one limit for the application; in Redis only."""
    # Not installed on every machine: without it, its row says so. It is configured by environment.
    import os  # noqa: PLC0415

    os.environ |= {"REDIS_URL": store, "REDIS_MAX_CONNECTIONS": str(CONNECTIONS)}
    from redis_fastapi import FastAPIRedis  # noqa: PLC0415

    app = application()
    FastAPIRedis(app).lifespan().rate_limiting(global_rate=(quota, 86_400))
    return app


# --- who takes part ------------------------------------------------------------------------------

Role = Literal["bare", "ours", "peer", "aside"]
Build = Callable[[str, int], FastAPI]
"""Of a store and a quota per day."""


@dataclass(frozen=True)
class Contestant:
    """One application; ``build`` connects nothing before the first request."""

    name: str
    role: Role
    build: Build


ONE, FIVE = "ratelimit, one rule", "ratelimit, five rules that match"
TEN, THOUSAND = "ratelimit, 10 rules, one matches", "ratelimit, 1,000 rules, one matches"
SLOWAPI = "slowapi, ASGI middleware"
FLOOR = "by hand, one check and two fields"
BARE = "bare"
AGAIN = "bare, once more"

IN_PROCESS = [
    Contestant(BARE, "bare", bare),
    Contestant(AGAIN, "bare", bare),
    Contestant(ONE, "ours", ours()),
    Contestant(FLOOR, "aside", by_hand),
    Contestant(FIVE, "ours", ours(matching=5)),
    Contestant(TEN, "ours", ours(others=9)),
    Contestant(THOUSAND, "ours", ours(others=999)),
    Contestant("ratelimit, one sliding counter", "aside", ours(None)),
    Contestant("ratelimit, @limit alone", "aside", ours_decorated),
    Contestant("ratelimit, Depends(RateLimit) alone", "aside", ours_dependency),
    Contestant(SLOWAPI, "peer", slowapi(SlowAPIASGIMiddleware)),
    Contestant("slowapi, HTTP middleware", "aside", slowapi(SlowAPIMiddleware)),
    Contestant("slowapi, decorator alone", "aside", slowapi(None)),
    Contestant("limits in a dependency", "aside", limits_dependency),
    Contestant("throttled-py in a dependency", "aside", throttled_dependency),
]
SERVED = [each for each in IN_PROCESS if each.name in {BARE, AGAIN, ONE, FIVE, SLOWAPI}]
ON_REDIS = [
    Contestant(BARE, "bare", bare),
    Contestant(ONE, "ours", ours()),
    Contestant(FIVE, "aside", ours(matching=5)),
    Contestant(SLOWAPI, "peer", slowapi(SlowAPIASGIMiddleware)),
    Contestant("fastapi-redis-sdk, middleware", "peer", redis_sdk),
    Contestant("limits in a dependency", "peer", limits_dependency),
    Contestant("throttled-py in a dependency", "peer", throttled_dependency),
]
EVERYONE = {each.name: each for each in (*IN_PROCESS, *ON_REDIS)}
