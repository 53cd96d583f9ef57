"""@limit, @exempt and Depends(RateLimit) in FastAPI, where nothing else may change."""

import functools
import re
import types
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Annotated, Any, Final
from uuid import UUID

import pytest
from fastapi import APIRouter, Body, Depends, FastAPI, WebSocket
from fastapi.params import Depends as DependsParameter
from fastapi.responses import JSONResponse
from fastapi.security import OAuth2PasswordBearer
from pydantic import BaseModel
from starlette.authentication import BaseUser, SimpleUser, UnauthenticatedUser
from starlette.requests import HTTPConnection, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route

from ratelimit import (
    RateLimit,
    RateLimiter,
    RateLimitExceeded,
    RateLimitMiddleware,
    Reservation,
    Rule,
    exempt,
    limit,
)
from ratelimit.asgi.decorators import _fallback
from ratelimit.asgi.openapi import RESPONSES, document
from tests.asgi.test_decorators import remaining
from tests.support import postponed
from tests.support.asgi import (
    QUOTA_EXCEEDED,
    ask,
    call,
    http_scope,
    limiter,
    statuses,
    websocket_scope,
)

ROOT: Final = Path(__file__).resolve().parents[2]
ABOVE = r"^@limit stands above the route decorator of [^ ]+endpoint,"

Endpoint = Callable[..., Any]
Wrap = Callable[[Endpoint], Endpoint]


def fastapi(limits: RateLimiter | None = None, **options: Any) -> FastAPI:
    app = FastAPI(**options)
    app.add_middleware(RateLimitMiddleware, limiter=limits or limiter())
    return app


class Item(BaseModel):
    name: str


def user(request: Request) -> str:
    return request.headers.get("x-user", "nobody")


def build(wrap: Wrap) -> FastAPI:
    """An application with every kind of parameter, each endpoint wrapped."""
    app = fastapi()

    @app.get("/items/{item_id}")
    @wrap
    async def read(item_id: int, q: str | None = None) -> dict[str, Any]:
        return {"item_id": item_id, "q": q}

    @app.post("/items", status_code=201)
    @wrap
    def create(item: Item, who: Annotated[str, Depends(user)]) -> dict[str, str]:
        """Makes one."""
        return {"name": item.name, "who": who}

    @app.get("/keyword")
    @wrap
    async def keyword(*, page: int = 1, who: str = Depends(user)) -> dict[str, Any]:
        return {"page": page, "who": who}

    @app.get("/request")
    @wrap
    async def request_first(request: Request, response: Response) -> dict[str, str]:
        response.headers["x-own"] = "yes"
        return {"path": request.url.path}

    @app.get("/connection")
    @wrap
    def connection(conn: HTTPConnection, response: JSONResponse) -> dict[str, str]:
        response.headers["x-own"] = "yes"
        return {"path": conn.url.path}

    @app.get("/depends")
    @wrap
    def depends(
        response: Annotated[Response, Depends(lambda: PlainTextResponse("given"))],
    ) -> dict[str, str]:
        return {"body": bytes(response.body).decode()}

    @app.get("/response")
    @wrap
    async def response_itself() -> Response:
        return PlainTextResponse("plain")

    @app.get("/none", status_code=204)
    @wrap
    async def none() -> None:
        return None

    @app.put("/body")
    @wrap
    def body(first: Annotated[int, Body()], second: Annotated[int, Body()]) -> int:
        return first + second

    endpoint, sync_endpoint = postponed.endpoints()
    app.get("/postponed/{name}")(wrap(endpoint))
    app.get("/postponed-sync")(wrap(sync_endpoint))
    return app


REQUESTS: list[tuple[str, str, bytes]] = [
    ("GET", "/items/7", b""),
    ("GET", "/items/x", b""),
    ("POST", "/items", b'{"name": "a"}'),
    ("POST", "/items", b"{}"),
    ("GET", "/keyword", b""),
    ("GET", "/request", b""),
    ("GET", "/connection", b""),
    ("GET", "/depends", b""),
    ("GET", "/response", b""),
    ("GET", "/none", b""),
    ("PUT", "/body", b'{"first": 1, "second": 2}'),
    ("GET", "/postponed/ann", b""),
    ("GET", "/postponed-sync", b""),
]


