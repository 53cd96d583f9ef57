"""What one in-process decision costs, here and in three other libraries, in one run.

``python benchmarks/decisions.py`` (README.md beside this file says what is measured, and how).
"""

import argparse
import asyncio
import gc
import importlib
import json
import os
import platform
import random
import shlex
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from math import isnan
from pathlib import Path
from statistics import median
from typing import Any, Literal, NamedTuple

from limits import RateLimitItemPerDay
from limits.aio import storage as limits_storage
from limits.aio import strategies as limits_strategies
from pyrate_limiter import (
    AbstractBucket,
    AbstractClock,
    BucketFactory,
    FixedWindow,
    InMemoryBucket,
    Limiter,
    MonotonicClock,
    Rate,
    RateItem,
    SlidingWindowLog,
    StateBucket,
    TokenBucket,
)
from throttled.asyncio import MemoryStore as ThrottledStore
from throttled.asyncio import Throttled
from throttled.asyncio.rate_limiter import per_day

from ratelimit.decisions import Check
from ratelimit.limits import Algorithm, Limit
from ratelimit.stores.memory import MemoryStore

try:
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table as RichTable
except ImportError:
    RICH = False
else:
    RICH = True

KEYS = 1_000
WARM_UP = 10_000
"""Untimed decisions on other keys: a long-lived process has its traces compiled."""
DAY_MS = 86_400_000
TARGET = 0.5
RESULTS = Path(__file__).parent / "results"

Runtime = Literal["luajit21", "lua51"]


class Facts(NamedTuple):
    """What a contestant told about the keys it was driven over."""

    admitted: int
    remaining: int | None
    """As told with the last decision; None where only the verdict was asked for."""
    reset: float | None
    """The same: the contestant's own instant or duration, in its own unit."""


Drive = Callable[[Sequence[str]], Awaitable[Facts]]
"""One decision of cost 1 per key, awaited one after the other."""


@dataclass(frozen=True)
class Contestant:
    """One library at one algorithm; ``build`` takes a quota per day and starts empty."""

    algorithm: Algorithm
    name: str
    role: Literal["ours", "ours, Lua 5.1", "peer", "aside"]
    build: Callable[[int], Drive]


def ours(algorithm: Algorithm, runtime: Runtime, quota: int) -> Drive:
    limit = Limit(f"{quota}/day", algorithm=algorithm)
    decide = MemoryStore(runtime=runtime).decide

    async def drive(keys: Sequence[str]) -> Facts:
        admitted, remaining, reset = 0, 0, 0
        for key in keys:
            (decision,) = await decide((Check(limit, key),))
            admitted += decision.allowed
            remaining = decision.remaining
            reset = decision.reset_after_us
        return Facts(admitted, remaining, reset)

    return drive


def ours_prebuilt(algorithm: Algorithm, quota: int) -> Drive:
    limit = Limit(f"{quota}/day", algorithm=algorithm)
    decide = MemoryStore(runtime="luajit21").decide
    built: dict[str, tuple[Check]] = {}

    async def drive(keys: Sequence[str]) -> Facts:
        admitted, remaining, reset = 0, 0, 0
        for key in keys:
            checks = built.get(key)
            if checks is None:
                checks = built[key] = (Check(limit, key),)
            (decision,) = await decide(checks)
            admitted += decision.allowed
            remaining = decision.remaining
            reset = decision.reset_after_us
        return Facts(admitted, remaining, reset)

    return drive


def limits(strategy: type[limits_strategies.RateLimiter], facts: bool, quota: int) -> Drive:
    limiter = strategy(limits_storage.MemoryStorage())
    item = RateLimitItemPerDay(quota)
    hit, get_window_stats = limiter.hit, limiter.get_window_stats

    async def drive(keys: Sequence[str]) -> Facts:
        admitted, remaining, reset = 0, 0, 0.0
        for key in keys:
            admitted += await hit(item, key)
            stats = await get_window_stats(item, key)
            remaining = stats.remaining
            reset = stats.reset_time
        return Facts(admitted, remaining, reset)

    async def drive_verdicts(keys: Sequence[str]) -> Facts:
        admitted = 0
        for key in keys:
            admitted += await hit(item, key)
        return Facts(admitted, None, None)

    return drive if facts else drive_verdicts


