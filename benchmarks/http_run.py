"""The program of http.py: in process, through uvicorn, and through uvicorn with Redis behind it."""

import argparse
import asyncio
import ctypes
import gc
import json
import os
import random
import shlex
import socket
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from math import nan
from pathlib import Path
from statistics import median
from typing import Any

import uvicorn
from decisions import RESULTS, Table, Target, at_least, machine, progress, show
from http_apps import (
    EVERYONE,
    FIVE,
    FLOOR,
    IN_PROCESS,
    MEMORY,
    ON_REDIS,
    ONE,
    PATH,
    SERVED,
    SLOWAPI,
    TEN,
    THOUSAND,
    Contestant,
)

from tests.support.servers import Server, binaries, serving

CLIENTS = 1_000
"""Addresses that ask, in process."""
CONNECTIONS = 64
"""Through uvicorn, each from an address of its own."""
PLENTY = 1_000_000
"""The quota where all are to pass."""
FEW = 5
"""The quota where a client is to be refused."""
WARM_UP = 0.2
"""Of a round's requests, made before it and not counted."""
READY_WITHIN = 20.0
MOST_SECONDS = 60.0
"""For one contestant in one round: one that hangs ends the run."""
FIELDS = (b"ratelimit", b"x-ratelimit-limit")
"""The fields of which every limited response has one."""

Fields = Iterable[tuple[bytes, bytes]]


@dataclass
class Measured:
    """A contestant's rounds, in microseconds of processor time per request, or why it has none."""

    name: str
    role: str
    cpu_us: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    """Requests a second, of the rounds through a server."""
    skipped: str = ""


# --- in process ----------------------------------------------------------------------------------


def scope_of(client: str) -> dict[str, Any]:
    """A request's scope, new as a server makes it."""
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "server": ("127.0.0.1", 8000),
        "client": (client, 50_000),
        "scheme": "http",
        "method": "GET",
        "root_path": "",
        "path": PATH,
        "raw_path": PATH.encode(),
        "query_string": b"",
        "headers": [
            (b"host", b"127.0.0.1:8000"),
            (b"user-agent", b"Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101"),
            (b"accept", b"application/json, text/plain, */*"),
            (b"accept-encoding", b"gzip, deflate, br"),
            (b"accept-language", b"en-GB,en;q=0.5"),
            (b"connection", b"keep-alive"),
        ],
        "state": {},
    }


async def drive(app: Any, clients: Iterable[str]) -> int:
    """One request from each of these clients, one after the other; how many were answered 200."""
    passed = 0
    empty = {"type": "http.request", "body": b"", "more_body": False}

    async def receive() -> dict[str, Any]:
        return empty

    async def send(message: dict[str, Any]) -> None:
        nonlocal passed
        if message["type"] == "http.response.start":
            passed += message["status"] == 200

    for client in clients:
        await app(scope_of(client), receive, send)
    return passed


