import asyncio
import re
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from ratelimit import MemoryStore, RateLimiter, RateLimitMiddleware, Rule, RuleSet
from ratelimit.insight.dashboard.telling import numbers_of
from ratelimit.insight.metrics.prometheus import PrometheusMetrics, _family
from ratelimit.insight.metrics.readings import METRICS, MOST_RULES, ONE_IN, OTHERS
from ratelimit.stores.errors import StoreUnavailable
from ratelimit.testing import ManualClock
from tests.support.asgi import Inner, ask


def scope(client: str = "192.0.2.1") -> dict[str, Any]:
    return {"type": "http", "method": "GET", "path": "/", "headers": [], "client": (client, 1)}


def scraped(limiter: RateLimiter) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(PrometheusMetrics(limiter))
    return registry


def requests(registry: CollectorRegistry, rule: str, result: str, mode: str = "enforce") -> float:
    labels = {"rule": rule, "result": result, "mode": mode}
    return registry.get_sample_value("ratelimit_requests_total", labels) or 0.0


async def test_a_request_counts_once_for_each_rule_whatever_its_limits() -> None:
    limiter = RateLimiter([Rule("a", "2/minute; 2/hour; 100/day"), Rule("b", "1000/minute")])
    registry = scraped(limiter)
    for _ in range(2 * ONE_IN):
        await limiter.admit(scope())
    assert requests(registry, "a", "allowed") == 2
    assert requests(registry, "a", "denied") == 2 * ONE_IN - 2
    assert requests(registry, "b", "allowed") == 2 * ONE_IN
    assert registry.get_sample_value("ratelimit_decision_duration_seconds_count") == 2
    assert registry.get_sample_value("ratelimit_keys") == 3 + 1


async def test_results_are_told_apart_and_shadow_is_a_mode() -> None:
    rules = RuleSet(
        (
            Rule("shade", "1/minute", mode="shadow"),
            Rule("slow", "100/second", algorithm="leaking_bucket", burst=3),
            Rule("dear", "2/minute", cost=lambda _: 3),
        ),
        denylist=(ip_network("198.51.100.0/24"),),
    )
    limiter = RateLimiter(rules, store=MemoryStore(clock=ManualClock()))
    registry = scraped(limiter)
    await limiter.admit(scope())
    await limiter.admit(scope("198.51.100.7"))
    assert requests(registry, "dear", "never") == 1
    assert requests(registry, "(denylist)", "blocked") == 1
    assert requests(registry, "shade", "allowed", "shadow") == 1
    limiter = RateLimiter(rules.rules[:2], store=MemoryStore(clock=ManualClock()))
    registry = scraped(limiter)
    for _ in range(2):
        await ask(RateLimitMiddleware(Inner(), limiter))
    assert requests(registry, "shade", "denied", "shadow") == 1
    assert requests(registry, "slow", "allowed") == 1
    assert requests(registry, "slow", "waited") == 1


async def test_a_rule_named_denylist_is_told_apart_from_the_denylist_of_all() -> None:
    listed = RuleSet((Rule("denylist", "1/hour"),), denylist=(ip_network("198.51.100.0/24"),))
    limiter = RateLimiter(listed, store=MemoryStore(clock=ManualClock()))
    registry = scraped(limiter)
    for client in ("192.0.2.1", "192.0.2.1", "198.51.100.7"):
        await limiter.admit(scope(client))
    assert requests(registry, "denylist", "allowed") == 1
    assert requests(registry, "denylist", "denied") == 1
    assert requests(registry, "(denylist)", "blocked") == 1
    told = numbers_of(limiter, None)["rules"]
    assert told == {"denylist": {"passed": 1, "refused": 1}, "(denylist)": {"refused": 1}}


@pytest.mark.parametrize("enforced", [False, True])
async def test_a_ban_on_trial_counts_a_request_once_whatever_refuses_it(enforced: bool) -> None:
    ban: dict[str, Any] = {"after": 1, "within": "1m", "for": "10m"}
    rules = [Rule("trial", "1/minute", mode="shadow", ban=ban), Rule("met", "9/minute")]
    if enforced:
        rules.append(Rule("banning", "2/minute", ban=ban))
    limiter = RateLimiter(rules, store=MemoryStore(clock=ManualClock()))
    registry = scraped(limiter)
    for _ in range(5):
        await limiter.admit(scope("192.0.2.1"))
    results = ("allowed", "denied", "banned")
    counted = [requests(registry, "trial", result, "shadow") for result in results]
    assert sum(counted) == 5
    assert counted[2] >= 3
    assert numbers_of(limiter, None)["rules"]["trial"] == {"passed": 1, "would": 4}


async def test_no_identity_is_in_what_is_exported() -> None:
    limiter = RateLimiter([Rule("a", "1/minute", by="header:x-api-key")])
    registry = scraped(limiter)
    for number in range(200):
        hostile = f'k{number}secret"}}\n evil_total 1'.encode()
        await limiter.admit({**scope(f"192.0.2.{number}"), "headers": [(b"x-api-key", hostile)]})
    text = generate_latest(registry).decode()
    assert "secret" not in text
    assert "192.0.2" not in text
    assert len(re.findall("^ratelimit_requests_total", text, re.MULTILINE)) == 1


