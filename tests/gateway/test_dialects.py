"""A proxy's question to the request that it is about."""

from collections.abc import Sequence
from typing import Any

import pytest

from ratelimit.gateway.dialects import DIALECTS, LONGEST_URI, Reader, TooLong, Unsaid
from tests.support.asgi import http_scope

FORWARDED = {
    "x-forwarded-method": "POST",
    "x-forwarded-uri": "/a%20b?q=1",
    "x-forwarded-host": "app.example",
    "x-forwarded-proto": "https",
    "x-forwarded-for": "192.0.2.9",
}
SAID: dict[str, dict[str, str]] = {
    "nginx": {
        "x-original-method": "POST",
        "x-original-uri": "/a%20b?q=1",
        "x-forwarded-host": "app.example",
        "x-forwarded-proto": "https",
        "x-forwarded-for": "192.0.2.9",
    },
    "caddy": FORWARDED,
    "traefik": FORWARDED,
    "envoy": {
        "host": "app.example",
        "x-forwarded-proto": "https",
        "x-forwarded-for": "192.0.2.9",
    },
}
"""What each proxy says of one and the same request."""


def question(dialect: str, *, without: str = "", **changed: str) -> dict[str, Any]:
    """A proxy's question, with fields changed (``_`` for ``-``) or one left out."""
    said = {**SAID[dialect], **{name.replace("_", "-"): value for name, value in changed.items()}}
    said.pop(without, None)
    said.setdefault("host", "ratelimit.internal")
    if dialect == "envoy":
        scope = http_scope("/auth/a b", "POST", said.items(), root_path="/auth")
        return {**scope, "raw_path": b"/auth/a%20b", "query_string": b"q=1"}
    return http_scope("/auth", headers=said.items())


def read(dialect: str, scope: dict[str, Any]) -> tuple[dict[str, Any], Sequence[str]]:
    """The request of a question, and its paths."""
    return Reader(DIALECTS[dialect], "x-forwarded-for", by_host=True)(scope)


@pytest.mark.parametrize("dialect", ["nginx", "caddy", "traefik"])
def test_a_host_that_no_rule_asks_for_need_not_be_said(dialect: str) -> None:
    """And is not taken from the question itself then, which names the service."""
    reader = Reader(DIALECTS[dialect], "x-forwarded-for", by_host=False)
    request, _ = reader(question(dialect, without="x-forwarded-host"))
    assert b"host" not in dict(request["headers"])
    assert (b"host", b"app.example") in reader(question(dialect))[0]["headers"]


def paths_of(uri: str) -> tuple[str, ...]:
    """The paths that a URI is taken for."""
    scope = question("nginx", x_original_uri=uri)
    return tuple(read("nginx", scope)[1])


@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_dialect_says_the_same_of_the_same_request(dialect: str) -> None:
    request, paths = read(dialect, question(dialect))
    assert (request["type"], request["method"], request["scheme"]) == ("http", "POST", "https")
    assert request["path"] == "/a b"
    assert list(paths) == ["/a b"]
    assert request["query_string"] == b"q=1"
    assert request["root_path"] == ""
    assert [value for name, value in request["headers"] if name == b"host"] == [b"app.example"]
    assert b"x-forwarded-host" not in dict(request["headers"])
    assert dict(request["headers"])[b"x-forwarded-for"] == b"192.0.2.9"


@pytest.mark.parametrize(
    ("dialect", "field"),
    [(dialect, name) for dialect, said in SAID.items() for name in said if name[-5:] != "proto"],
)
def test_a_field_that_is_missing_or_there_twice_makes_a_question_unclear(
    dialect: str, field: str
) -> None:
    scope = question(dialect, without=field)
    scope["headers"] = [each for each in scope["headers"] if each[0] != field.encode()]
    with pytest.raises(Unsaid, match=field):
        read(dialect, scope)
    if field == "x-forwarded-for":  # whose lines are one list, and are walked from the right
        return
    scope = question(dialect)
    scope["headers"] = [*scope["headers"], (field.encode(), b"/mine")]
    with pytest.raises(Unsaid, match=f"{field} is there twice"):
        read(dialect, scope)


