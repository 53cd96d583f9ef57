"""Requests a second through real proxies that ask the limiter, beside a service that only says yes.

`python benchmarks/gateway.py [--rounds 7] [--seconds 2] [--proxies nginx envoy-rls]` starts, for
each proxy that is found (tests/support/gateways.py says where), three of it by its recipe: beside a
service of the same server that allows everything and knows nothing, beside `ratelimit serve` that
counts in process, and beside one that counts in Redis. They are kept busy in turns, each round in
another order; what counts is the median of the rounds' own ratios. Then requests are timed while
the service hangs, while Redis hangs, and when either is gone. Writes results/gateway.md.
"""

import argparse
import asyncio
import ctypes
import gc
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any, Final, NamedTuple

import uvicorn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.support.gateways import (
    FILES,
    Client,
    Process,
    open_port,
    program,
    recipe,
    run_proxy,
    serve_for,
)
from tests.support.servers import binaries, free_port, serving, temporary_folder

RESULT: Final = Path(__file__).with_name("results") / "gateway.md"
CONNECTIONS: Final = 32
TARGETS: Final = {"in process": 0.8, "in Redis": 0.65}
BARE: Final = "allows everything"
ROWS: Final = (BARE, *TARGETS)
REQUEST: Final = (
    b"GET /api/items HTTP/1.1\r\nhost: app.example\r\nuser-agent: load\r\n"
    b"accept: application/json\r\naccept-encoding: gzip, deflate\r\n\r\n"
)
RULES: Final = """\
version: 1
trusted_proxies: [127.0.0.1]
store: {store}
deadline: {deadline}
rules:
  - {{name: api, match: {{path: "/api/{{rest:path}}"}}, limit: 1000000/minute}}
  - {{name: login, match: {{path: /login, methods: [POST]}}, limit: 5/minute}}
  - {{name: strict, match: {{path: /strict}}, limit: 1000000/minute, on_store_failure: deny}}
"""


# --- what is asked -------------------------------------------------------------------------------


class Yes(asyncio.Protocol):
    """An application that answers each request with two bytes, as fast as Python can."""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        heads = data.count(b"\r\n\r\n")
        self.transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok" * heads)


async def listen(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Yes, "127.0.0.1", port, backlog=512)
    await server.serve_forever()


async def allow(scope: Any, _: Any, send: Any) -> None:
    """The service that knows nothing."""
    if scope["type"] == "http":
        headers = [(b"content-length", b"0")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b""})


async def allow_calls(port: int) -> None:
    """The rate limit service that knows nothing."""
    from ratelimit.gateway.calls import Answered, Server  # noqa: PLC0415  # h2 is an extra
    from ratelimit.gateway.messages import write  # noqa: PLC0415  # as above

    message = write(over=False)

    async def answer(*_: object) -> Answered:
        return Answered(message)

    await Server(answer, lambda _: True).open("127.0.0.1", port, share=False)
    await asyncio.Event().wait()


def serve_part(part: str, port: int) -> None:
    """A part that stands beside the proxies, in the process that was started for it."""
    if part != "allow":
        with asyncio.Runner(loop_factory=__import__("uvloop").new_event_loop) as runner:
            runner.run(listen(port) if part == "application" else allow_calls(port))
    uvicorn.run(
        allow, port=port, ws="none", lifespan="off", proxy_headers=False, server_header=False,
        date_header=False, access_log=False, log_level="warning", timeout_keep_alive=3_700,
    )  # fmt: skip


@contextmanager
def part(name: str, folder: Path) -> Iterator[tuple[int, int]]:
    """Such a part: its port, and the id of its process."""
    port = free_port()
    words = [sys.executable, __file__, "--part", name, "--port", str(port)]
    process = Process(words, folder / f"{name}.log")
    try:
        process.wait_for(port)
        yield port, process.process.pid
    finally:
        process.end()


# --- load ----------------------------------------------------------------------------------------


class Connection(asyncio.Protocol):
    """Asks again as soon as it is answered, until it is told to rest."""

    def __init__(self) -> None:
        self.count = 0
        self.statuses: set[bytes] = set()
        self.rest: asyncio.Future[None] | None = None
        self.over = False

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.count += 1
        self.statuses.add(data[9:12])
        if not self.over:
            self.transport.write(REQUEST)
        elif self.rest is not None and not self.rest.done():
            self.rest.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        if self.rest is not None and not self.rest.done():
            self.rest.set_exception(error or ConnectionError("a proxy closed a connection"))


