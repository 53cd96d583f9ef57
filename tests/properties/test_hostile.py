"""Whatever a client sends: no exception, nothing without bound, and no address but its own."""

from collections.abc import Sequence
from ipaddress import ip_address, ip_network
from random import Random
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.requests import Request

from ratelimit.decisions import identity_digest
from ratelimit.identity.addresses import Address, read_address, read_network
from ratelimit.identity.keys import LONGEST_VALUE, Identify, identity
from ratelimit.identity.networks import networks_in
from ratelimit.identity.proxies import Proxies, forwarded_but_untrusted

PEER, PROXY, CLIENT = "192.0.2.1", "10.0.0.1", "203.0.113.9"
TRUSTED = [ip_network("10.0.0.0/8"), ip_network("fd00::/8")]

FRAGMENTS = [
    b",", b", ", b";", b"=", b'"', b'="', b"\\", b'\\"', b" ", b"\t", b"[", b"]", b":", b"%", b"&",
    b"+", b"/", b"#", b".", b"::", b"_", b"\x00", b"\n", b"\xff", b"\xa0", b"for", b"For=", b"for=",
    b";for=", b'for="', b"host=", b"k", b"k=", b"unknown", b"_hidden", b"1", b"1.2.3.4", b"6.6.6.6",
    b"10.0.0.9", b"10.0.0.9, ", b"fd00::1", b"2001:db8::1", b"::ffff:", b"64:ff9b::", b"2002:c000:",
    b"fe80::1%eth0", b":4711", b"/24", b"/129", b"\\163", b"%6b", b"9" * 70, b"x" * 300,
]  # fmt: skip
HEADERS: tuple[Literal["x-forwarded-for"], Literal["forwarded"]] = "x-forwarded-for", "forwarded"
NAMES = [b"x-forwarded-for", b"forwarded", b"x-real-ip", b"cookie", b"k", b"x-forwarded-host", b""]
BY = ("client", "global", "route", "user", "header:k", "cookie:k", "query:k", "path:k", "named")

Headers = list[tuple[bytes, bytes]]


def scope(peer: str, headers: Headers, query: bytes = b"") -> dict[str, Any]:
    return {"type": "http", "client": (peer, 1), "headers": headers, "query_string": query}


# --- what holds for any input --------------------------------------------------------------------


def check_address(text: str, prefix: int) -> None:
    """An address is one of the text's own, and its key the network that it lies in; or None."""
    address = read_address(text, prefix)
    if address is None:
        return
    bits = 32 if address.version == 4 else 128
    assert 0 <= address.number < 1 << bits
    network = ip_network(address.key)
    assert network.version == address.version
    assert address.number >> (bits - network.prefixlen) == int(network[0]) >> (
        bits - network.prefixlen
    )
    again = read_address(str(network[0]), network.prefixlen)
    assert again is not None
    assert again.key == address.key
    written = ip_address(text.partition("%")[0])
    assert int(written) & 0xFFFFFFFF == address.number & 0xFFFFFFFF


def check_network(text: str) -> None:
    """A network that is one, or one short sentence."""
    try:
        network, message = read_network(text), ""
        assert read_network(str(network)) == network
    except ValueError as error:
        message = str(error)
    assert len(message) < 250
    assert message.isprintable()
    networks, mistakes = networks_in(text)
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    assert len(networks) + len(mistakes) <= len(lines)
    for line, column, _ in mistakes:
        assert lines[line - 1][column - 1 :].strip()


def check_client(written: Sequence[bytes], host: bytes) -> None:
    """No line of a client's gives it another address; ``host`` is quoted by its proxy."""
    quoted = host.replace(b"\\", b"\\\\").replace(b'"', b'\\"')
    appended = {
        "x-forwarded-for": b"203.0.113.9",
        "forwarded": b'host="' + quoted + b'";for=203.0.113.9;by="' + quoted + b'"',
    }
    for header in HEADERS:
        name = header.encode()
        client_lines = [(name, line) for line in written]
        for headers in ([*client_lines], [*client_lines, (name, appended[header])]):
            request = scope(PEER, headers)
            assert Proxies(header=header).client(request) == read_address(PEER)
            assert Proxies(TRUSTED, header=header).client(request) == read_address(PEER)
            assert forwarded_but_untrusted(request) in (True, False)
            for hops in (0, 1, 3, 32):
                proxies = Proxies(() if hops else TRUSTED, hops, header)
                assert isinstance(proxies.client(scope(PROXY, headers)), Address)
        one_line = [(name, b", ".join([*written, appended[header]]))]
        for headers in ([*client_lines, (name, appended[header])], one_line):
            for proxies in (Proxies(TRUSTED, header=header), Proxies(hops=1, header=header)):
                assert proxies.client(scope(PROXY, headers)) == read_address(CLIENT)
            nearest = [*headers, (name, b"for=10.0.0.8" if header == "forwarded" else b"10.0.0.8")]
            for proxies in (Proxies(TRUSTED, header=header), Proxies(hops=2, header=header)):
                assert proxies.client(scope(PROXY, nearest)) == read_address(CLIENT)


