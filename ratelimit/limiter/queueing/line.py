"""The line in front of one leaking bucket: the requests that wait in one worker, and their places.

The law of this module: a place is an instant that the store has promised to this line and to nobody
else; one request at most leaves at it, and never before.

Pure: it knows neither an event loop nor a clock. All times are whole microseconds.
"""

from bisect import bisect_right
from operator import attrgetter
from typing import Final, Generic, NamedTuple, TypeVar

from ratelimit.decisions import Check, Decision

__all__ = ["Line", "Place", "ends_at"]

W = TypeVar("W")

WINDOW_US: Final = 10_000_000
"""The time for which the answer seen soonest tells its clock from ours, and as long again."""

MOST_LATE_US: Final = 1_000_000
"""The most that is made up for where an answer was seen late; beyond that, a clock was set."""


class Place(NamedTuple):
    """An instant of departure that the store has promised for a charge."""

    due_us: int
    """The instant by the store's clock."""
    least_us: int
    """No sooner than this by our own."""
    check: Check
    decision: Decision

    @classmethod
    def of(cls, check: Check, decision: Decision, now_us: int) -> "Place":
        """The place that a decision with a delay, seen now, has given."""
        limit = decision.limit
        _, _, refill, token, tick, _ = limit.numbers
        before = decision.level - (check.cost + (limit.free or 1) - 1) * token
        due_us = decision.at_us + -(-before * tick // refill)
        return cls(due_us, now_us + decision.delay_us - MOST_LATE_US, check, decision)


def ends_at(decision: Decision) -> int:
    """The instant by the store's clock at which a bucket will be empty, as a decision tells it."""
    _, _, refill, _, tick, _ = decision.limit.numbers
    return decision.at_us + -(-decision.level * tick // refill)


_DUE: Final = attrgetter("due_us")


class Line(Generic[W]):
    """Requests that wait for one counter, in the order of the store.

    The first of them leaves at the first place, the second at the second: where one goes away, all
    behind it move up, and the last place is nobody's. Where costs differ, places are not alike, and
    nobody moves.
    """

    __slots__ = ("_before_us", "_costs_differ", "_recent_us", "_until_us", "places", "requests")

    def __init__(self) -> None:
        self.places: list[Place] = []
        """Those of the requests, then such as nobody needs, until the store takes them back."""
        self.requests: list[W] = []
        """Those that wait, in order."""
        self._costs_differ = False
        self._before_us: int | None = None
        self._recent_us = self._until_us = 0

    def join(self, place: Place, request: W, now_us: int) -> None:
        """A request whose place the store has just told."""
        self._compare(now_us - (place.due_us - place.decision.delay_us), now_us)
        if not self.requests:
            self._costs_differ = False
            self.places.clear()  # whose time may have passed
        elif not self._costs_differ and self._differs(place):
            self._costs_differ = True
            del self.places[len(self.requests) :]
        number = bisect_right(self.places, place.due_us, key=_DUE)
        self.places.insert(number, place)
        self.requests.insert(number, request)  # at the end, where places are spare before it

    def leave(self, request: W) -> list[Place]:
        """A request goes away; gives its own place where nobody moves up."""
        if request not in self.requests:
            return []
        number = self.requests.index(request)
        del self.requests[number]
        return [self.places.pop(number)] if self._costs_differ else []

    def spare(self, most: int) -> list[Place]:
        """Takes out places that nobody needs, the last one first."""
        number = min(most, len(self.places) - len(self.requests))
        return [self.places.pop() for _ in range(number)]

    def offer(self, place: Place, now_us: int) -> bool:
        """Adds a place that nobody needs, as far as somebody here could; whether it did."""
        if not self.requests or self._costs_differ or self._differs(place):
            return False
        if self._instant_us(place) <= now_us:
            return False
        self.places.insert(bisect_right(self.places, place.due_us, key=_DUE), place)
        return True

    def depart(self, now_us: int) -> list[tuple[W, Place]]:
        """The requests whose instant has come, in order, and their places; they are gone."""
        gone: list[tuple[W, Place]] = []
        while self.requests and self.due_us() <= now_us:
            gone.append((self.requests.pop(0), self.places.pop(0)))
        return gone

    def due_us(self, request: W | None = None) -> int:
        """The instant, by our clock, at which a request leaves here; the first, without one."""
        number = 0 if request is None else self.requests.index(request)
        return self._instant_us(self.places[number])

    def _instant_us(self, place: Place) -> int:
        return max(place.due_us + min(self._before_us or 0, self._recent_us), place.least_us)

    def _differs(self, place: Place) -> bool:
        return self.places[0].check.cost != place.check.cost

    def _compare(self, offset_us: int, now_us: int) -> None:
        """Learns how far our clock is ahead of the store's, by the answers that were seen soonest.

        An answer is seen when our event loop comes to it, and a promise is from the decision on.
        """
        if self._before_us is None:
            self._before_us = self._recent_us = offset_us
            self._until_us = now_us + WINDOW_US
        elif now_us > self._until_us:
            self._before_us, self._recent_us = self._recent_us, offset_us
            self._until_us = now_us + WINDOW_US
        else:
            self._recent_us = min(self._recent_us, offset_us)