def throttled(using: str, facts: bool, quota: int) -> Drive:
    # Its store keeps 1,024 keys unless told otherwise, and would evict live ones here.
    store = ThrottledStore(options={"MAX_SIZE": 1_000_000})
    decide = Throttled(using=using, quota=per_day(quota, burst=quota), store=store).limit

    async def drive(keys: Sequence[str]) -> Facts:
        admitted, remaining, reset = 0, 0, 0.0
        for key in keys:
            result = await decide(key)
            admitted += not result.limited
            state = result.state
            remaining = state.remaining
            reset = state.reset_after
        return Facts(admitted, remaining, reset)

    async def drive_verdicts(keys: Sequence[str]) -> Facts:
        admitted = 0
        for key in keys:
            admitted += not (await decide(key)).limited
        return Facts(admitted, None, None)

    return drive if facts else drive_verdicts


class PyrateBuckets(BucketFactory):
    """A bucket per key, as pyrate-limiter's documentation builds one; it has no keyed limiter."""

    def __init__(self, build: Callable[[str], AbstractBucket], clock: AbstractClock) -> None:
        self.build = build
        self.now: Any = clock.now
        self.buckets: dict[str, AbstractBucket] = {}

    def wrap_item(self, name: str, weight: int = 1) -> RateItem:
        return RateItem(name, self.now(), weight)

    def get(self, item: RateItem) -> AbstractBucket:
        bucket = self.buckets.get(item.name)
        if bucket is None:
            # Not self.create(): its thread would leak buckets during others' rounds.
            bucket = self.buckets[item.name] = self.build(item.name)
        return bucket


def pyrate(algorithm: Algorithm, facts: bool, quota: int) -> Drive:
    """It tells the verdict alone; remaining and reset are read from the bucket afterwards.

    A log's remaining is the limit less ``count()``, without the ``leak()`` before it that would
    make it true once entries are outdated; its reset is when the newest entry leaves.
    """
    rate, clock = Rate(quota, DAY_MS), MonotonicClock()
    window = FixedWindow() if algorithm is Algorithm.FIXED_WINDOW else SlidingWindowLog()
    if algorithm is Algorithm.TOKEN_BUCKET:
        factory = PyrateBuckets(lambda _: StateBucket([rate], algorithm=TokenBucket()), clock)
    else:
        factory = PyrateBuckets(lambda _: InMemoryBucket([rate], algorithm=window), clock)
    acquire, buckets = Limiter(factory).try_acquire_async, factory.buckets

    async def drive_log(keys: Sequence[str]) -> Facts:
        admitted, remaining, reset = 0, 0, 0
        for key in keys:
            admitted += await acquire(key, blocking=False)
            bucket: Any = buckets[key]
            remaining = quota - bucket.count()
            reset = bucket.peek(0).timestamp + DAY_MS
        return Facts(admitted, remaining, reset)

    async def drive_fixed(keys: Sequence[str]) -> Facts:
        admitted, remaining, reset = 0, 0, 0
        for key in keys:
            admitted += await acquire(key, blocking=False)
            bucket: Any = buckets[key]
            remaining = quota - bucket.count()
            reset = window.window_start(rate, bucket.now()) + DAY_MS
        return Facts(admitted, remaining, reset)

    async def drive_bucket(keys: Sequence[str]) -> Facts:
        admitted, remaining, reset = 0, 0, 0.0
        for key in keys:
            admitted += await acquire(key, blocking=False)
            bucket: Any = buckets[key]
            owed = bucket.count()
            remaining = quota - owed
            reset = owed * DAY_MS / quota
        return Facts(admitted, remaining, reset)

    async def drive_verdicts(keys: Sequence[str]) -> Facts:
        admitted = 0
        for key in keys:
            admitted += await acquire(key, blocking=False)
        return Facts(admitted, None, None)

    if not facts:
        return drive_verdicts
    match algorithm:
        case Algorithm.FIXED_WINDOW:
            return drive_fixed
        case Algorithm.SLIDING_LOG:
            return drive_log
        case _:
            return drive_bucket


