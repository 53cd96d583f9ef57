"""Which requests, by which identity, under which limits: `Rule`, and the set of them.

Pure and frozen: everything that can be known before a request is computed when a rule is built.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from fractions import Fraction
from functools import cache, lru_cache
from hashlib import blake2b
from os import PathLike
from types import EllipsisType, MappingProxyType
from typing import Any, Final, Literal, NamedTuple

from ratelimit import options
from ratelimit.addresses import Network, Networks, read_address
from ratelimit.limits import Algorithm, Limit, Rounding
from ratelimit.options import (
    Ask,
    Counting,
    Mode,
    OnMissing,
    OnStoreFailure,
    SomeLimits,
    shown,
)
from ratelimit.paths import Path

__all__ = ["Mode", "Network", "OnMissing", "OnStoreFailure", "Rule", "RuleSet", "policy_names"]

Header = Literal["draft", "legacy", "draft-03"]

MOST_WORKERS: Final = 10_000
MOST_AT_ONCE: Final = 500
"""Limits of one request; the in-process store has the same bound."""
MOST_PLAINS: Final = 1_000
"""Sets of plain rules that match together, prepared and kept."""
LONGEST_JITTER_US: Final = 60_000_000
HEADERS: Final = ("draft", "legacy", "draft-03")
STORE_SCHEMES: Final = (
    "memory", "redis", "rediss", "unix", "redis+cluster", "redis+sentinel",
)  # fmt: skip


@dataclass(frozen=True, init=False, slots=True)
class Rule:
    """Which requests, by which identity, under which limits, in which mode; equal by value.

    ``Rule("login", "5/minute; 20/hour", path="/login", methods=["POST"], by="client")``.

    ``limit`` is text (one limit or several), a `Limit`, or a sequence of them; or a mapping of
    tiers to those ("unlimited" or None for no limit), of which ``tier`` chooses and the first
    holds where it gives none that is known; or a function over the connection, sync or async, that
    gives one of those (None for no limit).

    ``algorithm``, ``burst``, ``rounding`` and ``max_delay`` (seconds; None for no cut, 10 for a
    leaking bucket if left out) go with text only: a `Limit` carries its own. ``overrides`` maps
    identities to limits in the same forms, counted by the rule's algorithm; an override has no
    burst but the one in its own text.

    ``cost`` is a number, a registered name, or a function over the connection. ``skip``, a function
    over the connection, says of a request that this rule does not apply to it.

    Raises ValueError or TypeError, in one sentence, for anything that could not be meant.
    """

    name: str
    """1 to 64 of ``A-Z a-z 0-9 _ . : -``, a letter first."""
    limits: tuple[Limit, ...]
    """No two alike; those of the first tier; none where that is unlimited, or chosen by request."""
    tiers: Mapping[str, tuple[Limit, ...]] = field(hash=False)
    """The limits of each tier, none for an unlimited one; empty where there are no tiers."""
    tier: str | Ask[str | None] | None
    """Who says which tier: ``user:ATTRIBUTE``, ``header:NAME``, a registered name, a function."""
    dynamic: Ask[SomeLimits] | None
    """What gives the limits, request by request."""
    by: tuple[str, ...]
    """What an identity is made of, in order; header names in lower case."""
    path: str | None
    """In Starlette's route syntax; None for every path."""
    methods: frozenset[str] | None
    """In upper case, HEAD among them where GET is; None for every method."""
    cost: int | str | Ask[int]
    """Units per request; a number is 0 or more, and no more than any limit can let through."""
    mode: Mode
    enforce_share: Fraction
    """The part of all identities for whom ``enforce`` holds, above 0; the others are shadows."""
    on_store_failure: OnStoreFailure | None
    """None for what the `RuleSet` says."""
    on_missing: OnMissing
    """What becomes of a request that lacks a part of ``by``: it counts under the client's address,
    the rule does not apply, or it is refused (403)."""
    overrides: Mapping[str, tuple[Limit, ...]] = field(hash=False)
    """Limits of single identities, by the text of the first part of ``by``; none for unlimited.
    An IPv6 address stands for its network of 64 bits, which is what clients are counted by."""
    allowlist: tuple[Network, ...]
    """Clients to whom this rule does not apply."""
    denylist: tuple[Network, ...]
    """Clients whose requests, where this rule matches, are refused (403); beats the allowlist."""
    skip: Ask[bool] | None
    policies: tuple[str, ...] = field(repr=False, compare=False)
    """The names under which ``limits`` are shown to clients, in the same order."""
    plain: bool = field(repr=False, compare=False)
    """Whether limits, cost and mode are the same for all, and the identity is the client."""
    allowed_clients: Networks = field(repr=False, compare=False)
    denied_clients: Networks = field(repr=False, compare=False)
    _path: Path | None = field(repr=False, compare=False)
    _counting: Counting = field(repr=False, compare=False)
    _part: Fraction = field(repr=False)
    """The part of every quota that is this region's."""
    _named: Mapping[str, tuple[Limit, ...]] = field(repr=False, compare=False)
    """The overrides, by the texts that were given."""

    def __init__(  # noqa: PLR0915  # each option is read once, in the order of their mistakes
        self,
        name: str,
        limit: "SomeLimits | Mapping[str, SomeLimits] | Ask[SomeLimits]",
        *,
        by: str | Sequence[str] = "client",
        path: str | None = None,
        methods: Iterable[str] | None = None,
        algorithm: Algorithm | str | None = None,
        burst: int | None = None,
        rounding: Rounding | None = None,
        max_delay: float | EllipsisType | None = ...,
        cost: int | str | Ask[int] = 1,
        mode: Mode = "enforce",
        enforce_share: float | Fraction = 1,
        on_store_failure: OnStoreFailure | None = None,
        on_missing: OnMissing = "client",
        tier: str | Ask[str | None] | None = None,
        overrides: Mapping[str, SomeLimits] = MappingProxyType({}),
        allowlist: Iterable[Network] = (),
        denylist: Iterable[Network] = (),
        skip: Ask[bool] | None = None,
        on_route: bool = False,
    ) -> None:
        """``on_route`` is for a route's own rule: ``by`` may name parameters of any path."""
        put = object.__setattr__
        put(self, "name", options.name(name))
        compiled = None if path is None else Path(options.text("path", path))
        tiers: dict[str, tuple[Limit, ...]] = {}
        limits: tuple[Limit, ...] = ()
        dynamic: Any = None
        if isinstance(limit, str | Mapping) or callable(limit):
            counting = Counting(algorithm, burst, rounding, max_delay)
            if isinstance(limit, str):
                limits = counting.limits(limit)
            elif isinstance(limit, Mapping):
                tiers = options.tiers(limit, counting)
                limits = next(iter(tiers.values()))
            else:
                counting.limits("1/second")  # a mistake in the options is told where it is made
                dynamic = limit
        else:
            options.refuse_options_of_text(algorithm, burst, rounding, max_delay)
            limits = options.ready_limits(limit)
            first = limits[0]
            counting = Counting(first.algorithm, None, None, ...)
            counting.rounding, counting.max_delay = first.rounding, first.max_delay
        if not (limits or tiers or dynamic):
            raise ValueError(f"the limit is {shown(limit)}; a rule without a limit has mode 'off'")
        put(self, "limits", limits)
        put(self, "tiers", MappingProxyType(tiers))
        put(self, "tier", options.tier(tier, tiers))
        put(self, "dynamic", dynamic)
        parameters = None if on_route else () if compiled is None else compiled.parameters
        put(self, "by", options.by(by, parameters, path))
        put(self, "path", path)
        put(self, "methods", None if methods is None else options.methods(methods))
        options.mode(mode)
        put(self, "mode", mode)
        put(self, "enforce_share", options.part("enforce_share", enforce_share))
        if on_store_failure is not None:
            options.on_store_failure(on_store_failure)
        put(self, "on_store_failure", on_store_failure)
        options.on_missing(on_missing)
        put(self, "on_missing", on_missing)
        own = options.overrides(overrides, self.by, counting)
        put(self, "overrides", MappingProxyType(own))
        put(self, "_named", dict(zip(overrides, own.values(), strict=True)))
        put(self, "cost", options.cost(cost, _all_limits(limits, tiers, own)))
        put(self, "allowlist", options.networks(allowlist))
        put(self, "denylist", options.networks(denylist))
        put(self, "allowed_clients", Networks(self.allowlist))
        put(self, "denied_clients", Networks(self.denylist))
        if skip is not None and not callable(skip):
            raise TypeError(f"skip is a function over the connection, not {type(skip).__name__}")
        put(self, "skip", skip)
        put(self, "policies", policy_names(name, limits))
        put(self, "_path", compiled)
        put(self, "_counting", counting)
        put(self, "_part", Fraction(1))
        put(self, "plain", self._is_plain())

    def _is_plain(self) -> bool:
        return (
            self.by == ("client",)
            and self.mode == "enforce"
            and self.enforce_share == 1
            and isinstance(self.cost, int)
            and not (self.tiers or self.dynamic or self.overrides or self.skip)
            and not (self.allowlist or self.denylist)
        )

    def in_force(self, part: Fraction, ipv6_prefix: int) -> "Rule":
        """This rule with a part of each of its limits, its overrides by IPv6 networks of a length.

        Raises ValueError where its cost could no longer pass.
        """
        rule = copy(self)
        put = object.__setattr__

        @cache  # a file repeats few limits in many overrides
        def scaled(limits: tuple[Limit, ...]) -> tuple[Limit, ...]:
            return limits if part == 1 else tuple(limit.scaled(part) for limit in limits)

        overrides = {key: scaled(own) for key, own in self.overrides.items()}
        if self.by[0] == "client" and ipv6_prefix != 64:
            overrides = {}
            for text, own in self._named.items():
                address = read_address(text, ipv6_prefix)
                overrides[text if address is None else address.key] = scaled(own)
        tiers = {name: scaled(limits) for name, limits in self.tiers.items()}
        limits = scaled(self.limits)
        options.cost(self.cost, _all_limits(limits, tiers, overrides))
        put(rule, "limits", limits)
        put(rule, "tiers", MappingProxyType(tiers))
        put(rule, "overrides", MappingProxyType(overrides))
        put(rule, "_part", part)
        return rule

    def read_limits(self, value: object) -> tuple[Limit, ...]:
        """What ``dynamic`` gave, as limits; none for no limit.

        Raises ValueError or TypeError, in one sentence, where it is nothing of the kind.
        """
        limits = self._counting.limits(value)
        return limits if self._part == 1 else tuple(limit.scaled(self._part) for limit in limits)

    def enforced_on(self, identity: str) -> bool:
        """Whether an identity is in the ``enforce_share``: always the same answer for it.

        Shares only grow: who is in 10 % is in 25 %. Each rule draws by itself.
        """
        digest = blake2b(
            f"{self.name}\0{identity}".encode("utf-8", "surrogatepass"), digest_size=6
        ).digest()
        return int.from_bytes(digest) < self.enforce_share * 2**48

    def match(self, method: str, path: str) -> dict[str, object] | None:
        """The path's parameters, converted, if this rule applies to a request; None if not.

        ``path`` is the decoded path below ``root_path``. Never raises.
        """
        if self.methods is not None and method.upper() not in self.methods:
            return None
        return {} if self._path is None else self._path.match(path)

    @property
    def registered_names(self) -> frozenset[str]:
        """The parts of ``by`` that the application must have registered."""
        return frozenset(
            part for part in self.by if ":" not in part and part not in options.BUILT_IN_BY
        )


