"""Measured values in fixed buckets, as plain integers."""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Final

__all__ = ["SECONDS", "SIZES", "Histogram"]

SECONDS: Final = (0.000_01, 0.000_025, 0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005,
                  0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)  # fmt: skip
"""Upper bounds for times: from a decision in process to a store that is as good as away."""

SIZES: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0)
"""Upper bounds for the checks of one round trip."""


class Histogram:
    """The number of values up to each of ``bounds``, which ascend, and their sum."""

    __slots__ = ("also", "bounds", "buckets", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.buckets = [0] * (len(bounds) + 1)
        """The values of each bucket, not of those below; the last has no upper bound."""
        self.total = 0.0
        """The sum of all values."""
        self.also: list[Callable[[float], object]] = []
        """Functions that are given each value, too."""

    def observe(self, value: float) -> None:
        """Counts a value."""
        self.buckets[bisect_left(self.bounds, value)] += 1
        self.total += value
        for each in self.also:
            each(value)