LIMITS_STRATEGIES: dict[Algorithm, type[limits_strategies.RateLimiter]] = {
    Algorithm.FIXED_WINDOW: limits_strategies.FixedWindowRateLimiter,
    Algorithm.SLIDING_LOG: limits_strategies.MovingWindowRateLimiter,
    Algorithm.SLIDING_COUNTER: limits_strategies.SlidingWindowCounterRateLimiter,
}
THROTTLED_TYPES: dict[Algorithm, tuple[str, ...]] = {
    Algorithm.FIXED_WINDOW: ("fixed_window",),
    Algorithm.SLIDING_COUNTER: ("sliding_window",),
    Algorithm.TOKEN_BUCKET: ("token_bucket", "gcra"),
    Algorithm.LEAKING_BUCKET: ("leaking_bucket",),
}
PYRATE_ALGORITHMS = (Algorithm.FIXED_WINDOW, Algorithm.SLIDING_LOG, Algorithm.TOKEN_BUCKET)


def contestants() -> Iterator[Contestant]:
    for algorithm in Algorithm:
        yield Contestant(
            algorithm, "ratelimit, LuaJIT", "ours", partial(ours, algorithm, "luajit21")
        )
        yield Contestant(
            algorithm, "ratelimit, Lua 5.1", "ours, Lua 5.1", partial(ours, algorithm, "lua51")
        )
        yield Contestant(
            algorithm, "ratelimit, LuaJIT, Check built before", "aside",
            partial(ours_prebuilt, algorithm),
        )  # fmt: skip
        peers: list[tuple[str, Callable[[bool, int], Drive]]] = []
        if algorithm in LIMITS_STRATEGIES:
            peers.append(("limits", partial(limits, LIMITS_STRATEGIES[algorithm])))
        peers += [
            (f"throttled-py, {using}", partial(throttled, using))
            for using in THROTTLED_TYPES.get(algorithm, ())
        ]
        if algorithm in PYRATE_ALGORITHMS:
            peers.append(("pyrate-limiter", partial(pyrate, algorithm)))
        for name, build in peers:
            yield Contestant(algorithm, name, "peer", partial(build, True))
            yield Contestant(algorithm, f"{name}, verdict only", "aside", partial(build, False))


async def fault(contestant: Contestant) -> str | None:
    """How this contestant fails to limit, or to tell what the others tell; None if it does not."""
    drive = contestant.build(5)
    for key in ("alice", "bob"):
        first = await drive([key] * 3)
        rest = await drive([key] * 7)
        admitted = first.admitted + rest.admitted
        if admitted != 5:
            return f"admits {admitted} of 10 with a quota of 5"
        if first.remaining not in (2, None) or rest.remaining not in (0, None):
            return f"tells {first.remaining} and {rest.remaining} remaining instead of 2 and 0"
        if first.reset is not None and first.reset <= 0:
            return f"tells a reset of {first.reset}"
    return None


async def settle() -> None:
    """Lets background work that a contestant started (limits sweeps its keys) end, untimed."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    if others:
        await asyncio.wait(others)


async def one_round(contestant: Contestant, keys: Sequence[str], passes: int) -> tuple[float, int]:
    """Nanoseconds per decision, and how many were admitted.

    The quota is the number of timed passes and one more was made untimed, so that exactly one
    decision per key is refused.
    """
    drive = contestant.build(passes)
    await drive([f"warm:{i % 100:04}" for i in range(WARM_UP)])
    await drive(keys)
    asked = list(keys) * passes
    await settle()
    gc.collect()
    start_ns = time.perf_counter_ns()
    facts = await drive(asked)
    elapsed_ns = time.perf_counter_ns() - start_ns
    await settle()
    return elapsed_ns / len(asked), facts.admitted


@dataclass
class Measured:
    """A contestant's mean per round in nanoseconds, or why it was not measured."""

    contestant: Contestant
    rounds_ns: list[float]
    skipped: str | None = None

    @property
    def ns(self) -> float:
        return median(self.rounds_ns)


