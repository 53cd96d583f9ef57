"""Four workers of a real server that are recycled and killed, and the counts of all of them."""

import asyncio
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Final

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.apps import Running, running
from tests.support.servers import Server

RULES: Final = """
version: 1
store: {store}
deadline: 10s
rules:
  - name: a
    match: {{path: /counted}}
    limit: 100000000/day
"""
FIELD: Final = '["ratelimit.requests", "a", "allowed", "enforce"]'


@pytest.fixture
def app(redis_server: Server) -> Iterator[Running]:
    redis_server.command("FLUSHALL")
    rules = RULES.format(store=redis_server.url)
    made = ("tests.support.measured:make", "--factory")
    with running(rules, workers=4, app=made) as started:
        yield started


class Traffic:
    """Clients that ask as long as they are let, with a connection for each request."""

    def __init__(self, app: Running) -> None:
        self.answers = Counter[int]()
        """Requests that were answered, by the worker that answered."""
        self.unanswered = 0
        self._app = app
        limits = httpx.Limits(max_keepalive_connections=0)
        self._client = httpx.AsyncClient(base_url=app.url, limits=limits, timeout=30)

    async def ask(self, times: int = 1) -> None:
        for _ in range(times):
            try:
                answer = await self._client.get("/counted")
            except httpx.TransportError:  # its worker went before it had read the request
                self.unanswered += 1
            else:
                assert answer.status_code == 200
                self.answers[int(answer.headers["x-worker"])] += 1

    async def scraped(self) -> float | None:
        """The requests that a worker shows, whichever is asked; None where it shows none."""
        try:
            text = (await self._client.get("/metrics/")).text
        except httpx.TransportError:
            return None
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name == "ratelimit_requests_total":
                    assert sample.labels == {"rule": "a", "result": "allowed", "mode": "enforce"}
                    return float(sample.value)
        return None

    async def until_shown(self, total: int) -> None:
        """Returns when a worker shows at least so many."""
        async with asyncio.timeout(30):
            while (await self.scraped() or 0) < total:
                pass

    @asynccontextmanager
    async def flowing(self, clients: int = 2) -> AsyncIterator[None]:
        """Meanwhile clients ask, one request after the other."""
        over = asyncio.Event()

        async def go_on() -> None:
            while not over.is_set():
                await self.ask()

        async with asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(go_on())
            try:
                yield
            finally:
                over.set()

    async def recycle(self, times: int) -> set[int]:
        """Ends workers one after the other, each once it has answered something; says which."""
        ended: set[int] = set()
        async with asyncio.timeout(60 + 10 * times):
            while len(ended) < times:
                for worker in self.answers.keys() - ended:
                    os.kill(worker, signal.SIGTERM)
                    ended.add(worker)
                    break
                await self.ask()
        return ended

    async def aclose(self) -> None:
        await self._client.aclose()


@pytest.fixture
async def traffic(app: Running) -> AsyncIterator[Traffic]:
    made = Traffic(app)
    yield made
    await made.aclose()


def stored(server: Server) -> int:
    """What the store has of all workers together."""
    return int(server.ask("HGET", "rl:{metrics}:totals", FIELD) or 0)


async def end(app: Running) -> None:
    """Ends the server as its user would."""
    app.process.terminate()
    await asyncio.to_thread(app.process.wait, 30)


@pytest.mark.parametrize("times", [6, pytest.param(100, marks=pytest.mark.slow)])
async def test_workers_that_are_recycled_under_traffic_lose_no_request(
    times: int, app: Running, traffic: Traffic, redis_server: Server
) -> None:
    async with traffic.flowing():
        ended = await traffic.recycle(times)
    await traffic.until_shown(traffic.answers.total())
    await end(app)
    assert stored(redis_server) == traffic.answers.total(), traffic.unanswered
    log = app.log()
    assert all(f"Finished server process [{worker}]" in log for worker in ended)
    assert "Traceback" not in log


async def test_a_worker_that_is_killed_loses_what_it_counted_since_its_last_addition(
    app: Running, traffic: Traffic, redis_server: Server
) -> None:
    await traffic.ask(200)
    await traffic.until_shown(200)
    added = traffic.answers.copy()
    await traffic.ask(60)
    ((victim, lost),) = (traffic.answers - added).most_common(1)
    os.kill(victim, signal.SIGKILL)
    await traffic.ask(40)
    await end(app)
    sent = traffic.answers.total()
    assert sent - lost <= stored(redis_server) <= sent
