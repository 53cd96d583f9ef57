"""The log lines of faults: each change once, and what answers meanwhile."""

import logging
import math
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from ratelimit.control.events import Events
from ratelimit.identity.users import is_nobody, user_id
from ratelimit.rules.rule import Rule
from ratelimit.rules.ruleset import RuleSet
from ratelimit.stores import StoreUnavailable

__all__ = ["Reports"]

_LOG: Final = logging.getLogger("ratelimit")

STEADY_AFTER: Final = 1.0
"""Seconds without a failure after which the store is back; a lost shard fails now and then."""

AGAIN_AFTER: Final = 60.0
"""Seconds after which an exception of one place is logged again."""

ONCE: Final = {
    "client-unknown": "a request came whose peer is not an IP address (%.60r); all such requests "
    "share one bucket per rule. Behind a unix socket or a test client, limit by something else, "
    "such as a header or a registered identity, or say `on_missing: skip` or `refuse`, or how many "
    "proxies stand in front (`trusted_hops`)",
    "forwarded-unread": (
        "a trusted proxy's %s is missing, is there more than once, or is not one address, so that "
        "all such requests count as the proxy's own; see that the proxy sets it, and overwrites "
        "what clients send"
    ),
    "forwarded-untrusted": "a request from %.60r says whom it was forwarded for, and is not "
    "believed, so everybody behind that address is one client. If it is a proxy of yours, write "
    "its network under `trusted_proxies`, or how many stand in front under `trusted_hops`; if it "
    "is not, nothing is amiss",
    "user-missing": "rule %.60r limits by user, but nothing has set scope['user'], so clients are "
    "counted by address. Put the middleware inside of the one that authenticates, or limit by what "
    "the request carries",
    "user-unreadable": "a rule limits by user, but cannot tell one %.60s from another, so that the "
    "user counts as missing. Give it an identity, id, pk, sub, uuid or username that is text, a "
    "whole number or a UUID, or limit by an identity that you register",
    "not-asyncio": "the event loop is not asyncio's: nothing is learnt in the background, neither "
    "switches nor changes of the rule file, nothing is shed, and only a store in process decides "
    "there (this one is a %s)",
    "reset-unsupported": "a rule forgets failures at a success (reset_on), but a %.60s does not "
    "remember which charges were failures, so they stay until they have left the window",
    "path-missing": "the route's limit %.60r names a parameter that the path of the route lacks, "
    "so clients are counted by address. Write it as the path does",
}
"""Said once each: what makes clients look like one another."""

ANSWERS: Final = "the store answers again, and limits are enforced"

MOST_TOLD: Final = 1_000
"""Places remembered; they are lines of code, and rules, so there are never as many."""

WORDS: Final = {
    "allow": "allowed",
    "deny": "refused with 503",
    "local": "counted in this process at its share",
}


