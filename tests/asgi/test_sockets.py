"""Messages of open WebSockets: limited by connection and by identity, on raw ASGI."""

import asyncio
import runpy
from collections.abc import Iterator, Sequence
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from fastapi import Depends, FastAPI
from fastapi import WebSocket as FastWebSocket
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.testclient import TestClient
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from ratelimit import (
    Check,
    Decision,
    MemoryStore,
    RateLimit,
    RateLimiter,
    RateLimitMiddleware,
    Rule,
    StoreUnavailable,
    limit,
)
from ratelimit.limiter.sockets.portions import Lease
from ratelimit.testing import ManualClock
from tests.support.asgi import CLIENT, Counting
from tests.support.sockets import HANDSHAKES, Chat, Connection, clock_of_sockets, limit_of, rule


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[ManualClock]:
    with clock_of_sockets(monkeypatch) as clock:
        yield clock


both = pytest.mark.parametrize("distant", [False, True], ids=["in process", "distant"])


@both
async def test_a_message_too_many_closes_the_connection_with_the_seconds(distant: bool) -> None:
    chat = Chat(rule("3/minute"), distant=distant)
    async with chat.connection() as connection:
        await connection.talk(["a", "b", "c", "d", "e"])
        assert connection.closed == (1008, "chat:messages: try again in 20 s")
    assert chat.inner.heard == ["a", "b", "c"]
    assert chat.inner.ends == [
        {
            "type": "websocket.disconnect",
            "code": 1008,
            "reason": "chat:messages: try again in 20 s",
        }
    ]
    assert chat.counts == {"allowed": 3, "denied": 1}
    assert [(each.kind, each.rule) for each in chat.events] == [("denied", "chat:messages")]


@both
async def test_calls_by_name_mean_the_handshakes_and_never_the_messages(distant: bool) -> None:
    chat = Chat(rule("3/minute"), distant=distant)
    async with chat.connection() as connection:
        await connection.talk(["a", "b", "c"])
        (decision,) = await chat.limiter.peek("chat", CLIENT[0])
        assert decision.remaining == 99
        await chat.limiter.reset("chat", CLIENT[0])
        await connection.talk(["d"])
        assert connection.closed == (1008, "chat:messages: try again in 20 s")
    with pytest.raises(ValueError, match="there is no rule 'chat:messages'"):
        await chat.limiter.peek("chat:messages", CLIENT[0])


@both
async def test_what_is_dropped_is_skipped_and_counted(distant: bool, clock: ManualClock) -> None:
    chat = Chat(rule(on_excess="drop"), distant=distant)
    async with chat.connection() as connection:
        await connection.talk("abcde")
        clock.advance(1)
        await connection.talk("fghij")
        assert connection.closed is None
    assert chat.inner.heard == [*"abcfgh"]
    assert chat.counts == {"allowed": 6, "denied": 4}


@both
async def test_a_pause_loses_and_reorders_nothing_and_keeps_to_the_rate(
    distant: bool, clock: ManualClock
) -> None:
    chat = Chat(rule("10/second", on_excess="pause"), distant=distant)
    start = clock()
    messages = [f"{number}" for number in range(200)]
    async with chat.connection() as connection:
        connection.sends(*messages)
        while len(chat.inner.heard) < 200:
            await connection.settled()
    assert chat.inner.heard == messages
    # 10 at once, and the 190 others at 10 a second.
    assert clock() - start == pytest.approx(19_000_000, abs=10_000)
    assert chat.counts == {"allowed": 10, "waited": 190}
    assert chat.events == []


async def test_nothing_is_received_during_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    paused = asyncio.Event()
    monkeypatch.setattr("ratelimit.asgi.sockets.anyio.sleep", lambda _: paused.wait())
    chat = Chat(rule("1/second", on_excess="pause"))
    async with chat.connection() as connection:
        connection.sends("a", "b", "c", "d")
        await connection.settled()
        # The handshake's, the first, and the one that waits.
        assert connection.asked == 3
        assert chat.inner.heard == ["a"]
        assert connection.task is not None
        connection.task.cancel()


