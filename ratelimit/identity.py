"""Who is asking: an address, a header, a user, or several of these together.

The law of this module: nobody chooses his own bucket. Forwarded headers count only where the peer
is a trusted proxy, and are walked from the right; what cannot be read as an address ends the walk.
"""

import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import lru_cache
from inspect import isawaitable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qsl

from starlette.requests import HTTPConnection

__all__ = ["Address", "Identify", "Networks", "client_address", "identity", "read_address"]

Scope = Mapping[str, Any]
Identify = Callable[[HTTPConnection], "str | Awaitable[str | None] | None"]
"""An identity that the application registers: text, or None where there is none."""

UNIDENTIFIED: Final = "unidentified"
"""The one bucket per rule that everybody shares who has no address."""

IPV6_PREFIX: Final = 64  # one customer's network at the least (RFC 6177); addresses in it are free
# RFC 6052: the last 32 bits are an IPv4 address
_NAT64: Final = int(IPv6Address("64:ff9b::")) >> 32
_6TO4_PREFIX: Final = 48  # RFC 3056: 2002, then the IPv4 address of the site
_MOST_HOPS: Final = 32
_LONGEST_FORWARDED: Final = 4096


class Address(NamedTuple):
    """An IP address as it is looked up and counted; IPv4-mapped IPv6 is IPv4."""

    version: int
    number: int
    key: str
    """What is counted together: the IPv4 address, or the IPv6 network of 64 bits."""


@lru_cache(maxsize=16_384)
def read_address(text: str) -> Address | None:
    """The address in a peer's host, or None where it is none (a test client, a socket's path)."""
    if len(text) > 64:
        return None
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, IPv6Address):
        embedded = address.ipv4_mapped
        if embedded is None and int(address) >> 32 == _NAT64:
            embedded = IPv4Address(int(address) & 0xFFFFFFFF)
        if embedded is None:
            prefix = _6TO4_PREFIX if address.sixtofour else IPV6_PREFIX
            network = IPv6Network((int(address) >> (128 - prefix) << (128 - prefix), prefix))
            return Address(6, int(address), str(network))
        address = embedded
    return Address(4, int(address), str(address))


def _read_hop(text: str) -> Address | None:
    """One element of X-Forwarded-For: an address, with a port or brackets if need be."""
    text = text.strip()
    if text.startswith("["):
        text, closed, port = text[1:].partition("]")
        if not closed or (port and not _is_port(port)):
            return None
    elif text.count(":") == 1:
        text, _, port = text.partition(":")
        if not _is_port(":" + port):
            return None
    return read_address(text)


def _is_port(text: str) -> bool:
    return text[0] == ":" and text[1:].isascii() and text[1:].isdigit() and len(text) <= 6


class Networks:
    """A set of networks, asked by address: one look-up per prefix length that occurs."""

    __slots__ = ("_by_prefix",)

    def __init__(self, networks: Iterable[IPv4Network | IPv6Network] = ()) -> None:
        prefixes: dict[int, dict[int, set[int]]] = {4: {}, 6: {}}
        for network in networks:
            shift = network.max_prefixlen - network.prefixlen
            group = prefixes[network.version].setdefault(shift, set())
            group.add(int(network.network_address) >> shift)
        self._by_prefix = {version: tuple(each.items()) for version, each in prefixes.items()}

    def __contains__(self, address: Address) -> bool:
        number = address.number
        return any(number >> shift in group for shift, group in self._by_prefix[address.version])

    def __bool__(self) -> bool:
        return any(self._by_prefix.values())


