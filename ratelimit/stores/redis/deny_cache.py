"""Denials repeated without a round trip for a moment, so that a flood is cheapest for us.

The law of this module: what is repeated is what the store would say. A denial is repeated only
while no cost at all could pass the limits that refuse it, so that nobody's request can have moved
their counters, and only while time changes none of its numbers but those that count down. What
this process does to a counter is heeded at once; what other processes give back or forget, or
charge to a limit that did not refuse, within a second.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Final

from ratelimit.concurrency import Concurrency
from ratelimit.decisions import Action, Check, Decision, Repeated, identity_digest

__all__ = ["LONGEST_US", "DenyCache"]

LONGEST_US: Final = 1_000_000
"""The longest that a denial is repeated: what other workers change is seen within it."""

MOST_CHECKS: Final = 5_000
"""Checks of all requests remembered, at most 0.8 kB each."""

MOST_CHANGES: Final = 3_000
"""Counters of which it is remembered that this process has changed them; at most 0.4 kB each."""

_LONGEST_KEY: Final = 64  # characters kept as they are, of one byte each
_CHARGE: Final = int(Action.CHARGE)
_SHADOW: Final = int(Action.SHADOW)
_PARTS: Final = 5

_new: Final[Callable[[tuple[Any, ...]], Decision]] = partial(tuple.__new__, Repeated)
"""``Repeated(...)`` in a third of the time."""

Asked = tuple[Any, ...]
"""A request: of each check its limit's digest, identity and rule (its counter), cost and action."""

Entry = tuple[int, int, int, tuple[tuple[Any, ...], ...]]
"""A denial: its time, its end, the changes it knows of, and its decisions."""


class DenyCache:
    """Denied requests, by all of their checks and costs, for at most ``longest_us`` each.

    ``clock`` gives microseconds; without one the process's own counts. Raises ValueError where
    ``longest_us`` is above a second.
    """

    def __init__(self, longest_us: int, clock: Callable[[], int] | None) -> None:
        if longest_us > LONGEST_US:
            raise ValueError(
                f"deny_cache is {longest_us / 1_000_000:g} s; it is at most 1 s, within which what "
                "another worker gives back or resets has to be seen"
            )
        self._longest_us = longest_us
        # Read for every decision: a function of C's as it is, or that of the store's clock.
        self.now: Callable[[], int] = clock or time.monotonic_ns
        self._is_stores = clock is not None
        self._per_us = 1 if clock else 1000
        self.entries: dict[Asked, Entry] = {}
        self._checks = 0
        """Checks of all entries."""
        self._seen = 0
        """The last answer of `now`."""
        self._end = 0
        """The end of the last entry, and that of the last one with an allowed check in it."""
        self._end_of_mixed = 0
        self.changes = 0
        """Changes of counters that this process has made or may have made."""
        self._changed: dict[Asked, int] = {}
        """By counter, the place of its latest change among them; the longest unchanged first."""
        self._forgotten = 0
        """The place of the latest change that is not remembered any more."""
        self.hits = 0
        """Requests that were denied from here."""

    def now_us(self) -> int:
        """The answer of `now`, in microseconds."""
        return self.now() // self._per_us

    def find(self, checks: Sequence[Check]) -> tuple[Decision, ...] | None:
        """The decisions of a request that is still denied, counted on to now."""
        now = self.now()
        if not self._seen <= now < self._end:  # all are over, or the clock was moved back
            self.clear()
            self._seen = now
            return None
        self._seen = now
        asked = _asked(checks)
        entry = self.entries.get(asked)
        if entry is None:
            return None
        since, until, changes, told = entry
        if now >= until or self._has_changed(asked, changes):
            if self.entries.pop(asked, None) is not None:  # by another thread, if it is not there
                self._checks -= len(told)
            return None
        self.hits += 1
        passed_us = (now - since) // self._per_us
        now_us = now if self._is_stores else None
        if len(told) == 1:
            return (_later(checks[0][0], told[0], passed_us, now_us),)
        return tuple(
            [_later(checks[at][0], told[at], passed_us, now_us) for at in range(len(told))]
        )

    def learn(
        self,
        checks: Sequence[Check],
        decisions: Sequence[Decision],
        asked_at: int,
        changes: int,
    ) -> None:
        """Learns what became of a request: it is remembered, or may have changed what was.

        ``asked_at`` and ``changes`` are `now` and `changes` before it was asked.
        """
        for at, check in enumerate(checks):
            action = check[4]
            if action == _CHARGE:
                if not decisions[at][1]:
                    self.keep(checks, decisions, asked_at, changes)
                    return
            elif action != _SHADOW:
                self.changed(checks)
                return
        if self._end_of_mixed > asked_at:
            self.changed(checks)

    def keep(
        self,
        checks: Sequence[Check],
        decisions: Sequence[Decision],
        asked_at: int,
        changes: int | None = None,
    ) -> None:
        """Remembers a request, if it was denied and nothing but time can change that.

        It was decided at some instant between ``asked_at`` and now. The denial holds from the
        former on, so that it is never repeated for too long; what is told counts from the latter,
        so that nobody is told to come too early.
        """
        longest_us = self._longest_us
        denied = mixed = False
        for check, decision in zip(checks, decisions, strict=True):
            if decision.allowed or check.action == _SHADOW:
                mixed = True
            else:
                denied = True
            longest_us = min(longest_us, _steady_us(check, decision))
            if longest_us <= 0:
                return
        now = self.now()
        if not denied or now < asked_at:
            return
        if now < self._seen:
            self.clear()
        self._seen = now
        asked = _asked(checks)
        if changes is None:
            changes = self.changes
        if self._has_changed(asked, changes) or len(checks) > MOST_CHECKS:
            return
        entries = self.entries
        replaced = entries.pop(asked, None)
        self._checks += len(checks) - (0 if replaced is None else len(replaced[3]))
        while self._checks > MOST_CHECKS:
            self._checks -= len(entries.pop(next(iter(entries)))[3])
        until = asked_at + longest_us * self._per_us
        self._end = max(self._end, until)
        if mixed:
            self._end_of_mixed = max(self._end_of_mixed, until)
        # Without the limits, which may be of this request alone.
        entries[asked] = now, until, changes, tuple([decision[1:] for decision in decisions])

    def changed(self, checks: Iterable[Check]) -> None:
        """Learns that the counters of these checks may have changed; what was told of them is void.

        To be called after the change: what is asked from then on has seen it.
        """
        changed = self._changed
        for check in checks:
            counter = _asked((check,))[:3]
            changed.pop(counter, None)
            self.changes += 1
            changed[counter] = self.changes
        while len(changed) > MOST_CHANGES:
            self._forgotten = changed.pop(next(iter(changed)))

    def clear(self) -> None:
        """Forgets every denial, and those to come of what was asked before."""
        self.entries.clear()
        self._changed.clear()
        self._checks = self._end = self._end_of_mixed = 0
        self.changes += 1
        self._forgotten = self.changes

    def _has_changed(self, asked: Asked, changes: int) -> bool:
        """Whether a counter of a request has changed since there were so many changes."""
        if changes == self.changes:
            return False
        if changes < self._forgotten:
            return True
        changed = self._changed
        return any(
            changed.get(asked[at : at + 3], 0) > changes for at in range(0, len(asked), _PARTS)
        )


