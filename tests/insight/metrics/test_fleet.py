import asyncio
import subprocess
import sys
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import pytest
import trio
from prometheus_client import CollectorRegistry, generate_latest

from ratelimit import RateLimiter, Rule, RuleSet
from ratelimit.insight.metrics import fleet as fleet_module
from ratelimit.insight.metrics.fleet import Fleet
from ratelimit.insight.metrics.prometheus import PrometheusMetrics
from ratelimit.insight.metrics.readings import ONE_IN, OTHERS
from ratelimit.stores.errors import StoreUnavailable
from ratelimit.stores.redis import RedisStore
from tests.support.proxy import Proxy
from tests.support.servers import Server

ROOT: Final = Path(__file__).resolve().parents[3]
SCOPE: dict[str, Any] = {
    "type": "http", "method": "GET", "path": "/", "headers": [], "client": ("192.0.2.1", 1),
}  # fmt: skip
ALLOWED = {"rule": "a", "result": "allowed", "mode": "enforce"}
TOTALS: Final = "rl:{metrics}:totals"
FIELD: Final = '["ratelimit.requests", "a", "allowed", "enforce"]'


def stored(server: Server, field: str = FIELD) -> int:
    """What the store has of all workers together."""
    return int(server.ask("HGET", TOTALS, field) or 0)


def fleet_of(limiter: RateLimiter) -> Fleet:
    (found,) = limiter.companions
    assert isinstance(found, Fleet)
    return found


class Losing(RedisStore):
    """A store of which every other reply to an addition is lost, and every third addition."""

    sent = 0

    async def add_counts(
        self,
        worker: str,
        serial: int,
        counts: Mapping[str, int],
        at_least: Mapping[str, int] | None = None,
    ) -> dict[str, int]:
        self.sent += 1
        if self.sent % 3 == 0:
            raise StoreUnavailable("the addition was lost", kind="lost", scope="server")
        totals = await super().add_counts(worker, serial, counts, at_least)
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
    fleet = fleet_of(limiter)
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
    fleet = fleet_of(limiter)
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


async def test_nothing_is_added_twice_where_the_connection_was_cut_before_the_reply(
    redis_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet_module, "EVERY", 3600)  # it adds when it is told
    redis_server.command("FLUSHALL")
    async with Proxy(redis_server.port) as way:
        limiter = RateLimiter([Rule("a", "100000/minute")], store=RedisStore(way.url, deadline=10))
        PrometheusMetrics(limiter, shared=True)
        fleet = fleet_of(limiter)
        for round_ in range(1, 21):
            await fleet._add()
            for _ in range(3):
                await limiter.admit(SCOPE)
            way.swallow_replies = True
            adding = asyncio.create_task(fleet._add())
            while stored(redis_server) < 3 * round_:  # noqa: ASYNC110
                await asyncio.sleep(0)  # the server is asked, since it does not tell
            assert not adding.done()
            await way.cut()
            with pytest.raises(StoreUnavailable):
                await adding
            way.swallow_replies = False
        await limiter.aclose()
    assert stored(redis_server) == 3 * 20 == limiter.counts["a", "allowed"]


async def test_totals_do_not_fall_where_the_store_lost_them(redis_server: Server) -> None:
    """By a flush, or by a failover to a replica that had not received the last writes."""
    redis_server.command("FLUSHALL")
    (first, one), (second, two) = worker(redis_server), worker(redis_server)
    for number, limiter in enumerate((first, second)):
        for _ in range(10):
            await limiter.admit(SCOPE)
        await fleet_of(limiter)._add()
        assert stored(redis_server) == 10 * (number + 1)
    for lose in (["FLUSHALL"], ["HINCRBY", TOTALS, FIELD, "-5"], ["DEL", TOTALS]):
        before = two.get_sample_value("ratelimit_requests_total", ALLOWED)
        assert before == stored(redis_server)
        redis_server.command(*lose)
        await second.admit(SCOPE)
        await fleet_of(second)._add()
        assert stored(redis_server) == before + 1
        assert two.get_sample_value("ratelimit_requests_total", ALLOWED) == before + 1
        await fleet_of(first)._add()
        assert one.get_sample_value("ratelimit_requests_total", ALLOWED) == before + 1
    await first.aclose()
    await second.aclose()
    assert stored(redis_server) == 23


