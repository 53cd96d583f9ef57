"""A rule's options: each function reads one, or refuses it in a sentence."""

import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from functools import lru_cache
from http import HTTPMethod
from ipaddress import IPv4Network, IPv6Network
from types import EllipsisType
from typing import Any, Final, Literal, TypeVar, get_args

from starlette.requests import HTTPConnection

from ratelimit.identity.addresses import Network, read_address, unwrapped
from ratelimit.identity.keys import LONGEST_VALUE
from ratelimit.limits import Algorithm, Limit, Rounding
from ratelimit.words import near, shown

Mode = Literal["enforce", "shadow", "off"]
OnStoreFailure = Literal["allow", "deny", "local"]
OnMissing = Literal["client", "skip", "refuse"]

T = TypeVar("T")
Ask = Callable[[HTTPConnection], T | Awaitable[T]]
"""A function of the application over the connection, sync or async."""

SomeLimits = str | Limit | Sequence[Limit] | None
"""One limit or several; None (or the text "unlimited") for none."""

UNLIMITED: Final = "unlimited"

MOST_COST: Final = 2**42
"""The most units that one check can carry (ratelimit.decisions has the same bound)."""

DEFAULT_MAX_DELAY: Final = 10.0
"""Seconds that a leaking bucket may hold a request, where a rule does not say."""

BUILT_IN_BY: Final = ("client", "global", "route", "user")
NAMED_BY: Final = ("header", "cookie", "query", "path")
METHODS: Final = frozenset(HTTPMethod) | {
    "QUERY", "PURGE", "PROPFIND", "PROPPATCH", "MKCOL", "COPY", "MOVE", "LOCK", "UNLOCK", "REPORT",
    "SEARCH",
}  # fmt: skip

_NAME: Final = re.compile("[A-Za-z][A-Za-z0-9_.:-]{0,63}", re.ASCII)
_TOKEN: Final = re.compile("[A-Za-z0-9!#$%&'*+.^_`|~-]+", re.ASCII)
REGISTERED: Final = re.compile("[a-z_][a-z0-9_]{0,63}", re.ASCII)
_ATTRIBUTE: Final = re.compile("[A-Za-z_][A-Za-z0-9_]{0,63}", re.ASCII)
_IPV4: Final = re.compile(r"(?:(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)(?:\.(?!$)|$)){4}", re.ASCII)
"""An IPv4 address, which is its own key: a shortcut, since there may be many."""
_MOST_LIMITS: Final = 20
_MOST_PARTS: Final = 10


class Counting:
    """The algorithm, and its options, that count the limits given as text."""

    __slots__ = ("algorithm", "burst", "max_delay", "rounding")

    def __init__(
        self,
        algorithm: Algorithm | str | None,
        burst: int | None,
        rounding: Rounding | None,
        max_delay: float | EllipsisType | None,
    ) -> None:
        self.algorithm = Algorithm.SLIDING_COUNTER if algorithm is None else algorithm
        self.burst = burst
        self.rounding: Rounding = rounding or "down"
        leaks = self.algorithm == Algorithm.LEAKING_BUCKET
        if max_delay is ...:
            max_delay = DEFAULT_MAX_DELAY if leaks else None
        elif max_delay is None and not leaks:
            raise ValueError(f"a max_delay belongs to a leaking_bucket; {self.algorithm} has none")
        self.max_delay = max_delay
        if rounding is not None and self.algorithm != Algorithm.SLIDING_COUNTER:
            Limit("1/second", algorithm=self.algorithm)  # which may be the greater mistake
            raise ValueError(f"a rounding belongs to a sliding_counter; {algorithm} has none")

    def limits(self, value: object, *, burst: bool = True) -> tuple[Limit, ...]:
        """The limits of a text, a `Limit` or a sequence of them; empty for no limit.

        ``burst`` False leaves out the burst that is given beside a text (an override has its own).
        """
        if value is None or value == UNLIMITED:
            return ()
        if isinstance(value, str):
            return _parsed(
                value,
                str(self.algorithm),
                self.burst if burst else None,
                self.rounding,
                self.max_delay,
            )
        return ready_limits(value)


@lru_cache(maxsize=4096)  # a file repeats few texts in many overrides, and so do dynamic limits
def _parsed(
    text: str, algorithm: str, burst: int | None, rounding: Rounding, max_delay: float | None
) -> tuple[Limit, ...]:
    limits = Limit.parse_all(
        text, algorithm=algorithm, burst=burst, rounding=rounding, max_delay=max_delay
    )
    return _few(limits)


