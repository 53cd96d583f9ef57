"""How late an event loop and its threads are: bounds from below alone, on real loops."""

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import anyio.to_thread
import pytest
import uvloop

from ratelimit.runtime.lateness import EVERY, FAR, Lateness, Queue

LOOPS = [asyncio.new_event_loop, uvloop.new_event_loop]
each_loop = pytest.mark.parametrize("new_loop", LOOPS, ids=["asyncio", "uvloop"])


class Heard:
    """The samples that were told."""

    def __init__(self) -> None:
        self.samples: list[float] = []
        self.lateness = Lateness(self._told)
        self._more = asyncio.Event()

    def _told(self, _: float, late: float) -> None:
        self.samples.append(late)
        self._more.set()

    async def until(self, holds: Callable[[float], bool]) -> None:
        """Returns when a sample of a kind was told."""
        async with asyncio.timeout(20):
            while not any(map(holds, self.samples)):
                self._more.clear()
                await self._more.wait()

    async def some(self, number: int) -> None:
        """Returns when so many samples more were told."""
        wanted = len(self.samples) + number
        await self.until(lambda _: len(self.samples) >= wanted)


def run_on(new_loop: Any, job: Callable[[], Coroutine[Any, Any, None]]) -> None:
    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(job())


@each_loop
def test_a_call_that_blocks_the_loop_is_seen_by_the_time_it_took(new_loop: Any) -> None:
    async def job() -> None:
        heard = Heard()
        heard.lateness.run()
        await heard.some(1)
        time.sleep(0.3)  # noqa: ASYNC251  # which is the fault
        await heard.until(lambda late: late >= 0.3 - EVERY)
        heard.lateness.stop()

    run_on(new_loop, job)


@each_loop
def test_tasks_that_are_ready_before_a_request_are_seen_as_well(new_loop: Any) -> None:
    """Each of them alone is short."""

    async def job() -> None:
        heard = Heard()
        heard.lateness.run()
        busy = True

        async def work() -> None:
            while busy:
                time.sleep(0.01)  # noqa: ASYNC251  # which is the fault
                await asyncio.sleep(0)

        tasks = [asyncio.create_task(work()) for _ in range(10)]
        await heard.until(lambda late: late >= 0.1)
        busy = False
        await asyncio.gather(*tasks)
        heard.lateness.stop()

    run_on(new_loop, job)


@each_loop
def test_a_queue_for_threads_is_seen_by_how_long_one_waits_there(new_loop: Any) -> None:
    async def job() -> None:
        threads = anyio.to_thread.current_default_thread_limiter()
        threads.total_tokens = 2
        heard = Heard()
        heard.lateness.run()
        go_on = threading.Event()
        wait = partial(anyio.to_thread.run_sync, go_on.wait)
        waiting = [asyncio.create_task(wait()) for _ in range(3)]
        await heard.until(lambda late: late >= 0.2)
        assert threads.statistics().tasks_waiting == 2  # the third, and the probe
        go_on.set()
        await asyncio.gather(*waiting)
        await heard.some(2)
        # The last that was seen of the queue is told once.
        heard.samples.clear()
        await heard.until(lambda late: late < 0.2)
        assert threads.statistics().borrowed_tokens == 0
        heard.lateness.stop()

    run_on(new_loop, job)


def test_a_queue_that_grows_is_seen_before_anybody_has_waited_in_it() -> None:
    queue = Queue()
    assert queue.late(0.0, 3) == 0  # of which nothing is known yet
    queue.enter(0.0, 3)
    assert queue.late(0.05, 4) == 0.05
    queue.leave(0.08)
    assert queue.late(0.1, 2) == 0.08  # told once; from here on it is by the pace, 20 ms for each
    assert queue.late(0.15, 9) == pytest.approx(0.2)
    queue.enter(0.15, 10)
    assert queue.late(0.5, 1) == pytest.approx(0.35)  # it moves no more


