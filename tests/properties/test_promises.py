"""Each promise of a decision, alone: exact waits, silent denials, full bursts, debts, clocks."""

from fractions import Fraction
from math import ceil
from random import Random

import pytest

from ratelimit.decisions import Check
from ratelimit.limits import Algorithm, Limit
from ratelimit.stores import MemoryStore, Store
from ratelimit.testing import START_US, ManualClock
from tests.support.timelines import random_limit

ALGORITHMS = pytest.mark.parametrize("algorithm", list(Algorithm))


async def spend_at_random(
    rng: Random, store: Store, clock: ManualClock, limit: Limit, keys: tuple[str, ...]
) -> None:
    """A few charges, the same on every key; the clock steps back less than W while they count."""
    highest_us = clock()
    for _ in range(rng.randint(1, 8)):
        cost = rng.choice((1, limit.capacity, rng.randint(1, limit.capacity)))
        for key in keys:
            (decision,) = await store.decide([Check(limit, key, cost)])
        step_us = rng.choice((0, 1, rng.randrange(limit.window_us + 1)))
        back = rng.random() < 0.3 and step_us < clock() - highest_us + limit.window_us
        if back and decision.reset_after_us > 0:
            step_us = -step_us
        clock.advance(us=step_us)
        highest_us = max(highest_us, clock())


