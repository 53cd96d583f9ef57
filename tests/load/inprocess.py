"""Loads without HTTP: many requests at once, a loop that somebody holds, an even pace."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, Final, NamedTuple, TypeVar

import uvloop

from ratelimit import RateLimiter, RedisStore, Rule

T = TypeVar("T")

QUOTA: Final = 5
UNDER_WAY: Final = 8  # decisions, each for a client of its own, and as many more for one client
SOME: Final = 20

_FACTORIES: Final[Mapping[str, Callable[[], asyncio.AbstractEventLoop]]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}


def run_in(loop: str, main: Coroutine[Any, Any, T]) -> T:
    """Runs it to its end in a new event loop of this kind."""
    with asyncio.Runner(loop_factory=_FACTORIES[loop]) as runner:
        return runner.run(main)


class Outcome(NamedTuple):
    """What became of requests, of which each client's quota is ``at_most``.

    ``statuses`` are counted; ``passed`` is each client's; ``took`` is the longest, in seconds.
    """

    statuses: Counter[int]
    passed: Counter[str]
    degraded: int
    opened: int
    took: float
    health: Mapping[str, object]

    @property
    def asked(self) -> int:
        """How many requests there were."""
        return self.statuses.total()


class Asker:
    """Puts requests to a limiter in the name of clients, and keeps what became of them."""

    def __init__(self, limiter: RateLimiter) -> None:
        self.limiter = limiter
        self.forget()
        limiter.on_breaker_change = self._changed

    def forget(self) -> None:
        """Begins to count; what warmed up is not measured."""
        self._statuses: Counter[int] = Counter()
        self._passed: Counter[str] = Counter()
        self._degraded = self._opened = 0
        self._took = 0.0

    def _changed(self, state: str) -> None:
        self._opened += state == "open"

    async def ask(self, client: str) -> None:
        """One request."""
        scope = {
            "type": "http", "method": "GET", "path": "/", "query_string": b"",
            "headers": [(b"x-key", client.encode())], "client": ("192.0.2.1", 1),
        }  # fmt: skip
        asked = time.perf_counter()
        admission = await self.limiter.admit(scope)
        self._took = max(self._took, time.perf_counter() - asked)
        status = 200 if admission.refusal is None else admission.refusal.status
        self._statuses[status] += 1
        self._passed[client] += status == 200
        self._degraded += bool(admission.degraded)

    def outcome(self) -> Outcome:
        """What has become of all so far."""
        return Outcome(
            self._statuses, self._passed, self._degraded, self._opened, self._took,
            self.limiter.health(),
        )  # fmt: skip


async def _measured(
    url: str, rules: list[Rule], deadline: float, load: Callable[[Asker], Awaitable[None]]
) -> Outcome:
    limiter = RateLimiter(rules, store=RedisStore(url, deadline=deadline))
    asker = Asker(limiter)
    try:
        await load(asker)
        return asker.outcome()
    finally:
        await limiter.aclose()


def _rule(name: str, limit: str) -> Rule:
    return Rule(name, limit, algorithm="sliding_log", by="header:x-key")


async def stalled(url: str, stall: float, times: int) -> Outcome:
    """Holds the loop for ``stall`` seconds, so often, each time with decisions under way.

    Each time 8 clients ask once and one of them 20 times more, of whom it has a new name each time;
    in the end one asks 300 times. Each may pass 5 times within a minute.
    """

    async def load(asker: Asker) -> None:
        await asker.ask("warm")
        asker.forget()
        for number in range(times):
            clients = [f"{number}-{each}" for each in range(UNDER_WAY)]
            tasks = [
                asyncio.create_task(asker.ask(client))
                for client in clients + [f"busy-{number}"] * SOME
            ]
            # At another step each time: before they were sent, just after, and while answers come.
            for _ in range(number % 5 + 2):
                await asyncio.sleep(0)
            time.sleep(stall)  # noqa: ASYNC251  # anybody's handler
            await asyncio.gather(*tasks)
        for _ in range(300):
            await asker.ask("last")

    return await _measured(url, [_rule("r", f"{QUOTA}/minute")], 0.05, load)


def stall_mistakes(outcome: Outcome) -> list[str]:
    """Promises that were broken where the loop was held."""
    mistakes = []
    for client, passed in outcome.passed.items():
        right = QUOTA if client == "last" or client.startswith("busy") else 1
        if passed != right:
            mistakes.append(f"{client}: {passed} passed instead of {right}")
    return mistakes + _gave_way(outcome)


def _gave_way(outcome: Outcome) -> list[str]:
    mistakes = []
    if set(outcome.statuses) - {200, 429}:
        mistakes.append(f"answers were {dict(outcome.statuses)}")
    if outcome.degraded:
        mistakes.append(f"{outcome.degraded} of {outcome.asked} were degraded")
    if outcome.opened or outcome.health["breaker"] != "closed":
        mistakes.append(f"the breaker opened {outcome.opened} times")
    return mistakes


async def at_once(url: str, count: int, *, warm: bool, clients: int = 1) -> Outcome:
    """So many requests in one step, each under five rules of which the tightest is 10 a minute."""

    async def load(asker: Asker) -> None:
        if warm:
            for _ in range(3):
                await asyncio.gather(*(asker.ask("warm") for _ in range(SOME)))
        asker.forget()
        await asyncio.gather(*(asker.ask(f"at-once-{n % clients}") for n in range(count)))

    rules = [_rule(f"r{n}", f"{BURST_QUOTA + 5 * n}/minute") for n in range(5)]
    return await _measured(url, rules, 0.05, load)


BURST_QUOTA: Final = 10


def burst_mistakes(outcome: Outcome, count: int, clients: int) -> list[str]:
    """Promises that were broken where many asked at once."""
    right = min(BURST_QUOTA, count // clients)
    wrong = {client: passed for client, passed in outcome.passed.items() if passed != right}
    mistakes = []
    if wrong:
        mistakes.append(f"{wrong} passed instead of {right} each")
    return mistakes + _gave_way(outcome)


async def paced(url: str, rate: float, seconds: float, deadline: float) -> Outcome:
    """Requests at random instants, so many a second whatever becomes of them, of 1,000 clients."""

    async def load(asker: Asker) -> None:
        for _ in range(10):
            await asker.ask("warm")
            await asyncio.sleep(0.05)
        asker.forget()
        drawn = random.Random(1)
        tasks = set()
        due = time.monotonic()
        end = due + seconds
        number = 0
        while due < end:
            await asyncio.sleep(due - time.monotonic())
            due += drawn.expovariate(rate)
            number += 1
            tasks.add(asyncio.create_task(asker.ask(f"paced-{number % 1000}")))
        await asyncio.gather(*tasks)

    return await _measured(url, [_rule("r", "10/second")], deadline, load)
