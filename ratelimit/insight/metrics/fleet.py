"""The counts of all workers together, gathered in the store that they share.

The law of this module: what a worker has counted is added once, whatever becomes of the replies,
and nothing is shown that may be less than what was shown before.
"""

import asyncio
import json
import logging
import os
import secrets
import time
from collections.abc import Iterator, Mapping
from threading import Lock
from typing import Any, Final, Protocol, runtime_checkable

from ratelimit.insight.metrics.readings import METRICS, Metric, Reading, readings
from ratelimit.limiter.limiter import RateLimiter
from ratelimit.runtime.background import Background
from ratelimit.runtime.histogram import SECONDS, SIZES, Histogram
from ratelimit.stores import StoreUnavailable

__all__ = ["Fleet", "Gathering"]

_LOG: Final = logging.getLogger("ratelimit")

EVERY: Final = 1.0
"""Seconds between two additions."""

TRIES: Final = 5
PAUSE: Final = 0.1
"""Tries to add what is left when a worker ends, and seconds between them."""

FRESH_FOR: Final = 5.0
"""Seconds after which totals are not shown any more: other workers may have shown higher ones."""

PARTS: Final = 1_000_000
"""Fractions of what is not counted in whole numbers: a second in microseconds."""

_BY_NAME: Final = {metric.name: metric for metric in METRICS if metric.kind != "gauge"}


@runtime_checkable
class Gathering(Protocol):
    """A store in which workers gather what they have counted."""

    async def add_counts(
        self, worker: str, serial: int, counts: Mapping[str, int]
    ) -> dict[str, int]:
        """Adds once, however often it is sent; gives the totals of all workers."""
        ...


class Fleet:
    """Adds what a limiter counts to the totals of all, and knows these.

    Raises ValueError where its store is not one that workers share.
    """

    def __init__(self, limiter: RateLimiter) -> None:
        if not isinstance(limiter.store, Gathering):
            raise ValueError(  # noqa: TRY004  # a store is not of a wrong type for it
                f"shared metrics need a store that workers share, such as redis://…; a "
                f"{type(limiter.store).__name__} is not one"
            )
        self._store = limiter.store
        self._limiter = limiter
        self._worker = ""
        self._process = 0
        self._serial = 0
        self._added: dict[str, int] = {}
        """The part of each count that the store is known to have."""
        self._pending: dict[str, int] | None = None
        """Counts that were sent under the present serial, and may or may not have been added."""
        self._totals: dict[str, int] = {}
        self._read_at = float("-inf")
        self._busy = Lock()
        self._complained = False
        self._background = Background("metrics", self._beat)

    def run(self) -> None:
        """Begins to add in this event loop, if it does not already."""
        self._background.run()

    async def aclose(self) -> None:
        """Adds what was not added yet, as far as the store answers."""
        await self._background.aclose()
        problem: Exception | None = None
        for _ in range(TRIES):
            again = self._pending is not None  # its reply was lost, or not waited for
            try:
                await self._add()
            except Exception as error:  # noqa: BLE001  # a store of the application's raises anything
                problem = error
                await asyncio.sleep(PAUSE)
                continue
            if not again:
                return
        if problem is not None:
            self._complain(problem)

    def readings(self) -> Iterator[Reading]:
        """The totals, as last read; none where that is too long ago."""
        if time.monotonic() - self._read_at <= FRESH_FOR:
            yield from _decoded(self._totals)

    @property
    def read_at(self) -> float:
        """The moment that the totals are of, in seconds of `time.monotonic`; -inf before any."""
        return self._read_at

    async def _beat(self) -> None:
        while True:
            try:
                await self._add()
            except StoreUnavailable as error:  # that it is away is the breaker's to say
                if error.kind == "permission":
                    self._complain(error)
            except Exception as error:  # noqa: BLE001  # as above
                self._complain(error)
            await asyncio.sleep(EVERY)

    async def _add(self) -> None:
        if not self._busy.acquire(blocking=False):  # another thread's event loop is about it
            return
        try:
            if self._process != os.getpid():  # workers may be forked from one that has a limiter
                self._process, self._worker = os.getpid(), secrets.token_hex(8)
                self._serial, self._pending = 0, None
            if self._pending is None:
                now = _encoded(self._limiter)
                new = {name: count - self._added.get(name, 0) for name, count in now.items()}
                self._pending = {name: count for name, count in new.items() if count}
                self._serial += bool(self._pending)
            totals = await self._store.add_counts(self._worker, self._serial, self._pending)
            for name, count in self._pending.items():
                self._added[name] = self._added.get(name, 0) + count
            self._pending = None
            self._totals, self._read_at = totals, time.monotonic()
        finally:
            self._busy.release()

    def _complain(self, error: Exception) -> None:
        if not self._complained:
            self._complained = True
            _LOG.error(
                "metrics-unshared: what this worker counts is not added to the metrics of all "
                "(said once): %s: %s", type(error).__name__, error,
            )  # fmt: skip


def _encoded(limiter: RateLimiter) -> dict[str, int]:
    """All counts of a limiter as whole numbers, by a name that says what they are."""
    found: dict[str, int] = {}
    for metric, labels, value in readings(limiter):
        if isinstance(value, Histogram):
            ends = (*map(str, value.bounds), "+Inf")
            for end, count in zip(ends, value.buckets, strict=True):
                found[json.dumps([metric.name, end])] = count
            found[json.dumps([metric.name, "sum"])] = round(value.total * PARTS)
        elif metric.kind == "counter":
            parts = PARTS if metric.unit == "s" else 1
            found[json.dumps([metric.name, *labels])] = int(value * parts)
    return found


def _decoded(totals: Mapping[str, int]) -> Iterator[Reading]:
    """Counts by their names as readings; what another version has counted otherwise is left out."""
    histograms: dict[Metric, Histogram] = {}
    for name, count in sorted(totals.items()):
        try:
            said: Any = json.loads(name)
            metric, labels = _BY_NAME[said[0]], tuple(map(str, said[1:]))
        except (ValueError, TypeError, LookupError):
            continue
        if metric.kind == "histogram" and len(labels) == 1:
            bounds = SECONDS if metric.unit == "s" else SIZES
            histogram = histograms.setdefault(metric, Histogram(bounds))
            ends = (*map(str, bounds), "+Inf")
            if labels[0] == "sum":
                histogram.total = count / PARTS
            elif labels[0] in ends:
                histogram.buckets[ends.index(labels[0])] = count
        elif metric.kind == "counter" and len(labels) == len(metric.labels):
            yield Reading(metric, labels, count / PARTS if metric.unit == "s" else count)
    for metric, histogram in histograms.items():
        yield Reading(metric, (), histogram)
