"""Units of one identity that this process has charged ahead, so that not each needs a trip.

The law of this module: what is held was charged before, all at one time, and is used within the
time in which the bucket gains as many. An identity thus passes its limit by at most what one worker
may hold, `most_ahead`, in any window and by any number of workers; a lease is renewed only where
nothing of it is left.
"""

import time
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple

import anyio

from ratelimit.decisions import Action, Check, Decision
from ratelimit.limits import Limit
from ratelimit.rules.route_rule import RouteRule
from ratelimit.rules.sockets import OnExcess, most_ahead

__all__ = ["Granted", "Kind", "Lease", "Trip"]


class Kind:
    """One limit of a rule on what comes over WebSockets: on their messages, or on their bytes."""

    __slots__ = (
        "by_size", "counters", "exact", "lasts", "limit", "most_ahead", "of", "on_excess", "rule",
    )  # fmt: skip

    def __init__(self, of: str, rule: RouteRule, on_excess: OnExcess, *, exact: bool) -> None:
        (self.limit,) = rule.limits
        limit: Limit = self.limit
        self.of = of
        """The name of the rule that has the limit."""
        self.rule = rule
        """The limit as a rule of its own, under whose name it is counted and told."""
        self.by_size = rule.name.endswith(":bytes")
        self.on_excess = on_excess
        self.exact = exact
        """Whether each message is charged by itself, since the store is in this process."""
        self.most_ahead = 0 if exact else most_ahead(limit)
        self.lasts = max(1, self.most_ahead) * limit.window_us / limit.quota / 1_000_000
        """Seconds in which the bucket gains as many units as are held at most; one is put back at
        least."""
        self.counters = (limit.digest, rule.counter)


class Granted(NamedTuple):
    """The outcome of a trip to the store."""

    decision: Decision
    """On what was needed."""
    ahead: int = 0
    """Units charged beyond that."""
    last: Decision | None = None
    """The store's decision on the last units charged, by which they can be given back; None where
    the store decided nothing."""


Trip = Callable[[Kind, str, bool, int, int], Awaitable[Granted]]
"""Asks for units: of a kind, by a key, in shadow or not, those needed and those ahead."""


class Lease:
    """The units that one identity's WebSockets in this process may still send by one limit."""

    __slots__ = (
        "__weakref__", "_ahead", "_give_back", "_last", "_lock", "_passed", "_trip", "_until",
        "held", "holders", "key", "kind", "shadow",
    )  # fmt: skip

    now: Final = time.monotonic

    def __init__(
        self,
        kind: Kind,
        key: str,
        trip: Trip,
        give_back: Callable[[Check], Awaitable[None]],
        *,
        shadow: bool,
    ) -> None:
        self.kind = kind
        self.key = key
        self.shadow = shadow
        self.holders = 0
        """Open WebSockets that use it."""
        self.held = 0
        """Units that are charged and not used."""
        self._until = 0.0
        self._ahead = 0  # to be charged beyond what is needed, the next time
        self._last: Decision | None = None
        self._trip = trip
        self._give_back = give_back
        self._lock = anyio.Lock()
        self._passed = Decision(kind.limit, True, self.held, 0, 0, 0)

    async def take(self, units: int) -> Decision:
        """Takes units that are held, or asks the store for more; all of them, or none."""
        if units <= self.held and Lease.now() < self._until:
            self.held -= units
            return self._passed
        if self.kind.exact:
            granted = await self._trip(self.kind, self.key, self.shadow, units, 0)
            return granted.decision
        async with self._lock:
            if units <= self.held and Lease.now() < self._until:  # another one has renewed it
                self.held -= units
                return self._passed
            return await self._renew(units)

    async def _renew(self, units: int) -> Decision:
        now = Lease.now()
        if now < self._until:  # used up before its end
            most = max(0, self.kind.most_ahead + 1 - units)
            self._ahead = min(most, 2 * self._ahead + units)
        elif self.held:
            self._ahead = max(0, self._ahead - self.held)
            await self.return_rest()
        # What is held is used up with this; meanwhile nobody else may have it.
        before, self.held = self.held, 0
        try:
            granted = await self._trip(
                self.kind, self.key, self.shadow, units - before, self._ahead
            )
        except BaseException:
            self.held = before
            raise
        if not granted.decision.allowed:
            self.held = before
            self._ahead = 0  # so that what is refused again is the same question
            if not before:
                self._until = 0.0
        elif granted.last is not None:
            self.held, self._last = granted.ahead, granted.last
            self._until = now + self.kind.lasts
        return granted.decision

    async def put_back(self, units: int, decision: Decision) -> None:
        """Returns what was just taken, since another limit refuses the message."""
        if not self.kind.exact:
            self.held += units
        elif decision.at_us and decision.allowed:
            await self._give_back(self._returned(units, decision))

    async def return_rest(self) -> None:
        """Gives back to the store what is held, by the time at which it was charged."""
        rest, self.held, last = self.held, 0, self._last
        if rest and last is not None:
            await self._give_back(self._returned(rest, last))

    def _returned(self, units: int, decision: Decision) -> Check:
        return Check(
            self.kind.limit, self.key, units, self.kind.rule.counter, action=Action.GIVE_BACK,
            at_us=decision.at_us, level=decision.level,
        )  # fmt: skip
