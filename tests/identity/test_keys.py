"""Who is asking: what a client can write into a request, and what it is counted under for it."""

import ast
import re
import time
from collections.abc import Mapping
from ipaddress import ip_network
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qsl

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from starlette.authentication import BaseUser, SimpleUser, UnauthenticatedUser
from starlette.requests import HTTPConnection, Request

from ratelimit import RateLimiter
from ratelimit.decisions import identity_digest
from ratelimit.identity.addresses import read_address
from ratelimit.identity.keys import (
    LONGEST_VALUE,
    UNIDENTIFIED,
    Identify,
    compiled,
    identity,
    identity_of,
)
from ratelimit.identity.proxies import Proxies
from ratelimit.rules.ruleset import RuleSet

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "identity.md"

unhurried = settings(deadline=None)  # the machine may be busy


def scope(peer: object = ("192.0.2.1", 1), **changes: Any) -> dict[str, Any]:
    """A request's scope from a peer."""
    return {"type": "http", "client": peer, "headers": [], "query_string": b""} | changes


async def found(
    by: tuple[str, ...],
    request: Mapping[str, Any],
    *,
    route: str | None = None,
    path_params: Mapping[str, object] = {},
    registered: Mapping[str, Identify] = {},
    fall_back: bool = True,
) -> tuple[str, str] | None:
    return await identity(
        by,
        request,
        Proxies().client(request),
        route=lambda: route,
        path_params=path_params,
        registered=registered,
        fall_back=fall_back,
    )


async def identify(
    by: tuple[str, ...], request: Mapping[str, Any], **changes: Any
) -> tuple[str, str]:
    answer = await found(by, request, **changes)
    assert answer is not None
    return answer


async def text_of(by: str, request: Mapping[str, Any], **changes: Any) -> str:
    text, _ = await identify((by,), request, **changes)
    return text


def with_headers(*headers: tuple[str, str], **changes: Any) -> dict[str, Any]:
    pairs = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
    return scope(headers=pairs, **changes)


async def test_global_is_one_identity_for_everybody() -> None:
    assert await text_of("global", scope(("192.0.2.1", 1))) == await text_of("global", scope(None))


async def test_clients_without_an_address_share_one_identity() -> None:
    for peer in (None, ("testclient", 50_000), ("/run/socket", 0)):
        assert await identify(("client",), scope(peer)) == (UNIDENTIFIED, UNIDENTIFIED)


async def test_a_header_is_read_as_the_application_reads_it_so_a_second_line_changes_nothing() -> (
    None
):
    """Starlette shows an application the first line of a name."""
    request = with_headers(("x-api-key", "real"), ("x-api-key", "junk"))
    assert await text_of("header:x-api-key", request) == "header:x-api-key=real"
    assert Request(request).headers["x-api-key"] == "real"


@pytest.mark.parametrize("query", [b"key=junk&key=real", b"key=junk&key=re%61l", b"k=1&key=real"])
async def test_a_query_parameter_is_read_as_the_application_reads_it(query: bytes) -> None:
    """Starlette shows an application the last value of a name."""
    request = scope(query_string=query)
    assert await text_of("query:key", request) == "query:key=real"
    assert Request(request).query_params["key"] == "real"


@pytest.mark.parametrize(
    "lines",
    [
        ["key=junk; key=real"],
        ["key=junk", "key=real"],
        ['key="real"'],
        ['key="\\162eal"'],
        ['key="\\r\\eal"'],
        [" other ; key = real ;; x"],
        ["key=junk; a=b", "key=real; key2=z"],
    ],
)
async def test_a_cookie_is_read_as_the_application_reads_it(lines: list[str]) -> None:
    """Starlette shows an application the last one of a name, without quotes and escapes."""
    request = with_headers(*(("cookie", line) for line in lines))
    assert await text_of("cookie:key", request) == "cookie:key=real"
    assert Request(request).cookies["key"] == "real"


