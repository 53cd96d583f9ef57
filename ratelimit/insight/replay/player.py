"""Requests played against a rule set, with the log's time as the clock.

The law of this module: the store decides, as in production, and nothing here compares a count with
a limit. What a static plan asks goes to the store at once, by the same call as in the limiter's
fast path; whatever else there is goes through the limiter itself.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from heapq import heappop, heappush
from itertools import count
from typing import Any, Final

from ratelimit.decisions import Action, Alike, Check, Decision
from ratelimit.insight.replay.asking import Asked, Asker, scope_of
from ratelimit.insight.replay.outcomes import Logged
from ratelimit.insight.replay.recording import Recording, at_once
from ratelimit.insight.replay.tally import RuleTally
from ratelimit.limiter.limiter import Admission, RateLimiter
from ratelimit.rules.ruleset import RuleSet
from ratelimit.rules.shed import PRIORITIES
from ratelimit.stores.memory import MOST_IN_RUN, MemoryStore

__all__ = ["MOST_TRIES", "Player", "Verdict"]

MOST_TRIES: Final = 10
"""Times that a refused request comes again before its client gives up."""
MOST_RETRIES: Final = 100_000
"""Requests that wait to come again; of more, clients give up."""
MOST_KEYS: Final = 1_000_000
"""Counters of one pass."""

_NO_ENTRY: Final[Any] = ()
_SHADOW: Final = int(Action.SHADOW)
_SECOND: Final = 1_000_000

Verdict = tuple[bool, int | None, int]
"""Whether a request passes; seconds in Retry-After (0 where it passes, None where there is none);
microseconds that it waits for its turn."""
_PASSED: Final[Verdict] = (True, 0, 0)


class Player:
    """One pass over the requests of a log, by one rule set, in one reading and order.

    ``retries``: whoever is refused comes again at `Retry-After`, until it passes or has come ten
    times more. Verdicts are kept in ``verdicts`` where a list is given.
    """

    def __init__(
        self,
        asker: Asker,
        rules: RuleSet,
        *,
        retries: bool = False,
        verdicts: list[Verdict] | None = None,
    ) -> None:
        self._asker = asker
        self._now = [0]
        now = self._now
        self._store = MemoryStore(MOST_KEYS, clock=lambda: now[0])
        self._recording = Recording(self._store)
        names = rules.registered_names
        priorities = {str(rule.priority) for rule in rules.rules if rule.priority is not None}
        self.limiter = RateLimiter(
            replace(rules, shed=None),  # what is late here is the replay
            store=self._recording,
            priorities=dict.fromkeys(priorities.difference(PRIORITIES), _nobody),
            identities=dict.fromkeys(names, _nobody),
            tiers={str(rule.tier): _nobody for rule in rules.rules if rule.tier is not None},
            costs={rule.cost: _one for rule in rules.rules if isinstance(rule.cost, str)},
        )
        self.rules: dict[str, RuleTally] = {rule.name: RuleTally() for rule in rules.rules}
        self.requests = 0
        self.refused = 0
        """Refusals, also of requests that came again."""
        self.refused_first = 0
        """Requests of the log that were refused when they came."""
        self.waited = 0
        self.retried = 0
        """Requests that came again, beside those of the log."""
        self.gave_up = 0
        """Refused requests that came again in vain, or could never pass, or had no room."""
        self._logged = Logged(rules, self._store)
        self._modes = {rule.name: rule.mode for rule in rules.rules}
        self._retries: list[tuple[int, int, Asked, int]] | None = [] if retries else None
        self._numbers = count()
        self._passed: list[int] = []
        self._allowed: list[tuple[str, ...]] = []
        self._refused_now: Counter[str] = Counter()
        self._verdicts = verdicts

    @property
    def evictions(self) -> int:
        """Counters that were given up, because there were too many."""
        return self._store.statistics().evictions

    def play(self, requests: Sequence[Asked]) -> list[int]:
        """Plays requests that are in order; returns the places of those that were refused."""
        if not requests:
            return []
        self._make_room()
        refused: list[int] = []
        waiting = self._retries
        run: list[tuple[int, Alike, str]] = []
        add = run.append
        passed = self._passed
        begin = place = 0
        for at_us, group, keys, _ in requests:
            if waiting and waiting[0][0] <= at_us:
                self._run(requests, run, begin, refused)
                begin = place
                self._come_again(at_us)
            alike = group.in_run
            if alike is not None and keys is not None:
                if len(run) == MOST_IN_RUN:
                    self._run(requests, run, begin, refused)
                    begin = place
                add((at_us, alike, keys[0]))
                passed[group.number] += 1  # taken back where it is told
            else:
                self._run(requests, run, begin, refused)
                begin = place + 1
                self._now[0] = at_us
                self._take(requests[place], place, self._decide(requests[place]), refused)
            place += 1
        self._run(requests, run, begin, refused)
        self.requests += place
        self.refused_first += len(refused)
        self._fold(requests[-1][0] // _SECOND)
        return refused

    def _run(
        self,
        requests: Sequence[Asked],
        run: list[tuple[int, Alike, str]],
        begin: int,
        refused: list[int],
    ) -> None:
        """Decides the requests from a place on that stand in a row, at once, and empties the row.

        Whoever is refused among them comes again a second later at the soonest, thus after them.
        """
        if not run:
            return
        told = self._store.decide_run(run)
        passed, keep, at = self._passed, self._verdicts, 0
        if keep is not None:
            keep += [_PASSED] * len(run)
        quick = keep is None and self._retries is None
        while at < len(told):
            place, retry_us = told[at], told[at + 1]
            asked, (at_us, alike, key) = requests[begin + place], run[place]
            group, count = asked[1], len(alike[0])
            at += 1 + 2 * count
            if quick and count == 1 and retry_us == 0:  # as it goes for a leaking bucket
                self.rules[group.names[0]].wait(told[at - 1])
                self.waited += 1
                continue
            passed[group.number] -= 1
            if quick and count == 1 and retry_us > 0:  # as it ends for a flood
                self._deny(group.names[0], key, at_us, retry_us)
                self.refused += 1
                refused.append(begin + place)
                continue
            outcomes = [(told[n], told[n + 1]) for n in range(at - 2 * count, at, 2)]
            checks = () if group.plan is None else group.plan.asked
            self._now[0] = at_us
            verdict = self._conclude(asked, checks, [key], outcomes)
            if keep is not None:
                keep[place - len(run)] = verdict
            if not verdict[0]:
                self._refuse(asked, begin + place, verdict, refused)
        run.clear()

    def _take(self, asked: Asked, place: int, verdict: Verdict, refused: list[int]) -> None:
        """Keeps the verdict of a request that was decided alone."""
        if self._verdicts is not None:
            self._verdicts.append(verdict)
        if not verdict[0]:
            self._refuse(asked, place, verdict, refused)

    def _refuse(self, asked: Asked, place: int, verdict: Verdict, refused: list[int]) -> None:
        refused.append(place)
        if self._retries is not None:
            self._later(asked, verdict, 0)

    def _make_room(self) -> None:
        """Has a place for each group that the asker knows."""
        missing = len(self._asker.groups) - len(self._passed)
        if missing > 0:
            self._allowed += [group.names for group in self._asker.groups[len(self._passed) :]]
            self._passed += [0] * missing

    def _fold(self, second: int) -> None:
        """Adds the counts of a second to those of the rules."""
        by_rule: Counter[str] = Counter()
        for number, times in enumerate(self._passed):
            if times:
                for name in self._allowed[number]:
                    by_rule[name] += times
                self._passed[number] = 0
        for name, times in by_rule.items():
            self.rules[name].passed += times
        for name in by_rule.keys() | self._refused_now.keys():
            self.rules[name].series.add(second, by_rule[name], self._refused_now[name])
        self._refused_now.clear()

    def _decide(self, asked: Asked) -> Verdict:
        """A request that is not of one key at one cost: by its plan, or by the whole limiter."""
        group, keys = asked[1], asked[2]
        if keys is None:
            return self._by_limiter(asked)
        plan = group.plan
        if group.in_run is not None and plan is not None:
            told = self._store.decide_run([(self._now[0], group.in_run, keys[0])])
            if not told:
                outcomes = [(0, 0)] * len(plan.asked)
            else:
                outcomes = [(told[n], told[n + 1]) for n in range(1, len(told), 2)]
            return self._conclude(asked, plan.asked, keys, outcomes)
        if plan is None or not plan.asked:
            return _PASSED
        decisions = at_once(self._store.decide(plan.checks(keys)))
        verdict = self._conclude(asked, plan.asked, keys, _outcomes(decisions))
        if plan.undecided and verdict[0]:
            self._logged.settle(plan, keys, decisions, asked[3])
        return verdict

    def _conclude(
        self,
        asked: Asked,
        checks: Sequence[tuple[Any, int, int, str, int]],
        keys: Sequence[str],
        outcomes: Sequence[tuple[int, int]],
    ) -> Verdict:
        """Counts the outcomes of checks: a refusal is that of every rule that denied.

        They are as `MemoryStore.decide_run` has them: until when it would pass, and the delay.
        """
        denied: dict[str, tuple[str, int | None]] = {}
        delays: dict[str, int] = {}
        fine, never, retry_us, delay_us = True, False, 0, 0
        for (_, place, _, rule, action), (after, wait_us) in zip(checks, outcomes, strict=True):
            if after == 0:
                delays[rule] = max(delays.get(rule, 0), wait_us)
                if action != _SHADOW:
                    delay_us = max(delay_us, wait_us)
                continue
            before = denied.get(rule, ("", 0))[1]
            worse = None if after < 0 or before is None else max(after, before)
            denied[rule] = keys[place], worse
            if action != _SHADOW:
                fine = False
                never |= after < 0
                retry_us = max(retry_us, after)
        for rule, (key, wait) in denied.items():
            self._deny(rule, key, asked[0], wait)
        if fine:
            for rule, own_us in delays.items():
                if rule not in denied:
                    self._pass(rule, asked[0], own_us)
            self.waited += delay_us > 0
            return True, 0, delay_us
        self.refused += 1
        return False, None if never else -(-retry_us // _SECOND), 0

    def _pass(self, rule: str, at_us: int, delay_us: int) -> None:
        tally = self.rules[rule]
        tally.passed += 1
        tally.series.add(at_us // _SECOND, 1, 0)
        if delay_us:
            tally.wait(delay_us)

    def _deny(self, rule: str, key: str, at_us: int, retry_us: int | None) -> None:
        tally = self.rules[rule]
        tally.refused += 1
        tally.never += retry_us is None
        if tally.locked.add(key, at_us, retry_us):
            tally.identities.add(key)
        self._refused_now[rule] += 1

    def _by_limiter(self, asked: Asked) -> Verdict:
        """The verdict of the limiter itself, as the middleware asks it."""
        recording, limiter = self._recording, self.limiter
        recording.last = ((), ())
        before = {name: limiter.counts[name, "turned-away"] for name in self.rules}
        admission: Admission = at_once(limiter.admit(scope_of(asked[3])))
        self._logged.settle_all(admission, asked[3])
        checks: Sequence[Check] = recording.last[0]
        decisions = recording.last[1]
        told = [(each.limit, n, each.cost, each.rule, each.action) for n, each in enumerate(checks)]
        keys = [check.key for check in checks]
        verdict = _PASSED
        if told:
            for check in checks:
                self._asker.count(check.rule, check.key)
            verdict = self._conclude(asked, told, keys, _outcomes(decisions))
        if verdict[0] and admission.refusal is not None:
            self.refused += 1
            for name, times in before.items():
                if limiter.counts[name, "turned-away"] > times:
                    self.rules[name].turned_away += 1
            return False, None, 0
        return verdict

    def _later(self, asked: Asked, verdict: Verdict, tries: int) -> None:
        """Has a refused request come again at its Retry-After."""
        waiting, seconds = self._retries, verdict[1]
        if waiting is None or seconds is None or tries >= MOST_TRIES or len(waiting) > MOST_RETRIES:
            self.gave_up += 1
            return
        at_us = asked[0] + seconds * _SECOND
        # The line itself, which may be long, only where more is to be asked of it.
        plan = asked[1].plan
        more = asked[2] is None or (plan is not None and plan.undecided)
        again: Asked = (at_us, asked[1], asked[2], asked[3] if more else _NO_ENTRY)
        heappush(waiting, (at_us, next(self._numbers), again, tries + 1))

    def _come_again(self, until_us: int) -> None:
        """Plays the requests that come again until then."""
        waiting = self._retries
        while waiting and waiting[0][0] <= until_us:
            at_us, _, asked, tries = heappop(waiting)
            self._now[0] = at_us
            self.retried += 1
            verdict = self._decide(asked)
            if not verdict[0]:
                self._later(asked, verdict, tries)

    def finish(self) -> None:
        """Plays the requests that still wait to come again."""
        self._come_again(2**52)
        if self._refused_now:
            self._fold(self._now[0] // _SECOND)


def _outcomes(decisions: Sequence[Decision]) -> list[tuple[int, int]]:
    """Decisions as `MemoryStore.decide_run` tells them."""
    return [(0 if each[1] else -1 if each[3] is None else each[3], each[5]) for each in decisions]


def _nobody(_: object) -> None:
    """Of an identity or tier that only the application knows."""


def _one(_: object) -> int:
    """Of a cost that only the application knows."""
    return 1
