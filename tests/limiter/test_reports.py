"""What is told of faults: each kind once."""

import pytest

from ratelimit import Rule, RuleSet, StoreUnavailable
from ratelimit.limiter.reports import Reports


def test_a_fault_is_told_once_per_kind_however_they_alternate(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A thousand failures of three kinds are three lines; when it is back, they are told anew."""
    reports = Reports(RuleSet((Rule("r", "5/second"),)))
    for number in range(1000):
        kind = ("late", "refused", "loading")[number % 3]
        reports.fault(StoreUnavailable("x", kind=kind))
    for _ in range(100):
        reports.fault(StoreUnavailable("y", "foreign-key", "key"))
        reports.fault(StoreUnavailable("z", "open", "own"))
    said = [it.getMessage().partition(":")[0] for it in caplog.records]
    assert said == ["store-failed"] * 3 + ["check-failed"]
    reports.breaker_changed("closed")
    reports.fault(StoreUnavailable("x", kind="late"))
    assert len(caplog.records) == 6