def test_a_limit_leaves_the_openapi_schema_as_it_is() -> None:
    plain, limited = build(lambda endpoint: endpoint), build(limit("9/minute"))
    assert limited.openapi() == plain.openapi()
    assert build(exempt).openapi() == plain.openapi()
    assert len(plain.openapi()["paths"]) == 11


@pytest.mark.parametrize(("method", "path", "body"), REQUESTS)
async def test_a_limit_leaves_parameters_and_answers_as_they_are(
    method: str, path: str, body: bytes
) -> None:
    answers = []
    for wrap in (lambda endpoint: endpoint, limit("9/minute")):
        scope = http_scope(path, method, [("content-type", "application/json"), ("x-user", "ann")])
        incoming = [{"type": "http.request", "body": body}]
        answers.append(await call(build(wrap), scope, incoming))
    plain, limited = answers
    assert plain.status < 500
    assert (limited.status, limited.body) == (plain.status, plain.body)
    own = [field for field in limited.fields if not field[0].startswith("ratelimit")]
    assert own == plain.fields
    # What fails validation never ran, and is not counted by the route.
    assert ("ratelimit" in limited.headers) is (plain.status < 400)


@pytest.mark.parametrize(
    "path", ["/keyword", "/request", "/connection", "/depends", "/response", "/none"]
)
async def test_without_a_middleware_the_endpoint_itself_tells_of_its_limit(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    _fallback.cache_clear()
    app = FastAPI()
    app.router.routes.extend(build(limit("9/minute")).routes)
    answer = await ask(app, path)
    assert answer.status < 300
    assert answer.headers["ratelimit"].endswith(";r=8")
    assert "no-limiter" in caplog.text


async def test_a_limit_on_a_route_of_a_websocket_is_refused_at_the_handshake() -> None:
    app = fastapi()

    @app.websocket("/ws")
    @limit("1/minute")
    async def endpoint(websocket: WebSocket, q: str = "x") -> None:
        await websocket.accept()
        await websocket.close()

    scope = websocket_scope("/ws", extensions={"websocket.http.response": {}})
    connect = [{"type": "websocket.connect"}]
    assert (await call(app, dict(scope), connect)).messages[0]["type"] == "websocket.accept"
    assert (await call(app, dict(scope), connect)).status == 429


async def test_a_dependency_of_a_websocket_refuses_at_the_handshake() -> None:
    app = fastapi()

    @app.websocket("/ws", dependencies=[Depends(RateLimit("1/minute"))])
    async def endpoint(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.close()

    scope = websocket_scope("/ws", extensions={"websocket.http.response": {}})
    connect = [{"type": "websocket.connect"}]
    assert (await call(app, dict(scope), connect)).messages[0]["type"] == "websocket.accept"
    assert (await call(app, dict(scope), connect)).status == 429
    closed = await call(app, websocket_scope("/ws"), connect)
    assert closed.messages == [
        {"type": "websocket.close", "code": 1008, "reason": "Too Many Requests; try again in 61 s"}
    ]


# --- routers, mounts, sub-applications -----------------------------------------------------------


def make_router(wrap: Wrap, **options: Any) -> APIRouter:
    router = APIRouter(**options)

    @router.get("/items/{item_id}")
    @wrap
    async def read(item_id: int) -> int:
        return item_id

    return router


async def test_limits_work_in_routers_that_are_included_and_nested() -> None:
    """Which fails open elsewhere since FastAPI 0.137."""
    outer = APIRouter(prefix="/outer")
    outer.include_router(make_router(limit("1/minute", scope="nested"), prefix="/inner"))
    app = fastapi()
    app.include_router(outer, prefix="/api")
    app.include_router(make_router(limit("1/minute", scope="plain")), prefix="/v1")
    assert await statuses(app, "/api/outer/inner/items/1", "/api/outer/inner/items/2") == [200, 429]
    assert await statuses(app, "/v1/items/1", "/v1/items/2") == [200, 429]


async def test_limits_work_in_mounts_and_sub_applications() -> None:
    sub = FastAPI()
    sub.include_router(make_router(limit("1/minute", scope="sub")), prefix="/in")
    app = fastapi()
    app.mount("/sub", sub)
    app.router.routes.append(
        Mount("/mount", routes=[Route("/x", limit("1/minute", scope="mount")(plain_endpoint))])
    )
    assert await statuses(app, "/sub/in/items/1", "/sub/in/items/2") == [200, 429]
    assert await statuses(app, "/mount/x", "/mount/x") == [200, 429]


async def plain_endpoint(request: Request) -> Response:
    return PlainTextResponse("ok")


def included(app: FastAPI, wrap: Wrap) -> None:
    app.include_router(make_router(wrap), prefix="/v1")
    app.include_router(make_router(wrap), prefix="/v2")


def included_router_of_routers(app: FastAPI, wrap: Wrap) -> None:
    for version in ("/v1", "/v2"):
        outer = APIRouter()
        outer.include_router(make_router(wrap), prefix=version)
        app.include_router(outer)


def mounted(app: FastAPI, wrap: Wrap) -> None:
    for version in ("/v1", "/v2"):
        sub = FastAPI()
        sub.include_router(make_router(wrap))
        app.mount(version, sub)


def mounted_with_their_own_middleware(app: FastAPI, wrap: Wrap) -> None:
    limits = limiter(Rule("api", "2/minute", by="route"))
    for version in ("/v1", "/v2"):
        sub = fastapi(limits)
        sub.include_router(make_router(wrap))
        app.mount(version, sub)


@pytest.mark.parametrize(
    "arrange", [included, included_router_of_routers, mounted, mounted_with_their_own_middleware]
)
async def test_a_route_is_its_template_with_all_its_prefixes(
    arrange: Callable[[FastAPI, Wrap], None],
) -> None:
    """/v1/items/{id} and /v2/items/{id} count apart, /v1/items/1 and /v1/items/2 together."""
    own = arrange is mounted_with_their_own_middleware
    app = FastAPI() if own else fastapi(limiter(Rule("api", "2/minute", by="route")))
    arrange(app, lambda endpoint: endpoint)
    assert await statuses(app, "/v1/items/1", "/v1/items/2", "/v1/items/3") == [200, 200, 429]
    assert await statuses(app, "/v2/items/1", "/v2/items/2", "/v2/items/3") == [200, 200, 429]
    assert await statuses(app, "/v2/items/1", client=("198.51.100.1", 1)) == [429]


async def test_a_mount_whose_path_has_a_parameter_gives_nobody_a_fresh_quota() -> None:
    sub = fastapi(limiter(Rule("api", "1/minute", by="route")))
    sub.include_router(make_router(lambda endpoint: endpoint))
    app = FastAPI()
    app.mount("/{tenant}", sub)
    assert await statuses(app, "/a/items/1", "/b/items/1", "/c/items/2") == [200, 429, 429]


@pytest.mark.parametrize("arrange", [included, included_router_of_routers, mounted])
async def test_an_exempt_endpoint_is_exempt_wherever_it_is_included(
    arrange: Callable[[FastAPI, Wrap], None],
) -> None:
    app = fastapi(limiter(Rule("api", "1/minute")))
    arrange(app, exempt)
    assert await statuses(app, "/v1/items/1", "/v2/items/1", "/v1/items/1") == [200] * 3
    assert await statuses(app, "/v1/other", "/v1/other") == [404, 429]


# --- Depends -------------------------------------------------------------------------------------


def test_a_dependency_leaves_the_openapi_schema_as_it_is() -> None:
    schemas = []
    for dependencies in ([], [Depends(RateLimit("9/minute"))]):
        app = FastAPI(dependencies=dependencies)
        app.include_router(make_router(lambda endpoint: endpoint, dependencies=dependencies))
        schemas.append(app.openapi())
    assert schemas[0] == schemas[1]


@pytest.mark.parametrize("place", ["route", "router", "include", "app"])
async def test_a_dependency_limits_a_route_a_router_or_the_application(place: str) -> None:
    once: list[DependsParameter] = [Depends(RateLimit("1/minute"))]
    where: dict[str, Any] = {
        each: {"dependencies": once} if each == place else {}
        for each in ("route", "router", "include", "app")
    }
    app = fastapi(**where["app"])
    router = APIRouter(**where["router"])

    @router.get("/a", **where["route"])
    async def a() -> str:
        return "a"

    @router.get("/b", **where["route"])
    def b() -> str:
        return "b"

    app.include_router(router, **where["include"])
    answer = await ask(app, "/a")
    assert answer.status == 200
    assert answer.headers["ratelimit"].endswith(";r=0")
    answer = await ask(app, "/a")
    assert answer.status == 429
    assert answer.problem["type"] == QUOTA_EXCEEDED
    assert await statuses(app, "/b", "/b") == [200, 429]


async def test_dependencies_with_one_scope_share_it() -> None:
    shared = RateLimit("2/minute", scope="shared")
    app = fastapi(dependencies=[Depends(shared)])
    for path in ("/a", "/b"):
        app.get(path)(lambda: "ok")
    assert await statuses(app, "/a", "/b", "/a") == [200, 200, 429]


async def test_the_same_limit_in_one_scope_counts_once_per_request_wherever_it_is_written() -> None:
    """On the application, on a route and on its endpoint; another cost is another limit."""
    app = fastapi(dependencies=[Depends(RateLimit("3/minute", scope="shared"))])

    @app.get("/", dependencies=[Depends(RateLimit("3/minute", scope="shared"))])
    @limit("3/minute", scope="shared")
    async def endpoint() -> str:
        return "ok"

    answer = await ask(app)
    assert answer.headers["ratelimit-policy"] == '"shared";q=3;w=60'
    assert answer.headers["ratelimit"] == '"shared";r=2'
    assert await statuses(app, "/", "/", "/") == [200, 200, 429]

    app = fastapi(dependencies=[Depends(RateLimit("4/minute", scope="shared"))])

    @app.get("/")
    @limit("4/minute", scope="shared", cost=2)
    async def dear() -> str:
        return "ok"

    assert (await ask(app)).headers["ratelimit"].startswith('"shared.2";r=1')


async def test_two_reservations_in_one_scope_are_each_their_own() -> None:
    """An endpoint commits what it was given by its own handle, whatever another one took."""
    app = fastapi(
        dependencies=[Depends(RateLimit("12/minute", scope="units", unit="units", cost=3))]
    )

    @app.get("/")
    async def endpoint(
        units: Annotated[
            Reservation, Depends(RateLimit("12/minute", scope="units", unit="units", cost=3))
        ],
    ) -> None:
        await units.commit(1)

    assert (await ask(app)).headers["ratelimit"].startswith('"units.2";r=6')
    assert (await ask(app)).headers["ratelimit"].startswith('"units.2";r=2')


async def test_two_dependencies_that_count_by_different_things_both_count() -> None:
    app = fastapi()

    @app.get(
        "/",
        dependencies=[
            Depends(RateLimit("1/minute", by="header:x-user")),
            Depends(RateLimit("1/minute", by="global")),
        ],
    )
    async def endpoint() -> str:
        return "ok"

    assert (await ask(app, headers=[("x-user", "ann")])).status == 200
    assert (await ask(app, headers=[("x-user", "bob")])).status == 429


async def test_a_refusal_by_a_dependency_gives_back_what_the_middleware_charged() -> None:
    limits = limiter(Rule("api", "9/minute"))
    app = fastapi(limits, dependencies=[Depends(RateLimit("1/minute"))])
    app.get("/")(lambda: "ok")
    assert await statuses(app, "/", "/", "/") == [200, 429, 429]
    assert await remaining(limits, "api", "9/minute") == 8


async def test_without_a_middleware_a_dependency_limits_and_tells_by_itself() -> None:
    app = FastAPI(dependencies=[Depends(RateLimit("1/minute", limiter=limiter()))])
    app.get("/")(lambda: "ok")
    answer = await ask(app)
    assert answer.status == 200
    assert answer.headers["ratelimit"].endswith(";r=0")
    answer = await ask(app)
    assert answer.status == 429
    assert answer.problem["type"] == QUOTA_EXCEEDED
    assert "retry-after" in answer.headers


async def test_the_applications_own_handler_answers_for_a_dependency() -> None:
    app = fastapi(dependencies=[Depends(RateLimit("1/minute"))])
    app.get("/")(lambda: "ok")

    @app.exception_handler(RateLimitExceeded)
    async def handler(request: Request, error: RateLimitExceeded) -> Response:
        assert error.decisions
        return PlainTextResponse("mine", 420, headers=error.headers)

    await ask(app)
    answer = await ask(app)
    assert (answer.status, answer.body) == (420, b"mine")
    assert answer.headers["retry-after"]
    assert answer.headers["ratelimit"].endswith(";t=" + answer.headers["retry-after"])


async def test_dependencies_without_a_middleware_give_back_what_an_earlier_one_took() -> None:
    limits = limiter()
    app = FastAPI()

    @app.get(
        "/",
        dependencies=[
            Depends(RateLimit("9/minute", scope="wide", limiter=limits)),
            Depends(RateLimit("1/minute", scope="narrow", limiter=limits)),
        ],
    )
    @limit("9/minute", scope="inner", limiter=limits)
    async def endpoint() -> str:
        return "ok"

    answers = [await ask(app) for _ in range(3)]
    assert [answer.status for answer in answers] == [200, 429, 429]
    assert answers[0].headers["ratelimit-policy"] == (
        '"narrow";q=1;w=60, "wide";q=9;w=60, "inner";q=9;w=60'
    )
    assert answers[1].problem["violated-policies"] == ["narrow"]
    assert await remaining(limits, "wide~", "9/minute") == 8
    assert await remaining(limits, "inner~", "9/minute") == 8


async def test_dependencies_and_a_decorator_on_one_route_are_told_apart() -> None:
    app = fastapi()
    minute, hour = RateLimit("9/minute"), RateLimit("9/hour")

    @app.get("/", dependencies=[Depends(minute), Depends(hour), Depends(minute)])
    @limit("9/minute")
    async def endpoint() -> str:
        return "ok"

    for left in (8, 7):
        answer = await ask(app)
        policies = answer.headers["ratelimit-policy"].split(", ")
        assert [policy.partition(";")[2] for policy in policies] == [
            "q=9;w=60", "q=9;w=3600", "q=9;w=60",
        ]  # fmt: skip
        names = [policy.partition(";")[0].strip('"') for policy in policies]
        assert len(set(names)) == 3
        assert names[1] == f"{names[0]}.2"
        assert answer.headers["ratelimit"].endswith(f";r={left}")


async def test_a_dependency_may_be_for_some_methods_of_its_routes() -> None:
    app = fastapi(dependencies=[Depends(RateLimit("1/minute", methods=["POST"]))])
    app.api_route("/", methods=["GET", "POST"])(lambda: "ok")
    assert await statuses(app, "/", "/", method="POST") == [200, 429]
    assert await statuses(app, "/", "/", method="GET") == [200, 200]


# --- by= a dependency ----------------------------------------------------------------------------


class Account:
    """A user as an application has it."""

    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)


class Named(BaseUser):
    """A user of Starlette's kind who has no ``identity``."""

    is_authenticated = True

    def __init__(self, username: str) -> None:
        self.username = username


ONE = UUID(int=1)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("ann", "bob"),
        (1, 2),
        (ONE, UUID(int=2)),
        (Account(id=1, name="same"), Account(id=2, name="same")),
        (Account(username="same", id=1), Account(username="same", id=2)),
        (Account(identity=ONE, id=1), Account(identity=UUID(int=2), id=1)),
        (Account(username=None, id=1), Account(username=None, id=2)),
        (SimpleUser("ann"), SimpleUser("bob")),
        (Named("ann"), Named("bob")),
        (Account(username="", id=1), Account(username="", id=2)),
    ],
)
async def test_a_dependency_of_the_application_says_who_is_counted(first: Any, second: Any) -> None:
    given: list[Any] = []

    async def current_user() -> Any:
        return given[0]

    app = fastapi(dependencies=[Depends(RateLimit("1/minute", by=current_user))])
    app.get("/")(lambda: "ok")
    for who, expected in [(first, 200), (second, 200), (first, 429), (second, 429)]:
        given[:] = [who]
        assert await statuses(app, "/") == [expected]


