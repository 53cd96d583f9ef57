"""Whatever comes, in whatever order, at whatever time: the store answers as the model does."""

import os
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ratelimit import Check
from ratelimit.concurrency import Concurrency
from ratelimit.stores import MemoryStore
from ratelimit.stores.redis import RedisStore
from ratelimit.testing import MakeStore, ManualClock
from tests.support.servers import Binary, binaries, serving
from tests.support.timelines import Timeline

FIRST_SEED = int(os.environ.get("RATELIMIT_TEST_SEED", "0"))


async def decide_timelines(make_store: MakeStore, seeds: range, steps: int) -> int:
    """Decisions made; the seed is part of the failure, and RATELIMIT_TEST_SEED starts there."""
    decided = 0
    for seed in seeds:
        clock = ManualClock()
        store = make_store(clock)
        timeline = Timeline(Random(seed), store, clock)
        try:
            for _ in range(steps):
                await timeline.step()
        except AssertionError as difference:
            difference.add_note(f"RATELIMIT_TEST_SEED={seed}")
            raise
        finally:
            await store.aclose()
        decided += timeline.decided
    return decided


async def test_a_store_answers_as_the_model_does(make_store: MakeStore) -> None:
    """All five algorithms: costs, several checks, shadows, force, give-backs, clocks that jump."""
    decided = await decide_timelines(make_store, range(FIRST_SEED, FIRST_SEED + 120), 60)
    assert decided >= 5_000


async def test_a_refusal_lengthens_no_word_though_the_clock_went_back(
    make_store: MakeStore,
) -> None:
    """It only shortens those that would hold for more than a lease."""
    clock, two = ManualClock(), Concurrency(2)
    store = make_store(clock)
    await store.decide([Check(two, "a")])
    clock.advance(5)
    await store.decide([Check(two, "a", at_us=7, level=9)])  # of another worker
    clock.advance(-2)
    (refused,) = await store.decide([Check(two, "a")])
    assert (refused.allowed, refused.reset_after) == (False, 10)
    clock.advance(7.5)  # beyond the first's lease
    (decision,) = await store.decide([Check(two, "a")])
    assert (decision.allowed, decision.remaining) == (True, 0)
    await store.aclose()


@pytest.mark.slow
async def test_a_store_answers_as_the_model_does_for_very_long(make_store: MakeStore) -> None:
    """The same for 100,000 decisions and more."""
    decided = await decide_timelines(make_store, range(10_000, 10_600), 200)
    assert decided >= 100_000


@pytest.mark.slow
@pytest.mark.parametrize("binary", binaries(), ids=lambda binary: binary.name)
async def test_every_server_answers_as_the_model_does(binary: Binary) -> None:
    """The same bytes decide alike on every version of Redis and Valkey that is found."""
    with serving(binary.path) as server:

        def make_store(clock: ManualClock) -> RedisStore:
            return RedisStore(server.url, clock=clock, deadline=10, deny_cache=0)

        decided = await decide_timelines(make_store, range(20_000, 20_600), 200)
        assert decided >= 100_000


@pytest.mark.parametrize("runtime", ["luajit21", "lua51"])
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(rng=st.randoms(use_true_random=False), steps=st.integers(1, 25))
async def test_the_shortest_timeline_that_differs_is_none(
    runtime: str, rng: Random, steps: int
) -> None:
    """The same, made by hypothesis, which shrinks what fails to a few steps."""
    clock = ManualClock()
    store = MemoryStore(clock=clock, runtime=runtime)  # type: ignore[arg-type]
    timeline = Timeline(rng, store, clock)
    for _ in range(steps):
        await timeline.step()
