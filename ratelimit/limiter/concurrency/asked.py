"""Questions of a worker to the store about its places, and what it learns from the answers."""

import asyncio
import time
from asyncio import Future
from collections.abc import Sequence
from typing import Final

from ratelimit.decisions import Action, Decision, passes
from ratelimit.limiter.concurrency.places import NO_SERIAL, Counter, Place, Worker
from ratelimit.rules.matching import Plan

__all__ = ["Asked", "Renewal"]

_RENEW: Final = int(Action.RENEW)


class Asked:
    """A request's charges on their way: its checks, and the counters of those that hold places."""

    def __init__(self, worker: Worker, plan: Plan, keys: Sequence[str]) -> None:
        self.worker = worker
        self.checks = plan.checks(keys)
        self.began = time.monotonic()
        self.counters: list[tuple[int, Counter]] = []
        for place in plan.holds:
            check = self.checks[place]
            counter = worker.counter(check, plan.allowed[place][0])
            counter.users += 1
            self.checks[place] = worker.check(counter, check.action, 1)
            self.counters.append((place, counter))

    def begin(self) -> None:
        """Notes that they leave."""
        self.began = time.monotonic()
        for _, counter in self.counters:
            counter.pending += 1
            counter.begun += 1

    def leave(self) -> None:
        """Lets go of the counters."""
        for _, counter in self.counters:
            counter.users -= 1
            self.worker.settled(counter)

    def decided(self, decisions: Sequence[Decision]) -> list[Place]:
        """Learns of the decisions; gives the places that the request holds, if it passes."""
        # There are others where it was refused before these were asked.
        passed = len(decisions) == len(self.checks) and passes(self.checks, decisions)
        places: list[Place] = []
        for place, counter in self.counters:
            counter.pending -= 1
            decision = decisions[place] if len(decisions) == len(self.checks) else None
            if decision is None:
                continue
            if decision.degraded:
                counter.doubt(getattr(decision, "problem", None))
            elif passed and decision.allowed:
                counter.hear(decision.level, self.began)
                counter.held += 1
                places.append(Place(self.worker, counter))
        self.leave()
        return places

    def failed(self, problem: BaseException) -> None:
        """Learns that there are no decisions."""
        for _, counter in self.counters:
            counter.pending -= 1
            counter.doubt(problem)
        self.leave()

    def abandoned(self, asking: Future[Sequence[Decision]]) -> None:
        """Learns what was decided on a request that was cancelled meanwhile."""
        if asking.cancelled():
            self.failed(asyncio.CancelledError())
        elif (problem := asking.exception()) is not None:
            self.failed(problem)
        else:
            for each in self.decided(asking.result()):
                each.withdrawn()


class Renewal:
    """A worker's word on one counter, on its way to the store."""

    def __init__(self, worker: Worker, counter: Counter) -> None:
        self._worker = worker
        self._counter = counter
        counter.users += 1
        self._held = counter.held
        self._begun = counter.begun
        self._serial = counter.serial
        self._began = time.monotonic()
        # What is pending may be counted before or after it: the word stays, and holds for longer.
        self._is_exact = not counter.pending
        serial = self._serial if self._is_exact else NO_SERIAL
        self.check = worker.check(counter, _RENEW, self._held, serial)

    def failed(self) -> None:
        """Learns that the store has not answered, or cannot read the word."""
        self._counter.in_doubt = True
        self._leave()

    def answered(self, decision: Decision) -> None:
        """Learns what the store says of it."""
        counter, serial = self._counter, decision.level
        if decision.degraded:
            self.failed()
            return
        counter.told_at = max(counter.told_at, self._began)
        counter.renewed_at = self._began
        undisturbed = self._is_exact and counter.begun == self._begun
        stayed = decision.delay_us > 0
        if undisturbed:
            counter.serial = serial
            # It stays where the store has counted something that is not known here.
            counter.in_doubt = stayed or counter.held != self._held
        elif not stayed and serial != self._serial:
            counter.in_doubt = True  # it has become a new word, to which the old count was told
        self._leave()

    def _leave(self) -> None:
        self._counter.users -= 1
        self._worker.settled(self._counter)
