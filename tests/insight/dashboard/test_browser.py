"""The live page in a real browser, before a real server."""

import asyncio
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route

from ratelimit import Dashboard, MemoryStore, RateLimiter, RateLimitMiddleware, Rule
from ratelimit.insight.dashboard import app as dashboard
from tests.support.browser import Tab, browsing, chromium

ROOT: Final = Path(__file__).resolve().parents[3]
HOSTILE: Final = "<img src=x onerror=alert(1)><script>alert(2)</script>"


class Gathering(MemoryStore):
    """A store whose gathered names another program wrote."""

    async def denials(self, count: int = 10) -> list[tuple[str, int]]:
        return [(f"{HOSTILE.replace(' ', '/')} client={HOSTILE}", 9)]


def application(store: MemoryStore, *, is_open: bool = True) -> tuple[Starlette, RateLimiter]:
    async def home(_: Request) -> Response:
        return PlainTextResponse("ok")

    rules = [
        Rule("hard", "20/second", path="/home", algorithm="sliding_log"),
        Rule("soft", "5/second", path="/home", algorithm="sliding_log", mode="shadow"),
    ]
    limiter = RateLimiter(rules, store=store)
    page = Mount("/limits", Dashboard(limiter, allow=lambda _: is_open))
    app = Starlette(routes=[Route("/home", home), page])
    app.add_middleware(RateLimitMiddleware, limiter=limiter)
    return app, limiter


