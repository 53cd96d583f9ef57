"""The rules that hold now, and what was made of them."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Final, Self

from ratelimit.identity.proxies import Proxies
from ratelimit.rules.matching import MOST_PLANS, Plan
from ratelimit.rules.rule import Rule
from ratelimit.rules.ruleset import RuleSet
from ratelimit.rules.values import METHODS

__all__ = ["InForce"]

_LOG: Final = logging.getLogger("ratelimit")


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
