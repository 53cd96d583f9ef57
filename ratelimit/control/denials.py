"""The most denied identities of late, counted in process and gathered in the store."""

import asyncio
import logging
from collections import Counter
from collections.abc import Mapping
from typing import Final, Protocol, runtime_checkable

from ratelimit.background import Background
from ratelimit.decisions import identity_digest
from ratelimit.stores import StoreUnavailable

__all__ = ["Denials", "Noting"]

_LOG: Final = logging.getLogger("ratelimit")

MOST: Final = 5_000
"""Most names that are counted, between two reports and in all; a flood is among the first."""

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


class Denials:
    """Counts denied requests by rule and identity.

    An address is counted as it is, any other identity by its digest, as in the store's keys: it
    may be a secret. ``busiest`` gives what this process alone has counted.
    """

    def __init__(self, store: object) -> None:
        self._store = store if isinstance(store, Noting) else None
        self._counts: Counter[str] = Counter()
        self._new: Counter[str] = Counter()
        self._background = Background("denials", self._report)
        self._complained = False

    def add(self, rule: str, key: str) -> None:
        """Counts one denied request."""
        plain = len(key) <= LONGEST and "=" not in key and key.isascii()
        name = f"{rule} {key if plain else '#' + identity_digest(key)}"
        for counts in (self._new, self._counts):
            if name in counts or len(counts) < MOST:
                counts[name] += 1
        if self._store is not None:
            self._background.run()

    def busiest(self, count: int = 10) -> list[tuple[str, int]]:
        """Names (``rule identity``) with their number of denials here, the most denied first."""
        return self._counts.most_common(count)

    async def aclose(self) -> None:
        """Ends what runs in the background of this event loop."""
        await self._background.aclose()

    async def _report(self) -> None:
        """Reports the gathered counts, and ends when there are none left."""
        while self._new and self._store is not None:
            await asyncio.sleep(EVERY)
            counts, self._new = dict(self._new.most_common(REPORTED)), Counter()
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
