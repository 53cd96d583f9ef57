"""Requests that are shed while this process has more of them than it can serve.

The law of this module: whatever goes wrong in here, a request is of normal priority, and is shed or
let in by that. `ratelimit.control.shedding` has the control, and `ratelimit.runtime.lateness`
measures what it goes by.
"""

import logging
import os
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from hashlib import blake2b
from random import randrange
from time import monotonic
from typing import Any, Final

from ratelimit.control.events import Event, Events
from ratelimit.control.shedding import Control, level_of
from ratelimit.identity.users import user_id
from ratelimit.limiter.admission import Admission
from ratelimit.limiter.checks import Request
from ratelimit.responses.problems import shed as shed_refusal
from ratelimit.rules.matching import Index, Matching
from ratelimit.rules.rule import Rule
from ratelimit.rules.shed import PRIORITIES, Shed
from ratelimit.runtime.lateness import Lateness

__all__ = ["Shedder", "salt_of"]

_LOG: Final = logging.getLogger("ratelimit")

NORMAL: Final = PRIORITIES.index("normal")

LONGEST_RETRY: Final = 5
"""Seconds after which a shed request may come again, at most; at least 1, by chance."""

AGAIN_AFTER: Final = 60.0
"""Seconds after which it is said again that requests are shed."""

HOUR: Final = 3600


def salt_of(secrets: str | Iterable[str], store: str) -> bytes:
    """The text that orders identities, alike in all workers of a deployment.

    Of the first secret, else of the URI of the store that they share, with the password in it;
    where they share neither, each has one of its own, since nothing else is alike in them and
    unknown to clients.
    """
    secret = secrets if isinstance(secrets, str) else next(iter(secrets), "")
    text = secret or ("" if store == "memory://" else store)
    if not text:
        return os.urandom(32)
    return blake2b(text.encode(), digest_size=32, person=b"ratelimit shed").digest()


