"""Fixtures for tests of limited applications: ``pytest_plugins = ["ratelimit.pytest_plugin"]``."""

from collections.abc import Iterator

import pytest

from ratelimit import testing
from ratelimit.testing import ManualClock

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
