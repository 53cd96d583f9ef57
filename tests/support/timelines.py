"""Random timelines, decided by a store and by the model, answer by answer.

A timeline is made from a `random.Random`, so that a seed, or hypothesis, can make it again.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

from ratelimit.concurrency import Concurrency
from ratelimit.decisions import Action, Check, Decision
from ratelimit.limits import BUCKETS, Algorithm, Limit
from ratelimit.stores import Store
from ratelimit.testing import START_US, ManualClock
from tests.support.model import Answer, Ask, Model

DAY_US = 86_400_000_000
QUOTAS = (
    (1, 1), (1, 7), (3, 10), (2, 3), (97, 1_000), (5, 1_000_000), (7, 1_000_003),
    (4, 60_000_000), (7, 60_000_000), (10, 60_000_000), (3_000, 60_000_000),
    (999_983, DAY_US), (1_000_000, DAY_US), (10_000, 30 * DAY_US), (1, 30 * DAY_US),
    (4_000_000_000, 1_000_000), (3, 999_999_999_989),
)  # fmt: skip
"""Tiny and huge, with common divisors and without, on fine and coarse ticks: (quota, window_us)."""

ACTIONS = {
    "charge": Action.CHARGE,
    "shadow": Action.SHADOW,
    "force": Action.FORCE,
    "renew": Action.RENEW,
}


def random_limit(rng: Random, algorithm: Algorithm | None = None) -> Limit:
    """Any of the five with any of QUOTAS and such options as the algorithm has."""
    algorithm = algorithm or rng.choice(list(Algorithm))
    quota, window_us = rng.choice(QUOTAS)
    burst = rng.choice((1, 2, 5, quota // 2 + 1, quota + 1))
    free = rng.randint(1, min(burst, quota))
    delay = rng.choice((0, 0.5, 3, window_us / 2e6))
    return Limit.of(
        quota,
        window_us,
        algorithm=algorithm,
        burst=burst if algorithm in BUCKETS and rng.random() < 0.5 else None,
        rounding="up" if algorithm == "sliding_counter" and rng.random() < 0.5 else "down",
        max_delay=delay if algorithm == "leaking_bucket" and rng.random() < 0.4 else None,
        free=free if algorithm == "leaking_bucket" and rng.random() < 0.4 else None,
    )


def random_concurrency(rng: Random) -> Concurrency:
    """Few at once, or many, by leases of a second to an hour."""
    return Concurrency(
        rng.choice((1, 2, 3, 20)), rng.choice((1_000_000, 10_000_000, 3_600_000_000))
    )


def random_step_us(rng: Random, limit: Limit) -> int:
    """How far the clock goes: nowhere, a little, about a window, several; or as far back."""
    window_us = limit.window_us
    about_windows = window_us * rng.randint(1, 3) + rng.choice((-1, 0, 1))
    return rng.choice(
        (0,) * 6
        + (rng.randrange(max(1, 2 * window_us // limit.quota)),) * 6
        + (rng.randrange(window_us + 1),) * 4
        + (-rng.randrange(window_us + 1), about_windows, -about_windows)
        + (rng.choice((-1, 1)) * rng.randrange(10 * window_us),)
    )


def random_ask(rng: Random, limit: Limit, key: str) -> Ask:
    """One check; a forced one stays within the debt that big numbers have room for."""
    capacity = limit.capacity
    cost = rng.choice((0, 1, 1, 1, 2, rng.randint(0, capacity + 1), capacity, capacity // 2))
    action = rng.choice(("charge",) * 8 + ("shadow",) * 2 + ("force",))
    if action == "force" and capacity > 1_000:
        cost = rng.choice((1, 2, rng.randint(0, capacity // 1_000)))
    return Ask(limit, key, cost, action)


def checked(ask: Ask, serial: int = 0) -> Check:
    """The check of a request; where it is counted at once, with the name of its worker."""
    at_us = level = 0
    if isinstance(ask.limit, Concurrency):
        at_us = (serial % 2**20) * 2**32 + 7 + ask.worker
        level = (serial // 2**20) * 2**32 + 2**32 - 1
    action = ACTIONS[ask.action]
    return Check(ask.limit, ask.key, ask.cost, action=action, at_us=at_us, level=level)


@dataclass
class Timeline:
    """A store and the model side by side; each step moves the clock and decides one request."""

    rng: Random
    store: Store
    clock: ManualClock
    model: Model = field(default_factory=Model)
    steps: list[str] = field(default_factory=list)
    decided: int = 0
    charges: list[tuple[Ask, Check, Answer, Decision]] = field(default_factory=list)
    words: list[tuple[Ask, Answer, Decision]] = field(default_factory=list)

    def __post_init__(self) -> None:
        rng = self.rng
        limits: list[Limit] = [random_limit(rng) for _ in range(rng.randint(1, 3))]
        if rng.random() < 0.4:
            limits.append(random_concurrency(rng))
        # Limits of the same numbers share a counter, which the model does not know.
        self.limits = list({limit.digest: limit for limit in limits}.values())
        token = secrets.token_hex(6)
        self.keys = [f"{token}-{place}" for place in range(rng.randint(1, 2))]
        self.clock.set_us(rng.choice((0, START_US)) + rng.randrange(10**12))

    async def step(self) -> None:
        """Moves the clock and decides; AssertionError, with all steps so far, on a difference."""
        rng = self.rng
        await self.move(random_step_us(rng, rng.choice(self.limits)))
        if self.charges and rng.random() < 0.15:
            ask, check, answer, decision = self.charges.pop(rng.randrange(len(self.charges)))
            asks = [ask._replace(action="give_back", charge=answer)]
            checks = [check.given_back(decision)]
        elif self.words and rng.random() < 0.15:
            # What a worker has last heard, or something older.
            ask, answer, decision = self.words[
                -1 - min(rng.choice((0, 0, 1, 5)), len(self.words) - 1)
            ]
            asks = [ask._replace(action="renew", cost=rng.randint(0, 4), charge=answer)]
            checks = [checked(asks[0], decision.level)]
        else:
            many = rng.choice((1, 1, 1, 2, 3))
            worker = rng.randrange(3)
            asks = [
                random_ask(rng, rng.choice(self.limits), rng.choice(self.keys))._replace(
                    worker=worker
                )
                for _ in range(many)
            ]
            checks = [checked(each) for each in asks]
        decisions = await self.store.decide(checks)
        answers = self.model.decide(self.clock(), asks)
        self.decided += len(asks)
        told = "; ".join(f"{a.action} {a.cost} on {a.limit!r} {a.key}" for a in asks)
        self.steps.append(f"{self.clock()}: {told}")
        self.compare(asks, decisions, answers)
        enforced = (d for a, d in zip(asks, decisions, strict=True) if a.action != "shadow")
        passed = all(d.allowed for d in enforced)
        if passed:
            self.words += [
                (ask, answer, decision)
                for ask, answer, decision in zip(asks, answers, decisions, strict=True)
                if isinstance(ask.limit, Concurrency) and decision.allowed and answer.level
            ]
        if passed and asks[0].action != "give_back":
            self.charges += [
                four
                for four in zip(asks, checks, answers, decisions, strict=True)
                if four[0].cost and four[3].allowed and four[0].action != "renew"
            ]

    async def move(self, step_us: int) -> None:
        """Moves the clock, not before the epoch.

        What has expired may or may not have been collected, and would count again if the clock
        went back: it is forgotten on both sides first.
        """
        if step_us < 0:
            for key, limit in list(self.model.states):
                family = self.model.family(limit)
                state = self.model.states[key, limit]
                if family.is_empty(self.model.look(family, state, self.clock())):
                    del self.model.states[key, limit]
                    await self.store.reset([Check(limit, key)])
        self.clock.set_us(max(0, self.clock() + step_us))

    def compare(
        self, asks: Sequence[Ask], decisions: Sequence[Decision], answers: Sequence[Answer]
    ) -> None:
        names = [(ask.key, ask.limit) for ask in asks]
        for place, (ask, got, expected) in enumerate(zip(asks, decisions, answers, strict=True)):
            if ask.action == "shadow" and not got.allowed and names.count(names[place]) > 1:
                # Behind what the same request took of its counter: the promise leaves it open.
                expected = expected._replace(retry_us=got.retry_after_us)  # noqa: PLW2901
            if (*got[1:6], got.at_us) != expected[:6]:
                mine = [step for step in self.steps if ask.key in step]
                raise AssertionError(
                    f"check {place} of the last step: allowed, remaining, retry, reset, delay, at\n"
                    f"  store {(*got[1:6], got.at_us)}\n  model {expected[:6]}\n"
                    + "\n".join(mine[-12:])
                )
