"""The rules of a limiter: those of its set and of routes that were met, as they hold now."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final, Self

from ratelimit.identity.hosts import host_of
from ratelimit.identity.networks import Networks
from ratelimit.identity.proxies import Proxies
from ratelimit.limiter.admission import Route
from ratelimit.limiter.checks import Registered
from ratelimit.rules.advice import doubts
from ratelimit.rules.matching import MOST_PLANS, Found, Plan
from ratelimit.rules.paths import route_path
from ratelimit.rules.rule import Rule
from ratelimit.rules.ruleset import RuleSet
from ratelimit.rules.shed import PRIORITIES
from ratelimit.rules.values import BUILT_IN_BY, METHODS
from ratelimit.words import near

__all__ = ["InForce", "RuleBook"]

_LOG: Final = logging.getLogger("ratelimit")

MOST_ROUTES: Final = 10_000
"""Most rules of routes that are remembered."""

AT_THE_START: Final = ("client-chosen", "foreign-path")
"""Advice that is given in the log as well: such rules may limit nobody."""


@dataclass(frozen=True, slots=True, eq=False)
class InForce:
    """The rules that hold now, and what was made of them; swapped as a whole."""

    rules: RuleSet
    proxies: Proxies
    share: Fraction
    """This region's part of every quota, which ``rules`` are cut to already."""
    routes: dict[int, tuple[Rule, Rule]]
    """The rules of routes that were met, by identity since their functions may have no hash, and
    what they are here."""
    on_routes: dict[tuple[str, int], tuple[Sequence[Rule], list[Rule], Plan | None]]
    """The rules of routes that apply to a method, by those of the route; with what they are here,
    and the plan of that."""

    @classmethod
    def of(cls, rules: RuleSet, share: Fraction) -> Self:
        """All that follows from ``rules`` that were cut to a region's share already."""
        proxies = Proxies(
            rules.trusted_proxies, rules.trusted_hops, rules.forwarded_header, rules.ipv6_prefix
        )
        return cls(rules, proxies, share, {}, {})

    def of_route(self, rule: Rule) -> Rule:
        """A route's own rule at this region's share."""
        if self.share == 1 and self.rules.ipv6_prefix == 64:
            return rule
        found = self.routes.get(id(rule))
        if found is None:
            try:
                own = rule.in_force(self.share, self.rules.ipv6_prefix)
            except ValueError as error:
                _LOG.warning(
                    "share-too-small: rule %r is in force with its whole quota here: at a share "
                    "of %s, %s", rule.name, self.share, error,
                )  # fmt: skip
                own = rule
            found = self.routes[id(rule)] = rule, own
        return found[1]

    def on_route(self, rules: Sequence[Rule], method: str) -> tuple[list[Rule], Plan | None]:
        """Those of a route's own rules that apply to a method, as they are here, and their plan."""
        found = self.on_routes.get((method, id(rules)))
        if found is None:
            own = [
                self.of_route(rule)
                for rule in rules
                if rule.mode != "off" and (rule.methods is None or method.upper() in rule.methods)
            ]
            found = rules, own, self.rules.index.plan([(rule, {}) for rule in own])
            if method in METHODS:  # others may be without end
                if len(self.on_routes) >= MOST_PLANS:
                    self.on_routes.clear()
                self.on_routes[method, id(rules)] = found
        return found[1:]


