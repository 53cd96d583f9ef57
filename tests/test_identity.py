"""Who is asking: what a client can write into a request, and that none of it chooses a bucket."""

import time
from collections.abc import Mapping
from ipaddress import ip_network
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from starlette.authentication import BaseUser, SimpleUser, UnauthenticatedUser
from starlette.requests import HTTPConnection, Request

from ratelimit.identity import (
    UNIDENTIFIED,
    Address,
    Identify,
    Networks,
    client_address,
    identity,
    read_address,
)

TRUSTED = Networks(map(ip_network, ["10.0.0.0/8", "fd00::/8"]))
PROXY = "10.0.0.1"

unhurried = settings(deadline=None)  # the machine may be busy


def scope(peer: object = ("192.0.2.1", 1), *lines: str, **changes: Any) -> dict[str, Any]:
    """A request's scope from a peer, with these lines of X-Forwarded-For."""
    headers = [(b"x-forwarded-for", line.encode("latin-1")) for line in lines]
    return {"type": "http", "client": peer, "headers": headers, "query_string": b""} | changes


def client(peer: str, *lines: str) -> str | None:
    """What a request is counted under, from a peer with these lines of X-Forwarded-For."""
    address = client_address(scope((peer, 1), *lines), TRUSTED)
    return None if address is None else address.key


# --- addresses -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("::ffff:c000:201", "192.0.2.1"),
        ("0:0:0:0:0:FFFF:C000:0201", "192.0.2.1"),
        ("::ffff:192.0.2.1%eth0", "192.0.2.1"),
        ("64:ff9b::192.0.2.1", "192.0.2.1"),
        ("64:ff9b::c000:201", "192.0.2.1"),
        ("2001:db8::1", "2001:db8::/64"),
        ("2001:DB8:0:0:FFFF::1", "2001:db8::/64"),
        ("2001:db8::192.0.2.1", "2001:db8::/64"),
        ("2001:db8:0:1::1", "2001:db8:0:1::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("fe80::1%eth1", "fe80::/64"),
        ("2002:c000:201:1::1", "2002:c000:201::/48"),
        ("2002:c000:201:2::1", "2002:c000:201::/48"),
    ],
)
def test_every_notation_of_an_address_is_one_identity_and_ipv6_counts_by_its_64_bits(
    text: str, key: str
) -> None:
    address = read_address(text)
    assert address is not None
    assert address.key == key


def test_two_ipv4_clients_never_share_an_identity_through_their_ipv6_forms() -> None:
    keys = {
        address.key
        for last in (1, 2)
        for form in ("192.0.2.{}", "::ffff:192.0.2.{}", "64:ff9b::192.0.2.{}")
        if (address := read_address(form.format(last)))
    }
    assert keys == {"192.0.2.1", "192.0.2.2"}


@pytest.mark.parametrize(
    "text",
    ["", "testclient", "unknown", "_hidden", "192.0.2.01", "192.0.2", "3221225985", "1.2.3.4.5",
     "/run/app.sock", "0x7f.1", "::g", "[::1]", "1.2.3.4:80", "<script>", "1" * 65,
     "\udcff", "1.2.3.4\x00", "\uff11.\uff12.\uff13.\uff14"],
)  # fmt: skip
def test_what_is_no_address_is_none(text: str) -> None:
    assert read_address(text) is None


@pytest.mark.parametrize("peer", [None, (), ("testclient", 50_000), (None, None), ("", 0), [b"x"]])
def test_a_peer_without_an_address_is_nobody_in_particular(peer: object) -> None:
    assert client_address(scope(peer, "203.0.113.9"), TRUSTED) is None


def test_a_network_holds_its_addresses_and_no_others() -> None:
    networks = Networks(map(ip_network, ["192.0.2.0/25", "198.51.100.7/32", "2001:db8::/33"]))
    inside = ["192.0.2.127", "::ffff:192.0.2.0", "198.51.100.7", "2001:db8:7fff::1"]
    outside = ["192.0.2.128", "198.51.100.6", "2001:db8:8000::", "::192.0.2.1"]
    for text, expected in [(each, True) for each in inside] + [(each, False) for each in outside]:
        address = read_address(text)
        assert address is not None
        assert (address in networks) is expected, text
    assert networks
    assert not Networks()