async def answers(app: Any, client: str, count: int) -> list[tuple[int, Fields]]:
    """The statuses and header fields of so many requests."""
    found: list[tuple[int, Fields]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            found.append((message["status"], message["headers"]))

    for _ in range(count):
        await app(scope_of(client), receive, send)
    return found


def fault(by_client: Iterable[list[tuple[int, Fields]]]) -> str:
    """How a contestant fails to limit ten requests of each client; nothing if it does not."""
    for found in by_client:
        statuses = [status for status, _ in found]
        if statuses != [200] * FEW + [429] * FEW:
            return f"with a quota of {FEW} it answers {statuses}"
        for status, fields in found:
            names = {name.lower() for name, _ in fields}
            if not names & set(FIELDS):
                return f"its {status} has none of the fields {FIELDS}"
            if status == 429 and b"retry-after" not in names:
                return "its 429 has no Retry-After"
    return ""


def refuse_if_ours(entry: Measured) -> None:
    """A peer's fault is shown in its row; with one of ours, no number would mean anything."""
    if entry.skipped and (entry.role == "bare" or entry.name.startswith("ratelimit")):
        raise SystemExit(f"{entry.name}: {entry.skipped}")


async def in_process(
    rounds: int, requests: int, step: Callable[[], None], shuffle: Callable[[list[Any]], None]
) -> list[Measured]:
    """Rounds of all contestants in this process, whose processor time is what is counted."""
    entries = [Measured(each.name, each.role) for each in IN_PROCESS]
    clients = [f"198.51.{i // 250}.{i % 250}" for i in range(CLIENTS)]
    asked = [clients[i % CLIENTS] for i in range(requests)]
    apps = {}
    for entry in entries:
        build = EVERYONE[entry.name].build
        apps[entry.name] = build(MEMORY, PLENTY)
        if entry.role != "bare":
            strict = build(MEMORY, FEW)
            entry.skipped = fault([await answers(strict, c, 2 * FEW) for c in clients[:2]])
        refuse_if_ours(entry)
        if not entry.skipped:
            await drive(apps[entry.name], clients)
    for _ in range(rounds):
        order = list(entries)
        shuffle(order)
        for entry in order:
            if entry.skipped:
                continue
            app = apps[entry.name]
            await drive(app, asked[: int(WARM_UP * requests)])
            gc.collect()
            start_ns = time.process_time_ns()
            passed = await drive(app, asked)
            cpu_ns = time.process_time_ns() - start_ns
            await asyncio.sleep(0)  # what a contestant left to the loop is not its neighbour's
            entry.cpu_us.append(cpu_ns / requests / 1_000)
            if passed != requests:
                entry.skipped = f"{passed} of {requests} passed in a timed round"
                refuse_if_ours(entry)
        step()
    return entries


# --- through a server ----------------------------------------------------------------------------


def serve(name: str, store: str, quota: int, http: str) -> None:
    """Serves one contestant, in the process that was started for it; prints its port."""
    app = EVERYONE[name].build(store, quota)
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    config = uvicorn.Config(
        app, http=http, log_level="warning", access_log=False, timeout_keep_alive=3_600
    )  # type: ignore[arg-type]
    print(listener.getsockname()[1], flush=True)
    uvicorn.Server(config).run([listener])


@contextmanager
def served(name: str, store: str, quota: int, http: str) -> Iterator[tuple[int, int]]:
    """The id of a server's process and its port; the process is ended afterwards."""
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("http.py")),
         "--serve", name, "--store", store, "--quota", str(quota), "--http", http],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        line = process.stdout.readline() if process.stdout else ""
        if not line:
            raise RuntimeError("its server did not start; the error is above")
        yield process.pid, int(line)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def clock_of(pid: int) -> int:
    """The clock of a process's processor time, all its threads included (POSIX)."""
    clock = ctypes.c_int()
    if ctypes.CDLL(None).clock_getcpuclockid(pid, ctypes.byref(clock)):
        raise OSError(f"process {pid} has no clock")
    return clock.value


class Connection(asyncio.Protocol):
    """Asks again as soon as it is answered, while its load says so."""

    REQUEST = (
        f"GET {PATH} HTTP/1.1\r\nhost: 127.0.0.1\r\nuser-agent: load\r\n"
        "accept: application/json\r\naccept-encoding: gzip, deflate\r\n\r\n"
    ).encode()

    def __init__(self, load: "Load") -> None:
        self.load = load
        self.received = b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def ask(self) -> None:
        self.transport.write(self.REQUEST)

    def data_received(self, data: bytes) -> None:
        received = self.received + data
        head = received.find(b"\r\n\r\n")
        if head >= 0:
            place = received.find(b"content-length:", 0, head)
            length = int(received[place + 15 : received.find(b"\r", place)])
            if len(received) >= head + 4 + length:
                self.received = b""
                self.load.answered(self, received)
                return
        self.received = received

    def connection_lost(self, error: Exception | None) -> None:
        self.load.failed(error or ConnectionError("the server closed a connection"))


class Load:
    """Clients that keep one server busy, each over a connection of its own that stays open."""

    def __init__(self) -> None:
        self.connections: list[Connection] = []
        self.passed = self.refused = self.due = 0
        self.until = 0.0
        self.over: asyncio.Future[None] | None = None

    async def connect(self, port: int, connections: int) -> None:
        """Opens them, each from another loopback address."""
        loop = asyncio.get_running_loop()
        until = loop.time() + READY_WITHIN
        for number in range(connections):
            while True:
                try:
                    _, connection = await loop.create_connection(
                        lambda: Connection(self), "127.0.0.1", port,
                        local_addr=(f"127.0.1.{number + 1}", 0),
                    )  # fmt: skip
                except OSError:
                    if loop.time() > until:
                        raise
                    await asyncio.sleep(0.05)
                else:
                    self.connections.append(connection)
                    break

    async def run(self, seconds: float) -> tuple[int, float]:
        """Requests until the time is up: how many were answered, and after how many seconds."""
        loop = asyncio.get_running_loop()
        self.passed = self.refused = 0
        self.over = loop.create_future()
        start = loop.time()
        self.until = start + seconds
        self.due = len(self.connections)
        for connection in self.connections:
            connection.ask()
        async with asyncio.timeout(MOST_SECONDS):
            await self.over
        return self.passed + self.refused, loop.time() - start

    def answered(self, connection: Connection, response: bytes) -> None:
        """Counts, and asks again or lets the connection rest."""
        if response.startswith(b"HTTP/1.1 200"):
            self.passed += 1
        else:
            self.refused += 1
        if asyncio.get_running_loop().time() < self.until:
            connection.ask()
            return
        self.due -= 1
        if not self.due and self.over is not None and not self.over.done():
            self.over.set_result(None)

    def failed(self, error: Exception) -> None:
        """Ends the run: no connection closes while it is used."""
        if self.over is not None and not self.over.done():
            self.over.set_exception(error)

    def close(self) -> None:
        """Closes the connections."""
        self.over = None
        for connection in self.connections:
            connection.transport.close()