async def test_where_starlette_shows_one_line_of_cookies_another_one_changes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As it did before 0.49: a second line would have been a fresh bucket for the same session."""
    monkeypatch.setattr("ratelimit.identity.keys._ALL_COOKIES", False)
    request = with_headers(("cookie", "a=b; key=real"), ("cookie", "key=junk"))
    assert await text_of("cookie:key", request) == "cookie:key=real"


@unhurried
@given(st.lists(st.text('ab=;"\\ 01237k,', max_size=30).map(lambda text: "k=" + text), max_size=3))
async def test_any_cookie_is_what_starlette_makes_of_it(lines: list[str]) -> None:
    request = with_headers(*(("cookie", line) for line in lines))
    expected = Request(request).cookies.get("k")
    text = await text_of("cookie:k", request)
    assert text == ("client=192.0.2.1" if expected is None else f"cookie:k={expected}")


async def test_a_cookie_made_to_be_slow_to_read_is_not() -> None:
    """60 kB of backslashes hold the standard library's parser for seconds (CVE-2024-7592)."""
    hostile = [
        'key="' + "\\\\" * 30_000 + '"',
        "key=" + ";" * 60_000,
        "=" * 60_000,
        "key;" * 15_000,
    ]
    start = time.thread_time()
    for line in hostile:
        await text_of("cookie:key", with_headers(("cookie", line)))
    assert time.thread_time() - start < 0.5


async def test_a_query_string_made_to_be_slow_to_read_is_not() -> None:
    hostile = [b"%" * 60_000, b"&" * 60_000, b"=" * 60_000, b"key=%ff" * 8_000, b"+&" * 30_000]
    start = time.thread_time()
    for query in hostile:
        await text_of("query:key", scope(query_string=query))
    assert time.thread_time() - start < 0.5


async def test_a_path_parameter_and_a_route_are_identities() -> None:
    assert await text_of("path:id", scope(), path_params={"id": 7}) == "path:id=7"
    assert await text_of("route", scope(), route="/v1/{id}") == "route=/v1/{id}"


class Registered(BaseUser):
    """A user who has an identity alone, as Starlette's base class asks for."""

    def __init__(self, name: str) -> None:
        self.name = name

    @property
    def is_authenticated(self) -> bool:
        return True

    @property
    def identity(self) -> str:
        return self.name


class Displayed(BaseUser):
    """A user who has only a name to show; Starlette's base class raises for the identity."""

    is_authenticated = True
    display_name = "ann"


@pytest.mark.parametrize(
    ("user", "text"),
    [
        (SimpleUser("ann"), "user=ann"),
        (Displayed(), "client=192.0.2.1"),
        (Registered("ann"), "user=ann"),
        (SimpleNamespace(id=7), "user=7"),
        (SimpleNamespace(id=0), "user=0"),
        (SimpleNamespace(username="ann", id=7), "user=7"),
        ({"sub": "ann"}, "user=ann"),
        ("ann", "user=ann"),
        (UnauthenticatedUser(), "client=192.0.2.1"),
        (SimpleNamespace(username="ann", is_authenticated=False), "client=192.0.2.1"),
        (None, "client=192.0.2.1"),
        ("", "client=192.0.2.1"),
        (SimpleNamespace(username="", id=7), "user=7"),
        (SimpleNamespace(), "client=192.0.2.1"),
    ],
)
async def test_a_user_is_what_the_authentication_says_and_a_stranger_is_his_address(
    user: object, text: str
) -> None:
    assert await text_of("user", scope(user=user)) == text


@pytest.mark.parametrize(
    "value",
    [object(), object, "ann".upper, SimpleUser("ann")],
    ids=["object", "class", "method", "user"],
)
async def test_what_has_no_text_of_its_own_is_missing(value: object) -> None:
    """Its text would be the object's place in memory, and thus a fresh bucket per request."""
    assert await text_of("user", scope(user=SimpleNamespace(id=value))) == "client=192.0.2.1"
    assert await text_of("user", scope(user=SimpleNamespace(identity=value, id=7))) == "user=7"
    assert await text_of("path:x", scope(), path_params={"x": value}) == "client=192.0.2.1"


