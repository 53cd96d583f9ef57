"""Requests that wait behind a real uvicorn, of real clients that leave, pipeline and upload."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
import pytest_asyncio

from tests.asgi.test_uvicorn import Server

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@pytest.fixture(scope="module", params=["h11", "httptools"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    server = Server(f"--http={request.param}", serves="tests.support.queueing:make")
    yield server
    log = server.stop()
    assert "Traceback" not in log, log
    assert "Finished server process" in log, log


@pytest_asyncio.fixture
async def state(server: Server) -> AsyncIterator["State"]:
    async with httpx.AsyncClient(base_url=server.url) as client:
        yield State(client)


class State:
    """What the server tells of who waits and who has run."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self.client = client

    async def until(self, **wanted: object) -> dict[str, Any]:
        """The state once it is such."""
        async with asyncio.timeout(20):
            while True:
                found: dict[str, Any] = (await self.client.get("/state")).json()
                if all(found[name] == value for name, value in wanted.items()):
                    return found

    async def until_known(self, count: int) -> None:
        """Returns once so many wait, or have run."""
        async with asyncio.timeout(20):
            while True:
                found = (await self.client.get("/state")).json()
                if len(found["ran"]) + found["waiting"] >= count:
                    return

    async def empty(self) -> None:
        """Begins anew, once everybody has gone on."""
        await self.until(waiting=0)
        await self.client.get("/reset")


async def sent(server: Server, text: str) -> Connection:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(text.replace("\n", "\r\n").encode())
    await writer.drain()
    return reader, writer


@pytest.mark.parametrize("path", ["/queue", "/limited"])
async def test_handlers_run_for_those_who_stayed_and_for_nobody_else(
    server: Server, state: State, path: str
) -> None:
    await state.empty()
    connections = [
        await sent(server, f"GET {path}?n={number} HTTP/1.1\nhost: x\nx-test: {path}\n\n")
        for number in range(8)
    ]
    await state.until_known(8)
    for number in (4, 5, 7):
        connections[number][1].close()
    stayed = [0, 1, 2, 3, 6]
    for number in stayed:
        reader, writer = connections[number]
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
        assert head.startswith(b"HTTP/1.1 200")
        writer.close()
    found = await state.until(waiting=0)
    assert sorted(found["ran"]) == [str(number) for number in stayed]


async def test_pipelined_requests_and_a_body_in_parts_arrive_as_they_were_sent(
    server: Server, state: State
) -> None:
    await state.empty()
    text = "GET /queue?n=a HTTP/1.1\nhost: x\nx-test: pipelined\n\n" * 3
    pipeline = await sent(server, text)
    upload = await sent(
        server,
        "POST /queue?n=b HTTP/1.1\nhost: x\nx-test: pipelined\n"
        "transfer-encoding: chunked\n\n3\nabc\n",
    )
    await state.until_known(2)
    for part in (b"2\r\nde\r\n", b"1\r\nf\r\n", b"0\r\n\r\n"):
        upload[1].write(part)
        await upload[1].drain()
    for (reader, writer), count in ((pipeline, 3), (upload, 1)):
        for _ in range(count):
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
            assert head.startswith(b"HTTP/1.1 200")
            assert await reader.readexactly(2) == b"ok"
        writer.close()
    found = await state.until(waiting=0)
    assert sorted(found["ran"]) == ["a", "a", "a", "babcdef"]


async def test_an_upload_that_leaves_after_its_only_part_runs_nothing(
    server: Server, state: State
) -> None:
    await state.empty()
    _, first = await sent(server, "GET /queue?n=c HTTP/1.1\nhost: x\nx-test: upload\n\n")
    await state.until(ran=["c"])
    _, gone = await sent(
        server, "POST /queue?n=d HTTP/1.1\nhost: x\nx-test: upload\ncontent-length: 3\n\nabc"
    )
    await state.until(waiting=1)
    gone.close()
    await state.until(waiting=0, ran=["c"])
    first.close()
