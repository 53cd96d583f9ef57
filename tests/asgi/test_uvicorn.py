"""Behind a real server, uvicorn, with each of its HTTP implementations."""

import asyncio
import re
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).resolve().parents[2]


class Server:
    """A uvicorn of its own process on a port that the kernel chose, and what it logged."""

    def __init__(
        self, *options: str, workers: int = 1, serves: str = "tests.support.served:make"
    ) -> None:
        self.log: list[str] = []
        self._workers = workers
        self._running = threading.Event()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "uvicorn", serves, "--factory", "--port=0",
             "--no-access-log", f"--workers={workers}", *options],
            cwd=ROOT, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        if not self._running.wait(20):
            self.stop()
            raise RuntimeError(f"uvicorn did not start:\n{''.join(self.log)}")
        (self.port,) = (
            int(found[1])
            for line in self.log
            if (found := re.search(r"running on http://127\.0\.0\.1:([0-9]+)", line))
        )
        self.url = f"http://127.0.0.1:{self.port}"

    def _read(self) -> None:
        if self._process.stderr is not None:
            for line in self._process.stderr:
                self.log.append(line)
                text = "".join(self.log)
                started = text.count("Application startup complete")
                if "Uvicorn running on" in text and started == self._workers:
                    self._running.set()

    def stop(self) -> str:
        """Ends the server as its user would; gives what it logged."""
        self._process.terminate()
        self._process.wait(20)
        self._reader.join(20)
        if self._process.stderr is not None:
            self._process.stderr.close()
        return "".join(self.log)


@pytest.fixture(scope="module", params=["h11", "httptools"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    server = Server(f"--http={request.param}")
    yield server
    log = server.stop()
    assert "Traceback" not in log, log
    assert "Finished server process" in log, log


async def exchange(server: Server, text: str, *, until: bytes = b"\r\n\r\n") -> bytes:
    """What a server sends back for these bytes, up to and with ``until``."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        writer.write(text.replace("\n", "\r\n").encode("latin-1"))
        return await asyncio.wait_for(reader.readuntil(until), 10)
    finally:
        writer.close()
        await writer.wait_closed()


async def exhaust(server: Server, name: str) -> None:
    """Uses up the quota of 20 that a test has under this name."""
    async with httpx.AsyncClient(base_url=server.url, headers={"x-test": name}) as client:
        for _ in range(20):
            assert (await client.get("/")).status_code == 200


async def test_of_fifty_concurrent_requests_exactly_the_quota_passes(server: Server) -> None:
    async with httpx.AsyncClient(base_url=server.url, headers={"x-test": "fifty"}) as client:
        answers = await asyncio.gather(*(client.get("/") for _ in range(50)))
    assert Counter(answer.status_code for answer in answers) == {200: 20, 429: 30}
    left = sorted(
        int(answer.headers["ratelimit"].rpartition("r=")[2])
        for answer in answers
        if answer.status_code == 200
    )
    assert left == list(range(20))
    denied = next(answer for answer in answers if answer.status_code == 429)
    assert 3590 <= int(denied.headers["retry-after"]) <= 3600
    assert denied.json()["violated-policies"] == ["api"]


async def test_a_connection_is_kept_alive_across_refusals(server: Server) -> None:
    await exhaust(server, "alive")
    ports = set()
    async with httpx.AsyncClient(base_url=server.url) as client:
        for method, name in [("GET", "alive"), ("HEAD", "alive"), ("GET", "other")] * 2:
            answer = await client.request(method, "/", headers={"x-test": name})
            assert answer.status_code == (429 if name == "alive" else 200)
            assert bool(answer.content) is (method == "GET")
            ports.add(answer.extensions["network_stream"].get_extra_info("client_addr"))
    assert len(ports) == 1


async def test_an_upload_that_asks_first_is_refused_before_it_is_sent(server: Server) -> None:
    """With Expect: 100-continue the client is told 429 and not to go on."""
    upload = "POST / HTTP/1.1\nhost: x\nx-test: {}\nexpect: 100-continue\ncontent-length: 9999\n\n"
    assert (await exchange(server, upload.format("up"))).startswith(b"HTTP/1.1 100")
    await exhaust(server, "upload")
    assert (await exchange(server, upload.format("upload"))).startswith(b"HTTP/1.1 429")


async def test_a_client_that_goes_away_while_it_waits_harms_nobody(server: Server) -> None:
    request = b"GET /slow HTTP/1.1\r\nhost: x\r\nx-test: gone\r\n\r\n"
    for _ in range(2):
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(request)
        await writer.drain()
        writer.close()
        await writer.wait_closed()
    async with httpx.AsyncClient(base_url=server.url) as client:
        assert (await client.get("/", headers={"x-test": "stays"})).status_code == 200


async def test_a_websocket_handshake_is_refused_with_a_429(server: Server) -> None:
    handshake = (
        "GET /ws HTTP/1.1\nhost: x\nx-test: socket\nconnection: Upgrade\nupgrade: websocket\n"
        "sec-websocket-version: 13\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\n\n"
    )
    assert (await exchange(server, handshake)).startswith(b"HTTP/1.1 101")
    async with httpx.AsyncClient(base_url=server.url, headers={"x-test": "socket"}) as client:
        for _ in range(19):
            assert (await client.get("/")).status_code == 200
    refused = await exchange(server, handshake)
    assert refused.startswith(b"HTTP/1.1 429")
    assert b"\r\nretry-after:" in refused.lower()


HOSTILE = [
    "GET /%00%ff%ed%a0%80%0a/%2e%2e HTTP/1.1\nhost: x\n",
    "GET //%2f//../..;a=b?%00=%ff&x HTTP/1.1\nhost: x\n",
    "OPTIONS * HTTP/1.1\nhost: x\n",
    "get / HTTP/1.1\nhost: x\n",
    "M-SEARCH / HTTP/1.1\nhost: x\n",
    "GET http://elsewhere.example/ HTTP/1.1\nhost: x\n",
    "GET / HTTP/1.0\n",
    "GET / HTTP/1.1\nhost: x\nx-forwarded-for: " + "6.6.6.6," * 4_000 + "\n",
    "GET / HTTP/1.1\nhost: x\nx-test: \xff\xfe\nx-test: two\n",
    "GET / HTTP/1.1\nhost: x\ncookie: " + "a=\\" * 5_000 + "\n",
    "GET / HTTP/1.1\nhost: x\nx-forwarded-for:\nforwarded: for=unknown\n",
]


@pytest.mark.parametrize("request_text", HOSTILE)
async def test_no_request_is_a_500(server: Server, request_text: str) -> None:
    name = str(abs(hash(request_text)))
    answer = await exchange(server, f"{request_text}x-test: {name}\n\n", until=b"\r\n")
    assert re.match(rb"HTTP/1\.1 [24][0-9][0-9] ", answer), answer


async def test_several_workers_with_memory_are_warned_of_once_in_each() -> None:
    """Each counts alone, so clients get each quota once per worker."""
    server = Server(workers=2)
    try:
        pids: Counter[str] = Counter()
        while min(pids.values(), default=0) < 2 or len(pids) < 2:
            async with httpx.AsyncClient(base_url=server.url) as client:
                some = (client.get("/", headers={"x-test": str(pids.total())}) for _ in range(8))
                pids.update(answer.headers["x-pid"] for answer in await asyncio.gather(*some))
            assert pids.total() < 2_000, "one of the workers never answered"
    finally:
        log = server.stop()
    assert log.count("memory-in-workers") == 2