class Reports:
    """The log lines of one limiter's faults."""

    def __init__(self, rules: RuleSet, events: Events | None = None) -> None:
        self.rules = rules
        self._events = events or Events()
        self.on_breaker_change: Callable[[str], None] | None = None
        """Called with "open" or "closed", once per change of the breaker."""
        self.failing: set[str] = set()
        """The kinds of failure that were told since the store last answered for a while."""
        self.failed_at = 0.0
        """The time of its last failure, monotonic seconds."""
        self._told: dict[object, float] = {}

    def fault(self, problem: Exception) -> None:
        """Logs a fault: the store's once per kind until it answers, ours once a minute per place.

        Where one key or command fails, the store answers all the while: that is said once a minute.
        """
        if isinstance(problem, StoreUnavailable):
            if problem.scope in ("key", "command", "own"):
                if problem.kind != "open":  # which was said when it was opened
                    self._failed_by_itself(problem)
                return
            self.failed_at = time.monotonic()
            if problem.kind not in self.failing:
                self.failing.add(problem.kind)
                _LOG.error(
                    "store-failed: %s; until it answers, requests are %s", problem, self.meanwhile()
                )
                self._events.happened("store-failed", str(problem))
            return
        where = problem.__traceback__
        while where is not None and where.tb_next is not None:
            where = where.tb_next
        place = (type(problem).__name__, where and (where.tb_frame.f_code, where.tb_lineno))
        now = time.monotonic()
        if now - self._told.get(place, -math.inf) >= AGAIN_AFTER:
            if len(self._told) >= MOST_TOLD:
                self._told.clear()
            self._told[place] = now
            _LOG.error(
                "limiter-failed: %s: %s; the request is treated as if the store had failed, so "
                "requests are %s (said once a minute)",
                type(problem).__name__,
                problem,
                self.meanwhile(),
                exc_info=problem,
            )

    def _failed_by_itself(self, problem: StoreUnavailable) -> None:
        """Says once a minute for each kind what fails although the store answers."""
        now = time.monotonic()
        if now - self._told.get(problem.kind, -math.inf) < AGAIN_AFTER:
            return
        self._told[problem.kind] = now
        if problem.kind == "overloaded":
            _LOG.error(
                "overloaded: %s; requests beyond that are refused with 503 (said once a minute)",
                problem,
            )
            self._events.happened("overloaded", str(problem))
        else:
            _LOG.error(
                "check-failed: %s; the checks that need it are %s, and all others are decided "
                "(said once a minute)", problem, self.meanwhile(),
            )  # fmt: skip

    def function_failed(self, whose: str, words: str, problem: Exception) -> None:
        """Says that a function of the application's failed, once a minute for each outcome."""
        now = time.monotonic()
        if now - self._told.get((whose, words), -math.inf) >= AGAIN_AFTER:
            if len(self._told) >= MOST_TOLD:
                self._told.clear()
            self._told[whose, words] = now
            _LOG.error(
                "function-failed: a function of %s failed for a request, so %s: %s: %s (said once "
                "a minute)",
                whose,
                words,
                type(problem).__name__,
                problem,
                exc_info=problem,
            )

    def not_given_back(self, problem: Exception) -> None:
        """Says once a minute that the store did not take back a charge; clients can bring it on."""
        now = time.monotonic()
        if now - self._told.get("give-back-failed", -math.inf) >= AGAIN_AFTER:
            self._told["give-back-failed"] = now
            _LOG.error(
                "give-back-failed: %s: %s; a request that was refused or has left keeps its "
                "charge, and a place in a queue passes unused (said once a minute)",
                type(problem).__name__, problem,
            )  # fmt: skip

    def once(self, code: str, about: object) -> None:
        """Says one of `ONCE`, the first time."""
        if code not in self._told:
            self._told[code] = math.inf
            _LOG.warning(f"{code}: {ONCE[code]} (said once)", about)  # ours, a constant

    def missing(
        self,
        rule: Rule,
        path_params: Mapping[str, object],
        scope: Mapping[str, Any],
        *,
        closely: bool,
    ) -> None:
        """Says, once each, that nothing has ever set what a rule counts by.

        ``closely`` looks at the user as well.
        """
        if "user" in rule.by:
            if "user" not in scope:
                self.once("user-missing", rule.name)
            elif closely:
                self.unreadable(scope["user"])
        if rule.by != ("user",):
            for part in rule.by:
                if part.startswith("path:") and part[5:] not in path_params:
                    self.once("path-missing", f"{rule.name} by {part}")

    def unreadable(self, user: object) -> None:
        """Says, once, that users of a kind cannot be told apart."""
        try:
            unreadable = user_id(user) is None and not is_nobody(user)
        except Exception:  # noqa: BLE001  # the user's own, which is told where it is asked
            return
        if unreadable:
            self.once("user-unreadable", type(user).__name__)

    def answered(self) -> None:
        """Says that the store is back, once it has been for a while."""
        if time.monotonic() - self.failed_at >= STEADY_AFTER:
            self.failing.clear()
            _LOG.warning("store-answers: %s", ANSWERS)
            self._events.happened("store-answers", ANSWERS)

    def breaker_changed(self, state: str) -> None:
        """Says that the store is not asked any more, or again."""
        if state == "open":
            _LOG.warning(
                "breaker-open: the store is not asked until it answers a probe; requests are %s",
                self.meanwhile(),
            )
        else:
            self.failing.clear()
            _LOG.warning("breaker-closed: %s", ANSWERS)
            self._events.happened("store-answers", ANSWERS)
        if self.on_breaker_change is not None:
            self.on_breaker_change(state)

    def meanwhile(self) -> str:
        """The policies that answer while the store does not, in words."""
        default = self.rules.on_store_failure
        said = WORDS[default]
        for word, meaning in WORDS.items():
            names = [
                rule.name
                for rule in self.rules.rules
                if rule.mode == "enforce" and word == rule.on_store_failure != default
            ]
            if names:
                said += f", but {meaning} by {', '.join(names)}"
        return said