async def test_a_field_that_holds_no_number_spoils_no_other_one(redis_server: Server) -> None:
    redis_server.command("FLUSHALL")
    workers = [worker(redis_server)[0] for _ in range(3)]
    for limiter in workers:
        await fleet_of(limiter)._add()
    redis_server.command("HSET", TOTALS, FIELD, "nonsense")
    for limiter in workers:
        for _ in range(5):
            await limiter.admit(SCOPE)
    for limiter in workers:
        await limiter.aclose()
    sizes = [limiter.store.sizes for limiter in workers if isinstance(limiter.store, RedisStore)]
    measured = stored(redis_server, '["ratelimit.store.batch.size", "sum"]')
    assert measured == sum(each.total for each in sizes) >= 15


async def test_counts_wait_until_the_key_can_hold_them(redis_server: Server) -> None:
    redis_server.command("FLUSHALL")
    redis_server.command("SET", TOTALS, "somebody else's")
    limiter, registry = worker(redis_server)
    for _ in range(5):
        await limiter.admit(SCOPE)
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            await fleet_of(limiter)._add()
    assert registry.get_sample_value("ratelimit_requests_total", ALLOWED) is None
    redis_server.command("DEL", TOTALS)
    await fleet_of(limiter)._add()
    assert stored(redis_server) == 5
    await limiter.admit(SCOPE)
    redis_server.command("SET", TOTALS, "somebody else's")
    with pytest.raises(StoreUnavailable):
        await fleet_of(limiter)._add()
    redis_server.command("DEL", TOTALS)
    await limiter.aclose()
    assert stored(redis_server) == 6


async def test_a_limiter_is_counted_once_however_many_collectors_show_it(
    redis_server: Server,
) -> None:
    redis_server.command("FLUSHALL")
    limiter, one = worker(redis_server)
    two = CollectorRegistry()
    two.register(PrometheusMetrics(limiter, shared=True))
    await limiter.admit(SCOPE)
    assert await shown(one, 1) == await shown(two, 1) == 1
    await limiter.aclose()
    assert stored(redis_server) == 1


async def test_two_limiters_of_one_process_add_up(redis_server: Server) -> None:
    redis_server.command("FLUSHALL")
    (first, one), (second, _) = worker(redis_server), worker(redis_server)
    for limiter in (first, second, second):
        await limiter.admit(SCOPE)
    assert await shown(one, 3) == 3
    await first.aclose()
    await second.aclose()


async def test_metrics_that_come_after_the_first_request_are_shared_all_the_same(
    redis_server: Server,
) -> None:
    redis_server.command("FLUSHALL")
    limiter = RateLimiter([Rule("a", "9/minute")], store=RedisStore(redis_server.url, deadline=10))
    limiter.start()
    await limiter.admit(SCOPE)
    registry = CollectorRegistry()
    registry.register(PrometheusMetrics(limiter, shared=True))
    await limiter.admit(SCOPE)
    assert await shown(registry, 2) == 2
    await limiter.aclose()


async def test_a_limiter_that_is_closed_twice_adds_once_and_asks_once(
    redis_server: Server,
) -> None:
    redis_server.command("FLUSHALL")
    limiter, _ = worker(redis_server)
    await limiter.admit(SCOPE)
    await limiter.aclose()
    redis_server.command("CONFIG", "RESETSTAT")
    await limiter.aclose()
    assert "cmdstat_eval:" not in redis_server.ask("INFO", "commandstats")
    assert stored(redis_server) == 1
    await limiter.admit(SCOPE)
    await limiter.aclose()
    assert stored(redis_server) == 2


async def test_the_last_addition_is_one_question(redis_server: Server) -> None:
    redis_server.command("FLUSHALL")
    limiter, registry = worker(redis_server)
    await limiter.admit(SCOPE)
    assert await shown(registry, 1) == 1
    limiter.counts["a", "allowed"] += 1
    redis_server.command("CONFIG", "RESETSTAT")
    await limiter.aclose()
    assert "cmdstat_eval:calls=1," in redis_server.ask("INFO", "commandstats")


