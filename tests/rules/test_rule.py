"""A rule: what is left out, what is kept, and what it refuses to be."""

from typing import Any

import pytest

from ratelimit import decisions
from ratelimit.limits import Limit
from ratelimit.rules import counting
from ratelimit.rules.policies import policy_names
from ratelimit.rules.rule import Rule
from ratelimit.rules.ruleset import RuleSet


def test_what_is_left_out_has_the_contracts_defaults() -> None:
    rule = Rule("api", "10/minute")
    assert rule.limits == (Limit("10/minute"),)
    assert (rule.by, rule.path, rule.methods) == (("client",), None, None)
    assert (rule.cost, rule.mode, rule.on_store_failure) == (1, "enforce", None)
    assert dict(rule.overrides) == {}
    assert rule.policies == ("api",)


def test_a_rule_cannot_be_changed() -> None:
    rule = Rule("a", "5/minute", overrides={"::1": "1/second"})
    with pytest.raises(AttributeError):
        rule.cost = 2  # type: ignore[misc]
    with pytest.raises(TypeError):
        rule.overrides["::2"] = ()  # type: ignore[index]


def test_a_leaking_bucket_waits_ten_seconds_at_most_unless_the_rule_says_otherwise() -> None:
    def delay(**options: Any) -> float | None:
        rule = Rule("a", "10/second burst 500", algorithm="leaking_bucket", **options)
        return rule.limits[0].max_delay

    assert delay() == 10.0
    assert delay(max_delay=2.5) == 2.5
    assert delay(max_delay=None) is None
    ready = Limit("10/second", algorithm="leaking_bucket")
    assert Rule("a", ready).limits == (ready,)


def test_get_covers_head_and_methods_are_upper_case() -> None:
    assert Rule("a", "1/second", methods=["get", "POST"]).methods == frozenset(
        {"GET", "HEAD", "POST"}
    )
    assert Rule("a", "1/second", methods=["POST"]).methods == frozenset({"POST"})
    rule = Rule("a", "1/second", path="/x", methods=["GET"])
    assert rule.match("HEAD", "/x") == {}
    assert rule.match("get", "/x") == {}
    assert rule.match("POST", "/x") is None


def test_a_rule_without_a_path_applies_to_every_path() -> None:
    assert Rule("a", "1/second").match("GET", "") == {}
    assert Rule("a", "1/second", methods=["PUT"]).match("GET", "/") is None


def test_path_parameters_are_converted_as_starlette_does() -> None:
    rule = Rule("a", "1/second", path="/u/{id:int}/{rest:path}")
    assert rule.match("GET", "/u/007/a/b") == {"id": 7, "rest": "a/b"}
    assert rule.match("GET", "/u/x/a") is None


def test_a_value_that_its_convertor_refuses_stays_text_and_is_still_limited() -> None:
    digits = "9" * 5_000
    assert Rule("a", "1/second", path="/u/{id:int}").match("GET", f"/u/{digits}") == {"id": digits}


def test_each_limit_has_a_name_before_clients() -> None:
    assert Rule("a", "5/minute").policies == ("a",)
    assert Rule("a", "5/minute; 20/hour").policies == ("a:60", "a:3600")
    assert Rule("a", "5/1500ms; 9/2s; 20/hour").policies == ("a:2:1", "a:2:2", "a:3600")
    minute = Limit("5/minute"), Limit("5/minute", algorithm="sliding_log")
    assert policy_names("a", minute) == ("a:60:1", "a:60:2")


def test_overrides_name_addresses_in_one_spelling() -> None:
    rule = Rule(
        "a",
        "5/minute",
        by=["client", "route"],
        algorithm="sliding_log",
        overrides={"2001:DB8::0009": "6/minute; 7/hour", "::ffff:192.0.2.1": Limit("8/minute")},
    )
    assert dict(rule.overrides) == {
        "2001:db8::/64": (
            Limit("6/minute", algorithm="sliding_log"),
            Limit("7/hour", algorithm="sliding_log"),
        ),
        "192.0.2.1": (Limit("8/minute"),),
    }
    assert list(Rule("a", "1/s", by="user", overrides={"Al": "2/s"}).overrides) == ["Al"]