def cpu_of(pid: int) -> float:
    """Seconds of processor time that a process has taken (POSIX)."""
    clock = ctypes.c_int()
    if ctypes.CDLL(None).clock_getcpuclockid(pid, ctypes.byref(clock)):
        raise OSError(f"process {pid} has no clock")
    return time.clock_gettime(clock.value)


class Round(NamedTuple):
    """One round of one service."""

    rate: float
    """Requests a second."""
    cpu_us: float
    """Microseconds of processor time that the service took for each."""


async def kept_busy(port: int, pid: int, seconds: float) -> Round:
    """A round of a proxy, over all connections; ``pid`` is the service's."""
    loop = asyncio.get_running_loop()
    connections = []
    for number in range(CONNECTIONS):
        source = (f"127.0.1.{number + 1}", 0)
        _, each = await loop.create_connection(Connection, "127.0.0.1", port, local_addr=source)
        connections.append(each)
    for each in connections:
        each.rest = loop.create_future()
        each.transport.write(REQUEST)
    await asyncio.sleep(seconds * 0.2)
    before, begun, cpu = sum(each.count for each in connections), loop.time(), cpu_of(pid)
    await asyncio.sleep(seconds)
    answered = sum(each.count for each in connections) - before
    found = Round(answered / (loop.time() - begun), (cpu_of(pid) - cpu) * 1e6 / answered)
    for each in connections:
        each.over = True
    await asyncio.wait_for(asyncio.gather(*(each.rest for each in connections if each.rest)), 30)
    for each in connections:
        each.rest = None
        each.transport.close()
    statuses = set().union(*(each.statuses for each in connections))
    if statuses != {b"200"}:
        raise SystemExit(f"answers of {statuses}: nothing was measured")
    return found


Services = dict[str, tuple[int, int]]
"""Of each row, the port of its proxy and the id of its service's process."""


async def rounds(services: Services, count: int, seconds: float) -> dict[str, list[Round]]:
    found: dict[str, list[Round]] = {name: [] for name in services}
    for port, pid in services.values():
        await kept_busy(port, pid, 1)
    for number in range(count):
        order = list(services)
        random.Random(number).shuffle(order)
        for name in order:
            gc.collect()
            found[name].append(await kept_busy(*services[name], seconds))
    return found


# --- faults --------------------------------------------------------------------------------------


class Fault(NamedTuple):
    """The time that requests take in a fault, in milliseconds."""

    what: str
    allowed: str
    worst: float
    usual: float
    statuses: set[int]


def times(port: int, path: str, count: int) -> tuple[list[float], set[int]]:
    with Client(port) as client:
        answers = [client.ask(path) for _ in range(count)]
    return [each.seconds * 1_000 for each in answers], {each.status for each in answers}


def faults(name: str, folder: Path, behind: int) -> Iterator[Fault]:
    """The latency of a proxy's requests in each fault, one at a time."""
    with serving(binaries()[0].path) as redis, ExitStack() as stack:
        rules = folder / "faults.yaml"
        rules.write_text(RULES.format(store=redis.url, deadline="50ms"))
        asked, port = free_port(), open_port()
        service = serve_for(name, folder, rules, asked)
        stack.callback(service.end)
        text = recipe(name, listen=port, service=asked, behind=behind, patience=None)
        stack.callback(run_proxy(name, folder, text, port).end)
        times(port, "/api/x", 50)
        for what, allowed, path, begin, end in (
            ("nothing", "", "/api/x", lambda: None, lambda: None),
            ("Redis hangs", "50 + 20", "/api/x",
             lambda: redis.signal(signal.SIGSTOP), lambda: redis.signal(signal.SIGCONT)),
            ("the service hangs", "250 + 20", "/api/x",
             lambda: service.tell(signal.SIGSTOP), lambda: service.tell(signal.SIGCONT)),
            ("Redis is gone", "50 + 20", "/api/x", redis.kill, lambda: None),
            ("Redis is gone, deny", "50 + 20", "/strict", lambda: None, lambda: None),
            ("the service is gone", "20", "/api/x",
             lambda: service.end(signal.SIGKILL), lambda: None),
        ):  # fmt: skip
            begin()
            found, statuses = times(port, path, 20 if what == "the service hangs" else 200)
            end()
            yield Fault(what, allowed, max(found), median(found), statuses)
            times(port, "/api/x", 50)


