"""Calls of one answer each, as gRPC makes them over HTTP/2.

The law of this module: who calls may send anything, and what is kept of it is bounded. A message
longer than is read is told from one that is not a message, since a client of Envoy's may choose the
length of one, and must not gain by it.

h2 reads and writes the frames; what gRPC adds is a head of five bytes and a trailer (the page
"gRPC over HTTP2"). A library for all of gRPC reads messages of any length that is announced.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final, NamedTuple, cast

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    RequestReceived,
    StreamEnded,
    StreamReset,
    WindowUpdated,
)
from h2.exceptions import H2Error
from h2.settings import SettingCodes, Settings
from hyperframe.frame import GoAwayFrame

__all__ = ["Answered", "Calls", "Peer", "Server"]

_LOG: Final = logging.getLogger("ratelimit")

MOST_BYTES: Final = 4_194_304
"""Bytes of a message that are kept; gRPC's own bound."""
MOST_AT_ONCE: Final = 16_777_216
"""Bytes of all unfinished messages of a connection; a message beyond counts as too long."""
MOST_STREAMS: Final = 1_024
"""Calls of one connection at a time."""
MOST_TASKS: Final = 4_096
"""Calls of one connection that are being answered, those among them that were given up."""
MOST_HEADERS: Final = 16_384
"""Bytes of a call's header fields."""
WINDOW: Final = 1_048_576
"""Bytes that a caller may send ahead."""
PATIENCE: Final = 5.0
"""Seconds that calls have to end in when the server closes."""

_SETTINGS: Final = {
    SettingCodes.MAX_CONCURRENT_STREAMS: MOST_STREAMS,
    SettingCodes.MAX_HEADER_LIST_SIZE: MOST_HEADERS,
    SettingCodes.INITIAL_WINDOW_SIZE: WINDOW,
}

OK, INVALID, DENIED, UNKNOWN_METHOD, INTERNAL = 0, 3, 7, 12, 13
"""gRPC's statuses."""

Peer = tuple[str, int] | None


class Answered(NamedTuple):
    """A message, or a status with a sentence in place of one."""

    message: bytes = b""
    status: int = OK
    sentence: str = ""


Calls = Callable[[str, bytes | None, Peer], Awaitable[Answered]]
"""Answers a call of a path: with its message (None for one too long to be read), by its peer."""


class Server:
    """Listens for calls and answers each by ``answer``; what that raises is status 13.

    A connection of whom ``trusts`` does not know is closed at once.
    """

    def __init__(self, answer: Calls, trusts: Callable[[Peer], bool]) -> None:
        self.answer = answer
        self.trusts = trusts
        self.lines: set[_Line] = set()
        """The connections that are open."""
        self._listening: asyncio.Server | None = None

    async def open(self, host: str, port: int, unix: str | None = None, *, share: bool) -> None:
        """Listens; with ``share`` other processes may at the same port. Raises OSError."""
        loop = asyncio.get_running_loop()

        def line() -> _Line:
            return _Line(self)

        if unix is not None:
            self._listening = await loop.create_unix_server(line, unix)
        else:
            self._listening = await loop.create_server(
                line, host, port, reuse_port=share or None, backlog=512
            )

    async def aclose(self) -> None:
        """Takes no more calls, and ends when those that were taken are answered."""
        if self._listening is None:
            return
        self._listening.close()
        for each in self.lines.copy():
            each.finish()
        tasks = {task for each in self.lines for task in each.tasks.values()}
        if tasks:
            await asyncio.wait(tasks, timeout=PATIENCE)
        for each in self.lines.copy():
            each.close()
        self._listening = None


