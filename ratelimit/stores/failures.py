"""Failures that a success forgets: charges that an outcome has kept, for a store to remember."""

from typing import Final, Protocol, runtime_checkable

from ratelimit.decisions import Action, Check

__all__ = ["AT_ONCE", "MOST_FAILURES", "Failures", "as_text", "from_text"]

MOST_FAILURES: Final = 200
"""Failures of one counter that are remembered, the newest."""

AT_ONCE: Final = 50
"""Failures that are given back at once: a sliding log is walked for each, and others wait."""


@runtime_checkable
class Failures(Protocol):
    """A store that remembers which charges of a counter were failures."""

    async def add_failure(self, returned: Check, for_us: int) -> None:
        """Remembers, for so many microseconds at least, the check that gives a failure back."""
        ...

    async def forget_failures(self, check: Check) -> None:
        """Gives back each failure of a check's counter, the newest first, and forgets it.

        Both or neither: what a fault of the store leaves is there for the next success.
        """
        ...


def as_text(returned: Check) -> str:
    """A check that gives a failure back, as a store of ours keeps it beside its counter."""
    return f"{returned.cost} {returned.at_us} {returned.level}"


def from_text(check: Check, text: str) -> Check:
    """The check that gives a failure back; raises ValueError for other text."""
    cost, at_us, level = map(int, text.split(" "))
    limit, key, _, rule, *_ = check
    return Check(limit, key, cost, rule, action=Action.GIVE_BACK, at_us=at_us, level=level)