def test_an_override_has_its_own_burst_and_the_rules_delay() -> None:
    options: dict[str, Any] = {"algorithm": "leaking_bucket", "burst": 20, "max_delay": 3.0}
    rule = Rule(
        "a",
        "10/second",
        **options,
        overrides={"192.0.2.1": "50/second", "192.0.2.2": "5/s burst 9"},
    )
    own = [rule.overrides[key][0] for key in ("192.0.2.1", "192.0.2.2")]
    assert [(limit.burst, limit.max_delay) for limit in own] == [(50, 3.0), (9, 3.0)]


def test_by_names_are_kept_as_an_identity_needs_them() -> None:
    rule = Rule("a", "1/s", by=["header:X-API-Key", "cookie:Sid", "query:Q", "tenant", "user"])
    assert rule.by == ("header:x-api-key", "cookie:Sid", "query:Q", "tenant", "user")
    rule_set = RuleSet((rule, Rule("b", "1/s", by=["client", "plan"])))
    assert rule_set.registered_names == {"tenant", "plan"}


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"name": ""}, "the name is ''; it is 1 to 64 letters"),
    ({"name": "a\n"}, "the name is 'a\\n'; it is 1 to 64"),
    ({"name": 7}, "name is text, not int"),
    ({"limit": 10}, "a limit is text, a Limit or several, not int"),
    ({"limit": ()}, "the sequence of limits is empty"),
    ({"limit": [7]}, "a sequence of limits holds Limit objects, not int"),
    ({"limit": [Limit("1/s"), Limit("1/second")]}, "gives the same limit twice"),
    ({"limit": Limit("1/s"), "burst": 2}, "burst is given beside a Limit"),
    ({"limit": Limit("1/s"), "algorithm": "sliding_log"}, "algorithm is given beside a Limit"),
    ({"limit": Limit("1/s"), "max_delay": 10.0}, "max_delay is given beside a Limit"),
    ({"burst": 5}, "a burst belongs to a bucket; sliding_counter has none"),
    ({"rounding": "down", "algorithm": "fixed_window"}, "a rounding belongs to a sliding_counter"),
    ({"max_delay": 10.0}, "a max_delay belongs to a leaking_bucket; sliding_counter has none"),
    ({"max_delay": None}, "a max_delay belongs to a leaking_bucket; sliding_counter has none"),
    ({"cost": 11}, "cost is 11 and can never pass; '10/minute' lets through at most 10 at once"),
    ({"cost": -1}, "cost is -1; it is at least 0"),
    ({"cost": True}, "cost is a whole number, not bool"),
    ({"cost": 2**42 + 1, "limit": "9000000000000000/h"}, "it is at least 0 and at most 2^42"),
    ({"mode": False}, "mode is False; it is 'enforce', 'shadow' or 'off'"),
    ({"on_store_failure": "open"}, "on_store_failure is 'open'; it is 'allow', 'deny' or 'local'"),
    ({"path": "x"}, "the path is 'x'; it starts with /"),
    ({"path": "/x\n"}, "the path '/x\\n' holds '\\n'"),
    ({"path": "/" + "x" * 2_000}, "the path has 2001 characters; it has at most 2000"),
    ({"path": "/{1x}"}, "has a brace that belongs to no parameter"),
    ({"path": "/{x:nat}"}, "has a convertor that does not exist; there are str, int"),
    ({"path": "/{x}/{x:int}"}, "has two parameters 'x'"),
    ({"path": 7}, "path is text, not int"),
    ({"methods": "GET"}, "methods is a list such as ['GET'], not the text 'GET'"),
    ({"methods": []}, "methods is empty and would match nothing"),
    ({"methods": ["GTE"]}, "'GTE' is not an HTTP method; did you mean GET; there are"),
    ({"by": []}, "by is empty"),
    ({"by": 7}, "by is text or several texts, not int"),
    ({"by": "Client"}, "by is 'Client'; it is client, global"),
    ({"by": "header"}, "by is 'header' without a name; write header:NAME"),
    ({"by": "cookie:a b"}, "a cookie's name is letters, digits"),
    ({"by": "path:id"}, "it has no path"),
    ({"by": "path:id", "path": "/{item}"}, "'/{item}' has item"),
    ({"by": ["header:A", "header:a"]}, "by names 'header:a' twice"),
    ({"overrides": []}, "overrides map identities to limits, not list"),
    ({"overrides": {"x": "1/s"}}, "the override 'x' is not an IP address"),
    ({"overrides": {"fe80::1%eth0": "1/s"}}, "the override 'fe80::1%eth0' is not an IP address"),
    ({"overrides": {"::1": "1/s", "0::1": "2/s"}}, "is given twice, as ::/64; give one"),
    ({"overrides": {"::1": "1/s"}, "cost": 2}, "'1/second' lets through at most 1 at once"),
    ({"overrides": {"": "1/s"}, "by": "user"}, "an override's identity is empty"),
    ({"overrides": {"x" * 257: "1/s"}, "by": "user"}, "an override's identity has 257 characters"),
    ({"overrides": {"x": "1/s"}, "by": "global"}, "overrides are given for 'global'"),
    ({"limit": None}, "there is neither a limit nor a concurrency; a rule has one at least"),
    ({"limit": 5}, "a limit is text, a Limit or several, not int"),
    ({"concurrency": 0}, "concurrency is 0; it is 1 to 1000000"),
    ({"concurrency": 2.5}, "concurrency is a whole number, not float"),
    ({"concurrency": 2, "lease": 0.5}, "the lease is 0.5 s; it is 1 s to an hour"),
    ({"concurrency": 2, "lease": "10s"}, "the lease is a number of seconds, not str"),
    ({"lease": 10}, "lease is given, but no concurrency that it could go with"),
    ({"concurrency": 2, "until": "sent"}, "until is 'sent'; it is 'response' or 'done'"),
    ({"limit": "unlimited"}, "the limit is 'unlimited'; a rule without a limit has mode 'off'"),
    ({"limit": {}}, "there are no tiers; name at least one with its limit"),
    ({"limit": {"a": "unlimited"}, "tier": "plan"}, "every tier is unlimited; a rule limits at"),
    ({"limit": {"": "1/s"}, "tier": "plan"}, "a tier is named ''; a name has 1 to 64"),
    ({"limit": {7: "1/s"}, "tier": "plan"}, "a tier's name is text, not int"),
    ({"limit": {"a": "1/minut"}, "tier": "plan"}, "did you mean 'minute'"),
    ({"limit": {"a": "1/s"}}, "there are tiers, but no tier; it says who chooses"),
    ({"tier": "user:plan"}, "tier is given without tiers"),
    ({"limit": {"a": "1/s"}, "tier": "cookie:plan"}, "tier is 'cookie:plan'; it is user:ATTRIBUTE"),
    ({"limit": {"a": "1/s"}, "tier": "user:a b"}, "tier is 'user:a b'; it is user:ATTRIBUTE"),
    ({"limit": {"a": "1/s"}, "tier": "header:"}, "tier is 'header:'; it is user:ATTRIBUTE"),
    ({"limit": {"a": "9/s", "b": "1/s"}, "tier": "plan", "cost": 2}, "'1/second' lets through at"),
    ({"limit": lambda _: "1/s", "burst": 2}, "a burst belongs to a bucket; sliding_counter"),
    ({"cost": "a b"}, "cost is 'a b'; it is a whole number or a registered name"),
    ({"enforce_share": 0}, "enforce_share is 0; it is above 0 and at most 1"),
    ({"enforce_share": 1.5}, "enforce_share is 1.5; it is above 0 and at most 1"),
    ({"on_missing": "allow"}, "on_missing is 'allow'; it is 'client', 'skip' or 'refuse'"),
    ({"allowlist": ["10.0.0.0/8"]}, "a list of networks holds '10.0.0.0/8'"),
    ({"skip": "x"}, "skip is a function over the connection, not str"),
    ({"by": "path:id", "on_route": False}, "it has no path"),
]


