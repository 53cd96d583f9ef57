"""Which requests, by which identity, under which limits: `Rule`, and the set of them.

Pure and frozen: everything that can be known before a request is computed when a rule is built.
A rule matches at least what Starlette's router would: whatever reaches a route is limited by the
rule of the same path.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from fractions import Fraction
from http import HTTPMethod
from ipaddress import IPv4Network, IPv6Network
from os import PathLike
from types import EllipsisType, MappingProxyType
from typing import Any, Final, Literal, get_args

from starlette.routing import compile_path

from ratelimit.identity import read_address
from ratelimit.limits import Algorithm, Limit, Rounding

__all__ = ["Mode", "Network", "OnStoreFailure", "Rule", "RuleSet", "policy_names"]

Mode = Literal["enforce", "shadow", "off"]
OnStoreFailure = Literal["allow", "deny", "local"]
Network = IPv4Network | IPv6Network

MOST_WORKERS: Final = 10_000

MOST_COST: Final = 2**42
"""What one check can carry (ratelimit.decisions has the same bound)."""

DEFAULT_MAX_DELAY: Final = 10.0
"""Seconds that a leaking bucket may hold a request, where a rule does not say."""

BUILT_IN_BY: Final = ("client", "global", "route", "user")
NAMED_BY: Final = ("header", "cookie", "query", "path")
STORE_SCHEMES: Final = (
    "memory", "redis", "rediss", "unix", "redis+cluster", "redis+sentinel",
)  # fmt: skip
METHODS: Final = frozenset(HTTPMethod) | {
    "QUERY", "PURGE", "PROPFIND", "PROPPATCH", "MKCOL", "COPY", "MOVE", "LOCK", "UNLOCK", "REPORT",
    "SEARCH",
}  # fmt: skip

_NAME: Final = re.compile("[A-Za-z][A-Za-z0-9_.:-]{0,63}", re.ASCII)
_TOKEN: Final = re.compile("[A-Za-z0-9!#$%&'*+.^_`|~-]+", re.ASCII)
_REGISTERED: Final = re.compile("[a-z_][a-z0-9_]*", re.ASCII)
_PARAMETER: Final = re.compile("{([a-zA-Z_][a-zA-Z0-9_]*)(?::([a-zA-Z_][a-zA-Z0-9_]*))?}", re.ASCII)
_NEVER_IN_PATH: Final = re.compile(r"[?#\x00-\x1f\x7f]|%[0-9A-Fa-f]{2}")
_LONGEST_PATH: Final = 2_000
_MOST_LIMITS: Final = 20
_MOST_PARTS: Final = 10


@dataclass(frozen=True, init=False, slots=True)
class Rule:
    """Which requests, by which identity, under which limits, in which mode; equal by value.

    ``Rule("login", "5/minute; 20/hour", path="/login", methods=["POST"], by="client")``.

    ``limit`` is text (one limit or several), a `Limit`, or a sequence of them. ``algorithm``,
    ``burst``, ``rounding`` and ``max_delay`` (seconds; None for no cut, 10 for a leaking bucket
    if left out) go with text only: a `Limit` carries its own. ``overrides`` maps identities to
    limits in the same forms, counted by the rule's algorithm; an override has no burst but the
    one in its own text.

    Raises ValueError or TypeError, in one sentence, for anything that could not be meant.
    """

    name: str
    """1 to 64 of ``A-Z a-z 0-9 _ . : -``, a letter first."""
    limits: tuple[Limit, ...]
    """At least one; no two alike."""
    by: tuple[str, ...]
    """What an identity is made of, in order; header names in lower case."""
    path: str | None
    """In Starlette's route syntax; None for every path."""
    methods: frozenset[str] | None
    """In upper case, HEAD among them where GET is; None for every method."""
    cost: int
    """Units per request; 0 or more, and no more than any limit can ever let through."""
    mode: Mode
    on_store_failure: OnStoreFailure | None
    """None for what the `RuleSet` says."""
    overrides: Mapping[str, tuple[Limit, ...]] = field(hash=False)
    """Limits of single identities, by the text of the first part of ``by``. An IPv6 address
    stands for its network of 64 bits, which is what clients are counted by."""
    policies: tuple[str, ...] = field(repr=False, compare=False)
    """The names under which ``limits`` are shown to clients, in the same order."""
    _regex: re.Pattern[str] | None = field(repr=False, compare=False)
    _across_lines: re.Pattern[str] | None = field(repr=False, compare=False)
    _convertors: dict[str, Any] = field(repr=False, compare=False)

    def __init__(
        self,
        name: str,
        limit: str | Limit | Sequence[Limit],
        *,
        by: str | Sequence[str] = "client",
        path: str | None = None,
        methods: Iterable[str] | None = None,
        algorithm: Algorithm | str | None = None,
        burst: int | None = None,
        rounding: Rounding | None = None,
        max_delay: float | EllipsisType | None = ...,
        cost: int = 1,
        mode: Mode = "enforce",
        on_store_failure: OnStoreFailure | None = None,
        overrides: Mapping[str, str | Limit | Sequence[Limit]] = MappingProxyType({}),
    ) -> None:
        _text("name", name)
        if not _NAME.fullmatch(name):
            raise ValueError(
                f"the name is {_shown(name)}; it is 1 to 64 letters, digits and _ . : - "
                "that start with a letter"
            )
        regex: re.Pattern[str] | None = None
        convertors: dict[str, Any] = {}
        if path is not None:
            regex, convertors = _compiled(path)
        limits = _limits(limit, algorithm, burst, rounding, max_delay)
        by = _by(by, convertors, path)
        if mode not in get_args(Mode):
            raise ValueError(f"mode is {_shown(mode)}; it is 'enforce', 'shadow' or 'off'")
        if on_store_failure is not None:
            _on_store_failure(on_store_failure)
        own = _overrides(overrides, by, limits[0])
        for some in (limits, *own.values()):
            if len(some) > _MOST_LIMITS:
                raise ValueError(f"there are {len(some)} limits; at most {_MOST_LIMITS} together")
        _cost(cost, [*limits, *(each for some in own.values() for each in some)])

        put = object.__setattr__
        put(self, "name", str(name))  # a StrEnum is text as well
        put(self, "limits", limits)
        put(self, "by", by)
        put(self, "path", path)
        put(self, "methods", None if methods is None else _methods(methods))
        put(self, "cost", cost)
        put(self, "mode", mode)
        put(self, "on_store_failure", on_store_failure)
        put(self, "overrides", MappingProxyType(own))
        put(self, "policies", policy_names(name, limits))
        put(self, "_regex", regex)
        # A rule for "/api/{rest:path}" must also hold what a route "/api/{name}" accepts, and
        # that includes "/api/a%0Ab": the dot of Starlette's path convertor stops at a new line.
        put(self, "_across_lines", regex and re.compile(regex.pattern, re.DOTALL))
        put(self, "_convertors", convertors)

    def scaled(self, part: Fraction) -> "Rule":
        """This rule with a part of each of its limits, under the same names.

        Raises ValueError where its cost could no longer pass.
        """
        rule = copy(self)
        put = object.__setattr__
        limits = tuple(limit.scaled(part) for limit in self.limits)
        overrides = {
            identity: tuple(limit.scaled(part) for limit in own)
            for identity, own in self.overrides.items()
        }
        _cost(self.cost, [*limits, *(each for own in overrides.values() for each in own)])
        put(rule, "limits", limits)
        put(rule, "overrides", MappingProxyType(overrides))
        return rule

    def match(self, method: str, path: str) -> dict[str, object] | None:
        """The path's parameters, converted, if this rule applies to a request; None if not.

        ``path`` is the decoded path below ``root_path``. Never raises: a value that its convertor
        refuses (5,000 digits for an ``int``) stays text.
        """
        if self.methods is not None and method.upper() not in self.methods:
            return None
        if self._regex is None or self._across_lines is None:
            return {}
        found = self._regex.match(path)
        if found is None and "\n" in path:
            found = self._across_lines.match(path)
        if found is None:
            return None
        return {name: _converted(each, found[name]) for name, each in self._convertors.items()}

    @property
    def registered_names(self) -> frozenset[str]:
        """The parts of ``by`` that the application must have registered."""
        return frozenset(part for part in self.by if ":" not in part and part not in BUILT_IN_BY)


