"""A circuit breaker for one server, and the probe that looks whether it is back.

The law of this module: no request waits for a server that is known to be away. While the breaker is
open, requests are answered at once, and one probe at a time asks the server.
"""

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final, Literal

from ratelimit.decisions import Action, Check
from ratelimit.limits import Limit
from ratelimit.runtime.background import Background
from ratelimit.stores.errors import StoreUnavailable

__all__ = ["PROBE", "Breaker", "State"]

_LOG: Final = logging.getLogger("ratelimit")

State = Literal["closed", "open"]

FAILURES_IN_A_ROW: Final = 5
FAILURES_OF: Final = 20  # the last so many outcomes, of which half failed
FIRST_PROBE: Final = 0.1  # seconds after it opened; then twice as long each time
LAST_PROBE: Final = 0.8  # seconds at most, so that limits hold again within two
STEADY_AFTER: Final = 5.0  # seconds closed, after which the next outage is probed quickly again

PROBE: Final = Check(
    Limit("1/second", algorithm="fixed_window"), "probe", 1, "ratelimit.probe", action=Action.FORCE
)
"""A check that writes: a server that is full, or a demoted master, answers what only reads."""


class Breaker:
    """Whether a server is asked: "closed" while it answers, "open" while it is known to be away.

    Opens after 5 failures in a row, or when half of the last 20 outcomes were failures. While it is
    open, ``probe`` is awaited again and again, ever less often, until it raises nothing; then
    whatever is in ``returning`` is awaited, and it closes. A server that comes and goes is probed
    ever less often, too.

    ``parent`` stands for all servers of a store: it is open while one of theirs is.
    """

    def __init__(
        self, probe: Callable[[], Awaitable[object]] | None = None, parent: "Breaker | None" = None
    ) -> None:
        self.state: State = "closed"
        self.since = time.time()
        """The time at which it came into this state, seconds since the epoch."""
        self.last_error = ""
        """The sentence that the server last failed with; empty if it never did."""
        self.recent: deque[bool] = deque(maxlen=FAILURES_OF)
        """For each of the last outcomes whether it was a failure; empty while none of them was."""
        self.on_change: list[Callable[[State], None]] = []
        """Functions that are called with the new state, once per change."""
        self.returning: list[Callable[[], Awaitable[None]]] = []
        """Jobs that are awaited when a probe was answered, before the breaker closes."""
        self._probe = probe
        self._parent = parent
        self._open_children: set[Breaker] = set()
        self._in_a_row = 0
        self._pause = FIRST_PROBE
        self._closed_at = 0.0
        self._opened_at = 0.0
        self._was_open = 0.0
        self._probing = Background("probe", self._look)

    def succeeded(self) -> None:
        """Counts a round trip that was answered."""
        if self._in_a_row or self.recent:
            self._in_a_row = 0
            self.recent.append(False)
            if not any(self.recent):
                self.recent.clear()

    def failed(self, error: StoreUnavailable) -> None:
        """Counts one that was not, and opens if that was one too many."""
        self.note(error)
        if self.state == "open":
            return
        self._in_a_row += 1
        self.recent.append(True)
        full = len(self.recent) == FAILURES_OF
        if self._in_a_row >= FAILURES_IN_A_ROW or (full and sum(self.recent) * 2 >= FAILURES_OF):
            self.become("open")

    def note(self, error: StoreUnavailable) -> None:
        """Remembers a failure's sentence, whatever it counts for."""
        self.last_error = str(error)
        if self._parent is not None:
            self._parent.last_error = self.last_error

    def is_open(self) -> bool:
        """Whether the server is known to be away."""
        return self.state == "open"

    @property
    def open_for(self) -> float:
        """Seconds that it was open, all together."""
        open_now = time.monotonic() - self._opened_at if self.state == "open" else 0.0
        return self._was_open + open_now

    def turns_away(self) -> bool:
        """Whether a request is to be answered without the server, which is being probed."""
        return self.state == "open" and self._probing.run()

    def away(self) -> StoreUnavailable:
        """The failure of a request that is turned away."""
        return StoreUnavailable(f"the store is away: {self.last_error}", kind="open", scope="own")

    def become(self, state: State) -> None:
        """Changes the state; says so where it is another one."""
        if state == self.state:
            return
        if state == "closed":
            self._was_open = self.open_for
        else:
            self._opened_at = time.monotonic()
        self.state = state
        self.since = time.time()
        self.recent.clear()
        self._in_a_row = 0
        if state == "closed":
            self._closed_at = time.monotonic()
        elif time.monotonic() - self._closed_at > STEADY_AFTER:
            self._pause = FIRST_PROBE
        if self._parent is not None:
            self._parent.hear(self)
        if state == "open":
            self._probing.run()
        for told in self.on_change:
            try:
                told(state)
            except Exception:  # noqa: BLE001  # it must not stop the clock of those who wait
                _LOG.exception("on-change-failed: a function that is told of the breaker raised")

    def hear(self, child: "Breaker") -> None:
        """Learns the new state of one server's breaker."""
        if child.is_open():
            self._open_children.add(child)
        else:
            self._open_children.discard(child)
        self.become("open" if self._open_children else "closed")

    async def returned(self) -> None:
        """Awaits what is to be done before requests go to the server again."""
        for job in self.returning:
            await job()
        if self._parent is not None:
            await self._parent.returned()

    async def _look(self) -> None:
        if self._probe is None:
            return
        while self.is_open():
            await asyncio.sleep(self._pause * random.uniform(0.75, 1.25))  # noqa: S311  # jitter
            self._pause = min(self._pause * 2, LAST_PROBE)
            try:
                await self._probe()
            except StoreUnavailable as error:
                self.note(error)
            except Exception as error:  # noqa: BLE001  # a bug in a store keeps the breaker open
                self.last_error = f"{type(error).__name__}: {error}"
            else:
                await self.returned()
                self.become("closed")

    async def aclose(self) -> None:
        """Ends the probe that runs in this event loop."""
        await self._probing.aclose()
