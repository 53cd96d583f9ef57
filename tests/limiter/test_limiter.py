"""What a limiter asks about a request: by whom, how much, by which limits, and when not at all."""

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_network
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.requests import HTTPConnection
from starlette.responses import PlainTextResponse, Response

from ratelimit import Limit, MemoryStore, RateLimiter, Rule, RuleSet
from ratelimit.asgi.answer import respond
from ratelimit.decisions import Check, assumed, passes
from ratelimit.limiter.admission import Admission
from ratelimit.responses.headers import Refusal
from ratelimit.testing import ManualClock
from tests.support.asgi import CLIENT, http_scope

PROXY = ("10.0.0.1", 80)


def limiting(*rules: Rule, **options: Any) -> RateLimiter:
    of_set = {key: options.pop(key) for key in list(options) if key in RuleSet.__annotations__}
    return RateLimiter(RuleSet(rules, **of_set), store=MemoryStore(clock=ManualClock()), **options)


async def admitted(limiter: RateLimiter, times: int, **scope: Any) -> int:
    """How many of so many requests pass."""
    answers = [await limiter.admit(http_scope(**scope)) for _ in range(times)]
    return sum(each.refusal is None for each in answers)


async def problem(limiter: RateLimiter, **scope: Any) -> tuple[int, str]:
    """Status and title of a refusal."""
    refusal = (await limiter.admit(http_scope(**scope))).refusal
    assert refusal is not None
    return refusal.status, refusal.title


def user(**attributes: Any) -> SimpleNamespace:
    return SimpleNamespace(is_authenticated=True, **attributes)


# --- tiers ---------------------------------------------------------------------------------------

PLANS = {"free": "1/minute", "pro": "3/minute", "internal": "unlimited"}


async def test_a_tier_is_chosen_by_an_attribute_of_the_user() -> None:
    limiter = limiting(Rule("api", PLANS, by="user", tier="user:plan"))
    assert await admitted(limiter, 5, user=user(identity="a", plan="free")) == 1
    assert await admitted(limiter, 5, user=user(identity="b", plan="pro")) == 3
    assert await admitted(limiter, 5, user=user(identity="c", plan="internal")) == 5


@pytest.mark.parametrize("plan", ["Pro", "", None, "unlimited", "inter nal"])
async def test_who_is_of_no_known_tier_is_of_the_first(plan: str | None) -> None:
    limiter = limiting(Rule("api", PLANS, by="user", tier="user:plan"))
    assert await admitted(limiter, 5, user=user(identity="a", plan=plan)) == 1
    assert await admitted(limiter, 5, user=user(identity="b")) == 1
    assert await admitted(limiter, 5) == 1


async def test_a_header_chooses_a_tier_only_where_a_trusted_proxy_sends_it() -> None:
    trusted = [ip_network("10.0.0.0/8")]
    limiter = limiting(Rule("api", PLANS, tier="header:X-Plan"), trusted_proxies=trusted)
    from_client = {"headers": [("x-plan", "internal")]}
    assert await admitted(limiter, 5, **from_client) == 1
    by_proxy = [("x-forwarded-for", "198.51.100.1"), ("x-plan", "pro")]
    assert await admitted(limiter, 5, headers=by_proxy, client=PROXY) == 3


async def test_what_a_proxy_says_of_a_tier_comes_behind_what_the_client_said() -> None:
    trusted = [ip_network("10.0.0.0/8")]
    limiter = limiting(Rule("api", PLANS, tier="header:x-plan"), trusted_proxies=trusted)
    headers = [("x-plan", "internal"), ("x-forwarded-for", "198.51.100.1"), ("x-plan", "free")]
    assert await admitted(limiter, 5, headers=headers, client=PROXY) == 1


async def test_a_tier_is_chosen_by_a_function_with_or_without_a_name() -> None:
    async def later(connection: HTTPConnection) -> str | None:
        return connection.headers.get("x-plan")

    def at_once(connection: HTTPConnection) -> str | None:
        return connection.headers.get("x-plan")

    named = limiting(Rule("api", PLANS, tier="plan"), tiers={"plan": later})
    assert await admitted(named, 5, headers=[("x-plan", "pro")]) == 3
    assert await admitted(named, 5) == 1
    direct = limiting(Rule("api", PLANS, tier=at_once))
    assert await admitted(direct, 5, headers=[("x-plan", "pro")]) == 3