async def test_what_identifies_is_resolved_once_per_request() -> None:
    asked: list[str] = []

    def current_user(request: Request) -> str:
        asked.append(request.url.path)
        return "ann"

    app = fastapi()

    @app.get("/", dependencies=[Depends(RateLimit("1/minute", by=current_user))])
    async def endpoint(who: Annotated[str, Depends(current_user)]) -> str:
        return who

    assert (await ask(app)).body == b'"ann"'
    assert asked == ["/"]
    assert await statuses(app, "/", client=("198.51.100.1", 1)) == [429]


async def test_what_identifies_may_be_overridden_as_every_dependency() -> None:
    app = fastapi(dependencies=[Depends(RateLimit("1/minute", by=user))])
    app.get("/")(lambda: "ok")
    app.dependency_overrides[user] = lambda x_other: x_other
    assert await statuses(app, "/") == [422]
    app.dependency_overrides[user] = lambda: "everybody"
    assert await statuses(app, "/", headers=[("x-user", "ann")]) == [200]
    assert await statuses(app, "/", headers=[("x-user", "bob")]) == [429]


async def test_a_dependency_may_be_one_part_of_an_identity() -> None:
    app = fastapi(dependencies=[Depends(RateLimit("1/minute", by=["client", user]))])
    app.get("/")(lambda: "ok")
    ann, bob = [("x-user", "ann")], [("x-user", "bob")]
    assert await statuses(app, "/", "/", headers=ann) == [200, 429]
    assert await statuses(app, "/", headers=bob) == [200]
    assert await statuses(app, "/", headers=ann, client=("198.51.100.1", 1)) == [200]


