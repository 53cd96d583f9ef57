"""A mutation that the loads are held against: what our own loop takes is counted as Redis's again.

TARGET is the one attribute that is replaced while the block lasts, and `counted` makes what it is
replaced with of what it was. Both follow the code: whatever asks whether the store was late.
"""

import asyncio
import functools
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from ratelimit import StoreUnavailable

TARGET: Final = "ratelimit.stores.redis.store:RedisStore.decide"
"""Module and attribute."""


def counted(decide: Callable[..., Any]) -> Callable[..., Any]:
    """A decision that fails where the clock on the wall says that the deadline has passed."""

    @functools.wraps(decide)
    async def decide_by_the_wall(store: Any, checks: Any) -> Any:
        loop = asyncio.get_running_loop()
        asked = loop.time()
        decisions = await decide(store, checks)
        if loop.time() - asked > 0.05:
            raise StoreUnavailable("late, by the wall clock", kind="late")
        return decisions

    return decide_by_the_wall


@contextmanager
def lag_counted_again() -> Iterator[None]:
    """Counts our own lag again, until the block ends."""
    module, _, path = TARGET.partition(":")
    *owners, name = path.split(".")
    owner = functools.reduce(getattr, owners, importlib.import_module(module))
    original = vars(owner)[name]
    setattr(owner, name, counted(original))
    try:
        yield
    finally:
        setattr(owner, name, original)
