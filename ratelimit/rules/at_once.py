"""The options that say how many requests may be under way at once."""

from typing import Any, Final, get_args

from ratelimit.concurrency import Concurrency, Until
from ratelimit.rules.reading import Reading
from ratelimit.rules.values import one_of

__all__ = ["concurrency", "lease", "limit_at_once", "until"]

LEASE: Final = 10.0
"""Seconds of a lease, where a rule does not say."""


def concurrency(value: Any, _: Reading) -> int:
    """A number of requests, 1 to a million."""
    return Concurrency(value).quota


def lease(value: object, reading: Reading) -> float:
    """Seconds, 1 to 3,600, beside a concurrency."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"the lease is a number of seconds, not {type(value).__name__}")
    found = Concurrency(1, round(value * 1_000_000)).lease
    _beside("lease", reading)
    return found


def until(value: object, reading: Reading) -> str:
    """The end of a place, beside a concurrency."""
    found: str = one_of(get_args(Until))(value, reading)
    _beside("until", reading)
    return found


def _beside(name: str, reading: Reading) -> None:
    if reading["concurrency"] is None:
        raise ValueError(f"{name} is given, but no concurrency that it could go with")


def limit_at_once(reading: Reading) -> Concurrency | None:
    """The limit that these options make."""
    most = reading["concurrency"]
    if most is None:
        return None
    lease = reading["lease"] or LEASE
    return Concurrency(most, round(lease * 1_000_000), reading["until"] or "response")
