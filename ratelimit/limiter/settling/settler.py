"""Charges that are settled after they were made, by what a request turns out to cost.

The laws of this module: nobody waits for the store but who asks to; what is settled first is sent
first; and a failure of the store ends in the log: what could not be given back stays charged.
"""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from ratelimit.decisions import Check, Decision
from ratelimit.limiter.reports import Reports
from ratelimit.stores import MemoryStore, Store
from ratelimit.stores.redis.store import RedisStore

__all__ = ["Job", "Settler"]

T = TypeVar("T")
Job = Coroutine[Any, Any, None]


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
        self.sends = isinstance(store, RedisStore)
        """Whether the store takes checks that nobody has to wait for."""
        self._tasks: set[asyncio.Task[Any]] = set()
        self._sent: set[asyncio.Future[Any]] = set()

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
            _leave_to_trio(job)

    async def send(self, checks: Sequence[Check]) -> Sequence[Decision]:
        """Asks about checks of one identity, at once, also where whoever waits is cancelled.

        Only where `sends` is true. What is denied or repeated is changed by it at once.
        """
        answer = await asyncio.shield(self.store.send(checks))  # type: ignore[attr-defined]  # `sends`
        return self.store.decided(checks, answer)  # type: ignore[attr-defined,no-any-return]  # as above

    def put(self, checks: Sequence[Check], told: Callable[["asyncio.Future[Any]"], object]) -> None:
        """Puts checks of one identity into the store's queue, and tells of the answer.

        Only where `sends` is true.
        """
        sent: asyncio.Future[Any] = self.store.send(checks)  # type: ignore[attr-defined]  # `sends`
        self._sent.add(sent)
        sent.add_done_callback(self._sent.discard)
        sent.add_done_callback(told)

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
        tasks = [each for each in (*self._tasks, *self._sent) if each.get_loop() is loop]
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


def _leave_to_trio(job: Job) -> None:
    """Begins a job in trio's event loop; where that is another one, what was charged stays."""
    trio = sys.modules.get("trio")
    try:
        if trio is not None:
            trio.lowlevel.spawn_system_task(_one_by_one, (job,))
            return
    except RuntimeError:
        pass
    job.close()


async def _one_by_one(jobs: Iterable[Job]) -> None:
    for job in jobs:
        await job