async def asked_over_http(port: int, count: int, address: str) -> list[tuple[int, Fields]]:
    """The statuses and header fields of so many requests from a loopback address."""
    found: list[tuple[int, Fields]] = []
    for attempt in range(100):
        try:
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", port, local_addr=(address, 0)
            )
            break
        except OSError:
            await asyncio.sleep(0.05 * (attempt > 0))
    for _ in range(count):
        writer.write(Connection.REQUEST)
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), READY_WITHIN)
        status, *lines = head.rstrip().split(b"\r\n")
        fields = [(name, value.strip()) for name, _, value in (li.partition(b":") for li in lines)]
        length = next(int(value) for name, value in fields if name.lower() == b"content-length")
        await reader.readexactly(length)
        found.append((int(status.split()[1]), fields))
    writer.close()
    return found


async def through_uvicorn(
    contestants: Sequence[Contestant], store: str, flush: Callable[[], None], options: Namespace,
    rounds: int, step: Callable[[], None], shuffle: Callable[[list[Any]], None],
) -> list[Measured]:  # fmt: skip
    """Rounds of servers, of which one at a time is kept busy by this process."""
    entries = [Measured(each.name, each.role) for each in contestants]
    with ExitStack() as stack:
        loads: dict[str, tuple[Load, int]] = {}
        for entry in entries:
            try:
                if entry.role != "bare":
                    with served(entry.name, store, FEW, options.http) as (_, port):
                        entry.skipped = fault(
                            [await asked_over_http(port, 2 * FEW, a)
                             for a in ("127.0.2.1", "127.0.2.2")]
                        )  # fmt: skip
                    flush()
                if not entry.skipped:
                    pid, port = stack.enter_context(served(entry.name, store, PLENTY, options.http))
                    load = Load()
                    stack.callback(load.close)
                    await load.connect(port, options.connections)
                    loads[entry.name] = load, clock_of(pid)
                    await load.run(options.seconds)
            except Exception as error:  # noqa: BLE001  # whatever it is stands in its row
                entry.skipped = f"{type(error).__name__}: {error}"
            refuse_if_ours(entry)
        for _ in range(rounds):
            order = [entry for entry in entries if not entry.skipped]
            shuffle(order)
            for entry in order:
                load, clock = loads[entry.name]
                await load.run(WARM_UP * options.seconds)
                gc.collect()
                start_ns = time.clock_gettime_ns(clock)
                requests, seconds = await load.run(options.seconds)
                cpu_ns = time.clock_gettime_ns(clock) - start_ns
                entry.cpu_us.append(cpu_ns / requests / 1_000)
                entry.rates.append(requests / seconds)
                if load.refused:
                    entry.skipped = f"{load.refused} of {requests} did not pass in a timed round"
                    refuse_if_ours(entry)
            step()
    return entries


# --- what it comes to ----------------------------------------------------------------------------


def bare_by_round(entries: Sequence[Measured]) -> list[float]:
    """What the bare application took in each round, the mean where it was run twice."""
    rounds = zip(*(e.cpu_us for e in entries if e.role == "bare"), strict=True)
    return [sum(each) / len(each) for each in rounds]


def added_us(entries: Sequence[Measured], entry: Measured) -> float:
    """The median over the rounds of what a contestant took beyond the bare application."""
    pairs = zip(entry.cpu_us, bare_by_round(entries), strict=True)
    return median(cpu - base for cpu, base in pairs)


def added_share(entries: Sequence[Measured], entry: Measured) -> float:
    """The same as a part of what the bare application took in the round."""
    pairs = zip(entry.cpu_us, bare_by_round(entries), strict=True)
    return median(cpu / base - 1 for cpu, base in pairs)


def spread(entries: Sequence[Measured]) -> float:
    """How far apart two runs of the same bare application are in one round: the median part."""
    first, second = (entry.cpu_us for entry in entries if entry.role == "bare")
    return median(abs(a - b) / ((a + b) / 2) for a, b in zip(first, second, strict=True))


