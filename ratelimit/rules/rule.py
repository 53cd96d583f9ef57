"""`Rule`: requests, the identity they are counted by, and the limits.

Pure and frozen: everything that can be known before a request is computed when a rule is built.
"""

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, field, fields
from fractions import Fraction
from functools import cache
from hashlib import blake2b
from types import MappingProxyType
from typing import Final, Unpack

from ratelimit.bans import Ban
from ratelimit.concurrency import Concurrency
from ratelimit.identity.addresses import Network
from ratelimit.identity.connections import Ask
from ratelimit.identity.keys import KeyOf, compiled
from ratelimit.identity.networks import Networks
from ratelimit.limits import Algorithm, Limit
from ratelimit.rules.at_once import limit_at_once
from ratelimit.rules.charging import Charge, charge_of
from ratelimit.rules.counting import Counting, cost, counting_of, limits_of
from ratelimit.rules.options import RULE, RuleOptions
from ratelimit.rules.overriding import BLOCKED, override_key
from ratelimit.rules.paths import Path, normalised
from ratelimit.rules.policies import policy_names, with_concurrency
from ratelimit.rules.reading import Reading, refuse_unknown
from ratelimit.rules.shed import Priority
from ratelimit.rules.sockets import Messages
from ratelimit.rules.values import (
    BUILT_IN_BY,
    CLIENT_CHOSEN,
    Mode,
    OnMissing,
    OnStoreFailure,
    SomeLimits,
)

__all__ = ["Mode", "Network", "OnMissing", "OnStoreFailure", "Rule"]


class TooManyLimits(ValueError):
    """More limits would apply to one request than a store decides at once."""


