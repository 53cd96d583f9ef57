"""The rules of a request resolved one by one, where their plan is not known before."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

from ratelimit.concurrency import Concurrency
from ratelimit.control.events import Events
from ratelimit.decisions import Action
from ratelimit.identity.connections import Ask
from ratelimit.limiter.admission import Admission
from ratelimit.limiter.bans import Banning, ban_check
from ratelimit.limiter.checks import Question, Request, TurnedAway, question
from ratelimit.limiter.fallback import Fallback
from ratelimit.limiter.parts import Asked
from ratelimit.limiter.reports import Reports
from ratelimit.limiter.telling import tell_blocked
from ratelimit.responses.vendors import in_vain
from ratelimit.rules.matching import Matching, Plan, Terms
from ratelimit.rules.route_rule import counter_of
from ratelimit.rules.rule import Rule
from ratelimit.rules.ruleset import RuleSet

__all__ = ["NOTHING", "Resolver"]

_CHARGE: Final = int(Action.CHARGE)
_FORCE: Final = int(Action.FORCE)
_SHADOW: Final = int(Action.SHADOW)

NOTHING: Final = Plan((), (), (), shadows=False, alike=None)
"""The plan of a request that nothing is asked about."""


class Resolver:
    """Resolves the rules that a request matches to a plan, asking the application's functions.

    ``skip`` says of a request that no rule applies to it.
    """

    def __init__(
        self,
        skip: Ask[bool] | None,
        reports: Reports,
        fallback: Fallback,
        counts: Counter[tuple[str, str]],
        events: Events,
    ) -> None:
        self._skip = skip
        self._reports = reports
        self._fallback = fallback
        self._counts = counts
        self._events = events

    async def resolve(  # noqa: PLR0912  # as `question`
        self,
        rules: RuleSet,
        admission: Admission,
        matching: Matching,
        request: Request,
        together: list[Asked] | None = None,
        *,
        closely: bool,
    ) -> tuple[Plan, list[str], list[Banning]]:
        """The plan of what a request asks by these rules, its keys and bans; none if it is over.

        ``together`` has who asks by each rule, and what is left of it in the end is by each key.
        """
        asked: list[Question | None] = [None] * len(matching)
        order = rules.index.order
        places: Sequence[int] = range(len(matching))
        if order:  # those that replace others first
            places = sorted(places, key=lambda place: order.get(matching[place][0].name, 0))
        replaced: set[str] = set()
        try:
            if self._skip is not None and await self._skips(self._skip, request):
                return NOTHING, [], []
            for place in places:
                rule, path_params = matching[place]
                if rule.name in replaced:
                    continue
                times = 1
                if together is not None:
                    request, part = together[place]
                    times = part.times
                if "user" in rule.by and rule.on_missing != "client":
                    self._reports.unreadable(request.scope.get("user"))
                try:
                    found = asked[place] = await self._asked(
                        rules, admission, rule, path_params, request, times
                    )
                except TurnedAway:
                    if together is not None:
                        part.over = True
                    raise
                if admission.refusal is not None:
                    return NOTHING, [], []
                if found is not None:
                    self._reports.missing(rule, path_params, request.scope, closely=closely)
                    if rule.replaces and found.action != _SHADOW:
                        # Whoever picks the identity would escape other rules by it.
                        index = rules.index
                        replaced.update(index.replaced_by(rule, known=found.known))
        except TurnedAway as turned:
            self._counts[turned.rule, "turned-away"] += 1
            hinted = rules.retry_hints
            admission.refuse(in_vain(turned.refusal) if hinted else turned.refusal)
            tell_blocked(self._events, admission, turned)
            return NOTHING, [], []
        keys = [each.key for each in asked if each is not None]
        if together is not None:
            together[:] = [who for who, each in zip(together, asked, strict=True) if each]
        plan = rules.index.plan_of(_terms(matching, asked, together))
        return plan, keys, _bans(matching, asked)

    async def _asked(
        self,
        rules: RuleSet,
        admission: Admission,
        rule: Rule,
        path_params: Mapping[str, object],
        request: Request,
        times: int,
    ) -> Question | None:
        """The question of one rule; None where it has none, or cannot be known."""
        word = rule.on_store_failure or rules.on_store_failure
        try:
            return await question(rule, path_params, request, strict=word == "deny", times=times)
        except TurnedAway:
            raise
        except Exception as problem:  # noqa: BLE001  # the law of this module
            # A client may be able to make it fail, which must not open the other rules.
            await self._fallback.answer(rules, admission, [(rule, path_params)], problem)
            return None

    async def _skips(self, skip: Ask[bool], request: Request) -> bool:
        """Whether the application wants no rule to apply; where it cannot say, they do."""
        try:
            return bool(await request.told(skip))
        except Exception as problem:  # noqa: BLE001  # a client may have made it fail
            self._reports.function_failed("the limiter", "the request is not skipped", problem)
            return False


def _terms(
    matching: Matching, asked: Sequence[Question | None], together: Sequence[Asked] | None
) -> list[Terms]:
    """The terms of rules for a request, or for parts of one, which may be forced."""
    terms = [
        Terms(
            rule.name,
            counter_of(rule),
            each.limits,
            each.policies,
            each.cost,
            each.action,
            rule.charge,
        )
        for (rule, _), each in zip(matching, asked, strict=True)
        if each is not None
    ]
    if together is None:
        return terms
    return [
        _forced(each) if who.part.forced else each
        for each, who in zip(terms, together, strict=True)
    ]


def _forced(terms: Terms) -> Terms:
    """Terms that charge without asking; nothing is under way any more where they do."""
    pairs = [
        pair
        for pair in zip(terms.limits, terms.policies, strict=True)
        if not isinstance(pair[0], Concurrency)
    ]
    return terms._replace(
        limits=tuple(limit for limit, _ in pairs),
        policies=tuple(policy for _, policy in pairs),
        action=_FORCE if terms.action == _CHARGE else terms.action,
    )


def _bans(matching: Matching, asked: Sequence[Question | None]) -> list[Banning]:
    """The bans of rules, each before the checks of its own."""
    found: list[Banning] = []
    checks = 0
    for (rule, _), each in zip(matching, asked, strict=True):
        if each is not None:
            if each.ban is not None:
                ban = ban_check(each.ban, each.key, counter_of(rule), each.action)
                found.append(Banning(rule.name, ban, checks))
            checks += len(each.limits)
    return found
