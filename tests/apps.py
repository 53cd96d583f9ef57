"""A real application under a real uvicorn, and real HTTP load, for tests of both together.

Run as a module's application (``tests.apps:app``) it is limited by the rule file that RULES names.
"""

import asyncio
import contextlib
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

import httpx
from fastapi import FastAPI

from ratelimit import RateLimiter, RateLimitMiddleware, limit

ROOT: Final = Path(__file__).resolve().parent.parent


def _limited_app(rules: str) -> FastAPI:
    app = FastAPI()
    limiter = RateLimiter.from_file(rules)
    app.add_middleware(RateLimitMiddleware, limiter=limiter)

    @app.get("/free")
    async def free() -> dict[str, int]:
        return {"pid": os.getpid()}

    @app.get("/decorated")
    @limit("1000000/day")
    async def decorated() -> dict[str, int]:
        return {"pid": os.getpid()}

    @app.get("/{path:path}")
    async def anything(path: str) -> dict[str, Any]:
        return {"path": path, "pid": os.getpid()}

    return app


if "RULES" in os.environ:
    app = _limited_app(os.environ["RULES"])


class Running(NamedTuple):
    """An application that serves: where, and what it has logged so far."""

    url: str
    process: subprocess.Popen[bytes]
    log_file: Path

    def log(self) -> str:
        """Everything that its processes have written, without colours."""
        return re.sub("\x1b\\[[0-9;]*m", "", self.log_file.read_text(errors="replace"))


@contextlib.contextmanager
def running(rules: str, *, workers: int = 1) -> Iterator[Running]:
    """The application limited by these rules, on a free port; ended gracefully afterwards."""
    with tempfile.TemporaryDirectory(prefix="ratelimit-test-") as folder:
        file = Path(folder, "rules.yaml")
        file.write_text(rules)
        command = [sys.executable, "-m", "uvicorn", "tests.apps:app", "--port", "0"]
        command += ["--workers", str(workers), "--no-access-log"]
        log_file = Path(folder, "log")
        with log_file.open("wb") as log:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, "RULES": str(file), "PYTHONPATH": str(ROOT)},
                stdout=log,
                stderr=log,
            )
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
        time.sleep(0.02)
    raise RuntimeError(f"the application did not start:\n{log_file.read_text(errors='replace')}")


class Answer(NamedTuple):
    """One request of a load: when it was sent (monotonic seconds), its status, how long it took."""

    sent: float
    status: int
    took: float


class Load:
    """Clients that ask one path over and over until they are told to stop."""

    def __init__(self, url: str, clients: int = 8, pause: float = 0.01) -> None:
        self.url = url
        self.clients = clients
        self.pause = pause
        self.answers: list[Answer] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._client = httpx.AsyncClient(timeout=10)
        self._tasks = [asyncio.create_task(self._ask()) for _ in range(self.clients)]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        results = await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._client.aclose()
        for result in results:
            if isinstance(result, Exception):
                raise result

    async def _ask(self) -> None:
        while True:
            sent = time.monotonic()
            response = await self._client.get(self.url)
            self.answers.append(Answer(sent, response.status_code, time.monotonic() - sent))
            await asyncio.sleep(self.pause)

    def statuses(self, since: float = 0.0, until: float = float("inf")) -> list[int]:
        """The statuses of what was sent in a span of time."""
        return [each.status for each in self.answers if since <= each.sent < until]
