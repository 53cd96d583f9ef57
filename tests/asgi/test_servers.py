"""Real uvicorn, with each of its HTTP implementations, around what applications are made of."""

import asyncio
import contextvars
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

import httpx
import pytest
import uvicorn
from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI, Request
from fastapi.responses import FileResponse, PlainTextResponse, StreamingResponse
from starlette.applications import Starlette
from starlette.routing import Mount, Route

from ratelimit import MemoryStore, RateLimit, RateLimiter, RateLimitMiddleware, Rule, exempt, limit
from tests.support.asgi import QUOTA_EXCEEDED
from tests.support.servers import wait_until

MEBIBYTE = b"x" * 1_048_576
SEEN: contextvars.ContextVar[str] = contextvars.ContextVar("seen", default="unset")


class Closed(MemoryStore):
    """A store that remembers whether it was closed."""

    closed = False

    async def aclose(self) -> None:
        self.closed = True
        await super().aclose()


class Site:
    """An application of every kind of answer, each client of which may ask 20 times an hour."""

    def __init__(self, folder: Path) -> None:
        self.events: list[str] = []
        self.store = Closed()
        by_test = [Rule("api", "20/hour", by="header:x-test", algorithm="sliding_log")]
        file = folder / "file"
        file.write_bytes(MEBIBYTE)

        @asynccontextmanager
        async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
            self.events.append("startup")
            yield {"from_lifespan": "state"}
            self.events.append("shutdown")

        self.app = app = FastAPI(lifespan=lifespan)
        app.add_middleware(RateLimitMiddleware, limiter=RateLimiter(by_test, store=self.store))

        @app.get("/stream")
        async def stream() -> StreamingResponse:
            async def chunks() -> AsyncIterator[bytes]:
                for _ in range(4):
                    yield MEBIBYTE[:262_144]

            return StreamingResponse(chunks(), media_type="text/plain")

        @app.get("/events")
        async def events(request: Request) -> StreamingResponse:
            async def endless() -> AsyncIterator[bytes]:
                yield b"data: tick\n\n"
                try:
                    while (await request.receive())["type"] != "http.disconnect":
                        pass
                finally:
                    self.events.append("client gone")

            return StreamingResponse(endless(), media_type="text/event-stream")

        @app.get("/file")
        async def download() -> FileResponse:
            return FileResponse(file)

        @app.post("/upload")
        async def upload(request: Request) -> int:
            return sum([len(chunk) async for chunk in request.stream()])

        @app.get("/background")
        async def background(tasks: BackgroundTasks) -> str:
            tasks.add_task(self.events.append, "background")
            return "accepted"

        @app.get("/context")
        def context() -> dict[str, str]:
            before, name = SEEN.get(), threading.current_thread().name
            SEEN.set("by a request")
            return {"before": before, "thread": name}

        @app.get("/state")
        async def state(request: Request) -> str:
            return str(request.state.from_lifespan)

        @app.get("/broken")
        async def broken() -> None:
            raise ZeroDivisionError("the application's own")

        @app.get("/free")
        @exempt
        async def free() -> str:
            return "free"

        router = APIRouter(prefix="/v1", dependencies=[Depends(RateLimit("2/hour", scope="v1"))])

        @router.get("/included/{item}")
        async def included(item: str) -> str:
            return item

        app.include_router(router, prefix="/api")

        @limit("2/hour", scope="mounted")
        async def mounted(request: Request) -> PlainTextResponse:
            return PlainTextResponse(request.scope["root_path"])

        app.mount("/mounted", Starlette(routes=[Mount("/deep", routes=[Route("/x", mounted)])]))

        sub = FastAPI()
        sub.get("/y")(limit("2/hour", scope="sub")(lambda: "sub"))
        app.mount("/sub", sub)


class Serving:
    """A uvicorn in a thread of its own, on a port that the kernel chose, within the context."""

    def __init__(self, site: Site, **options: Any) -> None:
        self.site = site
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._server = uvicorn.Server(
            uvicorn.Config(site.app, log_level="critical", timeout_graceful_shutdown=5, **options)
        )
        self._thread = threading.Thread(
            target=self._server.run, args=([self._listener],), daemon=True
        )

    def __enter__(self) -> Self:
        self._thread.start()
        wait_until(lambda: self._server.started, "uvicorn serves", 20)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(20)
        assert not self._thread.is_alive()


