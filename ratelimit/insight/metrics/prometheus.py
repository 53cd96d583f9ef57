"""A limiter's metrics for Prometheus: a collector that reads plain integers when it is scraped."""

from collections.abc import Iterator
from typing import Final

try:
    from prometheus_client.core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
    )
    from prometheus_client.core import (
        Metric as Family,
    )
    from prometheus_client.registry import Collector
except ImportError:
    raise ImportError(
        "metrics for Prometheus need prometheus-client: pip install 'ratelimit-asgi[prometheus]'"
    ) from None

from ratelimit.insight.metrics.fleet import Fleet
from ratelimit.insight.metrics.readings import METRICS, Metric, Reading, readings, timed
from ratelimit.limiter.limiter import RateLimiter
from ratelimit.runtime.histogram import Histogram

__all__ = ["PrometheusMetrics"]


class PrometheusMetrics(Collector):
    """The metrics of one limiter: ``REGISTRY.register(PrometheusMetrics(limiter))``.

    Those of this process; with ``shared`` the counts of all workers of its store under one target,
    whichever of them is scraped: each adds its own once a second, and when it is closed. They do
    not fall where the store loses them. What is not a count (`ratelimit_waiting`, for one) is left
    out then, and so is all of it while the store does not answer, rather than to fall back.

    Names follow OpenTelemetry's rules for Prometheus: ``ratelimit.requests`` is
    ``ratelimit_requests_total``. A label is the name of a rule or a word of ours, never an
    identity. From now on, decisions of this limiter are timed.

    Raises ValueError where ``shared`` is asked of a store that workers do not share.
    """

    def __init__(self, limiter: RateLimiter, *, shared: bool = False) -> None:
        self._limiter = limiter
        timed(limiter)
        self._fleet: Fleet | None = None
        if shared:  # what a limiter counts is added once, however many collectors show it
            found = [each for each in limiter.companions if isinstance(each, Fleet)]
            self._fleet = found[0] if found else Fleet(limiter)
            if not found:
                limiter.add_companion(self._fleet)

    def describe(self) -> list[Family]:
        """The metrics without their values."""
        return [_family(metric) for metric in METRICS]

    def collect(self) -> Iterator[Family]:
        """The metrics of this moment."""
        fleet = self._fleet
        yield from families(readings(self._limiter) if fleet is None else fleet.readings())


def families(values: Iterator[Reading]) -> list[Family]:
    """Readings, put together by metric."""
    found: dict[Metric, Family] = {}
    for metric, labels, value in values:
        family = found.get(metric)
        if family is None:
            family = found[metric] = _family(metric)
        if isinstance(value, Histogram):
            buckets, below = [], 0
            for bound, count in zip((*map(str, value.bounds), "+Inf"), value.buckets, strict=True):
                below += count
                buckets.append((bound, below))
            family.add_metric(labels, buckets, value.total)  # type: ignore[attr-defined]
        else:
            family.add_metric(labels, value)  # type: ignore[attr-defined]
    return list(found.values())


_FAMILIES: Final = {
    "counter": CounterMetricFamily,
    "gauge": GaugeMetricFamily,
    "histogram": HistogramMetricFamily,
}


def _family(metric: Metric) -> Family:
    name = metric.name.replace(".", "_") + ("_seconds" if metric.unit == "s" else "")
    family: Family = _FAMILIES[metric.kind](name, metric.text, labels=metric.labels)
    return family
