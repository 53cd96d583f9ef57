"""Floods over real connections: nothing gives way, and with Redis stopped each policy answers."""

import math
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

from tests.load.app import COMPUTES
from tests.load.cells import LOOPS, MEASURED, RUNS, Cell
from tests.load.client import Account, Answer, Order
from tests.load.machine import (
    ATTEMPTS,
    DEADLINE,
    HEALTHY,
    Pings,
    application,
    asked,
    needs_two_cores,
    pause_until,
    redis,
    watched,
)
from tests.load.table import Figures, Table
from tests.support.history import Event, most_admitted

pytestmark = [pytest.mark.slow, needs_two_cores]

Say = Callable[[str], None]

QUOTA: Final = 10
WINDOW: Final = 1.0
SECONDS: Final = 6.0  # of a flood
PROBES: Final = 40.0  # requests a second of the one client beside it

FROZEN: Final = 1.5, 4.5  # seconds of a flood between which Redis is stopped
SECONDS_FROZEN: Final = 8.5  # of such a flood
SETTLED: Final = 1.3  # seconds after which each answer is the policy's: denials were repeated until
BACK_WITHIN: Final = 2.0  # seconds after which the store decides again
CLOCKS: Final = 0.05  # windows that Redis's clock and ours may be apart at the end
GRACE: Final = 0.02  # seconds more than the deadline that a caller may wait

RULES: Final = """
version: 1
store: {store}
deadline: {deadline_ms}ms
workers: {workers}
rules:
  - name: x
    match: {{path: /x}}
    by: client
    limit: {quota}/second
    algorithm: sliding_log
    on_store_failure: {policy}
"""


class Seen(NamedTuple):
    """All that was seen of one flood."""

    account: Account
    pings: Pings
    states: list[dict[str, Any]]
    log: str
    stopped: tuple[float, float]
    """When Redis was stopped and went on; zeros where it was not."""

    def total(self, name: str) -> int:
        """A figure of all workers together."""
        return sum(int(state[name]) for state in self.states)


def flooded(cell: Cell, folder: Path, *, freeze: bool = False) -> Seen:
    """Floods a new application with a new Redis."""
    other = "/free" if cell.path == "/x" else "/x"
    seconds = SECONDS_FROZEN if freeze else SECONDS
    with redis() as server:
        rules = RULES.format(
            store=server.url, deadline_ms=round(DEADLINE * 1000), workers=cell.workers,
            quota=QUOTA, policy=cell.policy,
        )  # fmt: skip
        with application(folder, rules, workers=cell.workers, loop=cell.loop) as app:
            order = Order(
                app.port, cell.path, cell.connections, seconds,
                probe_path=other, probe_rate=PROBES,
            )  # fmt: skip
            stopped = 0.0, 0.0
            with watched(server) as pings, asked(order) as accounts:
                began = time.monotonic()
                if freeze:
                    pause_until(began + FROZEN[0])
                    server.signal(signal.SIGSTOP)
                    since = time.monotonic()
                    pause_until(began + FROZEN[1])
                    until = time.monotonic()
                    server.signal(signal.SIGCONT)
                    stopped = since, until
                pause_until(began + seconds)
            states = app.states()
        return Seen(accounts[0], pings[0], states, app.log(), stopped)


def limited_and_free(cell: Cell, account: Account) -> tuple[list[Answer], list[Answer]]:
    """The answers on the route that has a limit, and those on the other."""
    both = account.flood, account.probe
    return both if cell.path == "/x" else both[::-1]


def in_any_window(answers: Iterable[Answer]) -> int:
    """The most that surely passed within one window."""
    passed = [Event(at, until, 1, "allowed") for at, until, status in answers if status == 200]
    return most_admitted(sorted(passed), WINDOW)


def worst_case(answers: list[Answer]) -> int:
    """The most that an exact limit lets through in the time that the answers took."""
    span = max(until for _, until, _ in answers) - min(at for at, _, _ in answers)
    return QUOTA * (math.floor(span / WINDOW + CLOCKS) + 1)


def statuses(answers: Iterable[Answer]) -> dict[int, int]:
    """How many answers there were of each status."""
    found: dict[int, int] = {}
    for _, _, status in answers:
        found[status] = found.get(status, 0) + 1
    return found


def complaints(log: str) -> list[str]:
    """The first lines of a log in which something went wrong."""
    return [
        line for line in log.splitlines() if line.startswith(("WARNING", "ERROR", "Traceback"))
    ][:2]


