"""RedisStore on a real Cluster of three masters: slots, redirections, and what they keep."""

import asyncio
import re
from collections.abc import Iterator
from contextlib import nullcontext

import pytest
import pytest_asyncio
from starlette.types import Receive, Scope, Send

from ratelimit import (
    Algorithm,
    Check,
    Limit,
    RateLimiter,
    RateLimitMiddleware,
    RedisStore,
    Rule,
    StoreUnavailable,
)
from ratelimit.testing import MakeStore, ManualClock, StoreSuite
from tests.stores.redis.test_connections import RIGHTS
from tests.stores.redis.test_store import assert_exact_from_eight_processes
from tests.support.asgi import ask
from tests.support.clusters import Cluster, cluster
from tests.support.servers import binaries, serving

LIMIT = Limit("5/minute", algorithm="sliding_log")
SPREAD = ("a", "b", "c", "d", "e", "f")


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    """One cluster for this module; its tests flush it."""
    with cluster(binaries()[0].path) as started:
        yield started


@pytest.fixture
def fresh(nodes: Cluster) -> Cluster:
    """The same, empty."""
    for node in nodes.masters():
        node.command("FLUSHALL")
    return nodes


@pytest.fixture
def make_store(fresh: Cluster) -> MakeStore:
    """What the published suite asks for."""

    def make(clock: ManualClock) -> RedisStore:
        return RedisStore(fresh.url, clock=clock, deadline=10, deny_cache=0)

    return make


class TestCluster(StoreSuite):
    """The published suite."""


@pytest_asyncio.fixture
async def store(fresh: Cluster) -> RedisStore:
    """A store whose deadline a busy machine keeps; closed by its tests' event loop at the end."""
    return RedisStore(fresh.url, deadline=10, deny_cache=0)


async def test_identities_lie_in_slots_of_their_own_and_limits_of_one_together(
    store: RedisStore, fresh: Cluster
) -> None:
    """All limits of one identity share a slot, so they stay all or nothing in one script."""
    way = store._way()
    rules = [Check(Limit("5/minute"), "someone", 1, rule) for rule in ("one", "two", "three")]
    assert len({way.slot(check) for check in rules}) == 1
    assert len({way.slot(Check(LIMIT, key)) for key in SPREAD}) == len(SPREAD)
    await store.decide([Check(LIMIT, key) for key in SPREAD])
    assert all(int(node.ask("DBSIZE")) for node in fresh.masters())
    await store.aclose()


async def test_what_several_slots_charged_is_given_back_where_one_denies(
    store: RedisStore,
) -> None:
    """Afterwards every decision describes the uncharged state."""
    await store.decide([Check(LIMIT, "c", 5)])
    decisions = await store.decide([Check(LIMIT, key, 2) for key in ("a", "b", "c")])
    assert [decision.allowed for decision in decisions] == [True, True, False]
    assert [decision.remaining for decision in decisions] == [5, 5, 0]
    assert [decision.retry_after_us for decision in decisions][:2] == [0, 0]
    looks = await store.decide([Check(LIMIT, key, 0) for key in ("a", "b", "c")])
    assert [look.remaining for look in looks] == [5, 5, 0]
    await store.aclose()


async def test_a_shadow_in_another_slot_has_no_say(store: RedisStore) -> None:
    """It is charged if it fits and the request passes, and gives back if that is refused."""
    await store.decide([Check(LIMIT, "b", 5)])
    passed = await store.decide([Check(LIMIT, "a"), Check(LIMIT, "b", shadow=True)])
    assert [decision.allowed for decision in passed] == [True, False]
    refused = await store.decide([Check(LIMIT, "b"), Check(LIMIT, "c", 3, shadow=True)])
    assert [decision.allowed for decision in refused] == [False, True]
    looks = await store.decide([Check(LIMIT, key, 0) for key in ("a", "c")])
    assert [look.remaining for look in looks] == [4, 5]
    await store.aclose()


async def test_a_moved_slot_is_found_without_an_error(store: RedisStore, fresh: Cluster) -> None:
    """The answer that a slot is elsewhere proves that nothing ran; it is asked there."""
    slot = store._way().slot(Check(LIMIT, "a"))
    for left in (4, 3, 2):
        (decision,) = await store.decide([Check(LIMIT, "a")])
        assert decision.remaining == left
        source = fresh.master_of(slot)
        target = next(node for node in fresh.masters() if node is not source)
        await asyncio.to_thread(fresh.migrate, slot, source, target)
    await store.aclose()


