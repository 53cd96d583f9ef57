"""Charges that pass together, all or none: parts of a request, and budgets of a reservation.

The law of `limiter` holds here as well: every exception ends as the policy of the rule.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Final

from ratelimit.decisions import Action, Decision
from ratelimit.limiter.admission import Admission, count
from ratelimit.limiter.bans import Banning
from ratelimit.limiter.checks import Registered
from ratelimit.limiter.concurrency.leases import withdraw
from ratelimit.limiter.decide import Decider
from ratelimit.limiter.parts import Asked, Part
from ratelimit.limiter.resolver import NOTHING
from ratelimit.responses.headers import new_told
from ratelimit.rules.matching import Matching, Terms
from ratelimit.rules.rule import Rule
from ratelimit.stores import StoreUnavailable

__all__ = ["DecidesTogether"]

_SHADOW: Final = int(Action.SHADOW)


class DecidesTogether(Decider):
    """Decides the parts of a request together, and the questions of rules about identities."""

    async def charge(
        self,
        rules: Sequence[Rule],
        terms: Sequence[Terms],
        keys: Sequence[str],
        bans: Sequence[Banning] = (),
    ) -> tuple[Admission, tuple[Decision, ...]]:
        """Decides the questions of rules about identities, where there is no request.

        All are charged, or none. Gives the outcome, with the decisions: the store's, then those of
        a fallback; those of ``bans`` alone where they refuse. Raises StoreUnavailable where a
        request would be answered with 503.
        """
        admission = Admission(self._owner, None)
        matching: Matching = [(rule, {}) for rule in rules]
        plan = self.now.rules.index.plan_of(terms)
        admission.decided = ((self._store, matching),)
        decisions: Sequence[Decision] = ()
        problem: Exception | None = None
        try:
            if bans:
                decisions = await self.bans.decide(admission, plan.checks(keys), bans)
                if admission.refusal is not None:
                    return admission, tuple(decisions)
            else:
                decisions = await self._ask(plan.checks(keys))
            lost = self._conclude(admission, plan, keys, decisions)
            if lost:
                problem = lost[0][1]
                await self._without_store(admission, matching, plan, keys, lost)
        except Exception as failed:  # noqa: BLE001  # the law of this module
            problem = failed
            await self._fallback.answer(
                self.now.rules, admission, matching, failed, plan.checks(keys), plan.policies
            )
        count(admission.turns, "waited")
        if admission.refusal is not None:
            await admission.give_back()
            if admission.refusal.status == 503 and problem is not None:
                if isinstance(problem, StoreUnavailable):
                    raise problem
                raise StoreUnavailable(f"{type(problem).__name__}: {problem}") from problem
        known = [each for each in decisions if not each.degraded]
        return admission, (*known, *admission.degraded)

    async def decide_alone(self, part: Part, registered: Registered) -> Admission:
        """Decides a part that has no other beside it, as any request is decided."""
        admission = Admission(self._owner, None)
        await self.decide(admission, part.scope, (), part.find, registered, admission.template)
        part.told = list(admission.told)
        if admission.refusal is not None:
            part.over = not part.told
            await admission.give_back()
        return admission

    async def decide_together(  # noqa: PLR0911, PLR0912  # as `decide`
        self, parts: Sequence[Part], registered: Registered
    ) -> Admission:
        """Decides what is to pass together: every part is charged, or none is.

        Leaves with each part what was told of it, and whether it is why nothing passes.
        """
        owner = self._owner
        admission = Admission(owner, None)
        if not (owner.enabled and owner.everywhere):
            return admission
        matching: Matching = []
        plan, keys = NOTHING, list[str]()
        try:
            matching, asked = self._gathered(admission, parts, registered)
            if any(part.over for part in parts):
                return admission
            shedder = owner.shedder
            if asked and not asked[0].part.forced and shedder is not None and shedder.watching:
                index = self.now.rules.index
                if await shedder.refuses(admission, asked[0].request, matching, index):
                    return admission
            if not matching:
                return admission
            admission.decided = ((self._store, matching),)
            request, rules = asked[0].request, self.now.rules
            closely = self.seen < 1_000 or not self.seen % 64
            plan, keys, bans = await self._resolver.resolve(
                rules, admission, matching, request, asked, closely=closely
            )
            if not keys:
                return admission
            ask = self._ask
            if bans and not parts[0].forced:
                jitter_us = self.now.rules.retry_jitter_us
                ask = partial(self.bans.decide, admission, bans=bans, jitter_us=jitter_us)
            if plan.holds:
                decisions = await self._leases.ask(admission, plan, keys, ask)
            else:
                decisions = await ask(plan.checks(keys))
            if admission.refusal is not None:
                return admission
            lost = self._conclude(admission, plan, keys, decisions)
            for (_, key, *_, action), policy, decision in zip(
                plan.asked, plan.policies, decisions, strict=True
            ):
                if action != _SHADOW and not decision[8]:
                    asked[key].part.told.append(new_told((policy, decision)))
            if lost:
                await self._without_store(admission, matching, plan, keys, lost)
        except Exception as problem:  # noqa: BLE001  # the law of this module
            await self._fallback.answer(
                self.now.rules, admission, matching, problem, plan.checks(keys), plan.policies
            )
        except BaseException:  # as `decide` does
            withdraw(admission, 0)
            raise
        if admission.refusal is not None:
            await admission.give_back()
        return admission

    def _gathered(
        self, admission: Admission, parts: Sequence[Part], registered: Registered
    ) -> tuple[Matching, list[Asked]]:
        """The rules for all parts, and whose each is; none of whom the lists decide about."""
        owner = self._owner
        listed = not (owner.denylist.empty and owner.allowlist.empty)
        matching: list[tuple[Rule, Mapping[str, object]]] = []
        asked: list[Asked] = []
        for part in parts:
            client = self.now.proxies.client(part.scope)
            if listed and self._is_listed(admission, client):
                if admission.refusal is not None:
                    part.over = True
                    break
                continue
            found = self._still_on(part.find(part.scope)[0])
            request = self.request(part.scope, registered, client, admission.template)
            matching += found
            asked += [Asked(request, part)] * len(found)
        return matching, asked