def test_the_pace_that_a_stall_of_the_loop_made_is_not_taken_for_that_of_threads() -> None:
    queue = Queue()
    queue.enter(0.0, 1)
    queue.leave(0.5)  # as soon as the loop went on
    queue.stall()
    assert queue.late(0.5, 20) == 0.5
    queue.enter(0.5, 20)
    queue.stall()
    queue.leave(0.6)
    assert queue.late(0.6, 20) == pytest.approx(0.1)


def test_the_pace_of_a_queue_that_is_gone_is_forgotten() -> None:
    queue = Queue()
    queue.enter(0.0, 0)
    queue.leave(10.0)
    assert queue.late(10.0, 0) == 10
    assert queue.late(10.05, 5) == 0


@each_loop
def test_the_queue_of_this_moment_is_known_between_two_samples(new_loop: Any) -> None:
    async def job() -> None:
        threads = anyio.to_thread.current_default_thread_limiter()
        threads.total_tokens = 1
        heard = Heard()
        assert heard.lateness.foretold() == 0
        heard.lateness.run()
        ends = [threading.Event() for _ in range(4)]

        def begin(place: int) -> asyncio.Task[bool]:
            return asyncio.create_task(anyio.to_thread.run_sync(ends[place].wait))

        tasks = [begin(0), begin(1)]
        await heard.until(lambda late: late > 0)  # of a probe behind the second
        assert heard.lateness.foretold() == 0
        tasks += [begin(2), begin(3)]
        await heard.some(1)
        ends[0].set()
        ends[1].set()
        await asyncio.gather(*tasks[:2])
        await heard.some(2)
        one = heard.lateness.foretold()
        assert one > 0  # though nobody behind the probe has been begun
        tasks.append(asyncio.create_task(anyio.to_thread.run_sync(ends[3].wait)))
        for _ in range(3):
            await asyncio.sleep(0)
        assert heard.lateness.foretold() > one
        for each in ends:
            each.set()
        await asyncio.gather(*tasks)
        await heard.some(3)
        assert heard.lateness.foretold() == 0
        heard.lateness.stop()

    run_on(new_loop, job)


async def test_without_an_event_loop_that_is_measured_nothing_is_foretold() -> None:
    assert Heard().lateness.foretold() == 0


@each_loop
def test_a_long_stall_is_told_before_what_has_come_meanwhile_begins(new_loop: Any) -> None:
    async def job() -> None:
        heard = Heard()
        heard.lateness.run()
        await heard.some(1)
        before = len(heard.samples)
        time.sleep(FAR + 0.2)  # noqa: ASYNC251  # which is the fault
        await heard.until(lambda late: late > FAR)
        await heard.some(1)
        assert heard.samples[before] > FAR
        assert heard.samples[before + 1] > FAR
        heard.lateness.stop()

    run_on(new_loop, job)


async def test_it_runs_once_in_a_loop_and_ends_with_it() -> None:
    heard = Heard()
    assert heard.lateness.run()
    before = heard.lateness.due
    assert heard.lateness.run()
    assert heard.lateness.due == before
    heard.lateness.stop()
    assert heard.lateness.due == float("inf")
    heard.lateness.stop()


async def test_what_has_ended_tells_nothing_more() -> None:
    heard, other = Heard(), Heard()
    heard.lateness.run()
    other.lateness.run()
    await heard.some(1)
    heard.lateness.end()
    await other.some(1)
    told = len(heard.samples)
    await other.some(2)
    assert len(heard.samples) == told
    other.lateness.stop()


def test_where_there_is_no_loop_nothing_begins() -> None:
    assert not Heard().lateness.run()


def test_a_loop_that_was_closed_is_forgotten() -> None:
    heard: list[Heard] = []

    async def begin() -> None:
        heard.append(heard[0] if heard else Heard())
        assert heard[0].lateness.run()

    for _ in range(3):
        run_on(asyncio.new_event_loop, begin)
    assert len(heard[0].lateness._samplers) == 1  # that nothing piles up
