"""What tests of applications are given: limits off, forgotten, or by a clock moved by hand."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from ratelimit import Check, Limit, MemoryStore, RateLimiter, RateLimitMiddleware, Rule, limit
from ratelimit.testing import START_US, ManualClock, by_hand, disabled, reset
from tests.support.asgi import Inner, ask, limiter, statuses

ROOT: Final = Path(__file__).resolve().parents[2]
DOCUMENT: Final = ROOT / "docs" / "testing.md"


def guarded(limits: RateLimiter | None = None) -> RateLimitMiddleware:
    return RateLimitMiddleware(Inner(), limits or limiter(Rule("api", "1/minute")))


def unguarded() -> Starlette:
    """An application whose one route is limited by the library's own limiter."""

    @limit("1/minute", scope="unguarded")
    async def endpoint(request: Request) -> Response:
        return PlainTextResponse("ok")

    return Starlette(routes=[Route("/", endpoint)])


async def test_while_limits_are_disabled_nothing_is_limited_told_or_counted() -> None:
    limits = limiter(Rule("api", "1/minute"))
    app = guarded(limits)
    with disabled():
        assert await statuses(app, "/", "/", "/") == [200] * 3
        assert "ratelimit" not in (await ask(app)).headers
    assert limits.counts == {}
    assert await statuses(app, "/", "/") == [200, 429]


async def test_the_librarys_own_limiter_is_disabled_as_well() -> None:
    reset()
    app = unguarded()
    with disabled():
        assert await statuses(app, "/", "/") == [200, 200]
    assert await statuses(app, "/", "/") == [200, 429]


async def test_limits_are_back_after_an_exception_and_disabling_nests() -> None:
    app = guarded()
    with pytest.raises(ZeroDivisionError), disabled():
        raise ZeroDivisionError
    with disabled():
        with disabled():
            pass
        assert await statuses(app, "/", "/") == [200, 200]
    assert await statuses(app, "/", "/") == [200, 429]


async def test_a_limiter_is_turned_off_and_on_by_its_own_switch() -> None:
    limits = limiter(Rule("api", "1/minute"))
    limits.enabled = False

    @limit("1/minute", limiter=limits)
    async def endpoint(request: Request) -> Response:
        return PlainTextResponse("ok")

    routed = Starlette(routes=[Route("/", endpoint)])
    apps: list[ASGIApp] = [guarded(limits), routed]
    for each in apps:
        assert await statuses(each, "/", "/") == [200, 200]
    limits.enabled = True
    for each in apps:
        assert await statuses(each, "/", "/") == [200, 429]


@pytest.mark.parametrize(
    ("value", "expected"), [("0", [200, 200]), ("1", [200, 429]), (None, [200, 429])]
)
async def test_the_environment_turns_off_every_limiter_that_is_built_then(
    value: str | None, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RATELIMIT_ENABLED", raising=False)
    if value is not None:
        monkeypatch.setenv("RATELIMIT_ENABLED", value)
    assert await statuses(guarded(), "/", "/") == expected


async def test_a_reset_forgets_every_counter_in_process() -> None:
    reset()
    apps: list[ASGIApp] = [guarded(), guarded(), unguarded()]
    for app in apps:
        assert await statuses(app, "/", "/") == [200, 429]
    reset()
    for app in apps:
        assert await statuses(app, "/", "/") == [200, 429]


def test_a_manual_clock_stands_still_until_it_is_moved() -> None:
    """It gives whole microseconds, moves by seconds or microseconds, and refuses floats."""
    clock = ManualClock()
    assert clock() == clock() == START_US
    clock.advance(1.5, us=3)
    assert clock() == START_US + 1_500_003
    clock.advance(-2)
    assert clock() == START_US - 499_997
    clock.set_us(7)
    assert clock() == 7
    with pytest.raises(TypeError, match=r"^a clock gives whole microseconds, not float$"):
        clock.set_us(1.0)  # type: ignore[arg-type]


async def remaining(store: MemoryStore) -> int:
    (decision,) = await store.decide([Check(Limit("2/minute", algorithm="sliding_log"), "me")])
    return decision.remaining


async def test_a_clock_by_hand_moves_every_store_that_has_no_clock_of_its_own() -> None:
    own = ManualClock()
    before, with_own = MemoryStore(), MemoryStore(clock=own)
    with by_hand() as clock:
        assert clock() == START_US
        meanwhile = MemoryStore()
        for store in (before, meanwhile, with_own):
            assert await remaining(store) == 1
        clock.advance(60)
        assert await remaining(before) == 1
        assert await remaining(meanwhile) == 1
        assert await remaining(with_own) == 0


async def test_a_clock_by_hand_may_be_one_that_is_there_and_forgets_at_both_ends() -> None:
    store = MemoryStore()
    await remaining(store)
    own = ManualClock(time.time_ns() // 1000)
    with by_hand(own) as clock:
        assert clock is own
        assert await remaining(store) == 1
    (decision,) = await store.decide([Check(Limit("2/minute", algorithm="sliding_log"), "me")])
    assert decision.remaining == 1
    assert decision.at_us > START_US


async def test_the_clock_of_the_system_is_back_when_a_test_by_hand_fails() -> None:
    with pytest.raises(ZeroDivisionError), by_hand():
        raise ZeroDivisionError
    assert MemoryStore.clock is None


def test_the_example_of_the_documentation_runs(tmp_path: Path) -> None:
    """With its fixtures from the plugin, in a run of pytest of its own."""
    text = DOCUMENT.read_text(encoding="utf-8")
    files = re.findall(r"^```python\n# (\w+\.py)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert [name for name, _ in files] == ["conftest.py", "app.py", "test_app.py"]
    for name, source in files:
        (tmp_path / name).write_text(source, encoding="utf-8")
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:asyncio", tmp_path],
        cwd=tmp_path,
        env={**clean, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "4 passed" in run.stdout


def test_the_last_example_of_the_documentation_runs() -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)
    names: dict[str, object] = {}
    exec(blocks[-1], names)
    clock = names["clock"]
    assert isinstance(clock, ManualClock)
    assert clock() == START_US + 60_000_000
