"""How answers are written: data here, sentences there, and nothing wider than the terminal."""

import io
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from ratelimit.cli.main import main
from ratelimit.cli.output import say, show
from tests.insight.replay.logs import combined, traffic, written
from tests.support.commands import rows, run
from tests.support.servers import Server

ROWS = [
    {
        "rule": "everything",
        "limit": "100/minute",
        "at worst": 200,
        "why": "its path is /{rest:path}",
    },
    {"rule": "a.rather.long.name", "limit": "5/minute; 20/hour", "at worst": 5},
]


class Terminal(io.StringIO):
    """A terminal, as far as programs ask."""

    def isatty(self) -> bool:
        return True


def printed(monkeypatch: pytest.MonkeyPatch, columns: int) -> str:
    """The rows as they are printed on a terminal of so many columns, without colours."""
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stdout", Terminal())
    show(ROWS, json_=False)
    assert isinstance(sys.stdout, io.StringIO)
    return plain(sys.stdout.getvalue())


def plain(text: str) -> str:
    """A terminal's text without its colours."""
    return re.sub(r"\x1b\[[\d;]*m", "", text)


@pytest.mark.parametrize("columns", range(40, 120, 5))
def test_no_line_is_wider_than_the_terminal_and_no_word_is_cut(
    columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = printed(monkeypatch, columns)
    assert max(map(len, found.splitlines())) <= columns
    for row in ROWS:
        for word in " ".join(map(str, row.values())).split():
            assert word in found.split()


def test_rows_that_do_not_fit_beside_each_other_stand_below(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert printed(monkeypatch, 110).splitlines()[0].split() == [
        "rule",
        "limit",
        "at",
        "worst",
        "why",
    ]
    assert printed(monkeypatch, 45).splitlines()[0].split() == ["rule", "everything"]


@pytest.mark.parametrize("columns", [60, 80])
@pytest.mark.parametrize("command", ["", *main.commands])
def test_every_help_fits_a_narrow_terminal(
    columns: int, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))  # which click's own runner for tests overrules
    shown = main.commands.get(command, main)
    lines = shown.get_help(click.Context(shown, info_name=f"ratelimit {command}")).splitlines()
    assert len(lines) > 5
    assert max(map(len, lines)) <= columns


@pytest.mark.parametrize("columns", [60, 80])
def test_a_terminal_shows_tables_that_fit_it(columns: int, rules: str) -> None:
    master, slave = pty.openpty()
    code = "from ratelimit.cli import main; main()"
    environment = {
        **os.environ,
        "COLUMNS": str(columns),
        "TERM": "xterm",
    }
    result = subprocess.run(
        [sys.executable, "-c", code, "check", rules],
        stdout=slave, stderr=subprocess.PIPE, env=environment, check=True,
    )  # fmt: skip
    os.close(slave)
    found = plain(os.read(master, 100_000).decode())
    os.close(master)
    assert max(map(len, found.splitlines())) <= columns
    assert "sliding_counter" in found.split()
    assert b"no mistake" in result.stderr


def test_piped_output_is_plain(rules: str) -> None:
    lines = run("check", rules).stdout.splitlines()
    assert lines[0].split("\t")[:3] == ["RULE", "WHOSE", "MODE"]
    assert lines[1].split("\t")[:3] == ["api", "all", "enforce"]
    assert "\x1b" not in run("check", rules).stdout


def test_a_cell_ends_no_line_and_begins_no_column(capsys: pytest.CaptureFixture[str]) -> None:
    show([{"a": "1\t2\n\x1b[31m3"}], json_=False)
    assert capsys.readouterr().out == "A\n1\\t2\\n\\x1b[31m3\n"


def test_a_sentence_is_no_data(capsys: pytest.CaptureFixture[str]) -> None:
    say("one\ntwo\x1b")
    assert capsys.readouterr() == ("", "one\\ntwo\\x1b\n")


BANNING = """
version: 1
rules: [{name: api, limit: 100/minute, ban: {after: 10, within: 1m, for: 10m}}]
"""


def test_every_command_that_tells_something_takes_json_and_prints_that_alone(
    empty: Server, rules: str, tmp_path: Path
) -> None:
    log = written(tmp_path / "log", map(combined, traffic(100, seed=1)))
    banning = tmp_path / "banning.yaml"
    banning.write_text(BANNING, encoding="utf-8")
    of_store = {"inspect": ["api", "::1"], "reset": ["api", "::1"], "top": [], "kill": ["api"]}
    words = {name: [empty.url, *more, "--rules", rules] for name, more in of_store.items()}
    words |= {
        "revive": [empty.url, "api"], "schema": [], "check": [rules],
        "unban": [empty.url, "api", "::1", "--rules", str(banning)],
        "explain": [rules, "GET", "/"], "replay": [rules, log], "plan": [log],
    }  # fmt: skip
    assert words.keys() == main.commands.keys() - {"convert", "serve"}
    for command, arguments in words.items():
        assert isinstance(rows(command, *arguments), list | dict)