def client_address(scope: Scope, trusted: Networks) -> Address | None:
    """The address a request is counted under: its peer's, or what trusted proxies say of it.

    X-Forwarded-For (all its lines, in order) is walked from the right while the hops are trusted;
    the first that is not is the client. An element that is no address ends the walk at the last
    trusted hop. Nothing left of 32 hops or 4096 bytes is read.
    """
    peer = scope.get("client")
    address = read_address(peer[0]) if peer and isinstance(peer[0], str) else None
    if address is None or not trusted or address not in trusted:
        return address
    lines = [value for name, value in scope.get("headers", ()) if name == b"x-forwarded-for"]
    text = b",".join(lines)[-_LONGEST_FORWARDED:].decode("latin-1")
    for element in reversed(text.split(",")[-_MOST_HOPS:]):
        hop = _read_hop(element)
        if hop is None:
            break
        address = hop
        if hop not in trusted:
            break
    return address


async def identity(
    by: tuple[str, ...],
    scope: Scope,
    client: Address | None,
    *,
    route: Callable[[], str | None],
    path_params: Mapping[str, object],
    registered: Mapping[str, Identify],
) -> tuple[str, str]:
    """The text a request is counted under, and the value of its first part (for overrides).

    Parts are joined so that no two identities read alike. One that is missing is replaced by the
    client's address, never left out: leaving it out would let a client choose a fresh bucket.
    """
    address = UNIDENTIFIED if client is None else client.key
    if by == ("client",):
        return address, address
    texts, first = [], None
    for part in by:
        value: str | None
        kind, _, name = part.partition(":")
        if kind == "client":
            value = address
        elif kind == "global":
            value = ""
        elif kind == "route":
            value = route()
        elif kind == "path":
            value = str(path_params[name]) if name in path_params else None
        elif kind in _READERS:
            value = _READERS[kind](scope, name)
        else:
            answer = registered[part](HTTPConnection(dict(scope)))
            value = await answer if isawaitable(answer) else answer
            if value is not None and not isinstance(value, str):
                raise TypeError(f"the identity {part!r} gave {type(value).__name__}, not text")
        text = f"client={address}" if value is None else f"{part}={value}"
        if first is None:
            first = address if value is None else value
        texts.append(text)
    if len(texts) == 1:
        return texts[0], first or ""
    return "".join(f"{len(text)}:{text}" for text in texts), first or ""


_QUOTED: Final = re.compile(r"\\(?:([0-3][0-7][0-7])|(.))")


def _header(scope: Scope, name: str) -> str | None:
    """The first line of a name, which is the one that Starlette shows to the application."""
    wanted = name.lower().encode("latin-1")
    return next(
        (value.decode("latin-1") for key, value in scope.get("headers", ()) if key == wanted), None
    )


def _cookie(scope: Scope, name: str) -> str | None:
    """The last cookie of a name, as Starlette reads it, but in linear time.

    The standard library's unquoting takes seconds for 60 kB of backslashes (CVE-2024-7592).
    """
    lines = [value for key, value in scope.get("headers", ()) if key == b"cookie"]
    for chunk in reversed(b";".join(lines).decode("latin-1").split(";")):
        key, equals, value = chunk.partition("=")
        if equals and key.strip() == name:
            value = value.strip()
            if len(value) < 2 or value[0] != '"' or value[-1] != '"':
                return value
            return _QUOTED.sub(lambda it: chr(int(it[1], 8)) if it[1] else it[2], value[1:-1])
    return None


def _query(scope: Scope, name: str) -> str | None:
    """The last value of a name, which is the one that Starlette shows to the application."""
    text = scope.get("query_string", b"").decode("latin-1")
    return dict(parse_qsl(text, keep_blank_values=True)).get(name)


def _user(scope: Scope, _: str) -> str | None:
    """What Starlette's AuthenticationMiddleware, or one like it, says of the user."""
    user = scope.get("user")
    if user is None or not getattr(user, "is_authenticated", True):
        return None
    for attribute in ("identity", "username", "display_name", "id"):
        try:
            value = getattr(user, attribute, None)
        except NotImplementedError:  # starlette.authentication.BaseUser leaves some open
            continue
        if value not in (None, ""):
            return str(value)
    return str(user) if isinstance(user, str) else None


_READERS: Final[dict[str, Callable[[Scope, str], str | None]]] = {
    "header": _header,
    "cookie": _cookie,
    "query": _query,
    "user": _user,
}
