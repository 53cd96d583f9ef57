"""The queues in which requests wait for their turn by leaking buckets: one for each counter.

All queues of a rule are a room, which holds so many and no more.
"""

import asyncio
from collections import Counter
from collections.abc import Coroutine, Sequence
from contextvars import Context
from time import monotonic_ns
from typing import Any, Final, Protocol

from ratelimit.control.denials import Denials
from ratelimit.control.events import Events
from ratelimit.decisions import Check, Decision
from ratelimit.limiter.admission import Turn
from ratelimit.limiter.queueing.line import Line, Place, ends_at
from ratelimit.rules.ruleset import RuleSet

__all__ = ["Loop", "Queue", "Room", "Wait", "Waits", "clock_us", "in_background"]

AT_ONCE: Final = 100
"""Places that are given back in one request."""

Loop = asyncio.AbstractEventLoop


def clock_us() -> int:
    """This process's own clock."""
    return monotonic_ns() // 1_000


class Owner(Protocol):
    """The limiter whose rules make requests wait."""

    waits: "Waits"
    counts: Counter[tuple[str, str]]
    denials: Denials
    events: Events
    rules: RuleSet

    async def give_back(
        self, returned: Sequence[Check], *, local: bool = False
    ) -> Sequence[Decision]:
        """Asks the store, or the one that stands in for it, to take back charges."""

    def not_given_back(self, problem: Exception) -> None:
        """Logs that it did not."""


class Queue:
    """A line, with the timer of its first, and the way back of places that nobody needs."""

    __slots__ = ("_armed_us", "_local", "_owner", "_returning", "_room", "_timer", "line", "name")

    def __init__(
        self, owner: Owner, room: "Room", name: tuple[str, str, bool], *, local: bool
    ) -> None:
        self.line: Line[Wait] = Line()
        self.name = name
        """The counter's, in its room."""
        self._owner = owner
        self._room = room
        self._local = local
        self._timer: asyncio.TimerHandle | None = None
        self._armed_us = 0
        self._returning = False

    def arm(self) -> None:
        """Sees to it that the first leaves at its instant, and that a queue of nobody is gone."""
        self._room.changed(self)
        due_us = self.line.due_us() if self.line.requests else None
        if self._timer is not None:
            if due_us is not None and self._armed_us <= due_us:
                return  # it fires no later than that, and then looks again
            self._timer.cancel()
            self._timer = None
        if due_us is not None:
            self._armed_us = due_us
            seconds = max(0, due_us - clock_us()) / 1_000_000
            self._timer = asyncio.get_running_loop().call_later(seconds, self._depart)

    def catch_up(self) -> bool:
        """Lets those go on at once whose instant has come; whether there were any."""
        due = bool(self.line.requests) and self.line.due_us() <= clock_us()
        if due:
            if self._timer is not None:
                self._timer.cancel()
            self._depart()
        return due

    def _depart(self) -> None:
        self._timer = None
        for wait, place in self.line.depart(clock_us()):
            wait.go_on(self, place.decision)
        self.arm()
        self.tidy()

    def tidy(self) -> None:
        """Gives back in the background what nobody needs, if there is anything."""
        if len(self.line.places) > len(self.line.requests) and not self._returning:
            in_background(self.trim())

    async def trim(self) -> None:
        """Gives back what nobody needs, the last place first, until others are found behind it."""
        if self._returning:
            return
        self._returning = True
        try:
            while places := self.line.spare(AT_ONCE):
                if await self.give_back(places):
                    break
        finally:
            self._returning = False

    async def give_back(self, places: Sequence[Place]) -> bool:
        """Gives these places back; whether one is still ours, for the next who comes."""
        checks = [place.check.given_back(place.decision) for place in places]
        try:
            decisions = await self._owner.give_back(checks, local=self._local)
        except Exception as problem:  # noqa: BLE001  # they pass unused
            self._owner.not_given_back(problem)
            return True
        kept = False
        for place, decision in zip(places, decisions, strict=True):
            if ends_at(decision) >= ends_at(place.decision):
                kept |= self.line.offer(place, clock_us())
        return kept


class Room:
    """All who wait for one rule in one event loop."""

    __slots__ = ("_earliest_us", "queues", "taken")

    def __init__(self) -> None:
        self.taken = 0
        """The requests, each of which may stand in several queues."""
        self.queues: dict[tuple[str, str, bool], Queue] = {}
        """By key, limit, and whether that is counted in the store's stead."""
        self._earliest_us: int | None = None

    def changed(self, queue: Queue) -> None:
        """Forgets what was known of the first, and a queue in which nobody waits."""
        self._earliest_us = None
        if not queue.line.requests and self.queues.get(queue.name) is queue:
            del self.queues[queue.name]

    def queue(self, turn: Turn) -> Queue:
        """The queue of one counter."""
        local = turn.decision.degraded
        name = turn.check.key, turn.decision.limit.digest, local
        queue = self.queues.get(name)
        if queue is None:
            queue = self.queues[name] = Queue(turn.owner, self, name, local=local)
        return queue

    def earliest_us(self) -> int | None:
        """The instant at which the first of all goes on if nobody leaves; a flood asks often."""
        if self._earliest_us is None:
            found: list[int] = []
            for queue in self.queues.values():
                for wait in queue.line.requests:
                    found.append(wait.due_us())
                    if len(wait.queues) == 1:  # nobody behind it goes on sooner
                        break
            self._earliest_us = min(found, default=None)
        return self._earliest_us


