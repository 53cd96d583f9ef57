"""Real proxies for the tests: found, started with the recipes of examples/gateway, asked raw.

A proxy comes from RATELIMIT_NGINX (_CADDY, _ENVOY), from the path, or from where its wheel puts it.
"""

import http.client
import http.server
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

import pytest

from tests.support.servers import free_port, temporary_folder, wait_until

ROOT: Final = Path(__file__).resolve().parents[2]
RECIPES: Final = ROOT / "examples" / "gateway"
SERVICE, APPLICATION, LISTEN = "8750", "8000", "8080"
"""The ports that the recipes name."""
READY_WITHIN: Final = 30.0
PATIENCE: Final = "2s"
"""The time-out of a question in tests; the 250 ms of the recipes may pass on a busy machine."""

INSTALL: Final = {
    "caddy": "pip install --group gateway",
    "envoy": "pip install --group gateways",
    "nginx": "apt install nginx, or RATELIMIT_NGINX=/path/to/nginx",
}

FILES: Final = {
    "caddy": "Caddyfile",
    "nginx": "nginx.conf",
    "envoy": "envoy.yaml",
    "envoy-rls": "envoy-rls.yaml",
}
"""The recipes by the doors that they ask at: Envoy has two."""


def program(name: str) -> str | None:
    """The path of a proxy's program; None where it is not installed."""
    name = name.removesuffix("-rls")
    packages = [Path(sysconfig.get_path("purelib")), *map(Path, sys.path)]
    places = [
        os.environ.get(f"RATELIMIT_{name.upper()}"),
        *(str(each / "envoy" / "_bin" / "envoy") for each in packages if name == "envoy"),
        str(Path(sys.executable).parent / name),
        shutil.which(name),
        shutil.which(name, path="/usr/sbin:/usr/local/sbin"),
    ]
    return next((each for each in places if each and os.access(each, os.X_OK)), None)


def needed(name: str) -> str:
    """The path of a proxy's program; skips the test where it is missing, and fails in CI."""
    name = name.removesuffix("-rls")
    found = program(name)
    if found is None:
        reason = f"{name} NOT TESTED: it is not installed ({INSTALL[name]})"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return found


# --- what is behind them -------------------------------------------------------------------------


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # else head and body are two packets, and the second waits for an ACK
    server: "_Listening"

    def _answer(self) -> None:
        length = int(self.headers.get("content-length") or 0)
        body = self.rfile.read(length) if length else b""
        seen = Seen(self.command, self.path, dict(self.headers.items()), body)
        self.server.seen.append(seen)
        self.send_response(int(self.headers.get("x-answer", "200")))
        self.send_header("content-length", "2")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(b"ok")

    do_GET = do_POST = do_HEAD = do_PUT = do_PROPFIND = do_OPTIONS = _answer  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Says nothing."""


class Seen(NamedTuple):
    """A request that reached the application."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class _Listening(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    seen: list[Seen]


@contextmanager
def application() -> Iterator[_Listening]:
    """An application that answers "ok", with the status that ``x-answer`` asks for."""
    server = _Listening(("127.0.0.1", 0), _Handler)
    server.seen = []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Process:
    """A process that is ended by its id, and what it wrote."""

    def __init__(self, words: Sequence[str], log: Path, **environment: str) -> None:
        self.log = log
        self.words = words
        with log.open("ab") as out:
            self.process = subprocess.Popen(
                words, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                env={**os.environ, **environment}, start_new_session=True,
            )  # fmt: skip

    def tell(self, number: int) -> None:
        """Sends a signal to all of its processes."""
        os.killpg(self.process.pid, number)

    def said(self) -> str:
        """All that it has written."""
        return self.log.read_text(errors="replace")

    def wait_for(self, port: int) -> None:
        """Returns when it listens on a port; RuntimeError where it has ended."""

        def listens() -> bool:
            if self.process.poll() is not None:
                raise RuntimeError(f"{self.words[0]} ended:\n{self.said()[-3000:]}")
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", port)) == 0

        wait_until(listens, f"{self.words[0]} listens on {port}", READY_WITHIN)

    def end(self, number: int = signal.SIGTERM) -> int:
        """Ends it, by SIGKILL where it does not end by itself; gives its exit code."""
        if self.process.poll() is None:
            self.tell(signal.SIGCONT)
            self.tell(number)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.tell(signal.SIGKILL)
                self.process.wait()
        return self.process.returncode


def serve_for(name: str, folder: Path, rules: Path, port: int, *options: str) -> Process:
    """`ratelimit serve` for a door, once it listens there."""
    if not name.endswith("-rls"):
        return serve(folder, rules, port, f"--dialect={name}", *options)
    calls = f"--envoy-grpc=127.0.0.1:{port}"
    process = serve(folder, rules, free_port(), "--dialect=envoy", calls, *options)
    process.wait_for(port)
    return process


def serve(folder: Path, rules: Path, port: int, *options: str) -> Process:
    """`ratelimit serve`, once it listens."""
    code = "from ratelimit.cli.main import main; main()"
    words = [sys.executable, "-c", code, "serve", str(rules), f"--listen=127.0.0.1:{port}"]
    process = Process([*words, *options], folder / f"service-{port}.log")
    try:
        process.wait_for(port)
    except BaseException:
        process.end()
        raise
    return process