def ready_limits(limit: object) -> tuple[Limit, ...]:
    """A `Limit`, or several, as they are."""
    limits = (limit,) if isinstance(limit, Limit) else limit
    if not isinstance(limits, Sequence):
        raise TypeError(f"a limit is text, a Limit or several, not {type(limit).__name__}")
    for each in limits:
        if not isinstance(each, Limit):
            raise TypeError(f"a sequence of limits holds Limit objects, not {type(each).__name__}")
    if not limits:
        raise ValueError("the sequence of limits is empty; it holds at least one")
    if len({each.digest for each in limits}) < len(limits):
        raise ValueError(f"{shown(list(map(str, limits)))} gives the same limit twice")
    return _few(tuple(limits))


def _few(limits: tuple[Limit, ...]) -> tuple[Limit, ...]:
    if len(limits) > _MOST_LIMITS:
        raise ValueError(f"there are {len(limits)} limits; at most {_MOST_LIMITS} together")
    return limits


def refuse_options_of_text(
    algorithm: object, burst: object, rounding: object, max_delay: object
) -> None:
    """Raises where options of a text are given beside limits that carry their own."""
    given = {"algorithm": algorithm, "burst": burst, "rounding": rounding}
    for name, value in given.items():
        if value is not None:
            raise ValueError(f"{name} is given beside a Limit; a Limit carries its own")
    if max_delay is not ...:
        raise ValueError("max_delay is given beside a Limit; a Limit carries its own")


def tiers(limits: Mapping[Any, Any], counting: Counting) -> dict[str, tuple[Limit, ...]]:
    """The limits of each tier, in order; none for an unlimited one."""
    found: dict[str, tuple[Limit, ...]] = {}
    for name, limit in limits.items():
        text("a tier's name", name)
        if not name or len(name) > 64:
            raise ValueError(f"a tier is named {shown(name)}; a name has 1 to 64 characters")
        found[name] = counting.limits(limit)
    if not found:
        raise ValueError("there are no tiers; name at least one with its limit")
    if not any(found.values()):
        raise ValueError("every tier is unlimited; a rule limits at least one")
    return found


def tier(value: object, tiers: Mapping[str, object]) -> Any:
    """The source of a request's tier: ``user:ATTRIBUTE``, ``header:NAME`` or a registered name."""
    if value is None:
        if tiers:
            raise ValueError("there are tiers, but no tier; it says who chooses, as 'user:plan'")
        return None
    if not tiers:
        raise ValueError("tier is given without tiers; the limit is then a mapping of them")
    if callable(value):
        return value
    kind, colon, name = text("tier", value).partition(":")
    if kind == "user" and _ATTRIBUTE.fullmatch(name):
        return value
    if kind == "header" and _TOKEN.fullmatch(name):
        return f"header:{name.lower()}"
    if not colon and REGISTERED.fullmatch(kind):
        return value
    raise ValueError(
        f"tier is {shown(value)}; it is user:ATTRIBUTE, header:NAME (believed from trusted proxies "
        "alone) or a registered name (a-z, 0-9 and _)"
    )


def cost(value: object, limits: Iterable[Limit]) -> Any:
    """Units per request: a number that every limit can let through, a name or a function."""
    if callable(value):
        return value
    if isinstance(value, str):
        if not REGISTERED.fullmatch(value):
            raise ValueError(
                f"cost is {shown(value)}; it is a whole number or a registered name "
                "(a-z, 0-9 and _)"
            )
        return value
    if type(value) is not int:
        raise TypeError(f"cost is a whole number, not {type(value).__name__}")
    if not 0 <= value <= MOST_COST:
        raise ValueError(f"cost is {value}; it is at least 0 and at most 2^42")
    for limit in limits:
        if value > limit.capacity:
            raise ValueError(
                f"cost is {value} and can never pass; {str(limit)!r} lets through at most "
                f"{limit.capacity} at once"
            )
    return value


def name(value: object) -> str:
    """A rule's name."""
    if not _NAME.fullmatch(text("name", value)):
        raise ValueError(
            f"the name is {shown(value)}; it is 1 to 64 letters, digits and _ . : - "
            "that start with a letter"
        )
    return str(value)  # a StrEnum is text as well


def methods(values: Iterable[str]) -> frozenset[str]:
    """HTTP methods in upper case, with HEAD wherever GET is among them."""
    if isinstance(values, str):
        raise TypeError(f"methods is a list such as ['GET'], not the text {shown(values)}")
    known: set[str] = set()
    for method in values:
        text("a method", method)
        if method.upper() not in METHODS:
            hint = near(method.upper(), sorted(METHODS))
            raise ValueError(
                f"{shown(method)} is not an HTTP method{hint}; there are "
                + ", ".join(sorted(METHODS))
            )
        known.add(method.upper())
    if not known:
        raise ValueError("methods is empty and would match nothing; leave it out to match all")
    return frozenset(known | {"HEAD"} if "GET" in known else known)


