"""`ratelimit plan`: a rule file from a log."""

from pathlib import Path

import pytest

from ratelimit import RuleSet
from tests.insight.replay.logs import combined, traffic, written
from tests.support.commands import rows, run

LINES = [combined(each) for each in traffic(3_000, seed=2)]


@pytest.fixture
def log(tmp_path: Path) -> str:
    """A log in the combined format."""
    return written(tmp_path / "access.log", LINES)


def test_a_plan_is_a_rule_file_that_check_accepts(log: str, tmp_path: Path) -> None:
    result = run("plan", log, "--window", "second", "--window", "hour")
    file = tmp_path / "planned.yaml"
    file.write_text(result.stdout)
    assert "no mistake" in run("check", str(file)).stderr
    rules = RuleSet.load(file).rules
    assert rules[-1].name == "everything"
    assert {rule.mode for rule in rules} == {"shadow"}
    assert {limit.window_us for limit in rules[0].limits} == {1_000_000, 3_600_000_000}
    assert result.stdout.count("# In a minute: half up to") == len(rules)


def test_a_plan_as_json_has_the_same_quotas(log: str) -> None:
    found = rows("plan", log, "--share", "5%", "--routes", "1")
    assert found["share"] == 0.05
    assert len(found["rules"]) == 2
    assert (
        found["rules"][-1]["limit"] in run("plan", log, "--share", "0.05", "--routes", "1").stdout
    )


@pytest.mark.parametrize("share", ["100%", "-1", "1/0", "nan", "1", "much", "1e-3000%%"])
def test_a_share_is_a_part_below_one(share: str, log: str) -> None:
    assert "is not a share" in run("plan", log, f"--share={share}", code=2).stderr


@pytest.mark.parametrize("by", ["clients", "route", "path:id", "header:", "account", "global"])
def test_an_identity_that_a_log_cannot_tell_is_refused(by: str, log: str) -> None:
    sentence = "is not an identity that a log can tell"
    assert sentence in " ".join(run("plan", log, "--by", by, code=2).stderr.split())


def test_an_identity_that_is_not_logged_is_told(log: str) -> None:
    result = run("plan", log, "--by", "header:x-key")
    assert "header:x-key is not logged" in result.stderr
    assert "# header:x-key is not logged" in result.stdout
