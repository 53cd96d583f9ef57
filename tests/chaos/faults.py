"""Everything that is done to the store, the workers and the clients, each in a few lines."""

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final, NamedTuple

from tests.chaos.load import Client
from tests.chaos.worlds import World, set_clock, slot_of, takes_writes, third_of
from tests.support.servers import free_port, wait_until

in_thread: Final = asyncio.to_thread


class Fault(NamedTuple):
    """One fault: breaks something when entered, and mends it when left."""

    name: str
    world: str
    happens: Callable[[World], AbstractAsyncContextManager[None]]
    lasts: float
    """Seconds between breaking and mending."""
    seamless: bool
    """Whether the store decides all the while."""
    forgets: bool
    """Whether counters are lost, or a clock moved on, so that one more quota passes."""
    loses_worker: bool
    """Whether requests that are under way lose their connections."""
    partial: bool
    """Whether only the counters of the first third of the slots are away."""


FAULTS: Final[list[Fault]] = []


def fault(
    name: str,
    world: str = "server",
    *,
    lasts: float = 1.5,
    seamless: bool = False,
    forgets: bool = False,
    loses_worker: bool = False,
    partial: bool = False,
) -> Callable[[Callable[[World], AsyncIterator[None]]], None]:
    """Adds a generator to the table: what is before its ``yield`` breaks, the rest mends."""

    def add(happens: Callable[[World], AsyncIterator[None]]) -> None:
        happening = asynccontextmanager(happens)
        FAULTS.append(
            Fault(name, world, happening, lasts, seamless, forgets, loses_worker, partial)
        )

    return add


# --- One server, behind a proxy ------------------------------------------------------------------


@fault("kill -9, then a restart", forgets=True)
async def killed(world: World) -> AsyncIterator[None]:
    await in_thread(world.server.kill)
    yield
    await in_thread(world.server.start)


@fault("SIGSTOP for 5 s", lasts=5)
async def stopped(world: World) -> AsyncIterator[None]:
    world.server.signal(signal.SIGSTOP)
    yield
    world.server.signal(signal.SIGCONT)


@fault("every reply 200 ms late")
async def slow(world: World) -> AsyncIterator[None]:
    world.proxy.delay = 0.2
    yield
    world.proxy.delay = 0


@fault("connections cut", seamless=True)
async def cut(world: World) -> AsyncIterator[None]:
    await world.proxy.cut()
    yield
    await world.proxy.cut()


@fault("connection refused")
async def refused(world: World) -> AsyncIterator[None]:
    world.proxy.refuse()
    await world.proxy.cut()
    yield
    await world.proxy.accept()


@fault("accepts, never answers")
async def silent(world: World) -> AsyncIterator[None]:
    world.proxy.swallow_requests = world.proxy.swallow_replies = True
    await world.proxy.cut()
    yield
    world.proxy.swallow_requests = world.proxy.swallow_replies = False
    await world.proxy.cut()


@fault("accepts, never answers, then does on the same connections")
async def silent_for_a_while(world: World) -> AsyncIterator[None]:
    world.proxy.swallow_requests = True
    yield
    world.proxy.swallow_requests = False


@fault("backlog full")
async def backlog_full(world: World) -> AsyncIterator[None]:
    world.proxy.refuse()
    await world.proxy.cut()
    address = "127.0.0.1", world.proxy.port
    with socket.create_server(address, backlog=0):
        waiting = [socket.socket() for _ in range(4)]  # one is taken, and the queue has one place
        for each in waiting:
            each.setblocking(False)
            each.connect_ex(address)
        yield
        for each in waiting:
            each.close()
    await world.proxy.accept()


@fault("SCRIPT FLUSH", seamless=True)
async def scripts_flushed(world: World) -> AsyncIterator[None]:
    await in_thread(world.admin.script_flush)
    yield


@fault("FLUSHALL", seamless=True, forgets=True)
async def flushed(world: World) -> AsyncIterator[None]:
    await in_thread(world.admin.flushall)
    yield


@fault("maxmemory reached")
async def full(world: World) -> AsyncIterator[None]:
    await in_thread(world.admin.config_set, "maxmemory", 1)
    yield
    await in_thread(world.admin.config_set, "maxmemory", 0)


@fault("READONLY after a demotion")
async def demoted(world: World) -> AsyncIterator[None]:
    await in_thread(world.admin.replicaof, "127.0.0.1", free_port())
    yield
    await in_thread(world.admin.replicaof, "NO", "ONE")


