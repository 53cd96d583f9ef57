"""Six server set-ups on raw sockets: what each carries of refusals and of limited messages."""

import json
from collections.abc import Iterator
from itertools import count
from typing import Final

import pytest

from tests.support.raw import GRACE, SERVERS, Raw, Serving, served
from tests.support.servers import wait_until

NAMES: Final = count()

REASONS: Final = {"uvicorn websockets", "uvicorn websockets-sansio", "granian"}
"""Those that write a status with its words."""

UNBOUNDED: Final = {"daphne"}
"""Those that read on whatever the application does."""

FLOOD: Final = 32_000_000  # bytes, of which a kernel holds some


@pytest.fixture(scope="module", params=SERVERS)
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Serving]:
    with served(request.param, tmp_path_factory.mktemp("chats")) as serving:
        yield serving


def somebody() -> str:
    """A name that no test has used."""
    return f"client-{next(NAMES)}"


def closed(server: Serving, code: int, reason: str) -> tuple[int, str]:
    """The end of a connection, as a server can tell it: daphne has codes of applications alone."""
    return (code + 3000, "") if server.name == "daphne" else (code, reason)


def test_a_refused_handshake_is_a_whole_answer_after_which_the_connection_ends(
    server: Serving,
) -> None:
    name = somebody()
    with Raw(server.port, "/few", name) as first, Raw(server.port, "/few", name) as second:
        assert first.status == 101
        body = second.rest()  # which ends with the connection
    if server.name == "daphne":
        assert (second.status, body) == (403, b"")
        return
    words = " Too Many Requests" if server.name in REASONS else " "
    assert second.line == f"HTTP/1.1 429{words}"
    assert 3590 <= int(second.headers["retry-after"]) <= 3600
    assert second.headers["ratelimit-policy"] == '"few";q=1;w=3600'
    assert second.headers["content-type"] == "application/problem+json"
    assert second.headers["content-length"] == f"{len(body)}"
    assert "transfer-encoding" not in second.headers
    assert second.headers["connection"].split(", ")[-1] == "close"
    assert json.loads(body)["violated-policies"] == ["few"]
    # Granian has begun the upgrade already; without our "close" a client would wait.
    upgraded = second.headers["connection"] == "upgrade, close"
    assert upgraded is (server.name == "granian")


def test_a_message_too_many_closes_with_the_seconds_and_the_application_hears_of_it(
    server: Serving,
) -> None:
    with Raw(server.port, "/close", somebody()) as raw:
        raw.say("a", "b", "c", "d", "e")
        assert [raw.hear() for _ in range(3)] == ["a", "b", "c"]
        assert raw.hear() == closed(server, 1008, "close:messages: try again in 20 s")
    wait_until(lambda: "/close 1008" in server.ends(), "the application ended")


def test_a_frame_that_could_never_pass_closes_with_1009(server: Serving) -> None:
    with Raw(server.port, "/large", somebody()) as raw:
        raw.say("x" * 100, "x" * 101)
        assert raw.hear() == "x" * 100
        assert raw.hear() == closed(server, 1009, "large:bytes: at most 100 at once")


def test_what_is_dropped_is_not_heard(server: Serving) -> None:
    name = somebody()
    with Raw(server.port, "/drop", name) as raw, Raw(server.port, "/drop", name) as other:
        raw.say("a", "b")
        assert [raw.hear(), raw.hear()] == ["a", "b"]
        other.say(*"cdefg")
        assert other.hear() == "c"
        raw.socket.settimeout(0.2)
        raw.say("h")
        with pytest.raises(TimeoutError):
            raw.hear()


def test_a_pause_loses_and_reorders_nothing(server: Serving) -> None:
    """20 at once and the others at 100 a second, on each of ten connections."""
    raws = [Raw(server.port, "/pause", somebody()) for _ in range(10)]
    texts = [f"{number}" for number in range(60)]
    for raw in raws:
        raw.say(*texts)
    for raw in raws:
        assert [raw.hear() for _ in texts] == texts
        raw.socket.close()


def test_a_pause_stops_the_sender(server: Serving) -> None:
    with Raw(server.port, "/stop", somebody()) as raw:
        assert (raw.flood(FLOOD) >= FLOOD) is (server.name in UNBOUNDED)


USUAL: Final = ("uvicorn websockets-sansio", "hypercorn")
OFTEN: Final = [
    name if name in USUAL else pytest.param(name, marks=pytest.mark.slow) for name in SERVERS
]


@pytest.mark.parametrize("name", OFTEN)
def test_a_shutdown_ends_connections_that_pause(
    name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with served(name, tmp_path_factory.mktemp("chats")) as serving:
        raws = [Raw(serving.port, "/pause", somebody()) for _ in range(10)]
        for raw in raws:
            raw.flood(100_000)
        serving.end(within=GRACE + 10)
        for raw in raws:
            raw.socket.close()
