"""A process that floods: many connections, each of which asks again as soon as it is answered.

``python -m tests.load.client`` reads one `Order` as JSON from its standard input, says ``began``
once every connection was accepted, and writes one `Account` as JSON when it is done. It asks this
machine alone, for a minute at most, and over 2,000 connections at most.
"""

import asyncio
import gc
import json
import signal
import sys
import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import uvloop

MOST_CONNECTIONS: Final = 2_000
MOST_SECONDS: Final = 60.0
AT_ONCE: Final = 50  # connections that are opened together
DRAINS_WITHIN: Final = 10.0  # seconds that the last answers may take
PROBING: Final = 100  # connections; at 40 a second, answers may take 2.5 s

Answer = tuple[float, float, int]
"""When it was asked and answered, and with which status; 0 where the connection was lost."""


class Order(NamedTuple):
    """Requests for one path over so many connections, and one for another path at an even pace.

    ``times`` is how often each connection asks; 0 is again and again until ``seconds`` have passed.
    """

    port: int
    path: str
    connections: int
    seconds: float
    times: int = 0
    probe_path: str = ""
    probe_rate: float = 0.0
    first_path: str = "/free"
    """Asked once over each connection before all begins: uvloop accepts one connection in each
    round of its loop, so that a flood of those that came first would keep the others waiting."""


class Account(NamedTuple):
    """Every answer; and how many never came, or were never asked for want of a connection."""

    began: float
    flood: list[Answer]
    probe: list[Answer]
    unanswered: int
    not_asked: int


class Connection(asyncio.Protocol):
    """One connection, which asks for one path and waits for the answer."""

    def __init__(self, done: Callable[["Connection", Answer], None]) -> None:
        self.done = done
        self._received = b""
        self.asked: float | None = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def ask(self, path: bytes) -> None:
        """Asks once; `done` is called with the answer."""
        self.asked = time.monotonic()
        self.transport.write(b"GET %b HTTP/1.1\r\nhost: test\r\n\r\n" % path)

    def data_received(self, data: bytes) -> None:
        received = self._received = self._received + data if self._received else data
        head = received.find(b"\r\n\r\n")
        if head < 0:
            return
        field = received.lower().find(b"content-length: ", 0, head)
        length = int(received[field + 16 : received.find(b"\r\n", field)]) if field >= 0 else 0
        if len(received) >= head + 4 + length:
            self._received = b""
            self._answered(int(received[9:12]))

    def connection_lost(self, error: Exception | None) -> None:
        if self.asked is not None:
            self._answered(0)

    def _answered(self, status: int) -> None:
        if self.asked is not None:
            asked, self.asked = self.asked, None
            self.done(self, (asked, time.monotonic(), status))


async def flood(order: Order) -> Account:
    """Carries out an order."""
    path, probe_path, first_path = (
        each.encode() for each in (order.path, order.probe_path, order.first_path)
    )
    answers: list[Answer] = []
    probed: list[Answer] = []
    idle: list[Connection] = []
    left: dict[Connection, int] = {}
    until = 0.0

    def flooded(connection: Connection, answer: Answer) -> None:
        answers.append(answer)
        left[connection] -= 1
        again = left[connection] > 0 if order.times else answer[1] < until
        if answer[2] and again:
            connection.ask(path)

    def found(connection: Connection, answer: Answer) -> None:
        probed.append(answer)
        if answer[2]:
            idle.append(connection)

    flooding = await _opened(order.port, order.connections, first_path)
    probing = await _opened(order.port, PROBING if order.probe_rate else 0, first_path)
    for connection in flooding:
        left[connection] = order.times
        connection.done = flooded
    for connection in probing:
        idle.append(connection)
        connection.done = found
    gc.collect()
    gc.freeze()
    gc.disable()  # a pause of ours would be seen as one of the server's
    began = time.monotonic()
    until = began + order.seconds
    sys.stdout.write("began\n")
    sys.stdout.flush()
    for connection in flooding:
        connection.ask(path)

    not_asked = 0
    for number in range(int(order.probe_rate * order.seconds)):
        await asyncio.sleep(began + (number + 0.5) / order.probe_rate - time.monotonic())
        if idle:
            idle.pop(0).ask(probe_path)
        else:
            not_asked += 1

    if not order.times:
        await asyncio.sleep(until - time.monotonic())
    for _ in range(int((until + DRAINS_WITHIN - time.monotonic()) / 0.01)):
        unanswered = sum(each.asked is not None for each in (*flooding, *probing))
        if not unanswered:
            break
        await asyncio.sleep(0.01)
    return Account(began, answers, probed, unanswered, not_asked)


async def _opened(port: int, count: int, path: bytes) -> list[Connection]:
    """So many connections, each of which was answered once."""
    loop = asyncio.get_running_loop()
    opened: list[Connection] = []

    async def open_one() -> None:
        answered: asyncio.Future[int] = loop.create_future()
        _, connection = await loop.create_connection(
            lambda: Connection(lambda _, answer: answered.set_result(answer[2])), "127.0.0.1", port
        )
        connection.ask(path)
        if await answered != 200:
            raise ConnectionError(f"{path!r} was not answered with 200")
        opened.append(connection)

    for begun in range(0, count, AT_ONCE):
        await asyncio.gather(*(open_one() for _ in range(min(AT_ONCE, count - begun))))
    return opened


def main() -> None:
    """Reads an order, carries it out, and gives account."""
    order = Order(**json.loads(sys.stdin.read()))
    if not (0 < order.connections <= MOST_CONNECTIONS and 0 < order.seconds <= MOST_SECONDS):
        sys.exit(f"not within what this client does: {order}")
    signal.alarm(int(MOST_SECONDS + 3 * DRAINS_WITHIN))  # whatever becomes of who started it
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        account = runner.run(flood(order))
    sys.stdout.write(json.dumps(account._asdict()) + "\n")


if __name__ == "__main__":
    main()