def _asked(checks: Sequence[Check]) -> Asked:
    if len(checks) == 1:
        limit, key, cost, rule, action, _, _ = checks[0]
        if len(key) > _LONGEST_KEY or not key.isascii():
            return limit.digest, _short(key), rule, cost, action
        return limit.digest, key, rule, cost, action
    parts: list[Any] = []
    last: str | None = None
    short: str | bytes = ""
    for limit, key, cost, rule, action, _, _ in checks:
        if key is not last:  # most often one client, under several rules
            is_long = len(key) > _LONGEST_KEY or not key.isascii()
            last, short = key, _short(key) if is_long else key
        parts += (limit.digest, short, rule, cost, action)
    return tuple(parts)


def _short(key: str) -> bytes:
    """The digest of an identity that takes much memory; bytes, so that no other is the same."""
    return identity_digest(key).encode()


def _steady_us(check: Check, decision: Decision) -> int:
    """Microseconds for which a refused check gets this decision again, but for what counts down.

    0 where that is not known, and where it refuses but a smaller cost could pass meanwhile.
    """
    if decision.degraded or check.action not in (_CHARGE, _SHADOW):
        return 0
    if decision.remaining and not decision.allowed and check.action == _CHARGE:
        return 0
    if isinstance(check.limit, Concurrency):  # a place may be given up at any moment
        return LONGEST_US if decision.allowed else 0
    return LONGEST_US if decision.level < 0 else decision.level


def _later(limit: Any, told: tuple[Any, ...], passed_us: int, now_us: int | None) -> Decision:
    """The decision after some time; ``now_us`` is the store's own, where it is known."""
    allowed, remaining, retry_us, reset_us, delay_us, at_us, level, degraded = told
    then_us = at_us + passed_us if now_us is None else now_us
    tick_us = limit.tick_us
    if tick_us > 1:
        then_us -= then_us % tick_us
    then_us = max(then_us, at_us)  # a counter may be ahead of the clock
    if level > 0:
        level -= passed_us
    if retry_us:
        retry_us = retry_us - passed_us if retry_us > passed_us else 1
    reset_us = reset_us - passed_us if reset_us > passed_us else 0
    return _new((limit, allowed, remaining, retry_us, reset_us, delay_us, then_us, level, degraded))
