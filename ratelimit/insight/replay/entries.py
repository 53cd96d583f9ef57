"""Requests as a log tells them, and times as logs write them.

The law of this package: whatever stands in a log was written by anybody. It is bounded when it is
read, counted where it is not understood, and escaped where it is shown.
"""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Protocol

__all__ = ["LATEST_US", "TIMES", "Entry", "Format", "Time", "as_path", "epoch_us", "iso_us"]

LATEST_US: Final = 2**52
"""The year 2112; no store decides later than that."""

Time = Callable[[str], int]
"""Reads a time in microseconds since the epoch. Raises ValueError."""


class Format(Protocol):
    """A way to read the lines of a log."""

    name: str
    """The name of a known format, or "own"."""
    fields: frozenset[str]
    """The parts of a request that it tells: "client", "host", "header:referer" and so on."""

    def parse(self, lines: list[str], told: Callable[[str, str], None]) -> list["Entry"]:
        """The requests in lines, in order; of other lines ``told`` hears the fault and the line."""

    def more(self, entry: "Entry") -> dict[str, str]:
        """The values of a request's fields that are not in the entry itself."""


Entry = tuple[int, str, str, str, str, Any, Format]
"""A request: microseconds since the epoch, the client's address as text, method, target (path and
query), status ("" where it is not logged), and what its format needs to tell more. A plain tuple,
since one is made for each line."""


def as_path(target: str) -> tuple[str, str]:
    """Path and query of a request's target, as they were sent.

    Of the absolute form, which proxies are sent, it is what follows the host (RFC 9112, 3.2.2).
    """
    if target[:1] != "/" and (found := _ABSOLUTE.match(target)):
        target = target[found.end() :]
        target = target if target[:1] == "/" else f"/{target}"
    path, _, query = target.partition("?")
    return path, query


_ABSOLUTE: Final = re.compile(r"(?:https?|wss?)://[^/?]*+", re.IGNORECASE)

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_US: Final = timedelta(microseconds=1)
_NAMES: Final = (
    "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
)  # fmt: skip
_MONTHS: Final = {name: place for place, name in enumerate(_NAMES, 1)}
_CLF: Final = re.compile(
    r"(\d\d)/(\w{3})/(\d{4}):(\d\d):(\d\d):(\d\d)(?:\.(\d{1,6})\d*)?(?: ([+-])(\d\d)(\d\d))?",
    re.ASCII,
)
_NUMBER: Final = re.compile(r"(\d{1,19})(?:\.(\d{1,9}))?", re.ASCII)


def clf_us(text: str) -> int:
    """The time in ``27/Nov/2026:11:00:00 +0000``; without a zone it is UTC."""
    found = _CLF.fullmatch(text)
    if found is None or found[2] not in _MONTHS:
        raise ValueError(text)
    day, month, year, hour, minute, second, part, sign, hours, minutes = found.groups()
    at = datetime(int(year), _MONTHS[month], int(day), int(hour), int(minute), tzinfo=UTC)
    us = (at - _EPOCH) // _US + int(second) * 1_000_000  # a leap second is the next one
    if part:
        us += int(part.ljust(6, "0"))
    if sign:
        zone = (int(hours) * 60 + int(minutes)) * 60_000_000
        us += zone if sign == "-" else -zone
    return _held(us)


def iso_us(text: str) -> int:
    """The time in ``2026-11-27T11:00:00.123456Z``; without a zone it is UTC."""
    at = datetime.fromisoformat(text)
    if at.tzinfo is None:
        at = at.replace(tzinfo=UTC)
    return _held((at - _EPOCH) // _US)


def epoch_us(text: str, scale: int | None = None) -> int:
    """The time in a number since the epoch: seconds, or by its size also ms, microseconds or ns.

    ``scale`` is how many of it make a second, where that is known.
    """
    found = _NUMBER.fullmatch(text)
    if found is None:
        raise ValueError(text)
    number, part = int(found[1]), (found[2] or "").ljust(6, "0")
    if scale is None:
        scale = next((each for most, each in _SCALES if number < most), 1)
    if scale == 1:
        return _held(number * 1_000_000 + int(part[:6]))
    return _held(number * 1_000_000 // scale)


_SCALES: Final = ((10**11, 1), (10**14, 10**3), (10**17, 10**6), (10**20, 10**9))


def any_us(text: str) -> int:
    """The time in any of these forms."""
    if _NUMBER.fullmatch(text):
        return epoch_us(text)
    return clf_us(text) if _CLF.fullmatch(text) else iso_us(text)


def _held(us: int) -> int:
    if not 0 <= us < LATEST_US:
        raise ValueError(f"{us} microseconds")
    return us


TIMES: Final[dict[str, Time]] = {
    "time": clf_us,
    "time:iso": iso_us,
    "time:epoch": epoch_us,
    "time:ms": lambda text: epoch_us(text, 1_000),
    "time:us": lambda text: epoch_us(text, 1_000_000),
    "time:any": any_us,
}
"""Readers of times, by the names of fields."""
