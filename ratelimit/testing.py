"""For tests: limits off, forgotten, or by a clock moved by hand; and the suite of every store.

Needs no pytest to be imported; `ratelimit.pytest_plugin` has the first three as fixtures. To hold
a store of your own to the promise, in a test module::

    from ratelimit.testing import StoreSuite

    @pytest.fixture
    def make_store():
        return lambda clock: MyStore(clock=clock)

    class TestMyStore(StoreSuite):
        pass

with pytest-asyncio in auto mode (or anyio's). ``TABLES`` holds the decision tables as data.
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

from ratelimit.decisions import Action, Check, Decision
from ratelimit.limiter import RateLimiter
from ratelimit.limits import Algorithm, Limit
from ratelimit.stores import MemoryStore, Store
from ratelimit.stores.memory import live_stores

__all__ = [
    "START_US",
    "TABLES",
    "ManualClock",
    "Row",
    "StoreSuite",
    "Table",
    "by_hand",
    "check_table",
    "disabled",
    "reset",
]

START_US: Final = 1_700_352_000_000_000
"""2023-11-19 00:00 UTC, where a minute, a day and a window of 30 days start at once."""

MakeStore = Callable[["ManualClock"], Store]


class ManualClock:
    """A clock that stands still until it is moved: calling it gives epoch microseconds."""

    def __init__(self, start_us: int = START_US) -> None:
        self.set_us(start_us)

    def __call__(self) -> int:
        return self._now_us

    def advance(self, seconds: float = 0, *, us: int = 0) -> None:
        """Moves on by seconds (rounded to a microsecond) and microseconds; back if negative."""
        self.set_us(self._now_us + round(seconds * 1_000_000) + us)

    def set_us(self, now_us: int) -> None:
        """Stands at this instant, in whole microseconds since the epoch."""
        if type(now_us) is not int:
            raise TypeError(f"a clock gives whole microseconds, not {type(now_us).__name__}")
        self._now_us = now_us


@contextmanager
def disabled() -> Iterator[None]:
    """Turns every limiter of the process off while it lasts, the library's own included."""
    before, RateLimiter.everywhere = RateLimiter.everywhere, False
    try:
        yield
    finally:
        RateLimiter.everywhere = before


def reset() -> None:
    """Forgets every counter of every `MemoryStore` in the process."""
    for store in live_stores():
        store.clear()


@contextmanager
def by_hand(clock: ManualClock | None = None) -> Iterator[ManualClock]:
    """Moves the time of every `MemoryStore` by a clock, from `START_US` on; gives that clock.

    Also of those that are made meanwhile, but not of one that was given a clock of its own. The
    counters are forgotten at both ends, since they are of another time.
    """
    clock = clock or ManualClock()
    reset()
    before, MemoryStore.clock = MemoryStore.clock, clock
    try:
        yield clock
    finally:
        MemoryStore.clock = before
        reset()


class Row(NamedTuple):
    """One check, and what it must come to; times in microseconds, ``at_us`` after `START_US`."""

    at_us: int
    cost: int
    allowed: bool
    remaining: int
    retry_us: int | None
    reset_us: int
    delay_us: int = 0
    action: Action = Action.CHARGE
    returns: int = -1
    """For a give-back: the row whose charge it returns."""


class Table(NamedTuple):
    """Rows decided one after another on one key of one limit."""

    limit: Limit
    rows: tuple[Row, ...]


_S: Final = 1_000_000
_MINUTE: Final = 60 * _S
_DAY: Final = 86_400 * _S
_FORCE: Final = Action.FORCE
_BACK: Final = Action.GIVE_BACK

