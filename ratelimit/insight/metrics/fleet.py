"""The counts of all workers together, gathered in the store that they share.

The law of this module: what a worker has counted is added once, whatever becomes of the replies
and of the process that it was forked from; and nothing is shown that may be less than what was
shown before, not even where the store has lost it.
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
from weakref import WeakSet

import anyio

from ratelimit.insight.metrics.readings import METRICS, OTHERS, Metric, Reading, readings
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

MOST_TOTALS: Final = 10_000
"""Counts in the totals from which on no rule has a new one of its own, but shares one."""

PARTS: Final = 1_000_000
"""Fractions of what is not counted in whole numbers: a second in microseconds."""

_BY_NAME: Final = {metric.name: metric for metric in METRICS if metric.kind != "gauge"}


@runtime_checkable
class Gathering(Protocol):
    """A store in which workers gather what they have counted."""

    async def add_counts(
        self,
        worker: str,
        serial: int,
        counts: Mapping[str, int],
        at_least: Mapping[str, int] | None = None,
    ) -> dict[str, int]:
        """Adds once, however often it is sent; gives the totals of all workers.

        Totals that are below ``at_least`` are raised to it, each time that it is sent.
        """
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
        self._added: dict[str, int] = {}
        """Each count, as far as the store is known to have it."""
        self._counted: dict[str, int] = {}
        """Each count, as it will then be known to have it."""
        self._pending: dict[str, int] | None = None
        """Counts that were sent under the present serial, and may or may not have been added."""
        self._totals: dict[str, int] = {}
        """The highest that are known of."""
        self._read_at = float("-inf")
        self._complained = False
        self._background = Background("metrics", self._beat)
        self._become_a_worker()
        _FLEETS.add(self)

    def _become_a_worker(self) -> None:
        self._worker, self._serial = secrets.token_hex(8), 0
        self._busy = Lock()

    def forked(self) -> None:
        """Leaves to the process that this one was forked from what that has counted."""
        self._become_a_worker()
        self._pending = None
        self._added = _encoded(self._limiter)

    def run(self) -> None:
        """Begins to add in this event loop, if it does not already."""
        self._background.run()

    async def aclose(self) -> None:
        """Adds what was not added yet, as far as the store answers."""
        await self._background.aclose()
        problem: Exception | None = None
        for _ in range(TRIES):
            if self._pending is None and not self._unsent(_encoded(self._limiter)):
                return
            try:
                await self._add()
            except Exception as error:  # noqa: BLE001  # a store of the application's raises anything
                problem = error
                await anyio.sleep(PAUSE)
            else:
                problem = None
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
            if self._pending is None:
                if not self._totals:  # else there is no telling for what there is room
                    self._totals = await self._store.add_counts(self._worker, 0, {})
                self._counted = _encoded(self._limiter)
                self._pending = self._unsent(self._counted)
                self._serial += bool(self._pending)
            totals = await self._store.add_counts(self._worker, self._serial, self._pending)
            known = {**self._totals}
            for name, count in self._pending.items():
                known[name] = known.get(name, 0) + count
            self._added, self._pending = self._counted, None
            lost = {name: count for name, count in known.items() if count > totals.get(name, 0)}
            self._totals = totals | lost
            if lost:  # it was flushed, or a failover has lost writes
                await self._store.add_counts(self._worker, self._serial, {}, lost)
            self._read_at = time.monotonic()
        finally:
            self._busy.release()

    def _unsent(self, counted: Mapping[str, int]) -> dict[str, int]:
        """Counts that were not added yet, by the names that they are added to."""
        full = len(self._totals) >= MOST_TOTALS
        found: dict[str, int] = {}
        for name, count in counted.items():
            before = self._added.get(name, 0)
            more = count - before if count >= before else count  # someone began to count anew
            if more:
                its = _without_rule(name) if full and name not in self._totals else name
                found[its] = found.get(its, 0) + more
        return found

    def _complain(self, error: Exception) -> None:
        if not self._complained:
            self._complained = True
            _LOG.error(
                "metrics-unshared: what this worker counts is not added to the metrics of all "
                "(said once): %s: %s", type(error).__name__, error,
            )  # fmt: skip


_FLEETS: Final[WeakSet[Fleet]] = WeakSet()


def _forked() -> None:
    for fleet in list(_FLEETS):
        fleet.forked()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_forked)


def _encoded(limiter: RateLimiter) -> dict[str, int]:
    """All counts of a limiter as whole numbers, by a name that says what they are."""
    found: dict[str, int] = {}
    for metric, labels, value in readings(limiter):
        parts = PARTS if metric.unit == "s" else 1
        if isinstance(value, Histogram):
            ends = (*map(str, value.bounds), "+Inf")
            for end, count in zip(ends, value.buckets, strict=True):
                found[json.dumps([metric.name, end])] = count
            found[json.dumps([metric.name, "sum"])] = round(value.total * parts)
        elif metric.kind == "counter":
            found[json.dumps([metric.name, *labels])] = int(value * parts)
    return found


def _without_rule(name: str) -> str:
    metric, *labels = json.loads(name)
    if metric in _BY_NAME and _BY_NAME[metric].labels[:1] == ("rule",):
        labels[0] = OTHERS
    return json.dumps([metric, *labels])


def _decoded(totals: Mapping[str, int]) -> Iterator[Reading]:
    """Counts by their names as readings; what another version has counted otherwise is left out."""
    histograms: dict[Metric, Histogram] = {}
    for name, count in sorted(totals.items()):
        try:
            said: Any = json.loads(name)
            metric, labels = _BY_NAME[said[0]], tuple(map(str, said[1:]))
        except (ValueError, TypeError, LookupError, RecursionError):
            continue
        parts = PARTS if metric.unit == "s" else 1
        if metric.kind == "histogram" and len(labels) == 1:
            bounds = SECONDS if metric.unit == "s" else SIZES
            histogram = histograms.setdefault(metric, Histogram(bounds))
            ends = (*map(str, bounds), "+Inf")
            if labels[0] == "sum":
                histogram.total = count / parts
            elif labels[0] in ends:
                histogram.buckets[ends.index(labels[0])] = count
        elif metric.kind == "counter" and len(labels) == len(metric.labels):
            yield Reading(metric, labels, count / parts if parts > 1 else count)
    for metric, histogram in histograms.items():
        yield Reading(metric, (), histogram)
