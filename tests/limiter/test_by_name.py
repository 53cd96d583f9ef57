"""Counters without a request: looked at, charged and reset by a rule's name and an identity."""

import asyncio
from collections.abc import Iterator
from fractions import Fraction
from ipaddress import ip_network
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from ratelimit import (
    Limit,
    MemoryStore,
    RateLimiter,
    RateLimitMiddleware,
    RedisStore,
    Rule,
    RuleSet,
    StoreUnavailable,
    limit,
)
from ratelimit.limiter.identified import MOST_NAMED, no_such_rule
from ratelimit.testing import ManualClock
from tests.support.asgi import ask, http_scope
from tests.support.asgi import limiter as limiting
from tests.support.clusters import Cluster, cluster
from tests.support.servers import Server, binaries, serving

HOUR = Rule("login", "3/hour", algorithm="fixed_window")


def user(name: object) -> SimpleNamespace:
    return SimpleNamespace(is_authenticated=True, identity=name)


async def admitted(limiter: RateLimiter, **request: Any) -> bool:
    return (await limiter.admit(http_scope(**request))).refusal is None


async def remaining(limiter: RateLimiter, rule: str, *identity: str | int) -> list[int]:
    return [decision.remaining for decision in await limiter.peek(rule, *identity)]


# --- one counter ---------------------------------------------------------------------------------

LONG = "x" * 300
ID = "6f7f1d4e-8a0e-4f2b-9a76-0f4f3f0a1c55"

IDENTITIES: list[tuple[str | list[str], dict[str, Any], tuple[str | int, ...]]] = [
    ("client", {"client": ("198.51.100.7", 1)}, ("198.51.100.7",)),
    ("client", {"client": ("2001:db8::1", 1)}, ("2001:db8::ffff",)),
    ("client", {"client": ("2001:db8::1", 1)}, ("2001:db8::/64",)),
    ("client", {"client": ("::ffff:192.0.2.9", 1)}, ("192.0.2.9",)),
    ("client", {"client": None}, ("unidentified",)),
    ("global", {}, ()),
    ("user", {"user": user("alice")}, ("alice",)),
    ("user", {"user": user(7)}, (7,)),
    ("user", {"user": user(UUID(ID))}, (ID,)),
    ("header:X-API-Key", {"headers": [("x-api-key", "sk=1:2")]}, ("sk=1:2",)),
    ("header:x-api-key", {"headers": [("x-api-key", LONG)]}, (LONG,)),
    ("cookie:session", {"headers": [("cookie", 'session="a b"')]}, ("a b",)),
    ("query:key", {"query_string": b"key=%C3%A9+1"}, ("é 1",)),
    ("path:id", {"path": "/items/7"}, (7,)),
    (["user", "client"], {"user": user("alice")}, ("alice", "192.0.2.1")),
    (["client", "header:x"], {"headers": [("x", "8:client=1")]}, ("192.0.2.1", "8:client=1")),
    (["global", "user"], {"user": user("alice")}, ("alice",)),
    ("account", {"headers": [("x", "acme")]}, ("acme",)),
]


@pytest.mark.parametrize(("by", "request_", "identity"), IDENTITIES)
async def test_an_identity_by_name_is_that_of_its_requests(
    by: Any, request_: dict[str, Any], identity: tuple[str | int, ...]
) -> None:
    path = "/items/{id:int}" if by == "path:id" else None
    accounts = {"account": lambda connection: connection.headers.get("x")}
    limiter = limiting(Rule("r", "3/hour", by=by, path=path), identities=accounts)
    assert await admitted(limiter, **request_)
    assert await remaining(limiter, "r", *identity) == [2]
    assert (await limiter.charge("r", *identity, cost=2)).allowed
    assert not await admitted(limiter, **request_)
    assert not (await limiter.charge("r", *identity)).allowed
    await limiter.reset("r", *identity)
    assert await remaining(limiter, "r", *identity) == [3]
    assert await admitted(limiter, **request_)