@pytest.mark.parametrize(("given", "sentence"), REFUSED)
def test_a_rule_that_could_not_be_meant_is_refused_in_one_sentence(
    given: dict[str, Any], sentence: str
) -> None:
    with pytest.raises((ValueError, TypeError)) as refused:
        Rule(**{"name": "a", "limit": "10/minute"} | given)
    assert sentence in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_rules_highest_cost_is_that_of_a_check() -> None:
    assert counting.MOST_COST == decisions.MOST_COST


def test_tiers_and_their_limits_are_kept_in_order() -> None:
    rule = Rule("a", {"free": "1/s; 9/minute", "pro": Limit("5/s"), "all": None}, tier="user:plan")
    assert list(rule.tiers) == ["free", "pro", "all"]
    assert rule.limits == rule.tiers["free"] == Limit.parse_all("1/s; 9/minute")
    assert rule.tiers["all"] == ()
    assert rule.policies == ("a:1", "a:60")


def test_a_routes_own_rule_may_name_any_path_parameter() -> None:
    assert Rule("a", "1/s", by="path:id", on_route=True).by == ("path:id",)


# --- bans ----------------------------------------------------------------------------------------

BAN: dict[str, int | str] = {"after": 10, "within": "1m", "for": "10m", "up_to": "1d"}


