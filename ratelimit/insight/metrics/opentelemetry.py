"""A limiter's metrics and traces for OpenTelemetry; its API alone is needed, the SDK is yours."""

from collections.abc import Callable, Iterable

try:
    from opentelemetry import metrics, trace
    from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation
    from opentelemetry.trace import NoOpTracerProvider, ProxyTracerProvider, Tracer, TracerProvider
except ImportError:
    raise ImportError(
        "metrics for OpenTelemetry need its API: pip install 'ratelimit-asgi[otel]'"
    ) from None

from ratelimit.insight.metrics.readings import METRICS, Metric, read, timed
from ratelimit.limiter.admission import Admission
from ratelimit.limiter.limiter import Deciding, RateLimiter
from ratelimit.runtime.histogram import Histogram

__all__ = ["OpenTelemetryMetrics"]


class OpenTelemetryMetrics:
    """Exports one limiter's counts in this process, from now until the process ends: made once.

    Observable instruments read plain integers when the SDK collects; only the times of one decision
    in 127, and of every round trip to the store, are told as they are measured. A decision is a
    span where it is made within one that is recorded.

    ``meter_provider`` and ``tracer_provider`` are by default the global ones; where no tracing is
    set up before this is made, there are no spans. Workers are told
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
        tracer_provider = tracer_provider or trace.get_tracer_provider()
        # To ask for the span of a request takes a third of a decision.
        if not isinstance(tracer_provider, ProxyTracerProvider | NoOpTracerProvider):
            tracer = tracer_provider.get_tracer("ratelimit")
            limiter.around = _traced(tracer, limiter.around)
        timed(limiter)
        for metric in METRICS:
            words = metric.unit, metric.text
            if metric.kind == "counter":
                meter.create_observable_counter(metric.name, [self._reads(metric)], *words)
            elif metric.kind == "gauge":
                meter.create_observable_gauge(metric.name, [self._reads(metric)], *words)
            elif isinstance(histogram := metric.read(limiter), Histogram):
                told = meter.create_histogram(
                    metric.name, *words, explicit_bucket_boundaries_advisory=histogram.bounds
                )
                histogram.also.append(told.record)

    def _reads(self, metric: Metric) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def observe(_: CallbackOptions) -> Iterable[Observation]:
            for _metric, labels, value in read(metric, self._limiter):
                if not isinstance(value, Histogram):
                    yield Observation(value, dict(zip(metric.labels, labels, strict=True)))

        return observe


def _traced(
    tracer: Tracer, before: Callable[[Deciding], Deciding] | None
) -> Callable[[Deciding], Deciding]:
    """Makes a span of each decision, where the request is within one that is recorded."""

    async def within_a_span(deciding: Deciding) -> Admission:
        with tracer.start_as_current_span("ratelimit.decision") as span:
            admission = await deciding
            refusal = admission.refusal
            span.set_attribute("ratelimit.allowed", refusal is None)
            if refusal is not None:
                span.set_attribute("http.response.status_code", refusal.status)
            asked = [rule.name for _, matching in admission.decided for rule, _ in matching]
            span.set_attribute("ratelimit.rules", asked)
            return admission

    # Not a coroutine function: who awaits a decision that is not traced awaits nothing more.
    def around(deciding: Deciding) -> Deciding:
        if before is not None:
            deciding = before(deciding)
        if not trace.get_current_span().is_recording():
            return deciding
        return within_a_span(deciding)

    return around
