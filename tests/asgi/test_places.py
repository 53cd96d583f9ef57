"""Endpoints are counted apart, by the routes that lead to them, and have names to be read."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi import APIRouter, Depends, FastAPI
from starlette.applications import Starlette
from starlette.endpoints import HTTPEndpoint
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Host, Mount, Route, Router
from starlette.staticfiles import StaticFiles

from ratelimit import RateLimit, RateLimiter, RateLimitMiddleware, Rule, limit
from ratelimit.asgi.places import place_of
from tests.support.asgi import ask, limiter, statuses

Endpoint = Callable[..., Any]


def made(text: str = "ok", **options: Any) -> Endpoint:
    """One of several functions of one name."""

    @limit("1/minute", **options)
    async def report(request: Request) -> Response:
        return PlainTextResponse(text)

    return report


def plain(text: str) -> Endpoint:
    @limit("1/minute")
    def report(request: Request) -> Response:
        return PlainTextResponse(text)

    return report


def nameless(text: str) -> Endpoint:
    def answer(request: Request) -> Response:
        return PlainTextResponse(text)

    answer.__name__ = answer.__qualname__ = "<lambda>"
    return limit("1/minute")(answer)


class Controller:
    @limit("1/minute")
    async def report(self, request: Request) -> Response:
        return PlainTextResponse("ok")


class Answer:
    @limit("1/minute")
    async def __call__(self, request: Request) -> Response:
        return PlainTextResponse("ok")


def page() -> type[HTTPEndpoint]:
    class Page(HTTPEndpoint):
        @limit("1/minute")
        async def get(self, request: Request) -> Response:
            return PlainTextResponse("ok")

    return Page


class Base(HTTPEndpoint):
    @limit("1/minute")
    def get(self, request: Request) -> Response:
        return PlainTextResponse("ok")


class One(Base): ...


class Other(Base): ...


def opaque() -> Endpoint:
    """A limited function that nobody sees behind its wrapper."""
    inner = made()

    async def outer(request: Request) -> Any:
        return await inner(request)

    return outer


shared = made()
PAIRS: list[tuple[Any, Any]] = [
    (made(), made()),
    (plain("a"), plain("b")),
    (Controller().report, Controller().report),
    (functools.partial(shared), functools.partial(shared)),
    (page(), page()),
    (One, Other),
    (opaque(), opaque()),
    (nameless("a"), nameless("b")),
]


def starlette(*routes: Any, limits: RateLimiter | None = None) -> Starlette:
    app = Starlette(routes=list(routes))
    app.add_middleware(RateLimitMiddleware, limiter=limits or limiter())
    return app


@pytest.mark.parametrize(("one", "other"), PAIRS)
async def test_two_endpoints_of_one_name_never_share_a_counter(one: Any, other: Any) -> None:
    app = starlette(Route("/one", one), Route("/other", other))
    assert await statuses(app, "/one", "/other", "/one", "/other") == [200, 200, 429, 429]


@pytest.mark.parametrize("make", [made, page, opaque])
async def test_another_worker_counts_the_same_endpoints_by_the_same_routes(
    make: Callable[[], Any],
) -> None:
    """Whatever it has imported before, and in whatever order."""
    limits = limiter()
    workers = [
        starlette(Route("/a", make()), Route("/b", make()), limits=limits),
        starlette(Route("/b", make()), Route("/a", make()), limits=limits),
        starlette(Route("/a", make()), Route("/b", make()), limits=limits),
    ]
    assert [await statuses(each, "/a") for each in workers] == [[200], [429], [429]]
    assert [await statuses(each, "/b") for each in workers] == [[200], [429], [429]]


async def test_one_function_on_two_routes_is_one_endpoint() -> None:
    endpoint, bound = made(), Controller()
    app = starlette(
        Route("/a", endpoint),
        Route("/b", endpoint, methods=["POST"]),
        Route("/c", bound.report),
        Route("/d", bound.report),
    )
    assert await statuses(app, "/a") == [200]
    assert await statuses(app, "/b", method="POST") == [429]
    assert await statuses(app, "/c", "/d") == [200, 429]


async def test_endpoints_of_one_path_and_one_name_are_told_apart_by_method_and_host() -> None:
    app = starlette(
        Host("a.example", app=Router([Route("/", made())])),
        Host("b.example", app=Router([Route("/", made())])),
        Route("/", made(), methods=["POST"]),
        Route("/", made(), methods=["PUT"]),
    )
    for host in ("a.example", "b.example"):
        assert await statuses(app, "/", "/", headers=[("host", host)]) == [200, 429]
    for method in ("POST", "PUT"):
        assert await statuses(app, "/", "/", method=method) == [200, 429]


async def test_a_limited_function_that_endpoints_call_counts_for_all_of_them() -> None:
    @limit("1/minute")
    async def only_one_of_this_name(request: Request) -> Response:
        return PlainTextResponse("ok")

    async def one(request: Request) -> Response:
        return await only_one_of_this_name(request)

    async def other(request: Request) -> Response:
        return await only_one_of_this_name(request)

    app = starlette(Route("/one", one), Route("/other", other))
    assert await statuses(app, "/one", "/other") == [200, 429]


async def test_a_function_that_is_limited_anew_for_each_request_is_limited_all_the_same() -> None:
    async def endpoint(request: Request) -> Any:
        return await made()(request)

    app = starlette(Route("/", endpoint))
    assert await statuses(app, "/", "/", "/") == [200, 429, 429]


@pytest.mark.parametrize("how", ["included", "nested", "mounted"])
async def test_routes_that_a_factory_has_made_count_apart_in_fastapi(how: str) -> None:
    def crud(name: str) -> APIRouter:
        router = APIRouter(prefix="" if how == "mounted" else f"/{name}")

        @router.get("/decorated")
        @limit("1/minute")
        async def decorated() -> str:
            return name

        @router.get("/depends", dependencies=[Depends(RateLimit("1/minute"))])
        def depends() -> str:
            return name

        return router

    app = FastAPI()
    app.add_middleware(RateLimitMiddleware, limiter=limiter())
    for name in ("users", "orders"):
        if how == "mounted":
            sub = FastAPI()
            sub.include_router(crud(name))
            app.mount(f"/{name}", sub)
        elif how == "nested":
            outer = APIRouter()
            outer.include_router(crud(name))
            app.include_router(outer)
        else:
            app.include_router(crud(name))
    for kind in ("decorated", "depends"):
        paths = [f"/users/{kind}", f"/orders/{kind}"]
        assert await statuses(app, *paths, *paths) == [200, 200, 429, 429]


async def test_a_scope_counts_endpoints_together_under_whatever_names() -> None:
    app = starlette(
        Route("/a", made(scope="both", name="a")), Route("/b", made(scope="both", name="b"))
    )
    answer = await ask(app, "/a")
    assert answer.headers["ratelimit"] == '"a";r=0'
    refused = await ask(app, "/b")
    assert (refused.status, refused.problem["violated-policies"]) == (429, ["b"])


async def test_a_scope_never_shares_a_counter_with_a_rule_of_that_name() -> None:
    app = starlette(
        Route("/", made(scope="login")), limits=limiter(Rule("login", "2/minute", by="client"))
    )
    answer = await ask(app, "/")
    assert answer.headers["ratelimit-policy"] == '"login.2";q=1;w=60, "login";q=2;w=60'
    assert answer.headers["ratelimit"] == '"login.2";r=0'


@pytest.mark.parametrize(
    ("endpoint", "name"),
    [
        (made(), "report"),
        (made(name="monthly"), "monthly"),
        (Controller().report, "Controller.report"),
        (page(), "Page.get"),
        (nameless("ok"), "lambda"),
    ],
)
async def test_clients_and_counts_see_a_name_that_can_be_read(endpoint: Any, name: str) -> None:
    limits = limiter()
    app = starlette(Route("/", endpoint), limits=limits)
    assert (await ask(app)).headers["ratelimit-policy"] == f'"{name}";q=1;w=60'
    assert (await ask(app)).problem["violated-policies"] == [name]
    assert limits.counts == {(name, "allowed"): 1, (name, "denied"): 1}
    assert limits.denials.busiest(5)[0][0].startswith(f"{name} ")


async def test_limits_of_one_name_have_names_of_their_own_within_one_response() -> None:
    app = FastAPI(dependencies=[Depends(RateLimit("5/minute"))])
    app.add_middleware(RateLimitMiddleware, limiter=limiter(Rule("Report.2", "9/minute")))

    @app.get("/", dependencies=[Depends(RateLimit("4/minute"))])
    @limit("3/minute")
    @limit("2/minute")
    async def report() -> str:
        return "ok"

    for _ in range(2):
        told = (await ask(app)).headers["ratelimit-policy"]
        assert sorted(told.split(", ")) == [
            '"Report.2";q=9;w=60',
            '"report";q=5;w=60',
            '"report.3";q=4;w=60',
            '"report.4";q=2;w=60',
            '"report.5";q=3;w=60',
        ]
    assert (await ask(app)).problem["violated-policies"] == ["report.4"]


def test_a_name_is_read_like_that_of_a_rule() -> None:
    with pytest.raises(ValueError, match="the name is 'no spaces'"):
        limit("1/minute", name="no spaces")
    with pytest.raises(ValueError, match="the name is ''"):
        RateLimit("1/minute", name="", scope="fine")


def test_an_endpoint_that_no_router_knows_has_no_place() -> None:
    router = Router([Mount("/m", routes=[Route("/x", shared)])])
    assert place_of({"endpoint": shared, "router": router}) == "/m/x GET,HEAD"
    assert place_of({"endpoint": made(), "router": router}) == ""
    assert place_of({}) == ""


# --- paths that are read otherwise further in ----------------------------------------------------


def rooted(**options: Any) -> RateLimitMiddleware:
    app = FastAPI()
    app.root_path = "/api"  # as its argument, which is deprecated since 0.165
    app.post("/login")(lambda: "ok")
    app.get("/items/{item}")(lambda item: "ok")
    rules = [Rule("login", "1/minute", path="/login"), Rule("old", "9/minute", path="/api/login")]
    return RateLimitMiddleware(app, limiter(*rules, **options))


async def test_a_root_path_that_the_application_sets_itself_passes_no_rule() -> None:
    app = rooted()
    assert await statuses(app, "/login", "/api/login", method="POST") == [200, 429]
    app = rooted()
    answer = await ask(app, "/api/login", method="POST")
    assert '"old";q=9;w=60' in answer.headers["ratelimit-policy"]
    assert await statuses(app, "/login", "/api/login", method="POST") == [429, 429]


async def test_a_rule_by_route_knows_the_routes_below_such_a_root_path() -> None:
    app = FastAPI()
    app.root_path = "/api"  # as its argument, which is deprecated since 0.165
    app.get("/items/{item}")(lambda item: "ok")
    outside = RateLimitMiddleware(app, limiter(Rule("r", "1/minute", by="route")))
    assert await statuses(outside, "/api/items/1", "/items/2") == [200, 429]


WRITTEN = ["/static/big.zip", "/static//big.zip", "/static/./big.zip", "/static/x/../big.zip"]


@pytest.mark.parametrize("written", [*WRITTEN, "/static/big.zip/", "/static/big.zip/."])
async def test_a_rule_for_one_file_holds_however_its_path_is_written(
    written: str, tmp_path: Path
) -> None:
    (tmp_path / "big.zip").write_bytes(b"x")
    (tmp_path / "x").mkdir()
    files = StaticFiles(directory=tmp_path)
    rule = Rule("big", "1/minute", path="/static/big.zip")
    app = starlette(Mount("/static", files), limits=limiter(rule))
    assert await statuses(app, written, "/static/big.zip", written) == [200, 429, 429]


async def test_what_a_path_is_taken_for_is_charged_with_it_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    limits = limiter(
        Rule("all", "9/minute", path="/s/{rest:path}"), Rule("a", "1/minute", path="/s/a")
    )
    app = starlette(Mount("/s", StaticFiles(directory=tmp_path)), limits=limits)
    assert await statuses(app, "/s//a", "/s//a", "/s//a") == [200, 429, 429]
    assert (await ask(app, "/s/b")).headers["ratelimit"] == '"all";r=7'
