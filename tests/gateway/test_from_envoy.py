"""Rule files of envoyproxy/ratelimit, converted, against what its own look-up gives."""

from itertools import chain, product
from random import Random
from typing import Any

import pytest
import yaml

from ratelimit import MemoryStore, RateLimiter, RuleSet
from ratelimit.gateway.converted import rule_file
from ratelimit.gateway.from_envoy import from_envoy
from ratelimit.gateway.rls import SHOULD_RATE_LIMIT, RateLimitService
from ratelimit.testing import ManualClock
from tests.support.calls import descriptor, question, said

EXAMPLE = """\
domain: mongo_cps
descriptors:
  - key: database
    value: users
    rate_limit: {unit: second, requests_per_unit: 500}
  - key: database
    value: default
    shadow_mode: true
    rate_limit: {unit: minute, requests_per_unit: 50, name: dd}
  - key: database
    rate_limit: {unit: week, requests_per_unit: 500}
  - key: message_type
    value: marketing
    descriptors:
      - key: to_number
        value: "+1*"
        rate_limit: {unlimited: true}
      - key: to_number
        rate_limit: {unit: month, requests_per_unit: 5}
  - key: path
    value: /api/v1/{x}
    rate_limit: {unit: year, requests_per_unit: 3, replaces: [{name: dd}]}
"""


def test_each_limit_comes_to_a_rule() -> None:
    found = from_envoy(EXAMPLE)
    assert found.left == []
    rules = {rule.name: rule for rule in RuleSet.loads(rule_file(found, "x")).rules}
    texts = {name: (str(rule.limits[0]), rule.by, rule.mode) for name, rule in rules.items()}
    assert texts == {
        "mongo_cps.database_users": ("500/second", ("global",), "enforce"),
        "mongo_cps.database_default": ("50/minute", ("global",), "shadow"),
        "mongo_cps.database": ("500/week", ("path:database",), "enforce"),
        "mongo_cps.message_type_marketing.to_number": (
            "5/30 days", ("path:to_number",), "enforce",
        ),
        "mongo_cps.path_-api-v1-x": ("3/365 days", ("global",), "enforce"),
    }  # fmt: skip
    assert {rule.limits[0].algorithm for rule in rules.values()} == {"fixed_window"}
    assert rules["mongo_cps.path_-api-v1-x"].replaces == ("mongo_cps.database_default",)


LEFT = {
    "domain: d\ndescriptors:\n  - key: a\n    rate_limit: {unit: fortnight, requests_per_unit: 3}":
        (4, "the unit is 'fortnight'; it is not one of theirs"),
    "domain: d\ndescriptors:\n  - key: a\n    rate_limit: {unit: day, requests_per_unit: 0}":
        (4, ("requests_per_unit is '0', which lets nothing through; a rule refuses single "
            "identities with overrides: {VALUE: blocked}")),
    "domain: d\ndescriptors:\n  - value: a":
        (3, "a descriptor without a key is never met"),
    "domain: d\ndescriptors:\n  - key: a\n  - key: a":
        (4, "'a' is there twice with the same value"),
    "domain: d\ndescriptors:\n  - key: a\n    detailed_metric: true":
        (4, "'detailed_metric' says which metrics there are, and is left out"),
    "domain: d\ndescriptors:\n  - key: a\n    sahdow_mode: true":
        (4, "'sahdow_mode' says nothing here, and is left out"),
    "domain: d\ndescriptors:\n  - key: a\n    shadow_mode: true":
        (3, "shadow_mode without a rate_limit says nothing"),
    "domain: d\ndescriptors:\n  - key: a\n    shadow_mode: perhaps":
        (4, "'perhaps' is neither true nor false"),
    "domain: d\ndescriptors:\n  - key: a\n    value: b*\n"
    "    rate_limit: {unit: day, requests_per_unit: 1}":
        (5, "a value that is the prefix and nothing more is not counted by the rule"),
    "domain: d\ndescriptors:\n  - key: a\n    value: b\n    rate_limit:\n      unit: day\n"
    "      requests_per_unit: 1\n      replaces:\n        - name: x":
        (9, "no limit is named 'x'"),
    "domain: d\ndescriptors: 7": (2, "descriptors is not a list"),
    "domain: d\ndescriptors:\n  - just text": (3, ("there is no mapping with key, value, "
        "rate_limit, descriptors, shadow_mode")),
    "descriptors: []": (1, "there is no domain, so that no descriptor can be meant"),
    "- a": (1, "the file is not a domain with descriptors"),
}  # fmt: skip


@pytest.mark.parametrize("text", LEFT, ids=[each[1][:40] for each in LEFT.values()])
def test_what_rules_do_not_say_is_told_with_its_line(text: str) -> None:
    assert LEFT[text] in [tuple(each) for each in from_envoy(text).left]