async def test_registered_identities_may_be_sync_or_async_and_are_given_the_connection() -> None:
    def tenant(connection: HTTPConnection) -> str | None:
        return connection.headers.get("x-tenant")

    async def later(connection: HTTPConnection) -> str | None:
        return tenant(connection)

    request = with_headers(("x-tenant", "blue"))
    registered: dict[str, Identify] = {"tenant": tenant, "later": later}
    assert await text_of("tenant", request, registered=registered) == "tenant=blue"
    assert await text_of("later", request, registered=registered) == "later=blue"
    assert await text_of("later", scope(), registered=registered) == "client=192.0.2.1"


async def test_a_registered_identity_that_gives_no_text_is_an_error() -> None:
    with pytest.raises(TypeError, match=r"^the identity 'tenant' gave int, not text$"):
        await text_of("tenant", scope(), registered={"tenant": lambda _: 7})


MISSING = ["header:x", "cookie:x", "query:x", "path:x", "user", "route", "nobody"]


@pytest.mark.parametrize("part", MISSING)
async def test_a_part_that_is_missing_is_the_client_and_never_left_out(part: str) -> None:
    registered: dict[str, Identify] = {"nobody": lambda _: None}
    assert await identify((part,), scope(), registered=registered) == (
        "client=192.0.2.1",
        "192.0.2.1",
    )
    assert await identify((part,), scope(None), registered=registered) == (
        f"client={UNIDENTIFIED}",
        UNIDENTIFIED,
    )


async def test_an_empty_value_is_a_value_like_any_other() -> None:
    assert await text_of("query:x", scope(query_string=b"x=")) == "query:x="
    assert await text_of("header:x", with_headers(("x", ""))) == "header:x="


async def test_nobody_can_write_a_header_that_reads_like_another_clients_address() -> None:
    """The missing part of one request is no value that another may send."""
    bare = await text_of("header:x", scope())
    for value in ("192.0.2.1", "client=192.0.2.1", "=192.0.2.1"):
        assert await text_of("header:x", with_headers(("x", value))) != bare


def parts_of(text: str) -> list[str]:
    """The parts in a joined identity; each is preceded by its length."""
    parts = []
    while text:
        length, _, rest = text.partition(":")
        parts.append(rest[: int(length)])
        text = rest[int(length) :]
    return parts


VALUES = st.none() | st.text("1:=;,|a", max_size=12) | st.text(max_size=5)


@unhurried
@given(values=st.tuples(VALUES, VALUES, VALUES))
@example(values=("x", "1:b=", None))
@example(values=("", "3:c=x", "client=192.0.2.1"))
async def test_no_two_identities_of_several_parts_read_alike(
    values: tuple[str | None, ...],
) -> None:
    """Each can be taken apart again into what it was made of, so no other gives the same text.

    Whatever the values, even where they hold the very characters that join them.
    """
    names = ("a", "b", "c")
    registered: dict[str, Identify] = {
        name: (lambda _, value=value: value) for name, value in zip(names, values, strict=True)
    }
    text, _ = await identify(names, scope(), registered=registered)
    assert parts_of(text) == [
        "client=192.0.2.1" if value is None else f"{name}={value}"
        for name, value in zip(names, values, strict=True)
    ]


async def test_the_first_part_alone_is_what_overrides_name() -> None:
    request = with_headers(("x", "gold"))
    assert (await identify(("header:x", "client"), request))[1] == "gold"
    assert (await identify(("client", "header:x"), request))[1] == "192.0.2.1"
    assert (await identify(("query:x", "client"), request))[1] == "192.0.2.1"


async def test_an_identity_may_hold_any_text_at_all() -> None:
    for value in ("", "\x00", "\ud800", "\r\nx: y", "x" * LONGEST_VALUE):
        answer = await identify(("path:x",), scope(), path_params={"x": value})
        assert answer == (f"path:x={value}", value)


