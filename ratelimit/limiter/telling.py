"""Refusals as events, one for each rule that refuses a request.

The law of this module: whatever fails in here, a refused request stays refused.
"""

import logging
from collections.abc import Iterable
from functools import partial
from typing import Final

from ratelimit.control.events import Event, Events, Kind
from ratelimit.decisions import Action, Check, Decision
from ratelimit.limiter.admission import Admission
from ratelimit.limiter.checks import TurnedAway

__all__ = ["path_of", "tell_blocked", "tell_refused"]

_LOG: Final = logging.getLogger("ratelimit")
_SHADOW: Final = int(Action.SHADOW)


def tell_refused(
    events: Events,
    admission: Admission,
    found: Iterable[tuple[str, Check, str, Decision]],
) -> None:
    """Tells of the rules that refuse, or would in earnest: by rule, check, policy and decision."""
    if not events.wanted:
        return
    try:
        last: dict[str, tuple[str, Check, str, Decision]] = {}
        for each in found:
            _, check, _, decision = each
            if not decision.allowed:
                before = last.get(check.rule)
                if before is None or _ends(decision) > _ends(before[3]):
                    last[check.rule] = each
        for rule, check, policy, decision in last.values():
            shadow = check.action == _SHADOW
            kind: Kind = "never" if decision.retry_after_us is None else "denied"
            events.refused(
                Event(
                    "shadow-denied" if shadow else kind,
                    rule,
                    policy,
                    "shadow" if shadow else "enforce",
                    check.key,
                    partial(path_of, admission, rule),
                    decision.retry_after,
                )
            )
    except Exception:  # noqa: BLE001  # the law of this module
        _LOG.exception("event-lost: a refusal could not be told of; it stands")


def tell_blocked(events: Events, admission: Admission, turned: TurnedAway) -> None:
    """Tells of a request that was turned away without being counted."""
    if not events.wanted:
        return
    try:
        kind: Kind = "blocked" if turned.refusal.status == 403 else "never"
        mode = "enforce" if turned.rule else ""
        path = partial(path_of, admission, turned.rule)
        events.refused(Event(kind, turned.rule, "", mode, turned.identity, path))
    except Exception:  # noqa: BLE001  # the law of this module
        _LOG.exception("event-lost: a refusal could not be told of; it stands")


def _ends(decision: Decision) -> float:
    return float("inf") if decision.retry_after_us is None else decision.retry_after_us


def path_of(admission: Admission, name: str) -> str | None:
    """The template of the route, where somebody knows a router; else the path of the rule."""
    template = admission.template()
    if template is not None:
        return template
    asked = (rule for _, matching in admission.decided for rule, _ in matching)
    return next((rule.path for rule in asked if rule.name == name), None)