class Wait:
    """A request that waits, in one queue or several."""

    __slots__ = ("_places", "moved", "over", "promised", "queues", "turn")

    def __init__(self, loop: Loop | None) -> None:
        self.turn: asyncio.Future[bool] | None = None if loop is None else loop.create_future()
        """True when its turn has come, False where the limiter closes before."""
        self.over: asyncio.Future[None] | None = None
        """Told when it ends, where somebody wants to know."""
        self.queues: list[Queue] = []
        """Those that still hold it."""
        self.promised: dict[Queue, Decision] = {}
        """The decision by which it has come into each."""
        self.moved: dict[int, Decision] = {}
        """By the identity of such a decision, the one at whose place it has gone on instead."""
        self._places: set[tuple[Waits, tuple[Loop | None, str]]] = set()

    def enter(self, waits: "Waits", name: "tuple[Loop | None, str]") -> Room:
        """Takes a place in the room of a rule, once."""
        room = waits.rooms.get(name) or waits.open(name)
        if (waits, name) not in self._places:
            room.taken += 1
            waits.count += all(waits is not each for each, _ in self._places)
            self._places.add((waits, name))
        return room

    def go_on(self, queue: Queue, decision: Decision) -> None:
        """Ends the waiting once no queue holds it; this one does no more, at a decision's place."""
        self.queues.remove(queue)
        promised = self.promised[queue]
        if decision is not promised:
            self.moved[id(promised)] = decision
        if not self.queues and self.turn is not None and not self.turn.done():
            self.turn.set_result(True)
            self.end()

    def due_us(self) -> int:
        """The instant at which it goes on, as far as is known."""
        return max(queue.line.due_us(self) for queue in self.queues)

    async def leave(self) -> None:
        """Goes away before its turn: those behind move up, and what nobody needs is given back."""
        queues, self.queues = self.queues, []
        own = [(queue, queue.line.leave(self)) for queue in queues]
        for queue in queues:
            queue.arm()
        for queue, places in own:
            if places:
                await queue.give_back(places)
            await queue.trim()

    def end(self) -> None:
        """Counts it no more."""
        for waits, name in self._places:
            room = waits.rooms[name]
            room.taken -= 1
            if not room.taken:
                del waits.rooms[name]
        for waits in {each for each, _ in self._places}:
            waits.count -= 1
        self._places = set()
        if self.over is not None and not self.over.done():
            self.over.set_result(None)


class Waits:
    """All requests that wait in this process for a limiter's rules; each event loop by itself."""

    def __init__(self) -> None:
        self.count = 0
        """The number of them."""
        self.rooms: dict[tuple[Loop | None, str], Room] = {}
        """By event loop, and the text under which a rule is counted."""
        self.closing: set[Loop | None] = set()
        """Event loops in which nobody may wait any more."""

    def open(self, name: tuple[Loop | None, str]) -> Room:
        """A room in which nobody waits yet."""
        for each in [one for one in self.rooms if one[0] is not None and one[0].is_closed()]:
            del self.rooms[each]
        room = self.rooms[name] = Room()
        return room

    async def aclose(self) -> None:
        """Ends all waits of this event loop, and returns when their places were given back."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # not asyncio's, where they sleep
            return
        self.closing.add(loop)
        try:
            rooms = [room for (where, _), room in self.rooms.items() if where is loop]
            queues = [queue for room in rooms for queue in room.queues.values()]
            waits = {wait for queue in queues for wait in queue.line.requests}
            for wait in waits:
                if wait.over is None:
                    wait.over = loop.create_future()
                if wait.turn is not None and not wait.turn.done():
                    wait.turn.set_result(False)
            if waits:
                await asyncio.wait([wait.over for wait in waits if wait.over is not None])
        finally:
            self.closing.discard(loop)


_tasks: Final[set[asyncio.Task[None]]] = set()


def in_background(job: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
    """Begins a job that goes on whatever becomes of who began it."""
    task = asyncio.get_running_loop().create_task(job, name="ratelimit places", context=Context())
    # As a `Background`'s: a loop that is closed by hand drops it, and it has nothing to lose.
    task._log_destroy_pending = False  # type: ignore[attr-defined]  # noqa: SLF001
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)
    return task
