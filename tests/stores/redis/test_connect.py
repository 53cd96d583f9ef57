"""How connections are made: names, addresses, TLS files that change, clients of redis-py's."""

import asyncio
import logging
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import pytest
import redis
import uvloop
import valkey.asyncio
from redis.asyncio import Redis, RedisCluster
from redis.asyncio.connection import Connection, ConnectionPool, SSLConnection
from redis.credentials import CredentialProvider

from ratelimit import Check, Limit, RedisStore, StoreUnavailable
from ratelimit.stores.redis import errands
from ratelimit.stores.redis.connect import Dialer, Target
from ratelimit.stores.redis.installed import TESTED
from tests.support.clusters import Cluster, cluster
from tests.support.servers import (
    Certificates,
    Server,
    binaries,
    certificates,
    free_port,
    serving,
    tls_serving,
)

PASSWORD: Final = "p@ss:w/rd?#%& é+"
DEADLINE: Final = 5.0  # seconds; for what works, however busy the machine is
SHORT: Final = 0.05  # for what is waited for in vain: a second then
CHECK: Final = Check(Limit("1000/minute", algorithm="fixed_window"), "someone")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """One that listens on a unix socket as well, and has a user with a password."""
    with serving(binaries()[0].path, "--unixsocket", "{folder}/socket") as started:
        started.ask("ACL", "SETUSER", "named", "on", f">{PASSWORD}", "~*", "+@all")
        yield started


async def pinged(dialer: Dialer) -> str:
    """Opens a connection, uses and closes it; gives the address that was tried last."""
    connection = await dialer.open()
    try:
        await connection.send_command("PING")
        assert await connection.read_response() in (b"PONG", "PONG")
    finally:
        await connection.disconnect()
        await dialer.aclose()
    return dialer.trying


async def refused(dialer: Dialer) -> StoreUnavailable:
    """How a dialer says, in one sentence, why there is no connection."""
    with pytest.raises(StoreUnavailable) as caught:
        await pinged(dialer)
    assert re.fullmatch(r"[^\n]{10,500}", str(caught.value))
    return caught.value


Answer = list[tuple[Any, ...]]


@contextmanager
def resolving(names: dict[str, list[str]], hanging: str = "") -> Iterator[threading.Event]:
    """Names that the system's resolver is made to know, and one for which it hangs.

    It hangs until the event is set, which happens at the end at the latest.
    """
    real, release = socket.getaddrinfo, threading.Event()

    def getaddrinfo(host: Any, port: Any, *arguments: Any, **options: Any) -> Any:
        if host == hanging:
            release.wait(30)
        if host not in names:
            return real(host, port, *arguments, **options)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (at, port)) for at in names[host]]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", getaddrinfo)
        try:
            yield release
        finally:
            release.set()
            for thread in ours():
                thread.join(10)


def ours() -> list[threading.Thread]:
    """The threads that make connections."""
    return [each for each in threading.enumerate() if each.name == "ratelimit-connect"]


# --- names and addresses -------------------------------------------------------------------------


