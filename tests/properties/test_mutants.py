"""The Lua with one comparison turned: a test notices each, or the comparison says nothing."""

import re
from collections.abc import Iterator
from random import Random
from typing import Final, NamedTuple

import pytest

from ratelimit.bans import Ban
from ratelimit.concurrency import Concurrency
from ratelimit.decisions import Action, Check
from ratelimit.limits import Algorithm, Limit
from ratelimit.stores import MemoryStore, memory, script
from ratelimit.testing import ManualClock
from ratelimit.testing.tables import TABLES, check_table
from tests.support.banning import BanTimeline
from tests.support.timelines import Timeline

TURNED: Final = {"<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "~=", "~=": "=="}
_TOKENS: Final = re.compile(
    r"""(?P<skip>--\[\[.*?\]\]|--[^\n]*|'[^'\n]*'|"[^"\n]*")|(?P<turn><=|>=|==|~=|<|>)""", re.DOTALL
)


class Mutant(NamedTuple):
    """The whole script with one comparison turned, and where that is."""

    name: str
    source: str
    file: str
    line: str


def mutants() -> Iterator[Mutant]:
    for name in (*script.FILES, "decide"):
        own = script._read(name)  # the file as it becomes part of the script
        for found in _TOKENS.finditer(own):
            if found["turn"] is None:
                continue
            turned = own[: found.start()] + TURNED[found["turn"]] + own[found.end() :]
            line = own.count("\n", 0, found.start()) + 1
            column = found.start() - own.rfind("\n", 0, found.start())
            whole = script.SCRIPT.replace(own, turned)
            text = own.splitlines()[line - 1]
            yield Mutant(f"{name}.lua:{line}:{column}", whole, str(name), text)


MUTANTS: Final = list(mutants())

_FULL: Final = "what is full, or most, is that either way"
_NOTHING: Final = "of nothing, nothing is taken or told either way"
_SAME_TIME: Final = "at the same time, nothing has passed"
_READ_ON: Final = "the next read would find nothing, and end in the same"
_IN_REDIS: Final = "not reached in process, where a counter is no text and no key fails"

EQUIVALENT: Final = {
    "token_bucket": {
        "elseif last < now then": _SAME_TIME,
        "if level <= limit[2] * token then": _FULL,
        "return passed < ceil(level / limit[3])": _NOTHING,
    },
    "fixed_window": {
        "if last > at then": _SAME_TIME,
        "counter.at_us, count > MOST and MOST or count)": _FULL,
    },
    "sliding_log": {
        "if #entries < 2 then": _READ_ON,
        "if counter.first > 0 then": _NOTHING,
        "elseif units > 0 then": _NOTHING,
        "or t <= counter.at_us - counter.limit[3] then": "what has just left counts no more",
    },
    "sliding_counter": {
        "if last > at then": _SAME_TIME,
        "if previous > 0 then": _NOTHING,
        "current > most and most or current, counter.previous)": _FULL,
    },
    "concurrency": {
        "if other <= counter.now_us then": "a word that ends now is gone either way",
        "if ends > latest then": "it is written as it is",
        "elseif other > ends then": "it is written as it is",
        "if counter.own or units > 0 then": _NOTHING,
    },
    "ban": {
        "if last <= at then": _SAME_TIME,
    },
    "decide": {
        "left > 0 and left or 0": _NOTHING,
        "ban.room > 0 and ban.room or 0": _NOTHING,
        "check.room > 0 and check.room or 0": _NOTHING,
        "#text > 32 and sub(text, 33) + 0": _IN_REDIS,
        "if checks[i].key == key then": _IN_REDIS,
        "type(problem) == 'table'": _IN_REDIS,
        "own = count < 0": "a kind has checks",
        "while at < #ARGV do": _IN_REDIS,
        "if stage == JUDGING then": _IN_REDIS,
        "elseif stage == SETTLING then": _IN_REDIS,
    },
}
"""Lines with a comparison that may as well be turned, or that is not reached here, and why."""


def is_equivalent(mutant: Mutant) -> bool:
    column = int(mutant.name.rpartition(":")[2]) - 1
    return any(
        mutant.line.find(text) <= column < mutant.line.find(text) + len(text)
        for text in EQUIVALENT.get(mutant.file, ())
        if text in mutant.line
    )


async def decide_at_the_edges() -> None:
    """Debts that are cut, and those that are not yet; a clock that goes back."""
    for algorithm, most in MOST.items():
        store = MemoryStore(clock=ManualClock())
        limit = Limit("1/second", algorithm=algorithm)
        rest = most
        while rest > 0:
            units = min(rest, 2**42)
            rest -= units
            (decision,) = await store.decide([forced(limit, "a", units)])
            assert decision.level != CUT, (algorithm, rest)
        other, decision = await store.decide([forced(limit, "b", 1), forced(limit, "a", 1)])
        assert (other.level == CUT, decision.level == CUT) == (False, True), algorithm
    store = MemoryStore(clock=ManualClock())
    (decision,) = await store.decide([forced(Concurrency(1), "a", 2**42)])
    assert decision.level != CUT
    other, decision = await store.decide(
        [forced(Concurrency(1), "b", 1), forced(Concurrency(1), "a", 1)]
    )
    assert (other.level == CUT, decision.level == CUT) == (False, True)
    clock = ManualClock()
    store = MemoryStore(clock=clock)
    two = Concurrency(2)
    await store.decide([Check(two, "a")])
    clock.advance(5)
    await store.decide([Check(two, "a", at_us=7, level=9)])
    clock.advance(-2)  # the other's word lasts for too long now, and is shortened
    await store.decide([Check(two, "a")])
    clock.advance(7.5)  # the own word has not grown by that
    (decision,) = await store.decide([Check(two, "a")])
    assert decision.allowed
    clock = ManualClock()
    store = MemoryStore(clock=clock)
    queue = Limit("6/minute burst 5", algorithm="leaking_bucket", free=2)
    clock.advance(60)
    await store.decide([Check(queue, "a")])
    clock.advance(-10)
    (decision,) = await store.decide([Check(queue, "a")])
    assert decision.delay_us == 0
    ban = Ban(2, 1_000_000, 1_000_000, 4_000_000)
    await store.decide([forced(ban, "a", 2)])
    clock.advance(2)  # the ban is forgotten at this instant, and a strike says so for good
    await store.decide([forced(ban, "a", 1)])
    clock.advance(-1.1)
    (decision,) = await store.decide([Check(ban, "a", 0)])
    assert decision.allowed


def forced(limit: Limit, key: str, units: int) -> Check:
    return Check(limit, key, cost=units, action=Action.FORCE)


CUT: Final = -1
MOST: Final = {
    Algorithm.TOKEN_BUCKET: 2**52 // 1_000_000,
    Algorithm.LEAKING_BUCKET: 2**52 // 1_000_000,
    Algorithm.FIXED_WINDOW: 2**53 - 1,
    Algorithm.SLIDING_LOG: 2**53 - 1,
    Algorithm.SLIDING_COUNTER: (2**53 - 1) // 1_000_000,
}
"""The units of the largest debt that is kept whole."""


async def differs(source: str, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether any table or timeline notices another source."""
    monkeypatch.setattr(memory, "SCRIPT", source)
    try:
        await decide_at_the_edges()
        for table in TABLES.values():
            clock = ManualClock()
            await check_table(MemoryStore(clock=clock), clock, table)
        for seed in range(150):
            clock = ManualClock()
            timeline = Timeline(Random(seed), MemoryStore(clock=clock), clock)
            for _ in range(60):
                await timeline.step()
        for seed in range(60):
            clock = ManualClock()
            bans = BanTimeline(Random(seed), MemoryStore(clock=clock), clock)
            for _ in range(60):
                await bans.step()
    except Exception:  # noqa: BLE001  # an error of the Lua is noticed as well
        return True
    return False


async def test_the_script_as_it_is_differs_from_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(MUTANTS) > 50
    await decide_at_the_edges()
    assert not await differs(script.SCRIPT, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
async def test_a_turned_comparison_is_noticed(
    mutant: Mutant, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await differs(mutant.source, monkeypatch) is not is_equivalent(mutant)
