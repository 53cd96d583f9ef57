"""The program of redis.py: rounds of all contestants, and what they come to."""

import argparse
import asyncio
import gc
import json
import os
import random
import shlex
import shutil
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterable, Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from itertools import cycle
from math import isnan, nan
from statistics import median
from typing import Any, NamedTuple

from decisions import RESULTS, Table, Target, at_least, machine, progress, show
from redis.asyncio import Redis
from redis_peers import (
    HOURS,
    PATIENCE,
    Ask,
    Contestant,
    Node,
    Role,
    Setting,
    contestants,
    install_node,
    memory,
    ours,
)

from ratelimit.decisions import Check
from ratelimit.limits import Algorithm, Limit
from ratelimit.stores.redis import RedisStore
from tests.support.servers import Server, binaries, serving

CONCURRENCIES = (1, 8, 64, 256)
PLENTY = 1_000_000
"""The quota where all are to pass."""
FEW = 5
"""The quota where a client is to be denied."""
WARM_UP = 0.15
"""Of a round's time, driven before it and not counted, for connections and caches."""
LOGGED = 1_000
DRAWN = 30_000
"""Of the live keys, at most, in one round: about as many as it decides."""
MOST_SECONDS = 60.0
"""For one contestant in one round: one that hangs ends the run."""


class Case(NamedTuple):
    """What one round asks of each contestant."""

    title: str
    rules: int
    concurrency: int
    denied: bool = False
    algorithms: bool = False

    def asks(self, role: Role) -> bool:
        """Whether contestants of this role take part."""
        if self.algorithms:
            return role == "aside"
        if role in {"node", "memory"}:
            return self.rules == 1 and self.denied == (role == "memory")
        return role != "aside"


CASES = [
    *(Case("one rule", 1, concurrency) for concurrency in CONCURRENCIES),
    *(Case("three rules", 3, concurrency) for concurrency in CONCURRENCIES),
    *(Case("one client, denied", 1, concurrency, denied=True) for concurrency in (1, 64)),
    Case("one rule, each algorithm", 1, 64, algorithms=True),
]


@dataclass
class Sample:
    """One contestant's part of one round."""

    decisions: int
    passed: int
    seconds: float
    cpu: float
    """Seconds of the process that asks, all its threads."""
    p50: float
    """Microseconds, as p99."""
    p99: float
    redis: float = 0.0
    """Microseconds inside Redis, of all the round's commands."""
    commands: int = 0


@dataclass
class Measured:
    """A contestant, its rounds by case, and why it has none or no more."""

    name: str
    role: Role
    drive: Callable[[Case, Sequence[str], float], Any]
    samples: dict[Case, list[Sample]] = field(default_factory=dict)
    skipped: str = ""

    def of(self, case: Case, number: Callable[[Sample], float]) -> float:
        """The median over the rounds; not a number where there are none."""
        samples = self.samples.get(case)
        return median(map(number, samples)) if samples else nan


def rate(sample: Sample) -> float:
    return sample.decisions / sample.seconds


def cpu_us(sample: Sample) -> float:
    return 1e6 * sample.cpu / sample.decisions


def redis_us(sample: Sample) -> float:
    return sample.redis / sample.decisions


async def drive(ask: Ask, clients: Sequence[str], concurrency: int, seconds: float) -> Sample:
    """So many tasks, each asking for one client after the other until the time is up."""
    latencies_ns: list[int] = []
    note, now = latencies_ns.append, time.perf_counter_ns

    async def work(mine: Iterable[str]) -> int:
        passed = 0
        before = now()
        for client in cycle(mine):
            passed += await ask(client)
            after = now()
            note(after - before)
            if after > until:
                return passed
            before = after
        return passed

    shares = [clients[i % len(clients) :: concurrency] for i in range(concurrency)]
    cpu, start = time.process_time(), now()
    until = start + int(seconds * 1e9)
    passed = await asyncio.gather(*map(work, shares))
    elapsed, cpu = (now() - start) / 1e9, time.process_time() - cpu
    latencies_ns.sort()
    p50, p99 = (latencies_ns[int(part * (len(latencies_ns) - 1))] / 1000 for part in (0.5, 0.99))
    return Sample(len(latencies_ns), sum(passed), elapsed, cpu, p50, p99)