async def test_an_address_needs_no_look_up(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a host that is a number, and of a unix socket, nobody is asked."""

    def asked(*_: Any, **__: Any) -> None:
        raise AssertionError("the resolver was asked")

    monkeypatch.setattr(socket, "getaddrinfo", asked)
    assert await pinged(Target(server.url, DEADLINE).dialer()) == f"127.0.0.1:{server.port}"
    path = f"{server.folder}/socket"
    assert await pinged(Target(f"unix://{path}", DEADLINE).dialer()) == path


async def test_a_name_is_looked_up_at_each_connection(server: Server) -> None:
    """Another address of it is used from the next connection on."""
    names = {"redis.test": ["127.0.0.3"]}
    with resolving(names):
        dialer = Target(f"redis://redis.test:{server.port}", DEADLINE).dialer()
        assert (await refused(dialer)).kind == "refused"
        names["redis.test"] = ["127.0.0.1"]
        assert await pinged(dialer) == f"redis.test:{server.port} (127.0.0.1)"


async def test_all_addresses_of_a_name_are_tried_in_order(server: Server) -> None:
    """One where nothing listens, one where nobody answers, and one that does, in one patience."""
    names = {"redis.test": ["127.0.0.3", "127.0.0.2", "127.0.0.1"]}
    with socket.create_server(("127.0.0.2", server.port)), resolving(names):
        tried = await pinged(Target(f"redis://redis.test:{server.port}", SHORT).dialer())
    assert tried.endswith("(127.0.0.1)")


async def test_a_server_that_answers_is_the_last_that_is_tried(server: Server) -> None:
    """Its refusal of a password is told, and the password is shown to nobody else."""
    with resolving({"redis.test": ["127.0.0.1", "127.0.0.2"]}):
        url = f"redis://named:wrong@redis.test:{server.port}"
        error = await refused(Target(url, DEADLINE).dialer())
    assert error.kind == "password"
    assert str(error).endswith(f", at redis.test:{server.port} (127.0.0.1)")
    assert "wrong" not in str(error).replace("WRONGPASS", "")


async def test_a_name_that_does_not_resolve_is_told() -> None:
    """Of kind "name", also where it cannot be one."""
    target = Target("redis+cluster://h", DEADLINE)  # whose nodes may announce anything
    for host, told in (
        ("nowhere.invalid", "nowhere.invalid:1"),
        ("a" * 70, "a" * 70 + ":1"),
        ("a" * 10_000, "a" * 80 + "…:1"),
        ("\0\x1b[31m\n", r"\x00\x1b[31m\n:1"),
        ("", ":1"),
    ):
        error = await refused(target.dialer((host, 1)))
        assert error.kind == "name"
        assert f"the name of {told} does not resolve" in str(error)


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_resolver_that_hangs_holds_up_nobody_else(
    server: Server, new_loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    """Fifty connections wait for one thread, which is not of the application's own executor.

    When it answers, all of them have the answer.
    """

    async def wanted(release: threading.Event) -> int:
        target = Target(f"redis://redis.test:{server.port}", 10)
        dialers = [target.dialer() for _ in range(50)]
        waiting = [asyncio.create_task(pinged(each)) for each in dialers]
        await asyncio.sleep(0)
        loop = asyncio.get_running_loop()
        # Not with the hanging ones before it in a queue, which would take 30 s.
        assert await asyncio.wait_for(loop.run_in_executor(None, lambda: 7), 10) == 7
        assert await asyncio.wait_for(loop.getaddrinfo("localhost", 1), 10)
        assert {each.waiting_for for each in dialers} == {"name"}
        threads = len(ours())
        for task in waiting[:10]:
            task.cancel()
        release.set()
        ended = await asyncio.gather(*waiting, return_exceptions=True)
        assert all(isinstance(each, asyncio.CancelledError) for each in ended[:10])
        assert set(ended[10:]) == {f"redis.test:{server.port} (127.0.0.1)"}
        return threads

    with (
        resolving({"redis.test": ["127.0.0.1"]}, hanging="redis.test") as release,
        asyncio.Runner(loop_factory=new_loop) as runner,
    ):
        assert runner.run(wanted(release)) == 1
    assert ours() == []


async def test_a_resolver_that_hangs_is_asked_once_and_told(server: Server) -> None:
    """Whoever waits for it is told the name, when time is up; another host is found meanwhile."""
    with resolving({}, hanging="redis.test"):
        dialer = Target(f"redis://redis.test:{server.port}", SHORT).dialer()
        for _ in range(2):
            error = await refused(dialer)
            assert error.kind == "name"
            assert f"the name of redis.test:{server.port} was not resolved" in str(error)
            assert len(ours()) == 1
            assert not any(errands.ERRANDS._under_way.values())  # who gave up is forgotten
        assert await pinged(Target(f"redis://localhost:{server.port}", DEADLINE).dialer())


async def test_decisions_that_wait_for_a_name_hold_up_nobody_else(server: Server) -> None:
    """They fail at their deadline, of one thread, and the application's own work goes on."""
    with resolving({}, hanging="redis.test"):
        async with RedisStore(f"redis://redis.test:{server.port}", deadline=0.3) as store:
            wanted = [asyncio.create_task(store.decide([CHECK])) for _ in range(50)]
            await asyncio.sleep(0)
            assert await asyncio.wait_for(asyncio.to_thread(lambda: 7), 10) == 7
            ended = await asyncio.gather(*wanted, return_exceptions=True)
            assert all(isinstance(each, StoreUnavailable) for each in ended)
            assert len(ours()) == 1


async def test_look_ups_have_a_bound(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names that a cluster's nodes announce do not start threads without end."""
    monkeypatch.setattr(errands, "MOST_ERRANDS", 0)
    error = await refused(Target(f"redis://localhost:{server.port}", DEADLINE).dialer())
    assert error.kind == "name"
    assert ours() == []


ENDING: Final = """
import asyncio, os, socket, sys, threading
from ratelimit import StoreUnavailable
from ratelimit.stores.redis.connect import Target

real = socket.getaddrinfo
def getaddrinfo(host, *arguments, **options):
    if not forked:
        threading.Event().wait()
    return real(host, *arguments, **options)
socket.getaddrinfo, forked = getaddrinfo, False

async def dial():
    try:
        connection = await Target("redis://localhost:{port}", 0.05).dialer().open()
    except StoreUnavailable as error:
        return error.kind
    await connection.disconnect()
    return "open"

assert asyncio.run(dial()) == "name"
if not (child := os.fork()):
    forked = True
    os._exit(0 if asyncio.run(dial()) == "open" else 1)
assert os.waitpid(child, 0)[1] == 0
print("the end")
"""


def test_a_resolver_that_hangs_holds_up_neither_a_fork_nor_the_end(server: Server) -> None:
    """A child asks anew, and the interpreter ends with a look-up under way."""
    words = [sys.executable, "-W", "ignore", "-c", ENDING.replace("{port}", str(server.port))]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.stdout, ended.stderr, ended.returncode) == ("the end\n", "", 0)


async def test_a_stall_of_our_own_is_not_the_servers_time(server: Server) -> None:
    """An event loop that is held up for longer than a connection may take still gets it."""
    dialer = Target(f"redis://localhost:{server.port}", SHORT).dialer()
    opening = asyncio.create_task(pinged(dialer))
    for _ in range(4):
        time.sleep(0.6)  # noqa: ASYNC251 # which is the point
        await asyncio.sleep(0)
    assert await opening == f"localhost:{server.port} (127.0.0.1)"


async def test_a_server_that_does_not_answer_is_told_in_time() -> None:
    """Of kind "late", with its address."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        dialer = Target(f"redis://127.0.0.1:{port}", SHORT).dialer()
        error = await refused(dialer)
    assert error.kind == "late"
    assert str(error) == f"no connection to 127.0.0.1:{port} within 0.9 s"
    assert dialer.waiting_for == "connection"


async def test_connections_are_kept_alive(server: Server) -> None:
    """The system asks after an idle server, as redis-py has it: after 30 s."""
    for host in ("127.0.0.1", "localhost"):
        connection = await Target(f"redis://{host}:{server.port}", DEADLINE).dialer().open()
        mine = connection._writer.get_extra_info("socket")
        assert mine.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert mine.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 30
        await connection.disconnect()


# --- TLS -----------------------------------------------------------------------------------------


class Secured:
    """A server behind TLS, and what it was certified by."""

    def __init__(self, port: int, shown: Certificates) -> None:
        self.port = port
        self.shown = shown


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Secured]]:
    """Two servers behind TLS, each certified by an authority of its own."""
    if not shutil.which("openssl"):
        pytest.skip("TLS: NOT RUN here; it needs openssl to make certificates")
    first, second = (certificates(str(tmp_path_factory.mktemp("tls"))) for _ in range(2))
    program = binaries()[0].path
    with (
        tls_serving(program, first) as (_, one),
        tls_serving(program, second) as (_, two),
    ):
        yield [Secured(one, first), Secured(two, second)]


class Rotated:
    """A target whose authority is read from a file that may change; it dials either server."""

    def __init__(self, folder: Path, secured: list[Secured]) -> None:
        self.file = folder / "ca.pem"
        self.secured = secured
        self.show(0)
        # A cluster's nodes are the servers of one target.
        self.target = Target(f"redis+cluster://h?ssl=true&ssl_ca_certs={self.file}", DEADLINE)

    def show(self, number: int) -> None:
        """Puts a server's authority where the target reads it."""
        shutil.copyfile(self.secured[number].shown.authority, self.file)

    def dialer(self, number: int) -> Dialer:
        """Connections to one of the servers."""
        return self.target.dialer(("127.0.0.1", self.secured[number].port))


@pytest.fixture
def rotated(tmp_path: Path, secured: list[Secured]) -> Rotated:
    """A target that trusts the first server."""
    return Rotated(tmp_path, secured)


async def test_tls_asks_for_the_name_and_not_for_its_address(secured: list[Secured]) -> None:
    """A certificate for an address is none for a name that leads there."""
    port, shown = secured[0].port, secured[0].shown
    with resolving({"redis.test": ["127.0.0.1"]}):
        for host, trusted in (("127.0.0.1", True), ("localhost", True), ("redis.test", False)):
            url = f"rediss://{host}:{port}?ssl_ca_certs={shown.authority}"
            dialer = Target(url, DEADLINE).dialer()
            if trusted:
                assert await pinged(dialer)
                continue
            error = await refused(dialer)
            assert error.kind == "tls"
            assert "redis.test" in str(error)
            assert await pinged(Target(f"{url}&ssl_check_hostname=false", DEADLINE).dialer())


async def test_an_authority_that_was_rotated_is_read_again(rotated: Rotated) -> None:
    """At the next connection, by the same process."""
    assert await pinged(rotated.dialer(0))
    assert (await refused(rotated.dialer(1))).kind == "tls"
    rotated.show(1)
    assert await pinged(rotated.dialer(1))
    assert (await refused(rotated.dialer(0))).kind == "tls"


async def test_files_that_did_not_change_are_read_once(
    rotated: Rotated, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Since that takes half a deadline."""
    contexts = set()
    for _ in range(3):
        connection = await rotated.dialer(0).open()
        contexts.add(id(connection.ssl_context.get()))
        await connection.disconnect()
    assert len(contexts) == 1


async def test_a_file_that_cannot_be_read_leaves_what_was_read_before(
    rotated: Rotated, caplog: pytest.LogCaptureFixture
) -> None:
    """Half-written or gone; the log says so once for each time that it breaks."""
    text = rotated.file.read_text(encoding="ascii")
    with caplog.at_level(logging.WARNING, "ratelimit"):
        for times in (1, 2):
            rotated.file.write_text(text[: len(text) // 2], encoding="ascii")
            assert await pinged(rotated.dialer(0))
            rotated.file.unlink()
            assert await pinged(rotated.dialer(0))
            assert len(caplog.records) == times
            assert "cannot be used, so those of before are still used" in caplog.text
            rotated.show(1)
            assert await pinged(rotated.dialer(1))
            rotated.show(0)
            assert await pinged(rotated.dialer(0))


async def test_a_file_that_is_slow_to_read_holds_up_nobody(rotated: Rotated) -> None:
    """It is read in the thread that looks names up, not in the event loop."""
    rotated.file.unlink()
    os.mkfifo(rotated.file)  # opening it blocks until somebody writes
    shown = rotated.secured[0].shown.authority
    in_the_end = threading.Timer(20, join, (rotated.file, shown))  # where it blocks the loop
    in_the_end.start()
    opening = asyncio.create_task(pinged(rotated.dialer(0)))
    await asyncio.sleep(0)
    assert len(ours()) == 1
    await asyncio.to_thread(join, rotated.file, shown)
    in_the_end.cancel()
    assert await opening


def join(into: Path, *parts: str) -> None:
    """Writes files one after the other into another."""
    into.write_bytes(b"".join(Path(part).read_bytes() for part in parts))


@asynccontextmanager
async def tls_before(
    target: int, shown: Certificates, port: int = 0, *, demanding: bool = False
) -> AsyncIterator[int]:
    """TLS on a port, a free one unless given, and what it carries passed on to a server's.

    Where it is demanding, for clients with a certificate of the same authority.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(shown.certificate, shown.key)
    if demanding:
        context.load_verify_locations(shown.authority)
        context.verify_mode = ssl.CERT_REQUIRED
    taken: list[asyncio.StreamWriter] = []

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65_536):
                writer.write(data)
        writer.close()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        taken.append(writer)
        back, forth = await asyncio.open_connection("127.0.0.1", target)
        await asyncio.gather(carry(reader, forth), carry(back, writer))

    async with await asyncio.start_server(accept, "127.0.0.1", port, ssl=context) as listener:
        try:
            yield listener.sockets[0].getsockname()[1]
        finally:
            for writer in taken:
                writer.transport.abort()


async def test_a_certificate_and_key_that_were_rotated_are_shown(
    server: Server, secured: list[Secured], tmp_path: Path
) -> None:
    """Where the server asks its clients for a certificate; also while only one of both is there."""
    shown, later = (each.shown for each in secured)
    certificate, key = tmp_path / "client.crt", tmp_path / "client.key"
    shutil.copyfile(shown.certificate, certificate)
    shutil.copyfile(shown.key, key)
    authorities = tmp_path / "both.pem"
    join(authorities, shown.authority, later.authority)
    target = Target(
        f"redis+cluster://h?ssl=true&ssl_ca_certs={authorities}"
        f"&ssl_certfile={certificate}&ssl_keyfile={key}",
        DEADLINE,
    )
    async with (
        tls_before(server.port, shown, demanding=True) as one,
        tls_before(server.port, later, demanding=True) as two,
    ):
        dialers = [target.dialer(("127.0.0.1", port)) for port in (one, two)]
        assert await pinged(dialers[0])
        assert (await refused(dialers[1])).kind in ("tls", "closed")
        shutil.copyfile(later.certificate, certificate)
        assert await pinged(dialers[0])
        shutil.copyfile(later.key, key)
        assert await pinged(dialers[1])
        assert (await refused(dialers[0])).kind in ("tls", "closed")


async def test_a_store_goes_on_after_a_rotation(
    server: Server, secured: list[Secured], tmp_path: Path
) -> None:
    """The server shows another certificate, by another authority, on the same port."""
    file = tmp_path / "ca.pem"
    shown, later = (each.shown for each in secured)
    join(file, shown.authority)
    async with tls_before(server.port, shown) as port:
        store = RedisStore(f"rediss://127.0.0.1:{port}?ssl_ca_certs={file}", deadline=5)
        await store.decide([CHECK])
    join(file, later.authority)
    async with tls_before(server.port, later, port), store:
        (decision,) = await store.decide([CHECK])
    assert decision.allowed


def test_a_redis_py_without_what_is_relied_on_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """With its version and those that were tested, when the store is built."""
    monkeypatch.delattr(SSLConnection, "_connection_arguments")
    monkeypatch.delattr(Connection, "_connection_arguments")
    said = re.escape(
        f"redis-py {redis.__version__} is not supported: it has no redis.asyncio.connection."
        f"SSLConnection._connection_arguments; ratelimit was tested with redis-py {TESTED}"
    )
    with pytest.raises(ImportError, match=f"^{said}$"):
        RedisStore("redis://127.0.0.1")


async def test_a_redis_py_that_keeps_its_streams_elsewhere_is_told(server: Server) -> None:
    """At the first connection, with its version and those that were tested."""

    class Hidden:
        """A writer that shows no transport."""

        def __init__(self, writer: asyncio.StreamWriter) -> None:
            self.close, self.wait_closed = writer.close, writer.wait_closed

    class Other(Connection):
        async def connect(self) -> None:
            await super().connect()  # type: ignore[no-untyped-call]
            self._writer: Any = Hidden(self._writer)

    pool = ConnectionPool(connection_class=Other, port=server.port)
    async with RedisStore(Redis(connection_pool=pool), deadline=5) as store:
        with pytest.raises(StoreUnavailable) as caught:
            await store.decide([CHECK])
    assert caught.value.kind == "old"
    assert f"redis-py {redis.__version__} is not supported: its Other has no stream" in str(
        caught.value
    )
    assert f"tested with redis-py {TESTED}" in str(caught.value)


async def test_a_redis_py_that_raises_what_is_no_failure_is_told() -> None:
    """Where a method that it calls inside is not there any more."""

    class Broken(Connection):
        async def connect(self) -> None:
            self.vanished()  # type: ignore[attr-defined]

    pool = ConnectionPool(connection_class=Broken)
    error = await refused(Target(Redis(connection_pool=pool), DEADLINE).dialer())
    assert error.kind == "old"
    assert str(error).startswith(f"redis-py {redis.__version__} made no connection (AttributeError")
    assert str(error).endswith(f"tested with redis-py {TESTED}")


# --- clients -------------------------------------------------------------------------------------


class Rotating(CredentialProvider):
    """Credentials that are asked for at each connection."""

    def get_credentials(self) -> tuple[str, str]:
        return "named", PASSWORD


class Tunnelled(Connection):
    """A connection that reaches its server in a way of its own, where the name means something."""

    async def _connect(self) -> None:
        assert self.host == "inside.test"
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self.port)


