"""An exact model of the five algorithms, and of what is under way at once: fractions and tuples.

It follows the written promise alone and knows nothing of how the Lua keeps its numbers. A counter
is a pair of the time of its last charge and what is counted; `look` gives that pair as it stands at
an instant. Where a counter's time is more than a window ahead of the clock, the clock was broken:
what is counted is kept and the time is taken as now.
"""

from collections.abc import Sequence
from fractions import Fraction
from math import ceil, floor
from typing import Any, NamedTuple

State = tuple[int, Any]
"""(time of the last charge, what is counted); what is counted is the algorithm's own."""


class Ask(NamedTuple):
    """One check. ``action`` is charge, shadow, force, give_back or renew.

    A give-back names a charge, and a renewal what it was last told. ``worker`` says whose places
    they are, where they are counted at once.
    """

    limit: Any
    key: str
    cost: int = 1
    action: str = "charge"
    charge: "Answer | None" = None
    worker: int = 0


class Answer(NamedTuple):
    """What a decision says, in microseconds; ``at_us`` and ``level`` are for a give-back."""

    allowed: bool
    remaining: int
    retry_us: int | None
    reset_us: int
    delay_us: int
    at_us: int
    level: Fraction


class Bucket:
    """Counts a level: units not yet refilled or leaked."""

    def __init__(self, limit: Any) -> None:
        self.window_us: int = limit.window_us
        self.rate = Fraction(limit.quota, limit.window_us)
        self.capacity: int = limit.burst
        self.tick_us: int = limit.tick_us
        if limit.max_delay is not None:
            places = floor(Fraction(str(limit.max_delay)) * 1_000_000 * self.rate) + limit.free
            self.capacity = min(self.capacity, places)
        self.waits = limit.algorithm == "leaking_bucket"
        self.at_once: int = limit.free or 1

    def moved(self, state: State, time_us: int) -> Any:
        last_us, level = state
        return max(Fraction(0), level - (time_us - last_us) * self.rate)

    def empty(self) -> Any:
        return Fraction(0)

    def is_empty(self, view: State) -> bool:
        return bool(view[1] == 0)

    def free(self, view: State) -> int:
        return floor(Fraction(self.capacity - view[1]))

    def charged(self, view: State, cost: int) -> State:
        return view[0], view[1] + cost

    def passes_at(self, view: State, cost: int) -> int:
        return self.ticked(view[0] + (view[1] + cost - self.capacity) / self.rate)

    def empty_at(self, view: State) -> int:
        return self.ticked(view[0] + view[1] / self.rate)

    def ticked(self, instant: Fraction) -> int:
        return ceil(instant / self.tick_us) * self.tick_us

    def delay_us(self, view: State, now_us: int) -> int:
        ahead = Fraction(view[1]) - (self.at_once - 1)
        if not self.waits or ahead <= 0:
            return 0
        return view[0] - (now_us - now_us % self.tick_us) + ceil(ahead / self.rate)

    def returned(self, state: State, view: State, cost: int, charge: Answer) -> State | None:
        """What a charge has not refilled since: it was last in the queue of what was missing.

        Where requests wait, nothing unless it is the last in the queue now.
        """
        leaked = max(0, view[0] - charge.at_us) * self.rate
        left = max(Fraction(0), charge.level - leaked)
        if self.waits and view[1] > left:
            return None
        back = min(Fraction(cost), left, view[1])
        return (view[0], view[1] - back) if back else None

    def level(self, view: State) -> Fraction:
        return Fraction(view[1])


class Window:
    """What fixed windows, logs and counters share: a quota, and nothing that waits."""

    def __init__(self, limit: Any) -> None:
        self.window_us: int = limit.window_us
        self.capacity: int = limit.quota
        self.tick_us: int = limit.tick_us
        self.up = limit.rounding == "up"

    def delay_us(self, view: State, now_us: int) -> int:
        return 0

    def level(self, view: State) -> Fraction:
        return Fraction(0)

    def is_empty(self, view: State) -> bool:
        return view[1] in (0, (), (0, 0))

    def index(self, time_us: int) -> int:
        return time_us // self.window_us


