"""The grounds that other tests stand on: whole replies, clusters, sentinels, and a bad network."""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from ratelimit import Check, Limit, RedisStore, StoreUnavailable
from tests.support.clusters import cluster
from tests.support.proxy import Proxy
from tests.support.sentinels import Sentinels, sentinel
from tests.support.servers import CommandError, Server, binaries, serving, wait_until

LIMIT = Limit("9/minute", algorithm="fixed_window")

each_binary = pytest.mark.parametrize("path", [pytest.param(b.path, id=b.name) for b in binaries()])


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """One server for all that stands before it."""
    with serving(binaries()[0].path) as started:
        yield started


# --- one server ----------------------------------------------------------------------------------


def test_a_reply_is_read_whole(server: Server) -> None:
    """Text, numbers, None and lists come back as such, however long; an error is raised."""
    server.ask("FLUSHALL")
    assert server.ask("SET", "key", "é" * 100_000) == "OK"
    assert server.ask("GET", "key") == "é" * 100_000
    assert server.ask("EVAL", "return {1, 'a', false, {}}", "0") == [1, "a", None, []]
    with pytest.raises(CommandError, match=r"^WRONGTYPE"):
        server.ask("LPUSH", "key", "x")


def test_waiting_in_vain_says_for_what() -> None:
    """What never holds ends with its name."""
    with pytest.raises(TimeoutError, match=r"^not within 0\.01 s: the sky falls$"):
        wait_until(lambda: False, "the sky falls", 0.01)


# --- a cluster -----------------------------------------------------------------------------------


@pytest.mark.slow
@each_binary
def test_a_slot_moves_with_its_keys(path: str) -> None:
    """In one go or step by step, during which the old owner redirects for what has left it."""
    with cluster(path) as grounds:
        assert len(grounds.masters()) == 3
        slot = grounds.slot("{tag}")
        source = grounds.master_of(slot)
        target, third = (each for each in grounds.nodes if each is not source)
        for number in range(150):
            source.ask("SET", f"{{tag}}{number}", "1")

        grounds.begin_migration(slot, source, target)
        assert grounds.move_keys(slot, source, target, most=50) == 50
        left = source.ask("CLUSTER", "GETKEYSINSLOT", str(slot), "1000")
        gone = next(key for key in (f"{{tag}}{n}" for n in range(150)) if key not in left)
        assert source.ask("GET", left[0]) == "1"
        with pytest.raises(CommandError, match=f"^ASK {slot} 127.0.0.1:{target.port}$"):
            source.ask("GET", gone)
        assert grounds.master_of(slot) is source
        while grounds.move_keys(slot, source, target):
            pass
        grounds.end_migration(slot, source, target)
        assert grounds.master_of(slot) is target
        assert target.ask("GET", gone) == "1"

        grounds.migrate(slot, target, third)
        assert grounds.master_of(slot) is third
        assert third.ask("CLUSTER", "COUNTKEYSINSLOT", str(slot)) == 150
        with pytest.raises(CommandError, match=f"^MOVED {slot} 127.0.0.1:{third.port}$"):
            target.ask("GET", gone)


@pytest.mark.slow
@each_binary
def test_a_replica_takes_a_masters_place(path: str) -> None:
    """When the master is killed, or asked; the killed one comes back as a replica."""
    with cluster(path, replicas=1, node_timeout_ms=500) as grounds:
        killed, asked, _ = grounds.masters()
        heir = grounds.failover(killed)
        assert killed not in grounds.alive
        assert grounds.master_of(0) is heir
        key = next(
            key for key in map(str, range(100)) if grounds.master_of(grounds.slot(key)) is heir
        )
        assert heir.ask("SET", key, "1") == "OK"
        killed.start()
        wait_until(lambda: killed in grounds.replicas_of(heir), "it is a replica", 30)

        other = grounds.failover(asked, kill=False)
        assert other not in (killed, asked, heir)
        wait_until(lambda: grounds.replicas_of(other) == [asked], "it is a replica", 30)


@pytest.mark.slow
def test_a_master_without_a_replica_has_no_failover() -> None:
    """It is said, and the master lives on."""
    with cluster(binaries()[0].path, masters=1) as grounds:
        with pytest.raises(ValueError, match="has no replica"):
            grounds.failover(grounds.nodes[0])
        assert grounds.nodes[0].ask("PING") == "PONG"


