"""The numbers of a limiter as plain values for the page.

The law of this module: nothing in it names an identity but as an address or by a digest, and the
size of what it tells is bounded, however many rules and identities there are.
"""

import os
import re
import secrets
import time
from collections import Counter
from typing import Any, Final, Protocol, runtime_checkable

from ratelimit.bans import Ban
from ratelimit.decisions import Decision
from ratelimit.identity.masking import DIGEST, masked
from ratelimit.insight.metrics.fleet import FRESH_FOR, Fleet
from ratelimit.insight.metrics.readings import readings
from ratelimit.limiter.admission import DENYLIST
from ratelimit.limiter.limiter import RateLimiter
from ratelimit.limits import Limit
from ratelimit.rules.rule import Rule
from ratelimit.stores import MemoryStore, StoreUnavailable

__all__ = ["Gathered", "numbers_of", "rules_of", "state_of"]

MOST_RULES: Final = 200
"""Rules on the page, those of the rule set first."""

MOST_TEXTS: Final = 20
"""Limits of a rule that are spelled out."""

MOST_DENIED: Final = 15
"""Identities in the list of those that were refused most."""

WORKER: Final = f"{os.getpid()}-{secrets.token_hex(4)}"
"""A name for this process, so that the page sees when it is another that answers.

Workers that are forked after the import share the second half, and differ in the first.
"""

_COLUMNS: Final = {
    ("allowed", "enforce"): "passed",
    ("allowed", "shadow"): "passed",
    ("waited", "enforce"): "passed",
    ("denied", "enforce"): "refused",
    ("never", "enforce"): "refused",
    ("blocked", "enforce"): "refused",
    ("banned", "enforce"): "refused",
    ("shed", "enforce"): "refused",
    ("denied", "shadow"): "would",
    ("banned", "shadow"): "would",
    ("store-failed", "enforce"): "failed",
}
"""Results and modes of ``ratelimit.requests``, by the column that they are added up in."""

_DIGEST: Final = re.compile(rf"#[A-Za-z0-9_-]{{{DIGEST}}}")


@runtime_checkable
class Gathered(Protocol):
    """A store that knows whom all workers have refused."""

    async def denials(self, count: int = 10) -> list[tuple[str, int]]:
        """``rule identity`` of those refused most, with how often."""
        ...


def rules_of(limiter: RateLimiter) -> dict[str, Any]:
    """The rules in force, those of routes that were met among them, and how many are left out."""
    rules = list({rule.name: rule for rule in reversed(limiter.every_rule)}.values())[::-1]
    return {
        "rules": [_rule(rule) for rule in rules[:MOST_RULES]],
        "left_out": max(0, len(rules) - MOST_RULES),
    }


def _rule(rule: Rule) -> dict[str, Any]:
    groups = rule.tiers.items() if rule.tiers else [("", rule.asks)]
    found = [(f"{tier}: " if tier else "", limits) for tier, limits in groups]
    texts, worst = [], []
    for tier, limits in found:
        for limit in limits:
            texts.append(f"{tier}{_spelled(limit)}")
            per = str(limit).partition("/")[2]
            worst.append(f"{tier}{limit.worst_case} per {per}" if per else f"{tier}{limit}")
        if not limits and rule.dynamic is None:
            texts.append(f"{tier}unlimited")
            worst.append(f"{tier}unbounded")
    if rule.dynamic is not None:
        texts, worst = ["chosen by a function"], ["unknown beforehand"]
    if rule.overrides:
        texts.append(f"{len(rule.overrides)} overrides")
    share = "" if rule.enforce_share == 1 else f" {float(rule.enforce_share * 100):g}%"
    if rule.ban is not None:
        texts.append(_spelled(rule.ban))
    return {
        "name": rule.name,
        "mode": f"{rule.mode}{share}",
        "by": [part for part in rule.by if part != "global"],
        "tiers": list(rule.tiers)[:MOST_TEXTS],
        "path": rule.path or "every path",
        "limits": texts[:MOST_TEXTS],
        "worst": worst[:MOST_TEXTS],
    }


def _spelled(limit: Limit) -> str:
    if isinstance(limit, Ban):
        return f"ban {limit}"
    burst = f" burst {limit.burst}" if limit.burst not in (None, limit.quota) else ""
    return f"{limit}{burst}, {str(limit.algorithm).replace('_', ' ')}"