@dataclass
class Run:
    """What one run measured; a part that was left out is empty."""

    inside: list[Measured] = field(default_factory=list)
    served: list[Measured] = field(default_factory=list)
    redis: list[Measured] = field(default_factory=list)


def judge(run: Run) -> list[Target]:
    found: list[Target] = []
    if run.inside:
        added = {e.name: added_us(run.inside, e) for e in run.inside if not e.skipped}
        one, peer = added[ONE], added.get(SLOWAPI, nan)
        many = added[THOUSAND] / added[TEN]
        found += [
            Target(
                "In process: added by one rule / by slowapi's middleware",
                one / peer,
                1 / 6,
                most=True,
            ),
            Target("In process: added by one rule / by hand", one / added[FLOOR], 1.7, most=True),
            Target("In process: microseconds added by one rule", one, 10, most=True),
            Target("In process: five rules that match / one", added[FIVE] / one, 1.7, most=True),
            Target("In process: 1,000 rules of which one matches / 10", many, 1.5, most=True),
        ]  # fmt: skip
    if run.served:
        (ours,) = (e for e in run.served if e.name == ONE)
        found.append(
            Target(
                "Through uvicorn: processor time added by one rule / the bare application's",
                added_share(run.served, ours), 0.2, most=True,
            )
        )  # fmt: skip
    if run.redis:
        (ours,) = (e for e in run.redis if e.role == "ours")
        peers = [median(e.rates) for e in run.redis if e.role == "peer" and not e.skipped]
        found.append(
            Target(
                "On Redis through uvicorn: our requests a second / the best peer's",
                median(ours.rates) / max(peers, default=nan), 2,
            )
        )  # fmt: skip
    return found


def tables(run: Run, options: Namespace) -> list[Table]:
    shown: list[Table] = []
    for title, entries in (
        ("in process, MemoryStore or what the others have", run.inside),
        (f"through uvicorn, {options.connections} connections, counted in process", run.served),
        (f"through uvicorn, {options.connections} connections, counted in Redis", run.redis),
    ):
        if not entries:
            continue
        able = sorted(
            (e for e in entries if not e.skipped),
            key=lambda e: (e.role != "bare", median(e.cpu_us)),
        )
        rows: list[tuple[str, ...]] = [
            (
                e.name,
                f"{median(e.cpu_us):.1f}",
                "" if e.role == "bare" else f"{added_us(entries, e):.1f}",
                "" if e.role == "bare" else f"{added_share(entries, e):.3f}",
                f"{median(e.rates):,.0f}" if e.rates else "",
            )
            for e in able
        ]
        rows += [(e.name, f"skipped: {e.skipped}", "", "", "") for e in entries if e.skipped]
        columns = ("contestant", "CPU µs/request", "added µs", "added / bare", "requests/s")
        shown.append(Table(title, columns, rows))
    return shown


def spreads(run: Run) -> list[str]:
    """How much two runs of the same application differ: what a difference must exceed."""
    parts = (("in process", run.inside), ("through uvicorn", run.served))
    return [
        f"The bare application run twice, {where}: {spread(entries):.1%} apart "
        "(median over the rounds)."
        for where, entries in parts
        if entries
    ]


