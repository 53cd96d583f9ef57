"""Quotas from a log: abusers are found, and no more are refused than was said."""

import os
import random
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from ratelimit import RuleSet
from ratelimit.insight.replay.detection import format_of
from ratelimit.insight.replay.log import Log
from ratelimit.insight.replay.planfile import rule_file
from ratelimit.insight.replay.planning import Plan
from ratelimit.insight.replay.report import report_of
from ratelimit.insight.replay.session import Replay
from tests.insight.replay.logs import MSEC, START_US, Request, combined, msec, written

ALL = bool(os.environ.get("RATELIMIT_TEST_ALL"))
SEEDS = range(20 if ALL else 3)
CLIENTS = 1_000 if ALL else 300


def plan_of(log: Log, **options: Any) -> dict[str, Any]:
    """The report of a plan."""
    given = {"share": Fraction(1, 100), "windows": ["minute"], "by": "client", "routes": 20}
    plan = Plan(log, **{**given, **options})
    plan.run()
    return plan.report()


def with_abusers(seed: int) -> tuple[list[Request], set[str]]:
    """Half an hour of clients with bursts of their own, of whom one in a hundred floods."""
    chance = random.Random(seed)
    requests: list[Request] = []
    abusers = {f"10.9.0.{number}" for number in range(CLIENTS // 100)}
    for number in range(CLIENTS - len(abusers)):
        client = f"10.{number >> 8}.0.{number & 255}"
        begin = chance.uniform(0, 1_500)
        for _ in range(chance.randrange(1, 6)):
            begin += chance.expovariate(1 / 100)
            page = [begin + chance.uniform(0, 3) for _ in range(chance.randrange(1, 12))]
            requests += [_at(each, client, chance) for each in page]
    for client in abusers:
        begin = chance.uniform(0, 1_500)
        requests += [_at(begin + n / 10, client, chance) for n in range(2_000)]
    requests.sort()
    return requests, abusers


def _at(seconds: float, client: str, chance: random.Random) -> Request:
    target = chance.choice(["/", f"/items/{chance.randrange(500)}", "/search?q=1"])
    return Request(START_US + round(seconds * 1_000) * 1_000, client, "GET", target)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_plan_finds_the_abusers_and_refuses_at_most_its_share(seed: int, tmp_path: Path) -> None:
    requests, abusers = with_abusers(seed)
    name = written(tmp_path / "log", map(msec, requests))
    report = plan_of(Log([name], format_of(MSEC, {})))
    for rule in report["rules"]:
        # Of a route that fewer clients ask for, so many are more than the share.
        found = {each["client"] for each in rule["most"]}
        assert found == abusers if rule["path"] is None else found <= abusers
    rules = rule_file(report).replace("mode: shadow", "mode: enforce")
    replay = Replay(RuleSet.loads(rules), Log([name], format_of(MSEC, {})), readings=["logged"])
    replay.run()
    for row in report_of(replay)["rules"]:
        assert row["clients refused"] <= row["clients"] * 0.01
    worst = {row["client"] for row in report_of(replay)["worst"]}
    assert worst == abusers


@pytest.mark.parametrize("share", ["1/1000", "1/100", "1/10", "1/2"])
@pytest.mark.parametrize("windows", [["second"], ["second", "minute", "hour"]])
def test_a_plan_refuses_at_most_any_share_in_any_windows(
    share: str, windows: list[str], tmp_path: Path
) -> None:
    requests, _ = with_abusers(99)
    name = written(tmp_path / "log", map(combined, requests))
    report = plan_of(Log([name]), share=Fraction(share), windows=windows)
    rules = rule_file(report).replace("mode: shadow", "mode: enforce")
    replay = Replay(RuleSet.loads(rules), Log([name]), readings=["logged"])
    replay.run()
    found = [row for row in report_of(replay)["rules"] if row["order"] == "worst"]
    assert len(found) == len(report["rules"]) == 4
    for row in found:
        assert row["clients refused"] <= row["clients"] * Fraction(share)


def test_a_quota_is_the_smallest_that_holds_the_share(tmp_path: Path) -> None:
    requests, _ = with_abusers(5)
    name = written(tmp_path / "log", map(msec, requests))
    report = plan_of(Log([name], format_of(MSEC, {})), share=Fraction(1, 20))
    everything = report["rules"][-1]
    quota = everything["use"]["minute"]["quota"]
    assert quota < 100  # where cells hold one number each
    for less, exceeds in ((0, False), (1, True)):
        rules = f"version: 1\nrules:\n  - {{name: one, limit: {quota - less}/minute}}\n"
        replay = Replay(RuleSet.loads(rules), Log([name], format_of(MSEC, {})), readings=["logged"])
        replay.run()
        row = report_of(replay)["rules"][0]
        assert (row["clients refused"] > row["clients"] / 20) is exceeds


def test_the_rule_file_is_in_shadow_with_its_reasons(tmp_path: Path) -> None:
    requests, abusers = with_abusers(1)
    text = rule_file(plan_of(Log([written(tmp_path / "log", map(msec, requests))],
                                 format_of(MSEC, {}))))  # fmt: skip
    rules = RuleSet.loads(text)
    assert {rule.path for rule in rules.rules} == {"/items/{id:int}", "/", "/search", None}
    assert {rule.mode for rule in rules.rules} == {"shadow"}
    assert {rule.methods for rule in rules.rules} == {frozenset({"GET", "HEAD"}), None}
    assert f"of {CLIENTS} clients" in text
    assert all(client in text for client in abusers)
    begin = datetime.fromtimestamp(requests[0].at_us // 1_000_000, UTC)
    assert f"{len(requests)} requests, {begin:%Y-%m-%dT%H:%M:%SZ} to " in text


def test_a_hostile_log_writes_nothing_into_the_rule_file_but_comments(tmp_path: Path) -> None:
    hostile = [
        '/a"\n  - name: b', "/${HOME}", "/{x}", "/a b", "/a#b", "/a%0Ab", "/%7Bx%7D", "/..", "/é",
        "/\x1b[31m", "/a*", "/" + "x" * 500, "/a/" * 300, "*", "h.example:443", "/a\u2028b",
    ]  # fmt: skip
    requests = [
        Request(START_US + n * 1_000, client, "GET", target)
        for n, (target, client) in enumerate(
            (target, client) for target in hostile for client in ["::1", "evil\x1b[2J", "<b>"] * 10
        )
    ]
    lines = [msec(each).replace("\n", "\\x0a").replace(" b", "\\x20b") for each in requests]
    log = Log([written(tmp_path / "log", lines)], format_of(MSEC, {}))
    text = rule_file(plan_of(log))
    rules = RuleSet.loads(text)
    assert rules.rules[-1].name == "everything"
    assert "\x1b" not in text
    assert text.isprintable() or all(line.isprintable() for line in text.split("\n"))


def test_without_a_request_a_plan_has_no_rules(tmp_path: Path) -> None:
    report = plan_of(Log([written(tmp_path / "log", ["nothing"])]))
    assert RuleSet.loads(rule_file(report)).rules == ()


def test_scanners_do_not_make_routes(tmp_path: Path) -> None:
    chance = random.Random(1)
    requests = [
        Request(START_US + n * 1_000, "::1", "GET", f"/{chance.randrange(10**9):x}.php", 404)
        for n in range(5_000)
    ]
    requests += [Request(START_US + n * 1_000, "::1", "POST", "/login", 200) for n in range(500)]
    requests += [
        Request(START_US + n * 1_000, "::1", "GET", f"/users/name{n % 200}/posts", 200)
        for n in range(500)
    ]
    log = Log([written(tmp_path / "log", map(msec, requests))], format_of(MSEC, {}))
    report = plan_of(log)
    assert [(rule["method"], rule["path"]) for rule in report["rules"]] == [
        ("GET", "/users/{name}/posts"), ("POST", "/login"), (None, None),
    ]  # fmt: skip
    assert report["rules"][-1]["requests"] == 6_000