def by(value: object, parameters: Iterable[str] | None, path: str | None) -> tuple[str, ...]:
    """The parts of an identity; ``parameters`` are those of the path, None for any."""
    parts: Any = (value,) if isinstance(value, str) else value
    if not isinstance(parts, Sequence):
        raise TypeError(f"by is text or several texts, not {type(value).__name__}")
    if len(parts) > _MOST_PARTS:
        raise ValueError(f"by has {len(parts)} parts; it has at most {_MOST_PARTS}")
    read: list[str] = []
    for part in parts:
        text("a part of by", part)
        read.append(_by_part(part, parameters, path))
    if not read:
        raise ValueError("by is empty; it names at least one, such as 'client'")
    for part in read:
        if read.count(part) > 1:
            raise ValueError(f"by names {shown(part)} twice; once is enough")
    return tuple(read)


def _by_part(part: str, parameters: Iterable[str] | None, path: str | None) -> str:
    kind, _, name = part.partition(":")
    if part not in NAMED_BY and REGISTERED.fullmatch(part):
        return part
    if kind not in NAMED_BY:
        raise ValueError(
            f"by is {shown(part)}; it is client, global, route, user, header:NAME, cookie:NAME, "
            "query:NAME, path:NAME or a registered name (a-z, 0-9 and _)"
        )
    if not name:
        raise ValueError(f"by is {shown(part)} without a name; write {kind}:NAME")
    if kind in ("header", "cookie") and not _TOKEN.fullmatch(name):
        raise ValueError(
            f"by is {shown(part)}; a {kind}'s name is letters, digits and !#$%&'*+.^_`|~-"
        )
    if kind == "path" and parameters is not None and name not in parameters:
        there = f"{shown(path)} has {', '.join(parameters) or 'none'}" if path else "it has no path"
        raise ValueError(
            f"by is {shown(part)}, which is not a parameter of the rule's path; {there}"
        )
    return part.lower() if kind == "header" else part


def overrides(
    values: Mapping[str, Any], by: tuple[str, ...], counting: Counting
) -> dict[str, tuple[Limit, ...]]:
    """The limits of single identities, by the text that the first part of ``by`` gives."""
    if not isinstance(values, Mapping):
        raise TypeError(f"overrides map identities to limits, not {type(values).__name__}")
    if values and by[0] == "global":
        raise ValueError("overrides are given for 'global'; all requests share its one identity")
    own: dict[str, tuple[Limit, ...]] = {}
    for identity, limit in values.items():
        text("an override's identity", identity)
        key = address_key(identity) if by[0] == "client" else identity
        if not key:
            raise ValueError("an override's identity is empty; it is that of the first part of by")
        if len(key) > LONGEST_VALUE:
            raise ValueError(
                f"an override's identity has {len(key)} characters; it has at most {LONGEST_VALUE}"
            )
        if key in own:
            raise ValueError(f"the override {shown(identity)} is given twice, as {key}; give one")
        own[key] = counting.limits(limit, burst=False)
    return own


def address_key(value: str) -> str:
    """The key that requests from an address are counted under; for IPv6, that of its network."""
    if _IPV4.fullmatch(value):
        return value
    address = read_address(value)
    if address is None or "%" in value:
        raise ValueError(
            f"the override {shown(value)} is not an IP address; by client, overrides name addresses"
        )
    return address.key


def networks(values: Iterable[object]) -> tuple[Network, ...]:
    """Networks, as addresses are compared with them: IPv4 within IPv6 is IPv4."""
    found = []
    for network in values:
        if not isinstance(network, IPv4Network | IPv6Network):
            raise TypeError(
                f"a list of networks holds {shown(network)}; its items are IPv4Network or "
                "IPv6Network"
            )
        found.append(unwrapped(network))
    return tuple(found)


def mode(value: object) -> None:
    """Refuses what is not a mode."""
    if value not in get_args(Mode):
        raise ValueError(f"mode is {shown(value)}; it is 'enforce', 'shadow' or 'off'")


def on_store_failure(value: object) -> None:
    if value not in get_args(OnStoreFailure):
        raise ValueError(f"on_store_failure is {shown(value)}; it is 'allow', 'deny' or 'local'")


def on_missing(value: object) -> None:
    if value not in get_args(OnMissing):
        raise ValueError(f"on_missing is {shown(value)}; it is 'client', 'skip' or 'refuse'")


def part(name: str, value: object) -> Fraction:
    """A part of a whole, above 0 and at most 1."""
    if isinstance(value, bool) or not isinstance(value, int | float | Fraction):
        raise TypeError(f"{name} is a number, not {type(value).__name__}")
    if not 0 < value <= 1:
        raise ValueError(f"{name} is {value}; it is above 0 and at most 1")
    return Fraction(str(value))


def text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name} is text, not {type(value).__name__}")
    return value
