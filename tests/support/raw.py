"""ASGI servers as they are installed, and WebSockets to them byte by byte."""

import os
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self

from tests.support.servers import free_port, wait_until

ROOT: Final = Path(__file__).resolve().parents[2]
APP: Final = "tests.support.chatting:app"
GRACE: Final = 3  # seconds that each server gives its connections to end

_UVICORN: Final = (
    "uvicorn", APP, "--port", "{port}", "--timeout-graceful-shutdown", f"{GRACE}",
    "--log-level", "critical", "--ws",
)  # fmt: skip
SERVERS: Final[dict[str, tuple[str, ...]]] = {
    "uvicorn websockets": (*_UVICORN, "websockets"),
    "uvicorn websockets-sansio": (*_UVICORN, "websockets-sansio"),
    "uvicorn wsproto": (*_UVICORN, "wsproto"),
    "hypercorn": ("hypercorn", "-b", "127.0.0.1:{port}", "--graceful-timeout", f"{GRACE}", APP),
    "granian": (
        "granian", "--interface", "asgi", "--port", "{port}", "--workers-kill-timeout", f"{GRACE}",
        "--no-log", APP,
    ),
    "daphne": ("daphne", "-b", "127.0.0.1", "-p", "{port}", "-v", "0", APP),
}  # fmt: skip
"""How each is started."""

TEXT, BINARY, CLOSE, PING = 1, 2, 8, 9


class Serving(NamedTuple):
    """A server that runs."""

    name: str
    port: int
    process: subprocess.Popen[bytes]
    log: Path

    def end(self, within: float) -> float:
        """Asks it to end, and gives the seconds that it took."""
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(within)
        return time.monotonic() - began

    def ends(self) -> list[str]:
        """Path and code of each connection whose end the application has heard of."""
        return self.log.read_text(encoding="utf-8").splitlines() if self.log.exists() else []


@contextmanager
def served(name: str, folder: Path) -> Iterator[Serving]:
    """A server around `tests.support.chatting`, killed at the end if it has not ended before."""
    port = free_port()
    log = folder / f"{name}.log"
    with subprocess.Popen(
        [sys.executable, "-m", *(word.format(port=port) for word in SERVERS[name])],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "RATELIMIT_TEST_CHATS": str(log)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        try:
            wait_until(lambda: _answers(port), f"{name} serves", 30)
            yield Serving(name, port, process, log)
        finally:
            with suppress(ProcessLookupError):  # granian's worker is a process of its own
                os.killpg(process.pid, signal.SIGKILL)


def _answers(port: int) -> bool:
    try:
        with Raw(port, "/ready") as raw:
            return raw.status == 101
    except OSError:
        return False


class Raw:
    """A WebSocket, or what became of its handshake; ``small`` has small buffers in the kernel."""

    def __init__(
        self, port: int, path: str, name: str = "somebody", *, small: bool = False
    ) -> None:
        self.socket = socket.socket()
        if small:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8_192)
        self.socket.settimeout(10)
        try:
            self.socket.connect(("127.0.0.1", port))
            self._shake_hands(port, path, name)
        except OSError:
            self.socket.close()
            raise

    def _shake_hands(self, port: int, path: str, name: str) -> None:
        self.socket.sendall(
            f"GET {path} HTTP/1.1\r\nhost: localhost:{port}\r\nupgrade: websocket\r\n"
            "connection: Upgrade\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
            f"sec-websocket-version: 13\r\nx-test: {name}\r\n\r\n".encode()
        )
        head, _, self._buffer = self._until(b"\r\n\r\n").partition(b"\r\n\r\n")
        line, *fields = head.decode("latin-1").split("\r\n")
        self.line = line
        self.status = int(line.split()[1]) if line else 0
        self.headers = {
            key.lower(): value.strip() for key, _, value in (each.partition(":") for each in fields)
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        self.socket.close()

    def _until(self, end: bytes) -> bytes:
        found = b""
        while end not in found:
            chunk = self.socket.recv(65_536)
            if not chunk:
                break
            found += chunk
        return found

    def rest(self) -> bytes:
        """All that comes until the server closes the connection; TimeoutError where it does not."""
        found = self._buffer
        while chunk := self.socket.recv(65_536):
            found += chunk
        return found

    def say(self, *texts: str) -> None:
        """Sends these in one piece."""
        self.socket.sendall(b"".join(frame(TEXT, each.encode()) for each in texts))

    def hear(self) -> str | tuple[int, str]:
        """The next text; or the code and the reason with which the other side closes."""
        while True:
            code, data = self._frame()
            if code == TEXT:
                return data.decode()
            if code == CLOSE:
                return struct.unpack(">H", data[:2])[0], data[2:].decode()

    def _frame(self) -> tuple[int, bytes]:
        first, second = self._exactly(2)
        length = second & 127
        if length == 126:
            (length,) = struct.unpack(">H", self._exactly(2))
        elif length == 127:
            (length,) = struct.unpack(">Q", self._exactly(8))
        return first & 15, self._exactly(length)

    def _exactly(self, size: int) -> bytes:
        while len(self._buffer) < size:
            chunk = self.socket.recv(65_536)
            if not chunk:
                raise ConnectionResetError("the server has closed the connection")
            self._buffer += chunk
        found, self._buffer = self._buffer[:size], self._buffer[size:]
        return found

    def flood(self, most: int, size: int = 1000, idle: float = 1.0) -> int:
        """Sends until nothing has gone for a while, or so many bytes have; gives how many did."""
        self.socket.setblocking(False)
        data = frame(BINARY, b"x" * size) * 64
        sent, place = 0, 0
        while sent < most:
            if not select.select([], [self.socket], [], idle)[1]:
                break
            try:
                gone = self.socket.send(data[place:])
            except BlockingIOError:
                continue
            sent, place = sent + gone, (place + gone) % len(data)
        self.socket.settimeout(10)
        return sent


def frame(code: int, data: bytes) -> bytes:
    """A frame of a client's, whose mask is nothing."""
    size = len(data)
    if size < 126:
        length = bytes([0x80 | size])
    elif size < 65_536:
        length = bytes([0x80 | 126]) + struct.pack(">H", size)
    else:
        length = bytes([0x80 | 127]) + struct.pack(">Q", size)
    return bytes([0x80 | code]) + length + b"\0\0\0\0" + data
