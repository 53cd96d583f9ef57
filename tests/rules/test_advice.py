"""What is legal but probably not meant."""

import time

import pytest

from ratelimit.limits import Limit
from ratelimit.rules.advice import Advice, advise
from ratelimit.rules.rule import Rule
from ratelimit.rules.ruleset import RuleSet


def codes(*rules: Rule, **more: object) -> list[str]:
    rule_set = RuleSet(rules, **{"store": "redis://localhost:6379/0"} | more)  # type: ignore[arg-type]
    return [advice.code for advice in advise(rule_set)]


def about(rule: Rule) -> str:
    (advice,) = advise(RuleSet((rule,), store="redis://localhost:6379/0"))
    assert advice.rule == rule.name
    return advice.text


def test_a_plain_rule_on_redis_is_worth_no_word() -> None:
    assert codes(Rule("api", "100/minute")) == []


def test_an_advice_reads_as_a_line() -> None:
    (advice,) = advise(RuleSet((Rule("a", "1/second", by="global"),), store="redis://a"))
    assert advice == Advice("shared-by-all", "a", advice.text)
    assert str(advice) == f"rule 'a': {advice.text} [shared-by-all]"
    (advice,) = advise(RuleSet((Rule("a", "1/second"),)))
    assert str(advice) == f"the file: {advice.text} [memory-store]"


CHOSEN = Rule("keys", "10/minute", by="header:X-API-Key", path="/a", methods=["GET"])


def test_who_chooses_his_own_identity_is_never_refused() -> None:
    for by in ("header:X-Key", "cookie:session", "query:key", ["client", "header:X-Key"]):
        assert codes(Rule("keys", "10/minute", by=by)) == ["client-chosen"]
    assert "another header x-api-key" in about(CHOSEN)
    assert codes(Rule("items", "10/minute", by="path:id", path="/{id}")) == []


@pytest.mark.parametrize(
    ("other", "enough"),
    [
        (Rule("all", "100/minute"), True),
        (Rule("all", "100/minute", path="/a", methods=["GET", "POST"]), True),
        (Rule("all", "100/minute", path="/b"), False),
        (Rule("all", "100/minute", methods=["POST"]), False),
        (Rule("all", "100/minute", mode="shadow"), False),
        (Rule("all", "100/minute", mode="off"), False),
        (Rule("all", "100/minute", by="cookie:session", path="/a"), False),
        (Rule("all", "100/minute", enforce_share=0.5), False),
        (Rule("all", "100/minute", cost=0), False),
        (Rule("all", "100/minute", skip=bool), False),
        (Rule("all", "100/minute", on_missing="skip"), True),
        (Rule("all", "100/minute", by="user", on_missing="skip"), False),
        (Rule("all", {"free": "9/minute", "pro": "unlimited"}, tier="user:plan"), False),
    ],
)
def test_a_rule_by_client_beside_it_bounds_what_clients_choose(other: Rule, enough: bool) -> None:
    assert ("client-chosen" not in codes(CHOSEN, other)) == enough


def test_a_bound_holds_for_all_methods_only_where_it_names_none() -> None:
    everything = Rule("keys", "10/minute", by="header:X-API-Key")
    assert codes(everything, Rule("all", "100/minute", methods=["GET"])) == ["client-chosen"]


def test_advice_on_thousands_of_rules_takes_no_time_that_a_request_would_notice() -> None:
    rules = [Rule(f"r{n}", "9/second", by="header:X-Key", path=f"/{n}") for n in range(2_000)]
    started = time.perf_counter()
    assert len(codes(*rules)) == len(rules)
    assert time.perf_counter() - started < 1  # each with each would take 2.5 s


def test_a_rule_that_is_off_is_worth_no_word() -> None:
    assert codes(Rule("a", "1/second", by="global", mode="off")) == []


def test_a_quota_that_all_share_can_be_used_up_by_one() -> None:
    assert codes(Rule("a", "1/second", by="global")) == ["shared-by-all"]
    assert codes(Rule("a", "1/second", by="global", mode="shadow")) == []


def test_a_rule_by_user_needs_someone_who_says_who_the_user_is() -> None:
    assert codes(Rule("a", "1/second", by="user")) == ["by-user"]
    assert codes(Rule("a", "1/second", by=["client", "user"])) == ["by-user"]


@pytest.mark.parametrize("path", ["/api/*/x", "/users/:id", "/users/<int:id>", "/a/.*/b"])
def test_the_syntax_of_other_routers_stands_for_itself(path: str) -> None:
    assert codes(Rule("a", "1/second", path=path)) == ["foreign-path"]


@pytest.mark.parametrize("path", ["/api/{rest:path}", "/a:b", "/a<b", "/users/{id:int}"])
def test_paths_of_starlette_are_worth_no_word(path: str) -> None:
    assert codes(Rule("a", "1/second", path=path)) == []


def test_a_fixed_window_lets_through_twice_its_quota() -> None:
    assert codes(Rule("a", "10/minute", algorithm="fixed_window")) == ["fixed-window-double"]
    assert "up to 20 pass" in about(Rule("a", "10/minute", algorithm="fixed_window"))
    assert codes(Rule("a", {"x": Limit("1/s", algorithm="fixed_window")}, tier="user:plan")) == [
        "fixed-window-double"
    ]


def test_a_large_log_is_large() -> None:
    assert codes(Rule("a", "10001/hour", algorithm="sliding_log")) == ["large-log"]
    assert codes(Rule("a", "10000/hour", algorithm="sliding_log")) == []
    assert codes(Rule("a", "10001/hour")) == []


def test_a_bucket_of_a_day_may_be_used_up_at_once() -> None:
    assert codes(Rule("a", "1000/day", algorithm="token_bucket")) == ["long-bucket"]
    assert "up to 1999 pass in the first day" in about(
        Rule("a", "1000/day", algorithm="token_bucket")
    )
    assert "the first 2 days" in about(Rule("a", "100/2 days", algorithm="token_bucket"))
    assert codes(Rule("a", "1000/day", algorithm="token_bucket", burst=20)) == []
    assert codes(Rule("a", "1000/hour", algorithm="token_bucket")) == []


def test_counters_in_process_are_those_of_one_process() -> None:
    assert codes(Rule("a", "1/second"), store="memory://") == ["memory-store"]


def test_a_count_of_proxies_trusts_whoever_comes_past_them() -> None:
    assert codes(Rule("a", "1/second"), trusted_hops=1) == ["trusted-hops"]


def test_a_local_quota_is_each_workers_until_they_are_counted() -> None:
    local = Rule("a", "1/second", on_store_failure="local")
    assert codes(local) == ["local-workers"]
    assert codes(Rule("a", "1/second"), on_store_failure="local") == ["local-workers"]
    assert codes(local, workers=2) == []
    assert codes(Rule("a", "1/second", on_store_failure="deny"), on_store_failure="local") == []
