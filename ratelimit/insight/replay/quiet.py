"""Warnings of the limiter, kept for the report instead of printed."""

import logging
from typing import Self

__all__ = ["Quiet"]


class Quiet:
    """Keeps what the limiter logs, instead of having it printed; each sentence once."""

    def __init__(self) -> None:
        self.said: dict[str, None] = {}

    def __enter__(self) -> Self:
        log = logging.getLogger("ratelimit")
        self._handler = _Keeping(self.said)
        self._propagates = log.propagate
        log.addHandler(self._handler)
        log.propagate = False
        return self

    def __exit__(self, *_: object) -> None:
        log = logging.getLogger("ratelimit")
        log.removeHandler(self._handler)
        log.propagate = self._propagates


class _Keeping(logging.Handler):
    def __init__(self, said: dict[str, None]) -> None:
        super().__init__(logging.WARNING)
        self._said = said

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if not text.startswith(("not-asyncio", "memory-")) and len(self._said) < 100:
            self._said[text] = None