@pytest.mark.parametrize(
    "part", ["header:x", "cookie:x", "query:x", "path:x", "route", "user", "r"]
)
async def test_a_long_value_is_its_digest_wherever_it_comes_from(part: str) -> None:
    """A request with 60 kB of a header costs no more memory than any other."""
    texts = set()
    for value in ("x" * 60_000, "x" * 60_001, "x" * (LONGEST_VALUE + 1)):
        request = with_headers(
            ("x", value), ("cookie", f"x={value}"), query_string=f"x={value}".encode(), user=value
        )
        registered: dict[str, Identify] = {"r": lambda _, value=value: value}
        text, first = await identify(
            (part,), request, route=value, path_params={"x": value}, registered=registered
        )
        assert (text, first) == (f"{part}#{identity_digest(value)}", identity_digest(value))
        texts.add(text)
    assert len(texts) == 3


async def test_nobody_can_write_the_digest_of_a_long_value_that_is_another_clients() -> None:
    long = "x" * 500
    real = await text_of("header:x", with_headers(("x", long)))
    for value in (identity_digest(long), f"#{identity_digest(long)}"):
        assert await text_of("header:x", with_headers(("x", value))) != real


async def test_a_scope_without_headers_or_client_is_the_unidentified_one() -> None:
    bare: dict[str, Any] = {"type": "http", "path": "/"}
    by = ("client", "header:x", "cookie:x", "query:x", "user")
    text, first = await identify(by, bare)
    assert first == UNIDENTIFIED
    assert text.count(f"client={UNIDENTIFIED}") == 5


@pytest.mark.parametrize("part", MISSING)
async def test_without_falling_back_a_missing_part_is_no_identity(part: str) -> None:
    registered: dict[str, Identify] = {"nobody": lambda _: None}
    for by in ((part,), ("client", part), (part, "client")):
        assert await found(by, scope(), registered=registered, fall_back=False) is None
        assert await found(by, scope(), registered=registered) is not None


async def test_without_falling_back_an_address_that_cannot_be_told_is_missing_too() -> None:
    for by in (("client",), ("global", "client")):
        assert await found(by, scope(None), fall_back=False) is None
        assert await found(by, scope(), fall_back=False) is not None
    assert await found(("global",), scope(None), fall_back=False) == ("global=", "")


# --- identities by hand --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "by",
    [("client",), ("header:x",), ("global",), ("client", "header:x"), ("header:x", "global"),
     ("header:x", "client")],
)  # fmt: skip
@pytest.mark.parametrize("value", ["k", "", "v" * 999])
async def test_an_identity_that_is_written_by_hand_is_that_of_the_request(
    by: tuple[str, ...], value: str
) -> None:
    values = {"client": "::ffff:192.0.2.1", "header:x": value, "global": "anything"}
    request = with_headers(("x", value))
    assert identity_of(by, [values[part] for part in by]) == await identify(by, request)


def test_an_address_that_is_written_by_hand_is_counted_by_the_prefix_in_force() -> None:
    assert identity_of(("client",), ["2001:db8::9"]) == ("2001:db8::/64", "2001:db8::/64")
    assert identity_of(("client",), ["2001:db8::9"], 48) == ("2001:db8::/48", "2001:db8::/48")
    assert identity_of(("client",), [UNIDENTIFIED]) == (UNIDENTIFIED, UNIDENTIFIED)


# --- the guide -----------------------------------------------------------------------------------


