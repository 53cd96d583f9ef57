"""Background tasks of an event loop, which end with their owner."""

import asyncio
from asyncio import get_running_loop
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any

__all__ = ["Background"]


class Background:
    """One job, run once at a time in every event loop that asks for it; it raises nothing."""

    def __init__(self, name: str, job: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._name = name
        self._job = job
        self._tasks: dict[asyncio.AbstractEventLoop, asyncio.Task[None]] = {}

    def run(self) -> bool:
        """Starts the job in this event loop, if it does not run there already.

        False where there is no event loop of asyncio's.
        """
        try:
            loop = get_running_loop()
        except RuntimeError:
            return False
        task = self._tasks.get(loop)
        if task is None or task.done():  # which the loop may not have told yet
            self._start(loop)
        return True

    async def aclose(self) -> None:
        """Ends the job in this event loop, until it is next asked for."""
        try:
            task = self._tasks.pop(get_running_loop(), None)
        except RuntimeError:  # not asyncio's, where none was begun
            return
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        for other in [each for each in list(self._tasks) if each.is_closed()]:
            self._tasks.pop(other, None)
        # The job is nobody's: it must not be traced as a part of the request that came first.
        task = loop.create_task(self._job(), name=f"ratelimit {self._name}", context=Context())
        # A loop that is closed by hand drops its tasks, and this one has nothing to lose.
        task._log_destroy_pending = False  # type: ignore[attr-defined]  # noqa: SLF001
        self._tasks[loop] = task

        def ended(_: object) -> None:
            if self._tasks.get(loop) is task:
                del self._tasks[loop]

        task.add_done_callback(ended)
