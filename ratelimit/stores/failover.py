"""The stand-in for a store that cannot answer: a share of each quota, settled afterwards.

The law of this module: everything let through while the store is away is charged to it when it is
back, before requests go to it again.
"""

import asyncio
import logging
import os
import secrets
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from fractions import Fraction
from sys import getsizeof
from typing import Final, Protocol, runtime_checkable
from zlib import crc32

from ratelimit.concurrency import Concurrency
from ratelimit.decisions import Action, Check, Decision, passes
from ratelimit.limits import Limit
from ratelimit.runtime.background import Background
from ratelimit.stores import MemoryStore, Store, StoreUnavailable
from ratelimit.stores.breaker import PROBE, Breaker

__all__ = ["Breaker", "Failover", "Heartbeats"]

_LOG: Final = logging.getLogger("ratelimit")

HEARTBEAT: Final = 1.0  # seconds between a worker's signs of life
ALIVE_FOR: Final = 3.5  # seconds that one of them counts
BEATS: Final = 4  # of one's own, in which all others have had time for one of theirs
MOST_OWED: Final = 10_000  # counters charged afterwards with what was admitted meanwhile
MOST_OWED_BYTES: Final = 2**20  # of their identities, which may be long
OWED_AT_ONCE: Final = 50
MOST_ROUNDS: Final = 5  # of charges afterwards, each of what was let through during the one before

# Failures of requests that provably were not sent.
_NOT_SENT: Final = frozenset({"open", "refused", "name", "no-master"})

_Owed = tuple[Limit, str, str]
"""A counter that is owed to the store: its limit, identity and rule."""
_Entry = tuple[Check, Check]
"""A charge for the store, and that of this worker's share."""


@runtime_checkable
class Heartbeats(Protocol):
    """A store in which workers make themselves known."""

    async def heartbeat(self, worker: str, alive_for: float) -> int:
        """Reports a worker as alive for so many seconds; gives the number of workers alive."""
        ...