async def check_identity(headers: Headers, query: bytes, value: str) -> None:
    """Of any request there is an identity, bounded, which is what the application reads."""
    request = scope(PEER, headers, query) | {"user": value}
    client = Proxies(TRUSTED).client(request)
    registered: dict[str, Identify] = {"named": lambda _: value}

    async def of(*by: str) -> tuple[str, str]:
        found = await identity(
            by,
            request,
            client,
            route=lambda: value,
            path_params={"k": value},
            registered=registered,
        )
        assert found is not None
        return found

    text, first = await of(*BY)
    assert first == PEER
    assert len(text) <= len(BY) * (LONGEST_VALUE + 20)
    assert len(identity_digest(text)) == 16
    assert (await of("client"))[0] == PEER
    seen = Request(request)
    for part, there in (
        ("header:k", seen.headers.get("k")),
        ("query:k", seen.query_params.get("k")),
        ("cookie:k", seen.cookies.get("k")),
    ):
        text, first = await of(part)
        if there is None:
            assert text == f"client={PEER}"
        elif len(there) <= LONGEST_VALUE:
            assert (text, first) == (f"{part}={there}", there)
        else:
            assert (text, first) == (f"{part}#{identity_digest(there)}", identity_digest(there))


# --- a few hundred inputs that shrink to the point -----------------------------------------------

some = settings(deadline=None, max_examples=200)  # the machine may be busy
PIECES = st.lists(st.sampled_from(FRAGMENTS) | st.binary(max_size=6), max_size=12).map(b"".join)
PREFIXES = st.integers(16, 128)


@some
@given(
    text=st.ip_addresses().map(str) | st.text(max_size=70) | PIECES.map(lambda it: it.decode("l1")),
    prefix=PREFIXES,
)
def test_any_text_is_an_address_of_its_own_network_or_none(text: str, prefix: int) -> None:
    check_address(text, prefix)


@some
@given(st.text(max_size=70) | PIECES.map(lambda it: it.decode("l1")))
def test_any_text_is_a_network_or_one_short_sentence(text: str) -> None:
    check_network(text)


@some
@given(written=st.lists(PIECES, max_size=4), host=PIECES)
def test_no_forwarded_header_gives_a_client_another_address(
    written: list[bytes], host: bytes
) -> None:
    """Not to an untrusted peer, and not behind proxies that append to what it has written."""
    check_client(written, host)


@some
@given(
    headers=st.lists(st.tuples(st.sampled_from(NAMES) | st.binary(max_size=9), PIECES), max_size=6),
    query=PIECES,
    value=st.text(max_size=300),
)
async def test_any_request_has_a_bounded_identity_which_the_application_reads_as_well(
    headers: Headers, query: bytes, value: str
) -> None:
    await check_identity(headers, query, value)


# --- a million inputs ----------------------------------------------------------------------------


def piece(rng: Random) -> bytes:
    parts = rng.choices(FRAGMENTS, k=rng.randrange(13))
    return b"".join(rng.randbytes(3) if rng.random() < 0.05 else each for each in parts)


@pytest.mark.slow
async def test_a_million_hostile_inputs_change_none_of_that() -> None:
    rng = Random(6)
    for _ in range(250_000):
        check_address(piece(rng).decode("latin-1"), rng.randint(16, 128))
        check_network(piece(rng).decode("latin-1"))
        check_client([piece(rng) for _ in range(rng.randrange(4))], piece(rng))
        headers = [(rng.choice(NAMES), piece(rng)) for _ in range(rng.randrange(6))]
        await check_identity(headers, piece(rng), piece(rng).decode("latin-1"))
