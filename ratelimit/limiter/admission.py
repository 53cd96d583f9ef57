"""The decisions of all limiters around one request so far."""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol, TypeVar

from ratelimit.concurrency import Concurrency
from ratelimit.decisions import Action, Check, Decision
from ratelimit.responses.headers import (
    USUAL,
    Dialect,
    Refusal,
    Told,
    drafted,
    fields,
    new_told,
    policies_of,
)
from ratelimit.rules.matching import Plan
from ratelimit.rules.rule import Rule
from ratelimit.stores import Store

__all__ = ["DENYLIST", "Admission", "Held", "Route", "Turn", "count", "told_of"]

T = TypeVar("T")
Passed = tuple[Any, Plan, Sequence[str], Sequence[Decision]]
"""A limiter, what it has asked under which keys, and the decisions, which let the request pass."""

_SHADOW: Final = int(Action.SHADOW)


def told_of(plan: Plan, decisions: Sequence[Decision]) -> list[Told]:
    """The enforced checks of a plan that a store decided."""
    return [
        new_told((policy, decision))
        for policy, asked, decision in zip(plan.policies, plan.asked, decisions, strict=True)
        if asked[4] != _SHADOW and not decision[8]
    ]


DENYLIST: Final = "(denylist)"
"""The denylist of all, where outcomes are counted by rule: no rule can have this name."""


class Route(Protocol):
    """The route that a request will meet, as whoever knows the router tells it."""

    @property
    def template(self) -> str | None:
        """Its path with all prefixes, parameters by name; None where there is none."""

    @property
    def is_exempt(self) -> bool:
        """Whether no rule of a middleware applies to it."""

    @property
    def rules(self) -> Sequence[Rule]:
        """The limits on the route itself, and among its dependencies."""


class Turn(NamedTuple):
    """A leaking bucket's promise: the request goes on when ``decision.delay_us`` have passed."""

    owner: Any
    """The limiter."""
    rule: str
    policy: str
    check: Check
    decision: Decision


def count(turns: Iterable[Turn], outcome: str) -> None:
    """Counts an outcome of requests, once for each of their rules."""
    for owner, rule in dict.fromkeys((turn.owner, turn.rule) for turn in turns):
        owner.counts[rule, outcome] += 1


class Held(Protocol):
    """Something of a request that is settled by how the request ends.

    Told at most once each, in this order, by whoever sees the response; raises nothing. What was
    withdrawn, since something further in refuses the request, is told nothing else.
    """

    def answered(
        self, status: int, headers: Sequence[tuple[bytes, bytes]]
    ) -> Awaitable[object] | None:
        """Learns of the response before its start is sent, which waits for what is returned."""

    def sent(self) -> None:
        """Learns that the response's last message was sent."""

    def ended(self, error: BaseException | None) -> None:
        """Learns that the application's call has ended, and by what it raised."""

    def withdrawn(self) -> None:
        """Learns that what the request was charged is given back."""

    def moved(self, at_its_place: Callable[[Decision], Decision]) -> None:
        """Learns, before all else, at which places of a queue its charges are."""