@pytest.mark.parametrize("given", [None, "", UnauthenticatedUser()])
async def test_a_dependency_that_gives_nobody_is_a_missing_identity(given: Any) -> None:
    def nobody() -> Any:
        return given

    app = fastapi()
    for word in ("client", "skip", "refuse"):
        on = RateLimit("1/minute", by=nobody, on_missing=word)
        app.get(f"/{word}", dependencies=[Depends(on)])(lambda: "ok")
    assert await statuses(app, "/client", "/client") == [200, 429]
    assert await statuses(app, "/client", client=("198.51.100.1", 1)) == [200]
    assert await statuses(app, "/skip", "/skip") == [200, 200]
    assert await statuses(app, "/refuse") == [403]


@pytest.mark.parametrize("given", [3.5, True, ["ann"], Account(name="ann"), Account(id=2.5)])
async def test_a_dependency_that_gives_what_identifies_nobody_is_told_in_the_log(
    given: Any, caplog: pytest.LogCaptureFixture
) -> None:
    app = fastapi()
    for word in ("allow", "deny"):
        on = RateLimit("1/minute", by=lambda: given, on_store_failure=word)
        app.get(f"/{word}", dependencies=[Depends(on)])(lambda: "ok")
    assert await statuses(app, "/allow", "/allow", "/deny") == [200, 429, 503]
    kind = type(given).__name__
    assert (
        f"limiter-failed: TypeError: a dependency named in by gave {kind}; it gives" in caplog.text
    )


