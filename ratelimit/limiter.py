"""A request to its decisions: which rules apply, who asks, what the store says, what comes of it.

The law of this module: a fault of the limiter never becomes a fault of the application. Whatever
goes wrong in here ends as the policy of the rule says, allow or 503, and in the log.
"""

import logging
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, Self

from ratelimit.decisions import Action, Check, Decision, assumed
from ratelimit.failover import Breaker, Failover
from ratelimit.headers import Dialect, Refusal, Told, fields, forbid, refuse, unavailable
from ratelimit.identity import Address, Identify, Networks, client_address, identity
from ratelimit.routing import EXEMPT, innermost, resolve, route_path
from ratelimit.rules import Rule, RuleSet, policy_names
from ratelimit.stores import Store, StoreUnavailable, open_store

__all__ = ["Admission", "RateLimiter"]

_LOG: Final = logging.getLogger("ratelimit")

STEADY_AFTER: Final = 1.0
"""Seconds without a failure after which the store is back; a lost shard fails now and then."""


class _Charge(NamedTuple):
    """What was taken for a request, to be returned if something further in refuses it."""

    limiter: "RateLimiter"
    check: Check
    decision: Decision


class Admission:
    """What the limiters around one request have decided about it so far.

    The outermost middleware makes it and leaves it in the scope; limits further in add to it, so
    that no rule is decided twice and the client is told of all of them at once.
    """

    __slots__ = (
        "_decided",
        "app",
        "charges",
        "degraded",
        "delay_us",
        "dialects",
        "limiter",
        "refusal",
        "told",
    )

    def __init__(self, limiter: "RateLimiter", app: Any) -> None:
        self.limiter = limiter
        self.app = app
        self.told: list[Told] = []
        """Every enforced check that a store decided, with its policy's name."""
        self.refusal: Refusal | None = None
        """The answer to give instead of the application's; None while the request may go on."""
        self.degraded: tuple[Decision, ...] = ()
        """What was assumed of checks that the store could not decide."""
        self.delay_us = 0
        """How long the request has to wait for its turn before it goes on."""
        self.dialects: Sequence[Dialect] = limiter.rules.headers
        self.charges: list[_Charge] = []
        self._decided: dict[str, list[tuple[Store, Rule]]] = {}

    def headers(self) -> list[tuple[bytes, bytes]]:
        """The fields that an allowed response carries."""
        return fields(self.told, self.dialects)

    @property
    def decisions(self) -> tuple[Decision, ...]:
        """The enforced decisions in the order they were made, then the assumed ones."""
        return (*(decision for _, decision in self.told), *self.degraded)

    def knows(self, store: Store, rule: Rule) -> bool:
        """Whether a rule has been decided for this request by this store; remembers it if not."""
        before = self._decided.setdefault(rule.name, [])
        if any(each is store and other == rule for each, other in before):
            return True
        before.append((store, rule))
        return False

    async def give_back(self) -> None:
        """Returns what was charged: something further in has refused the request."""
        charges, self.charges = self.charges, []
        for limiter in {id(each.limiter): each.limiter for each in charges}.values():
            returned = [
                check.given_back(decision) for owner, check, decision in charges if owner is limiter
            ]
            try:
                await limiter.give_back(returned)
            except Exception:  # noqa: BLE001  # a refusal stands, whatever the store says of it
                _LOG.exception("give-back-failed: a refused request keeps its charge")