@contextmanager
def served(app: Any) -> Iterator[str]:
    """The address of a uvicorn that serves an application in a thread."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=5))
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()
    assert not thread.is_alive()


@pytest.fixture
def browser() -> str:
    found = chromium()
    if found is None:
        pytest.skip("NO CHROMIUM HERE: the page was NOT TRIED in a browser (name one by CHROMIUM)")
    return found


async def keep_asking(url: str) -> None:
    async with httpx.AsyncClient() as client:
        while True:
            await asyncio.gather(*(client.get(f"{url}/home") for _ in range(15)))
            await asyncio.sleep(0.2)


@pytest.mark.slow
async def test_in_a_browser_the_values_move_and_nothing_breaks_the_policy(browser: str) -> None:
    app, _ = application(MemoryStore())
    with served(app) as url:
        traffic = asyncio.ensure_future(keep_asking(url))
        async with browsing(browser) as tab:
            await tab.open(f"{url}/limits/")
            cell = "document.querySelector('td.passed')?.textContent"
            total = f"Number({cell}.split(' ')[0].replace(',', ''))"
            first = await tab.until(f"{cell} && {total}")
            await tab.until(f"{total} > {first}")
            await tab.until("Number(document.getElementById('rate-refused').textContent) > 0")
            await tab.until("Number(document.getElementById('rate-would').textContent) > 0")
            points = "document.querySelector('#plot polyline.passed').getAttribute('points')"
            seen = await tab.until(points)
            await tab.until(f"{points} !== {seen!r}")
            await tab.until("document.getElementById('denied').textContent.includes('127.0.0.1')")
            await tab.value("document.getElementById('value-0').value = '127.0.0.1'")
            await tab.value("document.getElementById('ask').requestSubmit()")
            answer = await tab.until(
                "document.getElementById('answer').textContent.includes('left of')"
                " && document.getElementById('answer').textContent"
            )
            assert "20/second" in answer
            assert await tab.value("location.pathname + location.search") == "/limits/"
            # On a phone the page itself is not wider than the glass.
            await tab.do("Emulation.setDeviceMetricsOverride", width=360, height=640,
                         deviceScaleFactor=2, mobile=True)  # fmt: skip
            assert await tab.value("document.documentElement.scrollWidth") <= 360
            assert tab.complaints == []
        traffic.cancel()
        await asyncio.gather(traffic, return_exceptions=True)


@pytest.mark.slow
async def test_in_a_browser_a_hostile_identity_is_text_and_runs_nothing(browser: str) -> None:
    app, limiter = application(Gathering())
    limiter.breaker.last_error = HOSTILE  # a server's own words
    with served(app) as url:
        async with browsing(browser) as tab:
            await tab.open(f"{url}/limits/")
            shown = await tab.until(
                "document.getElementById('denied').textContent.includes('onerror')"
                " && document.getElementById('denied').textContent"
            )
            assert "<script>" in shown
            assert "<img" in await tab.until("document.getElementById('facts').textContent")
            await tab.value("document.getElementById('value-0').value = '<img src=x>'")
            await tab.value("document.getElementById('ask').requestSubmit()")
            await tab.until("document.getElementById('answer').textContent.includes('<img')")
            assert await tab.value("document.querySelectorAll('img, main script').length") == 0
            assert tab.dialogs == 0
            # The policy is the second wall: markup is not even made of text.
            assert await tab.value(
                "(() => { try { document.body.innerHTML = '<b>x</b>'; return false }"
                " catch (error) { return error instanceof TypeError } })()"
            )


@pytest.mark.slow
async def test_in_a_browser_a_stranger_sees_nothing(browser: str) -> None:
    app, _ = application(MemoryStore(), is_open=False)
    with served(app) as url:
        async with browsing(browser) as tab:
            await tab.open(f"{url}/limits/")
            assert await tab.until("document.body?.textContent") == "Not Found"


SERVER: Final = """
import sys, uvicorn
from ratelimit import MemoryStore
from tests.insight.dashboard.test_browser import application
uvicorn.run(application(MemoryStore())[0], port=int(sys.argv[1]), log_level="error")
"""


@pytest.mark.slow
def test_a_server_that_is_told_to_end_does_not_wait_for_open_pages() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, "-c", SERVER, str(port)], cwd=ROOT)
    try:
        for _ in range(200):
            try:
                httpx.get(f"http://127.0.0.1:{port}/home")
                break
            except httpx.TransportError:
                time.sleep(0.1)
        with httpx.stream("GET", f"http://127.0.0.1:{port}/limits/events") as stream:
            lines = stream.iter_lines()
            assert next(lines) == "retry: 1000"
            process.terminate()
            # uvicorn has no time limit here: the stream ends by itself, long before its minute.
            process.wait(30)
            assert list(lines)
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def axe() -> str:
    """The source of axe-core, which a wheel carries."""
    found = find_spec("axe_core_python")
    if found is None or found.origin is None:
        pytest.skip("NO AXE-CORE HERE: pip install --group test")
    return Path(found.origin).with_name("axe.min.js").read_text("utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_in_a_browser_axe_core_finds_nothing_to_object_to(
    browser: str, axe: str, scheme: str
) -> None:
    app, _ = application(MemoryStore())
    with served(app) as url:
        traffic = asyncio.ensure_future(keep_asking(url))
        async with browsing(browser) as tab:
            await tab.do("Emulation.setEmulatedMedia",
                         features=[{"name": "prefers-color-scheme", "value": scheme}])  # fmt: skip
            # For its own script; the page's is held to the policy by the tests above.
            await tab.do("Page.setBypassCSP", enabled=True)
            await tab.open(f"{url}/limits/")
            await tab.until("document.getElementById('denied').textContent.includes('127.0.0.1')")
            await tab.value("document.getElementById('value-0').value = '127.0.0.1'")
            await tab.value("document.getElementById('ask').requestSubmit()")
            await tab.until("!document.getElementById('counters-box').hidden")
            await tab.value(f"{axe}; 0")
            found = await tab.value(
                "axe.run().then((found) => ({passes: found.passes.length, violations: "
                "found.violations.map((each) => [each.id, each.nodes.map((node) => node.html)])}))"
            )
            assert found["violations"] == []
            assert found["passes"] > 30
        traffic.cancel()
        await asyncio.gather(traffic, return_exceptions=True)


async def held(tab: Tab) -> dict[str, int]:
    """What the page holds once its garbage was collected: nodes, listeners, and bytes."""
    for _ in range(3):
        await tab.do("HeapProfiler.collectGarbage")
    counted = await tab.do("Memory.getDOMCounters")
    heap = await tab.do("Runtime.getHeapUsage")
    return {"nodes": counted["nodes"], "listeners": counted["jsEventListeners"],
            "bytes": int(heap["usedSize"])}  # fmt: skip


@pytest.mark.slow
async def test_in_a_browser_a_minute_of_snapshots_leaves_nothing_behind(
    browser: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twenty snapshots a second, and a new stream every five."""
    monkeypatch.setattr(dashboard, "EVERY", 0.05)
    monkeypatch.setattr(dashboard, "LASTS", 5.0)
    app, _ = application(MemoryStore())
    with served(app) as url:
        traffic = asyncio.ensure_future(keep_asking(url))
        async with browsing(browser) as tab:
            await tab.open(f"{url}/limits/")
            points = "document.querySelector('#plot polyline').getAttribute('points') || ''"
            await tab.until(f"({points}).split(' ').length === 120", within=60)
            before = await held(tab)
            seen = "performance.getEntriesByName(new URL('events', location).href).length"
            await tab.value(f"window.streams = {seen}")
            await asyncio.sleep(60)
            after = await held(tab)
            assert await tab.value(f"{seen} - window.streams") > 3
            assert tab.complaints == []
        traffic.cancel()
        await asyncio.gather(traffic, return_exceptions=True)
    assert after["nodes"] <= before["nodes"] + 20, (before, after)
    assert after["listeners"] <= before["listeners"] + 5, (before, after)
    assert after["bytes"] <= before["bytes"] + 300_000, (before, after)
