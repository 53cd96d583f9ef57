"""Waiting for a turn: who may, and what is given back of a request that runs nothing."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final

from ratelimit.decisions import Action, Check, Decision
from ratelimit.limiter.admission import Admission, Turn, count
from ratelimit.limiter.queueing.line import Place
from ratelimit.limiter.queueing.rooms import Loop, Room, Wait, Waits, clock_us, in_background
from ratelimit.limiter.telling import tell_refused
from ratelimit.limits import Limit
from ratelimit.responses.headers import Told, refuse
from ratelimit.responses.problems import closing
from ratelimit.rules.counting import DEFAULT_MAX_WAITING
from ratelimit.rules.matching import Matching, Plan
from ratelimit.rules.route_rule import counter_of

__all__ = ["asked_in_vain", "begin", "full", "give_up", "go_behind"]

_CHARGE: Final = int(Action.CHARGE)
_NEVER: Final = Limit("1/second", algorithm="fixed_window")
"""A limit that a cost of 2 never passes, and of which nothing is ever written."""

Ask = Callable[[Sequence[Check]], Awaitable[Sequence[Decision]]]


def full(
    waits: Waits, matching: Matching, plan: Plan, keys: Sequence[str]
) -> tuple[int, Room] | None:
    """The place of a check by which a request would have to wait, in a room that is full.

    None where it may pass, or wait: it is sure to wait where others do for the same counter.
    """
    loop = _loop()
    if loop is None or loop in waits.closing:
        return None
    for place, (limit, key, cost, counter, action) in enumerate(plan.asked):
        room = waits.rooms.get((loop, counter))
        if room is None or action != _CHARGE or not cost:
            continue
        queue = room.queues.get((keys[key], limit.digest, False))
        if queue is not None and queue.line.requests and room.taken >= _most(matching, counter):
            return place, room
    return None


async def asked_in_vain(
    ask: Ask, place: int, room: Room, checks: Sequence[Check]
) -> Sequence[Decision]:
    """The decisions on a request that a full room refuses, whatever they are.

    It is asked beside a check that never passes, so that it charges nothing, in one trip, and what
    else refuses it is told as ever.
    """
    count = len(checks)
    fence = [Check(_NEVER, key, 2, "ratelimit.full") for key in {check.key for check in checks}]
    told = await ask((*checks, *fence))
    decisions = list(told[:count])
    if all(each.allowed for each in told[count:]):  # none could be read, or a ban refuses
        return decisions
    if decisions[place].degraded:  # then nobody waits by it, and nothing was charged
        return await ask(checks)
    if decisions[place].allowed:
        decisions[place] = _refused(decisions[place], room)
    return decisions


def begin(admission: Admission, loop: Loop | None) -> Wait | None:
    """Has a request wait for the turns that it was promised.

    None where there is no room for it, or its limiter closes: it is refused then, and `give_up`
    is for the caller to await.
    """
    for turn in admission.turns:
        name = loop, turn.check.rule
        if loop in turn.owner.waits.closing:
            admission.refuse(closing())
            return None
        room = turn.owner.waits.rooms.get(name)
        asked = [each for _, matching in admission.decided for each in matching]
        if room is not None and room.taken >= _most(asked, turn.check.rule):
            _refuse(admission, turn, room)
            return None
    now_us = clock_us()
    wait = Wait(loop)
    for turn in admission.turns:
        room = wait.enter(turn.owner.waits, (loop, turn.check.rule))
        if loop is None:
            continue
        queue = room.queue(turn)
        wait.queues.append(queue)
        wait.promised[queue] = turn.decision
        queue.line.join(Place.of(turn.check, turn.decision, now_us), wait, now_us)
        queue.arm()
        queue.tidy()
    count(admission.turns, "waited")
    admission.turns = ()
    return wait


async def give_up(admission: Admission, wait: Wait | None, turns: Iterable[Turn]) -> None:
    """Gives back all that a request was charged which runs nothing, its places among that.

    ``turns`` are those that it was promised, and ``wait`` is how it waited, if it did. Goes on in
    the background where the request's task is cancelled meanwhile, which no scope keeps off.
    """
    job = _give_up(admission, wait, turns)
    if _loop() is None:
        await job
    else:
        await asyncio.shield(in_background(job))


async def _give_up(admission: Admission, wait: Wait | None, turns: Iterable[Turn]) -> None:
    try:
        admission.leave_out([turn.decision for turn in turns])
        if wait is not None and wait.turn is not None:
            await wait.leave()
        else:
            for turn in turns:
                await _vacate(turn)
        await admission.give_back()
    finally:
        if wait is not None:
            wait.end()


async def go_behind(admission: Admission) -> None:
    """Has a request that need not wait go behind those whose turn came before it.

    In a loop that is late, their timers stand behind it.
    """
    loop, late = _loop(), False
    for owner, plan, keys, _ in admission.passed:
        for limit, place, _, counter, _ in plan.asked if owner.waits.count else ():
            room = owner.waits.rooms.get((loop, counter))
            queue = None if room is None else room.queues.get((keys[place], limit.digest, False))
            late |= queue is not None and queue.catch_up()
    if late:
        await asyncio.sleep(0)


async def _vacate(turn: Turn) -> None:
    """Gives back a place that its request has not taken."""
    now_us = clock_us()
    place = Place.of(turn.check, turn.decision, now_us)
    room = turn.owner.waits.rooms.get((_loop(), turn.check.rule)) or Room()
    queue = room.queue(turn)
    if queue.line.offer(place, now_us):
        await queue.trim()
    else:
        queue.arm()
        await queue.give_back([place])


def _loop() -> Loop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _most(matching: Matching, counter: str) -> int:
    """The number of requests that may wait for the rule of a counter."""
    most = (rule.max_waiting for rule, _ in matching if counter_of(rule) == counter)
    return next(most, DEFAULT_MAX_WAITING)


def _refused(decision: Decision, room: Room) -> Decision:
    """A decision by which a request cannot wait, until the first in the room goes on."""
    earliest_us = room.earliest_us()
    retry_us = decision.delay_us if earliest_us is None else earliest_us - clock_us()
    retry_us = max(1, retry_us)
    return decision._replace(
        allowed=False, remaining=0, retry_after_us=retry_us, delay_us=0, level=retry_us
    )


def _refuse(admission: Admission, turn: Turn, room: Room) -> None:
    """Refuses a request because as many wait for a rule as may."""
    owner, denied = turn.owner, _refused(turn.decision, room)
    told = [Told(name, denied if it is turn.decision else it) for name, it in admission.told]
    if turn.decision.degraded:
        told = [Told(turn.policy, denied)]
    count([each for each in admission.turns if each.rule != turn.rule], "allowed")
    count([turn], "denied")
    admission.turns = ()
    owner.denials.add(turn.rule, turn.check.key)
    tell_refused(owner.events, admission, [(turn.rule, turn.check, turn.policy, denied)])
    admission.limiter = owner
    rules = owner.rules
    refusal = refuse(told, admission.dialects, rules.retry_jitter_us, hinted=rules.retry_hints)
    admission.refuse(refusal, told)
