"""Files of a log as lines: compressed or not, whole or cut, in bounded memory.

Nothing is dropped in silence: each line that is not a request is counted by what is wrong with it,
and the first few are kept to be shown.
"""

import re
import sys
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

__all__ = ["LONGEST_LINE", "Source", "Troubles"]

LONGEST_LINE: Final = 65_536
"""Bytes of a line that is read; servers take no longer request."""
BLOCK: Final = 1 << 18
"""Bytes that are read at once."""
SHOWN: Final = 3
"""Lines that are kept of each fault."""
SHOWN_OF_LINE: Final = 200
"""Characters of a line that is kept."""
MOST_EXPANSION: Final = 400
"""Times its compressed size that a file may grow; logs compress to a hundredth at best."""
FREE_EXPANSION: Final = 1 << 26
"""Bytes that a file may grow to, whatever its size."""

_COMPRESSED: Final = {
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"PK\x03\x04": "zip",
}

_NOT_UTF8: Final = re.compile("[\udc80-\udcff]")


class Troubles:
    """Lines that are not requests, by what is wrong with them, and files that end early."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.samples: dict[str, list[str]] = {}
        self.files: list[str] = []
        """Sentences about files."""

    def told(self, fault: str, line: str) -> None:
        """Counts a line, and keeps the first few of each fault."""
        self.counts[fault] += 1
        kept = self.samples.setdefault(fault, [])
        if len(kept) < SHOWN:
            kept.append(line[:SHOWN_OF_LINE])


class Source:
    """A file of the log, or standard input as ``-``.

    Raises OSError where it cannot be opened.
    """

    def __init__(self, name: str, troubles: Troubles, stdin: BinaryIO | None = None) -> None:
        self.name = name
        self._troubles = troubles
        if name == "-":
            self._file: BinaryIO = sys.stdin.buffer if stdin is None else stdin
            self.size: int | None = None
        else:
            path = Path(name)
            self._file = path.open("rb")
            self.size = path.stat().st_size if path.is_file() else None
        self.read = 0
        """Bytes of the file, as it is stored, that were read."""
        self.lines = 0
        """Lines that were read, of whatever kind."""

    def close(self) -> None:
        """Closes the file, but never standard input."""
        if self.name != "-":
            self._file.close()

    def blocks(self) -> Iterator[list[str]]:
        """Lists of whole lines, without their ends."""
        rest = b""
        too_long = False
        for data in self._plain():
            begin = data.find(b"\n")
            if too_long:
                if begin < 0:
                    continue
                data = data[begin + 1 :]  # noqa: PLW2901  # the rest of a line that was counted
                too_long = False
            end = data.rfind(b"\n")
            if end < 0:
                rest += data
                if len(rest) > LONGEST_LINE:
                    self._too_long(rest)
                    rest, too_long = b"", True
                continue
            whole, rest = rest + data[:end], data[end + 1 :]
            yield self._lines(whole)
            if len(rest) > LONGEST_LINE:
                self._too_long(rest)
                rest, too_long = b"", True
        if rest:
            yield self._lines(rest)

    def _too_long(self, line: bytes) -> None:
        self.lines += 1
        text = line[:SHOWN_OF_LINE].decode("utf-8", "surrogateescape")
        self._troubles.told("longer than 64 KiB", text)

    def _lines(self, data: bytes) -> list[str]:
        if b"\0" in data:  # left by a machine that went down while it wrote
            for each in data.split(b"\n"):
                if b"\0" in each:
                    text = each[:SHOWN_OF_LINE].decode("latin-1")
                    self._troubles.told("NUL bytes, read without them", text)
            data = data.replace(b"\0", b"")
        try:
            lines = data.decode().split("\n")
        except UnicodeDecodeError:
            lines = data.decode("utf-8", "surrogateescape").split("\n")
            for line in lines:
                if not line.isascii() and _NOT_UTF8.search(line):
                    self._troubles.told("bytes that are not UTF-8, read all the same", line)
        if len(data) > LONGEST_LINE and max(map(len, lines)) > LONGEST_LINE:
            for line in lines:
                if len(line) > LONGEST_LINE:
                    self._too_long(line[:SHOWN_OF_LINE].encode("utf-8", "surrogateescape"))
            lines = [line for line in lines if len(line) <= LONGEST_LINE]
        self.lines += len(lines)
        return lines

    def _raw(self) -> Iterator[bytes]:
        read = getattr(self._file, "read1", self._file.read)
        try:
            while data := read(BLOCK):
                self.read += len(data)
                yield data
        except OSError as error:
            self._troubles.files.append(f"{self.name} cannot be read on: {error.strerror or error}")
        finally:
            self.close()

    def _plain(self) -> Iterator[bytes]:
        raw = self._raw()
        first = next(raw, b"")
        while 0 < len(first) < 6 and (more := next(raw, b"")):
            first += more
        if first[:2] == b"\x1f\x8b":
            yield from self._gunzipped(first, raw)
            return
        for magic, kind in _COMPRESSED.items():
            if first.startswith(magic):
                self._troubles.files.append(
                    f"{self.name} is compressed by {kind}; pipe it in decompressed, as -"
                )
                return
        if first:
            yield first
        yield from raw

    def _gunzipped(self, data: bytes, raw: Iterator[bytes]) -> Iterator[bytes]:
        """The contents of a gzip file of any number of members, in pieces of bounded size."""
        grown = 0
        member = zlib.decompressobj(wbits=31)
        try:
            while True:
                data = data or next(raw, b"")
                ended = not data
                piece = member.decompress(data, BLOCK)
                data = member.unconsumed_tail
                grown += len(piece)
                if grown > FREE_EXPANSION and grown > MOST_EXPANSION * self.read:
                    self._troubles.files.append(
                        f"{self.name} grows more than {MOST_EXPANSION}-fold; it is not read further"
                    )
                    return
                if piece:
                    yield piece
                elif ended and not member.eof:  # nothing in, and nothing out any more
                    break
                if member.eof:
                    data = member.unused_data
                    if not data:
                        data = next(raw, b"")
                    data = data.lstrip(b"\0")  # padding of tapes
                    if not data:
                        return
                    member = zlib.decompressobj(wbits=31)
        except zlib.error as error:
            self._troubles.files.append(f"{self.name} is damaged: {error}; read up to there")
            return
        self._troubles.files.append(f"{self.name} ends early, within its gzip; read up to there")
