"""Matching rules to decisions: their keys, their checks, and what comes of those.

The law of `limiter` holds here as well: every exception ends as the policy of the rule.
"""

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Final, Protocol

from ratelimit.control.denials import Denials
from ratelimit.control.events import Events
from ratelimit.control.switches import ALL, Switches
from ratelimit.decisions import Action, Check, Decision, assumed, new_check
from ratelimit.identity.addresses import Address
from ratelimit.identity.connections import Ask
from ratelimit.identity.networks import Networks
from ratelimit.limiter.admission import DENYLIST, Admission, Turn, told_of
from ratelimit.limiter.bans import Banning, Bans
from ratelimit.limiter.checks import Registered, Request, TurnedAway
from ratelimit.limiter.concurrency.leases import Leases, withdraw
from ratelimit.limiter.fallback import Fallback
from ratelimit.limiter.in_force import InForce
from ratelimit.limiter.queueing.rooms import Waits
from ratelimit.limiter.queueing.waiting import asked_in_vain, full
from ratelimit.limiter.reports import Reports
from ratelimit.limiter.resolver import Resolver
from ratelimit.limiter.settling.outcomes import Outcomes
from ratelimit.limiter.shedder import Shedder
from ratelimit.limiter.telling import tell_blocked, tell_refused
from ratelimit.responses.headers import forbid, refuse
from ratelimit.rules.matching import Found, Matching, Plan
from ratelimit.rules.rule import Rule
from ratelimit.stores import MemoryStore, Store, StoreUnavailable

__all__ = ["Decider"]

_CHARGE: Final = int(Action.CHARGE)
_FORCE: Final = int(Action.FORCE)
_SHADOW: Final = int(Action.SHADOW)
_NOT_DECIDED: Final = StoreUnavailable("a shard gave no answer", kind="shard", scope="shard")


Find = Callable[[Mapping[str, Any]], Found]
"""The rules that apply to a request, and their plan."""


class Owner(Protocol):
    """The limiter that a request is decided for."""

    everywhere: ClassVar[bool]
    """Whether any limiter of the process limits anything."""
    enabled: bool
    """Whether this one does."""
    allowlist: Networks
    """Clients that nothing limits."""
    denylist: Networks
    """Clients whose requests are refused."""

    @property
    def shedder(self) -> Shedder | None:
        """Sheds requests under too much load, where the rules say so."""

    @property
    def store(self) -> Store:
        """The store of its counters."""

    @property
    def counts(self) -> Counter[tuple[str, str]]:
        """The times that each of its rules came to each outcome."""

    @property
    def denials(self) -> Denials:
        """Those denied most."""

    @property
    def waits(self) -> Waits:
        """The requests that wait for their turn."""