@dataclass(frozen=True, init=False, slots=True)
class Rule:
    """Requests, the identity they are counted by, their limits and mode; equal by value.

    ``Rule("login", "5/minute; 20/hour", path="/login", methods=["POST"], by="client")``.

    ``limit`` is text (one limit or several), a `Limit`, or several of either; or a mapping of
    tiers to those ("unlimited" or None for no limit), of which ``tier`` chooses and the first
    holds where it gives none that is known; or a function over the connection, sync or async, that
    gives one of those (None for no limit).

    ``algorithm``, ``burst``, ``rounding`` and ``max_delay`` (seconds; None for no cut, 10 for a
    leaking bucket if left out) go with text only: a `Limit` carries its own. ``overrides`` maps
    identities to limits in the same forms, counted by the rule's algorithm; an override has no
    burst but the one in its own text.

    ``cost`` is a number, a registered name, or a function over the connection; ``priority`` one of
    ``critical``, ``high``, ``normal``, ``low`` and ``bulk``, or such a name or function, which may
    give None. ``skip``, a function over the connection, says of a request that this rule does not
    apply to it.

    Raises ValueError or TypeError, in one sentence, for anything that could not be meant.
    """

    name: str
    """1 to 64 of ``A-Z a-z 0-9 _ . : -``, a letter first."""
    limits: tuple[Limit, ...]
    """No two alike; those of the first tier; none where that is unlimited, or chosen by request."""
    tiers: Mapping[str, tuple[Limit, ...]] = field(hash=False)
    """The limits of each tier, none for an unlimited one; empty where there are no tiers."""
    tier: str | Ask[str | None] | None
    """The tier's source: ``user:ATTRIBUTE``, ``header:NAME``, a registered name or a function."""
    dynamic: Ask[SomeLimits] | None
    """The function that gives the limits, request by request."""
    by: tuple[str, ...]
    """The parts of an identity, in order; header names in lower case."""
    path: str | None
    """In Starlette's route syntax; None for every path."""
    except_: tuple[str, ...]
    """Paths that it is not for."""
    host: frozenset[str] | None
    """The hosts, in lower case, of which a request names one; None for every host."""
    replaces: tuple[str, ...]
    """Names of rules that do not apply where this one has counted a request."""
    methods: frozenset[str] | None
    """In upper case, HEAD among them where GET is; None for every method."""
    max_waiting: int
    """Requests that may wait for their turn at a time, in one worker, 1 to 100,000."""
    cost: int | str | Ask[int]
    """Units per request; a number is 0 or more, and no more than any limit can let through."""
    unit: str
    """The name of what its limits count, before clients."""
    charge: Charge | None
    """The outcomes that keep a charge; None where every charge is kept."""
    priority: Priority | str | Ask[str | None] | None
    """One of five classes, a registered name or a function; None where it has no say."""
    mode: Mode
    enforce_share: Fraction
    """The part of all identities for whom ``enforce`` holds, above 0; the others are shadows."""
    ban: Ban | None
    """Refuses for a while whom this rule has refused too often."""
    on_store_failure: OnStoreFailure | None
    """None for what the `RuleSet` says."""
    on_missing: OnMissing
    """The outcome for a request that lacks a part of ``by``: it counts under the client's address,
    the rule does not apply, or it is refused (403)."""
    overrides: Mapping[str, tuple[Limit, ...]] = field(hash=False)
    """Limits of single identities, by the text of the first part of ``by``, or, behind a NUL, by
    that of all parts; none for unlimited, `BLOCKED` for refused. An IPv6 address stands for its
    network of 64 bits, which is what clients are counted by."""
    allowlist: tuple[Network, ...]
    """Clients to whom this rule does not apply."""
    denylist: tuple[Network, ...]
    """Clients whose requests, where this rule matches, are refused (403); beats the allowlist."""
    websocket: Messages | None
    """The limits on what comes over a WebSocket that it let in."""
    skip: Ask[bool] | None
    concurrency: Concurrency | None
    """The number of requests that may be under way at once; None for any."""
    asks: tuple[Limit, ...] = field(repr=False, compare=False)
    """``limits``, and then the concurrency: all that a request is held to."""
    policies: tuple[str, ...] = field(repr=False, compare=False)
    """The names under which those are shown to clients, in the same order."""
    key_of: KeyOf | None = field(repr=False, compare=False)
    """Reads the text a request is counted under; None where the application has a say in it."""
    allowed_clients: Networks = field(repr=False, compare=False)
    denied_clients: Networks = field(repr=False, compare=False)
    compiled: Path | None = field(repr=False, compare=False)
    """``path``, as requests are matched by it."""
    excepted: tuple[Path, ...] = field(repr=False, compare=False)
    """``except_``, as requests are matched by it."""
    _counting: Counting = field(repr=False, compare=False)
    _part: Fraction = field(repr=False)
    """The part of every quota that is this region's."""
    named: Mapping[str, tuple[Limit, ...]] = field(repr=False, hash=False)
    """The overrides, by the texts that were given."""

    def __init__(
        self,
        name: str,
        limit: "SomeLimits | Mapping[str, SomeLimits] | Ask[SomeLimits]" = None,
        *,
        on_route: bool = False,
        **given: Unpack[RuleOptions],
    ) -> None:
        """``on_route`` is for a route's own rule: ``by`` may name parameters of any path."""
        refuse_unknown("a rule", given, RULE)
        every = {"name": name, "limit": limit, "on_route": on_route, **given}
        self._keep(RULE.read(every))

    @classmethod
    def of(cls, reading: Reading) -> "Rule":
        """The rule of options that were read without a mistake."""
        rule = cls.__new__(cls)
        rule._keep(reading)  # noqa: SLF001  # of its own class
        return rule

    def _keep(self, reading: Reading) -> None:
        limits, tiers = limits_of(reading)
        overrides = reading["overrides"]
        limit, path = reading["limit"], reading["path"]
        concurrency = limit_at_once(reading)
        if limit is None and concurrency is None:
            raise ValueError("there is neither a limit nor a concurrency; a rule has one at least")
        asks = with_concurrency(limits, concurrency)
        kept = {key: reading[key] for key in RULE if key in _KEPT}
        kept |= {
            "limits": limits,
            "tiers": MappingProxyType(tiers),
            "dynamic": limit if callable(limit) else None,
            "charge": charge_of(reading),
            "path": reading.given["path"] if path else None,
            "except_": tuple(text for text, _ in reading["except_"]),
            "excepted": tuple(each for _, each in reading["except_"]),
            "overrides": MappingProxyType({key: own.limits for key, own in overrides.items()}),
            "allowed_clients": Networks(reading["allowlist"]),
            "denied_clients": Networks(reading["denylist"]),
            "concurrency": concurrency,
            "asks": asks,
            "policies": policy_names(reading["name"], asks, reading["unit"]),
            "compiled": path,
            "key_of": compiled(reading["by"], fall_back=reading["on_missing"] == "client"),
            "_counting": counting_of(reading),
            "_part": Fraction(1),
            "named": {own.identity: own.limits for own in overrides.values()},
        }
        for name, value in kept.items():
            object.__setattr__(self, name, value)
        if self.tiers and self.tier is None:
            raise ValueError("there are tiers, but no tier; it says who chooses, as 'user:plan'")

    @property
    def is_static(self) -> bool:
        """Whether limits, cost, mode and the way to read an identity are the same for all."""
        return (
            self.key_of is not None
            and self.enforce_share == 1
            and isinstance(self.cost, int)
            and not (self.tiers or self.dynamic or self.overrides or self.skip)
            and not (self.allowlist or self.denylist or self.ban)
        )

    def in_force(self, part: Fraction, ipv6_prefix: int) -> "Rule":
        """This rule with a part of each of its limits, its overrides by IPv6 networks of a length.

        Raises ValueError where its cost could no longer pass.
        """
        rule = copy(self)
        put = object.__setattr__

        @cache  # a file repeats few limits in many overrides
        def scaled(limits: tuple[Limit, ...]) -> tuple[Limit, ...]:
            whole = part == 1 or not limits
            return limits if whole else tuple(limit.scaled(part) for limit in limits)

        overrides = {key: scaled(own) for key, own in self.overrides.items()}
        if "client" in self.by and ipv6_prefix != 64:
            overrides = {
                override_key(text, self.by, ipv6_prefix)[0]: scaled(own)
                for text, own in self.named.items()
            }
        tiers = {name: scaled(limits) for name, limits in self.tiers.items()}
        limits = scaled(self.limits)
        cost(self.cost, _all_limits(limits, tiers, overrides))
        if self.concurrency is not None and part != 1:
            put(rule, "concurrency", self.concurrency.scaled(part))
        put(rule, "limits", limits)
        put(rule, "asks", with_concurrency(limits, rule.concurrency))
        put(rule, "tiers", MappingProxyType(tiers))
        if self.websocket is not None:
            change = {limit: scaled((limit,))[0] for limit in self.websocket.limits}
            put(rule, "websocket", self.websocket.map(change))
        put(rule, "overrides", MappingProxyType(overrides))
        put(rule, "named", {text: scaled(own) for text, own in self.named.items()})
        put(rule, "_part", part)
        return rule

    def counted_by(self, algorithm: Algorithm) -> "Rule":
        """This rule with each of its limits counted by one algorithm, for a comparison."""
        rule = copy(self)
        put = object.__setattr__

        def counted(limits: tuple[Limit, ...]) -> tuple[Limit, ...]:
            same = dict.fromkeys(limit.counted_by(algorithm) for limit in limits)
            return limits if limits is BLOCKED else tuple(same)

        limits = counted(self.limits)
        asks = with_concurrency(limits, self.concurrency)
        put(rule, "limits", limits)
        put(rule, "asks", asks)
        put(rule, "policies", policy_names(self.name, asks, self.unit))
        put(rule, "tiers", {name: counted(own) for name, own in self.tiers.items()})
        put(rule, "overrides", {key: counted(own) for key, own in self.overrides.items()})
        put(rule, "named", {key: counted(own) for key, own in self.named.items()})
        return rule

    def without_concurrency(self) -> "Rule":
        """This rule without its concurrency; off where nothing is left of it."""
        if self.concurrency is None:
            return self
        rule = copy(self)
        put = object.__setattr__
        put(rule, "concurrency", None)
        put(rule, "asks", self.limits)
        put(rule, "policies", policy_names(self.name, self.limits, self.unit))
        if not (self.limits or self.tiers or self.dynamic or self.overrides):
            put(rule, "mode", "off")
        return rule

    def read_limits(self, value: object) -> tuple[Limit, ...]:
        """The limits that ``dynamic`` gave; none for no limit.

        Raises ValueError or TypeError, in one sentence, where it is nothing of the kind.
        """
        limits = self._counting.limits(value, exactly=False)
        return limits if self._part == 1 else tuple(limit.scaled(self._part) for limit in limits)

    def enforced_on(self, identity: str) -> bool:
        """Whether an identity is in the ``enforce_share``: always the same answer for it.

        Shares only grow: who is in 10 % is in 25 %. Each rule draws by itself.
        """
        digest = blake2b(
            f"{self.name}\0{identity}".encode("utf-8", "surrogatepass"), digest_size=6
        ).digest()
        return int.from_bytes(digest) < self.enforce_share * 2**48

    def excepts(self, path: str, normal: str) -> bool:
        """Whether a request is left out: by its path as it is, and as `normalised` has it."""
        return any(
            each.match(path, exactly=True) is not None
            and (
                normal == path
                or any(one.match(normal, exactly=True) is not None for one in self.excepted)
            )
            for each in self.excepted
        )

    @property
    def is_chosen(self) -> bool:
        """Whether a client can pick the identity by which this rule counts."""
        return any(map(self.is_chosen_part, self.by))

    @staticmethod
    def is_chosen_part(part: str) -> bool:
        """Whether a client can pick a part of an identity, and another with each request."""
        return part.partition(":")[0] in CLIENT_CHOSEN

    @property
    def names_all_it_counts(self) -> bool:
        """Whether some identity that it counts is known: by what it is, or by an override."""
        return not self.is_chosen or any(self.is_known(key) for key in self.overrides)

    def is_known(self, override: str | None) -> bool:
        """Whether an identity, by the text of its override if any, is not for clients to pick."""
        if override is None:
            return not self.is_chosen
        rest = () if override[:1] == "\0" else self.by[1:]
        return not any(map(self.is_chosen_part, rest))

    def match(self, method: str, path: str) -> dict[str, object] | None:
        """The path's parameters, converted, if this rule applies to a request; None if not.

        ``path`` is the decoded path below ``root_path``; the host has its say elsewhere. Never
        raises.
        """
        if self.excepted and self.excepts(path, normalised(path)):
            return None
        if self.methods is not None and method.upper() not in self.methods:
            return None
        return {} if self.compiled is None else self.compiled.match(path)

    @property
    def registered_names(self) -> frozenset[str]:
        """The parts of ``by`` that the application must have registered."""
        return frozenset(part for part in self.by if ":" not in part and part not in BUILT_IN_BY)


_KEPT: Final = {field.name for field in fields(Rule)}


def _all_limits(limits: tuple[Limit, ...], *others: Mapping[str, tuple[Limit, ...]]) -> list[Limit]:
    return [*limits, *(each for some in others for own in some.values() for each in own)]
