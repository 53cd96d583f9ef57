"""What the loads are measured with is itself held to what it says."""

import contextlib
import json
import signal
import socket
import time

from tests.load.cells import ALL, covering, pairs_of
from tests.load.machine import ended, needs_two_cores, redis, started, watched
from tests.load.pipe import Trip
from tests.load.table import Figures, Table
from tests.support.servers import wait_until


def test_in_the_few_cells_every_two_values_meet() -> None:
    few = covering(ALL)
    assert set().union(*map(pairs_of, few)) == set().union(*map(pairs_of, ALL))
    assert len(few) <= 13 < len(ALL) == 96


def test_a_row_tells_the_worst_of_its_runs_and_what_was_discarded() -> None:
    table = Table()
    table.add("flood", Figures(100, 60, 70, worst_reply=0.002, wait=0.1), [])
    table.add("flood", Figures(100, 71, 70, opened=1, worst_reply=0.004), ["too many passed"])
    table.discard("flood")
    table.discard("another")
    flood, another = table.rows()
    assert flood == {
        "load": "flood", "runs": "2", "discarded": "1", "asked": "200", "passed": "71 of 70",
        "503": "0", "degraded": "0", "opened": "1", "worst reply": "4 ms",
        "longest wait": "100 ms", "as promised": "NO, in 1 of 2",
    }  # fmt: skip
    assert another["as promised"] == "not measured"


@needs_two_cores
def test_who_pings_sees_how_long_redis_was_away() -> None:
    with redis() as server, watched(server) as pings:

        def pinged() -> int:
            _, _, told = server.ask("INFO", "commandstats").partition("cmdstat_ping:calls=")
            return int(told.partition(",")[0])

        wait_until(lambda: pinged() > 10, "pings")
        stopped = time.monotonic()
        server.signal(signal.SIGSTOP)
        time.sleep(0.1)  # what is measured
        server.signal(signal.SIGCONT)
        resumed = time.monotonic()
    assert pings[0].worst() > 0.09
    assert pings[0].worst((stopped - 0.01, resumed)) < pings[0].worst()


@needs_two_cores
def test_the_pipe_notes_what_it_held_back_and_how_many_checks_that_carried() -> None:
    with redis() as server, ended(started("pipe", server.port, 0.02, 0, core=0)) as pipe:
        assert pipe.stdout is not None
        with contextlib.closing(
            socket.create_connection(("127.0.0.1", int(pipe.stdout.readline())), 5)
        ) as connection:
            connection.sendall(b"*1\r\n$4\r\nPING\r\n")
            assert connection.recv(64) == b"+PONG\r\n"
            # Two replies in one piece, to commands that came in two: an unknown script of 3 keys.
            connection.sendall(b"*4\r\n$7\r\nEVALSHA\r\n$1\r\nx\r\n")
            connection.sendall(b"$1\r\n3\r\n$1\r\nk\r\n*1\r\n$4\r\nPING\r\n")
            while b"+PONG" not in connection.recv(4096):
                pass
        said, _ = pipe.communicate(timeout=20)
    trips = [Trip(*each) for each in json.loads(said)]
    assert [trip.checks for trip in trips] == [0, 3, 0]
    assert min(trip.left - trip.came for trip in trips) > 0.019


@needs_two_cores
def test_pieces_that_the_pipe_delays_by_different_times_stay_in_order() -> None:
    with redis() as server, ended(started("pipe", server.port, 0, 0.01, core=0)) as pipe:
        assert pipe.stdout is not None
        with contextlib.closing(
            socket.create_connection(("127.0.0.1", int(pipe.stdout.readline())), 5)
        ) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            expected = b""
            for number in range(300):
                connection.sendall(b"*2\r\n$4\r\nECHO\r\n$3\r\n%03d\r\n" % number)
                expected += b"$3\r\n%03d\r\n" % number
                time.sleep(0.0005)  # a piece of its own
            with connection.makefile("rb") as replies:
                assert replies.read(len(expected)) == expected
        pipe.communicate(timeout=20)
