"""The counts of all workers in a Cluster and behind sentinels, while keys move and masters fail."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from ratelimit import RateLimiter, RedisStore, Rule, StoreUnavailable
from ratelimit.insight.metrics import fleet as fleet_module
from ratelimit.insight.metrics.prometheus import PrometheusMetrics
from tests.support.clusters import cluster
from tests.support.sentinels import sentinel
from tests.support.servers import Server, binaries

SCOPE: dict[str, Any] = {
    "type": "http", "method": "GET", "path": "/", "headers": [], "client": ("192.0.2.1", 1),
}  # fmt: skip
TOTALS = "rl:{metrics}:totals"
FIELD = '["ratelimit.requests", "a", "{}", "enforce"]'


def worker(url: str) -> RateLimiter:
    rule = Rule("a", "100000/minute", on_store_failure="allow")
    limiter = RateLimiter([rule], store=RedisStore(url, deadline=2))
    PrometheusMetrics(limiter, shared=True)
    return limiter


def stored(server: Server) -> int:
    """Requests that a store has of all workers together, whatever came of them."""
    results = ("allowed", "store-failed")
    found = [server.ask("HGET", TOTALS, FIELD.replace("{}", result)) for result in results]
    return sum(int(each or 0) for each in found)


async def ask(workers: list[RateLimiter], during: Callable[[], object] | None = None) -> int:
    """Requests to each worker in turn, a while or as long as something is done; how many."""
    times = 0
    doing = asyncio.ensure_future(asyncio.to_thread(during or (lambda: None)))
    while times < 100 or not doing.done():
        for limiter in workers:
            await limiter.admit(SCOPE)
            times += 1
        await asyncio.sleep(0.001)  # decisions without a store let nothing else run
    await doing
    return times


async def added(workers: list[RateLimiter]) -> None:
    """Has each worker add all that it counted, as soon as the store takes it."""
    async with asyncio.timeout(30):
        for limiter in workers:
            (fleet,) = limiter.companions
            assert isinstance(fleet, fleet_module.Fleet)
            while fleet._pending is not None or fleet._unsent(fleet_module._encoded(limiter)):
                with suppress(StoreUnavailable):
                    await fleet._add()
                await asyncio.sleep(0.01)


async def test_totals_move_with_their_slot_and_lose_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fleet_module, "EVERY", 0.01)
    with cluster(binaries()[0].path) as nodes:
        workers = [worker(nodes.url) for _ in range(2)]
        slot = nodes.slot(TOTALS)
        sent = await ask(workers)
        for _ in range(3):
            source = await asyncio.to_thread(nodes.master_of, slot)
            target = next(node for node in nodes.nodes if node is not source)
            sent += await ask(workers, lambda: nodes.migrate(slot, source, target))  # noqa: B023
        sent += await ask(workers)
        await added(workers)
        for limiter in workers:
            await limiter.aclose()
        assert stored(nodes.master_of(slot)) == sent


@pytest.mark.parametrize("kill", [True, pytest.param(False, marks=pytest.mark.slow)])
async def test_totals_do_not_fall_with_a_master(
    kill: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a new master lacks, the workers that read it from the old one tell it."""
    monkeypatch.setattr(fleet_module, "EVERY", 0.01)
    with sentinel(binaries()[0].path) as grounds:
        workers = [worker(grounds.url) for _ in range(2)]
        before = await ask(workers)
        await added(workers)
        assert stored(grounds.master()) == before
        during = await ask(workers, lambda: grounds.failover(kill=kill))
        await asyncio.to_thread(grounds.settle)
        await added(workers)
        assert before <= stored(grounds.master()) <= before + during
        after = await ask(workers)
        await added(workers)
        for limiter in workers:
            await limiter.aclose()
        # Of what was lost, the part that no worker had read remains so.
        assert before + after <= stored(grounds.master()) <= before + during + after
