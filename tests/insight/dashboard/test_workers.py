"""The live page of several workers, and those who look at it."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from ratelimit import (
    Dashboard,
    MemoryStore,
    RateLimiter,
    RateLimitMiddleware,
    RedisStore,
    Rule,
    StoreUnavailable,
    limit,
)
from ratelimit.insight.dashboard import app as module
from ratelimit.insight.dashboard.telling import numbers_of, rules_of
from ratelimit.insight.metrics.prometheus import PrometheusMetrics
from tests.insight.dashboard.test_app import Reader, events
from tests.insight.dashboard.test_browser import application, served
from tests.support.asgi import Counting, Inner, ask
from tests.support.asgi import limiter as limiting
from tests.support.servers import Server

HARD = Rule("hard", "3/hour", algorithm="sliding_log")
SOFT = Rule("soft", "2/hour", algorithm="sliding_log", mode="shadow")


@asynccontextmanager
async def worker(server: Server) -> AsyncIterator[tuple[RateLimiter, Dashboard]]:
    ours = RateLimiter([HARD, SOFT], store=RedisStore(server.url, deadline=10))
    async with ours:
        yield ours, Dashboard(ours, allow=lambda _: True)


async def told(page: Dashboard, **wanted: Any) -> dict[str, Any]:
    """The numbers once they are as wanted, or whatever they are after a while."""
    reader = Reader(page)
    for _ in range(2_000):
        numbers: dict[str, Any] = events(await reader.next())["numbers"]
        if all(numbers[name] == value for name, value in wanted.items()):
            break
    await reader.leave()
    return numbers


# --- whose numbers they are ----------------------------------------------------------------------


async def test_the_page_of_any_worker_shows_what_all_workers_counted(
    redis_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "EVERY", 0.01)
    redis_server.command("FLUSHALL")
    async with worker(redis_server) as (one, first), worker(redis_server) as (two, second):
        for ours, times in ((one, 4), (two, 5)):
            app = RateLimitMiddleware(Inner(), limiter=ours)
            for _ in range(times):
                await ask(app)
        for page in (first, second):
            scope = "all 2 workers, since the store was empty"
            rules = {"hard": {"passed": 3, "refused": 6}, "soft": {"passed": 2, "would": 7}}
            numbers = await told(page, scope=scope, rules=rules)
            assert (numbers["scope"], numbers["rules"]) == (scope, rules)
            assert numbers["all"] == {"passed": 5, "refused": 6, "would": 7}
            assert numbers["shared"] is True


async def test_a_page_beside_shared_metrics_adds_nothing_twice(redis_server: Server) -> None:
    redis_server.command("FLUSHALL")
    ours = RateLimiter([HARD], store=RedisStore(redis_server.url, deadline=10))
    async with ours:
        PrometheusMetrics(ours, shared=True)
        page, other = Dashboard(ours, allow=lambda _: True), Dashboard(ours, allow=lambda _: True)
        assert len(ours.companions) == 1
        await ask(RateLimitMiddleware(Inner(), limiter=ours))
        rules = {"hard": {"passed": 1}}
        for each in (page, other):
            numbers = await told(each, shared=True, rules=rules)
            assert (numbers["shared"], numbers["rules"]) == (True, rules)


async def test_a_page_that_is_closed_gathers_nothing(redis_server: Server) -> None:
    async with RateLimiter([HARD], store=RedisStore(redis_server.url)) as ours:
        Dashboard(ours)
        assert ours.companions == ()


async def test_a_store_that_takes_no_counts_leaves_the_worker_its_own() -> None:
    class Away(Counting):
        async def add_counts(
            self, worker: str, serial: int, counts: Mapping[str, int]
        ) -> dict[str, int]:
            raise StoreUnavailable("away")

    async with limiting(HARD, store=Away()) as ours:
        page = Dashboard(ours, allow=lambda _: True)
        await ask(RateLimitMiddleware(Inner(), limiter=ours))
        numbers = await told(page)
    assert (numbers["rules"], numbers["shared"]) == ({"hard": {"passed": 1}}, False)
    assert numbers["scope"].startswith("this worker alone, since it began: those of all ")


def test_the_page_says_what_counts_alone() -> None:
    class Own:
        """A store of the application's."""

        decide = reset = aclose = MemoryStore.aclose

    stores: list[Any] = [MemoryStore(), Own()]
    scopes = [numbers_of(RateLimiter([HARD], store=each), None)["scope"] for each in stores]
    assert scopes == [
        "this process, since it began: counters in memory are its own",
        "this worker alone, since it began: its store gathers no totals",
    ]


async def test_a_request_that_waited_has_passed() -> None:
    ours = limiting(Rule("slow", "100/second", algorithm="leaking_bucket"))
    app = RateLimitMiddleware(Inner(), limiter=ours)
    await asyncio.gather(*(ask(app) for _ in range(3)))
    assert ours.counts["slow", "waited"] > 0
    assert numbers_of(ours, None)["rules"] == {"slow": {"passed": 3}}


async def test_a_limit_on_a_route_is_shown_under_the_name_that_clients_see() -> None:
    @limit("2/minute")
    async def report(_: Request) -> Response:
        return PlainTextResponse("ready")

    ours = RateLimiter()
    app = Starlette(routes=[Route("/report", report)])
    app.add_middleware(RateLimitMiddleware, limiter=ours)
    async with app.router.lifespan_context(app):
        await ask(app, "/report")
    assert [rule["name"] for rule in rules_of(ours)["rules"]] == ["report"]


# --- those who look ------------------------------------------------------------------------------


async def until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not holds():  # noqa: ASYNC110  # of a server in a thread of its own
            await asyncio.sleep(0.001)


def _opened(port: int) -> socket.socket:
    """A connection that asked for the stream, and reads nothing."""
    connection = socket.create_connection(("127.0.0.1", port))
    connection.sendall(b"GET /limits/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
    return connection


async def test_two_hundred_who_never_read_cost_the_others_nothing() -> None:
    app, _ = application(MemoryStore())
    page: Dashboard = app.routes[1].app  # type: ignore[attr-defined]
    with served(app) as url, contextlib.ExitStack() as stack:
        async with httpx.AsyncClient(base_url=url) as client:
            port = client.base_url.port
            assert port is not None
            crowd = [stack.enter_context(_opened(port)) for _ in range(200)]
            while True:  # until all of them have asked
                full = await client.get("/limits/events")
                assert (await client.get("/home")).status_code in {200, 429}
                if full.status_code == 503:
                    break
            assert page._listening == module.MOST_LISTENERS
            for each in crowd:
                each.close()
            await until(lambda: not page._listening)
            async with client.stream("GET", "/limits/events") as stream:
                lines = stream.aiter_lines()
                assert await anext(lines) == "retry: 1000"


async def test_who_never_reads_keeps_a_place_no_longer_than_a_stream_lasts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "EVERY", 0.01)
    monkeypatch.setattr(module, "LASTS", 0.2)
    app, _ = application(MemoryStore())
    page: Dashboard = app.routes[1].app  # type: ignore[attr-defined]
    with served(app) as url, contextlib.ExitStack() as stack:
        port = int(url.rpartition(":")[2])
        for _ in range(module.MOST_LISTENERS):
            stack.enter_context(_opened(port))
        await until(lambda: page._listening == module.MOST_LISTENERS)
        await until(lambda: not page._listening)