async def measure(rounds: int, passes: int, step: Callable[[], None]) -> list[Measured]:
    measured = [Measured(contestant, []) for contestant in contestants()]
    for entry in measured:
        entry.skipped = await fault(entry.contestant)
        refuse_if_ours(entry)
        await settle()

    shuffle = random.Random(0).shuffle
    keys = [f"user:{i:04}" for i in range(KEYS)]
    expected = KEYS * (passes - 1)
    for _ in range(rounds):
        order = list(measured)
        shuffle(order)
        shuffle(keys)
        for entry in order:
            if entry.skipped is None:
                ns, admitted = await one_round(entry.contestant, keys, passes)
                entry.rounds_ns.append(ns)
                if admitted != expected:
                    entry.skipped = f"admitted {admitted} instead of {expected} in a timed round"
                    refuse_if_ours(entry)
            step()
    return measured


def refuse_if_ours(entry: Measured) -> None:
    """A peer's fault is shown in its row; with one of ours, no number would mean anything."""
    if entry.skipped and entry.contestant.name.startswith("ratelimit"):
        raise SystemExit(f"{entry.contestant.name}, {entry.contestant.algorithm}: {entry.skipped}")


class Table(NamedTuple):
    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]

    def markdown(self) -> str:
        rule = ("---", *("---:" for _ in self.columns[1:]))
        lines = (f"| {' | '.join(cells)} |" for cells in (self.columns, rule, *self.rows))
        return "\n".join((f"### {self.title}", "", *lines, ""))


class Target(NamedTuple):
    """One line of what is to be reached."""

    what: str
    value: float
    bound: float
    most: bool = False

    def line(self) -> str:
        """The value, the bound, and whether it is met."""
        if isnan(self.value):
            return f"{self.what}: not measured."
        met = self.value <= self.bound if self.most else self.value >= self.bound
        word = "at most" if self.most else "at least"
        return (
            f"{self.what}: {self.value:.3g}; target {word} {self.bound:.3g}: "
            f"{'met' if met else 'NOT met'}."
        )


class Verdict(NamedTuple):
    """Medians over the algorithms that a peer has, of our time divided by the fastest peer's."""

    algorithms: int
    luajit: float
    lua51: float
    against_verdicts: float
    """LuaJIT against the fastest peer asked for the verdict alone, while ours tells everything."""

    def lines(self) -> list[str]:
        outcome = "met" if self.luajit <= TARGET else "NOT met"
        ratio = f"Ours (LuaJIT) / fastest peer, median over {self.algorithms} of {len(Algorithm)}"
        return [
            f"{ratio} algorithms: {self.luajit:.2f}; target at most {TARGET}: {outcome}.",
            f"Lua 5.1 / fastest peer: {self.lua51:.2f}.",
            f"LuaJIT / fastest peer asked for its verdict alone: {self.against_verdicts:.2f}.",
        ]


def judge(measured: list[Measured]) -> tuple[list[Table], Verdict]:
    """A table per algorithm, fastest first, and what they come to."""
    tables: list[Table] = []
    ratios: list[tuple[float, float, float]] = []
    for algorithm in Algorithm:
        entries = [entry for entry in measured if entry.contestant.algorithm is algorithm]
        able = sorted((e for e in entries if e.skipped is None), key=lambda e: e.ns)
        peers = [e.ns for e in able if e.contestant.role == "peer"]
        fastest = min(peers, default=float("nan"))
        rows: list[tuple[str, ...]] = [
            (e.contestant.name, f"{e.ns:,.0f}", f"{e.ns / fastest:.2f}") for e in able
        ]
        rows += [(e.contestant.name, f"skipped: {e.skipped}", "") for e in entries if e.skipped]
        tables.append(Table(algorithm, ("contestant", "ns per decision", "/ fastest peer"), rows))
        if peers:
            ns = {e.contestant.role: e.ns for e in able}
            verdicts = (e.ns for e in able if e.contestant.name.endswith("verdict only"))
            ratios.append(
                (
                    ns["ours"] / fastest,
                    ns["ours, Lua 5.1"] / fastest,
                    ns["ours"] / min(*peers, *verdicts),
                )
            )
    if not ratios:
        raise SystemExit("no peer limits as asked, so there is nothing to compare with")
    luajit, lua51, against_verdicts = (median(column) for column in zip(*ratios, strict=True))
    return tables, Verdict(len(ratios), luajit, lua51, against_verdicts)