class FixedWindow(Window):
    """Counts the units of the window that the last charge lies in."""

    def moved(self, state: State, time_us: int) -> Any:
        return state[1] if self.index(state[0]) == self.index(time_us) else 0

    def empty(self) -> Any:
        return 0

    def free(self, view: State) -> int:
        return int(self.capacity - view[1])

    def charged(self, view: State, cost: int) -> State:
        return view[0], view[1] + cost

    def passes_at(self, view: State, cost: int) -> int:
        return int((self.index(view[0]) + 1) * self.window_us)

    def empty_at(self, view: State) -> int:
        return self.passes_at(view, 0)

    def returned(self, state: State, view: State, cost: int, charge: Answer) -> State | None:
        if not view[1] or self.index(charge.at_us) != self.index(view[0]):
            return None
        return view[0], view[1] - min(cost, view[1])


class SlidingLog(Window):
    """Counts entries, oldest first: (time, units)."""

    def moved(self, state: State, time_us: int) -> Any:
        return tuple(entry for entry in state[1] if entry[0] > time_us - self.window_us)

    def empty(self) -> Any:
        return ()

    def free(self, view: State) -> int:
        return int(self.capacity - sum(units for _, units in view[1]))

    def charged(self, view: State, cost: int) -> State:
        return view[0], (*view[1], (view[0], cost))

    def passes_at(self, view: State, cost: int) -> int:
        missing = cost - self.free(view)
        for time_us, units in view[1]:
            missing -= units
            if missing <= 0:
                return int(time_us + self.window_us)
        raise ValueError("the cost is above the quota")

    def empty_at(self, view: State) -> int:
        return int(view[1][-1][0] + self.window_us)

    def returned(self, state: State, view: State, cost: int, charge: Answer) -> State | None:
        if all(time_us != charge.at_us for time_us, _ in view[1]):
            return None
        kept = []
        for time_us, units in reversed(state[1]):
            back = min(cost, units) if time_us == charge.at_us else 0
            cost -= back
            if units > back:
                kept.append((time_us, units - back))
        kept.reverse()
        return (kept[-1][0] if kept else view[0]), tuple(kept)


class SlidingCounter(Window):
    """Counts two windows: (previous, current), current being that of the last charge."""

    def moved(self, state: State, time_us: int) -> Any:
        previous, current = state[1]
        passed = self.index(time_us) - self.index(state[0])
        return (previous, current) if passed == 0 else (current, 0) if passed == 1 else (0, 0)

    def empty(self) -> Any:
        return 0, 0

    def free(self, view: State) -> int:
        previous, current = view[1]
        covered = self.window_us - view[0] % self.window_us
        weighted = Fraction(previous * covered, self.window_us)
        return int(self.capacity - current - (ceil(weighted) if self.up else floor(weighted)))

    def charged(self, view: State, cost: int) -> State:
        previous, current = view[1]
        return view[0], (previous, current + cost)

    def passes_at(self, view: State, cost: int) -> int:
        """The first tick at which it fits, by halving: what is used only falls with time."""
        low, high = 0, 2 * self.window_us // self.tick_us
        while high - low > 1:
            middle = (low + high) // 2
            time_us = view[0] + middle * self.tick_us
            if cost <= self.free((time_us, self.moved(view, time_us))):
                high = middle
            else:
                low = middle
        return int(view[0] + high * self.tick_us)

    def empty_at(self, view: State) -> int:
        return int((self.index(view[0]) + (2 if view[1][1] else 1)) * self.window_us)

    def returned(self, state: State, view: State, cost: int, charge: Answer) -> State | None:
        previous, current = view[1]
        behind = self.index(view[0]) - self.index(charge.at_us)
        if not (previous or current):
            return None
        if behind == 0:
            return view[0], (previous, current - min(cost, current))
        if behind == 1:
            return view[0], (previous - min(cost, previous), current)
        return None