TABLES: Final[dict[str, Table]] = {
    # One token per 15 s.
    "a token bucket of 4 refills one token at a time": Table(
        Limit("4/minute", algorithm="token_bucket"),
        (
            Row(0, 1, True, 3, 0, 15 * _S),
            Row(0, 1, True, 2, 0, 30 * _S),
            Row(0, 2, True, 0, 0, 60 * _S),
            Row(0, 1, False, 0, 15 * _S, 60 * _S),
            Row(15 * _S - 1, 1, False, 0, 1, 45 * _S + 1),
            Row(15 * _S, 1, True, 0, 0, 60 * _S),
            Row(60 * _S, 3, True, 0, 0, 60 * _S),
            Row(60 * _S, 5, False, 0, None, 60 * _S),
            Row(60 * _S, 0, True, 0, 0, 60 * _S),
            Row(75 * _S, 2, False, 1, 15 * _S, 45 * _S),
            Row(1000 * _S, 4, True, 0, 0, 60 * _S),
        ),
    ),
    "a token bucket waits for a clock that steps back by up to a window": Table(
        Limit("4/minute", algorithm="token_bucket"),
        (
            Row(100 * _S, 4, True, 0, 0, 60 * _S),
            Row(70 * _S, 1, False, 0, 45 * _S, 90 * _S),
            Row(40 * _S, 1, False, 0, 75 * _S, 120 * _S),
            Row(115 * _S, 1, True, 0, 0, 60 * _S),
        ),
    ),
    "a token bucket more than a window ahead keeps its level and starts again from now": Table(
        Limit("4/minute", algorithm="token_bucket"),
        (
            Row(100 * _S, 4, True, 0, 0, 60 * _S),
            Row(40 * _S - 1, 1, False, 0, 15 * _S, 60 * _S),
            Row(55 * _S - 2, 1, False, 0, 1, 45 * _S + 1),
            Row(55 * _S - 1, 1, True, 0, 0, 60 * _S),
        ),
    ),
    # One token per half second, five at once.
    "a token bucket pays its debt at the usual pace": Table(
        Limit("2/s burst 5", algorithm="token_bucket"),
        (
            Row(0, 5, True, 0, 0, 2_500_000),
            Row(0, 3, True, 0, 0, 4 * _S, action=_FORCE),
            Row(0, 0, True, 0, 0, 4 * _S),
            Row(0, 1, False, 0, 2 * _S, 4 * _S),
            Row(2 * _S - 1, 1, False, 0, 1, 2 * _S + 1),
            Row(2 * _S, 1, True, 0, 0, 2_500_000),
            Row(4_500_000, 0, True, 5, 0, 0),
        ),
    ),
    "a token bucket takes back what has not refilled since": Table(
        Limit("4/minute", algorithm="token_bucket"),
        (
            Row(0, 3, True, 1, 0, 45 * _S),
            Row(0, 3, True, 4, 0, 0, action=_BACK, returns=0),
            Row(0, 2, True, 2, 0, 30 * _S),
            Row(15 * _S, 1, True, 2, 0, 30 * _S),
            Row(30 * _S, 2, True, 3, 0, 15 * _S, action=_BACK, returns=2),
            Row(30 * _S, 1, True, 4, 0, 0, action=_BACK, returns=3),
        ),
    ),
    # 999,983 is prime, so the clock ticks every 10 us; a token takes 8,640.15 ticks.
    "a token bucket of 999,983 a day ticks every 10 microseconds": Table(
        Limit("999983/day", algorithm="token_bucket"),
        (
            Row(5, 999_983, True, 0, 0, _DAY - 5),
            Row(7, 1, False, 0, 86_403, _DAY - 7),
            Row(86_409, 1, False, 0, 1, _DAY - 86_409),
            Row(86_410, 1, True, 0, 0, _DAY),
        ),
    ),
    "a token bucket of 10,000 per 30 days gains one every 259.2 seconds": Table(
        Limit("10000/30 days", algorithm="token_bucket"),
        (
            Row(0, 10_000, True, 0, 0, 30 * _DAY),
            Row(0, 1, False, 0, 259_200_000, 30 * _DAY),
            Row(259_200_000, 1, True, 0, 0, 30 * _DAY),
        ),
    ),
    # One leaves every 10 s; three places.
    "a leaking bucket tells each request its turn": Table(
        Limit("6/minute burst 3", algorithm="leaking_bucket"),
        (
            Row(0, 1, True, 2, 0, 10 * _S, 0),
            Row(0, 1, True, 1, 0, 20 * _S, 10 * _S),
            Row(0, 0, True, 1, 0, 20 * _S, 0),
            Row(0, 1, True, 0, 0, 30 * _S, 20 * _S),
            Row(0, 1, False, 0, 10 * _S, 30 * _S, 0),
            Row(10 * _S - 1, 1, False, 0, 1, 20 * _S + 1, 0),
            Row(10 * _S, 1, True, 0, 0, 30 * _S, 20 * _S),
            Row(10 * _S, 4, False, 0, None, 30 * _S, 0),
            Row(25 * _S, 2, False, 1, 5 * _S, 15 * _S, 0),
            Row(25 * _S, 1, True, 0, 0, 25 * _S, 15 * _S),
            Row(20 * _S, 1, False, 0, 10 * _S, 30 * _S, 0),
            Row(25 * _S, 2, True, 0, 0, 45 * _S, 25 * _S, action=_FORCE),
        ),
    ),
    "a leaking bucket takes back its last in line first": Table(
        Limit("6/minute burst 3", algorithm="leaking_bucket"),
        (
            Row(0, 1, True, 2, 0, 10 * _S, 0),
            Row(0, 2, True, 0, 0, 30 * _S, 10 * _S),
            Row(10 * _S, 1, True, 1, 0, 20 * _S, action=_BACK, returns=0),
            Row(15 * _S, 2, True, 3, 0, 0, action=_BACK, returns=1),
        ),
    ),
    "max_delay cuts a leaking bucket to what leaves within it": Table(
        Limit("1/s burst 100", algorithm="leaking_bucket", max_delay=2.5),
        (
            Row(0, 1, True, 2, 0, 1 * _S, 0),
            Row(0, 1, True, 1, 0, 2 * _S, 1 * _S),
            Row(0, 1, True, 0, 0, 3 * _S, 2 * _S),
            Row(0, 1, False, 0, 1 * _S, 3 * _S),
            Row(0, 4, False, 0, None, 3 * _S),
        ),
    ),
    # One leaves every 3 1/3 us.
    "a delay is rounded up to a microsecond": Table(
        Limit.of(3, 10, algorithm="leaking_bucket"),
        (
            Row(0, 1, True, 2, 0, 4, 0),
            Row(0, 1, True, 1, 0, 7, 4),
            Row(0, 1, True, 0, 0, 10, 7),
            Row(4, 1, True, 0, 0, 10, 6),
        ),
    ),
    "a fixed window lets twice its quota through at its edge": Table(
        Limit("5/minute", algorithm="fixed_window"),
        (
            Row(59 * _S, 5, True, 0, 0, 1 * _S),
            Row(60 * _S - 1, 1, False, 0, 1, 1),
            Row(60 * _S, 5, True, 0, 0, 60 * _S),
            Row(60 * _S, 1, False, 0, 60 * _S, 60 * _S),
            Row(60 * _S, 6, False, 0, None, 60 * _S),
            Row(60 * _S, 0, True, 0, 0, 60 * _S),
            Row(59 * _S, 1, False, 0, 61 * _S, 61 * _S),
            Row(120 * _S, 3, True, 2, 0, 60 * _S),
            Row(120 * _S, 3, False, 2, 60 * _S, 60 * _S),
            Row(120 * _S, 2, True, 0, 0, 60 * _S),
            Row(59 * _S, 1, False, 0, 1 * _S, 1 * _S),
            Row(60 * _S, 1, True, 4, 0, 60 * _S),
        ),
    ),
    "the debt of a fixed window ends with it": Table(
        Limit("5/minute", algorithm="fixed_window"),
        (
            Row(10 * _S, 8, True, 0, 0, 50 * _S, action=_FORCE),
            Row(10 * _S, 0, True, 0, 0, 50 * _S),
            Row(10 * _S, 1, False, 0, 50 * _S, 50 * _S),
            Row(60 * _S, 1, True, 4, 0, 60 * _S),
        ),
    ),
    "a fixed window takes back what it still counts": Table(
        Limit("5/minute", algorithm="fixed_window"),
        (
            Row(10 * _S, 3, True, 2, 0, 50 * _S),
            Row(20 * _S, 1, True, 1, 0, 40 * _S),
            Row(30 * _S, 3, True, 4, 0, 30 * _S, action=_BACK, returns=0),
            Row(61 * _S, 2, True, 3, 0, 59 * _S),
            Row(62 * _S, 1, True, 3, 0, 58 * _S, action=_BACK, returns=1),
        ),
    ),
    "a sliding log of 2 a minute remembers each request for a minute": Table(
        Limit("2/minute", algorithm="sliding_log"),
        (
            Row(1 * _S, 1, True, 1, 0, 60 * _S),
            Row(30 * _S, 1, True, 0, 0, 60 * _S),
            Row(50 * _S, 1, False, 0, 11 * _S, 40 * _S),
            Row(61 * _S - 1, 1, False, 0, 1, 29 * _S + 1),
            Row(61 * _S, 1, True, 0, 0, 60 * _S),
            Row(100 * _S, 1, True, 0, 0, 60 * _S),
            Row(100 * _S, 2, False, 0, 60 * _S, 60 * _S),
            Row(100 * _S, 3, False, 0, None, 60 * _S),
            Row(121 * _S, 0, True, 1, 0, 39 * _S),
            Row(121 * _S, 1, True, 0, 0, 60 * _S),
            Row(121 * _S, 1, False, 0, 39 * _S, 60 * _S),
        ),
    ),
    "a sliding log counts two requests of one microsecond twice, whatever the clock does": Table(
        Limit("2/minute", algorithm="sliding_log"),
        (
            Row(300 * _S, 1, True, 1, 0, 60 * _S),
            Row(300 * _S, 1, True, 0, 0, 60 * _S),
            Row(300 * _S, 1, False, 0, 60 * _S, 60 * _S),
            Row(270 * _S, 1, False, 0, 90 * _S, 90 * _S),
            Row(239 * _S, 1, False, 0, 60 * _S, 60 * _S),
            Row(299 * _S - 1, 1, False, 0, 1, 1),
            Row(299 * _S, 1, True, 1, 0, 60 * _S),
        ),
    ),
    "the debt of a sliding log leaves with its entry": Table(
        Limit("2/minute", algorithm="sliding_log"),
        (
            Row(0, 5, True, 0, 0, 60 * _S, action=_FORCE),
            Row(30 * _S, 0, True, 0, 0, 30 * _S),
            Row(30 * _S, 1, False, 0, 30 * _S, 30 * _S),
            Row(60 * _S, 1, True, 1, 0, 60 * _S),
        ),
    ),
    "a sliding log takes back the entry of that instant, while it is kept": Table(
        Limit("3/minute", algorithm="sliding_log"),
        (
            Row(0, 2, True, 1, 0, 60 * _S),
            Row(10 * _S, 1, True, 0, 0, 60 * _S),
            Row(20 * _S, 2, True, 2, 0, 50 * _S, action=_BACK, returns=0),
            Row(20 * _S, 2, True, 0, 0, 60 * _S),
            Row(70 * _S, 1, True, 1, 0, 10 * _S, action=_BACK, returns=1),
        ),
    ),
    "a sliding log of 1,000,000 a day takes 999,999 at once": Table(
        Limit("1000000/day", algorithm="sliding_log"),
        (
            Row(0, 999_999, True, 1, 0, _DAY),
            Row(1, 1, True, 0, 0, _DAY),
            Row(2, 1, False, 0, _DAY - 2, _DAY - 1),
            Row(2, 1_000_000, False, 0, _DAY - 1, _DAY - 1),
            Row(_DAY, 999_999, True, 0, 0, _DAY),
        ),
    ),
    # 30 % into the minute: previous 5 x 0.7 = 3.5, current 3: 6 used, and one more passes.
    "a sliding counter of 7 weighs the previous minute by what is still covered": Table(
        Limit("7/minute"),
        (
            Row(30 * _S, 5, True, 2, 0, 90 * _S),
            Row(70 * _S, 3, True, 0, 0, 110 * _S),
            Row(78 * _S, 0, True, 1, 0, 102 * _S),
            Row(78 * _S, 2, False, 1, 6 * _S + 1, 102 * _S),
            Row(78 * _S, 1, True, 0, 0, 102 * _S),
            Row(78 * _S, 1, False, 0, 6 * _S + 1, 102 * _S),
            Row(84 * _S, 1, False, 0, 1, 96 * _S),
            Row(84 * _S + 1, 1, True, 0, 0, 96 * _S - 1),
            Row(84 * _S + 1, 8, False, 0, None, 96 * _S - 1),
            Row(120 * _S, 0, True, 2, 0, 60 * _S),
            Row(80 * _S, 1, False, 0, 16 * _S + 1, 100 * _S),
            Row(24 * _S, 1, False, 0, 12 * _S + 1, 96 * _S),
            Row(36 * _S + 1, 1, True, 0, 0, 84 * _S - 1),
        ),
    ),
    "a sliding counter that rounds up lets one fewer through": Table(
        Limit("7/minute", rounding="up"),
        (
            Row(30 * _S, 5, True, 2, 0, 90 * _S),
            Row(70 * _S, 3, False, 2, 2 * _S, 50 * _S),
            Row(72 * _S - 1, 3, False, 2, 1, 48 * _S + 1),
            Row(72 * _S, 3, True, 0, 0, 108 * _S),
            Row(78 * _S, 1, False, 0, 6 * _S, 102 * _S),
            Row(84 * _S, 1, True, 0, 0, 96 * _S),
        ),
    ),
    "the debt of a sliding counter fades with its windows": Table(
        Limit("7/minute"),
        (
            Row(0, 14, True, 0, 0, 120 * _S, action=_FORCE),
            Row(0, 0, True, 0, 0, 120 * _S),
            Row(60 * _S, 1, False, 0, 30 * _S + 1, 60 * _S),
            Row(90 * _S, 1, False, 0, 1, 30 * _S),
            Row(90 * _S + 1, 1, True, 0, 0, 90 * _S - 1),
        ),
    ),
    "a sliding counter takes back from the window of the charge": Table(
        Limit("7/minute"),
        (
            Row(30 * _S, 5, True, 2, 0, 90 * _S),
            Row(78 * _S, 3, True, 1, 0, 102 * _S),
            Row(78 * _S, 5, True, 4, 0, 102 * _S, action=_BACK, returns=0),
            Row(78 * _S, 3, True, 7, 0, 0, action=_BACK, returns=1),
            Row(78 * _S, 2, True, 5, 0, 102 * _S),
            Row(180 * _S, 1, True, 6, 0, 120 * _S),
            Row(180 * _S, 2, True, 6, 0, 120 * _S, action=_BACK, returns=4),
        ),
    ),
    "a sliding counter of 999,983 a day ticks every 10 microseconds": Table(
        Limit("999983/day"),
        (
            Row(5, 999_983, True, 0, 0, 2 * _DAY - 5),
            Row(_DAY, 1, False, 0, 10, _DAY),
            Row(_DAY + 9, 1, False, 0, 1, _DAY - 9),
            Row(_DAY + 10, 1, True, 0, 0, 2 * _DAY - 10),
        ),
    ),
}  # fmt: skip
"""Every table by the sentence that it proves, worked out by hand."""


