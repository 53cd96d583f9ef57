"""A decision table for each algorithm: what is asked at which instant, and all of the answer."""

import secrets
from typing import Final, NamedTuple

from ratelimit.decisions import Action, Check, Decision
from ratelimit.limits import Limit
from ratelimit.stores import Store
from ratelimit.testing.clock import START_US, ManualClock

__all__ = ["TABLES", "Row", "Table", "check_table"]


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
    "a leaking bucket keeps a place that others have queued behind": Table(
        Limit("6/minute burst 4", algorithm="leaking_bucket"),
        (
            Row(0, 1, True, 3, 0, 10 * _S, 0),
            Row(0, 1, True, 2, 0, 20 * _S, 10 * _S),
            Row(5 * _S, 1, True, 1, 0, 25 * _S, 15 * _S),
            Row(5 * _S, 1, True, 1, 0, 25 * _S, action=_BACK, returns=1),
            Row(5 * _S, 1, True, 2, 0, 15 * _S, action=_BACK, returns=2),
            Row(5 * _S, 1, True, 3, 0, 5 * _S, action=_BACK, returns=1),
            Row(5 * _S, 1, True, 2, 0, 15 * _S, 5 * _S),
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
    "the first few pass a leaking bucket at once, and the others wait": Table(
        Limit("6/minute burst 5", algorithm="leaking_bucket", free=3),
        (
            Row(0, 1, True, 4, 0, 10 * _S, 0),
            Row(0, 1, True, 3, 0, 20 * _S, 0),
            Row(0, 1, True, 2, 0, 30 * _S, 0),
            Row(0, 1, True, 1, 0, 40 * _S, 10 * _S),
            Row(0, 1, True, 0, 0, 50 * _S, 20 * _S),
            Row(0, 1, False, 0, 10 * _S, 50 * _S, 0),
            Row(25 * _S, 1, True, 1, 0, 35 * _S, 5 * _S),
            Row(25 * _S + 1, 0, True, 1, 0, 35 * _S - 1, 0),
            Row(60 * _S, 2, True, 3, 0, 20 * _S, 0),
            Row(60 * _S, 1, True, 2, 0, 30 * _S, 0),
            Row(50 * _S, 1, True, 1, 0, 50 * _S, 20 * _S),
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
