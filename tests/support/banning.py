"""An exact model of bans, and random timelines of requests that bans stand before.

The model follows the written promise alone: fractions of strikes and plain numbers, no code of the
package.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from math import ceil, floor
from random import Random
from typing import Any, NamedTuple

from ratelimit.bans import Ban, covering
from ratelimit.decisions import Action, Check, Decision
from ratelimit.limits import Limit
from ratelimit.stores import Store
from ratelimit.testing import START_US, ManualClock
from tests.support.model import Answer, Ask, Model
from tests.support.timelines import random_limit, random_step_us

MS_US = 1_000
SPANS_US = (1_000, 1_001, 7_000, 999_999, 1_000_000, 60_000_000, 600_000_000, 86_400_000_000)


class BanState(NamedTuple):
    """What is remembered of an identity, in microseconds and strikes."""

    at_us: int
    struck: Fraction
    """Strikes that are not forgotten yet."""
    ends_us: int
    """When the last ban ends or has ended."""
    doubled: int
    """How often the next ban's length would have been doubled then."""


NEVER_USED = BanState(-(2**60), Fraction(0), -(2**60), 0)


class BanModel:
    """The bans of one store."""

    def __init__(self) -> None:
        self.states: dict[Any, BanState] = {}

    def length(self, ban: Any, doubled: int) -> int:
        return int(min(ban.for_us * 2**doubled, ban.up_to_us))

    def look(self, ban: Any, state: BanState, now_us: int) -> BanState:
        """The state as it stands at an instant; an end that no ban can have is taken as now."""
        at_us, struck, ends_us, doubled = state
        time_us = at_us if now_us < at_us <= now_us + ban.window_us else now_us
        passed = max(0, time_us - at_us)
        struck = max(Fraction(0), struck - Fraction(passed * ban.quota, ban.window_us))
        if ends_us - time_us > self.length(ban, doubled):
            ends_us = time_us - time_us % MS_US
        return BanState(time_us, struck, ends_us, doubled)

    def quietened(self, ban: Any, view: BanState) -> int:
        """How often the next ban is doubled: once less for each length that passed without."""
        doubled, since = view.doubled, view.ends_us
        while doubled and view.at_us - since >= self.length(ban, doubled - 1):
            doubled -= 1
            since += self.length(ban, doubled)
        return doubled

    def left(self, ban: Any, view: BanState) -> int:
        return 0 if view.ends_us > view.at_us else floor(ban.quota - view.struck)

    def as_new_us(self, ban: Any, view: BanState) -> int:
        """The instant from which nothing is remembered."""
        return max(self.full_us(ban, view), self.quiet_us(ban, view))

    def quiet_us(self, ban: Any, view: BanState) -> int:
        """The instant from which the last ban is as if it had never been."""
        return view.ends_us + sum(self.length(ban, each) for each in range(view.doubled))

    def full_us(self, ban: Any, view: BanState) -> int:
        """The instant from which no strike counts."""
        return view.at_us + ceil(Fraction(view.struck * ban.window_us, ban.quota))

    def struck(self, ban: Any, view: BanState, times: int) -> BanState:
        if times < self.left(ban, view):
            struck = view._replace(struck=view.struck + times)
            if self.quiet_us(ban, view) <= view.at_us:  # with that, it is forgotten for good
                return struck._replace(ends_us=NEVER_USED.ends_us, doubled=0)
            return struck
        doubled = self.quietened(ban, view)
        lasts = self.length(ban, doubled)
        ends_us = (view.at_us + lasts) // MS_US * MS_US
        return BanState(view.at_us, Fraction(0), ends_us, doubled + (lasts < ban.up_to_us))

    def answer(self, ban: Any, view: BanState, now_us: int, action: str) -> Answer:
        banned = view.ends_us > view.at_us
        return Answer(
            not banned or action == "force",
            self.left(ban, view),
            view.ends_us - now_us if banned and action != "force" else 0,
            self.as_new_us(ban, view) - now_us,
            0,
            view.at_us,
            Fraction(0),
        )

    def grows_us(self, ban: Any, view: BanState, now_us: int) -> int:
        """Until one more strike is left; -1 for never."""
        left = self.left(ban, view)
        if view.ends_us > view.at_us:
            return view.ends_us - now_us
        if left == ban.quota:
            return -1
        short = view.struck - (ban.quota - left - 1)
        return view.at_us + ceil(Fraction(short * ban.window_us, ban.quota)) - now_us


