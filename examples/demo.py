"""Shows each algorithm at work on a real application, then what workers share: ``make demo``.

Starts examples/app.py under uvicorn on a free port, sends the same requests to a route of each
algorithm, and draws what passed, waited and was refused as it happens; then a flood, and a refusal
as its client sees it; then two workers on one Redis (shared.py). Ends by itself, with status 0 if
every rule did what it says.
"""

import asyncio
import signal
import sys
import time
from dataclasses import dataclass, field
from typing import Final

import httpx
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text
from servers import application
from shared import show_shared

WINDOW: Final = 2.0  # seconds, as in rules.yaml
QUOTA: Final = 4
LATE: Final = 0.1
"""Seconds that an answer takes at the most, unless the machine is busy: then it is measured."""
CELL: Final = 0.2  # seconds that a column of the picture stands for
CELLS: Final = 36
LABEL: Final = 16

SENT: Final = [*range(12), *range(20, 36, 2)]
"""The columns with a request: a burst across a window's edge, then five in each two seconds."""
EDGE: Final = 5.5
"""Where the window's edge is, in columns."""

AT_MOST: Final = {
    "fixed-window": 2 * QUOTA,
    "sliding-counter": 2 * QUOTA,
    "token-bucket": 2 * QUOTA - 1,
    "leaking-bucket": QUOTA,
    "sliding-log": QUOTA,
}
"""The most that any two seconds may let through; with a leaking bucket, after the wait."""

MARKS: Final = {"passed": ("●", "green"), "waits": ("○", "yellow"), "refused": ("✗", "red")}


@dataclass
class Track:
    """What happened to the requests of one route."""

    name: str
    marks: dict[int, str] = field(default_factory=dict)
    left: list[float] = field(default_factory=list)
    """When each that passed was answered, in seconds since the start."""
    late: float = LATE
    """Seconds that the slowest answer took which waited for nothing."""

    def most(self, late: float = LATE) -> int:
        """The most that passed within two seconds, less the time that answers take here."""
        span = WINDOW - late
        return max(
            (sum(at - span < each <= at for each in self.left) for at in self.left), default=0
        )

    def line(self) -> Text:
        """The track as a line of text."""
        text = Text(f"{self.name:<{LABEL}}", style="bold")
        for column in range(CELLS):
            mark, style = MARKS.get(self.marks.get(column, ""), ("·", "dim"))
            text.append(mark, style=style)
        text.append(f"{self.most(self.late):>4}")
        return text


def picture(tracks: list[Track]) -> Group:
    """All tracks below each other, with the seconds above them."""
    seconds = "".join(f"{second} s".ljust(round(1 / CELL)) for second in range(8))[:CELLS]
    head = Text(f"{'':<{LABEL}}{seconds} most", style="dim")
    foot = Text(f"{'most: passed within any 2 seconds':>{LABEL + CELLS + 5}}", style="dim")
    return Group(head, *(track.line() for track in tracks), foot)


async def send(client: httpx.AsyncClient, track: Track, column: int, start: float) -> None:
    """One real request at its time."""
    await asyncio.sleep(start + column * CELL - time.perf_counter())
    sent = time.perf_counter()
    waits = asyncio.get_running_loop().call_later(0.1, track.marks.setdefault, column, "waits")
    response = await client.get(f"/{track.name}")
    waits.cancel()
    took = time.perf_counter() - sent
    if response.status_code == 200:
        track.left.append(time.perf_counter() - start)
    if response.status_code != 200 or track.name != "leaking-bucket":
        track.late = max(track.late, took)
    passed = "waits" if took > 0.1 else "passed"
    track.marks[column] = passed if response.status_code == 200 else "refused"


async def play(client: httpx.AsyncClient, live: Live, tracks: list[Track]) -> None:
    """Sends the same requests to each route, and draws until all are answered."""
    # Windows start at whole multiples of their length; the burst goes across such a start.
    now = time.time()
    edge = now - now % WINDOW + WINDOW + (WINDOW if WINDOW - now % WINDOW < EDGE * CELL else 0)
    start = time.perf_counter() + edge - now - EDGE * CELL
    requests = [send(client, track, column, start) for track in tracks for column in SENT]
    tasks = [asyncio.ensure_future(each) for each in requests]
    while not all(task.done() for task in tasks):
        live.update(picture(tracks))
        await asyncio.sleep(0.05)
    for task in tasks:
        task.result()
    live.update(picture(tracks))


async def flood(client: httpx.AsyncClient, count: int) -> tuple[Track, int, float]:
    """So many requests as fast as they go: what passed, how many were refused, in what time."""
    track, refused, start = Track("sliding-log"), 0, time.perf_counter()
    few = asyncio.Semaphore(20)

    async def one() -> None:
        nonlocal refused
        async with few:
            sent = time.perf_counter()
            response = await client.get("/sliding-log")
            track.late = max(track.late, time.perf_counter() - sent)
        refused += response.status_code == 429
        if response.status_code == 200:
            track.left.append(time.perf_counter() - start)

    await asyncio.gather(*(one() for _ in range(count)))
    return track, refused, time.perf_counter() - start


async def show_algorithms(console: Console) -> bool:
    """Plays the first part; True if each rule let through what it says."""
    tracks = [Track(name) for name in AT_MOST]
    limits = httpx.Limits(max_connections=20)
    with application() as url:
        async with httpx.AsyncClient(base_url=url, limits=limits, timeout=30) as client:
            await client.get("/")
            console.print(
                f"The same requests, five algorithms, {QUOTA} per 2 seconds", style="bold"
            )
            console.print("● passes  ○ passes after a wait  ✗ refused with 429\n", style="dim")
            with Live(console=console, refresh_per_second=20) as live:
                await play(client, live, tracks)
            console.print("" if console.is_terminal else "\n")  # elsewhere the last line is open
            await asyncio.sleep(WINDOW)
            burst, refused, took = await flood(client, 1000)
            console.print(
                f"1,000 requests at once to /sliding-log: {len(burst.left)} passed, {refused} were "
                f"refused, in {took:.1f} s; within any 2 s {burst.most(burst.late)} passed\n"
            )
            refusal = await client.get("/report")
            while refusal.status_code == 200:
                refusal = await client.get("/report")
    console.print("A refusal, as its client sees it", style="bold")
    console.print(f"  HTTP/1.1 {refusal.status_code} Too Many Requests", style="red")
    for name in ("retry-after", "ratelimit-policy", "ratelimit", "content-type"):
        console.print(f"  {name}: {refusal.headers[name]}", highlight=False, markup=False)
    late = max(track.late for track in tracks)
    right = all(track.most(late) <= AT_MOST[track.name] for track in tracks)
    right &= all(len(track.left) >= 2 * QUOTA for track in tracks)
    right &= tracks[0].most() > QUOTA and len(burst.left) + refused == 1000
    right &= burst.most(burst.late) <= QUOTA
    if not right:
        console.print("that is not what the rules say", style="red")
    return right


async def show(console: Console) -> bool:
    """Plays all of it; True if every rule did what it says."""
    alone = await show_algorithms(console)
    together = await show_shared(console)
    return alone and together


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # by which what it started ends too
    try:
        sys.exit(0 if asyncio.run(show(Console())) else 1)
    except KeyboardInterrupt:
        sys.exit(130)
