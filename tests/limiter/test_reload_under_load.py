"""A rule file that is rewritten again and again behind a real uvicorn that is kept busy."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ratelimit import RateLimiter, RateLimitMiddleware
from tests.limiter.test_reload import WAYS, RuleFile, until
from tests.support.servers import Server

ROOT: Final = Path(__file__).resolve().parents[2]
QUOTA: Final = 1_500
CLIENTS: Final = 6


def rules(store: str, edited: int, *, mistake: bool = False) -> str:
    """A rule that every version has, and one that each has differently."""
    return f"""
        version: 1
        store: {store}
        deadline: 10s
        rules:
          - name: kept
            by: global
            limit: {QUOTA}/{"dya" if mistake else "day"}
            algorithm: sliding_log
          - name: edited
            limit: {10_000_000 + edited}/hour
    """


def make() -> Starlette:
    """What uvicorn serves, in each of its workers: a limiter that follows the file RULES."""
    limiter = RateLimiter.from_file(os.environ["RULES"], watch=True, sighup=True)

    async def answer(request: Request) -> Response:
        return JSONResponse(limiter.health())

    app = Starlette(routes=[Route("/", answer)])
    app.add_middleware(RateLimitMiddleware, limiter=limiter)
    return app


class Serving:
    """A uvicorn of its own processes."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self._log = log

    def log(self) -> str:
        """What it has written so far."""
        return self._log.read_text(errors="replace")

    def url(self, workers: int) -> str:
        """Where it serves, once all its workers do."""
        until = time.monotonic() + 30
        while time.monotonic() < until and self.process.poll() is None:
            found = re.search(r"running on (http://[0-9.:]+)", self.log())
            if found and self.log().count("Application startup complete") == workers:
                return found[1]
            time.sleep(0.02)
        raise RuntimeError(f"the application did not start:\n{self.log()}")


@contextmanager
def serving(file: RuleFile, workers: int) -> Iterator[tuple[str, Serving]]:
    """Where uvicorn serves `make`; ended as its user would."""
    command = [sys.executable, "-m", "uvicorn", "tests.limiter.test_reload_under_load:make"]
    command += ["--factory", "--port=0", "--no-access-log", f"--workers={workers}"]
    environment = {**os.environ, "RULES": str(file.path), "NO_COLOR": "1"}
    log = file.path.parent.parent / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=out, stderr=out)
    served = Serving(process, log)
    try:
        yield served.url(workers), served
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture
def file(tmp_path: Path) -> RuleFile:
    (tmp_path / "conf").mkdir()
    return RuleFile(tmp_path / "conf")


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_reload_under_load_loses_no_request_and_doubles_no_charge(
    file: RuleFile, redis_server: Server, workers: int
) -> None:
    """One worker counts in process, several in Redis.

    Every request is answered, with 200 or 429; of the rule that all versions of the file have, the
    quota passes and not one request more or less.
    """
    redis_server.command("FLUSHALL")
    store = "memory://" if workers == 1 else redis_server.url
    file.in_place(rules(store, 0))
    statuses: Counter[int] = Counter()
    in_force: set[int] = set()
    with serving(file, workers) as (url, served):

        async def in_force_is(version: int) -> None:
            await until(lambda: version in in_force)

        async def told(mistakes: int) -> None:
            await until(lambda: served.log().count("rules-not-reloaded") >= mistakes)

        async def rewrite() -> int:
            """Writes the file in every way, with mistakes in between; how often it was right."""
            right = wrong = 0
            for way in [*WAYS, *WAYS]:
                right += 1
                way(file, rules(store, right))
                await in_force_is(right)
                wrong += workers
                way(file, rules(store, right, mistake=True))
                await told(wrong)
            return right

        rewriting = asyncio.create_task(rewrite())

        async def client(http: httpx.AsyncClient) -> None:
            while not rewriting.done() or 429 not in statuses:
                answer = await http.get("/")
                statuses[answer.status_code] += 1
                policy = answer.headers["ratelimit-policy"]
                in_force.update(map(int, re.findall(r'"edited";q=1(\d{7})', policy)))

        # Where there are several workers, a connection for each request: all of them are met.
        limits = httpx.Limits(max_keepalive_connections=CLIENTS if workers == 1 else 0)
        async with httpx.AsyncClient(base_url=url, limits=limits, timeout=30) as http:
            await asyncio.gather(*(client(http) for _ in range(CLIENTS)))
        assert await rewriting == len(WAYS) * 2
    log = served.log()
    assert set(statuses) == {200, 429}, log
    assert statuses[200] == QUOTA
    assert "Traceback" not in log


async def test_a_sighup_to_the_server_has_it_read_the_file_again(file: RuleFile) -> None:
    """And stops neither it nor what it is serving."""
    file.in_place(rules("memory://", 0))
    with serving(file, 1) as (url, served):
        async with httpx.AsyncClient(base_url=url, timeout=30) as http:
            first = (await http.get("/")).json()["rules"]["since"]
            served.process.send_signal(signal.SIGHUP)
            async with asyncio.timeout(10):
                while (await http.get("/")).json()["rules"]["since"] == first:
                    pass
        assert served.process.poll() is None
