"""The few messages of Envoy's rate limit service, read and written as protocol buffers.

``envoy.service.ratelimit.v3`` has one question and one answer, of some twenty fields. By hand they
are these functions; made by a compiler they are 1,800 files and a library. That library alone,
given these fields, takes as long for the two, 30 ms to import, and no bound on how many there are.
Fields that are not known are skipped, as the format wants it (protobuf.dev, "Encoding"). Text stays
bytes: what Envoy copies from a client's header need not be UTF-8. Pure.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Final, NamedTuple

from ratelimit.decisions import Decision

__all__ = [
    "OK",
    "OVER",
    "Descriptor",
    "Malformed",
    "Question",
    "TooMany",
    "fields",
    "read",
    "status_of",
    "write",
]

MOST_DESCRIPTORS: Final = 100
MOST_ENTRIES: Final = 100
"""Most of them in one question, and in one descriptor; Envoy's configuration names each."""

_MOST_32: Final = 2**32 - 1
_FIELD: Final = b"\x1a%c\x0a%c%b\x12%c%b"
OK, OVER = b"\x08\x01", b"\x08\x02"
"""The outcome, of an answer and of a status; the latter may have nothing else."""
_VARINT, _EIGHT, _TEXT, _FOUR = 0, 1, 2, 5


class Malformed(ValueError):
    """These bytes are not a question."""


class TooMany(ValueError):
    """A question has more descriptors or entries than any that is read."""


class Descriptor(NamedTuple):
    """A request in the words of Envoy: keys with values, in the order of its actions."""

    entries: Sequence[tuple[bytes, bytes]]
    hits: int | None = None
    """The number of times that it counts; None for what the question says."""
    has_limit: bool = False
    """Whether it brings a limit of its own, which nobody here asked for."""


class Question(NamedTuple):
    """One call of ShouldRateLimit."""

    domain: bytes
    descriptors: Sequence[Descriptor]
    hits: int = 1


def read(data: bytes) -> Question:
    """The question in these bytes. Raises Malformed or TooMany, in one sentence."""
    domain, hits = b"", 0
    descriptors: list[Descriptor] = []
    for number, value in fields(data):
        if number == 1:
            domain = _bytes(value)
        elif number == 2:
            if len(descriptors) == MOST_DESCRIPTORS:
                raise TooMany(f"there are more than {MOST_DESCRIPTORS} descriptors")
            descriptors.append(_descriptor(_bytes(value)))
        elif number == 3:
            hits = min(_number(value), _MOST_32)
    return Question(domain, descriptors, hits or 1)  # 0 is what is not set


def _descriptor(data: bytes) -> Descriptor:
    entries: list[tuple[bytes, bytes]] = []
    hits: int | None = None
    has_limit = False
    at, end = 0, len(data)
    for _ in range(MOST_ENTRIES):  # as Envoy writes nearly all: a key and a value, in 129 bytes
        if at + 6 > end:
            break
        key, stop = at + 4, at + 2 + data[at + 1]
        middle = key + data[at + 3]
        text = middle + 2
        if data[at] != 0x0A or data[at + 2] != 0x0A or not text <= stop <= end or stop > at + 129:
            break
        if data[middle] != 0x12 or data[middle + 1] != stop - text:
            break
        entries.append((data[key:middle], data[text:stop]))
        at = stop
    for number, value in fields(data, at) if at < end else ():
        if number == 1:
            if len(entries) == MOST_ENTRIES:
                raise TooMany(f"a descriptor has more than {MOST_ENTRIES} entries")
            named = dict(fields(_bytes(value)))  # the last one counts
            entries.append((_bytes(named.get(1, b"")), _bytes(named.get(2, b""))))
        elif number == 2:
            has_limit = True
        elif number == 3:
            hits = _number(dict(fields(_bytes(value))).get(1, 0))
    return Descriptor(entries, hits, has_limit)


def fields(data: bytes, at: int = 0) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a message from a place on: numbers, each with a whole number or bytes."""
    end = len(data)
    while at < end:
        tag = data[at]  # most numbers are of one byte, and the call for others takes longer
        at += 1
        if tag >= 0x80:
            tag, at = _number_at(data, at - 1)
        kind = tag & 7
        if kind == _TEXT and at < end:
            length = data[at]
            at += 1
            if length >= 0x80:
                length, at = _number_at(data, at - 1)
        elif kind == _VARINT:
            value, at = _number_at(data, at)
            yield tag >> 3, value
            continue
        elif kind in (_EIGHT, _FOUR):
            length = 8 if kind == _EIGHT else 4
        else:
            raise Malformed(f"a field is of type {kind}, which no message here has, or ends early")
        if length > end - at:
            raise Malformed("a field is longer than its message")
        yield tag >> 3, data[at : at + length]
        at += length


def _number_at(data: bytes, at: int) -> tuple[int, int]:
    """A whole number below 2^64, and where it ends."""
    number = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            break
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number & (2**64 - 1), at
    raise Malformed("a number has no end")


def _bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise Malformed("a field holds a number where text belongs")
    return value


def _number(value: int | bytes) -> int:
    if not isinstance(value, int):
        raise Malformed("a field holds text where a number belongs")
    return value


def write(
    statuses: Iterable[bytes] = (),
    headers: Iterable[tuple[bytes, bytes]] = (),
    body: bytes = b"",
    *,
    over: bool,
) -> bytes:
    """An answer; ``headers`` go to the client, as ``body`` does with a refusal."""
    parts = [OVER if over else OK, *[_text(b"\x12", each) for each in statuses]]
    for name, value in headers:  # as value, since this filter of Envoy's skips raw_value
        key, length = len(name), len(value)
        if key + length < 0x7C:  # as most are, of which each number is a byte
            parts.append(_FIELD % (key + length + 4, key, name, length, value))
        else:
            parts.append(_text(b"\x1a", _text(b"\x0a", name) + _text(b"\x12", value)))
    if body:
        parts.append(_text(b"\x2a", body))
    return b"".join(parts)


def status_of(decision: Decision, name: str, *, over: bool) -> bytes:
    """The outcome of a descriptor that a rule has decided; ``name`` is that of the limit.

    The time until it is over is in whole seconds, which is all that Envoy tells of it.
    """
    limit, allowed, remaining, wait_us, until_us = decision[:5]
    if not allowed and wait_us is not None:
        until_us = wait_us
    until = _varint(-(-until_us // 1_000_000))
    return b'%b%b\x18%b"%c\x08%b' % (
        OVER if over else OK,
        _limit(limit.quota, limit.window_us, name),
        _varint(min(remaining, _MOST_32)),
        len(until) + 1,
        until,
    )


@lru_cache(maxsize=1_000)
def _limit(quota: int, window_us: int, name: str) -> bytes:
    """The limit of a status, of which a file has few."""
    numbers = b"\x08%b\x10%b" % (_varint(min(quota, _MOST_32)), _varint(_UNITS.get(window_us, 0)))
    return _text(b"\x12", numbers + _text(b"\x1a", name.encode()))


def _text(tag: bytes, value: bytes) -> bytes:
    return tag + _varint(len(value)) + value


def _varint(number: int) -> bytes:
    if number < 0x80:
        return _BYTES[number]
    return _BYTES[number & 0x7F | 0x80] + _varint(number >> 7)


_BYTES: Final = [bytes([number]) for number in range(0x100)]
_UNITS: Final = {
    1_000_000: 1, 60_000_000: 2, 3_600_000_000: 3, 86_400_000_000: 4, 604_800_000_000: 7,
}  # fmt: skip
"""Envoy's numbers of units, by their microseconds; 0 stands for any other window."""
