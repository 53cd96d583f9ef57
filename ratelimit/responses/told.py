"""Decisions as clients see them, for all dialects: `Told`, and which of several is binding."""

from collections.abc import Callable, Sequence
from functools import partial
from math import inf
from typing import Final, NamedTuple

from ratelimit.decisions import Decision
from ratelimit.responses.problems import Field

__all__ = ["Dialect", "Told", "binding_of", "new_told"]


class Told(NamedTuple):
    """One enforced check as a client sees it; ``policy`` is letters, digits and ``_.:-``."""

    policy: str
    decision: Decision


new_told: Final[Callable[[tuple[str, Decision]], Told]] = partial(tuple.__new__, Told)
"""`Told(...)` in a third of the time."""

Dialect = Callable[[Sequence[Told], Told], list[Field]]
"""Writes the fields of a response: from all that was told, at least one, and the binding one."""


def binding_of(told: Sequence[Told]) -> Told:
    """The refusing one with the longest wait, else the one with least left."""
    binding = told[0]
    least = binding.decision.remaining
    for each in told:
        decision = each[1]
        if not decision[1]:
            return max((one for one in told if not one.decision.allowed), key=_wait_us)
        remaining = decision[2]
        if remaining < least:
            binding, least = each, remaining
    return binding


def _wait_us(told: Told) -> float:
    retry = told.decision.retry_after_us
    return inf if retry is None else retry
