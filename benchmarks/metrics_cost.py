"""What metrics and the live page add to one decision in process.

``python benchmarks/metrics_cost.py [ROUNDS]``. Each round decides with every limiter in turn, in
small parts of whose processor time the least counts; the medians of the rounds are printed. Two
rows have nothing attached: they differ by what this machine's noise is. Nothing collects
meanwhile. What happens once a second, however many decisions there are, is timed by itself.
"""

import asyncio
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, Final

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from ratelimit import Dashboard, RateLimiter, Rule
from ratelimit.insight.dashboard.telling import numbers_of, rules_of
from ratelimit.insight.metrics.fleet import _encoded
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


TARGET: Final = 10.0
"""Per cent of a decision that metrics and page may add to it."""


def both(limiter: RateLimiter) -> None:
    PrometheusMetrics(limiter)
    OpenTelemetryMetrics(limiter, MeterProvider([InMemoryMetricReader()]))


def all_of_it(limiter: RateLimiter) -> None:
    both(limiter)
    Dashboard(limiter, allow=lambda _: True)


ROWS: Final[dict[str, Callable[[RateLimiter], object]]] = {
    "nothing": lambda _: None,
    "Prometheus": PrometheusMetrics,
    "OpenTelemetry": lambda it: OpenTelemetryMetrics(it, MeterProvider([InMemoryMetricReader()])),
    "both": both,
    "both, and the page": all_of_it,
    "nothing, again": lambda _: None,
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


def each_second() -> dict[str, float]:
    """Microseconds of what is done once a second, with 100 rules of three results each."""
    limiter = RateLimiter([Rule(f"r{number}", "100/minute") for number in range(100)])
    for number in range(100):
        for result in ("allowed", "denied", "waited"):
            limiter.counts[f"r{number}", result] = number
    jobs: dict[str, Callable[[], object]] = {
        "a snapshot for an open page": lambda: json.dumps(
            [rules_of(limiter), numbers_of(limiter, None)]
        ),
        "an addition to the counts of all workers": lambda: _encoded(limiter),
    }
    took = {}
    for name, job in jobs.items():
        began = time.process_time()
        for _ in range(200):
            job()
        took[name] = (time.process_time() - began) / 200 * 1_000_000
    return took


async def main(rounds: int) -> int:
    limiters = {}
    for name, attach in ROWS.items():
        limiters[name] = RateLimiter([Rule("all", "1000000000/minute")])
        attach(limiters[name])
    took: dict[str, list[float]] = {name: [] for name in ROWS}
    for _ in range(rounds):
        for name, limiter in limiters.items():
            took[name].append(await one(limiter))
    base = statistics.median(took["nothing"])
    print("# What metrics and the live page cost\n")
    print(f"- date: {time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime())}")
    print(f"- command: python benchmarks/metrics_cost.py {rounds}")
    load = os.getloadavg()[0]
    print(f"- cpu: {os.cpu_count()} cores, load {load:.1f}; times are the processor's")
    print(f"- python: {platform.python_implementation()} {platform.python_version()}\n")
    print("| attached | a decision | more |\n| --- | ---: | ---: |")
    more = {name: 100 * (statistics.median(each) / base - 1) for name, each in took.items()}
    for name, each in took.items():
        print(f"| {name} | {statistics.median(each):.2f} µs | {more[name]:+.1f} % |")
    print("\n| once a second | takes | of a processor |\n| --- | ---: | ---: |")
    for name, least in each_second().items():
        print(f"| {name} | {least:.0f} µs | {least / 10_000:.2f} % |")
    missed = more["both, and the page"] > TARGET
    print(
        f"\nTarget at most {TARGET:.0f} % for both and the page: {'missed' if missed else 'met'}."
    )
    return missed


if __name__ == "__main__":
    sys.exit(asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 40)))