class Failover:
    """A store behind a breaker, with a local stand-in that decides while the store is away.

    A store that has a breaker of its own, `RedisStore`, knows better whose failure it was; before
    any other stands one that counts its decisions.

    ``workers`` is the number that share a quota while the store is away: that of the rule file
    until heartbeats were seen, then their number, frozen when the store is lost. Fewer than before
    are believed only when all others have had time to speak.
    """

    def __init__(self, store: Store, workers: int = 1, *, local: bool = False) -> None:
        self.store = store
        self.workers = workers
        self._guarded = type(store) is not MemoryStore  # which has nothing to fail
        breaker = getattr(store, "breaker", None)
        self._breaks = self._guarded and not isinstance(breaker, Breaker)
        self.breaker: Breaker = (
            breaker if isinstance(breaker, Breaker) else Breaker(lambda: store.decide([PROBE]))
        )
        self.breaker.returning.append(self._settle)
        self._past = getattr(store, "decide_past_breaker", store.decide)
        self._beats = local and isinstance(store, Heartbeats)
        self._name = ""
        self._place: int | None = None  # among the workers
        self._named_in = 0  # the process, since workers may be forked from one that has a limiter
        self._stated = workers
        self._counted: deque[int] = deque(maxlen=BEATS)
        self._local: MemoryStore | None = None
        self._shares: dict[tuple[str, int], Limit] = {}
        self._owed: set[_Owed] = set()
        self._owed_bytes = 0
        self._heartbeat = Background("heartbeat", self._beat)
        self.held: Callable[[Check], int] = lambda _: 0
        """The places of a concurrency's counter that are held here."""

    @property
    def seen(self) -> int | None:
        """The number of workers alive, as last seen; None where none has made itself known."""
        return max(self._counted, default=None)

    def count_workers(self) -> None:
        """Has workers make themselves known, where the store gathers them."""
        self._beats = self._guarded and isinstance(self.store, Heartbeats)

    def run(self) -> None:
        """Makes this worker known in this event loop, where workers are counted."""
        if self._beats:
            self._heartbeat.run()

    def decide(self, checks: Sequence[Check]) -> Awaitable[tuple[Decision, ...]]:
        """The store's decisions; raises StoreUnavailable at once while it is known to be away."""
        if self._beats:
            self._heartbeat.run()
        # Not a coroutine around the store's own, where that has its own breaker.
        return self._decide_by_breaker(checks) if self._breaks else self.store.decide(checks)

    async def _decide_by_breaker(self, checks: Sequence[Check]) -> tuple[Decision, ...]:
        breaker = self.breaker
        if breaker.state == "open" and breaker.turns_away():
            raise breaker.away()
        try:
            decisions = await self.store.decide(checks)
        except StoreUnavailable as error:
            if error.scope in ("server", "shard"):
                breaker.failed(error)
            raise
        if breaker.state == "open":  # in an event loop in which nothing can probe
            breaker.become("closed")
        breaker.succeeded()
        return decisions

    async def decide_locally(self, checks: Sequence[Check]) -> tuple[Decision, ...]:
        """Decides in process, at this worker's share of each quota; `Decision.degraded` says so.

        What is let through is remembered, and charged to the store once it is back.
        """
        if self._local is None:
            self._local = _stand_in()
            self.count_workers()
        own = []
        for check in checks:
            limit, key, cost, rule, action, at_us, level = check
            if isinstance(limit, Concurrency):
                places, at_us = self._places(limit, key, rule), 1
                share: Limit = Concurrency(max(1, places), limit.window_us)
                # The worker knows how many it has; it counts for nobody else here.
                await self._local.reset([Check(share, key, 1, rule)])
                held = self.held(check) if places else 1
                taken = Check(share, key, held, rule, action=Action.FORCE, at_us=at_us)
                await self._local.decide([taken])
            else:
                share = self._share(limit)
            # A share lets through what the whole would, once; what that never would, it never does.
            asks = action in (Action.CHARGE, Action.SHADOW)
            units = cost if asks and cost > limit.capacity else min(cost, share.capacity)
            own.append(
                Check(share, key, units, rule, action=Action(action), at_us=at_us, level=level)
            )
        decisions = await self._local.decide(own)
        if self._guarded and passes(checks, decisions):
            for check, decision in zip(checks, decisions, strict=True):
                if check.action == Action.CHARGE and check.cost and decision.allowed:
                    if not isinstance(check.limit, Concurrency):  # which its worker tells anyway
                        self._owe(check)
        return tuple(decision._replace(degraded=True) for decision in decisions)

    async def give_back_locally(self, checks: Sequence[Check]) -> tuple[Decision, ...]:
        """Returns what was charged at this worker's share, unless the store is asked again."""
        return () if self._local is None else await self._local.decide(checks)

    def _owe(self, check: Check) -> None:
        """Remembers a counter to charge once the store is back, as far as there is room."""
        owed = (check.limit, check.key, check.rule)
        size = getsizeof(check.key)
        if owed not in self._owed and (
            len(self._owed) < MOST_OWED and self._owed_bytes + size <= MOST_OWED_BYTES
        ):
            self._owed.add(owed)
            self._owed_bytes += size

    def _places(self, limit: Concurrency, key: str, rule: str) -> int:
        """This worker's part of the places: those of all workers add up to the whole.

        What cannot be divided goes to others for each identity. Where the workers are not known
        by their names, they add up to it on average.
        """
        each, rest = divmod(limit.quota, self.workers)
        place = int(self._own_name(), 16) if self._place is None else self._place
        drawn = crc32(f"{rule}\0{key}".encode("utf-8", "surrogatepass"))
        return each + ((place + drawn) % self.workers < rest)

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
        """Ends the background tasks, and closes the store."""
        await self._heartbeat.aclose()
        await self.breaker.aclose()
        await self.store.aclose()

    async def _settle(self) -> None:
        """Charges the store for everything let through meanwhile: once, and as far as it gets.

        What is let through while that is under way is counted by the same shares, and charged in
        another round.
        """
        charged: dict[_Owed, int] = {}
        for _ in range(MOST_ROUNDS):
            entries = await self._to_settle(charged)
            if not entries:
                break
            unsent = await self._send(entries)
            if unsent:
                unsent += await self._to_settle(charged)
                self._local = None
                await self._keep_owed(unsent)
                return
        self._local = None

    async def _to_settle(self, charged: dict[_Owed, int]) -> list[_Entry]:
        """The charges that are owed beyond those ``charged``, which then has them too."""
        owed, self._owed, self._owed_bytes = self._owed, set(), 0
        entries: list[_Entry] = []
        local = self._local
        if local is None:
            return entries
        for each in owed:
            limit, key, rule = each
            share = self._share(limit)
            # What has left its window since was paid for by waiting.
            (look,) = await local.decide([Check(share, key, 0, rule)])
            used = share.capacity - look.remaining - charged.get(each, 0)
            if used > 0:
                charged[each] = charged.get(each, 0) + used
                charge = Check(limit, key, used, rule, action=Action.FORCE)
                entries.append((charge, Check(share, key, used, rule, action=Action.FORCE)))
        return entries

    async def _send(self, entries: Sequence[_Entry]) -> list[_Entry]:
        """Charges the store; gives those that it has provably not heard of."""
        unsent: list[_Entry] = []
        for start in range(0, len(entries), OWED_AT_ONCE):
            part = entries[start : start + OWED_AT_ONCE]
            problem: Exception | None = None
            lost: list[_Entry] = []
            try:
                decisions = await self._past([charge for charge, _ in part])
            except StoreUnavailable as error:
                problem = error
                if error.kind in _NOT_SENT:
                    return [*unsent, *entries[start:]]
            else:
                for entry, decision in zip(part, decisions, strict=True):
                    if decision.degraded:  # a shard that is still away
                        problem = getattr(decision, "problem", None)
                        if isinstance(problem, StoreUnavailable) and problem.kind in _NOT_SENT:
                            lost.append(entry)
            if problem is not None and not lost:
                _LOG.warning("settle-failed: what was let through is not charged: %s", problem)
            unsent += lost
        return unsent

    async def _keep_owed(self, entries: Sequence[_Entry]) -> None:
        """Counts charges in process again that the store could not take."""
        for charge, own in entries:
            if self._local is None:
                self._local = _stand_in()
            await self._local.decide([own])
            self._owe(charge)

    async def _find_place(self) -> None:
        """Learns the place of this worker among all that are alive, where the store names them."""
        names = getattr(self.store, "workers", None)
        if callable(names):
            with suppress(StoreUnavailable):  # or without the right to see them
                alive = sorted(await names())
                self._place = alive.index(name) if (name := self._own_name()) in alive else None

    def _own_name(self) -> str:
        """This worker's name, which no other process has."""
        if self._named_in != os.getpid():
            self._named_in, self._name = os.getpid(), secrets.token_hex(8)
        return self._name

    async def _beat(self) -> None:
        """Makes this worker known, and learns how many there are; stops counting while it can't."""
        if not isinstance(self.store, Heartbeats):
            return
        while True:
            if not self.breaker.is_open():
                try:
                    count = await self.store.heartbeat(self._own_name(), ALIVE_FOR)
                except StoreUnavailable:
                    pass
                else:
                    # After an outage, the first to speak is alone for a moment.
                    self._counted.append(max(1, count))
                    # Until all have had time to speak, the rule file may know better.
                    unheard = [self._stated] if len(self._counted) < BEATS else []
                    self.workers = max([*self._counted, *unheard])
                    await self._find_place()
            await asyncio.sleep(HEARTBEAT)


def _stand_in() -> MemoryStore:
    """A store of this worker's shares, which is no mistake where there are several."""
    store = MemoryStore()
    store.is_shared = False
    return store
