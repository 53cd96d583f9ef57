"""What metrics add to one decision in process: ``python benchmarks/metrics_cost.py [ROUNDS]``.

Each round decides with every limiter in turn, in small parts of whose processor time the least
counts; the medians of the rounds are printed. Nothing collects meanwhile.
"""

import asyncio
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, Final

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from ratelimit import RateLimiter, Rule
from ratelimit.insight.metrics.opentelemetry import OpenTelemetryMetrics
from ratelimit.insight.metrics.prometheus import PrometheusMetrics

PARTS: Final = 5
CALLS: Final = 400
SCOPE: Final[dict[str, Any]] = {
    "type": "http",
    "method": "GET",
    "path": "/items/7",
    "headers": [(b"host", b"example.com")],
    "client": ("192.0.2.7", 50_000),
}


def both(limiter: RateLimiter) -> None:
    PrometheusMetrics(limiter)
    OpenTelemetryMetrics(limiter, MeterProvider([InMemoryMetricReader()]))


ROWS: Final[dict[str, Callable[[RateLimiter], object]]] = {
    "nothing": lambda _: None,
    "Prometheus": PrometheusMetrics,
    "OpenTelemetry": lambda it: OpenTelemetryMetrics(it, MeterProvider([InMemoryMetricReader()])),
    "both": both,
}


async def one(limiter: RateLimiter) -> float:
    """Microseconds of a decision."""
    least = float("inf")
    for _ in range(PARTS):
        began = time.process_time()
        for _ in range(CALLS):
            await limiter.admit(SCOPE)
        least = min(least, time.process_time() - began)
    return least / CALLS * 1_000_000


async def main(rounds: int) -> None:
    limiters = {}
    for name, attach in ROWS.items():
        limiters[name] = RateLimiter([Rule("all", "1000000000/minute")])
        attach(limiters[name])
    took: dict[str, list[float]] = {name: [] for name in ROWS}
    for _ in range(rounds):
        for name, limiter in limiters.items():
            took[name].append(await one(limiter))
    base = statistics.median(took["nothing"])
    for name, values in took.items():
        median = statistics.median(values)
        print(f"{name:15} {median:6.2f} µs  {100 * (median / base - 1):+5.1f} %")


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 40))