# --- X-Forwarded-For -----------------------------------------------------------------------------


def test_the_header_of_a_peer_that_is_no_trusted_proxy_is_not_read() -> None:
    assert client("192.0.2.1", "203.0.113.9") == "192.0.2.1"
    no_proxies = client_address(scope((PROXY, 1), "203.0.113.9"), Networks())
    assert no_proxies == read_address(PROXY)


@pytest.mark.parametrize(
    ("lines", "key"),
    [
        ([], PROXY),
        ([""], PROXY),
        (["203.0.113.9"], "203.0.113.9"),
        (["6.6.6.6, 203.0.113.9"], "203.0.113.9"),
        (["6.6.6.6", "203.0.113.9"], "203.0.113.9"),
        (["6.6.6.6", "203.0.113.9, 10.0.0.9", "10.0.0.8"], "203.0.113.9"),
        (["6.6.6.6, 203.0.113.9, 10.0.0.9"], "203.0.113.9"),
        (["10.0.0.7, 10.0.0.8"], "10.0.0.7"),
        (["203.0.113.9,"], PROXY),
        (["203.0.113.9, unknown"], PROXY),
        (["203.0.113.9, garbage, 10.0.0.9"], "10.0.0.9"),
        (["203.0.113.9:4711"], "203.0.113.9"),
        (["203.0.113.9:"], PROXY),
        (["203.0.113.9:port"], PROXY),
        (["203.0.113.9:123456"], PROXY),
        (["[2001:db8::9]:443"], "2001:db8::/64"),
        (["[2001:db8::9]"], "2001:db8::/64"),
        (["[2001:db8::9"], PROXY),
        (["[2001:db8::9]x"], PROXY),
        (["2001:db8::9"], "2001:db8::/64"),
        (["fe80::1%eth0"], "fe80::/64"),
        (["::ffff:203.0.113.9"], "203.0.113.9"),
        (["::ffff:cb00:7109"], "203.0.113.9"),
        (["203.0.113.9, ::ffff:10.0.0.9"], "203.0.113.9"),
        (["203.0.113.9, fd00::1"], "203.0.113.9"),
        (["203.0.113.9, [fd00::1%x]:1"], "203.0.113.9"),
        (["203.0.113.9\t,\t10.0.0.9 "], "203.0.113.9"),
        (["\xff\xfe"], PROXY),
        (["for=203.0.113.9"], PROXY),
        ([", ".join(["6.6.6.6"] * 3_000 + ["203.0.113.9"])], "203.0.113.9"),
        (["6" * 100_000 + ",203.0.113.9"], "203.0.113.9"),
        (["6" * 100_000], PROXY),
    ],
)
def test_the_header_is_walked_from_the_right_over_trusted_hops(lines: list[str], key: str) -> None:
    """An element that is no address ends the walk at the last trusted hop."""
    assert client(PROXY, *lines) == key


def test_a_proxy_whose_address_comes_mapped_into_ipv6_is_trusted_as_well() -> None:
    for peer in ("::ffff:10.0.0.1", "::ffff:a00:1", "fd00::7%eth0"):
        assert client(peer, "203.0.113.9") == "203.0.113.9"


def test_no_more_than_32_hops_are_read() -> None:
    """Then the client is the last that was read, which is a trusted hop."""
    chain = [f"10.1.0.{number}" for number in range(40)]
    assert client(PROXY, "203.0.113.9", ",".join(chain)) == "10.1.0.8"


HEADER_NAMES = st.sampled_from(
    [b"x-forwarded-for", b"forwarded", b"x-real-ip", b"x-client-ip", b"cf-connecting-ip",
     b"true-client-ip", b"x-forwarded-host", b"via", b"host", b"x-forwarded-proto", b"cookie",
     b"authorization", b"X-Forwarded-For"]
) | st.binary(max_size=30)  # fmt: skip
HEADER_VALUES = st.one_of(
    st.ip_addresses().map(lambda address: str(address).encode()),
    st.lists(st.ip_addresses().map(str), max_size=5).map(lambda some: ", ".join(some).encode()),
    st.just(b"for=203.0.113.9;by=10.0.0.1"),
    st.binary(max_size=60),
)


