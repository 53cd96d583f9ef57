"""A rule and an identity, given by name: their limits, checks and bans, and the outcome.

The law of this module: an identity is spelled as that of a request, by the same functions, so that
both meet one counter.
"""

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple, Self

from ratelimit.bans import covering
from ratelimit.concurrency import Concurrency
from ratelimit.decisions import Action, Check, Decision
from ratelimit.identity.addresses import Address, read_address
from ratelimit.identity.keys import UNIDENTIFIED, identity_of
from ratelimit.identity.proxies import Proxies
from ratelimit.limiter.bans import Banning, ban_check
from ratelimit.limiter.checks import is_enforced, override_of
from ratelimit.limits import Limit
from ratelimit.rules.matching import Terms
from ratelimit.rules.overriding import BLOCKED
from ratelimit.rules.policies import policy_names, with_concurrency
from ratelimit.rules.route_rule import counter_of
from ratelimit.rules.rule import Rule
from ratelimit.words import near, shown

__all__ = ["Identified", "Outcome", "no_such_rule", "rule_named"]

LONGEST_NAME: Final = 100
"""Characters of a name that are compared with those of rules, which have 64 at most."""

MOST_NAMED: Final = 20
"""Most rules that a message names."""


class Outcome(tuple[Decision, ...]):  # noqa: SLOT001  # it keeps what came of them
    """The decisions on the limits of one rule; none where it limits nothing.

    First those of the store in the order of the limits, then those of a fallback (`degraded`).
    """

    allowed: bool
    """Whether the rule lets it through: a rule in shadow always does, whatever its decisions."""

    @classmethod
    def of(cls, decisions: Iterable[Decision], *, allowed: bool) -> Self:
        """The outcome of these decisions."""
        outcome = cls(decisions)
        outcome.allowed = allowed
        return outcome

    @property
    def retry_after(self) -> float | None:
        """Seconds until it is let through; 0 where it is, None for never."""
        waits = [each.retry_after for each in self if not each.allowed]
        if self.allowed:
            return 0.0
        return None if None in waits else max((each or 0.0 for each in waits), default=None)

    @property
    def delay(self) -> float:
        """Seconds until its turn, by a leaking bucket; 0 by all others."""
        return max((each.delay for each in self), default=0.0)