class AtOnce:
    """Counts what is under way by the word of each worker: (worker, until, serial, count).

    A new word's serial is the time, and each unit that is charged or given back raises it.
    """

    tick_us = 1

    def __init__(self, limit: Any, worker: int) -> None:
        self.window_us: int = limit.window_us
        self.capacity: int = limit.quota
        self.worker = worker

    def anchor(self, state: State | None, now_us: int) -> tuple[State, bool]:
        """The words that hold now; none holds for longer than a lease."""
        if state is None:
            return (now_us, ()), False
        latest = now_us + self.window_us
        words = tuple((who, min(until, latest), *rest) for who, until, *rest in state[1])
        return (now_us, words), words != state[1]

    def moved(self, state: State, time_us: int) -> Any:
        return tuple(word for word in state[1] if word[1] > time_us)

    def empty(self) -> Any:
        return ()

    def is_empty(self, view: State) -> bool:
        return not view[1]

    def free(self, view: State) -> int:
        return int(self.capacity - sum(word[3] for word in view[1]))

    def own(self, view: State) -> tuple[int, int]:
        """Serial and count of the worker's word."""
        own = ((word[2], word[3]) for word in view[1] if word[0] == self.worker)
        return next(own, (view[0] % 2**40, 0))

    def written(self, view: State, serial: int, count: int) -> State:
        others = tuple(word for word in view[1] if word[0] != self.worker)
        word = self.worker, view[0] + self.window_us, serial % 2**40, count
        return view[0], (*others, word) if count else others

    def charged(self, view: State, cost: int) -> State:
        serial, before = self.own(view)
        return self.written(view, serial + cost, before + cost)

    def returned(self, state: State, view: State, cost: int, charge: Answer) -> State | None:
        serial, before = self.own(view)
        return self.written(view, serial + cost, max(0, before - cost)) if before else None

    def renewed(self, view: State, count: int, told: Answer | None) -> tuple[State | None, bool]:
        """The words after a renewal, if it writes any, and whether the worker's has stayed."""
        serial, before = self.own(view)
        if not before and not count:
            return None, False
        if before and (told is None or told.level != serial):
            return self.written(view, serial, before), True
        return self.written(view, serial, count), False

    def passes_at(self, view: State, cost: int) -> int:
        return view[0] + 1_000_000

    def empty_at(self, view: State) -> int:
        return int(max(word[1] for word in view[1]))

    def delay_us(self, view: State, now_us: int) -> int:
        return 0

    def level(self, view: State) -> Fraction:
        return Fraction(self.own(view)[0])


FAMILIES: dict[str, Any] = {
    "token_bucket": Bucket,
    "leaking_bucket": Bucket,
    "fixed_window": FixedWindow,
    "sliding_log": SlidingLog,
    "sliding_counter": SlidingCounter,
}


