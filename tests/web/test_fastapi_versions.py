"""FastAPI below 0.137, which keeps included routers as one flat list."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NEEDED = [
    "fastapi==0.136.*", "lupa", "pydantic", "pyyaml", "redis", "http-sf", "httpx", "httpx2",
    "hypothesis", "pytest", "pytest-asyncio", "uvicorn[standard]",
]  # fmt: skip


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    return subprocess.run(
        command, cwd=ROOT, env=clean, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_the_web_layer_is_the_same_with_fastapi_below_0_137(tmp_path: Path) -> None:
    """Every test of this folder passes there, in an environment made for it."""
    made = run(sys.executable, "-m", "venv", tmp_path / "old")
    assert made.returncode == 0, made.stderr
    python = tmp_path / "old" / "bin" / "python"
    installed = run(python, "-m", "pip", "install", "--quiet", *NEEDED)
    if installed.returncode:
        pytest.skip(f"FastAPI below 0.137 NOT TESTED: pip failed: {installed.stderr[-500:]}")
    version = run(python, "-c", "import fastapi; print(fastapi.__version__)").stdout
    assert version.startswith("0.136.")
    tested = run(
        python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/web",
        f"--ignore=tests/web/{Path(__file__).name}", "--ignore=tests/web/test_uvicorn.py",
    )  # fmt: skip
    assert tested.returncode == 0, tested.stdout + tested.stderr
    assert " passed" in tested.stdout
