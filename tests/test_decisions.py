"""What a check and a decision are as values."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from ratelimit import Algorithm, Check, Limit, MemoryStore
from ratelimit.decisions import assumed

LIMIT = Limit("10/minute", algorithm=Algorithm.LEAKING_BUCKET, burst=20, max_delay=3)


def pickled(protocol: int) -> Callable[[Any], Any]:
    """Through a pickle of that protocol and back."""
    return lambda value: pickle.loads(pickle.dumps(value, protocol))


@pytest.mark.parametrize(
    "copied",
    [copy.copy, copy.deepcopy, *map(pickled, range(pickle.HIGHEST_PROTOCOL + 1))],
    ids=["copy", "deepcopy", *(f"pickle {each}" for each in range(pickle.HIGHEST_PROTOCOL + 1))],
)
async def test_checks_and_decisions_are_copied_and_pickled_whole(
    copied: Callable[[Any], Any],
) -> None:
    """Whether charged, in shadow, forced or given back; and a decision that a fallback made."""
    check = Check(LIMIT, "someone", 2, "login")
    async with MemoryStore() as store:
        (decision,) = await store.decide([check])
    values = [
        check,
        Check(LIMIT, "someone", shadow=True),
        check.forced(),
        check.given_back(decision),
        decision,
        *assumed([check], allowed=False),
    ]
    for value in values:
        other = copied(value)
        assert (other, hash(other), type(other)) == (value, hash(value), type(value))
