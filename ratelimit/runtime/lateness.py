"""The lateness of an event loop and of its threads, measured every 50 ms.

The law of this module: it measures what a request waits for, and takes nothing from requests.

A request begins behind whatever was ready before it: first its bytes are read, which is due, and in
the next round of the loop its task runs. So a sample is taken in the same two steps: a timer, and
what that puts behind everything that is ready then.
"""

import asyncio
import sys
from collections.abc import Callable
from contextvars import Context
from time import monotonic
from typing import Any, Final

import anyio.to_thread
from anyio import CapacityLimiter

__all__ = ["EVERY", "Lateness", "Queue"]

EVERY: Final = 0.05
"""Seconds between a sample and the next."""

FAR: Final = 2.0
"""Seconds of lateness that are told at once, before all that has come meanwhile is begun."""


class Lateness:
    """Samples of the event loops that ask for it, told to ``tell`` as a time and a lateness.

    The time is monotonic; the lateness, in seconds, is that of the loop, or of AnyIO's default
    threads, in which sync endpoints run: the greater one.
    """

    def __init__(self, tell: Callable[[float, float], object]) -> None:
        self._tell = tell
        self._samplers: dict[asyncio.AbstractEventLoop, _Sampler] = {}
        self.due = float("inf")
        """The time at which the next sample would be taken if nothing were late, monotonic."""

    def run(self) -> bool:
        """Begins in this event loop, if it has not; False where that is not asyncio's."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return False
        if loop not in self._samplers:
            for other in [each for each in self._samplers if each.is_closed()]:
                del self._samplers[other]
            self._samplers[loop] = sampler = _Sampler(loop, self._told)
            sampler.begin()
            self.due = sampler.due
        return True

    def foretold(self) -> float:
        """Seconds by which one who comes now is late for a thread; 0 where nothing can be told.

        As late as the loop was in its last sample, at least.
        """
        try:
            sampler = self._samplers.get(asyncio.get_running_loop())
        except RuntimeError:  # not asyncio's
            return 0.0
        return 0.0 if sampler is None else sampler.foretold()

    def stop(self) -> None:
        """Ends in this event loop, until it is next asked for."""
        try:
            sampler = self._samplers.pop(asyncio.get_running_loop(), None)
        except RuntimeError:  # not asyncio's, where none was begun
            return
        if sampler is not None:
            sampler.end()
            self.due = float("inf")

    def end(self) -> None:
        """Ends in every event loop."""
        while self._samplers:
            loop, sampler = self._samplers.popitem()
            if not loop.is_closed():
                loop.call_soon_threadsafe(sampler.end)

    def _told(self, sampler: "_Sampler", now: float, late: float) -> None:
        self.due = sampler.due
        self._tell(now, late)


class Queue:
    """The wait in a queue for threads, by a probe in it and by how fast it moves.

    What a probe has waited is the time of those that came before it. Those that wait now are begun
    at the pace at which its own were, so that a queue is seen when it grows, and not a wait later.
    """

    def __init__(self) -> None:
        self.probed_at: float | None = None
        """The time since which a probe waits; None where none does."""
        self._ahead = 0
        self._waited = 0.0
        """Seconds that the last probe waited; 0 once that was told."""
        self._pace = 0.0
        """Seconds from one that was begun to the next; 0 where it is not known."""

    def enter(self, now: float, ahead: int) -> None:
        """Begins a probe behind so many that wait."""
        self.probed_at, self._ahead = now, ahead

    def leave(self, now: float) -> None:
        """Ends it with a thread."""
        if self.probed_at is not None:
            self._waited = now - self.probed_at
            self._pace = self._waited / (self._ahead + 1)
            self.probed_at = None

    def stall(self) -> None:
        """Forgets the pace, since threads were idle: nobody handed them out meanwhile."""
        self._pace, self._ahead = 0.0, sys.maxsize

    def late(self, now: float, waiting: int) -> float:
        """Seconds that one who comes now waits behind so many."""
        waited, self._waited = self._waited, 0.0
        if self.probed_at is not None:
            waited = max(waited, now - self.probed_at)
        elif not waiting:
            self._pace = 0.0  # which was that of a queue that is gone
        return max(waited, self.foretold(waiting))

    def foretold(self, waiting: int) -> float:
        """The same by the pace alone; 0 where that is not known."""
        return (waiting + 1) * self._pace


class _Sampler:
    """The samples of one event loop."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, tell: "Callable[[_Sampler, float, float], None]"
    ) -> None:
        self._loop = loop
        self._tell = tell
        self._next: asyncio.Handle | None = None
        self._probe: asyncio.Task[None] | None = None
        self._queue = Queue()
        self._loop_late = 0.0
        self._threads: CapacityLimiter | None = None
        self.due = 0.0

    def begin(self) -> None:
        # AnyIO tells its threads only where a task asks.
        self._task(self._find_threads(), "threads")
        self._wait()

    def end(self) -> None:
        if self._next is not None:
            self._next.cancel()
        if self._probe is not None:
            self._probe.cancel()

    async def _find_threads(self) -> None:
        self._threads = anyio.to_thread.current_default_thread_limiter()

    def _wait(self) -> None:
        self.due = monotonic() + EVERY
        self._next = self._loop.call_later(EVERY, self._first, context=Context())

    def _first(self) -> None:
        now = monotonic()
        if now - self.due > FAR:
            self._tell(self, now, now - self.due)
        self._next = self._loop.call_soon(self._second)

    def _second(self) -> None:
        now = monotonic()
        self._loop_late = late = max(0.0, now - self.due)
        if late > EVERY:
            self._queue.stall()
        late = max(late, self._threads_late(now))
        self._wait()
        self._tell(self, now, late)

    def foretold(self) -> float:
        if self._threads is None:
            return 0.0
        late = self._queue.foretold(self._threads.statistics().tasks_waiting)
        return late and max(late, self._loop_late)

    def _threads_late(self, now: float) -> float:
        """Seconds that a request waits for a thread."""
        if self._threads is None:
            return 0.0
        waiting = self._threads.statistics().tasks_waiting
        late = self._queue.late(now, waiting)
        if waiting and self._probe is None:
            self._queue.enter(now, waiting)
            self._probe = self._task(self._ask_for_one(self._threads), "probe")
        return late

    async def _ask_for_one(self, threads: CapacityLimiter) -> None:
        """Waits for a thread as a request does, and leaves it at once."""
        me = object()
        try:
            await threads.acquire_on_behalf_of(me)
            threads.release_on_behalf_of(me)
            self._queue.leave(monotonic())
        finally:
            self._probe = None

    def _task(self, job: Any, name: str) -> asyncio.Task[None]:
        # The job is nobody's: it must not be traced as a part of the request that came first.
        task = self._loop.create_task(job, name=f"ratelimit {name}", context=Context())
        task._log_destroy_pending = False  # type: ignore[attr-defined]  # noqa: SLF001  # nothing to lose
        return task
