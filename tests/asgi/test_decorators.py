"""@limit and @exempt on Starlette's endpoints."""

import contextvars
import functools
import logging
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from ipaddress import ip_network
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.endpoints import HTTPEndpoint
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route, Router, WebSocketRoute
from starlette.types import ASGIApp
from starlette.websockets import WebSocket

from ratelimit import (
    Check,
    Limit,
    MemoryStore,
    RateLimiter,
    RateLimitExceeded,
    RateLimitMiddleware,
    Rule,
    RuleSet,
    exempt,
    limit,
)
from ratelimit.asgi.decorators import _fallback
from ratelimit.responses.headers import Refusal, Told
from ratelimit.testing import ManualClock
from tests.support.asgi import (
    QUOTA_EXCEEDED,
    Counting,
    ask,
    call,
    limiter,
    statuses,
    websocket_scope,
)

ABOVE = r"^@limit stands above the route decorator of [^ ]+endpoint,"

Endpoint = Callable[..., Any]
Wrap = Callable[[Endpoint], Endpoint]


async def ok(request: Request) -> Response:
    return PlainTextResponse("ok")


def starlette(*routes: Any, limits: RateLimiter | None = None, **options: Any) -> Starlette:
    app = Starlette(routes=list(routes), **options)
    app.add_middleware(RateLimitMiddleware, limiter=limits or limiter())
    return app


async def remaining(limits: RateLimiter, rule: str, limit: str, key: str = "192.0.2.1") -> int:
    """What is left of a rule's limit for an identity, by a look that charges nothing."""
    (seen,) = await limits.store.decide([Check(Limit(limit), key, 0, rule)])
    return seen.remaining


# --- kinds of endpoints --------------------------------------------------------------------------


def async_function() -> Endpoint:
    async def endpoint(request: Request) -> Response:
        return PlainTextResponse("ok")

    return limit("1/minute")(endpoint)


def sync_function() -> Endpoint:
    def endpoint(request: Request) -> Response:
        return PlainTextResponse("ok")

    return limit("1/minute")(endpoint)


def partial() -> Endpoint:
    async def endpoint(text: str, request: Request) -> Response:
        return PlainTextResponse(text)

    return limit("1/minute")(functools.partial(endpoint, "ok"))


def partial_of_a_limited_function() -> Endpoint:
    @limit("1/minute")
    def endpoint(request: Request, text: str) -> Response:
        return PlainTextResponse(text)

    return functools.partial(endpoint, text="ok")


class Controller:
    @limit("1/minute")
    async def method(self, request: Request) -> Response:
        return PlainTextResponse("ok")

    def other(self, request: Request) -> Response:
        return PlainTextResponse("ok")

    async def __call__(self, request: Request) -> Response:
        return PlainTextResponse("ok")


def bound_method() -> Endpoint:
    return Controller().method


def limited_bound_method() -> Endpoint:
    return limit("1/minute")(Controller().other)


def callable_object() -> Endpoint:
    return limit("1/minute")(Controller())


def http_endpoint() -> Endpoint:
    class Page(HTTPEndpoint):
        @limit("1/minute")
        async def get(self, request: Request) -> Response:
            return PlainTextResponse("ok")

    return Page


def sync_http_endpoint() -> Endpoint:
    class Page(HTTPEndpoint):
        @limit("1/minute")
        def get(self, request: Request) -> Response:
            return PlainTextResponse("ok")

    return Page


def async_around_sync() -> Endpoint:
    def plain(request: Request) -> Response:
        return PlainTextResponse("ok")

    @limit("1/minute")
    @functools.wraps(plain)
    async def around(request: Request) -> Response:
        return plain(request)

    return around


def sync_around_async() -> Endpoint:
    @limit("1/minute")
    @functools.wraps(ok)
    def around(request: Request) -> Awaitable[Response]:
        return ok(request)

    return around


KINDS = [
    async_function,
    sync_function,
    partial,
    partial_of_a_limited_function,
    bound_method,
    limited_bound_method,
    callable_object,
    http_endpoint,
    sync_http_endpoint,
    async_around_sync,
    sync_around_async,
]


@pytest.mark.parametrize("kind", KINDS)
async def test_every_kind_of_endpoint_can_be_limited(kind: Callable[[], Endpoint]) -> None:
    app = starlette(Route("/", kind()))
    answer = await ask(app)
    assert answer.status == 200
    assert answer.body == b"ok"
    assert answer.headers["ratelimit"].endswith(";r=0")
    answer = await ask(app)
    assert answer.status == 429
    assert answer.problem["type"] == QUOTA_EXCEEDED
    assert await statuses(app, "/", client=("198.51.100.1", 1)) == [200]


async def test_a_sync_endpoint_runs_in_a_thread_with_the_contextvars_of_the_request() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")
    seen: list[tuple[str, bool]] = []

    @limit("5/minute")
    def endpoint(request: Request) -> Response:
        here = threading.current_thread() is threading.main_thread()
        seen.append((variable.get(), here))
        return PlainTextResponse("ok")

    variable.set("by the caller")
    await ask(starlette(Route("/", endpoint)))
    assert seen == [("by the caller", False)]


