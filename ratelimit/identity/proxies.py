"""The client of a request behind trusted proxies, as X-Forwarded-For or Forwarded tell it."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import islice
from typing import Final

from ratelimit.identity.addresses import (
    _LONGEST_ADDRESS,
    Address,
    Network,
    Scope,
    _read_address,
    read_address,
)
from ratelimit.identity.networks import Networks

__all__ = ["Proxies", "forwarded_but_untrusted"]

_MOST_HOPS: Final = 32


_LONGEST_FORWARDED: Final = 4096


class Proxies:
    """The proxies whose word is taken for where a request comes from.

    Trusted are the peers in ``networks``; or, with ``hops``, whoever sends the request, and as
    many proxies before it as make ``hops`` together. ``header`` is the one field that is read, all
    its lines in order: ``x-forwarded-for``, ``forwarded``, or one that holds a single address, such
    as ``x-real-ip``. IPv6 clients are counted by ``ipv6_prefix`` bits.
    """

    def __init__(
        self,
        networks: Iterable[Network] = (),
        hops: int = 0,
        header: str = "x-forwarded-for",
        ipv6_prefix: int = 64,
    ) -> None:
        self._networks = Networks(networks)
        self._hops = hops
        self._header = header.encode()
        self._nodes = _NODES.get(self._header)
        self._prefix = ipv6_prefix
        self.believes: Final = hops > 0 or bool(self._networks)
        """Whether anybody is trusted at all."""

    def trusts_peer(self, scope: Scope) -> bool:
        """Whether a request comes from a trusted proxy, so that its headers may be believed."""
        if self._hops:
            return True
        peer = _peer(scope, self._prefix)
        return peer is not None and peer in self._networks

    def client(self, scope: Scope) -> Address | None:
        """The address a request is counted under: its peer's, or what trusted proxies say of it.

        The header is walked from the right while the hops are trusted; the first that is not is
        the client, or the last where they are counted. What is no address ends the walk at the
        last trusted hop. Nothing left of 32 hops or 4096 bytes is read. A field of one address that
        is there twice, or holds anything else, is not read at all.
        """
        peer = scope.get("client")  # as _peer and read_address do it, without the calls
        host = peer[0] if peer else None
        address = None
        if isinstance(host, str) and len(host) <= _LONGEST_ADDRESS:
            address = _read_address(host, self._prefix)
        if not self.believes:
            return address
        hops, networks = self._hops, self._networks
        if not hops and (address is None or address not in networks):
            return address
        if self._nodes is None:
            return _only_address(scope, self._header, self._prefix) or address
        header = self._header
        values = [value for name, value in scope.get("headers", ()) if name == header]
        if len(values) == 1 and len(values[0]) <= _LONGEST_ADDRESS and self._nodes is _elements:
            if b"," not in values[0]:  # the peer's word alone, which is all that most say
                return _lone_node(values[0], self._prefix) or address
        nodes = self._nodes(_lines(values))
        for node in islice(nodes, hops or _MOST_HOPS):
            hop = _read_node(node, self._prefix)
            if hop is None:
                break
            address = hop
            if not hops and hop not in networks:
                break
        return address

    def are_at(self, client: Address, scope: Scope | None = None) -> bool:
        """Whether a client's address is, or may be, a trusted proxy's own.

        Where hops are counted, that of the peer may be; it is known with a request alone.
        """
        if self._hops and scope is not None:
            return client == _peer(scope, self._prefix)
        return client in self._networks

    def is_unread(self, scope: Scope) -> bool:
        """Whether a trusted proxy's field of one address holds none, so that it counts itself."""
        return (
            self._nodes is None
            and self.trusts_peer(scope)
            and _only_address(scope, self._header, self._prefix) is None
        )

    @property
    def field(self) -> str:
        """The field that is read."""
        return self._header.decode()


def _only_address(scope: Scope, header: bytes, prefix: int) -> Address | None:
    """The address in a field that is there once and holds nothing else."""
    values = _values(scope, header)
    if len(values) != 1 or len(values[0]) > _LONGEST_ADDRESS + 8:
        return None
    return _read_node(values[0].decode("latin-1"), prefix)