async def test_an_override_beats_a_tier_and_may_be_unlimited() -> None:
    overrides = {"alice": "2/minute", "bob": "unlimited"}
    limiter = limiting(Rule("api", PLANS, by="user", tier="user:plan", overrides=overrides))
    assert await admitted(limiter, 5, user=user(identity="alice", plan="internal")) == 2
    assert await admitted(limiter, 5, user=user(identity="bob", plan="free")) == 5


async def test_the_first_tier_may_be_unlimited() -> None:
    limits = {"all": "unlimited", "slow": "1/minute"}
    limiter = limiting(Rule("api", limits, by="user", tier="user:plan"))
    assert await admitted(limiter, 5) == 5
    assert await admitted(limiter, 5, user=user(identity="a", plan="slow")) == 1


async def test_what_gives_no_text_as_a_tier_is_a_fault_and_no_free_pass(
    caplog: pytest.LogCaptureFixture,
) -> None:
    rule = Rule("api", PLANS, by="user", tier="user:plan", on_store_failure="deny")
    limiter = limiting(rule)
    status, _ = await problem(limiter, user=user(identity="a", plan=7))
    assert status == 503
    assert "the tier 'user:plan' gave int, not text" in caplog.text


# --- limits and costs by request -----------------------------------------------------------------


async def test_limits_are_given_by_a_function_request_by_request() -> None:
    given: list[Any] = ["1/minute", Limit("2/minute"), [Limit("3/minute")], None, "unlimited"]

    async def choose(connection: HTTPConnection) -> Any:
        return given[int(connection.query_params["case"])]

    limiter = limiting(Rule("api", choose))
    counts = [await admitted(limiter, 4, query_string=b"case=%d" % case) for case in range(5)]
    assert counts == [1, 2, 3, 4, 4]


async def test_texts_that_a_function_gives_are_counted_as_the_rule_says() -> None:
    rule = Rule("api", lambda _: "10/minute", algorithm="token_bucket", burst=2)
    assert await admitted(limiting(rule), 5) == 2
    admission = await limiting(rule).admit(http_scope())
    assert admission.decisions[0].limit == Limit("10/minute", algorithm="token_bucket", burst=2)


async def test_a_regions_share_cuts_tiers_and_given_limits_too() -> None:
    tiers = limiting(Rule("api", {"a": "4/minute", "b": "8/minute"}, tier=lambda _: "b"), share=0.5)
    assert await admitted(tiers, 9) == 4
    assert await admitted(limiting(Rule("api", lambda _: "4/minute"), share=0.5), 9) == 2


async def test_a_cost_is_given_by_a_function_with_or_without_a_name() -> None:
    async def size(connection: HTTPConnection) -> int:
        return int(connection.headers["content-length"])

    named = limiting(Rule("api", "10/minute", cost="size"), costs={"size": size})
    direct = limiting(Rule("api", "10/minute", cost=lambda _: 4))
    assert await admitted(named, 9, headers=[("content-length", "5")]) == 2
    assert await admitted(direct, 9) == 2


async def test_a_cost_above_the_limit_is_told_that_it_never_passes() -> None:
    limiter = limiting(Rule("api", "10/minute", cost=lambda _: 11))
    assert await problem(limiter) == (429, "Cost Exceeds Limit")


@pytest.mark.parametrize("cost", [-1, 1.5, None, "2"])
async def test_what_gives_no_cost_is_a_fault_and_no_free_pass(cost: Any) -> None:
    limiter = limiting(Rule("api", "10/minute", cost=lambda _: cost, on_store_failure="deny"))
    assert await problem(limiter) == (503, "Rate Limiter Unavailable")
    assert limiter.counts["api", "store-failed"] == 1


@pytest.mark.parametrize(
    ("rule", "sentence"),
    [
        (Rule("a", "1/s", by="plan"), "rule 'a' limits by plan, which is not registered"),
        (Rule("a", {"x": "1/s"}, tier="plan"), "rule 'a' has the tier plan, which is not regist"),
        (
            Rule("a", "1/s", cost="size"),
            "rule 'a' has the cost size, which is not registered; pass",
        ),
    ],
)
def test_a_name_that_nobody_registered_is_told_when_the_limiter_is_built(
    rule: Rule, sentence: str
) -> None:
    with pytest.raises(ValueError, match="not registered") as refused:
        limiting(rule)
    assert sentence in str(refused.value)