async def check_table(store: Store, clock: ManualClock, table: Table) -> None:
    """Decides a table's rows on a fresh key; AssertionError names the first row that differs."""
    key, decisions, checks = secrets.token_hex(8), list[Decision](), list[Check]()
    for number, row in enumerate(table.rows):
        clock.set_us(START_US + row.at_us)
        if row.action is Action.GIVE_BACK:
            check = checks[row.returns].given_back(decisions[row.returns])
        else:
            check = Check(table.limit, key, row.cost, action=row.action)
        (decision,) = await store.decide([check])
        checks.append(check)
        decisions.append(decision)
        _same(
            f"row {number}, cost {row.cost} at {row.at_us} us: allowed, remaining, retry_after_us, "
            "reset_after_us, delay_us",
            decision[1:6],
            row[2:7],
        )


def _same(what: str, got: object, expected: object) -> None:
    """An assertion that speaks for itself where pytest does not rewrite it."""
    if got != expected:
        raise AssertionError(f"{what}: got {got}; expected {expected}")


async def _with_store(
    make_store: MakeStore, run: Callable[[Store, ManualClock, str], Awaitable[None]]
) -> None:
    clock = ManualClock()
    store = make_store(clock)
    try:
        await run(store, clock, secrets.token_hex(8))
    finally:
        await store.aclose()


