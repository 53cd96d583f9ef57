"""Messages over open WebSockets, held to the limits of the rules that let those in.

Each connection is held to a limit by a bucket in this process, and its identity to the same limit
by the store, from which units are taken ahead. The law of `limiter` holds here as well: whatever
fails is met by the rule's policy, and is never a fault of the application.
"""

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from itertools import count
from typing import Any, Final, NamedTuple, Protocol
from weakref import WeakValueDictionary

from ratelimit.control.denials import Denials
from ratelimit.control.events import Events
from ratelimit.control.switches import ALL, Switches
from ratelimit.decisions import Action, Check, Decision, assumed
from ratelimit.limiter.admission import Admission
from ratelimit.limiter.fallback import Fallback
from ratelimit.limiter.reports import Reports
from ratelimit.limiter.sockets.portions import Granted, Kind, Lease
from ratelimit.limiter.telling import tell_refused
from ratelimit.rules.matching import Matching
from ratelimit.rules.route_rule import RouteRule, counter_of
from ratelimit.rules.rule import Rule
from ratelimit.rules.ruleset import RuleSet
from ratelimit.rules.sockets import OnExcess, policy_of
from ratelimit.stores import MemoryStore, Store, StoreUnavailable

__all__ = ["Excess", "Socket", "Sockets"]

MOST_KINDS: Final = 1_000
"""Rules whose limits are kept ready; those of routes may come without end."""

_CHARGE: Final = int(Action.CHARGE)
_SHADOW: Final = int(Action.SHADOW)
_NOT_DECIDED: Final = StoreUnavailable("a shard gave no answer", kind="shard", scope="shard")


class Owner(Protocol):
    """The limiter that the WebSockets were let in by."""

    enabled: bool
    everywhere: bool
    rules: RuleSet
    store: Store
    counts: Counter[tuple[str, str]]
    denials: Denials
    events: Events

    async def give_back(self, returned: Sequence[Check]) -> None:
        """Asks the store to take back charges."""


class Excess(NamedTuple):
    """A message that a limit does not let through at the moment, or ever."""

    lease: Lease
    decision: Decision

    @property
    def on_excess(self) -> OnExcess:
        """The rule's word on it; "close" where waiting would not help."""
        return "close" if self.decision.retry_after_us is None else self.lease.kind.on_excess

    @property
    def policy(self) -> str:
        """The limit's name before clients."""
        return self.lease.kind.rule.name

    @property
    def is_unavailable(self) -> bool:
        """Whether nothing decided it, because the store has failed."""
        return self.decision.degraded and self.decision.retry_after_us is None