class Identified(NamedTuple):
    """A rule, and whom it counts."""

    rule: Rule
    key: str
    """The text that requests of this identity are counted under."""
    client: Address | None
    """The identity's address, where the rule counts by it."""
    own: tuple[Limit, ...] | None
    """The limits that an override gives this identity; None where it has none of its own."""

    @classmethod
    def of(cls, rule: Rule, values: Sequence[str | int], ipv6_prefix: int) -> Self:
        """The identity of these values: one for each part of the rule's ``by``, none for global.

        Raises ValueError or TypeError, in one sentence, for any that no request could have.
        """
        wanted = [part for part in rule.by if part != "global"]
        if len(values) != len(wanted):
            number = f"{len(wanted) or 'no'} text{'s' * (len(wanted) != 1)}"
            raise ValueError(
                f"rule {rule.name!r} counts by {', '.join(rule.by)}: give {number}, not "
                f"{len(values)}"
            )
        given = {part: _text(part, value) for part, value in zip(wanted, values, strict=True)}
        client = None
        if "client" in given:
            client = _client(given["client"], ipv6_prefix)
        key, first = identity_of(rule.by, [given.get(part, "") for part in rule.by], ipv6_prefix)
        override = override_of(rule, key, first) if rule.overrides else None
        own = None if override is None else rule.overrides[override]
        return cls(rule, key, client, own)

    @property
    def is_blocked(self) -> bool:
        """Whether requests of this identity are refused with 403."""
        if self.client is not None and self.client in self.rule.denied_clients:
            return True
        return self.own is BLOCKED and is_enforced(self.rule, self.key)

    def limits(self, tier: str | None) -> tuple[Limit, ...]:
        """The limits that hold for a request of this identity; none where nothing limits it.

        The last is a `Concurrency` where the rule has one. Those of the first tier where none is
        given. Raises ValueError where they are known with a
        request alone, or the rule has no such tier.
        """
        rule = self.rule
        if tier is not None and not isinstance(tier, str):
            raise TypeError(
                f"a tier is given by its name, which is text, not {type(tier).__name__}"
            )
        if tier is not None and tier not in rule.tiers:
            hint = near(tier, rule.tiers, write=repr) if rule.tiers else "; it has no tiers"
            raise ValueError(f"rule {rule.name!r} has no tier {shown(tier)}{hint}")
        if self.client is not None and self.client in rule.allowed_clients:
            return ()
        if self.own is not None:
            return self._with_concurrency(self.own)
        _refuse_dynamic(rule)
        if not rule.tiers:
            return rule.asks
        return self._with_concurrency(rule.limits if tier is None else rule.tiers[tier])

    def to_charge(self, tier: str | None) -> tuple[Limit, ...]:
        """Those of `limits` that are charged by name: nobody tells when anything else ends."""
        return tuple(each for each in self.limits(tier) if not isinstance(each, Concurrency))

    def _with_concurrency(self, own: tuple[Limit, ...]) -> tuple[Limit, ...]:
        """Limits of its own, and how many requests may be under way at once, if it is limited."""
        return with_concurrency(own, self.rule.concurrency) if own else ()

    def every_limit(self) -> list[Limit]:
        """The limits of all counters that requests of this identity may have, of every tier.

        Raises ValueError where they are known with a request alone.
        """
        if self.own is not None:
            return list(self._with_concurrency(self.own))
        _refuse_dynamic(self.rule)
        groups = (self.rule.asks, *self.rule.tiers.values())
        return list({limit.digest: limit for group in groups for limit in group}.values())

    def checks(self, limits: Iterable[Limit], cost: int) -> list[Check]:
        """The checks of this identity against some limits."""
        return [Check(limit, self.key, cost, counter_of(self.rule)) for limit in limits]

    def ban(self, action: Action, proxies: Proxies | None = None, covers: int = 0) -> Check | None:
        """The check of the rule's ban; None where there is none, or this identity cannot be banned.

        That is whose address is not known, or a trusted proxy's own.
        """
        rule, client = self.rule, self.client
        if rule.ban is None:
            return None
        if "client" in rule.by and (client is None or (proxies and proxies.are_at(client))):
            return None
        return ban_check(covering(rule.ban, covers), self.key, counter_of(rule), action)

    def bans(self, terms: Terms, proxies: Proxies, place: int = 0) -> list[Banning]:
        """The rule's ban, if it has one, before its checks, of which the first is at a place."""
        check = self.ban(Action(terms.action), proxies, len(terms.limits))
        return [] if check is None else [Banning(self.rule.name, check, place)]

    def terms(self, limits: tuple[Limit, ...], cost: int) -> Terms:
        """The rule's question about this identity, but for the key."""
        enforced = is_enforced(self.rule, self.key)
        action = int(Action.CHARGE if enforced else Action.SHADOW)
        name = self.rule.name
        return Terms(name, counter_of(self.rule), limits, policy_names(name, limits), cost, action)

    def refused(self) -> tuple[Decision, ...]:
        """The decisions that nothing of this identity will ever pass."""
        groups = (self.rule.asks, *self.rule.tiers.values(), *self.rule.overrides.values())
        limits: tuple[Limit, ...] = next((group for group in groups if group), ())
        return tuple(Decision(limit, False, 0, None, 0, 0) for limit in limits)


def rule_named(name: str, rules: Sequence[Rule], on_routes: Iterable[Rule] = ()) -> Rule:
    """The rule of a name: one of ``rules``, else one of a route's own.

    Raises ValueError, in one sentence, where there is none, or where several limits of routes
    have the name and are not the same; TypeError where the name is not text.
    """
    if not isinstance(name, str):
        raise TypeError(f"a rule is given by its name, which is text, not {type(name).__name__}")
    for rule in rules:
        if rule.name == name:
            return rule
    found: list[Rule] = []
    names = [rule.name for rule in rules]
    for rule in on_routes:
        names.append(rule.name)
        if rule.name == name and rule not in found:
            found.append(rule)
    if len(found) > 1:
        raise ValueError(
            f"{len(found)} limits on routes are named {shown(name)}, and are not the same; give "
            "each a name of its own"
        )
    if not found:
        raise ValueError(no_such_rule(name, list(dict.fromkeys(names))))
    return found[0]


def no_such_rule(name: str, names: Sequence[str]) -> str:
    """The beginning of a sentence that tells of a name that none of these rules has."""
    more = ", ..." if len(names) > MOST_NAMED else ""
    there = f"; there are {', '.join(names[:MOST_NAMED])}{more}" if names else ""
    return f"there is no rule {shown(name)}{near(name[:LONGEST_NAME], names, write=repr) or there}"


def _text(part: str, value: object) -> str:
    if type(value) is int:  # as a user's or a path's is
        return str(value)
    if not isinstance(value, str):
        raise TypeError(f"the value of {part} is text, not {type(value).__name__}")
    return value


def _client(value: str, ipv6_prefix: int) -> Address | None:
    """The address that a client is counted by, also from the network that counters show."""
    if value == UNIDENTIFIED:
        return None
    address = read_address(value.partition("/")[0], ipv6_prefix)
    if address is None or ("/" in value and value != address.key):
        raise ValueError(f"{shown(value)} is not the address of a client")
    return address


def _refuse_dynamic(rule: Rule) -> None:
    if rule.dynamic is not None:
        raise ValueError(
            f"a function gives the limits of rule {rule.name!r} for each request, so that none is "
            "known without one"
        )