class Meter:
    """What a server says of itself, over a connection of its own."""

    NOT_COUNTED = frozenset({"info", "flushdb", "hello", "client", "select", "ping", "script"})

    def __init__(self, client: Any) -> None:
        self.client = client

    async def commands(self) -> dict[str, tuple[int, int]]:
        """Calls and microseconds of each command so far."""
        stats = await self.client.info("commandstats")
        found = {}
        for name, numbers in stats.items():
            command = name.removeprefix("cmdstat_").partition("|")[0]
            if command not in self.NOT_COUNTED:
                found[command] = (numbers["calls"], numbers["usec"])
        return found

    async def since(self, before: dict[str, tuple[int, int]]) -> tuple[int, int]:
        """The same since then, summed. What a script calls is part of the script's own time."""
        spent = {
            command: (calls - before.get(command, (0, 0))[0], usec - before.get(command, (0, 0))[1])
            for command, (calls, usec) in (await self.commands()).items()
        }
        scripts = [spent[name] for name in ("evalsha", "eval") if spent.get(name, (0,))[0]]
        parts = scripts or list(spent.values())
        return sum(calls for calls, _ in parts), sum(usec for _, usec in parts)

    async def bytes_used(self) -> int:
        """What all keys occupy, with their names."""
        keys = [key async for key in self.client.scan_iter(count=1000)]
        return sum([await self.client.memory_usage(key, samples=0) for key in keys])


def python_driver(asks: dict[tuple[int, int], Ask]) -> Callable[..., Any]:
    async def run(case: Case, clients: Sequence[str], seconds: float) -> Sample:
        ask = asks[case.rules, FEW if case.denied else PLENTY]
        return await drive(ask, clients, case.concurrency, seconds)

    return run


def node_driver(node: Node) -> Callable[..., Any]:
    async def run(case: Case, clients: Sequence[str], seconds: float) -> Sample:
        answer: dict[str, Any] = await node.drive(
            quota=PLENTY, clients=clients, concurrency=case.concurrency, seconds=seconds
        )
        return Sample(**answer)

    return run


async def fault(asks: dict[tuple[int, int], Ask]) -> str:
    """How a contestant fails to limit; nothing if it does not. Ten one by one, ten at once."""
    for (rules, quota), ask in asks.items():
        if quota == FEW:
            in_turn = sum([await ask(f"check: in turn, {rules}") for _ in range(10)])
            at_once = sum(await asyncio.gather(*[ask(f"check: {rules}") for _ in range(10)]))
            if in_turn != FEW or at_once != FEW:
                return (
                    f"with a quota of {FEW} (rules: {rules}) it admits {in_turn} of 10, "
                    f"and {at_once} of 10 at once"
                )
    return ""


async def prepare(
    contestant: Contestant, port: int, stack: AsyncExitStack, rules: Sequence[int]
) -> Measured:
    """Connected and checked, or skipped; if it is ours, the run ends instead."""
    asks: dict[tuple[int, int], Ask] = {}
    entry = Measured(contestant.name, contestant.role, python_driver(asks))
    try:
        for count in rules:
            for quota in (FEW, PLENTY):
                asks[count, quota] = await contestant.build(Setting(port, count, quota, stack))
        entry.skipped = await fault(asks)
    except Exception as error:
        if contestant.role in {"ours", "aside", "floor"}:
            raise
        entry.skipped = f"{type(error).__name__}: {error}"
    if entry.skipped and contestant.role in {"ours", "aside", "floor"}:
        raise SystemExit(f"{entry.name}: {entry.skipped}")
    return entry


async def prepare_node(port: int, folder: str, pipeline: bool, stack: AsyncExitStack) -> Measured:
    name = f"rate-limiter-flexible, ioredis{', auto-pipelined' if pipeline else ''}"
    node = Node(folder, port, pipeline)
    stack.callback(node.end)
    few = partial(node.drive, quota=FEW, seconds=0)
    in_turn = sum([(await few(clients=["one"], concurrency=1))["passed"] for _ in range(10)])
    at_once = (await few(clients=["all"], concurrency=10))["passed"]
    entry = Measured(name, "node", node_driver(node))
    if in_turn != FEW or at_once != FEW:
        entry.skipped = f"admits {in_turn:.0f} of 10, and {at_once:.0f} of 10 at once"
    return entry