# --- where a rule does not apply -----------------------------------------------------------------


async def test_skip_takes_a_request_out_of_one_rule_or_of_all() -> None:
    def internal(connection: HTTPConnection) -> bool:
        return connection.headers.get("x-internal") == "1"

    async def internal_later(connection: HTTPConnection) -> bool:
        return internal(connection)

    one = limiting(Rule("a", "1/minute", skip=internal), Rule("b", "3/minute"))
    every = limiting(Rule("a", "1/minute"), Rule("b", "3/minute"), skip=internal_later)
    headers = [("x-internal", "1")]
    assert await admitted(one, 5, headers=headers) == 3
    assert await admitted(every, 5, headers=headers) == 5
    assert await admitted(every, 5) == 1


async def test_a_rule_has_lists_of_its_own() -> None:
    rule = Rule(
        "a",
        "1/minute",
        path="/a",
        allowlist=[ip_network("192.0.2.0/24")],
        denylist=[ip_network("192.0.2.128/25")],
    )
    limiter = limiting(rule, Rule("b", "4/minute"))
    assert await admitted(limiter, 9, path="/a") == 4
    assert await problem(limiter, path="/a", client=("192.0.2.200", 1)) == (403, "Forbidden")
    assert await admitted(limiter, 9, path="/b", client=("192.0.2.200", 1)) == 4
    assert await admitted(limiter, 9, path="/a", client=("198.51.100.1", 1)) == 1
    assert limiter.counts["a", "turned-away"] == 1


async def test_who_is_turned_away_by_one_rule_is_charged_by_none() -> None:
    limiter = limiting(
        Rule("b", "4/minute"),
        Rule("a", "1/minute", denylist=[ip_network("192.0.2.1/32")], path="/a"),
    )
    for _ in range(9):
        assert await problem(limiter, path="/a") == (403, "Forbidden")
    assert await admitted(limiter, 9) == 4


async def test_the_lists_of_the_file_may_be_changed_while_it_runs() -> None:
    limiter = limiting(Rule("a", "1/minute"), denylist=[ip_network("198.51.100.0/24")])
    assert await admitted(limiter, 3) == 1
    limiter.allowlist.add("192.0.2.0/24")
    assert await admitted(limiter, 3) == 3
    limiter.denylist.add("192.0.2.1")
    assert await problem(limiter) == (403, "Forbidden")
    limiter.denylist.discard("192.0.2.1")
    limiter.denylist.discard("198.51.100.0/24")
    assert await admitted(limiter, 3, client=("198.51.100.1", 1)) == 1


async def test_a_missing_identity_falls_back_skips_or_is_refused() -> None:
    def keyed(on_missing: Any) -> RateLimiter:
        return limiting(Rule("a", "2/minute", by="header:X-Key", on_missing=on_missing))

    assert await admitted(keyed("client"), 5) == 2
    assert await admitted(keyed("skip"), 5) == 5
    refusing = keyed("refuse")
    assert (await problem(refusing))[0] == 403
    assert await admitted(refusing, 5, headers=[("x-key", "k")]) == 2
    assert refusing.counts["a", "turned-away"] == 1


async def test_a_request_without_an_address_may_be_skipped_or_refused() -> None:
    assert await admitted(limiting(Rule("a", "2/minute")), 5, client=None) == 2
    skipping = limiting(Rule("a", "2/minute", on_missing="skip"))
    assert await admitted(skipping, 5, client=None) == 5
    assert (await problem(limiting(Rule("a", "2/minute", on_missing="refuse")), client=None))[
        0
    ] == 403


def preflight(**changes: str) -> dict[str, Any]:
    fields = {"origin": "https://example.org", "access-control-request-method": "POST"} | changes
    return {"method": "OPTIONS", "headers": list(fields.items())}


async def test_a_browsers_preflight_is_free() -> None:
    limiter = limiting(Rule("a", "1/minute"))
    assert await admitted(limiter, 5, **preflight()) == 5
    assert await admitted(limiter, 5) == 1


