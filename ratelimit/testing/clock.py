"""A clock that is moved by hand, and switches for a whole process."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from ratelimit.limiter.limiter import RateLimiter
from ratelimit.stores import MemoryStore
from ratelimit.stores.memory import live_stores

__all__ = ["START_US", "ManualClock", "by_hand", "disabled", "reset"]

START_US: Final = 1_700_352_000_000_000
"""2023-11-19 00:00 UTC, where a minute, a day and a window of 30 days start at once."""


class ManualClock:
    """A clock that stands still until it is moved: calling it gives epoch microseconds."""

    def __init__(self, start_us: int = START_US) -> None:
        self.set_us(start_us)

    def __call__(self) -> int:
        return self._now_us

    def advance(self, seconds: float = 0, *, us: int = 0) -> None:
        """Moves on by seconds (rounded to a microsecond) and microseconds; back if negative."""
        self.set_us(self._now_us + round(seconds * 1_000_000) + us)

    def set_us(self, now_us: int) -> None:
        """Stands at this instant, in whole microseconds since the epoch."""
        if type(now_us) is not int:
            raise TypeError(f"a clock gives whole microseconds, not {type(now_us).__name__}")
        self._now_us = now_us


@contextmanager
def disabled() -> Iterator[None]:
    """Turns every limiter of the process off while it lasts, the library's own included."""
    before, RateLimiter.everywhere = RateLimiter.everywhere, False
    try:
        yield
    finally:
        RateLimiter.everywhere = before


def reset() -> None:
    """Forgets every counter of every `MemoryStore` in the process."""
    for store in live_stores():
        store.clear()


@contextmanager
def by_hand(clock: ManualClock | None = None) -> Iterator[ManualClock]:
    """Moves the time of every `MemoryStore` by a clock, from `START_US` on; gives that clock.

    Also of those that are made meanwhile, but not of one that was given a clock of its own. The
    counters are forgotten at both ends, since they are of another time.
    """
    clock = clock or ManualClock()
    reset()
    before, MemoryStore.clock = MemoryStore.clock, clock
    try:
        yield clock
    finally:
        MemoryStore.clock = before
        reset()
