"""`ratelimit convert`: configurations of other limiters, and what rules do not say of them."""

from pathlib import Path

import pytest

from ratelimit import RuleSet
from tests.support.commands import run

ENVOY = """\
domain: edge
descriptors:
  - key: remote_address
    rate_limit: {unit: minute, requests_per_unit: 10}
"""
NGINX = """\
limit_req_zone $binary_remote_addr zone=one:10m rate=10r/s;
limit_req_status 429;
limit_req zone=one burst=20 nodelay;
"""


@pytest.mark.parametrize(
    ("text", "limit"), [(ENVOY, "10/minute"), (NGINX, "10/second")], ids=["envoy", "nginx"]
)
def test_a_file_of_either_is_recognised_and_its_rules_can_be_loaded(
    tmp_path: Path, text: str, limit: str
) -> None:
    file = tmp_path / "theirs"
    file.write_text(text)
    found = run("convert", str(file))
    (rule,) = RuleSet.loads(found.stdout).rules
    assert str(rule.limits[0]).startswith(limit)
    assert "1 rules; 0 things that they do not say" in found.stderr


def test_what_rules_do_not_say_is_told_and_is_the_exit_code(tmp_path: Path) -> None:
    file = tmp_path / "theirs.yaml"
    file.write_text(ENVOY + "    detailed_metric: true\n")
    found = run("convert", str(file), code=1)
    assert f"{file}:5: 'detailed_metric' says which metrics there are" in found.stderr
    assert RuleSet.loads(found.stdout).rules


def test_whose_file_it_is_may_be_said(tmp_path: Path) -> None:
    file = tmp_path / "theirs"
    file.write_text(NGINX)
    found = run("convert", str(file), "--from", "envoy", code=1)
    assert RuleSet.loads(found.stdout).rules == ()


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    found = run("convert", str(tmp_path / "none"), code=2)
    assert "cannot be read" in found.stderr
