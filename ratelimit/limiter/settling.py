"""Charges that are settled after they were made, by what a request turns out to cost.

The laws of this module: nobody waits for the store but who asks to; what is settled first is sent
first; and a failure of the store ends in the log: what could not be given back stays charged.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import suppress
from typing import Any, Final, NamedTuple, TypeVar

from starlette.responses import Response

from ratelimit.decisions import Check, Decision
from ratelimit.limiter.reports import Reports
from ratelimit.rules.charging import Charge
from ratelimit.rules.matching import Plan
from ratelimit.stores import MemoryStore, Store
from ratelimit.stores.failures import Failures

__all__ = ["Outcomes", "Settler"]

T = TypeVar("T")
Job = Coroutine[Any, Any, None]

SOON_US: Final = 1_000_000
"""The promise of a denial beside charges that an outcome may give back at any moment."""

FAILED: Final = 500
"""The status that an exception counts as."""

NEVER_RESETS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
"""Methods whose success proves nothing."""

MOST_RETURNED: Final = 50
"""Failures that are given back at once: a sliding log is walked for each, and others wait."""


class Settler:
    """Asks the store about charges that were made, one job after the other begins.

    ``ask`` is how the store is asked to decide.
    """

    def __init__(
        self,
        store: Store,
        ask: Callable[[Sequence[Check]], Awaitable[Sequence[Decision]]],
        reports: Reports,
    ) -> None:
        self.store = store
        self.ask = ask
        self.reports = reports
        self.at_once = type(store) is MemoryStore
        """Whether the store answers without a wait, in whatever event loop."""
        self._tasks: set[asyncio.Task[Any]] = set()

    def begin(self, *jobs: Job) -> Awaitable[object] | None:
        """Begins jobs, which raise nothing, in the background; what is returned is to be awaited.

        The store in process has done them then. Any other has all of them in its queue once what
        is returned has been awaited, which takes one turn of the event loop.
        """
        if self.at_once:
            for job in jobs:
                _done(job)
            return None
        try:
            for job in jobs:
                self._keep(job)
        except RuntimeError:  # an event loop that is not asyncio's
            return _one_by_one(jobs)
        return asyncio.sleep(0)

    def leave(self, job: Job) -> None:
        """Begins a job that raises nothing, for which nobody can wait."""
        if self.at_once and not _is_asyncio():
            with suppress(RuntimeError):
                _done(job)
            return
        try:
            self._keep(job)
        except RuntimeError:
            job.close()  # not asyncio's, and the store has to be waited for

    async def finish(self, job: Coroutine[Any, Any, T]) -> T:
        """Does a job to its end, also where whoever waits for it is cancelled."""
        if self.at_once:
            return await job
        try:
            task = self._keep(job)
        except RuntimeError:
            return await job
        return await asyncio.shield(task)

    async def finish_all(self, jobs: Sequence[Job]) -> None:
        """Does jobs to their ends as `finish` does, together where the event loop lets them."""
        if self.at_once or not _is_asyncio():
            for job in jobs:
                await job
            return
        await asyncio.shield(asyncio.gather(*map(self._keep, jobs)))

    async def aclose(self) -> None:
        """Waits for the jobs of this event loop, which the store's deadline bounds."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return
        tasks = [each for each in self._tasks if each.get_loop() is loop]
        await asyncio.gather(*tasks, return_exceptions=True)

    def _keep(self, job: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
        task = asyncio.get_running_loop().create_task(job)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _is_asyncio() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _done(job: Job) -> None:
    """Runs a job that has nothing to wait for."""
    try:
        job.send(None)
    except StopIteration:
        return
    job.close()
    raise RuntimeError("the store in process made somebody wait")


async def _one_by_one(jobs: Iterable[Job]) -> None:
    for job in jobs:
        await job


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
        if not made:
            return None
        for each in made:
            self.open[_counter(each.check)] += 1
        return Outcome(self, made, resets=method.upper() not in NEVER_RESETS)

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
        self._resets = False
        if not isinstance(error, Exception):
            waits: Any = self._settle(made, [True] * len(made), 0)
        elif any(each.charge.keep_if is not None for each in made):
            self._outcomes.settler.leave(self._ask(made, FAILED, ()))
            return
        else:
            waits = self._settle(made, [FAILED in each.charge.on_status for each in made], FAILED)
        if waits is not None:
            waits.close()

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
        outcomes = self._outcomes
        returned = [each for each, keeps in zip(made, kept, strict=True) if not keeps]
        stay = [each for each, keeps in zip(made, kept, strict=True) if keeps]
        outcomes.close(stay)
        jobs: list[Job] = [self._give_back(returned)] if returned else []
        jobs += [self._remember(each) for each in stay if each.charge.reset_on]
        forgets = [
            each
            for each in made
            if self._resets
            and status in each.charge.reset_on
            and each.charge.may_reset(each.check.key)
        ]
        if not (jobs or forgets):
            return None
        waits = outcomes.settler.begin(*jobs)
        # To forget failures takes two trips, and whoever has succeeded may be back before them.
        return self._forget(waits, forgets) if forgets else waits

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
            # The newest first: a sliding log is walked from its newest charge.
            forgotten = (await store.take_failures(check))[::-1]
            for first in range(0, len(forgotten), MOST_RETURNED):
                await settler.ask(forgotten[first : first + MOST_RETURNED])
        except Exception as problem:  # noqa: BLE001  # the law of this module
            settler.reports.fault(problem)


def _counter(check: Check) -> tuple[str, str, str]:
    return check.limit.digest, check.key, check.rule
