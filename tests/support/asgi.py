"""Raw ASGI: scopes made by hand, applications asked without a client library."""

import json
from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

import anyio
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ratelimit import Check, Decision, MemoryStore, Rule, RuleSet
from ratelimit.limiter.limiter import RateLimiter
from ratelimit.testing import ManualClock

Pairs = Iterable[tuple[str, str]]

CLIENT: Final = ("192.0.2.1", 50_000)
QUOTA_EXCEEDED: Final = "https://iana.org/assignments/http-problem-types#quota-exceeded"
NEVER: Final = "urn:ratelimit-asgi:problem:cost-exceeds-limit"


class Answer(NamedTuple):
    """What an application sent for one request."""

    messages: list[Message]

    @property
    def starts(self) -> list[Message]:
        return [each for each in self.messages if each["type"].endswith("response.start")]

    @property
    def status(self) -> int:
        (start,) = self.starts
        status: int = start["status"]
        return status

    @property
    def fields(self) -> list[tuple[str, str]]:
        """The header fields in their order, decoded."""
        (start,) = self.starts
        return [(name.decode(), value.decode()) for name, value in start.get("headers", ())]

    @property
    def headers(self) -> dict[str, str]:
        """The header fields by name; raises where one was sent twice."""
        named = dict(self.fields)
        if len(named) != len(self.fields):
            raise AssertionError(f"a field was sent twice: {self.fields}")
        return named

    @property
    def body(self) -> bytes:
        bodies = (each for each in self.messages if each["type"].endswith("response.body"))
        return b"".join(each.get("body", b"") for each in bodies)

    @property
    def problem(self) -> dict[str, Any]:
        problem: dict[str, Any] = json.loads(self.body)
        return problem


def http_scope(
    path: str = "/", method: str = "GET", headers: Pairs = (), **changes: Any
) -> dict[str, Any]:
    """The scope of a request from `CLIENT`, as a server makes it."""
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode("utf-8", "surrogatepass"),
        "query_string": b"",
        "root_path": "",
        "headers": [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers],
        "client": CLIENT,
        "server": ("testserver", 80),
        "state": {},
        **changes,
    }


def websocket_scope(path: str = "/", **changes: Any) -> dict[str, Any]:
    """The scope of a WebSocket's handshake from `CLIENT`."""
    scope = http_scope(path) | {"type": "websocket", "scheme": "ws", "subprotocols": []}
    del scope["method"]
    return scope | changes


async def call(app: ASGIApp, scope: Scope, received: Sequence[Message] = ()) -> Answer:
    """Calls an application with a scope and these incoming messages, then a disconnect.

    The client of a request goes when it has its response; give a disconnect for one that is sooner.
    """
    incoming = iter(received or [{"type": "http.request", "body": b"", "more_body": False}])
    answer = Answer([])
    whole = anyio.Event()

    async def receive() -> Message:
        message = next(incoming, None)
        if message is None:
            if scope["type"] == "http":
                await whole.wait()
            message = {"type": f"{scope['type']}.disconnect"}
        return message

    async def send(message: Message) -> None:
        answer.messages.append(message)
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            whole.set()

    await app(scope, receive, send)
    return answer


async def ask(
    app: ASGIApp, path: str = "/", method: str = "GET", headers: Pairs = (), **changes: Any
) -> Answer:
    """One request and its answer."""
    return await call(app, http_scope(path, method, headers, **changes))


async def statuses(app: ASGIApp, *paths: str, **changes: Any) -> list[int]:
    """The statuses of one request per path, in order."""
    return [(await ask(app, path, **changes)).status for path in paths]


class Inner:
    """The smallest application: says "ok", and remembers the scopes that reached it."""

    def __init__(self) -> None:
        self.scopes: list[Scope] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scopes.append(scope)
        if scope["type"] == "http":
            headers = [(b"content-type", b"text/plain")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": b"ok"})
        elif scope["type"] == "websocket":
            await send({"type": "websocket.accept"})


class Counting(MemoryStore):
    """A store that remembers what it was asked, and what it answered."""

    def __init__(self, clock: ManualClock | None = None) -> None:
        super().__init__(clock=clock or ManualClock())
        self.asked: list[list[Check]] = []
        self.answered: list[tuple[Decision, ...]] = []
        self.closed = 0

    async def decide(self, checks: Sequence[Check]) -> tuple[Decision, ...]:
        self.asked.append(list(checks))
        decisions = await super().decide(checks)
        self.answered.append(decisions)
        return decisions

    async def aclose(self) -> None:
        self.closed += 1
        await super().aclose()


def limiter(*rules: Rule, clock: Any = None, **changes: Any) -> RateLimiter:
    """A limiter with a store of its own whose clock stands still, and these rules and settings."""
    identities = changes.pop("identities", None)
    store = changes.pop("store", None) or MemoryStore(clock=clock or ManualClock())
    return RateLimiter(RuleSet(rules, **changes), store=store, identities=identities)
