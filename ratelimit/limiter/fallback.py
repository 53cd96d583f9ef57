"""The answer to a request that could not be decided, as its rules say.

A fault of the limiter never becomes a fault of the application: it ends as an allowed request, a
503 or a local decision, and in the log.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

from ratelimit.control.events import Events
from ratelimit.decisions import Action, Check, assumed, passes
from ratelimit.limiter.admission import Admission, Turn
from ratelimit.limiter.reports import Reports
from ratelimit.limiter.settling.outcomes import Outcomes
from ratelimit.limiter.settling.settler import Settler
from ratelimit.limiter.telling import tell_refused
from ratelimit.responses.headers import Told, refuse, unavailable
from ratelimit.responses.problems import overloaded
from ratelimit.rules.route_rule import counter_of
from ratelimit.rules.rule import Rule
from ratelimit.rules.ruleset import RuleSet
from ratelimit.stores import MemoryStore
from ratelimit.stores.failover import Failover

__all__ = ["Fallback"]

_SHADOW: Final = int(Action.SHADOW)
_OUTCOMES: Final = ("allowed", "waited", "denied", "never")
"""Outcomes of the limits of a rule, the worst for a request last."""


class Fallback:
    """Answers where the store, or something of ours, has failed."""

    def __init__(
        self,
        failover: Failover,
        reports: Reports,
        counts: Counter[tuple[str, str]],
        events: Events,
        owner: Any = None,
    ) -> None:
        """``owner`` is the limiter, which requests wait for."""
        self._owner = owner
        self._failover = failover
        self._reports = reports
        self._counts = counts
        self._events = events
        self._outcomes: Outcomes | None = None

    async def answer(
        self,
        rule_set: RuleSet,
        admission: Admission,
        matching: Sequence[tuple[Rule, Any]],
        problem: Exception,
        checks: Sequence[Check] = (),
        policies: Sequence[str] = (),
    ) -> None:
        """Answers as the rules at hand say; the application never notices.

        Those are the rules that asked something, where it is known what they asked.
        """
        default = rule_set.on_store_failure
        asking = {check.rule for check in checks}
        shadows = {check.rule for check in checks if check.action == _SHADOW}
        rules = [rule for rule, _ in matching if not checks or counter_of(rule) in asking]
        words = {
            counter_of(rule): rule.on_store_failure or default
            for rule in rules
            if rule.mode == "enforce" and counter_of(rule) not in shadows
        }
        for rule in rules:
            self._counts[rule.name, "store-failed"] += 1
        self._reports.fault(problem)
        # Where it failed before the rules were known, or before their checks were, the file's
        # word stands for theirs, and a share of a quota cannot be counted.
        deny = "deny" in words.values() if rules else default == "deny"
        # Whatever the rules say of the store, which has not failed.
        flooded = getattr(problem, "kind", "") == "overloaded" and bool(words or not rules)
        deny = deny or flooded
        local = [
            (check, policy)
            for check, policy in zip(checks, policies, strict=True)
            if words.get(check.rule) == "local"
        ]
        others = [check for check in checks if words.get(check.rule) != "local"]
        admission.degraded += assumed(others, allowed=not deny)
        if deny:
            admission.refuse(overloaded() if flooded else unavailable())
        elif local:
            await self._decide_locally(rule_set, admission, local, rules)

    async def _decide_locally(
        self,
        rule_set: RuleSet,
        admission: Admission,
        local: Sequence[tuple[Check, str]],
        rules: Sequence[Rule],
    ) -> None:
        names = {counter_of(rule): rule.name for rule in rules}
        try:
            decisions = await self._failover.decide_locally([check for check, _ in local])
        except Exception as problem:  # noqa: BLE001  # a fault of ours never becomes one of the application
            self._reports.fault(problem)
            return
        admission.degraded += decisions
        told = [
            Told(policy, decision) for (_, policy), decision in zip(local, decisions, strict=True)
        ]
        worst: dict[str, str] = {}
        for (check, policy), decision in zip(local, decisions, strict=True):
            rule, outcome = names[check.rule], "allowed"
            if decision.delay_us:
                admission.turns += (Turn(self._owner, rule, policy, check, decision),)
                outcome = "waited"  # which is counted when it begins to
            elif not decision.allowed:
                outcome = "never" if decision.retry_after_us is None else "denied"
            worst[rule] = max(outcome, worst.get(rule, outcome), key=_OUTCOMES.index)
        for rule, outcome in worst.items():
            if outcome != "waited":
                self._counts[rule, outcome] += 1
        found = [
            (names[check.rule], check, policy, decision)
            for (check, policy), decision in zip(local, decisions, strict=True)
        ]
        tell_refused(self._events, admission, found)
        if not passes([check for check, _ in local], decisions):
            refusal = refuse(
                told, admission.dialects, rule_set.retry_jitter_us, hinted=rule_set.retry_hints
            )
            admission.refuse(refusal, told)
            return
        charges = {counter_of(rule): rule.charge for rule in rules if rule.charge is not None}
        if charges:
            held = self._undecided().held_locally(
                (names[check.rule], check, decision, charges[check.rule])
                for (check, _), decision in zip(local, decisions, strict=True)
                if check.rule in charges
            )
            if held is not None:
                admission.held.append(held)

    def _undecided(self) -> Outcomes:
        """The charges in process that the outcome of a request decides."""
        if self._outcomes is None:
            ask = self._failover.give_back_locally
            self._outcomes = Outcomes(Settler(MemoryStore(), ask, self._reports))
        return self._outcomes
