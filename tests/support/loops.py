"""An event loop, and threads, that serve requests, simulated: their time is a number.

In each round it runs the tasks of the requests that it read in the round before, and reads those
that have come meanwhile; a timer is due every 50 ms. That is what asyncio does with a server's
sockets.
"""

import random
from collections import deque
from collections.abc import Iterable
from heapq import heappop, heappush
from typing import NamedTuple

from ratelimit.control.shedding import COHORTS, Control
from ratelimit.runtime.lateness import FAR, Queue

EVERY = 0.05
USERS = 5_000
MOST_AT_ONCE = 2_000
"""Requests that one round reads: there are no more connections."""


class Request(NamedTuple):
    """What became of one."""

    at: float
    took: float
    priority: int
    served: bool


def served(
    control: Control,
    load: float,
    seconds: float,
    *,
    work: float = 0.002,
    refusing: float = 0.0002,
    stalls: Iterable[tuple[float, float]] = (),
    even: bool = False,
    seed: int = 1,
) -> list[Request]:
    """Requests at ``load`` times what the loop can serve, a fifth of them critical.

    ``work`` and ``refusing`` are the seconds that a request takes; ``stalls`` are calls that block
    it, by when and how long.
    """
    random.seed(seed)
    chance = random.Random(seed)
    cohorts = [chance.randrange(COHORTS) for _ in range(USERS)]
    coming = _arrivals(chance, load / work, seconds, even=even)
    blocks = sorted(stalls, reverse=True)
    now, pressed, due = 0.0, 0.0, EVERY
    ready: list[float] = []
    found: list[Request] = []
    sampling = False
    place = 0
    while now < seconds:
        if blocks and blocks[-1][0] <= now:
            now += blocks.pop()[1]
        for at in ready:
            if now > due + control.lag and now > pressed + control.lag:
                pressed = now
                control.press(now - due)
            priority = 0 if chance.random() < 0.2 else 2
            level = priority * COHORTS + cohorts[chance.randrange(USERS)]
            passes = not control.watching or control.admits(level)
            now += work if passes else refusing
            found.append(Request(at, now - at, priority, passes))
        ready = []
        if sampling:
            control.sample(now, now - due)
            sampling, pressed, due = False, now, now + EVERY
        elif due <= now:
            sampling = True
            if now - due > FAR:
                control.sample(now, now - due)
        while place < len(coming) and coming[place] <= now and len(ready) < MOST_AT_ONCE:
            ready.append(coming[place])
            place += 1
        now += 0.000_02
        if not (ready or sampling):
            now = max(now, min(coming[place] if place < len(coming) else seconds, due))
    return found


def served_by_threads(
    control: Control,
    load: float,
    seconds: float,
    *,
    work: float = 0.1,
    threads: int = 40,
    seed: int = 1,
) -> list[Request]:
    """As `served`, by threads that each have a request for ``work`` seconds, or a little longer."""
    random.seed(seed)
    chance = random.Random(seed)
    queue, waiting = Queue(), deque[tuple[float, int]]()
    events = [(at, 0, 0) for at in _arrivals(chance, load * threads / work, seconds, even=True)]
    events += [(place * EVERY, 1, 0) for place in range(1, int(seconds / EVERY))]
    events.sort()
    found: list[Request] = []
    free, pressed = threads, 0.0
    while events:
        now, kind, _ = heappop(events)
        if kind == 0:
            priority = 0 if chance.random() < 0.2 else 2
            if control.shedding and now - pressed > control.lag / 2:
                pressed = now
                if foretold := queue.foretold(len(waiting)):
                    control.press(foretold)
            if control.watching and not control.admits(priority * COHORTS + chance.randrange(100)):
                found.append(Request(now, 0.0, priority, served=False))
            else:
                waiting.append((now, priority))
        elif kind == 1:
            control.sample(now, queue.late(now, len(waiting)))
            if waiting and queue.probed_at is None:
                queue.enter(now, len(waiting))
                waiting.append((now, -1))
        else:
            free += 1
        while waiting and free:
            at, priority = waiting.popleft()
            if priority < 0:
                queue.leave(now)
                continue
            free -= 1
            ends = now + work * (1 + chance.random() / 30)
            heappush(events, (ends, 2, 0))
            found.append(Request(at, ends - at, priority, served=True))
    return found


def _arrivals(chance: random.Random, rate: float, seconds: float, *, even: bool) -> list[float]:
    at, found = 0.0, []
    while at < seconds:
        at += 1 / rate if even else chance.expovariate(rate)
        found.append(at)
    return found
