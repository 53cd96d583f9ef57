"""Four processes, 20 at once: whatever happens to them, to the store, and to their clients.

The endpoints count themselves. Each test takes up to a minute.
"""

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from random import Random
from typing import NamedTuple

import pytest

from tests.support.servers import Server, binaries, serving

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
MOST, LEASE, WORKERS = 20, 10, 4
REQUESTS = int(os.environ.get("RATELIMIT_REQUESTS", "100000"))
RULES = f"""
version: 1
store: STORE
FAILURE
workers: {WORKERS}
rules:
  - name: exports
    by: global
    concurrency: {MOST}
    lease: {LEASE}s
"""


FAILURES = {
    # So that no reply which a busy machine delays lets anybody in.
    "deny": "deadline: 20s\non_store_failure: deny",
    "local": "deadline: 500ms\non_store_failure: local",
}


class World(NamedTuple):
    """The processes by their ports, the limiter's Redis, and that in which endpoints count."""

    workers: dict[int, subprocess.Popen[bytes]]
    store: Server
    counts: Server

    def now(self) -> int:
        """Endpoints under way."""
        return sum(map(int, self.counts.ask("HVALS", "now")))

    def most(self) -> int:
        """The most that were under way at once since the last call."""
        most = int(self.counts.ask("GETDEL", "most") or 0)
        return max(most, self.now())

    def told(self) -> int:
        """What the store counts as under way."""
        found = self.store.ask("KEYS", "rl:*:exports")
        words = [word for key in found for word in self.store.ask("HVALS", key)]
        now = time.time() * 1e6
        return sum(int(word[29:]) for word in words if int(word[:16]) > now)


@pytest.fixture
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    failure = FAILURES[getattr(request, "param", "deny")]
    binary = binaries()[0].path
    with contextlib.ExitStack() as stack:
        store, counts = (stack.enter_context(serving(binary)) for _ in range(2))
        rules = tmp_path / "rules.yaml"
        rules.write_text(RULES.replace("STORE", store.url).replace("FAILURE", failure))
        environment = {
            **os.environ, "RULES": str(rules), "COUNTS": counts.url, "PYTHONPATH": str(ROOT),
        }  # fmt: skip
        workers: dict[int, subprocess.Popen[bytes]] = {}
        logs = [tmp_path / f"log-{number}" for number in range(WORKERS)]
        command = [sys.executable, "-m", "uvicorn", "tests.support.held:make", "--factory"]
        command += ["--port", "0", "--no-access-log", "--no-use-colors"]
        started = []
        for each in logs:
            with each.open("wb") as log:
                started.append(
                    subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
                )
        stack.callback(_end, started)
        for process, each in zip(started, logs, strict=True):
            workers[_port(process, each)] = process
        yield World(workers, store, counts)


def _end(processes: list[subprocess.Popen[bytes]]) -> None:
    for each in processes:
        each.send_signal(signal.SIGCONT)
        each.kill()
        each.wait()


def _port(process: subprocess.Popen[bytes], log: Path) -> int:
    until = time.monotonic() + 30
    while time.monotonic() < until and process.poll() is None:
        found = re.search(r"running on http://127.0.0.1:(\d+)", log.read_text(errors="replace"))
        if found:
            return int(found[1])
        time.sleep(0.05)
    raise RuntimeError(f"it did not start:\n{log.read_text(errors='replace')}")


