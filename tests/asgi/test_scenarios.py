"""What users of slowapi know, in this library's words: the scenarios of its own suite, held to.

Each runs in Starlette and in FastAPI, and all of its answers are looked at.
"""

import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.requests import HTTPConnection, Request
from starlette.responses import PlainTextResponse, Response
from starlette.testclient import TestClient

from ratelimit import RateLimiter, RateLimitMiddleware, Rule, exempt, limit
from ratelimit.testing import ManualClock
from tests.support.asgi import Answer, ask, limiter

Site = Starlette  # which FastAPI is
Build = Callable[..., Site]

OTHER = ("192.0.2.2", 50_000)
THIRD = ("192.0.2.3", 50_000)
FIVE_OF_TEN = [200] * 5 + [429] * 5


@pytest.fixture(params=[Starlette, FastAPI])
def build(request: pytest.FixtureRequest) -> Build:
    """Makes an application of these endpoints by path, behind a middleware."""

    def build(limits: RateLimiter | None = None, /, **endpoints: Callable[..., Any]) -> Site:
        app: Site = request.param()
        add = app.add_api_route if isinstance(app, FastAPI) else app.add_route
        for path, endpoint in endpoints.items():
            add("/" + path.replace("__", "/"), endpoint)
        app.add_middleware(RateLimitMiddleware, limiter=limits or limiter())
        return app

    return build


async def ok(request: Request) -> Response:
    return PlainTextResponse("test")


def ok_in_a_thread(request: Request) -> Response:
    return PlainTextResponse("test")


async def plain(request: Request) -> Response:
    """The same, for routes without a limit of their own."""
    return PlainTextResponse("test")


def by_token(connection: HTTPConnection) -> str:
    """An identity that the application registers: who holds the token is another client."""
    return "admin" if connection.headers.get("token") == "secret" else "user"


async def ten(app: Site, path: str, times: int = 10, **request: Any) -> list[Answer]:
    return [await ask(app, path, **request) for _ in range(times)]


async def statuses(app: Site, path: str, times: int = 10, **request: Any) -> list[int]:
    return [answer.status for answer in await ten(app, path, times, **request)]


