"""Beside other middleware: what each order gives, and docs/middleware-order.md held to it."""

import gzip
import importlib.util
import re
from collections.abc import Callable
from ipaddress import ip_network
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.authentication import AuthCredentials, AuthenticationBackend, SimpleUser
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from ratelimit import RateLimiter, RateLimitMiddleware, Rule
from tests.support.asgi import CLIENT, QUOTA_EXCEEDED, Answer, ask, limiter

ROOT = Path(__file__).resolve().parents[2]
ORIGIN = "https://app.example"
FROM_ORIGIN = [("origin", ORIGIN)]
PREFLIGHT = [*FROM_ORIGIN, ("access-control-request-method", "GET")]
TOLD = ["Retry-After", "RateLimit", "RateLimit-Policy"]

CORS = Middleware(CORSMiddleware, allow_origins=[ORIGIN], expose_headers=TOLD)
GZIP = Middleware(GZipMiddleware, minimum_size=10)


def limited(limits: RateLimiter) -> Middleware:
    return Middleware(RateLimitMiddleware, limiter=limits)


async def ok(request: Request) -> Response:
    return PlainTextResponse("test" * 50)


def application(*middleware: Middleware) -> Starlette:
    """One route behind these, the outermost first."""
    return Starlette(routes=[Route("/", ok)], middleware=middleware)


async def refused(app: Any, **request: Any) -> Answer:
    """The second answer under a quota of one."""
    assert (await ask(app, **request)).status == 200
    answer = await ask(app, **request)
    assert answer.status == 429
    return answer


# --- CORS ----------------------------------------------------------------------------------------


def readable(answer: Answer) -> set[str]:
    """The fields that a browser shows to a script of `ORIGIN`, beside those that it always does."""
    headers = answer.headers
    if headers.get("access-control-allow-origin") != ORIGIN:
        return set()
    exposed = headers.get("access-control-expose-headers", "").lower().split(", ")
    return {name for name in exposed if name in headers}


async def test_outside_the_limiter_cors_lets_a_script_read_a_refusal_and_its_fields() -> None:
    app = application(CORS, limited(limiter(Rule("api", "1/minute"))))
    answer = await refused(app, headers=FROM_ORIGIN)
    assert readable(answer) == {"retry-after", "ratelimit", "ratelimit-policy"}
    assert answer.headers["vary"].lower().split(", ").count("origin") == 1
    assert answer.problem["type"] == QUOTA_EXCEEDED


async def test_inside_the_limiter_cors_leaves_a_refusal_that_no_script_can_read() -> None:
    app = application(limited(limiter(Rule("api", "1/minute"))), CORS)
    assert readable(await ask(app, headers=FROM_ORIGIN)) == {"ratelimit", "ratelimit-policy"}
    answer = await ask(app, headers=FROM_ORIGIN)
    assert answer.status == 429
    assert readable(answer) == set()


async def test_outside_the_limiter_cors_answers_preflights_which_then_cost_nothing() -> None:
    limits = limiter(Rule("api", "1/minute"))
    app = application(CORS, limited(limits))
    for _ in range(3):
        answer = await ask(app, method="OPTIONS", headers=PREFLIGHT)
        assert answer.status == 200
        assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert not limits.counts
    assert (await ask(app, headers=FROM_ORIGIN)).status == 200


