"""Overrides: the limits of single identities, and the texts that those are looked up by."""

import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from ratelimit.identity.addresses import read_address
from ratelimit.identity.keys import LONGEST_VALUE, identity_of
from ratelimit.limits import Limit
from ratelimit.rules.counting import Counting, cost, counting_of
from ratelimit.rules.reading import Reading, text
from ratelimit.words import near, shown

__all__ = [
    "BLOCKED",
    "BadIdentity",
    "GivenTwice",
    "Override",
    "is_address",
    "override_key",
    "overrides",
]

_IPV4: Final = re.compile(r"(?:(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)(?:\.(?!$)|$)){4}", re.ASCII)
"""An IPv4 address, which is its own key: a shortcut, since there may be many."""


class Blocked(tuple[Limit, ...]):
    """The limits of an identity that is refused; unlike no limits, which are those of anybody."""

    __slots__ = ()
    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other

    def __ne__(self, other: object) -> bool:
        return self is not other

    def __reduce__(self) -> str:
        return "BLOCKED"


BLOCKED: Final = Blocked()


class BadIdentity(ValueError):
    """An override's identity that cannot be meant."""


class GivenTwice(BadIdentity):
    """An override whose identity is that of an earlier one, ``first``."""

    def __init__(self, identity: str, key: str, first: str) -> None:
        what = (
            f" {shown(identity)} is given twice, as {key}" if is_address(key) else " is given twice"
        )
        super().__init__(f"the override{what}; give one")
        self.first = first


class Override(NamedTuple):
    """The limits of one identity, and the text by which it was given."""

    identity: str
    limits: tuple[Limit, ...]
    whole: bool
    """Whether that is every part of ``by``, not the first alone."""


def overrides(values: Mapping[str, Any], reading: Reading) -> dict[str, Override]:
    """The limits of single identities, by the texts that they are looked up by.

    An identity is that of the first part of ``by``; or of all parts, ``a|b``, a ``|`` in one
    written ``%7C``.
    """
    if not isinstance(values, Mapping):
        raise TypeError(f"overrides map identities to limits, not {type(values).__name__}")
    counting, units = counting_of(reading), reading.get("cost", 0)
    if "by" not in reading:  # nobody knows which identities are meant, but their limits are read
        for identity, limit in values.items():
            reading.at((identity,), _override_limits, limit, counting, units)
    by = reading["by"]
    if values and by[0] == "global":
        raise ValueError("overrides are given for 'global'; all requests share its one identity")
    own: dict[str, Override] = {}
    for identity, limit in values.items():
        found = reading.at((identity,), _override_key, identity, by, own)
        if found is not None:
            limits = reading.at((identity,), _override_limits, limit, counting, units)
            own[found[0]] = Override(identity, () if limits is None else limits, found[1])
    return own


def _override_key(
    value: object, by: tuple[str, ...], own: Mapping[str, Override]
) -> tuple[str, bool]:
    identity = text("an override's identity", value)
    try:
        key, whole = override_key(identity, by)
    except ValueError as error:
        raise BadIdentity(str(error)) from None
    if key in own:
        raise GivenTwice(identity, key, own[key].identity)
    return key, whole


def override_key(identity: str, by: tuple[str, ...], ipv6_prefix: int = 64) -> tuple[str, bool]:
    """The text that an override is looked up by, and whether it names every part of ``by``."""
    parts = identity.split("|")
    whole = len(parts) == len(by) > 1
    parts = parts if whole else [identity]
    if len(by) > 1:
        parts = [part.replace("%7C", "|") for part in parts]
    for kind, part in zip(by, parts, strict=False):
        if not part:
            raise ValueError("an override's identity is empty; it is that of the first part of by")
        if len(part) > LONGEST_VALUE:
            raise ValueError(
                f"an override's identity has {len(part)} characters; it has at most {LONGEST_VALUE}"
            )
        if kind == "client":
            key = address_key(part, ipv6_prefix)
    if whole:
        # What is joined holds a NUL, so that no first part that a client chooses is alike.
        return "\0" + identity_of(by, parts, ipv6_prefix)[0], True
    return key if by[0] == "client" else parts[0], False


def _override_limits(limit: object, counting: Counting | None, units: Any) -> tuple[Limit, ...]:
    if counting is None or limit == "blocked":  # a mistake in counting is told at its option
        return BLOCKED if limit == "blocked" else ()
    try:
        limits = counting.limits(limit, burst=False)
    except ValueError as error:
        if isinstance(limit, str) and re.match(r"\s*0+\s*(/|\s+per\s)", limit, re.IGNORECASE):
            raise ValueError("a quota of 0 lets nobody through; write 'blocked' for that") from None
        if isinstance(limit, str) and not limit.strip()[:1].isdigit():
            # It may be the identity, in the place of its limit.
            hint = near(limit[:20], ("unlimited", "blocked"), 0.7, repr)
            raise ValueError(
                f"it is not a limit{hint}; write '10/minute', 'unlimited' or 'blocked'"
            ) from None
        raise ValueError(str(error)) from None
    cost(units, limits)
    return limits


def is_address(identity: str) -> bool:
    """Whether an identity is an address, or a network as addresses are counted by."""
    return read_address(identity.partition("/")[0]) is not None


def address_key(value: str, ipv6_prefix: int = 64) -> str:
    """The key that requests from an address are counted under; for IPv6, that of its network."""
    if _IPV4.fullmatch(value):
        return value
    address = read_address(value, ipv6_prefix)
    if address is None or "%" in value:
        raise ValueError(
            f"the override {shown(value)} is not an IP address; by client, overrides name addresses"
        )
    return address.key
