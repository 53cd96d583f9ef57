"""A request to its decisions: which rules apply, who asks, what the store says, what comes of it.

The law of this module: a fault of the limiter never becomes a fault of the application. Whatever
goes wrong in here ends as the policy of the rule says, allow or 503, and in the log.
"""

import asyncio
import logging
import os
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Final, Protocol, Self

from starlette.requests import HTTPConnection, Request
from starlette.websockets import WebSocket

from ratelimit.control.denials import Denials
from ratelimit.control.events import Event, Events
from ratelimit.control.switches import ALL, Switches
from ratelimit.decisions import Action, Check, Decision
from ratelimit.identity.addresses import Address
from ratelimit.identity.connections import Ask
from ratelimit.identity.hosts import host_of
from ratelimit.identity.keys import Identify
from ratelimit.identity.networks import Networks
from ratelimit.identity.proxies import Proxies, forwarded_but_untrusted
from ratelimit.limiter.admission import Admission, Route
from ratelimit.limiter.bans import Banning
from ratelimit.limiter.by_name import Identified, Outcome, rule_named
from ratelimit.limiter.checks import Registered, TurnedAway, cost_of
from ratelimit.limiter.concurrency.leases import Leases
from ratelimit.limiter.fallback import Fallback
from ratelimit.limiter.in_force import InForce
from ratelimit.limiter.parts import Part
from ratelimit.limiter.queueing.rooms import Waits
from ratelimit.limiter.reload import Watcher
from ratelimit.limiter.reports import Reports
from ratelimit.limiter.settling.charged import Charged
from ratelimit.limiter.settling.outcomes import Outcomes
from ratelimit.limiter.settling.reserving import Reservation, Reserving, from_token
from ratelimit.limiter.settling.settler import Settler
from ratelimit.limiter.settling.tokens import Signer
from ratelimit.limiter.shedder import Shedder, salt_of
from ratelimit.limiter.sockets.sockets import Sockets
from ratelimit.limiter.telling import tell_blocked
from ratelimit.limiter.together import DecidesTogether
from ratelimit.responses.headers import RateLimitExceeded, Refusal, forbid
from ratelimit.rules.advice import doubts
from ratelimit.rules.counting import MOST_COST
from ratelimit.rules.matching import Found, Plan
from ratelimit.rules.paths import route_path
from ratelimit.rules.rule import Rule
from ratelimit.rules.ruleset import RuleSet
from ratelimit.rules.shed import PRIORITIES, Shed
from ratelimit.rules.values import BUILT_IN_BY, secrets
from ratelimit.runtime.histogram import Histogram
from ratelimit.stores import MemoryStore, Store, StoreUnavailable, open_store
from ratelimit.stores.failover import Breaker, Failover
from ratelimit.words import near, whole

__all__ = ["Admission", "RateLimiter", "off_by_environment"]

_LOG: Final = logging.getLogger("ratelimit")


MOST_ROUTES: Final = 10_000
"""Most rules of routes that are remembered."""

AT_THE_START: Final = ("client-chosen", "foreign-path")
"""Advice that is given in the log as well: such rules may limit nobody."""

Answer = (
    Callable[[HTTPConnection, Refusal], Any]
    | Callable[[Request, Refusal], Any]
    | Callable[[WebSocket, Refusal], Any]
)
"""The application's own response to a refusal: a Starlette Response, or an awaitable of one."""


Deciding = Coroutine[Any, Any, Admission]


class Companion(Protocol):
    """A job beside a limiter."""

    def run(self) -> object:
        """Begins in this event loop, where it has not begun."""

    async def aclose(self) -> None:
        """Ends in this event loop; raises nothing."""


