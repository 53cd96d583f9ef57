"""A line that tells how far a command has come, on a terminal alone."""

import sys
import time
from typing import Final, Protocol, Self

__all__ = ["Progress"]

EVERY: Final = 0.2
"""Seconds between two lines."""
WIDTH: Final = 30


class Reading(Protocol):
    """The part of a log that a bar is drawn for."""

    requests: int

    @property
    def read(self) -> int:
        """Bytes read so far."""

    @property
    def size(self) -> int | None:
        """Bytes of all; None where that is not known."""


class Progress:
    """A bar with the rate and the time left, on standard error."""

    def __init__(self, log: Reading) -> None:
        self._log = log
        self._shows = sys.stderr.isatty()
        self._start = self._last = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._shows:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()

    def step(self) -> bool:
        """Draws the bar anew where it is due; False, so that it may stand in an ``or``."""
        if self._shows:
            now = time.monotonic()
            if now - self._last >= EVERY:
                self._last = now
                sys.stderr.write(f"\r\x1b[K{self.line(now - self._start)}")
                sys.stderr.flush()
        return False

    def line(self, seconds: float) -> str:
        """The line after so many seconds."""
        log = self._log
        rate = log.requests / seconds if seconds else 0
        if not log.size:
            return f"{log.requests:,} requests, {rate:,.0f}/s"
        part = min(1.0, log.read / log.size)
        left = seconds / part - seconds if part else 0
        bar = "#" * round(part * WIDTH)
        return (
            f"[{bar:<{WIDTH}}] {part:4.0%}  {log.requests:,} requests, {rate:,.0f}/s, "
            f"{left:.0f} s left"
        )