@fault("password changed")
async def password_changed(world: World) -> AsyncIterator[None]:
    await in_thread(world.admin.config_set, "requirepass", "another")
    await in_thread(world.admin.client_kill_filter, _type="normal")
    yield
    await in_thread(world.admin.config_set, "requirepass", "")


@fault("too many clients")
async def too_many_clients(world: World) -> AsyncIterator[None]:
    (before,) = (await in_thread(world.admin.config_get, "maxclients")).values()
    await in_thread(world.admin.config_set, "maxclients", 1)
    await in_thread(world.admin.client_kill_filter, _type="normal")
    yield
    await in_thread(world.admin.config_set, "maxclients", before)


# --- The application and its clients -------------------------------------------------------------


async def repeat(job: Callable[[], Any], pause: float) -> None:
    """Does it again and again, until it is cancelled."""
    while True:
        await job()
        await asyncio.sleep(pause)


@fault("clients leave mid-decision, 100/s", seamless=True)
async def clients_leave(world: World) -> AsyncIterator[None]:
    world.proxy.delay = 0.005
    host, _, port = world.app.url.removeprefix("http://").partition(":")

    async def leave() -> None:
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"GET /allow HTTP/1.1\r\nhost: test\r\nx-key: leaves\r\n\r\n")
        try:
            await asyncio.sleep(0.003)
        finally:
            writer.transport.abort()

    task = asyncio.create_task(repeat(leave, 0.007))
    yield
    task.cancel()
    world.proxy.delay = 0


@fault("1,000 cancellations a second", seamless=True)
async def cancellations(world: World) -> AsyncIterator[None]:
    client = Client(world.app.url)
    target = "/cancel?path=/allow&count=1500&seconds=1.5"
    task = asyncio.create_task(client.get(target))
    yield
    _, _, cancelled = await task
    client.close()
    assert int(cancelled) > 500, f"only {int(cancelled)} were cancelled under way"


@fault("a worker killed", seamless=True, loses_worker=True)
async def worker_killed(world: World) -> AsyncIterator[None]:
    os.kill(next(iter(await world.states())), signal.SIGKILL)
    yield


# --- The store's clock ---------------------------------------------------------------------------


@fault("clock 10 s ahead, then back", "clock", seamless=True, forgets=True)
async def clock_ahead(world: World) -> AsyncIterator[None]:
    set_clock(world.clock, 10)
    yield
    set_clock(world.clock, 0)


@fault("clock 0.5 s back, then ahead", "clock", seamless=True, forgets=True)
async def clock_back(world: World) -> AsyncIterator[None]:
    set_clock(world.clock, -0.5)
    yield
    set_clock(world.clock, 0)


# --- Sentinel and Cluster ------------------------------------------------------------------------


@fault("Sentinel: master killed", "sentinel", lasts=0, forgets=True)
async def sentinel_failover(world: World) -> AsyncIterator[None]:
    await in_thread(world.sentinels.failover)
    yield


def of_first_third(world: World) -> list[int]:
    """The slots of the clients that are in the first third."""
    keys = [stream.key for stream in world.streams if stream.key]
    return [slot_of(key) for key in keys if third_of(key) == 0]


@fault("Cluster: resharding", "cluster", lasts=0, seamless=True)
async def resharded(world: World) -> AsyncIterator[None]:
    group = world.cluster
    source, other, target = group.nodes[:3]
    owner = await in_thread(target.ask, "CLUSTER", "MYID")
    for slot in of_first_third(world):
        await in_thread(group.begin_migration, slot, source, target)
        while await in_thread(group.move_keys, slot, source, target):
            pass
        for node in (target, source, other):
            await in_thread(node.ask, "CLUSTER", "SETSLOT", str(slot), "NODE", owner)
    yield


@fault("Cluster: a shard lost", "cluster", partial=True, forgets=True)
async def shard_lost(world: World) -> AsyncIterator[None]:
    group = world.cluster
    master = await in_thread(group.master_of, of_first_third(world)[0])
    replicas = await in_thread(group.replicas_of, master)
    for node in (*replicas, master):
        await in_thread(node.kill)
    yield
    for node in (master, *replicas):
        await in_thread(node.start)
    await in_thread(takes_writes, master)


@fault("Cluster: master killed", "cluster", lasts=0, partial=True, forgets=True)
async def cluster_failover(world: World) -> AsyncIterator[None]:
    group = world.cluster
    master = await in_thread(group.master_of, of_first_third(world)[0])
    (heir,) = await in_thread(group.replicas_of, master)
    await in_thread(master.kill)
    await in_thread(wait_until, lambda: heir.ask("ROLE")[0] == "master", "a new master", 30)
    yield
