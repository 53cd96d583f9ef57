"""The rules that hold now, and what was made of them."""

import logging
from fractions import Fraction
from typing import Final, NamedTuple, Self

from ratelimit.identity.proxies import Proxies
from ratelimit.rules.rule import Rule
from ratelimit.rules.ruleset import RuleSet

__all__ = ["InForce"]

_LOG: Final = logging.getLogger("ratelimit")


class InForce(NamedTuple):
    """The rules that hold now, and what was made of them; swapped as a whole."""

    rules: RuleSet
    proxies: Proxies
    share: Fraction
    """This region's part of every quota, which ``rules`` are cut to already."""
    routes: dict[int, tuple[Rule, Rule]]
    """The rules of routes that were met, by identity since their functions may have no hash, and
    what they are here."""

    @classmethod
    def of(cls, rules: RuleSet, share: Fraction) -> Self:
        """All that follows from ``rules`` that were cut to a region's share already."""
        proxies = Proxies(
            rules.trusted_proxies, rules.trusted_hops, rules.forwarded_header, rules.ipv6_prefix
        )
        return cls(rules, proxies, share, {})

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