async def break_down(rounds: int) -> Table:
    """Where the time of one of our token-bucket decisions goes, the Check being built before."""
    limit = Limit("1000000/day", algorithm=Algorithm.TOKEN_BUCKET)
    checks = [(Check(limit, f"user:{i:04}"),) for i in range(KEYS)] * 10
    columns: list[list[float]] = []
    for runtime in ("luajit21", "lua51"):
        store = MemoryStore(runtime=runtime)
        await store.decide(checks[0])
        # The one place that looks inside the store: to record what its Lua is called with.
        inside = vars(store)
        call = inside["_alike"]
        calls: list[tuple[Any, ...]] = []

        def record(*arguments: Any, call: Any = call, calls: list[tuple[Any, ...]] = calls) -> Any:
            calls.append(arguments)
            return call(*arguments)

        inside["_alike"] = record
        for check in checks:
            await store.decide(check)
        inside["_alike"] = call
        empty = empty_function(runtime, len(calls[0]), call(*calls[0]))

        async def nothing(_: Sequence[Check]) -> None:
            pass

        async def awaited(function: Callable[[Any], Awaitable[object]]) -> None:
            for check in checks:
                await function(check)

        async def called(function: Callable[..., object], calls: Any = calls) -> None:
            for arguments in calls:
                function(*arguments)

        def forgotten(*_: object) -> None:
            pass

        parts: dict[str, list[float]] = {}
        for _ in range(3 * rounds):
            for name, run in (
                ("whole", partial(awaited, store.decide)),
                ("await", partial(awaited, nothing)),
                ("lua", partial(called, call)),
                ("lupa", partial(called, empty)),
                ("loop", partial(called, forgotten)),
            ):
                gc.collect()
                start_ns = time.perf_counter_ns()
                await run()
                parts.setdefault(name, []).append((time.perf_counter_ns() - start_ns) / len(checks))
        # The best, since the parts are subtracted from each other and a neighbour's burst would
        # land in one of them. The loop around a bare call is no part of a decision.
        ns = {name: min(values) for name, values in parts.items()}
        lua, lupa = ns["lua"] - ns["loop"], ns["lupa"] - ns["loop"]
        columns.append(
            [ns["await"], lupa, lua - lupa, ns["whole"] - ns["await"] - lua, ns["whole"]]
        )
    names = (
        "awaiting a coroutine that does nothing",
        "lupa: an empty Lua function with the same arguments and results",
        "the Lua itself",
        "the rest: clock, lock, key, Decision",
        "the whole decision",
    )
    rows = [
        (name, *(f"{column[i]:,.0f} ({column[i] / column[-1]:.0%})" for column in columns))
        for i, name in enumerate(names)
    ]
    title = "Where our time goes: one token-bucket decision, the Check built before"
    return Table(title, ("part", "LuaJIT, ns", "Lua 5.1, ns"), rows)


def empty_function(runtime: str, arguments: int, results: tuple[int, ...]) -> Any:
    lua = importlib.import_module(f"lupa.{runtime}").LuaRuntime(
        encoding=None, register_eval=False, register_builtins=False, unpack_returned_tuples=True
    )
    names = ", ".join(f"a{i}" for i in range(arguments))
    values = ", ".join(map(str, results))
    return lua.execute(f"return function({names}) return {values} end".encode())


