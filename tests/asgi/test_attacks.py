"""Hostile requests: none becomes a 500, and none chooses its own bucket."""

from ipaddress import ip_network
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route

from ratelimit import RateLimitMiddleware, Rule, exempt
from tests.support.asgi import CLIENT, Inner, ask, call, http_scope, limiter, statuses

PATHS = [
    "", "*", "\x00", "/\x00", "/\ud800", "/a\nb", "/a\r\nx: y", "//", "/../..", "/%2e%2e",
    "/%", "/%zz", "/\u202e", "/{id}", "/" + "a/" * 5_000, "/" + "9" * 5_000, "http://a/b",
    "/items/" + "9" * 5_000, "/items/-1", "/items/٣", "/items/1\n", "/files/a\nb",
]  # fmt: skip
METHODS = ["", "get", "M-SEARCH", "G\x00T", "\ud800", "A" * 10_000, "GET ", "ß", "PROPFIND"]


async def ok(request: Request) -> Response:
    return PlainTextResponse("ok")


@exempt
async def free(request: Request) -> Response:
    return PlainTextResponse("ok")


def guarded(*rules: Rule, **changes: Any) -> RateLimitMiddleware:
    return RateLimitMiddleware(Inner(), limiter(*rules, **changes))


EVERYTHING = ["client", "route", "user", "header:x", "cookie:x", "query:x"]


@pytest.mark.parametrize("path", PATHS, ids=ascii)
@pytest.mark.parametrize("method", ["GET", *METHODS], ids=ascii)
async def test_no_path_and_no_method_escapes_a_rule_without_a_path(path: str, method: str) -> None:
    """With routes to resolve, and identities of every kind to look for."""
    inner = Starlette(routes=[Route("/items/{n:int}", ok), Mount("/m", routes=[Route("/f", free)])])
    shell = Inner()
    shell.routes = inner.routes  # type: ignore[attr-defined]
    app = RateLimitMiddleware(shell, limiter(Rule("all", "1/minute", by=EVERYTHING)))
    assert (await ask(app, path, method)).status == 200
    assert (await ask(app, path, method)).status == 429


async def test_a_path_that_breaks_the_router_is_counted_all_the_same() -> None:
    """Starlette's own convertor fails on an integer of 5,000 digits."""

    async def too_late(request: Request) -> Response:
        raise AssertionError("never reached")

    app = Starlette(routes=[Route("/items/{n:int}", too_late), Route("/free", free)])
    limits = limiter(Rule("api", "1/minute"))
    guard = RateLimitMiddleware(app, limits)
    with pytest.raises(ValueError, match="4300 digits"):
        await ask(guard, "/items/" + "9" * 5_000)
    assert limits.counts == {("api", "allowed"): 1}
    assert (await ask(guard, "/items/" + "9" * 5_000)).status == 429


@pytest.mark.parametrize(
    "root",
    ["", "/v", "/api", "/api/", "/apix", "/login", "/", "//", "api", "/\ud800", "/a" * 5_000],
)
async def test_a_rule_matches_whatever_reaches_the_route_of_its_path(root: str) -> None:
    """For every root_path: what Starlette's router would let through, the rule has seen."""
    reached = []

    async def endpoint(request: Request) -> Response:
        reached.append(request.url.path)
        return PlainTextResponse("ok")

    app = Starlette(routes=[Route("/login", endpoint)])
    limits = limiter(Rule("login", "99/minute", path="/login"))
    guard = RateLimitMiddleware(app, limits)
    for path in [root + "/login", "/login", "/api/login", "//login", "/login/", "/login\n"]:
        before = len(reached), limits.counts["login", "allowed"]
        await ask(guard, path, root_path=root)
        arrived = len(reached) - before[0]
        assert limits.counts["login", "allowed"] - before[1] >= arrived
    assert reached


@pytest.mark.parametrize(
    "missing", [["headers"], ["client"], ["root_path"], ["query_string"], ["state"], ["raw_path"]]
)
async def test_a_scope_without_its_optional_keys_is_limited_like_any_other(
    missing: list[str],
) -> None:
    app = guarded(
        Rule("all", "1/minute", by=EVERYTHING), trusted_proxies=[ip_network("192.0.2.0/24")]
    )
    scope = {key: value for key, value in http_scope().items() if key not in missing}
    assert [(await call(app, dict(scope))).status for _ in range(2)] == [200, 429]


@pytest.mark.parametrize(
    "client", [None, ["192.0.2.1", 1], ("testclient", 50_000), ("", 0), ("/run/x.sock", None), ()]
)
async def test_any_peer_is_counted(client: Any) -> None:
    assert await statuses(guarded(Rule("all", "1/minute")), "/", "/", client=client) == [200, 429]


async def test_all_clients_without_an_address_are_counted_together() -> None:
    app = guarded(Rule("all", "2/minute"))
    peers = [None, ("testclient", 1), ("unknown", 2)]
    assert [(await ask(app, client=peer)).status for peer in peers] == [200, 200, 429]


NAMES = st.sampled_from(
    [b"x-forwarded-for", b"forwarded", b"x-real-ip", b"host", b"cookie", b"authorization",
     b"x-forwarded-prefix", b"ratelimit", b"x-user", b"content-length", b"expect"]
) | st.binary(max_size=20)  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(
    headers=st.lists(st.tuples(NAMES, st.binary(max_size=40)), max_size=6),
    query=st.binary(max_size=40),
    port=st.integers(0, 65_535),
)
async def test_a_client_that_is_limited_stays_so_whatever_it_sends(
    headers: list[tuple[bytes, bytes]], query: bytes, port: int
) -> None:
    app = guarded(
        Rule("all", "1/minute", by=["client", "route", "user"]),
        trusted_proxies=[ip_network("10.0.0.0/8")],
    )
    await ask(app)
    scope = http_scope(query_string=query, client=(CLIENT[0], port)) | {"headers": headers}
    assert (await call(app, scope)).status == 429


async def test_nothing_that_a_client_sends_is_repeated_in_the_answer() -> None:
    app = guarded(Rule("all", "1/minute", by=["header:x", "query:x", "client"]))
    request: dict[str, Any] = {
        "headers": [("x", "<script>\r\nset-cookie: a=b")],
        "query_string": b"x=<script>",
    }
    await ask(app, "/<script>", **request)
    answer = await ask(app, "/<script>", **request)
    assert answer.status == 429
    assert "script" not in repr(answer.messages)
