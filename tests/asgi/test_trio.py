"""Hypercorn on trio's event loop: the application lives, and limits in process hold."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio.testing

from ratelimit import Check, Decision, MemoryStore, RateLimiter, RateLimitMiddleware, Rule
from tests.support.asgi import ask
from tests.support.servers import free_port, temporary_folder, wait_until

ROOT = Path(__file__).resolve().parents[2]
APP = """
from contextlib import asynccontextmanager
from fastapi import FastAPI
from ratelimit import RateLimiter, RateLimitMiddleware, Rule

limiter = RateLimiter([Rule("all", "3/hour", path="/"), Rule("queue", "20/second", path="/queue",
                       algorithm="leaking_bucket")], store="{store}")
begun = []

@asynccontextmanager
async def lifespan(app):
    begun.append(1)
    yield
    print("the application has ended", flush=True)

app = FastAPI(lifespan=lifespan)
app.add_middleware(RateLimitMiddleware, limiter=limiter)

@app.get("/")
@app.get("/queue")
@app.get("/free")
async def answer():
    return {{"begun": len(begun)}}
"""


def served(store: str) -> tuple[list[int], str]:
    """The statuses of five requests and of two that wait their turn, and what was printed."""
    with temporary_folder() as folder:
        (Path(folder) / "app.py").write_text(APP.format(store=store), encoding="utf-8")
        port = free_port()
        words = [sys.executable, "-m", "hypercorn", "-k", "trio", "-b", f"127.0.0.1:{port}"]
        with subprocess.Popen(
            [*words, "app:app"],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            try:
                with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:

                    def is_up() -> bool:
                        try:
                            return bool(client.get("/free").json() == {"begun": 1})
                        except httpx.TransportError:
                            return False

                    wait_until(is_up, "hypercorn answers", 30)
                    paths = ["/"] * 5 + ["/queue"] * 2
                    statuses = [client.get(path).status_code for path in paths]
            finally:
                process.terminate()
                said, _ = process.communicate(timeout=30)
    return statuses, said


def test_limits_in_process_hold_on_trio() -> None:
    """The lifespan runs, quotas are exact, a leaking bucket waits, and the shutdown is clean."""
    statuses, said = served("memory://")
    assert statuses == [200] * 3 + [429] * 2 + [200] * 2
    assert "the application has ended" in said
    assert "Traceback" not in said
    assert said.count("not-asyncio") == 1


def test_a_store_over_a_network_says_that_it_needs_asyncio() -> None:
    """Requests are answered as the rule says of a store that fails, and the log says why."""
    statuses, said = served(f"redis://127.0.0.1:{free_port()}")
    assert statuses == [200] * 7
    assert "a RedisStore needs the event loop of asyncio or uvloop" in said
    assert "the application has ended" in said
    assert "Traceback" not in said


class Own(MemoryStore):
    """An application's own store, for which one has to wait."""

    async def decide(self, checks: Sequence[Check]) -> tuple[Decision, ...]:
        await trio.lowlevel.checkpoint()
        return await super().decide(checks)


@pytest.mark.parametrize("charge_if", [None, lambda response: response.status_code == 401])
def test_an_exception_gives_a_charge_back_in_a_store_of_ones_own(charge_if: Any) -> None:
    """Although nobody is left then who could wait for it; and what it left is forgotten later."""
    charge = {"on_status": [401], "reset_on": [200]} if charge_if is None else None
    rule = Rule("login", "5/hour", charge=charge, charge_if=charge_if, by="user")
    statuses = iter((401, 0, 0, 200))

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        status = next(statuses)
        if not status:
            raise ZeroDivisionError
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    limiter = RateLimiter([rule], store=Own())
    app = RateLimitMiddleware(inner, limiter)

    async def run() -> list[int]:
        left = []
        for _ in range(4):
            try:
                await ask(app, "/login", "POST", user="alice")
            except ZeroDivisionError:
                await trio.testing.wait_all_tasks_blocked()
            (decision,) = await limiter.peek("login", "alice")
            left.append(decision.remaining)
        return left

    assert trio.run(run) == [4, 4, 4, 5 if charge_if is None else 4]
    assert not limiter._decider._outcomes.open