@ALGORITHMS
async def test_retry_after_is_exact_to_the_tick(
    store: Store, clock: ManualClock, algorithm: Algorithm
) -> None:
    """Nothing else coming, a microsecond before it is refused and at it accepted."""
    refused = 0
    for seed in range(250):
        rng = Random(seed)
        limit = random_limit(rng, algorithm)
        key = f"{seed}"
        clock.set_us(START_US + rng.randrange(10**12))
        await spend_at_random(rng, store, clock, limit, (key,))
        if rng.random() < 0.3:
            (look,) = await store.decide([Check(limit, key, 0)])
            if look.reset_after_us:
                clock.advance(us=-rng.randrange(3 * limit.window_us))
        check = Check(limit, key, rng.choice((1, limit.capacity, rng.randint(1, limit.capacity))))
        (decision,) = await store.decide([check])
        if decision.allowed:
            assert decision.retry_after_us == 0
            continue
        refused += 1
        wait_us = decision.retry_after_us
        assert wait_us is not None, (seed, limit)
        assert (clock() + wait_us) % limit.tick_us == 0, "the promised instant is a tick"
        for before_us in (wait_us, wait_us // 2 + 1, 1):
            clock.advance(us=wait_us - before_us)
            (early,) = await store.decide([check])
            assert (early.allowed, early.retry_after_us) == (False, before_us), (seed, limit)
            clock.advance(us=before_us - wait_us)
        clock.advance(us=wait_us)
        (due,) = await store.decide([check])
        assert due.allowed, (seed, limit)
    assert refused > 50


@ALGORITHMS
async def test_reset_after_is_exact_to_the_tick(
    store: Store, clock: ManualClock, algorithm: Algorithm
) -> None:
    """At it the key is as if it had never been used, and a tick sooner it is not."""
    for seed in range(150):
        rng = Random(seed)
        limit = random_limit(rng, algorithm)
        clock.set_us(START_US + rng.randrange(10**12))
        await spend_at_random(rng, store, clock, limit, ("k",))
        look = Check(limit, "k", 0)
        (decision,) = await store.decide([look])
        if decision.reset_after_us:
            clock.advance(us=decision.reset_after_us - 1)
            (early,) = await store.decide([look])
            assert early.reset_after_us == 1, (seed, limit)
            clock.advance(us=1)
        (fresh,) = await store.decide([look])
        assert (fresh.remaining, fresh.reset_after_us) == (limit.capacity, 0), (seed, limit)
        await store.reset([look])


@ALGORITHMS
async def test_a_denial_and_a_cost_of_0_write_nothing(
    store: Store, clock: ManualClock, algorithm: Algorithm
) -> None:
    """Answers are the same with and without them in between, on any clock that is not broken."""
    denied = 0
    for seed in range(60):
        rng = Random(seed)
        limit = random_limit(rng, algorithm)
        clock.set_us(START_US + rng.randrange(10**12))
        noisy, quiet = f"{seed}-noisy", f"{seed}-quiet"
        highest_us = clock()
        for _ in range(25):
            for _ in range(rng.randint(0, 3)):
                (look,) = await store.decide([Check(limit, noisy, 0)])
                cost = rng.choice((0, limit.capacity + 1, look.remaining + 1))
                (decision,) = await store.decide([Check(limit, noisy, cost)])
                assert decision.allowed == (cost == 0)
                denied += not decision.allowed
            cost = rng.choice((1, limit.capacity, rng.randint(1, limit.capacity)))
            (one,) = await store.decide([Check(limit, noisy, cost)])
            (other,) = await store.decide([Check(limit, quiet, cost)])
            assert one == other, (seed, limit)
            step_us = rng.choice((0, 1, rng.randrange(limit.window_us + 1)))
            lowest_us = highest_us - limit.window_us + limit.tick_us
            if one.reset_after_us > 0 and rng.random() < 0.3 and clock() - step_us > lowest_us:
                step_us = -step_us
            clock.advance(us=step_us)
            highest_us = max(highest_us, clock())
    assert denied > 500


async def admits_exactly(
    store: Store, rng: Random, limit: Limit, key: str, burst: int, largest: int
) -> int:
    """Spends a full burst in random parts; the wait until the key is fresh again."""
    left = burst
    while left:
        cost = rng.randint(1, min(left, largest))
        (decision,) = await store.decide([Check(limit, key, cost)])
        left -= cost
        assert (decision.allowed, decision.remaining) == (True, left), (limit, burst)
    (decision,) = await store.decide([Check(limit, key)])
    assert (decision.allowed, decision.remaining) == (False, 0), (limit, burst)
    return decision.reset_after_us


async def bursts(
    store: Store, clock: ManualClock, algorithm: Algorithm, sizes: list[int], largest: int
) -> None:
    rng = Random(7)
    for number, size in enumerate(sizes):
        window_us = rng.choice((1_000_000, 60_000_000, 3_600_000_000, 1_000_003, 9_999))
        limit = Limit.of(size, window_us, algorithm=algorithm)
        clock.set_us(START_US + rng.randrange(10**12))
        for _ in range(2):
            reset_us = await admits_exactly(store, rng, limit, f"{number}", size, largest)
            clock.advance(us=reset_us)


@ALGORITHMS
async def test_a_full_burst_admits_exactly_the_burst_at_any_instant(
    store: Store, clock: ManualClock, algorithm: Algorithm
) -> None:
    """Unit by unit, on a fresh key and on one that has just become full again."""
    sizes = [1, 2, 3, 7, 97, 3_000, *(round(3_000 ** (part / 44)) for part in range(1, 45))]
    if not isinstance(store, MemoryStore):
        sizes = [1, 2, 3, 7, 97, 1_000]  # a round trip each; all of them in `make test-all`
    await bursts(store, clock, algorithm, sizes, 1)


@pytest.mark.slow
@ALGORITHMS
async def test_every_burst_up_to_3000_admits_exactly_that(
    store: Store, clock: ManualClock, algorithm: Algorithm
) -> None:
    """All sizes, in random parts of up to 50 units."""
    every = 1 if isinstance(store, MemoryStore) else 50  # a round trip each
    await bursts(store, clock, algorithm, list(range(1, 3_001, every)), 50)


@ALGORITHMS
async def test_what_is_given_back_at_once_was_never_taken(
    store: Store, clock: ManualClock, algorithm: Algorithm
) -> None:
    """Answers are the same, then and later, as on a key that was never charged with it."""
    given = 0
    for seed in range(150):
        rng = Random(seed)
        limit = random_limit(rng, algorithm)
        clock.set_us(START_US + rng.randrange(10**12))
        mine, plain = f"{seed}-mine", f"{seed}-plain"
        await spend_at_random(rng, store, clock, limit, (mine, plain))
        (look,) = await store.decide([Check(limit, plain, 0)])
        check = Check(limit, mine, rng.randint(0, look.remaining))
        if rng.random() < 0.2 and limit.capacity < 1_000:
            check = Check(limit, mine, rng.randint(1, 5)).forced()
        (charge,) = await store.decide([check])
        (back,) = await store.decide([check.given_back(charge)])
        given += check.cost > 0
        assert back[1:6] == look[1:6], (seed, limit)
        for _ in range(6):
            cost = rng.choice((0, 1, rng.randint(0, limit.capacity)))
            (one,) = await store.decide([Check(limit, mine, cost)])
            (other,) = await store.decide([Check(limit, plain, cost)])
            assert one == other, (seed, limit)
            clock.advance(us=rng.randrange(limit.window_us + 1))
    assert given > 50


@pytest.mark.parametrize("algorithm", [Algorithm.TOKEN_BUCKET, Algorithm.LEAKING_BUCKET])
async def test_a_bucket_pays_its_debt_at_the_usual_pace(
    store: Store, clock: ManualClock, algorithm: Algorithm
) -> None:
    """From a debt of d units, the next one is as far as d + 1 units are at the limit's rate."""
    for seed in range(60):
        rng = Random(seed)
        limit = random_limit(rng, algorithm)
        debt = rng.randint(1, max(1, limit.capacity // 100))
        clock.set_us(START_US)
        key = f"{seed}"
        await store.decide([Check(limit, key, limit.capacity)])
        (forced,) = await store.decide([Check(limit, key, debt).forced()])
        assert (forced.allowed, forced.remaining) == (True, 0)
        (look,) = await store.decide([Check(limit, key, 0)])
        assert (look.allowed, look.remaining) == (True, 0)
        (denied,) = await store.decide([Check(limit, key)])
        ticks = Fraction((debt + 1) * limit.window_us, limit.quota * limit.tick_us)
        assert denied.retry_after_us == ceil(ticks) * limit.tick_us, (seed, limit)


@pytest.mark.parametrize(
    ("text", "algorithm", "is_cut"),
    [
        ("1000000/day", "token_bucket", False),
        ("1000000/day", "leaking_bucket", False),
        ("1000000/day", "fixed_window", False),
        ("1000000/day", "sliding_log", False),
        ("1000000/day", "sliding_counter", True),
        ("10000/30 days", "sliding_counter", True),
        ("999983/day", "token_bucket", True),
        ("999983/day", "leaking_bucket", True),
    ],
)
async def test_a_debt_of_a_whole_quota_is_given_back_as_it_was_taken(
    store: Store, text: str, algorithm: str, is_cut: bool
) -> None:
    """What others had used is not given back with it; of a debt past 2^53 nothing is."""
    limit = Limit(text, algorithm=algorithm)
    (before,) = await store.decide([Check(limit, "k", limit.quota // 2)])
    check = Check(limit, "k", limit.quota).forced()
    (forced,) = await store.decide([check])
    assert (forced.allowed, forced.remaining) == (True, 0)
    (back,) = await store.decide([check.given_back(forced)])
    assert back.remaining == (0 if is_cut else before.remaining)


@ALGORITHMS
async def test_a_give_back_and_a_charge_of_one_request_add_up(
    store: Store, algorithm: Algorithm
) -> None:
    """Checks of one counter see each other, whatever they do to it; in a queue one is behind."""
    check = Check(Limit("5/minute", algorithm=algorithm), "k", 3)
    (taken,) = await store.decide([check])
    await store.decide([check.given_back(taken), Check(check.limit, "k")])
    (look,) = await store.decide([Check(check.limit, "k", 0)])
    assert look.remaining == (1 if algorithm is Algorithm.LEAKING_BUCKET else 4)


@ALGORITHMS
async def test_no_jump_of_the_clock_locks_anyone_out_for_more_than_two_windows(
    store: Store, clock: ManualClock, algorithm: Algorithm
) -> None:
    """A jump costs a window at most, on top of the wait that a limit may ask for anyway."""
    denied = 0
    for seed in range(150):
        rng = Random(seed)
        limit = random_limit(rng, algorithm)
        window_us, key = limit.window_us, f"{seed}"
        clock.set_us(START_US)
        for _ in range(rng.randint(1, 10)):
            (look,) = await store.decide([Check(limit, key, 0)])
            await store.decide([Check(limit, key, look.remaining)])
            jump_us = rng.choice((rng.randrange(window_us + 1), rng.randrange(10**14)))
            clock.set_us(max(0, clock() + rng.choice((-1, 1)) * jump_us))
        (decision,) = await store.decide([Check(limit, key)])
        wait_us = decision.retry_after_us
        assert wait_us is not None
        # A sliding counter's own wait is a window and, where it rounds up, one unit more.
        own_us = window_us + (-(-window_us // limit.quota) + 2 * limit.tick_us) * (
            algorithm is Algorithm.SLIDING_COUNTER
        )
        assert wait_us <= window_us + own_us, (seed, limit)
        denied += wait_us > 0
        clock.advance(us=wait_us)
        if wait_us:
            (decision,) = await store.decide([Check(limit, key)])
        assert decision.allowed, (seed, limit)
    assert denied > 20


async def test_a_shadow_denied_behind_a_charge_waits_for_what_is_kept(
    store: Store, clock: ManualClock
) -> None:
    """Its promise is that of the key as the request found it, not as the charge has left it."""
    limit = Limit("3/minute", algorithm="sliding_log")
    for _ in range(2):
        await store.decide([Check(limit, "k")])
        clock.advance(30)
    clock.advance(1)
    charged, shadow = await store.decide([Check(limit, "k"), Check(limit, "k", 2, shadow=True)])
    assert (charged.allowed, charged.remaining) == (True, 1)
    assert (shadow.allowed, shadow.retry_after) == (False, 29)
