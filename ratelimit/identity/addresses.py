"""Addresses: how they are read, in which networks they lie, and which of them is the client's.

The law of this module: nobody chooses their own address. Forwarded headers count only where the
peer is a trusted proxy, and are walked from the right, up to what cannot be read as an address.
"""

from collections.abc import Mapping
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any, Final, NamedTuple

from ratelimit.words import shown

__all__ = ["Address", "Network", "read_address", "read_network"]

Network = IPv4Network | IPv6Network
Scope = Mapping[str, Any]

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
    """The text that requests are counted under: the IPv4 address, or the IPv6 network."""


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
        raise ValueError(f"{shown(text)} {_why_no_network(text)}")
    plain = unwrapped(network)
    if plain.prefixlen == 0 and int(network.network_address) >> 32 == _NAT64:
        raise ValueError(
            f"{shown(text)} would be every IPv4 address, as which those of NAT64 are counted; "
            "write 0.0.0.0/0 if all are meant"
        )
    return plain


def _why_no_network(text: str) -> str:
    try:
        network = ip_network(text, strict=False)
    except ValueError:
        network = None
    if network is None or "%" in text:
        return 'is not an address or a network; write 192.0.2.7, 10.0.0.0/8 or "2001:db8::/32"'
    return f"has bits set beyond its prefix; the network is {network}"


def unwrapped(network: Network) -> Network:
    """A network as addresses are compared with it: IPv4 within IPv6 is IPv4."""
    if network.version == 6 and network.prefixlen >= 96:
        number = int(network.network_address)
        if number >> 32 in (_MAPPED, _NAT64):
            return IPv4Network((number & 0xFFFFFFFF, network.prefixlen - 96))
    return network