async def one_round(
    entry: Measured, case: Case, meter: Meter, clients: Sequence[str], seconds: float
) -> None:
    if case.denied:
        clients = [f"denied:{len(entry.samples.get(case, ()))}:{case.concurrency}"]
    async with asyncio.timeout(MOST_SECONDS):
        await entry.drive(case, clients, WARM_UP * seconds)
        gc.collect()
        before = await meter.commands()
        sample = await entry.drive(case, clients, seconds)
    sample.commands, sample.redis = await meter.since(before)
    due = 0 if case.denied else sample.decisions
    if sample.passed != due:
        entry.skipped = f"{case.title}: {sample.passed} of {sample.decisions} passed, not {due}"
        if entry.role != "peer":
            raise SystemExit(f"{entry.name}: {entry.skipped}")
    entry.samples.setdefault(case, []).append(sample)


async def touch(entry: Measured, clients: Sequence[str]) -> None:
    """Every client once, so that no timed round makes its keys (some need two trips for that)."""
    for case in CASES:
        if case.concurrency == 64 and not case.denied and case.asks(entry.role):
            for start in range(0, len(clients), 64):
                await entry.drive(case, clients[start : start + 64], 0)


@dataclass
class Run:
    """What one run measured, beside the contestants."""

    entries: list[Measured]
    ours: Measured
    bytes_per_key: dict[str, int]
    log_bytes: float
    live: dict[tuple[int, int], list[Sample]]
    """By live keys and concurrency."""
    loads: list[float]
    versions: dict[str, str]


async def measure(options: Namespace, servers: Sequence[Server], step: Callable[[], None]) -> Run:
    clients = [f"198.51.100.{i % 250}:{i // 250}" for i in range(options.clients)]
    shuffle = random.Random(0).shuffle
    loads = [os.getloadavg()[0]]
    async with AsyncExitStack() as stack:
        port = servers[0].port
        meter = Meter(await stack.enter_async_context(Redis.from_url(servers[0].url)))
        everyone = contestants()
        everyone.append(Contestant("ratelimit, MemoryStore", "memory", memory))
        everyone += [
            Contestant(f"ratelimit, {algorithm}", "aside", ours(algorithm, f"{algorithm}:"))
            for algorithm in Algorithm
        ]
        entries = [
            await prepare(c, port, stack, (1,) if c.role in {"aside", "memory"} else tuple(HOURS))
            for c in everyone
        ]
        node = install_node()
        versions = {} if isinstance(node, str) else node[1]
        if isinstance(node, str):
            entries.append(
                Measured("rate-limiter-flexible, ioredis", "node", node_driver, {}, node)
            )
        else:
            stack.callback(shutil.rmtree, node[0], ignore_errors=True)
            entries += [await prepare_node(port, node[0], pipe, stack) for pipe in (False, True)]

        for entry in entries:
            if not entry.skipped:
                await touch(entry, clients)
        for _ in range(options.rounds):
            cases = list(CASES)
            shuffle(cases)
            for case in cases:
                shuffle(entries)
                shuffle(clients)
                for entry in entries:
                    if case.asks(entry.role) and not entry.skipped:
                        await one_round(entry, case, meter, clients, options.seconds)
                step()
            loads.append(os.getloadavg()[0])

        await meter.client.flushdb()
        sizes, log_bytes = await bytes_per_key(servers[0], meter)
        live = await live_keys(options, servers, stack)
        step()
    (first,) = (entry for entry in entries if entry.role == "ours")
    return Run(entries, first, sizes, log_bytes, live, loads, versions)


async def bytes_per_key(server: Server, meter: Meter) -> tuple[dict[str, int], float]:
    """Redis memory of one key with its name, by algorithm; and of the log by logged unit.

    The clock is moved: over two windows for the sliding counter, whose key then holds two counts,
    and by an odd number of microseconds for each unit of a log.
    """
    now_us = 1_790_000_000_123_457

    def clock() -> int:
        return now_us

    sizes: dict[str, int] = {}
    log_bytes = nan
    for algorithm in Algorithm:
        store = RedisStore(server.url, clock=clock, deadline=PATIENCE)
        limit = Limit("1000000 per day", algorithm=algorithm)
        check = Check(limit, "198.51.100.123", 1, "api")
        async with store:
            for cost, later_us in ((400_000, 86_400_000_000), (300_000, 1_234_567), (1, 0)):
                charge = check._replace(cost=1 if algorithm is Algorithm.SLIDING_LOG else cost)
                await store.decide((charge,))
                now_us += later_us
            sizes[algorithm] = await meter.bytes_used()
            await store.reset((check,))
            if algorithm is Algorithm.SLIDING_LOG:
                for _ in range(LOGGED):
                    now_us += 54_321
                    await store.decide((check,))
                log_bytes = await meter.bytes_used() / LOGGED
        await meter.client.flushdb()
    return sizes, log_bytes


