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
from ratelimit.control.switches import Switches
from ratelimit.decisions import Check, Decision
from ratelimit.identity.addresses import Address
from ratelimit.identity.connections import Ask
from ratelimit.identity.keys import Identify
from ratelimit.identity.proxies import forwarded_but_untrusted
from ratelimit.limiter.admission import Admission, Route
from ratelimit.limiter.by_name import ByName
from ratelimit.limiter.checks import Registered, cost_of
from ratelimit.limiter.concurrency.leases import Leases
from ratelimit.limiter.fallback import Fallback
from ratelimit.limiter.parts import Part
from ratelimit.limiter.queueing.rooms import Waits
from ratelimit.limiter.reload import Watcher
from ratelimit.limiter.reports import Reports
from ratelimit.limiter.settling.charged import Charged
from ratelimit.limiter.settling.outcomes import Outcomes
from ratelimit.limiter.settling.reserving import Reservation
from ratelimit.limiter.settling.settler import Settler
from ratelimit.limiter.shedder import Shedder, salt_of
from ratelimit.limiter.sockets.sockets import Sockets
from ratelimit.limiter.together import DecidesTogether
from ratelimit.responses.headers import Refusal
from ratelimit.rules.counting import MOST_COST
from ratelimit.rules.matching import Plan
from ratelimit.rules.rule import Rule
from ratelimit.rules.ruleset import RuleSet
from ratelimit.rules.shed import Shed
from ratelimit.rules.values import secrets
from ratelimit.runtime.histogram import Histogram
from ratelimit.stores import MemoryStore, Store, open_store
from ratelimit.stores.failover import Breaker, Failover

__all__ = ["Admission", "RateLimiter", "off_by_environment"]

_LOG: Final = logging.getLogger("ratelimit")


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


class RateLimiter(ByName):
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
        super().__init__(
            rule_set,
            Registered(
                dict(identities or {}), dict(tiers or {}), dict(costs or {}), dict(priorities or {})
            ),
        )
        rule_set = self.rules
        self.response = response
        """The application's own response to a refusal, if it gives one."""
        self._uri = store if isinstance(store, str) else rule_set.store if store is None else ""
        self.store = store = _opened(rule_set.store if store is None else store, rule_set)
        """The store of the counters."""
        policies = {rule.on_store_failure for rule in rule_set.rules}
        self._failover = Failover(
            store, rule_set.workers, local="local" in (policies | {rule_set.on_store_failure})
        )
        self.events = Events(on_event)
        """Tells ``on_event``."""
        self._switches = Switches(store, self._names, self.events)
        self._watcher: Watcher | None = None
        self.denials = Denials(store)
        """Those denied most by this process."""
        self.counts: Counter[tuple[str, str]] = Counter()
        """Requests by a rule and its outcome: ``("login", "denied")``; also "allowed", "waited",
        "never", "banned", "shadow-denied", "shadow-allowed", "shadow-banned", "store-failed",
        "turned-away" (by its denylist, or for want of an identity), "shed"; once for each rule.
        Those on the denylist of all are ("(denylist)", "turned-away")."""
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

    def admit_together(self, parts: Sequence[Part]) -> Coroutine[Any, Any, Admission]:
        """Decides what is to pass together: every part is charged, or none is; never raises.

        Each part says itself which rules apply to it, and has afterwards what was told of it.
        """
        if len(parts) == 1 and parts[0].is_plain:  # as most are
            deciding = self._decider.decide_alone(parts[0], self._registered)
        else:
            self._begin()
            deciding = self._decider.decide_together(parts, self._registered)
        return deciding if self.around is None else self.around(deciding)

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


def off_by_environment() -> bool:
    """Whether RATELIMIT_ENABLED says that nothing is limited."""
    return os.environ.get("RATELIMIT_ENABLED", "1").lower() in ("0", "false", "no", "off")


def _enabled_by_environment() -> bool:
    if off_by_environment():
        _LOG.warning("limiter-off: RATELIMIT_ENABLED says so; nothing is limited")
    return not off_by_environment()
