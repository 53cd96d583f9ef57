"""What each worker may let through while the store is away, and the way back."""

import asyncio
import multiprocessing
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from fractions import Fraction

import pytest
import pytest_asyncio

from ratelimit import (
    Algorithm,
    Check,
    Decision,
    Limit,
    MemoryStore,
    RateLimiter,
    RedisStore,
    Rule,
    RuleSet,
    StoreUnavailable,
)
from ratelimit.concurrency import Concurrency
from ratelimit.runtime.background import Background
from ratelimit.stores import breaker as module
from ratelimit.stores import failover as failovers
from ratelimit.stores.failover import Failover
from ratelimit.testing import ManualClock
from tests.support.asgi import http_scope
from tests.support.servers import Server

LIMIT = Limit("8/minute", algorithm="fixed_window")
GONE = StoreUnavailable("nothing listens", kind="refused")


class Switched(MemoryStore):
    """A store that can be switched off, and counts how often it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.off = False
        self.asked = 0
        self.alive = 0

    async def decide(self, checks: Sequence[Check]) -> tuple[Decision, ...]:
        self.asked += 1
        if self.off:
            raise GONE
        return await super().decide(checks)

    async def heartbeat(self, worker: str, alive_for: float) -> int:
        if self.off:
            raise GONE
        return self.alive


@pytest_asyncio.fixture
async def store(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Switched]:
    """A store whose probes come quickly."""
    monkeypatch.setattr(module, "FIRST_PROBE", 0.001)
    monkeypatch.setattr(module, "LAST_PROBE", 0.002)
    yield Switched()


async def fail(failover: Failover, times: int) -> None:
    """Asks a store that is away."""
    for _ in range(times):
        with pytest.raises(StoreUnavailable):
            await failover.decide([Check(LIMIT, "k")])


def running(background: Background) -> "asyncio.Task[None]":
    """The task that a job runs in."""
    return background._tasks[asyncio.get_running_loop()]


async def closed(failover: Failover) -> None:
    """Waits until a probe has found the store again, and all is settled."""
    await running(failover.breaker._probing)


async def test_while_it_is_open_the_store_is_not_asked(store: Switched) -> None:
    """Only probes ask, and the first that is answered closes it."""
    failover = Failover(store)
    store.off = True
    await fail(failover, 5)
    asked = store.asked
    await fail(failover, 100)
    assert store.asked == asked
    assert failover.breaker.is_open()
    store.off = False
    await closed(failover)
    assert not failover.breaker.is_open()
    assert (await failover.decide([Check(LIMIT, "k")]))[0].remaining == 7


async def test_nothing_guards_a_store_in_process() -> None:
    """There is nothing that could be away; a bug in it is no outage."""
    failover = Failover(MemoryStore())
    await failover.decide([Check(LIMIT, "k")])
    assert not failover._guarded


@pytest.mark.parametrize("workers", [1, 2, 3, 8, 20])
async def test_a_share_of_the_quota_is_let_through_locally(store: Switched, workers: int) -> None:
    """The quota divided by the workers; below one unit the window is stretched instead."""
    failover = Failover(store, workers)
    checks = [Check(LIMIT, "k")]
    decisions = [(await failover.decide_locally(checks))[0] for _ in range(10)]
    passed = sum(decision.allowed for decision in decisions)
    assert passed == max(1, 8 // workers)
    assert all(decision.degraded for decision in decisions)
    share = decisions[0].limit
    assert share.window_us == (60_000_000 if workers <= 8 else 60_000_000 * 20 // 8)


async def test_a_share_passes_what_the_whole_would_and_never_what_that_never_would(
    store: Switched,
) -> None:
    failover = Failover(store, workers=4)
    (whole,) = await failover.decide_locally([Check(LIMIT, "whole", 8)])
    (above,) = await failover.decide_locally([Check(LIMIT, "above", 9)])
    assert (whole.allowed, above.allowed, above.retry_after) == (True, False, None)


async def test_what_is_let_through_while_it_is_charged_afterwards_has_no_share_of_its_own(
    store: Switched,
) -> None:
    """It comes off the same share, and is charged in the next round."""
    failover = Failover(store, 2)
    decide, charged = store.decide, 0
    passed = sum([(await failover.decide_locally([Check(LIMIT, "k")]))[0].allowed for _ in "123"])

    async def slowly(checks: Sequence[Check]) -> tuple[Decision, ...]:
        nonlocal passed, charged
        charged += sum(check.cost for check in checks)
        for _ in range(4):  # two of them after the share is used up
            passed += (await failover.decide_locally([Check(LIMIT, "k")]))[0].allowed
        return await decide(checks)

    failover._past = slowly
    await failover._settle()
    assert (passed, charged) == (4, 4)
    assert (await store.decide([Check(LIMIT, "k", 0)]))[0].remaining == 4
    assert failover._local is None


async def test_what_is_let_through_while_the_store_goes_away_again_stays_owed(
    store: Switched,
) -> None:
    failover = Failover(store, 2)
    assert (await failover.decide_locally([Check(LIMIT, "k")]))[0].allowed
    decide = store.decide

    async def gone(checks: Sequence[Check]) -> tuple[Decision, ...]:
        for key in ("k", "other"):
            assert (await failover.decide_locally([Check(LIMIT, key)]))[0].allowed
        raise GONE

    failover._past = gone
    await failover._settle()
    failover._past = decide
    await failover._settle()
    for key, left in (("k", 6), ("other", 7)):
        assert (await store.decide([Check(LIMIT, key, 0)]))[0].remaining == left


@pytest.mark.parametrize("algorithm", list(Algorithm))
async def test_what_was_let_through_is_charged_once_afterwards(
    store: Switched, algorithm: Algorithm
) -> None:
    """An outage is no free refill, and not charged twice either."""
    limit = Limit("8/minute", algorithm=algorithm)
    failover = Failover(store, 2)
    await failover.decide([Check(limit, "k", 3)])
    store.off = True
    await fail(failover, 5)
    for _ in range(6):
        await failover.decide_locally([Check(limit, "k"), Check(limit, "quiet", 0)])
    store.off = False
    await closed(failover)
    (look,) = await failover.decide([Check(limit, "k", 0)])
    assert look.remaining == 8 - 3 - 4
    assert store.statistics().keys == 2  # and that of the probe
    store.off = True
    await fail(failover, 5)
    store.off = False
    await closed(failover)
    (look,) = await failover.decide([Check(limit, "k", 0)])
    assert look.remaining == 1


async def test_what_has_left_its_window_is_not_charged_afterwards(store: Switched) -> None:
    """A long outage is no debt: only what would still count is charged."""
    failover = Failover(store)
    store.off = True
    await fail(failover, 5)
    failover._local = local = MemoryStore(clock=(clock := ManualClock()))
    for _ in range(3):
        for _ in range(8):
            await failover.decide_locally([Check(LIMIT, "k")])
        clock.advance(60)
    await failover.decide_locally([Check(LIMIT, "k", 2)])
    assert failover._local is local
    store.off = False
    await closed(failover)
    (look,) = await failover.decide([Check(LIMIT, "k", 0)])
    assert look.remaining == 8 - 2


async def test_a_probe_writes(store: Switched, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is full or read-only answers what only reads, and is not back yet."""
    failover = Failover(store)
    asked: list[Check] = []
    decide = store.decide

    async def noting(checks: Sequence[Check]) -> tuple[Decision, ...]:
        asked.extend(checks)
        return await decide(checks)

    store.off = True
    await fail(failover, 5)
    monkeypatch.setattr(store, "decide", noting)
    store.off = False
    await closed(failover)
    assert [(check.key, check.cost) for check in asked] == [("probe", 1)]
    assert store.statistics().keys == 1


