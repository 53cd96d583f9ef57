"""HTTP load at a stated rate, whatever becomes of the answers, and the history of it."""

import asyncio
import math
import time
from collections import deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Self
from urllib.parse import urlsplit

from tests.support.history import Event, Verdict


class Stream(NamedTuple):
    """Requests for one path in the name of one key, so many a second."""

    path: str
    key: str
    rate: float

    @property
    def is_busy(self) -> bool:
        """Whether it asks for more than its quota."""
        return "busy" in self.key


class Answer(NamedTuple):
    """One request and what came of it; the status is 0 where the connection was lost."""

    stream: Stream
    called: float
    returned: float
    status: int
    worker: int
    was_open: bool
    degraded: bool

    @property
    def took(self) -> float:
        """Seconds from the call to the whole response."""
        return self.returned - self.called


Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Client:
    """A plain HTTP/1.1 client that keeps its connections; httpx takes as long as the server."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._address = parts.hostname, parts.port
        self._idle: deque[Connection] = deque()

    async def connect(self, workers: int, each: int = 6) -> None:
        """Opens so many connections to each worker; which it is of is told by who answers."""
        found: dict[str, list[Connection]] = {}
        for _ in range(200):
            _, fields, _ = await self.get("/free")
            connection = self._idle.pop()
            mine = found.setdefault(fields["x-worker"], [])
            if len(mine) < each:
                mine.append(connection)
            else:
                connection[1].transport.abort()
            if [len(it) for it in found.values()] == [each] * workers:
                break
        else:
            raise TimeoutError(f"not {each} connections to each of {workers} workers: {found}")
        for connections in zip(*found.values(), strict=True):
            self._idle += connections

    async def _open(self) -> Connection:
        return await asyncio.open_connection(*self._address)

    async def get(self, target: str, key: str = "") -> tuple[int, dict[str, str], bytes]:
        """Status, fields and body. Raises OSError or EOFError where the connection is lost."""
        connection = self._idle.popleft() if self._idle else await self._open()
        reader, writer = connection
        try:
            writer.write(f"GET {target} HTTP/1.1\r\nhost: test\r\nx-key: {key}\r\n\r\n".encode())
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            fields = dict(line.lower().split(": ", 1) for line in head[1:] if line)
            body = await reader.readexactly(int(fields["content-length"]))
        except BaseException:
            writer.transport.abort()
            raise
        self._idle.append(connection)
        return int(head[0].split()[1]), fields, body

    def close(self) -> None:
        """Closes the connections that are not in use."""
        while self._idle:
            _, writer = self._idle.popleft()
            writer.transport.abort()


class Load:
    """Streams of requests, each sent when it is due, until the end of the block."""

    def __init__(self, url: str, streams: Sequence[Stream], workers: int) -> None:
        self.streams = streams
        self.answers: list[Answer] = []
        self._workers = workers
        self._client = Client(url)
        self._pacers: list[asyncio.Task[None]] = []
        self._asking: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        await self._client.connect(self._workers)
        start = time.monotonic() + 0.05
        for number, stream in enumerate(self.streams):
            first = start + number / len(self.streams) / stream.rate
            self._pacers.append(asyncio.create_task(self._pace(stream, first)))
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._pacers:
            task.cancel()
        results = await asyncio.gather(*self._pacers, *self._asking, return_exceptions=True)
        self._client.close()
        for result in results:
            if isinstance(result, Exception):
                raise result

    async def _pace(self, stream: Stream, due: float) -> None:
        while True:
            await asyncio.sleep(due - time.monotonic())
            task = asyncio.create_task(self._ask(stream))
            self._asking.add(task)
            task.add_done_callback(self._asking.discard)
            due += 1 / stream.rate

    async def _ask(self, stream: Stream) -> None:
        called = time.monotonic()
        try:
            status, fields, _ = await self._client.get(stream.path, stream.key)
        except (OSError, EOFError):
            status, fields = 0, {}
        self.answers.append(
            Answer(
                stream,
                called,
                time.monotonic(),
                status,
                int(fields.get("x-worker", 0)),
                fields.get("x-breaker") == "open",
                fields.get("x-degraded") == "1",
            )
        )


def p99_ms(answers: Iterable[Answer]) -> float:
    """Milliseconds that 99 of 100 took at most; 0 of none."""
    took = sorted(each.took for each in answers)
    return took[math.ceil(len(took) * 0.99) - 1] * 1000 if took else 0.0


def by_store(answers: Sequence[Answer], quota: int, window: float, back: float) -> list[Event]:
    """The history of a counter in the store, of the answers of one stream in order of time.

    What the store may have charged though it did not answer, or was charged with afterwards, is
    unknown: a request that left while the store was silent arrives when it wakes, at ``back``; and
    what a worker counted by itself is charged at most a window later.
    """
    begin = answers[0].called
    events = [Event(begin - window, begin, quota, "unknown")]  # what came before
    for each in answers:
        if each.status and not each.degraded:
            events.append(_decided(each))
        elif not each.status or not each.was_open:
            late = max(each.returned, back) + 1.0
            events.append(Event(each.called, late, 1, "unknown"))
        elif each.stream.path == "/local" and each.status == 200:
            events.append(Event(each.called, each.called + window, 1, "unknown"))
    return events


def by_worker(answers: Iterable[Answer]) -> dict[int, list[Event]]:
    """The history of the counters that workers kept by themselves, of one stream."""
    events: dict[int, list[Event]] = {}
    for each in answers:
        if each.degraded:
            events.setdefault(each.worker, []).append(_decided(each))
    return events


def _decided(answer: Answer) -> Event:
    verdict: Verdict = "denied" if answer.status == 429 else "allowed"
    return Event(answer.called, answer.returned, 1, verdict)
