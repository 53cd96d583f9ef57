"""The published suite, run against the stores of this package."""

from itertools import pairwise

import pytest

from ratelimit.testing import (
    TABLES,
    MakeStore,
    ManualClock,
    Row,
    StoreSuite,
    Table,
    check_table,
)


class TestStore(StoreSuite):
    """Every store passes the published suite."""


async def test_a_table_with_a_wrong_number_fails(make_store: MakeStore) -> None:
    """The suite can fail: each number of each table, off by one, is noticed."""
    for table in TABLES.values():
        last = table.rows[-1]
        for changed in (
            last._replace(allowed=not last.allowed),
            last._replace(remaining=last.remaining + 1),
            last._replace(retry_us=(last.retry_us or 0) + 1),
            last._replace(reset_us=last.reset_us + 1),
            last._replace(delay_us=last.delay_us + 1),
        ):
            clock = ManualClock()
            store = make_store(clock)
            wrong = Table(table.limit, (*table.rows[:-1], changed))
            with pytest.raises(AssertionError, match=f"row {len(table.rows) - 1}"):
                await check_table(store, clock, wrong)
            await store.aclose()


def test_every_algorithm_has_tables_and_every_action_a_row() -> None:
    """No algorithm goes without its tables for debt, give-back and steps of the clock."""
    rows: list[tuple[str, Row]] = [
        (table.limit.algorithm, row) for table in TABLES.values() for row in table.rows
    ]
    for algorithm in {name for name, _ in rows}:
        mine = [row for name, row in rows if name == algorithm]
        assert {row.action.name for row in mine} >= {"CHARGE", "FORCE", "GIVE_BACK"}
        assert any(not row.allowed and row.retry_us is None for row in mine)
        assert any(row.cost == 0 for row in mine)
        assert any(a.at_us > b.at_us for a, b in pairwise(mine))
    assert len({name for name, _ in rows}) == 5