# --- all of it -----------------------------------------------------------------------------------


def measured(name: str, options: argparse.Namespace) -> list[str]:
    """The lines of the report on a proxy."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(temporary_folder()))
        folder.chmod(0o755)
        redis = stack.enter_context(serving(binaries()[0].path))
        behind, _ = stack.enter_context(part("application", folder))
        services: Services = {
            BARE: stack.enter_context(part(f"allow{'-calls' * name.endswith('-rls')}", folder))
        }
        for row, store in (("in process", "memory://"), ("in Redis", redis.url)):
            rules = folder / f"{row}.yaml"
            rules.write_text(RULES.format(store=store, deadline="200ms"))
            port = free_port()
            service = serve_for(name, folder, rules, port)
            stack.callback(service.end)
            services[row] = port, service.process.pid
        proxies: Services = {}
        for row, (port, pid) in services.items():
            own, listening = inside(folder, row.replace(" ", "-")), open_port()
            text = recipe(name, listen=listening, service=port, behind=behind, patience="5s")
            # nginx closes a connection after 1,000 requests, unless told: within a round.
            text = text.replace("\nhttp {", "\nhttp {\nkeepalive_requests 100000000;", 1)
            stack.callback(run_proxy(name, own, text, listening).end)
            proxies[row] = listening, pid
        found = asyncio.run(rounds(proxies, options.rounds, options.seconds))
        lines = [
            f"\n## {name}: {version(name)}\n",
            "| service | requests/s | part of the first row | CPU µs/request | target |",
            "| --- | ---: | ---: | ---: | --- |",
        ]
        for row, each in found.items():
            parts = [one.rate / bare.rate for one, bare in zip(each, found[BARE], strict=True)]
            least = TARGETS.get(row)
            met = "met" if least and median(parts) >= least else "MISSED"
            lines.append(
                f"| {row} | {median(one.rate for one in each):,.0f} | {median(parts):.2f} "
                f"({min(parts):.2f} to {max(parts):.2f}) | "
                f"{median(one.cpu_us for one in each):.0f} | "
                f"{f'at least {least}: {met}' if least else ''} |"
            )
        lines.append("\n| fault | worst ms | half within ms | allowed | answers |")
        lines.append("| --- | ---: | ---: | --- | --- |")
        for what, allowed, worst, usual, statuses in faults(name, inside(folder, "faults"), behind):
            answers = ", ".join(map(str, sorted(statuses)))
            lines.append(f"| {what} | {worst:.1f} | {usual:.1f} | {allowed} | {answers} |")
        return lines


def inside(folder: Path, name: str) -> Path:
    """A new folder in a folder, for everybody to read, as nginx's user must."""
    own = folder / name
    own.mkdir()
    own.chmod(0o755)
    return own


def version(name: str) -> str:
    """What a proxy calls itself, without the folder that it is in."""
    flag = {"nginx": "-v", "caddy": "version", "envoy": "--version"}[name.removesuffix("-rls")]
    said = subprocess.run([str(program(name)), flag], capture_output=True, text=True, check=True)
    words = (said.stdout + said.stderr).split()
    return " ".join(Path(word).name if word.startswith("/") else word for word in words)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--proxies", nargs="+", default=list(FILES), choices=list(FILES))
    parser.add_argument("--result", default=RESULT.name)
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        serve_part(options.part, options.port)
        return
    packages = ("uvicorn", "uvloop", "httptools", "redis", "hiredis", "lupa")
    from importlib.metadata import version as of  # noqa: PLC0415  # the other name is a proxy's

    report: Sequence[str] = [
        "# The limiter as a service, through real proxies\n",
        f"- date: {datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        f"- command: python benchmarks/gateway.py {' '.join(sys.argv[1:])}".rstrip(),
        f"- {os.cpu_count()} cores, shared by load, proxy, service, application and Redis",
        f"- {CONNECTIONS} connections, {options.rounds} rounds of {options.seconds:g} s",
        f"- load of the machine before: {os.getloadavg()[0]:.1f}",
        f"- {', '.join(f'{each} {of(each)}' for each in packages)}; {binaries()[0].name}",
    ]
    for name in options.proxies:
        if program(name) is None:
            report = [*report, f"\n## {name}\n\nNot measured: it is not installed."]
        else:
            report = [*report, *measured(name, options)]
    text = "\n".join(report) + "\n"
    print(text)
    RESULT.with_name(options.result).write_text(text)


if __name__ == "__main__":
    main()
