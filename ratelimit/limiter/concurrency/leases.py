"""Concurrencies of requests: the places that they hold, and what the store is told of them.

The law of this module: a worker's word in the store is what the worker has under way. It knows
that itself, and tells it anew before a third of a lease has passed, and wherever there is a doubt:
a reply that was lost, a request that was cancelled, a store that was away or has forgotten. Before
more is asked of a counter in doubt, its word is renewed.
"""

import asyncio
import logging
import time
from asyncio import AbstractEventLoop, Future
from collections import Counter as Multiset
from collections.abc import Awaitable, Callable, Iterable, Sequence
from random import randrange
from typing import Any, Final

from ratelimit.concurrency import Concurrency
from ratelimit.decisions import Check, Decision
from ratelimit.limiter.admission import Admission
from ratelimit.limiter.concurrency.asked import Asked, Renewal
from ratelimit.limiter.concurrency.places import Counter, Place, Worker
from ratelimit.rules.matching import Plan
from ratelimit.runtime.background import Background
from ratelimit.stores import MemoryStore, Store, StoreUnavailable

__all__ = ["Leases", "withdraw"]

_LOG: Final = logging.getLogger("ratelimit")

Ask = Callable[[Sequence[Check]], Awaitable[Sequence[Decision]]]

RENEWED_TOO: Final = 0.125  # of a lease, after which a word is renewed where another one is
AGAIN: Final = 1 / 12  # of a lease, after which a renewal that failed is tried again
LONGEST_PAUSE: Final = 1.0  # seconds before it is tried again, however long the lease
GATHERED: Final = 0.02  # seconds in which doubts come together
AT_ONCE: Final = 100  # renewals of one request
TRIES: Final = 3  # of a renewal that was overtaken, before a request goes on all the same


