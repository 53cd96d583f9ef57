"""Threads that go on when the request that waited for them was cancelled.

A plain endpoint runs in a thread, which nothing can end. anyio's own cancellation waits for it;
asyncio's (`asyncio.timeout`, a server that shuts down) does not, and leaves it behind.
"""

from collections.abc import Callable, Iterator
from contextvars import Context
from types import FrameType
from typing import Final
from weakref import finalize

__all__ = ["when_left"]

_WAITING: Final = frozenset({"run_sync_in_worker_thread", "to_thread"})
"""Functions of anyio and asyncio that wait for a thread, which runs in a context of its own."""

_DEEPEST: Final = 10  # exceptions that led to one another


def when_left(error: BaseException, tell: Callable[[], None]) -> bool:
    """Whether threads were left behind, by the exception that ended the wait for them.

    Then ``tell`` is called, from any thread, when all of them have returned.
    """
    frames = list(_waiting(error))
    contexts = [
        value for frame in frames for value in frame.f_locals.values() if type(value) is Context
    ]
    if not contexts:
        return False
    running = len(contexts)

    def left() -> None:
        nonlocal running
        running -= 1
        if not running:
            tell()

    # Each was copied for its thread alone, which lets go of it when it has returned.
    for context in contexts:
        finalize(context, left).atexit = False
    contexts.clear()
    del context
    for frame in frames:
        frame.clear()  # lest a traceback that somebody keeps holds on to it
        frame.f_locals  # noqa: B018  # which it has kept for us
    return True


def _waiting(error: BaseException) -> Iterator[FrameType]:
    """The frames that waited for a thread when they were cancelled."""
    cause: BaseException | None = error
    for _ in range(_DEEPEST):
        if cause is None:
            return
        trace = cause.__traceback__
        while trace is not None:
            if trace.tb_frame.f_code.co_name in _WAITING:
                yield trace.tb_frame
            trace = trace.tb_next
        cause = cause.__cause__ or cause.__context__
