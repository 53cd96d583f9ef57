"""The host that a request names: compared without port, case and a final dot."""

from typing import Final

from ratelimit.identity.addresses import Scope, read_address
from ratelimit.identity.proxies import Proxies

__all__ = ["host_of"]

_LONGEST: Final = 300
"""More than any name of a host; what is behind it, such as a port of 300 zeros, is cut."""


def host_of(scope: Scope, proxies: Proxies) -> str:
    """The host of a request; empty where it names none.

    ``X-Forwarded-Host`` is believed from a trusted proxy, and of several values the last, which
    the nearest proxy wrote; else the first ``Host``, which is the one that applications see.
    """
    found = b""
    for name, value in scope.get("headers", ()):
        if name == b"host" and not found:
            found = value
    if proxies.believes and proxies.trusts_peer(scope):
        for name, value in scope.get("headers", ()):
            if name == b"x-forwarded-host":
                found = value.rpartition(b",")[2]
    host = found[:_LONGEST].decode("latin-1").strip().lower()
    if host[:1] == "[":
        host = host[1:].partition("]")[0]
    elif host.count(":") == 1 or (":" in host and read_address(host) is None):
        host = host.partition(":")[0]  # as frameworks do it, whatever follows
    return host.removesuffix(".")
