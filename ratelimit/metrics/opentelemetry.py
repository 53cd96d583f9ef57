"""A limiter's metrics and traces for OpenTelemetry; its API alone is needed, the SDK is yours."""

from collections.abc import Callable, Iterable
from itertools import count
from typing import Final

try:
    from opentelemetry import metrics, trace
    from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation
    from opentelemetry.trace import Tracer, TracerProvider
except ImportError:
    raise ImportError(
        "metrics for OpenTelemetry need its API: pip install 'ratelimit-asgi[otel]'"
    ) from None

from ratelimit.limiter.admission import Admission
from ratelimit.limiter.limiter import Deciding, RateLimiter
from ratelimit.metrics.readings import BATCH, DURATION, METRICS, ROUND_TRIP, Metric, readings, timed
from ratelimit.runtime.histogram import Histogram

__all__ = ["OpenTelemetryMetrics"]

ONE_IN: Final = 64
"""Decisions of which one is told to the histogram, since telling costs as much as deciding."""


class OpenTelemetryMetrics:
    """Exports one limiter's counts in this process, from now until the process ends.

    Observable instruments read plain integers when the SDK collects. Of the decisions' times, which
    only a call for each could tell, one in 64 is recorded; every round trip to the store is. Each
    decision is a span where it is made within a span that is recorded.

    ``meter_provider`` and ``tracer_provider`` are by default the global ones. Workers are told
    apart by the resource's ``service.instance.id``, which is the application's to set.
    """

    def __init__(
        self,
        limiter: RateLimiter,
        meter_provider: MeterProvider | None = None,
        tracer_provider: TracerProvider | None = None,
    ) -> None:
        self._limiter = limiter
        meter = metrics.get_meter("ratelimit", meter_provider=meter_provider)
        tracer = trace.get_tracer("ratelimit", tracer_provider=tracer_provider)
        limiter.around = Traced(tracer, limiter.around)
        histograms: dict[Metric, tuple[Histogram, int]] = {DURATION: (timed(limiter), ONE_IN)}
        for metric, name in ((ROUND_TRIP, "trips"), (BATCH, "sizes")):
            found = getattr(limiter.store, name, None)
            if isinstance(found, Histogram):
                histograms[metric] = found, 1
        for metric in METRICS:
            words = metric.unit, metric.text
            if metric.kind == "counter":
                meter.create_observable_counter(metric.name, [self._reads(metric)], *words)
            elif metric.kind == "gauge":
                meter.create_observable_gauge(metric.name, [self._reads(metric)], *words)
            elif metric in histograms:
                histogram, one_in = histograms[metric]
                told = meter.create_histogram(
                    metric.name, *words, explicit_bucket_boundaries_advisory=histogram.bounds
                )
                histogram.also.append(_one_in(one_in, told.record))

    def _reads(self, metric: Metric) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def read(_: CallbackOptions) -> Iterable[Observation]:
            for each, labels, value in readings(self._limiter):
                if each is metric and not isinstance(value, Histogram):
                    yield Observation(value, dict(zip(metric.labels, labels, strict=True)))

        return read


class Traced:
    """A span for each decision, where the request is within one that is recorded."""

    def __init__(self, tracer: Tracer, around: Callable[[Deciding], Deciding] | None) -> None:
        self._tracer = tracer
        self._around = around

    async def __call__(self, deciding: Deciding) -> Admission:
        """Awaits a decision."""
        if self._around is not None:
            deciding = self._around(deciding)
        if not trace.get_current_span().is_recording():
            return await deciding
        with self._tracer.start_as_current_span("ratelimit.decision") as span:
            admission = await deciding
            refusal = admission.refusal
            span.set_attribute("ratelimit.allowed", refusal is None)
            if refusal is not None:
                span.set_attribute("http.response.status_code", refusal.status)
            asked = [rule.name for _, matching in admission.decided for rule, _ in matching]
            span.set_attribute("ratelimit.rules", asked)
            return admission


def _one_in(times: int, record: Callable[[float], object]) -> Callable[[float], object]:
    """Gives one value in so many to ``record``."""
    if times == 1:
        return record
    number = count(1)

    def sample(value: float) -> None:
        if not next(number) % times:
            record(value)

    return sample