def codes(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the library has warned of, by its codes."""
    named = [record for record in caplog.records if record.name == "ratelimit"]
    return [record.getMessage().partition(":")[0] for record in named]


async def test_a_limiter_that_is_put_outside_of_cors_warns_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = application(limited(limiter(Rule("api", "1/minute"))), GZIP, CORS)
    await ask(app)
    await ask(app)
    assert codes(caplog) == ["cors-inside"]


async def test_a_limiter_around_an_application_with_cors_of_its_own_warns(
    caplog: pytest.LogCaptureFixture,
) -> None:
    RateLimitMiddleware(application(GZIP, CORS), limiter(Rule("api", "1/minute")))
    assert codes(caplog) == ["cors-inside"]


@pytest.mark.parametrize("middleware", [[CORS], [GZIP, CORS, GZIP], []])
async def test_a_limiter_inside_of_cors_or_without_it_warns_of_nothing(
    middleware: list[Middleware], caplog: pytest.LogCaptureFixture
) -> None:
    await ask(application(*middleware, limited(limiter(Rule("api", "1/minute"))), GZIP))
    assert codes(caplog) == []


@pytest.mark.parametrize(
    ("rule", "settings", "free"),
    [
        ({}, {}, True),
        ({"methods": ["GET", "POST"]}, {"preflights": "count"}, True),
        ({}, {"preflights": "count"}, False),
        ({"methods": ["GET", "OPTIONS"]}, {}, False),
    ],
)
async def test_a_preflight_that_reaches_the_limiter_is_free_unless_it_is_meant(
    rule: dict[str, Any], settings: dict[str, Any], free: bool
) -> None:
    app = application(limited(limiter(Rule("api", "1/minute", **rule), **settings)), CORS)
    for _ in range(2):
        await ask(app, method="OPTIONS", headers=PREFLIGHT)
    assert (await ask(app, method="OPTIONS", headers=PREFLIGHT)).status == (200 if free else 429)


# --- GZip ----------------------------------------------------------------------------------------


def body_of(answer: Answer) -> bytes:
    """The body as a client reads it; its length has to be the one that was told."""
    assert int(answer.headers["content-length"]) == len(answer.body)
    if answer.headers.get("content-encoding") == "gzip":
        return gzip.decompress(answer.body)
    return answer.body


@pytest.mark.parametrize("outside", [True, False], ids=["gzip outside", "gzip inside"])
async def test_compression_keeps_the_fields_and_the_length_in_both_orders(outside: bool) -> None:
    limits = limited(limiter(Rule("api", "1/minute")))
    app = application(GZIP, limits) if outside else application(limits, GZIP)
    wants = [("accept-encoding", "gzip")]
    allowed = await ask(app, headers=wants)
    assert allowed.headers["content-encoding"] == "gzip"
    assert body_of(allowed) == b"test" * 50
    assert allowed.headers["ratelimit"] == '"api";r=0'
    answer = await ask(app, headers=wants)
    assert answer.status == 429
    assert (answer.headers.get("content-encoding") == "gzip") is outside
    assert QUOTA_EXCEEDED.encode() in body_of(answer)
    assert int(answer.headers["retry-after"]) > 0


# --- authentication and sessions -----------------------------------------------------------------


class Named(AuthenticationBackend):
    """Believes what a client says its name is, and remembers that it was asked."""

    def __init__(self) -> None:
        self.asked = 0

    async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, SimpleUser] | None:
        self.asked += 1
        name = conn.headers.get("x-name")
        return (AuthCredentials(), SimpleUser(name)) if name else None


def named(name: str) -> dict[str, Any]:
    return {"headers": [("x-name", name)]}


async def test_inside_the_authentication_a_rule_by_user_counts_each_user() -> None:
    users = limited(limiter(Rule("users", "1/minute", by="user")))
    app = application(Middleware(AuthenticationMiddleware, backend=Named()), users)
    await refused(app, **named("alice"))
    await refused(app, **named("bob"))


async def test_outside_the_authentication_a_rule_by_user_counts_the_client() -> None:
    users = limited(limiter(Rule("users", "1/minute", by="user")))
    app = application(users, Middleware(AuthenticationMiddleware, backend=Named()))
    assert (await ask(app, **named("alice"))).status == 200
    assert (await ask(app, **named("bob"))).status == 429


async def test_outside_the_authentication_a_refused_client_asks_nothing_of_it() -> None:
    backend = Named()
    clients = limited(limiter(Rule("clients", "1/minute")))
    app = application(clients, Middleware(AuthenticationMiddleware, backend=backend))
    await refused(app, **named("alice"))
    await ask(app, **named("bob"))
    assert backend.asked == 1


class Sessions:
    """Leaves in the scope what Starlette's own leaves there, with no cookie to be signed."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        cart = HTTPConnection(scope).headers.get("x-cart")
        await self.app({**scope, "session": {"cart": cart} if cart else {}}, receive, send)


@pytest.mark.parametrize("inside", [True, False])
async def test_an_identity_that_reads_the_session_works_inside_the_sessions(inside: bool) -> None:
    def cart(connection: HTTPConnection) -> str | None:
        session: dict[str, str] = connection.scope.get("session", {})
        return session.get("cart")

    limits = limited(limiter(Rule("carts", "1/minute", by="cart"), identities={"cart": cart}))
    sessions = Middleware(Sessions)
    app = application(sessions, limits) if inside else application(limits, sessions)
    answers = [await ask(app, headers=[("x-cart", name)]) for name in ("first", "second", "first")]
    assert [answer.status for answer in answers] == [200, 200 if inside else 429, 429]


# --- middlewares of Starlette's other kind -------------------------------------------------------


class Passing(BaseHTTPMiddleware):
    """The kind that puts a stream and a task between."""

    async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        response = await call_next(request)
        response.headers["x-passed"] = "yes"
        return response


@pytest.mark.parametrize("outside", [True, False])
async def test_a_base_http_middleware_may_stand_on_either_side(outside: bool) -> None:
    limits = limited(limiter(Rule("api", "1/minute")))
    passing = Middleware(Passing)
    app = application(passing, limits) if outside else application(limits, passing)
    allowed = await ask(app)
    assert (allowed.headers["x-passed"], allowed.headers["ratelimit"]) == ("yes", '"api";r=0')
    answer = await ask(app)
    assert answer.status == 429
    assert ("x-passed" in answer.headers) is outside


# --- proxies -------------------------------------------------------------------------------------

CLIENTS = ["203.0.113.5", "203.0.113.6"]
PROXY = ("10.0.0.1", 50_000)


def forwarded(*addresses: str) -> dict[str, Any]:
    """What arrives from the proxy: what the client wrote, and what the proxy appended."""
    return {"client": PROXY, "headers": [("x-forwarded-for", ", ".join(addresses))]}


ByProxy = Callable[[], Any]


def read_by_the_limiter() -> Any:
    rules = limiter(Rule("api", "1/minute"), trusted_proxies=[ip_network("10.0.0.0/8")])
    return application(limited(rules))


def read_by_the_server() -> Any:
    return ProxyHeadersMiddleware(
        application(limited(limiter(Rule("api", "1/minute")))),  # type: ignore[arg-type]
        trusted_hosts="10.0.0.0/8",
    )


def read_by_both() -> Any:
    return ProxyHeadersMiddleware(read_by_the_limiter(), trusted_hosts="10.0.0.0/8")


@pytest.mark.parametrize("build", [read_by_the_limiter, read_by_the_server, read_by_both])
async def test_behind_a_proxy_a_client_is_counted_by_what_the_proxy_appended(
    build: ByProxy,
) -> None:
    app = build()
    for client in CLIENTS:
        assert (await ask(app, **forwarded("192.0.2.66", client))).status == 200
        assert (await ask(app, **forwarded("192.0.2.67", client))).status == 429


async def test_a_server_that_believes_every_peer_lets_a_client_choose_its_own_address() -> None:
    """Why the manual says not to use ``--forwarded-allow-ips='*'``."""
    inner = application(limited(limiter(Rule("api", "1/minute"))))
    app: Any = ProxyHeadersMiddleware(inner, trusted_hosts="*")  # type: ignore[arg-type]
    (client, _) = CLIENTS
    for chosen in range(3):
        assert (await ask(app, **forwarded(f"192.0.2.{chosen}", client))).status == 200


async def test_without_any_of_them_all_clients_of_a_proxy_are_one() -> None:
    app = application(limited(limiter(Rule("api", "1/minute"))))
    assert (await ask(app, **forwarded(CLIENTS[0]))).status == 200
    assert (await ask(app, **forwarded(CLIENTS[1]))).status == 429
    assert (await ask(app, client=CLIENT)).status == 200


# --- the example ---------------------------------------------------------------------------------


@pytest.fixture
def order() -> ModuleType:
    """examples/order.py, executed anew."""
    spec = importlib.util.spec_from_file_location("order", ROOT / "examples" / "order.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def bearer(user: str) -> list[tuple[str, str]]:
    return [("authorization", f"Bearer token-of-{user}"), *FROM_ORIGIN]


def test_the_manuals_order_is_the_examples() -> None:
    manual = (ROOT / "docs" / "middleware-order.md").read_text(encoding="utf-8")
    (block,) = re.findall("```python\n(.*?)```", manual, re.DOTALL)
    assert block in (ROOT / "examples" / "order.py").read_text(encoding="utf-8")


async def test_in_the_examples_order_a_refused_user_gives_the_client_its_charge_back(
    order: ModuleType,
) -> None:
    """Both limits are told of; bob, behind the same address as alice, has lost nothing by her."""
    allowed = await ask(order.app, "/items", headers=bearer("alice"))
    assert allowed.status == 200
    policies = allowed.headers["ratelimit-policy"]
    assert sorted(policies.split(", ")) == ['"clients";q=20;w=60', '"users";q=5;w=60']
    for _ in range(30):
        await ask(order.app, "/items", headers=bearer("alice"))
    answer = await ask(order.app, "/items", headers=bearer("alice"))
    assert answer.problem["violated-policies"] == ["users"]
    assert readable(answer) == {"retry-after", "ratelimit", "ratelimit-policy"}
    bobs = [await ask(order.app, "/items", headers=bearer("bob")) for _ in range(6)]
    assert [each.status for each in bobs] == [200] * 5 + [429]


async def test_in_the_examples_order_guesses_are_refused_before_they_are_looked_up(
    order: ModuleType,
) -> None:
    """One client, another token with each request: as many look-ups as it may make, and no more."""
    statuses = []
    for number in range(40):
        guess = [("authorization", f"Bearer {number}")]
        statuses.append((await ask(order.app, "/items", headers=guess)).status)
    assert statuses == [200] * 20 + [429] * 20
    assert len(order.LOOKED_UP) == 20


def test_the_example_answers_starlettes_client_with_its_lifespan(order: ModuleType) -> None:
    with TestClient(order.app, client=CLIENT) as client:
        answer = client.get("/items", headers={"origin": ORIGIN})
    assert answer.status_code == 200
    assert answer.headers["content-encoding"] == "gzip"
    assert answer.json() == ["an item"] * 100
    assert answer.headers["access-control-allow-origin"] == ORIGIN
