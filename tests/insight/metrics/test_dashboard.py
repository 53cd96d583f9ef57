"""The dashboard's queries, held to what two scraped processes export."""

import json
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import pytest
from prometheus_client.parser import text_string_to_metric_families

ROOT: Final = Path(__file__).resolve().parents[3]

WORKER: Final = """
import asyncio, sys
from prometheus_client import CollectorRegistry, start_http_server
from ratelimit import RateLimiter
from ratelimit.insight.metrics.prometheus import PrometheusMetrics

SCOPE = {"type": "http", "method": "GET", "path": "/", "headers": [], "client": ("192.0.2.1", 1)}

async def main():
    limiter = RateLimiter.from_file(sys.argv[1], sys.argv[2])
    registry = CollectorRegistry()
    registry.register(PrometheusMetrics(limiter))
    for _ in range(200):
        await limiter.admit(SCOPE)
    await limiter.aclose()
    server, thread = start_http_server(0, "127.0.0.1", registry)
    print(server.server_port, flush=True)
    sys.stdin.read()

asyncio.run(main())
"""
RULES: Final = """
version: 1
rules:
  - name: login
    limit: 5/minute
  - name: trial
    limit: 3/minute
    mode: shadow
"""

SELECTOR: Final = re.compile(r"\b(ratelimit_\w+)(?:\{([^}]*)\})?")
MATCHER: Final = re.compile(r'(\w+)(=~|=)"([^"]*)"')

Sample = tuple[str, dict[str, str], float]


@pytest.fixture(scope="module")
def samples(redis_server: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Sample]]:
    """All that two workers show, one on Redis and one that counts in process."""
    rules = tmp_path_factory.mktemp("rules") / "rules.yaml"
    rules.write_text(RULES)
    redis_server.command("FLUSHALL")
    found: list[Sample] = []
    with ExitStack() as stack:
        for store in (redis_server.url, "memory://"):
            process = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", WORKER, str(rules), store],
                    cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                )
            )  # fmt: skip
            stack.callback(process.terminate)
            assert process.stdout is not None
            url = f"http://127.0.0.1:{int(process.stdout.readline())}/metrics"
            with urllib.request.urlopen(url, timeout=10) as reply:
                text = reply.read().decode()
            for family in text_string_to_metric_families(text):
                found += [(each.name, each.labels, each.value) for each in family.samples]
        yield found


def queries() -> list[str]:
    dashboard = json.loads((ROOT / "examples" / "grafana.json").read_text())
    return [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]


def test_every_metric_has_a_panel(samples: list[Sample]) -> None:
    asked = " ".join(queries())
    for name in {re.sub("_(bucket|sum|count|created)$", "", name) for name, _, _ in samples}:
        if name.startswith("ratelimit_"):
            assert name in asked


@pytest.mark.parametrize("query", queries())
def test_a_query_of_the_dashboard_finds_what_it_asks_for(query: str, samples: list[Sample]) -> None:
    selectors = SELECTOR.findall(query)
    assert selectors
    for name, matchers in selectors:
        wanted = MATCHER.findall(matchers)
        here = [labels for each, labels, _ in samples if each == name]
        assert here, f"{name} is not exported"
        if 'result="store-failed"' in matchers:  # the store of these has not failed
            wanted = []
        assert any(
            all(re.fullmatch(value, labels[label]) for label, _, value in wanted) for labels in here
        )
        for grouped in re.findall(r"by \(([^)]*)\)", query):
            assert {each.strip() for each in grouped.split(",")} <= here[0].keys()


def test_the_two_workers_sum_up_to_what_was_asked(samples: list[Sample]) -> None:
    login = [
        value
        for name, labels, value in samples
        if name == "ratelimit_requests_total" and labels["rule"] == "login"
    ]
    assert sum(login) == 2 * 200
