"""Whatever is reserved, reported, committed or lost: counters are those of the model."""

import os
from collections.abc import Sequence
from random import Random
from typing import Any

import pytest

from ratelimit import Algorithm, Limit, RateLimiter, RateLimitExceeded, Rule, Store
from ratelimit.limiter.settling.reserving import Reservation
from ratelimit.testing import MakeStore, ManualClock
from tests.support.model import Answer, Ask, Model

FIRST_SEED = int(os.environ.get("RATELIMIT_TEST_SEED", "0"))
IDENTITIES = ("alice", "bob")
SECRET = "a secret of many characters"


class Held:
    """A reservation as the model has it: what each of its limits was charged, by which answer."""

    def __init__(self, key: str, limits: Sequence[Limit], cost: int) -> None:
        self.key = key
        self.limits = limits
        self.taken: list[list[tuple[int, Answer]]] = [[] for _ in limits]
        self.cost = cost
        self.reported = 0
        self.left = True
        """Whether there was something left at the last progress that was charged."""
        self.lost = False
        """Whether its worker was killed: nothing is ever committed."""

    def total(self) -> int:
        return sum(units for units, _ in self.taken[0])


class History:
    """Random events, made alike in a limiter and in the model, which are compared after each."""

    def __init__(self, rng: Random, store: Store, clock: ManualClock) -> None:
        self.rng = rng
        self.clock = clock
        self.model = Model()
        self.limits = self.some_limits()
        rule = Rule("tokens", self.limits, by="user")
        self.limiter = RateLimiter([rule], store=store, secret=SECRET)
        self.open: list[tuple[Reservation, Held]] = []
        self.events = 0

    def some_limits(self) -> list[Limit]:
        found: list[Limit] = []
        for _ in range(self.rng.choice((1, 1, 2))):
            algorithm = self.rng.choice(list(Algorithm))
            quota, window_us = (
                self.rng.randint(1, 40),
                self.rng.choice((1_000, 1_000_000, 7_000_000)),
            )
            more: dict[str, Any] = {}
            if algorithm in (Algorithm.TOKEN_BUCKET, Algorithm.LEAKING_BUCKET):
                more["burst"] = self.rng.randint(1, 60)
            limit = Limit.of(quota, window_us, algorithm=algorithm, **more)
            if limit not in found:
                found.append(limit)
        return found

    def asks(self, held: Held, cost: int, **more: Any) -> list[Ask]:
        return [Ask(limit, held.key, cost, **more) for limit in held.limits]

    def set_to(self, held: Held, actual: int) -> None:
        """Makes of what was charged what it turned out to be, by the model alone."""
        for limit, taken in zip(held.limits, held.taken, strict=True):
            missing = actual - sum(units for units, _ in taken)
            if missing > 0:
                (answer,) = self.decide([Ask(limit, held.key, missing, "force")])
                taken.append((missing, answer))
            while missing < 0:
                units, answer = taken.pop()
                back = min(units, -missing)
                self.decide([Ask(limit, held.key, back, "give_back", answer)])
                missing += back

    def decide(self, asks: Sequence[Ask]) -> list[Answer]:
        return self.model.decide(self.clock(), asks)

    async def step(self) -> None:
        self.events += 1
        kind = self.rng.choice(
            ("reserve", "reserve", "charge", "commit", "progress", "time", "kill")
        )
        await getattr(self, kind)()
        for identity in IDENTITIES:
            found = await self.limiter.peek("tokens", identity)
            looked = self.decide([Ask(limit, identity, 0) for limit in self.limits])
            assert [(each.remaining, each.reset_after_us) for each in found] == [
                (each.remaining, each.reset_us) for each in looked
            ]

    async def reserve(self) -> None:
        held = Held(self.rng.choice(IDENTITIES), self.limits, self.rng.randint(1, 30))
        answers = self.decide(self.asks(held, held.cost))
        try:
            reservation = await self.limiter.reserve("tokens", held.key, cost=held.cost)
        except RateLimitExceeded as refused:
            waits = [each.retry_after_us for each in refused.decisions]
            assert waits == [each.retry_us for each in answers]
            assert not all(each.allowed for each in answers)
            return
        assert all(each.allowed for each in answers)
        for taken, answer in zip(held.taken, answers, strict=True):
            taken.append((held.cost, answer))
        self.open.append((reservation, held))

    async def charge(self) -> None:
        key, cost = self.rng.choice(IDENTITIES), self.rng.randint(1, 5)
        outcome = await self.limiter.charge("tokens", key, cost=cost)
        answers = self.decide([Ask(limit, key, cost) for limit in self.limits])
        assert outcome.allowed == all(each.allowed for each in answers)

    async def commit(self) -> None:
        if not self.open:
            return
        reservation, held = self.open.pop(self.rng.randrange(len(self.open)))
        actual = self.rng.choice((0, held.cost, self.rng.randint(0, 60)))
        if self.rng.random() < 0.2:
            token = reservation.token
            is_good = held.taken[0][0][1].at_us + 3_600_000_000 >= self.clock()
            assert await self.limiter.commit(token, actual) == is_good
            assert not await self.limiter.commit(token, 0)
            assert not await reservation.commit(0)
            if is_good:
                self.set_to(held, actual)
            return
        assert await reservation.commit(actual)
        assert not await reservation.commit(0)
        self.set_to(held, actual)

    async def progress(self) -> None:
        if not self.open:
            return
        reservation, held = self.rng.choice(self.open)
        total = self.rng.randint(0, 50)
        held.reported = max(held.reported, total)
        left = await reservation.progress(total)
        if held.reported > held.total():
            self.set_to(held, held.reported)
            looked = self.decide(self.asks(held, 0))
            held.left = all(each.remaining > 0 for each in looked)
        assert left == held.left

    async def time(self) -> None:
        self.clock.advance(self.rng.choice((0.001, 0.1, 0.5, 1.0, 3.7, 60.0, 4000.0)))

    async def kill(self) -> None:
        """A worker ends between the two: what it has reserved stays spent."""
        if self.open and self.rng.random() < 0.3:
            self.open.pop(self.rng.randrange(len(self.open)))


async def run(make_store: MakeStore, seeds: range, steps: int) -> int:
    events = 0
    for seed in seeds:
        clock = ManualClock()
        store = make_store(clock)
        history = History(Random(seed), store, clock)
        try:
            for _ in range(steps):
                await history.step()
        except AssertionError as difference:
            difference.add_note(f"RATELIMIT_TEST_SEED={seed}, limits {history.limits}")
            raise
        finally:
            await history.limiter.aclose()
        events += history.events
    return events


async def test_what_is_reserved_and_committed_is_what_the_model_counts(
    make_store: MakeStore,
) -> None:
    assert await run(make_store, range(FIRST_SEED, FIRST_SEED + 60), 30) == 1_800


@pytest.mark.slow
async def test_what_is_reserved_is_what_the_model_counts_for_very_long(
    make_store: MakeStore,
) -> None:
    """For 5,000 histories in each kind of store."""
    assert await run(make_store, range(50_000, 55_000), 12) == 60_000