async def test_failures_are_found_where_their_slot_has_moved(
    store: RedisStore, fresh: Cluster
) -> None:
    """A success after the cluster was resharded forgets what was noted before, and reset works."""
    check = Check(LIMIT, "a")
    slot = store._way().slot(check)
    (charged,) = await store.decide([check])
    for command in ("note", "forget", "reset"):
        source = fresh.master_of(slot)
        target = next(node for node in fresh.masters() if node is not source)
        await asyncio.to_thread(fresh.migrate, slot, source, target)
        if command == "note":
            await store.add_failure(check.given_back(charged), 60_000_000)
        elif command == "forget":
            await store.forget_failures(check)
            assert (await store.decide([check]))[0].remaining == 4
        else:
            await store.reset([check])
    assert (await store.decide([check]))[0].remaining == 4
    await store.aclose()


@pytest.mark.parametrize("moved", [False, True])
async def test_commands_of_a_counter_find_it_while_its_slot_is_on_its_way(
    store: RedisStore, fresh: Cluster, moved: bool
) -> None:
    """Whether its keys are still there or gone already: failures are forgotten, and reset works."""
    check = Check(LIMIT, "a")
    slot = store._way().slot(check)
    source = fresh.master_of(slot)
    target = next(node for node in fresh.masters() if node is not source)
    if not moved:
        (charged,) = await store.decide([check])
        await store.add_failure(check.given_back(charged), 60_000_000)
    await asyncio.to_thread(fresh.begin_migration, slot, source, target)
    try:
        if moved:  # a key that the source lacks
            (charged,) = await store.decide([check])
            await store.add_failure(check.given_back(charged), 60_000_000)
        await store.forget_failures(Check(LIMIT, "a", rule="of which there are none"))
        await store.forget_failures(check)
        assert (await store.decide([check]))[0].remaining == 4
        await store.reset([check])
        assert (await store.decide([check]))[0].remaining == 4
    finally:
        while fresh.move_keys(slot, source, target):
            pass
        await asyncio.to_thread(fresh.end_migration, slot, source, target)
    assert (await store.decide([check]))[0].remaining == 3
    await store.aclose()


@pytest.mark.parametrize("algorithm", list(Algorithm))
async def test_a_slot_that_moves_under_load_counts_exactly(
    store: RedisStore, fresh: Cluster, algorithm: Algorithm
) -> None:
    """Neither a charge lost nor one made twice while keys are on their way."""
    limit = Limit("300/day", algorithm=algorithm)
    keys = [Check(limit, f"{{never}}{algorithm}", rule=str(number)) for number in range(3)]
    slot = store._way().slot(keys[0])
    passed = asked = 0
    moving = True

    async def ask(check: Check) -> None:
        nonlocal passed, asked
        while moving or asked < 1_200:
            (decision,) = await store.decide([check])
            asked += 1
            passed += decision.allowed

    async with asyncio.TaskGroup() as group:
        for check in [check for check in keys for _ in range(3)]:
            group.create_task(ask(check))
        for _ in range(2):
            source = fresh.master_of(slot)
            target = next(node for node in fresh.masters() if node is not source)
            await asyncio.to_thread(fresh.begin_migration, slot, source, target)
            while await asyncio.to_thread(fresh.move_keys, slot, source, target, 1):
                pass
            await asyncio.to_thread(fresh.end_migration, slot, source, target)
        moving = False
    assert passed == 3 * 300
    await store.aclose()


async def test_a_slot_that_two_nodes_give_each_other_is_told_as_such(fresh: Cluster) -> None:
    """What a hasty resharding leaves behind: asked a few times, not as often as they answer."""
    check = Check(LIMIT, "a")
    store = RedisStore(fresh.url, deadline=0.3, deny_cache=0)
    slot = store._way().slot(check)
    owner = fresh.master_of(slot)
    other = next(node for node in fresh.masters() if node is not owner)
    owner.ask("CLUSTER", "SETSLOT", str(slot), "NODE", other.ask("CLUSTER", "MYID"))
    for node in fresh.masters():
        node.command("CONFIG", "RESETSTAT")
    with pytest.raises(StoreUnavailable, match=f"do not agree whose slot {slot} is") as caught:
        await store.decide([check])
    assert caught.value.kind == "late"
    said = "".join(node.ask("INFO", "commandstats") for node in fresh.masters())
    tries = sum(map(int, re.findall(r"cmdstat_evalsha:.*rejected_calls=(\d+)", said)))
    assert 3 <= tries <= 40
    owner.ask("CLUSTER", "SETSLOT", str(slot), "NODE", owner.ask("CLUSTER", "MYID"))
    assert (await store.decide([check]))[0].remaining == 4
    await store.aclose()


