"""The store of a pass, in place of one that has to be waited for."""

from collections.abc import Awaitable, Sequence
from typing import TypeVar

from ratelimit.decisions import Check, Decision
from ratelimit.stores import MemoryStore

__all__ = ["Recording", "at_once"]

T = TypeVar("T")


class Recording:
    """The store of a pass, which keeps what the limiter has asked it last."""

    def __init__(self, store: MemoryStore) -> None:
        self.store = store
        self.last: tuple[Sequence[Check], Sequence[Decision]] = ((), ())

    async def decide(self, checks: Sequence[Check]) -> tuple[Decision, ...]:
        decisions = await self.store.decide(checks)
        self.last = (*self.last[0], *checks), (*self.last[1], *decisions)
        return decisions

    async def reset(self, checks: Sequence[Check]) -> None:
        await self.store.reset(checks)

    async def aclose(self) -> None:
        await self.store.aclose()


def at_once(answer: Awaitable[T]) -> T:
    """The result of a coroutine that has nothing to wait for: its store is in process."""
    waiting = answer.__await__()
    try:
        next(waiting)
    except StopIteration as done:
        result: T = done.value
        return result
    raise RuntimeError("a decision in process had to wait")
