"""The places that requests hold, as the worker counts them that they run in.

A worker is one limiter in one event loop of one process, under a name of 64 random bits. The store
numbers all that it counts for a worker and a counter (lua/concurrency.lua), so that the worker
notices whatever it does not know of.
"""

import asyncio
import os
import secrets
import time
from asyncio import AbstractEventLoop, Future, Task
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, Final, TypeVar

from ratelimit.concurrency import Concurrency
from ratelimit.decisions import Action, Check, new_check
from ratelimit.limiter.concurrency.threads import when_left

__all__ = ["NO_SERIAL", "Counter", "Place", "Worker"]

T = TypeVar("T")

_GIVE_BACK: Final = int(Action.GIVE_BACK)

HALF: Final = 2**32  # one of the two numbers of a name is below it
LOWER: Final = 2**20  # a serial's lower part
SERIALS: Final = 2**40
NO_SERIAL: Final = SERIALS  # that no word in the store has: it stays as it is, and holds longer

RENEWED: Final = 0.25  # of a lease, after which a word is renewed
DOUBTED: Final = 1 / 3  # of a lease without a word to the store, after which it may count others
MOST_IDLE: Final = 10_000  # counters without a place that are in doubt; others end with their lease

# Failures of what provably was not sent.
_NOT_SENT: Final = frozenset({"open", "refused", "name", "no-master", "overloaded"})


class Counter:
    """One counter as a worker knows it: what it holds there, and what the store has last said."""

    __slots__ = (
        "asserting", "begun", "drained", "held", "in_doubt", "key", "limit", "name", "pending",
        "renewed_at", "rule", "serial", "told_at", "users",
    )  # fmt: skip

    def __init__(self, limit: Concurrency, key: str, rule: str, name: str, now: float) -> None:
        self.limit = limit
        self.key = key
        self.rule = rule
        self.name = name
        """The rule's name, where ``rule`` is the text that it is counted under."""
        self.held = 0
        """Places held here."""
        self.users = 0
        """Requests and renewals that are on their way."""
        self.pending = 0
        """Charges and give-backs that were not answered yet."""
        self.begun = 0
        """All of them so far."""
        self.serial = 0
        """The number of the last one that the store has counted."""
        self.in_doubt = False
        """Whether the store may have counted anything else."""
        self.told_at = now
        """The time at which the last one was begun that the store has heard of."""
        self.renewed_at = now
        self.asserting: Future[None] | None = None
        """Done when a renewal was answered that requests wait for."""
        self.drained: Future[None] | None = None
        """Done when nothing is pending."""

    @property
    def is_idle(self) -> bool:
        """Whether nothing is known of it that has to be kept."""
        return not (self.held or self.users or self.pending or self.in_doubt or self.asserting)

    def is_due(self, now: float) -> bool:
        """Whether the store has not heard of its places for so long that it may doubt them."""
        return self.held > 0 and now - self.told_at > self.limit.lease * DOUBTED

    def is_old(self, now: float, part: float) -> bool:
        """Whether its word was not renewed for a part of its lease."""
        return now - self.renewed_at >= self.limit.lease * part

    def hear(self, serial: int, begun_at: float) -> None:
        """Learns that the store has counted one more, under this number."""
        serial %= SERIALS
        # Where nothing is held, the word may have been a new one.
        if self.held and serial != (self.serial + 1) % SERIALS:
            self.in_doubt = True
        self.serial = serial
        self.told_at = max(self.told_at, begun_at)

    def doubt(self, problem: BaseException | None) -> None:
        """Learns that one was not answered, so that nobody knows whether it was counted."""
        if getattr(problem, "kind", "") not in _NOT_SENT:
            self.in_doubt = True


class Place:
    """A request's place in a counter; given up once."""

    __slots__ = ("_counter", "_worker")

    def __init__(self, worker: "Worker", counter: Counter) -> None:
        self._worker = worker
        self._counter: Counter | None = counter

    def answered(self, _: int, __: object) -> None:
        """Nothing: a response that has begun goes on."""

    def sent(self) -> None:
        """Gives the place up with the last byte, unless it is held until the call has ended."""
        if self._counter is not None and self._counter.limit.until == "response":
            self._give_up()

    def ended(self, error: BaseException | None) -> None:
        """Gives the place up, as soon as a thread that was left behind has returned as well."""
        if error is None or not when_left(error, self._from_thread):
            self._give_up()

    def withdrawn(self) -> None:
        """Gives the place up, since the request was refused further in."""
        self._give_up()

    def moved(self, _: object) -> None:
        """Nothing: a place is no queue's."""

    def _give_up(self) -> None:
        counter, self._counter = self._counter, None
        if counter is not None:
            self._worker.give_up(counter)

    def _from_thread(self) -> None:
        loop = self._worker.loop
        if loop is None:
            self._give_up()
            return
        with suppress(RuntimeError):  # it was closed meanwhile
            loop.call_soon_threadsafe(self._give_up)


