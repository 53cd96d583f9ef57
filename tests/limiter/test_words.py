"""Exceptions, hosts, rules in place of others, blocked identities, fields of one address."""

import asyncio
import logging
from fractions import Fraction
from ipaddress import ip_network
from typing import Any

import pytest
from redis.asyncio import Redis
from starlette.convertors import Convertor, register_url_convertor

from ratelimit import Limit, MemoryStore, RateLimiter, Rule, RuleFileError, RuleSet
from ratelimit.testing import ManualClock
from tests.support.asgi import http_scope

PROXY = ("10.0.0.1", 80)
TRUSTED = [ip_network("10.0.0.0/8")]


def limiting(*rules: Rule, **options: Any) -> RateLimiter:
    of_set = {key: options.pop(key) for key in list(options) if key in RuleSet.__annotations__}
    return RateLimiter(RuleSet(rules, **of_set), store=MemoryStore(clock=ManualClock()), **options)


async def admitted(limiter: RateLimiter, times: int, path: str = "/", **scope: Any) -> int:
    """How many of so many requests pass."""
    answers = [await limiter.admit(http_scope(path, **scope)) for _ in range(times)]
    return sum(each.refusal is None for each in answers)


def named(name: str) -> list[tuple[str, str]]:
    return [("host", name)]


# --- except --------------------------------------------------------------------------------------

EVERYTHING = Rule("all", "1/minute", except_=["/health", "/static/{rest:path}", "/docs/"])


@pytest.mark.parametrize("path", ["/health", "/static/a.css", "/static/a/b/", "/docs/", "/static/"])
async def test_a_rule_is_not_for_the_paths_that_it_excepts(path: str) -> None:
    assert await admitted(limiting(EVERYTHING), 3, path) == 3


@pytest.mark.parametrize(
    "path",
    [
        "//health", "/./health", "/health/", "/x/../health", "/health/..", "/static/../login",
        "/static/..", "/static/x/../../login", "/static//../login", "/static/./../login", "/Health",
        "/static\\..\\..\\login", "/static/..\\login", "/healthy", "/docs",
        "/static/a/../../../etc",
    ],
)  # fmt: skip
async def test_no_other_way_to_write_a_path_makes_it_an_exception(path: str) -> None:
    assert await admitted(limiting(EVERYTHING), 3, path) == 1


async def test_an_exception_holds_for_its_rule_alone_and_below_its_path() -> None:
    limiter = limiting(
        Rule("api", "1/minute", path="/api/{rest:path}", except_="/api/health"),
        Rule("all", "2/minute"),
    )
    assert await admitted(limiter, 5, "/api/health") == 2
    assert await admitted(limiting(*limiter.rules.rules), 5, "/api/items") == 1


async def test_of_several_exceptions_one_may_match_as_sent_and_another_without_dots() -> None:
    rule = Rule("all", "1/minute", except_=["/a/{rest:path}", "/b/{rest:path}"])
    assert await admitted(limiting(rule), 3, "/a/../b/c") == 3
    assert await admitted(limiting(rule), 3, "/a/../../c") == 1


@pytest.mark.parametrize(
    "path", ["/files/a.txt", "/files//a.txt", "/files/./a.txt", "/x/../files/a.txt"]
)
async def test_a_rule_for_a_file_is_for_every_way_to_write_its_path(path: str) -> None:
    rule = Rule("a", "1/minute", path="/files/a.txt")
    assert await admitted(limiting(rule), 3, path) == 1
    of_any = Rule("a", "1/minute", path="/files/{name}", by="path:name")
    assert await admitted(limiting(of_any), 3, path) == 1


async def test_every_way_to_write_a_path_is_one_identity_by_its_parameter() -> None:
    rule = Rule("a", "1/minute", path="/files/{rest:path}", by="path:rest")
    written = [
        "/files/a",
        "/files//a",
        "/files/./a",
        "/files/b/../a",
        "/files/b\\..\\a",
        "//files/a",
    ]
    limiter = limiting(rule)
    assert sum([await admitted(limiter, 1, path) for path in written]) == 1


class _Code(Convertor[str]):
    regex = "(?:[a-z]+|[0-9]+)"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


