"""Many WebSockets, all flooded: memory is bounded, and comes back."""

import asyncio
import gc
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from ratelimit import MemoryStore, RateLimiter, RateLimitMiddleware, Rule
from ratelimit.rules.sockets import MessagesOptions, OnExcess
from tests.support.raw import SERVERS, Raw, Serving, served
from tests.support.servers import wait_until
from tests.support.sockets import Connection, Listener

pytestmark = pytest.mark.slow

IN_PROCESS: Final = 10_000
REAL: Final = 500
MOST_OF_ONE: Final = 1_500_000
"""Bytes that a flooded connection may take of a server's memory; most take a tenth."""


class Distant(MemoryStore):
    """A store from which units are taken ahead, as from one that is not in this process."""


@pytest.mark.parametrize("on_excess", ["close", "drop", "pause"])
@pytest.mark.parametrize("store", [MemoryStore, Distant])
async def test_of_ten_thousand_connections_nothing_is_left(
    on_excess: OnExcess, store: type[MemoryStore], say: Callable[[str], None]
) -> None:
    inner = Listener()
    # All at once, of which 5 pass, however slowly they come; or all, one after the other.
    messages = f"{'100/second' if on_excess == 'pause' else '1/hour'} burst 5"
    own: MessagesOptions = {"messages": messages, "bytes": "1000/second"}
    rule = Rule("chat", "1000000/second", websocket={**own, "on_excess": on_excess})
    limiter = RateLimiter([rule], store=store())
    app = RateLimitMiddleware(inner, limiter)
    gc.collect()
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    connections = [
        Connection(app, client=(f"10.0.{n // 250}.{n % 250}", 1)) for n in range(IN_PROCESS)
    ]
    tasks = [each.begin() for each in connections]
    for each in connections:
        each.sends(*(f"{number}" for number in range(10)))
    await connections[0].settled()
    full, _ = tracemalloc.get_traced_memory()
    for each in connections:
        each.leaves()
    await asyncio.wait(tasks)
    heard, leases = len(inner.heard), len(limiter.sockets.leases)
    if on_excess == "pause":
        assert heard == 10 * IN_PROCESS
    else:
        assert 5 * IN_PROCESS <= heard < 10 * IN_PROCESS
    del connections, each, tasks
    inner.heard.clear()
    inner.ends.clear()
    gc.collect()
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    buckets = limiter.sockets.connections
    say(
        f"{on_excess}, {store.__name__}: {(full - before) / IN_PROCESS:.0f} bytes a "
        f"connection, {(after - before) / IN_PROCESS:.0f} afterwards"
    )
    assert (leases, 0 if buckets is None else buckets.statistics().keys) == (0, 0)
    # What stays are the counters in process, of whoever has sent, and the caches of addresses.
    assert after - before < 0.2 * (full - before)
    await limiter.aclose()


def memory(server: Serving) -> tuple[int, int]:
    """The bytes that the application's process has, and how many connections are open."""
    with Raw(server.port, "/ready") as raw:
        raw.say("how much?")
        answer = raw.hear()
        assert isinstance(answer, str)
        resident, connections = map(int, answer.split())
        return resident, connections - 1


@pytest.mark.parametrize("name", SERVERS)
def test_of_five_hundred_flooded_sockets_memory_is_bounded_and_comes_back(
    name: str, tmp_path: Path, say: Callable[[str], None]
) -> None:
    path = "/drop" if name == "daphne" else "/pause"  # since daphne reads on in a pause
    with served(name, tmp_path) as server:
        peaks = []
        before, _ = memory(server)
        for wave in range(2):
            raws = [
                Raw(server.port, path, f"{wave}-{number}", small=True) for number in range(REAL)
            ]
            for raw in raws:
                raw.flood(200_000, idle=0.02)
            peak, connections = memory(server)
            assert connections == REAL
            peaks.append(peak)
            for raw in raws:
                raw.socket.close()
            wait_until(lambda: memory(server)[1] == 0, "all of them ended", 60)
        words = ", ".join(f"{(peak - before) / REAL / 1000:.0f}" for peak in peaks)
        say(f"{name}: {words} kB a connection in two waves")
        assert peaks[0] - before < REAL * MOST_OF_ONE
        assert peaks[1] < 1.2 * peaks[0]