@unhurried
@given(headers=st.lists(st.tuples(HEADER_NAMES, HEADER_VALUES), max_size=8), query=st.binary())
async def test_no_header_gives_an_untrusted_peer_another_identity(
    headers: list[tuple[bytes, bytes]], query: bytes
) -> None:
    """Whatever it sends: limited by client, an address has one bucket."""
    request = scope(("192.0.2.1", 1), query_string=query) | {"headers": headers}
    found = await identify(("client",), request)
    assert found == ("192.0.2.1", "192.0.2.1")


@unhurried
@given(st.lists(HEADER_VALUES, max_size=5))
def test_behind_a_trusted_proxy_only_what_the_proxy_appended_counts(lines: list[bytes]) -> None:
    """A client's own lines and elements stand to the left of the proxy's, and change nothing."""
    for joined in (False, True):
        headers = [(b"x-forwarded-for", line) for line in [*lines, b"203.0.113.9"]]
        if joined:
            headers = [(b"x-forwarded-for", b", ".join([*lines, b"203.0.113.9"]))]
        found = client_address(scope((PROXY, 1)) | {"headers": headers}, TRUSTED)
        assert found == read_address("203.0.113.9")


# --- identities ----------------------------------------------------------------------------------


async def identify(
    by: tuple[str, ...],
    request: Mapping[str, Any],
    *,
    route: str | None = None,
    path_params: Mapping[str, object] = {},
    registered: Mapping[str, Identify] = {},
    trusted: Networks = TRUSTED,
) -> tuple[str, str]:
    return await identity(
        by,
        request,
        client_address(request, trusted),
        route=lambda: route,
        path_params=path_params,
        registered=registered,
    )


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


@unhurried
@given(st.lists(st.text('ab=;"\\ 01237k,', max_size=30).map(lambda text: "k=" + text), max_size=3))
async def test_any_cookie_is_what_starlette_makes_of_it(lines: list[str]) -> None:
    request = with_headers(*(("cookie", line) for line in lines))
    expected = Request(request).cookies.get("k")
    found = await text_of("cookie:k", request)
    assert found == ("client=192.0.2.1" if expected is None else f"cookie:k={expected}")


async def test_a_cookie_made_to_be_slow_to_read_is_not() -> None:
    """60 kB of backslashes hold the standard library's parser for seconds (CVE-2024-7592)."""
    request = with_headers(("cookie", 'key="' + "\\\\" * 30_000 + '"'))
    start = time.thread_time()
    await text_of("cookie:key", request)
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


@pytest.mark.parametrize(
    ("user", "text"),
    [
        (SimpleUser("ann"), "user=ann"),
        (Registered("ann"), "user=ann"),
        (SimpleNamespace(id=7), "user=7"),
        (SimpleNamespace(id=0), "user=0"),
        (SimpleNamespace(username="ann", id=7), "user=ann"),
        ("ann", "user=ann"),
        (UnauthenticatedUser(), "client=192.0.2.1"),
        (SimpleNamespace(username="ann", is_authenticated=False), "client=192.0.2.1"),
        (None, "client=192.0.2.1"),
        (SimpleNamespace(), "client=192.0.2.1"),
    ],
)
async def test_a_user_is_what_the_authentication_says_and_a_stranger_is_his_address(
    user: object, text: str
) -> None:
    assert await text_of("user", scope(user=user)) == text


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
        name: (lambda _, value=value: value)  # type: ignore[misc]
        for name, value in zip(names, values, strict=True)
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
    for value in ("\x00", "\ud800", "a" * 100_000, "\r\nx: y"):
        found = await text_of("path:x", scope(), path_params={"x": value})
        assert found == f"path:x={value}"


async def test_a_scope_without_headers_or_client_is_the_unidentified_one() -> None:
    bare: dict[str, Any] = {"type": "http", "path": "/"}
    by = ("client", "header:x", "cookie:x", "query:x", "user")
    text, first = await identify(by, bare)
    assert first == UNIDENTIFIED
    assert text.count(f"client={UNIDENTIFIED}") == 5
    assert client_address({"type": "http", "client": (PROXY, 1)}, TRUSTED) == Address(
        4, 0x0A000001, PROXY
    )
