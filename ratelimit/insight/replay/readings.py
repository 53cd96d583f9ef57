"""Three readings of a log, and two orders of its seconds.

A log tells who asked, but not who asked only because he was refused before. So it is read three
ways, side by side: clients never retry, they retry exactly at `Retry-After`, or as the log shows.

A log of whole seconds does not tell when within a second a request came. So each second is played
twice: at best, each client's requests are spread evenly over it, the cheapest first; at worst all
of them come in one instant, the dearest first.
"""

from collections.abc import Sequence
from itertools import islice
from typing import Final, Literal, get_args

from ratelimit.insight.replay.asking import Asked

__all__ = ["ORDERS", "READINGS", "Order", "Reading", "Repeats", "in_order"]

Reading = Literal["never", "retry-after", "logged"]
Order = Literal["logged", "best", "worst"]
READINGS: Final[tuple[Reading, ...]] = get_args(Reading)
ORDERS: Final[tuple[Order, ...]] = get_args(Order)

_SECOND: Final = 1_000_000
MOST_REFUSED: Final = 100_000
"""Refusals in the log that are remembered at once."""
REPEATED_WITHIN_US: Final = 600 * _SECOND
"""The time after a refusal in which the same request again is a retry."""


class Repeats:
    """Finds the requests that the log shows to be retries: the same again after 429 or 503."""

    def __init__(self) -> None:
        self._refused: dict[int, int] = {}
        """The time of the last refusal, by the hash of a request, which may be long."""
        self.found = 0

    def without(self, requests: Sequence[Asked]) -> Sequence[Asked]:
        """Requests but for those that are retries."""
        refused = self._refused
        if not refused and not any(asked[3][4] in ("429", "503") for asked in requests):
            return requests
        kept = []
        for asked in requests:
            entry = asked[3]
            name = hash(entry[1:4])
            before = refused.get(name)
            again = before is not None and asked[0] - before <= REPEATED_WITHIN_US
            if entry[4] in ("429", "503"):
                self._remember(name, asked[0])
            elif before is not None:
                del refused[name]
            if again:
                self.found += 1
            else:
                kept.append(asked)
        return kept

    def _remember(self, name: int, at_us: int) -> None:
        refused = self._refused
        if len(refused) >= MOST_REFUSED:
            for old in list(islice(refused, MOST_REFUSED // 2)):  # the first are the oldest
                del refused[old]
        refused.pop(name, None)
        refused[name] = at_us


def in_order(requests: list[Asked], order: Order) -> list[Asked]:
    """The requests of one second in an order that the log leaves open."""
    if order == "logged" or not requests:
        return requests
    if order == "worst":
        if any(asked[1].cost > 1 for asked in requests):
            return sorted(requests, key=lambda asked: -asked[1].cost)
        return requests
    of_each: dict[str, list[Asked]] = {}
    for asked in requests:
        of_each.setdefault(asked[2][0] if asked[2] else asked[3][1], []).append(asked)
    spread = []
    for some in of_each.values():
        number = len(some)
        if number > 1:
            some.sort(key=_cost)
            for place, asked in enumerate(some):
                spread.append((asked[0] + place * _SECOND // number, *asked[1:]))
        else:
            spread.append(some[0])
    spread.sort(key=_at)
    return spread


def _cost(asked: Asked) -> int:
    return asked[1].cost


def _at(asked: Asked) -> int:
    return asked[0]
