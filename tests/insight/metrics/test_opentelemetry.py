from typing import Any

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from ratelimit import RateLimiter, Rule
from ratelimit.insight.metrics.opentelemetry import OpenTelemetryMetrics
from ratelimit.insight.metrics.readings import METRICS, ONE_IN

SCOPE: dict[str, Any] = {
    "type": "http", "method": "GET", "path": "/", "headers": [], "client": ("192.0.2.1", 1),
}  # fmt: skip


def points(reader: InMemoryMetricReader) -> dict[str, list[Any]]:
    data = reader.get_metrics_data()
    if data is None:
        return {}
    return {
        metric.name: list(metric.data.data_points)
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }


async def test_counts_are_observed_when_they_are_collected() -> None:
    reader = InMemoryMetricReader()
    limiter = RateLimiter([Rule("a", "2/minute; 100/hour")])
    OpenTelemetryMetrics(limiter, MeterProvider([reader]))
    for _ in range(ONE_IN * 2):
        await limiter.admit(SCOPE)
    found = points(reader)
    requests = {point.attributes["result"]: point for point in found["ratelimit.requests"]}
    assert requests["allowed"].value == 2
    assert requests["denied"].value == ONE_IN * 2 - 2
    assert dict(requests["denied"].attributes) == {
        "rule": "a", "result": "denied", "mode": "enforce",
    }  # fmt: skip
    assert found["ratelimit.keys"][0].value == 2
    assert found["ratelimit.breaker.state"][0].value == 0
    assert found["ratelimit.decision.duration"][0].count == 2
    assert set(found) <= {metric.name for metric in METRICS}
    await limiter.admit(SCOPE)
    again = {point.attributes["result"]: point for point in points(reader)["ratelimit.requests"]}
    assert again["denied"].value == ONE_IN * 2 - 1


async def test_every_round_trip_is_recorded(redis_server: Any) -> None:
    reader = InMemoryMetricReader()
    async with RateLimiter([Rule("a", "9/minute")], store=redis_server.url) as limiter:
        OpenTelemetryMetrics(limiter, MeterProvider([reader]))
        for _ in range(3):
            await limiter.admit(SCOPE)
        found = points(reader)
    assert found["ratelimit.store.round_trip.duration"][0].count in {3, 4}
    assert found["ratelimit.store.batch.size"][0].sum in {3, 4}


async def test_a_decision_is_a_span_where_the_request_is_one() -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    limiter = RateLimiter([Rule("a", "1/minute")])
    OpenTelemetryMetrics(limiter, MeterProvider(), provider)
    await limiter.admit(SCOPE)
    assert exporter.get_finished_spans() == ()
    with provider.get_tracer("test").start_as_current_span("request") as request:
        await limiter.admit(SCOPE)
    decision = exporter.get_finished_spans()[0]
    assert decision.name == "ratelimit.decision"
    assert decision.parent is not None
    assert decision.parent.span_id == request.get_span_context().span_id
    assert dict(decision.attributes or {}) == {
        "ratelimit.allowed": False, "http.response.status_code": 429, "ratelimit.rules": ("a",),
    }  # fmt: skip