def common_mistakes(cell: Cell, seen: Seen, limited: list[Answer], free: list[Answer]) -> list[str]:
    """Of a run, whatever Redis did: who was not answered, or not as the route without a rule is."""
    mistakes = []
    account = seen.account
    if account.unanswered or account.not_asked:
        mistakes.append(f"{account.unanswered} never answered, {account.not_asked} never asked")
    if set(statuses(free)) != {200}:
        mistakes.append(f"/free answered {statuses(free)}")
    if not {200, 429} <= set(statuses(limited)) or set(statuses(limited)) - {200, 429, 503}:
        mistakes.append(f"/x answered {statuses(limited)}")
    if len(account.flood) < 2 * cell.connections:
        mistakes.append(f"{len(account.flood)} answers are no flood")
    return mistakes


# --- Redis is healthy ----------------------------------------------------------------------------


def judge_healthy(cell: Cell, seen: Seen) -> tuple[Figures, list[str]]:
    """What a flood came to with Redis healthy, and the promises that were broken."""
    limited, free = limited_and_free(cell, seen.account)
    found = statuses(limited)
    passed, at_most = found.get(200, 0), worst_case(limited)
    most = in_any_window(limited)
    unavailable = found.get(503, 0) + statuses(free).get(503, 0)
    figures = Figures(
        len(limited) + len(free), passed, at_most, unavailable,
        seen.total("degraded"), seen.total("opened"), seen.pings.worst(),
        max(until - at for at, until, _ in limited + free),
    )  # fmt: skip
    mistakes = common_mistakes(cell, seen, limited, free)
    if passed > at_most or most > QUOTA:
        mistakes.append(f"{passed} passed of {at_most}, in one window {most} of {QUOTA}")
    if passed < QUOTA * (SECONDS - 2):
        mistakes.append(f"only {passed} passed, though there was room")
    if unavailable:
        mistakes.append(f"{unavailable} answers were 503")
    if figures.degraded or figures.opened:
        mistakes.append(f"{figures.degraded} degraded, breakers opened {figures.opened} times")
    if {state["health"]["breaker"] for state in seen.states} != {"closed"}:
        mistakes.append("a breaker is open")
    if complaints(seen.log):
        mistakes.append(f"logged: {complaints(seen.log)}")
    return figures, mistakes


def judge_frozen(cell: Cell, seen: Seen) -> tuple[Figures, list[str]]:
    """What a flood came to with Redis stopped for a while, and the promises that were broken."""
    limited, free = limited_and_free(cell, seen.account)
    since, until = seen.stopped
    mistakes = common_mistakes(cell, seen, limited, free)

    def asked_between(answers: list[Answer], begin: float, end: float) -> list[Answer]:
        return [each for each in answers if begin <= each[0] and each[1] <= end]

    before = asked_between(limited, 0, since)
    if set(statuses(before)) - {200, 429} or in_any_window(before) > QUOTA:
        mistakes.append(f"before: {statuses(before)}, {in_any_window(before)} in one window")

    # Each policy answers, from when no denial of before is repeated any more.
    meanwhile = asked_between(limited, since + SETTLED, until)
    answered = statuses(meanwhile)
    most = in_any_window(meanwhile)
    if cell.policy == "local":
        if not (set(answered) <= {200, 429} and 0 < most <= QUOTA):
            mistakes.append(f"local: {answered} while stopped, {most} of {QUOTA} in one window")
    elif set(answered) != {200 if cell.policy == "allow" else 503}:
        mistakes.append(f"{cell.policy}: {answered} while stopped")
    refused = [each for each in limited if each[2] == 503]
    if cell.policy != "deny" and refused:
        mistakes.append(f"{len(refused)} answers were 503 that nobody had asked for")
    beyond = [each for each in refused if each[1] < since or each[0] > until + BACK_WITHIN]
    if beyond:
        mistakes.append(f"{len(beyond)} answers were 503 while Redis was healthy")

    # Nobody waits longer for the store than it has. What the loop takes besides, /free shows: that
    # takes two of its rounds (read, answer), and who is told that the store was late up to six
    # (read, send, the timer, a last look, the decision, the answer).
    lags = [end - at for at, end, _ in free if end > since and at < until]
    waits = [end - at for at, end, _ in limited if since < at < until]
    lag, wait = max(lags, default=0.0), max(waits, default=0.0)
    if wait > DEADLINE + GRACE + 4 * lag:
        mistakes.append(f"a caller waited {wait * 1000:.0f} ms, /free {lag * 1000:.0f} ms")
    if not seen.total("opened"):
        mistakes.append("no breaker opened")

    after = asked_between(limited, until + BACK_WITHIN, math.inf)
    if not ({200} <= set(statuses(after)) <= {200, 429} and in_any_window(after) <= QUOTA):
        mistakes.append(f"afterwards: {statuses(after)}, {in_any_window(after)} in one window")
    if {state["health"]["breaker"] for state in seen.states} != {"closed"}:
        mistakes.append("a breaker is still open")
    if "Traceback" in seen.log:
        mistakes.append(f"logged: {seen.log[-1000:]}")
    figures = Figures(
        len(limited) + len(free), in_any_window(before + after) if before + after else 0, QUOTA,
        len(refused), seen.total("degraded"), seen.total("opened"),
        seen.pings.worst((since - 0.05, until + 0.3)), wait,
    )  # fmt: skip
    return figures, mistakes


