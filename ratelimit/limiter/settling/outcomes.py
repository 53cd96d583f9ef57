"""Charges that the outcome of a request decides: made before it runs, and settled by its answer.

The law of this module: what could not be given back stays charged, and the log says why.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple

from starlette.responses import Response

from ratelimit.decisions import Action, Check, Decision
from ratelimit.limiter.settling.settler import Job, Settler
from ratelimit.rules.charging import Charge
from ratelimit.rules.matching import Plan
from ratelimit.stores.failures import Failures

__all__ = ["Outcomes"]

SOON_US: Final = 1_000_000
"""The promise of a denial beside charges that an outcome may give back at any moment."""

FAILED: Final = 500
"""The status that an exception counts as."""

NEVER_RESETS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
"""Methods whose success proves nothing."""


class _Made(NamedTuple):
    """A charge that an outcome decides, and the rule it is by."""

    rule: str
    check: Check
    decision: Decision
    charge: Charge


class Outcomes:
    """The charges of a limiter that outcomes have not decided yet."""

    def __init__(self, settler: Settler) -> None:
        self.settler = settler
        self.open: Counter[tuple[str, str, str]] = Counter()
        """By a counter's limit, identity and rule, so many of this process's."""

    def held(
        self, plan: Plan, keys: Sequence[str], decisions: Sequence[Decision], method: str
    ) -> "Outcome | None":
        """The charges of a request that its outcome decides; None where it has none."""
        checks = plan.checks(keys)
        made = [
            _Made(plan.allowed[place][0], checks[place], decisions[place], charge)
            for place, charge in plan.undecided
            if decisions[place].allowed and not decisions[place].degraded and checks[place].cost
        ]
        return self._outcome(made, resets=method.upper() not in NEVER_RESETS)

    def held_locally(
        self, charged: Iterable[tuple[str, Check, Decision, Charge]]
    ) -> "Outcome | None":
        """Charges in process at the share of a worker, by rule; no success forgets failures there.

        Their decisions tell the share by which they were counted.
        """
        made = []
        for rule, check, decision, charge in charged:
            if decision.allowed and check.cost and check.action == Action.CHARGE:
                units = min(check.cost, decision.limit.capacity)
                own = Check(decision.limit, check.key, units, check.rule)
                made.append(_Made(rule, own, decision, replace(charge, reset_on=frozenset())))
        return self._outcome(made, resets=False)

    def _outcome(self, made: list[_Made], *, resets: bool) -> "Outcome | None":
        if not made:
            return None
        for each in made:
            self.open[_counter(each.check)] += 1
        return Outcome(self, made, resets=resets)

    def soon(
        self, plan: Plan, keys: Sequence[str], decisions: Sequence[Decision]
    ) -> Sequence[Decision]:
        """Decisions as they are told: beside undecided charges, a denial may end at any moment."""
        found = list(decisions)
        checks = plan.checks(keys)
        for place, _ in plan.undecided:
            wait_us = found[place].retry_after_us
            if wait_us and wait_us > SOON_US and self.open[_counter(checks[place])] > 0:
                found[place] = found[place]._replace(retry_after_us=SOON_US)
        return found

    def close(self, made: Sequence[_Made]) -> None:
        """Forgets charges that are decided."""
        for each in made:
            counter = _counter(each.check)
            self.open[counter] -= 1
            if self.open[counter] <= 0:
                del self.open[counter]


class Outcome:
    """The charges of one request that its outcome decides."""

    def __init__(self, outcomes: Outcomes, made: list[_Made], *, resets: bool) -> None:
        self._outcomes = outcomes
        self._made = made
        self._resets = resets

    def __del__(self) -> None:
        """Forgets what nobody has told the end of: its charge stays."""
        if self._made:
            self._outcomes.close(self._made)

    def answered(
        self, status: int, headers: Sequence[tuple[bytes, bytes]]
    ) -> Awaitable[object] | None:
        """Keeps what the outcome keeps, and gives the rest back."""
        made, self._made = self._made, []
        if not made:
            return None
        if any(each.charge.keep_if is not None for each in made):
            return self._ask(made, status, headers)
        return self._settle(made, [status in each.charge.on_status for each in made], status)

    def sent(self) -> None:
        """Changes nothing: the start of the response has decided."""

    def ended(self, error: BaseException | None) -> None:
        """Decides by an exception; where nothing was sent, and nothing failed, a charge stays."""
        made, self._made = self._made, []
        if not made:
            return
        settler = self._outcomes.settler
        self._resets = False
        if not isinstance(error, Exception):
            jobs = self._jobs(made, [True] * len(made))
        elif any(each.charge.keep_if is not None for each in made):
            jobs = [self._ask(made, FAILED, ())]
        else:
            jobs = self._jobs(made, [FAILED in each.charge.on_status for each in made])
        for job in jobs:
            settler.leave(job)

    def moved(self, at_its_place: Callable[[Decision], Decision]) -> None:
        """Gives back, if it does, what the request has come to hold while it waited."""
        self._made = [each._replace(decision=at_its_place(each.decision)) for each in self._made]

    def withdrawn(self) -> None:
        """Leaves charges alone that are given back with all others of the request."""
        made, self._made = self._made, []
        self._outcomes.close(made)

    async def _ask(
        self, made: list[_Made], status: int, headers: Sequence[tuple[bytes, bytes]]
    ) -> None:
        """Decides where the application says which charges are kept."""
        response = Response(status_code=status)
        response.raw_headers = [*headers]
        kept = []
        for each in made:
            keep_if = each.charge.keep_if
            keeps: Any = status in each.charge.on_status
            if keep_if is not None:
                try:
                    keeps = keep_if(response)
                    if isinstance(keeps, Awaitable):
                        keeps = await keeps
                except Exception as problem:  # noqa: BLE001  # a fault of it is not the response's
                    keeps = True
                    failed = self._outcomes.settler.reports.function_failed
                    failed(f"rule {each.rule!r}", "its charge is kept", problem)
                except BaseException:  # cancelled: nothing was sent, which `ended` decides by
                    self._made = made
                    raise
            kept.append(bool(keeps))
        waits = self._settle(made, kept, status)
        if waits is not None:
            await waits

    def _settle(
        self, made: list[_Made], kept: Sequence[bool], status: int
    ) -> Awaitable[object] | None:
        """Settles charges, and forgets failures after a success; gives what is to be awaited."""
        jobs = self._jobs(made, kept)
        forgets = [
            each
            for each in made
            if self._resets
            and status in each.charge.reset_on
            and each.charge.may_reset(each.check.key)
        ]
        if not (jobs or forgets):
            return None
        waits = self._outcomes.settler.begin(*jobs)
        # It is awaited: whoever has succeeded may be back before it.
        return self._forget(waits, forgets) if forgets else waits

    def _jobs(self, made: list[_Made], kept: Sequence[bool]) -> list[Job]:
        """All that is still to be done for charges that are kept, or given back."""
        outcomes = self._outcomes
        returned = [each for each, keeps in zip(made, kept, strict=True) if not keeps]
        stay = [each for each, keeps in zip(made, kept, strict=True) if keeps]
        outcomes.close(stay)
        jobs: list[Job] = []
        if outcomes.settler.sends:
            for key in {each.check.key for each in returned}:
                self._send_back([each for each in returned if each.check.key == key])
        elif returned:
            jobs.append(self._give_back(returned))
        return jobs + [self._remember(each) for each in stay if each.charge.reset_on]

    def _send_back(self, made: Sequence[_Made]) -> None:
        """Puts charges of one identity into the store's queue, to be given back."""
        settler = self._outcomes.settler

        def told(answer: "asyncio.Future[Any]") -> None:
            problem = None if answer.cancelled() else answer.exception()
            if isinstance(problem, Exception):
                settler.reports.fault(problem)
            self._outcomes.close(made)

        try:
            settler.put([each.check.given_back(each.decision) for each in made], told)
        except Exception as problem:  # noqa: BLE001  # the law of this module
            settler.reports.fault(problem)
            self._outcomes.close(made)

    async def _give_back(self, made: Sequence[_Made]) -> None:
        settler = self._outcomes.settler
        try:
            await settler.ask([each.check.given_back(each.decision) for each in made])
        except Exception as problem:  # noqa: BLE001  # the law of this module
            settler.reports.fault(problem)
        finally:
            self._outcomes.close(made)

    async def _remember(self, made: _Made) -> None:
        """Notes a failure, for a success to forget."""
        settler = self._outcomes.settler
        store = settler.store
        if not isinstance(store, Failures):
            settler.reports.once("reset-unsupported", type(store).__name__)
            return
        try:
            back = made.check.given_back(made.decision)
            await store.add_failure(back, made.decision.reset_after_us)
        except Exception as problem:  # noqa: BLE001  # the law of this module
            settler.reports.fault(problem)

    async def _forget(self, waits: Awaitable[object] | None, made: Sequence[_Made]) -> None:
        if waits is not None:
            await waits
        jobs = [self._give_back_failures(each.check) for each in made]
        await self._outcomes.settler.finish_all(jobs)

    async def _give_back_failures(self, check: Check) -> None:
        """Gives back what the failures of a counter were charged."""
        settler = self._outcomes.settler
        store = settler.store
        if not isinstance(store, Failures):
            return
        try:
            await store.forget_failures(check)
        except Exception as problem:  # noqa: BLE001  # the law of this module
            settler.reports.fault(problem)


def _counter(check: Check) -> tuple[str, str, str]:
    return check.limit.digest, check.key, check.rule