async def test_an_exception_is_for_no_more_than_a_route_of_its_path() -> None:
    register_url_convertor("code_of_words", _Code())
    rule = Rule("a", "1/minute", except_=["/p/{code:code_of_words}", "/s/{rest:path}"])
    for path in ("/p/" + "x/" * 1_000 + "admin", "/p/" + "1" * 9 + "/" * 1_000 + "x", "/s/a\nb"):
        assert await admitted(limiting(rule), 3, path) == 1
    for path in ("/p/abc", "/p/123", "/p/abc\n", "/s/" + "x/" * 1_000):
        assert await admitted(limiting(rule), 3, path) == 3


# --- host ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["app.example.com", "APP.example.com:8000", "app.example.com."])
async def test_a_rule_with_a_host_is_for_requests_that_name_it(host: str) -> None:
    rule = Rule("app", "1/minute", host="App.Example.com")
    assert await admitted(limiting(rule), 3, headers=named(host)) == 1


@pytest.mark.parametrize("host", ["example.com", "app.example.com.evil", "", "x" * 1000, "[::1]:1"])
async def test_a_request_that_names_another_host_is_not_its(host: str) -> None:
    rule = Rule("app", "1/minute", host=["app.example.com", "::2"])
    assert await admitted(limiting(rule), 3, headers=named(host)) == 3
    assert await admitted(limiting(rule), 3) == 3


async def test_a_forwarded_host_is_believed_from_a_trusted_proxy_alone() -> None:
    rule = Rule("app", "1/minute", host="app.example.com")
    forwarded = [("host", "internal"), ("x-forwarded-host", "evil, app.example.com")]
    limiter = limiting(rule, trusted_proxies=TRUSTED)
    assert await admitted(limiter, 3, headers=forwarded) == 3
    assert await admitted(limiter, 3, headers=forwarded, client=PROXY) == 1


@pytest.mark.parametrize(
    "host", ["app.example.com:80:80", "app.example.com::", f"app.example.com:{'0' * 400}80"]
)
async def test_nothing_behind_a_host_makes_it_another(host: str) -> None:
    rule = Rule("app", "1/minute", host="app.example.com")
    assert await admitted(limiting(rule), 3, headers=named(host)) == 1


# --- replaces ------------------------------------------------------------------------------------


async def test_a_rule_takes_the_place_of_another_on_its_path() -> None:
    limiter = limiting(
        Rule("all", "1/minute"),
        Rule("search", "3/minute", path="/search", replaces=["all"]),
    )
    assert await admitted(limiter, 5, "/search") == 3
    assert await admitted(limiter, 5, "/") == 1


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "shadow"},
        {"mode": "off"},
        {"skip": lambda _: True},
        {"by": "user", "on_missing": "skip"},
        {"enforce_share": 1e-9},
        {"overrides": {"192.0.2.1": "unlimited"}},
        {"allowlist": [ip_network("192.0.2.0/24")]},
    ],
)
async def test_a_rule_that_does_not_count_a_request_takes_no_place(options: Any) -> None:
    limiter = limiting(
        Rule("all", "1/minute"), Rule("search", "3/minute", replaces="all", **options)
    )
    assert await admitted(limiter, 5, client=("192.0.2.1", 1)) == 1


async def test_a_killed_rule_takes_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RATELIMIT_KILL", "search")
    limiter = limiting(Rule("all", "1/minute"), Rule("search", "3/minute", replaces="all"))
    async with limiter:
        assert await admitted(limiter, 5) == 1


async def test_who_is_replaced_takes_the_place_of_nobody() -> None:
    for dynamic in (False, True):
        limiter = limiting(
            Rule("c", "1/minute"),
            Rule("b", "2/minute", replaces="c"),
            Rule("a", (lambda _: "3/minute") if dynamic else "3/minute", replaces="b"),
        )
        assert await admitted(limiter, 5) == 1


async def test_a_value_that_a_client_picks_takes_a_place_only_where_an_override_names_it() -> None:
    limiter = limiting(
        Rule("all", "1/minute"),
        Rule("keys", "1/minute", by="header:x-key", replaces="all", overrides={"gold": "3/minute"}),
    )
    assert await admitted(limiter, 5, headers=[("x-key", "gold")]) == 3
    assert sum([await admitted(limiter, 1, headers=[("x-key", str(n))]) for n in range(5)]) == 1


