"""Names to addresses, and announced addresses to those that can be reached."""

import ipaddress
import re
import socket
from collections.abc import (
    Callable,
    Mapping,
)
from contextlib import suppress
from functools import partial
from typing import Any, Final

from ratelimit.stores.errors import StoreUnavailable, explain
from ratelimit.stores.redis.errands import ERRANDS

__all__ = ["PATIENCE", "Address", "Progress", "Remap", "look_up", "remapper", "spelt"]

Address = tuple[str, int]


Remap = Callable[[Address], Address] | Mapping[Any, Any]
"""A way from announced addresses to those that can be reached: a function of ``(host, port)``, or a
mapping of ``(host, port)``, ``"host:port"`` or ``"host"`` to one of these forms."""


PATIENCE: Final = 1.0  # seconds at least that a server is given to take a connection


MOST_ADDRESSES: Final = 8  # of one name that are tried


MOST_OF_HOST: Final = 80  # characters of a host in a sentence


MOST_TOLD: Final = 150  # characters about sentinels in a sentence


def spelt(host: str, port: int) -> str:
    """An address in words; servers announce any text as a host."""
    if not host.isprintable():
        host = ascii(host)[1:-1]
    if len(host) > MOST_OF_HOST:
        host = f"{host[:MOST_OF_HOST]}…"
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class Progress:
    """The progress of making a connection."""

    def __init__(self, trying: str, patience: float = PATIENCE) -> None:
        self.trying = trying
        self.patience = patience
        """Seconds that it may take altogether."""
        self.waiting_for = ""
        self.failed: dict[str, str] = {}
        """The failures of sentinels that gave no master."""

    def sentinels(self) -> str:
        """The sentinels that failed, and why."""
        told = "; ".join(f"{name}: {why}" for name, why in self.failed.items())
        return told if len(told) <= MOST_TOLD else f"{told[: MOST_TOLD - 1]}…"

    def late(self) -> StoreUnavailable:
        """The failure where time is up."""
        seconds = self.patience
        if self.waiting_for == "name":
            return StoreUnavailable(
                f"the name of {self.trying} was not resolved within {seconds:g} s", kind="name"
            )
        return self.told(
            StoreUnavailable(f"no connection to {self.trying} within {seconds:g} s", kind="late")
        )

    def told(self, error: BaseException) -> StoreUnavailable:
        """A failure with the address that was tried last."""
        why = explain(error)
        said = str(why) if self.trying in str(why) else f"{why}, at {self.trying}"
        if self.failed and why.kind != "no-master":
            said += f" (of the sentinels, {self.sentinels()})"
        return StoreUnavailable(said, kind=why.kind)


def _addresses(host: str, port: int) -> list[str]:
    """The addresses of a name, in the system's order. Blocks."""
    found: dict[str, None] = {}
    answers: list[Any] = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    for *_, at in answers:
        has_scope = len(at) == 4 and at[3] and "%" not in str(at[0])
        found[f"{at[0]}%{at[3]}" if has_scope else str(at[0])] = None
    return list(found)[:MOST_ADDRESSES]


async def look_up(host: str, port: int, progress: Progress) -> list[str]:
    """The addresses of a host; StoreUnavailable of kind "name" where it has none."""
    with suppress(ValueError):
        ipaddress.ip_address(host)
        return [host]
    progress.trying, progress.waiting_for = spelt(host, port), "name"
    try:
        addresses: list[str] = await ERRANDS.result(
            ("name", host, port), partial(_addresses, host, port)
        )
    except (OSError, ValueError, OverflowError) as error:  # it may be no name at all
        raise StoreUnavailable(
            f"the name of {progress.trying} does not resolve ({error})", kind="name"
        ) from None
    return addresses


def remapper(remap: Remap | None) -> Callable[[Address], Address]:
    """``remap`` as a function; raises ValueError for a mapping that is not one of addresses."""
    if remap is None:
        return lambda address: address
    if isinstance(remap, Mapping):
        table = {_place(name): _place(to) for name, to in remap.items()}

        def mapped(address: Address) -> Address:
            host, port = table.get(address) or table.get((address[0], None)) or address
            return host, address[1] if port is None else port

        return mapped
    if not callable(remap):
        raise TypeError(f"address_remap is a function or a mapping, not {type(remap).__name__}")

    def asked(address: Address) -> Address:
        try:
            host, port = remap(address)
            return str(host), int(port)
        except Exception as error:
            raise StoreUnavailable(
                f"address_remap gave no (host, port) for {spelt(*address)} ({error!r})",
                kind="cluster",
            ) from error

    return asked


def _place(spelt: Any) -> tuple[str, int | None]:
    """A host, and a port if there is one, of how either side of a remap is written."""
    if isinstance(spelt, tuple) and len(spelt) == 2 and isinstance(spelt[0], str):
        host, port = spelt
        if type(port) is int and 0 < port < 65536:
            return host, port
    elif isinstance(spelt, str):
        with suppress(ValueError):
            return str(ipaddress.ip_address(spelt)), None
        found = re.fullmatch(r"(\[[^\]\s]+\]|[^:\[\]\s]+)(?::([0-9]{1,5}))?", spelt)
        if found is not None and (found[2] is None or 0 < int(found[2]) < 65536):
            return found[1].strip("[]"), None if found[2] is None else int(found[2])
    raise ValueError(
        f"address_remap has {spelt!r}; it takes (host, port), 'host:port' or 'host' to the same"
    )
