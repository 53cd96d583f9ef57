"""The cells that floods are sent in, and few of them in which any two values still meet."""

import itertools
import os
import random
from collections.abc import Sequence
from typing import Final, NamedTuple

CONNECTIONS: Final = (100, 300, 600, 1_000)
POLICIES: Final = ("allow", "deny", "local")
ROUTES: Final = ("/x", "/free")
WORKERS: Final = (1, 2)
LOOPS: Final = ("asyncio", "uvloop")

RUNS: Final = int(os.environ.get("RATELIMIT_LOAD_RUNS", "0"))
"""Runs of each of all cells; 0 for one run of each of few cells."""


class Cell(NamedTuple):
    """One situation: the path that is flooded, over how many connections, and what serves it."""

    path: str
    connections: int
    policy: str
    workers: int
    loop: str

    def __str__(self) -> str:
        workers = "1 worker" if self.workers == 1 else f"{self.workers} workers"
        return f"{self.connections} on {self.path}, {self.policy}, {workers}, {self.loop}"


ALL: Final = [Cell(*values) for values in itertools.product(
    ROUTES, CONNECTIONS, POLICIES, WORKERS, LOOPS
)]  # fmt: skip


def pairs_of(cell: Cell) -> set[tuple[str, object, str, object]]:
    """Any two values of a cell, with what they are of."""
    return {(*a, *b) for a, b in itertools.combinations(cell._asdict().items(), 2)}


def covering(cells: Sequence[Cell], tries: int = 10) -> list[Cell]:
    """Few of these cells in which every two values that meet in any of them still do."""
    return min((_greedily(cells, random.Random(seed)) for seed in range(tries)), key=len)


def _greedily(cells: Sequence[Cell], ties: random.Random) -> list[Cell]:
    """Takes whatever has most that is new, until nothing is."""
    cells = ties.sample(cells, len(cells))
    uncovered = set().union(*map(pairs_of, cells))
    few = []
    while uncovered:
        best = max(cells, key=lambda cell: len(pairs_of(cell) & uncovered))
        uncovered -= pairs_of(best)
        few.append(best)
    return sorted(few)


MEASURED: Final = ALL if RUNS else covering(ALL)
"""The cells of this run."""
