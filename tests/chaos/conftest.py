"""The table of all faults, printed at the end of the run.

RATELIMIT_FAULTS_TABLE may name a file to write it to; in one that has such a table it is replaced:
``RATELIMIT_FAULTS_TABLE=docs/faults.md RATELIMIT_TEST_ALL=1 python -m pytest tests/chaos``.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import pytest

_TABLE: Final = re.compile(r"^\| fault .*\n(\|.*\n)*", re.MULTILINE)
ROWS: Final = pytest.StashKey[list[Mapping[str, str]]]()


@pytest.fixture(scope="session")
def table(request: pytest.FixtureRequest) -> list[Mapping[str, str]]:
    """Rows of the table that is printed at the end."""
    return request.config.stash.setdefault(ROWS, [])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    rows = terminalreporter.config.stash.get(ROWS, [])
    if not rows:
        return
    text = markdown(rows)
    terminalreporter.section("faults")
    terminalreporter.write_line(text)
    if path := os.environ.get("RATELIMIT_FAULTS_TABLE"):
        file = Path(path)
        page = file.read_text(encoding="utf-8") if file.exists() else ""
        if not (found := _TABLE.search(page)):
            page = text + "\n"
        else:
            page = page[: found.start()] + text + "\n" + page[found.end() :]
        file.write_text(page, encoding="utf-8")


def markdown(rows: list[Mapping[str, str]]) -> str:
    """A table whose columns are as wide as they need to be."""
    lines = [list(rows[0]), *(list(row.values()) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join("| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines)
