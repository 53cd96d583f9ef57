"""`ratelimit serve`: a real service, and what it refuses to be."""

import http.client
import json
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.calls import Caller, descriptor
from tests.support.commands import run
from tests.support.gateways import Client, Process, serve
from tests.support.servers import Server, free_port, temporary_folder, wait_until

RULES = """\
version: 1
trusted_proxies: [127.0.0.1]
rules:
  - {name: posts, limit: 2/day, algorithm: sliding_log}
"""
ASKED = {
    "X-Original-URI": "/", "X-Original-Method": "GET", "X-Forwarded-Host": "app.example",
    "X-Forwarded-For": "192.0.2.1",
}  # fmt: skip


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "rules.yaml"
    file.write_text(RULES)
    return file


@contextmanager
def serving(file: Path, *options: str) -> Iterator[tuple[Process, int]]:
    """A service on a port, ended afterwards."""
    port = free_port()
    process = serve(file.parent, file, port, *options)
    try:
        yield process, port
    finally:
        process.end()


def statuses(port: int, count: int, client: str = "192.0.2.1") -> list[int]:
    """The answers to a client's questions, each over a connection of its own."""
    found = []
    for _ in range(count):
        with Client(port, "127.0.0.1") as proxy:
            found.append(proxy.ask("/auth", "GET", ASKED | {"X-Forwarded-For": client}).status)
    return found


def test_it_answers_until_it_is_told_to_end(file: Path) -> None:
    with serving(file) as (process, port):
        assert statuses(port, 3) == [200, 200, 403]
        with Client(port, "127.0.0.1") as operator:
            assert json.loads(operator.ask("/health").body)["status"] == "ok"
            assert operator.ask("/ready").status == 200
            assert b"ratelimit_requests_total" in operator.ask("/metrics").body
            assert operator.ask("/ratelimit/").status == 404
        with Client(port, "127.0.0.2") as stranger:
            assert stranger.ask("/auth", "GET", ASKED).status == 403
        assert process.end() in (0, -signal.SIGTERM)
        said = process.said()
    assert "nginx asks at 127.0.0.1:" in said
    assert "Application shutdown complete" in said
    assert "proxy-untrusted: ('127.0.0.2'," in said
    assert "Traceback" not in said


CALLED = """\
version: 1
trusted_proxies: [127.0.0.1]
rules:
  - {name: plan, match: {path: "/envoy:edge/plan/{plan}"}, by: path:plan, limit: 2/day}
"""


def test_envoys_rate_limit_service_is_answered_beside_the_rest(file: Path) -> None:
    file.write_text(CALLED)
    calls = free_port()
    plan = descriptor([("plan", "free")])
    with serving(file, f"--envoy-grpc=127.0.0.1:{calls}") as (process, port):
        with Caller(calls) as envoy:
            assert [envoy.ask(plan).over for _ in range(3)] == [False, False, True]
            with Client(port, "127.0.0.1") as operator:
                assert b'rule="plan"' in operator.ask("/metrics").body
            assert process.end() in (0, -signal.SIGTERM)
        said = process.said()
    assert f"envoy asks by gRPC at 127.0.0.1:{calls}" in said
    assert "Application shutdown complete" in said
    assert "Traceback" not in said


def test_workers_share_the_port_of_envoys_service(file: Path, redis_server: Server) -> None:
    redis_server.command("FLUSHALL")
    file.write_text(CALLED + f"store: {redis_server.url}\ndeadline: 2s\n")
    calls = free_port()
    plan = descriptor([("plan", "free")])
    with serving(file, f"--envoy-grpc=127.0.0.1:{calls}", "--workers=2") as (process, _):
        wait_until(lambda: process.said().count("startup complete") == 2, "both workers serve", 30)
        overs = []
        for _ in range(4):
            with Caller(calls) as envoy:
                overs.append(envoy.ask(plan).over)
        assert overs == [False, False, True, True]