async def test_totals_do_not_fall_where_rules_are_renamed(redis_server: Server) -> None:
    redis_server.command("FLUSHALL")
    limiter, registry = worker(redis_server)
    for _ in range(3):
        await limiter.admit(SCOPE)
    limiter.use(RuleSet((Rule("b", "100000/minute"),)))
    for _ in range(2):
        await limiter.admit(SCOPE)
    assert await shown(registry, 3) == 3
    await fleet_of(limiter)._add()
    renamed = {**ALLOWED, "rule": "b"}
    assert registry.get_sample_value("ratelimit_requests_total", renamed) == 2
    limiter.counts.clear()  # as an application's own tests may
    await limiter.admit(SCOPE)
    await limiter.aclose()
    assert registry.get_sample_value("ratelimit_requests_total", ALLOWED) == 3
    assert registry.get_sample_value("ratelimit_requests_total", renamed) == 3


async def test_rules_beyond_the_most_that_totals_hold_share_one(
    redis_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the totals of a store would grow with every name that a rule ever had."""
    redis_server.command("FLUSHALL")
    monkeypatch.setattr(fleet_module, "MOST_TOTALS", 30)
    for number in range(60):
        limiter, _ = worker(redis_server)
        limiter.use(RuleSet((Rule(f"r{number}", "100000/minute"),)))
        await limiter.admit(SCOPE)
        await limiter.aclose()
    others = stored(redis_server, FIELD.replace('"a"', f'"{OTHERS}"'))
    own = [stored(redis_server, FIELD.replace('"a"', f'"r{number}"')) for number in range(60)]
    assert sum(own) + others == 60
    assert 10 < others < 60
    assert int(redis_server.ask("HLEN", TOTALS)) < 50  # what has no rule's name has its own


def test_a_collector_is_scraped_after_its_event_loop_was_closed(redis_server: Server) -> None:
    redis_server.command("FLUSHALL")
    limiter, registry = worker(redis_server)
    alone = CollectorRegistry()
    alone.register(PrometheusMetrics(limiter))

    async def serve() -> None:
        await limiter.admit(SCOPE)
        assert await shown(registry, 1) == 1

    asyncio.run(serve())
    assert alone.get_sample_value("ratelimit_requests_total", ALLOWED) == 1
    assert b"ratelimit_requests_total" in generate_latest(registry)
    fleet_of(limiter)._read_at -= 10
    assert generate_latest(registry) == b""
    limiter.counts["a", "allowed"] += 1
    asyncio.run(limiter.aclose())
    assert stored(redis_server) == 2


def test_a_limiter_is_closed_on_an_event_loop_that_has_no_redis(
    redis_server: Server, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet_module, "PAUSE", 0)
    limiter, _ = worker(redis_server)
    limiter.counts["a", "allowed"] += 1
    trio.run(limiter.aclose)
    assert [each for each in caplog.messages if each.startswith("metrics-unshared: ")]


FORKED: Final = """
import asyncio, os, sys
from ratelimit import RateLimiter, Rule
from ratelimit.insight.metrics.prometheus import PrometheusMetrics
from ratelimit.stores.redis import RedisStore

SCOPE = {"type": "http", "method": "GET", "path": "/", "headers": [], "client": ("192.0.2.1", 1)}
limiter = RateLimiter([Rule("a", "9999/minute")], store=RedisStore(sys.argv[1], deadline=10))
PrometheusMetrics(limiter, shared=True)
(fleet,) = limiter.companions

async def serve(times):
    for _ in range(times):
        await limiter.admit(SCOPE)

async def serve_and_end(times):
    await serve(times)
    await limiter.aclose()

asyncio.run(serve(1))
limiter.counts["a", "allowed"] += 5  # not added yet
fleet._busy.acquire()  # as by a thread that is about to add, and which a child has not
child = os.fork()
if not child:
    limiter.counts["a", "allowed"] += 3
    asyncio.run(serve_and_end(1))
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
fleet._busy.release()
asyncio.run(serve_and_end(2))
"""


def test_a_forked_worker_leaves_its_parent_s_counts_to_that(redis_server: Server) -> None:
    redis_server.command("FLUSHALL")
    done = subprocess.run(
        [sys.executable, "-c", FORKED, redis_server.url],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert stored(redis_server) == (1 + 5 + 2) + (3 + 1)