async def get(port: int, target: str, *, leaves: float | None = None) -> int:
    """The status of one request over a connection of its own; 0 where there is none."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return 0
    try:
        writer.write(f"GET {target} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n".encode())
        if leaves is not None:
            await asyncio.sleep(leaves)
            return 0
        line = await reader.readline()
        while await reader.read(65_536):
            pass
        return int(line.split()[1]) if line else 0
    except OSError:
        return 0
    finally:
        writer.close()


@contextlib.asynccontextmanager
async def traffic(
    world: World, target: str = "/slow?for=0.05", clients: int = 40
) -> AsyncIterator[Counter[int]]:
    """So many clients, who ask again and again, of any worker that lives."""
    statuses: Counter[int] = Counter()
    ends = False
    rng = Random(1)

    async def client() -> None:
        while not ends:
            living = [port for port, process in world.workers.items() if process.poll() is None]
            statuses[await get(rng.choice(living), target)] += 1
            await asyncio.sleep(0.01)

    tasks = [asyncio.create_task(client()) for _ in range(clients)]
    try:
        yield statuses
    finally:
        ends = True
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def settles(world: World, within: float = LEASE / 3 + 1) -> None:
    """Returns when the store counts as under way what is, which is nothing."""
    until = time.monotonic() + within
    while time.monotonic() < until:
        if world.now() == world.told() == 0:
            return
        await asyncio.sleep(0.1)
    raise AssertionError(f"{world.told()} are told, and {world.now()} are under way")


async def test_never_are_more_under_way_in_very_many_requests(world: World) -> None:
    async with traffic(world, "/slow?for=0.01", clients=100) as statuses:
        while statuses.total() < REQUESTS:  # noqa: ASYNC110  # the traffic counts
            await asyncio.sleep(0.1)
    assert world.most() == MOST
    assert statuses.keys() <= {200, 429}
    assert statuses[200] > REQUESTS / 100
    await settles(world)


@pytest.mark.parametrize("target", ["/slow?for=0.3", "/plain?for=0.3"])
async def test_clients_that_leave_at_once_make_no_room_for_others(
    world: World, target: str
) -> None:
    ports = list(world.workers)
    async with traffic(world, target, clients=20):
        await asyncio.gather(
            *(get(ports[number % WORKERS], target, leaves=0.05) for number in range(1_000))
        )
        await asyncio.sleep(2)
    assert 0 < world.most() <= MOST
    await settles(world)


async def test_a_worker_that_was_killed_frees_its_places_within_the_lease(world: World) -> None:
    async with traffic(world, "/slow?for=1"):
        await asyncio.sleep(2)
        assert world.most() == MOST
        port, process = next(iter(world.workers.items()))
        pid = str(process.pid)
        while not int(world.counts.ask("HGET", "now", pid) or 0):  # noqa: ASYNC110  # of a process
            await asyncio.sleep(0.01)
        process.kill()
        process.wait()
        # Its endpoints are gone, and count for the limiter until its lease is over.
        world.counts.ask("HDEL", "now", pid)
        world.most()
        await asyncio.sleep(LEASE + 2)
        assert world.most() == MOST
        for _ in range(30):
            await asyncio.sleep(0.1)
            assert world.now() <= MOST
    assert world.most() == MOST
    del world.workers[port]
    await settles(world)


async def test_a_worker_that_was_stopped_finds_its_places_taken_and_admits_nobody_else(
    world: World,
) -> None:
    process = next(iter(world.workers.values()))
    async with traffic(world, "/slow?for=1", clients=60):
        await asyncio.sleep(2)
        process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(15)
        process.send_signal(signal.SIGCONT)
        await asyncio.sleep(LEASE / 3)
        assert world.most() <= 2 * MOST
        await asyncio.sleep(2)
        world.most()
        await asyncio.sleep(3)
        assert world.most() <= MOST
    await settles(world)


@pytest.mark.parametrize("how", ["stopped", "killed"])
@pytest.mark.parametrize("world", ["local"], indirect=True)
async def test_while_the_store_is_away_shares_hold_and_then_the_whole_does(
    world: World, how: str
) -> None:
    async with traffic(world, "/slow?for=0.5", clients=60) as statuses:
        await asyncio.sleep(2)
        assert world.most() == MOST
        if how == "stopped":
            world.store.signal(signal.SIGSTOP)
        else:
            world.store.kill()
        await asyncio.sleep(15)
        if how == "stopped":
            world.store.signal(signal.SIGCONT)
        else:
            world.store.start()
        assert world.most() <= 2 * MOST
        await asyncio.sleep(LEASE / 3 + 2)
        assert world.most() <= 2 * MOST
        await asyncio.sleep(5)
        assert world.most() == MOST
        assert statuses[500] == 0
    await settles(world)


async def test_a_store_that_forgets_everything_is_told_in_a_third_of_a_lease(world: World) -> None:
    async with traffic(world, "/slow?for=2", clients=60):
        await asyncio.sleep(3)
        world.store.ask("FLUSHALL")
        await asyncio.sleep(LEASE / 3 + 1)
        assert world.most() <= 2 * MOST
        await asyncio.sleep(3)
        world.most()
        await asyncio.sleep(5)
        assert world.most() == MOST
    await settles(world)


async def test_streams_hold_their_places_to_the_last_byte(world: World) -> None:
    ports = list(world.workers)
    streams = [
        asyncio.create_task(get(ports[number % WORKERS], "/stream?for=30"))
        for number in range(MOST)
    ]
    while world.now() < MOST:  # noqa: ASYNC110  # of other processes
        await asyncio.sleep(0.05)
    until = time.monotonic() + 28
    while time.monotonic() < until:
        assert await get(ports[0], "/slow?for=0") == 429
        await asyncio.sleep(0.5)
    assert set(await asyncio.gather(*streams)) == {200}
    assert world.most() == MOST
    await settles(world)


async def test_a_loop_that_is_held_up_loses_and_doubles_nothing(world: World) -> None:
    ports = list(world.workers)
    async with traffic(world, "/slow?for=0.5", clients=60):
        await asyncio.sleep(1)
        held_up = 0
        while not held_up:  # it takes a place itself
            held_up = int(await get(ports[0], "/hold-up?for=5") == 200)
        await asyncio.sleep(2)
        assert world.most() == MOST
    await settles(world)