async def test_a_message_that_waits_is_not_lost_where_the_application_stops_listening(
    clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as one that does something else every second, and listens again."""
    heard: list[str] = []

    async def impatient(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        while True:
            try:
                async with asyncio.timeout(0):
                    message = await receive()
            except TimeoutError:
                heard.append("-")
                clock.advance(0.1)
                await asyncio.sleep(0)
                continue
            if message["type"] == "websocket.disconnect":
                return
            heard.append(message["text"])

    async def sleep(_: float) -> None:
        await asyncio.sleep(3600)

    monkeypatch.setattr("ratelimit.asgi.sockets.anyio.sleep", sleep)
    limiter = RateLimiter([rule("2/second", on_excess="pause")])
    async with Connection(RateLimitMiddleware(impatient, limiter)) as connection:
        connection.sends(*"abcdefg")
        while "g" not in heard:
            await connection.settled()
    assert [each for each in heard if each != "-"] == [*"abcdefg"]
    assert heard.count("-") >= 20


async def test_a_pause_of_more_than_ten_seconds_closes_instead() -> None:
    chat = Chat(rule("2/minute", on_excess="pause"))
    async with chat.connection() as connection:
        await connection.talk("abc")
        assert connection.closed == (1008, "chat:messages: try again in 30 s")
    assert chat.counts == {"allowed": 2, "denied": 1}


@both
async def test_a_sender_that_is_always_ahead_of_its_limit_for_five_minutes_is_closed(
    distant: bool, clock: ManualClock
) -> None:
    """Nobody can see whether it has left behind what a server has read of it."""
    chat = Chat(rule("2/second", on_excess="pause"), distant=distant)
    start = clock()
    async with chat.connection() as connection:
        connection.sends(*(f"{number}" for number in range(1_000)))
        connection.leaves()
        while not chat.inner.ends:
            await connection.settled()
        assert connection.closed == (1008, "chat:messages: try again in 1 s")
    assert clock() - start == pytest.approx(300_000_000, abs=500_000)
    assert chat.counts == {"allowed": 2, "waited": 600, "denied": 1}


async def test_a_sender_that_waits_now_and_then_may_pause_without_end(clock: ManualClock) -> None:
    chat = Chat(rule("2/second", on_excess="pause"))
    async with chat.connection() as connection:
        for _ in range(4):
            connection.sends(*("x" for _ in range(400)))
            while connection.waiting and connection.closed is None:
                await connection.settled()
            await connection.settled()
            clock.advance(0.1)
        connection.leaves()
        await connection.settled()
    assert connection.closed is None
    assert chat.counts["waited"] == 4 * 400 - 2


@both
async def test_an_empty_message_counts_as_one_byte(distant: bool) -> None:
    """Else a limit on bytes would let them come without end."""
    chat = Chat(rule("", bytes="3/minute"), distant=distant)
    async with chat.connection() as connection:
        await connection.talk(["", b"", "", b""])
        assert connection.closed == (1008, "chat:bytes: try again in 20 s")
    assert chat.inner.heard == ["", b"", ""]


@both
@pytest.mark.parametrize("on_excess", ["close", "drop", "pause"])
async def test_a_message_that_could_never_pass_closes_with_1009(
    distant: bool, on_excess: str
) -> None:
    chat = Chat(rule("", bytes="10/second", on_excess=on_excess), distant=distant)
    async with chat.connection() as connection:
        await connection.talk(["1234567890", "12345678901"])
        assert connection.closed == (1009, "chat:bytes: at most 10 at once")
    assert chat.inner.heard == ["1234567890"]
    assert chat.limiter.counts["chat:bytes", "never"] == 1


@both
async def test_a_text_counts_as_the_bytes_that_it_has_in_utf_8(distant: bool) -> None:
    chat = Chat(rule("", bytes="12/second", on_excess="drop"), distant=distant)
    async with chat.connection() as connection:
        await connection.talk(["äöü", "€€", "x", b"y"])  # 6 + 6, and no room for more
    assert chat.inner.heard == ["äöü", "€€"]


@both
async def test_of_a_message_that_one_limit_refuses_the_other_is_charged_nothing(
    distant: bool,
) -> None:
    chat = Chat(rule("9/second", bytes="4/minute", on_excess="drop"), distant=distant)
    async with chat.connection() as connection:
        await connection.talk(["1234", *["5"] * 20])
        if distant:  # and what was returned serves the next message
            asked = [check.rule for checks in chat.store.asked for check in checks]
            assert asked.count("chat~ws:messages") == 2
    (look,) = await chat.store.decide(
        [Check(limit_of(chat, "messages"), CLIENT[0], 0, "chat~ws:messages")]
    )
    assert chat.inner.heard == ["1234"]
    assert look.remaining == 8


@both
async def test_connections_of_one_identity_share_its_messages(
    distant: bool, clock: ManualClock
) -> None:
    chat = Chat(rule("3/minute", on_excess="drop"), distant=distant)
    async with chat.connection() as one, chat.connection() as two:
        await one.talk("ab")
        await two.talk("cd")
        async with chat.connection(client=("192.0.2.99", 1)) as other:
            await other.talk("x")
    assert chat.inner.heard == ["a", "b", "c", "x"]


async def test_a_refusal_by_one_limit_or_one_identity_costs_a_connection_nothing(
    clock: ManualClock,
) -> None:
    """Its own bucket in this process is as if nothing had been sent."""
    chat = Chat(rule("9/hour", bytes="4/minute", on_excess="drop"), distant=True)
    async with chat.connection() as one, chat.connection() as two:
        await one.talk(["1234", *["5"] * 20])  # too many bytes for this connection
        clock.advance(14)
        await two.talk(["6"] * 20)  # and too many for the identity
        clock.advance(1)
        await two.talk("7")
        clock.advance(15)
        await one.talk("8")
    assert chat.inner.heard == ["1234", "7", "8"]


@both
async def test_in_shadow_everything_passes_and_is_counted(distant: bool) -> None:
    chat = Chat(rule("2/second", mode="shadow"), distant=distant)
    async with chat.connection() as connection:
        await connection.talk("abcd")
        assert connection.closed is None
    assert chat.inner.heard == [*"abcd"]
    assert chat.counts == {"shadow-allowed": 2, "shadow-denied": 2}
    assert [each.kind for each in chat.events] == ["shadow-denied"] * 2


@pytest.mark.parametrize(
    "changes",
    [
        {"overrides": {CLIENT[0]: "unlimited"}},
        {"allowlist": [ip_network("192.0.2.0/24")]},
        {"skip": lambda _: True},
        {"mode": "off"},
        {"path": "/other"},
    ],
    ids=["unlimited", "allowed", "skipped", "off", "elsewhere"],
)
async def test_where_the_rule_did_not_apply_to_the_handshake_messages_are_free(
    changes: dict[str, Any],
) -> None:
    chat = Chat(rule("1/second", **changes))
    async with chat.connection() as connection:
        await connection.talk("abcd")
    assert chat.inner.heard == [*"abcd"]


async def test_an_override_of_the_rules_own_limit_keeps_that_of_messages() -> None:
    chat = Chat(rule("1/second", overrides={CLIENT[0]: "7/second"}, on_excess="drop"))
    async with chat.connection() as connection:
        await connection.talk("abcd")
    assert chat.inner.heard == ["a"]


@pytest.mark.parametrize("word", ["*", "chat"])
async def test_the_kill_switch_frees_connections_that_are_open(word: str) -> None:
    chat = Chat(rule("1/second", on_excess="drop"))
    async with chat.connection() as connection:
        await connection.talk("ab")
        chat.limiter._switches.off = frozenset({word})  # as the store tells it
        await connection.talk("cd")
        chat.limiter._switches.off = frozenset()
        chat.limiter.enabled = False
        await connection.talk("ef")
    assert chat.inner.heard == [*"acdef"]


class Failing(Counting):
    """A store that fails from its second question on, or from the first."""

    fails = False

    async def decide(self, checks: Sequence[Check]) -> tuple[Decision, ...]:
        if self.fails:
            raise StoreUnavailable("it is away", kind="refused", scope="server")
        return await super().decide(checks)


@pytest.mark.parametrize("from_start", [False, True], ids=["later", "at the handshake"])
async def test_without_the_store_a_connection_is_still_held_to_the_limit_by_itself(
    from_start: bool, clock: ManualClock
) -> None:
    store = Failing(clock)
    store.fails = from_start
    chat = Chat(rule("3/second", on_excess="drop"), store=store)
    async with chat.connection() as one, chat.connection() as two:
        store.fails = True
        await one.talk("abcd")
        await two.talk("efgh")
    assert chat.inner.heard == [*"abcefg"]
    assert chat.limiter.counts["chat:messages", "store-failed"] == 6


async def test_without_the_store_a_workers_share_may_be_sent(clock: ManualClock) -> None:
    store = Failing(clock)
    chat = Chat(
        rule("8/second", on_excess="drop", on_store_failure="local"), store=store, workers=4
    )
    async with chat.connection() as one, chat.connection() as two:
        store.fails = True
        await one.talk("abcd")
        await two.talk("efgh")
    assert chat.inner.heard == [*"ab"]


async def test_without_the_store_a_rule_that_denies_closes_with_1013(clock: ManualClock) -> None:
    store = Failing(clock)
    chat = Chat(rule("8/second", on_excess="drop", on_store_failure="deny"), store=store)
    async with chat.connection() as connection:
        await connection.talk("a")
        store.fails = True
        await connection.talk("b")
        code, reason = connection.closed or (0, "")
    assert (code, chat.inner.heard) == (1013, ["a"])
    assert reason.endswith("try again later")


async def test_a_fault_of_ours_lets_messages_through(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    chat = Chat(rule("1/second"))
    async with chat.connection() as connection:
        monkeypatch.setattr(Lease, "take", None)
        await connection.talk("abc")
    assert chat.inner.heard == [*"abc"]
    assert "limiter-failed" in caplog.text


async def test_what_an_application_sends_after_the_end_is_as_to_a_client_that_is_gone() -> None:
    raised: list[str] = []

    async def talker(websocket: WebSocket) -> None:
        await websocket.accept()
        try:
            while True:
                await websocket.receive_text()
        except WebSocketDisconnect as gone:
            raised.append(f"{gone.code}")
        try:
            await websocket.send_text("too late")
        except (WebSocketDisconnect, RuntimeError) as gone:
            raised.append(type(gone).__name__)
        await websocket.close()

    app = Starlette(routes=[WebSocketRoute("/chat", talker)])
    app.add_middleware(RateLimitMiddleware, limiter=RateLimiter([rule("1/second")]))
    async with Connection(app) as connection:
        await connection.talk("ab")
    types = [each["type"] for each in connection.sent]
    assert types == ["websocket.accept", "websocket.close"]
    assert raised == ["1008", "WebSocketDisconnect"]


def decorated() -> Starlette:
    @limit(HANDSHAKES, websocket={"messages": "2/second", "on_excess": "drop"})
    async def echo(websocket: WebSocket) -> None:
        await websocket.accept()
        async for text in websocket.iter_text():
            await websocket.send_text(text)

    return Starlette(routes=[WebSocketRoute("/chat", echo)])


def depending() -> FastAPI:
    app = FastAPI()
    once = RateLimit(HANDSHAKES, websocket={"messages": "2/second", "on_excess": "drop"})

    @app.websocket("/chat", dependencies=[Depends(once)])
    async def echo(websocket: FastWebSocket) -> None:
        await websocket.accept()
        async for text in websocket.iter_text():
            await websocket.send_text(text)

    return app


@pytest.mark.parametrize("make", [decorated, depending])
@pytest.mark.parametrize("around", [0, 1, 2])
async def test_a_limit_on_a_route_limits_messages_as_well(make: Any, around: int) -> None:
    """Once, also beside a middleware, or two, that limit them too."""
    app: Any = make()
    store = Counting(MemoryStore.clock)  # type: ignore[arg-type]  # the clock of the test
    limiter = RateLimiter([rule("3/second")], store=store)
    for _ in range(around):
        app.add_middleware(RateLimitMiddleware, limiter=limiter)
    async with Connection(app) as connection:
        await connection.talk("abcd"[: 3 if around else 4])
        assert [each["text"] for each in connection.sent[1:]] == ["a", "b"]
    asked = [
        check for checks in store.asked for check in checks if check.rule == "chat~ws:messages"
    ]
    assert sum(check.cost for check in asked if check.action == 0) == (3 if around else 0)
    assert len(limiter.sockets.leases) == 0


async def test_what_an_http_request_costs_is_the_look_at_a_flag(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chat = Chat(Rule("api", "5/second"))
    assert not chat.limiter.limits_messages
    async with chat.connection() as connection:
        await connection.talk("abc")
    assert chat.inner.heard == [*"abc"]
    assert chat.limiter.sockets.connections is None


def test_the_example_closes_slows_down_and_leaves_out(clock: ManualClock) -> None:
    path = Path(__file__).resolve().parents[2] / "examples" / "chat.py"
    client = TestClient(runpy.run_path(str(path))["app"])
    with client.websocket_connect("/chat") as chat:
        for _ in range(6):
            chat.send_text("hello")
        assert [chat.receive_text() for _ in range(5)] == ["hello"] * 5
        assert chat.receive()["reason"] == "chat:messages: try again in 1 s"
    with client.websocket_connect("/upload") as upload:
        start = clock()
        for _ in range(10):
            upload.send_bytes(b"x" * 64_000)
        assert [upload.receive_text() for _ in range(10)][-1] == "640000"
        assert clock() - start == pytest.approx(6_000_000, abs=10_000)  # the first 4 at once
    with client.websocket_connect("/cursor") as cursor:
        for place in range(30):
            cursor.send_text(f"{place}")
        assert [cursor.receive_text() for _ in range(20)] == [f"{place}" for place in range(20)]
        clock.advance(1)
        cursor.send_text("there")
        assert cursor.receive_text() == "there"
