"""A real application under a real uvicorn, which tells of each answer how it came to be.

Run as a module's application (``tests.support.apps:app``) it is limited by the rule file that
RULES names. CLOCK may name a file of eight bytes: microseconds (little-endian) that the store's
clock is off.
"""

import asyncio
import contextlib
import mmap
import os
import random
import re
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Final, NamedTuple

from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ratelimit import RateLimiter, RateLimitMiddleware, RedisStore, RuleSet, limit
from ratelimit.limiter.limiter import Admission

ROOT: Final = Path(__file__).resolve().parents[2]


_degraded: ContextVar[bool] = ContextVar("degraded", default=False)


class _Limiter(RateLimiter):
    """One that remembers, for `Telling`, whether the store decided."""

    async def admit(self, scope: Mapping[str, Any], app: Any = None) -> Admission:
        admission = await super().admit(scope, app)
        refusal = admission.refusal
        _degraded.set(bool(admission.degraded) or (refusal is not None and refusal.status == 503))
        return admission


class Telling:
    """Adds to every response where it is from, and what decided.

    ``x-worker`` is the process, ``x-breaker`` what the breaker was when the request came, and
    ``x-degraded`` is 1 if something else than the store decided.
    """

    def __init__(self, app: ASGIApp, limiter: RateLimiter) -> None:
        self.app = app
        self.limiter = limiter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        breaker = self.limiter.breaker.state

        async def send_telling(message: Message) -> None:
            if message["type"] == "http.response.start":
                told = {"worker": os.getpid(), "breaker": breaker, "degraded": int(_degraded.get())}
                fields = [(f"x-{name}".encode(), str(it).encode()) for name, it in told.items()]
                message = {**message, "headers": [*message["headers"], *fields]}
            await send(message)

        await self.app(scope, receive, send_telling)


def _limited_app(rules: str, clock: str | None) -> FastAPI:
    app = FastAPI()
    rule_set = RuleSet.load(rules)
    store = None
    if clock is not None:
        deadline = rule_set.deadline_us / 1_000_000
        store = RedisStore(rule_set.store, clock=_clock(clock), deadline=deadline)
    limiter = _Limiter(rule_set, store=store)
    app.add_middleware(RateLimitMiddleware, limiter=limiter)
    app.add_middleware(Telling, limiter=limiter)

    @app.get("/free")
    async def free() -> dict[str, int]:
        return {"pid": os.getpid()}

    @app.get("/state")
    async def state() -> dict[str, Any]:
        """What this worker holds, and what its limiter says of itself."""
        tasks = len(asyncio.all_tasks())
        return {"pid": os.getpid(), "tasks": tasks, "files": _files(), "health": limiter.health()}

    @app.get("/cancel")
    async def cancel(path: str, count: int, seconds: float) -> int:
        """Decisions at an even pace, each for a key of its own and cancelled within 1 ms."""
        return await _cancel(limiter, path, count, seconds)

    @app.get("/decorated")
    @limit("1000000/day")
    async def decorated() -> dict[str, int]:
        return {"pid": os.getpid()}

    @app.get("/{path:path}")
    async def anything(path: str) -> dict[str, Any]:
        return {"path": path, "pid": os.getpid()}

    return app


async def _cancel(limiter: RateLimiter, path: str, count: int, seconds: float) -> int:
    """How many were cancelled before they were decided."""
    loop = asyncio.get_running_loop()
    start = loop.time()
    tasks = set()
    cancelled = 0

    def count_if_cancelled(task: asyncio.Task[Admission]) -> None:
        nonlocal cancelled
        tasks.discard(task)
        cancelled += task.cancelled()

    for number in range(count):
        await asyncio.sleep(start + number * seconds / count - loop.time())
        headers = [(b"x-key", f"cancelled-{number}".encode())]
        scope = {"type": "http", "method": "GET", "path": path, "headers": headers}
        task = loop.create_task(limiter.admit(scope))
        tasks.add(task)
        task.add_done_callback(count_if_cancelled)
        loop.call_later(random.uniform(0, 0.001), task.cancel)
    await asyncio.gather(*tasks, return_exceptions=True)
    return cancelled


def _files() -> int:
    """How many file descriptors this process has, where the system tells."""
    folder = Path("/proc/self/fd")
    return len(list(folder.iterdir())) if folder.exists() else 0


def _clock(path: str) -> Callable[[], int]:
    """The system's clock, off by what the file says at the moment."""
    with Path(path).open("rb") as file:
        shared = mmap.mmap(file.fileno(), 8, prot=mmap.PROT_READ)
    return lambda: time.time_ns() // 1000 + int(struct.unpack("<q", shared[:8])[0])


if "RULES" in os.environ:
    app = _limited_app(os.environ["RULES"], os.environ.get("CLOCK"))


class Running(NamedTuple):
    """An application that serves: where, and what it has logged so far."""

    url: str
    process: subprocess.Popen[bytes]
    log_file: Path

    def log(self) -> str:
        """Everything that its processes have written, without colours."""
        return re.sub("\x1b\\[[0-9;]*m", "", self.log_file.read_text(errors="replace"))


@contextlib.contextmanager
def serving_app(
    app: str, folder: Path, *, workers: int = 1, env: Mapping[str, str] | None = None
) -> Iterator[Running]:
    """An application of a folder's, on a free port; ended gracefully afterwards."""
    with tempfile.TemporaryDirectory(prefix="ratelimit-test-") as temporary:
        command = [sys.executable, "-m", "uvicorn", "--app-dir", str(folder), app, "--port", "0"]
        command += ["--workers", str(workers), "--no-access-log"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **(env or {})}
        with _serving(command, environment, Path(temporary, "log"), workers) as served:
            yield served


@contextlib.contextmanager
def running(
    rules: str,
    *,
    workers: int = 1,
    clock: str | None = None,
    app: tuple[str, ...] = ("tests.support.apps:app",),
) -> Iterator[Running]:
    """An application limited by these rules, on a free port; ended gracefully afterwards.

    ``app`` is what uvicorn is told to serve.
    """
    with tempfile.TemporaryDirectory(prefix="ratelimit-test-") as folder:
        file = Path(folder, "rules.yaml")
        file.write_text(rules)
        command = [sys.executable, "-m", "uvicorn", *app, "--port", "0"]
        command += ["--workers", str(workers), "--no-access-log"]
        environment = {
            **os.environ,
            "RULES": str(file),
            "PYTHONPATH": str(ROOT),
            **({"CLOCK": clock} if clock else {}),
        }
        with _serving(command, environment, Path(folder, "log"), workers) as served:
            yield served


@contextlib.contextmanager
def _serving(
    command: list[str], env: Mapping[str, str], log_file: Path, workers: int
) -> Iterator[Running]:
    with log_file.open("wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=log)
    try:
        yield Running(_url(process, log_file, workers), process, log_file)
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _url(process: subprocess.Popen[bytes], log_file: Path, workers: int) -> str:
    """Where it serves, once all its workers do."""
    until = time.monotonic() + 30
    while time.monotonic() < until and process.poll() is None:
        log = re.sub("\x1b\\[[0-9;]*m", "", log_file.read_text(errors="replace"))
        found = re.search(r"running on (http://[0-9.:]+)", log)
        if found and log.count("Application startup complete") == workers:
            return found[1]
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.02)  # one that ends is seen at once
    raise RuntimeError(f"the application did not start:\n{log_file.read_text(errors='replace')}")