class Named(Connection):
    """A connection that does something more when it is open."""

    async def on_connect(self) -> None:
        await super().on_connect()
        self.client_name = "known"


async def test_clients_are_taken_over(server: Server) -> None:
    """With their credentials, sockets, databases, and connection classes of their own."""
    pool = ConnectionPool(connection_class=Tunnelled, host="inside.test", port=server.port)
    named = ConnectionPool(connection_class=Named, host="localhost", port=server.port)
    for client, tried in (
        (Redis(port=server.port), f"localhost:{server.port} (127.0.0.1)"),
        (Redis(port=server.port, credential_provider=Rotating()), None),
        (Redis(port=server.port, decode_responses=True, protocol=2, db=3), None),
        (Redis(unix_socket_path=f"{server.folder}/socket"), f"{server.folder}/socket"),
        (Redis(connection_pool=pool), f"inside.test:{server.port}"),
        (valkey.asyncio.Valkey(port=server.port), None),
        (Redis(connection_pool=named), f"localhost:{server.port} (127.0.0.1)"),
    ):
        found = await pinged(Target(client, DEADLINE).dialer())
        assert tried is None or found == tried
        await client.aclose()


async def test_a_cluster_client_is_taken_over(server: Server) -> None:
    """With its nodes, its credentials and its remap."""
    client = RedisCluster(
        host="127.0.0.1",
        port=server.port,
        username="named",
        password=PASSWORD,
        address_remap=lambda address: (address[0], address[1] + 1),
    )
    target = Target(client, DEADLINE)
    assert target.is_cluster
    assert list(target.seeds) == [("127.0.0.1", server.port)]
    assert target.reachable(("h", 1)) == ("h", 2)
    assert await pinged(target.dialer(("localhost", server.port)))
    await client.aclose()