class RateLimiter:
    """Rules and the store that counts for them.

    ``rules`` are a `RuleSet` or any rules; ``store`` is a `Store` or its URI, and without one the
    rule set's own (``memory://`` where that has none).

    Functions over the connection, sync or async, by the names that rules use them under:
    ``identities`` give text or None for ``by``, ``tiers`` a tier's name or None for ``tier``,
    ``costs`` whole numbers for ``cost``, ``priorities`` one of five words, or None, for
    ``priority``. ``skip`` says of a request that no rule applies to it.
    ``response``, a function over the connection and the `Refusal`, gives the response to a refused
    request; what it raises is logged, and the usual answer given. ``enabled`` False (or
    RATELIMIT_ENABLED=0 in the environment) lets everything through uncounted.

    ``on_event``, a plain function over an `Event`, is called with each refusal, and with each
    change of the store, the rules and the switches; what it raises is logged once.

    ``secret``, text of at least 16 characters, signs the tokens of reservations; of several, the
    first signs, and each is believed. Without one, the rules' own is taken.

    Raises ValueError where a rule names a function that nobody registered, or a secret is short,
    and TypeError where ``on_event`` is async.
    """

    everywhere: ClassVar[bool] = True
    """False turns every limiter of the process off; `ratelimit.testing.suite.disabled` does it."""

    around: Callable[[Deciding], Deciding] | None = None
    """Wraps each decision about a request, for metrics and traces."""
    durations: Histogram | None = None
    """Seconds that its decisions took, once somebody has them measured."""
    _started: object = None
    """The event loop in which the background runs."""
    shedder: Shedder | None = None
    """Sheds requests where the rules say so."""
    companions: tuple[Companion, ...] = ()
    """Started and closed with this limiter, before its store is closed."""

    def __init__(
        self,
        rules: RuleSet | Iterable[Rule] = (),
        *,
        store: Store | str | None = None,
        identities: Mapping[str, Identify] | None = None,
        tiers: Mapping[str, Ask[str | None]] | None = None,
        costs: Mapping[str, Ask[int]] | None = None,
        priorities: Mapping[str, Ask[str | None]] | None = None,
        skip: Ask[bool] | None = None,
        response: Answer | None = None,
        enabled: bool = True,
        on_event: Callable[[Event], object] | None = None,
        secret: str | Iterable[str] | None = None,
    ) -> None:
        rule_set = rules if isinstance(rules, RuleSet) else RuleSet(tuple(rules))
        self.enabled = enabled and _enabled_by_environment()
        """Whether anything is limited; may be set at any time."""
        self._registered = Registered(
            dict(identities or {}), dict(tiers or {}), dict(costs or {}), _named(priorities or {})
        )
        self._routes: dict[int, Rule] = {}
        """The rules of routes that were met and need no function that is not registered; by
        identity, as `InForce` has it."""
        self.response = response
        """The application's own response to a refusal, if it gives one."""
        rule_set = self._take(rule_set)
        self._uri = store if isinstance(store, str) else rule_set.store if store is None else ""
        self.store = store = _opened(rule_set.store if store is None else store, rule_set)
        """The store of the counters."""
        policies = {rule.on_store_failure for rule in rule_set.rules}
        self._failover = Failover(
            store, rule_set.workers, local="local" in (policies | {rule_set.on_store_failure})
        )
        self.events: Final = Events(on_event)
        """Tells ``on_event``."""
        self._switches = Switches(store, self._names, self.events)
        self._watcher: Watcher | None = None
        self.denials = Denials(store)
        """Those denied most by this process."""
        self.counts: Counter[tuple[str, str]] = Counter()
        """Requests by a rule and its outcome: ``("login", "denied")``; also "allowed", "waited",
        "never", "banned", "shadow-denied", "shadow-allowed", "shadow-banned", "store-failed",
        "turned-away" (by its denylist, or for want of an identity), "shed"; and ("denylist",
        "denied")."""
        self.shed: Counter[tuple[str, str]] = Counter()
        """Requests by priority and outcome: ``("low", "shed")``; also "shadow-shed"."""
        self.waits = Waits()
        """Requests that wait for their turn."""
        self._reports = Reports(rule_set, self.events)
        self._fallback = Fallback(self._failover, self._reports, self.counts, self.events, self)
        self._secret = secret if secret is None else secrets(secret)
        self._settler = Settler(store, self._failover.decide, self._reports)
        # The store in process cannot fail.
        ask = store.decide if type(store) is MemoryStore else self._failover.decide
        self._leases = Leases(store, ask)
        self._failover.held = self._leases.held
        self._decider = DecidesTogether(
            self, ask, self._now, skip, self._switches, self._reports, self._fallback, self._look,
            self.events, Outcomes(self._settler), self._leases,
        )  # fmt: skip
        self.sockets: Final = Sockets(self, ask, self._fallback, self._switches, self._reports)
        """The open WebSockets whose messages are limited."""
        self.breaker.on_change.append(self._reports.breaker_changed)
        self._take_shed(self.rules.shed)
        self._look_over()

    @classmethod
    def from_file(
        cls,
        path: str | os.PathLike[str],
        store: Store | str | None = None,
        *,
        watch: bool = False,
        sighup: bool = False,
        identities: Mapping[str, Identify] | None = None,
        tiers: Mapping[str, Ask[str | None]] | None = None,
        costs: Mapping[str, Ask[int]] | None = None,
        priorities: Mapping[str, Ask[str | None]] | None = None,
        skip: Ask[bool] | None = None,
        response: Answer | None = None,
        enabled: bool = True,
        on_event: Callable[[Event], object] | None = None,
        secret: str | Iterable[str] | None = None,
    ) -> Self:
        """A limiter with the rules of a file, which `reload` reads again.

        ``watch`` reads it whenever it changes (needs the extra ``watch``), ``sighup`` at each
        SIGHUP. A file with a mistake changes nothing: the log and `health` tell it.

        Raises RuleFileError with every mistake in it.
        """
        watcher = Watcher(path, watch=watch, sighup=sighup)
        limiter = cls(
            watcher.rules,
            store=store,
            identities=identities,
            tiers=tiers,
            costs=costs,
            priorities=priorities,
            skip=skip,
            response=response,
            enabled=enabled,
            on_event=on_event,
            secret=secret,
        )
        limiter._watcher = watcher
        watcher.follow(limiter.use, limiter.events)
        return limiter

    async def reload(self) -> bool:
        """Reads the rule file again, and puts its rules in force from the next request on.

        False where it has a mistake, and the rules stay as they are. Raises RuntimeError where the
        rules came from no file.
        """
        if self._watcher is None:
            raise RuntimeError("these rules came from no file; RateLimiter.from_file reads one")
        return await self._watcher.reload()

    def use(self, rules: RuleSet) -> None:
        """From the next request on, these rules hold; counters of unchanged rules go on.

        The store stays the one that is open, with its deadline. Raises ValueError, and changes
        nothing, where a rule names a function that nobody registered.
        """
        before = self.rules
        self._take(rules)
        self._reports.rules = self.rules
        self._decider.now = self._now
        if before.shed != self.rules.shed:
            self._take_shed(self.rules.shed)
        self._look_over()
        if (before.store, before.deadline_us) != (rules.store, rules.deadline_us):
            _LOG.warning(
                "store-unchanged: the new rules name another store or deadline; the one that is "
                "open stays until this process starts again"
            )

    def _take(self, rules: RuleSet) -> RuleSet:
        share, rules = rules.share, rules.in_force()
        for rule in rules.rules:
            self.hold_registered(rule)
        for advice in doubts(rules):
            if advice.code in AT_THE_START:  # the others are `ratelimit check`'s to tell
                _LOG.warning("%s: rule %r: %s", advice.code, advice.rule, advice.text)
        self.rules = rules
        """The rules that hold now."""
        self.names = frozenset(rule.name.lower() for rule in rules.rules)
        """The names of the rules, in lower case; no limit on a route is told under one of them."""
        self.asks_routes = any("route" in rule.by for rule in rules.rules)
        """Whether a rule depends on which route a request will meet."""
        self.limits_messages = any(rule.websocket is not None for rule in rules.rules)
        """Whether a rule limits what comes over WebSockets."""
        self._now = InForce.of(rules, share)
        self.allowlist = Networks(rules.allowed_clients)
        """Clients that nothing limits; may be changed at any time, until other rules are taken."""
        self.denylist = Networks(rules.denied_clients)
        """Clients whose requests are refused with 403; beats the allowlist; may be changed too."""
        return rules

    def _look_over(self) -> None:
        """Learns whether anything is to be asked about requests beside their rules."""
        special = self.asks_routes or self.limits_messages or self.events.has_listener
        self.is_plain = not special and self.shedder is None
        """Whether neither the route of a request matters, nor its messages, nor the load."""

    def _take_shed(self, shed: Any) -> None:
        if self.shedder is not None:
            self.shedder.end()
        self.shedder = None
        if isinstance(shed, Shed) and shed.mode != "off":
            own = self.rules.secret if self._secret is None else self._secret
            salt = salt_of(own, self._uri)
            self.shedder = Shedder(shed, salt, self.events, self.counts, self.shed)

    def check_registered(self, rules: Iterable[Rule], known: Iterable[str] = ()) -> None:
        """Remembers the rules of a route that was met; raises what `hold_registered` does."""
        for rule in rules:
            if self._routes.get(id(rule)) is not rule:
                self.hold_registered(rule, known)
                if len(self._routes) >= MOST_ROUTES:
                    self._routes.clear()
                self._routes[id(rule)] = rule

    def hold_registered(self, rule: Rule, known: Iterable[str] = ()) -> None:
        """Raises ValueError where a rule uses a function that is not registered.

        ``known`` are identities beside the registered ones.
        """
        identities, tiers, costs, priorities = self._registered
        there = {*identities, *known}
        for name in sorted(rule.registered_names - there):
            raise ValueError(
                f"rule {rule.name!r} limits by {name}, which is not registered"
                + near(name, {*there, *BUILT_IN_BY}, 0.6, "by={!r}".format)
                + "; pass RateLimiter(..., identities={name: callable})"
            )
        named: Any = ("tier", rule.tier, tiers), ("cost", rule.cost, costs)
        if rule.priority not in PRIORITIES:
            named = *named, ("priority", rule.priority, priorities)
        for kind, value, names in named:
            if isinstance(value, str) and ":" not in value and value not in names:
                raise ValueError(
                    f"rule {rule.name!r} has the {kind} {value}, which is not registered"
                    + near(value, names, 0.6, "{!r}".format)
                    + f"; pass RateLimiter(..., {kind.removesuffix('y')}"
                    + f"{'ies' if kind[-1] == 'y' else 's'}={{name: callable}})"
                )

    def _names(self) -> list[str]:
        """The names of the rules, those of routes that were met among them."""
        return [rule.name for rule in (*self.rules.rules, *self._routes.copy().values())]

    @property
    def every_rule(self) -> list[Rule]:
        """The rules that hold now, then those of routes that were met, as they are in force."""
        of_routes = [self._now.of_route(rule) for rule in self._routes.copy().values()]
        return [*self.rules.rules, *of_routes]

    async def peek(
        self, rule: str, *identity: str | int, tier: str | None = None
    ) -> tuple[Decision, ...]:
        """The state of an identity's counters under a rule, a decision per limit; charges nothing.

        ``rule`` is the name of a rule, or of a route's limit that was met, and ``identity`` the
        values of its ``by`` in their order, as requests carry them; ``global`` takes none.
        ``tier`` is the identity's, and without one the first.

        `Decision.remaining` is the largest cost that would pass now. Every decision is
        ``allowed``, unless the identity is blocked; there is none where nothing limits it. While
        it is banned, one more comes last, which is not: its ``retry_after`` is what is left.

        Raises ValueError or TypeError, in one sentence, for a rule, an identity or a tier that
        cannot be meant, and where a function gives the limits for each request; StoreUnavailable,
        whatever the rule's ``on_store_failure``, where the store does not answer.
        """
        asked = self._identified(rule, identity)
        limits = asked.limits(tier)
        if self._is_blocked(asked):
            return asked.refused()
        if self._is_free(asked) or not limits:
            return ()
        checks, ban = asked.checks(limits, 0), asked.ban(Action.SHADOW, self._now.proxies)
        decisions = await self._failover.decide(checks if ban is None else [*checks, ban])
        if ban is not None and decisions[-1].allowed:
            decisions = decisions[:-1]
        for decision in decisions:
            if decision.degraded:
                problem = getattr(decision, "problem", None)
                raise problem or StoreUnavailable("a shard gave no answer", "shard", "shard")
        return decisions

    async def charge(
        self,
        rule: str,
        *identity: str | int,
        cost: int | None = None,
        tier: str | None = None,
    ) -> Outcome:
        """Charges an identity under a rule as a request would, all of its limits or none.

        ``rule``, ``identity`` and ``tier`` are those of `peek`; ``cost`` is 0 to 2^42, and without
        one the rule's own, or 1 where a function gives that. `Outcome.allowed` says whether it may
        go on: always where the rule is in shadow, off, or limits it by nothing, never where it is
        blocked, or banned, of which the ban's decision tells alone. A refusal is a strike. Nobody
        waits in here; `Outcome.delay` is the time until a leaking bucket's turn. A concurrency has
        no say, since nobody would tell when it ends.

        Where the store does not answer, the rule's ``on_store_failure`` decides: it may go on
        (allow), is counted at this process's share (local), or StoreUnavailable is raised (deny).
        Raises otherwise what `peek` raises.
        """
        asked = self._identified(rule, identity)
        limits = asked.to_charge(tier)
        if cost is None:
            cost = asked.rule.cost if isinstance(asked.rule.cost, int) else 1
        whole("cost", cost, 0, MOST_COST)
        self._begin()
        if self._is_blocked(asked):
            self._turned_away(asked)
            return Outcome.of(asked.refused(), allowed=False)
        if self._is_free(asked) or not limits:
            return Outcome.of((), allowed=True)
        terms = asked.terms(limits, cost)
        bans = asked.bans(terms, self._now.proxies)
        admission, decisions = await self._decider.charge([asked.rule], [terms], [asked.key], bans)
        return Outcome.of(decisions, allowed=admission.refusal is None)

    def reserve(
        self,
        rule: str,
        *identity: str | int,
        cost: int | None = None,
        tier: str | None = None,
    ) -> Reserving:
        """Charges an estimate now, of which `Reservation.commit` makes what it turns out to cost.

        ``async with limiter.reserve("tokens", "user-7", cost=800) as reservation: ...``, or
        ``reservation = await limiter.reserve(...)``. ``rule``, ``identity``, ``cost`` and ``tier``
        are those of `charge`. What is never committed stays spent.

        Raises RateLimitExceeded where the rule refuses, what `charge` raises, and StoreUnavailable
        where the store does not answer and the rule's ``on_store_failure`` is deny; else nothing
        is reserved then, and a commit charges nothing.
        """
        return Reserving(partial(self._reserve, [(rule, identity, cost)], tier))

    def reserve_all(
        self, budgets: Iterable[tuple[str, str | int | Sequence[str | int], int]]
    ) -> Reserving:
        """Charges several budgets, each a rule, an identity and a cost: all of them, or none.

        As `reserve` does, in one script. `Reservation.commit` then takes one number for all
        budgets, or one for each. `RateLimitExceeded.told` names the limits that refused.
        """
        asked = [
            (rule, (identity,) if isinstance(identity, str | int) else tuple(identity), cost)
            for rule, identity, cost in budgets
        ]
        return Reserving(partial(self._reserve, asked, None))

    async def commit(self, token: str, actual: int | Sequence[int]) -> bool:
        """Commits a reservation by its token, which another process may have made, once.

        False where it was committed before, or was made too long ago (`Reservation.token`).
        Raises ValueError for a token that no secret of this limiter's has signed, StoreUnavailable
        where the store does not answer, after which it may be committed again, and what
        `Reservation.commit` raises.
        """
        reservation = from_token(self._settler, self._signer, token)
        numbers = reservation.numbers(actual)
        return await self._settler.finish(reservation.settle(numbers))

    async def _reserve(
        self, budgets: Sequence[tuple[str, Sequence[str | int], int | None]], tier: str | None
    ) -> Reservation:
        rules, terms, keys, costs, names = [], [], [], [], []
        bans: list[Banning] = []
        checks = 0
        for name, identity, cost in budgets:
            asked = self._identified(name, identity)
            limits = asked.to_charge(tier)
            if cost is None:
                cost = asked.rule.cost if isinstance(asked.rule.cost, int) else 1  # noqa: PLW2901  # the rule's
            whole("cost", cost, 0, MOST_COST)
            names.append(asked.rule.name)
            costs.append(cost)
            if self._is_blocked(asked):
                raise RateLimitExceeded(refusal=self._turned_away(asked))
            if not self._is_free(asked) and limits:
                rules.append(asked.rule)
                terms.append((len(costs) - 1, asked.terms(limits, cost)))
                bans += asked.bans(terms[-1][1], self._now.proxies, checks)
                checks += len(limits)
                keys.append(asked.key)
        self._begin()
        if not rules:
            return Reservation(self._settler, self._signer, (), names, costs)
        admission, _ = await self._decider.charge(rules, [each for _, each in terms], keys, bans)
        if admission.refusal is not None:
            raise RateLimitExceeded(admission.told, admission.dialects, refusal=admission.refusal)
        places = [place for place, each in terms for _ in each.limits]
        charged = [
            Charged(plan.checks(own), decisions, places, names)
            for _, plan, own, decisions in admission.passed
        ]
        none = Charged((), (), (), names)
        return Reservation.of(self._settler, self._signer, charged[0] if charged else none, costs)

    def reserved(self, passed: tuple[Plan, Sequence[str], Sequence[Decision]]) -> Reservation:
        """The reservation that the charges of a plan are, of which each rule is a budget."""
        charged = Charged.by(*passed)
        costs: list[int] = []
        for check, budget in zip(charged.checks, charged.budgets, strict=True):
            if budget == len(costs):
                costs.append(check.cost)
        return Reservation.of(self._settler, self._signer, charged, costs or [0])

    async def unreserved(self, rule: Rule, scope: Mapping[str, Any]) -> Reservation:
        """The reservation of a request that nothing counts: its estimate, and no charge."""
        cost = await cost_of(rule, self._decider.request(scope, self._registered))
        return Reservation(self._settler, self._signer, (), [rule.name], [min(cost, MOST_COST)])

    def _signer(self) -> Signer:
        """Signs by the secrets that hold now: a rule file may bring others."""
        return Signer(self.rules.secret if self._secret is None else self._secret)

    def _turned_away(self, asked: Identified) -> Refusal:
        """The answer to an identity that a rule blocks, counted and told of."""
        self.counts[asked.rule.name, "turned-away"] += 1
        admission = Admission(self, None)
        admission.decided = ((self.store, [(asked.rule, {})]),)
        turned = TurnedAway(asked.rule.name, forbid(), asked.key)
        tell_blocked(self.events, admission, turned)
        return turned.refusal

    async def reset(self, rule: str, *identity: str | int) -> None:
        """Makes an identity's counters under a rule, of every tier, as if never used.

        Its ban and its strikes are among them. Also where the rule is off. ``rule`` and
        ``identity`` are those of `peek`, which says what this raises. This process sees it at once,
        another one within a second, and within five of a ban.
        """
        asked = self._identified(rule, identity)
        checks, ban = asked.checks(asked.every_limit(), 0), asked.ban(Action.SHADOW)
        if ban is not None:
            checks.append(ban)
            self._decider.bans.forget(ban)
        if checks:
            await self.store.reset(checks)

    async def unban(self, rule: str, *identity: str | int) -> bool:
        """Ends an identity's ban under a rule, and forgets its strikes; False if there was no ban.

        What is counted stays counted, and the next ban is as long as a first one. ``rule`` and
        ``identity`` are those of `peek`. This process sees it at once, another one within 5 s.

        Raises ValueError where the rule bans nobody, and otherwise what `peek` raises.
        """
        asked = self._identified(rule, identity)
        ban = asked.ban(Action.SHADOW)
        if ban is None:
            raise ValueError(f"rule {rule!r} does not ban this identity")
        (decision,) = await self.store.decide([ban])
        await self.store.reset([ban])
        self._decider.bans.forget(ban)
        if not decision.allowed:
            self.events.tell(Event("unbanned", asked.rule.name, "", "", ban.key))
        return not decision.allowed

    def _identified(self, name: str, identity: Sequence[str | int]) -> Identified:
        rule = rule_named(name, self.rules.rules, self._routes.copy().values())
        if all(rule is not each for each in self.rules.rules):
            rule = self._now.of_route(rule)
        return Identified.of(rule, identity, self.rules.ipv6_prefix)

    def _is_blocked(self, asked: Identified) -> bool:
        """Whether a request of an identity is refused with 403."""
        client = asked.client
        if client is not None and client in self.denylist:
            return self.enabled and self.everywhere
        return not self._is_free(asked) and asked.is_blocked

    def _is_free(self, asked: Identified) -> bool:
        """Whether nothing limits an identity by a rule."""
        listed = asked.client is not None and asked.client in self.allowlist
        return listed or not self._is_on(asked.rule)

    def _is_on(self, rule: Rule) -> bool:
        on = self.enabled and self.everywhere and rule.mode != "off"
        return on and not self._switches.off.intersection((ALL, rule.name))

    async def give_back(
        self, returned: Sequence[Check], *, local: bool = False
    ) -> Sequence[Decision]:
        """Asks the store to take back charges (`Check.given_back`); raises where it does not.

        ``local`` are those of the share that was counted in process, while the store was away.
        """
        if local:
            return await self._failover.decide_locally(returned)
        return await self._failover.decide(returned)

    def not_given_back(self, problem: Exception) -> None:
        """Logs that `give_back` has raised."""
        self._reports.not_given_back(problem)

    @property
    def waiting(self) -> int:
        """Requests that wait for their turn by a leaking bucket at the moment."""
        return self.waits.count

    @property
    def reloads(self) -> dict[str, int]:
        """The times that the rule file was read again: "reloaded" and "not-reloaded"."""
        if self._watcher is None:
            return {}
        return {"reloaded": self._watcher.reloads, "not-reloaded": self._watcher.failures}

    @property
    def in_flight(self) -> Counter[str]:
        """Requests of this process that hold a place, by each rule that has a concurrency."""
        found = Counter(dict.fromkeys([r.name for r in self.every_rule if r.concurrency], 0))
        found.update(self._leases.in_flight())
        return found

    @property
    def on_breaker_change(self) -> Callable[[str], None] | None:
        """Called with "open" or "closed", once per change of the breaker; for metrics."""
        return self._reports.on_breaker_change

    @on_breaker_change.setter
    def on_breaker_change(self, told: Callable[[str], None] | None) -> None:
        self._reports.on_breaker_change = told

    @property
    def proxies(self) -> Proxies:
        """The proxies that are believed, by the rules that hold now."""
        return self._now.proxies

    @property
    def breaker(self) -> Breaker:
        """Whether the store is asked, since when, and what it last failed with."""
        return self._failover.breaker

    @property
    def banned(self) -> int:
        """Identities that this process knows to be banned at the moment."""
        return self._decider.bans.count

    def health(self) -> dict[str, object]:
        """The state that a health endpoint may tell: plain values, none of them secret.

        ``status`` is "ok" or "degraded"; ``breaker`` "closed" or "open", ``since`` when (seconds
        since the epoch); ``workers`` how many are alive, where they make themselves known in the
        store (`count_workers`): so many share a quota while it is away;
        ``last_error`` what the store last failed with, and ``meanwhile`` what answers then;
        ``servers`` the breaker of each node of a cluster, and ``round_trip_ms`` how long a round
        trip takes at the moment (None where nothing is known), which `deadline` has to hold;
        ``late_leases``, where there are any, by how many seconds this worker's word on its
        concurrencies is beyond its lease, so that others may have taken their places;
        ``off`` the rules that the kill switch has turned off, "*" for all; ``banned`` how many
        identities this process knows to be banned; ``rules`` the file they came from, since when
        they hold, and the ``mistakes`` of a newer one; ``shed``, where that
        is on, how late requests begin (``lag_ms``), the admitted ``share`` of what is not critical,
        the ``level`` of 500 above which requests are shed, and how many were, by priority.
        """
        breaker, workers, late = self.breaker, self._failover.seen, self._leases.late()
        return {
            "status": "degraded" if breaker.state == "open" or late else "ok",
            "store": type(self.store).__name__,
            "breaker": breaker.state,
            "since": round(breaker.since, 3),
            **({} if workers is None else {"workers": workers}),
            "last_error": breaker.last_error,
            "servers": getattr(self.store, "servers", dict)(),
            "round_trip_ms": _milliseconds(getattr(self.store, "round_trip", None)),
            "meanwhile": self._reports.meanwhile(),
            **({"late_leases": round(late, 3)} if late else {}),
            "off": sorted(self._switches.off),
            "banned": self.banned,
            **({} if self.shedder is None else {"shed": self.shedder.health()}),
            "rules": {} if self._watcher is None else self._watcher.health(),
        }

    def count_workers(self) -> None:
        """Has workers make themselves known in the store, so that `health` tells how many live.

        Each of them has to; rules with ``local`` do it by themselves.
        """
        self._failover.count_workers()

    def start(self) -> None:
        """Begins, in this event loop, to learn of switches and changes of the rule file.

        The first request does it as well, and the middleware when its application starts. On an
        event loop that is not asyncio's nothing runs in the background.
        """
        self._switches.run()
        self._failover.run()
        if self._watcher is not None:
            self._watcher.run()
        if self.shedder is not None:
            self.shedder.run()
        for each in self.companions:
            each.run()
        try:
            self._started = asyncio.get_running_loop()
        except RuntimeError:
            self._reports.once("not-asyncio", type(self.store).__name__)

    def add_companion(self, companion: Companion) -> None:
        """Begins and ends a job with this limiter; where that has begun, at the next request."""
        self.companions += (companion,)
        self._started = None

    async def aclose(self) -> None:
        """Ends the waits for a turn, and closes the store; it opens again when it is next asked."""
        await self.waits.aclose()
        self._started = None
        self._decider.seen = 0
        await self._switches.aclose()
        await self._leases.aclose()
        await self.denials.aclose()
        await self._decider.bans.aclose()
        if self._watcher is not None:
            await self._watcher.aclose()
        if self.shedder is not None:
            self.shedder.stop()
        for each in self.companions:
            await each.aclose()
        await self._settler.aclose()
        await self._failover.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def admit(
        self, scope: Mapping[str, Any], route: Route | None = None
    ) -> Coroutine[Any, Any, Admission]:
        """Decides every rule of this limiter that matches a request; never raises.

        ``scope`` is an ASGI scope of type http or websocket, which is not changed; ``route``
        the one that the request will meet, where somebody knows a router: for ``by: route``.
        """
        admission = scope.get("ratelimit")
        if admission is None:
            admission = Admission(self, route)
        find = self.find if route is None else partial(self.find, route=route)
        deciding = self._decider.decide(
            admission, scope, (), find, self._registered, admission.template
        )
        return deciding if self.around is None else self.around(deciding)

    async def admit_together(self, parts: Sequence[Part]) -> Admission:
        """Decides what is to pass together: every part is charged, or none is; never raises.

        Each part says itself which rules apply to it, and has afterwards what was told of it.
        """
        self._begin()
        if len(parts) == 1 and parts[0].is_plain:  # as most are
            deciding = self._decider.decide_alone(parts[0], self._registered)
        else:
            deciding = self._decider.decide_together(parts, self._registered)
        return await (deciding if self.around is None else self.around(deciding))

    def find(self, scope: Mapping[str, Any], route: Route | None = None) -> Found:
        """The rules for a request by its path, but none where it meets an exempt route."""
        method = scope["method"] if scope["type"] == "http" else "GET"
        path = route_path(scope) if scope.get("root_path") else scope["path"]
        now = self._now
        host = host_of(scope, now.proxies) if now.rules.index.hosts else ""
        found = now.rules.find(method, path, host)
        if method == "OPTIONS":
            matching = self.rules.without_preflight(found[0], scope)
            found = matching, now.rules.index.plan(matching)
        if route is not None and found[0] and route.is_exempt:
            return (), None
        return found

    def decide(
        self,
        admission: Admission,
        scope: Mapping[str, Any],
        rules: Sequence[Rule],
        *,
        route: Callable[[], str | None] | None = None,
        identities: Mapping[str, Identify] | None = None,
    ) -> Coroutine[Any, Any, Admission]:
        """Decides a route's rules in one go and adds that to ``admission``; never raises.

        The same sequence is to be given at each request, since what it comes to is kept by it.
        ``route`` names the route, where a rule counts by it; ``identities`` are known for this
        request alone, beside the registered ones.
        """
        registered = self._registered
        if identities:
            registered = registered._replace(identities={**registered.identities, **identities})
        deciding = self._decider.decide(
            admission, scope, rules, partial(self._find_of, rules), registered,
            route or admission.template,
        )  # fmt: skip
        return deciding if self.around is None else self.around(deciding)

    def _find_of(self, rules: Sequence[Rule], scope: Mapping[str, Any]) -> Found:
        """Those of a route's own rules that apply to a request's method."""
        method = scope["method"] if scope["type"] == "http" else "GET"
        own, plan = self._now.on_route(rules, method)
        parameters = scope.get("path_params", {})
        return [(rule, parameters) for rule in own], plan

    def _begin(self) -> None:
        """Runs in the background of this event loop, if it does not already."""
        try:
            begun = self._started is asyncio.get_running_loop()
        except RuntimeError:
            begun = False
        if not begun:
            self.start()

    def _look(self, scope: Mapping[str, Any], client: Address | None) -> None:
        """Runs in the background of this event loop; says, once each, what is suspicious."""
        self._begin()
        if client is None:
            self._reports.once("client-unknown", scope.get("client"))
        if not self._now.proxies.believes and forwarded_but_untrusted(scope):
            self._reports.once("forwarded-untrusted", scope.get("client"))
        if self._now.proxies.is_unread(scope):
            self._reports.once("forwarded-unread", self._now.proxies.field)


def _opened(store: Store | str, rules: RuleSet) -> Store:
    """The store, or that of a URI; raises TypeError for a client in place of one."""
    if isinstance(store, str):
        return open_store(store, deadline=rules.deadline_us / 1_000_000)
    if not callable(getattr(store, "decide", None)):
        hint = "; give RedisStore(client)" if hasattr(store, "evalsha") else ""
        raise TypeError(
            f"the store is a {type(store).__name__}, which decides nothing; it is a store or the "
            f"URI of one{hint}"
        )
    return store


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)


def _named(priorities: Mapping[str, Ask[str | None]]) -> dict[str, Ask[str | None]]:
    """Functions by names that are no words of ours."""
    for name in PRIORITIES:
        if name in priorities:
            raise ValueError(f"priorities names a function {name}, which is a priority itself")
    return dict(priorities)


def off_by_environment() -> bool:
    """Whether RATELIMIT_ENABLED says that nothing is limited."""
    return os.environ.get("RATELIMIT_ENABLED", "1").lower() in ("0", "false", "no", "off")


def _enabled_by_environment() -> bool:
    if off_by_environment():
        _LOG.warning("limiter-off: RATELIMIT_ENABLED says so; nothing is limited")
    return not off_by_environment()
