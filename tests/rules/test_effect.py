"""Parts that can have no effect: a file that holds one is valid, and advised about it."""

from pathlib import Path

import pytest

from ratelimit.rules.advice import advise
from ratelimit.rules.effect import idle
from ratelimit.rules.rule import Rule
from ratelimit.rules.ruleset import RuleSet

GOOD = Path(__file__).parent / "file" / "good"

FOUND = {
    "allowed_and_denied": ["allowed-and-denied"] * 3,
    "denylist_pointless": ["pointless-denylist"],
    "enforce_share_in_shadow": ["pointless-enforce-share"],
    "forwarded_header_untrusted": ["pointless-forwarded-header"],
    "limit_unreachable": ["unreachable-limit"] * 8,
    "limit_unreachable_for_another_rule": ["unreachable-limit"] * 2,
    "on_missing_pointless": ["pointless-on-missing"] * 2,
    "override_pointless": ["pointless-override"] * 2,
    "rules_empty": ["no-rules"],
    "rules_missing": ["no-rules"],
    "rules_null": ["no-rules"],
}


def codes(text: str) -> list[str]:
    return [each.code for each in idle(RuleSet.loads(text))]


@pytest.mark.parametrize("name", FOUND)
def test_a_file_with_a_part_without_effect_is_valid_and_advised_about_it(name: str) -> None:
    rules = RuleSet.load(GOOD / f"{name}.yaml")
    assert [each.code for each in idle(rules)] == FOUND[name]
    assert {each.code for each in advise(rules)} >= set(FOUND[name])


@pytest.mark.parametrize(
    ("rules", "found"),
    [
        ([("a", "5/hour"), ("b", "2/hour")], ["a"]),
        ([("a", "100/minute; 10000/hour")], ["a"]),
        ([(f"r{number}", f"{number}0/minute") for number in range(1, 6)], ["r2", "r3", "r4", "r5"]),
    ],
)
def test_the_tighter_of_two_limits_binds_and_the_other_is_only_advised_about(
    rules: list[tuple[str, str]], found: list[str]
) -> None:
    rule_set = RuleSet(tuple(Rule(name, limit) for name, limit in rules))
    assert [each.rule for each in idle(rule_set)] == found


def test_lists_and_a_store_without_rules_are_a_valid_file() -> None:
    rules = RuleSet.loads("version: 1\nallowlist: [192.0.2.1]\ntrusted_proxies: [10.0.0.1]\n")
    assert rules == RuleSet.loads(
        "version: 1\nallowlist: [192.0.2.1]\ntrusted_proxies: [10.0.0.1]\nrules: []\n"
    )
    assert rules.rules == ()


HARMLESS = {
    "a limit that can be reached": "limit: 10/minute; 609/hour",
    "a burst that is smaller": "limit: 9/minute burst 5; 99/hour burst 20, algorithm: token_bucket",
    "a larger burst": "limit: 9/m burst 20; 99/m burst 5, algorithm: token_bucket",
    "windows that do not begin together": "limit: 10/minute; 21/90s, algorithm: fixed_window",
    "algorithms with a coarser clock": "limit: 1000000000/day; 99999999999/week",
    "the default written out": "limit: 1/second, mode: enforce, by: client",
    "an override like the rule": "limit: 1/second, overrides: {192.0.2.1: 1/second}",
    "one family of addresses": 'limit: 1/second, allowlist: ["::/0"]',
    "a denylist beyond the file's": "limit: 1/second, denylist: [203.0.113.0/24, 192.0.2.0/24]",
    "a part of an allowed network": "limit: 1/second, allowlist: [203.0.0.0/16]",
}


@pytest.mark.parametrize("rule", HARMLESS.values(), ids=HARMLESS)
def test_of_a_part_that_makes_a_difference_nothing_is_said(rule: str) -> None:
    denied = "203.0.113.0/24, 203.0.0.0/24"
    text = f"version: 1\ndenylist: [{denied}]\nrules: [{{name: a, {rule}}}]\n"
    assert codes(text) == []


WIDE = "name: wide, limit: 10/minute"
BESIDE = {
    "another identity": (WIDE, "limit: 10/minute, by: user"),
    "requests that the other does not match": (
        f"{WIDE}, match: {{path: /a}}",
        "limit: 10/minute, match: {path: /b}",
    ),
    "methods that the other does not match": (
        f"{WIDE}, match: {{methods: [GET]}}",
        "limit: 10/minute, match: {methods: [POST]}",
    ),
    "preflights": (WIDE, "limit: 10/minute, match: {methods: [OPTIONS]}"),
    "a higher cost": (WIDE, "limit: 10/minute, cost: 2, match: {path: /a}"),
    "a shadow": (WIDE, "limit: 10/minute, mode: shadow"),
    "beside a shadow": (f"{WIDE}, mode: shadow", "limit: 10/minute"),
    "beside a share": (f"{WIDE}, enforce_share: 50%", "limit: 10/minute"),
    "beside an override": (f"{WIDE}, overrides: {{192.0.2.1: 20/minute}}", "limit: 10/minute"),
    "beside an allowlist": (f"{WIDE}, allowlist: [192.0.2.1]", "limit: 10/minute"),
    "another answer when the store fails": (WIDE, "limit: 10/minute, on_store_failure: deny"),
    "an override of its own": (WIDE, "limit: 10/minute, overrides: {192.0.2.1: 1/minute}"),
    "tiers": (WIDE, "limits: {a: 10/minute}, tier: user:plan"),
    "another rounding": (WIDE, "limit: 10/minute, rounding: up"),
    "another answer to a missing identity": (
        f"{WIDE}, by: user, on_missing: skip",
        "limit: 10/minute, by: user",
    ),
    "a host that the other does not name": (
        f"{WIDE}, match: {{host: a.example}}",
        "limit: 20/minute",
    ),
    "an exception of the other": (f"{WIDE}, match: {{except: /health}}", "limit: 20/minute"),
    "a registered cost": (WIDE, "limit: 10/minute, cost: tokens"),
}


@pytest.mark.parametrize(("wide", "rule"), BESIDE.values(), ids=BESIDE)
def test_a_limit_of_another_rule_is_only_in_the_way_where_it_always_refuses_first(
    wide: str, rule: str
) -> None:
    assert codes(f"version: 1\nrules:\n  - {{{wide}}}\n  - {{name: a, {rule}}}\n") == []
    alike = codes(f"version: 1\nrules:\n  - {{{WIDE}}}\n  - {{name: a, limit: 10/minute}}\n")
    assert alike == ["unreachable-limit"]


def test_a_limit_is_within_reach_where_its_rule_takes_the_place_of_the_tighter_one() -> None:
    rules = """
version: 1
rules:
  - {name: all, limit: 1/minute}
  - {name: search, match: {path: /search}, limit: 3/minute, replaces: [all]}
"""
    assert codes(rules) == []
    assert codes(rules.replace(", replaces: [all]", "")) == ["unreachable-limit"]