def test_the_library_is_imported_without_fastapi_and_without_redis() -> None:
    hide = "import sys; sys.modules.update(fastapi=None, redis=None); import ratelimit"
    done = subprocess.run([sys.executable, "-c", hide], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


# --- one limit on an endpoint --------------------------------------------------------------------


@pytest.mark.parametrize("endpoint", [ok, ok_in_a_thread])
async def test_an_endpoint_answers_as_often_as_its_limit_says(
    build: Build, endpoint: Callable[..., Any]
) -> None:
    answers = await ten(build(t1=limit("5/minute")(endpoint)), "/t1")
    assert [answer.status for answer in answers] == FIVE_OF_TEN
    assert [answer.body for answer in answers[:5]] == [b"test"] * 5
    assert [answer.problem["status"] for answer in answers[5:]] == [429] * 5


async def test_every_answer_tells_the_limit_and_only_a_refusal_when_to_come_back(
    build: Build,
) -> None:
    app = build(limiter(headers=["legacy"]), t1=limit("5/minute", algorithm="fixed_window")(ok))
    answers = await ten(app, "/t1")
    assert [answer.headers["x-ratelimit-limit"] for answer in answers] == ["5"] * 10
    remaining = [answer.headers["x-ratelimit-remaining"] for answer in answers]
    assert remaining == ["4", "3", "2", "1", "0", *["0"] * 5]
    assert ["retry-after" in answer.headers for answer in answers] == [False] * 5 + [True] * 5


async def test_an_endpoint_that_returns_no_response_is_limited_and_told_of_alike() -> None:
    app = FastAPI()

    @app.get("/t1")
    @limit("5/minute")
    async def t1(request: Request, response: Response) -> dict[str, str]:
        response.headers["x-own"] = "kept"
        return {"key": "value"}

    app.add_middleware(RateLimitMiddleware, limiter=limiter(headers=["legacy"]))
    answers = await ten(app, "/t1")
    assert [answer.status for answer in answers] == FIVE_OF_TEN
    for answer in answers[:5]:
        assert answer.problem == {"key": "value"}
        assert answer.headers["x-own"] == "kept"
    assert [answer.headers["x-ratelimit-limit"] for answer in answers] == ["5"] * 10
    assert all("retry-after" in answer.headers for answer in answers[5:])


@pytest.mark.parametrize("endpoint", [ok, ok_in_a_thread])
async def test_no_endpoint_needs_a_request_parameter(endpoint: Callable[..., Any]) -> None:
    app = FastAPI()

    async def bare() -> str:
        return "test"

    def bare_in_a_thread() -> str:
        return "test"

    function = bare if endpoint is ok else bare_in_a_thread
    app.get("/t1")(limit("5/minute")(function))
    app.add_middleware(RateLimitMiddleware, limiter=limiter())
    assert await statuses(app, "/t1") == FIVE_OF_TEN


@pytest.mark.parametrize("name", ["request", "response"])
@pytest.mark.parametrize("is_async", [True, False])
async def test_parameters_named_request_or_response_may_be_anything(
    name: str, is_async: bool
) -> None:
    """They are told by their types; what a client sends under these names reaches the endpoint."""
    app = FastAPI()

    async def named_request(request: str = "nothing") -> str:
        return request

    async def named_response(response: str = "nothing") -> str:
        return response

    def named_request_in_a_thread(request: str = "nothing") -> str:
        return request

    def named_response_in_a_thread(response: str = "nothing") -> str:
        return response

    choices: Mapping[tuple[str, bool], Callable[..., Any]] = {
        ("request", True): named_request,
        ("response", True): named_response,
        ("request", False): named_request_in_a_thread,
        ("response", False): named_response_in_a_thread,
    }
    app.get("/t4")(limit("1/minute")(choices[name, is_async]))
    app.add_middleware(RateLimitMiddleware, limiter=limiter())
    first = await ask(app, "/t4", query_string=f"{name}=something".encode())
    assert (first.status, first.body) == (200, b'"something"')
    assert (await ask(app, "/t4")).status == 429


# --- several limits ------------------------------------------------------------------------------


async def test_of_two_limits_the_tighter_one_refuses_and_charges_nothing_of_the_other(
    build: Build,
) -> None:
    """Fifty of one client's hundred pass; the other fifty of the hundred are left for others."""
    both = limit("100 per minute", by="global", scope="all")(limit("50/minute")(ok))
    app = build(t1=both)
    assert await statuses(app, "/t1", 100) == [200] * 50 + [429] * 50
    assert await statuses(app, "/t1", 50, client=OTHER) == [200] * 50
    assert await statuses(app, "/t1", 1, client=OTHER) == [429]
    assert await statuses(app, "/t1", 1, client=THIRD) == [429]


async def test_the_fields_are_those_of_the_limit_that_refuses(build: Build) -> None:
    both = limit("10 per minute", by="global", scope="all")(limit("5/minute", scope="own")(ok))
    app = build(t1=both)
    answers = await ten(app, "/t1", 10)
    assert [answer.headers["ratelimit"].split(";")[0] for answer in answers] == ['"own"'] * 10
    assert [answer.headers.get("retry-after") for answer in answers[:5]] == [None] * 5
    assert all(int(answer.headers["retry-after"]) > 0 for answer in answers[5:])
    assert answers[5].problem["violated-policies"] == ["own"]
    assert await statuses(app, "/t1", 5, client=OTHER) == [200] * 5
    refused = await ask(app, "/t1", client=THIRD)
    assert refused.headers["ratelimit"].startswith('"all";r=0')
    assert refused.problem["violated-policies"] == ["all"]


async def test_a_limit_of_the_application_and_one_of_the_route_both_hold(build: Build) -> None:
    app = build(limiter(Rule("all", "10/minute", by="global")), t1=limit("5 per minute")(ok))
    assert await statuses(app, "/t1") == FIVE_OF_TEN
    assert await statuses(app, "/t1", 5, client=OTHER) == [200] * 5
    assert await statuses(app, "/t1", 1, client=OTHER) == [429]
    assert await statuses(app, "/t1", 1, client=THIRD) == [429]


async def test_endpoints_that_share_a_scope_share_its_quota(build: Build) -> None:
    shared = limit("5/minute", scope="somescope")

    async def another(request: Request) -> Response:
        return PlainTextResponse("another")

    app = build(t1=shared(ok), t2=shared(another))
    assert await statuses(app, "/t1") == FIVE_OF_TEN
    assert await statuses(app, "/t2", 1) == [429]
    assert await statuses(app, "/t2", 1, client=OTHER) == [200]


# --- what the fields say, to the second ----------------------------------------------------------

WHOLE_MINUTE_US = 29_800_000 * 60_000_000


async def test_with_room_left_the_fields_are_those_of_the_limit_with_least(build: Build) -> None:
    several = limit("2/second; 5 per minute; 10/hour", algorithm="fixed_window")(ok)
    one = limit("10/minute", algorithm="fixed_window")(ok_in_a_thread)
    clock = ManualClock(WHOLE_MINUTE_US)
    app = build(limiter(headers=["legacy"], clock=clock), t1=one, t2=several)
    seconds = WHOLE_MINUTE_US // 1_000_000
    for path, quota, remaining, reset in (("/t1", 10, 9, 60), ("/t2", 2, 1, 1)):
        headers = (await ask(app, path)).headers
        assert headers["x-ratelimit-limit"] == str(quota)
        assert headers["x-ratelimit-remaining"] == str(remaining)
        assert headers["x-ratelimit-reset"] == str(seconds + reset)
        assert "retry-after" not in headers


async def test_the_limit_that_refuses_says_when_its_window_ends(build: Build) -> None:
    """Ten in ten seconds under 2 a second, 10 a minute, 20 an hour: the eleventh waits 50 s."""
    clock = ManualClock(WHOLE_MINUTE_US)
    several = limit("2/second; 10 per minute; 20/hour", algorithm="fixed_window")(ok)
    app = build(limiter(headers=["legacy"], clock=clock), t1=several)
    for _ in range(10):
        assert (await ask(app, "/t1")).status == 200
        clock.advance(1)
    refused = await ask(app, "/t1")
    assert refused.status == 429
    assert refused.headers["x-ratelimit-limit"] == "10"
    assert refused.headers["x-ratelimit-remaining"] == "0"
    assert refused.headers["x-ratelimit-reset"] == str(WHOLE_MINUTE_US // 1_000_000 + 60)
    assert refused.headers["retry-after"] == "50"


@pytest.mark.parametrize(
    "algorithm", ["fixed_window", "sliding_log", "sliding_counter", "token_bucket"]
)
async def test_one_that_comes_back_when_it_was_told_to_passes_and_not_a_second_sooner(
    build: Build, algorithm: str
) -> None:
    clock = ManualClock(WHOLE_MINUTE_US + 17_000_000)
    app = build(limiter(clock=clock), t1=limit("1/minute", algorithm=algorithm)(ok))
    assert await statuses(app, "/t1", 1) == [200]
    wait = int((await ask(app, "/t1")).headers["retry-after"])
    assert wait > 0
    clock.advance(wait - 1)
    assert (await ask(app, "/t1")).headers["retry-after"] == "1"
    clock.advance(1)
    assert (await ask(app, "/t1")).status == 200


# --- cost ----------------------------------------------------------------------------------------


async def test_a_cost_is_taken_of_the_quota_by_every_request(build: Build) -> None:
    app = build(t1=limit("50/minute", cost=10)(ok), t2=limit("50/minute", cost=15)(ok_in_a_thread))
    assert await statuses(app, "/t1") == FIVE_OF_TEN
    assert await statuses(app, "/t2") == [200] * 3 + [429] * 7


@pytest.mark.parametrize("endpoint", [ok, ok_in_a_thread])
async def test_a_cost_can_depend_on_the_request(build: Build, endpoint: Callable[..., Any]) -> None:
    """Units are whole: what a calculation leaves over is the calculation's to round."""

    def doubled(connection: HTTPConnection) -> int:
        return -(-int(connection.headers["foo"]) * 3 // 2)

    async def asked(connection: HTTPConnection) -> int:
        return int(connection.headers["foo"])

    app = build(
        t1=limit("50/minute", cost=asked, scope="t1")(endpoint),
        t2=limit("50/minute", cost=doubled, scope="t2")(endpoint),
    )
    assert await statuses(app, "/t1", headers=[("foo", "10")]) == FIVE_OF_TEN
    assert await statuses(app, "/t2", headers=[("foo", "5")]) == [200] * 6 + [429] * 4


# --- which requests count together ---------------------------------------------------------------


async def test_a_parameter_in_the_path_gives_nobody_a_fresh_quota(build: Build) -> None:
    async def item(request: Request) -> Response:
        return PlainTextResponse(request.path_params["my_param"])

    app = build(**{"t1__{my_param}": limit("1/minute")(item)})
    first = await ask(app, "/t1/param_one")
    assert (first.status, first.body) == (200, b"param_one")
    assert (await ask(app, "/t1/param_two")).status == 429


async def test_a_rule_by_its_parameter_counts_each_value_apart(build: Build) -> None:
    rule = Rule("items", "1/minute", by=["global", "path:item"], path="/t1/{item}")
    app = build(limiter(rule), **{"t1__{item}": plain})
    answers = [await ask(app, path) for path in ("/t1/one", "/t1/two", "/t1/one")]
    assert [answer.status for answer in answers] == [200, 200, 429]


async def test_a_limit_can_depend_on_who_asks(build: Build) -> None:
    """Ten for who holds the token, five for anybody else, each counted apart."""

    def by_key(connection: HTTPConnection) -> str:
        return "10/minute" if by_token(connection) == "admin" else "5/minute"

    app = build(limiter(identities={"token": by_token}), t1=limit(by_key, by="token")(ok))
    assert await statuses(app, "/t1") == FIVE_OF_TEN
    admins = await statuses(app, "/t1", 20, headers=[("token", "secret")])
    assert admins == [200] * 10 + [429] * 10


# --- who is not limited --------------------------------------------------------------------------


async def test_an_exempt_endpoint_takes_nothing_of_the_applications_quota(build: Build) -> None:
    async def free(request: Request) -> Response:
        return PlainTextResponse("free")

    def free_in_a_thread(request: Request) -> Response:
        return PlainTextResponse("free")

    app = build(
        limiter(Rule("all", "1/minute")), t1=plain, t2=exempt(free_in_a_thread), t3=exempt(free)
    )
    for path in ("/t2", "/t3"):
        answers = await ten(app, path, 2)
        assert [(answer.status, answer.body) for answer in answers] == [(200, b"free")] * 2
        assert all("ratelimit" not in answer.headers for answer in answers)
    assert await statuses(app, "/t1", 2) == [200, 429]


@pytest.mark.parametrize("is_async", [True, False])
async def test_a_request_that_a_predicate_names_is_not_limited(
    build: Build, is_async: bool
) -> None:
    def named(connection: HTTPConnection) -> bool:
        return connection.headers.get("user-agent") == "exempt"

    async def named_async(connection: HTTPConnection) -> bool:
        return named(connection)

    app = build(
        true=limit("1/minute", scope="true", skip=lambda _: True)(ok),
        false=limit("1/minute", scope="false", skip=lambda _: False)(ok),
        dynamic=limit("1/minute", scope="dynamic", skip=named_async if is_async else named)(ok),
    )
    assert await statuses(app, "/true", 3) == [200, 200, 200]
    assert await statuses(app, "/false", 3) == [200, 429, 429]
    free = {"headers": [("user-agent", "exempt")]}
    assert await statuses(app, "/dynamic", 3, **free) == [200, 200, 200]
    assert await statuses(app, "/dynamic", 3) == [200, 429, 429]
    assert await statuses(app, "/dynamic", 1, **free) == [200]


async def test_a_limiter_that_is_off_limits_nothing_and_tells_nothing(build: Build) -> None:
    limits = limiter(Rule("all", "1/minute"))
    limits.enabled = False
    app = build(limits, t1=limit("5/minute")(ok), t2=limit("5/minute")(ok_in_a_thread), t3=plain)
    for path in ("/t1", "/t2", "/t3"):
        answers = await ten(app, path)
        assert [answer.status for answer in answers] == [200] * 10
        assert all("ratelimit" not in answer.headers for answer in answers)
    limits.enabled = True
    assert await statuses(app, "/t3", 2) == [200, 429]


# --- with Starlette's own client -----------------------------------------------------------------


@pytest.mark.parametrize("lifespan", [True, False], ids=["with lifespan", "without lifespan"])
def test_starlettes_test_client_meets_the_limits_with_its_lifespan_and_without(
    build: Build, lifespan: bool
) -> None:
    app = build(t1=limit("5/minute")(ok), t2=limit("5/minute")(ok_in_a_thread))
    client = TestClient(app, client=("192.0.2.1", 50_000))
    if lifespan:
        with client:
            assert [client.get("/t1").status_code for _ in range(10)] == FIVE_OF_TEN
    else:
        assert [client.get("/t2").status_code for _ in range(10)] == FIVE_OF_TEN
    assert client.get("/nothing").status_code == 404
