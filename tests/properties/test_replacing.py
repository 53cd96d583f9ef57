"""Which rules count a request, against a model that looks at each rule alone."""

import random
from fractions import Fraction
from typing import Any

import pytest

from ratelimit import MemoryStore, RateLimiter, Rule, RuleSet
from ratelimit.rules.paths import Path, normalised
from ratelimit.testing import ManualClock
from tests.support.asgi import http_scope

PATHS = ["/a", "//a", "/a/b", "/a/./b", "/x/../a", "/a/../b", "/b", "/a\\b", "/", "/a/\n"]
PATTERNS = [None, "/a", "/b", "/a/{rest:path}", "/{name}"]
HOSTS = [None, "app.example.com", "other.example.com"]
BY = ["client", "header:x-key", ["client", "header:x-key"], "global"]


def some_rules(draw: random.Random) -> list[Rule]:
    rules: list[Rule] = []
    for number in range(draw.randint(2, 6)):
        options: dict[str, Any] = {
            "path": draw.choice(PATTERNS), "host": draw.choice(HOSTS), "by": draw.choice(BY),
            "mode": draw.choice(["enforce", "enforce", "enforce", "shadow", "off"]),
            "except_": draw.choice([(), (), ["/a"], ["/b", "/a/{rest:path}"]]),
            "replaces": [each.name for each in rules if draw.random() < 0.4],
        }  # fmt: skip
        if draw.random() < 0.3 and options["by"] != "global":
            options["overrides"] = {draw.choice(["192.0.2.1", "192.0.2.2"]): "7/minute"}
        if draw.random() < 0.3:
            options["skip"] = draw.choice([lambda _: True, lambda _: False])
        if draw.random() < 0.2:
            options["enforce_share"] = Fraction(1, 2)
        options = {key: value for key, value in options.items() if value not in (None, [], ())}
        rules.append(Rule(f"r{number}", "9/minute", **options))
    return rules


def expected(rules: list[Rule], path: str, host: str, key: str) -> set[tuple[str, bool]]:
    """Names of the rules that count, each with whether it refuses."""
    counting: dict[str, bool] = {}
    gone: set[str] = set()
    for rule in reversed(rules):  # each replaces earlier ones alone
        ways = {path, normalised(path)}
        excepted = all(any(Path(e).match(way) is not None for e in rule.except_) for way in ways)
        pattern = None if rule.path is None else Path(rule.path)
        if (
            rule.mode == "off" or rule.name in gone or (rule.except_ and excepted)
            or (rule.host is not None and host not in rule.host)
            or (pattern is not None and all(pattern.match(way) is None for way in ways))
            or (rule.skip is not None and rule.skip(None))  # type: ignore[arg-type]
        ):  # fmt: skip
            continue
        values = {"client": "192.0.2.1", "header:x-key": key, "global": ""}
        spelled = [f"{part}={values[part]}" for part in rule.by]
        text = "".join(f"{len(each)}:{each}" for each in spelled)
        if len(spelled) == 1:
            text = values["client"] if rule.by == ("client",) else spelled[0]
        enforced = rule.mode == "enforce" and rule.enforced_on(text)
        counting[rule.name] = enforced
        picked = {part for part in rule.by if part == "header:x-key"}
        if rule.by[0] == "header:x-key" and key in rule.overrides:
            picked = set()
        named = {each.name: each for each in rules}
        if enforced:
            gone |= {name for name in rule.replaces if picked <= set(named[name].by)}
    return set(counting.items())


@pytest.mark.parametrize("seed", range(40))
async def test_the_rules_that_count_are_those_of_a_model_that_looks_at_each(seed: int) -> None:
    draw = random.Random(seed)
    for _ in range(8):
        rules = some_rules(draw)
        try:
            rule_set = RuleSet(tuple(rules))
        except ValueError as error:
            assert "would be escaped" in str(error)  # noqa: PT017  # most sets have no mistake
            continue
        for _ in range(10):
            limiter = RateLimiter(rule_set, store=MemoryStore(clock=ManualClock()))
            path, host = draw.choice(PATHS), draw.choice(HOSTS) or ""
            key = draw.choice(["k", "192.0.2.1", "192.0.2.2"])
            headers = [("host", f"{host}:80"), ("x-key", key)]
            await limiter.admit(http_scope(path, headers=headers, client=("192.0.2.1", 1)))
            found = {(name, what == "allowed") for name, what in limiter.counts}
            assert found == expected(rules, path, host, key), (path, host, key, rules)
