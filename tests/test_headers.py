"""What clients are told, with http_sf as a second opinion on structured fields."""

import json
from typing import Any

import http_sf
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ratelimit import Algorithm, Decision, Limit, RateLimitExceeded
from ratelimit.headers import Dialect, Told, fields, refuse
from ratelimit.testing import START_US

DRAFT: tuple[Dialect, ...] = ("draft",)
QUOTA_EXCEEDED = "https://iana.org/assignments/http-problem-types#quota-exceeded"


def told(
    policy: str = "api",
    limit: Limit | str = "10/minute",
    *,
    remaining: int = 3,
    retry_us: int | None = 0,
    reset_us: int = 30_000_000,
) -> Told:
    """One decision; denied if ``retry_us`` is not 0, and never possible if it is None."""
    limit = Limit(limit) if isinstance(limit, str) else limit
    return Told(policy, Decision(limit, retry_us == 0, remaining, retry_us, reset_us, 0, START_US))


def text(some: list[tuple[bytes, bytes]]) -> dict[str, str]:
    assert len({name for name, _ in some}) == len(some)
    return {name.decode(): value.decode() for name, value in some}


def items(field: str) -> list[tuple[str, dict[str, Any]]]:
    """A structured field's list of strings with parameters, as http_sf reads it."""
    parsed: Any = http_sf.parse(field.encode(), tltype="list")
    assert all(type(name) is str for name, _ in parsed), "a token is not a string"
    return list(parsed)


def state(*some: Told) -> tuple[str, dict[str, Any]]:
    """The one item of the RateLimit field."""
    (item,) = items(text(fields(some, DRAFT))["ratelimit"])
    return item


def test_the_policy_field_lists_every_policy_with_its_quota_and_window_in_seconds() -> None:
    some = [told("hour", "100/hour", remaining=90), told("minute", remaining=3)]
    assert items(text(fields(some, DRAFT))["ratelimit-policy"]) == [
        ("minute", {"q": 10, "w": 60}),
        ("hour", {"q": 100, "w": 3600}),
    ]


def test_a_window_that_is_no_whole_number_of_seconds_is_left_out() -> None:
    for limit in ("10/50ms", "10/1.5s"):
        (item,) = items(text(fields([told(limit=limit)], DRAFT))["ratelimit-policy"])
        assert item == ("api", {"q": 10})


def test_the_state_is_that_of_the_limit_with_least_left() -> None:
    assert state(told("a", remaining=5), told("b", remaining=3), told("c", remaining=4)) == (
        "b",
        {"r": 3},
    )


def test_the_state_of_a_refusal_is_that_of_the_refusing_limit_with_the_longest_wait() -> None:
    assert state(
        told("full", remaining=0),
        told("short", remaining=2, retry_us=1_000_000),
        told("long", remaining=4, retry_us=7_000_000),
    ) == ("long", {"r": 4, "t": 7})


@pytest.mark.parametrize("algorithm", Algorithm)
def test_an_allowed_request_is_told_t_by_a_fixed_window_alone(algorithm: Algorithm) -> None:
    name, parameters = state(told(limit=Limit("10/minute", algorithm=algorithm)))
    assert name == "api"
    expected = {"r": 3, "t": 30} if algorithm is Algorithm.FIXED_WINDOW else {"r": 3}
    assert parameters == expected


@pytest.mark.parametrize("algorithm", Algorithm)
@pytest.mark.parametrize(
    ("retry_us", "seconds"), [(1, 1), (999_999, 1), (1_000_000, 1), (1_000_001, 2)]
)
def test_retry_after_is_rounded_up_to_whole_seconds_and_t_is_the_same(
    algorithm: Algorithm, retry_us: int, seconds: int
) -> None:
    limit = Limit("10/minute", algorithm=algorithm)
    refusal = refuse([told(limit=limit, remaining=0, retry_us=retry_us)], DRAFT)
    sent = text(refusal.headers)
    assert sent["retry-after"] == str(seconds)
    assert items(sent["ratelimit"]) == [("api", {"r": 0, "t": seconds})]


def test_the_end_of_a_fixed_window_is_rounded_up_too() -> None:
    window = Limit("10/minute", algorithm="fixed_window")
    assert state(told(limit=window, reset_us=1)) == ("api", {"r": 3, "t": 1})
    assert state(told(limit=window, reset_us=59_000_001)) == ("api", {"r": 3, "t": 60})


def test_retry_after_is_the_longest_of_all_refusing_limits() -> None:
    some = [told("a", retry_us=2_000_000), told("b", retry_us=9_000_000), told("c")]
    refusal = refuse(some, DRAFT)
    assert text(refusal.headers)["retry-after"] == "9"
    assert json.loads(refusal.body)["violated-policies"] == ["a", "b"]