async def test_a_second_part_that_a_client_picks_takes_a_place_only_where_both_are_named() -> None:
    limiter = limiting(
        Rule("all", "1/minute"),
        Rule(
            "keys", "1/minute", by=["client", "header:x-key"], replaces="all",
            overrides={"192.0.2.1": "9/minute", "192.0.2.2|gold": "3/minute"},
        ),
    )  # fmt: skip
    picked = [
        await admitted(limiter, 1, client=("192.0.2.1", 1), headers=[("x-key", str(n))])
        for n in range(5)
    ]
    assert sum(picked) == 1
    gold: Any = {"client": ("192.0.2.2", 1), "headers": [("x-key", "gold")]}
    assert await admitted(limiter, 5, **gold) == 3


@pytest.mark.parametrize("more", [{}, {"skip": lambda _: False}, {"overrides": {"b": "1/s"}}])
async def test_a_rule_by_a_header_takes_the_place_of_one_by_the_same_header(more: Any) -> None:
    limiter = limiting(
        Rule("all", "1/minute", by="header:x-key"),
        Rule("search", "3/minute", by="header:x-key", replaces="all", **more),
    )
    assert await admitted(limiter, 5, headers=[("x-key", "a")]) == 3
    assert await admitted(limiter, 5) == 3


@pytest.mark.parametrize(
    ("of_all", "of_one"),
    [
        ({"by": "path:account", "path": "/{account}"}, {"by": "header:x-key"}),
        ({"by": "header:x-account"}, {"by": ["header:x-account", "cookie:c"]}),
        ({"by": "path:a", "path": "/{a}"}, {"by": "path:a", "path": "/{b}/{a}"}),
    ],
)
def test_a_rule_is_not_replaced_by_what_it_does_not_count_by(of_all: Any, of_one: Any) -> None:
    rules = Rule("all", "1/minute", **of_all), Rule("one", "9/minute", **of_one, replaces="all")
    with pytest.raises(ValueError, match="would be escaped by sending another"):
        RuleSet(rules)
    named = {"x|y" if len(rules[1].by) == 2 else "x": "3/minute"}
    in_place = Rule("one", "9/minute", **of_one, replaces="all", overrides=named)
    assert RuleSet((rules[0], in_place)).rules[1].replaces == ("all",)


async def test_an_identity_of_the_applications_may_take_the_place_of_a_rule_by_client() -> None:
    limiter = limiting(
        Rule("all", "1/minute"),
        Rule("accounts", "3/minute", by="account", replaces="all"),
        identities={"account": lambda connection: connection.headers.get("x-account")},
    )
    assert await admitted(limiter, 5, headers=[("x-account", "a")]) == 3


# --- blocked, and overrides of all parts ---------------------------------------------------------


async def test_a_blocked_identity_is_refused_with_403_and_counted_as_turned_away() -> None:
    rule = Rule("keys", "9/minute", by="header:x-key", overrides={"stolen": "blocked"})
    limiter = limiting(rule)
    refusal = (await limiter.admit(http_scope(headers=[("x-key", "stolen")]))).refusal
    assert refusal is not None
    assert refusal.status == 403
    assert b"identity-blocked" in refusal.body
    assert b"address" not in refusal.body
    assert limiter.counts["keys", "turned-away"] == 1
    assert await admitted(limiter, 3, headers=[("x-key", "mine")]) == 3


async def test_in_shadow_nobody_is_blocked() -> None:
    rule = Rule("keys", "9/minute", mode="shadow", overrides={"192.0.2.1": "blocked"})
    assert await admitted(limiting(rule), 3, client=("192.0.2.1", 1)) == 3


async def test_a_set_with_a_blocked_identity_is_another_than_with_an_unlimited_one() -> None:
    blocked, unlimited = (
        RuleSet((Rule("a", "1/s", overrides={"192.0.2.1": word}),))
        for word in ("blocked", "unlimited")
    )
    assert blocked != unlimited
    assert blocked == RuleSet((Rule("a", "1/s", overrides={"192.0.2.1": "blocked"}),))


BOTH = Rule(
    "keys",
    "1/minute",
    by=["header:x-key", "client"],
    overrides={"a": "2/minute", "a|192.0.2.1": "3/minute", "b%7Cc|2001:db8::1": "blocked"},
)


async def test_an_override_of_all_parts_comes_before_that_of_the_first() -> None:
    limiter = limiting(BOTH)
    key = [("x-key", "a")]
    assert await admitted(limiter, 5, headers=key, client=("192.0.2.1", 1)) == 3
    assert await admitted(limiter, 5, headers=key, client=("192.0.2.2", 1)) == 2
    barred: Any = {"headers": [("x-key", "b|c")], "client": ("2001:db8::ffff", 1)}
    assert await admitted(limiter, 5, **barred) == 0


