"""The few messages of Envoy's rate limit service, read and written as protocol buffers.

``envoy.service.ratelimit.v3`` has one question and one answer, of some twenty fields. By hand they
are these functions; made by a compiler they are 1,800 files and a library. Fields that are not
known are skipped, as the format wants it (protobuf.dev, "Encoding"). Text stays bytes: what Envoy
copies from a client's header need not be UTF-8. Pure.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Final, NamedTuple

__all__ = [
    "Answer",
    "Descriptor",
    "Malformed",
    "Question",
    "Status",
    "TooMany",
    "fields",
    "read",
    "write",
]

MOST_DESCRIPTORS: Final = 100
MOST_ENTRIES: Final = 100
"""Most of them in one question, and in one descriptor; Envoy's configuration names each."""

_MOST_32: Final = 2**32 - 1
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


class Status(NamedTuple):
    """The outcome of one descriptor; without ``quota`` where no rule is for it."""

    over: bool
    quota: int | None = None
    unit: int = 0
    """SECOND 1, MINUTE 2, HOUR 3, DAY 4, WEEK 7; 0 for any other window."""
    name: str = ""
    remaining: int = 0
    reset_us: int = 0


class Answer(NamedTuple):
    """The answer to a question; ``headers`` go to the client, as ``body`` does with a refusal."""

    over: bool
    statuses: Sequence[Status] = ()
    headers: Sequence[tuple[bytes, bytes]] = ()
    body: bytes = b""


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
    for number, value in fields(data):
        if number == 1:
            if len(entries) == MOST_ENTRIES:
                raise TooMany(f"a descriptor has more than {MOST_ENTRIES} entries")
            entries.append(_entry(_bytes(value)))
        elif number == 2:
            has_limit = True
        elif number == 3:
            hits = _number(dict(fields(_bytes(value))).get(1, 0))
    return Descriptor(entries, hits, has_limit)


def _entry(data: bytes) -> tuple[bytes, bytes]:
    """A key and its value."""
    length = len(data)
    if length > 3 and data[0] == 0x0A:  # as Envoy writes nearly all: both there, and short
        middle = data[1] + 2
        if middle + 1 < length < 0x80 and data[middle] == 0x12:
            if data[middle + 1] == length - middle - 2:
                return data[2:middle], data[middle + 2 :]
    named = dict(fields(data))  # the last one counts
    return _bytes(named.get(1, b"")), _bytes(named.get(2, b""))


def fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a message: numbers, each with a whole number or bytes."""
    at, end = 0, len(data)
    while at < end:
        tag = data[at]  # most numbers are of one byte, and the call for others takes longer
        at += 1
        if tag >= 0x80:
            tag, at = _varint(data, at - 1)
        kind = tag & 7
        if kind == _TEXT and at < end:
            length = data[at]
            at += 1
            if length >= 0x80:
                length, at = _varint(data, at - 1)
        elif kind == _VARINT:
            value, at = _varint(data, at)
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


def _varint(data: bytes, at: int) -> tuple[int, int]:
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


def write(answer: Answer) -> bytes:
    """An answer as bytes."""
    parts = [_whole(1, 2 if answer.over else 1)]
    parts += [_text(2, _status(each)) for each in answer.statuses]
    parts += [_header(name, value) for name, value in answer.headers]
    parts.append(_text(5, answer.body))
    return b"".join(parts)


@lru_cache(maxsize=4_096)
def _header(name: bytes, value: bytes) -> bytes:
    """A field of the response; as value, since this filter of Envoy's skips raw_value."""
    return _text(3, _text(1, name) + _text(2, value))


def _status(status: Status) -> bytes:
    code = _whole(1, 2 if status.over else 1)
    if status.quota is None:
        return code
    limit = _limit(status.quota, status.unit, status.name)
    seconds, rest = divmod(status.reset_us, 1_000_000)
    until = _join(_whole(1, seconds), _whole(2, rest * 1_000))
    return _join(code, limit, _whole(3, status.remaining), _text(4, until))


@lru_cache(maxsize=1_000)
def _limit(quota: int, unit: int, name: str) -> bytes:
    """The limit of a status, of which a file has few."""
    return _text(2, _join(_whole(1, quota), _whole(2, unit), _text(3, name.encode())))


def _join(*parts: bytes) -> bytes:
    return b"".join(parts)


def _text(number: int, value: bytes) -> bytes:
    return _encoded(number << 3 | _TEXT) + _encoded(len(value)) + value if value else b""


def _whole(number: int, value: int) -> bytes:
    """A number of 32 bits, or a larger one as the largest; left out where it is 0."""
    return _encoded(number << 3) + _encoded(min(value, _MOST_32)) if value else b""


def _encoded(number: int) -> bytes:
    if number < 0x80:
        return _SHORT[number]
    found = bytearray()
    while number >= 0x80:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)
    return bytes(found)


_SHORT: Final = [bytes([number]) for number in range(0x80)]
