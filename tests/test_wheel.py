"""The built wheel is what users have, so it is built, looked into, and run outside the tree."""

import importlib.util
import json
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Final
from zipfile import ZipFile

import pytest

from tests.support.environments import dependencies

ROOT: Final = Path(__file__).resolve().parents[1]

APPLICATION: Final = """
import asyncio, json
import httpx
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

import ratelimit
from ratelimit import Algorithm, MemoryStore, RateLimiter, RateLimitMiddleware, Rule

async def home(request: Request) -> Response:
    return Response()

# A leaking bucket's second request waits 5 ms; the others' do not.
rules = [Rule(str(name), "2/10ms", path="/" + name, algorithm=name) for name in Algorithm]
limiter = RateLimiter(rules, store=MemoryStore(clock=lambda: 1_000_000))
app = Starlette(
    routes=[Route("/{any}", home)],
    middleware=[Middleware(RateLimitMiddleware, limiter=limiter)],
)

async def main() -> None:
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        statuses = {
            name: [(await client.get("/" + name)).status_code for _ in range(3)]
            for name in Algorithm
        }
    print(json.dumps({"file": ratelimit.__file__, "statuses": statuses}))

asyncio.run(main())
"""


def run(*arguments: str, cwd: Path, **environment: str) -> str:
    """What a Python command prints; its errors are the test's."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the source distribution, as a release would be; without a network."""
    missing = [name for name in ("build", "hatchling", "pip") if not importlib.util.find_spec(name)]
    if missing:
        pytest.skip(
            f"{', '.join(missing)} NOT INSTALLED: the wheel is not tested (see `make test`)"
        )
    if not (ROOT / "README.md").exists():
        pytest.skip("README.md IS MISSING: the wheel cannot be built")
    folder = tmp_path_factory.mktemp("dist")
    run("-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT), cwd=folder)
    (found,) = folder.glob("ratelimit_asgi-*-py3-none-any.whl")
    return found


def test_the_wheel_holds_the_package_with_its_lua_and_types_and_nothing_else(wheel: Path) -> None:
    sources = [*(ROOT / "ratelimit").rglob("*.py"), *(ROOT / "lua").glob("*.lua")]
    expected = {path.relative_to(ROOT).as_posix() for path in sources}
    expected = {f"ratelimit/{name}" if name.startswith("lua/") else name for name in expected}
    page = (ROOT / "ratelimit" / "insight" / "dashboard" / "page").iterdir()
    expected |= {f"ratelimit/insight/dashboard/page/{path.name}" for path in page}
    expected |= {"ratelimit/py.typed", "ratelimit/rules.schema.json", "ratelimit/stores/memory.lua"}
    with ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert len(list((ROOT / "lua").glob("*.lua"))) == 8
    assert "ratelimit/insight/dashboard/page/index.html" in expected
    assert names == expected


def test_the_wheel_describes_itself_by_the_readme_without_relative_links(wheel: Path) -> None:
    with ZipFile(wheel) as archive:
        (name,) = (each for each in archive.namelist() if each.endswith(".dist-info/METADATA"))
        fields, _, text = archive.read(name).decode().partition("\n\n")
    assert "Description-Content-Type: text/markdown" in fields
    assert text.startswith("# ratelimit\n")
    assert re.findall(r"\]\((?!https://|#)[^)]*\)", text) == []


def test_the_installed_wheel_limits_an_application_outside_the_tree(
    wheel: Path, tmp_path: Path
) -> None:
    installed, elsewhere = tmp_path / "installed", tmp_path / "elsewhere"
    elsewhere.mkdir()
    pip = ("-m", "pip", "--disable-pip-version-check", "install", "--quiet")
    run(*pip, "--no-deps", "--no-index", "--target", str(installed), str(wheel), cwd=elsewhere)
    path = os.pathsep.join([str(installed), sysconfig.get_path("purelib")])
    answer = json.loads(run("-c", APPLICATION, cwd=elsewhere, PYTHONPATH=path))
    assert Path(answer["file"]).is_relative_to(installed)
    assert len(answer["statuses"]) == 5
    assert set(map(tuple, answer["statuses"].values())) == {(200, 200, 429)}


@pytest.mark.slow
@pytest.mark.parametrize("versions", ["oldest", "newest"])
def test_the_wheel_works_in_an_empty_environment(
    versions: str, wheel: Path, tmp_path: Path
) -> None:
    """With its own dependencies alone, of the oldest versions that it takes and of the newest."""
    run("-m", "venv", str(tmp_path / "venv"), cwd=tmp_path)
    python = tmp_path / "venv" / "bin" / "python"
    pins = [f"{name}=={oldest}" for name, oldest in dependencies().items()]
    asked = [f"{wheel}[redis,cli]", "httpx", *(pins if versions == "oldest" else [])]
    quiet = ("--disable-pip-version-check", "--quiet")
    pip: list[Path | str] = [python, "-m", "pip", "install", *quiet, *asked]
    installed = subprocess.run(pip, cwd=tmp_path, capture_output=True, text=True, check=False)
    if installed.returncode:
        pytest.skip(f"NOT TESTED with the {versions}: pip failed: {installed.stderr[-500:]}")
    answer = subprocess.run(
        [python, "-W", "error", "-c", APPLICATION],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    assert set(map(tuple, json.loads(answer.stdout)["statuses"].values())) == {(200, 200, 429)}
    command = subprocess.run(
        [python.with_name("ratelimit"), "schema"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert json.loads(command.stdout) == json.loads(
        (ROOT / "docs" / "rules.schema.json").read_text("utf-8")
    )


@pytest.mark.parametrize("module", ["ratelimit.cli.main", "ratelimit.testing.pytest_plugin"])
def test_another_package_written_over_this_one_is_told_in_a_sentence(
    module: str, wheel: Path, tmp_path: Path
) -> None:
    pip = ("-m", "pip", "--disable-pip-version-check", "install", "--quiet")
    run(*pip, "--no-deps", "--no-index", "--target", str(tmp_path), str(wheel), cwd=tmp_path)
    (tmp_path / "ratelimit" / "__init__.py").write_text("__all__ = ['limits', 'rate_limited']\n")
    path = os.pathsep.join([str(tmp_path), sysconfig.get_path("purelib")])
    done = subprocess.run(
        [sys.executable, "-c", f"import {module}"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "another distribution has written its own 'ratelimit' over this one" in done.stderr
    assert "pip install --force-reinstall ratelimit-asgi" in done.stderr