async def test_options_that_is_no_preflight_counts() -> None:
    headers = [("origin", "https://example.org")]
    assert (
        await admitted(limiting(Rule("a", "1/minute")), 5, method="OPTIONS", headers=headers) == 1
    )


async def test_preflights_count_where_a_rule_names_options_or_the_set_says_so() -> None:
    naming = limiting(Rule("a", "1/minute", methods=["OPTIONS", "POST"]), Rule("b", "3/minute"))
    assert await admitted(naming, 5, **preflight()) == 1
    assert naming.counts == {("a", "allowed"): 1, ("a", "denied"): 4}
    assert (
        await admitted(limiting(Rule("a", "1/minute"), preflights="count"), 5, **preflight()) == 1
    )


async def test_a_preflight_from_the_denylist_is_refused() -> None:
    limiter = limiting(Rule("a", "1/minute"), denylist=[ip_network(CLIENT[0])])
    assert await problem(limiter, **preflight()) == (403, "Forbidden")


async def test_a_limiter_that_is_off_lets_everything_through_uncounted() -> None:
    limiter = limiting(
        Rule("a", "1/minute"), denylist=[ip_network("198.51.100.0/24")], enabled=False
    )
    assert await admitted(limiter, 5) == 5
    assert await admitted(limiter, 5, client=("198.51.100.1", 1)) == 5
    limiter.enabled = True
    assert await admitted(limiter, 5) == 1


