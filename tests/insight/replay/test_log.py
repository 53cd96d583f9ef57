"""The order of a log: lines that come late, and files that overlap."""

import random
from pathlib import Path

import pytest

from ratelimit.insight.replay import log as log_module
from ratelimit.insight.replay.detection import format_of
from ratelimit.insight.replay.log import WINDOW_US, Log
from tests.insight.replay.logs import MSEC, START_US, Request, combined, msec, traffic, written


def at(seconds: float, client: str = "::1") -> Request:
    """A request so many seconds after the start."""
    return Request(START_US + round(seconds * 1_000) * 1_000, client, "GET", "/")


def times(log: Log) -> list[float]:
    """The seconds after the start at which requests are played."""
    return [(entry[0] - START_US) / 1e6 for second in log.seconds() for entry in second]


def test_lines_are_put_in_order_within_two_seconds(tmp_path: Path) -> None:
    given = [0, 1.5, 0.7, 2.6, 0.6, 3.1, 5, 3, 5.1]
    log = Log([written(tmp_path / "log", (msec(at(each)) for each in given))], format_of(MSEC, {}))
    assert times(log) == sorted(given)
    assert (log.out_of_order, log.late) == (3, 0)


def test_a_later_line_is_played_at_the_latest_time_that_is_open_and_counted(tmp_path: Path) -> None:
    given = [10, 20, 17.999, 18, 5, 30]
    log = Log([written(tmp_path / "log", (msec(at(each)) for each in given))], format_of(MSEC, {}))
    assert times(log) == [10, 18, 18, 18, 20, 30]
    assert (log.out_of_order, log.late) == (3, 2)


def test_the_count_of_late_lines_is_exact_whatever_their_order(tmp_path: Path) -> None:
    chance = random.Random(4)
    given = [at(chance.uniform(0, 60)) for _ in range(3_000)]
    log = Log([written(tmp_path / "log", map(msec, given))], format_of(MSEC, {}))
    played = times(log)
    assert len(played) == 3_000
    assert played == sorted(played)
    newest = late = 0
    for request in given:
        late += request.at_us < newest - WINDOW_US
        newest = max(newest, request.at_us)
    assert log.late == late > 1_000


def test_files_are_read_in_the_order_of_their_times_whatever_their_names(tmp_path: Path) -> None:
    requests = list(traffic(6_000, seed=8))
    names = [
        written(tmp_path / "a", map(msec, requests[4_000:])),
        written(tmp_path / "b", map(msec, requests[:2_000])),
        written(tmp_path / "c", map(msec, requests[2_000:4_000])),
    ]
    log = Log(names, format_of(MSEC, {}))
    assert times(log) == [(each.at_us - START_US) / 1e6 for each in requests]
    assert log.out_of_order == 0


def test_files_of_several_servers_are_read_side_by_side(tmp_path: Path) -> None:
    requests = list(traffic(30_000, seed=9))
    chance = random.Random(1)
    of_each: list[list[Request]] = [[], [], []]
    for request in requests:
        chance.choice(of_each).append(request)
    names = [written(tmp_path / str(n), map(msec, some)) for n, some in enumerate(of_each)]
    log = Log(names, format_of(MSEC, {}))
    assert times(log) == [(each.at_us - START_US) / 1e6 for each in requests]
    assert log.late == 0


def test_files_of_several_formats_are_one_log(tmp_path: Path) -> None:
    requests = list(traffic(1_000, seed=2))
    names = [
        written(tmp_path / "combined", map(combined, requests[:500])),
        written(tmp_path / "json", (
            f'{{"time": {each.at_us}, "client": "{each.client}", "method": "GET", "path": "/"}}'
            for each in requests[500:]
        )),
    ]  # fmt: skip
    log = Log(names)
    assert len(times(log)) == 1_000
    assert log.formats == ["combined", "json"]


def test_a_second_with_more_requests_than_are_held_is_played_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_module, "MOST_IN_SECOND", 100)
    given = [at(0)] * 10 + [at(1)] * 250 + [at(2)]
    log = Log([written(tmp_path / "log", map(msec, given))], format_of(MSEC, {}))
    assert [len(second) for second in log.seconds()] == [10, 100, 100, 50, 1]
    assert log.crowded == 2


def test_a_log_of_whole_seconds_is_told_by_its_first_lines(tmp_path: Path) -> None:
    requests = list(traffic(300, seed=1))
    assert Log([written(tmp_path / "a", map(combined, requests))]).whole_seconds
    assert not Log(
        [written(tmp_path / "b", map(msec, requests))], format_of(MSEC, {})
    ).whole_seconds


def test_what_is_held_in_memory_is_bounded_where_all_lines_are_of_one_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_module, "MOST_BLOCKS", 2)
    long = [f"{msec(at(n // 30_000))}" for n in range(60_000)]
    log = Log([written(tmp_path / "log", long)], format_of(MSEC, {}))
    parts = [len(second) for second in log.seconds()]
    assert sum(parts) == 60_000
    assert max(parts) < 30_000
    assert log.crowded > 0
