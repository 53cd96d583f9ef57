"""Whatever fails under a real application and real load, the application does not notice.

Everything is asserted from the outside, by what clients saw: their statuses, how long they took,
and the history of every counter (tests/support/history.py).
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest
import pytest_asyncio

from tests.chaos.faults import FAULTS, Fault
from tests.chaos.load import Answer, Client, Load, by_store, by_worker, p99_ms
from tests.chaos.worlds import (
    DEADLINE_MS,
    POLICIES,
    QUOTA,
    RULES,
    WINDOW,
    WORKERS,
    WORLDS,
    World,
    third_of,
)
from tests.support.apps import running
from tests.support.history import Loss, false_denials, most_admitted, overruns
from tests.support.servers import binaries, serving

pytestmark = pytest.mark.slow

BASELINE = 1.5  # seconds of load before the fault
AGAIN_WITHIN = 2.0  # seconds from the store's return to enforced limits
LATE = 0.01  # the part of all decisions that a busy machine may make too late without any fault
MOST_LOST = 20  # requests under way in a worker that is killed
MOST_OPENINGS = 2  # of each worker's breaker per fault
# Per worker: connections to each server, or sentinel, that come and go.
FILES_MORE = {"server": 4, "clock": 4, "sentinel": 8, "cluster": 12}

States = dict[int, dict[str, Any]]


class Run:
    """One fault under load: what clients saw, what was wrong with it, and figures for the table."""

    def __init__(
        self, fault: Fault, answers: list[Answer], broken: float, back: float, share: int
    ) -> None:
        self.fault = fault
        self.broken = broken
        self.back = back
        self.again = back + AGAIN_WITHIN
        self.share = share
        """What one worker lets through by itself in a window."""
        self.answers = sorted(answers, key=lambda each: each.called)
        self.free = [each for each in self.answers if each.stream.path == "/free"]
        self.limited = [each for each in self.answers if each.stream.path != "/free"]
        self.meanwhile = list(filter(self.is_meanwhile, self.limited))
        self.problems: list[str] = []
        rate = sum({each.stream: each.stream.rate for each in answers}.values())
        self.figures = {"fault": fault.name, "offered": f"{rate:.0f}/s"}

    def is_meanwhile(self, answer: Answer) -> bool:
        """Whether it was under way between the fault and the instant when limits hold again."""
        return self.broken <= answer.returned and answer.called < self.again

    def require(self, holds: object, problem: str) -> None:
        """Notes a problem, so that all of them are told at once."""
        if not holds:
            self.problems.append(problem)

    def judge_statuses(self) -> None:
        """503 where the policy says so and only while the store is away; no other fault's."""
        seen = Counter(
            (each.stream.path, each.status, self.is_meanwhile(each)) for each in self.answers
        )
        for (path, status, away), count in seen.items():
            expected = {200} if path == "/free" else {200, 429}
            if path == "/deny" and away:
                expected.add(503)
            if status == 0 and self.fault.loses_worker:
                self.require(count <= MOST_LOST, f"{count} connections were lost")
            else:
                self.require(status in expected, f"{count} x {status} for {path}")
        asked = seen["/deny", 503, True]
        failed = sum(each.status >= 500 or each.status == 0 for each in self.answers) - asked
        self.figures["503 asked"] = str(asked)
        self.figures["other failures"] = str(failed)

    def judge_degraded(self) -> None:
        """The store decides before, after, and for what is not touched; and soon again."""
        spared = [each for each in self.meanwhile if third_of(each.stream.key)]
        for name, some in (
            ("before the fault", [it for it in self.limited if it.returned < self.broken]),
            ("after the return", [it for it in self.limited if it.called >= self.again]),
            ("all the while", self.meanwhile if self.fault.seamless else []),
            ("on shards that were not lost", spared if self.fault.partial else []),
        ):
            count = sum(each.degraded for each in some)
            self.require(count <= LATE * len(some), f"{count} of {len(some)} degraded {name}")
        degraded = [each for each in self.meanwhile if each.degraded]
        self.require(degraded or self.fault.seamless, "nothing was degraded at all")
        self.figures["degraded"] = f"{len(degraded)} of {len(self.meanwhile)}"
        last = max((each.called - self.back for each in degraded), default=0)
        self.figures["enforced after"] = "-" if self.fault.seamless else f"{max(last, 0):.2f} s"

    def judge_latency(self) -> None:
        """A deadline at most is added, and with the breaker open nothing.

        The machine's own noise is in the baseline, and in what the route that is not limited took
        at the same time: `open` is above the worse of both.
        """
        base = p99_ms(each for each in self.limited if each.returned < self.broken)
        free_base = p99_ms(each for each in self.free if each.returned < self.broken)
        free = p99_ms(filter(self.is_meanwhile, self.free))
        closed = p99_ms(each for each in self.meanwhile if not each.was_open) - base
        opened = p99_ms(each for each in self.meanwhile if each.was_open)
        noise = max(base, free)
        self.require(closed <= DEADLINE_MS + 20, f"p99 is {closed:.1f} ms above {base:.1f} ms")
        self.require(opened <= noise + 2, f"p99 is {opened:.1f} ms while open, of {noise:.1f} ms")
        self.require(free <= free_base + 20, f"/free: p99 is {free:.1f} ms, was {free_base:.1f} ms")
        self.figures["p99 before"] = f"{base:.1f} ms"
        self.figures["added, closed"] = f"{closed:+.1f} ms"
        self.figures["open"] = f"{opened - noise:+.1f} ms" if opened else "-"
        self.figures["/free"] = f"{free - free_base:+.1f} ms"

    def judge_counters(self) -> None:
        """No window of any counter held too much, and nothing was denied that had room."""
        most = most_by_worker = 0
        losses = [Loss(self.broken, self.back)] if self.fault.forgets else []
        for stream in dict.fromkeys(each.stream for each in self.limited):
            own = [each for each in self.limited if each.stream == stream]
            events = by_store(own, QUOTA, WINDOW, self.back)
            most = max(most, most_admitted(events, WINDOW))
            false = false_denials(events, QUOTA, WINDOW)
            if self.fault.world == "clock":  # one that stepped back keeps what was used for longer
                end = self.back + 2 * WINDOW
                false = [it for it in false if not self.broken <= it.event.called < end]
            found = {"passed": overruns(events, QUOTA, WINDOW, losses), "denied": false}
            for worker, counted in by_worker(own).items() if stream.path == "/local" else ():
                most_by_worker = max(most_by_worker, most_admitted(counted, WINDOW))
                found[f"passed by {worker}"] = overruns(counted, self.share, WINDOW)
                found[f"denied by {worker}"] = false_denials(counted, self.share, WINDOW)
            for what, findings in found.items():
                for event, units, bound in findings[:1]:
                    self.problems.append(
                        f"{stream.key}: {what} at {units} of {bound}, {len(findings)} times, first "
                        f"{event.called - self.back:+.2f} s from the return"
                    )
            if stream.is_busy:
                statuses = {each.status for each in own if each.called >= self.again}
                self.require(statuses == {200, 429}, f"{stream.key}: only {statuses} afterwards")
        self.figures[f"most of {QUOTA}"] = str(most)
        self.figures["share"] = f"{most_by_worker} of {self.share}" if most_by_worker else "-"

    def judge_log(self, log: str) -> None:
        """A breaker opens once or twice, not again and again, and nothing ends in a traceback."""
        openings = log.count("breaker-open")
        self.require(openings <= MOST_OPENINGS * WORKERS, f"breakers opened {openings} times")
        self.require("Traceback" not in log, f"the log has a traceback:\n{log[-2000:]}")
        self.figures["opened"] = str(openings)

    def judge_remains(self, first: States, before: States, after: States, keys: list[str]) -> None:
        """No key without expiry, no file descriptor and no task is left behind."""
        self.require(not keys, f"keys without expiry: {keys}")
        usual = max(state["files"] for state in first.values())
        more = max(state["files"] for state in after.values()) - usual
        self.require(more <= FILES_MORE[self.fault.world], f"file descriptors: {more:+d}")
        tasks = [max(state["tasks"] for state in each.values()) for each in (before, after)]
        self.require(tasks[1] <= tasks[0] + 1, f"tasks before and after: {tasks}")
        states = [state["health"]["breaker"] for state in after.values()]
        self.require(states == ["closed"] * WORKERS, f"breakers: {states}")
        self.figures["files"] = f"{more:+d}"


