"""All that a limiter has counted, under the names and labels that every exporter gives it.

The law of this module: a label is the name of a rule or a word of ours, never an identity.
"""

from collections.abc import Iterator, Mapping
from itertools import count
from time import perf_counter
from typing import Final, Literal, NamedTuple

from ratelimit.limiter.admission import Admission
from ratelimit.limiter.limiter import Deciding, RateLimiter
from ratelimit.runtime.histogram import SECONDS, Histogram
from ratelimit.stores import MemoryStore

__all__ = [
    "DURATION",
    "METRICS",
    "MOST_RULES",
    "ONE_IN",
    "OTHERS",
    "Metric",
    "Reading",
    "readings",
    "timed",
]

Kind = Literal["counter", "gauge", "histogram"]

MOST_RULES: Final = 1_000
"""Most rules that have a label of their own: the first that were counted; others share one."""

OTHERS: Final = "(others)"

ONE_IN: Final = 127
"""Decisions of which one is timed, since to time each is felt; a prime, so that no pattern of
requests keeps step with it."""


class Metric(NamedTuple):
    """A name in OpenTelemetry's spelling, what it is, and its unit."""

    name: str
    kind: Kind
    text: str
    unit: str = "1"
    labels: tuple[str, ...] = ()


REQUESTS: Final = Metric(
    "ratelimit.requests", "counter", "Requests by rule and result.", "{request}",
    ("rule", "result", "mode"),
)  # fmt: skip
DURATION: Final = Metric(
    "ratelimit.decision.duration",
    "histogram",
    "Time of one decision in 127, store included.",
    "s",
)
ROUND_TRIP: Final = Metric(
    "ratelimit.store.round_trip.duration", "histogram", "Time of a round trip to the store.", "s"
)
BATCH: Final = Metric(
    "ratelimit.store.batch.size", "histogram", "Checks in one round trip.", "{check}"
)
DENY_CACHE: Final = Metric(
    "ratelimit.deny_cache.hits", "counter", "Requests denied again without a round trip.",
    "{request}",
)  # fmt: skip
BREAKER: Final = Metric(
    "ratelimit.breaker.state", "gauge", "1 while the store is known to be away, else 0."
)
DEGRADED: Final = Metric(
    "ratelimit.store.degraded.duration", "counter", "Time that the store was known to be away.", "s"
)
WAITING: Final = Metric(
    "ratelimit.waiting", "gauge", "Requests that wait for their turn.", "{request}"
)
IN_FLIGHT: Final = Metric(
    "ratelimit.in_flight", "gauge", "Requests that hold a place of a concurrency.", "{request}",
    ("rule",),
)  # fmt: skip
RELOADS: Final = Metric(
    "ratelimit.reloads", "counter", "Times that the rule file was read again.", "{reload}",
    ("result",),
)  # fmt: skip
KEYS: Final = Metric("ratelimit.keys", "gauge", "Counters held in this process.", "{key}")

METRICS: Final = (
    REQUESTS, DURATION, ROUND_TRIP, BATCH, DENY_CACHE, BREAKER, DEGRADED, WAITING, IN_FLIGHT,
    RELOADS, KEYS,
)  # fmt: skip
"""All there are; a store that has no network has no round trips, and so on."""


class Reading(NamedTuple):
    """One value of a metric; of a histogram, itself."""

    metric: Metric
    labels: tuple[str, ...]
    value: float | Histogram


RESULTS: Final[Mapping[str, tuple[str, str]]] = {
    "shadow-allowed": ("allowed", "shadow"),
    "shadow-denied": ("denied", "shadow"),
    "turned-away": ("blocked", "enforce"),
}
"""Outcomes of `RateLimiter.counts` whose result and mode are not their name and "enforce"."""


def readings(limiter: RateLimiter) -> Iterator[Reading]:
    """All values at this moment; from any thread."""
    for labels, times in _requests(limiter).items():
        yield Reading(REQUESTS, labels, times)
    if limiter.durations is not None:
        yield Reading(DURATION, (), limiter.durations)
    store = limiter.store
    for metric, name in ((ROUND_TRIP, "trips"), (BATCH, "sizes")):
        histogram = getattr(store, name, None)
        if isinstance(histogram, Histogram):
            yield Reading(metric, (), histogram)
    hits = getattr(store, "denials_repeated", None)
    if isinstance(hits, int):
        yield Reading(DENY_CACHE, (), hits)
    yield Reading(BREAKER, (), int(limiter.breaker.is_open()))
    yield Reading(DEGRADED, (), limiter.breaker.open_for)
    yield Reading(WAITING, (), limiter.waiting)
    for rule, held in limiter.in_flight.most_common(MOST_RULES):
        yield Reading(IN_FLIGHT, (rule,), held)
    for result, times in limiter.reloads.items():
        yield Reading(RELOADS, (result,), times)
    if isinstance(store, MemoryStore):
        yield Reading(KEYS, (), store.statistics().keys)


def _requests(limiter: RateLimiter) -> dict[tuple[str, ...], int]:
    found: dict[tuple[str, ...], int] = {}
    rules: set[str] = set()
    for (rule, outcome), times in limiter.counts.copy().items():
        result, mode = RESULTS.get(outcome, (outcome, "enforce"))
        if (rule, outcome) == ("denylist", "denied"):
            result = "blocked"
        if len(rules) < MOST_RULES:
            rules.add(rule)
        labels = (rule if rule in rules else OTHERS, result, mode)
        found[labels] = found.get(labels, 0) + times
    return found


def timed(limiter: RateLimiter) -> Histogram:
    """The times of a limiter's decisions, one in `ONE_IN`, measured from the first call on."""
    if limiter.durations is not None:
        return limiter.durations
    durations, before, number = Histogram(SECONDS), limiter.around, count(1)

    async def measured(deciding: Deciding) -> Admission:
        began = perf_counter()
        try:
            return await deciding
        finally:
            durations.observe(perf_counter() - began)

    # Not a coroutine function: who awaits a decision that is not measured awaits nothing more.
    def around(deciding: Deciding) -> Deciding:
        if before is not None:
            deciding = before(deciding)
        return deciding if next(number) % ONE_IN else measured(deciding)

    limiter.durations, limiter.around = durations, around
    return durations
