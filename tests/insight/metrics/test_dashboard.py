"""The dashboard's queries, run against what two scraped processes export."""

import json
import re
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import pytest
from prombed import Prombed  # type: ignore[import-untyped]
from prometheus_client.parser import text_string_to_metric_families

from ratelimit.insight.metrics.readings import METRICS
from tests.support.prometheus import Answer, prometheus, read, scraping

ROOT: Final = Path(__file__).resolve().parents[3]

WORKER: Final = """
import asyncio, sys
from prometheus_client import CollectorRegistry, start_http_server
from ratelimit import RateLimiter
from ratelimit.insight.metrics.prometheus import PrometheusMetrics

SCOPE = {"type": "http", "method": "GET", "headers": [], "client": ("192.0.2.1", 1)}

async def main():
    limiter = RateLimiter.from_file(sys.argv[1], sys.argv[2])
    registry = CollectorRegistry()
    registry.register(PrometheusMetrics(limiter))
    server, thread = start_http_server(0, "127.0.0.1", registry)
    print(server.server_port, flush=True)
    for line in sys.stdin:
        for _ in range(int(line)):
            for path in ("/open", "/login"):
                await limiter.admit({**SCOPE, "path": path})
        print("done", flush=True)
    await limiter.aclose()

asyncio.run(main())
"""
RULES: Final = """
version: 1
rules:
  - name: open
    match: {path: /open}
    limit: 1000000/day
  - name: login
    match: {path: /login}
    limit: 300/day
  - name: exports
    match: {path: /exports}
    concurrency: 9
  - name: trial
    match: {path: /open}
    limit: 200/day
    mode: shadow
"""
FIRST, MORE = 400, 300


class Workers:
    """Two processes with metrics, one on Redis and one that counts in process."""

    def __init__(self, rules: Path, redis_url: str, stack: ExitStack) -> None:
        self._processes = []
        self.ports = []
        for store in (redis_url, "memory://"):
            process = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", WORKER, str(rules), store],
                    cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                )
            )  # fmt: skip
            stack.callback(process.terminate)
            self._processes.append(process)
            self.ports.append(int(self._line(process)))

    @staticmethod
    def _line(process: subprocess.Popen[str]) -> str:
        assert process.stdout is not None
        return process.stdout.readline()

    def ask(self, times: int) -> None:
        """Has each process decide so many requests of each of two paths."""
        for process in self._processes:
            assert process.stdin is not None
            print(times, file=process.stdin, flush=True)
            assert self._line(process) == "done\n"

    def scraped(self) -> list[str]:
        """What each of them shows."""
        texts = []
        for port in self.ports:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as reply:
                texts.append(reply.read().decode())
        return texts


@pytest.fixture(scope="module")
def start(
    redis_server: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[], Workers]]:
    """A function that starts two workers, which end with the tests of this module."""
    rules = tmp_path_factory.mktemp("rules") / "rules.yaml"
    rules.write_text(RULES)
    with ExitStack() as stack:

        def started() -> Workers:
            redis_server.command("FLUSHALL")
            return Workers(rules, redis_server.url, stack)

        yield started


Ask = Callable[[str], Answer]


@pytest.fixture(scope="module", params=["python", "prometheus"])
def ask(request: pytest.FixtureRequest, start: Callable[[], Workers]) -> Iterator[Ask]:
    """A function from a query to what it gives on two workers that were scraped while they worked.

    By an evaluator in Python, and by Prometheus where it is installed.
    """
    if request.param == "python":
        workers, base = start(), Prombed()
        for number, times in enumerate((FIRST, MORE)):
            workers.ask(times)
            for port, text in zip(workers.ports, workers.scraped(), strict=True):
                labels = {"job": "test", "instance": f"127.0.0.1:{port}"}
                base.ingest(text, timestamp_ms=15_000 * number, labels=labels)
        yield lambda query: read(base.query(query, 15_000)["data"])
        return
    program = prometheus()
    if program is None:
        pytest.skip("NOT RUN here: Prometheus is not installed")
    workers = start()
    workers.ask(FIRST)
    with scraping(program, workers.ports) as server:
        shown = 'sum(ratelimit_requests_total{rule="login"})'
        server.wait(f"{shown} == {2 * FIRST}")
        workers.ask(MORE)
        server.wait(f"{shown} == {2 * (FIRST + MORE)}")
        yield server.ask


def queries() -> list[str]:
    dashboard = json.loads((ROOT / "examples" / "grafana.json").read_text())
    return [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]


def test_every_metric_has_a_panel() -> None:
    asked = " ".join(queries())
    for metric in METRICS:
        assert re.search(rf"\b{metric.name.replace('.', '_')}(_|\b)", asked), metric.name


@pytest.mark.parametrize("query", queries())
def test_a_query_of_the_dashboard_gives_what_happened(query: str, ask: Ask) -> None:
    answer = ask(query.replace("$__rate_interval", "1m"))
    if (
        "store-failed" in query or "_shed_" in query
    ):  # their store has not failed, nor were they late
        assert answer == {}
        return
    assert answer, query
    assert all(0 <= value < float("inf") for value in answer.values()), answer
    for grouped in re.findall(r"by \(([^)]*)\)", query):
        names = {each.strip() for each in grouped.split(",")} - {"le"}
        assert {name for labels in answer for name, _ in labels} == names
    still = r"banned\)|breaker|degraded|waiting|in_flight|reloads"  # of these, nothing happened
    assert bool(sum(answer.values())) is not bool(re.search(still, query)), answer


def test_shares_and_quantiles_are_those_of_the_two_workers(ask: Ask) -> None:
    refused, enforced = (
        f'sum(increase(ratelimit_requests_total{{mode="enforce"{more}}}[1m]))'
        for more in (',result="denied"', "")
    )
    ((_, share),) = ask(f"{refused} / {enforced}").items()
    assert share == pytest.approx(0.5, rel=0.1)  # it extrapolates
    (quantile,) = (query for query in queries() if "0.99" in query and "decision" in query)
    ((_, seconds),) = ask(quantile.replace("$__rate_interval", "1m")).items()
    assert 0.000_001 < seconds < 1


def test_the_two_workers_sum_up_to_what_was_asked(start: Callable[[], Workers]) -> None:
    workers = start()
    workers.ask(FIRST)
    found = [
        sample.value
        for text in workers.scraped()
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "ratelimit_requests_total" and sample.labels["rule"] == "login"
    ]
    assert sum(found) == 2 * FIRST
