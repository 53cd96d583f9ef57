"""What the page is told of a limiter."""

from typing import Any

import pytest

from ratelimit import Limit, MemoryStore, RateLimiter, RateLimitMiddleware, Rule
from ratelimit.insight.dashboard import telling
from ratelimit.insight.dashboard.telling import numbers_of, rules_of, state_of
from tests.support.asgi import Inner, ask, limiter


def test_a_rule_is_told_with_its_limits_its_mode_and_its_worst_case() -> None:
    rules = [
        Rule("login", "5/minute; 20/hour", path="/login", by=["client", "header:x-a"]),
        Rule("trial", "5/second", mode="shadow", by="global", algorithm="sliding_log"),
        Rule("tiered", {"free": "1/second", "pro": None}, tier="header:x-tier"),
    ]
    told = rules_of(limiter(*rules))
    assert told["left_out"] == 0
    login, trial, tiered = told["rules"]
    assert login == {
        "name": "login",
        "mode": "enforce",
        "by": ["client", "header:x-a"],
        "tiers": [],
        "path": "/login",
        "limits": ["5/minute, sliding counter", "20/hour, sliding counter"],
        "worst": ["10 per minute", "40 per hour"],
    }
    assert (trial["mode"], trial["by"], trial["worst"]) == ("shadow", [], ["5 per second"])
    assert tiered["limits"] == ["free: 1/second, sliding counter", "pro: unlimited"]
    assert tiered["worst"] == ["free: 2 per second", "pro: unbounded"]


def test_only_so_many_rules_are_told_and_how_many_are_left_out() -> None:
    rules = [Rule(f"r{n}", "1/second", path=f"/{n}") for n in range(telling.MOST_RULES + 3)]
    told = rules_of(limiter(*rules))
    assert (len(told["rules"]), told["left_out"]) == (telling.MOST_RULES, 3)


def test_a_function_that_gives_the_limits_is_told_as_one() -> None:
    def chosen(_: Any) -> Limit:
        return Limit("1/second")

    (rule,) = rules_of(limiter(Rule("mine", chosen)))["rules"]
    assert rule["limits"] == ["chosen by a function"]
    assert rule["worst"] == ["unknown beforehand"]


async def test_a_shadow_rule_is_counted_beside_an_enforced_one() -> None:
    ours = limiter(Rule("hard", "3/hour", algorithm="sliding_log"),
                   Rule("soft", "1/hour", algorithm="sliding_log", mode="shadow"))  # fmt: skip
    app = RateLimitMiddleware(Inner(), limiter=ours)
    for _ in range(5):
        await ask(app)
    told = numbers_of(ours, None)
    assert told["rules"]["hard"]["passed"] == 3
    assert told["rules"]["hard"]["refused"] == 2
    assert told["rules"]["soft"]["would"] >= 2
    assert "refused" not in told["rules"]["soft"]
    assert told["all"]["refused"] == 2
    assert told["denied"] == [{"rule": "hard", "identity": "192.0.2.1", "number": 2}]
    assert told["whose"] == "this worker"
    assert told["ok"]


async def test_an_identity_that_may_be_a_secret_is_told_by_its_digest() -> None:
    secret = "sk_live_51HxQ7aa"
    ours = limiter(Rule("key", "1/hour", by="header:x-api-key", algorithm="sliding_log"))
    app = RateLimitMiddleware(Inner(), limiter=ours)
    for _ in range(3):
        await ask(app, headers=[("x-api-key", secret)])
    (denied,) = numbers_of(ours, None)["denied"]
    assert denied["number"] == 2
    assert denied["identity"].startswith("#")
    assert secret not in str(numbers_of(ours, None))


def test_a_name_from_another_program_in_the_store_is_masked() -> None:
    told = numbers_of(limiter(), [("login header:x=abcdefghijklmnopqrst", 7), ("a \x1b[2J", 1)])
    first, second = told["denied"]
    assert first["identity"].startswith("header:x=abcd… #")
    assert "\x1b" not in second["identity"]
    assert told["whose"] == "all workers"


async def test_the_state_of_a_key_is_told_and_nothing_is_charged() -> None:
    ours = limiter(Rule("login", "5/minute", algorithm="sliding_log"))
    await ours.charge("login", "192.0.2.1", cost=2)
    for _ in range(2):
        status, told = await state_of(ours, {"rule": "login", "identity": ["192.0.2.1"]})
        assert status == 200
        (counter,) = told["counters"]
        assert (counter["remaining"], counter["reset"]) == ("3", "60.0 s")


@pytest.mark.parametrize(
    "asked",
    [
        None, [], "x", {}, {"rule": "login"}, {"rule": 1, "identity": []},
        {"rule": "nobody", "identity": []}, {"rule": "login", "identity": ["<b>"]},
        {"rule": "login", "identity": [[]]}, {"rule": "login", "identity": ["::1", "::2"]},
        {"rule": "login", "identity": ["::1"], "tier": {"a": 1}},
    ],
)  # fmt: skip
async def test_a_key_that_cannot_be_meant_is_told_in_a_sentence(asked: Any) -> None:
    status, told = await state_of(limiter(Rule("login", "5/minute")), asked)
    assert status == 400
    assert told["error"]


def test_the_limits_of_routes_are_told_once_they_were_met() -> None:
    ours = RateLimiter(store=MemoryStore())
    assert rules_of(ours)["rules"] == []
    ours.check_registered([Rule("report", "2/minute")])
    assert [rule["name"] for rule in rules_of(ours)["rules"]] == ["report"]
