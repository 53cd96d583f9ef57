"""`RouteRule`: a rule that stands on a route, rather than in front of all of them."""

from dataclasses import dataclass
from typing import Any

from ratelimit.rules.rule import Rule

__all__ = ["RouteRule", "counter_of"]


@dataclass(frozen=True, init=False, slots=True)
class RouteRule(Rule):
    """A rule on a route, whose name several may have: each is counted by its ``counter``.

    ``by`` may name parameters of any path; the other arguments are those of `Rule`.
    """

    counter: str
    """The text under which its counters are kept; no rule of another kind can have it."""

    def __init__(self, name: str, limit: Any = None, *, counter: str, **options: Any) -> None:
        Rule.__init__(self, name, limit, on_route=True, **options)
        object.__setattr__(self, "counter", counter)


def counter_of(rule: Rule) -> str:
    """The text under which a rule's counters are kept."""
    return rule.counter if isinstance(rule, RouteRule) else rule.name
