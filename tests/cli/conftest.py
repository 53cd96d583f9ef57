"""Fixtures of the command's tests: a rule file, and a server that holds nothing."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.commands import RULES
from tests.support.servers import Server


@pytest.fixture
def rules(tmp_path: Path) -> str:
    """A rule file that has something of everything."""
    file = tmp_path / "rules.yaml"
    file.write_text(RULES)
    return str(file)


@pytest.fixture
def empty(redis_server: Server) -> Iterator[Server]:
    """A server without a key."""
    redis_server.command("FLUSHALL")
    yield redis_server
    redis_server.command("FLUSHALL")
