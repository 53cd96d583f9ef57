"""All rules, and what holds for all of them: `RuleSet`; which of them a request matches.

Pure and frozen, but for what it prepares and keeps.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from fractions import Fraction
from os import PathLike
from typing import Any, Final, Literal, NamedTuple

from ratelimit.decisions import Action
from ratelimit.identity.addresses import Network
from ratelimit.identity.keys import KeyOf
from ratelimit.identity.networks import Networks
from ratelimit.limits import Limit
from ratelimit.rules import options
from ratelimit.rules.options import OnStoreFailure, shown
from ratelimit.rules.rule import Rule

__all__ = ["Plan", "Rule", "RuleSet", "TooManyLimits"]

Header = Literal["draft", "legacy", "draft-03"]

MOST_WORKERS: Final = 10_000
MOST_AT_ONCE: Final = 500
"""Limits of one request; the in-process store has the same bound."""
MOST_PLANS: Final = 1_000
"""Sets of static rules that match together, prepared and kept."""
LONGEST_JITTER_US: Final = 60_000_000
HEADERS: Final = ("draft", "legacy", "draft-03")
STORE_SCHEMES: Final = (
    "memory", "redis", "rediss", "unix", "redis+cluster", "redis+sentinel",
)  # fmt: skip


class TooManyLimits(ValueError):
    """More limits would apply to one request than a store decides at once."""


Matching = list[tuple[Rule, dict[str, object]]]


class Plan(NamedTuple):
    """What requests ask under a set of static rules that match together; all but the keys."""

    keys: tuple[tuple[KeyOf, int], ...]
    """The readers of keys, each with the place of a rule that counts by it."""
    asked: tuple[tuple[Limit, int, int, str, int], ...]
    """Limit, place of the key among ``keys``, cost, rule and action of each check."""
    policies: tuple[str, ...]
    allowed: tuple[tuple[str, str], ...]
    """Under what a limiter counts each that is allowed."""
    shadows: bool
    """Whether a check has no say."""
    watched: tuple[int, ...]
    """The places of rules that may count by what the application has never set."""
    written: dict[int, Any]
    """What is told of their policies, kept by who writes it."""


Found = tuple[Matching, Plan | None]
"""The rules of a request; and their plan, where all of them are static."""


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
    """Dialects: names, or functions such as those in ratelimit.responses.headers."""
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
    _longest_head: int = field(init=False, repr=False, compare=False)
    _known: dict[tuple[str, str | None], Found] = field(init=False, repr=False, compare=False)
    _plans: dict[tuple[int, ...], tuple[list[Rule], Plan | None]] = field(
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
            path = rule.compiled
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
        put(self, "_longest_head", max(map(len, below), default=0))
        put(self, "_known", {})
        put(self, "_plans", {})

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
        from ratelimit.rules.file import reader  # noqa: PLC0415  # which loads pydantic and PyYAML

        return reader.load(path)

    def matching(self, method: str, path: str) -> Matching:
        """Every rule that applies and is not off, in order, each with the path's parameters.

        Looks only at rules whose literal start is the path's own, so the number of other rules
        does not matter. The list is not to be changed.
        """
        return self.find(method, path)[0]

    def find(self, method: str, path: str) -> Found:
        """The same rules, and their plan, where all of them are static."""
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
            end = path.find("/", end, self._longest_head) + 1
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
        return found, self.plan(found)

    def plan(self, matching: Sequence[tuple[Rule, Any]]) -> Plan | None:
        """The plan of rules, of this set or of a route, where all of them are static.

        Kept, since requests choose among few sets of rules; by identity, since rules hash slowly.
        """
        name = tuple([id(rule) for rule, _ in matching])
        kept = self._plans.get(name)
        if kept is None:
            if len(self._plans) >= MOST_PLANS:
                self._plans.clear()
            rules = [rule for rule, _ in matching]
            kept = self._plans[name] = rules, _plan(rules)
        return kept[1]

    @property
    def registered_names(self) -> frozenset[str]:
        """The parts of ``by`` that the application must have registered."""
        return frozenset().union(*(rule.registered_names for rule in self.rules))


def _plan(rules: Sequence[Rule]) -> Plan | None:
    keys: list[tuple[KeyOf, int]] = []
    asked: list[tuple[Limit, int, int, str, int]] = []
    allowed: list[tuple[str, str]] = []
    watched: list[int] = []
    known: dict[tuple[object, ...], int] = {}
    for place, rule in enumerate(rules):
        if not rule.is_static or rule.key_of is None or not isinstance(rule.cost, int):
            return None
        of_path = [part[5:] for part in rule.by if part.startswith("path:")]
        by = (rule.by, rule.on_missing, place if of_path else None)
        key = known.setdefault(by, len(keys))
        if key == len(keys):
            keys.append((rule.key_of, place))
        own = () if rule.compiled is None else rule.compiled.parameters
        if rule.by[0] == "user" or not set(own) >= set(of_path):
            watched.append(place)
        shadow = rule.mode == "shadow"
        action = Action.SHADOW if shadow else Action.CHARGE
        for limit in rule.limits:
            asked.append((limit, key, rule.cost, rule.name, int(action)))
            allowed.append((rule.name, "shadow-allowed" if shadow else "allowed"))
    return Plan(
        tuple(keys),
        tuple(asked),
        tuple(policy for rule in rules for policy in rule.policies),
        tuple(allowed),
        any(rule.mode == "shadow" for rule in rules),
        tuple(watched),
        {},
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
