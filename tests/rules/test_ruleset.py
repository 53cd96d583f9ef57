"""Sets of rules: which of them apply to a request, and what a set refuses to be."""

import random
import time
from ipaddress import ip_network
from typing import Any

import pytest
from starlette.routing import Route, compile_path

from ratelimit import RateLimiter
from ratelimit.rules import paths
from ratelimit.rules.paths import normalised
from ratelimit.rules.rule import Rule
from ratelimit.rules.ruleset import RuleSet
from tests.support.asgi import http_scope


def names(rule_set: RuleSet, method: str, path: str) -> list[str]:
    return [rule.name for rule, _ in rule_set.matching(method, path)]


def test_rules_and_sets_are_equal_by_value_and_hashable() -> None:
    def build() -> RuleSet:
        return RuleSet((Rule("a", "5/minute; 20/hour", overrides={"::1": "1/second"}),))

    assert build() == build()
    assert hash(build()) == hash(build())
    assert build() != RuleSet((Rule("a", "5/minute; 20/hour"),))


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
            if rule.mode != "off"
            for each in [(rule.match(method, path), rule.match(method, normalised(path)))]
            if (parameters := each[0] if each[1] is None else each[1]) is not None
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
    ({"forwarded_header": "via"}, "forwarded_header is 'via'; it is x-forwarded-for"),
    ({"ipv6_prefix": 129}, "ipv6_prefix is 129; it is 16 to 128"),
    ({"retry_jitter_us": 60_000_001}, "the jitter is 60.000001 s; it is at most 60 s"),
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


def test_the_index_reads_parameters_where_starlette_does() -> None:
    for path in ("/a/{x}", "/{_x1:int}b", "/a", "/{rest:path}"):
        found = [name for name, _ in paths._PARAMETER.findall(path)]
        assert found == list(compile_path(path)[2])


def test_overrides_by_client_follow_the_prefix_by_which_clients_are_counted() -> None:
    rule = Rule("a", "1/s", overrides={"2001:db8:1:2ff::1": "5/s", "192.0.2.1": "7/s"})
    assert list(rule.overrides) == ["2001:db8:1:2ff::/64", "192.0.2.1"]
    (wide,) = RuleSet((rule,), ipv6_prefix=56).in_force().rules
    assert list(wide.overrides) == ["2001:db8:1:200::/56", "192.0.2.1"]
    (narrow,) = RuleSet((rule,), ipv6_prefix=128).in_force().rules
    assert list(narrow.overrides) == ["2001:db8:1:2ff::1/128", "192.0.2.1"]


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
