"""The queue before a connection, and the two clocks by which those in it wait.

One clock counts the server's time, in which everything in flight was owed; the other counts ours.
Who has waited too long by the first is late, and by the second more than this process gets to.
"""

from collections import deque
from collections.abc import Iterator
from typing import Final

from ratelimit.runtime.histogram import SECONDS, SIZES, Histogram
from ratelimit.stores.redis.line import Request

__all__ = ["FEWEST_IN_FLIGHT", "Load", "Queue"]

LEAST_SHARE: Final = 32  # checks; measured beside 24 and 48 with benchmarks/redis.py
MOST_CHECKS: Final = 192  # in one script, so that none holds the server for about a millisecond
FEWEST_IN_FLIGHT: Final = 2  # batches: one is decided while the other's answers are read


class Load:
    """The work that waits in one event loop, for all servers of a store."""

    __slots__ = ("queued", "sizes", "trips", "why")

    def __init__(self, trips: Histogram | None = None, sizes: Histogram | None = None) -> None:
        self.trips = trips or Histogram(SECONDS)
        """Seconds that each round trip of checks took."""
        self.sizes = sizes or Histogram(SIZES)
        """Checks in each of them."""
        self.queued = 0
        """Checks that are in no batch yet."""
        self.why = ""
        """The last failure that was passed on to nobody, in a sentence; for those who are late."""


class Queue:
    """Requests in the order in which they came. ``load`` is told of their checks."""

    def __init__(self, load: Load) -> None:
        self.requests: deque[Request] = deque()
        self.checks = 0
        """Checks of all of them."""
        self.owing = 0.0
        """Seconds of the server's time that have passed since the queue was last empty."""
        self.own = 0.0
        """Seconds of ours."""
        self._load = load

    def put(self, request: Request, size: int) -> None:
        """Takes a request of so many checks."""
        if not self.requests:
            self.owing = self.own = 0.0
        self.requests.append(request)
        self.checks += size
        self._load.queued += size

    def take(self) -> Request:
        """Gives up the oldest."""
        request = self.requests.popleft()
        size = len(request.checks)
        self.checks -= size
        self._load.queued -= size
        if request.marks is not None:
            request.owed = max(0.0, self.owing - request.marks[0])
        return request

    def take_all(self) -> Iterator[Request]:
        """Gives up one after the other."""
        while self.requests:
            yield self.take()

    def take_batch(self, in_flight: int) -> tuple[list[list[Request]], int]:
        """The oldest who still wait, up to what one batch may carry; a single one always.

        One group is one script: a script takes keys of one slot only. Their checks are counted.
        """
        groups: dict[tuple[int, bool], list[Request]] = {}
        group: list[Request] = []
        last = None
        requests = self.requests
        taken = 0
        # A batch's share of all that is under way, so that one is decided while another's answers
        # are read; batches that are too small cost more than that saves.
        share = (self.checks + in_flight) // FEWEST_IN_FLIGHT
        room = most = min(MOST_CHECKS, max(LEAST_SHARE, share))
        while requests:
            request = requests[0]
            if request.command:
                break
            size = len(request.checks)
            if not request.future.done():
                if size > room and groups:
                    break
                room -= size
                if request.marks is not None:
                    request.owed = max(0.0, self.owing - request.marks[0])
                if last is None or request.slot != last.slot or request.asking != last.asking:
                    group = groups.setdefault((request.slot, request.asking), [])
                    last = request
                group.append(request)
            requests.popleft()
            taken += size
        self.checks -= taken
        self._load.queued -= taken
        return list(groups.values()), most - room

    def mark(self) -> None:
        """Notes both clocks for those that came since the last time.

        They have waited for a little longer than is counted from here.
        """
        for request in reversed(self.requests):
            if request.marks is not None:
                break
            request.marks = (self.owing - request.owed, self.own)

    def take_overdue(self, owing: float, own: float) -> Iterator[tuple[Request, bool]]:
        """Gives up those that have waited so long by either clock, and those who left.

        Each with whether it was the server's time.
        """
        while self.requests:
            request = self.requests[0]
            late = False
            if not request.future.done():
                if request.marks is None:
                    return
                late = request.marks[0] <= self.owing - owing
                if not late and request.marks[1] > self.own - own:
                    return
            yield self.take(), late

    def take_but_past(self) -> Iterator[Request]:
        """Gives up all but those that go past an open breaker."""
        kept = deque([request for request in self.requests if request.past])
        given = [request for request in self.requests if not request.past]
        size = sum([len(request.checks) for request in given])
        self.requests = kept
        self.checks -= size
        self._load.queued -= size
        yield from given