async def test_a_charge_takes_all_of_a_rules_limits_or_none() -> None:
    limiter = limiting(Rule("r", "2/second; 3/hour", algorithm="fixed_window", cost=2))
    assert [each.allowed for each in await limiter.charge("r", "192.0.2.1")] == [True, True]
    refused = await limiter.charge("r", "192.0.2.1")
    assert (refused.allowed, refused.delay) == (False, 0.0)
    assert refused.retry_after == max(each.retry_after or 0.0 for each in refused) > 1
    assert await remaining(limiter, "r", "192.0.2.1") == [0, 1]
    never = await limiter.charge("r", "192.0.2.1", cost=3)
    assert (never.allowed, never.retry_after) == (False, None)
    assert (await limiter.charge("r", "192.0.2.1", cost=0)).retry_after == 0.0
    assert limiter.counts["r", "never"] == 1
    assert limiter.counts["r", "denied"] == 1
    assert limiter.denials.busiest() == [("r 192.0.2.1", 2)]  # not of each limit


async def test_a_leaking_bucket_tells_how_long_its_turn_takes_and_waits_for_nobody() -> None:
    limiter = limiting(Rule("r", "1/second", algorithm="leaking_bucket", burst=3, by="global"))
    assert [(await limiter.charge("r")).delay for _ in range(3)] == [0.0, 1.0, 2.0]
    assert (await limiter.charge("r")).delay == 0.0


async def test_a_cost_that_a_function_gives_is_1_by_name() -> None:
    limiter = limiting(Rule("r", "9/hour", by="global", cost=lambda _: 5))
    await limiter.charge("r")
    assert await remaining(limiter, "r") == [8]


# --- who has other limits ------------------------------------------------------------------------


async def test_an_override_holds_by_the_first_part_and_by_all() -> None:
    overrides = {"alice": "5/hour", "bob|192.0.2.9": "7/hour", "eve": "unlimited"}
    limiter = limiting(Rule("r", "3/hour", by=["user", "client"], overrides=overrides))
    assert await remaining(limiter, "r", "alice", "192.0.2.1") == [5]
    assert await remaining(limiter, "r", "bob", "192.0.2.9") == [7]
    assert await remaining(limiter, "r", "bob", "192.0.2.1") == [3]
    assert await remaining(limiter, "r", "eve", "192.0.2.1") == []
    assert (await limiter.charge("r", "eve", "192.0.2.1")).allowed
    assert await admitted(limiter, user=user("alice"))
    assert await remaining(limiter, "r", "alice", "192.0.2.1") == [4]
    await limiter.reset("r", "alice", "192.0.2.1")
    await limiter.reset("r", "eve", "192.0.2.1")
    assert await remaining(limiter, "r", "alice", "192.0.2.1") == [5]


async def test_who_is_blocked_is_never_let_through_and_asks_the_store_nothing() -> None:
    rule = Rule("r", "3/hour", by="user", overrides={"mallory": "blocked"})
    limiter = limiting(
        rule, Rule("trial", "3/hour", mode="shadow", overrides={"192.0.2.1": "blocked"})
    )
    refused = await limiter.charge("r", "mallory")
    assert (refused.allowed, refused.retry_after) == (False, None)
    (state,) = await limiter.peek("r", "mallory")
    assert (state.allowed, state.remaining, state.retry_after) == (False, 0, None)
    assert limiter.counts == {("r", "turned-away"): 1}
    await limiter.reset("r", "mallory")
    assert (await limiter.charge("trial", "192.0.2.1")).allowed