async def live_keys(
    options: Namespace, servers: Sequence[Server], stack: AsyncExitStack
) -> dict[tuple[int, int], list[Sample]]:
    """Rounds on a server of few keys and on one of many, by turns, with keys drawn from all."""
    asks: dict[int, tuple[Ask, Meter]] = {}
    for server, count in zip(servers[1:], options.keys, strict=True):
        ask = await ours(Algorithm.SLIDING_COUNTER, "rl:")(Setting(server.port, 1, PLENTY, stack))
        for start in range(0, count, 500):
            await asyncio.gather(*map(ask, names_of(range(start, min(start + 500, count)))))
        client = await stack.enter_async_context(Redis.from_url(server.url))
        if (found := await client.dbsize()) != count:
            raise SystemExit(f"{found} keys are live instead of {count}")
        asks[count] = (ask, Meter(client))
    samples: dict[tuple[int, int], list[Sample]] = {}
    for turn in range(2 * options.rounds + 1):
        for count, (ask, meter) in sorted(asks.items(), reverse=turn % 2 == 1):
            for concurrency in (1, 64):
                # Not a list of all names: each full garbage collection would walk through it.
                drawn = random.Random(turn).sample(range(count), min(count, DRAWN))
                names = names_of(drawn)
                gc.collect()
                before = await meter.commands()
                sample = await drive(ask, names, concurrency, options.seconds)
                sample.commands, sample.redis = await meter.since(before)
                samples.setdefault((count, concurrency), []).append(sample)
    return samples


def names_of(numbers: Iterable[int]) -> list[str]:
    return [f"user:{number:07}" for number in numbers]


def judge(run: Run) -> list[Target]:
    first = run.ours

    def best(role: Role, case: Case) -> float:
        rates = [e.of(case, rate) for e in run.entries if e.role == role and not e.skipped]
        return max((r for r in rates if not isnan(r)), default=nan)

    def of(rules: int, concurrency: int) -> Case:
        return next(c for c in CASES if c[1:] == (rules, concurrency, False, False))

    one, three, many = of(1, 64), of(3, 64), of(1, 256)
    (floor,) = (e for e in run.entries if e.role == "floor")
    alone = of(1, 1)
    denied = next(c for c in CASES if c.denied and c.concurrency == 1)
    few, lots = sorted({count for count, _ in run.live}) if run.live else (0, 0)

    def mean_us(count: int, concurrency: int) -> float:
        return median(1e6 / rate(s) for s in run.live[count, concurrency]) if run.live else 0.0

    flat = [mean_us(lots, c) / mean_us(few, c) if run.live else nan for c in (1, 64)]
    small = [size for name, size in run.bytes_per_key.items() if name != "sliding_log"]
    return [
        Target(
            "Concurrency 64, one rule: our decisions a second / the best Python peer's",
            first.of(one, rate) / best("peer", one), 5,
        ),
        Target(
            "Concurrency 64, three rules: the same",
            first.of(three, rate) / best("peer", three), 10,
        ),
        Target(
            "Concurrency 64, one rule: ours / Node's",
            first.of(one, rate) / best("node", one), 0.8,
        ),
        Target(
            "Concurrency 256, one rule: ours / Node's",
            first.of(many, rate) / best("node", many), 1.5,
        ),
        Target(
            "Concurrency 1, one rule: our median latency / that of redis-py's EVALSHA",
            first.of(alone, lambda s: s.p50) / floor.of(alone, lambda s: s.p50), 1.15, most=True,
        ),
        Target(
            "One denied client at full speed: our decisions a second / MemoryStore's",
            first.of(denied, rate) / best("memory", denied), 0.8,
        ),
        Target(
            f"Time per decision with {lots:,} live keys / with {few:,} (the worse of concurrency "
            "1 and 64)",
            max(flat), 1.3, most=True,
        ),
        Target(
            f"Sliding log: bytes of Redis memory per logged unit, {LOGGED:,} units",
            run.log_bytes, 20, most=True,
        ),
        Target(
            "Bucket and window keys: bytes with their names, the largest", max(small), 150,
            most=True,
        ),
    ]  # fmt: skip