async def test_a_limited_function_keeps_its_name_and_its_documentation() -> None:
    @limit("5/minute")
    async def endpoint(request: Request) -> Response:
        """What it does."""
        return PlainTextResponse("ok")

    assert endpoint.__name__ == "endpoint"
    assert endpoint.__doc__ == "What it does."


async def test_a_websocket_endpoint_is_refused_at_its_handshake() -> None:
    @limit("1/minute")
    async def endpoint(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.close()

    app = starlette(WebSocketRoute("/", endpoint))
    scope = websocket_scope(extensions={"websocket.http.response": {}})
    connect = [{"type": "websocket.connect"}]
    accepted = await call(app, dict(scope), connect)
    assert accepted.messages[0]["type"] == "websocket.accept"
    assert (await call(app, dict(scope), connect)).status == 429
    closed = await call(app, websocket_scope(), connect)
    assert [(each["type"], each.get("code")) for each in closed.messages] == [
        ("websocket.close", 1008)
    ]


# --- stacking ------------------------------------------------------------------------------------


async def test_stacked_limits_are_decided_together_all_or_nothing() -> None:
    @limit("9/minute", scope="many")
    @limit("1/minute", scope="few")
    async def endpoint(request: Request) -> Response:
        return PlainTextResponse("ok")

    store = Counting()
    limits = limiter(store=store)
    app = starlette(Route("/", endpoint), limits=limits)
    answers = [await ask(app) for _ in range(3)]
    assert [len(checks) for checks in store.asked] == [2, 2, 2]
    assert [answer.status for answer in answers] == [200, 429, 429]
    assert answers[0].headers["ratelimit-policy"] == '"few";q=1;w=60, "many";q=9;w=60'
    assert answers[1].problem["violated-policies"] == ["few"]
    assert await remaining(limits, "many~", "9/minute") == 8


async def test_stacked_limits_with_the_same_numbers_count_apart() -> None:
    @limit("2/minute", by="global")
    @limit("2/minute", by="client")
    async def endpoint(request: Request) -> Response:
        return PlainTextResponse("ok")

    app = starlette(Route("/", endpoint))
    answer = await ask(app, client=("198.51.100.1", 1))
    assert answer.headers["ratelimit-policy"].count(";q=2;w=60") == 2
    assert await statuses(app, "/", "/", client=("198.51.100.2", 1)) == [200, 429]


@pytest.mark.parametrize("inner_is_sync", [True, False])
async def test_a_decorator_between_two_limits_still_runs(inner_is_sync: bool) -> None:
    """Such as one that checks who may come in."""
    seen: list[str] = []

    def guarded(function: Endpoint) -> Endpoint:
        @functools.wraps(function)
        async def inner(request: Request) -> Any:
            seen.append("guard")
            return await function(request)

        return inner

    def plain(request: Request) -> Response:
        return PlainTextResponse("ok")

    endpoint = limit("9/minute", scope="outer")(
        guarded(limit("2/minute", scope="inner")(plain if inner_is_sync else ok))
    )
    app = starlette(Route("/", endpoint))
    answers = [await ask(app) for _ in range(3)]
    assert [answer.status for answer in answers] == [200, 200, 429]
    assert seen == ["guard"] * 3
    assert answers[0].headers["ratelimit-policy"] == '"inner";q=2;w=60, "outer";q=9;w=60'


# --- scopes --------------------------------------------------------------------------------------


async def test_endpoints_of_one_name_in_different_places_do_not_share_a_counter() -> None:
    app = starlette(Route("/a", async_function()), Route("/b", sync_function()))
    assert await statuses(app, "/a", "/b", "/a", "/b") == [200, 200, 429, 429]


async def test_endpoints_that_name_one_scope_share_its_counters() -> None:
    @limit("2/minute", scope="both")
    async def one(request: Request) -> Response:
        return PlainTextResponse("one")

    @limit("2/minute", scope="both")
    def two(request: Request) -> Response:
        return PlainTextResponse("two")

    app = starlette(Route("/one", one), Route("/two", two))
    assert await statuses(app, "/one", "/two", "/one", "/two") == [200, 200, 429, 429]


async def test_one_endpoint_on_two_routes_has_one_counter() -> None:
    endpoint = async_function()
    app = starlette(Route("/one", endpoint), Route("/two", endpoint))
    assert await statuses(app, "/one", "/two") == [200, 429]


async def test_a_parameter_in_the_path_gives_nobody_a_fresh_quota() -> None:
    app = starlette(Route("/items/{id}", async_function()))
    assert await statuses(app, "/items/1", "/items/2") == [200, 429]


async def test_limits_work_in_mounts_and_in_routers_below_them() -> None:
    inner = Mount("/inner", routes=[Route("/x", async_function())])
    app = starlette(Mount("/outer", app=Router([inner, Route("/y", sync_function())])))
    assert await statuses(app, "/outer/inner/x", "/outer/inner/x") == [200, 429]
    assert await statuses(app, "/outer/y", "/outer/y") == [200, 429]


# --- which limiter -------------------------------------------------------------------------------


async def test_what_the_middleware_charged_is_given_back_when_the_route_refuses() -> None:
    limits = limiter(Rule("api", "9/minute"))
    app = starlette(Route("/", async_function()), limits=limits)
    assert await statuses(app, "/") == [200]
    assert await remaining(limits, "api", "9/minute") == 8
    answer = await ask(app)
    assert answer.status == 429
    assert await remaining(limits, "api", "9/minute") == 8
    assert answer.headers["retry-after"]


async def test_an_allowed_answer_tells_of_the_middlewares_and_of_the_routes_limits() -> None:
    @limit("3/minute", scope="route")
    async def endpoint(request: Request) -> Response:
        return PlainTextResponse("ok")

    app = starlette(Route("/", endpoint), limits=limiter(Rule("api", "9/minute")))
    answer = await ask(app)
    assert answer.headers["ratelimit-policy"] == '"route";q=3;w=60, "api";q=9;w=60'
    assert answer.headers["ratelimit"] == '"route";r=2'


async def test_a_rule_met_by_the_application_and_by_a_mount_is_decided_once() -> None:
    store = Counting()
    limits = limiter(Rule("api", "9/minute"), store=store)
    sub = Starlette(routes=[Route("/", ok)])
    sub.add_middleware(RateLimitMiddleware, limiter=limits)
    app = starlette(Mount("/sub", app=sub), limits=limits)
    answer = await ask(app, "/sub/")
    assert answer.headers["ratelimit"] == '"api";r=8'
    assert len(store.asked) == 1


async def test_a_limit_with_a_limiter_of_its_own_counts_there() -> None:
    own, around = limiter(), limiter()

    @limit("2/minute", scope="mine", limiter=own)
    async def endpoint(request: Request) -> Response:
        return PlainTextResponse("ok")

    app = starlette(Route("/", endpoint), limits=around)
    assert (await ask(app)).headers["ratelimit"] == '"mine";r=1'
    assert await remaining(own, "mine~", "2/minute") == 1
    assert await remaining(around, "mine~", "2/minute") == 2


async def test_without_a_middleware_the_librarys_own_limiter_counts_and_warns_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    _fallback.cache_clear()
    app = Starlette(routes=[Route("/", async_function())])
    with caplog.at_level(logging.WARNING, "ratelimit"):
        first, second = await ask(app), await ask(app)
    assert (first.status, second.status) == (200, 429)
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == ["no-limiter"]
    assert first.headers["ratelimit"].endswith(";r=0")
    assert second.problem["type"] == QUOTA_EXCEEDED
    assert "retry-after" in second.headers


async def test_a_request_under_buckets_of_two_limiters_waits_for_the_slower_one() -> None:
    @limit("20/second", algorithm="leaking_bucket", scope="quick", limiter=limiter())
    @limit("5/second", algorithm="leaking_bucket", scope="slow", limiter=limiter())
    async def endpoint(request: Request) -> Response:
        return PlainTextResponse("ok")

    app = Starlette(routes=[Route("/", endpoint)])
    await ask(app)
    start = time.monotonic()
    await ask(app)
    assert time.monotonic() - start > 0.19


async def test_the_lists_of_a_limiter_hold_for_its_limits_on_routes() -> None:
    """The allowlist is not limited there either, and the denylist gets its 403."""
    lists = {"allowlist": [ip_network("192.0.2.0/24")], "denylist": [ip_network("192.0.2.9/32")]}

    @limit("1/minute", limiter=limiter(**lists))
    async def endpoint(request: Request) -> Response:
        return PlainTextResponse("ok")

    app = Starlette(routes=[Route("/", endpoint)])
    assert await statuses(app, "/", "/", "/") == [200] * 3
    assert await statuses(app, "/", "/", client=("198.51.100.1", 1)) == [200, 429]
    answer = await ask(app, client=("192.0.2.9", 1))
    assert answer.status == 403
    assert answer.problem["type"] == "urn:ratelimit-asgi:problem:address-denied"


async def test_a_response_that_is_returned_again_and_again_gathers_no_fields() -> None:
    always = PlainTextResponse("ok")

    @limit("9/minute", limiter=limiter())
    async def endpoint(request: Request) -> Response:
        return always

    app = Starlette(routes=[Route("/", endpoint)])
    for left in (8, 7, 6):
        assert (await ask(app)).headers["ratelimit"].endswith(f";r={left}")


async def test_the_innermost_middleware_decides_the_limits_on_a_route(clock: ManualClock) -> None:
    outer, inner = limiter(Rule("outer", "9/minute"), clock=clock), limiter(clock=clock)

    @limit("2/minute", scope="route")
    async def endpoint(request: Request) -> Response:
        return PlainTextResponse("ok")

    guard = Middleware(RateLimitMiddleware, limiter=inner)
    app = starlette(Mount("/in", routes=[Route("/", endpoint)], middleware=[guard]), limits=outer)
    answer = await ask(app, "/in/")
    assert answer.headers["ratelimit-policy"] == '"route";q=2;w=60, "outer";q=9;w=60'
    assert await remaining(inner, "route~", "2/minute") == 1
    assert await remaining(outer, "route~", "2/minute") == 2


async def test_a_request_that_a_mount_without_a_middleware_takes_is_decided_by_the_outer_one() -> (
    None
):
    """Also where another request has just been through the middleware of a mount beside it."""
    outer, inner = limiter(), limiter()

    @limit("2/minute", scope="route")
    async def endpoint(request: Request) -> Response:
        return PlainTextResponse("ok")

    guard = Middleware(RateLimitMiddleware, limiter=inner)
    app = starlette(
        Mount("/in", routes=[Route("/", endpoint)], middleware=[guard]),
        Mount("/beside", routes=[Route("/", endpoint)]),
        limits=outer,
    )
    assert await statuses(app, "/in/", "/beside/") == [200, 200]
    assert await remaining(inner, "route~", "2/minute") == 1
    assert await remaining(outer, "route~", "2/minute") == 1


async def test_the_jitter_of_a_limiter_holds_for_its_refusals_on_routes() -> None:
    app = starlette(
        Route("/", limit("1/minute", algorithm="fixed_window")(functools.partial(ok))),
        limits=limiter(retry_jitter_us=60_000_000),
    )
    await ask(app)
    answers = [(await ask(app)).headers for _ in range(20)]
    waits = {int(headers["retry-after"]) for headers in answers}
    assert waits <= set(range(60, 121))
    assert len(waits) > 1
    assert all(each["ratelimit"].endswith(";t=" + each["retry-after"]) for each in answers)


async def test_a_limiter_answers_its_refusals_in_the_applications_own_words() -> None:
    """Whether the middleware or a route refuses; a route's own limiter answers for itself."""

    def named(name: str, *rules: Rule) -> RateLimiter:
        async def response(connection: HTTPConnection, refusal: Refusal) -> Response:
            assert connection.url.path in ("/", "/own", "/free")
            return JSONResponse({name: refusal.status}, 418)

        store = MemoryStore(clock=ManualClock())
        return RateLimiter(RuleSet(rules), store=store, response=response)

    own = named("own")
    app = starlette(
        Route("/", limit("1/minute")(functools.partial(ok))),
        Route("/own", limit("1/minute", limiter=own)(functools.partial(ok))),
        Route("/free", ok),
        limits=named("around", Rule("free", "1/minute", path="/free")),
    )
    for path, name in {"/": "around", "/own": "own", "/free": "around"}.items():
        assert (await ask(app, path)).status == 200
        answer = await ask(app, path)
        assert (answer.status, answer.problem) == (418, {name: 429})
        assert int(answer.headers["retry-after"]) > 0
        assert answer.headers["ratelimit"].endswith(";t=" + answer.headers["retry-after"])


# --- what a request decides ----------------------------------------------------------------------


async def test_a_limit_may_count_by_a_parameter_of_the_route(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = starlette(
        Route("/rooms/{room}", limit("1/minute", by="path:room")(functools.partial(ok)))
    )
    assert await statuses(app, "/rooms/a", "/rooms/b", "/rooms/a") == [200, 200, 429]
    assert await statuses(app, "/rooms/b", client=("198.51.100.1", 1)) == [429]
    assert "path-missing" not in caplog.text


async def test_a_parameter_that_the_route_does_not_have_is_the_client(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = starlette(Route("/rooms", limit("1/minute", by="path:room")(functools.partial(ok))))
    assert await statuses(app, "/rooms", "/rooms") == [200, 429]
    assert await statuses(app, "/rooms", client=("198.51.100.1", 1)) == [200]
    assert caplog.text.count("path-missing: the route's limit ") == 1
    assert "by path:room' names a parameter that the path of the route lacks" in caplog.text


async def test_a_limit_may_be_for_some_methods() -> None:
    @limit("1/minute", methods=["POST"], scope="post")
    @limit("2/minute", methods=["GET"], scope="get")
    async def endpoint(request: Request) -> Response:
        return PlainTextResponse("ok")

    app = starlette(Route("/", endpoint, methods=["GET", "POST", "PUT"]))
    assert await statuses(app, "/", "/", method="POST") == [200, 429]
    assert await statuses(app, "/", method="HEAD") == [200]
    answer = await ask(app)
    assert answer.headers["ratelimit-policy"] == '"get";q=2;w=60'
    assert (await ask(app)).status == 429
    assert await statuses(app, "/", "/", "/", method="PUT") == [200] * 3


async def test_what_reaches_a_limited_function_counts_even_if_it_looks_like_a_preflight() -> None:
    """CORS has not answered it, so it is a request like any other."""

    @limit("1/minute", scope="any")
    async def any_method(request: Request) -> Response:
        return PlainTextResponse("ok")

    @limit("1/minute", scope="named", methods=["OPTIONS"])
    async def named(request: Request) -> Response:
        return PlainTextResponse("ok")

    methods = ["GET", "OPTIONS"]
    app = starlette(
        Route("/any", any_method, methods=methods), Route("/named", named, methods=methods)
    )
    preflight = [("origin", "https://a.example"), ("access-control-request-method", "GET")]
    asked: dict[str, Any] = {"method": "OPTIONS", "headers": preflight}
    assert await statuses(app, "/any", "/any", **asked) == [200, 429]
    assert await statuses(app, "/named", "/named", **asked) == [200, 429]


def sync(function: Callable[[HTTPConnection], Any]) -> Callable[[HTTPConnection], Any]:
    return function


def asynchronous(function: Callable[[HTTPConnection], Any]) -> Callable[[HTTPConnection], Any]:
    async def ask(connection: HTTPConnection) -> Any:
        return function(connection)

    return ask


def told(connection: HTTPConnection) -> Any:
    return connection.headers.get("x-told")


@pytest.mark.parametrize("kind", [sync, asynchronous])
async def test_a_limit_may_be_a_function_over_the_connection(kind: Any) -> None:
    app = starlette(Route("/", limit(kind(told))(functools.partial(ok))))
    one: dict[str, Any] = {"headers": [("x-told", "1/minute")]}
    assert await statuses(app, "/", "/", **one) == [200, 429]
    assert await statuses(app, "/", "/", headers=[("x-told", "2/hour; 9/day")]) == [200, 200]
    answer = await ask(app)
    assert answer.status == 200
    assert "ratelimit" not in answer.headers


@pytest.mark.parametrize("kind", [sync, asynchronous])
async def test_a_limit_may_be_tiers_of_which_a_function_chooses(kind: Any) -> None:
    tiers: Mapping[str, str | Limit] = {
        "free": "1/minute",
        "pro": Limit("2/minute"),
        "internal": "unlimited",
    }
    app = starlette(Route("/", limit(tiers, tier=kind(told))(functools.partial(ok))))
    for tier, expected in {
        "pro": [200, 200, 429],
        "internal": [200, 200, 200],
        "free": [200, 429, 429],
        "unheard of": [429, 429, 429],
    }.items():
        assert await statuses(app, "/", "/", "/", headers=[("x-told", tier)]) == expected


@pytest.mark.parametrize("kind", [sync, asynchronous])
async def test_a_cost_may_be_a_function_over_the_connection(kind: Any) -> None:
    cost = kind(lambda connection: int(told(connection) or 1))
    app = starlette(Route("/", limit("5/minute", cost=cost, scope="job")(functools.partial(ok))))
    assert (await ask(app, headers=[("x-told", "3")])).headers["ratelimit"] == '"job";r=2'
    assert (await ask(app, headers=[("x-told", "0")])).headers["ratelimit"] == '"job";r=2'
    assert await statuses(app, "/", headers=[("x-told", "3")]) == [429]
    assert await statuses(app, "/") == [200]


@pytest.mark.parametrize("kind", [sync, asynchronous])
async def test_a_request_may_be_skipped(kind: Any) -> None:
    skip = kind(lambda connection: told(connection) == "internal")
    app = starlette(Route("/", limit("1/minute", skip=skip)(functools.partial(ok))))
    assert await statuses(app, "/", "/", headers=[("x-told", "internal")]) == [200, 200]
    assert await statuses(app, "/", "/") == [200, 429]


async def test_a_tier_and_a_cost_may_be_names_that_the_limiter_knows() -> None:
    limits = RateLimiter(
        store=MemoryStore(clock=ManualClock()), tiers={"plan": told}, costs={"two": lambda _: 2}
    )
    tiers = {"free": "2/minute", "pro": "4/minute"}
    app = starlette(
        Route("/", limit(tiers, tier="plan", cost="two")(functools.partial(ok))), limits=limits
    )
    assert await statuses(app, "/", "/") == [200, 429]
    assert await statuses(app, "/", "/", "/", headers=[("x-told", "pro")]) == [200, 200, 429]
    unknown = starlette(Route("/", limit(tiers, tier="plan")(functools.partial(ok))))
    with pytest.raises(ValueError, match="tier plan, which is not registered"):
        await ask(unknown)


async def test_a_limit_in_shadow_refuses_nobody_and_one_that_is_off_asks_nothing() -> None:
    limits = limiter()
    app = starlette(
        Route("/off", limit("1/minute", mode="off", scope="off")(functools.partial(ok))),
        Route("/shade", limit("1/minute", mode="shadow", scope="shade")(functools.partial(ok))),
        limits=limits,
    )
    assert await statuses(app, "/off", "/off", "/shade", "/shade") == [200] * 4
    assert limits.counts == {("shade", "shadow-allowed"): 1, ("shade", "shadow-denied"): 1}


async def test_a_request_without_an_identity_may_be_refused_or_not_limited() -> None:
    def by_user(on_missing: Any) -> Endpoint:
        one = limit("1/minute", by="header:x-user", on_missing=on_missing, scope=on_missing)
        return one(functools.partial(ok))

    app = starlette(Route("/refuse", by_user("refuse")), Route("/skip", by_user("skip")))
    answer = await ask(app, "/refuse")
    assert answer.status == 403
    assert answer.problem["type"] == "urn:ratelimit-asgi:problem:identity-missing"
    assert await statuses(app, "/skip", "/skip") == [200, 200]
    named: dict[str, Any] = {"headers": [("x-user", "ann")]}
    assert await statuses(app, "/refuse", "/refuse", "/skip", "/skip", **named) == [200, 429] * 2


# --- RateLimitExceeded ---------------------------------------------------------------------------


async def raising(request: Request) -> Response:
    decision = (await limiter().store.decide([Check(Limit("1/minute"), "me")]))[0]
    raise RateLimitExceeded([Told("mine", decision._replace(allowed=False, retry_after_us=7))])


async def test_one_that_the_application_raises_gets_the_answer_of_the_middleware() -> None:
    app = starlette(Route("/", raising, methods=["GET"]), limits=limiter(Rule("api", "9/minute")))
    answer = await ask(app)
    assert answer.status == 429
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["retry-after"] == "1"
    assert answer.headers["ratelimit"] == '"mine";r=0;t=1'
    assert answer.problem["violated-policies"] == ["mine"]
    assert (await ask(app, method="HEAD")).body == b""


async def test_one_that_the_application_raises_where_nothing_is_limited_is_a_problem_too() -> None:
    """Once a limit of the application has refused something, and made itself its handler."""
    limited = limit("1/minute", limiter=limiter())(functools.partial(ok))
    app = Starlette(routes=[Route("/limited", limited), Route("/", raising)])
    assert await statuses(app, "/limited", "/limited") == [200, 429]
    answer = await ask(app)
    assert answer.status == 429
    assert answer.problem["violated-policies"] == ["mine"]


@pytest.mark.parametrize("endpoint", ["limited", raising])
async def test_a_refusal_on_a_route_takes_the_form_that_the_client_asks_for(endpoint: Any) -> None:
    if endpoint == "limited":
        endpoint = async_function()
    app = starlette(Route("/", endpoint))
    await ask(app)
    answer = await ask(app, headers=[("accept", "text/html,*/*;q=0.8")])
    assert answer.status == 429
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.body.startswith(b"<!doctype html>")
    assert int(answer.headers["retry-after"]) > 0
    assert int(answer.headers["content-length"]) == len(answer.body)


async def test_one_that_a_mounted_application_raises_keeps_its_fields_in_whatever_answer() -> None:
    """A mounted application has exception handlers of its own, out of the middleware's reach."""
    sub = Starlette(routes=[Route("/", raising)])
    answer = await ask(starlette(Mount("/sub", app=sub)), "/sub/")
    assert answer.status == 429
    assert answer.headers["retry-after"] == "1"
    assert answer.headers["ratelimit"] == '"mine";r=0;t=1'


@pytest.mark.parametrize("handled", [RateLimitExceeded, 429, HTTPException])
@pytest.mark.parametrize("endpoint", [raising, "limited"])
@pytest.mark.parametrize("middleware", [True, False])
async def test_a_handler_of_the_application_wins(
    handled: Any, endpoint: Any, middleware: bool
) -> None:
    async def handler(request: Request, error: Exception) -> Response:
        assert isinstance(error, RateLimitExceeded)
        return JSONResponse("mine", 418, headers=error.headers)

    if endpoint == "limited":
        endpoint = limit("1/minute", limiter=limiter())(functools.partial(ok))
    routes = [Route("/", endpoint)]
    app = Starlette(routes=routes, exception_handlers={handled: handler})
    if middleware:
        app.add_middleware(RateLimitMiddleware, limiter=limiter())
    await ask(app)
    answer = await ask(app)
    assert answer.status == 418
    assert answer.body == b'"mine"'
    assert answer.headers["retry-after"]


async def test_a_refusal_of_a_route_that_the_store_cannot_decide_is_a_503() -> None:
    class Down(Counting):
        async def decide(self, checks: Any) -> Any:
            raise OSError("down")

    @limit("1/minute", on_store_failure="deny", limiter=limiter(store=Down()))
    async def endpoint(request: Request) -> Response:
        return PlainTextResponse("ok")

    answer = await ask(starlette(Route("/", endpoint)))
    assert answer.status == 503
    assert answer.problem["type"] == "urn:ratelimit-asgi:problem:store-unavailable"


# --- misplaced -----------------------------------------------------------------------------------


def route_first(endpoint: Endpoint) -> object:
    return Route("/", endpoint)


def route_list(endpoint: Endpoint) -> object:
    return Starlette(routes=[Mount("/m", routes=[Route("/", endpoint), Route("/b", endpoint)])])


def router_add_route(endpoint: Endpoint) -> object:
    router = Router()
    router.add_route("/", endpoint)
    return router


def websocket_route(endpoint: Endpoint) -> object:
    return WebSocketRoute("/", endpoint)


@pytest.mark.parametrize("register", [route_first, route_list, router_add_route, websocket_route])
@pytest.mark.parametrize("beneath", [None, exempt, limit("2/minute")])
def test_a_limit_on_what_is_routed_already_is_refused_at_once(
    register: Callable[[Endpoint], object], beneath: Wrap | None
) -> None:
    async def endpoint(request: Request) -> Response:
        return PlainTextResponse("ok")

    function = beneath(endpoint) if beneath else endpoint
    kept = register(function)
    with pytest.raises(RuntimeError, match=ABOVE):
        limit("1/minute")(function)
    assert kept


def test_a_limit_on_a_class_or_a_generator_or_on_no_function_is_refused() -> None:
    class Page(HTTPEndpoint): ...

    def sync_generator() -> Iterator[int]:
        yield 1

    async def async_generator() -> AsyncIterator[int]:
        yield 1

    with pytest.raises(
        TypeError, match=r"^@limit goes on the methods of .*Page, not on the class$"
    ):
        limit("1/minute")(Page)
    for function in (sync_generator, async_generator):
        with pytest.raises(TypeError, match="yields, so its response has begun"):
            limit("1/minute")(function)
    with pytest.raises(TypeError, match=r"^@limit goes on an endpoint, not on str$"):
        limit("1/minute")("text")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^@exempt goes on an endpoint, not on str$"):
        exempt("text")  # type: ignore[arg-type]


def test_a_limit_that_makes_no_rule_is_refused_where_it_is_written() -> None:
    for options, error in [
        ({"limit": "10 per fortnite"}, ValueError),
        ({"limit": "1/minute", "cost": 2}, ValueError),
        ({"limit": "1/minute", "by": "header"}, ValueError),
        ({"limit": "1/minute", "burst": 3}, ValueError),
        ({"limit": 10}, TypeError),
        ({"limit": "1/minute", "scope": "no spaces"}, ValueError),
        ({"limit": "1/minute", "methods": ["GOT"]}, ValueError),
        ({"limit": "1/minute", "tier": told}, ValueError),
        ({"limit": {"free": "1/minute"}}, ValueError),
        ({"limit": "1/minute", "skip": True}, TypeError),
        ({"limit": "1/minute", "by": []}, ValueError),
        ({"limit": "1/minute", "by": 7}, TypeError),
        ({"limit": "1/minute", "limiter": "memory://"}, TypeError),
    ]:
        with pytest.raises(error):
            limit(**options)  # type: ignore[arg-type]


def test_an_option_that_a_limit_does_not_have_is_refused_with_those_that_it_has() -> None:
    with pytest.raises(
        TypeError, match=r"^a limit has no option path; there are algorithm, allowlist, ban, "
    ):
        limit("1/minute", path="/x")  # type: ignore[call-arg]


def test_a_function_in_by_is_refused_with_the_way_out() -> None:
    pytest.importorskip("fastapi")
    with pytest.raises(
        TypeError,
        match=r"FastAPI gives to Depends\(RateLimit\(...\)\) alone; on an endpoint, by is",
    ):
        limit("1/minute", by=told)  # type: ignore[arg-type]


async def test_a_limited_function_that_is_called_without_a_request_says_so() -> None:
    endpoint = async_function()
    with pytest.raises(RuntimeError, match="is limited, but was called without a request"):
        await endpoint()
    assert (await endpoint.__wrapped__(None)).status_code == 200  # type: ignore[attr-defined]


# --- @exempt -------------------------------------------------------------------------------------


async def test_an_exempt_endpoint_is_not_limited_by_the_middleware() -> None:
    @exempt
    async def free(request: Request) -> Response:
        return PlainTextResponse("ok")

    store = Counting()
    app = starlette(
        Route("/free", free),
        Mount("/sub", routes=[Route("/free", free)]),
        Route("/paid", ok),
        limits=limiter(Rule("api", "1/minute"), store=store),
    )
    assert await statuses(app, "/free", "/free", "/sub/free", "/sub/free") == [200] * 4
    assert (await ask(app, "/free")).fields == (
        await ask(Starlette(routes=app.routes), "/free")
    ).fields
    assert store.asked == []
    assert await statuses(app, "/paid", "/paid", "/nowhere") == [200, 429, 429]


async def test_a_method_of_an_endpoint_class_may_be_exempt_by_itself() -> None:
    class Page(HTTPEndpoint):
        @exempt
        async def get(self, request: Request) -> Response:
            return PlainTextResponse("ok")

        async def post(self, request: Request) -> Response:
            return PlainTextResponse("ok")

    app = starlette(Route("/", Page), limits=limiter(Rule("api", "1/minute")))
    assert await statuses(app, "/", "/") == [200, 200]
    assert await statuses(app, "/", "/", method="HEAD") == [200, 200]
    assert await statuses(app, "/", "/", method="POST") == [200, 429]
    assert await statuses(app, "/", method="PUT") == [429]


@pytest.mark.parametrize("limit_outside", [True, False])
async def test_an_exempt_endpoint_keeps_limits_of_its_own(limit_outside: bool) -> None:
    async def endpoint(request: Request) -> Response:
        return PlainTextResponse("ok")

    one = limit("2/minute", scope=f"own-{limit_outside}")
    both = one(exempt(endpoint)) if limit_outside else exempt(one(endpoint))
    app = starlette(Route("/", both), limits=limiter(Rule("api", "1/minute")))
    assert await statuses(app, "/", "/", "/") == [200, 200, 429]


async def test_an_exempt_endpoint_below_a_middleware_of_a_mounted_application_is_exempt() -> None:
    @exempt
    async def free(request: Request) -> Response:
        return PlainTextResponse("ok")

    sub = starlette(
        Route("/free", free), Route("/paid", ok), limits=limiter(Rule("api", "1/minute"))
    )
    app: ASGIApp = Starlette(routes=[Mount("/sub", app=sub)])
    assert await statuses(app, "/sub/free", "/sub/free") == [200, 200]
    assert await statuses(app, "/sub/paid", "/sub/paid") == [200, 429]


async def test_a_middleware_of_a_mount_or_of_a_route_knows_the_routes_below_it() -> None:
    @exempt
    async def free(request: Request) -> Response:
        return PlainTextResponse("ok")

    guard = Middleware(
        RateLimitMiddleware, limiter=limiter(Rule("api", "1/minute", by=["route", "client"]))
    )
    inner = [Route("/a/{n}", ok), Route("/b/{n}", ok), Route("/free", free)]
    app = Starlette(
        routes=[
            Mount("/m", routes=inner, middleware=[guard]),
            Route("/r/{n}", ok, middleware=[guard]),
            Route("/s/{n}", ok, middleware=[guard]),
            Route("/free", free, middleware=[guard]),
        ]
    )
    for path in ("/m/a/", "/m/b/", "/r/", "/s/"):
        assert await statuses(app, path + "1", path + "2") == [200, 429]
    assert await statuses(app, "/m/free", "/m/free", "/free", "/free") == [200] * 4


async def test_a_middleware_finds_the_routes_behind_others_that_hide_the_application() -> None:
    class Hiding:
        def __init__(self, inner: ASGIApp) -> None:
            self._inner = inner

        async def __call__(self, *args: Any) -> None:
            await self._inner(*args)

    app = Starlette(routes=[Route("/a/{n}", ok), Route("/b/{n}", ok)])
    app.add_middleware(Hiding)
    app.add_middleware(
        RateLimitMiddleware, limiter=limiter(Rule("api", "1/minute", by=["route", "client"]))
    )
    assert await statuses(app, "/a/1", "/a/2", "/b/1", "/b/2") == [200, 429, 200, 429]


async def test_a_limit_by_an_unregistered_identity_is_told_with_the_name() -> None:
    @limit("1/minute", by="tenant")
    async def endpoint(connection: HTTPConnection) -> Response:
        return PlainTextResponse("ok")

    with pytest.raises(ValueError, match="limits by tenant, which is not registered"):
        await ask(starlette(Route("/", endpoint)))


class Account:
    """A user of a kind that has no id to be read."""

    is_authenticated = True


@pytest.mark.parametrize("on_missing", ["client", "skip", "refuse"])
@pytest.mark.parametrize("by", ["user", ["client", "user"]])
async def test_users_that_cannot_be_told_apart_are_told_once(
    on_missing: Any, by: Any, caplog: pytest.LogCaptureFixture
) -> None:
    app = starlette(
        Route("/", limit("1/minute", by=by, on_missing=on_missing)(functools.partial(ok)))
    )
    expected = {"client": [200, 429], "skip": [200, 200], "refuse": [403, 403]}[on_missing]
    assert await statuses(app, "/", "/", user=Account()) == expected
    assert caplog.text.count("user-unreadable: a rule limits by user, but cannot tell one A") == 1
    caplog.clear()
    for user in (None, "ann", {"id": 7}):
        await ask(starlette(Route("/", limit("1/minute", by=by)(functools.partial(ok)))), user=user)
    assert "user-unreadable" not in caplog.text


async def test_a_user_that_is_a_mapping_has_a_tier_too() -> None:
    tiers = {"free": "1/minute", "pro": "2/minute"}
    app = starlette(Route("/", limit(tiers, by="user", tier="user:plan")(functools.partial(ok))))
    ann = {"id": "ann", "plan": "pro"}
    assert await statuses(app, "/", "/", "/", user=ann) == [200, 200, 429]
    assert await statuses(app, "/", "/", user={"id": "bob"}) == [200, 429]
