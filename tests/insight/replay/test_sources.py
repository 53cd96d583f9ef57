"""Files that are cut, damaged, hostile, or not a log."""

import gzip
import io
import random
import tracemalloc
from pathlib import Path

import pytest

from ratelimit.insight.replay.log import Log
from ratelimit.insight.replay.sources import LONGEST_LINE, Source, Troubles
from tests.insight.replay.logs import combined, traffic, written

LINES = [combined(each) for each in traffic(2_000, seed=5)]
TEXT = "".join(f"{line}\n" for line in LINES).encode()


def read(path: Path, content: bytes) -> tuple[int, Log]:
    """The number of requests in a file of this content, and the log."""
    path.write_bytes(content)
    log = Log([str(path)])
    return sum(len(entries) for entries in log.seconds()), log


def test_a_log_may_be_compressed_in_any_number_of_members(tmp_path: Path) -> None:
    plain, log = read(tmp_path / "log", TEXT)
    assert (plain, log.lines) == (2_000, 2_000)
    half = len(TEXT) // 2
    for content in (
        gzip.compress(TEXT),
        gzip.compress(TEXT[:half]) + gzip.compress(TEXT[half:]),
        gzip.compress(TEXT) + b"\0" * 1_000,
    ):
        found, log = read(tmp_path / "log.gz", content)
        assert found == 2_000
        assert log.troubles.files == []


def test_a_gzip_file_that_is_cut_or_damaged_is_read_up_to_there_and_told(tmp_path: Path) -> None:
    whole = gzip.compress(TEXT)
    found, log = read(tmp_path / "log", whole[: len(whole) // 2])
    assert 100 < found < 2_000
    assert log.troubles.files == [f"{tmp_path}/log ends early, within its gzip; read up to there"]
    damaged = bytearray(whole)
    damaged[len(whole) // 2 :] = random.Random(1).randbytes(len(whole) - len(whole) // 2)
    found, log = read(tmp_path / "log", bytes(damaged))
    assert 100 < found < 2_000
    assert "read up to there" in log.troubles.files[0]
    found, log = read(tmp_path / "log", whole + b"something else behind it")
    assert found == 2_000
    assert "is damaged" in log.troubles.files[0]


def test_a_file_that_grows_beyond_measure_is_not_read_further(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with gzip.open(path, "wb") as file:
        file.write(TEXT)
        for _ in range(300):
            file.write(b"\0" * (1 << 20))
    tracemalloc.start()
    log = Log([str(path)])
    found = sum(len(entries) for entries in log.seconds())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found >= 1_999
    assert "grows more than" in log.troubles.files[0]
    assert peak < 32 << 20


def test_a_line_of_ten_megabytes_is_counted_and_costs_no_memory(tmp_path: Path) -> None:
    tracemalloc.start()
    found, log = read(tmp_path / "log", TEXT + b"x" * 10_000_000 + b"\n" + TEXT)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == 4_000
    assert log.troubles.counts == {"longer than 64 KiB": 1}
    assert log.lines == 4_001
    assert peak < 32 << 20  # the content itself is a third of it


@pytest.mark.parametrize("length", [LONGEST_LINE - 1, LONGEST_LINE, LONGEST_LINE + 1, 300_000])
def test_the_longest_line_that_is_read_is_64_kib(length: int, tmp_path: Path) -> None:
    begin = LINES[0].encode()[: LINES[0].rindex('"')]
    line = begin + b"x" * (length - len(begin) - 1) + b'"\n'
    found, log = read(tmp_path / "log", TEXT + line + TEXT)
    assert found == 4_000 + (length <= LONGEST_LINE)
    assert log.troubles.counts["longer than 64 KiB"] == (length > LONGEST_LINE)


def test_bytes_that_are_not_text_are_counted_and_the_request_is_played(tmp_path: Path) -> None:
    hostile = [
        b"\0\0\0\0" + LINES[0].encode(),
        LINES[1].encode().replace(b"curl", b"c\xff\xfe"),
        LINES[2].encode().replace(b"GET ", b"GET /\xe4").replace(b"POST ", b"POST /\xe4"),
        b"\x1b[31mred\x1b[0m",
    ]
    found, log = read(tmp_path / "log", TEXT + b"\n".join(hostile) + b"\n")
    assert found == 2_003
    assert log.troubles.counts == {
        "NUL bytes, read without them": 1,
        "bytes that are not UTF-8, read all the same": 2,
        "another format": 1,
    }


@pytest.mark.parametrize("kind", ["noise", "html", "empty", "zeros", "newlines", "one byte"])
def test_a_file_that_is_not_a_log_is_told_and_never_a_crash(kind: str, tmp_path: Path) -> None:
    content = {
        "noise": random.Random(2).randbytes(200_000),
        "html": b"<!DOCTYPE html>\n<p>hello</p>\n" * 500,
        "empty": b"",
        "zeros": b"\0" * 100_000,
        "newlines": b"\n" * 10_000,
        "one byte": b"\x1f",
    }[kind]
    found, log = read(tmp_path / "log", content)
    assert found == 0
    told = log.troubles.counts.total() + len(log.troubles.files)
    assert told if kind not in ("empty", "newlines") else True
    if kind == "html":
        assert log.troubles.counts["another format"] == 1_000
        assert log.troubles.files == [f"{tmp_path}/log is in a format that is not known"]


@pytest.mark.parametrize(
    ("magic", "kind"), [(b"\x28\xb5\x2f\xfd", "zstd"), (b"BZh9", "bzip2"), (b"PK\x03\x04", "zip")]
)
def test_another_compression_is_named(magic: bytes, kind: str, tmp_path: Path) -> None:
    found, log = read(tmp_path / "log", magic + b"1234567890")
    assert found == 0
    assert f"is compressed by {kind}" in log.troubles.files[0]


def test_standard_input_is_read_as_it_comes() -> None:
    class Trickle(io.RawIOBase):
        """A pipe that gives few bytes at a time."""

        def __init__(self) -> None:
            self.rest = gzip.compress(TEXT)

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: object) -> int:
            view = memoryview(buffer)  # type: ignore[arg-type]
            part, self.rest = self.rest[: min(3, len(view))], self.rest[min(3, len(view)) :]
            view[: len(part)] = part
            return len(part)

    log = Log(["-"], stdin=io.BufferedReader(Trickle(), 8))
    assert sum(len(entries) for entries in log.seconds()) == 2_000
    assert log.size is None


def test_the_first_few_lines_of_each_fault_are_kept_in_part(tmp_path: Path) -> None:
    troubles = Troubles()
    source = Source(written(tmp_path / "log", ["x" * 1_000] * 10), troubles)
    for lines in source.blocks():
        for line in lines:
            troubles.told("another format", line)
    assert troubles.samples["another format"] == ["x" * 200] * 3
