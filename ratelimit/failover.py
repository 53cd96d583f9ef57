"""What answers when the store cannot: a circuit breaker, a share of each quota, and the way back.

The law of this module: no request waits for a store that is known to be away. While the breaker is
open, requests are answered at once, and one probe at a time looks whether the store is back.
"""

import asyncio
import contextlib
import logging
import random
import secrets
import time
from collections import deque
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Final, Literal, Protocol, runtime_checkable

from ratelimit.background import Background
from ratelimit.decisions import Action, Check, Decision
from ratelimit.limits import Limit
from ratelimit.stores import MemoryStore, Store, StoreUnavailable

__all__ = ["Breaker", "Failover", "Heartbeats"]

_LOG: Final = logging.getLogger("ratelimit")

State = Literal["closed", "open"]

FAILURES_IN_A_ROW: Final = 5
FAILURES_OF: Final = 20  # the last so many decisions, of which half failed
FIRST_PROBE: Final = 0.1  # seconds after it opened; then twice as long each time
LAST_PROBE: Final = 1.0  # seconds at most, so that limits hold again within two
HEARTBEAT: Final = 1.0  # seconds between a worker's signs of life
ALIVE_FOR: Final = 3.5  # seconds that one of them counts
MOST_OWED: Final = 10_000  # counters charged afterwards with what was admitted meanwhile
OWED_AT_ONCE: Final = 50

# Writes: a server that is full, or a demoted master, answers what only reads.
_PROBE: Final = Check(
    Limit("1/second", algorithm="fixed_window"), "probe", 1, "ratelimit.probe", action=Action.FORCE
)


class Breaker:
    """Whether the store is asked: "closed" while it answers, "open" while it is known to be away.

    Opens after 5 failures in a row, or when half of the last 20 decisions failed. ``on_change`` is
    called with the new state, once per change.
    """

    def __init__(self) -> None:
        self.state: State = "closed"
        self.since = time.time()
        """When it came into this state, seconds since the epoch."""
        self.last_error = ""
        """What the store last failed with; empty if it never did."""
        self.on_change: Callable[[State], None] | None = None
        self.recent: deque[bool] = deque(maxlen=FAILURES_OF)
        """Which of the last decisions failed; empty while none of them did."""
        self._in_a_row = 0

    def succeeded(self) -> None:
        """Counts a decision that the store made."""
        if self._in_a_row or self.recent:
            self._in_a_row = 0
            self.recent.append(False)
            if not any(self.recent):
                self.recent.clear()

    def failed(self, error: StoreUnavailable) -> None:
        """Counts one that it did not make, and opens if that was one too many."""
        self.last_error = str(error)
        self._in_a_row += 1
        self.recent.append(True)
        full = len(self.recent) == FAILURES_OF
        if self._in_a_row >= FAILURES_IN_A_ROW or (full and sum(self.recent) * 2 >= FAILURES_OF):
            self.become("open")

    def is_open(self) -> bool:
        """Whether the store is known to be away."""
        return self.state == "open"

    def become(self, state: State) -> None:
        """Changes the state; says so where it is another one."""
        if state != self.state:
            self.state = state
            self.since = time.time()
            self.recent.clear()
            self._in_a_row = 0
            if self.on_change is not None:
                self.on_change(state)


@runtime_checkable
class Heartbeats(Protocol):
    """A store in which workers make themselves known."""

    async def heartbeat(self, worker: str, alive_for: float) -> int:
        """Signs of life of a worker, for so many seconds; gives how many workers have some."""
        ...