class Worker:
    """All places held by requests of one event loop."""

    def __init__(
        self,
        loop: AbstractEventLoop | None,
        send_back: Callable[["Worker", Counter, Check], None],
    ) -> None:
        self.loop = loop
        """None where it is none of asyncio's."""
        self._send_back = send_back
        self._process = os.getpid()
        self._first = secrets.randbelow(HALF - 1) + 1
        self._second = secrets.randbelow(HALF)
        self.counters: dict[tuple[str, str, str], Counter] = {}
        self.shortest = float("inf")
        """The shortest lease that there was, in seconds."""
        self.woken = asyncio.Event()
        """Set where a renewal is not to wait until it is due."""
        self._wakes_at = 0.0
        """The time until which its renewals pause; 0 where they don't."""
        self._tasks: set[Task[Any]] = set()

    @property
    def is_forked(self) -> bool:
        """Whether it is that of the process which this one was forked from."""
        return self._process != os.getpid()

    def counter(self, check: Check, name: str) -> Counter:
        """The counter of a check, which is kept for as long as something is known of it."""
        limit, key, _, rule, *_ = check
        known = limit.digest, key, rule
        counter = self.counters.get(known)
        if counter is None:
            assert isinstance(limit, Concurrency)  # noqa: S101  # for the type checker
            counter = self.counters[known] = Counter(limit, key, rule, name, time.monotonic())
            self.shortest = min(self.shortest, limit.lease)
            if counter.renewed_at + limit.lease * RENEWED < self._wakes_at:
                self._wake()  # it has set out to wait for longer
        return counter

    def check(self, counter: Counter, action: int, cost: int, serial: int = 0) -> Check:
        """A check of this worker's, which carries its name, and a serial for a renewal."""
        first = self._first + HALF * (serial % LOWER)
        second = self._second + HALF * (serial // LOWER)
        return new_check((counter.limit, counter.key, cost, counter.rule, action, first, second))

    def give_up(self, counter: Counter) -> None:
        """Lets go of a place: tells the store at once, or, where that is in doubt, what is left."""
        if self.is_forked:
            return
        counter.held -= 1
        if counter.in_doubt or counter.asserting is not None:
            counter.in_doubt = True
            self.settled(counter)
            return
        self._send_back(self, counter, self.check(counter, _GIVE_BACK, 1))

    def settled(self, counter: Counter) -> None:
        """Goes on where something has become known of a counter."""
        if counter.drained is not None and not counter.pending:
            if not counter.drained.done():
                counter.drained.set_result(None)
            counter.drained = None
        if counter.in_doubt:
            if counter.held or counter.pending or len(self.counters) <= MOST_IDLE:
                self._wake()
                return
            counter.in_doubt = False
        if counter.is_idle:
            self.counters.pop((counter.limit.digest, counter.key, counter.rule), None)
            if not self.counters:
                self.counters = {}  # a table that was large stays so

    def _wake(self) -> None:
        if self.loop is not None:
            self.woken.set()

    async def pause(self) -> None:
        """Waits until a word is to be renewed, or until there is a doubt."""
        self._wakes_at = min(
            (each.renewed_at + each.limit.lease * RENEWED for each in self.counters.values()),
            default=0.0,
        )
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, self._wakes_at - time.monotonic())):
                await self.woken.wait()
        self._wakes_at = 0.0

    def task(self, work: Coroutine[Any, Any, T]) -> Task[T]:
        """Some work of this event loop's that goes on whatever becomes of who began it."""
        assert self.loop is not None  # noqa: S101  # for the type checker
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def late(self, now: float) -> float:
        """Seconds by which the oldest word of a place is beyond its lease."""
        return max(
            0.0,
            *(
                now - counter.told_at - counter.limit.lease
                for counter in list(self.counters.values())
                if counter.held
            ),
            0.0,
        )