class StoreSuite:
    """What every store must do; subclass it beside a fixture ``make_store``.

    ``make_store`` is a function from a `ManualClock` to a fresh `Store` that decides by it. Keys
    are chosen anew in every test, so that a shared server need not be emptied. There is a further
    test for each of `TABLES`.
    """

    async def test_checks_of_one_request_are_charged_all_or_none(
        self, make_store: MakeStore
    ) -> None:
        """A refused request charges nothing, and every decision shows the uncharged state."""
        wide, narrow = Limit("3/minute", algorithm="fixed_window"), Limit("1/minute")

        async def run(store: Store, clock: ManualClock, key: str) -> None:
            request = [Check(wide, key), Check(narrow, key)]
            both = await store.decide(request)
            _same("the first request", [d[1:3] for d in both], [(True, 2), (True, 0)])
            both = await store.decide(request)
            _same("the second request", [d[1:3] for d in both], [(True, 2), (False, 0)])
            _same("its first check's wait", both[0].retry_after_us, 0)
            (left,) = await store.decide([Check(wide, key, 0)])
            _same("remaining after the refusal", left.remaining, 2)

        await _with_store(make_store, run)

    async def test_checks_of_the_same_counter_see_each_other(self, make_store: MakeStore) -> None:
        """Two checks of one counter are two charges, and are refused where both do not fit."""

        async def run(store: Store, clock: ManualClock, key: str) -> None:
            for name in Algorithm:
                limit = Limit("3/minute", algorithm=name)
                two = await store.decide([Check(limit, key, 2), Check(limit, key, 2)])
                _same(f"{name}, 2 and 2 of 3", [d[1:3] for d in two], [(True, 3), (False, 3)])
                _same(f"{name}, 4 at once can never pass", two[1].retry_after_us, None)
                two = await store.decide([Check(limit, key, 1), Check(limit, key, 2)])
                _same(f"{name}, 1 and 2 of 3", [d[1:3] for d in two], [(True, 2), (True, 0)])

        await _with_store(make_store, run)

    async def test_a_shadow_check_has_no_say(self, make_store: MakeStore) -> None:
        """A shadow check is charged where it would pass, and never changes the outcome."""

        async def run(store: Store, clock: ManualClock, key: str) -> None:
            for name in Algorithm:
                strict = Limit("1/minute", algorithm=name)
                loose = Limit("3/minute", algorithm=name)
                request = [Check(strict, key, shadow=True), Check(loose, key)]
                first = await store.decide(request)
                _same(f"{name}, both", [d[1:3] for d in first], [(True, 0), (True, 2)])
                second = await store.decide(request)
                _same(f"{name}, the shadow's no", [d[1:3] for d in second], [(False, 0), (True, 1)])
                other = f"{key}-other"
                refused = await store.decide(
                    [Check(strict, other, shadow=True), Check(loose, other, 4)]
                )
                _same(f"{name}, refused", [d[1:3] for d in refused], [(True, 1), (False, 3)])

        await _with_store(make_store, run)

    async def test_a_refusal_tells_no_delay(self, make_store: MakeStore) -> None:
        """A leaking bucket's wait is told only to a request that passed as a whole."""
        queue = Limit("1/s burst 5", algorithm="leaking_bucket")

        async def run(store: Store, clock: ManualClock, key: str) -> None:
            await store.decide([Check(queue, key, 2)])
            two = await store.decide([Check(queue, key), Check(queue, f"{key}-2", 6)])
            _same("allowed and delay", [(d[1], d.delay_us) for d in two], [(True, 0), (False, 0)])
            three = await store.decide([Check(queue, key), Check(queue, key), Check(queue, key)])
            _same("delays", [d.delay for d in three], [2.0, 3.0, 4.0])

        await _with_store(make_store, run)

    async def test_rules_keys_and_limits_never_share_a_counter(self, make_store: MakeStore) -> None:
        """Another rule, another identity, another number or algorithm is another counter."""

        async def run(store: Store, clock: ManualClock, key: str) -> None:
            limits = [Limit("1/minute", algorithm=name) for name in Algorithm]
            limits += [Limit("1/hour"), Limit("2/minute"), Limit("1/minute", rounding="up")]
            limits += [Limit("1/minute burst 2", algorithm="token_bucket")]
            names = [("", key), ("a", key), ("ab", key), ("a", f"b{key}"), ("", f"{key}\x00")]
            names += [("", key.upper() + "G"), ("", f"{key} "), ("a\x00b", key)]
            for limit in limits:
                for rule, name in names:
                    (decision,) = await store.decide([Check(limit, name, 1, rule)])
                    _same(
                        f"the first use of {limit!r}, rule {rule!r}, key {name!r}",
                        decision.remaining,
                        limit.capacity - 1,
                    )

        await _with_store(make_store, run)

    async def test_reset_forgets_a_counter(self, make_store: MakeStore) -> None:
        """After a reset a counter is as if it had never been used; others are left alone."""

        async def run(store: Store, clock: ManualClock, key: str) -> None:
            for name in Algorithm:
                limit = Limit("2/minute", algorithm=name)
                mine, other = Check(limit, key, 2), Check(limit, f"{key}-other", 2)
                await store.decide([mine, other])
                await store.reset([mine])
                looks = [Check(limit, key, 0), Check(limit, other.key, 0)]
                decisions = await store.decide(looks)
                _same(f"{name}, remaining", [d.remaining for d in decisions], [2, 0])
                _same(f"{name}, reset_after_us", decisions[0].reset_after_us, 0)

        await _with_store(make_store, run)

    async def test_a_decision_carries_its_limit_and_seconds(self, make_store: MakeStore) -> None:
        """A decision names its limit, gives seconds beside microseconds, and is not degraded."""
        limit = Limit("1/1500ms", algorithm="fixed_window")

        async def run(store: Store, clock: ManualClock, key: str) -> None:
            await store.decide([Check(limit, key)])
            (decision,) = await store.decide([Check(limit, key)])
            _same("limit", decision.limit, limit)
            _same("retry_after", decision.retry_after, 1.5)
            _same("reset_after", decision.reset_after, 1.5)
            _same("degraded", decision.degraded, False)
            (never,) = await store.decide([Check(limit, key, 2)])
            _same("never", never.retry_after, None)
            _same("no checks, no decisions", await store.decide([]), ())

        await _with_store(make_store, run)

    async def test_what_comes_at_once_is_decided_one_after_another(
        self, make_store: MakeStore
    ) -> None:
        """A hundred tasks on a quota of ten: exactly ten pass, whatever they wait for."""

        async def run(store: Store, clock: ManualClock, key: str) -> None:
            for name in Algorithm:
                check = Check(Limit("10/minute", algorithm=name), key)
                answers = await asyncio.gather(*(store.decide([check]) for _ in range(100)))
                _same(f"{name}, passed", sum(d.allowed for (d,) in answers), 10)

        await _with_store(make_store, run)

    async def test_a_denial_and_a_cost_of_0_write_nothing(self, make_store: MakeStore) -> None:
        """What was refused, or only looked, leaves no trace in later answers."""

        async def run(store: Store, clock: ManualClock, key: str) -> None:
            for name in Algorithm:
                limit = Limit("5/minute", algorithm=name)
                await store.decide([Check(limit, key, 5), Check(limit, f"{key}-0", 5)])
                for cost in (0, 1, 5, 6):
                    clock.advance(us=1)
                    await store.decide([Check(limit, key, cost)])
                clock.advance(us=-4)
                looks = [Check(limit, key, 0), Check(limit, f"{key}-0", 0)]
                noisy, quiet = await store.decide(looks)
                _same(f"{name}, after denials", noisy[1:6], quiet[1:6])

        await _with_store(make_store, run)

    async def test_retry_after_is_exact_to_the_tick(self, make_store: MakeStore) -> None:
        """One tick before the promised instant is refused, the instant itself is not."""

        async def run(store: Store, clock: ManualClock, key: str) -> None:
            for name in Algorithm:
                for limit in (
                    Limit("7/minute", algorithm=name),
                    Limit("999983/day", algorithm=name),
                ):
                    clock.set_us(START_US)
                    taken = Check(limit, key, limit.quota - limit.quota // 3)
                    await store.decide([taken])
                    clock.advance(us=12_345_678)
                    (denied,) = await store.decide([taken])
                    _same(f"{limit!r}, at first", denied.allowed, False)
                    if denied.retry_after_us is None:
                        raise AssertionError(f"{limit!r}: never, for {taken.cost}")
                    clock.advance(us=denied.retry_after_us - 1)
                    (early,) = await store.decide([taken])
                    _same(f"{limit!r}, too early", early[1:4:2], (False, 1))
                    clock.advance(us=1)
                    (due,) = await store.decide([taken])
                    _same(f"{limit!r}, when due", due.allowed, True)

        await _with_store(make_store, run)


def _table_test(name: str, table: Table) -> Callable[[StoreSuite, MakeStore], Awaitable[None]]:
    async def test(self: StoreSuite, make_store: MakeStore) -> None:
        async def run(store: Store, clock: ManualClock, key: str) -> None:
            await check_table(store, clock, table)

        await _with_store(make_store, run)

    test.__doc__ = f"{name[0].upper()}{name[1:]}."
    return test


for _name, _table in TABLES.items():
    setattr(
        StoreSuite,
        "test_" + "_".join("".join(c if c.isalnum() else " " for c in _name.lower()).split()),
        _table_test(_name, _table),
    )
