"""What clients saw of a limit, held against it afterwards, as far as their clocks can tell.

A client knows when it asked and when it was answered; the limiter decided somewhere in between. So
two sums are certain of any trailing window: what was surely admitted within it, and what at most.
The first may not be above the quota; a denial where the second leaves room is a false one.
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

__all__ = ["Event", "Finding", "Loss", "Verdict", "false_denials", "most_admitted", "overruns"]


Verdict = Literal["allowed", "denied", "unknown"]


class Event(NamedTuple):
    """One request: when it was asked and answered at the latest, for how many units, and how.

    ``unknown`` is the verdict of a request that may have been charged or not. Instants are seconds
    of one clock.
    """

    called: float
    returned: float
    cost: int
    verdict: Verdict


class Loss(NamedTuple):
    """A span of time at some instant of which every counter was forgotten, or its clock moved."""

    since: float
    until: float


class Finding(NamedTuple):
    """What was wrong at an event: so many units, where so many were right."""

    event: Event
    units: int
    bound: int


def most_admitted(events: Iterable[Event], window: float) -> int:
    """The most units that were surely admitted within one trailing window."""
    return max((units for _, units in _sums(events, window)), default=0)


def overruns(
    events: Iterable[Event], quota: int, window: float, losses: Sequence[Loss] = ()
) -> list[Finding]:
    """Every first event of a window in which more than the quota was surely admitted.

    Each loss that the window may contain grants the quota once more.
    """
    found = []
    for event, units in _sums(events, window):
        end = event.called + window
        lost = sum(loss.since < end and loss.until > event.called for loss in losses)
        if units > quota * (1 + lost):
            found.append(Finding(event, units, quota * (1 + lost)))
    return found


def false_denials(events: Iterable[Event], quota: int, window: float) -> list[Finding]:
    """Every denial at which, at any instant it may have been decided, its cost had room.

    ``units`` is the most that the window may have held, itself included.
    """
    events = list(events)
    charged = sorted(
        (each for each in events if each.verdict != "denied"), key=lambda each: each.called
    )
    starts = [each.called for each in charged]
    found = []
    for event in events:
        if event.verdict != "denied":
            continue
        before = charged[: bisect_left(starts, event.returned)]
        most = sum(each.cost for each in before if each.returned > event.called - window)
        if most + event.cost <= quota:
            found.append(Finding(event, most + event.cost, quota))
    return found


def _sums(events: Iterable[Event], window: float) -> list[tuple[Event, int]]:
    """Per admitted event: what was surely admitted within the window that it is the first of.

    Those called since it was called, and answered less than a window later, were decided less than
    a window apart: the trailing window of the last of them holds them all.
    """
    admitted = sorted(each for each in events if each.verdict == "allowed")
    starts = [each.called for each in admitted]
    sums = []
    for number, first in enumerate(admitted):
        end = first.called + window
        inside = admitted[number : bisect_left(starts, end)]
        sums.append((first, sum(each.cost for each in inside if each.returned < end)))
    return sums
