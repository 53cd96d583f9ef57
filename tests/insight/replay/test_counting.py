"""Counts in bounded memory."""

import random

import pytest

from ratelimit.insight.replay import counting, use
from ratelimit.insight.replay.counting import Distinct, LockedOut, Series
from ratelimit.insight.replay.use import Histogram, Use, cell


def test_different_names_are_counted_exactly_and_then_within_a_few_percent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(counting, "SAMPLE", 5_000)
    distinct = Distinct()
    for number in range(5_000):
        distinct.add(str(number))
        distinct.add(str(number))
    assert len(distinct) == 5_000
    for number in range(100_000):
        distinct.add(str(number))
    assert abs(len(distinct) - 100_000) < 5_000


def test_a_client_is_locked_out_until_the_request_would_pass_and_not_twice() -> None:
    locked = LockedOut()
    assert locked.add("a", 0, 10)
    assert not locked.add("a", 4, 6)  # the same ten microseconds
    assert not locked.add("a", 8, 7)
    locked.add("a", 100, 1)
    locked.add("b", 0, None)
    assert locked.most(5) == [("a", 4, 16, 0, 100), ("b", 1, 0, 0, 0)]


def test_those_refused_most_stay_among_the_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "MOST_LOCKED", 100)
    locked = LockedOut()
    for number in range(5_000):
        locked.add(f"client {number}", number, 1)
        locked.add("the worst", number, 1)
    assert len(locked) <= 100
    assert locked.most(1)[0][:2] == ("the worst", 5_000)
    assert locked.missed == 1


def test_a_series_grows_coarser_and_loses_nothing() -> None:
    series = Series()
    for second in range(0, 100_000, 7):
        series.add(second, 2, 1)
    points = list(series)
    assert len(points) <= counting.POINTS
    assert sum(passed for _, passed, _ in points) == 2 * len(range(0, 100_000, 7))
    assert sum(refused for _, _, refused in points) == len(range(0, 100_000, 7))
    assert series.step == 512
    assert all(second % series.step == 0 for second, _, _ in points)


def test_a_series_goes_on_at_an_earlier_time() -> None:
    series = Series()
    series.add(100_000, 1, 0)
    series.add(0, 1, 0)
    assert sum(passed for _, passed, _ in series) == 2


@pytest.mark.parametrize("number", [0, 1, 127, 128, 129, 255, 256, 1_000, 65_535, 10**9, 10**15])
def test_a_cell_spans_less_than_one_percent_and_begins_above_the_one_before(number: int) -> None:
    top = cell(number)
    assert number <= top <= number * 1.01
    assert cell(top) == top
    assert cell(top + 1) > top


def test_the_smallest_quota_leaves_at_most_so_many_above() -> None:
    chance = random.Random(3)
    numbers = [int(chance.paretovariate(1) * 10) for _ in range(2_000)]
    histogram = Histogram()
    for number in numbers:
        histogram.add(number)
    for exceeding in (0, 1, 20, 500, 1_999):
        quota = histogram.smallest(exceeding)
        assert sum(number > quota for number in numbers) <= exceeding
        lower = quota - max(1, quota // 64)
        assert sum(number > lower for number in numbers) > exceeding
    assert abs(histogram.quantile(0.5) - sorted(numbers)[1_000]) <= 1


def test_identities_that_come_no_more_are_let_go_and_still_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(use, "MOST_ALIVE", 100)
    found = Use(60_000_000)
    for minute in range(50):
        for number in range(20):
            for _ in range(1 + number % 3):
                found.add(f"{minute} {number}", minute * 60_000_000)
    assert found.let_go > 800
    histogram = found.histogram()
    assert histogram.count == 1_000
    assert histogram.above(2) == 300
    assert len(list(found.above(2))) > 200
