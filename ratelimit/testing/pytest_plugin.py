"""Fixtures for tests of limited applications.

``pytest_plugins = ["ratelimit.testing.pytest_plugin"]`` in a conftest.py has them.
"""

from collections.abc import Iterator

import pytest

from ratelimit import testing
from ratelimit.testing.clock import ManualClock

__all__ = ["ratelimit_clock", "ratelimit_off", "ratelimit_reset"]


@pytest.fixture
def ratelimit_off() -> Iterator[None]:
    """Nothing is limited during the test."""
    with testing.disabled():
        yield


@pytest.fixture
def ratelimit_reset() -> None:
    """The test starts as if nobody had made a request yet (with in-process stores)."""
    testing.reset()


@pytest.fixture
def ratelimit_clock() -> Iterator[ManualClock]:
    """The clock of all in-process stores during the test; it stands still until it is moved."""
    with testing.by_hand() as clock:
        yield clock
