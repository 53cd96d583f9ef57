"""What the loads run on: cores, descriptors, and the processes that are started and ended by id.

Redis and whoever asks are on one core and the application on the other, so that the application's
load is never the server's; a process beside them pings Redis, and a run in which it was slow all
the same says nothing about the limiter.
"""

import contextlib
import http.client
import json
import math
import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

from tests.load.client import Account, Order
from tests.support.servers import Server, binaries, serving, wait_until

ROOT: Final = Path(__file__).resolve().parents[2]
DEADLINE: Final = 0.05  # seconds that the store has
HEALTHY: Final = DEADLINE / 2  # seconds that Redis's own worst reply may take
LEAST_PINGS: Final = 10  # that make a run count
ATTEMPTS: Final = 4  # at one run, until Redis was healthy in it
FILES: Final = 4_096  # descriptors: 1,000 connections, on both ends, and all else
CORES: Final = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []

needs_two_cores = pytest.mark.skipif(
    len(CORES) < 2,
    reason="NOT MEASURED: the server and the application need a core each, and a system that pins",
)


@contextlib.contextmanager
def on_core(number: int) -> Iterator[None]:
    """Keeps this thread, and what it starts meanwhile, on one of the first two cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {CORES[number]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def _many_files() -> Iterator[None]:
    """Lets what is started meanwhile open so many files; skips loudly where that is forbidden."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < FILES:
        pytest.skip(f"NOT MEASURED: {FILES} open files are needed, and {hard} allowed")
    if soft != resource.RLIM_INFINITY and soft < FILES:
        resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextlib.contextmanager
def ended(process: subprocess.Popen[Any], within: float = 15.0) -> Iterator[subprocess.Popen[Any]]:
    """Ends a process that we started, gracefully if it can."""
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
        try:
            process.wait(within)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


def started(module: str, *arguments: object, core: int) -> subprocess.Popen[str]:
    """A module of this folder as a process, spoken to over its standard input and output."""
    with on_core(core), _many_files():
        return subprocess.Popen(
            [sys.executable, "-m", f"tests.load.{module}", *map(str, arguments)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )


# --- Redis, and who watches it -------------------------------------------------------------------


@contextlib.contextmanager
def redis() -> Iterator[Server]:
    """A server that is new, on the first core."""
    with contextlib.ExitStack() as stack:
        with on_core(0), _many_files():
            server = stack.enter_context(serving(binaries()[0].path))
        yield server


class Pings(NamedTuple):
    """How a Redis was while something else happened."""

    asked: int
    slow: list[tuple[float, float]]

    def worst(self, but: tuple[float, float] = (0.0, 0.0)) -> float:
        """Seconds that the slowest reply took, leaving out what was asked or owed in a span.

        Endless where hardly anything was asked: nobody watched.
        """
        if self.asked < LEAST_PINGS:
            return math.inf
        since, until = but
        counted = [took for at, took in self.slow if not (at < until and at + took > since)]
        return max(counted, default=0.0)


@contextlib.contextmanager
def watched(server: Server) -> Iterator[list[Pings]]:
    """Pings a server from a process of its own; what it saw is in the list afterwards."""
    seen: list[Pings] = []
    with ended(started("pinger", server.port, core=0)) as process:
        yield seen
        said, _ = process.communicate(timeout=40)
        seen.append(Pings(**json.loads(said)))


# --- the application -----------------------------------------------------------------------------


class Application(NamedTuple):
    """One that serves: where, how many workers it has, and where its log is."""

    port: int
    workers: int
    log_file: Path

    def log(self) -> str:
        """Everything that its processes have written."""
        return _plain(self.log_file)

    def states(self) -> list[dict[str, Any]]:
        """What each worker says of itself."""
        found: dict[int, dict[str, Any]] = {}
        for _ in range(400):
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
            connection.request("GET", "/state")
            state = json.loads(connection.getresponse().read())
            connection.close()
            found[state["pid"]] = state
            if len(found) == self.workers:
                return [*found.values()]
        raise TimeoutError(f"of {self.workers} workers, only {list(found)} answered")


def _plain(log_file: Path) -> str:
    return re.sub("\x1b\\[[0-9;]*m", "", log_file.read_text(errors="replace"))


@contextlib.contextmanager
def application(folder: Path, rules: str, *, workers: int, loop: str) -> Iterator[Application]:
    """The application under uvicorn with these rules, on the second core, on a free port."""
    rule_file, log_file = folder / "rules.yaml", folder / "log"
    rule_file.write_text(rules)
    command = [sys.executable, "-m", "uvicorn", "tests.load.app:app", "--port", "0"]
    command += ["--workers", str(workers), "--loop", loop, "--http", "tests.load.app:Http"]
    command += [
        "--no-access-log",
        "--timeout-graceful-shutdown",
        "3",
        "--timeout-keep-alive",
        "600",
    ]
    with on_core(1), _many_files(), log_file.open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "RULES": str(rule_file), "PYTHONPATH": str(ROOT)},
            stdout=log,
            stderr=log,
        )

    def serves() -> bool:
        if process.poll() is not None:
            raise RuntimeError(f"the application did not start:\n{_plain(log_file)}")
        text = _plain(log_file)
        return "running on" in text and text.count("startup complete") == workers

    with ended(process):
        wait_until(serves, "an application that serves", 30)
        found = re.search(r"running on http://[0-9.]+:([0-9]+)", _plain(log_file))
        yield Application(int(found[1]) if found else 0, workers, log_file)


# --- who asks it ---------------------------------------------------------------------------------


@contextlib.contextmanager
def asked(order: Order) -> Iterator[list[Account]]:
    """Carries out an order in a process on the first core, which has begun within the block.

    The account is in the list when the block has ended.
    """
    given: list[Account] = []
    with ended(started("client", core=0)) as process:
        if process.stdin is None or process.stdout is None:
            raise RuntimeError("a process without pipes")
        process.stdin.write(json.dumps(order._asdict()))
        process.stdin.close()
        process.stdin = None
        if process.stdout.readline() != "began\n":
            raise RuntimeError("the client could not open its connections")
        yield given
        said, _ = process.communicate(timeout=order.seconds * 2 + 40)
        account = json.loads(said)
        given.append(Account(**account))


def pause_until(instant: float) -> None:
    """Returns at an instant of the monotonic clock."""
    time.sleep(max(0.0, instant - time.monotonic()))
