"""Bans: asked with the checks of their rules, refused without the store for a moment, and struck.

The law of this module: a ban refuses nobody whom the store has not banned within the last five
seconds, so that whoever is unbanned anywhere passes everywhere soon. What it remembers is bounded.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

from ratelimit.bans import Ban, length_in_words
from ratelimit.control.denials import Denials
from ratelimit.control.events import Event, Events
from ratelimit.decisions import Action, Check, Decision, Repeated
from ratelimit.limiter.admission import Admission
from ratelimit.limiter.reports import Reports
from ratelimit.limiter.telling import path_of
from ratelimit.responses.headers import banned
from ratelimit.responses.vendors import in_vain
from ratelimit.runtime.background import Background

__all__ = ["Banning", "Bans", "ban_check"]

_LOG: Final = logging.getLogger("ratelimit")
_SHADOW: Final = int(Action.SHADOW)

LONGEST_US: Final = 5_000_000
"""The longest that a ban is repeated without the store: what is unbanned elsewhere is seen then."""

GRACE_US: Final = 500_000
"""The time in which it is repeated to all others while one request asks the store again."""

MOST: Final = 10_000
"""Identities that are remembered as banned, and those whose strikes wait to be sent."""

EVERY: Final = 0.1
"""Seconds between two trips with strikes."""

AT_ONCE: Final = 50
"""Strikes of so many identities leave together."""

Ask = Callable[[Sequence[Check]], Awaitable[Sequence[Decision]]]
Name = tuple[str, str, str]
"""A ban's counter: the digest of its numbers, the counter of its rule, and the identity."""


class Banning(NamedTuple):
    """A rule's ban as a part of a request."""

    rule: str
    check: Check
    place: int
    """The place of the first check that it covers, bans not counted."""


def ban_check(ban: Ban, key: str, counter: str, action: int) -> Check:
    """The check that asks about a ban: it takes nothing."""
    return Check(ban, key, 0, counter, action=Action(action))


def _name(check: Check) -> Name:
    return check.limit.digest, check.rule, check.key