class Model:
    """All counters of one store; `decide` is one request."""

    def __init__(self) -> None:
        self.states: dict[Any, State] = {}
        self.families: dict[Any, Any] = {}

    def family(self, limit: Any, worker: int = 0) -> Any:
        if (limit, worker) not in self.families:
            at_once = limit.algorithm == "concurrency"
            made = AtOnce(limit, worker) if at_once else FAMILIES[limit.algorithm](limit)
            self.families[limit, worker] = made
        return self.families[limit, worker]

    def anchored(self, family: Any, state: State | None, now_us: int) -> tuple[State, bool]:
        """The counter as remembered, or where that was broken with its time taken as now."""
        if isinstance(family, AtOnce):
            return family.anchor(state, now_us)
        tick_us = now_us - now_us % family.tick_us
        if state is None:
            return (tick_us, family.empty()), False
        if state[0] - tick_us <= family.window_us:
            return state, False
        if isinstance(family, SlidingLog):
            return (tick_us, ((tick_us, sum(units for _, units in state[1])),)), True
        return (tick_us, state[1]), True

    def look(self, family: Any, state: State | None, now_us: int) -> State:
        kept, _ = self.anchored(family, state, now_us)
        time_us = max(kept[0], now_us - now_us % family.tick_us)
        return time_us, family.moved(kept, time_us)

    def give_back(self, now_us: int, ask: Ask) -> Answer:
        """Returns what a charge took; of a log whose clock was broken, nothing is known by time."""
        family, name = self.family(ask.limit, ask.worker), (ask.key, ask.limit)
        state = self.states.get(name)
        assert ask.charge is not None
        if state is not None:
            kept, broken = self.anchored(family, state, now_us)
            view = self.look(family, state, now_us)
            if not (broken and isinstance(family, SlidingLog)):
                returned = family.returned(kept, view, ask.cost, ask.charge)
                if returned is not None:
                    self.states[name] = returned
                    if family.is_empty(returned):
                        del self.states[name]
        return self.answer(now_us, ask, True, self.look(family, self.states.get(name), now_us))

    def renew(self, now_us: int, ask: Ask) -> Answer:
        """A worker's word on what it has under way."""
        family, name = self.family(ask.limit, ask.worker), (ask.key, ask.limit)
        view = self.look(family, self.states.get(name), now_us)
        renewed, stayed = family.renewed(view, ask.cost, ask.charge)
        if renewed is not None:
            self.states[name] = view = renewed
            if family.is_empty(renewed):
                del self.states[name]
        return self.answer(now_us, ask, True, view)._replace(delay_us=int(stayed))

    def answer(self, now_us: int, ask: Ask, allowed: bool, left: State) -> Answer:
        family = self.family(ask.limit, ask.worker)
        free = max(0, family.free(left))
        reset_us = 0 if family.is_empty(left) else family.empty_at(left) - now_us
        return Answer(allowed, free, 0, reset_us, 0, left[0], family.level(left))

    def decide(self, now_us: int, asks: Sequence[Ask], *, banned: bool = False) -> list[Answer]:
        """One answer per check. Shadow checks come after the others, so they have no say.

        ``banned`` says that the request is refused, whatever its checks say.
        """
        if asks and asks[0].action == "give_back":
            return [self.give_back(now_us, ask) for ask in asks]
        if asks and asks[0].action == "renew":
            return [self.renew(now_us, ask) for ask in asks]
        tried: dict[Any, State] = {}
        taken: dict[Any, int] = {}
        order = sorted(range(len(asks)), key=lambda place: asks[place].action == "shadow")
        seen: dict[int, tuple[bool, State, State, int]] = {}
        for place in order:
            ask = asks[place]
            family, name = self.family(ask.limit, ask.worker), (ask.key, ask.limit)
            found = left = self.look(family, tried.get(name, self.states.get(name)), now_us)
            allowed = ask.cost == 0 or ask.action == "force" or ask.cost <= family.free(found)
            before = taken.get(name, 0)
            if allowed and ask.cost:
                left = tried[name] = family.charged(found, ask.cost)
                taken[name] = before + ask.cost
            seen[place] = allowed, found, left, before
        passed = not banned and all(
            seen[place][0] for place in order if asks[place].action != "shadow"
        )
        answers = []
        for place, ask in enumerate(asks):
            allowed, found, left, before = seen[place]
            family, name = self.family(ask.limit, ask.worker), (ask.key, ask.limit)
            cost = ask.cost
            if not passed:
                # The request comes again as a whole: with what its earlier checks would take.
                left = found = self.look(family, self.states.get(name), now_us)
                cost += before
            answer = self.answer(now_us, ask, allowed, left)
            if not allowed:
                never = cost > family.capacity
                retry_us = None if never else family.passes_at(found, cost) - now_us
                answer = answer._replace(retry_us=retry_us)
            elif passed and ask.cost:
                answer = answer._replace(delay_us=family.delay_us(found, now_us))
            answers.append(answer)
        if passed:
            self.states.update(tried)
        for place, ask in enumerate(asks):
            name = (ask.key, ask.limit)
            if not seen[place][0] and name in self.states:
                # The one write of a refusal: without it a key ahead of the clock stays shut.
                family = self.family(ask.limit, ask.worker)
                kept, broken = self.anchored(family, self.states[name], now_us)
                if broken:
                    self.states[name] = kept
        return answers