def test_two_dependencies_in_by_are_refused() -> None:
    with pytest.raises(TypeError, match=r"^by names 2 dependencies; it may name one"):
        RateLimit("1/minute", by=[user, lambda: None])


def test_a_limit_that_makes_no_rule_is_refused_where_it_is_written() -> None:
    cases: list[tuple[dict[str, Any], type[Exception]]] = [
        ({"limit": "10 per fortnite"}, ValueError),
        ({"limit": "1/minute", "by": 7}, TypeError),
        ({"limit": "1/minute", "path": "/x"}, TypeError),
        ({"limit": "1/minute", "scope": "no spaces"}, ValueError),
    ]
    for options, error in cases:
        with pytest.raises(error):
            RateLimit(**options)


# --- OpenAPI -------------------------------------------------------------------------------------


def test_what_a_dependency_in_by_asks_for_is_in_the_openapi_as_if_the_endpoint_did() -> None:
    bearer = OAuth2PasswordBearer("token")

    def current_user(token: Annotated[str, Depends(bearer)]) -> str:
        return token

    schemas = []
    for dependency in (current_user, RateLimit("9/minute", by=current_user)):
        app = FastAPI(dependencies=[Depends(dependency)])
        app.get("/")(lambda: "ok")
        schemas.append(app.openapi())
    assert schemas[0] == schemas[1]
    assert schemas[0]["paths"]["/"]["get"]["security"] == [{"OAuth2PasswordBearer": []}]