@pytest.mark.parametrize("missing", ["", "asking", "cluster|slots"])
async def test_the_least_rights_are_enough_and_none_too_many(fresh: Cluster, missing: str) -> None:
    """As docs/redis.md lists them: a user of every node, while a slot is on its way."""
    rights = [f"+{right}" for right in (*RIGHTS, "asking", "cluster|slots") if right != missing]
    for node in fresh.masters():
        node.ask("SCRIPT", "FLUSH")
        node.ask("ACL", "SETUSER", "worker", "reset", "on", ">pw", "~rl:*", "-@all", *rights)
    check = Check(LIMIT, "a")
    url = fresh.url.replace("://", "://worker:pw@")
    store = RedisStore(url, deadline=0.5 if missing else 10, deny_cache=0)
    slot = store._way().slot(check)
    source = fresh.master_of(slot)
    target = next(node for node in fresh.masters() if node is not source)
    fresh.begin_migration(slot, source, target)
    refused = pytest.raises(StoreUnavailable, match="this user of Redis may not run")
    try:
        async with store:
            with refused if missing else nullcontext():
                await store.decide([check])  # a key that the source lacks: it answers ASK
    finally:
        while fresh.move_keys(slot, source, target):
            pass
        fresh.end_migration(slot, source, target)
    if not missing:
        async with store:
            assert (await store.decide([check]))[0].remaining == 3
            await store.ping()
            await store.switches()
            await store.reset([check])


async def test_a_script_that_a_node_has_forgotten_is_loaded_there(
    store: RedisStore, fresh: Cluster
) -> None:
    """Each node by itself, once."""
    checks = [Check(LIMIT, key) for key in SPREAD]
    for left in (4, 3):
        for node in fresh.masters():
            node.command("SCRIPT", "FLUSH")
        assert [each.remaining for each in await store.decide(checks)] == [left] * len(SPREAD)
    await store.ping()
    await store.reset(checks)
    assert all(node.ask("DBSIZE") == 0 for node in fresh.masters())
    await store.aclose()


async def test_a_shard_that_is_gone_degrades_its_own_checks_alone() -> None:
    """The others are decided and counted; where all are gone, the store is unavailable."""
    with cluster(binaries()[0].path) as own:
        store = RedisStore(own.url, deadline=0.5, deny_cache=0)
        await store.decide([Check(LIMIT, key) for key in SPREAD])
        gone = own.masters()[0]
        for node in own.masters():
            node.command("CONFIG", "SET", "cluster-require-full-coverage", "no")
        lost = [own.master_of(store._way().slot(Check(LIMIT, key))) is gone for key in SPREAD]
        assert True in lost
        assert False in lost
        await asyncio.to_thread(gone.kill)
        decisions = await store.decide([Check(LIMIT, key) for key in SPREAD])
        assert [decision.degraded for decision in decisions] == lost
        assert {decision.remaining for decision in decisions if not decision.degraded} == {3}
        now = asyncio.get_running_loop().time
        started = now()
        for _ in range(20):
            with pytest.raises(StoreUnavailable):
                await store.decide([Check(LIMIT, SPREAD[lost.index(True)])])
        # The first may wait, for a successor; twenty deadlines would be ten seconds.
        assert now() - started < 5
        await asyncio.to_thread(gone.start)
        assert len(await store.decide([Check(LIMIT, key) for key in SPREAD])) == len(SPREAD)
        await store.aclose()