@pytest_asyncio.fixture(loop_scope="session", scope="module")
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    """An application that has been warm for a second; the faults of its kind share it."""
    async with WORLDS[request.param]() as made:
        async with Load(made.app.url, made.streams, WORKERS):
            await asyncio.sleep(1)
        made.first = await made.states()
        yield made


@pytest.mark.parametrize(
    ("world", "fault"),
    [pytest.param(each.world, each, id=each.name) for each in FAULTS],
    indirect=["world"],
    scope="module",
)
async def test_the_application_does_not_notice(
    world: World, fault: Fault, table: list[Mapping[str, str]]
) -> None:
    """Statuses, latency, quotas, denials, the return, keys, files and tasks are as promised."""
    before, logged = await world.states(), len(world.app.log())
    async with Load(world.app.url, world.streams, WORKERS) as load:
        await asyncio.sleep(BASELINE)
        broken = time.monotonic()
        async with fault.happens(world):
            await asyncio.sleep(fault.lasts)
        back = time.monotonic()
        await asyncio.sleep(AGAIN_WITHIN + WINDOW + 0.1)
    share = QUOTA // max(state["health"]["workers"] for state in before.values())
    run = Run(fault, load.answers, broken, back, share)
    run.judge_statuses()
    run.judge_degraded()
    run.judge_latency()
    run.judge_counters()
    run.judge_log(world.app.log()[logged:])
    run.judge_remains(world.first, before, await settled(world), await world.for_ever())
    table.append({**run.figures, "as promised": "NO" if run.problems else "yes"})
    assert not run.problems, "\n".join(run.problems)


async def settled(world: World) -> States:
    """The workers' states once the load's connections are gone, or a second later."""
    usual = min(state["files"] for state in world.first.values())
    for _ in range(20):
        states = await world.states()
        if all(state["files"] <= usual for state in states.values()):
            break
        await asyncio.sleep(0.05)
    return states


async def test_an_application_starts_serves_and_stops_without_redis() -> None:
    """Redis is away from the start; limits hold within two seconds of its coming."""
    with serving(binaries()[0].path) as server:
        server.kill()
        with running(RULES.format(store=server.url), workers=WORKERS) as app:
            client = Client(app.url)
            for path, status in (("/free", 200), ("/allow", 200), ("/deny", 503), ("/local", 200)):
                assert [(await client.get(path))[0] for _ in range(4)] == [status] * 4
            await asyncio.to_thread(server.start)
            await asyncio.sleep(AGAIN_WITHIN)
            for policy in POLICIES:
                statuses = [
                    (await client.get(f"/{policy}", "someone"))[0] for _ in range(QUOTA + 5)
                ]
                assert statuses.count(200) >= QUOTA
                assert statuses[-1] == 429
            client.close()
            app.process.terminate()
            assert await asyncio.to_thread(app.process.wait, 15) == 0
