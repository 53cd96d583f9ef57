"""Calls over HTTP/2, by a caller of our own; Envoy's are in test_proxies."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from ratelimit.gateway import calls
from ratelimit.gateway.calls import MOST_BYTES, Answered, Peer, Server
from tests.support.calls import Caller
from tests.support.servers import free_port, wait_until

Answers = Callable[[str, bytes | None, Peer], Awaitable[Answered]]


async def echo(_: str, message: bytes | None, __: Peer) -> Answered:
    """Gives back what it gets, or says that it is too long."""
    return Answered(b"too long" if message is None else message)


@asynccontextmanager
async def serving(answers: Answers = echo, **trust: Any) -> AsyncIterator[tuple[Server, int]]:
    server = Server(answers, trust.get("trusts", lambda _: True))
    port = free_port()
    await server.open("127.0.0.1", port, share=False)
    try:
        yield server, port
    finally:
        await server.aclose()


async def apart(function: Callable[..., Any], *given: Any) -> Any:
    """The result of a caller, who waits in a thread of his own."""
    return await asyncio.wait_for(asyncio.to_thread(function, *given), 30)


def one_call(port: int, message: bytes) -> tuple[str, bytes]:
    with Caller(port) as caller:
        return caller.call(message)


@pytest.mark.parametrize("length", [0, 1, 16_384, 70_000, 1_000_000, MOST_BYTES])
async def test_a_message_of_any_length_that_is_read_is_answered(length: int) -> None:
    async with serving() as (_, port):
        assert await apart(one_call, port, b"x" * length) == ("0", b"x" * length)


async def test_a_message_that_is_longer_is_told_from_a_malformed_one() -> None:
    async with serving() as (_, port):
        assert await apart(one_call, port, b"x" * (MOST_BYTES + 1)) == ("0", b"too long")


async def test_a_connection_takes_more_calls_than_its_window_has_room_for() -> None:
    message = b"x" * 16_000  # in one frame, which ends its call

    def ask(port: int) -> list[bytes]:
        with Caller(port) as caller:
            return [caller.call(message)[1] for _ in range(3 * calls.WINDOW // len(message))]

    async with serving() as (_, port):
        assert set(await apart(ask, port)) == {message}


async def test_a_call_that_names_no_path_is_answered_and_so_is_the_next() -> None:
    async def path_of(path: str, _: bytes | None, __: Peer) -> Answered:
        return Answered(f"<{path}>".encode())

    def ask(port: int) -> list[bytes]:
        with Caller(port) as caller:
            caller.h2.config.validate_outbound_headers = False
            stream = caller.h2.get_next_available_stream_id()
            fields = [(":method", "POST"), ("content-type", "application/grpc")]
            caller.h2.send_headers(stream, fields)
            caller.h2.send_data(stream, b"\0" * 5, end_stream=True)
            caller.socket.sendall(caller.h2.data_to_send())
            return [caller.hear(stream)[1], caller.call(b"", "/x")[1]]

    async with serving(path_of) as (_, port):
        assert await apart(ask, port) == [b"<>", b"</x>"]


async def test_all_unfinished_messages_of_a_connection_are_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(calls, "MOST_AT_ONCE", 100_000)

    def two_at_once(port: int) -> list[bytes]:
        message = b"\0" + (60_000).to_bytes(4) + b"x" * 60_000
        with Caller(port) as caller:
            streams = [caller.h2.get_next_available_stream_id()]
            fields = [(":method", "POST"), (":scheme", "http"), (":authority", "x"),
                      (":path", "/x"), ("content-type", "application/grpc")]  # fmt: skip
            caller.h2.send_headers(streams[0], fields)
            for start in range(0, 60_000, 10_000):
                caller.h2.send_data(streams[0], message[start : start + 10_000])
            caller.socket.sendall(caller.h2.data_to_send())
            found = [caller.call(b"y" * 50_000)[1]]
            caller.h2.send_data(streams[0], message[60_000:], end_stream=True)
            caller.socket.sendall(caller.h2.data_to_send())
            found.append(caller.hear(streams[0])[1])
            return [*found, caller.call(b"z" * 60_000)[1]]

    async with serving() as (_, port):
        assert await apart(two_at_once, port) == [b"too long", b"x" * 60_000, b"z" * 60_000]


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        (b"", "there is no message"),
        (b"\0\0\0", "there is no message"),
        (b"\1\0\0\0\0", "the message is compressed, which was not offered"),
        (b"\0\0\0\0\2x", "there is not one whole message"),
        (b"\0\xff\xff\xff\xffx", "there is not one whole message"),
        (b"\0\0\0\0\1xx", "there is not one whole message"),
    ],
)
async def test_what_is_not_one_message_is_said_to_be_none(raw: bytes, sentence: str) -> None:
    def ask(port: int) -> dict[str, str]:
        with Caller(port) as caller:
            return caller.hear(caller.send(raw))[0]

    async with serving() as (_, port):
        found = await apart(ask, port)
    assert (found["grpc-status"], found["grpc-message"]) == ("3", sentence)


async def test_what_is_not_a_call_is_answered_with_415() -> None:
    def ask(port: int) -> list[str]:
        with Caller(port) as caller:
            html = caller.hear(caller.send(b"x", content_type="text/html"))[0]
            return [html[":status"], caller.call(b"x")[0]]

    async with serving() as (_, port):
        assert await apart(ask, port) == ["415", "0"]


async def test_many_calls_of_one_connection_are_answered_as_they_come() -> None:
    gate = asyncio.Event()

    async def slow(_: str, message: bytes | None, __: Peer) -> Answered:
        if message == b"slow":
            await gate.wait()
        return Answered(message or b"")

    def ask(port: int, loop: asyncio.AbstractEventLoop) -> list[bytes]:
        with Caller(port) as caller:
            first = caller.send(b"\0\0\0\0\4slow")
            found = [caller.call(b"%d" % number)[1] for number in range(200)]
            loop.call_soon_threadsafe(gate.set)
            return [*found, caller.hear(first)[1]]

    async with serving(slow) as (_, port):
        found = await apart(ask, port, asyncio.get_running_loop())
    assert found == [b"%d" % number for number in range(200)] + [b"slow"]


async def test_a_call_that_fails_is_status_13_and_the_next_one_is_answered(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def broken(_: str, message: bytes | None, __: Peer) -> Answered:
        if message == b"bad":
            raise RuntimeError("secret")
        return Answered(b"good")

    def ask(port: int) -> list[Any]:
        with Caller(port) as caller:
            bad = caller.hear(caller.send(b"\0\0\0\0\3bad"))[0]
            return [bad, caller.call(b"x")]

    async with serving(broken) as (_, port):
        bad, good = await apart(ask, port)
    assert bad["grpc-status"] == "13"
    assert "secret" not in str(bad)
    assert good == ("0", b"good")
    assert "call-failed" in caplog.text


async def test_who_is_not_trusted_is_hung_up_on() -> None:
    def ask(port: int) -> bytes:
        with socket.create_connection(("127.0.0.1", port), 20) as stranger:
            try:
                stranger.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
                return stranger.recv(100)
            except ConnectionError:
                return b""

    async with serving(trusts=lambda _: False) as (server, port):
        assert await apart(ask, port) == b""
        assert not server.lines


@pytest.mark.parametrize(
    "raw",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01" + b"x" * 500,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\x40\1\0\0\0\0\0\1" + b"x" * 16_385,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\5\0\0\0\0\0\1hello",
    ],
)
async def test_what_is_not_http2_is_hung_up_on(raw: bytes) -> None:
    def ask(port: int) -> bool:
        with socket.create_connection(("127.0.0.1", port), 20) as other:
            other.sendall(raw)
            try:
                while other.recv(65_536):
                    pass
            except ConnectionError:
                pass
            return True

    async with serving() as (_, port):
        assert await apart(ask, port)
        assert await apart(one_call, port, b"x") == ("0", b"x")


async def test_a_header_block_without_end_is_hung_up_on() -> None:
    def ask(port: int) -> bool:
        with Caller(port) as caller:
            try:
                for number in range(2_000):
                    caller.send(b"", **{f"x_{number}": "y" * 15_000})
                    caller.hear(caller.send(b"\0\0\0\0\0", x_long="y" * 40_000))
            except (ConnectionError, OSError):
                return True
            return False

    async with serving() as (_, port):
        assert await apart(ask, port)


async def test_closing_answers_what_has_come_and_takes_no_more() -> None:
    gate, came = asyncio.Event(), asyncio.Event()

    async def slow(_: str, message: bytes | None, __: Peer) -> Answered:
        came.set()
        await gate.wait()
        return Answered(b"still answered")

    def ask(port: int) -> bytes:
        caller = Caller(port)
        stream = caller.send(b"\0\0\0\0\0")
        data = b""
        while True:  # by hand, as the answer comes behind a goodbye
            heard = caller.socket.recv(65_536)
            if not heard:
                caller.close()
                assert stream == 1
                return data
            data += heard

    async with serving(slow) as (server, port):
        asking = asyncio.create_task(apart(ask, port))
        await came.wait()
        closing = asyncio.create_task(server.aclose())
        await asyncio.sleep(0)
        gate.set()
        await closing
        assert b"still answered" in await asking
        with pytest.raises(OSError, match="refused"):
            await apart(one_call, port, b"x")


async def test_a_caller_that_leaves_is_forgotten() -> None:
    async def never(_: str, __: bytes | None, ___: Peer) -> Answered:
        await asyncio.Event().wait()
        return Answered()

    def leave(port: int, server: Server) -> None:
        with Caller(port) as caller:
            caller.send(b"\0\0\0\0\0")
            wait_until(lambda: any(each.tasks for each in server.lines.copy()), "it is asked", 20)

    async with serving(never) as (server, port):
        await apart(leave, port, server)
        await apart(wait_until, lambda: not server.lines, "it is forgotten", 20)
        assert not [each for each in asyncio.all_tasks() if "_ask" in repr(each)]