def test_a_scheme_may_be_missing_but_not_there_twice() -> None:
    scope = question("caddy", without="x-forwarded-proto")
    assert read("caddy", scope)[0]["scheme"] == "http"
    scope = question("caddy")
    scope["headers"] = [*scope["headers"], (b"x-forwarded-proto", b"http")]
    with pytest.raises(Unsaid, match="x-forwarded-proto is there twice"):
        read("caddy", scope)


@pytest.mark.parametrize("scheme", ["gopher", "", "https, http", "\xff"])
def test_a_scheme_that_is_not_one_of_the_web_is_the_questions_own(scheme: str) -> None:
    scope = question("caddy", x_forwarded_proto=scheme)
    assert read("caddy", scope)[0]["scheme"] == "http"


@pytest.mark.parametrize(
    ("uri", "paths"),
    [
        ("/", ("/",)),
        ("", ("/",)),
        ("?x=/y", ("/",)),
        ("/login", ("/login",)),
        ("/log%69n", ("/login",)),
        ("/log%2569n", ("/log%69n",)),
        ("/%", ("/%",)),
        ("/%zz", ("/%zz",)),
        ("/caf%C3%A9", ("/café",)),
        ("/caf\xc3\xa9", ("/café",)),
        ("/%FF", ("/\ufffd",)),
        ("/a%2Fb", ("/a/b",)),
        ("/a%00b", ("/a\x00b",)),
        ("//login", ("//login",)),
        ("/login?a?b#c", ("/login",)),
        ("/login#x", ("/login#x", "/login")),
        ("/login%23x", ("/login#x",)),
        ("#/login", ("#/login", "/")),
        ("http://app.example/login", ("/login",)),
        ("HTTPS://app.example:443/login?x", ("/login",)),
        ("http://app.example", ("/",)),
        ("http://app.example?x", ("/",)),
        ("http://user@app.example/login", ("/login",)),
        ("/http://app.example/login", ("/http://app.example/login",)),
        ("app.example:443", ("app.example:443",)),
        ("*", ("*",)),
    ],
)
def test_a_target_is_read_as_servers_read_it(uri: str, paths: tuple[str, ...]) -> None:
    assert paths_of(uri) == paths


def test_a_query_ends_at_a_fragment_as_servers_end_it() -> None:
    scope = question("nginx", x_original_uri="/login?key=a#1")
    request, _ = read("nginx", scope)
    assert request["query_string"] == b"key=a"


def test_a_uri_is_read_up_to_a_length() -> None:
    assert paths_of("/" * LONGEST_URI)
    with pytest.raises(TooLong):
        paths_of("/" * (LONGEST_URI + 1))


@pytest.mark.parametrize(
    ("method", "uri", "seen"),
    [
        ("CONNECT", "/ws", "GET"),
        ("CONNECT", "app.example:443", "CONNECT"),
        ("PROPFIND", "/", "PROPFIND"),
        ("get", "/", "get"),
        ("\xff", "/", "\xff"),
    ],
)
def test_a_websocket_by_connect_is_the_get_that_the_application_sees(
    method: str, uri: str, seen: str
) -> None:
    scope = question("caddy", x_forwarded_method=method, x_forwarded_uri=uri)
    assert read("caddy", scope)[0]["method"] == seen


def test_nothing_of_the_application_that_is_mounted_in_is_taken_for_the_requests() -> None:
    scope = question("nginx") | {
        "ratelimit": "an admission", "endpoint": "ours", "path_params": {"a": "b"},
    }  # fmt: skip
    request, _ = read("nginx", scope)
    assert "ratelimit" not in request
    assert "endpoint" not in request
    assert "path_params" not in request
    assert scope["ratelimit"] == "an admission"
