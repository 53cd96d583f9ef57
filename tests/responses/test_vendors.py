"""The dialects of vendors, and what a policy's unit is to all dialects."""

import pickle
from collections.abc import Iterator
from datetime import UTC, datetime
from ipaddress import ip_network
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratelimit import (
    Algorithm,
    Decision,
    Limit,
    MemoryStore,
    RateLimiter,
    RedisStore,
    Rule,
    RuleSet,
)
from ratelimit.responses.headers import DIALECTS, Told, fields, refuse
from ratelimit.responses.vendors import as_go
from ratelimit.rules.units import Policy, unit_of
from ratelimit.testing import START_US, ManualClock
from tests.support.asgi import http_scope
from tests.support.servers import Server, binaries, serving


def told(
    unit: str = "requests",
    limit: str = "10/minute",
    *,
    remaining: int = 3,
    retry_us: int | None = 0,
    reset_us: int = 30_000_000,
    at_us: int = START_US,
) -> Told:
    name = unit if unit == "requests" else Policy(unit, unit)
    decision = Decision(Limit(limit), retry_us == 0, remaining, retry_us, reset_us, 0, at_us)
    return Told(name, decision)


def text(*some: Told, dialect: str) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in fields(some, (dialect,))}


# --- units ---------------------------------------------------------------------------------------


def test_the_draft_tells_what_a_limit_counts_where_that_is_not_requests() -> None:
    sent = text(told(), told("tokens", "900/minute", remaining=5), dialect="draft")
    assert sent["ratelimit-policy"] == '"requests";q=10;w=60, "tokens";q=900;w=60;qu="tokens"'
    assert sent["ratelimit"] == '"requests";r=3'


def test_the_third_draft_knows_no_units() -> None:
    assert text(told("tokens"), dialect="draft-03")["ratelimit-limit"] == "10, 10;w=60"


def test_a_rule_whose_unit_was_changed_is_told_by_the_new_one() -> None:
    for unit in ("tokens", "rows", "tokens"):
        one = Told(Policy("a", unit), told().decision)
        assert f'qu="{unit}"' in text(one, dialect="draft")["ratelimit-policy"]
    assert "qu" not in text(Told("a", told().decision), dialect="draft")["ratelimit-policy"]


async def test_a_rule_with_a_unit_tells_it_for_each_of_its_limits() -> None:
    rule = Rule("a", "5/second; 9/minute", unit="rows", overrides={"192.0.2.99": "7/day"})
    limiter = RateLimiter([rule])
    admission = await limiter.admit(http_scope())
    assert [unit_of(policy) for policy, _ in admission.told] == ["rows", "rows"]
    assert dict(admission.headers())[b"ratelimit-policy"] == (
        b'"a:1";q=5;w=1;qu="rows", "a:60";q=9;w=60;qu="rows"'
    )
    override = await limiter.admit(http_scope(client=("192.0.2.99", 1)))
    assert dict(override.headers())[b"ratelimit-policy"] == b'"a";q=7;w=86400;qu="rows"'
    compared = rule.counted_by(Algorithm.SLIDING_LOG)
    assert [unit_of(policy) for policy in compared.policies] == ["rows", "rows"]


def test_a_name_with_a_unit_is_its_text_and_travels() -> None:
    name = Policy("a", "rows")
    assert name == "a"
    assert {name: 1} == {"a": 1}
    again = pickle.loads(pickle.dumps(name))
    assert (again, unit_of(again), unit_of("a")) == ("a", "rows", "requests")


# --- openai --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("us", "written"),
    [
        (0, "0s"),
        (1, "1ms"),
        (9_000, "9ms"),
        (999_001, "1s"),
        (1_000_000, "1s"),
        (1_009_000, "1.009s"),
        (1_200_000, "1.2s"),
        (59_999_001, "1m0s"),
        (360_000_000, "6m0s"),
        (3_600_000_000, "1h0m0s"),
        (90_061_500_000, "25h1m1.5s"),
    ],
)
def test_a_reset_is_written_as_go_writes_durations(us: int, written: str) -> None:
    assert as_go(us) == written


@given(st.integers(0, 2**52))
def test_a_reset_is_never_written_too_short_nor_a_millisecond_too_long(us: int) -> None:
    written, ms = as_go(us), 0
    assert written.isascii()
    if written.endswith("ms"):
        ms, written = int(written[:-2]), ""
    for unit, length in (("h", 3_600_000), ("m", 60_000)):
        head, found, rest = written.partition(unit)
        if found:
            ms, written = ms + int(head) * length, rest
    if written:
        seconds, _, part = written.removesuffix("s").partition(".")
        ms += int(seconds) * 1_000 + int(part.ljust(3, "0") or 0)
    assert 0 <= ms * 1_000 - us < 1_000


