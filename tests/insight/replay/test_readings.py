"""What refused clients do, the orders of a second, and what a replay reports of them."""

import json
from pathlib import Path
from typing import Any

import pytest

from ratelimit import Algorithm, RuleSet
from ratelimit.insight.replay.detection import format_of
from ratelimit.insight.replay.log import Log
from ratelimit.insight.replay.report import report_of
from ratelimit.insight.replay.session import Replay
from tests.insight.replay.logs import MSEC, START_US, Request, combined, msec, traffic, written

ONE = "version: 1\nrules:\n  - {name: one, limit: 1/minute, algorithm: sliding_log}\n"


def at(seconds: float, client: str = "192.0.2.7", status: int = 200, target: str = "/") -> Request:
    """A request so many seconds after the start."""
    return Request(START_US + round(seconds * 1_000) * 1_000, client, "GET", target, status)


def report(rules: str, requests: list[Request], path: Path, **options: Any) -> dict[str, Any]:
    """The report of a replay of requests whose times are in milliseconds."""
    log = Log([written(path / "log", map(msec, requests))], format_of(MSEC, {}))
    replay = Replay(RuleSet.loads(rules), log, **options)
    replay.run()
    found = report_of(replay)
    assert json.loads(json.dumps(found)) == found
    return found


def by_reading(found: dict[str, Any]) -> dict[str, tuple[int, int, int]]:
    """Requests, refused and came again, by the reading."""
    return {
        each["reading"]: (each["requests"], each["refused"], each["came again"])
        for each in found["readings"]
    }


def test_a_client_that_is_refused_comes_again_exactly_at_retry_after(tmp_path: Path) -> None:
    # Refused at 10 s, it comes again at 60 s and passes; so the one at 70 s is refused as well.
    found = report(ONE, [at(0), at(10), at(70)], tmp_path)
    assert by_reading(found) == {
        "never": (3, 1, 0), "retry-after": (3, 2, 2), "logged": (3, 1, 0),
    }  # fmt: skip
    rows = {row["reading"]: row for row in found["rules"]}
    assert rows["retry-after"]["passed"] == 3  # both came again in their time
    assert rows["logged"]["passed"] == 2


def test_what_the_log_shows_to_be_a_retry_is_played_only_as_logged(tmp_path: Path) -> None:
    requests = [at(0), at(10, status=429), at(11, status=429), at(12, target="/b"), at(61)]
    found = report(ONE, requests, tmp_path)
    assert by_reading(found)["logged"] == (5, 3, 0)
    assert by_reading(found)["never"] == (3, 2, 0)


def test_a_request_that_can_never_pass_does_not_come_again(tmp_path: Path) -> None:
    rules = (
        "version: 1\nrules:\n"
        "  - {name: one, limit: 5/minute, burst: 9, cost: 9, algorithm: token_bucket}\n"
    )
    log = Log([written(tmp_path / "log", map(msec, [at(0.5), at(1)]))], format_of(MSEC, {}))
    by_window = RuleSet.loads(rules).counted_by(Algorithm.FIXED_WINDOW)
    replay = Replay(by_window, log, readings=["retry-after"])
    replay.run()
    found = report_of(replay)
    assert found["readings"][0]["came again"] == 0
    assert found["readings"][0]["gave up"] == 2
    assert found["rules"][0]["never"] == 2


def test_a_client_gives_up_after_ten_more_tries(tmp_path: Path) -> None:
    rules = "version: 1\nrules:\n  - {name: one, by: global, limit: 1/hour}\n"
    crowd = [at(n / 1_000, client=f"10.0.0.{n}") for n in range(30)]
    found = report(rules, crowd, tmp_path, readings=["retry-after"])
    row = found["readings"][0]
    assert row["refused"] == 29
    assert row["gave up"] > 0
    assert row["came again"] <= 290


def test_whole_seconds_are_played_in_the_best_and_the_worst_order(tmp_path: Path) -> None:
    rules = (
        "version: 1\nrules:\n  - {name: few, limit: 10/second, burst: 1, algorithm: token_bucket}\n"
    )
    requests = [at(second) for second in range(5) for _ in range(10)]
    log = Log([written(tmp_path / "log", map(combined, requests))])
    replay = Replay(RuleSet.loads(rules), log, readings=["logged"])
    replay.run()
    found = {each["order"]: each["refused"] for each in report_of(replay)["readings"]}
    assert found == {"best": 0, "worst": 45}
    assert any("whole seconds" in sentence for sentence in replay.unknown())


def test_the_dearest_come_first_at_worst_and_the_cheapest_at_best(tmp_path: Path) -> None:
    rules = (
        "version: 1\nrules:\n"
        "  - {name: dear, match: {path: /dear}, limit: 4/minute, cost: 4}\n"
        "  - {name: all, limit: 5/minute}\n"
        "  - {name: more, match: {path: /dear}, limit: 100/minute, cost: 9}\n"
    )
    requests = [at(0, target="/dear"), *[at(0)] * 5]
    log = Log([written(tmp_path / "log", map(combined, requests))])
    replay = Replay(RuleSet.loads(rules), log, readings=["logged"])
    replay.run()
    passed = {(row["rule"], row["order"]): row["passed"] for row in report_of(replay)["rules"]}
    assert passed["dear", "best"] == 0
    assert passed["dear", "worst"] == 1