async def test_the_lists_of_clients_hold_by_name_where_a_rule_counts_by_client() -> None:
    limiter = limiting(
        Rule(
            "r",
            "1/hour",
            allowlist=[ip_network("192.0.2.0/28")],
            denylist=[ip_network("192.0.2.99/32")],
        ),
        Rule("u", "1/hour", by="user", path="/u"),
        denylist=[ip_network("203.0.113.0/24")],
        allowlist=[ip_network("198.51.100.0/24")],
    )
    for client, passes in (("192.0.2.1", 2), ("192.0.2.99", 0), ("203.0.113.1", 0),
                           ("198.51.100.1", 2), ("192.0.2.50", 1)):  # fmt: skip
        told = [(await limiter.charge("r", client)).allowed for _ in range(2)]
        assert sum(told) == passes, client
        state = await limiter.peek("r", client)
        assert [each.remaining for each in state] == ([] if passes == 2 else [0]), client
        await limiter.reset("r", client)
        assert sum([await admitted(limiter, client=(client, 1)) for _ in range(2)]) == passes
    assert [(await limiter.charge("u", "192.0.2.99")).allowed for _ in range(2)] == [True, False]


async def test_a_tier_is_given_or_the_first_and_reset_forgets_all() -> None:
    limits = {"free": "3/hour", "pro": "30/hour", "all": "unlimited"}
    limiter = limiting(Rule("r", limits, by="user", tier="user:plan"))
    request = {"user": SimpleNamespace(is_authenticated=True, identity="a", plan="pro")}
    assert await admitted(limiter, **request)
    assert [each.remaining for each in await limiter.peek("r", "a", tier="pro")] == [29]
    assert await remaining(limiter, "r", "a") == [3]
    assert await limiter.peek("r", "a", tier="all") == ()
    assert (await limiter.charge("r", "a", tier="pro", cost=29)).allowed
    await limiter.charge("r", "a")
    assert not await admitted(limiter, **request)
    await limiter.reset("r", "a")
    assert await admitted(limiter, **request)
    assert await remaining(limiter, "r", "a") == [3]


# --- what has no say -----------------------------------------------------------------------------


async def test_a_shadow_decides_and_lets_through() -> None:
    limiter = limiting(Rule("r", "1/hour", mode="shadow"))
    outcomes = [await limiter.charge("r", "192.0.2.1") for _ in range(2)]
    assert [each.allowed for each in outcomes] == [True, True]
    assert [each[0].allowed for each in outcomes] == [True, False]
    assert outcomes[1].retry_after == 0.0
    assert limiter.counts == {("r", "shadow-allowed"): 1, ("r", "shadow-denied"): 1}


async def test_a_share_of_the_identities_is_held_to_a_rule_by_name_as_well() -> None:
    rule = Rule("r", "1/hour", enforce_share=0.5)
    limiter = limiting(rule)
    for number in range(20):
        client = f"192.0.2.{number}"
        outcomes = [(await limiter.charge("r", client)).allowed for _ in range(2)]
        assert outcomes == [True, not rule.enforced_on(client)]