def open_port() -> int:
    """A port that no address of this machine listens on, as proxies listen on all of them."""
    with socket.socket() as probe:
        probe.bind(("0.0.0.0", 0))
        port: int = probe.getsockname()[1]
        return port


def recipe(
    name: str, *, listen: int, service: int, behind: int, patience: str | None = PATIENCE
) -> str:
    """A recipe with the ports of a test, and its time-outs (None: the recipe's own)."""
    text = (RECIPES / FILES[name]).read_text()
    for old, new in ((LISTEN, listen), (SERVICE, service), (APPLICATION, behind)):
        text, count = re.subn(rf"\b{old}\b", str(new), text)
        assert count, f"{FILES[name]} does not name {old}"
    text, count = re.subn(r"\b(?:250ms|0\.25s)", patience or r"\g<0>", text)
    assert count > 1, f"{FILES[name]} has no time-outs"
    return text


def run_proxy(name: str, folder: Path, text: str, port: int) -> Process:
    """A proxy with a configuration, once it listens."""
    path, file = needed(name), folder / FILES[name]
    if name == "nginx":
        temporary = "".join(
            f"{each}_temp_path {folder}/{each};\n"
            for each in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        text = text.replace("http {", f"http {{\naccess_log off;\n{temporary}", 1)
        text = f"daemon off;\nmaster_process off;\npid {folder}/nginx.pid;\n{text}"
        words = [path, "-p", str(folder), "-c", str(file), "-e", str(folder / "nginx.log")]
    elif name == "caddy":
        words = [path, "run", "--config", str(file), "--adapter", "caddyfile"]
    else:
        words = [path, "-c", str(file), "--concurrency", "1", "--use-dynamic-base-id", "-l", "warn"]
    file.write_text(text)
    process = Process(words, folder / f"{name}.out", XDG_DATA_HOME=str(folder), HOME=str(folder))
    try:
        process.wait_for(port)
    except BaseException:
        process.end()
        raise
    return process


class Gateway(NamedTuple):
    """A proxy with the service beside it and an application behind it."""

    name: str
    port: int
    proxy: Process
    service: Process
    service_port: int
    behind: _Listening


@contextmanager
def gateway(name: str, rules: str, *options: str, application_port: int = 0) -> Iterator[Gateway]:
    """A proxy by its recipe, with a service that has these rules."""
    needed(name)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(temporary_folder()))
        folder.chmod(0o755)
        behind = stack.enter_context(application())
        file = folder / "rules.yaml"
        file.write_text(rules)
        asked, listen = free_port(), open_port()
        service = serve_for(name, folder, file, asked, *options)
        stack.callback(service.end)
        target = application_port or behind.server_port
        text = recipe(name, listen=listen, service=asked, behind=target)
        proxy = run_proxy(name, folder, text, listen)
        stack.callback(proxy.end)
        yield Gateway(name, listen, proxy, service, asked, behind)


# --- asking --------------------------------------------------------------------------------------


class Answered(NamedTuple):
    """A response: its status, its fields in lower case, its body, and how long it took."""

    status: int
    fields: list[tuple[str, str]]
    body: bytes
    seconds: float

    @property
    def headers(self) -> dict[str, str]:
        """The fields by name; raises where one that is ours was sent twice."""
        named = dict(self.fields)
        ours = [name for name, _ in self.fields if "ratelimit" in name or name == "retry-after"]
        if len(set(ours)) != len(ours):
            raise AssertionError(f"a field was sent twice: {self.fields}")
        return named

    @property
    def problem(self) -> dict[str, Any]:
        """The problem document."""
        assert self.headers["content-type"].startswith("application/problem+json"), self
        problem: dict[str, Any] = json.loads(self.body)
        return problem


class Client:
    """A connection from a loopback address of its own, which speaks HTTP/1.1 by hand."""

    def __init__(self, port: int, address: str = "127.0.0.2") -> None:
        self._place = ("127.0.0.1", port), (address, 0)
        self._socket: socket.socket | None = None

    def ask(
        self, path: str, method: str = "GET", headers: Mapping[str, str] = {}, body: bytes = b""
    ) -> Answered:
        """One request and its answer."""
        lines = [f"{method} {path} HTTP/1.1", *(f"{k}: {v}" for k, v in headers.items())]
        if "host" not in {name.lower() for name in headers}:
            lines.insert(1, "Host: app.example")
        if body:
            lines.append(f"Content-Length: {len(body)}")
        return self.raw("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body)

    def raw(self, request: bytes) -> Answered:
        """The answer to these bytes."""
        began = time.perf_counter()
        if self._socket is None:
            target, source = self._place
            self._socket = socket.create_connection(target, 20, source_address=source)
        self._socket.sendall(request)
        response = http.client.HTTPResponse(self._socket, method=request.split(b" ")[0].decode())
        response.begin()
        body = response.read()
        seconds = time.perf_counter() - began
        fields = [(name.lower(), value) for name, value in response.getheaders()]
        closes = response.will_close
        response.close()
        if closes:
            self.close()
        return Answered(response.status, fields, body, seconds)

    def close(self) -> None:
        """Closes the connection; the next request opens another."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
