"""Decisions to header fields, and the refusal that they come to.

A dialect writes the fields. The default one is draft-ietf-httpapi-ratelimit-headers-11 (a work in
progress), by hand: two lists of strings with integer parameters (RFC 9651).
"""

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from random import randrange
from typing import Final, NamedTuple

from ratelimit.concurrency import Concurrency
from ratelimit.decisions import Decision
from ratelimit.limits import Algorithm, Limit
from ratelimit.responses.problems import (
    Field,
    Refusal,
    Refused,
    blocked,
    forbid,
    problem,
    unavailable,
    unidentified,
)
from ratelimit.responses.told import Dialect, Told, binding_of, new_told
from ratelimit.responses.vendors import anthropic, hints, openai
from ratelimit.rules.units import Policy

__all__ = [
    "DIALECTS",
    "USUAL",
    "Dialect",
    "Field",
    "Policies",
    "RateLimitExceeded",
    "Refusal",
    "Refused",
    "Told",
    "banned",
    "blocked",
    "drafted",
    "fields",
    "forbid",
    "new_told",
    "policies_of",
    "refuse",
    "unavailable",
    "unidentified",
]

QUOTA_EXCEEDED: Final = "https://iana.org/assignments/http-problem-types#quota-exceeded"
ABNORMAL_USAGE: Final = "https://iana.org/assignments/http-problem-types#abnormal-usage-detected"
NEVER: Final = "urn:ratelimit-asgi:problem:cost-exceeds-limit"

_LARGEST: Final = 999_999_999_999_999  # RFC 9651 3.3.1, integers
USUAL: Final = ("draft",)
"""The dialects where none are chosen."""
_FIXED_WINDOW: Final = Algorithm.FIXED_WINDOW  # an enum is slow to look up
_LOG: Final = logging.getLogger("ratelimit")


class RateLimitExceeded(Refused):
    """A route's limit refused the request: status 429, with its ``headers`` and ``decisions``.

    ``told`` pairs each enforced decision with the name of its policy; ``dialects`` are those that
    write the header fields, by name or as functions. ``refusal`` is the answer, where it has been
    made already. A store that failed is not this: it gives a 503 of another class.
    """

    def __init__(
        self,
        told: Iterable[Told] = (),
        dialects: Sequence[str | Dialect] = ("draft",),
        *,
        refusal: Refusal | None = None,
    ) -> None:
        self.told = tuple(told)
        self.decisions = tuple(decision for _, decision in self.told)
        super().__init__(refuse(self.told, dialects) if refusal is None else refusal)


def fields(told: Sequence[Told], dialects: Sequence[str | Dialect]) -> list[Field]:
    """The rate-limit fields of a response, dialect by dialect; none where nothing was decided.

    A dialect of the application's that raises, or gives anything but pairs of bytes, is logged,
    and its fields are left out. Raises ValueError for a name that is no dialect.
    """
    if not told:
        return []
    binding = told[0] if len(told) == 1 else binding_of(told)
    found: list[Field] = []
    for dialect in dialects:
        if isinstance(dialect, str):
            if dialect not in DIALECTS:
                raise ValueError(f"no dialect {dialect!r}; there are {', '.join(DIALECTS)}")
            found += DIALECTS[dialect](told, binding)
            continue
        try:
            # A server fails on anything but bytes, and with it the response.
            found += [(b"" + name, b"" + value) for name, value in dialect(told, binding)]
        except Exception:  # noqa: BLE001  # a fault of what is told is none of the application
            _LOG.exception("dialect-failed: %r failed; its fields are left out", dialect)
    return found


def draft(told: Sequence[Told], binding: Told) -> list[Field]:
    """RateLimit-Policy, every policy, the binding one first; RateLimit, the binding one's state.

    draft-ietf-httpapi-ratelimit-headers-11. `t` is `Retry-After` where denied, and the window's
    end for a fixed window; elsewhere it is left out, since the quota comes back bit by bit.
    """
    return drafted(policies_of(told, binding), binding.decision)


