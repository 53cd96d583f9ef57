"""Every piece of Python in the README and in docs/ runs, and passes a type checker.

The pieces of a page are one module. A first line such as ``# app.py`` begins one of its own, and a
later piece of that name another in its place; a page that leaves something to its reader has it in
`GIVEN`. A piece that bears another program's name (``title=``) is that program's.
"""

import ast
import asyncio
import inspect
import re
import subprocess
import sys
import textwrap
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.support.pages import PAGES as ALL_PAGES
from tests.support.pages import ROOT

FOREIGN: Final = "frameworks.md"
"""Of frameworks that not every machine has: tests/asgi/test_frameworks.py runs it."""
PAGES: Final = [page for page in ALL_PAGES if page.name != FOREIGN]

_LIMITER: Final = "from ratelimit import RateLimiter\n\nlimiter = RateLimiter()\n"
GIVEN: Final = {
    "failures.md": f"from fastapi import FastAPI\n{_LIMITER}\napp = FastAPI()\n",
    "identity.md": f'{_LIMITER}\nlines = ["203.0.113.0/24", "2001:db8::/32"]\n',
    "middleware-order.md": """
from fastapi import FastAPI
from starlette.authentication import AuthenticationBackend
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware

from ratelimit import RateLimiter, RateLimitMiddleware

clients, users, Tokens = RateLimiter(), RateLimiter(), AuthenticationBackend
""",
}

RULES: Final = (
    'version: 1\nrules:\n  - {name: api, match: {path: "/api/{rest:path}"}, limit: 100/minute}\n'
)


def modules(page: Path) -> Iterator[tuple[str, str]]:
    """The names and sources of the modules that a page shows."""
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    named: dict[str, list[str]] = {}
    for number, block in enumerate(blocks):
        own = re.match(r"# ([a-z_]+)\.py\n", block)
        name = own[1] if own else page.stem.replace("-", "_").lower()
        named.setdefault(f"{name}_{number}" if own and name in named else name, []).append(block)
    for name, pieces in named.items():
        yield name, "\n\n".join([GIVEN.get(page.name, ""), *pieces])


def awaits(source: str) -> bool:
    """Whether it waits outside of any function, as in a notebook."""
    flag = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    return bool(compile(source, "page", "exec", flag).co_flags & inspect.CO_COROUTINE)


SHOWN: Final = [(page, name, source) for page in PAGES for name, source in modules(page)]


def test_the_pages_show_python() -> None:
    assert {"README.md", "routes.md", "testing.md"} <= {page.name for page, _, _ in SHOWN}
    assert GIVEN.keys() <= {page.name for page, _, _ in SHOWN}


@pytest.mark.filterwarnings("ignore::pytest.PytestAssertRewriteWarning")
@pytest.mark.parametrize(
    ("page", "name", "source"), SHOWN, ids=lambda each: getattr(each, "name", "")
)
def test_the_python_of_a_page_runs(
    page: Path, name: str, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rules.yaml").write_text(RULES, "utf-8")
    monkeypatch.chdir(tmp_path)
    for _, other, text in [each for each in SHOWN if each[0] == page and each[1] != name]:
        (tmp_path / f"{other}.py").write_text(text, "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    module = types.ModuleType(f"page_{name}")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    code = compile(source, f"{page.name}: {name}.py", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    waiting = eval(code, module.__dict__)
    if inspect.iscoroutine(waiting):
        asyncio.run(waiting)


def test_the_python_of_the_pages_passes_a_type_checker(tmp_path: Path, cache: pytest.Cache) -> None:
    pytest.importorskip("mypy")
    for page, name, source in SHOWN:
        folder = tmp_path / page.stem.replace("-", "_").lower()
        folder.mkdir(exist_ok=True)
        if awaits(source):
            source = f"async def main() -> None:\n{textwrap.indent(source, '    ')}"  # noqa: PLW2901
        (folder / f"{name}.py").write_text(source, "utf-8")
    known = cache.mkdir("mypy")  # what the library's own types are, from one run to the next
    said = [checked(folder, known) for folder in sorted(tmp_path.iterdir()) if folder.is_dir()]
    assert said == [""] * len(said), "\n".join(said)


def checked(folder: Path, known: Path) -> str:
    """What mypy says against the modules of a folder."""
    options = ["--check-untyped-defs", "--warn-unused-ignores", "--no-error-summary"]
    options += [f"--cache-dir={known}", "--config-file=", "--hide-error-context"]
    found = subprocess.run(
        [
            sys.executable,
            "-m",
            "mypy",
            *options,
            *sorted(each.name for each in folder.glob("*.py")),
        ],
        cwd=folder,
        env={"MYPYPATH": str(ROOT), "PATH": "", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    return f"{folder.name}: {found.stdout}{found.stderr}" if found.returncode else ""
