"""The `ratelimit` command as a whole: what its page shows of it, and how shells complete it."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from ratelimit.cli.main import main
from tests.insight.replay.logs import combined, traffic, written
from tests.support.servers import Server

PAGE = (Path(__file__).parents[2] / "docs" / "command.md").read_text()
NGINX = """
http {
    limit_req_zone $binary_remote_addr zone=one:10m rate=10r/s;
    server {
        location /search/ {
            limit_req zone=one burst=5 nodelay;
            limit_req_status 429;
        }
    }
}
"""
COMMANDS = re.findall(r"^\$ ratelimit (.+)$", PAGE, re.MULTILINE)


@pytest.mark.parametrize("command", [each for each in COMMANDS if each[:5] != "serve"])
def test_what_the_documentation_types_runs(
    command: str, empty: Server, rules: str, tmp_path: Path
) -> None:
    """Against a server and a file of the test's; what is redirected is printed."""
    words = shlex.split(command.partition(" > ")[0])
    log = written(tmp_path / "access.log", map(combined, traffic(100, seed=1)))
    nginx = tmp_path / "nginx.conf"
    nginx.write_text(NGINX)
    known = {
        "redis://localhost:6379/0": empty.url, "rules.yaml": rules, "rules/*.yaml": rules,
        "access.log": log, "nginx.conf": str(nginx),
    }  # fmt: skip
    if words[0] == "unban":
        banning = tmp_path / "banning.yaml"
        ban = "ban: {after: 10, within: 1m, for: 10m}"
        banning.write_text(
            Path(rules).read_text().replace("name: login", f"name: login\n    {ban}")
        )
        known["rules.yaml"] = str(banning)
    arguments = [known.get(word, word) for word in words]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == (1 if "--strict" in arguments else 0), result.output


def test_the_documentation_shows_every_command() -> None:
    assert {command.split()[0] for command in COMMANDS} == set(main.commands)


def completed(shell: str, **more: str) -> str:
    """What the command prints in place of its work, where a shell asks it."""
    code = "from ratelimit.cli import main; main(prog_name='ratelimit')"
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "_RATELIMIT_COMPLETE": shell, **more}, capture_output=True, text=True,
        check=True,
    ).stdout  # fmt: skip


def test_shells_are_given_the_completion_that_the_page_shows() -> None:
    shown = re.findall(r"_RATELIMIT_COMPLETE=(\w+)_source ratelimit", PAGE)
    assert shown == ["bash", "zsh", "fish"]
    for shell in shown:
        if shell == "bash" and shutil.which("bash") is None:
            pytest.skip("bash is not installed")
        assert "ratelimit" in completed(f"{shell}_source")


def test_commands_options_and_files_are_completed() -> None:
    def words(line: str) -> list[str]:
        count = str(len(line.split(" ")) - 1)
        return completed("bash_complete", COMP_WORDS=line, COMP_CWORD=count).split()

    assert words("ratelimit ki") == ["plain,kill"]
    assert words("ratelimit kill --fo") == ["plain,--force"]
    assert words("ratelimit check rul") == ["file,rul"]
    assert words("ratelimit kill - login --rules ru") == ["file,ru"]
