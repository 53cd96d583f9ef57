"""Matching rules to decisions: their keys, their checks, and what comes of those.

The law of `limiter` holds here as well: every exception ends as the policy of the rule.
"""

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, Protocol

from ratelimit.control.denials import Denials
from ratelimit.control.switches import Switches
from ratelimit.decisions import Action, Check, Decision, new_check
from ratelimit.identity.addresses import Address
from ratelimit.identity.connections import Ask
from ratelimit.identity.users import is_nobody, user_id
from ratelimit.limiter.admission import Admission
from ratelimit.limiter.checks import Registered, Request, TurnedAway, question
from ratelimit.limiter.fallback import Fallback
from ratelimit.limiter.in_force import InForce
from ratelimit.limiter.reports import Reports
from ratelimit.responses.headers import Told, new_told, refuse
from ratelimit.rules.matching import Matching, Plan, Terms
from ratelimit.rules.route_rule import counter_of
from ratelimit.rules.rule import Rule
from ratelimit.stores import Store, StoreUnavailable

__all__ = ["Decider"]

_SHADOW: Final = int(Action.SHADOW)
_NOTHING: Final = Plan((), (), (), shadows=False)
_NOT_DECIDED: Final = StoreUnavailable("a shard gave no answer", kind="shard", scope="shard")