async def test_what_is_remembered_for_afterwards_is_bounded(
    store: Switched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flood of strangers during an outage fills no memory; those known go on being counted."""
    monkeypatch.setattr(failovers, "MOST_OWED", 10)
    failover = Failover(store)
    store.off = True
    for number in range(50):
        await failover.decide_locally([Check(LIMIT, f"k{number}")])
    await failover.decide_locally([Check(LIMIT, "k3")])
    assert len(failover._owed) == 10
    assert (LIMIT, "k3", "") in failover._owed


async def test_workers_are_counted_while_the_store_answers_and_frozen_when_it_is_lost(
    store: Switched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until heartbeats were seen it is the file's number, and never below one."""
    monkeypatch.setattr(failovers, "HEARTBEAT", 0.001)
    failover = Failover(store, 5, local=True)
    assert failover.workers == 5

    async def seen(number: int) -> None:
        while failover.workers != number:
            await asyncio.wait(
                [running(failover._heartbeat)], timeout=0.001
            )  # a turn of its loop, not a pause

    store.alive = 3
    await failover.decide([Check(LIMIT, "k")])
    await seen(3)
    store.alive = 0
    await seen(1)
    store.alive = 4
    await seen(4)
    store.off = True
    await fail(failover, 5)
    store.alive = 9
    await asyncio.wait([running(failover._heartbeat)], timeout=0.02)
    assert failover.workers == 4
    store.off = False
    await closed(failover)
    await seen(9)
    await failover.aclose()


async def test_workers_make_themselves_known_in_redis(redis_server: Server) -> None:
    """Each counts while it gives signs of life, by the server's clock."""
    redis_server.command("FLUSHALL")
    async with RedisStore(redis_server.url, deadline=10) as store:
        assert await store.heartbeat("a", 60) == 1
        assert await store.heartbeat("b", 60) == 2
        assert await store.heartbeat("a", 60) == 2
        assert 0 < int(redis_server.ask("PTTL", "rl:workers")) <= 61_000
        assert await store.heartbeat("b", -0.5) == 1


async def test_local_rules_refuse_with_429_beyond_their_share(store: Switched) -> None:
    """Rules that say `local` go on counting; what they let through tells no quota."""
    store.off = True
    rules = RuleSet(
        (Rule("all", LIMIT),), on_store_failure="local", workers=2, headers=("draft", "legacy")
    )
    limiter = RateLimiter(rules, store=store)
    admissions = [await limiter.admit(http_scope("/")) for _ in range(7)]
    statuses = [each.refusal.status if each.refusal else 200 for each in admissions]
    assert statuses == [200] * 4 + [429] * 3
    assert all(decision.degraded for each in admissions for decision in each.decisions)
    assert admissions[0].headers() == []
    assert limiter.health()["status"] == "degraded"
    assert limiter.health()["meanwhile"] == "counted in this process at its share"


async def test_allow_deny_and_local_side_by_side(store: Switched) -> None:
    """Each rule has its own word; one that denies refuses the request."""
    store.off = True
    allow, local = Rule("allow", "1/day"), Rule("local", "2/day", on_store_failure="local")
    limiter = RateLimiter([allow, local], store=store)
    statuses = []
    for _ in range(3):
        admission = await limiter.admit(http_scope("/"))
        statuses.append(admission.refusal.status if admission.refusal else 200)
    assert statuses == [200, 200, 429]
    deny = Rule("deny", "9/day", on_store_failure="deny")
    strict = await RateLimiter([allow, local, deny], store=store).admit(http_scope("/"))
    assert strict.refusal is not None
    assert strict.refusal.status == 503


async def test_health_tells_the_change_and_since_when(
    store: Switched, caplog: pytest.LogCaptureFixture
) -> None:
    """A health endpoint has all that an operator asks first; each change is logged once."""
    limiter = RateLimiter([Rule("all", "100/minute")], store=store)
    told: list[str] = []
    limiter.on_breaker_change = told.append
    before = limiter.health()
    assert (before["status"], before["breaker"], before["last_error"]) == ("ok", "closed", "")
    store.off = True
    for _ in range(9):
        assert (await limiter.admit(http_scope("/"))).refusal is None
    away = limiter.health()
    assert (away["status"], away["breaker"]) == ("degraded", "open")
    assert away["last_error"] == "nothing listens"
    store.off = False
    await closed(limiter._failover)
    assert limiter.health()["status"] == "ok"
    assert told == ["open", "closed"]
    said = [record.getMessage().partition(":")[0] for record in caplog.records]
    assert said == ["store-failed", "breaker-open", "breaker-closed"]


async def test_health_tells_how_many_workers_were_seen_and_nothing_where_none_was(
    store: Switched, redis_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the rule file's number, which may be wrong, nor one for a store in process."""
    monkeypatch.setattr(failovers, "HEARTBEAT", 0.001)
    local = RuleSet((Rule("all", "100/minute"),), on_store_failure="local", workers=7)
    assert "workers" not in RateLimiter(local).health()
    assert "workers" not in RateLimiter(local, store=store).health()
    redis_server.command("FLUSHALL")
    for rules, known in ((replace(local, on_store_failure="allow"), False), (local, True)):
        shared = RedisStore(redis_server.url, deadline=10)
        async with RateLimiter(rules, store=shared) as limiter:
            await shared.heartbeat("another", 60)
            await limiter.admit(http_scope("/"))
            async with asyncio.timeout(5):
                while known and "workers" not in limiter.health():
                    await asyncio.wait([running(limiter._failover._heartbeat)], timeout=0.001)
            assert limiter.health().get("workers") == (2 if known else None)


async def test_the_first_to_speak_after_an_outage_is_not_alone(
    store: Switched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that comes back empty counts one worker, until the others had time to speak."""
    monkeypatch.setattr(failovers, "HEARTBEAT", 0.001)
    failover = Failover(store, 1, local=True)
    store.alive = 4
    beats = 0
    heartbeat = store.heartbeat

    async def counted(worker: str, alive_for: float) -> int:
        nonlocal beats
        alive = await heartbeat(worker, alive_for)
        beats += 1
        return alive

    monkeypatch.setattr(store, "heartbeat", counted)

    async def beat(times: int) -> None:
        upto = beats + times
        while beats < upto:
            await asyncio.wait([running(failover._heartbeat)], timeout=0.001)

    await failover.decide([Check(LIMIT, "k")])
    await beat(4)
    assert failover.workers == 4
    for _ in range(3):
        store.off = True
        await fail(failover, 5)
        store.off, store.alive = False, 1
        await closed(failover)
        await beat(1)
        assert failover.workers == 4
        store.alive = 4
        await beat(1)
    store.alive = 2
    await beat(5)
    assert failover.workers == 2
    await failover.aclose()


def test_workers_that_are_forked_have_names_of_their_own() -> None:
    """A limiter that was made before the fork, as `gunicorn --preload` does, names none of them."""
    failover = Failover(Switched(), 4, local=True)
    parent = failover._own_name()
    names = multiprocessing.get_context("fork").SimpleQueue()
    for _ in range(3):
        child = multiprocessing.get_context("fork").Process(
            target=lambda: names.put((failover._own_name(), failover._own_name()))
        )
        child.start()
        child.join()
    told = [names.get() for _ in range(3)]
    assert all(first == second for first, second in told)
    assert len({parent, *(first for first, _ in told)}) == 4


async def test_closing_ends_what_runs_in_the_background(store: Switched) -> None:
    """No task outlives the limiter."""
    failover = Failover(store, local=True)
    store.off = True
    await fail(failover, 5)
    tasks = [running(failover.breaker._probing), running(failover._heartbeat)]
    await failover.aclose()
    assert all(task.done() for task in tasks)


@pytest.mark.parametrize(
    ("text", "part", "expected"),
    [
        ("10/minute", Fraction(1, 2), "5/minute"),
        ("10/minute", Fraction(1, 3), "3/minute"),
        ("10/minute", Fraction(1, 10), "1/minute"),
        ("10/minute", Fraction(1, 20), "1/2 minutes"),
        ("1/second", Fraction(1, 3), "1/3 seconds"),
        ("7/minute", Fraction(1), "7/minute"),
    ],
)
def test_a_part_of_a_limit_is_never_none(text: str, part: Fraction, expected: str) -> None:
    """Units are rounded down, and one that would be lost gets a longer window."""
    assert Limit(text).scaled(part) == Limit(expected)


async def test_regions_share_a_quota(redis_server: Server) -> None:
    """Two regions with half of it each let through the whole, and no more."""
    passed = 0
    for region in ("east", "west"):
        rules = RuleSet((Rule("all", "10/day", algorithm="sliding_log"),), share=Fraction(1, 2))
        store = RedisStore(redis_server.url, prefix=f"{region}:", deadline=10)
        async with RateLimiter(rules, store=store) as limiter:
            for _ in range(9):
                passed += (await limiter.admit(http_scope("/"))).refusal is None
    assert passed == 10


def test_a_share_that_a_cost_cannot_pass_is_refused() -> None:
    """A rule that would never pass is a mistake, not a limit."""
    rules = RuleSet((Rule("all", "10/day", cost=6),), share=Fraction(1, 2))
    with pytest.raises(ValueError, match="cost is 6 and can never pass"):
        RateLimiter(rules)


async def test_a_workers_share_is_not_told_as_a_mistake(
    store: Switched, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody has written memory://, and the share is one of several workers'."""
    monkeypatch.setattr("ratelimit.stores.memory.several_workers", lambda: True)
    failover = Failover(store, workers=2, local=True)
    await failover.decide_locally([Check(LIMIT, "k")])
    await failover.aclose()
    assert caplog.text == ""


async def test_the_parts_of_a_concurrency_add_up_to_the_whole(redis_server: Server) -> None:
    """Whoever has one more than others, or none, is another one for each identity."""
    redis_server.command("FLUSHALL")
    stores = [RedisStore(redis_server.url, deadline=5) for _ in range(4)]
    workers = [Failover(store, 4, local=True) for store in stores]
    try:
        for _ in range(2):  # the first has heard of all
            for each in workers:
                await each.store.heartbeat(each._own_name(), 60)  # type: ignore[attr-defined]
                await each._find_place()
        for quota in (1, 2, 4, 7, 20):
            limit = Concurrency(quota)
            whoever = set()
            for identity in map(str, range(50)):
                parts = []
                for number, each in enumerate(workers):
                    check = Check(limit, identity, 1, "exports")
                    held = 0
                    each.held = lambda _: held  # noqa: B023  # called at once
                    while (await each.decide_locally([check]))[0].allowed:
                        held += 1
                    parts.append(held)
                    if held > quota // 4:
                        whoever.add(number)
                assert sum(parts) == quota
            assert len(whoever) == (4 if quota % 4 else 0)
    finally:
        for each in workers:
            await each.aclose()
