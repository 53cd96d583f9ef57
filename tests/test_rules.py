"""Which rules apply to a request, and what a rule refuses to be."""

import random
import time
from ipaddress import ip_network
from typing import Any

import pytest
from starlette.routing import Route, compile_path

from ratelimit import RateLimiter, decisions
from ratelimit.limits import Limit
from ratelimit.rules import options, paths
from ratelimit.rules.rule import Rule, policy_names
from ratelimit.rules.ruleset import RuleSet
from tests.web.asgi import http_scope


def names(rule_set: RuleSet, method: str, path: str) -> list[str]:
    return [rule.name for rule, _ in rule_set.matching(method, path)]


def test_what_is_left_out_has_the_contracts_defaults() -> None:
    rule = Rule("api", "10/minute")
    assert rule.limits == (Limit("10/minute"),)
    assert (rule.by, rule.path, rule.methods) == (("client",), None, None)
    assert (rule.cost, rule.mode, rule.on_store_failure) == (1, "enforce", None)
    assert dict(rule.overrides) == {}
    assert rule.policies == ("api",)


def test_rules_and_sets_are_equal_by_value_and_hashable() -> None:
    def build() -> RuleSet:
        return RuleSet((Rule("a", "5/minute; 20/hour", overrides={"::1": "1/second"}),))

    assert build() == build()
    assert hash(build()) == hash(build())
    assert build() != RuleSet((Rule("a", "5/minute; 20/hour"),))


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


@pytest.mark.parametrize(
    "path", ["/login", "/login\n", "/api/a", "/api/a\n", "/api/a\nb", "/api/\n"]
)
def test_what_reaches_a_route_is_held_by_the_rule_of_its_path(path: str) -> None:
    """The router lets a new line end a path, and be part of a parameter."""
    rule_set = RuleSet(
        (
            Rule("login", "1/second", path="/login"),
            Rule("one", "1/second", path="/api/{name}"),
            Rule("all", "1/second", path="/api/{rest:path}"),
        )
    )
    for template, name in (("/login", "login"), ("/api/{name}", "one"), ("/api/{name}", "all")):
        if Route(template, lambda _: None).path_regex.match(path):
            assert name in names(rule_set, "GET", path)


def test_rules_apply_in_order_and_those_that_are_off_do_not() -> None:
    rule_set = RuleSet(
        (
            Rule("below", "1/second", path="/a/{rest:path}"),
            Rule("all", "1/second"),
            Rule("off", "1/second", mode="off"),
            Rule("exact", "1/second", path="/a/b", mode="shadow"),
            Rule("any", "1/second", path="/{rest:path}"),
            Rule("part", "1/second", path="/a-{x}/b"),
            Rule("other", "1/second", path="/b/{rest:path}"),
        )
    )
    assert names(rule_set, "GET", "/a/b") == ["below", "all", "exact", "any"]
    assert names(rule_set, "GET", "/a-7/b") == ["all", "any", "part"]
    assert names(rule_set, "GET", "") == ["all"]
    assert rule_set.matching("GET", "/a/b")[0][1] == {"rest": "b"}


def test_a_thousand_rules_match_as_if_each_were_tried_in_turn() -> None:
    draw = random.Random(7)
    parts = ["", "a", "b", "api", "v1", "{x}", "{x:int}", "{rest:path}", "a{x}", "7", "a-{x}-b"]

    def template() -> str:
        while True:
            path = "/" + "/".join(draw.choices(parts, k=draw.randint(1, 4)))
            if path.count("{x") <= 1 and path.count("{rest") <= 1:
                return path

    def request() -> str:
        words = ["", "a", "b", "api", "v1", "7", "a7", "a-7-b", "a\n", "\n", "zz", "é"]
        return draw.choice(["/", "", "//"]) + "/".join(draw.choices(words, k=draw.randint(1, 5)))

    rule_set = RuleSet(
        tuple(
            Rule(
                f"r{number}",
                "1/second",
                path=draw.choice([template(), template(), template(), None]),
                methods=draw.choice([None, ["GET"], ["POST", "PUT"]]),
                mode=draw.choice(["enforce", "shadow", "off"]),
            )
            for number in range(1_000)
        )
    )
    hits = 0
    for _ in range(500):
        method, path = draw.choice(["GET", "HEAD", "PUT"]), request()
        in_turn = [
            (rule, parameters)
            for rule in rule_set.rules
            if rule.mode != "off" and (parameters := rule.match(method, path)) is not None
        ]
        assert rule_set.matching(method, path) == in_turn
        hits += len(in_turn)
    assert hits > 10_000  # the two agree about something