def test_what_cannot_be_taken_over_is_told() -> None:
    """In one sentence, without the settings of a client, which hold a password."""
    for given, said in (
        (redis.Redis(password=PASSWORD), "this Redis is a synchronous one"),
        (object(), "a RedisStore takes a URI or a redis.asyncio client, not object"),
    ):
        with pytest.raises(TypeError) as caught:
            Target(given, DEADLINE)
        assert said in str(caught.value)
        assert PASSWORD not in str(caught.value)


# --- URIs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "uri",
    [
        "redis://:12/34secret@host",
        "redis://user:12#34secret@host",
        "redis://:12?34secret@host",
        "redis://:12]34secret@host",
        "redis+sentinel://user:12/34secret@host/service",
        "redis+cluster://user:12?34secret@host",
    ],
)
def test_a_password_that_is_not_encoded_is_refused_and_not_shown(uri: str) -> None:
    """No part of it is taken for a host, a port or an option."""
    with pytest.raises(ValueError, match=r"are written %2F %3F %23 %40 %5B %5D$") as caught:
        Target(uri, DEADLINE)
    assert "secret" not in str(caught.value)
    assert "12" not in str(caught.value)


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("redis://h?ssl=true", "'ssl' is not an option of a connection; write rediss:// for TLS"),
        ("redis://h?timeout=1", "'timeout' is not an option of a connection"),
        ("redis+cluster://h?databse=1", "'databse' is not an option of a connection"),
        (
            "redis+sentinel://h/s?sentinel_user=x",
            "'sentinel_user' is not an option of a connection",
        ),
        ("rediss://h?ssl_cert_reqs=CERT_NONE", "'ssl_cert_reqs' takes none, optional or required"),
        (
            "redis+sentinel://h/s?min_other_sentinels=a",
            "'min_other_sentinels' takes a whole number",
        ),
    ],
)
def test_an_option_that_does_not_exist_is_refused(uri: str, said: str) -> None:
    """When the store is built, by its name."""
    with pytest.raises(ValueError, match=re.escape(said)):
        Target(uri, DEADLINE)