class Shedder:
    """Sheds the requests of one limiter.

    ``counts`` are its requests by rule and outcome, ``shed`` those that were shed, by priority and
    outcome ("shed" or "shadow-shed").
    """

    def __init__(
        self,
        config: Shed,
        salt: bytes,
        events: Events,
        counts: Counter[tuple[str, str]],
        shed: Counter[tuple[str, str]],
    ) -> None:
        self.config = config
        self.control: Final = Control(config.lag_us / 1_000_000)
        self.watching = True
        """Whether requests are to be asked about: something was late lately, or is not known."""
        self._salt = salt
        self._events = events
        self._counts = counts
        self._shed = shed
        self._lateness = Lateness(self.sample)
        self._pressed_at = 0.0
        self._shedding = False
        self._said_at = 0.0
        self._said: Counter[tuple[str, str]] = Counter()
        """The requests shed, when that was last said."""

    def run(self) -> None:
        """Begins to measure in this event loop, if it does not already."""
        self._lateness.run()
        self.watching = self.control.watching

    def stop(self) -> None:
        """Ends in this event loop; a request begins it again."""
        self._lateness.stop()
        self.watching = True

    def end(self) -> None:
        """Ends in every event loop, for good."""
        self._lateness.end()

    def sample(self, now: float, late: float) -> None:
        """Takes a sample, in seconds: when it was taken, and how late this process was."""
        judged = self.control.sample(now, late)
        self.watching = self.control.watching
        if judged:
            self._say(now)

    async def refuses(
        self, admission: Admission, request: Request, matching: Matching, index: Index
    ) -> bool:
        """Whether a request is shed, which its admission then tells; asked once for a request."""
        if admission.kept:
            return False
        admission.kept = True
        self.run()  # the event loop may be another one
        control = self.control
        if not control.watching:
            return False
        now = monotonic()
        late = now - self._lateness.due
        if late > control.lag < now - self._pressed_at:
            # The next sample is still to come, behind this request and others.
            self._pressed_at = now
            control.press(late)
        elif control.shedding and now - self._pressed_at > control.lag / 2:
            # Between two samples the queue for threads may grow by more than a lag.
            self._pressed_at = now
            if foretold := self._lateness.foretold():
                control.press(foretold)
        route = admission.route
        if route is not None and route.is_exempt:
            return False
        rules = _in_force([rule for rule, _ in matching], index)
        on_route = () if route is None else route.rules
        priority = await _priority([*rules, *on_route], request)
        if priority == 0:
            return False
        identity = _identity(rules, request)
        level = level_of(priority, identity, int(time.time() // HOUR), self._salt)
        if control.admits(level):
            return False
        return self._refuse(admission, rules, PRIORITIES[priority], identity)

    def _refuse(
        self, admission: Admission, rules: Sequence[Rule], priority: str, identity: str | None
    ) -> bool:
        enforced = self.config.mode == "enforce"
        self._shed[priority, "shed" if enforced else "shadow-shed"] += 1
        seconds = randrange(1, LONGEST_RETRY + 1)  # noqa: S311  # so that not all come at once
        if self._events.wanted:
            share = f"{priority} at an admitted share of {self.control.share:.0%}"
            where = partial(_path, admission, rules)
            name, mode = rules[0].name if rules else "", self.config.mode
            event = Event("shed", name, "", mode, identity or "", where, seconds, share)
            self._events.refused(event)
        if enforced:
            for rule in rules:
                self._counts[rule.name, "shed"] += 1
            admission.refuse(shed_refusal(seconds))
        return enforced

    def health(self) -> dict[str, Any]:
        """The state of it, as plain values."""
        control = self.control
        return {
            "mode": self.config.mode,
            "lag_ms": round(control.late * 1000, 1),
            "share": round(control.share, 3),
            "level": int(control.ceiling),
            "shed": self._by_priority(self._shed),
        }

    @staticmethod
    def _by_priority(shed: Counter[tuple[str, str]]) -> dict[str, int]:
        numbers = {each: shed[each, "shed"] + shed[each, "shadow-shed"] for each in PRIORITIES}
        return {priority: number for priority, number in numbers.items() if number}

    def _say(self, now: float) -> None:
        """Says that requests begin to be shed, once a minute which, and when it is over."""
        control = self.control
        begins = control.shedding and not self._shedding
        ends = self._shedding and not control.shedding
        if not (begins or ends or (self._shedding and now - self._said_at >= AGAIN_AFTER)):
            return
        new = self._by_priority(self._shed - self._said)
        words = ", ".join(f"{number} {priority}" for priority, number in new.items()) or "none"
        shed = "shed" if self.config.mode == "enforce" else "would have been shed"
        if begins:
            _LOG.warning(
                "shedding: requests begin %.0f ms late, above the lag of %.0f ms; the lowest "
                "priorities are %s until they do not (admitted share %.0f %%, level %d of 500)",
                control.late * 1000, control.lag * 1000, shed, control.share * 100,
                control.ceiling,
            )  # fmt: skip
        elif ends:
            _LOG.warning("shedding-ended: requests begin in time again; %s: %s", shed, words)
        else:
            _LOG.warning(
                "shedding: requests begin %.0f ms late; %s in the last minute: %s (admitted share "
                "%.0f %%, level %d of 500)",
                control.late * 1000, shed, words, control.share * 100, control.ceiling,
            )  # fmt: skip
        self._shedding, self._said_at, self._said = control.shedding, now, self._shed.copy()


def _path(admission: Admission, rules: Sequence[Rule]) -> str | None:
    """The template of the route, where somebody knows a router; else the path of a rule."""
    template = admission.template()
    return template or next((rule.path for rule in rules if rule.path is not None), None)


def _in_force(rules: list[Rule], index: Index) -> list[Rule]:
    """The rules without those that others replace."""
    if not index.order:
        return rules
    replaced: set[str] = set()
    for rule in sorted(rules, key=lambda rule: index.order.get(rule.name, 0)):
        if rule.name not in replaced and rule.mode == "enforce":
            replaced.update(index.replaced_by(rule, known=not rule.is_chosen))
    return [rule for rule in rules if rule.name not in replaced]


async def _priority(rules: Sequence[Rule], request: Request) -> int:
    """The highest priority that a rule gives the request, by its place in `PRIORITIES`."""
    found = [
        PRIORITIES.index(given)
        for rule in rules
        if rule.priority is not None and (given := await _given(rule, request)) is not None
    ]
    return min(found, default=NORMAL)


async def _given(rule: Rule, request: Request) -> Any:
    """The priority that a rule gives the request; None where it has no say."""
    given: Any = rule.priority
    if given in PRIORITIES:
        return given
    try:
        ask = request.registered.priorities[given] if isinstance(given, str) else given
        answer = await request.told(ask)
        if answer is not None and answer not in PRIORITIES:
            raise ValueError(f"a priority is {', '.join(PRIORITIES)} or None, not {answer!r:.60}")
    except Exception as problem:  # noqa: BLE001  # a client may have made it fail
        request.failed(f"rule {rule.name!r}", "it is of normal priority", problem)
        return "normal"
    return answer


def _identity(rules: Sequence[Rule], request: Request) -> str | None:
    """The user where a rule counts by it, else the address: nothing that a client can choose.

    An API key in a header says nothing before somebody has looked at it.
    """
    if any("user" in rule.by for rule in rules):
        try:
            user = user_id(request.scope.get("user"))
        except Exception:  # noqa: BLE001  # an object of the application's; whoever counts by it tells
            user = None
        if user is not None:
            return f"user={user}"
    return None if request.client is None else request.client.key