class Admission:
    """The decisions of all limiters around one request so far.

    The outermost middleware makes it and leaves it in the scope; limits further in add to it, so
    that no rule is decided twice and the client is told of all of them at once.
    """

    __slots__ = (
        "_told", "decided", "degraded", "dialects", "ends", "held", "kept", "limiter", "passed",
        "refusal", "route", "status", "trails", "turns", "would_ban",
    )  # fmt: skip

    def __init__(self, limiter: Any, route: Route | None) -> None:
        self.limiter = limiter
        self.route = route
        self.dialects: Sequence[str | Dialect] = limiter.rules.headers
        self.decided: tuple[tuple[Store, Sequence[tuple[Rule, Any]]], ...] = ()
        """The rules that were decided, and by which store."""
        self.passed: tuple[Passed, ...] = ()
        """Charges, and by which limiter; returned if something further in refuses."""
        self.refusal: Refusal | None = None
        """The answer to give instead of the application's; None while the request may go on."""
        self.degraded: tuple[Decision, ...] = ()
        """Decisions assumed for checks that the store could not decide."""
        self.would_ban: tuple[str, ...] = ()
        """Rules on trial whose bans would have refused the request that is being decided."""
        self.turns: tuple[Turn, ...] = ()
        """The turns that the request has to wait for before it goes on."""
        self.held: list[Held] = []
        """All that is to be told how the request ends."""
        self.ends = False
        """Whether somebody tells that of a dependency, around which no middleware stands."""
        self.status = 0
        """The response's status; 0 until that is known, and where nothing is held."""
        self.trails = False
        """Whether the response has announced trailers."""
        self.kept = False
        """Whether it was asked already if the request is to be shed."""
        self._told: Sequence[Told] | None = None

    def refuse(self, refusal: Refusal, told: Sequence[Told] = ()) -> None:
        """Ends the request; what was told of it until now is told no more."""
        if self.turns:
            count(self.turns, "allowed")  # by those rules, which nobody waits for now
            self.turns = ()
        self.refusal = refusal
        self._told = told

    @property
    def delay_us(self) -> int:
        """Microseconds until the last of its turns, from the decisions on."""
        return max((turn.decision.delay_us for turn in self.turns), default=0)

    def leave_out(self, decisions: Iterable[Decision]) -> None:
        """Has `give_back` leave out the charges of these decisions, which others give back."""
        left_out = {id(each) for each in decisions}
        self.passed = tuple(
            (
                owner, plan, keys,
                [each._replace(allowed=False) if id(each) in left_out else each for each in found],
            )
            for owner, plan, keys, found in self.passed
        )  # fmt: skip

    def move(self, moved: Mapping[int, Decision]) -> None:
        """Has charges be given back as those of others, at whose places the request has gone on.

        ``moved`` are the others' decisions by the identity of its own.
        """

        def at_its_place(decision: Decision) -> Decision:
            other = moved.get(id(decision))
            if other is None:
                return decision
            return decision._replace(at_us=other.at_us, level=other.level)

        for each in self.held:
            each.moved(at_its_place)
        self.passed = tuple(
            (owner, plan, keys, [at_its_place(each) for each in found])
            for owner, plan, keys, found in self.passed
        )

    @property
    def told(self) -> Sequence[Told]:
        """Every enforced check that a store decided, with its policy's name."""
        if self._told is not None:
            return self._told
        told: list[Told] = []
        for _, plan, _, found in self.passed:
            told += told_of(plan, found)
        return told

    def headers(self) -> list[tuple[bytes, bytes]]:
        """The fields that an allowed response carries."""
        if len(self.passed) == 1 and self.dialects == USUAL and not self.degraded:
            _, plan, _, decisions = self.passed[0]
            if not plan.shadows:  # then all were allowed, and what is written of them is kept
                place = 0
                if len(decisions) > 1:
                    left = [decision[2] for decision in decisions]
                    place = left.index(min(left))
                written = plan.written.get(place)
                if written is None:
                    told = self.told
                    written = plan.written[place] = policies_of(told, told[place])
                return drafted(written, decisions[place])
        return fields(self.told, self.dialects)

    def template(self) -> str | None:
        """The template of the route that the request will meet, where somebody knows a router."""
        return None if self.route is None else self.route.template

    @property
    def decisions(self) -> tuple[Decision, ...]:
        """The enforced decisions in the order they were made, then the assumed ones."""
        return (*(decision for _, decision in self.told), *self.degraded)

    def still_to_decide(
        self, store: Store, matching: Sequence[tuple[Rule, T]]
    ) -> Sequence[tuple[Rule, T]]:
        """Of rules that are about to be decided by a store, those that it has not decided yet."""
        for before, rules in self.decided:
            if before is store:
                known = [rule for rule, _ in rules]
                matching = [each for each in matching if each[0] not in known]
        return matching

    @property
    def charges(self) -> list[tuple[Any, list[Check], Sequence[Decision]]]:
        """The charges made, and by which limiter."""
        return [(owner, plan.checks(keys), found) for owner, plan, keys, found in self.passed]

    async def give_back(self) -> None:
        """Returns what was charged: something further in has refused the request."""
        charges, self.passed = self.charges, ()
        held, self.held = self.held, []
        for each in held:
            each.withdrawn()
        for limiter in {id(each): each for each, _, _ in charges}.values():
            returned = [
                check.given_back(decision)
                for owner, checks, decisions in charges
                if owner is limiter
                for check, decision in zip(checks, decisions, strict=True)
                if decision.allowed
                and check.cost
                and not decision.degraded
                and not isinstance(check.limit, Concurrency)  # whose place was held
            ]
            try:
                if returned:
                    await limiter.give_back(returned)
            except Exception as problem:  # noqa: BLE001  # a refusal stands, whatever the store says of it
                limiter.not_given_back(problem)
