"""`ratelimit replay`: what it prints, writes and ends with."""

import gzip
import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from ratelimit.cli.main import main
from ratelimit.cli.progress import Progress
from tests.insight.replay.logs import combined, traffic, written
from tests.support.commands import rows, run

RULES = "version: 1\nrules:\n  - {name: api, limit: 5/minute}\n"
LINES = [combined(each) for each in traffic(2_000, seed=1)]
COMMAND = [sys.executable, "-c", "from ratelimit.cli.main import main; main()"]


@pytest.fixture
def file(tmp_path: Path) -> str:
    """A rule file."""
    path = tmp_path / "rules.yaml"
    path.write_text(RULES)
    return str(path)


@pytest.fixture
def log(tmp_path: Path) -> str:
    """A log in the combined format."""
    return written(tmp_path / "access.log", LINES)


def test_a_replay_tells_who_would_have_been_refused(file: str, log: str) -> None:
    result = run("replay", file, log)
    assert "READING\tORDER\tREQUESTS" in result.stdout
    assert "retry-after\tworst" in result.stdout
    assert "2000 requests in 2000 lines (combined)" in result.stderr
    found = rows("replay", file, log)
    assert [each["reading"] for each in found["readings"]] == [
        "never", "never", "retry-after", "retry-after", "logged", "logged",
    ]  # fmt: skip
    assert all(each["requests"] == 2_000 for each in found["readings"])
    assert found["worst"][0]["refused"] > 0
    assert sum(point[1] + point[2] for point in found["when"][0]["points"]) == 2_000


def test_options_choose_the_readings_and_compare(file: str, log: str, tmp_path: Path) -> None:
    old = tmp_path / "old.yaml"
    old.write_text(RULES.replace("5/", "50/"))
    found = rows(
        "replay", file, log, "--reading", "logged", "--compare-algorithms", "--against", str(old)
    )
    assert {each["reading"] for each in found["readings"]} == {"logged"}
    assert len(found["algorithms"]) == 10
    assert found["against"][0]["newly refused"] > 0
    assert found["against"][0]["newly passed"] == 0
    assert "NEWLY REFUSED" in run("replay", file, log, "--against", str(old)).stdout


def test_the_log_may_be_standard_input_and_compressed(file: str) -> None:
    data = gzip.compress("\n".join(LINES).encode())
    result = CliRunner().invoke(main, ["replay", file, "-", "--json"], input=data)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["log"]["requests"] == 2_000


def test_a_page_is_written_where_it_is_asked_for(file: str, log: str, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    run("replay", file, log, "--html", str(page))
    assert page.read_text().startswith("<!DOCTYPE html>")
    result = run("replay", file, log, "--html", str(tmp_path), code=2)
    assert "cannot be written" in result.stderr


def test_nothing_of_a_log_steers_the_terminal(file: str, tmp_path: Path) -> None:
    evil = "\x1b]0;owned\x07\x1b[2J\u202e"
    lines = [*LINES[:50], f"{evil}something else", LINES[0].replace("/", evil, 1)]
    lines += [LINES[0].replace(LINES[0].split()[0], f"{evil}client")] * 30
    name = written(tmp_path / "hostile", lines)
    for options in ([], ["--json"], ["--against", file], ["--compare-algorithms"]):
        result = run("replay", file, name, *options)
        for text in (result.stdout, result.stderr):
            assert "\x1b" not in text
            assert "\x07" not in text
            assert "\u202e" not in text


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--format", "combin"], "is not a format; did you mean combined"),
        (["--format", "$msec"], "the format does not tell"),
        (["--field", "client"], "is not a field and its key"),
        (["--field", "cleint=ip"], "did you mean client"),
    ],
)
def test_a_mistake_in_an_option_is_told_in_a_sentence(
    options: list[str], sentence: str, file: str, log: str
) -> None:
    assert sentence in " ".join(run("replay", file, log, *options, code=2).stderr.split())


def test_a_log_that_is_not_there_ends_the_command(file: str, tmp_path: Path) -> None:
    result = run("replay", file, str(tmp_path / "missing"), code=2)
    assert result.stderr == f"{tmp_path}/missing cannot be read: No such file or directory\n"


def test_an_interrupted_replay_reports_what_it_has(file: str) -> None:
    with subprocess.Popen(
        [*COMMAND, "replay", file, "-", "--json"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        assert process.stdin
        assert process.stdout
        process.stdin.write("".join(f"{line}\n" for line in LINES * 20).encode())
        process.stdin.flush()
        while not _waits(process.pid):
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        process.stdin.write("".join(f"{line}\n" for line in LINES).encode())
        process.stdin.close()
        found = json.loads(process.stdout.read())
        assert process.wait(60) == 130
    assert found["interrupted"] is True
    assert found["log"]["requests"] > 0


def _waits(pid: int) -> bool:
    """Whether a process sleeps and has handled what it was given."""
    state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    caught = Path(f"/proc/{pid}/status").read_text()
    mask = int(next(x for x in caught.splitlines() if x.startswith("SigCgt")).split()[1], 16)
    return state == "S" and bool(mask & 1 << signal.SIGINT - 1)


def test_a_bar_is_drawn_on_a_terminal_alone(file: str, log: str) -> None:
    main_, other = pty.openpty()
    big = written(Path(log).parent / "big.log", LINES * 10)
    result = subprocess.run(
        [*COMMAND, "replay", file, big, "--json"], stdout=subprocess.DEVNULL, stderr=other,
        check=True, timeout=100,
    )  # fmt: skip
    os.close(other)
    drawn = b""
    try:
        while part := os.read(main_, 4_096):
            drawn += part
    except OSError:  # the other side is closed
        pass
    os.close(main_)
    assert result.returncode == 0
    assert b"requests, " in drawn
    assert drawn.rstrip().endswith(b"\x1b[K")
    assert "\r" not in run("replay", file, log).stderr


def test_the_bar_tells_the_part_the_rate_and_the_time_left() -> None:
    class Half:
        requests = 5_000
        read = 50
        size: int | None = 100

    assert Progress(Half()).line(10) == (
        f"[{'#' * 15}{' ' * 15}]  50%  5,000 requests, 500/s, 10 s left"
    )
    Half.size = None
    assert Progress(Half()).line(10) == "5,000 requests, 500/s"