class _Line(asyncio.Protocol):
    """One connection."""

    transport: asyncio.Transport

    def __init__(self, server: Server) -> None:
        self._server = server
        # Envoy is held to the rules of HTTP/2 by h2. The three fields that are read of a trusted
        # caller's need no look before that, and what we send none at all.
        self._h2 = H2Connection(
            H2Configuration(
                client_side=False,
                header_encoding=None,
                validate_outbound_headers=False,
                normalize_outbound_headers=False,
                validate_inbound_headers=False,
                normalize_inbound_headers=False,
            )
        )
        self._calls: dict[int, _Call] = {}
        self.tasks: dict[int, asyncio.Task[None]] = {}
        """The calls that are being answered, by their streams."""
        self._held: dict[int, bytes] = {}
        """Bytes that the windows of streams have no room for."""
        self._kept = 0
        """Bytes of the calls that have not come in whole."""
        self._taken = 0
        """Bytes of the connection's window that were taken by the last frames of calls."""
        self._over = False
        """Whether no more calls are taken."""

    # --- what comes in ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.peer: Peer = _peer(self.transport)
        if not self._server.trusts(self.peer):
            self.transport.abort()
            return
        self._server.lines.add(self)
        # As a whole: what is set one by one holds only once the caller has taken note of it.
        self._h2.local_settings = Settings(client=False, initial_values=_SETTINGS)
        self._h2.decoder.max_header_list_size = MOST_HEADERS
        self._h2.initiate_connection()
        self._h2.increment_flow_control_window(WINDOW)
        self._flush()

    def data_received(self, data: bytes) -> None:
        try:
            for event in self._h2.receive_data(data):
                self._take(event)
        except H2Error:  # not HTTP/2: h2 has written why
            self._flush()
            self.close()
            return
        self._flush()

    def connection_lost(self, _: Exception | None) -> None:
        self._server.lines.discard(self)
        for task in [*self.tasks.values()]:
            task.cancel()
        self._calls.clear()
        self._held.clear()

    def _take(self, event: Event) -> None:
        if isinstance(event, RequestReceived):
            self._begin(event)
        elif isinstance(event, DataReceived):
            self._open_windows(event)
            call = self._calls.get(event.stream_id)
            if call is not None:
                self._kept += call.add(event.data, MOST_AT_ONCE - self._kept)
        elif isinstance(event, StreamEnded):
            call = self._calls.pop(event.stream_id, None)
            if call is not None:
                self._kept -= len(call.data)
                self._answer(event.stream_id, call)
        elif isinstance(event, StreamReset):
            self._forget(event.stream_id)
        elif isinstance(event, WindowUpdated):
            for stream in [event.stream_id] if event.stream_id else list(self._held):
                self._send(stream, self._held.pop(stream, b""))
        elif isinstance(event, ConnectionTerminated):
            self._over = True
            if not self.tasks:
                self.close()

    def _begin(self, event: RequestReceived) -> None:
        stream = event.stream_id
        if self._over or len(self.tasks) >= MOST_TASKS:
            self._h2.reset_stream(stream, ErrorCodes.REFUSED_STREAM)
            return
        fields: dict[Any, Any] = dict(event.headers)
        if fields.get(b":method") != b"POST" or not fields.get(b"content-type", b"").startswith(
            b"application/grpc"
        ):
            self._h2.send_headers(stream, [(b":status", b"415")], end_stream=True)
            return
        self._calls[stream] = _Call(fields.get(b":path", b"").decode("latin-1"))

    def _open_windows(self, event: DataReceived) -> None:
        """Lets the caller send as much again, since what is kept is bounded by the call itself."""
        length = event.flow_controlled_length
        if event.stream_ended is None:
            if length:
                self._h2.acknowledge_received_data(length, event.stream_id)
            return
        self._taken += length  # for many calls at once: the connection's is all that counts now
        if self._taken >= WINDOW // 4:
            self._h2.increment_flow_control_window(self._taken)
            self._taken = 0

    def _forget(self, stream: int) -> None:
        """A stream that its caller has given up: its request goes on, and must stay counted."""
        call = self._calls.pop(stream, None)
        if call is not None:
            self._kept -= len(call.data)
        self._held.pop(stream, None)

    # --- what goes out ---

    def _answer(self, stream: int, call: "_Call") -> None:
        message, sentence = call.message()
        if sentence:
            self._reply(stream, Answered(status=INVALID, sentence=sentence))
            return
        task = asyncio.get_running_loop().create_task(self._ask(stream, call.path, message))
        self.tasks[stream] = task

    async def _ask(self, stream: int, path: str, message: bytes | None) -> None:
        try:
            answered = await self._server.answer(path, message, self.peer)
        except Exception:  # noqa: BLE001  # the caller is told, and the server goes on
            _LOG.exception("call-failed: a call of %.100r could not be answered", path)
            answered = Answered(status=INTERNAL, sentence="the call could not be answered")
        self.tasks.pop(stream, None)
        try:
            self._reply(stream, answered)
        except H2Error:  # the stream has ended meanwhile
            return
        self._flush()
        if self._over and not self.tasks:
            self.close()

    def _reply(self, stream: int, answered: Answered) -> None:
        head = [(b":status", b"200"), (b"content-type", b"application/grpc")]
        if answered.status != OK:  # a trailer alone
            self._h2.send_headers(stream, [*head, *_trailer(answered)], end_stream=True)
            return
        self._h2.send_headers(stream, head)
        length = len(answered.message)
        self._send(stream, b"\0" + length.to_bytes(4) + answered.message)

    def _send(self, stream: int, data: bytes) -> None:
        """Sends what the window has room for, and the trailer behind the last of it."""
        if not data:
            return
        try:
            while data:
                room = min(
                    self._h2.local_flow_control_window(stream), self._h2.max_outbound_frame_size
                )
                if room <= 0:
                    self._held[stream] = data
                    return
                self._h2.send_data(stream, data[:room])
                data = data[room:]
            self._h2.send_headers(stream, _TRAILER, end_stream=True)
        except H2Error:  # the stream has ended meanwhile
            return

    def _flush(self) -> None:
        data = self._h2.data_to_send()
        if data and not self.transport.is_closing():
            self.transport.write(data)

    def finish(self) -> None:
        """Says that no more calls are taken; those that were are still answered."""
        self._over = True
        # By hand, since h2 sends nothing more once it has said so itself.
        last = self._h2.highest_inbound_stream_id
        self.transport.write(GoAwayFrame(0, last_stream_id=last).serialize())

    def close(self) -> None:
        """Ends the connection once all that was written has left."""
        self.transport.close()


