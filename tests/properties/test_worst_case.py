"""What the tools print as the worst case is never passed, and is reached."""

from random import Random

import pytest

from ratelimit.decisions import Check
from ratelimit.limits import Algorithm, Limit
from ratelimit.stores import Store
from ratelimit.testing import START_US, ManualClock
from tests.support.timelines import DAY_US, random_limit

S = 1_000_000


def heaviest_window(charges: list[tuple[int, int]], window_us: int) -> int:
    """The most units in any (t - W, t]; charges are (time, units) in order of time."""
    heaviest = inside = first = 0
    for at_us, units in charges:
        inside += units
        while charges[first][0] <= at_us - window_us:
            inside -= charges[first][1]
            first += 1
        heaviest = max(heaviest, inside)
    return heaviest


async def charge(store: Store, limit: Limit, cost: int, key: str = "k") -> int:
    """Units taken: the cost, or 0."""
    (decision,) = await store.decide([Check(limit, key, cost)])
    return cost if decision.allowed else 0


@pytest.mark.parametrize("algorithm", list(Algorithm))
async def test_no_window_lets_more_than_the_worst_case_through(
    store: Store, clock: ManualClock, algorithm: Algorithm
) -> None:
    """Greedy clients that take all there is, and try at every promised instant and before."""
    for seed in range(40):
        rng = Random(seed)
        limit = random_limit(rng, algorithm)
        clock.set_us(START_US + rng.randrange(limit.window_us * 2))
        charges = []
        for _ in range(80):
            (look,) = await store.decide([Check(limit, f"{seed}", 0)])
            cost = rng.choice((look.remaining, look.remaining, look.remaining + 1, 1))
            cost = min(cost, limit.capacity)
            (decision,) = await store.decide([Check(limit, f"{seed}", cost)])
            if decision.allowed:
                charges.append((clock(), cost))
            wait_us = decision.retry_after_us or rng.choice(
                (0, 1, limit.window_us // 3, limit.window_us - 1, limit.window_us)
            )
            clock.advance(us=rng.choice((wait_us, wait_us, max(0, wait_us - 1))))
        assert heaviest_window(charges, limit.window_us) <= limit.worst_case, (seed, limit)


@pytest.mark.parametrize(
    ("limit", "schedule"),
    [
        # A full bucket, and all that is gained until a microsecond before the window has passed.
        (Limit("10/minute", algorithm="token_bucket"), [(0, 10), (60 * S - 1, 9)]),
        (Limit("10/minute burst 25", algorithm="token_bucket"), [(0, 25), (60 * S - 1, 9)]),
        (
            Limit("4/minute burst 2", algorithm="token_bucket"),
            [(0, 2), (15 * S, 1), (30 * S, 1), (45 * S, 1)],
        ),
        (Limit("10/minute", algorithm="leaking_bucket"), [(0, 10), (60 * S - 1, 9)]),
        (
            Limit("4/minute burst 9", algorithm="leaking_bucket", max_delay=15),
            [(0, 2), (15 * S, 1), (30 * S, 1), (45 * S, 1)],
        ),
        # The last microsecond of a tick and the last one of the window lie in ticks a window apart.
        (Limit("999983/day", algorithm="token_bucket"), [(9, 999_983), (DAY_US + 8, 999_983)]),
        (Limit("999983/day", algorithm="leaking_bucket"), [(9, 999_983), (DAY_US + 8, 999_983)]),
        (Limit("10/minute", algorithm="fixed_window"), [(60 * S - 1, 10), (60 * S, 10)]),
        (Limit("1000000/day", algorithm="fixed_window"), [(DAY_US - 1, 10**6), (DAY_US, 10**6)]),
        (Limit("10/minute", algorithm="sliding_log"), [(0, 10)]),
        # The end of one window, and of the next one but for the microseconds that share a window.
        (Limit("10/minute"), [(60 * S - 1, 10), (120 * S - 2, 10)]),
        (Limit("10/minute", rounding="up"), [(60 * S - 1, 10), (120 * S - 2, 9)]),
        (Limit("10000/30 days"), [(30 * DAY_US - 1, 10**4), (60 * DAY_US - 2, 10**4)]),
        (
            Limit("10000/30 days", rounding="up"),
            [(30 * DAY_US - 1, 10**4), (60 * DAY_US - 2, 9_999)],
        ),
    ],
    ids=lambda value: f"{value!r}" if isinstance(value, Limit) else "",
)
async def test_the_worst_case_is_reached(
    store: Store, clock: ManualClock, limit: Limit, schedule: list[tuple[int, int]]
) -> None:
    """It is no mere bound: this schedule lets exactly so many through in one window."""
    charges = []
    for at_us, cost in schedule:
        clock.set_us(START_US + at_us)
        charges.append((at_us, await charge(store, limit, cost)))
    assert heaviest_window(charges, limit.window_us) == limit.worst_case
    clock.advance(us=min(1, charges[0][0] + limit.window_us - 1 - charges[-1][0]))
    assert not await charge(store, limit, 1), "one more in the same window"


@pytest.mark.parametrize("algorithm", list(Algorithm))
async def test_trying_everything_reaches_the_worst_case_and_no_more(
    store: Store, clock: ManualClock, algorithm: Algorithm
) -> None:
    """Every way to spend 3 per 8 microseconds over two windows: the heaviest is the worst case."""
    limit = Limit.of(3, 8, algorithm=algorithm)
    heaviest = 0
    for first_us in range(8):
        for second_us in range(first_us, first_us + 9):
            for first in range(1, 4):
                key = f"{first_us}-{second_us}-{first}"
                charges = []
                clock.set_us(START_US + first_us)
                charges.append((first_us, await charge(store, limit, first, key)))
                for at_us in range(second_us, first_us + 16):
                    clock.set_us(START_US + at_us)
                    (look,) = await store.decide([Check(limit, key, 0)])
                    charges.append((at_us, await charge(store, limit, look.remaining, key)))
                heaviest = max(heaviest, heaviest_window(charges, 8))
    assert heaviest == limit.worst_case
