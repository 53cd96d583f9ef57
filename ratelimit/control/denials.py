"""The most denied identities of late, counted in process and gathered in the store."""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from heapq import nlargest
from threading import Lock
from typing import Final, Protocol, runtime_checkable

from ratelimit.decisions import identity_digest
from ratelimit.runtime.background import Background
from ratelimit.stores import StoreUnavailable

__all__ = ["Denials", "Noting"]

_LOG: Final = logging.getLogger("ratelimit")

MOST: Final = 5_000
"""Most names that are counted in one span of time."""

SPAN: Final = 600.0
"""Seconds that are counted together; those before are remembered for as long, then forgotten."""

LONGEST: Final = 64
"""Characters of an identity that is counted as it is; longer than any address."""

REPORTED: Final = 50
"""Names in one report, the most denied first."""

EVERY: Final = 2.0
"""Seconds between two reports."""


@runtime_checkable
class Noting(Protocol):
    """A store in which workers gather the identities that they have denied."""

    async def note_denials(self, counts: Mapping[str, int]) -> None:
        """Adds to the recent counts, by name."""
        ...


class Heavy:
    """The names that were counted most, in bounded memory, and each step in constant time.

    Space-saving (Metwally, Agrawal, El Abbadi 2005): where there is no room for a name, it takes
    the place of one of those that were counted least, and that one's count as its error. So every
    name counted more often than ``missed`` is here, however many others there were.
    """

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._errors: dict[str, int] = {}
        self._levels: dict[int, dict[str, None]] = {}
        """The names by their count."""
        self._least = 0
        self._told: dict[str, int] = {}
        """The part of each count that was reported."""
        self._new: set[str] = set()
        """The names that were counted since the last report."""

    def add(self, name: str) -> None:
        """Counts a name once."""
        before = self._counts.get(name, 0)
        if before:
            self._leave(name, before)
        elif len(self._counts) < MOST:
            self._least = 1
        else:
            before = self._least
            last = self._leave(None, before)
            for of_each in (self._counts, self._errors, self._told):
                of_each.pop(last, None)
            self._new.discard(last)
            self._errors[name] = before
        self._counts[name] = before + 1
        self._levels.setdefault(before + 1, {})[name] = None
        self._new.add(name)

    def _leave(self, name: str | None, count: int) -> str:
        """Takes a name from its level, to which the next one is added; None for any of them."""
        level = self._levels[count]
        if name is None:
            name, _ = level.popitem()
        else:
            del level[name]
        if not level:
            del self._levels[count]
            if self._least == count:
                self._least = count + 1
        return name

    @property
    def missed(self) -> int:
        """The most that a name which is not here can have been counted."""
        return self._least if len(self._counts) >= MOST else 0

    def counts(self) -> dict[str, int]:
        """The names with how often each was counted at the least."""
        return {name: self._sure(name) for name in self._counts}

    def news(self, most: int) -> dict[str, int]:
        """Of those counted since this was last asked, the ones counted most, by how much anew."""
        names = nlargest(most, self._new, key=self._sure)
        self._new.clear()
        found = {name: self._sure(name) - self._told.get(name, 0) for name in names}
        for name in names:
            self._told[name] = self._sure(name)
        return found

    @property
    def has_news(self) -> bool:
        """Whether anything was counted since the last report."""
        return bool(self._new)

    def _sure(self, name: str) -> int:
        return self._counts[name] - self._errors.get(name, 0)


class Denials:
    """Counts denied requests by rule and identity, and forgets them after ten to twenty minutes.

    An address is counted as it is, any other identity by its digest, as in the store's keys: it
    may be a secret. ``busiest`` gives what this process alone has counted. ``clock`` gives seconds.
    """

    def __init__(self, store: object, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store if isinstance(store, Noting) else None
        self._clock = clock
        self._now, self._before = Heavy(), Heavy()
        self._until = clock() + SPAN
        self._lock = Lock()  # event loops may share a limiter
        self._background = Background("denials", self._report)
        self._complained = False

    def add(self, rule: str, key: str) -> None:
        """Counts one denied request."""
        plain = len(key) <= LONGEST and "=" not in key and key.isascii()
        name = f"{rule} {key if plain else '#' + identity_digest(key)}"
        with self._lock:
            self._forget()
            self._now.add(name)
        if self._store is not None:
            self._background.run()

    def busiest(self, count: int = 10) -> list[tuple[str, int]]:
        """Names (``rule identity``) with their number of denials here, the most denied first.

        Of the last ten to twenty minutes. A number is never too high; where more identities were
        denied than are counted, it may be too low by `missed`.
        """
        with self._lock:
            self._forget()
            counts = self._now.counts()
            for name, number in self._before.counts().items():
                counts[name] = counts.get(name, 0) + number
        return nlargest(count, counts.items(), key=lambda each: each[1])

    @property
    def missed(self) -> int:
        """The most denials that an identity can have which `busiest` knows nothing of.

        0 until more identities were denied than are counted.
        """
        with self._lock:
            self._forget()
        return self._now.missed + self._before.missed

    async def aclose(self) -> None:
        """Ends what runs in the background of this event loop."""
        await self._background.aclose()

    def _forget(self) -> None:
        """Begins a new span of time where one has ended, and forgets the one before it."""
        now = self._clock()
        if now < self._until:
            return
        self._before = self._now if now < self._until + SPAN else Heavy()
        self._now = Heavy()
        self._until = now + SPAN

    async def _report(self) -> None:
        """Reports the gathered counts, and ends when there are none left."""
        while self._now.has_news and self._store is not None:
            await asyncio.sleep(EVERY)
            with self._lock:
                counts = self._now.news(REPORTED)
            try:
                await self._store.note_denials(counts)
            except Exception as error:  # noqa: BLE001  # a store of the application's raises anything
                # That a store is away is the breaker's to say.
                away = isinstance(error, StoreUnavailable) and error.kind != "permission"
                if not away and not self._complained:
                    self._complained = True
                    _LOG.warning(
                        "denials-unreported: `ratelimit top` will not show them: %s: %s",
                        type(error).__name__,
                        error,
                    )
