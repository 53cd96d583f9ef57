"""Fixtures: a clock that is moved by hand, and every store that this machine can run.

A store is one entry of STORES: its name, and a function from pytest's request and the clock to the
store. A server is started by a session fixture that the entry asks the request for by name.
"""

import asyncio
import gc
import importlib
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress

import pytest
import pytest_asyncio

from ratelimit.stores import MemoryStore, Store
from ratelimit.stores.redis import RedisStore
from ratelimit.testing import MakeStore, ManualClock
from tests.support.servers import Server, binaries, serving

with suppress(ImportError):  # before fakeredis, whose Lua would take the place of this one
    importlib.import_module("lupa.luajit21")

SLOW = os.environ.get("RATELIMIT_TEST_ALL") == "1"

OpenStore = Callable[[pytest.FixtureRequest, ManualClock], Store]

STORES: dict[str, OpenStore] = {
    "memory-luajit": lambda request, clock: MemoryStore(clock=clock, runtime="luajit21"),
    "memory-lua51": lambda request, clock: MemoryStore(clock=clock, runtime="lua51"),
    "redis": lambda request, clock: open_redis(request.getfixturevalue("redis_server"), clock),
}


def open_redis(server: Server, clock: ManualClock) -> Store:
    """A store on an empty server, with a deadline that a busy machine keeps."""
    server.command("FLUSHALL")
    return RedisStore(server.url, clock=clock, deadline=10, deny_cache=0)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One more than there are processors: tests wait for servers and real time as often as not."""
    return (os.cpu_count() or 1) + 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not SLOW:
        skip = pytest.mark.skip(reason="slow: NOT RUN here; `make test-all` runs it")
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(skip)


def pytest_collection_finish() -> None:
    """Hides what is there for good, some 7,000 tests, from the collector and who asks it.

    A misplaced limit is found by going through all objects, which takes 0.1 s with them and not
    a tenth of that without.
    """
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish() -> None:
    """Shows it again: Hypothesis, imported at the end, asks who holds what."""
    gc.unfreeze()


@pytest.fixture(scope="session")
def redis_server() -> Iterator[Server]:
    """One server for the whole run; its tests use keys of their own, or flush it."""
    with serving(binaries()[0].path) as server:
        yield server


@pytest_asyncio.fixture(autouse=True)
async def end_what_a_test_leaves_running() -> AsyncIterator[None]:
    """Ends the background of limiters that a test has not closed: all tests share one loop."""
    before = asyncio.all_tasks()
    yield
    left = [
        each for each in asyncio.all_tasks() - before if each.get_name().startswith("ratelimit ")
    ]
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)


@pytest.fixture
def clock() -> ManualClock:
    """A clock that stands still until a test moves it."""
    return ManualClock()


@pytest.fixture(params=list(STORES))
def make_store(request: pytest.FixtureRequest) -> MakeStore:
    """A function from a clock to a fresh store, for each kind of store there is."""
    return lambda clock: STORES[request.param](request, clock)


@pytest_asyncio.fixture
async def store(make_store: MakeStore, clock: ManualClock) -> AsyncIterator[Store]:
    """A fresh store of each kind that decides by `clock`."""
    opened = make_store(clock)
    yield opened
    await opened.aclose()