def plot(run: Run) -> str:
    """Writes the picture; returns why not, if not."""
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415  # not needed for the figures
    except ImportError:
        return "plot skipped: matplotlib is not installed"
    figure = Figure(figsize=(12, 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    added = {
        e.name: added_us(run.inside, e) for e in run.inside if not e.skipped and e.role != "bare"
    }
    rates = {e.name: median(e.rates) for e in run.redis if not e.skipped}
    for axes, bars, label, order in (
        (left, added, "processor time added to a request in process, µs", -1),
        (right, rates, "requests a second through uvicorn, counted in Redis", 1),
    ):
        names = sorted(bars, key=lambda name, bars=bars, order=order: order * bars[name])
        colours = ["C0" if name.startswith("ratelimit") else "C7" for name in names]
        drawn = axes.barh(names, [bars[name] for name in names], color=colours)
        axes.bar_label(drawn, fmt="{:,.0f}", padding=3)
        axes.set_xlabel(label)
        axes.margins(x=0.2)
    figure.savefig(RESULTS / "http.png", dpi=120)
    return ""


def about(options: Namespace, binary: str, loads: Sequence[float]) -> dict[str, str]:
    packages = ("fastapi", "starlette", "uvicorn", "uvloop", "httptools", "h11", "redis", "hiredis",
                "slowapi", "limits", "throttled-py", "fastapi-redis-sdk", "lupa")  # fmt: skip
    found = []
    for package in packages:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(f"{package} (not installed)")
    facts = machine(Namespace(rounds=options.rounds, decisions=0))
    del facts["load before"]
    return {
        **facts,
        "command": shlex.join(["python", "benchmarks/http.py", *sys.argv[1:]]),
        "measured": f"{options.rounds} rounds of {options.requests:,} requests in process, and of "
        f"{options.seconds:g} s over {options.connections} connections",
        "load average": " before, ".join(f"{load:.1f}" for load in loads) + " after",
        "server": f"uvicorn --http {options.http}; {binary or 'no Redis'}",
        "versions": ", ".join(found),
    }


def write(run: Run, shown: list[Table], lines: list[str], facts: dict[str, str]) -> None:
    heading = ["# What rate limiting adds to an HTTP request", ""]
    heading += [f"- {name}: {value}" for name, value in facts.items()]
    heading += ["", *(f"- {line}" for line in lines), "", "![what is added](http.png)"]
    text = "\n".join([*heading, "", *(table.markdown() for table in shown)])
    (RESULTS / "http.md").write_text(text, encoding="utf-8")
    document = {
        **facts,
        "targets": [target._asdict() for target in judge(run)],
        **{
            part: [
                {
                    "name": e.name,
                    "role": e.role,
                    "skipped": e.skipped or None,
                    "cpu_us": [round(us, 2) for us in e.cpu_us],
                    "requests_per_second": [round(rate, 1) for rate in e.rates],
                }
                for e in entries
            ]
            for part, entries in vars(run).items()
        },
    }
    (RESULTS / "http.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


async def measure(options: Namespace, redis: Server | None, step: Callable[[], None]) -> Run:
    shuffle = random.Random(0).shuffle
    run = Run()
    if "inside" in options.parts:
        run.inside = await in_process(options.rounds, options.requests, step, shuffle)
    if "served" in options.parts:
        run.served = await through_uvicorn(
            SERVED, MEMORY, lambda: None, options, options.rounds, step, shuffle
        )
    if redis is not None:
        run.redis = await through_uvicorn(
            ON_REDIS, redis.url, lambda: redis.command("FLUSHALL"), options, options.rounds, step,
            shuffle,
        )  # fmt: skip
    return run


def main() -> None:
    parser = argparse.ArgumentParser(description="What rate limiting adds to an HTTP request.")
    parser.add_argument("--rounds", type=at_least(1), default=15)
    parser.add_argument(
        "--requests", type=at_least(100), default=2_000,
        help="in process, of each contestant in each round",
    )  # fmt: skip
    parser.add_argument(
        "--milliseconds",
        type=at_least(10),
        default=500,
        help="through uvicorn, of each contestant in each round",
    )
    parser.add_argument("--connections", type=at_least(1), default=CONNECTIONS)
    parser.add_argument("--http", choices=("auto", "h11", "httptools"), default="auto")
    parser.add_argument(
        "--only", choices=("inside", "served", "redis"), action="append",
        help="one part (may be given again); nothing is written",
    )  # fmt: skip
    parser.add_argument(
        "--quick", action="store_true", help="two short rounds, to see that it runs; writes nothing"
    )
    parser.add_argument("--serve", choices=sorted(EVERYONE), help=argparse.SUPPRESS)
    parser.add_argument("--store", help=argparse.SUPPRESS)
    parser.add_argument("--quota", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options.store, options.quota, options.http)
        return
    if options.quick:
        options.rounds, options.requests, options.milliseconds = 2, 300, 60
    options.seconds = options.milliseconds / 1000
    options.parts = options.only or ["inside", "served", "redis"]
    found = binaries() if "redis" in options.parts else []
    if "redis" in options.parts and not found:
        raise SystemExit("no server was found; install redis-server, or set RATELIMIT_REDIS_SERVER")
    loads = [os.getloadavg()[0]]
    with ExitStack() as stack:
        redis = stack.enter_context(serving(found[0].path)) if found else None
        with progress(options.rounds * len(options.parts)) as step:
            run = asyncio.run(measure(options, redis, step))
    loads.append(os.getloadavg()[0])
    facts = about(options, found[0].name if found else "", loads)
    shown = tables(run, options)
    lines = [*(target.line() for target in judge(run)), *spreads(run)]
    keep = not (options.quick or options.only)
    if keep:
        RESULTS.mkdir(exist_ok=True)
        lines += filter(None, [plot(run)])
    show(shown, [*(f"{name}: {value}" for name, value in facts.items()), "", *lines])
    if keep:
        write(run, shown, lines, facts)