class Bench(NamedTuple):
    """Where runs are kept, and told of."""

    table: Table
    say: Say

    def measure(
        self, what: str, load: str, runs: int, run: Callable[[], tuple[Figures, list[str]]]
    ) -> None:
        """Runs it until it was measured so often; fails with every broken promise.

        Likewise where Redis was never quick enough for a run to count. ``what`` names it, and
        ``load`` is its row.
        """
        failures = []
        for number in range(1, runs + 1):
            for _ in range(ATTEMPTS):
                figures, mistakes = run()
                worst = figures.worst_reply or 0.0
                if worst < HEALTHY:
                    break
                self.table.discard(load)
                self.say(f"  discarded: Redis's worst reply took {worst * 1000:.0f} ms: {what}")
            else:
                pytest.fail(
                    f"NOT MEASURED: in {ATTEMPTS} attempts Redis's own worst reply never took less "
                    f"than {HEALTHY * 1000:g} ms; this machine is too busy: {what}"
                )
            self.table.add(load, figures, mistakes)
            failures += mistakes
            if RUNS:
                came_to = f"{figures.passed} of {figures.at_most} passed"
                outcome = "; ".join([came_to, *mistakes]) if mistakes else f"{came_to}, as promised"
                self.say(f"  run {number} of {runs}: {what}: {outcome}")
        assert not failures, "\n".join([f"in {runs} runs of {what}:", *failures])


@pytest.fixture
def bench(table: Table, say: Say) -> Bench:
    """What measures."""
    return Bench(table, say)


def _named(cell: Cell) -> str:
    return f"cell {MEASURED.index(cell) + 1} of {len(MEASURED)}: {cell}"


@pytest.mark.parametrize("cell", MEASURED, ids=str)
def test_a_flood_is_never_taken_for_a_failure_of_the_store(
    cell: Cell, bench: Bench, tmp_path: Path
) -> None:
    bench.measure(
        _named(cell),
        f"{cell.connections} connections flood {cell.path}",
        RUNS or 1,
        lambda: judge_healthy(cell, flooded(cell, tmp_path)),
    )


@pytest.mark.parametrize("cell", MEASURED, ids=str)
def test_a_stopped_redis_is_late_under_the_same_flood_and_each_policy_answers(
    cell: Cell, bench: Bench, tmp_path: Path
) -> None:
    bench.measure(
        f"{_named(cell)}, Redis stopped",
        f"the same on {cell.path}, Redis stopped: {cell.policy}",
        RUNS or 1,
        lambda: judge_frozen(cell, flooded(cell, tmp_path, freeze=True)),
    )


# --- an endpoint that computes -------------------------------------------------------------------

LOGINS: Final = 100
LOGIN_QUOTA: Final = 5
LOGIN_RUNS: Final = 5

LOGIN_RULES: Final = f"""
version: 1
store: {{store}}
deadline: 50ms
rules:
  - {{{{name: login, match: {{{{path: /login}}}}, by: client, limit: {LOGIN_QUOTA}/minute,
     algorithm: sliding_log}}}}
"""


def logged_in(loop: str, folder: Path) -> tuple[Figures, list[str]]:
    """What came of many logins at once, and the promises that were broken."""
    with redis() as server:
        rules = LOGIN_RULES.format(store=server.url)
        with application(folder, rules, workers=1, loop=loop) as app:
            with (
                watched(server) as pings,
                asked(Order(app.port, "/login", LOGINS, 30, times=1)) as accounts,
            ):
                pass
            (state,) = app.states()
    found = statuses(accounts[0].flood)
    figures = Figures(
        LOGINS, found.get(200, 0), LOGIN_QUOTA, found.get(503, 0),
        state["degraded"], state["opened"], pings[0].worst(),
    )  # fmt: skip
    mistakes = []
    if found != {200: LOGIN_QUOTA, 429: LOGINS - LOGIN_QUOTA}:
        mistakes.append(f"{LOGINS} at once were answered {found}")
    if state["degraded"] or state["opened"]:
        mistakes.append(f"{state['degraded']} degraded, opened {state['opened']} times")
    return figures, mistakes


@pytest.mark.parametrize("loop", LOOPS)
def test_an_endpoint_that_computes_lets_exactly_its_quota_through(
    loop: str, bench: Bench, tmp_path: Path
) -> None:
    bench.measure(
        f"an endpoint that computes, {loop}",
        f"{LOGINS} at once, an endpoint computes {COMPUTES:g} s",
        max(LOGIN_RUNS, RUNS),
        lambda: logged_in(loop, tmp_path),
    )
