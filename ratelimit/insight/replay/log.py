"""A log: its files in the order of time, and its requests in seconds.

Lines that are out of order are put right within a window; later ones are played at the latest time
that is still open, and counted.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import BinaryIO, Final

from ratelimit.insight.replay.detection import LOOKED_AT, detected, has_whole_seconds
from ratelimit.insight.replay.entries import Entry, Format
from ratelimit.insight.replay.sources import Source, Troubles

__all__ = ["WINDOW_US", "Log"]

WINDOW_US: Final = 2_000_000
"""Time by which a line may come after others that are younger."""
MOST_IN_SECOND: Final = 200_000
"""Requests of one second that are held at once; of more, the first are played before the rest."""
MOST_BLOCKS: Final = 128
"""Blocks of a quarter of a megabyte that are held until they are played; of more, likewise."""
SECOND: Final = 1_000_000


@dataclass
class _Opened:
    """A file whose format is known, and what was read of it to know that."""

    source: Source
    format: Format
    head: list[Entry]
    blocks: Iterator[list[str]]
    first_us: int
    more: bool = True
    ready: list[Entry] = field(default_factory=list)


class Log:
    """The requests of files, or of standard input as ``-``.

    ``format`` is that of all of them; without one each file's lines tell. Raises OSError where a
    file cannot be opened.
    """

    def __init__(
        self, names: Sequence[str], format_: Format | None = None, stdin: BinaryIO | None = None
    ) -> None:
        self.troubles = Troubles()
        self.late = 0
        """Requests that came more than the window after younger ones."""
        self.out_of_order = 0
        """Requests that came after younger ones at all."""
        self.crowded = 0
        """Seconds with more requests than are held at once."""
        self.requests = 0
        self.first_us: int | None = None
        self.last_us: int | None = None
        self.sources = [Source(name, self.troubles, stdin) for name in names]
        opened = [each for source in self.sources if (each := self._open(source, format_))]
        self._opened = sorted(opened, key=lambda each: each.first_us)
        self.whole_seconds = all(has_whole_seconds(each.head) for each in self._opened)
        """Whether its times tell no parts of a second, as far as the first lines show."""
        self.fields = frozenset(chain.from_iterable(each.format.fields for each in self._opened))
        """The parts of a request that some file tells."""
        self.formats = sorted({each.format.name for each in self._opened})

    @property
    def lines(self) -> int:
        """Lines that were read so far, of whatever kind."""
        return sum(source.lines for source in self.sources)

    @property
    def read(self) -> int:
        """Bytes that were read so far, as they are stored."""
        return sum(source.read for source in self.sources)

    @property
    def size(self) -> int | None:
        """Bytes of all files; None where that is not known."""
        sizes = [source.size for source in self.sources]
        return None if None in sizes else sum(size for size in sizes if size is not None)

    def close(self) -> None:
        """Closes the files."""
        for source in self.sources:
            source.close()

    def _open(self, source: Source, format_: Format | None) -> _Opened | None:
        blocks = source.blocks()
        lines: list[str] = []
        for block in blocks:
            lines += block
            if len(lines) >= LOOKED_AT:
                break
        found = format_ or detected(lines)
        if found is None:
            if any(line.strip(" \t\r") for line in lines):
                for line in lines:
                    self.troubles.told("another format" if line.strip(" \t\r") else "empty", line)
                self.troubles.files.append(f"{source.name} is in a format that is not known")
                for block in blocks:
                    self.troubles.counts["another format"] += len(block)
            return None
        head = found.parse(lines, self.troubles.told)
        if not head:  # a long beginning of something else
            for block in blocks:
                head = found.parse(block, self.troubles.told)
                if head:
                    break
        if not head:
            return None
        return _Opened(source, found, head, blocks, min(entry[0] for entry in head))

    def entries(self) -> Iterator[list[Entry]]:
        """The requests of all files in blocks: files that overlap are read side by side."""
        waiting = self._opened[:]
        open_: list[_Opened] = []
        while waiting or open_:
            if not open_:
                open_.append(waiting.pop(0))
            if len(open_) == 1 and (
                not waiting or not open_[0].head or open_[0].head[-1][0] < waiting[0].first_us
            ):
                one = open_[0]
                if one.head:
                    yield one.head
                one.head = self._next(one)
                if not one.head:
                    open_.clear()
                continue
            # The file that is furthest behind goes on, block by block, so that they stay together.
            behind = min(open_, key=lambda each: each.head[0][0])
            while waiting and waiting[0].first_us <= behind.head[-1][0]:
                open_.append(waiting.pop(0))
            behind = min(open_, key=lambda each: each.head[0][0])
            until = min((each.head[0][0] for each in open_ if each is not behind), default=None)
            if until is None or behind.head[-1][0] <= until:
                yield behind.head
                behind.head = self._next(behind)
            else:
                cut = next(
                    (n for n, entry in enumerate(behind.head) if entry[0] > until), len(behind.head)
                )
                cut = max(cut, 1)
                yield behind.head[:cut]
                behind.head = behind.head[cut:]
            if not behind.head:
                behind.head = self._next(behind)
            if not behind.head:
                open_.remove(behind)

    def _next(self, opened: _Opened) -> list[Entry]:
        for block in opened.blocks:
            found = opened.format.parse(block, self.troubles.told)
            if found:
                return found
        return []

    def seconds(self) -> Iterator[list[Entry]]:  # noqa: PLR0912  # a line's few cases
        """The requests in order of time, those of one second together."""
        buckets: dict[int, list[Entry]] = {}
        newest = -1
        horizon = -1
        """Of this second and those before nothing is held any more."""
        current, bucket = -1, []
        ordered = -1
        held = 0
        for block in self.entries():
            self.requests += len(block)
            held += 1
            if held > MOST_BLOCKS:
                self.crowded += 1
                for each in sorted(buckets):
                    yield self._sorted(buckets.pop(each))
                current, held = -1, 0
            for entry in block:
                at_us = entry[0]
                if at_us < ordered:
                    self.out_of_order += 1
                    if at_us < newest - WINDOW_US:
                        self.late += 1
                        at_us = newest - WINDOW_US
                        entry = (at_us, *entry[1:])  # noqa: PLW2901
                else:
                    ordered = newest = at_us
                second = at_us // SECOND
                if second != current:
                    current = second
                    if second in buckets:
                        bucket = buckets[second]
                    else:
                        bucket = buckets[second] = []
                        due = newest // SECOND - 2
                        if due > horizon:
                            for each in sorted(key for key in buckets if key < due):
                                yield self._sorted(buckets.pop(each))
                            horizon, held = due, 0
                bucket.append(entry)
                if len(bucket) >= MOST_IN_SECOND:
                    self.crowded += 1
                    for each in sorted(key for key in buckets if key <= current):
                        yield self._sorted(buckets.pop(each))
                    bucket = buckets[current] = []
        for each in sorted(buckets):
            if buckets[each]:
                yield self._sorted(buckets[each])

    def _sorted(self, entries: list[Entry]) -> list[Entry]:
        entries.sort(key=_at)
        if entries:
            if self.first_us is None:
                self.first_us = entries[0][0]
            self.last_us = entries[-1][0]
        return entries


def _at(entry: Entry) -> int:
    return entry[0]
