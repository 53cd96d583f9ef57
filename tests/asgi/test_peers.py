"""Other limiters beside ours on one application: what docs/index.md and the README say of them."""

import asyncio
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from fastapi import APIRouter, Depends, FastAPI

from ratelimit import RateLimiter, RateLimitMiddleware, Rule, limit
from tests.support.pages import ROOT, blocks
from tests.support.servers import Server, free_port, wait_until

pytestmark = pytest.mark.slow


def included(app: FastAPI) -> FastAPI:
    """An application with a route of its own and one in a router that it includes."""
    router = APIRouter()

    @app.get("/own")
    async def own() -> str:
        return "own"

    @router.get("/included")
    async def below() -> str:
        return "included"

    app.include_router(router)
    return app


def ours() -> FastAPI:
    app = included(FastAPI())
    app.add_middleware(RateLimitMiddleware, limiter=RateLimiter([Rule("default", "1/minute")]))
    return app


def slowapis() -> FastAPI:
    slowapi = pytest.importorskip("slowapi", reason="slowapi NOT INSTALLED (`make test-all`)")
    middleware: Any = pytest.importorskip("slowapi.middleware")
    util: Any = pytest.importorskip("slowapi.util")
    app = FastAPI()
    app.state.limiter = slowapi.Limiter(
        key_func=util.get_remote_address, default_limits=["1/minute"]
    )
    app.add_middleware(middleware.SlowAPIMiddleware)
    return included(app)


async def statuses(app: FastAPI, path: str, count: int, **fields: str) -> list[int]:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(
        transport=transport, base_url="http://test", headers=fields
    ) as client:
        return [(await client.get(path)).status_code for _ in range(count)]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # slowapi's own
@pytest.mark.parametrize(
    ("make", "expected"), [(ours, [429, 429, 429]), (slowapis, [200, 200, 200])]
)
async def test_default_limits_reach_an_included_router_with_ours_and_not_with_slowapis(
    make: Callable[[], FastAPI], expected: list[int]
) -> None:
    """One request each to the route of the application's own, which both limit to one a minute."""
    app = make()
    own = await statuses(app, "/own", 2)
    assert own == [200, 429]
    assert await statuses(app, "/included", 3) == expected


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
async def test_a_request_that_slowapi_refuses_has_used_up_its_other_limits() -> None:
    """Of 4/minute and 2/minute on one route, and then the first alone, shared with another."""
    slowapi = pytest.importorskip("slowapi")
    util: Any = pytest.importorskip("slowapi.util")
    errors: Any = pytest.importorskip("slowapi.errors")
    theirs = slowapi.Limiter(key_func=util.get_remote_address)
    app = FastAPI()
    app.state.limiter = theirs
    app.add_exception_handler(errors.RateLimitExceeded, slowapi._rate_limit_exceeded_handler)
    from fastapi import Request  # noqa: PLC0415  # slowapi reads the annotation

    async def narrow(request: Request) -> str:
        return "narrow"

    async def wide(request: Request) -> str:
        return "wide"

    shared = theirs.shared_limit("4/minute", scope="both")
    app.get("/narrow")(theirs.limit("2/minute")(shared(narrow)))
    app.get("/wide")(shared(wide))
    narrow_ones = await statuses(app, "/narrow", 4)
    assert narrow_ones == [200, 200, 429, 429]
    left_with_slowapi = (await statuses(app, "/wide", 4)).count(200)

    mine = FastAPI()
    mine.add_middleware(RateLimitMiddleware, limiter=RateLimiter(store="memory://"))

    async def mine_narrow() -> str:
        return "narrow"

    async def mine_wide() -> str:
        return "wide"

    together = limit("4/minute", scope="both")
    mine.get("/narrow")(limit("2/minute")(together(mine_narrow)))
    mine.get("/wide")(together(mine_wide))
    assert await statuses(mine, "/narrow", 4) == [200, 200, 429, 429]
    assert (await statuses(mine, "/wide", 4)).count(200) == 2
    assert left_with_slowapi < 2


async def test_fastapi_limiter_fails_on_an_included_router() -> None:
    fastapi_limiter = pytest.importorskip("fastapi_limiter.depends")
    pyrate = pytest.importorskip("pyrate_limiter")
    theirs = fastapi_limiter.RateLimiter(
        limiter=pyrate.Limiter(pyrate.Rate(1, pyrate.Duration.MINUTE))
    )
    app = FastAPI()
    router = APIRouter(dependencies=[Depends(theirs)])

    @router.get("/included")
    async def below() -> str:
        return "included"

    app.include_router(router)
    with pytest.raises(AttributeError, match="_IncludedRouter"):
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://test"
        ) as client:
            await client.get("/included")


async def test_the_middleware_of_fastapi_redis_sdk_reaches_an_included_router(
    redis_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    redis_server.command("FLUSHALL")
    monkeypatch.setenv("REDIS_URL", redis_server.url)
    sdk: Any = pytest.importorskip("redis_fastapi")
    app = included(FastAPI())
    sdk.FastAPIRedis(app).lifespan().rate_limiting(global_rate=(2, 3600))
    async with app.router.lifespan_context(app):
        assert await statuses(app, "/included", 3) == [200, 200, 429]


NGINX: Final = """
daemon off;
pid nginx.pid;
error_log stderr;
events {{}}
http {{
    access_log off;
    client_body_temp_path .; proxy_temp_path .; fastcgi_temp_path .; uwsgi_temp_path .;
    scgi_temp_path .;
    {zones}
    server {{
        listen 127.0.0.1:{port};
        {locations}
    }}
}}
"""


@pytest.fixture
def nginx(tmp_path: Path) -> Iterator[str]:
    """A real nginx with the configuration of docs/migration.md, each location with its own zone."""
    binary = os.environ.get("RATELIMIT_NGINX") or shutil.which("nginx")
    if binary is None:
        pytest.skip("nginx NOT INSTALLED (RATELIMIT_NGINX names one): not compared")
    (block,) = (b for b in blocks(ROOT / "docs" / "migration.md") if b.title == "nginx")
    zone, status, *locations = [line for line in block.text.splitlines() if line]
    port = free_port()
    text = NGINX.format(
        port=port,
        zones=status + "".join(zone.replace("=api", f"=z{n}") for n in range(len(locations))),
        locations="".join(
            line.replace("=api", f"=z{n}").replace("}", "empty_gif; }")
            for n, line in enumerate(locations)
        ),
    )
    (tmp_path / "nginx.conf").write_text(text, encoding="utf-8")
    command = [binary, "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf")]
    with subprocess.Popen(command) as run:
        try:
            wait_until(lambda: is_open(port), "nginx to listen")
            yield f"http://127.0.0.1:{port}"
        finally:
            run.terminate()


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize(
    ("path", "wait_s"), [("/api/items", 0.0), ("/search", 2.0), ("/download", 1.2)]
)
async def test_nginx_lets_through_what_the_rules_that_translate_it_do(
    nginx: str, path: str, wait_s: float
) -> None:
    """21 of 30 at once; the last after as long as tests/test_docs.py finds for the rules."""
    async with httpx.AsyncClient(base_url=nginx, timeout=30) as client:

        async def one() -> tuple[int, float]:
            response = await client.get(path)
            return response.status_code, time.monotonic() - start

        start = time.monotonic()
        answers = await asyncio.gather(*(one() for _ in range(30)))
    passed = sorted(took for status, took in answers if status == 200)
    assert {status for status, _ in answers} == {200, 429}
    assert len(passed) == 21
    assert passed[-1] >= wait_s - 0.05