def numbers_of(
    limiter: RateLimiter, denied: list[tuple[str, int]] | None, fleet: Fleet | None = None
) -> dict[str, Any]:
    """The totals by rule, and the state of the store.

    ``denied`` is whom all workers have refused most; None where this process's own are told.
    The totals are those of all workers where ``fleet`` has read them of late, else this process's.
    """
    at = time.monotonic()
    shared = fleet is not None and at - fleet.read_at <= FRESH_FOR
    if fleet is not None and shared:
        # Of the moment of reading, so that a rate is never that of one reading too many.
        at, found = fleet.read_at, list(fleet.readings())
    else:
        found = list(readings(limiter))
    totals: dict[str, Counter[str]] = {}
    for metric, labels, value in found:
        if metric.name == "ratelimit.requests" and isinstance(value, int):
            rule, result, mode = labels
            totals.setdefault(rule, Counter())[_COLUMNS.get((result, mode), "other")] += value
    shown = [rule.name for rule in limiter.every_rule[:MOST_RULES]]
    everything: Counter[str] = Counter()
    for each in totals.values():
        everything.update(each)
    return {
        "worker": WORKER,
        "at": at,
        "shared": shared,
        "scope": _scope(limiter, fleet, shared=shared),
        "gauges": [("waiting for their turn", limiter.waiting)],
        "all": everything,
        "rules": {name: totals[name] for name in [*shown, DENYLIST] if name in totals},
        "whose": "this worker" if denied is None else "all workers",
        "denied": _denied(limiter.denials.busiest(MOST_DENIED) if denied is None else denied),
        "facts": _facts(limiter),
        "ok": limiter.breaker.state == "closed",
    }


def _scope(limiter: RateLimiter, fleet: Fleet | None, *, shared: bool) -> str:
    """A phrase for those whose decisions the totals are, and since when."""
    if shared:
        number = limiter.health().get("workers")
        whose = "the only worker" if number == 1 else f"all {number or 'known'} workers"
        return f"{whose}, since the store was empty"
    if fleet is not None:
        return "this worker alone, since it began: those of all are not read from the store now"
    if isinstance(limiter.store, MemoryStore):
        return "this process, since it began: counters in memory are its own"
    return "this worker alone, since it began: its store gathers no totals"


def _denied(found: list[tuple[str, int]]) -> list[dict[str, Any]]:
    rows = []
    for name, number in found[:MOST_DENIED]:
        rule, _, identity = name.partition(" ")
        # A digest is all that there is of whatever may be a secret.
        shown = identity if _DIGEST.fullmatch(identity) else masked(identity)
        rows.append({"rule": rule, "identity": shown, "number": number})
    return rows


def _facts(limiter: RateLimiter) -> list[tuple[str, str]]:
    """The health of the limiter in words."""
    health: dict[str, Any] = limiter.health()
    trip = health["round_trip_ms"]
    servers = health["servers"]
    away = [name for name, state in servers.items() if state == "open"]
    facts = [
        ("Store", health["store"]),
        ("Breaker", "open: the store is not asked" if health["breaker"] == "open" else "closed"),
        ("While the store is away", health["meanwhile"]),
        ("Last failure", str(health["last_error"] or "none")),
        ("Round trip", "unknown" if trip is None else f"{trip:g} ms"),
        ("Workers alive", str(health.get("workers", "not counted, as no rule is local"))),
        ("Banned, as known here", str(health["banned"])),
        ("Turned off", ", ".join(health["off"][:MOST_TEXTS]) or "nothing"),
        ("This worker", f"process {os.getpid()}"),
    ]
    if servers:
        facts.append(("Nodes", f"{len(servers)}, away: {', '.join(away[:MOST_TEXTS]) or 'none'}"))
    rules = health["rules"]
    if rules:
        facts.append(("Rule file", str(rules.get("file", ""))))
        mistakes = rules.get("mistakes") or ()
        facts.append(("Mistakes in a newer one", "; ".join(map(str, mistakes))[:1000] or "none"))
    return facts


async def state_of(limiter: RateLimiter, asked: Any) -> tuple[int, dict[str, Any]]:
    """The state of one identity's counters, as a status and what to say; charges nothing.

    ``asked`` is what the page sent: ``{"rule": "login", "identity": ["192.0.2.1"]}``, and ``tier``
    where the rule has some.
    """
    if not isinstance(asked, dict) or not isinstance(asked.get("identity"), list):
        return 400, {"error": "give a rule and the values of its identity"}
    tier = asked.get("tier") or None
    try:
        decisions = await limiter.peek(asked.get("rule", ""), *asked["identity"], tier=tier)
    except (ValueError, TypeError) as error:
        return 400, {"error": str(error)}
    except StoreUnavailable as error:
        return 503, {"error": f"the store gives no answer ({error.kind})"}
    return 200, {
        "counters": [
            {
                "limit": _spelled(each.limit),
                "state": _state(each),
                "remaining": str(each.remaining),
                "reset": f"{each.reset_after:.1f} s",
            }
            for each in decisions
        ]
    }


def _state(decision: Decision) -> str:
    if decision.allowed:
        return "open"
    return "banned" if isinstance(decision.limit, Ban) else "blocked"
