"""Proxies: who sent a request, and that no client chooses it himself."""

import time
from collections.abc import Iterable
from ipaddress import ip_network
from typing import Any, Literal

import pytest
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from ratelimit.identity.addresses import Network
from ratelimit.identity.proxies import Proxies, forwarded_but_untrusted
from tests.support.addresses import read

PROXY = "10.0.0.1"
TRUSTED = [ip_network("10.0.0.0/8"), ip_network("fd00::/8")]

Header = Literal["x-forwarded-for", "forwarded"]


def scope(
    peer: object, *lines: str, header: str = "x-forwarded-for", **changes: Any
) -> dict[str, Any]:
    """A request's scope from a peer, with these lines of a header."""
    headers = [(header.encode(), line.encode("latin-1")) for line in lines]
    return {"type": "http", "client": peer, "headers": headers, "query_string": b""} | changes


def client(
    peer: str | None,
    *lines: str,
    trusted: Iterable[Network] = (),
    hops: int = 0,
    header: Header = "x-forwarded-for",
) -> str | None:
    """What a request from a peer with these lines is counted under."""
    proxies = Proxies(trusted, hops, header)
    address = proxies.client(scope(peer and (peer, 1), *lines, header=header))
    return address and address.key


@pytest.mark.parametrize("peer", [None, (), ("testclient", 50_000), (None, None), ("", 0), [b"x"]])
def test_a_peer_without_an_address_is_nobody_in_particular(peer: object) -> None:
    assert Proxies(TRUSTED).client(scope(peer, "203.0.113.9")) is None
    assert not Proxies(TRUSTED).trusts_peer(scope(peer))


# --- X-Forwarded-For -----------------------------------------------------------------------------


def test_the_header_of_a_peer_that_is_not_a_trusted_proxy_is_not_read() -> None:
    assert client("192.0.2.1", "203.0.113.9", trusted=TRUSTED) == "192.0.2.1"
    assert client(PROXY, "203.0.113.9") == PROXY


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
        (["[2001:db8::9]:"], PROXY),
        (["2001:db8::9"], "2001:db8::/64"),
        (["fe80::1%eth0"], "fe80::/64"),
        (["::ffff:203.0.113.9"], "203.0.113.9"),
        (["::ffff:cb00:7109"], "203.0.113.9"),
        (["203.0.113.9, ::ffff:10.0.0.9"], "203.0.113.9"),
        (["203.0.113.9, fd00::1"], "203.0.113.9"),
        (["203.0.113.9, [fd00::1%x]:1"], "203.0.113.9"),
        (["203.0.113.9\t,\t10.0.0.9 "], "203.0.113.9"),
        (["\xff\xfe"], PROXY),
        (["203.0.113.9\xa0"], PROXY),
        (["for=203.0.113.9"], PROXY),
        ([", ".join(["6.6.6.6"] * 3_000 + ["203.0.113.9"])], "203.0.113.9"),
        (["6" * 100_000 + ",203.0.113.9"], "203.0.113.9"),
        (["6" * 100_000], PROXY),
    ],
)
def test_the_header_is_walked_from_the_right_over_trusted_hops(lines: list[str], key: str) -> None:
    """An element that is not an address ends the walk at the last trusted hop."""
    assert client(PROXY, *lines, trusted=TRUSTED) == key


def test_a_proxy_whose_address_comes_mapped_into_ipv6_is_trusted_as_well() -> None:
    for peer in ("::ffff:10.0.0.1", "::ffff:a00:1", "fd00::7%eth0"):
        assert client(peer, "203.0.113.9", trusted=TRUSTED) == "203.0.113.9"


def test_no_more_than_32_hops_are_read() -> None:
    """Then the client is the last that was read, which is a trusted hop."""
    chain = [f"10.1.0.{number}" for number in range(40)]
    assert client(PROXY, "203.0.113.9", ",".join(chain), trusted=TRUSTED) == "10.1.0.8"


def test_an_element_that_is_cut_at_4096_bytes_is_not_read() -> None:
    """What is left of 203.0.113.9 would be another client's address."""
    for length, key in ((4096, "203.0.113.9"), (4097, "10.0.0.9"), (4098, "10.0.0.9")):
        line = "203.0.113.9" + ", 10.0.0.9".rjust(length - len("203.0.113.9"))
        assert client(PROXY, line, trusted=TRUSTED) == key


