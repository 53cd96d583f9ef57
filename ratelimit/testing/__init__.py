"""Help for tests: a clock to move by hand, switches for a whole process, the suite for stores.

All that is named here is public; `pytest_plugin` has fixtures.
"""

from ratelimit.testing.clock import START_US, ManualClock, by_hand, disabled, reset
from ratelimit.testing.suite import MakeStore, StoreSuite
from ratelimit.testing.tables import TABLES, Row, Table, check_table

__all__ = [
    "START_US",
    "TABLES",
    "MakeStore",
    "ManualClock",
    "Row",
    "StoreSuite",
    "Table",
    "by_hand",
    "check_table",
    "disabled",
    "reset",
]