async def test_a_rule_that_is_off_limits_nothing_and_can_be_reset(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limiter = limiting(Rule("off", "1/hour", mode="off"), HOUR)
    assert (await limiter.charge("off", "192.0.2.1")) == ()
    await limiter.charge("login", "192.0.2.1", cost=3)
    monkeypatch.setattr(limiter._switches, "off", frozenset(["login"]))
    assert (await limiter.charge("login", "192.0.2.1")).allowed
    assert await limiter.peek("login", "192.0.2.1") == ()
    await limiter.reset("login", "192.0.2.1")
    monkeypatch.setattr(limiter._switches, "off", frozenset())
    assert await remaining(limiter, "login", "192.0.2.1") == [3]
    limiter.enabled = False
    assert [(await limiter.charge("login", "192.0.2.1")).allowed for _ in range(9)] == [True] * 9
    limiter.enabled = True
    assert await remaining(limiter, "login", "192.0.2.1") == [3]


# --- the limits in force -------------------------------------------------------------------------


async def test_a_regions_share_and_the_prefix_of_the_file_hold_by_name() -> None:
    limiter = limiting(Rule("r", "10/hour"), share=Fraction(1, 2), ipv6_prefix=48)
    assert await admitted(limiter, client=("2001:db8:0:1::1", 1))
    assert await remaining(limiter, "r", "2001:db8:0:2::9") == [4]
    assert await remaining(limiter, "r", "2001:db8::/48") == [4]


async def test_other_rules_are_found_once_they_are_in_use() -> None:
    limiter = limiting(Rule("old", "1/hour"))
    limiter.use(RuleSet((Rule("new", "2/hour"),)))
    assert await remaining(limiter, "new", "192.0.2.1") == [2]
    with pytest.raises(ValueError, match="there is no rule 'old'"):
        await limiter.peek("old", "192.0.2.1")


async def test_a_routes_limit_is_found_once_it_was_met() -> None:
    @limit("4/hour", by="header:x", scope="report")
    async def report(request: Request) -> PlainTextResponse:
        return PlainTextResponse("ok")

    limiter = limiting(Rule("all", "100/hour"), share=Fraction(1, 2))
    app = Starlette(routes=[Route("/", report)])
    app.add_middleware(RateLimitMiddleware, limiter=limiter)
    with pytest.raises(ValueError, match="there is no rule 'report'; there are all"):
        await limiter.peek("report", "k")
    assert (await ask(app, headers=[("x", "k")])).status == 200
    assert await remaining(limiter, "report", "k") == [1]
    assert (await limiter.charge("report", "k")).allowed
    assert (await ask(app, headers=[("x", "k")])).status == 429
    await limiter.reset("report", "k")
    assert (await ask(app, headers=[("x", "k")])).status == 200


async def test_limits_on_routes_that_share_a_name_and_differ_cannot_be_told_apart() -> None:
    @limit("4/hour", scope="report")
    async def one(request: Request) -> PlainTextResponse:
        return PlainTextResponse("ok")

    @limit("5/hour", scope="report")
    async def other(request: Request) -> PlainTextResponse:
        return PlainTextResponse("ok")

    @limit("4/hour", scope="report")
    async def same(request: Request) -> PlainTextResponse:
        return PlainTextResponse("ok")

    limiter = limiting()
    app = Starlette(routes=[Route("/1", one), Route("/2", other), Route("/3", same)])
    app.add_middleware(RateLimitMiddleware, limiter=limiter)
    await ask(app, "/1")
    await ask(app, "/3")
    assert await remaining(limiter, "report", "192.0.2.1") == [2]
    await ask(app, "/2")
    with pytest.raises(ValueError, match="2 limits on routes are named 'report'"):
        await limiter.peek("report", "192.0.2.1")


# --- mistakes ------------------------------------------------------------------------------------

MISTAKES: list[tuple[tuple[Any, ...], dict[str, Any], str]] = [
    (("logn", "x"), {}, "there is no rule 'logn'; did you mean 'login'"),
    ((HOUR, "x"), {}, "a rule is given by its name, which is text, not Rule"),
    (("l" * 1_000_000, "x"), {}, "there is no rule 'lll"),
    (("user", "x"), {"tier": 5}, "a tier is given by its name, which is text, not int"),
    (("login",), {}, "rule 'login' counts by client: give 1 text, not 0"),
    (("login", "192.0.2.1", "x"), {}, "rule 'login' counts by client: give 1 text, not 2"),
    (("all", "x"), {}, "rule 'all' counts by global: give no texts, not 1"),
    (("two", "x"), {}, "rule 'two' counts by user, client: give 2 texts, not 1"),
    (("login", "banana"), {}, "'banana' is not the address of a client"),
    (("login", "192.0.2.1/24"), {}, "'192.0.2.1/24' is not the address of a client"),
    (("login", ""), {}, "'' is not the address of a client"),
    (("user", None), {}, "the value of user is text, not NoneType"),
    (("user", True), {}, "the value of user is text, not bool"),
    (("plans", "x"), {"tier": "por"}, "rule 'plans' has no tier 'por'; did you mean 'pro'"),
    (("user", "x"), {"tier": "pro"}, "rule 'user' has no tier 'pro'; it has no tiers"),
    (("dynamic", "x"), {}, "a function gives the limits of rule 'dynamic' for each request"),
]


@pytest.mark.parametrize(("asked", "options", "words"), MISTAKES)
async def test_what_cannot_be_meant_is_told_in_one_sentence(
    asked: tuple[Any, ...], options: dict[str, Any], words: str
) -> None:
    limiter = limiting(
        HOUR,
        Rule("all", "1/hour", by="global"),
        Rule("two", "1/hour", by=["user", "client"]),
        Rule("user", "1/hour", by="user"),
        Rule("plans", {"free": "1/hour", "pro": "2/hour"}, by="user", tier="user:plan"),
        Rule("dynamic", lambda _: "1/hour", by="user", overrides={"known": "9/hour"}),
    )
    with pytest.raises((ValueError, TypeError)) as told:
        await limiter.peek(*asked, **options)
    assert words in str(told.value)
    with pytest.raises(type(told.value)):
        await limiter.charge(*asked, **options)
    if not options:
        with pytest.raises(type(told.value)):
            await limiter.reset(*asked)
    assert await remaining(limiter, "dynamic", "known") == [9]


@pytest.mark.parametrize("cost", [-1, 2**42 + 1, 1.5, True, "2"])
async def test_a_cost_that_no_check_can_carry_is_refused(cost: Any) -> None:
    limiter = limiting(HOUR)
    with pytest.raises((ValueError, TypeError), match="cost is"):
        await limiter.charge("login", "192.0.2.1", cost=cost)


def test_a_rule_that_is_not_there_is_told_with_the_one_that_was_meant() -> None:
    assert no_such_rule("logn", ["api", "login"]) == (
        "there is no rule 'logn'; did you mean 'login'"
    )
    assert no_such_rule("x", ["api", "login"]) == "there is no rule 'x'; there are api, login"
    many = no_such_rule("x", [f"rule{number}" for number in range(1000)])
    assert many.endswith(f"rule{MOST_NAMED - 1}, ...")
    assert no_such_rule("x", []) == "there is no rule 'x'"


# --- in Redis ------------------------------------------------------------------------------------


@pytest.fixture
def mortal() -> Iterator[Server]:
    """A server that a test may kill."""
    with serving(binaries()[0].path) as server:
        yield server


async def test_a_job_and_an_application_share_a_counter_and_a_reset_is_seen_at_once(
    redis_server: Server,
) -> None:
    redis_server.command("FLUSHALL")
    stores = [RedisStore(redis_server.url, deadline=10) for _ in range(2)]
    application, job = (RateLimiter([HOUR], store=store) for store in stores)
    async with application, job:
        assert (await job.charge("login", "192.0.2.1", cost=3)).allowed
        assert not await admitted(application)
        assert not await admitted(application)  # out of the deny cache
        await application.reset("login", "192.0.2.1")
        assert await remaining(application, "login", "192.0.2.1") == [3]
        assert await remaining(job, "login", "192.0.2.1") == [3]
        assert await admitted(application)
        assert (await application.charge("login", "192.0.2.1")).allowed


async def test_where_the_store_is_away_a_charge_does_what_its_rule_says(mortal: Server) -> None:
    rules = RuleSet(
        (
            Rule("allow", "1/hour", on_store_failure="allow"),
            Rule("deny", "1/hour", on_store_failure="deny"),
            Rule("local", "2/hour", on_store_failure="local"),
            Rule("trial", "1/hour", on_store_failure="deny", mode="shadow"),
        ),
        workers=2,
    )
    async with RateLimiter(rules, store=RedisStore(mortal.url, deadline=0.2)) as limiter:
        assert (await limiter.charge("allow", "192.0.2.1")).allowed
        mortal.kill()
        for _ in range(8):  # the breaker opens meanwhile
            passed = await limiter.charge("allow", "192.0.2.1")
            assert (passed.allowed, [each.degraded for each in passed]) == (True, [True])
        assert (await limiter.charge("trial", "192.0.2.1")).allowed
        with pytest.raises(StoreUnavailable):
            await limiter.charge("deny", "192.0.2.1")
        outcomes = [await limiter.charge("local", "192.0.2.1") for _ in range(2)]
        assert [each.allowed for each in outcomes] == [True, False]
        assert outcomes[1].retry_after is not None
        assert outcomes[1].retry_after > 0
        for name in ("allow", "deny", "local"):
            with pytest.raises(StoreUnavailable):
                await limiter.peek(name, "192.0.2.1")
            with pytest.raises(StoreUnavailable):
                await limiter.reset(name, "192.0.2.1")
        assert limiter.counts["allow", "store-failed"] == 8


async def test_a_counter_that_cannot_be_read_is_told_or_follows_the_rule(
    redis_server: Server,
) -> None:
    redis_server.command("FLUSHALL")
    rules = [
        Rule(name, [Limit("5/minute"), Limit("5/hour")], on_store_failure=name)
        for name in ("allow", "deny")
    ]
    store = RedisStore(redis_server.url, deadline=10)
    async with RateLimiter(rules, store=store) as limiter:
        for rule in rules:
            assert (await limiter.charge(rule.name, "192.0.2.1")).allowed
            (key,) = [
                key for key in redis_server.ask("KEYS", "rl:*")
                if key.endswith(f"{rule.limits[0].digest}:{rule.name}")
            ]  # fmt: skip
            redis_server.ask("SET", key, "foreign")
            with pytest.raises(StoreUnavailable, match="not the limiter's"):
                await limiter.peek(rule.name, "192.0.2.1")
        passed = await limiter.charge("allow", "192.0.2.1")
        assert passed.allowed
        assert sorted(each.degraded for each in passed) == [False, True]
        for _ in range(9):  # what is refused is given back to the limit that could be charged
            with pytest.raises(StoreUnavailable, match="not the limiter's"):
                await limiter.charge("deny", "192.0.2.1")
        redis_server.ask("DEL", key)
        assert await remaining(limiter, "deny", "192.0.2.1") == [5, 4]


async def test_a_store_of_ones_own_that_raises_is_met_by_the_rules_policy() -> None:
    class Broken(MemoryStore):
        async def decide(self, checks: Any) -> Any:
            raise LookupError("a bug")

    rules = [Rule(name, "1/hour", on_store_failure=name) for name in ("allow", "deny")]
    limiter = RateLimiter(rules, store=Broken(clock=ManualClock()))
    assert (await limiter.charge("allow", "192.0.2.1")).allowed
    with pytest.raises(StoreUnavailable, match="LookupError: a bug"):
        await limiter.charge("deny", "192.0.2.1")


def test_without_an_event_loop_of_its_own_a_test_runs_one() -> None:
    limiter = limiting(HOUR)
    for _ in range(3):
        assert asyncio.run(limiter.charge("login", "192.0.2.1")).allowed
    asyncio.run(limiter.reset("login", "192.0.2.1"))
    assert asyncio.run(limiter.peek("login", "192.0.2.1"))[0].remaining == 3


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    with cluster(binaries()[0].path) as running:
        yield running


async def test_in_a_cluster_a_rules_limits_are_charged_and_reset_together(nodes: Cluster) -> None:
    rule = Rule("r", "2/minute; 20/hour", by=["user", "client"], algorithm="token_bucket")
    async with RateLimiter([rule], store=RedisStore(nodes.url, deadline=10)) as limiter:
        for number in range(12):
            identity = f"user{number}", "192.0.2.1"
            assert (await limiter.charge("r", *identity, cost=2)).allowed
            assert not (await limiter.charge("r", *identity)).allowed
            assert not await admitted(limiter, user=user(identity[0]))
            await limiter.reset("r", *identity)
            assert await remaining(limiter, "r", *identity) == [2, 20]
