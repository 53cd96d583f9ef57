"""A loop that is held, and many requests at once, with Redis healthy: exactly the quota passes.

The short ones are part of every run; `make test-all` runs the others, and `make load` ten times.
"""

import pytest

from tests.load.cells import LOOPS, RUNS
from tests.load.inprocess import (
    BURST_QUOTA,
    QUOTA,
    Outcome,
    at_once,
    burst_mistakes,
    run_in,
    stall_mistakes,
    stalled,
)
from tests.load.mutation import lag_counted_again
from tests.load.table import Figures, Table
from tests.support.servers import Server

slow = pytest.mark.slow
each_run = pytest.mark.parametrize("run", range(1, max(RUNS, 1) + 1))
on_each_loop = pytest.mark.parametrize("loop", LOOPS)


def check(load: str, table: Table, outcome: Outcome, at_most: int, mistakes: list[str]) -> None:
    """Keeps a run's row, and fails where it broke a promise."""
    most = max(outcome.passed.values())
    figures = Figures(
        outcome.asked, most, at_most, outcome.statuses[503],
        outcome.degraded, outcome.opened, None, outcome.took,
    )  # fmt: skip
    table.add(load, figures, mistakes)
    assert not mistakes, "\n".join(mistakes)


@on_each_loop
def test_a_short_stall_is_never_taken_for_a_failure_of_the_store(
    loop: str, redis_server: Server
) -> None:
    redis_server.command("FLUSHALL")
    outcome = run_in(loop, stalled(redis_server.url, 0.06, 1))
    assert stall_mistakes(outcome) == []


@on_each_loop
def test_of_many_at_once_exactly_the_quota_passes(loop: str, redis_server: Server) -> None:
    redis_server.command("FLUSHALL")
    outcome = run_in(loop, at_once(redis_server.url, 2_000, warm=False))
    assert burst_mistakes(outcome, 2_000, 1) == []


@slow
@each_run
@on_each_loop
@pytest.mark.parametrize("times", [1, 20])
@pytest.mark.parametrize("stall_ms", [60, 200, 1_000])
def test_a_stall_is_never_taken_for_a_failure_of_the_store(
    stall_ms: int, times: int, loop: str, run: int, table: Table, redis_server: Server
) -> None:
    redis_server.command("FLUSHALL")
    outcome = run_in(loop, stalled(redis_server.url, stall_ms / 1000, times))
    how_often = "once" if times == 1 else f"{times} times"
    load = f"the loop is held for {stall_ms} ms, {how_often}"
    check(load, table, outcome, QUOTA, stall_mistakes(outcome))


@slow
@each_run
@on_each_loop
@pytest.mark.parametrize("clients", [1, 2_000])
@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
def test_of_2000_at_once_exactly_the_quota_passes(
    warm: bool, clients: int, loop: str, run: int, table: Table, redis_server: Server
) -> None:
    redis_server.command("FLUSHALL")
    outcome = run_in(loop, at_once(redis_server.url, 2_000, warm=warm, clients=clients))
    connections = "warm" if warm else "cold"
    who = "one client" if clients == 1 else f"{clients} clients"
    load = f"2000 at once of {who}, five rules, {connections} connections"
    at_most = BURST_QUOTA if clients == 1 else 1
    check(load, table, outcome, at_most, burst_mistakes(outcome, 2_000, clients))


@slow
@on_each_loop
def test_with_the_lag_counted_again_a_stall_is_taken_for_a_failure(
    loop: str, redis_server: Server
) -> None:
    redis_server.command("FLUSHALL")
    with lag_counted_again():
        outcome = run_in(loop, stalled(redis_server.url, 0.2, 1))
    assert any("degraded" in mistake for mistake in stall_mistakes(outcome))
