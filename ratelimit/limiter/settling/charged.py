"""The charges of a reservation so far, and the checks that set them to what it cost."""

from collections.abc import Sequence
from typing import Final, NamedTuple, Self

from ratelimit.decisions import Action, Check, Decision, new_check
from ratelimit.rules.matching import Plan

__all__ = ["Charged", "Part"]

_FORCE: Final = int(Action.FORCE)
_GIVE_BACK: Final = int(Action.GIVE_BACK)


class Charged(NamedTuple):
    """Charges that were made for one budget after the other, by the checks and their decisions."""

    checks: Sequence[Check]
    decisions: Sequence[Decision]
    budgets: Sequence[int]
    """The place of each check's budget."""
    names: Sequence[str]
    """The rule of each budget."""

    @classmethod
    def by(cls, plan: Plan, keys: Sequence[str], decisions: Sequence[Decision]) -> Self:
        """The charges of a plan, of which each rule is a budget."""
        names = list(dict.fromkeys(rule for rule, _ in plan.allowed))
        budgets = [names.index(rule) for rule, _ in plan.allowed]
        # A place is held, and not settled.
        kept = [place for place in range(len(budgets)) if place not in plan.holds]
        checks, of = plan.checks(keys), [budgets[place] for place in kept]
        return cls([checks[at] for at in kept], [decisions[at] for at in kept], of, names)


class Part:
    """One limit of one budget, and what it was charged so far."""

    __slots__ = ("budget", "check", "taken")

    def __init__(self, budget: int, check: Check, taken: list[tuple[int, int, int]]) -> None:
        self.budget = budget
        self.check = check
        self.taken = taken
        """Units, time and level of each charge, the last one last."""

    @property
    def total(self) -> int:
        if len(self.taken) == 1:
            return self.taken[0][0]
        return sum(units for units, _, _ in self.taken)

    def to(self, actual: int) -> list[Check]:
        """The checks that make of what was charged what it turned out to be."""
        limit, key, _, rule, *_ = self.check
        missing = actual - self.total
        if missing > 0:
            return [new_check((limit, key, missing, rule, _FORCE, 0, 0))]
        found: list[Check] = []
        for units, at_us, level in reversed(self.taken):
            back = min(units, -missing)
            if not back:
                break
            missing += back
            found.append(new_check((limit, key, back, rule, _GIVE_BACK, at_us, level)))
        return found