class Leases:
    """The places that a limiter's requests hold.

    ``ask`` is how the store is asked for decisions. A store that has ``decide_apart`` is told of
    renewals by it, and one that has ``send`` of ends; any other is asked as for decisions.
    """

    def __init__(self, store: Store, ask: Ask) -> None:
        self._ask = ask
        self._memory = store if type(store) is MemoryStore else None
        self._ask_apart: Ask = getattr(store, "decide_apart", ask)
        self._store: Any = store
        self._sends = hasattr(store, "send") and hasattr(store, "decided")
        self._workers: dict[AbstractEventLoop | None, Worker] = {}
        self._renewing = Background("leases", self._renew)
        self._said_late = False

    async def ask(
        self, admission: Admission, plan: Plan, keys: Sequence[str], ask: Ask
    ) -> Sequence[Decision]:
        """The decisions on a request; where it passes, its places go to ``admission.held``.

        ``ask`` gives them, or others where it refuses the request by itself.
        """
        worker = self._worker()
        asked = Asked(worker, plan, keys)
        self._renewing.run()
        try:
            for _, counter in asked.counters:
                if counter.in_doubt or counter.is_due(time.monotonic()):
                    await self._assert(worker, counter)
        except BaseException:
            asked.leave()
            raise
        asked.begin()
        decisions = await self._decide(asked, ask)
        admission.held += asked.decided(decisions)
        return [
            each
            if each.allowed or each.degraded or not isinstance(each.limit, Concurrency)
            else each._replace(retry_after_us=1_000_000 * randrange(1, 3))  # noqa: S311  # it spreads, it hides nothing
            for each in decisions
        ]

    async def _decide(self, asked: Asked, ask: Ask) -> Sequence[Decision]:
        """The store's decisions, of which ``asked`` learns also where the request is cancelled."""
        loop = asked.worker.loop
        if self._memory is not None or loop is None:
            try:
                return await ask(asked.checks)
            except BaseException as problem:
                asked.failed(problem)
                raise
        asking = asked.worker.task(_answer(ask, asked.checks))
        try:
            return await asyncio.shield(asking)
        except asyncio.CancelledError:
            if asking.done():
                asked.abandoned(asking)
            else:
                asking.add_done_callback(asked.abandoned)
            raise
        except Exception as problem:
            asked.failed(problem)
            raise

    def assume(
        self, admission: Admission, plan: Plan, keys: Sequence[str], places: Iterable[int]
    ) -> None:
        """Holds places of a request that goes on though the store has not decided on them."""
        worker = self._worker()
        checks = plan.checks(keys)
        for place in places:
            if place in plan.holds:
                counter = worker.counter(checks[place], plan.allowed[place][0])
                counter.held += 1
                counter.in_doubt = True
                worker.settled(counter)
                admission.held.append(Place(worker, counter))
        self._renewing.run()

    # --- words to the store ----------------------------------------------------------------------

    def send_back(self, worker: Worker, counter: Counter, check: Check) -> None:
        """Tells the store that a place was given up; nobody waits for it."""
        began = time.monotonic()
        counter.pending += 1
        counter.begun += 1

        def told(decision: Decision | None, problem: BaseException | None = None) -> None:
            counter.pending -= 1
            if decision is None or decision.degraded:
                counter.doubt(problem or getattr(decision, "problem", None))
            else:
                counter.hear(decision.level, began)
            worker.settled(counter)

        def answered(answer: Future[Any]) -> None:
            if answer.cancelled():
                told(None)
            elif answer.exception() is not None:
                told(None, answer.exception())
            else:
                found = answer.result()
                told(self._store.decided((check,), found)[0] if self._sends else found[0])

        try:
            if self._memory is not None:
                told(_at_once(self._memory, check))
            elif self._sends:
                self._store.send((check,)).add_done_callback(answered)
            else:
                worker.task(_answer(self._ask, (check,))).add_done_callback(answered)
        except Exception as problem:  # noqa: BLE001  # the renewal tells it
            told(None, problem)

    async def _assert(self, worker: Worker, counter: Counter) -> None:
        """Makes sure that the store has the worker's word; several requests wait for one trip."""
        if counter.asserting is not None:
            try:
                await asyncio.shield(counter.asserting)
            except StoreUnavailable as failed:  # an exception is one caller's
                raise StoreUnavailable(str(failed), failed.kind, failed.scope) from None
            return
        if worker.loop is None:
            await self._tell(worker, counter)
            return
        done = counter.asserting = worker.loop.create_future()
        try:
            await self._tell(worker, counter)
        except BaseException as problem:
            if not done.done():
                if isinstance(problem, StoreUnavailable):
                    done.set_exception(problem)
                    done.exception()  # if nobody else waits
                else:
                    done.set_result(None)
            raise
        else:
            if not done.done():
                done.set_result(None)
        finally:
            counter.asserting = None
            worker.settled(counter)

    async def _tell(self, worker: Worker, counter: Counter) -> None:
        """Renews a counter's word once nothing is pending, again where it was overtaken."""
        for _ in range(TRIES):
            while counter.pending and worker.loop is not None:
                if counter.drained is None:
                    counter.drained = worker.loop.create_future()
                await asyncio.shield(counter.drained)
            renewal = Renewal(worker, counter)
            try:
                (decision,) = await self._ask((renewal.check,))
            except BaseException:
                renewal.failed()
                raise
            renewal.answered(decision)
            if decision.degraded:
                problem = getattr(decision, "problem", None)
                raise problem or StoreUnavailable("a shard gave no answer", "shard", "shard")
            if not counter.in_doubt:
                return

    async def _renew(self) -> None:
        """Renews what is due or in doubt, until nothing is held in this event loop."""
        worker = self._worker()
        pause = 0.0
        while worker.counters:
            if not pause:
                await worker.pause()
            await asyncio.sleep(pause or GATHERED)
            worker.woken.clear()
            failed = not await self._renew_due(worker)
            pause = min(worker.shortest * AGAIN, LONGEST_PAUSE) if failed else 0.0

    async def _renew_due(self, worker: Worker) -> bool:
        """Renews what is due; whether the store has answered."""
        now = time.monotonic()
        due = [
            counter
            for counter in worker.counters.values()
            if counter.asserting is None
            and (counter.in_doubt or (counter.held and counter.is_old(now, RENEWED_TOO)))
        ]
        parts = [due[at : at + AT_ONCE] for at in range(0, len(due), AT_ONCE)]
        answers = await asyncio.gather(*(self._renew_some(worker, part) for part in parts))
        if not self._said_late and worker.late(time.monotonic()):
            self._said_late = True
            _LOG.warning(
                "lease-late: places of a concurrency were not renewed within their lease, so that "
                "others may have taken them; was this event loop held up, or the store away?"
            )
        return all(answers)

    async def _renew_some(self, worker: Worker, counters: Sequence[Counter]) -> bool:
        renewals = [Renewal(worker, counter) for counter in counters]
        try:
            decisions = await self._ask_apart([each.check for each in renewals])
        except BaseException as problem:
            for renewal in renewals:
                renewal.failed()
            if not isinstance(problem, Exception):
                raise
            if not isinstance(problem, StoreUnavailable):
                _LOG.exception("lease-failed: places could not be renewed")
            return False
        for renewal, decision in zip(renewals, decisions, strict=True):
            renewal.answered(decision)
        return not any(decision.degraded for decision in decisions)

    # --- workers ---------------------------------------------------------------------------------

    def _worker(self) -> Worker:
        """This event loop's."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            loop = None
        worker = self._workers.get(loop)
        if worker is None or worker.is_forked:
            for other in [it for it in self._workers if it is not None and it.is_closed()]:
                self._workers.pop(other, None)
            worker = self._workers[loop] = Worker(loop, self.send_back)
        return worker

    def held(self, check: Check) -> int:
        """The places of a check's counter that are held in this event loop."""
        known = (check.limit.digest, check.key, check.rule)
        counter = self._worker().counters.get(known)
        return 0 if counter is None else counter.held

    def in_flight(self) -> Multiset[str]:
        """The places held in this process, by rule."""
        found: Multiset[str] = Multiset()
        for worker in list(self._workers.values()):
            for counter in list(worker.counters.values()):
                found[counter.name] += counter.held
        return found

    def late(self) -> float:
        """Seconds by which the oldest word is beyond its lease; 0 where none is."""
        now = time.monotonic()
        return max((worker.late(now) for worker in list(self._workers.values())), default=0.0)

    async def aclose(self) -> None:
        """Ends the renewals in this event loop."""
        await self._renewing.aclose()


def withdraw(admission: Admission, first: int) -> None:
    """Gives up the places of a request from the entry ``first`` of what it holds on."""
    for each in admission.held[first:]:
        if isinstance(each, Place):
            each.withdrawn()


async def _answer(ask: Ask, checks: Sequence[Check]) -> Sequence[Decision]:
    return await ask(checks)


def _at_once(store: MemoryStore, check: Check) -> Decision:
    """The decision of a store that makes nobody wait."""
    try:
        store.decide((check,)).send(None)
    except StopIteration as end:
        decisions: Sequence[Decision] = end.value
        return decisions[0]
    raise RuntimeError("the store in process made somebody wait")
