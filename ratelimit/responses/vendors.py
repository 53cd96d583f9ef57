"""The dialects of the vendors of language models, as their clients read them.

Each has fields for requests and for tokens, by the unit of a policy; of several policies of a unit,
the binding one is told. A policy of any other unit has no field in them.
"""

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

from ratelimit.decisions import Decision
from ratelimit.responses.problems import Field, Refusal
from ratelimit.responses.told import Told, binding_of
from ratelimit.rules.units import REQUESTS, unit_of

__all__ = ["anthropic", "hints", "in_vain", "openai"]

TOKENS: Final = "tokens"
PARTS: Final = ("input-tokens", "output-tokens")
"""Units that are tokens as well, where a dialect tells these all together."""


def openai(told: Sequence[Told], _: Told) -> list[Field]:
    """X-RateLimit-Limit, -Remaining and -Reset, each -Requests and -Tokens.

    The last is the time until the key is as if never used, as Go writes durations: ``9ms``,
    ``6m0s``; rounded up to milliseconds. Budgets of input and output tokens are told as tokens.
    """
    found: list[Field] = []
    for unit, decision in _by_unit(told, parts=False):
        found += (
            (b"x-ratelimit-limit-" + unit, b"%d" % decision.limit.quota),
            (b"x-ratelimit-remaining-" + unit, b"%d" % decision.remaining),
            (b"x-ratelimit-reset-" + unit, as_go(decision.reset_after_us).encode()),
        )
    return found


def anthropic(told: Sequence[Told], _: Told) -> list[Field]:
    """Anthropic-RateLimit-Requests, -Tokens, -Input-Tokens and -Output-Tokens.

    Of each -Limit, -Remaining and -Reset; the last is when the key is as if never used, as RFC
    3339 writes times, rounded up to seconds. -Tokens is the binding one of all budgets of tokens.
    """
    found: list[Field] = []
    for unit, decision in _by_unit(told, parts=True):
        now_us = decision.at_us or time.time_ns() // 1_000
        seconds = -(-(now_us + decision.reset_after_us) // 1_000_000)
        start = b"anthropic-ratelimit-" + unit
        found += (
            (start + b"-limit", b"%d" % decision.limit.quota),
            (start + b"-remaining", b"%d" % decision.remaining),
            (start + b"-reset", f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%XZ}".encode()),
        )
    return found


def hints(retry_after_us: int | None) -> list[Field]:
    """Fields that clients of models read beside `Retry-After`; None where it can never pass.

    ``retry-after-ms`` is the same instant in milliseconds, rounded up; ``x-should-retry: false``
    keeps a client from coming again in vain.
    """
    if retry_after_us is None:
        return [(b"x-should-retry", b"false")]
    return [(b"retry-after-ms", b"%d" % -(-retry_after_us // 1_000))]


def in_vain(refusal: Refusal) -> Refusal:
    """A 429 that is not to be tried again, hinted as such; a refusal of any other status as is."""
    if refusal.status != 429:
        return refusal
    return refusal._replace(headers=[*refusal.headers, *hints(None)])


def _by_unit(told: Sequence[Told], *, parts: bool) -> list[tuple[bytes, Decision]]:
    """The units that have fields, with the binding decision of each."""
    units: dict[str, list[Told]] = {}
    for each in told:
        unit = unit_of(each.policy)
        if unit in PARTS:
            units.setdefault(TOKENS, []).append(each)
        units.setdefault(unit, []).append(each)
    wanted = (REQUESTS, TOKENS, *(PARTS if parts else ()))
    return [(unit.encode(), binding_of(units[unit]).decision) for unit in wanted if unit in units]


def as_go(us: int) -> str:
    """A duration as Go writes it, rounded up to milliseconds: ``0s``, ``9ms``, ``6m1.5s``."""
    ms = -(-us // 1_000)
    if 0 < ms < 1_000:
        return f"{ms}ms"
    minutes, ms = divmod(ms, 60_000)
    hours, minutes = divmod(minutes, 60)
    seconds = f"{ms // 1_000}.{ms % 1_000:03}".rstrip("0").rstrip(".")
    if hours:
        return f"{hours}h{minutes}m{seconds}s"
    return f"{minutes}m{seconds}s" if minutes else f"{seconds}s"
