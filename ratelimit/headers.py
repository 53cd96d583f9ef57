"""What the client is told: decisions to header fields, and to the body of a refusal.

Fields are those of draft-ietf-httpapi-ratelimit-headers-11 (a work in progress), written by hand:
two lists of strings with integer parameters (RFC 9651). Bodies are RFC 9457 problem details.
"""

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, Literal, NamedTuple

from starlette.exceptions import HTTPException
from starlette.responses import Response

from ratelimit.decisions import Decision
from ratelimit.limits import Algorithm, Limit

__all__ = ["Dialect", "RateLimitExceeded", "Refusal", "Refused", "Told", "fields", "refuse"]

Dialect = Literal["draft", "legacy"]
Field = tuple[bytes, bytes]

_LARGEST: Final = 999_999_999_999_999  # RFC 9651 3.3.1, integers

QUOTA_EXCEEDED: Final = "https://iana.org/assignments/http-problem-types#quota-exceeded"
NEVER: Final = "urn:ratelimit-asgi:problem:cost-exceeds-limit"
FORBIDDEN: Final = "urn:ratelimit-asgi:problem:address-denied"
STORE_UNAVAILABLE: Final = "urn:ratelimit-asgi:problem:store-unavailable"


class Told(NamedTuple):
    """One enforced check as a client sees it."""

    policy: str
    decision: Decision


class Refusal(NamedTuple):
    """A whole answer: a status, header fields in lower case, and a problem as JSON."""

    status: int
    headers: list[Field]
    body: bytes
    title: str

    def response(self) -> Response:
        """The same as a Starlette response."""
        response = Response(self.body, self.status)
        response.raw_headers = list(self.headers)
        return response


class Refused(HTTPException):
    """A route's limit did not let the request pass; carries the whole answer as ``refusal``.

    Where the application does not handle it, the client gets the answer that the middleware gives.
    """

    def __init__(self, refusal: Refusal) -> None:
        self.refusal = refusal
        super().__init__(
            refusal.status,
            refusal.title,
            {
                name.decode("latin-1"): value.decode("latin-1")
                for name, value in refusal.headers
                if name not in (b"content-type", b"content-length")
            },
        )


class RateLimitExceeded(Refused):
    """A route's limit refused the request: status 429, with its ``headers`` and ``decisions``.

    ``told`` pairs each enforced decision with the name of its policy; ``dialects`` are the header
    dialects to write. A store that failed is not this: it gives a 503 of another class.
    """

    def __init__(self, told: Iterable[Told] = (), dialects: Sequence[Dialect] = ("draft",)) -> None:
        self.told = tuple(told)
        self.decisions = tuple(decision for _, decision in self.told)
        super().__init__(refuse(self.told, dialects))


def fields(told: Sequence[Told], dialects: Sequence[Dialect]) -> list[Field]:
    """The rate-limit fields of a response, allowed or denied; none where nothing was decided.

    `RateLimit-Policy` names every policy, the binding one first; `RateLimit` gives the binding
    one's state: the refusing one with the longest wait, else the one with least left.
    """
    if not told or not dialects:
        return []
    binding = told[0] if len(told) == 1 else min(told, key=_slack)
    policy, decision = binding
    remaining = min(decision.remaining, _LARGEST)
    found: list[Field] = []
    if "draft" in dialects:
        items = [_policy_item(policy, decision.limit)]
        items += [_policy_item(other, it.limit) for other, it in told if other != policy]
        effective = _effective_window(decision)
        state = f'"{policy}";r={remaining}' + ("" if effective is None else f";t={effective}")
        found += [
            (b"ratelimit-policy", ", ".join(items).encode()),
            (b"ratelimit", state.encode()),
        ]
    if "legacy" in dialects:
        now_us = decision.at_us or time.time_ns() // 1000
        found += [
            (b"x-ratelimit-limit", b"%d" % decision.limit.quota),
            (b"x-ratelimit-remaining", b"%d" % remaining),
            (b"x-ratelimit-reset", b"%d" % _whole_seconds(now_us + decision.reset_after_us)),
        ]
    return found


def _slack(told: Told) -> tuple[bool, float, int]:
    decision = told.decision
    if decision.allowed:
        return True, 0, decision.remaining
    retry = decision.retry_after_us
    return False, float("-inf") if retry is None else -retry, 0


@lru_cache(maxsize=4096)
def _policy_item(policy: str, limit: Limit) -> str:
    """A policy; its window only in whole seconds, since the draft knows no others."""
    seconds, rest = divmod(limit.window_us, 1_000_000)
    window = f";w={seconds}" if not rest else ""
    return f'"{policy}";q={min(limit.quota, _LARGEST)}{window}'


def _effective_window(decision: Decision) -> int | None:
    """`t`, in seconds: until the retry where denied, until the end of a fixed window."""
    if not decision.allowed:
        retry = decision.retry_after_us
        return None if retry is None else _whole_seconds(retry)
    if decision.limit.algorithm is Algorithm.FIXED_WINDOW and decision.reset_after_us:
        return _whole_seconds(decision.reset_after_us)
    return None


def _whole_seconds(us: int) -> int:
    return -(-us // 1_000_000)


def refuse(told: Sequence[Told], dialects: Sequence[Dialect]) -> Refusal:
    """429: with `Retry-After`, the longest of all refusing limits; without it where it is never."""
    violated = [each for each in told if not each.decision.allowed]
    names = [policy for policy, _ in violated]
    waits = [decision.retry_after_us for _, decision in violated]
    extra = fields(told, dialects)
    if None in waits:
        never = [each for each in violated if each.decision.retry_after_us is None]
        most = min(each.decision.limit.capacity for each in never)
        return _problem(
            429,
            NEVER,
            "Cost Exceeds Limit",
            f"This request costs more than the limit can ever allow at once, which is {most}.",
            extra,
            {"violated-policies": names},
        )
    seconds = max((_whole_seconds(us) for us in waits if us is not None), default=0)
    retry = [(b"retry-after", b"%d" % seconds)] if violated else []
    return _problem(
        429,
        QUOTA_EXCEEDED,
        "Too Many Requests",
        f"The quota is used up; try again in {seconds} second{'' if seconds == 1 else 's'}.",
        [*retry, *extra],
        {"violated-policies": names},
    )


def forbid() -> Refusal:
    """403: the client's address is on the denylist."""
    return _problem(403, FORBIDDEN, "Forbidden", "Requests from this address are not served.")


def unavailable() -> Refusal:
    """503: the store failed, and a rule says that nothing passes then."""
    return _problem(
        503,
        STORE_UNAVAILABLE,
        "Rate Limiter Unavailable",
        "Requests cannot be counted at the moment, and this one may not pass uncounted.",
    )


def _problem(
    status: int,
    type_uri: str,
    title: str,
    detail: str,
    extra: Sequence[Field] = (),
    members: Mapping[str, Any] = {},  # only read
) -> Refusal:
    problem = {"type": type_uri, "title": title, "status": status, "detail": detail, **members}
    body = json.dumps(problem).encode()
    headers = [
        (b"content-type", b"application/problem+json"),
        (b"content-length", b"%d" % len(body)),
        (b"cache-control", b"no-store"),  # RFC 6585 section 4 for 429, and no better elsewhere
        *extra,
    ]
    return Refusal(status, headers, body, title)