async def test_valkeys_own_schemes_are_taken(server: Server) -> None:
    """``valkey://`` is ``redis://``, and ``valkeys://`` is ``rediss://``."""
    url = server.url.replace("redis://", "valkey://")
    assert await pinged(Target(url, DEADLINE).dialer())
    connection = Target("valkeys://h", DEADLINE)._kind.make()
    assert isinstance(connection, SSLConnection)


# --- addresses out of reach ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "remap",
    [
        {("10.0.0.1", 7000): ("203.0.113.5", 17000), "10.0.0.2": "203.0.113.6", "::1": "[::2]:3"},
        lambda address: {
            ("10.0.0.1", 7000): ("203.0.113.5", 17000),
            ("10.0.0.2", 7000): ("203.0.113.6", 7000),
            ("::1", 7000): ("::2", 3),
        }.get(address, address),
        "10.0.0.1:7000=203.0.113.5:17000,10.0.0.2=203.0.113.6,[::1]:7000=[::2]:3",
    ],
    ids=["mapping", "function", "URI"],
)
def test_announced_addresses_may_be_remapped(remap: Any) -> None:
    """By address and port or by the host alone; others stay as they are."""
    if isinstance(remap, str):
        target = Target(f"redis+cluster://h?address_remap={remap}", DEADLINE)
    else:
        target = Target("redis+cluster://h", DEADLINE, remap)
    assert target.reachable(("10.0.0.1", 7000)) == ("203.0.113.5", 17000)
    assert target.reachable(("10.0.0.2", 7000)) == ("203.0.113.6", 7000)
    assert target.reachable(("::1", 7000)) == ("::2", 3)
    assert target.reachable(("10.0.0.3", 7000)) == ("10.0.0.3", 7000)
    assert Target("redis+cluster://h", DEADLINE).reachable(("h", 1)) == ("h", 1)


