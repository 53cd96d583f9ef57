"""Blocking work in threads of our own, and time limits that a stalled event loop does not use up.

The default executor is the application's: a resolver that hangs would fill it.
"""

import asyncio
import threading
from collections.abc import (
    AsyncIterator,
    Callable,
    Hashable,
)
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

from ratelimit.stores.errors import StoreUnavailable

__all__ = ["ERRANDS", "within"]

TOLD_AFTER: Final = 0.9  # of it: so that our own sentence comes before whoever waits gives up


TICKS: Final = 20  # in which a patience is counted


MOST_ERRANDS: Final = 64  # threads at once; names may come from a cluster's nodes


class Errands:
    """Blocking work in daemon threads: one for each key at a time, whose askers share its result.

    For all event loops of the process. A thread ends with its work; one that hangs keeps nobody
    from leaving, neither a caller that is cancelled nor the interpreter.
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Begins anew, as a child of a fork must: its parent's threads did not come along."""
        self._lock = threading.Lock()
        self._under_way: dict[Hashable, set[asyncio.Future[Any]]] = {}

    async def result(self, key: Hashable, work: Callable[[], Any]) -> Any:
        """The result of ``work``, shared with everyone who asks under ``key`` while it runs.

        Raises what ``work`` raises, and StoreUnavailable where too much is under way already.
        """
        future = asyncio.get_running_loop().create_future()
        with self._lock:
            waiting = self._under_way.get(key)
            is_first = waiting is None
            if waiting is None:
                if len(self._under_way) >= MOST_ERRANDS:
                    raise StoreUnavailable(
                        f"{MOST_ERRANDS} names are being looked up already", kind="name"
                    )
                waiting = self._under_way[key] = set()
            waiting.add(future)
        try:
            if is_first:
                self._start(key, work)
            value, error = await future
        finally:
            with self._lock:
                waiting.discard(future)
        if error is not None:
            raise error.with_traceback(None)
        return value

    def _start(self, key: Hashable, work: Callable[[], Any]) -> None:
        thread = threading.Thread(
            target=self._run, args=(key, work), name="ratelimit-connect", daemon=True
        )
        try:
            thread.start()
        except RuntimeError as error:  # too many threads, or the interpreter ends
            self._settle(key, None, StoreUnavailable(f"no thread could be started ({error})"))

    def _run(self, key: Hashable, work: Callable[[], Any]) -> None:
        value, problem = None, None
        try:
            value = work()
        except Exception as error:  # noqa: BLE001 # whoever asked is told
            problem = error
        self._settle(key, value, problem)

    def _settle(self, key: Hashable, value: Any, problem: Exception | None) -> None:
        with self._lock:
            waiting = list(self._under_way.pop(key, ()))
        for future in waiting:
            with suppress(RuntimeError):  # its event loop was closed meanwhile
                future.get_loop().call_soon_threadsafe(_answer, future, (value, problem))


def _answer(future: asyncio.Future[Any], result: Any) -> None:
    if not future.done():
        future.set_result(result)


ERRANDS: Final = Errands()


@asynccontextmanager
async def within(seconds: float) -> AsyncIterator[None]:
    """Raises TimeoutError after so many seconds, of which an event loop that stalls uses up few.

    They are counted in ticks, and however long the loop was held up, that is one: what a server
    sent meanwhile is read before the next.
    """
    loop = asyncio.get_running_loop()
    timer: asyncio.TimerHandle
    async with asyncio.timeout(None) as limit:

        def tick(left: int) -> None:
            nonlocal timer
            if left:
                timer = loop.call_later(seconds / TICKS, tick, left - 1)
            else:
                limit.reschedule(loop.time())

        timer = loop.call_later(seconds / TICKS, tick, TICKS - 1)
        try:
            yield
        finally:
            timer.cancel()