def test_a_refusal_is_never_told_a_wait_where_one_limit_can_never_pass() -> None:
    some = [told("wait", retry_us=5_000_000), told("never", "7/minute", retry_us=None)]
    refusal = refuse(some, DRAFT)
    sent, problem = text(refusal.headers), json.loads(refusal.body)
    assert refusal.status == 429
    assert "retry-after" not in sent
    assert items(sent["ratelimit"]) == [("never", {"r": 3})]
    assert problem["type"] == "urn:ratelimit-asgi:problem:cost-exceeds-limit"
    assert problem["detail"].endswith("which is 7.")
    assert problem["violated-policies"] == ["wait", "never"]


def test_the_problem_says_in_its_body_what_the_status_line_says() -> None:
    refusal = refuse([told(retry_us=1)], DRAFT)
    problem = json.loads(refusal.body)
    assert problem == {
        "type": QUOTA_EXCEEDED,
        "title": "Too Many Requests",
        "status": refusal.status,
        "detail": "The quota is used up; try again in 1 second.",
        "violated-policies": ["api"],
    }
    sent = text(refusal.headers)
    assert sent["content-type"] == "application/problem+json"
    assert sent["content-length"] == str(len(refusal.body))
    assert sent["cache-control"] == "no-store"


def test_the_legacy_dialect_has_three_fields_and_the_epoch_second_of_the_reset() -> None:
    sent = text(fields([told(reset_us=30_000_001)], ("legacy",)))
    assert sent == {
        "x-ratelimit-limit": "10",
        "x-ratelimit-remaining": "3",
        "x-ratelimit-reset": str(START_US // 1_000_000 + 31),
    }


@pytest.mark.parametrize("dialects", [("draft", "legacy"), ("legacy", "draft")])
def test_both_dialects_can_be_written_side_by_side(dialects: tuple[Dialect, ...]) -> None:
    assert set(text(fields([told()], dialects))) == {
        "ratelimit-policy",
        "ratelimit",
        "x-ratelimit-limit",
        "x-ratelimit-remaining",
        "x-ratelimit-reset",
    }


def test_without_a_dialect_or_a_decision_there_are_no_fields_but_a_refusal_keeps_retry_after() -> (
    None
):
    assert fields([told()], ()) == []
    assert fields([], DRAFT) == []
    assert set(text(refuse([told(retry_us=1)], ()).headers)) == {
        "content-type",
        "content-length",
        "cache-control",
        "retry-after",
    }


@settings(deadline=None)  # the machine may be busy
@given(
    quota=st.integers(1, 2**53 - 1),
    window_us=st.integers(1, 10**13),
    remaining=st.integers(0, 2**53 - 1),
    retry_us=st.none() | st.integers(0, 10**13),
    policy=st.from_regex("[A-Za-z][A-Za-z0-9_.:-]{0,63}", fullmatch=True),
)
def test_every_field_is_valid_whatever_the_numbers(
    quota: int, window_us: int, remaining: int, retry_us: int | None, policy: str
) -> None:
    limit = Limit.of(quota, window_us, algorithm="sliding_log")
    sent = text(fields([told(policy, limit, remaining=remaining, retry_us=retry_us)], DRAFT))
    most = 999_999_999_999_999
    ((name, parameters),) = items(sent["ratelimit-policy"])
    assert name == policy
    assert parameters.pop("q") == min(quota, most)
    assert parameters == ({} if window_us % 1_000_000 else {"w": window_us // 1_000_000})
    ((name, parameters),) = items(sent["ratelimit"])
    assert name == policy
    assert parameters.pop("r") == min(remaining, most)
    if retry_us:
        assert (parameters["t"] - 1) * 1_000_000 < retry_us <= parameters["t"] * 1_000_000
    else:
        assert parameters == {}


def test_the_exception_carries_the_fields_and_decisions_of_its_answer() -> None:
    some = [told("a", retry_us=1_500_000), told("b")]
    error = RateLimitExceeded(some)
    assert error.status_code == 429
    assert error.headers == {
        "cache-control": "no-store",
        "retry-after": "2",
        "ratelimit-policy": '"a";q=10;w=60, "b";q=10;w=60',
        "ratelimit": '"a";r=3;t=2',
    }
    assert error.decisions == tuple(each.decision for each in some)


def test_an_exception_without_decisions_is_a_plain_429() -> None:
    error = RateLimitExceeded()
    assert error.status_code == 429
    assert "retry-after" not in (error.headers or {})
    assert json.loads(error.refusal.body)["violated-policies"] == []
