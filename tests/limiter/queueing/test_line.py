"""The line in front of a leaking bucket, by a clock that is moved by hand."""

from itertools import pairwise
from random import Random
from typing import NamedTuple

import pytest

from ratelimit import Check, Limit, MemoryStore
from ratelimit.limiter.queueing.line import Line, Place, ends_at
from ratelimit.testing import ManualClock


class Asked(NamedTuple):
    """A request, and when it was promised to leave, by the store's clock."""

    number: int
    due_us: int


class Worker:
    """One worker's line, which gives back to the store as the limiter does."""

    def __init__(self, store: MemoryStore, check: Check, ahead_us: int) -> None:
        self.store = store
        self.check = check
        self.line: Line[Asked] = Line()
        self.ahead_us = ahead_us
        """How far its own clock is ahead of the store's."""

    async def ask(self, number: int, clock: ManualClock, late_us: int) -> bool:
        """Asks the store, and sees its answer so much later; whether it has to wait."""
        (decision,) = await self.store.decide([self.check])
        if not decision.allowed or not decision.delay_us:
            return False
        now_us = clock() + self.ahead_us + late_us
        place = Place.of(self.check, decision, now_us)
        assert place.due_us == clock() + decision.delay_us
        self.line.join(place, Asked(number, place.due_us), now_us)
        await self.trim(now_us)
        return True

    async def leave(self, asked: Asked, clock: ManualClock) -> None:
        now_us = clock() + self.ahead_us
        await self.give_back(self.line.leave(asked), now_us)
        await self.trim(now_us)

    async def trim(self, now_us: int) -> None:
        while places := self.line.spare(3):
            if await self.give_back(places, now_us):
                break

    async def give_back(self, places: list[Place], now_us: int) -> bool:
        kept = False
        for place in places:
            (told,) = await self.store.decide([place.check.given_back(place.decision)])
            if ends_at(told) >= ends_at(place.decision):
                kept |= self.line.offer(place, now_us)
        return kept


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("text", ["100/second", "3/second", "7/minute", "1000003/day"])
async def test_no_two_departures_share_an_instant_whoever_leaves(workers: int, text: str) -> None:
    """Each leaves no sooner than promised at first or moved up to, in order, at the bucket's pace.

    With one worker the bucket holds what waits and nothing else; with more, no less than that.
    """
    for seed in range(60):
        rng, clock = Random(f"{seed} {text}"), ManualClock()
        store = MemoryStore(clock=clock)
        limit = Limit(text, algorithm="leaking_bucket", burst=40, free=rng.choice([1, 1, 3]))
        every_us = limit.window_us // limit.quota
        crew = [
            Worker(store, Check(limit, "k"), rng.randrange(-(10**9), 10**9)) for _ in range(workers)
        ]
        left: list[int] = []
        for number in range(150):
            worker = rng.choice(crew)
            what = rng.random()
            if what < 0.5:
                await worker.ask(number, clock, 0)
            elif what < 0.75 and worker.line.requests:
                await worker.leave(rng.choice(worker.line.requests), clock)
            else:
                until = clock() + rng.choice([0, 1, every_us // 3, every_us, 3 * every_us])
                left += depart(crew, clock, until)
            (look,) = await store.decide([Check(limit, "k", 0)])
            waiting = sum(len(each.line.requests) for each in crew)
            last = max((place.due_us for each in crew for place in each.line.places), default=0)
            if workers == 1 and waiting:
                ends_us = last + (limit.free or 1) * every_us
                assert abs(ends_at(look) - ends_us) <= limit.tick_us + (limit.free or 1), seed
            assert ends_at(look) >= last, seed
        left += depart(crew, clock, clock() + 100 * every_us)
        assert len(left) == len(set(left)), seed
        assert all(later - sooner >= every_us - 1 for sooner, later in pairwise(left)), seed
        assert len(left) > 5


def depart(crew: list[Worker], clock: ManualClock, until_us: int) -> list[int]:
    """Moves the clock on, from departure to departure, and gives the instants of those."""
    left: list[int] = []
    while True:
        waiting = [each for each in crew if each.line.requests]
        dues = {each.line.due_us() - each.ahead_us: each for each in waiting}
        assert len(dues) == len(waiting)
        if not dues or min(dues) > until_us:
            clock.set_us(max(clock(), until_us))
            return left
        due_us = min(dues)
        line = dues[due_us].line
        first, order = line.requests[0], [each.number for each in line.requests]
        assert order == sorted(order)
        assert due_us <= first.due_us
        assert not line.depart(due_us + dues[due_us].ahead_us - 1)
        assert [one for one, _ in line.depart(due_us + dues[due_us].ahead_us)] == [first]
        left.append(due_us)
        clock.set_us(max(clock(), due_us))


async def test_an_answer_that_is_seen_late_makes_nobody_late_nor_early() -> None:
    """The quickest of the answers tells one clock from the other, as far as a second."""
    clock = ManualClock()
    limit = Limit("100/second", algorithm="leaking_bucket", burst=40)
    worker = Worker(MemoryStore(clock=clock), Check(limit, "k"), 5_000)
    for number, late_us in enumerate((0, 9_000, 30, 999_000, 20_000, 1_250_000)):
        await worker.ask(number, clock, late_us)
    line, start_us = worker.line, clock() + 5_000
    assert [each.number for each in line.requests] == [1, 2, 3, 4, 5]
    assert [line.due_us(each) - start_us for each in line.requests] == [
        10_030, 20_030, 30_030, 40_030, 50_000 + 1_250_000 - 1_000_000,
    ]  # fmt: skip
    clock.advance(us=30_000_000)  # whoever comes later knows nothing of all this
    later = Worker(worker.store, worker.check, 5_000)
    await later.ask(6, clock, 0)
    await later.ask(7, clock, 40)
    assert later.line.due_us() == clock() + 5_000 + 10_040


async def test_where_costs_differ_nobody_moves_up_and_the_last_is_given_back() -> None:
    clock = ManualClock()
    limit = Limit("1/second", algorithm="leaking_bucket", burst=40)
    one, two = Check(limit, "k"), Check(limit, "k", 2)
    worker = Worker(MemoryStore(clock=clock), one, 0)
    for number, check in enumerate((one, one, two, one, two)):
        worker.check = check
        await worker.ask(number, clock, 0)
    first, second, third, last = worker.line.requests
    before = [worker.line.due_us(each) for each in (first, third, last)]
    await worker.leave(second, clock)
    assert [worker.line.due_us(each) for each in (first, third, last)] == before
    (look,) = await worker.store.decide([Check(limit, "k", 0)])
    assert look.reset_after_us == 7_000_000
    await worker.leave(last, clock)
    (look,) = await worker.store.decide([Check(limit, "k", 0)])
    assert look.reset_after_us == 5_000_000
    assert worker.line.requests == [first, third]
    assert len(worker.line.places) == 2


async def test_a_place_that_the_store_keeps_is_for_the_next_who_comes() -> None:
    """Another worker has queued behind: its instant stays its own, and the hole is filled here."""
    clock = ManualClock()
    limit = Limit("1/second", algorithm="leaking_bucket", burst=40)
    store = MemoryStore(clock=clock)
    ours, others = Worker(store, Check(limit, "k"), 0), Worker(store, Check(limit, "k"), 0)
    await ours.ask(0, clock, 0)
    for number in range(1, 4):
        await ours.ask(number, clock, 0)
    await others.ask(4, clock, 0)
    await ours.leave(ours.line.requests[0], clock)
    start_us = clock()
    assert [place.due_us - start_us for place in ours.line.places] == [
        1_000_000, 2_000_000, 3_000_000,
    ]  # fmt: skip
    await ours.ask(5, clock, 0)
    assert [place.due_us - start_us for place in ours.line.places] == [
        1_000_000, 2_000_000, 3_000_000,
    ]  # fmt: skip
    assert len(ours.line.requests) == 3
    assert others.line.due_us() == start_us + 4_000_000
    (look,) = await store.decide([Check(limit, "k", 0)])
    assert look.reset_after_us == 5_000_000