@pytest.fixture(scope="module", params=["h11", "httptools"])
def serving(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Iterator[Serving]:
    site = Site(tmp_path_factory.mktemp("site"))
    with Serving(site, http=request.param) as serving:
        yield serving


@pytest.fixture
async def client(
    serving: Serving, request: pytest.FixtureRequest
) -> AsyncIterator[httpx.AsyncClient]:
    """One that counts as itself in each test."""
    headers = {"x-test": request.node.name}
    async with httpx.AsyncClient(base_url=serving.url, headers=headers) as client:
        yield client


async def exhaust(client: httpx.AsyncClient) -> None:
    """Uses up what the client's quota of 20 has left."""
    while (await client.get("/state")).status_code == 200:
        pass


BODIES = {"/stream": MEBIBYTE, "/file": MEBIBYTE, "/background": b'"accepted"'}


@pytest.mark.parametrize("path", BODIES)
async def test_an_answer_of_any_kind_arrives_whole_with_its_fields(
    client: httpx.AsyncClient, path: str
) -> None:
    answer = await client.get(path)
    assert answer.status_code == 200
    assert answer.content == BODIES[path]
    assert answer.headers["ratelimit"] == '"api";r=19'
    assert answer.headers["ratelimit-policy"] == '"api";q=20;w=3600'


@pytest.mark.parametrize("path", [*BODIES, "/broken", "/nothing", "/mounted/deep/x", "/sub/y"])
async def test_a_refusal_is_the_same_whatever_would_have_answered(
    client: httpx.AsyncClient, path: str
) -> None:
    await exhaust(client)
    answer = await client.get(path)
    assert answer.status_code == 429
    assert answer.json()["type"] == QUOTA_EXCEEDED
    assert answer.json()["violated-policies"] == ["api"]
    assert 3590 <= int(answer.headers["retry-after"]) <= 3600
    assert int(answer.headers["content-length"]) == len(answer.content)


async def test_a_part_of_a_file_can_be_asked_for(client: httpx.AsyncClient) -> None:
    answer = await client.get("/file", headers={"range": "bytes=10-19"})
    assert (answer.status_code, answer.content) == (206, b"x" * 10)
    assert answer.headers["ratelimit"] == '"api";r=19'


async def test_an_upload_reaches_the_endpoint_whole(client: httpx.AsyncClient) -> None:
    answer = await client.post("/upload", content=MEBIBYTE)
    assert (answer.status_code, answer.json()) == (200, len(MEBIBYTE))


async def test_an_upload_that_is_refused_is_answered_and_harms_no_later_request(
    client: httpx.AsyncClient,
) -> None:
    await exhaust(client)
    assert (await client.post("/upload", content=MEBIBYTE)).status_code == 429
    assert (await client.get("/free")).json() == "free"


async def test_a_client_that_leaves_a_stream_ends_it(
    client: httpx.AsyncClient, serving: Serving
) -> None:
    events = serving.site.events
    gone = events.count("client gone")
    async with client.stream("GET", "/events") as answer:
        assert answer.headers["ratelimit"] == '"api";r=19'
        assert await anext(aiter(answer.aiter_bytes())) == b"data: tick\n\n"
    await asyncio.to_thread(wait_until, lambda: events.count("client gone") == gone + 1, "it ended")


async def test_a_background_task_runs_after_an_answer_and_not_after_a_refusal(
    client: httpx.AsyncClient, serving: Serving
) -> None:
    events = serving.site.events
    before = events.count("background")
    assert (await client.get("/background")).status_code == 200
    await asyncio.to_thread(
        wait_until, lambda: events.count("background") == before + 1, "the task ran"
    )
    await exhaust(client)
    assert (await client.get("/background")).status_code == 429
    await client.get("/free")
    assert events.count("background") == before + 1


async def test_a_sync_endpoint_runs_in_a_thread_and_leaves_no_context_to_the_next_request(
    client: httpx.AsyncClient,
) -> None:
    answers = [(await client.get("/context")).json() for _ in range(3)]
    assert [answer["before"] for answer in answers] == ["unset"] * 3
    assert all("AnyIO" in answer["thread"] for answer in answers)


async def test_what_the_lifespan_leaves_in_the_state_reaches_the_endpoints(
    client: httpx.AsyncClient,
) -> None:
    assert (await client.get("/state")).json() == "state"


async def test_an_error_of_the_application_is_its_500_and_was_counted(
    client: httpx.AsyncClient,
) -> None:
    # uvicorn closes the connection after such an answer.
    assert (await client.get("/broken", headers={"connection": "close"})).status_code == 500
    assert (await client.get("/state")).headers["ratelimit"] == '"api";r=18'


async def test_an_exempt_endpoint_answers_a_client_without_quota(client: httpx.AsyncClient) -> None:
    await exhaust(client)
    answer = await client.get("/free")
    assert (answer.status_code, answer.json()) == (200, "free")
    assert "ratelimit" not in answer.headers


@pytest.mark.parametrize(
    ("path", "policy"),
    [("/api/v1/included/{}", "v1"), ("/mounted/deep/x?{}", "mounted"), ("/sub/y?{}", "sub")],
)
async def test_limits_in_included_routers_mounts_and_sub_applications_hold(
    serving: Serving, path: str, policy: str
) -> None:
    """Whatever the parameter, and beside the middleware's rule, to which it is given back."""
    from_one_place = httpx.AsyncHTTPTransport(local_address=f"127.0.3.{len(policy)}")
    headers = {"x-test": f"{serving.url}{policy}"}
    async with httpx.AsyncClient(
        base_url=serving.url, headers=headers, transport=from_one_place
    ) as client:
        answers = [await client.get(path.format(number)) for number in range(4)]
        assert [answer.status_code for answer in answers] == [200, 200, 429, 429]
        assert f'"{policy}";q=2;w=3600' in answers[0].headers["ratelimit-policy"]
        assert answers[2].json()["violated-policies"] == [policy]
        assert (await client.get("/state")).headers["ratelimit"] == '"api";r=17'


async def test_concurrent_requests_of_one_client_pass_exactly_as_often_as_the_quota_says(
    client: httpx.AsyncClient,
) -> None:
    paths = ["/stream", "/file", "/context", "/background", "/state"] * 10
    answers = await asyncio.gather(*[client.get(path, timeout=30) for path in paths])
    assert sorted(answer.status_code for answer in answers) == [200] * 20 + [429] * 30


@pytest.mark.parametrize("http", ["h11", "httptools"])
@pytest.mark.parametrize("lifespan", ["on", "off"])
def test_the_store_closes_after_the_applications_shutdown_where_there_is_a_lifespan(
    tmp_path: Path, http: str, lifespan: str
) -> None:
    site = Site(tmp_path)
    with Serving(site, http=http, lifespan=lifespan) as serving:
        answer = httpx.get(f"{serving.url}/api/v1/included/x")
    assert (answer.status_code, answer.json()) == (200, "x")
    assert answer.headers["ratelimit"] == '"v1";r=1'
    assert site.events == (["startup", "shutdown"] if lifespan == "on" else [])
    assert site.store.closed is (lifespan == "on")