class Owner(Protocol):
    """The limiter that a request is decided for."""

    @property
    def store(self) -> Store:
        """The store of its counters."""

    @property
    def counts(self) -> Counter[tuple[str, str]]:
        """The times that each of its rules came to each outcome."""

    @property
    def denials(self) -> Denials:
        """Those denied most."""


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
    ) -> None:
        self._owner = owner
        self._store = owner.store
        self._counts = owner.counts
        self._denials = owner.denials
        self._ask = ask
        self.now = now
        """The rules that hold now."""
        self._skip = skip
        self._switches = switches
        self._reports = reports
        self._fallback = fallback
        self._look = look
        self.seen = 0
        """Requests since the limiter was made, or closed."""

    async def decide(
        self,
        admission: Admission,
        scope: Mapping[str, Any],
        client: Address | None,
        matching: Matching,
        plan: Plan | None,
        registered: Registered,
        route: Callable[[], str | None],
    ) -> None:
        """Decides rules by their ``plan``, or by what each comes to for this request."""
        if self._switches.off or admission.decided:
            matching = admission.still_to_decide(self._store, self._still_on(matching))
            plan = self.now.rules.index.plan(matching)
        admission.decided += ((self._store, matching),)
        if not matching:
            return
        checks: list[Check] = []
        try:
            # Mistakes are seen at once, and nobody pays for the look for ever.
            seen = self.seen = self.seen + 1
            if client is None or seen < 1_000 or not seen % 64:
                self._look(scope, client)
            keys: Sequence[str] | None = None
            if plan is not None and self._skip is None:
                keys = plan.keys(scope, client, matching, route)
                for number in () if keys is None else plan.watched:
                    self._say_missing(*matching[number], scope)
            if plan is None or keys is None:
                request = Request(
                    scope, client, self.now.proxies, registered, route,
                    self._reports.function_failed,
                )  # fmt: skip
                plan, keys = await self._question(admission, matching, request)
                if not keys:
                    return
            for limit, place, cost, rule, action in plan.asked:  # a comprehension is a call more
                checks.append(new_check((limit, keys[place], cost, rule, action, 0, 0)))
            decisions = await self._ask(checks)
            lost = self._conclude(admission, plan, checks, decisions)
        except Exception as problem:  # noqa: BLE001  # the law of this module
            policies = plan.policies if plan is not None and checks else ()
            await self._fallback.answer(
                self.now.rules, admission, matching, problem, checks, policies
            )
        else:
            if lost:
                await self._without_store(admission, matching, lost)

    def _say_missing(
        self, rule: Rule, path_params: Mapping[str, object], scope: Mapping[str, Any]
    ) -> None:
        """Says, once each, that nothing has ever set what a rule counts by."""
        if "user" in rule.by:
            if "user" not in scope:
                self._reports.once("user-missing", rule.name)
            elif self.seen < 1_000 or not self.seen % 64:  # as for every look
                self._say_unreadable(scope["user"])
        if rule.by != ("user",):
            for part in rule.by:
                if part.startswith("path:") and part[5:] not in path_params:
                    self._reports.once("path-missing", f"{rule.name} by {part}")

    def _say_unreadable(self, user: object) -> None:
        """Says, once, that users of a kind cannot be told apart."""
        try:
            unreadable = user_id(user) is None and not is_nobody(user)
        except Exception:  # noqa: BLE001  # the user's own, which is told where it is asked
            return
        if unreadable:
            self._reports.once("user-unreadable", type(user).__name__)

    async def _without_store(
        self,
        admission: Admission,
        matching: Matching,
        lost: Sequence[tuple[Check, str, Exception]],
    ) -> None:
        """Answers for the checks that the store has not decided; one fault after the other."""
        while lost and admission.refusal is None:
            problem = lost[0][2]
            same = [each for each in lost if each[2] is problem]
            lost = [each for each in lost if each[2] is not problem]
            await self._fallback.answer(
                self.now.rules,
                admission,
                matching,
                problem,
                [check for check, _, _ in same],
                [policy for _, policy, _ in same],
            )

    async def _question(
        self, admission: Admission, matching: Matching, request: Request
    ) -> tuple[Plan, list[str]]:
        """The plan of what a request asks by these rules, and its keys; none if it is over."""
        keys: list[str] = []
        terms: list[Terms] = []
        try:
            if self._skip is not None and await self._skips(self._skip, request):
                return _NOTHING, []
            for rule, path_params in matching:
                if "user" in rule.by and rule.on_missing != "client":
                    self._say_unreadable(request.scope.get("user"))
                try:
                    word = rule.on_store_failure or self.now.rules.on_store_failure
                    asked = await question(rule, path_params, request, strict=word == "deny")
                except TurnedAway:
                    raise
                except Exception as problem:  # noqa: BLE001  # the law of this module
                    # A client may be able to make it fail, which must not open the other rules.
                    await self._fallback.answer(
                        self.now.rules, admission, [(rule, path_params)], problem
                    )
                    if admission.refusal is not None:
                        return _NOTHING, []
                    continue
                if asked is not None:
                    self._say_missing(rule, path_params, request.scope)
                    limits, names, key, cost, action = asked
                    keys.append(key)
                    terms.append(Terms(rule.name, counter_of(rule), limits, names, cost, action))
        except TurnedAway as turned:
            self._counts[turned.rule, "turned-away"] += 1
            admission.told = ()
            admission.refusal = turned.refusal
            return _NOTHING, []
        return self.now.rules.index.plan_of(terms), keys

    async def _skips(self, skip: Ask[bool], request: Request) -> bool:
        """Whether the application wants no rule to apply; where it cannot say, they do."""
        try:
            return bool(await request.told(skip))
        except Exception as problem:  # noqa: BLE001  # a client may have made it fail
            self._reports.function_failed("the limiter", "the request is not skipped", problem)
            return False

    def _still_on(self, matching: Matching) -> Matching:
        """The rules that the kill switch has not turned off."""
        off = self._switches.off
        if not off:
            return matching
        return [] if "*" in off else [each for each in matching if each[0].name not in off]

    def _conclude(
        self,
        admission: Admission,
        plan: Plan,
        checks: Sequence[Check],
        decisions: Sequence[Decision],
    ) -> list[tuple[Check, str, Exception]]:
        """The outcome of the decisions; returns the checks that the store has not decided."""
        if plan.shadows or len(decisions) != len(checks):
            return self._conclude_each(admission, plan, checks, decisions)
        for decision in decisions:
            if not decision[1] or decision[5] or decision[8]:
                return self._conclude_each(admission, plan, checks, decisions)
        # All is allowed at once: what _conclude_each comes to then, at half its cost.
        counts = self._counts
        for name in plan.allowed:
            counts[name] += 1
        if self._reports.failing:
            self._reports.answered()
        admission.passed(self._owner, plan, checks, decisions)
        return []

    def _conclude_each(
        self,
        admission: Admission,
        plan: Plan,
        checks: Sequence[Check],
        decisions: Sequence[Decision],
    ) -> list[tuple[Check, str, Exception]]:
        """The outcome of decisions where something was refused, has to wait, or has no say."""
        counts = self._counts
        told: list[Told] = []
        lost: list[tuple[Check, str, Exception]] = []
        passed = True
        for check, policy, (rule, _), decision in zip(
            checks, plan.policies, plan.allowed, decisions, strict=True
        ):
            _, key, _, _, action, _, _ = check  # in one step, since names are slow to look up
            _, allowed, _, retry_us, _, delay_us, _, _, degraded = decision
            if degraded:
                lost.append((check, policy, getattr(decision, "problem", None) or _NOT_DECIDED))
            elif action == _SHADOW:
                counts[rule, "shadow-allowed" if allowed else "shadow-denied"] += 1
            else:
                told.append(new_told((policy, decision)))
                if allowed:
                    counts[rule, "allowed"] += 1
                    admission.delay_us = max(admission.delay_us, delay_us)
                else:
                    passed = False
                    self._denials.add(rule, key)
                    counts[rule, "never" if retry_us is None else "denied"] += 1
        if self._reports.failing and not lost:
            self._reports.answered()
        if passed:
            admission.told = [*admission.told, *told] if admission.told else told
            admission.charges += ((self._owner, checks, decisions),)
            return lost
        admission.told = told
        admission.refusal = refuse(told, admission.dialects, self.now.rules.retry_jitter_us)
        return []