@dataclass(frozen=True)
class RuleSet:
    """The rules in the order of the file, and what holds for all of them; equal by value.

    Raises ValueError or TypeError, in one sentence: two rules of one name (in any case), a store
    that is no URI, a deadline outside 1 ms to 60 s, or proxies that would be everyone.
    """

    rules: tuple[Rule, ...]
    store: str = field(default="memory://", repr=False)  # a URI may hold a password
    deadline_us: int = 50_000
    """How long a decision may take, in microseconds."""
    on_store_failure: OnStoreFailure = "allow"
    workers: int = 1
    """How many workers share a quota that is counted locally, until heartbeats were seen."""
    share: Fraction = Fraction(1)
    """The part of every quota that is this region's, above 0 and at most 1."""
    trusted_proxies: tuple[Network, ...] = ()
    allowlist: tuple[Network, ...] = ()
    denylist: tuple[Network, ...] = ()
    """Beats the allowlist."""
    headers: tuple[Literal["draft", "legacy"], ...] = ("draft",)
    _always: list[int] = field(init=False, repr=False, compare=False)
    _exact: dict[str, list[int]] = field(init=False, repr=False, compare=False)
    _below: dict[str, list[int]] = field(init=False, repr=False, compare=False)
    _deepest: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("rules", "trusted_proxies", "allowlist", "denylist", "headers"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        _unique_names(self.rules)
        _store(self.store)
        if type(self.deadline_us) is not int:
            raise TypeError(
                f"the deadline is whole microseconds, not {type(self.deadline_us).__name__}"
            )
        if not 1_000 <= self.deadline_us <= 60_000_000:
            raise ValueError(
                f"the deadline is {self.deadline_us / 1_000_000:g} s; it is 1 ms to 60 s"
            )
        _on_store_failure(self.on_store_failure)
        _workers(self.workers)
        object.__setattr__(self, "share", _share(self.share))
        for network in (*self.trusted_proxies, *self.allowlist, *self.denylist):
            if not isinstance(network, IPv4Network | IPv6Network):
                raise TypeError(
                    f"a list of networks holds {_shown(network)}; its items are IPv4Network or "
                    "IPv6Network"
                )
        for network in self.trusted_proxies:
            if network.prefixlen == 0:
                raise ValueError(
                    f"{network} trusts everyone, so that any client could choose its address; "
                    "trusted_proxies are the networks of the proxies alone"
                )
        for header in self.headers:
            if header not in ("draft", "legacy"):
                raise ValueError(
                    f"headers holds {_shown(header)}; its items are 'draft' and 'legacy'"
                )
        self._index()

    def _index(self) -> None:
        """Sorts the rules that are not off by what a request's path must be, or start with."""
        always: list[int] = []
        exact: dict[str, list[int]] = {}
        below: dict[str, list[int]] = {}
        for number, rule in enumerate(self.rules):
            if rule.mode == "off":
                continue
            if rule.path is None:
                always.append(number)
                continue
            parameter = _PARAMETER.search(rule.path)
            if parameter is None:
                exact.setdefault(rule.path, []).append(number)
            else:
                head = rule.path[: rule.path.rindex("/", 0, parameter.start()) + 1]
                below.setdefault(head, []).append(number)
        put = object.__setattr__
        put(self, "_always", always)
        put(self, "_exact", exact)
        put(self, "_below", below)
        put(self, "_deepest", max((head.count("/") for head in below), default=0))

    def of_region(self) -> "RuleSet":
        """The same with every quota cut to this region's share, which is then 1.

        Raises ValueError where a rule's cost could no longer pass.
        """
        if self.share == 1:
            return self
        rules = tuple(rule.scaled(self.share) for rule in self.rules)
        return replace(self, rules=rules, share=Fraction(1))

    @classmethod
    def load(cls, path: str | PathLike[str]) -> "RuleSet":
        """The rules in a YAML file. Raises RuleFileError with every mistake in it at once."""
        from ratelimit import rulefile  # noqa: PLC0415  it is built on this module

        return rulefile.load(path)

    def matching(self, method: str, path: str) -> list[tuple[Rule, dict[str, object]]]:
        """Every rule that applies and is not off, in order, each with the path's parameters.

        Looks only at rules whose literal start is the path's own, so the number of other rules
        does not matter.
        """
        numbers = self._always + self._exact.get(path, [])
        if path.endswith("\n"):  # the router's "$" matches before one
            numbers += self._exact.get(path[:-1], [])
        end = 0
        for _ in range(self._deepest):
            end = path.find("/", end) + 1
            if end == 0:
                break
            numbers += self._below.get(path[:end], [])
        numbers.sort()
        found = []
        for number in numbers:
            rule = self.rules[number]
            parameters = rule.match(method, path)
            if parameters is not None:
                found.append((rule, parameters))
        return found

    @property
    def registered_names(self) -> frozenset[str]:
        """The parts of ``by`` that the application must have registered."""
        return frozenset().union(*(rule.registered_names for rule in self.rules))


def policy_names(name: str, limits: Sequence[Limit]) -> tuple[str, ...]:
    """What each limit of a rule is called before clients: ``login``, or ``login:60`` and so on.

    The number is the window in seconds, rounded up; limits of equal windows are counted as well:
    ``login:60:1``, ``login:60:2``.
    """
    if len(limits) == 1:
        return (name,)
    windows = [-(-limit.window_us // 1_000_000) for limit in limits]
    return tuple(
        f"{name}:{window}"
        + (f":{windows[:place].count(window) + 1}" if windows.count(window) > 1 else "")
        for place, window in enumerate(windows)
    )


def _limits(
    limit: object,
    algorithm: Algorithm | str | None,
    burst: int | None,
    rounding: Rounding | None,
    max_delay: float | EllipsisType | None,
) -> tuple[Limit, ...]:
    if not isinstance(limit, str):
        given = {"algorithm": algorithm, "burst": burst, "rounding": rounding}
        for name, value in given.items():
            if value is not None:
                raise ValueError(f"{name} is given beside a Limit; a Limit carries its own")
        if max_delay is not ...:
            raise ValueError("max_delay is given beside a Limit; a Limit carries its own")
        return _ready_limits(limit)
    if algorithm is None:
        algorithm = Algorithm.SLIDING_COUNTER
    leaks = algorithm == Algorithm.LEAKING_BUCKET
    if max_delay is ...:
        max_delay = DEFAULT_MAX_DELAY if leaks else None
    elif max_delay is None and not leaks:
        raise ValueError(f"a max_delay belongs to a leaking_bucket; {algorithm} has none")
    limits = Limit.parse_all(
        limit, algorithm=algorithm, burst=burst, rounding=rounding or "down", max_delay=max_delay
    )
    if rounding is not None and algorithm != Algorithm.SLIDING_COUNTER:
        raise ValueError(f"a rounding belongs to a sliding_counter; {algorithm} has none")
    return limits


def _ready_limits(limit: object) -> tuple[Limit, ...]:
    limits = (limit,) if isinstance(limit, Limit) else limit
    if not isinstance(limits, Sequence):
        raise TypeError(f"a limit is text, a Limit or several, not {type(limit).__name__}")
    for each in limits:
        if not isinstance(each, Limit):
            raise TypeError(f"a sequence of limits holds Limit objects, not {type(each).__name__}")
    if not limits:
        raise ValueError("the sequence of limits is empty; it holds at least one")
    if len({each.digest for each in limits}) < len(limits):
        raise ValueError(f"{_shown(list(map(str, limits)))} gives the same limit twice")
    return tuple(limits)


def _cost(cost: object, limits: Iterable[Limit]) -> None:
    if type(cost) is not int:
        raise TypeError(f"cost is a whole number, not {type(cost).__name__}")
    if not 0 <= cost <= MOST_COST:
        raise ValueError(f"cost is {cost}; it is at least 0 and at most 2^42")
    for limit in limits:
        if cost > limit.capacity:
            raise ValueError(
                f"cost is {cost} and can never pass; {str(limit)!r} lets through at most "
                f"{limit.capacity} at once"
            )


def _methods(methods: Iterable[str]) -> frozenset[str]:
    if isinstance(methods, str):
        raise TypeError(f"methods is a list such as ['GET'], not the text {_shown(methods)}")
    known: set[str] = set()
    for method in methods:
        _text("a method", method)
        if method.upper() not in METHODS:
            near = get_close_matches(method.upper(), sorted(METHODS), 1, 0.5)
            hint = f"; did you mean {near[0]}" if near else ""
            raise ValueError(
                f"{_shown(method)} is no HTTP method{hint}; there are {', '.join(sorted(METHODS))}"
            )
        known.add(method.upper())
    if not known:
        raise ValueError("methods is empty and would match nothing; leave it out to match all")
    return frozenset(known | {"HEAD"} if "GET" in known else known)


def _compiled(path: object) -> tuple[re.Pattern[str], dict[str, Any]]:
    """Starlette's regular expression for a path, and the convertors of its parameters."""
    path = _text("path", path)
    if not path.startswith("/"):
        raise ValueError(f"the path is {_shown(path)}; it starts with /")
    if len(path) > _LONGEST_PATH:
        raise ValueError(f"the path has {len(path)} characters; it has at most {_LONGEST_PATH}")
    never = _NEVER_IN_PATH.search(path)
    if never:
        raise ValueError(
            f"the path {_shown(path)} holds {_shown(never[0])}; it is the decoded path alone, "
            "without query or fragment"
        )
    if re.search("[{}]", _PARAMETER.sub("", path)):
        raise ValueError(
            f"the path {_shown(path)} has a brace that belongs to no parameter; parameters are "
            "written {name} or {name:int}"
        )
    parameters = _PARAMETER.findall(path)
    names = [name for name, _ in parameters]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(
                f"the path {_shown(path)} has two parameters {name!r}; each has its own name"
            )
    try:
        regex, _, convertors = compile_path(path)
    except (AssertionError, KeyError):  # KeyError where Python runs with -O
        raise ValueError(
            f"the path {_shown(path)} has a convertor that does not exist; there are str, int, "
            "float, uuid, path and those that the application registered"
        ) from None
    return regex, convertors


def _converted(convertor: Any, text: str) -> object:
    try:
        return convertor.convert(text)
    except Exception:  # noqa: BLE001  any convertor of the application's
        return text


def _by(by: object, parameters: Iterable[str], path: str | None) -> tuple[str, ...]:
    parts: Any = (by,) if isinstance(by, str) else by
    if not isinstance(parts, Sequence):
        raise TypeError(f"by is text or several texts, not {type(by).__name__}")
    if len(parts) > _MOST_PARTS:
        raise ValueError(f"by has {len(parts)} parts; it has at most {_MOST_PARTS}")
    read: list[str] = []
    for part in parts:
        _text("a part of by", part)
        read.append(_by_part(part, parameters, path))
    if not read:
        raise ValueError("by is empty; it names at least one, such as 'client'")
    for part in read:
        if read.count(part) > 1:
            raise ValueError(f"by names {_shown(part)} twice; once is enough")
    return tuple(read)


def _by_part(part: str, parameters: Iterable[str], path: str | None) -> str:
    kind, _, name = part.partition(":")
    if part not in NAMED_BY and _REGISTERED.fullmatch(part):
        return part
    if kind not in NAMED_BY:
        raise ValueError(
            f"by is {_shown(part)}; it is client, global, route, user, header:NAME, cookie:NAME, "
            "query:NAME, path:NAME or a registered name (a-z, 0-9 and _)"
        )
    if not name:
        raise ValueError(f"by is {_shown(part)} without a name; write {kind}:NAME")
    if kind in ("header", "cookie") and not _TOKEN.fullmatch(name):
        raise ValueError(
            f"by is {_shown(part)}; a {kind}'s name is letters, digits and !#$%&'*+.^_`|~-"
        )
    if kind == "path" and name not in parameters:
        there = (
            f"{_shown(path)} has {', '.join(parameters) or 'none'}" if path else "it has no path"
        )
        raise ValueError(f"by is {_shown(part)}, which is no parameter of the rule's path; {there}")
    return part.lower() if kind == "header" else part


def _overrides(
    overrides: Mapping[str, Any], by: tuple[str, ...], first: Limit
) -> dict[str, tuple[Limit, ...]]:
    if not isinstance(overrides, Mapping):
        raise TypeError(f"overrides map identities to limits, not {type(overrides).__name__}")
    if overrides and by[0] == "global":
        raise ValueError("overrides are given for 'global'; it has one identity, which is no one's")
    own: dict[str, tuple[Limit, ...]] = {}
    for identity, limit in overrides.items():
        _text("an override's identity", identity)
        key = _address_key(identity) if by[0] == "client" else identity
        if not key:
            raise ValueError("an override's identity is empty; it is that of the first part of by")
        if key in own:
            raise ValueError(f"the override {_shown(identity)} is given twice, as {key}; give one")
        if isinstance(limit, str):
            own[key] = Limit.parse_all(
                limit,
                algorithm=first.algorithm,
                rounding=first.rounding,
                max_delay=first.max_delay,
            )
        else:
            own[key] = _ready_limits(limit)
    return own


def _address_key(text: str) -> str:
    """What requests from an address are counted under: for IPv6, its network."""
    address = read_address(text)
    if address is None or "%" in text:
        raise ValueError(
            f"the override {_shown(text)} is no IP address; by client, overrides name addresses"
        )
    return address.key


def _on_store_failure(value: object) -> None:
    if value not in get_args(OnStoreFailure):
        raise ValueError(f"on_store_failure is {_shown(value)}; it is 'allow', 'deny' or 'local'")


def _workers(value: object) -> None:
    if type(value) is not int:
        raise TypeError(f"workers is a whole number, not {type(value).__name__}")
    if not 1 <= value <= MOST_WORKERS:
        raise ValueError(f"workers is {value}; it is 1 to {MOST_WORKERS}")


def _share(value: object) -> Fraction:
    if isinstance(value, bool) or not isinstance(value, int | float | Fraction):
        raise TypeError(f"share is a number, not {type(value).__name__}")
    if not 0 < value <= 1:
        raise ValueError(f"share is {value}; it is above 0 and at most 1")
    return Fraction(str(value))


def _unique_names(rules: Iterable[object]) -> None:
    names: set[str] = set()
    shown: dict[str, str] = {}
    for rule in rules:
        if not isinstance(rule, Rule):
            raise TypeError(f"a RuleSet holds Rule objects, not {type(rule).__name__}")
        # Policy names may become case-insensitive (ietf-wg-httpapi/ratelimit-headers#166).
        if rule.name.lower() in names:
            raise ValueError(
                f"two rules are named {_shown(rule.name)}; each has its own name, in any case"
            )
        names.add(rule.name.lower())
        for policy in rule.policies:
            other = shown.setdefault(policy.lower(), rule.name)
            if other != rule.name:
                raise ValueError(
                    f"rules {other!r} and {rule.name!r} would both be shown to clients as "
                    f"{policy!r}; rename one"
                )


def _store(uri: object) -> None:
    """Refuses what cannot be a store's URI; shows no more of it than its scheme."""
    scheme, colon, rest = _text("store", uri).partition("://")
    if not colon:
        raise ValueError("the store is no URI; write one such as redis://localhost:6379/0")
    if scheme not in STORE_SCHEMES:
        near = get_close_matches(scheme.lower(), STORE_SCHEMES, 1, 0.6)
        hint = f"; did you mean {near[0]}://" if near else ""
        raise ValueError(
            f"the store's scheme is {_shown(scheme)}{hint}; there are "
            + ", ".join(f"{each}://" for each in STORE_SCHEMES)
        )
    if scheme == "memory" and rest:
        raise ValueError("something follows memory:// in the store; it is memory:// alone")
    if scheme != "memory" and not re.fullmatch(r"[^\s\x00-\x1f\x7f]+", rest):
        raise ValueError(f"nothing, or a space, follows {scheme}:// in the store; name a server")
    if scheme == "unix" and "/" not in rest:
        raise ValueError("no path follows unix:// in the store; write unix:///path/of/the/socket")
    if scheme == "redis+sentinel" and not re.fullmatch("[^/]+/[^/?]+.*", rest):
        raise ValueError(
            "no service follows the hosts in the store; write "
            "redis+sentinel://host:port,host:port/service"
        )


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name} is text, not {type(value).__name__}")
    return value


def _shown(value: object) -> str:
    """A user's value for a message: quoted, and cut where it is long."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