class RateLimiter:
    """Rules and the store that counts for them.

    ``rules`` are a `RuleSet` or any rules; ``store`` is a `Store` or its URI, and without one the
    rule set's own (``memory://`` where that has none). ``identities`` gives the names that rules
    may use in ``by``: callables, sync or async, over the connection, giving text or None.

    Raises ValueError where a rule names an identity that nobody registered.
    """

    def __init__(
        self,
        rules: RuleSet | Iterable[Rule] = (),
        *,
        store: Store | str | None = None,
        identities: Mapping[str, Identify] | None = None,
    ) -> None:
        rule_set = rules if isinstance(rules, RuleSet) else RuleSet(tuple(rules))
        self.rules = rule_set.of_region()
        self.identities = dict(identities or {})
        self.check_identities(self.rules.rules)
        if store is None:
            store = self.rules.store
        if isinstance(store, str):
            store = open_store(store, deadline=self.rules.deadline_us / 1_000_000)
        policies = {rule.on_store_failure for rule in self.rules.rules}
        self._failover = Failover(
            store,
            self.rules.workers,
            local="local" in (policies | {self.rules.on_store_failure}),
        )
        self.counts: Counter[tuple[str, str]] = Counter()
        """How often each rule came to what: ``("login", "denied")``; also "allowed", "never",
        "shadow-denied", "shadow-allowed", "store-failed"; and ("denylist", "denied")."""
        self.breaker.on_change = self._breaker_changed
        self._trusted = Networks(self.rules.trusted_proxies)
        self._allowlist = Networks(self.rules.allowlist)
        self._denylist = Networks(self.rules.denylist)
        self._warned_unidentified = False
        self.on_breaker_change: Callable[[str], None] | None = None
        """Called with "open" or "closed", once per change of the breaker; for metrics."""
        self._failed_at = 0.0
        self._failing = ""  # what kind of failure the store is in; empty while it answers
        self._reported: dict[object, float] = {}

    @classmethod
    def from_file(
        cls,
        path: str | os.PathLike[str],
        store: Store | str | None = None,
        *,
        identities: Mapping[str, Identify] | None = None,
    ) -> Self:
        """A limiter with the rules of a file. Raises RuleFileError with every mistake in it."""
        return cls(RuleSet.load(path), store=store, identities=identities)

    def check_identities(self, rules: Iterable[Rule]) -> None:
        """Raises ValueError where a rule uses an identity that is not registered."""
        for rule in rules:
            unknown = rule.registered_names - self.identities.keys()
            if unknown:
                raise ValueError(
                    f"rule {rule.name!r} limits by {', '.join(sorted(unknown))}, which is not "
                    "registered; pass RateLimiter(..., identities={name: callable})"
                )

    @property
    def store(self) -> Store:
        """Where the counters live."""
        return self._failover.store

    async def give_back(self, returned: Sequence[Check]) -> None:
        """Asks the store to take back charges (`Check.given_back`); raises where it does not."""
        await self._failover.decide(returned)

    @property
    def breaker(self) -> Breaker:
        """Whether the store is asked, since when, and what it last failed with."""
        return self._failover.breaker

    def health(self) -> dict[str, object]:
        """What a health endpoint may tell: plain values, none of them secret.

        ``status`` is "ok" or "degraded"; ``breaker`` "closed" or "open", ``since`` when (seconds
        since the epoch); ``workers`` how many share a quota while the store is away;
        ``last_error`` what the store last failed with, and ``meanwhile`` what answers then.
        """
        breaker = self.breaker
        return {
            "status": "degraded" if breaker.state == "open" else "ok",
            "store": type(self.store).__name__,
            "breaker": breaker.state,
            "since": round(breaker.since, 3),
            "workers": self._failover.workers,
            "last_error": breaker.last_error,
            "meanwhile": self._policies(),
        }

    async def aclose(self) -> None:
        """Closes the store; it opens again when it is next asked."""
        await self._failover.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def admit(self, scope: Mapping[str, Any], app: Any = None) -> Admission:
        """Decides every rule of this limiter that matches a request; never raises.

        ``scope`` is an ASGI scope of type http or websocket, which is not changed; ``app`` the
        application whose routes tell the template for ``by: route``.
        """
        admission = scope.get("ratelimit")
        if admission is None:
            admission = Admission(self, app if app is not None else scope.get("app"))
        try:
            client = client_address(scope, self._trusted)
            if self._listed(admission, client):
                return admission
            method = scope["method"] if scope["type"] == "http" else "GET"
            matching = self.rules.matching(method, route_path(scope))
            if EXEMPT and matching and self._exempt(admission, scope):
                return admission
        except Exception as problem:  # noqa: BLE001  # the law of this module
            await self._fault(admission, (), problem)
            return admission
        await self._decide(admission, scope, client, matching)
        return admission

    async def decide(
        self,
        admission: Admission,
        scope: Mapping[str, Any],
        matching: Sequence[tuple[Rule, Mapping[str, object]]],
        *,
        template: str | None = None,
    ) -> None:
        """Decides a route's rules in one go and adds that to ``admission``; never raises."""
        try:
            client = client_address(scope, self._trusted)
            if self._listed(admission, client):
                return
        except Exception as problem:  # noqa: BLE001  # the law of this module
            await self._fault(admission, [rule for rule, _ in matching], problem)
            return
        await self._decide(admission, scope, client, matching, template)

    def _listed(self, admission: Admission, client: Address | None) -> bool:
        """Whether the lists decide by themselves: 403 for one, no limit at all for the other."""
        if client is None:
            return False
        if self._denylist and client in self._denylist:
            self.counts["denylist", "denied"] += 1
            admission.told.clear()
            admission.refusal = forbid()
            return True
        return bool(self._allowlist) and client in self._allowlist

    async def _decide(
        self,
        admission: Admission,
        scope: Mapping[str, Any],
        client: Address | None,
        matching: Sequence[tuple[Rule, Mapping[str, object]]],
        template: str | None = None,
    ) -> None:
        matching = [each for each in matching if not admission.knows(self.store, each[0])]
        if not matching:
            return
        rules = [rule for rule, _ in matching]
        checks: list[Check] = []
        try:
            if client is None:
                self._warn_unidentified(scope)
            policies: list[str] = []
            for rule, path_params in matching:
                by = rule.by
                if by == ("client",) and client is not None:
                    text = first = client.key
                else:
                    text, first = await identity(
                        by,
                        scope,
                        client,
                        route=lambda: template or self._template(admission, scope),
                        path_params=path_params,
                        registered=self.identities,
                    )
                limits = rule.overrides.get(first, rule.limits) if rule.overrides else rule.limits
                action = Action.SHADOW if rule.mode == "shadow" else Action.CHARGE
                names = rule.policies if limits is rule.limits else policy_names(rule.name, limits)
                for limit, policy in zip(limits, names, strict=True):
                    checks.append(Check(limit, text, rule.cost, rule.name, action=action))
                    policies.append(policy)
            if not checks:
                return
            decisions = await self._failover.decide(checks)
            await self._conclude(admission, rules, checks, policies, decisions)
        except Exception as problem:  # noqa: BLE001  # the law of this module
            await self._fault(admission, rules, problem, checks, policies)

    async def _conclude(
        self,
        admission: Admission,
        rules: Sequence[Rule],
        checks: Sequence[Check],
        policies: Sequence[str],
        decisions: Sequence[Decision],
    ) -> None:
        counts = self.counts
        assumed_rules = {
            check.rule for check, it in zip(checks, decisions, strict=True) if it.degraded
        }
        if self._failing and not assumed_rules:
            self._recover()
        told: list[Told] = []
        passed = True
        delay_us = 0
        for check, policy, decision in zip(checks, policies, decisions, strict=True):
            allowed = decision.allowed
            if decision.degraded:
                continue
            if check.action == Action.SHADOW:
                counts[check.rule, "shadow-allowed" if allowed else "shadow-denied"] += 1
                continue
            told.append(Told(policy, decision))
            delay_us = max(delay_us, decision.delay_us)
            if not allowed:
                passed = False
                counts[check.rule, "never" if decision.retry_after_us is None else "denied"] += 1
            else:
                counts[check.rule, "allowed"] += 1
        if not passed:
            admission.told = told
            admission.refusal = refuse(told, admission.dialects)
            return
        admission.told += told
        admission.delay_us = max(admission.delay_us, delay_us)
        admission.charges += [
            _Charge(self, check, decision)
            for check, decision in zip(checks, decisions, strict=True)
            if decision.allowed and check.cost and not decision.degraded
        ]
        if assumed_rules:
            failed = [rule for rule in rules if rule.name in assumed_rules]
            lost = [
                (check, policy)
                for check, policy, it in zip(checks, policies, decisions, strict=True)
                if it.degraded
            ]
            await self._fault(
                admission,
                failed,
                StoreUnavailable("a shard gave no answer", kind="shard"),
                [check for check, _ in lost],
                [policy for _, policy in lost],
            )

    def _breaker_changed(self, state: str) -> None:
        if state == "open":
            _LOG.warning(
                "breaker-open: the store is not asked until it answers a probe; requests are %s",
                self._policies(),
            )
        else:
            self._failing = ""
            _LOG.warning("breaker-closed: the store answers again, and limits are enforced")
        if self.on_breaker_change is not None:
            self.on_breaker_change(state)

    def _recover(self) -> None:
        """Says that the store is back, once it has been for a while."""
        if time.monotonic() - self._failed_at >= STEADY_AFTER:
            self._failing = ""
            _LOG.warning("store-answers: the store answers again, and limits are enforced")

    async def _fault(
        self,
        admission: Admission,
        rules: Sequence[Rule],
        problem: Exception,
        checks: Sequence[Check] = (),
        policies: Sequence[str] = (),
    ) -> None:
        """Answers as the rules at hand say; the application never notices."""
        default = self.rules.on_store_failure
        enforced = [rule for rule in rules if rule.mode == "enforce"]
        words = {rule.name: rule.on_store_failure or default for rule in enforced}
        for rule in rules:
            self.counts[rule.name, "store-failed"] += 1
        self._report(problem)
        # Where it failed before the rules were known, or before their checks were, the file's
        # word stands for theirs, and a share of a quota cannot be counted.
        deny = "deny" in words.values() if rules else default == "deny"
        local = [
            (check, policy)
            for check, policy in zip(checks, policies, strict=True)
            if words.get(check.rule) == "local"
        ]
        others = [check for check in checks if words.get(check.rule) != "local"]
        admission.degraded += assumed(others, allowed=not deny)
        if deny:
            admission.told.clear()
            admission.refusal = unavailable()
        elif local:
            await self._decide_locally(admission, local)

    async def _decide_locally(
        self, admission: Admission, local: Sequence[tuple[Check, str]]
    ) -> None:
        try:
            decisions = await self._failover.decide_locally([check for check, _ in local])
        except Exception as problem:  # noqa: BLE001  # the law of this module
            self._report(problem)
            return
        admission.degraded += decisions
        told = [
            Told(policy, decision) for (_, policy), decision in zip(local, decisions, strict=True)
        ]
        refused = False
        for (check, _), decision in zip(local, decisions, strict=True):
            self.counts[check.rule, "allowed" if decision.allowed else "denied"] += 1
            refused = refused or not decision.allowed
            admission.delay_us = max(admission.delay_us, decision.delay_us)
        if refused:
            admission.told = told
            admission.delay_us = 0
            admission.refusal = refuse(told, admission.dialects)

    def _report(self, problem: Exception) -> None:
        """Logs a fault: the store's once per change of its kind, ours once a minute per place."""
        if isinstance(problem, StoreUnavailable):
            self._failed_at = time.monotonic()
            if problem.kind == "open":  # said when it opened
                return
            if self._failing != problem.kind:
                self._failing = problem.kind
                _LOG.error(
                    "store-failed: %s; until it answers, requests are %s",
                    problem,
                    self._policies(),
                )
            return
        where = problem.__traceback__
        while where is not None and where.tb_next is not None:
            where = where.tb_next
        place = (type(problem).__name__, where and (where.tb_frame.f_code, where.tb_lineno))
        now = time.monotonic()
        if now - self._reported.get(place, -math.inf) >= 60:
            if len(self._reported) >= 100:  # places are lines of code, so this is never the case
                self._reported.clear()
            self._reported[place] = now
            _LOG.error(
                "limiter-failed: %s: %s; the request is treated as if the store had failed, so "
                "requests are %s (said once a minute)",
                type(problem).__name__,
                problem,
                self._policies(),
                exc_info=problem,
            )

    def _policies(self) -> str:
        """What answers while the store does not, in words."""
        default = self.rules.on_store_failure
        words = {
            "allow": "allowed",
            "deny": "refused with 503",
            "local": "counted in this process at its share",
        }
        said = words[default]
        for word, meaning in words.items():
            names = [
                rule.name
                for rule in self.rules.rules
                if rule.mode == "enforce" and word == rule.on_store_failure != default
            ]
            if names:
                said += f", but {meaning} by {', '.join(names)}"
        return said

    def _exempt(self, admission: Admission, scope: Mapping[str, Any]) -> bool:
        found = resolve(admission.app, scope)
        return found is not None and id(innermost(found.endpoint)) in EXEMPT

    def _template(self, admission: Admission, scope: Mapping[str, Any]) -> str | None:
        found = resolve(admission.app, scope)
        return found.template if found else None

    def _warn_unidentified(self, scope: Mapping[str, Any]) -> None:
        if not self._warned_unidentified:
            self._warned_unidentified = True
            _LOG.warning(
                "client-unknown: a request came whose peer is no IP address (%.60r); all such "
                "requests share one bucket per rule. Behind a unix socket or a test client, limit "
                "by something else, such as a header or a registered identity (said once)",
                scope.get("client"),
            )
