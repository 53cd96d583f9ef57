"""Litestar, Quart, BlackSheep and Django, run for real: docs/frameworks.md, block by block."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import httpx
import pytest

from ratelimit import limit
from tests.support.pages import ROOT, Block, blocks

pytestmark = pytest.mark.slow

PAGE: Final = ROOT / "docs" / "frameworks.md"
BLOCKS: Final = {block.heading: block for block in blocks(PAGE) if block.language == "python"}


def load(block: Block, folder: Path) -> ModuleType:
    """Runs a block as a module; Django finds its routes in it by name."""
    name = f"page_{block.heading.lower()}"
    path = folder / f"{name}.py"
    path.write_text(block.text, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


async def statuses(app: Any, path: str, count: int) -> list[int]:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return [(await client.get(path)).status_code for _ in range(count)]


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the frameworks' own
async def test_the_middleware_limits_an_application_of_another_framework(
    name: str, tmp_path: Path
) -> None:
    pytest.importorskip(name.lower(), reason=f"{name} NOT INSTALLED: not run (`make test-all`)")
    module = load(BLOCKS[name], tmp_path)
    if name == "BlackSheep":
        await module.inner.start()
    assert await statuses(module.app, "/", 4) == [200, 200, 200, 429]


@pytest.mark.parametrize("name", BLOCKS)
def test_the_applications_of_other_frameworks_pass_a_type_checker(
    name: str, tmp_path: Path
) -> None:
    pytest.importorskip(name.lower(), reason=f"{name} NOT INSTALLED: not checked (`make test-all`)")
    tmp_path.joinpath("page.py").write_text(BLOCKS[name].text, encoding="utf-8")
    options = ["--check-untyped-defs", "--warn-unused-ignores", "--ignore-missing-imports"]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options, "--config-file=", "page.py"],
        cwd=tmp_path, env={"MYPYPATH": str(ROOT), "PATH": ""}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


async def test_in_litestar_a_limit_on_an_endpoint_is_refused_when_the_application_is_built() -> (
    None
):
    litestar = pytest.importorskip("litestar")
    exceptions = pytest.importorskip("litestar.exceptions")

    async def endpoint() -> str:
        return "hello"

    handler = litestar.get("/")(limit("1/minute")(endpoint))
    with pytest.raises(exceptions.ImproperlyConfiguredException, match="ratelimit_connection"):
        litestar.Litestar([handler])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
async def test_in_quart_a_limit_on_an_endpoint_is_an_error_that_says_what_to_do(
    caplog: pytest.LogCaptureFixture,
) -> None:
    quart = pytest.importorskip("quart")
    app = quart.Quart(__name__)

    async def endpoint() -> str:
        return "hello"

    app.get("/")(limit("1/minute")(endpoint))
    assert await statuses(app, "/", 2) == [500, 500]
    assert "put RateLimitMiddleware around" in caplog.text


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
async def test_in_blacksheep_a_limit_on_an_endpoint_is_refused_when_the_application_starts() -> (
    None
):
    blacksheep = pytest.importorskip("blacksheep")
    normalization = pytest.importorskip("blacksheep.server.normalization")
    routing = pytest.importorskip("blacksheep.server.routing")
    app = blacksheep.Application(router=routing.Router())

    async def endpoint() -> str:
        return "hello"

    app.router.get("/")(limit("1/minute")(endpoint))
    with pytest.raises(normalization.UnsupportedSignatureError, match="keyword only parameters"):
        await app.start()


async def test_in_django_a_limit_on_a_view_is_an_error_that_says_what_to_do() -> None:
    http = pytest.importorskip("django.http")

    async def view(request: Any) -> Any:
        return http.HttpResponse("hello")

    with pytest.raises(RuntimeError, match="put RateLimitMiddleware around"):
        await limit("1/minute")(view)(http.HttpRequest())
