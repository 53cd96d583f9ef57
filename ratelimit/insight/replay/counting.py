"""Counts in bounded memory: how many are different, who is first among them, and when it was."""

from collections.abc import Iterator
from hashlib import blake2b
from typing import Final

__all__ = ["Distinct", "LockedOut", "Series"]

SAMPLE: Final = 50_000
"""Most hashes that are held for one count; it is exact up to there, and within 1 % beyond."""
MOST_LOCKED: Final = 10_000
"""Most identities of a rule whose refusals are told one by one."""
POINTS: Final = 240
"""Most points of a series in time."""


class Distinct:
    """The number of different names, by adaptive sampling (Wegman; Flajolet 1990).

    Of all hashes those are kept that end in so many zeros that there is room for them.
    """

    def __init__(self) -> None:
        self._kept: set[int] = set()
        self._zeros = 0

    def add(self, name: str) -> None:
        """Counts a name, however often it comes, once."""
        digest = blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        number = int.from_bytes(digest)
        if number & ((1 << self._zeros) - 1):
            return
        self._kept.add(number)
        while len(self._kept) > SAMPLE:
            self._zeros += 1
            self._kept = {each for each in self._kept if not each & ((1 << self._zeros) - 1)}

    def __len__(self) -> int:
        """The number, exact up to 50,000."""
        return len(self._kept) << self._zeros


class LockedOut:
    """The identities that a rule has refused, and for how long.

    Whoever is refused is locked out until the same request would pass, if nothing else comes. Where
    there are too many, those refused least are let go, and ``missed`` is the most that one of them
    can have had.
    """

    def __init__(self) -> None:
        self.missed = 0
        self._found: dict[str, list[int]] = {}
        """Refusals, microseconds locked out, until when, and the times of first and last."""

    def add(self, name: str, at_us: int, retry_us: int | None) -> bool:
        """Counts a refusal (``retry_us`` None: can never pass); whether the name was not here."""
        until = at_us + (retry_us or 0)
        found = self._found.get(name)
        if found is None:
            if len(self._found) >= MOST_LOCKED:
                self._make_room()
            self._found[name] = [1, until - at_us, until, at_us, at_us]
            return True
        found[0] += 1
        if until > found[2]:
            found[1] += until - max(at_us, found[2])
            found[2] = until
        if at_us > found[4]:  # noqa: PLR1730  # a call costs more
            found[4] = at_us
        return False

    def _make_room(self) -> None:
        order = sorted(self._found, key=lambda name: self._found[name][0])
        for name in order[: MOST_LOCKED // 2]:
            self.missed = max(self.missed, self._found.pop(name)[0])

    def most(self, number: int) -> list[tuple[str, int, int, int, int]]:
        """Those refused most: name, refusals, microseconds locked out, first and last refusal."""
        order = sorted(self._found.items(), key=lambda each: (-each[1][0], each[0]))
        return [
            (name, times, locked, first, last)
            for name, (times, locked, _, first, last) in order[:number]
        ]

    def __len__(self) -> int:
        return len(self._found)


class Series:
    """Counts over time, in steps that grow with the time that they span."""

    def __init__(self) -> None:
        self.step = 1
        """Seconds of one point."""
        self._points: dict[int, list[int]] = {}

    def add(self, second: int, passed: int, refused: int) -> None:
        """Counts requests of a second since the epoch."""
        point = self._points.get(second // self.step)
        if point is None:
            self._points[second // self.step] = [passed, refused]
            while max(self._points) - min(self._points) >= POINTS:
                self._coarsen()
            return
        point[0] += passed
        point[1] += refused

    def _coarsen(self) -> None:
        self.step *= 2
        points: dict[int, list[int]] = {}
        for place, (passed, refused) in self._points.items():
            point = points.setdefault(place // 2, [0, 0])
            point[0] += passed
            point[1] += refused
        self._points = points

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        """The points in order: the second at which it begins, passed and refused."""
        for place in sorted(self._points):
            passed, refused = self._points[place]
            yield place * self.step, passed, refused
