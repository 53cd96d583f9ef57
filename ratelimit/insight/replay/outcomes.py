"""Charges that an outcome decides, settled by the status that a log tells.

The law of this module: as in production, by the limiter's own code; only that each outcome is known
when its request comes.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from ratelimit.decisions import Decision
from ratelimit.insight.replay.entries import Entry
from ratelimit.insight.replay.recording import at_once
from ratelimit.limiter.admission import Admission
from ratelimit.limiter.reports import Reports
from ratelimit.limiter.settling.outcomes import Outcomes
from ratelimit.limiter.settling.settler import Settler
from ratelimit.rules.charging import Charge
from ratelimit.rules.matching import Plan
from ratelimit.rules.ruleset import RuleSet
from ratelimit.stores.memory import MemoryStore

__all__ = ["Logged", "missing_outcome"]

_STATUS: Final = re.compile("[1-5][0-9][0-9]", re.ASCII)
_CLIENT_GONE: Final = "499"
"""The status that nginx logs where a client has gone before anything was sent."""


class Logged:
    """The outcomes of requests, as a log tells them, for the charges in one store."""

    def __init__(self, rules: RuleSet, store: MemoryStore) -> None:
        self._outcomes = Outcomes(Settler(store, store.decide, Reports(rules)))

    def settle(
        self, plan: Plan, keys: Sequence[str], decisions: Sequence[Decision], entry: Entry
    ) -> None:
        """Keeps what the outcome of a request that passed keeps, and gives back the rest."""
        status = entry[4]
        if not _STATUS.fullmatch(status) or status == _CLIENT_GONE:
            return  # nothing was sent, as far as is known, and so the charge stays
        known = [each for each in plan.undecided if each[1].keep_if is None]
        if len(known) < len(plan.undecided):
            plan = replace(plan, undecided=tuple(known))
        held = self._outcomes.held(plan, keys, decisions, entry[2])
        waits = None if held is None else held.answered(int(status), ())
        if waits is not None:
            at_once(waits)

    def settle_all(self, admission: Admission, entry: Entry) -> None:
        """Settles what a limiter has admitted, in place of that limiter."""
        for each in admission.held:
            each.withdrawn()
        for _, plan, keys, decisions in admission.passed:
            if plan.undecided:
                self.settle(plan, keys, decisions, entry)


def missing_outcome(charge: Charge, fields: frozenset[str]) -> str:
    """A sentence's end on what a log of these fields cannot tell of a rule's outcomes."""
    if charge.keep_if is not None:
        return "has a charge_if, which only the application knows; every charge was kept"
    if "status" not in fields:
        return "charges by outcome, and no status is logged; every charge was kept"
    return (
        "charges by outcome, and a log does not tell how many requests were undecided at once; "
        "each was played as decided when it came, which refuses least"
    )