def test_ipv6_clients_behind_a_proxy_are_counted_by_the_prefix_too() -> None:
    proxies = Proxies(TRUSTED, ipv6_prefix=48)
    for peer, line in ((PROXY, "2001:db8:1:2::3"), ("2001:db8:1:2::3", "6.6.6.6")):
        found = proxies.client(scope((peer, 1), line))
        assert found
        assert found.key == "2001:db8:1::/48"


# --- Forwarded -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "key"),
    [
        ([], PROXY),
        ([""], PROXY),
        (["for=203.0.113.9"], "203.0.113.9"),
        (["For=203.0.113.9;proto=https;by=10.0.0.1"], "203.0.113.9"),
        (["proto=https;by=10.0.0.1;FOR=203.0.113.9"], "203.0.113.9"),
        (['for="203.0.113.9:4711"'], "203.0.113.9"),
        (['for="203.0.113.9:_hidden"'], "203.0.113.9"),
        (["for=203.0.113.9:4711"], "203.0.113.9"),
        (['for="[2001:db8::9]:4711"'], "2001:db8::/64"),
        (['for="[2001:db8::9]"'], "2001:db8::/64"),
        (["for=[2001:db8::9]"], "2001:db8::/64"),
        (['for="\\[2001:db8::9\\]"'], "2001:db8::/64"),
        (["for=6.6.6.6, for=203.0.113.9"], "203.0.113.9"),
        (["for=6.6.6.6", "for=203.0.113.9, for=10.0.0.9"], "203.0.113.9"),
        (["for=6.6.6.6,for=203.0.113.9 ; proto=http ,\tfor=10.0.0.9;;"], "203.0.113.9"),
        (["for=203.0.113.9, for=unknown"], PROXY),
        (["for=203.0.113.9, for=_gazonk, for=10.0.0.9"], "10.0.0.9"),
        (["for=203.0.113.9, proto=https"], PROXY),
        (["for=203.0.113.9,"], PROXY),
        (["for=203.0.113.9;for=6.6.6.6"], PROXY),
        (["203.0.113.9"], PROXY),
        (["for="], PROXY),
        (["for =203.0.113.9"], PROXY),
        (["for=203.0.113.9 x"], PROXY),
        (["for='203.0.113.9'"], PROXY),
        (['for="203.0.113.9'], PROXY),
        (['for=203.0.113.9"'], PROXY),
        (['"for=203.0.113.9"'], PROXY),
        (["for=203.0.113.9\n"], PROXY),
        (['for="203.0.113.9"\n'], PROXY),
        (["\xff=\xfe;for=203.0.113.9"], PROXY),
        (["for=203.0.113.9;secret=" + "x" * 5_000], PROXY),
        (["for=" + "6" * 9_000 + ",for=203.0.113.9"], "203.0.113.9"),
    ],
)
def test_forwarded_is_walked_like_x_forwarded_for(lines: list[str], key: str) -> None:
    """Obfuscated and unknown nodes, and whatever RFC 7239 does not know, end the walk."""
    assert client(PROXY, *lines, trusted=TRUSTED, header="forwarded") == key


@pytest.mark.parametrize(
    "written", ['for=6.6.6.6;x="', 'for=6.6.6.6;x="\\', '"', 'for="6.6.6.6', 'for=6.6.6.6;x="a"b"']
)
@pytest.mark.parametrize(
    "appended",
    [
        "for=203.0.113.9",
        'for="203.0.113.9:80"',
        'for=203.0.113.9;host="a\\"b"',
        'host="x, for=6.6.6.6;a=";for=203.0.113.9',
        'for=203.0.113.9;host="=\\"6, for=6.6.6.6;a=\\\\"',
    ],
)
@pytest.mark.parametrize("lines", [1, 2])
def test_a_quote_that_a_client_leaves_open_does_not_hide_what_the_proxy_appends(
    written: str, appended: str, lines: int
) -> None:
    """Nor does a list in a Host header that the proxy quotes."""
    sent = [written, appended] if lines == 2 else [f"{written}, {appended}"]
    assert client(PROXY, *sent, trusted=TRUSTED, header="forwarded") == "203.0.113.9"


def test_only_the_header_that_is_chosen_is_read() -> None:
    """A proxy that writes the one passes on whatever the client has put into the other."""
    headers = [(b"x-forwarded-for", b"203.0.113.1"), (b"forwarded", b"for=203.0.113.2")]
    chosen: list[tuple[Header, str]] = [
        ("x-forwarded-for", "203.0.113.1"), ("forwarded", "203.0.113.2"),
    ]  # fmt: skip
    for header, key in chosen:
        request = scope((PROXY, 1)) | {"headers": headers}
        assert Proxies(TRUSTED, header=header).client(request) == read(key)
        other = {"headers": [each for each in headers if each[0] != header.encode()]}
        assert Proxies(TRUSTED, header=header).client(request | other) == read(PROXY)