def documented(app: FastAPI) -> dict[str, list[str]]:
    """The statuses of each operation, by its method and path."""
    return {
        f"{method} {path}": sorted(operation["responses"])
        for path, operations in app.openapi()["paths"].items()
        for method, operation in operations.items()
    }


class Controller:
    @limit("9/minute")
    def method(self) -> str:
        return "ok"


def limited_everywhere() -> FastAPI:
    """An application with a limit of each kind, and routes without."""
    app = FastAPI()
    router = APIRouter(dependencies=[Depends(RateLimit("9/minute"))])
    for parent in (app, router):
        parent.get("/plain", name="plain")(lambda: "ok")
        parent.get("/decorated")(limit("9/minute")(lambda: "ok"))
    deny, refuse = (
        RateLimit("9/minute", on_store_failure="deny"),
        RateLimit("9/minute", by=user, on_missing="refuse"),
    )
    app.get("/deny", dependencies=[Depends(deny)])(lambda: "ok")
    app.get("/refuse", dependencies=[Depends(refuse)])(lambda: "ok")
    app.get("/shadow", dependencies=[Depends(RateLimit("9/minute", mode="shadow"))])(lambda: "ok")
    denying = limiter(on_store_failure="deny")
    app.get("/its-limiter")(limit("9/minute", limiter=denying)(lambda: "ok"))
    app.get("/partial", name="partial")(functools.partial(Controller.method, Controller()))
    app.get("/method")(Controller().method)
    app.get("/hidden", include_in_schema=False)(limit("9/minute")(lambda: "ok"))

    def guard(who: Annotated[None, Depends(RateLimit("9/minute"))]) -> None: ...

    app.get("/nested", dependencies=[Depends(guard)])(lambda: "ok")
    app.post("/own", responses={429: {"description": "Mine"}})(limit("9/minute")(lambda: "ok"))
    outer = APIRouter(prefix="/outer")
    outer.include_router(router, prefix="/inner")
    app.include_router(outer)
    return app


