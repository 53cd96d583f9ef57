"""The table of all loads, printed at the end of the run; and a line for each run as it comes.

RATELIMIT_LOAD_TABLE may name a file to write the table to; in one that has such a table it is
replaced: ``RATELIMIT_LOAD_TABLE=docs/faults.md make load``.
"""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from tests.chaos.conftest import markdown
from tests.load.table import Table

_TABLE: Final = re.compile(r"^\| load .*\n(\|.*\n)*", re.MULTILINE)
_KEPT: Final = pytest.StashKey[Table]()


@pytest.fixture(scope="session")
def table(request: pytest.FixtureRequest) -> Table:
    """The table that is printed at the end."""
    return request.config.stash.setdefault(_KEPT, Table())


@pytest.fixture
def say(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Prints a line at once, whatever pytest captures."""
    manager = request.config.pluginmanager
    capture: Any = manager.get_plugin("capturemanager")
    reporter: Any = manager.get_plugin("terminalreporter")

    def write(line: str) -> None:
        if reporter is not None and capture is not None:
            with capture.global_and_fixture_disabled():
                reporter.ensure_newline()
                reporter.write_line(line)

    return write


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    table = terminalreporter.config.stash.get(_KEPT, None)
    if table is None or not (rows := table.rows()):
        return
    text = markdown(rows)
    terminalreporter.section("loads")
    terminalreporter.write_line(text)
    if path := os.environ.get("RATELIMIT_LOAD_TABLE"):
        file = Path(path)
        page = file.read_text(encoding="utf-8") if file.exists() else ""
        if not (found := _TABLE.search(page)):
            page += text + "\n"
        else:
            page = page[: found.start()] + text + "\n" + page[found.end() :]
        file.write_text(page, encoding="utf-8")
