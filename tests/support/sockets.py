"""One side of a WebSocket without a server: what the client sends, and what an application does."""

import asyncio
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Self

import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ratelimit import MemoryStore, RateLimiter, RateLimitMiddleware, Rule, RuleSet
from ratelimit.control.events import Event
from ratelimit.limiter.sockets.portions import Lease
from ratelimit.testing import ManualClock, by_hand
from tests.support.asgi import Counting, websocket_scope

Data = str | bytes


class Connection:
    """A connection to an application, which runs in a task within the context."""

    def __init__(self, app: ASGIApp, path: str = "/chat", **changes: Any) -> None:
        self.sent: list[Message] = []
        """What the application has sent, and who closed."""
        self.asked = 0
        """How many messages were asked for, and given or waited for."""
        self._incoming: deque[Message] = deque([{"type": "websocket.connect"}])
        self._more = asyncio.Event()
        self._running = app(websocket_scope(path, **changes), self._receive, self._send)
        self.task: asyncio.Task[Any] | None = None

    def begin(self) -> "asyncio.Task[Any]":
        """Runs the application in a task."""
        self.task = asyncio.ensure_future(self._running)
        return self.task

    async def __aenter__(self) -> Self:
        self.begin()
        await self.settled()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self.task is not None and not self.task.done():
            self.leaves()
            await asyncio.wait([self.task], timeout=10)
            assert self.task.done(), "the application did not end with the connection"

    async def _receive(self) -> Message:
        self.asked += 1
        while not self._incoming:
            self._more.clear()
            await self._more.wait()
        return self._incoming.popleft()

    async def _send(self, message: Message) -> None:
        self.sent.append(message)

    def sends(self, *messages: Data) -> None:
        """The client sends these at once."""
        for each in messages:
            key = "text" if isinstance(each, str) else "bytes"
            self._incoming.append({"type": "websocket.receive", key: each})
        self._more.set()

    def leaves(self, code: int = 1001) -> None:
        """The client closes."""
        self._incoming.append({"type": "websocket.disconnect", "code": code})
        self._more.set()

    @property
    def waiting(self) -> int:
        """Messages that nobody has asked for yet."""
        return len(self._incoming)

    async def settled(self) -> None:
        """Lets the application do all that it can at the moment, in process."""
        for _ in range(50):
            await asyncio.sleep(0)

    async def talk(self, messages: Iterable[Data]) -> None:
        """The client sends one after the other, and sees what comes of each."""
        for each in messages:
            self.sends(each)
            await self.settled()

    @property
    def closed(self) -> tuple[int, str] | None:
        """The code and the reason with which the application's side has closed."""
        for each in self.sent:
            if each["type"] == "websocket.close":
                return each["code"], each.get("reason", "")
        return None


class Listener:
    """An application that accepts, and remembers what it hears until the end of each connection."""

    def __init__(self) -> None:
        self.heard: list[Data] = []
        self.ends: list[Message] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        while True:
            message = await receive()
            if message["type"] == "websocket.disconnect":
                self.ends.append(message)
                return
            data = message.get("text")
            self.heard.append(message["bytes"] if data is None else data)


HANDSHAKES = "100/second"


@contextmanager
def clock_of_sockets(monkeypatch: pytest.MonkeyPatch) -> Iterator[ManualClock]:
    """One clock for everything: a pause moves it on."""
    with by_hand() as clock:

        async def sleep(seconds: float) -> None:
            clock.advance(seconds)
            await asyncio.sleep(0)

        monkeypatch.setattr("ratelimit.asgi.sockets.anyio.sleep", sleep)
        monkeypatch.setattr("ratelimit.asgi.sockets.monotonic", lambda: clock() / 1_000_000)
        monkeypatch.setattr(Lease, "now", staticmethod(lambda: clock() / 1_000_000))
        yield clock


def rule(messages: str = "3/second", **changes: Any) -> Rule:
    """A rule of generous handshakes that limits messages, bytes or both."""
    own = {"messages": messages} if messages else {}
    websocket = own | {key: changes.pop(key) for key in ("bytes", "on_excess") if key in changes}
    return Rule("chat", HANDSHAKES, **{"path": "/chat", "websocket": websocket} | changes)


class Chat:
    """A listener behind a middleware, in process or with a store that stands for a distant one."""

    def __init__(self, *rules: Rule, distant: bool = False, store: Any = None, **more: Any) -> None:
        self.inner = Listener()
        self.store: Any = store or (Counting(MemoryStore.clock) if distant else MemoryStore())  # type: ignore[arg-type]  # the clock of the test
        self.events: list[Event] = []
        self.limiter = RateLimiter(
            RuleSet(rules, **more), store=self.store, on_event=self.events.append
        )
        self.app = RateLimitMiddleware(self.inner, self.limiter)

    def connection(self, path: str = "/chat", **changes: Any) -> Connection:
        return Connection(self.app, path, **changes)

    @property
    def counts(self) -> dict[str, int]:
        """Messages by outcome."""
        found = self.limiter.counts.items()
        return {outcome: times for (name, outcome), times in found if name == "chat:messages"}

    @property
    def trips(self) -> list[list[tuple[int, int]]]:
        """Cost and action of each check of each trip that is for messages."""
        return [
            [(check.cost, check.action) for check in checks]
            for checks in self.store.asked
            if "~ws:" in checks[0].rule
        ]


def limit_of(chat: Chat, what: str) -> Any:
    """The limit on its messages or bytes."""
    return getattr(chat.limiter.rules.rules[0].websocket, what)
