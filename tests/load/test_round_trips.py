"""Round trips that are long, but within the deadline: hardly any decision is degraded."""

import json
from collections.abc import Callable
from typing import Final, NamedTuple

import pytest

from tests.load.cells import LOOPS, RUNS
from tests.load.inprocess import Outcome, paced, run_in
from tests.load.machine import ATTEMPTS, ended, needs_two_cores, on_core, redis, started
from tests.load.pipe import Trip
from tests.load.table import Figures, Table

pytestmark = [pytest.mark.slow, needs_two_cores]

SECONDS: Final = 6.0


class Way(NamedTuple):
    """How far away Redis is (milliseconds), how much is asked, and which share may be degraded."""

    round_trip: int
    jitter: int
    deadline: int
    rate: int
    share: float

    def __str__(self) -> str:
        jitter = f" and {self.jitter} ms of jitter" if self.jitter else ""
        return (
            f"round trips of {self.round_trip} ms{jitter} under {self.deadline} ms, {self.rate}/s"
        )


WAYS: Final = [
    *(Way(round_trip, 10, 100, 500, 0.001) for round_trip in (1, 10, 30, 40)),
    Way(40, 0, 50, 200, 0.02),
]


def carried(way: Way, loop: str) -> tuple[Outcome, list[Trip]]:
    """Asks at an even pace over a way of this length; what came of it, and the pipe's record."""
    with (
        redis() as server,
        ended(
            started("pipe", server.port, way.round_trip / 1000, way.jitter / 1000, core=0)
        ) as pipe,
    ):
        if pipe.stdout is None:
            raise RuntimeError("a process without pipes")
        url = f"redis://127.0.0.1:{int(pipe.stdout.readline())}/0"
        with on_core(1):
            outcome = run_in(loop, paced(url, way.rate, SECONDS, way.deadline / 1000))
        said, _ = pipe.communicate(timeout=20)
    return outcome, [Trip(*each) for each in json.loads(said)]


EACH: Final = [
    (way, loop)
    for number, way in enumerate(WAYS)
    for loop in (LOOPS if RUNS else LOOPS[number % 2 :][:1])
]
"""Each way on each loop; in `make test-all` on one of them, in turn."""


@pytest.mark.parametrize("run", range(1, max(RUNS, 1) + 1))
@pytest.mark.parametrize(("way", "loop"), EACH, ids=str)
def test_a_long_way_to_redis_degrades_hardly_any_decision(
    way: Way, loop: str, run: int, table: Table, say: Callable[[str], None]
) -> None:
    for _ in range(ATTEMPTS):
        outcome, trips = carried(way, loop)
        # Those that the pipe held back for longer than the deadline are degraded rightly, and a
        # run with as many of them as may be degraded says nothing.
        late = sum(trip.checks for trip in trips if trip.left - trip.came > way.deadline / 1000)
        if late < way.share * outcome.asked:
            break
        table.discard(str(way))
        say(f"  discarded: the pipe itself was late for {late} of {outcome.asked}: {way}, {loop}")
    else:
        pytest.fail(f"NOT MEASURED: the pipe itself was late in {ATTEMPTS} attempts: {way}, {loop}")
    unjustly = max(0, outcome.degraded - late)
    allowed = int(way.share * outcome.asked)
    mistakes = []
    if unjustly >= way.share * outcome.asked:
        mistakes.append(f"{unjustly} of {outcome.asked} degraded, and {late} late in truth")
    if outcome.statuses[503]:
        mistakes.append(f"{outcome.statuses[503]} answers were 503")
    table.add(
        str(way),
        Figures(
            outcome.asked, outcome.statuses[200], outcome.asked, outcome.statuses[503],
            outcome.degraded, outcome.opened,
            max(trip.left - trip.came for trip in trips), outcome.took,
        ),
        mistakes,
    )  # fmt: skip
    say(f"  {way}, {loop}: {outcome.degraded} degraded, {late} late in truth, {allowed} allowed")
    assert not mistakes, "\n".join(mistakes)