@pytest.mark.parametrize(
    "value",
    ["a|192.0.2.1", "\\0", "a|192.0.2.1|", "0a|192.0.2.1", "14:header:x-key=a17:client=192.0.2.1"],
)
async def test_no_value_of_the_first_part_is_taken_for_all_parts(value: str) -> None:
    assert (
        await admitted(limiting(BOTH), 5, headers=[("x-key", value)], client=("192.0.2.9", 1)) == 1
    )


async def test_a_first_part_that_the_application_gives_is_not_taken_for_all_parts() -> None:
    (whole,) = [key for key in BOTH.overrides if "192.0.2.1" in key]
    rule = Rule("keys", "1/minute", by=["who", "client"], overrides={"a|192.0.2.1": "3/minute"})
    (of_who,) = rule.overrides
    limiter = limiting(rule, identities={"who": lambda _: of_who})
    assert whole[0] == of_who[0] == "\0"
    assert await admitted(limiter, 5) == 1


async def test_overrides_of_all_parts_follow_the_prefix_of_addresses() -> None:
    rule = Rule("a", "1/minute", by=["route", "client"], overrides={"/|2001:db8::1": "3/minute"})
    limiter = limiting(rule, ipv6_prefix=48)
    (only,) = limiter.rules.in_force().rules
    assert list(only.overrides) == ["\0" + "7:route=/20:client=2001:db8::/48"]


async def test_a_first_part_alone_may_hold_a_bar_as_well() -> None:
    rule = Rule("a", "1/minute", by=["header:x-user", "route"], overrides={"id%7C7": "3/minute"})
    assert await admitted(limiting(rule), 5, headers=[("x-user", "id|7")]) == 3


# --- fields of one address -----------------------------------------------------------------------


async def test_a_field_of_one_address_is_believed_from_a_trusted_proxy_alone() -> None:
    limiter = limiting(Rule("a", "1/minute"), trusted_proxies=TRUSTED, forwarded_header="x-real-ip")
    for number in range(3):
        headers = [("x-real-ip", f"203.0.113.{number}")]
        assert await admitted(limiter, 2, headers=headers, client=PROXY) == 1
    picked = [
        await admitted(limiter, 1, headers=[("x-real-ip", f"203.0.113.{n}")]) for n in range(5)
    ]
    assert sum(picked) == 1


@pytest.mark.parametrize(
    "headers",
    [
        [("x-real-ip", "203.0.113.1"), ("x-real-ip", "203.0.113.2")],
        [("x-real-ip", "203.0.113.1, 203.0.113.2")],
        [("x-real-ip", "unknown")],
        [("x-real-ip", "1" * 10_000)],
        [],
    ],
)
async def test_what_is_not_one_address_counts_as_the_peer_and_is_told_once(
    headers: list[tuple[str, str]], caplog: pytest.LogCaptureFixture
) -> None:
    limiter = limiting(Rule("a", "2/minute"), trusted_proxies=TRUSTED, forwarded_header="x-real-ip")
    with caplog.at_level(logging.WARNING, "ratelimit"):
        assert await admitted(limiter, 2, client=PROXY) == 2
        assert await admitted(limiter, 3, headers=headers, client=PROXY) == 0
        await asyncio.sleep(0)
    assert caplog.text.count("forwarded-unread") == 1
    assert "203.0.113" not in caplog.text


@pytest.mark.parametrize("field", ["x-real-ip", "cf-connecting-ip", "true-client-ip"])
async def test_the_usual_fields_of_one_address_are_told_where_nobody_is_trusted(
    field: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "ratelimit"):
        await admitted(limiting(Rule("a", "2/minute")), 1, headers=[(field, "203.0.113.1")])
    assert "forwarded-untrusted" in caplog.text


# --- free ----------------------------------------------------------------------------------------


async def test_the_first_few_pass_a_leaking_bucket_at_once_and_the_others_wait() -> None:
    rule = Rule("a", "10/second", algorithm="leaking_bucket", burst=6, free=3)
    limiter = limiting(rule)
    answers = [await limiter.admit(http_scope()) for _ in range(7)]
    assert [each.delay_us for each in answers] == [0, 0, 0, 100_000, 200_000, 300_000, 0]
    assert [each.refusal is None for each in answers] == [True] * 6 + [False]