async def test_rules_beyond_the_first_thousand_share_a_label() -> None:
    limiter = RateLimiter([Rule("a", "1/minute")])
    for number in range(MOST_RULES + 10):
        limiter.counts[f"r{number}", "allowed"] = 1
    registry = scraped(limiter)
    assert requests(registry, f"r{MOST_RULES - 1}", "allowed") == 1
    assert requests(registry, f"r{MOST_RULES}", "allowed") == 0
    assert requests(registry, OTHERS, "allowed") == 10


class Away(MemoryStore):
    """A store that answers nothing."""

    async def decide(self, checks: Any) -> Any:
        raise StoreUnavailable("it is away", kind="refused", scope="server")


async def test_a_request_that_is_counted_locally_counts_once_for_its_rule() -> None:
    rule = Rule("a", "2/minute; 100/hour", on_store_failure="local")
    dear = Rule("b", "2/minute; 100/hour", on_store_failure="local", cost="dear")
    for one, results in ((rule, {"allowed": 2, "denied": 1}), (dear, {"never": 3})):
        limiter = RateLimiter([one], store=Away(), costs={"dear": lambda _: 50})
        registry = scraped(limiter)
        for _ in range(3):
            await limiter.admit(scope())
        for result in ("allowed", "denied", "never"):
            assert requests(registry, one.name, result) == results.get(result, 0), result


async def test_an_outage_is_a_state_and_a_time() -> None:
    limiter = RateLimiter([Rule("a", "1/minute")], store=Away())
    registry = scraped(limiter)
    assert registry.get_sample_value("ratelimit_breaker_state") == 0
    for _ in range(6):
        await limiter.admit(scope())
    assert requests(registry, "a", "store-failed") == 6
    assert registry.get_sample_value("ratelimit_breaker_state") == 1
    name = "ratelimit_store_degraded_duration_seconds_total"
    first = registry.get_sample_value(name)
    limiter.breaker.become("closed")
    closed = registry.get_sample_value(name)
    assert first is not None
    assert closed is not None
    assert 0 < first <= closed
    assert registry.get_sample_value(name) == closed
    await limiter.aclose()


async def test_those_who_wait_are_counted_while_they_wait() -> None:
    limiter = RateLimiter([Rule("a", "1/minute burst 2", algorithm="leaking_bucket", max_delay=60)])
    registry = scraped(limiter)
    app = RateLimitMiddleware(Inner(), limiter)
    await ask(app)
    waits = asyncio.create_task(ask(app))
    await asyncio.sleep(0)
    assert registry.get_sample_value("ratelimit_waiting") == 1
    waits.cancel()
    await asyncio.gather(waits, return_exceptions=True)
    assert registry.get_sample_value("ratelimit_waiting") == 0


async def test_reloads_are_counted_with_what_came_of_them(tmp_path: Any) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text("version: 1\nrules:\n  - name: a\n    limit: 1/minute\n")
    limiter = RateLimiter.from_file(path)
    registry = scraped(limiter)
    assert await limiter.reload()
    path.write_text("rules: nonsense\n")
    assert not await limiter.reload()
    assert not await limiter.reload()
    reloads = "ratelimit_reloads_total"
    assert registry.get_sample_value(reloads, {"result": "reloaded"}) == 1
    assert registry.get_sample_value(reloads, {"result": "not-reloaded"}) == 2


async def test_round_trips_and_their_sizes_are_measured(redis_server: Any) -> None:
    async with RateLimiter(
        [Rule("a", "1/minute", by="client")],
        store=redis_server.url,
    ) as limiter:
        registry = scraped(limiter)
        redis_server.command("FLUSHALL")
        for _ in range(4):
            await limiter.admit(scope())
        trips = registry.get_sample_value("ratelimit_store_round_trip_duration_seconds_count")
        assert trips == registry.get_sample_value("ratelimit_store_batch_size_count")
        assert trips == registry.get_sample_value("ratelimit_store_batch_size_sum")
        assert trips in {2, 3}  # one more where the server had to be given the script
        assert registry.get_sample_value("ratelimit_deny_cache_hits_total") == 2


def test_shared_needs_a_store_that_is_shared() -> None:
    with pytest.raises(ValueError) as raised:
        PrometheusMetrics(RateLimiter([Rule("a", "1/minute")]), shared=True)
    assert str(raised.value) == (
        "shared metrics need a store that workers share, such as redis://…; a MemoryStore is not "
        "one"
    )


def test_the_documentation_has_every_metric_with_its_labels() -> None:
    text = Path(__file__).resolve().parents[3].joinpath("docs", "metrics.md").read_text()
    rows = dict(
        re.findall(r"^\| `(ratelimit\.[a-z_.]+)` \| (`ratelimit_.*) \|$", text, re.MULTILINE)
    )
    assert rows.keys() == {metric.name for metric in METRICS}
    for metric in METRICS:
        name, labels = rows[metric.name].split(" |")
        assert re.findall("`([a-z]+)`", labels) == [*metric.labels]
        suffix = "_total" if metric.kind == "counter" else ""
        assert name.strip("` ") == _family(metric).name + suffix