class Decider:
    """Decides the rules that a request matches, by their plan or one by one.

    ``owner`` is the limiter, ``ask`` how its store is asked; ``look`` is called for the first
    thousand requests, and for one in 64 then.
    """

    def __init__(
        self,
        owner: Owner,
        ask: Callable[[Sequence[Check]], Awaitable[Sequence[Decision]]],
        now: InForce,
        skip: Ask[bool] | None,
        switches: Switches,
        reports: Reports,
        fallback: Fallback,
        look: Callable[[Mapping[str, Any], Address | None], None],
        events: Events,
        outcomes: Outcomes,
        leases: Leases,
    ) -> None:
        self._owner = owner
        self._leases = leases
        self._events = events
        self._store = owner.store
        self._counts = owner.counts
        self._denials = owner.denials
        self._ask = ask
        store = owner.store  # the store in process cannot fail, and nobody has to wait for it
        self._alike = store.decide_alike if type(store) is MemoryStore else None
        self.now = now
        """The rules that hold now."""
        self._resolver = Resolver(skip, reports, fallback, self._counts, events)
        self._resolves_all = skip is not None
        self._switches = switches
        self._reports = reports
        self._fallback = fallback
        self._look = look
        self._outcomes = outcomes
        self.bans = Bans(store, ask, self._counts, self._denials, reports, events)
        """The bans of the rules."""
        self.seen = 0
        """Requests since the limiter was made, or closed."""

    async def decide(  # noqa: PLR0911, PLR0912, PLR0915  # one step after the other; calls are felt
        self,
        admission: Admission,
        scope: Mapping[str, Any],
        rules: Sequence[Rule],
        find: Find,
        registered: Registered,
        route: Callable[[], str | None],
    ) -> Admission:
        """Decides what ``find`` gives, or asks ``rules`` what is to be where even that fails."""
        owner = self._owner
        if not (owner.enabled and owner.everywhere):
            return admission
        matching: Matching | None = None
        plan: Plan | None = None
        keys: Sequence[str] | None = None
        first: int | None = None
        bans: Sequence[Banning] = ()
        try:
            client = self.now.proxies.client(scope)
            listed = not (owner.denylist.empty and owner.allowlist.empty)
            if listed and self._is_listed(admission, client):
                return admission
            matching, plan = find(scope)
            if self._switches.off or admission.decided:
                matching = admission.still_to_decide(self._store, self._still_on(matching))
                plan = self.now.rules.index.plan(matching)
            shedder = owner.shedder
            if shedder is not None and shedder.watching and ALL not in self._switches.off:
                request = self.request(scope, registered, client, route)
                if await shedder.refuses(admission, request, matching, self.now.rules.index):
                    return admission
            if not matching:
                return admission
            admission.decided += ((self._store, matching),)
            # Mistakes are seen at once, and nobody pays for the look for ever.
            seen = self.seen = self.seen + 1
            closely = seen < 1_000 or not seen % 64
            if client is None or closely:
                self._look(scope, client)
            if plan is not None and not self._resolves_all:
                keys = plan.keys(scope, client, matching, route)
                for place in plan.watched if keys is not None else ():
                    self._reports.missing(*matching[place], scope, closely=closely)
            if plan is None or keys is None:
                request = self.request(scope, registered, client, route)
                plan, keys, bans = await self._resolver.resolve(
                    self.now.rules, admission, matching, request, closely=closely
                )
                if not keys:
                    return admission
            decisions: Sequence[Decision]
            in_vain_at = owner.waits.count and full(owner.waits, matching, plan, keys)
            if self._alike is not None and plan.alike is not None and not (bans or in_vain_at):
                decisions = self._alike(plan.alike, keys[0])  # none of it holds a place
            else:
                first = len(admission.held)
                ask = self._ask
                if bans:
                    jitter_us = self.now.rules.retry_jitter_us
                    ask = partial(self.bans.decide, admission, bans=bans, jitter_us=jitter_us)
                if in_vain_at:
                    ask = partial(asked_in_vain, ask, *in_vain_at)
                if plan.holds:
                    decisions = await self._leases.ask(admission, plan, keys, ask)
                else:
                    decisions = await ask(plan.checks(keys))
                if bans and admission.refusal is not None:
                    return admission
            lost = self._conclude(admission, plan, keys, decisions)
            if lost:
                await self._without_store(admission, matching, plan, keys, lost)
            if plan.undecided and admission.refusal is None:
                settled = self._outcomes.held(plan, keys, decisions, scope.get("method", "GET"))
                if settled is not None:
                    admission.held.append(settled)
        except Exception as problem:  # noqa: BLE001  # the law of this module
            if matching is None:
                matching = [(rule, {}) for rule in rules]
            asked = (plan.checks(keys), plan.policies) if plan and keys else ((), ())
            await self._fallback.answer(self.now.rules, admission, matching, problem, *asked)
            if plan and keys and plan.holds and admission.refusal is None:
                self._leases.assume(admission, plan, keys, plan.holds)
            self._remember(admission, scope, plan, keys)
        except BaseException:  # it was cancelled, and nobody may hear of what it holds
            if first is not None:
                withdraw(admission, first)
            raise
        return admission

    def request(
        self,
        scope: Mapping[str, Any],
        registered: Registered,
        client: Address | None = None,
        route: Callable[[], str | None] = lambda: None,
    ) -> Request:
        """A request as functions of the application's are asked about it."""
        failed = self._reports.function_failed
        return Request(scope, client, self.now.proxies, registered, route, failed)

    def _remember(
        self,
        admission: Admission,
        scope: Mapping[str, Any],
        plan: Plan | None,
        keys: Sequence[str] | None,
    ) -> None:
        """Keeps whose WebSocket it is that was let in, since that outlives the store's failure."""
        if scope["type"] == "websocket" and plan and keys and admission.refusal is None:
            unknown = assumed(plan.checks(keys), allowed=True)
            admission.passed += ((self._owner, plan, keys, unknown),)

    def _is_listed(self, admission: Admission, client: Address | None) -> bool:
        """Whether the lists decide by themselves: 403 for one, no limit at all for the other."""
        if client is None:
            return False
        if client in self._owner.denylist:
            self._counts[DENYLIST, "turned-away"] += 1
            admission.refuse(forbid())
            tell_blocked(self._events, admission, TurnedAway("", forbid(), client.key))
            return True
        return client in self._owner.allowlist

    async def _without_store(
        self,
        admission: Admission,
        matching: Matching,
        plan: Plan,
        keys: Sequence[str],
        lost: Sequence[tuple[int, Exception]],
    ) -> None:
        """Answers for the checks that the store has not decided; one fault after the other."""
        checks = plan.checks(keys)
        while lost and admission.refusal is None:
            problem = lost[0][1]
            places = [place for place, why in lost if why is problem]
            lost = [each for each in lost if each[1] is not problem]
            await self._fallback.answer(
                self.now.rules,
                admission,
                matching,
                problem,
                [checks[place] for place in places],
                [plan.policies[place] for place in places],
            )
            if plan.holds and admission.refusal is None:
                self._leases.assume(admission, plan, keys, places)

    def _still_on(self, matching: Matching) -> Matching:
        """The rules that the kill switch has not turned off."""
        off = self._switches.off
        if not off:
            return matching
        return [] if "*" in off else [each for each in matching if each[0].name not in off]

    def _conclude(  # noqa: PLR0912  # as above
        self,
        admission: Admission,
        plan: Plan,
        keys: Sequence[str],
        decisions: Sequence[Decision],
    ) -> list[tuple[int, Exception]]:
        """The outcome of the decisions; returns the places of checks not decided, and why."""
        lost: list[tuple[int, Exception]] = []
        refused = short = False
        denied: tuple[str, str] | None = None
        place = 0
        for decision in decisions:
            # By number, since names are slow to look up.
            if decision[8]:
                lost.append((place, getattr(decision, "problem", None) or _NOT_DECIDED))
            elif decision[1]:
                if decision[5] and plan.asked[place][4] != _SHADOW:
                    admission.turns += (self._turn(plan, keys, place, decision),)
            else:
                short = True
                _, key, _, _, action = plan.asked[place]
                if action != _SHADOW:
                    refused = True
                    if denied != (denied := (plan.allowed[place][0], keys[key])):
                        self._denials.add(*denied)  # once, however many limits of a rule deny
            place += 1  # which is how many there were, in the end
        if place != len(plan.asked):
            raise ValueError(f"{place} decisions came for {len(plan.asked)} checks")
        if short and plan.undecided:
            decisions = self._outcomes.soon(plan, keys, decisions)
        if short or lost or admission.turns or admission.would_ban:
            self._count(plan, decisions, admission.would_ban, refused=refused)
            admission.would_ban = ()
        else:
            counts = self._counts
            for each in plan.counted:
                counts[each] += 1
        if self._reports.failing and not lost:
            self._reports.answered()
        if short and self._events.wanted:
            rules = [rule for rule, _ in plan.allowed]
            found = zip(rules, plan.checks(keys), plan.policies, decisions, strict=True)
            tell_refused(self._events, admission, [each for each in found if not each[3].degraded])
        if not refused:
            admission.passed += ((self._owner, plan, keys, decisions),)
            return lost
        told = told_of(plan, decisions)
        now = self.now.rules
        refusal = refuse(told, admission.dialects, now.retry_jitter_us, hinted=now.retry_hints)
        admission.refuse(refusal, told)
        return []

    def _turn(self, plan: Plan, keys: Sequence[str], place: int, decision: Decision) -> Turn:
        limit, key, cost, counter, action = plan.asked[place]
        check = new_check((limit, keys[key], cost, counter, action, 0, 0))
        return Turn(self._owner, plan.allowed[place][0], plan.policies[place], check, decision)

    def _count(
        self,
        plan: Plan,
        decisions: Sequence[Decision],
        would_ban: Sequence[str],
        *,
        refused: bool,
    ) -> None:
        """Counts the outcome of each rule once: of its limits, the one that is worst for it.

        Those who are to wait for it are counted when they begin to.
        """
        worst: dict[str, tuple[int, str]] = {}
        for (rule, allowed), (*_, action), decision in zip(
            plan.allowed, plan.asked, decisions, strict=True
        ):
            if decision[8]:
                continue
            found = 0, allowed
            if not decision[1]:
                found = (2, "denied") if decision[3] is not None else (3, "never")
                if action == _SHADOW:
                    found = 2, "shadow-denied"
            elif decision[5] and action != _SHADOW and not refused:
                found = 1, "waited"
            if rule in would_ban:
                found = 4, "shadow-banned"
            worst[rule] = max(found, worst.get(rule, found))
        for rule, (_, outcome) in worst.items():
            if outcome != "waited":
                self._counts[rule, outcome] += 1
