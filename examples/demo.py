"""Shows each algorithm at work on a real application: ``make demo``.

Starts examples/app.py under uvicorn on a free port, sends it real requests, and prints what passed,
what waited and what was refused. Ends by itself, with status 0 if every rule did what it says.
"""

import asyncio
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

HERE = Path(__file__).parent
WINDOW = 2.0  # seconds, as in rules.yaml
COLOURS = {"passed": "green", "waited": "yellow", "refused": "red"}


class Answer(NamedTuple):
    """One request, as its client saw it."""

    at: float
    status: int
    took: float
    headers: httpx.Headers

    @property
    def left(self) -> int:
        """What the server said is left, which is also the order in which it decided."""
        return int(re.search(r"r=(\d+)", self.headers["ratelimit"])[1])  # type: ignore[index]

    @property
    def outcome(self) -> str:
        """Passed, waited for its turn, or refused."""
        if self.status == 429:
            return "refused"
        return "waited" if self.took > 0.1 else "passed"


class Scene(NamedTuple):
    """One algorithm: what is sent, and how many requests have to pass."""

    path: str
    story: str
    first: int
    pause: float
    then: int
    passing: int


SCENES = (
    Scene("/token-bucket", "4 per 2 s: a burst of 4, then one every half second", 6, 1.05, 4, 6),
    Scene("/leaking-bucket", "5 per second: 5 queue, and leave 0.2 s apart", 7, 0.0, 0, 5),
    Scene("/fixed-window", "4 per window of 2 s: full again at the next window", 6, WINDOW, 5, 8),
    Scene("/sliding-log", "4 in any 2 s: exact, room again as each one leaves", 6, 2.05, 5, 8),
    Scene("/sliding-counter", "4 in any 2 s, estimated from two windows", 6, WINDOW + 1.05, 5, 7),
)


@contextmanager
def serving() -> Iterator[str]:
    """The example application under uvicorn, on a port of the system's choice; gives its URL."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(128)
        port = listener.getsockname()[1]
        command = [sys.executable, "-m", "uvicorn", "--app-dir", str(HERE), "app:app"]
        command += ["--fd", str(listener.fileno()), "--log-level", "warning"]
        server = subprocess.Popen(command, pass_fds=[listener.fileno()], env=os.environ.copy())
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()


async def send(client: httpx.AsyncClient, path: str, start: float) -> Answer:
    """One real request."""
    sent = time.perf_counter()
    response = await client.get(path)
    return Answer(sent - start, response.status_code, time.perf_counter() - sent, response.headers)


async def play(client: httpx.AsyncClient, scene: Scene) -> list[Answer]:
    """Sends a scene's requests: some at once, and after a pause some more."""
    # Windows start at whole multiples of their length, so the two of them start at one.
    if scene.path in ("/fixed-window", "/sliding-counter"):
        await asyncio.sleep(WINDOW - time.time() % WINDOW + 0.02)
    start = time.perf_counter()
    answers = await asyncio.gather(*(send(client, scene.path, start) for _ in range(scene.first)))
    await asyncio.sleep(max(0.0, scene.pause - (time.perf_counter() - start)))
    later = await asyncio.gather(*(send(client, scene.path, start) for _ in range(scene.then)))
    return sorted(
        [*answers, *later],
        key=lambda it: (it.at > 0.5, it.outcome == "refused", it.outcome == "waited", -it.left),
    )


def tabulate(scene: Scene, answers: list[Answer]) -> Table:
    """What the client saw, a line per request."""
    table = Table(title=f"{scene.path[1:]}  [dim]{scene.story}[/dim]", title_justify="left")
    for column in ("at", "outcome", "waited", "RateLimit", "Retry-After"):
        table.add_column(column, justify="right" if column in ("at", "waited") else "left")
    for answer in answers:
        table.add_row(
            f"{answer.at:.2f} s",
            f"[{COLOURS[answer.outcome]}]{answer.outcome} {answer.status}[/]",
            f"{answer.took:.2f} s" if answer.outcome == "waited" else "",
            answer.headers.get("ratelimit", ""),
            answer.headers.get("retry-after", ""),
        )
    return table


async def show(console: Console) -> bool:
    """Plays all scenes; True if each let through what its rule says."""
    right = True
    with serving() as url, Progress(
        SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=console,
        transient=True,
    ) as progress:  # fmt: skip
        limits = httpx.Limits(max_keepalive_connections=0)
        async with httpx.AsyncClient(base_url=url, limits=limits, timeout=30) as client:
            task = progress.add_task(f"starting uvicorn on {url}", total=None)
            await client.get("/")
            console.print(f"examples/app.py is served at {url}, limits from examples/rules.yaml\n")
            for scene in SCENES:
                progress.update(task, description=f"sending requests to {scene.path}")
                answers = await play(client, scene)
                console.print(tabulate(scene, answers))
                passed = sum(answer.status == 200 for answer in answers)
                if passed != scene.passing:
                    right = False
                    console.print(f"[red]{passed} passed, {scene.passing} should have[/red]")
                console.print()
            refusal = await client.get("/report")
            while refusal.status_code == 200:
                refusal = await client.get("/report")
    console.print("A refusal, whole (a route with @limit('2/minute')):")
    console.print(f"  HTTP {refusal.status_code}", style="red")
    for name in ("content-type", "retry-after", "ratelimit-policy", "ratelimit"):
        console.print(f"  {name}: {refusal.headers[name]}", highlight=False, markup=False)
    console.print(f"  {refusal.text}", highlight=False, markup=False, soft_wrap=True)
    return right


if __name__ == "__main__":
    sys.exit(0 if asyncio.run(show(Console())) else 1)