def test_every_rule_file_of_the_guide_can_be_loaded(tmp_path: Path) -> None:
    blocks = re.findall(r"^```yaml\n(.*?)^```", GUIDE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert blocks
    (tmp_path / "blocked.txt").write_text("192.0.2.0/24  # a comment\n", encoding="utf-8")
    for number, block in enumerate(blocks):
        file = tmp_path / f"{number}.yaml"
        whole = block if "rules:" in block else block + "rules: [{name: a, limit: 1/s}]\n"
        file.write_text("version: 1\n" + whole.removeprefix("version: 1\n"), encoding="utf-8")
        assert RuleSet.load(file).rules


async def test_the_python_of_the_guide_runs() -> None:
    blocks = re.findall(
        r"^```python\n(.*?)^```", GUIDE.read_text("utf-8"), re.MULTILINE | re.DOTALL
    )
    names: dict[str, Any] = {"limiter": RateLimiter(), "lines": ["192.0.2.0/24"]}
    code = compile("".join(blocks), "identity.md", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    await eval(code, names)  # a code object that awaits gives its coroutine
    assert list(names["limiter"].denylist) == [ip_network("192.0.2.0/24")]


def test_the_addresses_of_the_guide_are_counted_as_it_says() -> None:
    rows = re.findall(
        r"^\| (`[^|]*[.:][^|]*) \| ([^|]*) \|$", GUIDE.read_text("utf-8"), re.MULTILINE
    )
    counted = 0
    for written, key in rows:
        expected = re.match("`([^`]*)`", key)
        for text in re.findall("`([0-9a-f:.%eth]+)`", written):
            address = read_address(text)
            assert address is not None
            assert address.key == (expected[1] if expected else f"{text}/128")
            counted += 1
    assert counted == 9


def test_the_guide_names_the_bounds_that_hold() -> None:
    assert f"{LONGEST_VALUE} characters" in GUIDE.read_text("utf-8")


texts = st.sampled_from(["", "a", "b=1", "x" * 256, "y" * 257, "%61", "a+b", '"q\\162"', "\xe9"])


@example(by=["client", "global"], values={}, peer=None, fall_back=False)
@example(by=["header:x-key", "client"], values={"header": "a"}, peer=None, fall_back=False)
@unhurried
@given(
    by=st.lists(
        st.sampled_from(
            ["client", "global", "header:x-key", "cookie:k", "query:k", "path:k", "user", "route"]
        ),
        min_size=1,
        max_size=4,
        unique=True,
    ),
    values=st.fixed_dictionaries(
        {},
        optional=dict.fromkeys(("header", "cookie", "query", "path", "user", "route"), texts),
    ),
    peer=st.sampled_from([("192.0.2.1", 1), ("2001:db8::1", 1), None]),
    fall_back=st.booleans(),
)
async def test_a_rules_own_reader_gives_what_its_parts_are_read_as_one_by_one(
    by: list[str], values: dict[str, str], peer: object, fall_back: bool
) -> None:
    """The compiled reader and the asynchronous one are of the same pieces, and never differ."""
    headers = [(b"x-key", values["header"].encode("latin-1"))] if "header" in values else []
    if "cookie" in values:
        headers.append((b"cookie", f"k={values['cookie']}".encode("latin-1")))
    request = scope(peer, headers=headers)
    if "query" in values:
        request["query_string"] = f"k=0&k={values['query']}".encode("latin-1")
    if "user" in values:
        request["user"] = values["user"]
    path_params = {"k": values["path"]} if "path" in values else {}
    route = values.get("route")
    key_of = compiled(tuple(by), fall_back=fall_back)
    assert key_of is not None
    key = key_of(request, Proxies().client(request), path_params, lambda: route)
    expected = await found(
        tuple(by), request, route=route, path_params=path_params, fall_back=fall_back
    )
    assert key == (None if expected is None else expected[0])


@unhurried
@given(st.text("kK=&;+%61 \xe9\0", max_size=20))
def test_a_query_is_read_as_the_standard_library_reads_it(text: str) -> None:
    key_of = compiled(("query:k",), fall_back=False)
    assert key_of is not None
    request = scope(query_string=text.encode("latin-1"))
    value = dict(parse_qsl(text, keep_blank_values=True)).get("k")
    assert key_of(request, None, {}, lambda: None) == (
        value if value is None else f"query:k={value}"
    )