# --- sentinels -----------------------------------------------------------------------------------


@pytest.mark.slow
@each_binary
def test_sentinels_find_a_new_master(path: str) -> None:
    """When it is killed, or when they are asked; what was written before is there."""
    with sentinel(path) as grounds:
        first = grounds.master()
        assert first is grounds.nodes[0]
        _write_to_all(grounds, first)
        second = grounds.failover()
        assert second in grounds.nodes[1:]
        assert second.ask("GET", "key") == "value"
        grounds.settle()
        (replica,) = (node for node in grounds.nodes[1:] if node is not second)
        assert replica.ask("ROLE")[:3] == ["slave", "127.0.0.1", second.port]
        third = grounds.failover(kill=False)
        assert third is replica
        assert grounds.master(grounds.sentinels[-1]) is third


def _write_to_all(grounds: Sentinels, master: Server) -> None:
    master.ask("SET", "key", "value")
    wait_until(lambda: all(n.ask("GET", "key") for n in grounds.nodes), "replicas have the key")


# --- a bad network -------------------------------------------------------------------------------


@pytest_asyncio.fixture
async def proxy(server: Server) -> AsyncIterator[Proxy]:
    """A way to the server that is good at first."""
    server.ask("FLUSHALL")
    async with Proxy(server.port) as way:
        yield way


@pytest_asyncio.fixture
async def store(proxy: Proxy) -> AsyncIterator[RedisStore]:
    """A store behind it that has decided once."""
    async with RedisStore(proxy.url, deadline=0.2) as opened:
        assert await left(opened) == 8
        yield opened


async def left(store: RedisStore) -> int:
    """What one charge leaves."""
    (decision,) = await store.decide([Check(LIMIT, "someone")])
    return decision.remaining


async def failure(store: RedisStore) -> str:
    """Of which kind one charge fails."""
    with pytest.raises(StoreUnavailable) as caught:
        await left(store)
    return caught.value.kind


async def test_a_slow_network(proxy: Proxy, store: RedisStore, server: Server) -> None:
    """What is delayed past the deadline arrives all the same, and counts."""

    def scripts_run() -> int:
        said = re.search(r"cmdstat_evalsha:calls=(\d+)", server.ask("INFO", "commandstats"))
        assert said is not None
        return int(said[1])

    before = scripts_run()
    proxy.delay = 0.12  # of the request, and again of its reply
    assert await failure(store) == "late"
    await asyncio.to_thread(wait_until, lambda: scripts_run() > before, "it arrives")
    async with RedisStore(server.url, deadline=10) as beside:
        assert await left(beside) == 6


async def test_requests_that_vanish(proxy: Proxy, store: RedisStore) -> None:
    """The server never sees them, and nothing is charged."""
    proxy.swallow_requests = True
    assert await failure(store) == "late"
    proxy.swallow_requests = False
    assert await left(store) == 7


async def test_replies_that_vanish(proxy: Proxy, store: RedisStore) -> None:
    """The server has charged for what nobody hears of."""
    proxy.swallow_replies = True
    assert await failure(store) == "late"
    proxy.swallow_replies = False
    assert await left(store) == 6


async def test_connections_that_are_cut(proxy: Proxy, store: RedisStore) -> None:
    """They are closed at once, and new ones are taken."""
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    writer.write(b"PING\r\n")
    assert await reader.readline() == b"+PONG\r\n"
    await proxy.cut()
    assert await reader.read() == b""
    writer.close()
    assert await left(store) == 7


async def test_a_port_that_is_closed_and_opened(proxy: Proxy, store: RedisStore) -> None:
    """While it is closed the connections that there were still work, until they are cut."""
    proxy.refuse()
    assert await left(store) == 7
    await proxy.cut()
    assert await failure(store) == "refused"
    await proxy.accept()
    assert await left(store) == 6


async def test_a_server_that_is_away_behind_it() -> None:
    """Then the connection is taken, and closed."""
    with serving(binaries()[0].path) as gone:
        pass
    async with Proxy(gone.port) as way, RedisStore(way.url) as store:
        assert await failure(store) == "closed"