@pytest.mark.parametrize(
    "line",
    [" " * 60_000 + "x", '="' * 30_000, '"' * 60_000, '=",' * 20_000, 'a="' * 20_000,
     "," * 60_000, 'for="' + "\\" * 60_000 + '"', ";" * 60_000, "for=" + " \t" * 30_000,
     "a" * 60_000, "for=1.2.3.4;" * 5_000, "[" * 60_000, ":" * 60_000],
    ids=lambda line: ascii(line[:4]),
)  # fmt: skip
@pytest.mark.parametrize("header", ["x-forwarded-for", "forwarded"])
def test_a_header_made_to_be_slow_to_read_is_not(line: str, header: Header) -> None:
    request = scope((PROXY, 1), line, header=header)
    everybody = Proxies([ip_network("0.0.0.0/0")], header=header)
    start = time.thread_time()
    everybody.client(request)
    Proxies(hops=32, header=header).client(request)
    forwarded_but_untrusted(request)
    assert time.thread_time() - start < 0.05


# --- counted hops --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hops", "lines", "key"),
    [
        (1, ["203.0.113.9"], "203.0.113.9"),
        (1, ["6.6.6.6, 203.0.113.9"], "203.0.113.9"),
        (1, ["6.6.6.6", "203.0.113.9"], "203.0.113.9"),
        (2, ["6.6.6.6, 203.0.113.9, 10.0.0.9"], "203.0.113.9"),
        (3, ["6.6.6.6", "203.0.113.9, 10.0.0.9", "10.0.0.8"], "203.0.113.9"),
        (32, [", ".join(["203.0.113.9"] + ["10.0.0.9"] * 31)], "203.0.113.9"),
        (3, ["203.0.113.9"], "203.0.113.9"),
        (2, [], PROXY),
        (2, [""], PROXY),
        (1, ["203.0.113.9, unknown"], PROXY),
        (2, ["unknown, 10.0.0.9"], "10.0.0.9"),
        (2, ["203.0.113.9, unknown"], PROXY),
    ],
)
def test_with_counted_hops_the_client_is_that_many_elements_from_the_right(
    hops: int, lines: list[str], key: str
) -> None:
    """Or the leftmost there is; the walk ends before what is not an address."""
    assert client(PROXY, *lines, hops=hops) == key
    forwarded = [
        ", ".join(f'for="{node.strip()}"' for node in line.split(",") if node) for line in lines
    ]
    assert client(PROXY, *forwarded, hops=hops, header="forwarded") == key


def test_with_counted_hops_the_nearest_proxy_may_come_through_a_unix_socket() -> None:
    assert client(None, "6.6.6.6, 203.0.113.9", hops=1) == "203.0.113.9"
    assert client(None, hops=1) is None
    assert Proxies(hops=1).trusts_peer(scope(None))
    assert client(None, "203.0.113.9", trusted=TRUSTED) is None


def test_a_peer_is_trusted_by_its_network_or_because_all_are() -> None:
    for peer in ("192.0.2.1", PROXY):
        assert Proxies(hops=1).trusts_peer(scope((peer, 1)))
        assert Proxies(TRUSTED).trusts_peer(scope((peer, 1))) is (peer == PROXY)
        assert not Proxies().trusts_peer(scope((peer, 1)))
    assert (Proxies().believes, Proxies(TRUSTED).believes, Proxies(hops=1).believes) == (
        False,
        True,
        True,
    )