class _Call:
    """One call, as far as it has come in."""

    __slots__ = ("_long", "data", "path")

    def __init__(self, path: str) -> None:
        self.path = path
        self.data = bytearray()
        self._long = False

    def add(self, data: bytes, room: int) -> int:
        """Keeps more of its message, up to the bounds; gives by how much it has grown."""
        before = len(self.data)
        if self._long or len(data) > min(MOST_BYTES + 5 - before, room):
            self._long = True
            self.data.clear()
        else:
            self.data += data
        return len(self.data) - before

    def message(self) -> tuple[bytes | None, str]:
        """Its one message, None for one that is too long; and what is wrong with it."""
        if self._long:
            return None, ""
        if len(self.data) < 5:
            return b"", "there is no message"
        if self.data[0]:
            return b"", "the message is compressed, which was not offered"
        if int.from_bytes(self.data[1:5]) != len(self.data) - 5:
            return b"", "there is not one whole message"
        return bytes(self.data[5:]), ""


_TRAILER: Final = [(b"grpc-status", b"0")]


def _trailer(answered: Answered) -> list[tuple[bytes, bytes]]:
    return [
        (b"grpc-status", b"%d" % answered.status),
        (b"grpc-message", answered.sentence.encode()),
    ]


def _peer(transport: asyncio.Transport) -> Peer:
    name: Any = transport.get_extra_info("peername")
    return (name[0], name[1]) if isinstance(name, tuple) and len(name) >= 2 else None
