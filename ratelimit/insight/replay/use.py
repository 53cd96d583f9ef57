"""Use over time: the most that each identity has used in a window, and how that is distributed."""

from collections.abc import Iterator
from typing import Final

__all__ = ["Histogram", "Use"]

EXACT: Final = 256
"""Numbers below this have a cell of their own; above, a cell spans less than 1 % of its number."""
MOST_ALIVE: Final = 500_000
"""Identities that are followed at once."""
IDLE: Final = 2
"""Windows without a request after which an identity may be let go."""
MOST_TOP: Final = 1_000
"""Identities that were let go which are remembered, those with the most use."""


class Histogram:
    """Counts of whole numbers, in cells of less than 1 %: some hundreds, whatever the numbers."""

    def __init__(self) -> None:
        self._cells: dict[int, int] = {}
        self.count = 0

    def add(self, number: int) -> None:
        """Counts a number, at least 0."""
        top = cell(number)
        self._cells[top] = self._cells.get(top, 0) + 1
        self.count += 1

    def quantile(self, part: float) -> int:
        """The least number (up to a cell) that this part of all, 0 to 1, does not exceed."""
        wanted = part * self.count
        so_far = 0
        for top in sorted(self._cells):
            so_far += self._cells[top]
            if so_far >= wanted:
                return top
        return 0

    def above(self, number: int) -> int:
        """Numbers that may be above this one."""
        return sum(times for top, times in self._cells.items() if top > number)

    def smallest(self, exceeding: int) -> int:
        """The smallest number (up to a cell) that no more than so many exceed."""
        so_far = 0
        best = 0
        for top in sorted(self._cells, reverse=True):
            best = top
            so_far += self._cells[top]
            if so_far > exceeding:
                break
        return best


def cell(number: int) -> int:
    """The largest number of the cell that a number is in."""
    if number < EXACT:
        return number
    shift = number.bit_length() - EXACT.bit_length() + 1
    return ((number >> shift) + 1 << shift) - 1


class Use:
    """The most that each identity has used in any window, as a sliding counter counts it.

    Whoever has never used more than a quota is never refused by a sliding counter of that quota,
    and whoever has used more is. Identities that come no more are let go where there are too many;
    one that comes again then counts as another.
    """

    def __init__(self, window_us: int) -> None:
        self.window_us = window_us
        self.let_go = 0
        self._alive: dict[str, list[int]] = {}
        """Number of the window, its count, that of the one before, and the most."""
        self._gone = Histogram()
        self._top: dict[str, int] = {}

    def add(self, name: str, at_us: int) -> None:
        """Counts a request."""
        window = self.window_us
        number, into = divmod(at_us, window)
        found = self._alive.get(name)
        if found is None:
            if len(self._alive) >= MOST_ALIVE:
                self._make_room(number)
            self._alive[name] = [number, 1, 0, 1]
            return
        if number != found[0]:
            found[2] = found[1] if number == found[0] + 1 else 0
            found[0], found[1] = number, 0
        found[1] += 1
        used = found[1]
        if found[2]:
            used += found[2] * (window - into) // window
        if used > found[3]:  # noqa: PLR1730  # a call costs more
            found[3] = used

    def _make_room(self, number: int) -> None:
        idle = [name for name, found in self._alive.items() if found[0] < number - IDLE]
        order = sorted(self._alive, key=lambda name: self._alive[name][0])
        for name in idle or order[: MOST_ALIVE // 4]:
            most = self._alive.pop(name)[3]
            self._gone.add(most)
            self._top[name] = max(most, self._top.get(name, 0))
            self.let_go += 1
        if len(self._top) > MOST_TOP:
            order = sorted(self._top, key=lambda name: -self._top[name])
            self._top = {name: self._top[name] for name in order[:MOST_TOP]}

    def histogram(self) -> Histogram:
        """The most of each identity."""
        found = Histogram()
        found.count = self._gone.count
        found._cells = dict(self._gone._cells)  # noqa: SLF001  # of the same class
        for each in self._alive.values():
            found.add(each[3])
        return found

    def above(self, quota: int) -> Iterator[tuple[str, int]]:
        """The identities that used more, and how much."""
        for name, most in self._top.items():
            if most > quota and name not in self._alive:
                yield name, most
        for name, found in self._alive.items():
            if found[3] > quota:
                yield name, found[3]