class Failover:
    """A store behind a breaker, and what each worker may let through by itself meanwhile.

    ``workers`` is how many share a quota while the store is away: what the rule file says until
    heartbeats were seen, then their number, frozen when the store is lost.
    """

    def __init__(self, store: Store, workers: int = 1, *, local: bool = False) -> None:
        self.store = store
        self.workers = workers
        self.breaker = Breaker()
        self._guarded = type(store) is not MemoryStore  # which has nothing to fail
        # One breaker for several shards would take the living ones away with the dead.
        self._breaks = self._guarded and getattr(store, "one_server", True)
        self._beats = local and isinstance(store, Heartbeats)
        self._name = secrets.token_hex(8)
        self._local: MemoryStore | None = None
        self._shares: dict[tuple[str, int], Limit] = {}
        self._owed: set[tuple[Limit, str, str]] = set()
        self._heartbeat = Background("heartbeat", self._beat)
        self._probing = Background("probe", self._probe)

    async def decide(self, checks: Sequence[Check]) -> tuple[Decision, ...]:
        """What the store decides; raises StoreUnavailable at once while it is known to be away."""
        if not self._guarded:
            return await self.store.decide(checks)
        if self._beats:
            self._heartbeat.run()
        breaker = self.breaker
        if not self._breaks:
            return await self.store.decide(checks)
        trouble = breaker.recent or breaker.state == "open"
        if trouble and breaker.is_open() and self._probing.run():
            raise StoreUnavailable(f"the store is away: {breaker.last_error}", kind="open")
        repeated = getattr(self.store, "denials_repeated", 0) if trouble else 0
        try:
            decisions = await self.store.decide(checks)
        except StoreUnavailable as error:
            breaker.failed(error)
            if breaker.is_open():
                self._probing.run()
            raise
        # What is repeated in process says nothing of the store.
        if trouble and repeated == getattr(self.store, "denials_repeated", 0):
            if breaker.is_open():
                breaker.become("closed")
            breaker.succeeded()
        return decisions

    async def decide_locally(self, checks: Sequence[Check]) -> tuple[Decision, ...]:
        """Decides in process, at this worker's share of each quota; `Decision.degraded` says so.

        What is let through is remembered, and charged to the store once it is back.
        """
        if self._local is None:
            self._local = MemoryStore()
            self._beats = self._guarded and isinstance(self.store, Heartbeats)
        own = []
        for limit, key, cost, rule, action, at_us, level in checks:
            share = self._share(limit)
            own.append(
                Check(share, key, min(cost, share.capacity), rule, action=Action(action),
                      at_us=at_us, level=level)
            )  # fmt: skip
        decisions = await self._local.decide(own)
        passed = all(
            decision.allowed
            for check, decision in zip(checks, decisions, strict=True)
            if check.action != Action.SHADOW
        )
        if passed and self._guarded:
            for check, decision in zip(checks, decisions, strict=True):
                if check.action == Action.CHARGE and check.cost and decision.allowed:
                    owed = (check.limit, check.key, check.rule)
                    if len(self._owed) < MOST_OWED:
                        self._owed.add(owed)
        return tuple(decision._replace(degraded=True) for decision in decisions)

    def _share(self, limit: Limit) -> Limit:
        """This worker's part of a limit."""
        known = (limit.digest, self.workers)
        share = self._shares.get(known)
        if share is None:
            if len(self._shares) >= MOST_OWED:
                self._shares.clear()
            share = self._shares[known] = limit.scaled(Fraction(1, self.workers))
        return share

    async def aclose(self) -> None:
        """Ends what runs in the background, and closes the store."""
        await self._heartbeat.aclose()
        await self._probing.aclose()
        await self.store.aclose()

    async def _probe(self) -> None:
        """Looks whether the store is back, alone and ever less often; then closes the breaker."""
        pause = FIRST_PROBE
        while self.breaker.is_open():
            await asyncio.sleep(pause * random.uniform(0.75, 1.25))  # noqa: S311  # jitter
            pause = min(pause * 2, LAST_PROBE * 0.8)
            try:
                await self.store.decide([_PROBE])
            except StoreUnavailable as error:
                self.breaker.last_error = str(error)
            except Exception as error:  # noqa: BLE001  # a bug in a store keeps the breaker open
                self.breaker.last_error = f"{type(error).__name__}: {error}"
            else:
                await self._settle()
                self.breaker.become("closed")

    async def _settle(self) -> None:
        """Charges the store with what was let through meanwhile; once, and as far as it gets."""
        owed, self._owed = self._owed, set()
        local, self._local = self._local, None
        entries = []
        for limit, key, rule in owed:
            if local is not None:
                share = self._share(limit)
                # What has left its window since was paid for by waiting.
                (look,) = await local.decide([Check(share, key, 0, rule)])
                used = share.capacity - look.remaining
                if used > 0:
                    entries.append(Check(limit, key, used, rule, action=Action.FORCE))
        for start in range(0, len(entries), OWED_AT_ONCE):
            try:
                await self.store.decide(entries[start : start + OWED_AT_ONCE])
            except StoreUnavailable as error:
                _LOG.warning("settle-failed: what was let through is not charged: %s", error)
                return

    async def _beat(self) -> None:
        """Makes this worker known, and learns how many there are; stops counting while it can't."""
        if not isinstance(self.store, Heartbeats):
            return
        while True:
            if not self.breaker.is_open():
                with contextlib.suppress(StoreUnavailable):
                    self.workers = max(1, await self.store.heartbeat(self._name, ALIVE_FOR))
            await asyncio.sleep(HEARTBEAT)