class BanAsk(NamedTuple):
    """A ban before the checks of its rule."""

    rule: int
    ban: Ban
    key: str
    strikes: int
    action: str
    covered: tuple[Ask, ...]


def decide(bans: BanModel, limits: Model, now_us: int, asks: Sequence[BanAsk]) -> list[Answer]:
    """The answers of one request: of each ban, and behind it those of what it covers."""
    names = [(ask.key, ask.rule) for ask in asks]
    states = [bans.states.get(name, NEVER_USED) for name in names]
    views = [bans.look(ask.ban, state, now_us) for ask, state in zip(asks, states, strict=True)]
    refused = any(
        ask.action == "charge" and view.ends_us > view.at_us
        for ask, view in zip(asks, views, strict=True)
    )
    answers = limits.decide(now_us, [each for ask in asks for each in ask.covered], banned=refused)
    covered = [each for ask in asks for each in ask.covered]
    passed = not refused and all(
        answer.allowed
        for ask, answer in zip(covered, answers, strict=True)
        if ask.action == "charge"
    )
    found: list[Answer] = []
    for ask, name, state, view in zip(asks, names, states, views, strict=True):
        own, answers = answers[: len(ask.covered)], answers[len(ask.covered) :]
        times = (ask.strikes if passed else 0) + any(not each.allowed for each in own)
        told, again = view, times > 0 or view.ends_us != state.ends_us
        if again and view.ends_us <= view.at_us:
            told = bans.states[name] = bans.struck(ask.ban, view, times)
        # Whatever a check's action is, it tells of a ban where it has struck.
        action = "charge" if again else ask.action
        answer = bans.answer(ask.ban, told, now_us, action)
        begins = told.ends_us > told.at_us and view.ends_us <= view.at_us
        if not begins and (not passed or again):
            answer = answer._replace(level=Fraction(bans.grows_us(ask.ban, told, now_us)))
        found += answer, *own
    return found


