"""A process before Redis that delays: a pipe, in which nothing waits for its neighbour.

``python -m tests.load.pipe PORT ROUND_TRIP JITTER`` (seconds) says on which port it listens. Half
of the round trip is spent on each way, and up to the jitter more, at random, on each. When its
standard input ends it writes a `Record` as JSON: for each command when it came in here, when the
last of its reply left, and how many checks it carried. What it says was late was late in truth,
whatever the loop of the client felt.
"""

import asyncio
import contextlib
import json
import random
import signal
import sys
import time
from collections import deque
from typing import Any, Final, NamedTuple

import hiredis

AT_MOST: Final = 120  # seconds


class Trip(NamedTuple):
    """One command: seconds of the monotonic clock, and its checks (0 where it decides nothing)."""

    came: float
    left: float
    checks: int


Record = list[Trip]


class Pipe:
    """What lies between a client and the server."""

    def __init__(self, port: int, round_trip: float, jitter: float) -> None:
        self._behind = port
        self._half = round_trip / 2
        self._jitter = jitter
        self.record: Record = []

    async def carry(self, client: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        """One connection, both ways, until either end closes it."""
        server, forth = await asyncio.open_connection("127.0.0.1", self._behind)
        owed: deque[tuple[float, int]] = deque()
        commands, replies = hiredis.Reader(), hiredis.Reader()

        def came(data: bytes) -> None:
            now = time.monotonic()
            owed.extend((now, _checks(command)) for command in _read(commands, data))

        def left(data: bytes) -> None:
            now = time.monotonic()
            for _ in _read(replies, data):
                begun, checks = owed.popleft()
                self.record.append(Trip(begun, now, checks))

        ways = [
            asyncio.create_task(self._way(client, forth, came, lambda _: None)),
            asyncio.create_task(self._way(server, back, lambda _: None, left)),
        ]
        with contextlib.suppress(asyncio.CancelledError):  # the process ends
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            for way in ways:
                way.cancel()
            await asyncio.wait(ways)
        back.close()
        forth.close()

    async def _way(self, source: Any, target: Any, came: Any, left: Any) -> None:
        loop = asyncio.get_running_loop()
        last = 0.0
        pieces: deque[bytes] = deque()

        def write() -> None:
            data = pieces.popleft()
            if not target.is_closing():
                target.write(data)
                left(data)

        while data := await source.read(65_536):
            came(data)
            due = loop.time() + self._half + random.random() * self._jitter
            last = due = max(due, last)
            # Timers of one instant come in any order, the pieces in theirs.
            pieces.append(data)
            loop.call_at(due, write)
        await asyncio.sleep(max(0.0, last - loop.time()) + 0.001)


def _read(reader: Any, data: bytes) -> list[Any]:
    """The commands, or the replies, that are whole with this piece."""
    reader.feed(data)
    found = []
    while (message := reader.gets()) is not False:
        found.append(message)
    return found


def _checks(command: Any) -> int:
    words = command if isinstance(command, list) else []
    return int(words[2]) if words and bytes(words[0]).upper() == b"EVALSHA" else 0


async def serve(port: int, round_trip: float, jitter: float) -> Record:
    """Carries until the standard input ends."""
    pipe = Pipe(port, round_trip, jitter)
    server = await asyncio.start_server(pipe.carry, "127.0.0.1", 0)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin.fileno(), ended.set)
    await ended.wait()
    server.close()
    return pipe.record


def main() -> None:
    """Carries, and writes the record."""
    signal.alarm(AT_MOST)  # whatever becomes of who started it
    port, round_trip, jitter = sys.argv[1:]
    with contextlib.suppress(BrokenPipeError):
        record = asyncio.run(serve(int(port), float(round_trip), float(jitter)))
        sys.stdout.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
