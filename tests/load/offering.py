"""A process that offers requests at an even pace, whether or not those before were answered.

``python -m tests.load.offering`` reads one `Offer` as JSON from its standard input and writes the
answers as JSON when the last has come. It asks this machine alone, each connection from an address
of its own, so that each is another client.
"""

import asyncio
import contextlib
import gc
import json
import random
import sys
import time
from typing import Final, NamedTuple

import uvloop

from tests.load.client import Answer, Connection

MOST_CONNECTIONS: Final = 2_000
AT_ONCE: Final = 20
"""Connections that are opened together."""
ANSWERED_WITHIN: Final = 15.0
"""Seconds that the last answers may take."""


class Offer(NamedTuple):
    """So many requests a second for so many seconds, one in ``every`` for the first path.

    With ``rate`` 0 each connection asks for the first path again as soon as it is answered.
    """

    port: int
    rate: float
    seconds: float
    first: str
    others: str
    every: int = 1
    connections: int = 400


class Offered(NamedTuple):
    """When it began, the answers by path, and which requests never had one.

    ``lost`` are seconds since it began: of requests for which no connection was idle, and of those
    that were never answered.
    """

    began: float
    first: list[Answer]
    others: list[Answer]
    lost: list[float]


async def offer(order: Offer) -> Offered:
    """Carries out an order."""
    chance = random.Random(1)
    idle: list[Connection] = []
    answers: dict[bytes, list[Answer]] = {}
    asked: dict[Connection, bytes] = {}
    until = 0.0
    all_asked, done = False, asyncio.Event()

    def answered(connection: Connection, answer: Answer) -> None:
        path = asked.pop(connection)
        if all_asked and not asked:
            done.set()
        answers.setdefault(path, []).append(answer)
        if not answer[2]:
            return
        if order.rate:
            idle.append(connection)
        elif answer[1] < until:
            ask(connection, path)

    def ask(connection: Connection, path: bytes) -> None:
        asked[connection] = path
        connection.ask(path)

    opened = await _opened(order)
    for connection in opened:
        connection.done = answered
    idle += opened
    gc.collect()
    gc.freeze()
    gc.disable()
    paths = order.first.encode(), order.others.encode()
    began = time.monotonic()
    until = began + order.seconds
    lost: list[float] = []
    if not order.rate:
        for connection in opened:
            ask(connection, paths[0])
        await asyncio.sleep(order.seconds)
    for number in range(int(order.rate * order.seconds)):
        wait = began + number / order.rate - time.monotonic()
        if wait > 0:
            await asyncio.sleep(wait)
        if not idle:
            lost.append(number / order.rate)
            continue
        place = chance.randrange(len(idle))
        idle[place], idle[-1] = idle[-1], idle[place]
        ask(idle.pop(), paths[number % order.every > 0])
    all_asked = True
    if not asked:
        done.set()
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(done.wait(), ANSWERED_WITHIN)
    found = [answers.get(path, []) for path in paths]
    return Offered(began, found[0], found[1], [*lost, *([order.seconds] * len(asked))])


async def _opened(order: Offer) -> list[Connection]:
    loop = asyncio.get_running_loop()

    async def one(number: int) -> Connection:
        address = f"127.1.{number // 250}.{number % 250 + 1}"
        _, protocol = await loop.create_connection(
            lambda: Connection(lambda _, __: None),
            "127.0.0.1", order.port, local_addr=(address, 0),
        )  # fmt: skip
        return protocol

    found: list[Connection] = []
    for start in range(0, min(order.connections, MOST_CONNECTIONS), AT_ONCE):
        some = range(start, min(start + AT_ONCE, order.connections))
        found += await asyncio.gather(*map(one, some))
    return found


if __name__ == "__main__":
    account = uvloop.run(offer(Offer(**json.loads(sys.stdin.readline()))))
    sys.stdout.write(json.dumps(account))