def random_ban(rng: Random) -> Ban:
    """Any with few strikes or many, short and long."""
    within_us, for_us, longer_us = (rng.choice(SPANS_US) for _ in range(3))
    after = rng.choice((1, 2, 3, 7, 2**53 // within_us - 1))
    return Ban(after, within_us, for_us, max(for_us, longer_us))


@dataclass
class BanTimeline:
    """A store and the models side by side; each step moves the clock and decides one request."""

    rng: Random
    store: Store
    clock: ManualClock
    bans: BanModel = field(default_factory=BanModel)
    limits: Model = field(default_factory=Model)
    decided: int = 0
    begun: int = 0
    steps: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        rng = self.rng
        self.rules: list[tuple[Ban, list[Limit]]] = []
        for _ in range(rng.randint(1, 2)):
            limits = (random_limit(rng) for _ in range(rng.randint(1, 2)))
            # Limits of the same numbers share a counter.
            own = {limit.digest: limit for limit in limits}
            self.rules.append((random_ban(rng), list(own.values())))
        token = secrets.token_hex(6)
        self.keys = [f"{token}-{place}" for place in range(rng.randint(1, 2))]
        begin_us = rng.choice((0, START_US)) + rng.randrange(10**12)
        self.clock.set_us(begin_us - begin_us % rng.choice((1, MS_US)))

    async def step(self) -> None:
        """Moves the clock and decides; AssertionError, with the steps so far, on a difference."""
        rng = self.rng
        await self.move(self.random_step_us())
        key = rng.choice(self.keys)
        chosen = rng.sample(range(len(self.rules)), rng.randint(1, len(self.rules)))
        asks = [self.ask(number, key) for number in chosen]
        checks: list[Check] = []
        for number, ask in zip(chosen, asks, strict=True):
            rule = f"rule-{number}"
            ban = covering(ask.ban, len(ask.covered))
            checks.append(Check(ban, key, ask.strikes, rule, action=ACTIONS[ask.action]))
            checks += [
                Check(each.limit, f"{key}", each.cost, rule, action=ACTIONS[each.action])
                for each in ask.covered
            ]
        answers = decide(self.bans, self.limits, self.clock(), asks)
        decisions = await self.store.decide(checks)
        self.decided += len(checks)
        self.steps.append(f"{self.clock()}: {asks}")
        self.compare(checks, decisions, answers)

    def ask(self, number: int, key: str) -> BanAsk:
        rng = self.rng
        ban, limits = self.rules[number]
        action = rng.choice(("charge",) * 8 + ("shadow",) * 2 + ("force",))
        strikes = 0
        if action == "force":
            strikes = rng.choice((0, 1, 1, 2, ban.quota - 1, ban.quota, 2**42))
            strikes = min(strikes, 2**42)
            limits = []
        # The model names a counter by key and limit alone.
        own = f"{key}/{number}"
        costs = [rng.choice((0, 1, 1, 2, limit.capacity, limit.capacity + 1)) for limit in limits]
        covered = tuple(
            Ask(limit, own, min(cost, 2**42), action)
            for limit, cost in zip(limits, costs, strict=True)
        )
        return BanAsk(number, ban, key, strikes, action, covered)

    def random_step_us(self) -> int:
        rng = self.rng
        ban, limits = rng.choice(self.rules)
        span_us = rng.choice((ban.window_us, ban.for_us, ban.up_to_us))
        return rng.choice(
            (0,) * 6
            + (rng.randrange(span_us + 1),) * 4
            + (random_step_us(rng, rng.choice(limits)),) * 2
            + (span_us + rng.choice((-MS_US, -1, 0, 0, 1, MS_US)),) * 2
            + (-rng.randrange(span_us + 1), -ban.window_us)
            + (self.to_next_us(),) * 3
            + (rng.choice((-1, 1)) * rng.randrange(20 * ban.up_to_us),)
        )

    def to_next_us(self) -> int:
        """Until the next instant at which a ban ends, or is less and less remembered."""
        ends: set[int] = set()
        for (_, number), state in self.bans.states.items():
            ban, instant = self.rules[number][0], state.ends_us
            ends.add(self.bans.full_us(ban, state))
            for doubled in range(state.doubled, -1, -1):
                ends.add(instant)
                instant += self.bans.length(ban, doubled - 1) if doubled else 0
        return min((each - self.clock() for each in ends if each > self.clock()), default=0)

    async def move(self, step_us: int) -> None:
        """Moves the clock, not before the epoch; back only from what the store need not hold."""
        now_us = self.clock()
        if step_us < 0:
            for number, (ban, limits) in enumerate(self.rules):
                for key in self.keys:
                    await self.forget(now_us, number, ban, limits, key)
        self.clock.set_us(max(0, now_us + step_us))

    async def forget(
        self, now_us: int, number: int, ban: Ban, limits: Sequence[Limit], key: str
    ) -> None:
        """Forgets on both sides what has expired, and would count again if the clock went back."""
        rule, name = f"rule-{number}", (key, number)
        state = self.bans.states.get(name)
        if state and self.bans.as_new_us(ban, self.bans.look(ban, state, now_us)) <= now_us:
            del self.bans.states[name]
            await self.store.reset([Check(ban, key, 0, rule)])
        for limit in limits:
            own = (f"{key}/{number}", limit)
            kept = self.limits.states.get(own)
            family = self.limits.family(limit)
            if kept and family.is_empty(self.limits.look(family, kept, now_us)):
                del self.limits.states[own]
                await self.store.reset([Check(limit, key, 0, rule)])

    def compare(
        self, checks: Sequence[Check], decisions: Sequence[Decision], answers: Sequence[Answer]
    ) -> None:
        for place, (check, got, expected) in enumerate(
            zip(checks, decisions, answers, strict=True)
        ):
            is_ban = isinstance(check.limit, Ban)
            self.begun += is_ban and not got.allowed and got.level == 0
            if is_ban and got.level != expected.level:
                raise AssertionError(
                    f"level {got.level}, not {expected.level}\n" + "\n".join(self.steps[-12:])
                )
            if (*got[1:6], got.at_us) != expected[:6]:
                raise AssertionError(
                    f"check {place} of the last step: allowed, remaining, retry, reset, delay, at\n"
                    f"  store {(*got[1:6], got.at_us)}\n  model {expected[:6]}\n"
                    + "\n".join(self.steps[-12:])
                )


ACTIONS = {"charge": Action.CHARGE, "shadow": Action.SHADOW, "force": Action.FORCE}