COLUMNS = (
    "contestant", "decisions/s", "/ ours", "p50 µs", "p99 µs", "CPU µs/decision",
    "Redis µs/decision", "commands/decision",
)  # fmt: skip


def tables(run: Run) -> list[Table]:
    shown: list[Table] = []
    for case in CASES:
        able = [entry for entry in run.entries if entry.samples.get(case) and not entry.skipped]
        able.sort(key=lambda entry: -entry.of(case, rate))
        base = able[0].of(case, rate) if case.algorithms else run.ours.of(case, rate)
        rows: list[tuple[str, ...]] = []
        for entry in able:
            number = partial(entry.of, case)
            rows.append(
                (
                    entry.name,
                    f"{number(rate):,.0f}",
                    f"{number(rate) / base:.2f}",
                    f"{number(lambda s: s.p50):,.0f}",
                    f"{number(lambda s: s.p99):,.0f}",
                    f"{number(cpu_us):.1f}",
                    f"{number(redis_us):.1f}",
                    f"{number(lambda s: s.commands / s.decisions):.3f}",
                )
            )
        rows += [
            (entry.name, f"skipped: {entry.skipped}", *[""] * 6)
            for entry in run.entries
            if entry.skipped and case.asks(entry.role)
        ]
        columns = (
            tuple(c.replace("ours", "fastest") for c in COLUMNS) if case.algorithms else COLUMNS
        )
        shown.append(Table(f"{case.title}, concurrency {case.concurrency}", columns, rows))
    rows = []
    for (count, concurrency), samples in sorted(run.live.items(), key=lambda item: item[0][::-1]):
        means = [
            median(map(number, samples)) for number in (lambda s: 1e6 / rate(s), cpu_us, redis_us)
        ]
        name = f"{count:,} keys, concurrency {concurrency}"
        rows.append((name, *(f"{mean:.1f}" for mean in means)))
    columns = ("live keys", "µs/decision", "CPU µs/decision", "Redis µs/decision")
    shown.append(Table("live keys (ratelimit, sliding_counter)", columns, rows))
    rows = [(name, f"{size}") for name, size in run.bytes_per_key.items()]
    rows.append((f"sliding_log, one of {LOGGED:,} units", f"{run.log_bytes:.1f}"))
    title = "bytes of Redis memory for one key and its name, after three requests on two days"
    shown.append(Table(title, ("key", "bytes"), rows))
    return shown