@pytest.mark.parametrize("by", ["client", "user", ["client", "header:x"], ["account", "user"]])
def test_a_ban_is_of_identities_that_their_bearers_have_proven(by: Any) -> None:
    rule = Rule("a", "5/minute", by=by, ban=BAN)
    assert str(rule.ban) == "after 10 in 1 minute for 10 minutes, up to 1 day"
    assert not rule.is_static
    assert rule == Rule("a", "5/minute", by=by, ban=rule.ban)


@pytest.mark.parametrize(
    "by", ["header:x", "cookie:c", "query:q", "account", "global", "route", ["route", "header:x"]]
)
def test_a_ban_by_what_anybody_can_send_is_refused(by: Any) -> None:
    with pytest.raises(ValueError, match="ban by client or"):
        Rule("a", "5/minute", by=by, ban=BAN)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"after": 0}, "at least 1"),
        ({"after": True}, "whole number"),
        ({"after": 1.5}, "whole number"),
        ({"within": 60}, "a duration"),
        ({"within": "1 month"}, "no fixed length"),
        ({"for": "1us"}, "not a unit"),
        ({"for": "400d"}, "1 ms to 366 days"),
        ({"up_to": "9m"}, "below for"),
        ({"until": "1d"}, "unknown"),
        ({"after": 2**50}, "exactly"),
    ],
)
def test_a_ban_that_cannot_be_meant_is_refused_in_a_sentence(
    change: dict[str, Any], words: str
) -> None:
    with pytest.raises((ValueError, TypeError), match=words):
        Rule("a", "5/minute", ban={**BAN, **change})


@pytest.mark.parametrize("lacking", ["after", "within", "for"])
def test_a_ban_has_a_number_and_two_lengths(lacking: str) -> None:
    with pytest.raises(ValueError, match=f"lacks '{lacking}'"):
        Rule("a", "5/minute", ban={key: each for key, each in BAN.items() if key != lacking})
    with pytest.raises(TypeError, match="a mapping"):
        Rule("a", "5/minute", ban="10m")  # type: ignore[arg-type]
