"""Identities as a log may show them: who it was, without a secret in it.

The law of this module: an address, a route and nothing else is shown as it is, since everything
else may be a key or a token; and what a client wrote never reaches a terminal unread.
"""

from typing import Final

from ratelimit.decisions import identity_digest
from ratelimit.identity.addresses import read_address
from ratelimit.identity.keys import UNIDENTIFIED

__all__ = ["masked"]

SHOWN: Final = 4
"""Characters of a value that are shown, for whoever looks for one that he knows."""

LONG_ENOUGH: Final = 16
"""Characters of a value from which on its first ones are shown, since they do not give it away."""

DIGEST: Final = len(identity_digest(""))
"""Characters of a digest."""

_PLAIN: Final = ("client", "route", "global")


def masked(identity: str) -> str:
    """An identity, as requests are counted under it, without what may be a secret in it.

    ``203.0.113.9`` stays; ``header:x-api-key=sk_live_51HxQ7`` is ``header:x-api-key=sk_l…
    #8YkX0mTn1FJcVQ2Z``. Behind the ``#`` is the digest that the store's keys and the command show.
    """
    if not identity:
        return ""
    shown = [_masked(part) for part in _parts(identity)]
    text = " ".join(part for part, _ in shown)
    return text if all(whole for _, whole in shown) else f"{text} #{identity_digest(identity)}"


def _masked(part: str) -> tuple[str, bool]:
    """A part as it is shown, and whether that is all of it."""
    kind, equals, value = part.partition("=")
    if not equals:
        if part == UNIDENTIFIED or read_address(part.partition("/")[0]) is not None:
            return part, True
        kind, _, digest = part.rpartition("#")  # of a value that is too long to be kept
        return f"{_printable(kind)}=…" if len(digest) == DIGEST else "…", False
    if kind in _PLAIN:
        return f"{kind}={_printable(value)}" if value else kind, True
    start = _printable(value[:SHOWN]) if len(value) >= LONG_ENOUGH else ""
    return f"{_printable(kind)}={start}…", False


def _printable(text: str) -> str:
    return "".join([each if each.isprintable() and each != " " else "?" for each in text])


def _parts(identity: str) -> list[str]:
    """The parts of an identity, which are joined with their lengths where there are several."""
    parts: list[str] = []
    rest = identity
    while rest:
        length, colon, rest = rest.partition(":")
        number = int(length) if length.isascii() and length.isdigit() and len(length) < 6 else -1
        part, rest = rest[:number], rest[number:]
        # An IPv6 network begins like this as well.
        if not colon or number < 1 or len(part) != number or not {"=", "#"}.intersection(part):
            return [identity]
        parts.append(part)
    return parts or [identity]