def drafted(written: "Policies", decision: Decision) -> list[Field]:
    """The fields of `draft` under policies that were written before."""
    # By number, since names are slow to look up.
    remaining = decision[2]
    if remaining > _LARGEST:  # noqa: PLR1730  # min is a call more
        remaining = _LARGEST
    until_us = decision[3]
    if decision[1]:
        until_us = decision[4] if decision[0].algorithm is _FIXED_WINDOW else None
    if until_us:
        state = written.timed % (remaining, -(-until_us // 1_000_000))
    else:
        state = written.state % remaining
    return [written.draft, (b"ratelimit", state)]


def legacy(_: Sequence[Told], binding: Told) -> list[Field]:
    """X-RateLimit-Limit, -Remaining and -Reset of the binding policy; the last in epoch seconds."""
    decision = binding.decision
    now_us = decision.at_us or time.time_ns() // 1000
    return [
        (b"x-ratelimit-limit", b"%d" % decision.limit.quota),
        (b"x-ratelimit-remaining", b"%d" % decision.remaining),
        (b"x-ratelimit-reset", b"%d" % _whole_seconds(now_us + decision.reset_after_us)),
    ]


def draft_03(told: Sequence[Told], binding: Told) -> list[Field]:
    """RateLimit-Limit, -Remaining and -Reset, as the IETF's drafts 00 to 03 had them.

    The first is the quota of the binding policy, then every policy with its window. The last is
    in seconds from now: `Retry-After` where denied, else until the key is as if never used.
    """
    decision = binding.decision
    reset_us = decision.reset_after_us
    if not decision.allowed and decision.retry_after_us is not None:
        reset_us = decision.retry_after_us
    return [
        (b"ratelimit-limit", policies_of(told, binding).draft_03),
        (b"ratelimit-remaining", b"%d" % min(decision.remaining, _LARGEST)),
        (b"ratelimit-reset", b"%d" % _whole_seconds(reset_us)),
    ]


DIALECTS: Final[Mapping[str, Dialect]] = {
    "draft": draft,
    "legacy": legacy,
    "draft-03": draft_03,
    "openai": openai,
    "anthropic": anthropic,
}
"""Dialects by the names under which rules choose them."""


class Policies(NamedTuple):
    """The parts that all responses under the same policies share."""

    draft: Field
    draft_03: bytes
    state: bytes
    timed: bytes
    """In the newest draft, the binding one's state, to be filled with what is left (and when)."""


_WRITTEN: Final[dict[tuple[str, ...], Policies]] = {}
_MOST_WRITTEN: Final = 4_096  # policies; a response may be under many


def policies_of(told: Sequence[Told], binding: Told) -> Policies:
    """The parts of a response's fields that are the same under the same policies."""
    # By the limits' digests: text keeps its hash, and a Limit's own is a call.
    names = [binding[0], binding[1][0].digest]
    for policy, decision in told if len(told) > 1 else ():
        names += policy, decision[0].digest
    for policy, _ in told:
        if type(policy) is not str and isinstance(policy, Policy):  # as it is equal to its text
            names.append(policy.unit)
    written = _WRITTEN.get(tuple(names))
    if written is None:
        if len(_WRITTEN) * len(told) >= _MOST_WRITTEN:  # dynamic limits may come without end
            _WRITTEN.clear()
        written = _WRITTEN[tuple(names)] = _write(told, binding)
    return written


def _write(told: Sequence[Told], binding: Told) -> Policies:
    policies = {binding.policy: binding.decision.limit}
    for policy, decision in told:
        policies.setdefault(policy, decision.limit)
    items = {name: _quota_and_window(each) for name, each in policies.items()}
    with_windows = [item for item in items.values() if ";w=" in item]  # draft-03 has no others
    units: dict[str, str] = {
        name: f';qu="{name.unit}"' for name in policies if isinstance(name, Policy)
    }
    of_draft = [f'"{name}";q={item}{units.get(name, "")}' for name, item in items.items()]
    quota = min(binding.decision.limit.quota, _LARGEST)
    return Policies(
        (
            b"ratelimit-policy",
            ", ".join(of_draft).encode(),
        ),
        ", ".join([str(quota), *with_windows]).encode(),
        f'"{binding.policy}";r=%d'.encode(),
        f'"{binding.policy}";r=%d;t=%d'.encode(),
    )


def _quota_and_window(limit: Limit) -> str:
    """A quota and its window, which is left out where it is not a whole number of seconds.

    A concurrency has none, and says what its quota counts.
    """
    if isinstance(limit, Concurrency):
        return f'{limit.quota};qu="concurrent-requests"'
    seconds, rest = divmod(limit.window_us, 1_000_000)
    return f"{min(limit.quota, _LARGEST)}" + ("" if rest else f";w={seconds}")


def _whole_seconds(us: int) -> int:
    return -(-us // 1_000_000)


def refuse(
    told: Sequence[Told],
    dialects: Sequence[str | Dialect],
    jitter_us: int = 0,
    *,
    hinted: bool = False,
) -> Refusal:
    """429: with `Retry-After`, the longest of all refusing limits; without it where it is never.

    From 0 to ``jitter_us`` microseconds are added by chance to what every field tells of when, so
    that clients who are refused together do not come back together. ``hinted`` adds
    ``retry-after-ms``, or ``x-should-retry: false`` where it is never.
    """
    if jitter_us:
        told = _later(told, randrange(jitter_us + 1))  # noqa: S311  # it spreads, it hides nothing
    violated = [each for each in told if not each.decision.allowed]
    names = [policy for policy, _ in violated]
    waits = [decision.retry_after_us for _, decision in violated]
    extra = fields(told, dialects)
    if hinted and violated:
        extra = [*hints(None if None in waits else max(filter(None, waits), default=0)), *extra]
    if None in waits:
        never = [each for each in violated if each.decision.retry_after_us is None]
        return too_costly(min(each.decision.limit.capacity for each in never), names, extra)
    seconds = max((_whole_seconds(us) for us in waits if us is not None), default=0)
    retry = [(b"retry-after", b"%d" % seconds)] if violated else []
    again = f"; try again in {_in_words(seconds)}" if violated else ""
    what = "The quota is used up"
    if violated and all(isinstance(each.decision.limit, Concurrency) for each in violated):
        what = "Too many requests are under way at once"
    return problem(
        429,
        QUOTA_EXCEEDED,
        "Too Many Requests",
        f"{what}{again}.",
        [*retry, *extra],
        {"violated-policies": names},
    )


def banned(rules: Sequence[str], left_us: int, jitter_us: int = 0) -> Refusal:
    """429: who asks was refused too often; with what is left of the ban as `Retry-After`."""
    if jitter_us:
        left_us += randrange(jitter_us + 1)  # noqa: S311  # as above
    seconds = _whole_seconds(left_us)
    return problem(
        429,
        ABNORMAL_USAGE,
        "Abnormal Usage Detected",
        f"Too many requests were refused; try again in {_in_words(seconds)}.",
        [(b"retry-after", b"%d" % seconds)],
        {"violated-policies": list(rules)},
    )


def too_costly(
    most: int, policies: Sequence[str], extra: Sequence[tuple[bytes, bytes]] = ()
) -> Refusal:
    """429 without `Retry-After`: the cost is above ``most``, which can pass at once."""
    return problem(
        429,
        NEVER,
        "Cost Exceeds Limit",
        f"This request costs more than the limit can ever allow at once, which is {most}.",
        extra,
        {"violated-policies": list(policies)},
    )


def _later(told: Sequence[Told], by_us: int) -> list[Told]:
    """The decisions as told if every refusal that ends took so much longer."""
    return [
        Told(
            policy,
            it
            if it.allowed or it.retry_after_us is None
            else it._replace(
                retry_after_us=it.retry_after_us + by_us, reset_after_us=it.reset_after_us + by_us
            ),
        )
        for policy, it in told
    ]


def _in_words(seconds: int) -> str:
    """A wait as people say it, rounded up, so that it is never too short."""
    for unit, length in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{-(-seconds // length)} {unit}"
    return f"{seconds} second{'' if seconds == 1 else 's'}"