async def test_max_delay_bounds_what_waits_beside_what_is_free() -> None:
    rule = Rule("a", "10/second", algorithm="leaking_bucket", burst=100, free=5, max_delay=0.2)
    assert rule.limits[0].capacity == 7


async def test_an_override_lets_no_more_pass_at_once_than_it_holds() -> None:
    rule = Rule(
        "a", "10/second", algorithm="leaking_bucket", free=5,
        overrides={"192.0.2.1": "2/second", "192.0.2.2": "20/second"},
    )  # fmt: skip
    assert [limits[0].free for limits in rule.overrides.values()] == [2, 5]


async def test_no_more_is_free_than_a_function_gives() -> None:
    limiter = limiting(Rule("a", lambda _: "2/second", algorithm="leaking_bucket", free=5))
    assert await admitted(limiter, 5) == 2
    with pytest.raises(ValueError, match="free is 5; it is 1 to 3"):
        Rule("a", lambda _: "9/second", algorithm="leaking_bucket", free=5, burst=3)
    with pytest.raises(ValueError, match="free belongs to a leaking_bucket"):
        Rule("a", lambda _: "9/second", algorithm="token_bucket", free=5)


# --- costs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("cost", [101, 2**42, 2**42 + 1, 10**13, 2**53, 10**400])
@pytest.mark.parametrize("limit", ["100/minute", "4398046511104/day", "9000000000000/week"])
async def test_a_cost_that_no_limit_holds_can_never_pass_however_large(
    cost: int, limit: str
) -> None:
    rule = Rule("a", limit, cost=lambda _: cost, algorithm="fixed_window")
    refusal = (await limiting(rule).admit(http_scope())).refusal
    fits = cost <= 2**42 and cost <= rule.limits[0].capacity
    assert (refusal is None) is fits
    if refusal is not None:
        assert refusal.status == 429
        assert b"retry-after" not in dict(refusal.headers)
        assert refusal.title == "Cost Exceeds Limit"


async def test_in_shadow_a_cost_that_can_never_pass_is_only_counted() -> None:
    rule = Rule("a", "100/minute", cost=lambda _: 2**50, mode="shadow")
    limiter = limiting(rule)
    assert await admitted(limiter, 1) == 1
    assert limiter.counts["a", "shadow-denied"] == 1


async def test_overrides_of_all_parts_that_a_prefix_makes_one_client_are_a_mistake() -> None:
    text = """version: 1
ipv6_prefix: 48
rules:
  - name: a
    by: [route, client]
    limit: 1/minute
    overrides: {"/|2001:db8::1": 2/minute, "/|2001:db8:0:1::1": 3/minute}
"""
    with pytest.raises(RuleFileError, match=r"same client as another.*\[same-override\]"):
        RuleSet.loads(text)


def test_an_edit_of_an_address_is_seen_also_where_both_are_of_one_network() -> None:
    one, other = (
        RuleSet((Rule("a", "1/s", overrides={address: "2/s"}),), ipv6_prefix=128)
        for address in ("2001:db8::1", "2001:db8::2")
    )
    assert one != other


def test_rules_in_force_may_be_put_in_force_again() -> None:
    rule = Rule("a", "10/s", overrides={"2001:db8::1": "20/s"})
    once = RuleSet((rule,), share=Fraction(1, 2), ipv6_prefix=48).in_force()
    assert once.in_force().rules[0].overrides == once.rules[0].overrides
    assert once.rules[0].overrides["2001:db8::/48"][0].quota == 10


# --- natural ways to say it ----------------------------------------------------------------------


def test_several_limits_may_be_a_list_of_texts() -> None:
    listed = Rule("a", ["5/minute", "9/day"], overrides={"192.0.2.1": ["7/minute"]})
    assert listed == Rule("a", "5/minute; 9/day", overrides={"192.0.2.1": "7/minute"})
    assert Rule("a", ["5/s burst 9"], algorithm="token_bucket").limits[0].burst == 9
    with pytest.raises(TypeError, match="holds Limit objects, not str"):
        Rule("a", [Limit("1/s"), "9/day"])  # type: ignore[arg-type]


async def test_a_client_in_place_of_a_store_is_refused_with_the_way_out() -> None:
    client = Redis()
    with pytest.raises(TypeError, match=r"the store is a Redis, .*; give RedisStore\(client\)"):
        RateLimiter([Rule("a", "1/s")], store=client)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="the store is a dict, which decides nothing"):
        RateLimiter([Rule("a", "1/s")], store={})  # type: ignore[arg-type]
    await client.aclose()