def test_openai_is_told_of_requests_and_tokens_by_the_units_of_policies() -> None:
    tokens = told("tokens", "900/minute", remaining=640, reset_us=17_333_334)
    assert text(told(), tokens, dialect="openai") == {
        "x-ratelimit-limit-requests": "10",
        "x-ratelimit-remaining-requests": "3",
        "x-ratelimit-reset-requests": "30s",
        "x-ratelimit-limit-tokens": "900",
        "x-ratelimit-remaining-tokens": "640",
        "x-ratelimit-reset-tokens": "17.334s",
    }


def test_of_several_policies_of_a_unit_the_binding_one_is_told() -> None:
    some = [
        told("tokens", "100/minute", remaining=50),
        told("tokens", "900/day", remaining=7),
        told("tokens", "500/hour", remaining=9),
    ]
    for dialect, name in (
        ("openai", "x-ratelimit-limit-tokens"),
        ("anthropic", "anthropic-ratelimit-tokens-limit"),
    ):
        assert text(*some, dialect=dialect)[name] == "900"
        denied = told("tokens", "300/hour", remaining=20, retry_us=5)
        assert text(*some, denied, dialect=dialect)[name] == "300"


def test_input_and_output_tokens_are_the_tokens_that_openai_is_told_of() -> None:
    some = [told("input-tokens", "100/minute"), told("output-tokens", "50/minute", remaining=2)]
    assert text(*some, dialect="openai")["x-ratelimit-limit-tokens"] == "50"
    assert len(text(*some, dialect="openai")) == 3


@pytest.mark.parametrize("dialect", ["openai", "anthropic"])
def test_a_unit_that_a_vendor_does_not_know_has_no_fields(dialect: str) -> None:
    assert text(told("rows"), dialect=dialect) == {}
    assert len(text(told("rows"), told(), dialect=dialect)) == 3


# --- anthropic -----------------------------------------------------------------------------------


