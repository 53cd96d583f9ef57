"""A caller of Envoy's rate limit service: questions as bytes, gRPC over HTTP/2, answers read."""

import socket
from collections.abc import Sequence
from typing import Any, NamedTuple, Self

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
)

from ratelimit.gateway.messages import fields
from ratelimit.gateway.rls import SHOULD_RATE_LIMIT

Entries = Sequence[tuple[str, str | bytes]]


class Said(NamedTuple):
    """An answer, as its caller reads it."""

    over: bool
    statuses: list[dict[str, Any]]
    headers: dict[str, str]
    body: bytes


def number(value: int) -> bytes:
    """A whole number as protocol buffers write it."""
    found = bytearray()
    while value >= 0x80:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


def text(field: int, value: bytes) -> bytes:
    """A field of bytes."""
    return number(field << 3 | 2) + number(len(value)) + value


def descriptor(entries: Entries, hits: int | None = None) -> bytes:
    """A descriptor of a question."""
    body = b""
    for key, value in entries:
        raw = value if isinstance(value, bytes) else value.encode()
        body += text(1, text(1, key.encode()) + text(2, raw))
    if hits is not None:
        body += text(3, b"\x08" + number(hits))
    return text(2, body)


def question(*descriptors: bytes, domain: str = "edge", hits: int | None = None) -> bytes:
    """A question of these descriptors."""
    body = text(1, domain.encode()) + b"".join(descriptors)
    return body if hits is None else body + b"\x18" + number(hits)


def said(message: bytes) -> Said:
    """The answer in these bytes."""
    over, body = False, b""
    statuses, headers = [], {}
    for field, value in fields(message):
        if field == 1:
            over = value == 2
        elif field == 2:
            statuses.append(_status(value))
        elif field == 3:
            pair: dict[int, Any] = dict(fields(value))  # type: ignore[arg-type]  # it is bytes
            name = pair[1].decode()
            assert name not in headers, f"{name} is there twice"
            headers[name] = pair[2].decode()
        elif field == 5:
            assert isinstance(value, bytes)
            body = value
    return Said(over, statuses, headers, body)


def _status(value: Any) -> dict[str, Any]:
    read: dict[int, Any] = dict(fields(value))
    found: dict[str, Any] = {"over": read[1] == 2}
    if 2 in read:
        limit: dict[int, Any] = dict(fields(read[2]))
        until: dict[int, Any] = dict(fields(read.get(4, b"")))
        found |= {
            "quota": limit.get(1, 0),
            "unit": limit.get(2, 0),
            "name": limit[3].decode(),
            "remaining": read.get(3, 0),
            "reset": until.get(1, 0) + until.get(2, 0) / 1e9,
        }
    return found


class Caller:
    """A connection that calls; each call waits for its answer."""

    def __init__(self, port: int, source: str = "127.0.0.1") -> None:
        target = ("127.0.0.1", port)
        self.socket = socket.create_connection(target, 20, source_address=(source, 0))
        self.h2 = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
        self.h2.initiate_connection()
        self.socket.sendall(self.h2.data_to_send())

    def send(self, raw: bytes, path: str = SHOULD_RATE_LIMIT, **changed: str) -> int:
        """Sends a call of these bytes, its head of five among them; gives its stream."""
        stream = self.h2.get_next_available_stream_id()
        fields = {
            ":method": "POST", ":scheme": "http", ":authority": "ratelimit", ":path": path,
            "content-type": "application/grpc", "te": "trailers",
        }  # fmt: skip
        fields |= {name.replace("_", "-"): value for name, value in changed.items()}
        self.h2.send_headers(stream, list(fields.items()))
        ended = False
        while raw:
            room = min(self.h2.local_flow_control_window(stream), self.h2.max_outbound_frame_size)
            if room == 0:
                self.socket.sendall(self.h2.data_to_send())
                self.h2.receive_data(self.socket.recv(65_536))
                continue
            self.h2.send_data(stream, raw[:room], end_stream=len(raw) <= room)
            raw = raw[room:]
            ended = not raw
        if not ended:
            self.h2.end_stream(stream)
        self.socket.sendall(self.h2.data_to_send())
        return stream

    def hear(self, stream: int) -> tuple[dict[str, str], bytes]:
        """All fields of an answer, trailers among them, and its message."""
        found: dict[str, str] = {}
        data = b""
        while True:
            heard = self.socket.recv(65_536)
            if not heard:
                raise ConnectionError("hung up")
            for event in self.h2.receive_data(heard):
                if isinstance(event, ResponseReceived | TrailersReceived):
                    found |= {str(name): str(value) for name, value in event.headers or ()}
                elif isinstance(event, DataReceived):
                    data += event.data or b""
                    self.h2.acknowledge_received_data(
                        event.flow_controlled_length or 0, event.stream_id or 0
                    )
                    self.socket.sendall(self.h2.data_to_send())
                elif isinstance(event, StreamReset | ConnectionTerminated):
                    raise ConnectionError(f"{event}")
                elif isinstance(event, StreamEnded) and event.stream_id == stream:
                    assert not data or int.from_bytes(data[1:5]) == len(data) - 5
                    return found, data[5:]

    def call(self, message: bytes, path: str = SHOULD_RATE_LIMIT) -> tuple[str, bytes]:
        """The status of a call and its message."""
        found, data = self.hear(self.send(b"\0" + len(message).to_bytes(4) + message, path))
        return found["grpc-status"], data

    def ask(self, *descriptors: bytes, hits: int | None = None) -> Said:
        """The answer to a question."""
        status, data = self.call(question(*descriptors, hits=hits))
        assert status == "0"
        return said(data)

    def close(self) -> None:
        """Closes the connection."""
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