def plot(run: Run) -> str:
    """Writes the picture; returns why not, if not."""
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415  # not needed for the figures
    except ImportError:
        return "plot skipped: matplotlib is not installed"
    figure = Figure(figsize=(11, 6), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    driven = (entry for entry in run.entries if entry.role not in {"aside", "memory"})
    order = sorted(driven, key=lambda entry: (entry.role != "ours", entry.name))
    colours = {entry.name: f"C{i}" for i, entry in enumerate(order)}
    for panel, title in zip(axes, ("one rule", "three rules"), strict=True):
        cases = [case for case in CASES if case.title == title]
        for entry in order:
            points = [(c.concurrency, entry.of(c, rate)) for c in cases if entry.samples.get(c)]
            if points and not entry.skipped:
                panel.plot(
                    *zip(*points, strict=True), marker="o", label=entry.name,
                    color=colours[entry.name], linewidth=3 if entry.role == "ours" else 1.2,
                    linestyle="--" if entry.role in {"node", "floor"} else "-",
                )  # fmt: skip
        panel.set(title=title, xlabel="concurrent requests of one process", xscale="log")
        panel.set_yscale("log")
        panel.set_xticks(CONCURRENCIES, list(map(str, CONCURRENCIES)), minor=False)
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    axes[0].set_ylabel("decisions a second")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.savefig(RESULTS / "redis.png", dpi=120)
    return ""


def about(options: Namespace, binary: str, run: Run) -> dict[str, str]:
    packages = ("redis", "hiredis", "limits", "coredis", "throttled-py", "pyrate-limiter",
                "fastapi-redis-sdk")  # fmt: skip
    found = []
    for package in packages:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(f"{package} (not installed)")
    facts = machine(Namespace(rounds=options.rounds, decisions=0))
    del facts["lua"], facts["load before"]
    return {
        **facts,
        "command": shlex.join(["python", "benchmarks/redis.py", *sys.argv[1:]]),
        "measured": f"{options.rounds} rounds of {options.seconds} s, {options.clients:,} clients",
        "load average": f"{run.loads[0]:.1f} before, "
        f"{', '.join(f'{load:.1f}' for load in run.loads[1:])} after each round "
        "(the run itself keeps nearly two cores busy)",
        "event loop": "uvloop" if options.uvloop else "asyncio",
        "server": binary,
        "versions": ", ".join(
            [*found, *(f"{name} {number}" for name, number in run.versions.items())]
        ),
    }


def write(run: Run, shown: list[Table], lines: list[str], facts: dict[str, str]) -> None:
    RESULTS.mkdir(exist_ok=True)
    heading = ["# The cost of one decision in Redis", ""]
    heading += [f"- {name}: {value}" for name, value in facts.items()]
    heading += ["", *(f"- {line}" for line in lines), "", "![decisions a second](redis.png)"]
    text = "\n".join([*heading, "", *(table.markdown() for table in shown)])
    (RESULTS / "redis.md").write_text(text, encoding="utf-8")
    document = {
        **facts,
        "targets": [target._asdict() for target in judge(run)],
        "contestants": [
            {
                "name": entry.name,
                "role": entry.role,
                "skipped": entry.skipped or None,
                "cases": [
                    {
                        "case": case.title,
                        "concurrency": case.concurrency,
                        "rounds": [rounded(sample) for sample in entry.samples[case]],
                    }
                    for case in CASES
                    if case in entry.samples
                ],
            }
            for entry in sorted(run.entries, key=lambda entry: entry.name)
        ],
        "bytes_per_key": run.bytes_per_key,
        "sliding_log_bytes_per_unit": run.log_bytes,
        "live_keys": [
            {"keys": count, "concurrency": concurrency, "rounds": list(map(rounded, samples))}
            for (count, concurrency), samples in run.live.items()
        ],
    }
    (RESULTS / "redis.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def rounded(sample: Sample) -> dict[str, float]:
    return {name: round(value, 4) for name, value in asdict(sample).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description="What one decision in Redis costs.")
    parser.add_argument("--rounds", type=at_least(1), default=5)
    parser.add_argument(
        "--milliseconds", type=at_least(10), default=400, help="of each contestant in each round"
    )
    parser.add_argument(
        "--keys", type=at_least(1_001), default=1_000_000,
        help="live keys to compare with 1,000; 5,000 with --quick",
    )  # fmt: skip
    parser.add_argument("--uvloop", action="store_true", help="for all Python contestants alike")
    parser.add_argument(
        "--quick", action="store_true", help="one short round, to see that it runs; writes nothing"
    )
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.milliseconds, options.keys = 1, 40, min(options.keys, 5_000)
    options.clients = 256 if options.quick else 1_000
    options.seconds, options.keys = options.milliseconds / 1000, (1_000, options.keys)
    found = binaries()
    if not found:
        raise SystemExit("no server was found; install redis-server, or set RATELIMIT_REDIS_SERVER")
    factory = None
    if options.uvloop:
        import uvloop  # noqa: PLC0415  # an option

        factory = uvloop.new_event_loop
    with ExitStack() as stack:
        servers = [stack.enter_context(serving(found[0].path)) for _ in range(3)]
        with (
            progress(options.rounds * len(CASES) + 1) as step,
            asyncio.Runner(loop_factory=factory) as runner,
        ):
            run = runner.run(measure(options, servers, step))
    facts = about(options, found[0].name, run)
    shown = tables(run)
    lines = [target.line() for target in judge(run)]
    if not options.quick:
        RESULTS.mkdir(exist_ok=True)
        lines += filter(None, [plot(run)])
    show(shown, [*(f"{name}: {value}" for name, value in facts.items()), "", *lines])
    if not options.quick:
        write(run, shown, lines, facts)