def test_the_openapi_tells_of_limits_where_it_is_asked_to() -> None:
    app = limited_everywhere()
    document(app)
    assert documented(app) == {
        "get /plain": ["200"],
        "get /decorated": ["200", "429"],
        "get /deny": ["200", "429", "503"],
        "get /refuse": ["200", "403", "429"],
        "get /shadow": ["200"],
        "get /its-limiter": ["200", "429", "503"],
        "get /partial": ["200", "429"],
        "get /method": ["200", "429"],
        "get /nested": ["200", "429"],
        "post /own": ["200", "429"],
        "get /outer/inner/plain": ["200", "429"],
        "get /outer/inner/decorated": ["200", "429"],
    }
    paths = app.openapi()["paths"]
    assert paths["/own"]["post"]["responses"]["429"] == {"description": "Mine"}
    told = paths["/deny"]["get"]["responses"]
    assert list(told["429"]["content"]) == list(told["503"]["content"])
    assert list(told["429"]["content"]) == ["application/problem+json"]
    assert "Retry-After" in told["429"]["headers"]
    assert app.openapi() is app.openapi()


def test_apart_from_its_answers_the_openapi_of_a_limit_stays_as_it_is() -> None:
    plain, told = limited_everywhere(), limited_everywhere()
    document(told)
    schema = told.openapi()
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            if path != "/own":
                for status in set(operation["responses"]) & {"403", "429", "503"}:
                    del operation["responses"][status]
            assert operation == plain.openapi()["paths"][path][method]
    assert schema == plain.openapi()