def forwarded_but_untrusted(scope: Scope) -> bool:
    """Whether a request says that others than its peer have sent it; for where nobody is trusted.

    Not so where the header names the peer: then a server (uvicorn does) took the peer from it.
    """
    named = {name for name, _ in scope.get("headers", ()) if name in _NODES or name in _OF_ONE}
    if not named:
        return False
    peer = _peer(scope, 128)
    return peer is None or not any(
        _read_node(node, 128) == peer
        for name in named
        for node in islice(_NODES.get(name, _elements)(_lines(_values(scope, name))), _MOST_HOPS)
    )


def _peer(scope: Scope, prefix: int) -> Address | None:
    """The address of who has sent a request; None for a unix socket or a test client."""
    peer = scope.get("client")
    return read_address(peer[0], prefix) if peer and isinstance(peer[0], str) else None


def _values(scope: Scope, header: bytes) -> list[bytes]:
    """The lines of a header, in order."""
    return [value for name, value in scope.get("headers", ()) if name == header]


def _lines(values: Sequence[bytes]) -> str:
    """The end of a header's lines, joined, without an element that is cut."""
    text = b",".join(values)
    if len(text) > _LONGEST_FORWARDED:
        text = text[-_LONGEST_FORWARDED:].partition(b",")[2]
    return text.decode("latin-1")


def _elements(text: str) -> Iterator[str]:
    """The elements of X-Forwarded-For, from the right."""
    return reversed(text.split(","))


# Every quantifier is possessive or stands alone, so that no element takes more than linear time.
_PAIR: Final = re.compile(
    r"""[ \t]*+
    (?: ([!#$%&'*+.^_`|~0-9A-Za-z-]++)
        = (?: "([^"\\]*+(?:\\.[^"\\]*+)*)" | ([^ \t;,"]*+) ) [ \t]*+ )?
    (?: ; | \Z )""",
    re.VERBOSE | re.DOTALL,
)


def _forwarded_nodes(text: str) -> Iterator[str]:
    """The ``for`` of each element of Forwarded (RFC 7239), from the right; empty for nothing.

    Read from the left, a quote that a client leaves open would swallow what the proxy appends. So
    each element is found from its end: within quotes, a quote has a backslash before it, and thus
    the nearest ``="`` opens the quoted text that ends here.
    """
    end = len(text)
    while end >= 0:
        start = end
        comma = text.rfind(",", 0, end)
        while (quote := text.rfind('"', comma + 1, start)) >= 0:
            start = text.rfind('="', 0, quote)
            if start < 0:
                yield ""
                return
            if start < comma:
                comma = text.rfind(",", 0, start)
        yield _for(text[comma + 1 : end])
        end = comma


def _for(element: str) -> str:
    found, at = [], 0
    while at < len(element):
        pair = _PAIR.match(element, at)
        if pair is None:
            return ""
        name, quoted, plain = pair.groups()
        if name is not None and name.lower() == "for":
            found.append(plain if quoted is None else re.sub(r"\\(.)", r"\1", quoted))
        at = pair.end()
    return found[0] if len(found) == 1 else ""


_OF_ONE: Final = frozenset(
    [
        b"x-real-ip", b"cf-connecting-ip", b"true-client-ip", b"fastly-client-ip",
        b"fly-client-ip", b"x-client-ip", b"x-azure-clientip", b"x-envoy-external-address",
    ]
)  # fmt: skip
"""Usual fields of one address."""

_NODES: Final[dict[bytes, Callable[[str], Iterator[str]]]] = {
    b"x-forwarded-for": _elements,
    b"forwarded": _forwarded_nodes,
}


_PORT: Final = re.compile(":(?:[0-9]{1,5}|_[0-9A-Za-z._-]+)")


def _read_node(text: str, prefix: int) -> Address | None:
    """An address, with a port or brackets if need be."""
    text = text.strip(" \t")
    if text.startswith("["):
        text, closed, port = text[1:].partition("]")
        if not closed or (port and not _PORT.fullmatch(port)):
            return None
    elif text.count(":") == 1:
        text, _, port = text.partition(":")
        if not _PORT.fullmatch(":" + port):
            return None
    return read_address(text, prefix)


@lru_cache(maxsize=8_192)
def _lone_node(value: bytes, prefix: int) -> Address | None:
    """The address in a field of one element that is no longer than an address."""
    return _read_node(value.decode("latin-1"), prefix)