async def test_each_shard_has_its_breaker(caplog: pytest.LogCaptureFixture) -> None:
    """Where one is away, nobody waits for it, the others decide, and its return is noticed."""
    with cluster(binaries()[0].path) as own:
        for node in own.masters():
            node.command("CONFIG", "SET", "cluster-require-full-coverage", "no")
        store = RedisStore(own.url, deadline=0.3, deny_cache=0)
        await store.decide([Check(LIMIT, key) for key in SPREAD])
        gone = own.masters()[0]
        lost = [own.master_of(store._way().slot(Check(LIMIT, key))) is gone for key in SPREAD]
        away, here = SPREAD[lost.index(True)], SPREAD[lost.index(False)]
        await asyncio.to_thread(gone.kill)
        kinds = []
        for _ in range(8):
            with pytest.raises(StoreUnavailable) as caught:
                await store.decide([Check(LIMIT, away)])
            kinds.append(caught.value.kind)
        assert kinds[-1] == "open"
        assert store.breaker.state == "open"
        states = store.servers()
        assert states[f"127.0.0.1:{gone.port}"] == "open"
        assert sorted(states.values()) == ["closed", "closed", "open"]
        for left in (3, 2):
            (decision,) = await store.decide([Check(LIMIT, here)])
            assert decision.remaining == left
        await asyncio.to_thread(gone.start)
        while store.breaker.is_open():
            await asyncio.wait([asyncio.create_task(asyncio.sleep(0.05))])
        (decision,) = await store.decide([Check(LIMIT, away)])
        assert (decision.degraded, decision.allowed) == (False, True)
        await store.aclose()


async def test_a_plain_server_is_no_cluster() -> None:
    """A URI that names the wrong kind of server is told as such."""
    with serving(binaries()[0].path) as server:
        store = RedisStore(f"redis+cluster://127.0.0.1:{server.port}", deadline=0.5)
        with pytest.raises(StoreUnavailable) as caught:
            await store.decide([Check(LIMIT, "a")])
        assert caught.value.kind in ("cluster", "late")
        assert "cluster" in str(caught.value)
        await store.aclose()


@pytest.mark.slow
def test_eight_processes_pass_exactly_the_quota(fresh: Cluster) -> None:
    """On a cluster as on one server: the keys of a round lie in different slots."""
    assert_exact_from_eight_processes(fresh.url, 10)


@pytest.mark.slow
async def test_a_failover_raises_nothing_but_unavailable() -> None:
    """A master dies and its replica takes over: refusals to answer meanwhile, then answers."""
    with cluster(binaries()[0].path, masters=3, replicas=1) as own:
        store = RedisStore(own.url, deadline=0.2, deny_cache=0)
        limit = Limit("100/day", algorithm="fixed_window")
        check = Check(limit, "someone")
        for _ in range(50):
            await store.decide([check])
        victim = own.master_of(store._way().slot(check))
        failing = asyncio.create_task(asyncio.to_thread(own.failover, victim))
        passed = failed = 0
        while not failing.done() or passed == 0:
            try:
                (decision,) = await store.decide([check])
            except StoreUnavailable:
                failed += 1
            else:
                passed += decision.allowed
            await asyncio.sleep(0.01)
        await failing
        (look,) = await store.decide([Check(limit, "someone", 0)])
        # What the replica had not yet been told of is lost; nothing is counted twice.
        assert failed > 0
        assert 0 <= look.remaining - max(0, 50 - passed) <= 50
        await store.aclose()


async def test_places_of_many_identities_are_held_renewed_and_given_up(
    store: RedisStore, fresh: Cluster
) -> None:
    """Beside a rule of another slot, which refuses some, and in nodes that forget."""
    go_on = asyncio.Event()

    async def inner(scope: Scope, receive: Receive, send: Send) -> None:
        await go_on.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})

    rules = [
        Rule("each", concurrency=2, lease=1),
        Rule("all", "31/hour", by="global", algorithm="fixed_window"),
    ]
    limiter = RateLimiter(rules, store=store)
    app = RateLimitMiddleware(inner, limiter)
    clients = [f"192.0.2.{number}" for number in range(15)]

    async def left(client: str) -> int:
        return (await limiter.peek("each", client))[0].remaining

    async def becomes(number: int) -> None:
        while {await left(client) for client in clients} != {number}:  # noqa: ASYNC110  # of nodes
            await asyncio.sleep(0.01)

    asked = [asyncio.create_task(ask(app, client=(each, 1))) for each in clients * 2]
    await becomes(0)
    for each in clients[:5]:
        assert (await ask(app, client=(each, 1))).problem["violated-policies"] == ["each"]
    for node in fresh.masters():
        node.command("FLUSHALL")
    await becomes(0)
    go_on.set()
    assert {answer.status for answer in await asyncio.gather(*asked)} == {200}
    await becomes(2)
    # A place that was charged beside a refusal is given back, and whoever has it knows of it.
    statuses = [(await ask(app, client=(clients[0], 1))).status for _ in range(40)]
    assert statuses == [200] * 31 + [429] * 9
    await becomes(2)
    await store.aclose()
