"""All that a limiter has counted, under the names and labels that every exporter gives it.

The law of this module: a label is the name of a rule or a word of ours, never an identity.
"""

from collections.abc import Callable, Iterator, Mapping
from itertools import count
from operator import attrgetter
from time import perf_counter
from typing import Final, Literal, NamedTuple

from ratelimit.limiter.admission import Admission
from ratelimit.limiter.limiter import Deciding, RateLimiter
from ratelimit.runtime.histogram import SECONDS, Histogram
from ratelimit.stores import MemoryStore

__all__ = [
    "METRICS",
    "MOST_RULES",
    "ONE_IN",
    "OTHERS",
    "Metric",
    "Reading",
    "read",
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


Value = float | Histogram | Mapping[tuple[str, ...], float] | None


class Metric(NamedTuple):
    """A name in OpenTelemetry's spelling, what it is, how it is read, and its unit.

    ``read`` gives a number, a histogram, numbers by the values of ``labels`` in their order, or
    None where a limiter has nothing of the kind.
    """

    name: str
    kind: Kind
    text: str
    read: Callable[[RateLimiter], Value]
    unit: str = "1"
    labels: tuple[str, ...] = ()


class Reading(NamedTuple):
    """One value of a metric; of a histogram, itself."""

    metric: Metric
    labels: tuple[str, ...]
    value: float | Histogram


RESULTS: Final[Mapping[str, tuple[str, str]]] = {
    "shadow-allowed": ("allowed", "shadow"),
    "shadow-denied": ("denied", "shadow"),
    "shadow-banned": ("banned", "shadow"),
    "turned-away": ("blocked", "enforce"),
}
"""Outcomes of `RateLimiter.counts` whose result and mode are not their name and "enforce"."""


def _requests(limiter: RateLimiter) -> Value:
    found: dict[tuple[str, ...], int] = {}
    rules: set[str] = set()
    for (rule, outcome), times in limiter.counts.copy().items():
        result, mode = RESULTS.get(outcome, (outcome, "enforce"))
        if len(rules) < MOST_RULES:
            rules.add(rule)
        labels = (rule if rule in rules else OTHERS, result, mode)
        found[labels] = found.get(labels, 0) + times
    return found


def _shed(limiter: RateLimiter) -> Value:
    return {
        (priority, "shadow" if outcome == "shadow-shed" else "enforce"): times
        for (priority, outcome), times in limiter.shed.copy().items()
    }


def _of_store(name: str, kind: type[Histogram | int]) -> Callable[[RateLimiter], Value]:
    """A reader of what a store counts under a name, where it does."""

    def read(limiter: RateLimiter) -> Value:
        found = getattr(limiter.store, name, None)
        return found if isinstance(found, kind) else None

    return read


def _keys(limiter: RateLimiter) -> Value:
    store = limiter.store
    return store.statistics().keys if isinstance(store, MemoryStore) else None


METRICS: Final[tuple[Metric, ...]] = (
    Metric(
        "ratelimit.requests", "counter", "Requests by rule and result.",
        _requests, "{request}", ("rule", "result", "mode"),
    ),
    Metric(
        "ratelimit.decision.duration", "histogram", "Time of one decision in 127, store included.",
        attrgetter("durations"), "s",
    ),
    Metric(
        "ratelimit.store.round_trip.duration", "histogram", "Time of a round trip to the store.",
        _of_store("trips", Histogram), "s",
    ),
    Metric(
        "ratelimit.store.batch.size", "histogram", "Checks in one round trip.",
        _of_store("sizes", Histogram), "{check}",
    ),
    Metric(
        "ratelimit.deny_cache.hits", "counter", "Requests denied again without a round trip.",
        _of_store("denials_repeated", int), "{request}",
    ),
    Metric(
        "ratelimit.breaker.state", "gauge", "1 while the store is known to be away, else 0.",
        lambda limiter: int(limiter.breaker.is_open()),
    ),
    Metric(
        "ratelimit.store.degraded.duration", "counter",
        "Time that the store was known to be away.",
        attrgetter("breaker.open_for"), "s",
    ),
    Metric(
        "ratelimit.waiting", "gauge", "Requests that wait for their turn.",
        attrgetter("waiting"), "{request}",
    ),
    Metric(
        "ratelimit.in_flight", "gauge", "Requests that hold a place of a concurrency.",
        lambda limiter: {
            (rule,): held for rule, held in limiter.in_flight.most_common(MOST_RULES)
        },
        "{request}", ("rule",),
    ),
    Metric(
        "ratelimit.banned", "gauge", "Identities that this process knows to be banned.",
        attrgetter("banned"), "{identity}",
    ),
    Metric(
        "ratelimit.shed", "counter", "Requests shed under too much load.",
        _shed, "{request}", ("priority", "mode"),
    ),
    Metric(
        "ratelimit.reloads", "counter", "Times that the rule file was read again.",
        lambda limiter: {(result,): times for result, times in limiter.reloads.items()},
        "{reload}", ("result",),
    ),
    Metric("ratelimit.keys", "gauge", "Counters held in this process.", _keys, "{key}"),
)  # fmt: skip
"""All there are, each for every exporter; counters and histograms are shared by workers, too."""


def readings(limiter: RateLimiter) -> Iterator[Reading]:
    """All values at this moment; from any thread."""
    for metric in METRICS:
        yield from read(metric, limiter)


def read(metric: Metric, limiter: RateLimiter) -> Iterator[Reading]:
    """The values of one metric at this moment; from any thread."""
    value = metric.read(limiter)
    if isinstance(value, Mapping):
        for labels, number in value.items():
            yield Reading(metric, labels, number)
    elif value is not None:
        yield Reading(metric, (), value)


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