@contextmanager
def progress(steps: int) -> Iterator[Callable[[], None]]:
    """A bar on standard error, drawn between timed rounds; nothing where that is no terminal."""
    if not sys.stderr.isatty():
        yield lambda: None
        return
    if not RICH:
        done = 0

        def count() -> None:
            nonlocal done
            done += 1
            print(f"\r{done / steps:4.0%}", end="", file=sys.stderr, flush=True)

        yield count
        print(file=sys.stderr)
        return
    # Refreshed by hand: a thread that draws would take the interpreter from what is measured.
    with Progress(console=Console(stderr=True), auto_refresh=False, transient=True) as bar:
        task = bar.add_task("measuring", total=steps)

        def draw() -> None:
            bar.advance(task)
            bar.refresh()

        yield draw


def show(tables: list[Table], lines: list[str]) -> None:
    if not (RICH and sys.stdout.isatty()):
        print(*(table.markdown() for table in tables), *lines, sep="\n")
        return
    console = Console()
    for table in tables:
        shown = RichTable(title=table.title, title_justify="left")
        for i, column in enumerate(table.columns):
            shown.add_column(column, justify="right" if i else "left")
        for row in table.rows:
            shown.add_row(*row)
        console.print(shown)
    console.print(*lines, sep="\n", highlight=False)


def machine(options: argparse.Namespace) -> dict[str, str]:
    try:
        cpu = next(
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        )
    except (OSError, StopIteration):
        cpu = platform.processor() or platform.machine()
    arguments = shlex.join(["python", "benchmarks/decisions.py", *sys.argv[1:]])
    packages = ("limits", "throttled-py", "pyrate-limiter", "lupa")
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": arguments,
        "measured": f"{options.rounds} rounds of {options.decisions:,} decisions, {KEYS:,} keys",
        "cpu": f"{cpu}, {os.cpu_count()} cores",
        "load before": f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown",
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "versions": ", ".join(f"{name} {version(name)}" for name in packages),
        "lua": ", ".join(MemoryStore(runtime=runtime).lua for runtime in ("luajit21", "lua51")),
    }


def write(
    measured: list[Measured], tables: list[Table], verdict: Verdict, facts: dict[str, str]
) -> None:
    RESULTS.mkdir(exist_ok=True)
    heading = ["# The cost of one in-process decision", ""]
    heading += [f"- {name}: {value}" for name, value in facts.items()]
    heading += ["", *(f"**{line}**" if not i else line for i, line in enumerate(verdict.lines()))]
    text = "\n".join([*heading, "", *(table.markdown() for table in tables)])
    (RESULTS / "decisions.md").write_text(text, encoding="utf-8")
    document = {
        **facts,
        "median_ratios": verdict._asdict(),
        "target": TARGET,
        "contestants": [
            {
                "algorithm": entry.contestant.algorithm,
                "name": entry.contestant.name,
                "role": entry.contestant.role,
                "skipped": entry.skipped,
                "ns_per_decision": None if entry.skipped else round(entry.ns, 1),
                "rounds_ns": [round(ns, 1) for ns in entry.rounds_ns],
            }
            for entry in measured
        ],
        "breakdown": [dict(zip(tables[-1].columns, row, strict=True)) for row in tables[-1].rows],
    }
    (RESULTS / "decisions.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r}; a whole number of at least {least}")
        return int(text)

    return number


def main() -> None:
    parser = argparse.ArgumentParser(description="What one in-process decision costs.")
    parser.add_argument("--rounds", type=at_least(1), default=9)
    parser.add_argument(
        "--decisions", type=at_least(2 * KEYS), default=20_000,
        help=f"per round and contestant; rounded down to whole passes over {KEYS} keys",
    )  # fmt: skip
    parser.add_argument(
        "--quick", action="store_true",
        help="3 rounds of 5,000 decisions, to see that it runs; nothing is written",
    )  # fmt: skip
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.decisions = 3, 5_000
    passes = options.decisions // KEYS
    options.decisions = passes * KEYS

    facts = machine(options)
    with progress(options.rounds * len(list(contestants()))) as step:
        measured = asyncio.run(measure(options.rounds, passes, step))
    tables, verdict = judge(measured)
    tables.append(asyncio.run(break_down(options.rounds)))
    show(tables, verdict.lines())
    if not options.quick:
        write(measured, tables, verdict, facts)


if __name__ == "__main__":
    main()
