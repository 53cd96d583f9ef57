import asyncio
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from prometheus_client import CollectorRegistry

from ratelimit import RateLimiter, Rule
from ratelimit.insight.metrics.fleet import Fleet
from ratelimit.insight.metrics.prometheus import PrometheusMetrics
from ratelimit.insight.metrics.readings import ONE_IN
from ratelimit.stores.errors import StoreUnavailable
from ratelimit.stores.redis import RedisStore

SCOPE: dict[str, Any] = {
    "type": "http", "method": "GET", "path": "/", "headers": [], "client": ("192.0.2.1", 1),
}  # fmt: skip
ALLOWED = {"rule": "a", "result": "allowed", "mode": "enforce"}


class Losing(RedisStore):
    """A store of which every other reply to an addition is lost, and every third addition."""

    sent = 0

    async def add_counts(
        self, worker: str, serial: int, counts: Mapping[str, int]
    ) -> dict[str, int]:
        self.sent += 1
        if self.sent % 3 == 0:
            raise StoreUnavailable("the addition was lost", kind="lost", scope="server")
        totals = await super().add_counts(worker, serial, counts)
        if self.sent % 2 == 0:
            raise StoreUnavailable("the reply was lost", kind="lost", scope="server")
        return totals


def worker(server: Any, kind: type[RedisStore] = RedisStore) -> tuple[RateLimiter, Any]:
    limiter = RateLimiter([Rule("a", "100000/minute")], store=kind(server.url, deadline=10))
    registry = CollectorRegistry()
    registry.register(PrometheusMetrics(limiter, shared=True))
    return limiter, registry


async def shown(registry: CollectorRegistry, total: float) -> float | None:
    """The total, once it is there, or whatever it is after a while."""
    for _ in range(300):
        if registry.get_sample_value("ratelimit_requests_total", ALLOWED) == total:
            break
        await asyncio.sleep(0.01)
    return registry.get_sample_value("ratelimit_requests_total", ALLOWED)


async def test_any_worker_shows_the_counts_of_all(redis_server: Any) -> None:
    redis_server.command("FLUSHALL")
    (first, one), (second, two) = worker(redis_server), worker(redis_server)
    for _ in range(ONE_IN):
        await first.admit(SCOPE)
    for _ in range(2 * ONE_IN):
        await second.admit(SCOPE)
    assert await shown(one, 3 * ONE_IN) == 3 * ONE_IN
    assert await shown(two, 3 * ONE_IN) == 3 * ONE_IN
    decisions = "ratelimit_decision_duration_seconds_count"
    assert one.get_sample_value(decisions) == 3
    assert one.get_sample_value("ratelimit_waiting") is None
    await first.aclose()
    await second.aclose()


async def test_a_worker_that_is_recycled_loses_nothing_and_leaves_no_fields(
    redis_server: Any,
) -> None:
    redis_server.command("FLUSHALL")
    for round_ in range(20):
        workers = [worker(redis_server)[0] for _ in range(4)]
        await asyncio.gather(*(each.admit(SCOPE) for each in workers for _ in range(round_)))
        await asyncio.gather(*(each.aclose() for each in workers))
    last, registry = worker(redis_server)
    last.start()
    total = 4 * sum(range(20))
    assert await shown(registry, total) == total
    await last.aclose()
    assert int(redis_server.command("HLEN", "rl:{metrics}:totals").strip(":\r\n")) < 60


async def test_nothing_is_added_twice_where_a_reply_was_lost(redis_server: Any) -> None:
    redis_server.command("FLUSHALL")
    limiter, _ = worker(redis_server, Losing)
    (fleet,) = limiter.companions
    assert isinstance(fleet, Fleet)
    seen = []
    for _ in range(30):
        await limiter.admit(SCOPE)
        try:
            await fleet._add()
        except StoreUnavailable:
            continue
        seen.append(dict(fleet._totals))
    await limiter.aclose()
    last, registry = worker(redis_server)
    last.start()
    assert await shown(registry, 30) == 30
    await last.aclose()
    for before, after in pairwise(seen):
        assert all(after[name] >= count for name, count in before.items())
    assert len(seen) > 5


async def test_totals_are_not_shown_where_others_may_have_shown_higher_ones(
    redis_server: Any,
) -> None:
    redis_server.command("FLUSHALL")
    limiter, registry = worker(redis_server)
    assert registry.get_sample_value("ratelimit_requests_total", ALLOWED) is None
    await limiter.admit(SCOPE)
    assert await shown(registry, 1) == 1
    (fleet,) = limiter.companions
    assert isinstance(fleet, Fleet)
    fleet._read_at -= 10
    assert registry.get_sample_value("ratelimit_requests_total", ALLOWED) is None
    await limiter.aclose()


async def test_what_another_version_has_counted_is_left_out(redis_server: Any) -> None:
    redis_server.command("FLUSHALL")
    names = ("nonsense", '["ratelimit.requests"]', '["ratelimit.new","a"]', "[]", "7",
             '["ratelimit.decision.duration","0.7"]', '[["ratelimit.requests"]]')  # fmt: skip
    for name in names:
        redis_server.command("HSET", "rl:{metrics}:totals", name, "5")
    limiter, registry = worker(redis_server)
    await limiter.admit(SCOPE)
    assert await shown(registry, 1) == 1
    await limiter.aclose()