def test_the_worst_clients_are_told_with_the_time_that_they_are_locked_out(tmp_path: Path) -> None:
    requests = [at(0), at(10), at(20), at(200), at(5, client="192.0.2.8")]
    requests.sort()
    worst = report(ONE, requests, tmp_path)["worst"]
    assert [(row["client"], row["refused"], row["locked out"]) for row in worst] == [
        ("192.0.2.7", 2, 50.0)
    ]


def test_an_identity_that_may_be_a_secret_is_shown_by_its_digest(tmp_path: Path) -> None:
    rules = 'version: 1\nrules:\n  - {name: one, by: "header:x-key", limit: 1/minute}\n'
    lines = ['::1 1700352000.0 "GET / HTTP/1.1" "sk_live_1"'] * 3
    log = Log(
        [written(tmp_path / "log", lines)],
        format_of('$remote_addr $msec "$request" "$http_x_key"', {}),
    )
    replay = Replay(RuleSet.loads(rules), log)
    replay.run()
    text = json.dumps(report_of(replay))
    assert "sk_live_1" not in text
    assert report_of(replay)["worst"][0]["client"].startswith("#")


def test_the_five_algorithms_are_played_beside_each_other(tmp_path: Path) -> None:
    rules = (
        "version: 1\nrules:\n  - {name: one, limit: 5/minute, algorithm: token_bucket, burst: 9}\n"
    )
    requests = list(traffic(2_000, seed=6))
    rows = report(rules, requests, tmp_path, readings=["logged"], compare=True)["algorithms"]
    assert [row["algorithm"] for row in rows] == [
        "token_bucket", "leaking_bucket", "fixed_window", "sliding_log", "sliding_counter",
    ]  # fmt: skip
    assert all(row["passed"] + row["refused"] == 2_000 for row in rows)
    assert len({row["passed"] for row in rows}) > 2
    alone = report(rules, requests, tmp_path, readings=["logged"])["rules"]
    assert alone[0]["passed"] == rows[0]["passed"]


def test_two_files_are_compared_request_by_request(tmp_path: Path) -> None:
    old = RuleSet.loads("version: 1\nrules:\n  - {name: one, limit: 2/minute}\n")
    new = (
        "version: 1\nrules:\n"
        '  - {name: one, limit: 1/minute, overrides: {"192.0.2.8": unlimited}}\n'
    )
    requests = [at(n / 10, client=f"192.0.2.{7 + n % 2}") for n in range(8)]
    found = report(new, requests, tmp_path, against=old)["against"]
    assert found == [
        {
            "order": "logged", "newly refused": 1, "newly passed": 2, "refused by both": 2,
            "clients newly refused": [{"client": "192.0.2.7", "requests": 1}],
            "clients newly passed": [{"client": "192.0.2.8", "requests": 2}],
        }
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("rule", "sentence"),
    [
        ("by: account", "counts by account, which only the application knows"),
        ('by: "header:x-key"', "counts by header:x-key, which is not logged"),
        ("by: user", "counts by user, which is not logged"),
        ("by: route", "counts by route, and routes are not known here"),
        ("cost: tokens", "costs what tokens says"),
        ('match: {host: "a.example"}', "is for some hosts, and none is logged"),
    ],
)
def test_what_a_log_cannot_know_is_said(rule: str, sentence: str, tmp_path: Path) -> None:
    rules = f"version: 1\nrules:\n  - name: one\n    limit: 1/minute\n    {rule}\n"
    found = report(rules, [at(0), at(1)], tmp_path)
    assert [each for each in found["cannot know"] if sentence in each]
    assert found["log"]["requests"] == 2
    plain = report(ONE, [at(0.5)], tmp_path)
    assert plain["cannot know"] == []


def test_tiers_and_proxies_that_a_log_does_not_tell_are_said(tmp_path: Path) -> None:
    rules = (
        "version: 1\ntrusted_proxies: [10.0.0.1]\nrules:\n"
        "  - {name: one, limits: {free: 1/minute, paid: 2/minute}, tier: plan}\n"
    )
    said = report(rules, [at(0), at(1)], tmp_path)["cannot know"]
    assert any("everybody was played as of the tier 'free'" in each for each in said)
    assert any("x-forwarded-for is not logged" in each for each in said)


def test_an_interrupted_replay_reports_what_it_has(tmp_path: Path) -> None:
    log = Log([written(tmp_path / "log", (msec(at(n)) for n in range(100)))], format_of(MSEC, {}))
    replay = Replay(RuleSet.loads(ONE), log)
    asked = iter(range(1_000))
    replay.run(lambda: next(asked) >= 10)
    found = report_of(replay)
    assert found["interrupted"] is True
    assert found["readings"][0]["requests"] == 10


def test_a_shadow_rule_would_have_refused_and_refuses_nobody(tmp_path: Path) -> None:
    rules = ONE.replace("algorithm: sliding_log", "mode: shadow")
    found = report(rules, [at(0), at(1)], tmp_path, readings=["logged"])
    assert found["readings"][0]["refused"] == 0
    assert found["rules"][0]["refused"] == 1
