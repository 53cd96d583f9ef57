"""What was denied a moment ago is denied again without a round trip: a flood is cheapest for us.

A denial holds until its `retry_after` at the latest: nothing but time, and what this cache is told
of, gives capacity back sooner.
"""

import time
from collections.abc import Callable, Sequence
from typing import Final

from ratelimit.decisions import Action, Check, Decision

__all__ = ["DenyCache"]

MOST_ENTRIES: Final = 10_000  # requests remembered; about 1 kB each


class DenyCache:
    """Denied requests, by all of their checks and costs, for at most ``longest_us`` each.

    Where a rule's charges are given back, its capacity returns in ways that other processes do
    not see; the first give-back of a rule turns the cache off for it.
    """

    def __init__(self, longest_us: int, clock: Callable[[], int] | None) -> None:
        self._longest_us = longest_us
        # Read for every decision: a function of C's as it is, or that of the store's clock.
        self.now: Callable[[], int] = clock or time.monotonic_ns
        self._per_us = 1 if clock else 1000
        self.entries: dict[tuple[Check, ...], tuple[int, int, tuple[Decision, ...]]] = {}
        """When it was answered, until when it holds (as `now` tells it), and what was answered."""
        self._returning: set[tuple[str, str]] = set()
        self.hits = 0
        """Requests that were denied from here."""

    def find(self, checks: tuple[Check, ...]) -> tuple[Decision, ...] | None:
        """The decisions of a request that is still denied, counted on to now."""
        entry = self.entries.get(checks)
        if entry is None:
            return None
        since, until, decisions = entry
        now = self.now()
        if not since <= now < until:  # over, or the clock was moved back
            del self.entries[checks]
            return None
        self.hits += 1
        passed_us = (now - since) // self._per_us
        return tuple([_later(decision, passed_us) for decision in decisions])

    def keep(self, checks: tuple[Check, ...], decisions: tuple[Decision, ...], asked: int) -> None:
        """Remembers a request, if it was denied and nothing but time can change that.

        It was decided at some instant between ``asked`` and now. The denial holds from the
        former on, so that it is never repeated for too long; what is told counts from the latter,
        so that nobody is told to come too early.
        """
        longest_us = self._longest_us
        denied = False
        for check, decision in zip(checks, decisions, strict=True):
            if check.action == Action.CHARGE:
                if not decision.allowed:
                    denied = True
                    retry_us = decision.retry_after_us
                    if retry_us is not None:
                        longest_us = min(longest_us, retry_us)
            elif check.action != Action.SHADOW:
                return
            if (check.rule, check.limit.digest) in self._returning:
                return
        if denied:
            now = self.now()
            while len(self.entries) >= MOST_ENTRIES:
                del self.entries[next(iter(self.entries))]
            self.entries[checks] = now, asked + longest_us * self._per_us, decisions

    def returned(self, checks: Sequence[Check]) -> None:
        """Learns that these rules give back; forgets all, since any of it may be of theirs."""
        for check in checks:
            if check.action == Action.GIVE_BACK:
                self._returning.add((check.rule, check.limit.digest))
                self.entries.clear()
        if len(self._returning) > MOST_ENTRIES:  # dynamic limits; then nothing is cached at all
            self._longest_us = 0

    def clear(self) -> None:
        """Forgets every denial."""
        self.entries.clear()


def _later(decision: Decision, passed_us: int) -> Decision:
    limit, allowed, remaining, retry_us, reset_us, delay_us, at_us, level, degraded = decision
    return Decision(
        limit,
        allowed,
        remaining,
        retry_us and max(1, retry_us - passed_us),
        max(0, reset_us - passed_us),
        delay_us,
        at_us and at_us + passed_us,
        level,
        degraded,
    )