class Bans:
    """The bans of one limiter's rules.

    ``ask`` is how its store is asked. A store in process is asked each time: it has no ``now_us``,
    the clock by which a ban is repeated.
    """

    def __init__(
        self,
        store: object,
        ask: Ask,
        counts: Counter[tuple[str, str]],
        denials: Denials,
        reports: Reports,
        events: Events,
    ) -> None:
        self._ask = ask
        self._counts = counts
        self._denials = denials
        self._reports = reports
        self._events = events
        self._now_us: Callable[[], int] | None = getattr(store, "now_us", None)
        self._clock: Callable[[], int] = self._now_us or _monotonic_us
        self._known: dict[Name, tuple[int, int]] = {}
        """Of each identity that is banned, when its ban ends, and when the store is asked again."""
        self._struck: dict[Name, tuple[str, Check, int]] = {}
        """The strikes that the store has not been told of."""
        self._sent = 0.0
        self._background = Background("strikes", self._send)

    @property
    def count(self) -> int:
        """Identities that this process knows to be banned at the moment."""
        now_us = self._clock()
        return sum(ends_us > now_us for ends_us, _ in self._known.copy().values())

    def _repeated(self, check: Check) -> Decision | None:
        """The refusal of an identity that is known to be banned; None where the store is asked."""
        known = self._known.get(_name(check))
        if known is None or self._now_us is None or check.action == _SHADOW:
            return None
        ends_us, again_us = known
        now_us = self._now_us()
        if now_us >= again_us:  # this request asks, for all that come meanwhile
            if now_us >= ends_us:
                self._known.pop(_name(check), None)
            else:
                self._known[_name(check)] = ends_us, min(ends_us, now_us + GRACE_US)
            return None
        left_us = ends_us - now_us
        return Decision(check.limit, False, 0, left_us, left_us, 0, 0, left_us)

    async def decide(
        self,
        admission: Admission,
        checks: Sequence[Check],
        bans: Sequence[Banning],
        jitter_us: int = 0,
    ) -> Sequence[Decision]:
        """Asks the store, and refuses whom it bans; gives its decisions on ``checks`` alone.

        Where a ban refuses, it gives the decisions of those that do. Of whom the store has banned
        within the last five seconds it is not asked.
        """
        asked: list[Check] = []
        last = 0
        for rule, check, place in bans:
            known = self._repeated(check) if self._known else None
            if known is not None:
                return self._refuse(admission, [(rule, check, known)], jitter_us)
            asked += (*checks[last:place], check)
            last = place
        asked += checks[last:]
        asked_us = self._clock()
        decisions = list(await self._ask(asked))
        refusing: list[tuple[str, Check, Decision]] = []
        for number in range(len(bans) - 1, -1, -1):  # from the last, so that places hold
            rule, check, place = bans[number]
            at = place + number
            decision = decisions.pop(at)
            covered = decisions[at : at + _covers(check)]
            if decision.degraded:  # it has no say
                problem = getattr(decision, "problem", None)
                if problem is not None:
                    self._reports.fault(problem)
            elif decision.allowed:
                self._known.pop(_name(check), None)
                if type(decision) is Repeated and not all(each[1] for each in covered):
                    self._strike(rule, check)
            else:
                self._learn(admission, rule, check, decision, asked_us)
                if check.action == _SHADOW:
                    admission.would_ban = (*admission.would_ban, rule)
                else:
                    refusing.append((rule, check, decision))
        return self._refuse(admission, refusing[::-1], jitter_us) if refusing else decisions

    def forget(self, check: Check) -> None:
        """Forgets what is known of an identity's ban, and strikes that were not sent."""
        self._known.pop(_name(check), None)
        self._struck.pop(_name(check), None)

    async def aclose(self) -> None:
        """Ends what runs in the background of this event loop."""
        await self._background.aclose()

    def _learn(
        self,
        admission: Admission | None,
        rule: str,
        check: Check,
        decision: Decision,
        asked_us: int,
    ) -> None:
        """Remembers a ban, and tells of one that has just begun."""
        left_us = decision.retry_after_us or 0
        if check.action != _SHADOW:
            name = _name(check)
            self._known.pop(name, None)
            while len(self._known) >= MOST:
                self._known.pop(next(iter(self._known)), None)
            ends_us = self._clock() + left_us
            self._known[name] = ends_us, min(ends_us, asked_us + LONGEST_US)
        if decision.level or type(decision) is Repeated:
            return
        seconds_us = -(-left_us // 1_000_000) * 1_000_000
        self._tell(admission, rule, check, decision, f"begins, for {length_in_words(seconds_us)}")

    def _refuse(
        self,
        admission: Admission,
        refusing: Sequence[tuple[str, Check, Decision]],
        jitter_us: int,
    ) -> list[Decision]:
        for rule in admission.would_ban:
            self._counts[rule, "shadow-banned"] += 1
        admission.would_ban = ()
        for rule, check, decision in refusing:
            self._counts[rule, "banned"] += 1
            self._denials.add(rule, check.key)
            if decision.level:
                self._tell(admission, rule, check, decision, "")
        left_us = max(decision.retry_after_us or 0 for _, _, decision in refusing)
        # Nothing is told of quotas, which do not decide.
        refusal = banned([rule for rule, _, _ in refusing], left_us, jitter_us)
        hinted = admission.limiter.rules.retry_hints
        admission.refuse(in_vain(refusal) if hinted else refusal)
        return [decision for _, _, decision in refusing]

    def _tell(
        self, admission: Admission | None, rule: str, check: Check, decision: Decision, detail: str
    ) -> None:
        if not self._events.wanted:
            return
        mode = "shadow" if check.action == _SHADOW else "enforce"
        path = None if admission is None else partial(path_of, admission, rule)
        self._events.refused(
            Event("banned", rule, "", mode, check.key, path, decision.retry_after, detail)
        )

    def _strike(self, rule: str, check: Check) -> None:
        """Keeps a strike of which the store has not heard, since it was not asked."""
        name = _name(check)
        _, _, times = self._struck.get(name, (rule, check, 0))
        if times or len(self._struck) < MOST:
            self._struck[name] = rule, check, times + 1
            self._background.run()

    async def _send(self) -> None:
        """Tells the store of strikes, as soon as the last trip is a while ago."""
        while self._struck:
            await asyncio.sleep(max(0.0, self._sent + EVERY - time.monotonic()))
            self._sent = time.monotonic()
            struck, self._struck = [*self._struck.values()], {}
            for start in range(0, len(struck), AT_ONCE):
                part = struck[start : start + AT_ONCE]
                forced = [
                    Check(check.limit, check.key, times, check.rule, action=Action.FORCE)
                    for _, check, times in part
                ]
                asked_us = self._clock()
                try:
                    decisions = await self._ask(forced)
                except Exception:  # noqa: BLE001  # that a store is away is its breaker's to say
                    _LOG.debug("strikes-lost: the store was not told of %d", len(part))
                    continue
                for (rule, check, _), decision in zip(part, decisions, strict=True):
                    if not decision.allowed and not decision.degraded:
                        self._learn(None, rule, check, decision, asked_us)


def _covers(check: Check) -> int:
    limit: Any = check.limit
    return int(limit.covers)


def _monotonic_us() -> int:
    return time.monotonic_ns() // 1000