# --- where nothing is trusted --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("peer", "headers", "expected"),
    [
        ("10.0.0.1", {"x-forwarded-for": "203.0.113.9"}, True),
        ("10.0.0.1", {"forwarded": "for=203.0.113.9"}, True),
        ("10.0.0.1", {"forwarded": ""}, True),
        ("10.0.0.1", {"x-real-ip": "203.0.113.9"}, True),
        ("203.0.113.9", {"x-real-ip": "203.0.113.9"}, False),
        ("10.0.0.1", {"x-request-id": "203.0.113.9"}, False),
        ("10.0.0.1", {}, False),
        ("/run/app.sock", {"x-forwarded-for": "203.0.113.9"}, True),
        ("/run/app.sock", {"x-forwarded-for": "unknown"}, True),
        ("203.0.113.9", {"x-forwarded-for": "6.6.6.6, 203.0.113.9"}, False),
        ("203.0.113.9", {"x-forwarded-for": "::ffff:203.0.113.9, 10.0.0.1"}, False),
        ("203.0.113.9", {"x-forwarded-for": "6.6.6.6", "forwarded": "for=203.0.113.9"}, False),
        ("2001:db8::1", {"x-forwarded-for": "2001:db8::2"}, True),
    ],
)
def test_a_forwarded_header_that_nobody_reads_is_told_unless_it_names_the_peer(
    peer: str, headers: dict[str, str], expected: bool
) -> None:
    """Where it does, the server took the peer from it."""
    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    assert forwarded_but_untrusted(scope((peer, 1), headers=pairs)) is expected


# --- uvicorn's own proxy headers -----------------------------------------------------------------


async def behind_uvicorn(allowed: str, peer: str, line: str) -> dict[str, Any]:
    """The scope that an application gets from uvicorn with --forwarded-allow-ips."""
    seen: list[Any] = []

    async def app(scope: Any, receive: object, send: object) -> None:
        seen.append(scope)

    request: Any = scope((peer, 1), line)
    await ProxyHeadersMiddleware(app, allowed)(request, None, None)  # type: ignore[arg-type]
    (found,) = seen
    return dict(found)


async def test_where_uvicorn_tells_the_client_nothing_else_need_and_nothing_is_warned_of() -> None:
    request = await behind_uvicorn("10.0.0.0/8", PROXY, "6.6.6.6, 203.0.113.9, 10.0.0.9")
    assert Proxies().client(request) == read("203.0.113.9")
    assert not forwarded_but_untrusted(request)


async def test_a_unix_socket_or_a_mapped_peer_is_told_though_uvicorn_leaves_it() -> None:
    """Uvicorn does not know ::ffff:10.0.0.1, as IPv4 comes to its workers on [::]."""
    request = await behind_uvicorn("10.0.0.0/8", "::ffff:10.0.0.1", "203.0.113.9")
    assert Proxies().client(request) == read(PROXY)
    assert forwarded_but_untrusted(request)
    assert Proxies(TRUSTED).client(request) == read("203.0.113.9")


async def test_counted_hops_do_not_depend_on_what_uvicorn_made_of_the_peer() -> None:
    """Not even where it believes everyone, and takes the leftmost."""
    for allowed in ("*", "10.0.0.0/8", "127.0.0.1"):
        request = await behind_uvicorn(allowed, PROXY, "6.6.6.6, 203.0.113.9")
        assert Proxies(hops=1).client(request) == read("203.0.113.9")


async def test_a_uvicorn_that_believes_everyone_lets_clients_choose_their_peer() -> None:
    """Which is why its own proxy headers are to be off where proxies are trusted here."""
    request = await behind_uvicorn("*", PROXY, "6.6.6.6, 203.0.113.9")
    assert Proxies(TRUSTED).client(request) == read("6.6.6.6")


@pytest.mark.parametrize("header", ["x-forwarded-for", "forwarded", "x-real-ip", "client-ip"])
@pytest.mark.parametrize("proxies", [Proxies(), Proxies(TRUSTED)], ids=["none", "some"])
def test_a_client_that_writes_a_new_address_each_time_stays_who_it_is(
    proxies: Proxies, header: str
) -> None:
    """GHSA-hm36-ffrh-c77c, CVE-2025-46814, fastapi-limiter issues 9 and 10."""
    found = {
        proxies.client(scope(("192.0.2.1", 1), f"{prefix}203.0.113.{number}", header=header))
        for number in range(20)
        for prefix in ("", "for=")
    }
    assert found == {read("192.0.2.1")}


@pytest.mark.parametrize("line", ["{}, 203.0.113.9", "{},203.0.113.9", "for={}, 203.0.113.9"])
@pytest.mark.parametrize(
    "written", ["6.6.6.6", "", "6.6.6.6, 7.7.7.7", "10.0.0.9", "unknown", "'; drop table", "\x00"]
)
def test_what_a_client_writes_before_the_proxy_appends_its_address_changes_nothing(
    line: str, written: str
) -> None:
    """GHSA-hm36-ffrh-c77c: the text of the whole header was the key, so that each was another."""
    assert client(PROXY, line.format(written), trusted=TRUSTED) == "203.0.113.9"
    assert client(PROXY, line.format(written), hops=1) == "203.0.113.9"