def test_a_route_that_is_added_later_is_documented_as_well() -> None:
    app = FastAPI()
    document(app)
    assert documented(app) == {}
    app.openapi_schema = None
    app.get("/")(limit("9/minute")(lambda: "ok"))
    assert documented(app) == {"get /": ["200", "429"]}


async def test_what_is_documented_is_what_is_answered() -> None:
    app = fastapi()
    app.get("/", responses=RESPONSES)(limit("1/minute")(lambda: "ok"))
    await ask(app)
    answer = await ask(app)
    told = app.openapi()["paths"]["/"]["get"]["responses"]["429"]
    assert documented(app) == {"get /": ["200", "403", "429", "503"]}
    schema = told["content"][answer.headers["content-type"]]["schema"]
    assert answer.problem.keys() == schema["properties"].keys()
    assert set(schema["required"]) <= answer.problem.keys()
    assert {name.lower() for name in told["headers"]} <= answer.headers.keys()


# --- docs/routes.md ------------------------------------------------------------------------------


async def test_the_examples_of_the_documentation_are_one_application_that_does_what_it_says() -> (
    None
):
    text = (ROOT / "docs" / "routes.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    module = types.ModuleType("routes_md")
    exec("\n\n".join(blocks), module.__dict__)
    app: FastAPI = module.app
    ann, root = [("x-user", "ann")], [("x-user", "root")]
    assert await statuses(app, *["/report"] * 6) == [200] * 5 + [429]
    assert await statuses(app, "/health") == [200]
    assert await statuses(app, *["/mail"] * 4, headers=ann) == [200] * 3 + [429]
    assert await statuses(app, "/mail") == [200]
    assert await statuses(app, "/search", "/suggest", "/search", "/suggest", "/search") == [
        200, 200, 200, 200, 429,
    ]  # fmt: skip
    assert await statuses(app, "/rooms/a", "/rooms/a", "/rooms/b", "/rooms/a") == [200] * 3 + [429]
    preview = {"query_string": b"preview=1"}
    assert await statuses(app, "/picture", "/picture", **preview) == [200, 200]
    assert await statuses(app, "/picture", "/picture") == [200, 429]
    assert await statuses(app, "/quota", "/quota") == [200, 429]
    assert await statuses(app, "/quota", "/quota", "/quota", headers=ann) == [200, 200, 429]
    assert await statuses(app, "/quota", "/quota", headers=root) == [200, 200]
    pages = {"query_string": b"pages=6"}
    assert await statuses(app, "/print", "/print", **pages) == [200, 429]
    assert await statuses(app, "/print", "/print", headers=root, **pages) == [200, 200]
    assert await statuses(app, "/notes", "/notes", method="POST") == [200, 429]
    assert await statuses(app, "/notes", "/notes", "/notes") == [200, 200, 429]
    told = documented(app)
    assert "429" in told["get /report"]
    assert "429" in told["get /search"]
    assert "429" not in told["get /health"]


# --- misplaced -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["app", "router", "included", "add_api_route", "websocket"])
@pytest.mark.parametrize("between", [None, exempt, limit("2/minute")])
def test_a_limit_above_the_route_decorator_is_refused_at_once(
    kind: str, between: Wrap | None
) -> None:
    app, router = FastAPI(), APIRouter()
    registers: dict[str, Any] = {
        "app": app.get("/"),
        "router": router.get("/"),
        "included": router.get("/"),
        "websocket": app.websocket("/"),
    }

    async def endpoint(q: str = "") -> str:
        return q

    function: Endpoint = endpoint
    if kind == "add_api_route":
        function = between(function) if between else function
        app.add_api_route("/", function)
    else:
        function = registers[kind](function)
        function = between(function) if between is exempt else function
    if kind == "included":
        app.include_router(router, prefix="/v1")
    with pytest.raises(RuntimeError, match=ABOVE):
        limit("1/minute")(function)


def test_a_generator_endpoint_is_refused_with_the_way_out() -> None:
    async def stream() -> AsyncIterator[str]:
        yield "data"

    with pytest.raises(TypeError, match=r"use Depends\(RateLimit\(\.\.\.\)\) on its route$"):
        limit("1/minute")(stream)
