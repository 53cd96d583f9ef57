"""A request to its decisions: which rules apply, who asks, what the store says, what comes of it.

The law of this module: a fault of the limiter never becomes a fault of the application. Whatever
goes wrong in here ends as the policy of the rule says, allow or 503, and in the log.
"""

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, Self

from ratelimit.admission import Admission, Charge
from ratelimit.decisions import Action, Check, Decision, assumed
from ratelimit.failover import Breaker, Failover
from ratelimit.headers import Told, forbid, refuse, unavailable
from ratelimit.identity import Address, Identify, Networks, client_address, identity
from ratelimit.reports import Reports
from ratelimit.routing import EXEMPT, innermost, resolve, route_path
from ratelimit.rules import Rule, RuleSet, policy_names
from ratelimit.stores import Store, StoreUnavailable, open_store

__all__ = ["Admission", "RateLimiter"]

_LOG: Final = logging.getLogger("ratelimit")


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
        self._reports = Reports(self.rules)
        self.breaker.on_change = self._reports.breaker_changed
        self._trusted = Networks(self.rules.trusted_proxies)
        self._allowlist = Networks(self.rules.allowlist)
        self._denylist = Networks(self.rules.denylist)
        self._warned_unidentified = False

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
            "meanwhile": self._reports.meanwhile(),
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
        if self._reports.failing and not assumed_rules:
            self._reports.answered()
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
            Charge(self, check, decision)
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
        self._reports.fault(problem)
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
            self._reports.fault(problem)
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
