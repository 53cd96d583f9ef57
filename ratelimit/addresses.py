"""Addresses: how they are read, in which networks they lie, and which of them is the client's.

The law of this module: nobody chooses his own address. Forwarded headers count only where the peer
is a trusted proxy, and are walked from the right; what cannot be read as an address ends the walk.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from itertools import islice
from typing import Any, Final, Literal, NamedTuple

__all__ = [
    "Address",
    "Network",
    "Networks",
    "Proxies",
    "forwarded_but_untrusted",
    "networks_in",
    "read_address",
    "read_network",
]

Network = IPv4Network | IPv6Network
Scope = Mapping[str, Any]

_MOST_HOPS: Final = 32
_LONGEST_FORWARDED: Final = 4096
_LONGEST_ADDRESS: Final = 64

_MAPPED: Final = int(IPv6Address("::ffff:0:0")) >> 32
_NAT64: Final = int(IPv6Address("64:ff9b::")) >> 32  # RFC 6052
_LOCAL_NAT64: Final = int(IPv6Address("64:ff9b:1::")) >> 80  # RFC 8215
_6TO4: Final = 0x2002  # RFC 3056: then the site's IPv4 address, 48 bits together


class Address(NamedTuple):
    """An IP address as it is looked up and counted; IPv4 within IPv6 is IPv4."""

    version: int
    number: int
    key: str
    """What is counted together: the IPv4 address, or the IPv6 network."""


def read_address(text: str, prefix: int = 64) -> Address | None:
    """The address in a text, without its zone, or None where there is none.

    IPv6 is counted by its network of ``prefix`` bits. IPv4-mapped addresses and those of NAT64
    are the IPv4 address within; a 6to4 site, which has one IPv4 address, is counted as one.
    """
    if len(text) > _LONGEST_ADDRESS:
        return None
    # Text of wide characters takes four times the memory, and is hardly ever an address.
    read = _read_address if text.isascii() else _read_address.__wrapped__
    return read(text, prefix)


@lru_cache(maxsize=8_192)
def _read_address(text: str, prefix: int) -> Address | None:
    try:
        address = ip_address(text)
    except ValueError:
        return None
    number = int(address)
    if address.version == 4:
        return Address(4, number, str(address))
    if number >> 32 in (_MAPPED, _NAT64):
        number &= 0xFFFFFFFF
        return Address(4, number, str(ip_address(number)))
    if number >> 112 == _6TO4:
        prefix = 48
    elif number >> 80 == _LOCAL_NAT64:  # each client has one address, wherever its IPv4 stands
        prefix = 128
    network = IPv6Network((number >> (128 - prefix) << (128 - prefix), prefix))
    return Address(6, number, str(network))


def read_network(text: str) -> Network:
    """The network in a text, or the one of a single address; IPv4 within IPv6 is IPv4.

    Raises ValueError, in one sentence, where it is none, or has bits set beyond its prefix.
    """
    try:
        network = ip_network(text)
    except ValueError:
        network = None
    if network is None or "%" in text:
        raise ValueError(f"{_shown(text)} {_why_no_network(text)}")
    plain = unwrapped(network)
    if plain.prefixlen == 0 and int(network.network_address) >> 32 == _NAT64:
        raise ValueError(
            f"{_shown(text)} would be every IPv4 address, as which those of NAT64 are counted; "
            "write 0.0.0.0/0 if all are meant"
        )
    return plain


def _why_no_network(text: str) -> str:
    try:
        network = ip_network(text, strict=False)
    except ValueError:
        network = None
    if network is None or "%" in text:
        return 'is no address or network; write 192.0.2.7, 10.0.0.0/8 or "2001:db8::/32"'
    return f"has bits set beyond its prefix; the network is {network}"


def unwrapped(network: Network) -> Network:
    """Addresses are compared as IPv4 where they hold one, so their networks are, too."""
    if network.version == 6 and network.prefixlen >= 96:
        number = int(network.network_address)
        if number >> 32 in (_MAPPED, _NAT64):
            return IPv4Network((number & 0xFFFFFFFF, network.prefixlen - 96))
    return network


def _shown(text: str) -> str:
    quoted = repr(text)
    return quoted if len(quoted) <= 60 else quoted[:57] + "..."


def networks_in(text: str) -> tuple[list[Network], list[tuple[int, int, str]]]:
    """The networks of a file, one a line, ``#`` before a comment; and what is wrong with it.

    A mistake is its line and column, both from 1, and a sentence.
    """
    networks: list[Network] = []
    mistakes: list[tuple[int, int, str]] = []
    for number, line in enumerate(re.split("\r\n|\r|\n", text), 1):
        item = line.partition("#")[0].strip()
        if not item:
            continue
        try:
            networks.append(read_network(item))
        except ValueError as error:
            mistakes.append((number, line.index(item) + 1, str(error)))
    return networks, mistakes


class Networks:
    """A set of networks that tells whether an address lies in one: ``address in networks``.

    May be changed at any time. A look-up costs one probe per prefix length that occurs, however
    many networks there are. Networks are given as objects or as text, which raises ValueError
    where `read_network` does.
    """

    __slots__ = ("_groups", "empty")

    _groups: dict[int, tuple[tuple[int, set[int]], ...]]
    empty: bool
    """Whether there are none, which most requests ask of two lists."""

    def __init__(self, networks: Iterable[Network | str] = ()) -> None:
        self.replace(networks)

    def __contains__(self, address: Address) -> bool:
        version, number, _ = address
        for shift, group in self._groups[version]:  # noqa: SIM110  # any() takes half as long again
            if number >> shift in group:
                return True
        return False

    def __bool__(self) -> bool:
        return not self.empty

    def __len__(self) -> int:
        return sum(len(group) for groups in self._groups.values() for _, group in groups)

    def __iter__(self) -> Iterator[Network]:
        """Each network once, in no order."""
        for shift, group in self._groups[4]:
            yield from [IPv4Network((number << shift, 32 - shift)) for number in group]
        for shift, group in self._groups[6]:
            yield from [IPv6Network((number << shift, 128 - shift)) for number in group]

    def add(self, network: Network | str) -> None:
        """Adds a network; nothing happens where it is there already."""
        version, shift, number = _placed(network)
        self.empty = False
        groups = self._groups[version]
        for known, group in groups:
            if known == shift:
                group.add(number)
                return
        self._groups[version] = (*groups, (shift, {number}))

    def discard(self, network: Network | str) -> None:
        """Takes a network out, and only this one: not those within it, nor a part of a larger."""
        version, shift, number = _placed(network)
        for known, group in self._groups[version]:
            if known == shift:
                group.discard(number)
        self._groups[version] = tuple(each for each in self._groups[version] if each[1])
        self.empty = not any(self._groups.values())

    def replace(self, networks: Iterable[Network | str]) -> None:
        """Takes these networks instead of all.

        They are put in place in one step when all of them have been read, which takes a
        microsecond or two each, and about ten as text: for very many, run it in a thread. Those
        of another `Networks` are copied at once.
        """
        if isinstance(networks, Networks):
            self._groups = {
                version: tuple((shift, group.copy()) for shift, group in each)
                for version, each in networks._groups.items()  # noqa: SLF001  # of this class
            }
            self.empty = networks.empty
            return
        groups: dict[int, dict[int, set[int]]] = {4: {}, 6: {}}
        for network in networks:
            version, shift, number = _placed(network)
            groups[version].setdefault(shift, set()).add(number)
        self._groups = {version: tuple(each.items()) for version, each in groups.items()}
        self.empty = not any(self._groups.values())


def _placed(network: Network | str) -> tuple[int, int, int]:
    """The version, the bits that an address is shifted by, and what is then left of it."""
    if isinstance(network, str):
        network = read_network(network)
    elif not isinstance(network, IPv4Network | IPv6Network):
        raise TypeError(
            f"a network is text, IPv4Network or IPv6Network, not {type(network).__name__}"
        )
    network = unwrapped(network)
    shift = network.max_prefixlen - network.prefixlen
    return network.version, shift, int(network.network_address) >> shift


class Proxies:
    """Whose word is taken for where a request comes from.

    Trusted are the peers in ``networks``; or, with ``hops``, whoever sends the request, and as
    many proxies before it as make ``hops`` together. ``header`` is the one field that is read, all
    its lines in order; IPv6 clients are counted by ``ipv6_prefix`` bits.
    """

    def __init__(
        self,
        networks: Iterable[Network] = (),
        hops: int = 0,
        header: Literal["x-forwarded-for", "forwarded"] = "x-forwarded-for",
        ipv6_prefix: int = 64,
    ) -> None:
        self._networks = Networks(networks)
        self._hops = hops
        self._header = header.encode()
        self._nodes = _NODES[self._header]
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
        last trusted hop. Nothing left of 32 hops or 4096 bytes is read.
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
        nodes = self._nodes(_lines(scope, self._header))
        for node in islice(nodes, hops or _MOST_HOPS):
            hop = _read_node(node, self._prefix)
            if hop is None:
                break
            address = hop
            if not hops and hop not in networks:
                break
        return address


def forwarded_but_untrusted(scope: Scope) -> bool:
    """Whether a request says that others than its peer have sent it; for where nobody is trusted.

    Not so where the header names the peer: then a server (uvicorn does) took the peer from it.
    """
    named = [name for name, _ in scope.get("headers", ()) if name in _NODES]
    if not named:
        return False
    peer = _peer(scope, 128)
    return peer is None or not any(
        _read_node(node, 128) == peer
        for name in set(named)
        for node in islice(_NODES[name](_lines(scope, name)), _MOST_HOPS)
    )


def _peer(scope: Scope, prefix: int) -> Address | None:
    """The address of who has sent a request; None for a unix socket or a test client."""
    peer = scope.get("client")
    return read_address(peer[0], prefix) if peer and isinstance(peer[0], str) else None


def _lines(scope: Scope, header: bytes) -> str:
    """The end of a header's lines, joined, without an element that is cut."""
    text = b",".join([value for name, value in scope.get("headers", ()) if name == header])
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
    """What the elements of Forwarded (RFC 7239) are ``for``, from the right; empty for nothing.

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