class RuleBook:
    """The rules that hold now, and the functions that they may name."""

    def __init__(self, rules: RuleSet, registered: Registered) -> None:
        for name in PRIORITIES:
            if name in registered.priorities:
                raise ValueError(f"priorities names a function {name}, which is a priority itself")
        self._registered = registered
        self._routes: dict[int, Rule] = {}
        """The rules of routes that were met and need no function that is not registered; by
        identity, as `InForce` has it."""
        self._take(rules)

    def _take(self, rules: RuleSet) -> None:
        """Puts rules in force; raises what `hold_registered` does, and changes nothing then."""
        share, rules = rules.share, rules.in_force()
        for rule in rules.rules:
            self.hold_registered(rule)
        for advice in doubts(rules):
            if advice.code in AT_THE_START:  # the others are `ratelimit check`'s to tell
                _LOG.warning("%s: rule %r: %s", advice.code, advice.rule, advice.text)
        self.rules = rules
        """The rules that hold now."""
        self.names = frozenset(rule.name.lower() for rule in rules.rules)
        """The names of the rules, in lower case; no limit on a route is told under one of them."""
        self.asks_routes = any("route" in rule.by for rule in rules.rules)
        """Whether a rule depends on which route a request will meet."""
        self.limits_messages = any(rule.websocket is not None for rule in rules.rules)
        """Whether a rule limits what comes over WebSockets."""
        self._now = InForce.of(rules, share)
        self.allowlist = Networks(rules.allowed_clients)
        """Clients that nothing limits; may be changed at any time, until other rules are taken."""
        self.denylist = Networks(rules.denied_clients)
        """Clients whose requests are refused with 403; beats the allowlist; may be changed too."""

    def check_registered(self, rules: Iterable[Rule], known: Iterable[str] = ()) -> None:
        """Remembers the rules of a route that was met; raises what `hold_registered` does."""
        for rule in rules:
            if self._routes.get(id(rule)) is not rule:
                self.hold_registered(rule, known)
                if len(self._routes) >= MOST_ROUTES:
                    self._routes.clear()
                self._routes[id(rule)] = rule

    def hold_registered(self, rule: Rule, known: Iterable[str] = ()) -> None:
        """Raises ValueError where a rule uses a function that is not registered.

        ``known`` are identities beside the registered ones.
        """
        identities, tiers, costs, priorities = self._registered
        there = {*identities, *known}
        for name in sorted(rule.registered_names - there):
            raise ValueError(
                f"rule {rule.name!r} limits by {name}, which is not registered"
                + near(name, {*there, *BUILT_IN_BY}, 0.6, "by={!r}".format)
                + "; pass RateLimiter(..., identities={name: callable})"
            )
        named: Any = ("tier", rule.tier, tiers), ("cost", rule.cost, costs)
        if rule.priority not in PRIORITIES:
            named = *named, ("priority", rule.priority, priorities)
        for kind, value, names in named:
            if isinstance(value, str) and ":" not in value and value not in names:
                raise ValueError(
                    f"rule {rule.name!r} has the {kind} {value}, which is not registered"
                    + near(value, names, 0.6, "{!r}".format)
                    + f"; pass RateLimiter(..., {kind.removesuffix('y')}"
                    + f"{'ies' if kind[-1] == 'y' else 's'}={{name: callable}})"
                )

    def _names(self) -> list[str]:
        """The names of the rules, those of routes that were met among them."""
        return [rule.name for rule in (*self.rules.rules, *self._routes.copy().values())]

    @property
    def every_rule(self) -> list[Rule]:
        """The rules that hold now, then those of routes that were met, as they are in force."""
        of_routes = [self._now.of_route(rule) for rule in self._routes.copy().values()]
        return [*self.rules.rules, *of_routes]

    @property
    def proxies(self) -> Proxies:
        """The proxies that are believed, by the rules that hold now."""
        return self._now.proxies

    def find(self, scope: Mapping[str, Any], route: Route | None = None) -> Found:
        """The rules for a request by its path, but none where it meets an exempt route."""
        method = scope["method"] if scope["type"] == "http" else "GET"
        path = route_path(scope) if scope.get("root_path") else scope["path"]
        now = self._now
        host = host_of(scope, now.proxies) if now.rules.index.hosts else ""
        found = now.rules.find(method, path, host)
        if method == "OPTIONS":
            matching = self.rules.without_preflight(found[0], scope)
            found = matching, now.rules.index.plan(matching)
        if route is not None and found[0] and route.is_exempt:
            return (), None
        return found

    def _find_of(self, rules: Sequence[Rule], scope: Mapping[str, Any]) -> Found:
        """Those of a route's own rules that apply to a request's method."""
        method = scope["method"] if scope["type"] == "http" else "GET"
        own, plan = self._now.on_route(rules, method)
        parameters = scope.get("path_params", {})
        return [(rule, parameters) for rule in own], plan
