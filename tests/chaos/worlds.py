"""What the faults happen to: an application of two workers, and what it counts in."""

import asyncio
import json
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final

from redis import Redis
from redis.crc import key_slot

from ratelimit.decisions import identity_digest
from tests.chaos.load import Client, Stream
from tests.support.apps import Running, running
from tests.support.clusters import SLOTS, Cluster, cluster
from tests.support.proxy import Proxy
from tests.support.sentinels import Sentinels, sentinel
from tests.support.servers import Server, binaries, serving, temporary_folder, wait_until

DEADLINE_MS: Final = 50
QUOTA: Final = 20
WINDOW: Final = 1.0
WORKERS: Final = 2
BUSY, CALM, FREE = 30.0, 6.0, 30.0  # requests a second of each stream
POLICIES: Final = ("allow", "deny", "local")

RULES: Final = f"""
version: 1
store: {{store}}
deadline: {DEADLINE_MS}ms
workers: {WORKERS}
rules:
""" + "".join(
    f"""
  - name: {policy}
    match: {{{{path: /{policy}}}}}
    by: header:x-key
    limit: {QUOTA}/second
    algorithm: sliding_log
    on_store_failure: {policy}
"""
    for policy in POLICIES
)


def slot_of(key: str) -> int:
    """The slot in a cluster of a client's counters."""
    slot: int = key_slot(identity_digest(f"header:x-key={key}").encode())
    return slot


def third_of(key: str) -> int:
    """Which of three masters has a client's counters at first."""
    return slot_of(key) * 3 // SLOTS


def streams() -> list[Stream]:
    """A busy and a calm client of each policy in each of the first two thirds of the slots."""
    found = [Stream("/free", "", FREE)]
    for policy in POLICIES:
        for kind, rate in (("busy", BUSY), ("calm", CALM)):
            for third in (0, 1):
                names = (f"{policy}-{kind}-{number}" for number in range(1_000))
                found.append(
                    Stream(f"/{policy}", next(it for it in names if third_of(it) == third), rate)
                )
    return found


class World:
    """An application under load, and what may be broken of it."""

    def __init__(self, app: Running) -> None:
        self.app = app
        self.streams = streams()
        self.nodes: Callable[[], list[Server]] = list
        """The servers that have counters now."""
        self.first: dict[int, dict[str, Any]] = {}
        """The workers' states when all was new and warm."""

    server: Server
    proxy: Proxy
    admin: Any  # a connection to the server that was made before the fault
    clock: Path
    sentinels: Sentinels
    cluster: Cluster

    async def states(self) -> dict[int, dict[str, Any]]:
        """What each worker says of itself, by its process id."""
        found: dict[int, dict[str, Any]] = {}
        for _ in range(200):
            client = Client(self.app.url)
            _, _, body = await client.get("/state")
            client.close()
            state = json.loads(body)
            found[state["pid"]] = state
            if len(found) == WORKERS:
                return found
        raise TimeoutError(f"of {WORKERS} workers, only {list(found)} answered")

    async def for_ever(self) -> list[str]:
        """Keys that would never go away."""
        return await asyncio.to_thread(
            lambda: [
                f"{node.port}: {key}"
                for node in self.nodes()
                for key in node.ask("KEYS", "*")
                if node.ask("PTTL", key) == -1
            ]
        )


def set_clock(clock: Path, seconds: float) -> None:
    """Moves a store's clock so far away from the system's."""
    clock.write_bytes(struct.pack("<q", round(seconds * 1_000_000)))


@asynccontextmanager
async def one_server(*, own_clock: bool = False) -> AsyncIterator[World]:
    """One server, behind a proxy."""
    async with AsyncExitStack() as stack:
        server = stack.enter_context(serving(binaries()[0].path))
        proxy = await stack.enter_async_context(Proxy(server.port))
        clock = Path(stack.enter_context(temporary_folder()), "clock")
        set_clock(clock, 0)
        app = stack.enter_context(
            running(
                RULES.format(store=proxy.url),
                workers=WORKERS,
                clock=str(clock) if own_clock else None,
            )
        )
        world = World(app)
        world.server, world.proxy, world.clock = server, proxy, clock
        world.nodes = lambda: [server]
        world.admin = stack.enter_context(Redis(port=server.port, single_connection_client=True))
        yield world


@asynccontextmanager
async def under_sentinels() -> AsyncIterator[World]:
    """A master with a replica, and three sentinels."""
    async with AsyncExitStack() as stack:
        group = stack.enter_context(sentinel(binaries()[0].path, 1))
        app = stack.enter_context(running(RULES.format(store=group.url), workers=WORKERS))
        world = World(app)
        world.sentinels = group
        world.nodes = lambda: [group.master()]
        yield world


@asynccontextmanager
async def in_a_cluster() -> AsyncIterator[World]:
    """Three masters, each with a replica."""
    words = ["--cluster-require-full-coverage", "no"]
    async with AsyncExitStack() as stack:
        nodes = stack.enter_context(cluster(binaries()[0].path, 3, 1, *words))
        app = stack.enter_context(running(RULES.format(store=nodes.url), workers=WORKERS))
        world = World(app)
        world.cluster = nodes
        world.nodes = nodes.masters
        yield world


def takes_writes(node: Server) -> None:
    """Returns when a cluster's node does."""
    wait_until(lambda: "cluster_state:ok" in node.ask("CLUSTER", "INFO"), "the node takes writes")


WORLDS: Final = {
    "server": one_server,
    "clock": lambda: one_server(own_clock=True),
    "sentinel": under_sentinels,
    "cluster": in_a_cluster,
}