def test_a_port_for_calls_that_is_taken_is_told(file: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        place = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(RuntimeError, match=f"{place} cannot be listened on"):
            end_at_once(file, free_port(), f"--envoy-grpc={place}", code=3)


def test_the_live_page_is_opened_by_a_network(file: Path) -> None:
    with serving(file, "--page=127.0.0.1/32") as (_, port):
        with Client(port, "127.0.0.1") as operator:
            assert operator.ask("/ratelimit/", headers={"Host": f"127.0.0.1:{port}"}).status == 200
            assert operator.ask("/ratelimit/").status == 404  # by a name
        with Client(port, "127.0.0.2") as stranger:
            assert stranger.ask("/ratelimit/", headers={"Host": "127.0.0.1"}).status == 404


def test_an_upgrade_is_answered_and_not_told_in_the_log(file: Path) -> None:
    with serving(file) as (process, port), Client(port, "127.0.0.1") as proxy:
        for number, upgrade in enumerate(("websocket", "h2c", "x")):
            more = {
                "Connection": "Upgrade",
                "Upgrade": upgrade,
                "X-Forwarded-For": f"192.0.2.{number}",
            }
            assert proxy.ask("/auth", "GET", ASKED | more).status == 200
        process.end()
        assert "upgrade" not in process.said()


def test_signals_read_the_rules_again_in_every_worker(file: Path, redis_server: Server) -> None:
    redis_server.command("FLUSHALL")
    shared = RULES + f"store: {redis_server.url}\ndeadline: 2s\n"
    file.write_text(shared)
    with serving(file, "--workers=2") as (process, port):
        wait_until(lambda: process.said().count("startup complete") == 2, "both workers serve", 30)
        assert statuses(port, 4) == [200, 200, 403, 403]
        file.write_text(shared.replace("2/day", "many"))
        os.kill(process.process.pid, signal.SIGHUP)
        wait_until(lambda: process.said().count("rules-not-reloaded") == 2, "both read it", 30)
        assert statuses(port, 2) == [403, 403]
        file.write_text(shared.replace("2/day", "5/day"))
        os.kill(process.process.pid, signal.SIGHUP)
        wait_until(lambda: process.said().count("rules-reloaded") == 2, "both read it", 30)
        assert statuses(port, 6) == [200] * 5 + [403]
        assert process.said().count("startup complete") == 2, "workers were started again"


def test_a_worker_that_dies_is_replaced(file: Path, redis_server: Server) -> None:
    file.write_text(RULES + f"store: {redis_server.url}\ndeadline: 2s\n")
    with serving(file, "--workers=2") as (process, port):
        started = "Started server process ["
        wait_until(lambda: process.said().count(started) == 2, "both workers serve", 30)
        worker = int(process.said().partition(started)[2].partition("]")[0])
        os.kill(worker, signal.SIGKILL)
        wait_until(lambda: process.said().count(started) == 3, "another one serves", 30)
        assert len(statuses(port, 3, "192.0.2.77")) == 3


def test_a_unix_socket_is_for_rules_that_count_hops(file: Path) -> None:
    with temporary_folder() as folder:
        place = f"{folder}/socket"
        told = run("serve", str(file), f"--listen=unix:{place}", code=1).stderr
        assert "trusted_hops: 1" in told
        file.write_text(RULES.replace("trusted_proxies: [127.0.0.1]", "trusted_hops: 1"))
        code = "from ratelimit.cli.main import main; main()"
        words = [sys.executable, "-c", code, "serve", str(file), f"--listen=unix:{place}"]
        process = Process(words, Path(folder) / "log")
        try:
            wait_until(lambda: answers(place), "it listens", 30)
            with socket.socket(socket.AF_UNIX) as peer:
                peer.settimeout(20)
                peer.connect(place)
                lines = "".join(f"{name}: {value}\r\n" for name, value in ASKED.items())
                peer.sendall(f"GET /auth HTTP/1.1\r\nhost: x\r\n{lines}\r\n".encode())
                answer = http.client.HTTPResponse(peer)
                answer.begin()
                assert answer.status == 200
                assert answer.getheader("ratelimit") == '"posts";r=1'
                answer.close()
        finally:
            process.end()


def answers(place: str) -> bool:
    """Whether somebody listens at a unix socket."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(place) == 0


def test_without_trusted_proxies_it_does_not_start(file: Path) -> None:
    file.write_text("version: 1\n")
    assert "the file names no trusted_proxies" in run("serve", str(file), code=1).stderr


def test_a_file_with_mistakes_is_told_as_check_tells_it(file: Path) -> None:
    file.write_text(RULES.replace("2/day", "many"))
    assert f"{file}:4:" in run("serve", str(file), code=1).stderr


def test_a_rule_that_asks_a_function_is_told(file: Path) -> None:
    file.write_text(RULES.replace("limit:", "by: account, limit:"))
    told = run("serve", str(file), code=2).stderr
    assert "rule 'posts' limits by account, which is not registered" in told


def test_workers_without_a_shared_store_are_refused(file: Path) -> None:
    told = run("serve", str(file), "--workers=2", code=2).stderr
    assert "2 workers need a store that they share" in told


@pytest.mark.parametrize(
    "listen",
    ["8750", "127.0.0.1", "::1:8750", "127.0.0.1:99999", "unix:", "a b:1", "http://h:1", "[x]:1",
     ":1"],
)  # fmt: skip
def test_a_place_to_listen_is_a_host_and_a_port_or_a_socket(listen: str, file: Path) -> None:
    told = run("serve", str(file), f"--listen={listen}", code=2).stderr
    assert "is not a place to listen" in " ".join(told.split())


def test_a_port_that_is_taken_is_told(file: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(RuntimeError, match=r"(?i)address already in use"):
            end_at_once(file, taken.getsockname()[1])


def end_at_once(file: Path, port: int, *options: str, code: int = 1) -> None:
    """Serves on a port, and raises what it said before it ended."""
    start = "from ratelimit.cli.main import main; main()"
    words = [sys.executable, "-c", start, "serve", str(file), f"--listen=127.0.0.1:{port}"]
    process = Process([*words, *options], file.parent / "log")
    assert process.process.wait(30) == code
    raise RuntimeError(process.said())