@pytest.mark.parametrize("word", ["0", "false", "No", "OFF"])
async def test_the_environment_turns_limiters_off_and_the_log_says_so(
    word: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("RATELIMIT_ENABLED", word)
    assert await admitted(limiting(Rule("a", "1/minute")), 5) == 5
    assert "limiter-off: RATELIMIT_ENABLED says so" in caplog.text
    monkeypatch.setenv("RATELIMIT_ENABLED", "1")
    assert await admitted(limiting(Rule("a", "1/minute")), 5) == 1


# --- rolling out ---------------------------------------------------------------------------------


def clients(count: int) -> Iterable[dict[str, Any]]:
    return ({"client": (f"192.0.{number // 200}.{number % 200}", 1)} for number in range(count))


async def test_a_share_of_the_clients_is_enforced_and_the_others_are_shadows() -> None:
    """Of 1,000 clients a quarter, give or take what chance allows (5 standard deviations)."""
    limiter = limiting(Rule("a", "1/minute", enforce_share=0.25))
    enforced = [scope for scope in clients(1000) if await admitted(limiter, 3, **scope) == 1]
    assert 182 <= len(enforced) <= 318
    shadows = 1000 - len(enforced)
    assert limiter.counts["a", "denied"] == 2 * len(enforced)
    assert limiter.counts["a", "shadow-allowed"] == shadows
    assert limiter.counts["a", "shadow-denied"] == 2 * shadows


async def test_a_growing_share_keeps_those_that_it_had() -> None:
    small, large = Rule("a", "1/s", enforce_share=0.1), Rule("a", "1/s", enforce_share=0.3)
    names = [f"user {number}" for number in range(2000)]
    first = {name for name in names if small.enforced_on(name)}
    then = {name for name in names if large.enforced_on(name)}
    assert first < then
    other = Rule("b", "1/s", enforce_share=0.1)
    assert first != {name for name in names if other.enforced_on(name)}


async def test_a_shadow_outside_of_the_share_is_not_refused_when_the_store_fails() -> None:
    class Failing(MemoryStore):
        async def decide(self, checks: Any) -> Any:
            raise RuntimeError("away")

    rule = Rule("a", "1/s", enforce_share=0.5, on_store_failure="deny")
    limiter = RateLimiter([rule], store=Failing())
    for scope in clients(50):
        key = scope["client"][0]
        assert await admitted(limiter, 1, **scope) == (not rule.enforced_on(key))


# --- other rules ---------------------------------------------------------------------------------


async def test_other_rules_hold_from_the_next_request_on_and_unchanged_ones_go_on_counting() -> (
    None
):
    limiter = limiting(Rule("a", "2/minute"), Rule("b", "1/minute", path="/b"))
    assert await admitted(limiter, 1) == 1
    limiter.use(RuleSet((Rule("a", "2/minute"), Rule("b", "3/minute", path="/b"))))
    assert await admitted(limiter, 5) == 1
    assert await admitted(limiter, 5, client=("192.0.2.9", 1), path="/b") == 2
    assert [rule.name for rule in limiter.rules.rules] == ["a", "b"]


async def test_rules_that_cannot_be_used_change_nothing() -> None:
    limiter = limiting(Rule("a", "2/minute"))
    with pytest.raises(ValueError, match="not registered"):
        limiter.use(RuleSet((Rule("b", "1/minute", by="plan"),)))
    assert [rule.name for rule in limiter.rules.rules] == ["a"]
    assert await admitted(limiter, 5) == 2


async def test_another_store_needs_another_start_and_the_log_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    limiter = limiting(Rule("a", "2/minute"))
    store = limiter.store
    limiter.use(RuleSet((Rule("a", "2/minute"),), store="redis://:hunter2@localhost"))
    assert limiter.store is store
    assert "store-unchanged" in caplog.text
    assert "hunter2" not in caplog.text


async def test_rules_that_came_from_no_file_cannot_be_read_again() -> None:
    with pytest.raises(RuntimeError, match="came from no file"):
        await limiting(Rule("a", "2/minute")).reload()


# --- answers -------------------------------------------------------------------------------------


async def answered(limiter: RateLimiter, **scope: Any) -> Response:
    request = http_scope(**scope)
    while True:
        admission: Admission = await limiter.admit(request)
        if admission.refusal is not None:
            return await respond(limiter, request, admission.refusal)


async def test_the_application_may_answer_itself_and_the_fields_are_added() -> None:
    async def own(connection: HTTPConnection, refusal: Refusal) -> Response:
        return PlainTextResponse(
            f"{refusal.title} at {connection.url.path}", 420, {"retry-after": "99"}
        )

    response = await answered(limiting(Rule("a", "1/minute"), response=own), path="/x")
    assert (response.status_code, response.body) == (420, b"Too Many Requests at /x")
    assert response.headers["retry-after"] == "99"
    assert response.headers["content-type"] == "text/plain; charset=utf-8"
    assert response.headers["ratelimit-policy"] == '"a";q=1;w=60'
    assert response.headers["cache-control"] == "no-store"


async def test_an_answer_that_fails_is_logged_and_the_usual_one_given(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def own(connection: HTTPConnection, refusal: Refusal) -> Response:
        raise KeyError("oh")

    response = await answered(limiting(Rule("a", "1/minute"), response=own))
    assert response.status_code == 429
    assert response.headers["content-type"] == "application/problem+json"
    assert "response-failed" in caplog.text


async def test_the_usual_answer_is_what_the_client_accepts() -> None:
    limiter = limiting(Rule("a", "1/minute"))
    page = await answered(limiter, headers=[("accept", "text/html"), ("accept", "*/*;q=0.1")])
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert (await answered(limiter)).headers["content-type"] == "application/problem+json"


async def test_retry_after_is_spread_where_the_set_says_so() -> None:
    limiter = limiting(Rule("a", "1/minute"), retry_jitter_us=30_000_000)
    waits = {(await answered(limiter)).headers["retry-after"] for _ in range(60)}
    assert len(waits) > 5
    exact = int((await answered(limiting(Rule("a", "1/minute")))).headers["retry-after"])
    assert all(exact <= int(wait) <= exact + 30 for wait in waits)


# --- what is said once ---------------------------------------------------------------------------


async def test_a_forwarded_request_that_is_not_believed_is_told_of_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    limiter = limiting(Rule("a", "9/minute"))
    for field in ("x-forwarded-for", "forwarded"):
        await admitted(limiter, 2, headers=[(field, "198.51.100.1")])
    assert caplog.text.count("forwarded-untrusted: ") == 1
    caplog.clear()
    trusting = limiting(Rule("a", "9/minute"), trusted_proxies=[ip_network("10.0.0.0/8")])
    await admitted(trusting, 2, headers=[("x-forwarded-for", "198.51.100.1")])
    assert "forwarded-untrusted" not in caplog.text


async def test_a_rule_by_user_where_nothing_sets_one_is_told_of_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    limiter = limiting(Rule("a", "9/minute", by="user"))
    await admitted(limiter, 1, user=user(identity="x"))
    assert "user-missing" not in caplog.text
    await admitted(limiter, 3)
    assert caplog.text.count("user-missing: rule 'a' limits by user") == 1


def test_an_identity_that_a_client_chooses_is_told_of_when_the_limiter_is_built(
    caplog: pytest.LogCaptureFixture,
) -> None:
    keyed = Rule("a", "9/minute", by="header:x-key")
    limiting(keyed)
    assert "client-chosen: rule 'a': " in caplog.text
    caplog.clear()
    limiting(keyed, Rule("b", "99/minute"))
    assert "client-chosen" not in caplog.text


async def test_a_regions_share_cuts_the_limits_of_routes_too() -> None:
    limiter = limiting(share=0.5)
    rule = Rule("a", "4/minute", on_route=True)
    passed = 0
    for _ in range(6):
        admission = Admission(limiter, None)
        await limiter.decide(admission, http_scope(), [rule])
        passed += admission.refusal is None
    assert passed == 2


# --- functions that a client makes fail ----------------------------------------------------------


def _pages(connection: HTTPConnection) -> int:
    return int(connection.query_params["pages"])


@pytest.mark.parametrize("query", [b"", b"pages=x", b"pages=-1"])
async def test_a_function_that_a_client_makes_fail_opens_no_other_rule(query: bytes) -> None:
    rules = [Rule("all", "2/minute"), Rule("print", "9/minute", cost="pages")]
    limiter = RateLimiter(rules, costs={"pages": _pages})
    assert await admitted(limiter, 5, query_string=query) == 2
    assert limiter.counts["all", "denied"] == 3


async def test_a_function_that_fails_in_a_rule_that_denies_then_is_503() -> None:
    rule = Rule("print", "9/minute", cost="pages", on_store_failure="deny")
    limiter = RateLimiter([Rule("all", "2/minute"), rule], costs={"pages": _pages})
    admission = await limiter.admit(http_scope(query_string=b"pages=x"))
    assert admission.refusal is not None
    assert admission.refusal.status == 503
    assert await admitted(limiter, 3, query_string=b"pages=1") == 2


def _fails(connection: HTTPConnection) -> Any:
    raise KeyError("oh")


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (Rule("a", "2/minute", by="who"), "its identity is missing"),
        (Rule("a", "2/minute", by=["who", "client"]), "its identity is missing"),
        (Rule("a", "2/minute", cost=_fails), "it costs 1"),
        (
            Rule("a", {"free": "2/minute", "pro": "9/minute"}, tier=_fails),
            "it is of the first tier",
        ),
        (Rule("a", "2/minute", skip=_fails), "the request is not skipped"),
    ],
)
async def test_who_makes_a_function_fail_gains_nothing_by_it(
    rule: Rule, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    limiter = limiting(rule, identities={"who": _fails})
    assert await admitted(limiter, 5) == 2
    assert caplog.text.count("function-failed: a function of rule 'a' failed") == 1
    assert words in caplog.text
    assert await admitted(limiter, 5, client=("192.0.2.9", 1)) == 2


async def test_a_skip_of_all_rules_that_fails_skips_none(caplog: pytest.LogCaptureFixture) -> None:
    limiter = limiting(Rule("a", "2/minute"), skip=_fails)
    assert await admitted(limiter, 5) == 2
    assert "function-failed: a function of the limiter failed" in caplog.text


async def test_an_identity_that_fails_is_a_missing_one() -> None:
    def keyed(on_missing: Any) -> RateLimiter:
        rule = Rule("a", "2/minute", by="who", on_missing=on_missing)
        return limiting(rule, identities={"who": _fails})

    assert await admitted(keyed("skip"), 5) == 5
    assert (await problem(keyed("refuse")))[0] == 403


async def test_limits_that_a_function_fails_to_give_leave_the_other_rules_in_force() -> None:
    limiter = limiting(Rule("a", _fails), Rule("b", "2/minute"))
    assert await admitted(limiter, 5) == 2
    assert limiter.counts["a", "store-failed"] == 5
    assert (await problem(limiting(Rule("a", _fails, on_store_failure="deny"))))[0] == 503


async def test_a_region_too_small_for_a_routes_cost_holds_it_to_the_whole_quota(
    caplog: pytest.LogCaptureFixture,
) -> None:
    limiter = limiting(share=0.5)
    rule = Rule("a", "10/minute", cost=8, on_route=True)
    passed = 0
    for _ in range(5):
        admission = Admission(limiter, None)
        await limiter.decide(admission, http_scope(), [rule])
        passed += admission.refusal is None
    assert passed == 1
    assert caplog.text.count("share-too-small: rule 'a'") == 1


@dataclass
class _Unhashable:
    """A function object without a hash."""

    limit: str

    def __call__(self, connection: HTTPConnection) -> str:
        return self.limit


async def test_a_routes_functions_need_no_hash() -> None:
    limiter = limiting(share=0.5)
    rule = Rule("a", _Unhashable("4/minute"), on_route=True)
    passed = 0
    for _ in range(5):
        admission = Admission(limiter, None)
        await limiter.decide(admission, http_scope(), [rule])
        passed += admission.refusal is None
    assert passed == 2


async def test_a_routes_methods_are_read_in_any_case() -> None:
    """Some routers take `get` for GET."""
    limiter = limiting()
    rule = Rule("a", "1/minute", methods=["GET"], on_route=True)
    statuses = []
    for method in ("GET", "get", "Get", "POST"):
        admission = Admission(limiter, None)
        await limiter.decide(admission, http_scope(method=method), [rule])
        statuses.append(admission.refusal is None)
    assert statuses == [True, False, False, True]


# --- rules of which all but the key is known before a request ------------------------------------

STATIC = {
    "one": (Rule("a", "3/minute", algorithm="fixed_window"),),
    "several": (
        Rule("a", "5/minute; 6/hour"),
        Rule("b", "4/minute", algorithm="sliding_log", cost=2),
        Rule("c", "9/minute", algorithm="sliding_counter"),
    ),
    "delayed": (Rule("a", "60/minute", algorithm="leaking_bucket", burst=4),),
    "never": (Rule("a", "3/minute"), Rule("b", "2/minute", cost=0)),
    "by what a request carries": (
        Rule("a", "5/minute", by=("header:x-api-key", "client")),
        Rule("b", "4/minute; 9/hour", by="query:account"),
        Rule("c", "6/minute", by="path:item", path="/{item}"),
    ),
    "by what is missing": (
        Rule("a", "5/minute", by="user"),
        Rule("b", "4/minute", by="cookie:session", on_missing="skip"),
    ),
    "that is missing and has to be there": (
        Rule("a", "5/minute"),
        Rule("b", "4/minute", by=("global", "header:x-none"), on_missing="refuse"),
    ),
    "shadows": (Rule("a", "2/minute", mode="shadow"), Rule("b", "4/minute")),
}


@pytest.mark.parametrize("headers", [("draft",), ("draft", "legacy"), ("draft-03",)])
@pytest.mark.parametrize("rules", STATIC.values(), ids=STATIC)
async def test_what_is_prepared_for_everyone_comes_to_what_is_asked_one_by_one(
    rules: tuple[Rule, ...], headers: tuple[str, ...]
) -> None:
    """A `skip` that skips nothing makes a limiter ask each rule anew."""
    prepared = limiting(*rules, headers=headers)
    asking = limiting(*rules, headers=headers, skip=lambda _: False)
    assert prepared.rules.find("GET", "/7")[1] is not None
    request = http_scope("/7", query_string=b"account=a", headers=[("x-api-key", "k")])
    for _ in range(8):
        one, other = [await each.admit(dict(request)) for each in (prepared, asking)]
        assert one.headers() == other.headers()
        assert [*one.told] == [*other.told]
        assert one.headers() == other.headers()  # by another way, once all has been told
        assert one.delay_us == other.delay_us
        assert (one.decisions, one.degraded) == (other.decisions, other.degraded)
        assert one.refusal == other.refusal
        assert [each[1:] for each in one.charges] == [each[1:] for each in other.charges]
    assert prepared.counts == asking.counts
    assert prepared.counts


async def test_rules_that_count_by_a_parameter_of_one_name_read_it_of_their_own_paths() -> None:
    limiter = limiting(
        Rule("a", "3/minute", by="path:item", path="/{item}/y"),
        Rule("b", "3/minute", by="path:item", path="/x/{item}"),
    )
    admission = await limiter.admit(http_scope("/x/y"))
    keys = [check.key for _, checks, _ in admission.charges for check in checks]
    assert keys == ["path:item=x", "path:item=y"]


async def test_of_a_shadow_nobody_is_told_whatever_it_comes_to() -> None:
    limiter = limiting(Rule("a", "1/minute", mode="shadow"), Rule("b", "9/minute"))
    for verdict in ("shadow-allowed", "shadow-denied"):
        admission = await limiter.admit(http_scope())
        assert admission.refusal is None
        assert [policy for policy, _ in admission.told] == ["b"]
        assert dict(admission.headers())[b"ratelimit-policy"] == b'"b";q=9;w=60'
        assert limiter.counts["a", verdict] == 1


def test_a_request_passes_if_every_check_with_a_say_does() -> None:
    limit = Limit("1/minute")
    for last, said in ((Check(limit, "k"), False), (Check(limit, "k", shadow=True), True)):
        checks = [Check(limit, "other"), last]
        (allowed,), (denied,) = (assumed(checks[:1], allowed=each) for each in (True, False))
        assert passes(checks, [allowed, denied]) is said
        assert passes(checks, [allowed, allowed])


async def test_while_a_rule_is_turned_off_the_others_keep_a_plan_of_their_own() -> None:
    limiter = limiting(Rule("a", "1/minute"), Rule("b", "3/minute"))
    assert await admitted(limiter, 2) == 1
    limiter._switches.off = frozenset({"a"})
    assert await admitted(limiter, 4) == 2
    assert limiter.counts == {("a", "allowed"): 1, ("a", "denied"): 1,
                              ("b", "allowed"): 4, ("b", "denied"): 2}  # fmt: skip


async def test_two_limiters_around_one_request_are_told_of_together() -> None:
    """The inner one's decisions come behind those of the outer one, which were told already."""
    outer, inner = limiting(Rule("a", "3/minute")), limiting(Rule("b", "2/minute"))
    admission = await outer.admit(http_scope())
    assert [policy for policy, _ in admission.told] == ["a"]
    again = await inner.admit({**http_scope(), "ratelimit": admission})
    assert again is admission
    assert [policy for policy, _ in admission.told] == ["a", "b"]
    assert dict(admission.headers())[b"ratelimit"].startswith(b'"b";r=1')
    assert [limiter for limiter, _, _ in admission.charges] == [outer, inner]


async def test_a_rule_that_an_outer_limiter_has_decided_is_not_decided_again() -> None:
    """Of two limiters over one store, the inner one charges its other rules alone."""
    shared = Rule("a", "3/minute")
    outer = limiting(shared)
    inner = RateLimiter([shared, Rule("b", "9/minute")], store=outer.store)
    for left in (2, 1, 0):
        admission = await outer.admit(http_scope())
        await inner.admit({**http_scope(), "ratelimit": admission})
        assert [(name, decision.remaining) for name, decision in admission.told] == [
            ("a", left),
            ("b", 6 + left),
        ]
    assert inner.counts == {("b", "allowed"): 3}


def test_sets_of_rules_that_match_together_are_kept_in_a_bounded_number() -> None:
    """Paths choose among them, and a client chooses the path."""
    rules = RuleSet(
        tuple(Rule(f"r{i}", "9/minute", path=f"/{{a:path}}/{i}/{{b:path}}") for i in range(11))
    )
    for chosen in range(2**11):
        numbers = [i for i in range(11) if chosen >> i & 1]
        found, plan = rules.find("GET", "/".join(["/x", *map(str, numbers), "y"]))
        assert [rule.name for rule, _ in found] == [f"r{i}" for i in numbers]
        assert plan is not None
        assert [rule for _, _, _, rule, _ in plan.asked] == [f"r{i}" for i in numbers]
    assert 0 < len(rules.index.plans) <= 1_000


def test_a_limiter_that_is_used_in_another_event_loop_runs_its_background_there() -> None:
    """At once while it is young or was closed; else within 64 requests."""
    limiter = limiting(Rule("a", "100000/minute"))

    async def ask(times: int) -> bool:
        assert await admitted(limiter, times) == times
        return limiter._started is asyncio.get_running_loop()

    async def close() -> None:
        await limiter.aclose()

    assert asyncio.run(ask(1))
    assert asyncio.run(ask(1))
    asyncio.run(ask(1_000))
    assert asyncio.run(ask(64))
    asyncio.run(close())
    assert asyncio.run(ask(1))
