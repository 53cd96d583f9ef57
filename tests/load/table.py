"""What the loads came to, runs of one kind in one row, each figure the worst of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple


class Figures(NamedTuple):
    """What one run came to; None where that was not measured.

    ``passed`` requests of limits that may let through ``at_most``; how many of what was ``asked``
    were answered with ``unavailable`` (503) and were ``degraded``; how often breakers ``opened``;
    Redis's own ``worst_reply`` and the longest ``wait`` of a caller, in seconds.
    """

    asked: int
    passed: int
    at_most: int
    unavailable: int = 0
    degraded: int = 0
    opened: int = 0
    worst_reply: float | None = None
    wait: float | None = None


@dataclass
class _Row:
    runs: int = 0
    discarded: int = 0
    failed: int = 0
    figures: list[Figures] = field(default_factory=list)


class Table:
    """Rows by what was done, in the order in which they were first heard of."""

    def __init__(self) -> None:
        self._rows: dict[str, _Row] = {}

    def add(self, load: str, figures: Figures, mistakes: list[str]) -> None:
        """One run that counts, and the promises that it broke."""
        row = self._rows.setdefault(load, _Row())
        row.runs += 1
        row.failed += bool(mistakes)
        row.figures.append(figures)

    def discard(self, load: str) -> None:
        """One run that says nothing, since the machine was too busy."""
        self._rows.setdefault(load, _Row()).discarded += 1

    def rows(self) -> list[Mapping[str, str]]:
        """The rows as text."""
        return [_text(load, row) for load, row in self._rows.items()]


def _text(load: str, row: _Row) -> Mapping[str, str]:
    figures = row.figures
    promised = "not measured"
    if row.runs:
        promised = f"NO, in {row.failed} of {row.runs}" if row.failed else "yes"
    worst = max(figures, key=lambda it: it.passed - it.at_most, default=None)

    def most(name: str) -> str:
        return str(max((getattr(each, name) for each in figures), default="-"))

    def slowest(name: str) -> str:
        times = [took for each in figures if (took := getattr(each, name)) is not None]
        return f"{max(times) * 1000:.0f} ms" if times else "-"

    return {
        "load": load,
        "runs": str(row.runs),
        "discarded": str(row.discarded),
        "asked": str(sum(each.asked for each in figures)),
        "passed": f"{worst.passed} of {worst.at_most}" if worst else "-",
        "503": most("unavailable"),
        "degraded": most("degraded"),
        "opened": most("opened"),
        "worst reply": slowest("worst_reply"),
        "longest wait": slowest("wait"),
        "as promised": promised,
    }
