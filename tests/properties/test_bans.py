"""Bans on random histories: what every store says is what the exact model says."""

from random import Random

import pytest

from ratelimit.stores import Store
from ratelimit.testing import ManualClock
from tests.support.banning import BanTimeline

HISTORIES = 40
STEPS = 80


@pytest.mark.parametrize("seed", range(3))
async def test_every_store_bans_as_the_exact_model_does(
    seed: int, store: Store, clock: ManualClock
) -> None:
    decided = begun = 0
    for number in range(HISTORIES):
        timeline = BanTimeline(Random(f"{seed}:{number}"), store, clock)
        for _ in range(STEPS):
            await timeline.step()
        decided += timeline.decided
        begun += timeline.begun
    assert decided > HISTORIES * STEPS
    assert begun > HISTORIES