@pytest.mark.parametrize(
    ("uri", "remap", "error"),
    [
        ("redis+cluster://h?address_remap=a", None, ValueError),
        ("redis+cluster://h?address_remap=a=b=c", None, ValueError),
        ("redis+cluster://h?address_remap=a:0=b", None, ValueError),
        ("redis+cluster://h", {"a:99999": "b"}, ValueError),
        ("redis+cluster://h", {("a", "1"): "b"}, ValueError),
        ("redis+cluster://h", 5, TypeError),
        ("redis://h", {"a": "b"}, ValueError),
    ],
)
def test_a_remap_that_is_none_is_refused(uri: str, remap: Any, error: type[Exception]) -> None:
    """When the store is built."""
    with pytest.raises(error, match="address_remap"):
        Target(uri, DEADLINE, remap)


def test_a_remap_that_fails_is_the_stores_failure() -> None:
    """A function that raises, or gives no address, takes nobody's request with it."""
    for remap in (lambda _: None, lambda _: 1 / 0, lambda _: ("h", "p")):
        target = Target("redis+cluster://h", DEADLINE, remap)  # type: ignore[arg-type]
        with pytest.raises(StoreUnavailable, match=r"gave no \(host, port\) for h:1") as caught:
            target.reachable(("h", 1))
        assert caught.value.kind == "cluster"


async def test_a_node_is_told_by_its_address() -> None:
    """The one that was tried, not the cluster's."""
    port = free_port()
    error = await refused(Target("redis+cluster://h", DEADLINE).dialer(("127.0.0.1", port)))
    assert error.kind == "refused"
    assert f"127.0.0.1:{port}" in str(error)


@pytest.fixture(scope="module")
def walled() -> Iterator[Cluster]:
    """A cluster whose node announces an address of its own network."""
    with cluster(binaries()[0].path, 1) as started:
        started.nodes[0].ask("CONFIG", "SET", "cluster-announce-ip", "192.0.2.77")
        yield started


async def test_a_cluster_behind_other_addresses_decides_with_a_remap(walled: Cluster) -> None:
    """Without one, the address that it announces is told."""
    async with RedisStore(f"{walled.url}?address_remap=192.0.2.77=127.0.0.1", deadline=5) as store:
        (decision,) = await store.decide([CHECK])
        assert decision.allowed
    async with RedisStore(walled.url, deadline=1.2) as store:
        with pytest.raises(StoreUnavailable, match=f"192.0.2.77:{walled.nodes[0].port}"):
            await store.decide([CHECK])
