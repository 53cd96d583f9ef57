"""The typed usage as several type checkers see it: what mypy refuses, and nothing else."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

FILES: Final = [Path(__file__).with_name(name) for name in ("functions.py", "usage.py")]
REFUSED: Final = {
    (path.name, number)
    for path in FILES
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
    if "# type: ignore" in line
}
"""The lines that mypy refuses, and is told to ignore; it refuses an ignore without a mistake."""

ROOT: Final = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.slow


def output_of(module: str, *arguments: str) -> str:
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} NOT INSTALLED: `make test-all` installs it")
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments, *map(str, FILES)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout, done.stderr
    return done.stdout


def test_pyright_refuses_the_same_lines() -> None:
    text = output_of(
        "basedpyright", "--pythonpath", sys.executable, "--level", "error", "--outputjson"
    )
    found = json.loads(text)["generalDiagnostics"]
    assert {(Path(each["file"]).name, each["range"]["start"]["line"] + 1) for each in found} == (
        REFUSED
    )


def test_ty_refuses_none_of_the_other_lines() -> None:
    """It is young, and does not see every mistake yet."""
    text = output_of("ty", "check", "--python", sys.prefix, "--output-format", "concise")
    lines = re.findall(r"^(\S+?):(\d+):\d+: error", text, re.MULTILINE)
    found = {(Path(file).name, int(number)) for file, number in lines}
    assert len(found) > 20
    assert found <= REFUSED


def test_pyrefly_refuses_none_of_the_other_lines() -> None:
    text = output_of(
        "pyrefly", "check", "--python-interpreter-path", sys.executable, "--output-format", "json"
    )
    assert json.loads(text)["errors"] == []