def test_a_thousand_rules_cost_about_as_much_as_ten_where_few_match() -> None:
    def seconds(count: int) -> float:
        rule_set = RuleSet(
            tuple(
                Rule(f"r{number}", "1/second", path=f"/api/v1/thing{number}/{{id}}")
                for number in range(count)
            )
        )
        assert names(rule_set, "GET", "/api/v1/thing3/7") == ["r3"]
        best = float("inf")
        for _ in range(20):
            start = time.perf_counter()
            for _ in range(100):
                rule_set.matching("GET", "/api/v1/thing3/7")
            best = min(best, time.perf_counter() - start)
        return best

    assert seconds(1_000) < 5 * seconds(10)  # trying each in turn would be 100 times


@pytest.mark.parametrize(
    "path",
    ["/" * 65_536, "/a" * 32_768, "\ud800/\x00", "/u/" + "9" * 65_536, "a", "/u/" + "\n" * 65_536],
)
def test_no_path_makes_matching_raise_or_hang(path: str) -> None:
    rule_set = RuleSet(
        tuple(
            Rule(f"r{number}", "1/second", path=text)
            for number, text in enumerate(
                ["/u/{id:int}", "/u/{id:float}", "/{a}/{b}/{c}", "/{a:path}/b/{c}", "/a/a/{r:path}"]
            )
        )
    )
    start = time.perf_counter()
    rule_set.matching("GET", path)
    assert time.perf_counter() - start < 1


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
    ({"limit": ["1/second"]}, "a sequence of limits holds Limit objects, not str"),
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
    ({"limit": None}, "a limit is text, a Limit or several, not NoneType"),
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


SETS_REFUSED: list[tuple[dict[str, Any], str]] = [
    (
        {"rules": [Rule(f"r{number}", "1/s") for number in range(501)]},
        "501 limits would apply to every request; at most 500",
    ),
    (
        {"rules": [Rule("a", "1/s")] + [Rule(f"r{n}", "1/s", path="/{x}") for n in range(500)]},
        "501 limits would apply to one request for '/{x}'; at most 500",
    ),
    ({"rules": [Rule("a", "1/s"), Rule("A", "2/s")]}, "two rules are named 'A'"),
    (
        {"rules": [Rule("a", "1/s; 5/minute"), Rule("A:60", "5/minute")]},
        "rules 'a' and 'A:60' would both be shown to clients as 'A:60'",
    ),
    ({"rules": ["a"]}, "a RuleSet holds Rule objects, not str"),
    ({"store": "redis//localhost"}, "the store is not a URI"),
    ({"store": "http://x"}, "the store's scheme is 'http'; there are memory://"),
    ({"deadline_us": 999}, "the deadline is 0.000999 s; it is 1 ms to 60 s"),
    ({"deadline_us": 60_000_001}, "it is 1 ms to 60 s"),
    ({"deadline_us": 0.05}, "the deadline is whole microseconds, not float"),
    ({"workers": 0}, "workers is 0; it is 1 to 10000"),
    ({"workers": 1.5}, "workers is a whole number, not float"),
    ({"share": 0}, "share is 0; it is above 0 and at most 1"),
    ({"share": 1.01}, "share is 1.01; it is above 0 and at most 1"),
    ({"share": True}, "share is a number, not bool"),
    ({"trusted_proxies": [ip_network("::/0")]}, "::/0 trusts everyone"),
    ({"trusted_proxies": [ip_network("::ffff:0:0/96")]}, "0.0.0.0/0 trusts everyone"),
    ({"denylist": ["10.0.0.0/8"]}, "a list of networks holds '10.0.0.0/8'"),
    ({"trusted_hops": -1}, "trusted_hops is -1; it is 0 to 32"),
    ({"trusted_hops": 33}, "trusted_hops is 33; it is 0 to 32"),
    ({"trusted_hops": 1, "trusted_proxies": [ip_network("::1")]}, "both trusted_hops and trusted"),
    ({"forwarded_header": "via"}, "forwarded_header is 'via'; it is 'x-forwarded-for' or"),
    ({"ipv6_prefix": 129}, "ipv6_prefix is 129; it is 16 to 128"),
    ({"retry_jitter_us": 60_000_001}, "retry_jitter_us is 60000001; it is 0 to 60000000"),
    ({"preflights": "no"}, "preflights is 'no'; it is 'free' or 'count'"),
    ({"headers": ["x"]}, "headers holds 'x'; its items are 'draft', 'legacy', 'draft-03'"),
]