class Sockets:
    """The open WebSockets of one limiter."""

    def __init__(
        self,
        owner: Any,
        ask: Callable[[Sequence[Check]], Awaitable[Sequence[Decision]]],
        fallback: Fallback,
        switches: Switches,
        reports: Reports,
    ) -> None:
        self._owner: Owner = owner
        self._ask = ask
        self._fallback = fallback
        self._switches = switches
        self._reports = reports
        self._exact = type(owner.store) is MemoryStore
        self.connections: MemoryStore | None = None
        """The buckets of single connections, once there are any."""
        self._numbers = count(1)
        self._kinds: dict[int, tuple[Rule, list[Kind]]] = {}
        self.leases: WeakValueDictionary[tuple[object, ...], Lease] = WeakValueDictionary()
        """Leases of the identities whose WebSockets are open, and of no others."""

    def opened(self, admission: Admission, since: int = 0) -> "Socket | None":
        """The WebSocket that rules have let in; None where they limit nothing on it.

        Looks at the charges of ``admission`` that this limiter has made, from number ``since`` on.
        """
        rules = {
            counter_of(rule): rule
            for _, matching in admission.decided
            for rule, _ in matching
            if rule.websocket is not None
        }
        if not rules:
            return None
        leases: dict[tuple[object, ...], Lease] = {}
        for owner, plan, keys, _ in admission.passed[since:]:
            for _, place, _, counter, action in plan.asked if owner is self._owner else ():
                for kind in self._kinds_of(rules[counter]) if counter in rules else ():
                    lease = self._lease(kind, keys[place], shadow=action == _SHADOW)
                    leases[kind.counters] = lease
        return Socket(self, tuple(leases.values()), f"{next(self._numbers)}") if leases else None

    def _kinds_of(self, rule: Rule) -> list[Kind]:
        known = self._kinds.get(id(rule))
        if known is not None:
            return known[1]
        flow = rule.websocket
        kinds: list[Kind] = []
        for what in ("messages", "bytes"):
            limit = getattr(flow, what)
            if flow is None or limit is None:
                continue
            # No rule and no limit on a route can have such a counter.
            own = RouteRule(
                policy_of(rule.name, what), limit, counter=f"{counter_of(rule)}~ws:{what}",
                by=rule.by, path=rule.path, on_store_failure=rule.on_store_failure,
            )  # fmt: skip
            kinds.append(Kind(rule.name, own, flow.on_excess, exact=self._exact))
        if len(self._kinds) >= MOST_KINDS:
            self._kinds.clear()
        self._kinds[id(rule)] = rule, kinds
        return kinds

    def _lease(self, kind: Kind, key: str, *, shadow: bool) -> Lease:
        name = (*kind.counters, key, shadow)
        lease = self.leases.get(name)
        if lease is None:
            lease = self.leases[name] = Lease(kind, key, self._trip, self._give_back, shadow=shadow)
        return lease

    def is_off(self, kind: Kind) -> bool:
        """Whether nothing is limited by it at the moment."""
        owner = self._owner
        if not (owner.enabled and owner.everywhere):
            return True
        off = self._switches.off
        return bool(off) and not off.isdisjoint((ALL, kind.of))

    async def _trip(self, kind: Kind, key: str, shadow: bool, units: int, ahead: int) -> Granted:
        """Charges what is needed, and what is to be held if it fits as well, in one trip."""
        counter = kind.rule.counter
        checks = [Check(kind.limit, key, units, counter, shadow)]
        if ahead:
            checks.append(Check(kind.limit, key, ahead, counter, True))
        try:
            decisions = await self._ask(checks)
            decision, last = decisions[0], decisions[-1]
            if decision.degraded or last.degraded:
                raise getattr(decision, "problem", None) or _NOT_DECIDED
        except Exception as problem:  # noqa: BLE001  # the law of this module
            return Granted(await self._without_store(kind, checks[0], problem))
        if self._reports.failing:
            self._reports.answered()
        return Granted(decision, ahead if last.allowed and ahead else 0, last)

    async def _without_store(self, kind: Kind, check: Check, problem: Exception) -> Decision:
        admission = self._admission(kind)
        rules, policy = self._owner.rules, kind.rule.name
        asking: Matching = [(kind.rule, {})]
        await self._fallback.answer(rules, admission, asking, problem, [check], [policy])
        return (*assumed([check], allowed=True), *admission.degraded)[-1]

    def _admission(self, kind: Kind) -> Admission:
        admission = Admission(self._owner, None)
        admission.decided = ((self._owner.store, [(kind.rule, {})]),)
        return admission

    async def _give_back(self, check: Check) -> None:
        try:
            await self._owner.give_back([check])
        except Exception as problem:  # noqa: BLE001  # the law of this module
            self._reports.fault(problem)

    def of_connections(self) -> MemoryStore:
        """The buckets of single connections."""
        if self.connections is None:
            self.connections = MemoryStore()
            self.connections.is_shared = False
        return self.connections

    def count(self, lease: Lease, outcome: str) -> None:
        """Counts a message by its outcome under a limit."""
        self._owner.counts[lease.kind.rule.name, outcome] += 1

    def tell(self, lease: Lease, decision: Decision) -> None:
        """Counts a message that is refused, or would be in earnest, and tells of it."""
        if decision.degraded:  # the fallback has told it
            return
        rule = lease.kind.rule
        refused = "never" if decision.retry_after_us is None else "denied"
        self.count(lease, "shadow-denied" if lease.shadow else refused)
        if not lease.shadow:
            self._owner.denials.add(rule.name, lease.key)
        if self._owner.events.wanted:
            check = Check(lease.kind.limit, lease.key, 1, rule.counter, lease.shadow)
            found = [(rule.name, check, rule.name, decision)]
            tell_refused(self._owner.events, self._admission(lease.kind), found)

    def failed(self, problem: Exception) -> None:
        """Logs a fault of ours."""
        self._reports.fault(problem)