def test_a_rule_that_counts_each_value_replaces_none() -> None:
    text = EXAMPLE.replace("requests_per_unit: 5}", "requests_per_unit: 5, replaces: [{name: dd}]}")
    (left,) = from_envoy(text).left
    assert (left.line, left.text.partition(" cannot")[0]) == (
        19, "rule mongo_cps.message_type_marketing.to_number",
    )  # fmt: skip


def test_a_file_that_is_not_yaml_is_told_and_comes_to_no_rules() -> None:
    for text in ("a: [", "a: &a [*a, *a]", "\t", "!!python/object:os.system x", "${HOME}", ""):
        found = from_envoy(text)
        assert found.left, text
        assert not found.rules
        assert RuleSet.loads(rule_file(found, "x")).rules == ()


def test_a_value_of_the_files_is_nowhere_read_as_anything_else() -> None:
    for value in ('"', "\\", "${PATH}", "{x}", "a: b", "# c", "*", "%2F", "\u2028", "'", "é"):
        root = {
            "domain": value,
            "descriptors": [
                {
                    "key": value, "value": value + ".",
                    "rate_limit": {"unit": "day", "requests_per_unit": 1},
                }
            ],
        }  # fmt: skip
        text = yaml.safe_dump(root, allow_unicode=False)
        found = from_envoy(text)
        if "${" in value:
            assert found.left
            continue
        (rule,) = RuleSet.loads(rule_file(found, 'x"\n- y')).rules
        assert rule.limits[0].quota == 1


async def test_a_request_meets_the_limit_that_it_met_there() -> None:
    """The look-up of config_impl.go, on files and descriptors by chance."""
    random = Random(1)
    met = 0
    for _ in range(60):
        root = {"domain": "d", "descriptors": _some(random, 0)}
        found = from_envoy(yaml.safe_dump(root))
        rules = RuleSet.loads(rule_file(found, "x"))
        limiter = RateLimiter(rules, store=MemoryStore(clock=ManualClock()))
        service = RateLimitService(limiter)
        for keys in chain.from_iterable(product("ab", repeat=n) for n in (1, 2, 2, 3)):
            entries = [(key, random.choice(["x", "xy", "y", "xyz"])) for key in keys]
            message = question(descriptor(entries), domain="d")
            answered = await service(SHOULD_RATE_LIMIT, message, ("127.0.0.1", 1))
            (status,) = said(answered.message).statuses
            expected = _looked_up(root["descriptors"], entries)
            assert status.get("quota") == expected, (root, entries)
            met += expected is not None
    assert met > 50


def _some(random: Random, depth: int) -> Any:
    """Descriptors by chance, each with a limit of its own."""
    found = []
    for key in "ab":
        for value in ("", "x", "xy*", "y"):
            if random.random() < 0.5:
                continue
            one: dict[str, Any] = {"key": key, **({"value": value} if value else {})}
            if random.random() < 0.6:
                one["rate_limit"] = {"unit": "day", "requests_per_unit": random.randrange(1, 10**6)}
            if depth < 2 and random.random() < 0.5:
                one["descriptors"] = _some(random, depth + 1)
            found.append(one)
    return found


def _looked_up(descriptors: Any, entries: Any) -> int | None:
    """The limit of a descriptor, as it is looked up there; a prefix takes more than itself."""
    for place, (key, value) in enumerate(entries):
        of_key = [each for each in descriptors if each["key"] == key]
        next_ = [each for each in of_key if each.get("value") == value]
        next_ += [
            each for each in of_key
            if each.get("value", "").endswith("*") and value.startswith(each["value"][:-1])
        ]  # fmt: skip
        next_ += [each for each in of_key if "value" not in each]
        if not next_:
            return None
        chosen = next_[0]
        prefix = chosen.get("value", "")
        if prefix.endswith("*") and value == prefix[:-1]:
            return None  # which is told as left out
        if place == len(entries) - 1:
            limit = chosen.get("rate_limit")
            return limit["requests_per_unit"] if limit else None
        descriptors = chosen.get("descriptors", [])
    return None


def test_a_large_file_takes_no_longer_than_its_length() -> None:
    many = [{"key": "a", "value": f"{number}", "rate_limit": {"unit": "day",
             "requests_per_unit": 1, "name": "n", "replaces": [{"name": "n"}]}}
            for number in range(12_000)]  # fmt: skip
    lines = ["domain: d", "descriptors:"]
    lines += [f"  - {{key: a, value: '{each['value']}', rate_limit: {{unit: day, "
              f"requests_per_unit: 1, name: n}}}}" for each in many]  # fmt: skip
    lines.append("  - {key: a, rate_limit: {unit: day, requests_per_unit: 1}}")
    found = from_envoy("\n".join(lines))
    assert len(found.rules) == 10_000
    assert len(found.left) <= 1_001
    assert any("12000 values beside it" in each.text for each in found.left) or (
        len(found.left) == 1_001
    )
