"""Counters by a rule's name and an identity, without a request: in jobs and at the shell."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import ClassVar

from ratelimit.control.events import Event, Events
from ratelimit.control.switches import ALL, Switches
from ratelimit.decisions import Action, Decision
from ratelimit.limiter.admission import Admission
from ratelimit.limiter.bans import Banning
from ratelimit.limiter.checks import TurnedAway, refusal_of_blocked
from ratelimit.limiter.identified import Identified, Outcome, rule_named
from ratelimit.limiter.in_force import RuleBook
from ratelimit.limiter.settling.charged import Charged
from ratelimit.limiter.settling.reserving import Reservation, Reserving, from_token
from ratelimit.limiter.settling.settler import Settler
from ratelimit.limiter.settling.tokens import Signer
from ratelimit.limiter.telling import tell_blocked
from ratelimit.limiter.together import DecidesTogether
from ratelimit.responses.headers import RateLimitExceeded, Refusal
from ratelimit.rules.counting import MOST_COST
from ratelimit.rules.rule import Rule
from ratelimit.stores import Store, StoreUnavailable
from ratelimit.stores.failover import Failover
from ratelimit.words import whole

__all__ = ["ByName"]


class ByName(RuleBook):
    """Looks at, charges and resets the counters of identities, by the rules that hold now."""

    # `RateLimiter` sets these.
    everywhere: ClassVar[bool]
    enabled: bool
    store: Store
    events: Events
    counts: Counter[tuple[str, str]]
    _switches: Switches
    _failover: Failover
    _decider: DecidesTogether
    _settler: Settler
    _secret: Sequence[str] | None
    _begin: Callable[[], None]

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
        Of a rule with ``websocket`` it is the handshakes that are told: messages have counters of
        their own, which workers charge ahead for, and no call by name reaches.

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

    def _signer(self) -> Signer:
        """Signs by the secrets that hold now: a rule file may bring others."""
        return Signer(self.rules.secret if self._secret is None else self._secret)

    def _turned_away(self, asked: Identified) -> Refusal:
        """The answer to an identity that a rule blocks, counted and told of."""
        self.counts[asked.rule.name, "turned-away"] += 1
        admission = Admission(self, None)
        admission.decided = ((self.store, [(asked.rule, {})]),)
        turned = TurnedAway(asked.rule.name, refusal_of_blocked(asked.rule), asked.key)
        tell_blocked(self.events, admission, turned)
        return turned.refusal

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