Taken = tuple[Lease, int, Decision, Decision | None]
"""Units taken of a lease, its decision, and that of the connection's own bucket, if it has one."""


class Socket:
    """One open WebSocket, as its rules limit it."""

    __slots__ = ("_key", "_leases", "_sockets")

    def __init__(self, sockets: Sockets, leases: tuple[Lease, ...], key: str) -> None:
        self._sockets = sockets
        self._leases = leases
        self._key = key
        for lease in leases:
            lease.holders += 1

    async def admit(self, message: Mapping[str, Any], *, waited: bool = False) -> Excess | None:
        """Charges a message; gives what does not let it through, of which nothing is charged then.

        ``waited`` says that it was asked about before.
        """
        taken: list[Taken] = []
        sockets = self._sockets
        try:
            size = -1
            for lease in self._leases:
                kind = lease.kind
                if sockets.is_off(kind):
                    continue
                if kind.by_size and size < 0:
                    size = _size(message)
                units = size if kind.by_size else 1
                decision, own = await self._take(lease, units)
                if decision.allowed or lease.shadow:
                    taken.append((lease, units, decision, own))
                    continue
                await self._put_back(taken)
                return Excess(lease, decision)
        except Exception as problem:  # noqa: BLE001  # the law of `limiter`
            sockets.failed(problem)
            return None
        for lease, _, decision, _ in taken:
            if decision.degraded:
                continue
            if not decision.allowed:
                sockets.tell(lease, decision)
            elif lease.shadow:
                sockets.count(lease, "shadow-allowed")
            else:
                sockets.count(lease, "waited" if waited else "allowed")
        return None

    def refused(self, excess: Excess) -> None:
        """Counts and tells that a message was refused for good."""
        self._sockets.tell(excess.lease, excess.decision)

    async def _take(self, lease: Lease, units: int) -> tuple[Decision, Decision | None]:
        """Charges the connection's own bucket, then its identity; both, or none."""
        kind = lease.kind
        if units > kind.limit.capacity:
            return Decision(kind.limit, False, 0, None, 0, 0), None
        if kind.exact:  # no connection uses more than its identity
            return await lease.take(units), None
        connections = self._sockets.of_connections()
        alike = (kind.limit,), kind.counters, units, _CHARGE
        (own,) = connections.decide_alike(alike, self._key)
        if not own.allowed:
            return own, None
        passed = False
        try:
            decision = await lease.take(units)
            passed = decision.allowed
        finally:
            if not passed:
                await connections.decide([self._returned(lease, units, own)])
        return decision, own

    async def _put_back(self, taken: Sequence[Taken]) -> None:
        for lease, units, decision, own in taken:
            if own is not None and decision.allowed:
                await self._sockets.of_connections().decide([self._returned(lease, units, own)])
            if decision.allowed:
                await lease.put_back(units, decision)

    def _returned(self, lease: Lease, units: int, own: Decision) -> Check:
        kind = lease.kind
        return Check(kind.limit, self._key, units, kind.rule.counter).given_back(own)

    async def end(self) -> None:
        """Forgets the connection; what the last of an identity leaves unused is given back."""
        leases, self._leases = self._leases, ()
        if self._sockets.connections is not None and leases:
            own = [Check(e.kind.limit, self._key, 0, e.kind.rule.counter) for e in leases]
            await self._sockets.connections.reset(own)
        for lease in leases:  # all of them, though the first may be cancelled
            lease.holders -= 1
        for lease in leases:
            if not lease.holders:
                await lease.return_rest()


def _size(message: Mapping[str, Any]) -> int:
    """The bytes of a message, of a text in UTF-8; 1 of an empty one, which costs as much."""
    text = message.get("text")
    if not text:
        return len(message.get("bytes") or b"") or 1
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
