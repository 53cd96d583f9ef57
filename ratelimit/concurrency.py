"""A limit on how many requests are under way at once, beside those on how many come.

It is counted by the Lua in the same script as they are, and is no member of `Algorithm`: requests
give it back when they end.
"""

from fractions import Fraction
from typing import Any, Final, Literal, get_args

from ratelimit.limits import Algorithm, Limit
from ratelimit.words import whole

__all__ = ["CONCURRENCY", "Concurrency", "Until"]

Until = Literal["response", "done"]

CONCURRENCY: Final = 7
"""Its place among the files of the Lua (lua/decide.lua)."""

MOST: Final = 1_000_000
"""The most requests at once that a limit may name."""

SHORTEST_US: Final = 1_000_000
LONGEST_US: Final = 3_600_000_000


class Concurrency(Limit):
    """At most ``quota`` requests at once; immutable, equal by value.

    A worker says how many it has under way, and its word holds for ``window_us``, the lease (1 s to
    an hour); then it is taken to be dead. Raises ValueError or TypeError, in one sentence, for
    numbers outside their bounds.
    """

    __slots__ = ("until",)

    until: Until
    """The end of a place: with the response's last byte, or when the application's call is done."""

    def __init__(self, quota: int, lease_us: int = 10_000_000, until: Until = "response") -> None:
        whole("concurrency", quota, 1, MOST)
        if not SHORTEST_US <= lease_us <= LONGEST_US:
            raise ValueError(f"the lease is {lease_us / 1_000_000:.12g} s; it is 1 s to an hour")
        if until not in get_args(Until):
            raise ValueError(f"until is {until!r}; it is 'response' or 'done'")
        put = object.__setattr__
        put(self, "until", until)
        put(self, "quota", quota)
        put(self, "window_us", lease_us)
        put(self, "algorithm", "concurrency")
        put(self, "burst", None)
        put(self, "rounding", "down")
        put(self, "max_delay", None)
        put(self, "free", None)
        put(self, "tick_us", 1)
        put(self, "numbers", (CONCURRENCY, quota, lease_us, 0, 0, 0))

    @property
    def lease(self) -> float:
        """Seconds that a worker's word holds."""
        return self.window

    @property
    def worst_case(self) -> int:
        """The most that are under way at once while the store keeps its data."""
        return self.quota

    def scaled(self, part: Fraction) -> "Concurrency":
        """A part (above 0, at most 1) of the places, rounded down, but never none."""
        if not 0 < part <= 1:
            raise ValueError(f"the part is {part}; it is above 0 and at most 1")
        return Concurrency(max(1, int(self.quota * part)), self.window_us, self.until)

    def counted_by(self, _: Algorithm) -> "Concurrency":
        """This limit, which no algorithm counts."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return Concurrency, (self.quota, self.window_us, self.until)

    def _value(self) -> tuple[Any, ...]:
        return self.quota, self.window_us, self.algorithm, self.until

    def __str__(self) -> str:
        """The limit in words: ``20 at once``."""
        return f"{self.quota} at once"

    def __repr__(self) -> str:
        return f"Concurrency({self.quota}, {self.window_us}, {self.until!r})"