def test_anthropic_is_told_of_each_unit_and_of_the_tokens_together() -> None:
    sent = text(
        told(),
        told("input-tokens", "900/minute", remaining=640),
        told("output-tokens", "50/minute", remaining=9, reset_us=1),
        dialect="anthropic",
    )
    start = datetime.fromtimestamp(START_US // 1_000_000, UTC)
    assert sent["anthropic-ratelimit-requests-limit"] == "10"
    assert sent["anthropic-ratelimit-input-tokens-remaining"] == "640"
    assert sent["anthropic-ratelimit-output-tokens-limit"] == "50"
    assert sent["anthropic-ratelimit-tokens-limit"] == "50"
    assert len(sent) == 12
    resets = {
        name.split("-")[2]: (datetime.fromisoformat(value) - start).total_seconds()
        for name, value in sent.items()
        if name.endswith("-reset")
    }
    assert resets == {"requests": 30, "tokens": 1, "input": 30, "output": 1}
    assert all(value.endswith("Z") for name, value in sent.items() if name.endswith("-reset"))


def test_a_store_that_tells_no_time_leaves_the_reset_to_the_clock_here() -> None:
    sent = text(told(at_us=0), dialect="anthropic")["anthropic-ratelimit-requests-reset"]
    assert datetime.fromisoformat(sent).year > 2025


@pytest.mark.parametrize("dialect", ["openai", "anthropic"])
@given(st.integers(0, 2**52), st.integers(0, 2**52))
def test_numbers_of_any_size_are_told(dialect: str, reset_us: int, at_us: int) -> None:
    assert len(text(told(reset_us=reset_us, at_us=at_us), dialect=dialect)) == 3


def test_the_dialects_are_chosen_by_name() -> None:
    assert list(DIALECTS) == ["draft", "legacy", "draft-03", "openai", "anthropic"]


# --- hints ---------------------------------------------------------------------------------------


def hinted(*some: Told, jitter_us: int = 0) -> dict[str, str]:
    refusal = refuse(some, ("draft",), jitter_us, hinted=True)
    return {name.decode(): value.decode() for name, value in refusal.headers}


def test_a_hint_is_the_longest_wait_in_milliseconds_rounded_up() -> None:
    sent = hinted(told(retry_us=1_500_001), told("tokens", retry_us=1_200_000), told("rows"))
    assert (sent["retry-after"], sent["retry-after-ms"]) == ("2", "1501")
    assert "x-should-retry" not in sent


def test_chance_is_in_the_hint_as_well() -> None:
    some = [hinted(told(retry_us=1_000), jitter_us=9_000_000) for _ in range(99)]
    seen = {int(each["retry-after-ms"]) for each in some}
    assert len(seen) > 9
    assert min(seen) >= 1
    assert max(seen) <= 9_001


def test_what_can_never_pass_is_not_to_come_again() -> None:
    sent = hinted(told(retry_us=5_000_000), told("tokens", retry_us=None))
    assert sent["x-should-retry"] == "false"
    assert "retry-after" not in sent
    assert "retry-after-ms" not in sent


def test_there_are_no_hints_unless_they_are_asked_for() -> None:
    for retry_us in (1_000_000, None):
        names = dict(refuse([told(retry_us=retry_us)], ("draft",)).headers)
        assert not {b"x-should-retry", b"retry-after-ms"} & set(names)


HINTED: Final[dict[str, Any]] = {"headers": ["openai"], "retry_hints": True}


async def refused(rule: Rule, **options: Any) -> dict[str, str]:
    """The fields of the first refusal by a rule."""
    store = MemoryStore(clock=ManualClock())
    limiter = RateLimiter(RuleSet([rule], **(HINTED | options)), store=store)
    for _ in range(3):
        admission = await limiter.admit(http_scope())
        if admission.refusal is not None:
            fields = admission.refusal.headers
            return {name.decode(): value.decode() for name, value in fields}
    raise AssertionError("nothing was refused")


async def test_a_rule_set_says_whether_there_are_hints() -> None:
    sent = await refused(Rule("a", "2/minute", algorithm="sliding_log"))
    assert (sent["retry-after"], sent["retry-after-ms"]) == ("60", "60000")
    assert sent["x-ratelimit-remaining-requests"] == "0"
    sent = await refused(Rule("a", "2/minute"), retry_hints=False)
    assert not {"retry-after-ms", "x-should-retry"} & set(sent)


@pytest.mark.parametrize("cost", [3, 2**42, 2**42 + 1, 10**30])
async def test_whatever_it_costs_too_much_it_is_not_to_come_again(cost: int) -> None:
    quota = min(max(2, cost - 1), 2**42)
    rule = Rule("a", f"{quota}/day", algorithm="fixed_window", cost=lambda _: cost)
    sent = await refused(rule)
    assert sent["x-should-retry"] == "false"
    assert "retry-after" not in sent
    assert "x-should-retry" not in await refused(rule, retry_hints=False)


async def test_whoever_is_banned_is_not_to_come_again_by_itself() -> None:
    rule = Rule("a", "1/minute", ban={"after": 1, "within": "1m", "for": "10m"})
    for hinted in (True, False):
        rules = RuleSet([rule], retry_hints=hinted)
        limiter = RateLimiter(rules, store=MemoryStore(clock=ManualClock()))
        refusals = [(await limiter.admit(http_scope())).refusal for _ in range(4)]
        last = refusals[-1]
        assert last is not None
        assert b"abnormal-usage" in last.body
        assert dict(last.headers)[b"retry-after"] == b"600"
        assert (b"x-should-retry", b"false") in last.headers or not hinted
        assert b"retry-after-ms" not in dict(last.headers)
        assert hinted or b"x-should-retry" not in dict(last.headers)


async def test_an_address_that_is_denied_is_told_nothing_of_coming_again() -> None:
    rule = Rule("a", "2/minute", denylist=[ip_network("192.0.2.0/24")])
    assert not {"retry-after-ms", "x-should-retry"} & set(await refused(rule))


def test_hints_are_on_or_off() -> None:
    with pytest.raises(TypeError, match="retry_hints is true or false, not str"):
        RuleSet([], retry_hints="true")  # type: ignore[arg-type]  # as it could be meant


async def test_a_share_that_is_counted_in_the_worker_is_hinted_as_well(mortal: Server) -> None:
    rule = Rule("a", "1/hour", algorithm="sliding_log", on_store_failure="local")
    store = RedisStore(mortal.url, deadline=0.5)
    rules = RuleSet([rule], headers=["openai"], retry_hints=True)
    async with RateLimiter(rules, store=store) as limiter:
        assert (await limiter.admit(http_scope())).refusal is None
        mortal.kill()
        refusals = [(await limiter.admit(http_scope())).refusal for _ in range(10)]
    last = refusals[-1]
    assert last is not None
    assert int(dict(last.headers)[b"retry-after-ms"]) > 1_000_000


@pytest.fixture
def mortal() -> Iterator[Server]:
    """A server that a test may kill."""
    with serving(binaries()[0].path) as server:
        yield server
