"""The part of the load that is let in, by how late this process is: DAGOR's control, by priority.

The law of this module: pure, and driven by a time that is given. What is late is for others to
measure, and who is shed is a comparison of two numbers.

A second whose median sample is late, and which ends late, lowers the admitted share; from the
second such second on, so that a queue behind one blocking call, which is gone by then, sheds
nobody. While something is shed, the share is lowered for the moment as well, as far as the last
sample is late, so that the queue stays short (DAGOR: Zhou et al., SoCC 2018; the histogram of
levels: failsafe-go).
"""

from bisect import bisect_right
from hashlib import blake2b
from itertools import accumulate
from random import random
from statistics import median
from typing import Final

__all__ = ["COHORTS", "LEVELS", "Control", "level_of"]

COHORTS: Final = 100
"""Parts into which a priority is divided by identities."""

LEVELS: Final = 5 * COHORTS
"""Levels of requests, the first to be kept the lowest: those of ``critical`` are 0 to 99."""

JUDGED: Final = 1.0
"""Seconds between two judgements."""

PATIENCE: Final = 3
"""Late seconds in a row before the first request is shed: so long may the queue be that one
blocking call leaves behind on a busy process."""

AT_ONCE: Final = 1.0
"""Seconds of lateness that no such queue has, so that nothing is waited for."""

LOWERED: Final = 0.95
LOWERED_MUCH: Final = 0.8
"""The part of the share that a late second leaves, and one that is `MUCH` times as late as that."""
MUCH: Final = 5

RAISED: Final = 0.01
"""Added to the share by a calm second; by each that follows at once, twice as much as before."""

CALM: Final = 30
"""Calm seconds with nothing shed after which it is over; in between no `PATIENCE` is had."""

PRESSED: Final = 0.75
"""The part of the lag above which a sample takes its part of the share, so that the queue is short
before its second is late."""

LEAST: Final = 0.01
"""The smallest share of what is not critical; above 0, so that it is noticed when it fits again."""


class Control:
    """The admitted share of what is not critical, and the level above which requests are shed.

    ``lag`` is the lateness in seconds above which a second is late.
    """

    def __init__(self, lag: float) -> None:
        self.lag = lag
        self.share = 1.0
        """The admitted share, 0.01 to 1, but for what the last sample takes of it."""
        self.late = 0.0
        """The lateness of the last second that was judged."""
        self.watching = False
        """Whether requests are to be asked about: something was late lately."""
        self.shedding = False
        """Whether requests may be shed: from the first one until `CALM` seconds were calm."""
        self.ceiling = float(LEVELS)
        """The level, with the part of it that is still admitted, above which requests are shed."""
        self._samples: list[float] = []
        self._judged_at: float | None = None
        self._late_for = 0
        self._calm_for = 0
        self._lowering = False
        """Whether the first late second lowers the share, since it was lowered lately."""
        self._step = RAISED
        self._counts = [0.0] * (LEVELS - COHORTS)
        self._below: list[float] = []
        """Requests of each sheddable level and those below it, in the last seconds."""

    def admits(self, level: int) -> bool:
        """Whether a request of a level is let in; counts it.

        Of the last level that has room a part is, by chance, so that a few large clients are not
        all or nothing.
        """
        if level < COHORTS:
            return True
        self._counts[level - COHORTS] += 1
        return level + random() < self.ceiling  # noqa: S311  # chance, not a secret

    def sample(self, now: float, late: float) -> bool:
        """Takes a sample, in seconds; says whether a second has been judged."""
        if self._judged_at is None:
            self._judged_at = now
        self._samples.append(late)
        self.watching = self.watching or late > self.lag
        judged = now - self._judged_at >= JUDGED
        if judged:
            self._judged_at = now
            self._judge(late)
        self.press(late)
        return judged

    def press(self, late: float) -> None:
        """Takes what the present lateness costs off the share, until the next sample."""
        if not self.shedding:
            self.ceiling = float(LEVELS)
            return
        bound = self.lag * (PRESSED if self.share < 1 else 2)
        share = self.share * bound / late if late > bound else self.share
        total = self._below[-1] if self._below else 0.0
        if not total:
            self.ceiling = COHORTS + share * (LEVELS - COHORTS)
            return
        wanted = share * total
        place = bisect_right(self._below, wanted)
        if place == len(self._below):
            self.ceiling = float(LEVELS)
            return
        before = self._below[place - 1] if place else 0.0
        part = (wanted - before) / (self._below[place] - before)
        self.ceiling = COHORTS + place + part

    def _judge(self, last: float) -> None:
        self.late = median(self._samples)
        self._samples.clear()
        if self.late > self.lag and (self._lowering or last > self.lag):
            self._late_for += 1
            self._calm_for = 0
            self._step = RAISED
            if self._lowering or self._late_for >= PATIENCE:
                self.shedding = self._lowering = True
                much = self.late > MUCH * self.lag
                self.share = max(LEAST, self.share * (LOWERED_MUCH if much else LOWERED))
        elif self.share < 1:
            self._late_for = 0
            self.share = min(1.0, self.share + self._step)
            # Close to what is too late, it goes on step by step.
            self._step = RAISED if self.late > self.lag / 2 else self._step * 2
        else:
            self._late_for = 0
            self._calm_for += 1
            if not self._lowering or self._calm_for >= CALM:
                self.shedding = self._lowering = False
        if last > AT_ONCE:
            self.shedding, self.late = True, last
        self.watching = self.shedding or self._late_for > 0 or last > self.lag
        self._below = list(accumulate(self._counts))
        # Half of what is known is of the last second, a quarter of the one before.
        kept = 0.5 if self.watching else 0.0
        self._counts = [kept * each for each in self._counts]


def level_of(priority: int, identity: str | None, hour: int, salt: bytes) -> int:
    """The level of a request, 0 to 499: of a ``priority`` from 0 (critical) to 4 (bulk).

    Within it, identities take turns: their order is another one in each ``hour``, and no client
    can tell it without the ``salt``, at most 64 bytes. Without an identity it is by chance.
    """
    if identity is None:
        return priority * COHORTS + int(random() * COHORTS)  # noqa: S311  # chance, not a secret
    text = f"{hour}\0{identity}".encode("utf-8", "surrogatepass")
    digest = blake2b(text, digest_size=4, key=salt).digest()
    return priority * COHORTS + int.from_bytes(digest) % COHORTS
