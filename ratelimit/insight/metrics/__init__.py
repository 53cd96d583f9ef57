"""Metrics of a limiter, for Prometheus and OpenTelemetry: plain integers that it counts anyway.

Public: `prometheus.PrometheusMetrics` (extra ``prometheus``), and
`opentelemetry.OpenTelemetryMetrics` (extra ``otel``); neither is imported until it is asked for.
"""