def _all_limits(limits: tuple[Limit, ...], *others: Mapping[str, tuple[Limit, ...]]) -> list[Limit]:
    return [*limits, *(each for some in others for own in some.values() for each in own)]


class TooManyLimits(ValueError):
    """More limits would apply to one request than a store decides at once."""


Matching = list[tuple[Rule, dict[str, object]]]


class Plain(NamedTuple):
    """What every client's request asks under the same plain rules; the same but for its key."""

    asked: tuple[tuple[Limit, int, str], ...]
    """Limit, cost and rule of each check."""
    policies: tuple[str, ...]
    allowed: tuple[tuple[str, str], ...]
    """Under what a limiter counts each that is allowed."""
    written: dict[int, Any]
    """What is told of their policies, kept by who writes it."""


Found = tuple[Matching, Plain | None]
"""The rules of a request; and what they ask of everyone, where all of them are plain."""


@dataclass(frozen=True)
class RuleSet:
    """The rules in the order of the file, and what holds for all of them; equal by value.

    Raises ValueError or TypeError, in one sentence: two rules of one name (in any case), a store
    that is no URI, a deadline outside 1 ms to 60 s, proxies that would be everyone, or two ways to
    tell the client's address.
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
    trusted_hops: int = 0
    """How many proxies stand in front, instead of their networks; at most 32."""
    forwarded_header: Literal["x-forwarded-for", "forwarded"] = "x-forwarded-for"
    """The field in which the proxies write where a request came from."""
    ipv6_prefix: int = 64
    """How many bits of an IPv6 address are one client, 16 to 128."""
    allowlist: tuple[Network, ...] = ()
    denylist: tuple[Network, ...] = ()
    """Beats the allowlist."""
    headers: tuple[Any, ...] = ("draft",)
    """Dialects: names, or functions such as those in ratelimit.headers."""
    retry_jitter_us: int = 0
    """At most so much is added to `Retry-After`, by chance; at most 60 s."""
    preflights: Literal["free", "count"] = "free"
    """Whether a browser's CORS preflights count where a rule does not name OPTIONS."""
    files: tuple[str, ...] = field(default=(), compare=False, repr=False)
    """The files that were read for this."""
    allowed_clients: Networks = field(init=False, repr=False, compare=False)
    """``allowlist`` for looking up, and for a limiter to copy; made where the rules are read."""
    denied_clients: Networks = field(init=False, repr=False, compare=False)
    _always: list[int] = field(init=False, repr=False, compare=False)
    _exact: dict[str, list[int]] = field(init=False, repr=False, compare=False)
    _below: dict[str, list[int]] = field(init=False, repr=False, compare=False)
    _deepest: int = field(init=False, repr=False, compare=False)
    _known: dict[tuple[str, str | None], Found] = field(init=False, repr=False, compare=False)
    _plains: dict[tuple[int, ...], tuple[list[Rule], Plain | None]] = field(
        init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        put = object.__setattr__
        for name in ("rules", "headers"):
            put(self, name, tuple(getattr(self, name)))
        for name in ("trusted_proxies", "allowlist", "denylist"):
            put(self, name, options.networks(getattr(self, name)))
        put(self, "allowed_clients", Networks(self.allowlist))
        put(self, "denied_clients", Networks(self.denylist))
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
        options.on_store_failure(self.on_store_failure)
        _whole("workers", self.workers, 1, MOST_WORKERS)
        put(self, "share", options.part("share", self.share))
        for network in self.trusted_proxies:
            if network.prefixlen == 0:
                raise ValueError(
                    f"{network} trusts everyone, so that any client could choose its address; "
                    "trusted_proxies are the networks of the proxies alone"
                )
        _whole("trusted_hops", self.trusted_hops, 0, 32)
        if self.trusted_hops and self.trusted_proxies:
            raise ValueError("both trusted_hops and trusted_proxies are given; give one of them")
        if self.forwarded_header not in ("x-forwarded-for", "forwarded"):
            raise ValueError(
                f"forwarded_header is {shown(self.forwarded_header)}; it is 'x-forwarded-for' or "
                "'forwarded'"
            )
        _whole("ipv6_prefix", self.ipv6_prefix, 16, 128)
        for header in self.headers:
            if header not in HEADERS and not callable(header):
                raise ValueError(
                    f"headers holds {shown(header)}; its items are {', '.join(map(repr, HEADERS))}"
                )
        _whole("retry_jitter_us", self.retry_jitter_us, 0, LONGEST_JITTER_US)
        if self.preflights not in ("free", "count"):
            raise ValueError(f"preflights is {shown(self.preflights)}; it is 'free' or 'count'")
        self._index()
        _few_at_once(self.rules)

    def _index(self) -> None:
        """Sorts the rules that are not off by what a request's path must be, or start with."""
        always: list[int] = []
        exact: dict[str, list[int]] = {}
        below: dict[str, list[int]] = {}
        for number, rule in enumerate(self.rules):
            if rule.mode == "off":
                continue
            path = rule._path  # noqa: SLF001  # this module's own
            if path is None:
                always.append(number)
            elif path.literal:
                exact.setdefault(path.start, []).append(number)
            else:
                below.setdefault(path.start, []).append(number)
        put = object.__setattr__
        put(self, "_always", always)
        put(self, "_exact", exact)
        put(self, "_below", below)
        put(self, "_deepest", max((head.count("/") for head in below), default=0))
        put(self, "_known", {})
        put(self, "_plains", {})

    def in_force(self) -> "RuleSet":
        """The same with every quota cut to this region's share, which is then 1.

        Raises ValueError where a rule's cost could no longer pass.
        """
        if self.share == 1 and self.ipv6_prefix == 64:
            return self
        rules = tuple(rule.in_force(self.share, self.ipv6_prefix) for rule in self.rules)
        return replace(self, rules=rules, share=Fraction(1))

    @classmethod
    def load(cls, path: str | PathLike[str]) -> "RuleSet":
        """The rules in a YAML file. Raises RuleFileError with every mistake in it at once."""
        from ratelimit import rulefile  # noqa: PLC0415  it is built on this module

        return rulefile.load(path)

    def matching(self, method: str, path: str) -> Matching:
        """Every rule that applies and is not off, in order, each with the path's parameters.

        Looks only at rules whose literal start is the path's own, so the number of other rules
        does not matter. The list is not to be changed.
        """
        return self.find(method, path)[0]

    def find(self, method: str, path: str) -> Found:
        """The same, and what they ask of everyone, where all of them are plain."""
        below = self._heads(path) if self._below else []
        if below or path[-1:] == "\n":  # the router's "$" matches before one
            return self._find(method, path, below)
        # Without parameters the answer is one of a few.
        known = method, path if path in self._exact else None
        found = self._known.get(known)
        if found is None:
            found = self._find(method, path, below)
            if method in options.METHODS:  # others may be without end
                self._known[known] = found
        return found

    def _heads(self, path: str) -> list[int]:
        """The rules whose literal start, up to a slash, a path begins with."""
        below: list[int] = []
        end = 0
        for _ in range(self._deepest):
            end = path.find("/", end) + 1
            if end == 0:
                break
            below += self._below.get(path[:end], ())
        return below

    def _find(self, method: str, path: str, below: list[int]) -> Found:
        numbers = self._always + below + self._exact.get(path, [])
        if path.endswith("\n"):
            numbers += self._exact.get(path[:-1], [])
        found = []
        for number in sorted(numbers):
            rule = self.rules[number]
            parameters = rule.match(method, path)
            if parameters is not None:
                found.append((rule, parameters))
        return found, self.plain(found)

    def plain(self, matching: Sequence[tuple[Rule, Any]]) -> Plain | None:
        """What rules, of this set or of a route, ask of everyone, where all of them are plain.

        Kept, since requests choose among few sets of rules; by identity, since rules hash slowly.
        """
        name = tuple([id(rule) for rule, _ in matching])
        kept = self._plains.get(name)
        if kept is None:
            if len(self._plains) >= MOST_PLAINS:
                self._plains.clear()
            rules = [rule for rule, _ in matching]
            kept = self._plains[name] = rules, _plain(rules)
        return kept[1]

    @property
    def registered_names(self) -> frozenset[str]:
        """The parts of ``by`` that the application must have registered."""
        return frozenset().union(*(rule.registered_names for rule in self.rules))


def _plain(rules: Sequence[Rule]) -> Plain | None:
    if not all(rule.plain for rule in rules):
        return None
    asked = [(rule, limit) for rule in rules for limit in rule.limits]
    return Plain(
        tuple((limit, rule.cost, rule.name) for rule, limit in asked if isinstance(rule.cost, int)),
        tuple(policy for rule in rules for policy in rule.policies),
        tuple((rule.name, "allowed") for rule, _ in asked),
        {},
    )


@lru_cache(maxsize=4096)
def policy_names(name: str, limits: tuple[Limit, ...]) -> tuple[str, ...]:
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


def _whole(name: str, value: object, least: int, most: int) -> None:
    if type(value) is not int:
        raise TypeError(f"{name} is a whole number, not {type(value).__name__}")
    if not least <= value <= most:
        raise ValueError(f"{name} is {value}; it is {least} to {most}")


def _few_at_once(rules: Iterable[Rule]) -> None:
    """Refuses more limits for one request than a store decides at once: none would be counted."""
    by_path: Counter[str | None] = Counter()
    for rule in rules:
        if rule.mode != "off":
            groups = (rule.limits, *rule.tiers.values(), *rule.overrides.values())
            by_path[rule.path] += max(map(len, groups))
    always = by_path.pop(None, 0)
    path, most = max(by_path.items(), key=lambda each: each[1], default=(None, 0))
    if always + most > MOST_AT_ONCE:
        of = "to every request" if path is None else f"to one request for {shown(path)}"
        raise TooManyLimits(f"{always + most} limits would apply {of}; at most {MOST_AT_ONCE}")


def _unique_names(rules: Iterable[object]) -> None:
    names: set[str] = set()
    policies: dict[str, str] = {}
    for rule in rules:
        if not isinstance(rule, Rule):
            raise TypeError(f"a RuleSet holds Rule objects, not {type(rule).__name__}")
        # Policy names may become case-insensitive (ietf-wg-httpapi/ratelimit-headers#166).
        if rule.name.lower() in names:
            raise ValueError(
                f"two rules are named {shown(rule.name)}; each has its own name, in any case"
            )
        names.add(rule.name.lower())
        for policy in rule.policies:
            other = policies.setdefault(policy.lower(), rule.name)
            if other != rule.name:
                raise ValueError(
                    f"rules {other!r} and {rule.name!r} would both be shown to clients as "
                    f"{policy!r}; rename one"
                )


def _store(uri: object) -> None:
    """Refuses what cannot be a store's URI; shows no more of it than its scheme."""
    scheme, colon, rest = options.text("store", uri).partition("://")
    if not colon:
        raise ValueError("the store is no URI; write one such as redis://localhost:6379/0")
    if scheme not in STORE_SCHEMES:
        near = get_close_matches(scheme.lower(), STORE_SCHEMES, 1, 0.6)
        hint = f"; did you mean {near[0]}://" if near else ""
        raise ValueError(
            f"the store's scheme is {shown(scheme)}{hint}; there are "
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