@pytest.mark.parametrize(("given", "sentence"), SETS_REFUSED)
def test_a_set_that_could_not_be_meant_is_refused_in_one_sentence(
    given: dict[str, Any], sentence: str
) -> None:
    with pytest.raises((ValueError, TypeError)) as refused:
        RuleSet(**{"rules": ()} | given)
    assert sentence in str(refused.value)


def test_a_stores_password_is_in_no_message_and_no_repr() -> None:
    rule_set = RuleSet((), store="redis://:hunter2@localhost")
    assert "hunter2" not in repr(rule_set)
    with pytest.raises(ValueError) as refused:
        RuleSet((), store="redis://:hunter2@local host")
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    "uri",
    [
        "memory://",
        "redis://",
        "redis://localhost:6379/0",
        "rediss://u:p@h/1?ssl_cert_reqs=none",
        "unix:///run/redis.sock",
        "redis+cluster://a:7000,b:7000",
        "redis+sentinel://a:26379,b:26379/main",
    ],
)
def test_a_set_takes_the_uri_of_every_kind_of_store(uri: str) -> None:
    if uri == "redis://":
        with pytest.raises(ValueError, match="name a server"):
            RuleSet((), store=uri)
    else:
        assert RuleSet((), store=uri).store == uri


def test_a_rules_highest_cost_is_that_of_a_check() -> None:
    assert options.MOST_COST == decisions.MOST_COST


def test_the_index_reads_parameters_where_starlette_does() -> None:
    for path in ("/a/{x}", "/{_x1:int}b", "/a", "/{rest:path}"):
        found = [name for name, _ in paths._PARAMETER.findall(path)]
        assert found == list(compile_path(path)[2])


def test_tiers_and_their_limits_are_kept_in_order() -> None:
    rule = Rule("a", {"free": "1/s; 9/minute", "pro": Limit("5/s"), "all": None}, tier="user:plan")
    assert list(rule.tiers) == ["free", "pro", "all"]
    assert rule.limits == rule.tiers["free"] == Limit.parse_all("1/s; 9/minute")
    assert rule.tiers["all"] == ()
    assert rule.policies == ("a:1", "a:60")


def test_overrides_by_client_follow_the_prefix_by_which_clients_are_counted() -> None:
    rule = Rule("a", "1/s", overrides={"2001:db8:1:2ff::1": "5/s", "192.0.2.1": "7/s"})
    assert list(rule.overrides) == ["2001:db8:1:2ff::/64", "192.0.2.1"]
    (wide,) = RuleSet((rule,), ipv6_prefix=56).in_force().rules
    assert list(wide.overrides) == ["2001:db8:1:200::/56", "192.0.2.1"]
    (narrow,) = RuleSet((rule,), ipv6_prefix=128).in_force().rules
    assert list(narrow.overrides) == ["2001:db8:1:2ff::1/128", "192.0.2.1"]


def test_a_routes_own_rule_may_name_any_path_parameter() -> None:
    assert Rule("a", "1/s", by="path:id", on_route=True).by == ("path:id",)


def test_methods_without_end_are_not_remembered() -> None:
    rule_set = RuleSet((Rule("a", "1/s"),))
    for number in range(100):
        assert names(rule_set, f"M{number}", "/") == ["a"]
        assert names(rule_set, "GET", f"/{number}") == ["a"]
        assert names(rule_set, "GET", f"/{number}\n") == ["a"]
    assert len(rule_set.index.candidates) == 1


async def test_as_many_limits_as_a_set_may_have_are_decided() -> None:
    limiter = RateLimiter([Rule(f"r{number}", "1/minute") for number in range(500)])
    answers = [await limiter.admit(http_scope()) for _ in range(2)]
    assert [each.refusal is None for each in answers] == [True, False]
