"""What clients are told, with http_sf as a second opinion on structured fields."""

import json
import logging
import random
from collections.abc import Sequence
from typing import Any, Final

import http_sf
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ratelimit import Algorithm, Decision, Limit, RateLimitExceeded
from ratelimit.responses.headers import DIALECTS, Dialect, Field, Told, fields, refuse
from ratelimit.testing import START_US

DRAFT: Final = ("draft",)
QUOTA_EXCEEDED: Final = "https://iana.org/assignments/http-problem-types#quota-exceeded"


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


def items(field: str, kind: type = str) -> list[tuple[Any, dict[str, Any]]]:
    """A structured field's list of items with parameters, as http_sf reads it."""
    parsed: Any = http_sf.parse(field.encode(), tltype="list")
    assert {type(name) for name, _ in parsed} == {kind}, "a token is not a string"
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


def test_draft_03_has_the_binding_quota_then_every_policy_with_its_window() -> None:
    some = [
        told("hour", "100/hour", remaining=90),
        told("minute", remaining=3, reset_us=30_000_001),
    ]
    sent = text(fields(some, ("draft-03",)))
    assert items(sent.pop("ratelimit-limit"), int) == [
        (10, {}),
        (10, {"w": 60}),
        (100, {"w": 3600}),
    ]
    assert sent == {"ratelimit-remaining": "3", "ratelimit-reset": "31"}


def test_the_examples_of_the_drafts_are_written_as_they_stand_there() -> None:
    daily, burst = told("daily", "1000/day", remaining=700), told("burst", "100/minute")
    assert items(text(fields([daily, burst], DRAFT))["ratelimit-policy"]) == items(
        '"burst";q=100;w=60,"daily";q=1000;w=86400'
    )
    window = Limit("100/minute", algorithm="fixed_window")
    assert text(fields([told("default", window, remaining=50)], DRAFT))["ratelimit"] == (
        '"default";r=50;t=30'
    )

    limits = Limit.parse_all("10/second; 50/minute; 1000/hour; 5000/day")
    some = [told(str(place), limit, remaining=9 + place) for place, limit in enumerate(limits)]
    assert text(fields(some, ("draft-03",)))["ratelimit-limit"] == (
        "10, 10;w=1, 50;w=60, 1000;w=3600, 5000;w=86400"
    )
    one = told(limit="100/minute", remaining=99, reset_us=50_000_000)
    assert text(fields([one], ("draft-03",))) == {
        "ratelimit-limit": "100, 100;w=60",
        "ratelimit-remaining": "99",
        "ratelimit-reset": "50",
    }


def test_draft_03_leaves_a_policy_out_whose_window_is_no_whole_number_of_seconds() -> None:
    some = [told("a", "5/50ms"), told("b", "7/1.5s"), told("c", "9/hour")]
    assert text(fields(some, ("draft-03",)))["ratelimit-limit"] == "5, 9;w=3600"


def test_the_reset_of_draft_03_is_retry_after_in_a_refusal() -> None:
    refusal = refuse([told(retry_us=7_000_001, reset_us=50_000_000)], ("draft-03",))
    assert text(refusal.headers)["retry-after"] == "8"
    assert text(refusal.headers)["ratelimit-reset"] == "8"


def test_the_reset_of_draft_03_is_that_of_the_key_where_a_request_can_never_pass() -> None:
    refusal = refuse([told(retry_us=None, reset_us=50_000_000)], ("draft-03",))
    assert text(refusal.headers)["ratelimit-reset"] == "50"


def test_of_two_policies_with_one_name_the_binding_one_is_told_else_the_first() -> None:
    some = [
        told("a", "10/minute", remaining=9),
        told("b", "20/minute", remaining=8),
        told("b", "30/minute", remaining=7),
        told("a", "40/minute", remaining=2),
    ]
    assert items(text(fields(some, DRAFT))["ratelimit-policy"]) == [
        ("a", {"q": 40, "w": 60}),
        ("b", {"q": 20, "w": 60}),
    ]


TRIOS: Final = {
    "draft": ["ratelimit-policy", "ratelimit"],
    "legacy": ["x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset"],
    "draft-03": ["ratelimit-limit", "ratelimit-remaining", "ratelimit-reset"],
}


@pytest.mark.parametrize(
    "dialects",
    [("draft", "legacy"), ("legacy", "draft"), ("draft-03", "draft", "legacy"), ("draft-03",)],
)
def test_dialects_stand_side_by_side_in_the_order_given(dialects: tuple[str, ...]) -> None:
    assert set(TRIOS) | {"openai", "anthropic"} == set(DIALECTS)
    assert list(text(fields([told()], dialects))) == [
        name for dialect in dialects for name in TRIOS[dialect]
    ]


def test_a_name_that_is_no_dialect_is_refused_with_those_that_are() -> None:
    with pytest.raises(ValueError) as error:
        RateLimitExceeded([told()], ("drafft",))
    names = "draft, legacy, draft-03, openai, anthropic"
    assert str(error.value) == f"no dialect 'drafft'; there are {names}"


def test_a_function_is_a_dialect_and_is_given_all_that_is_told_and_the_binding_one() -> None:
    some = [told("full"), told("short", retry_us=1), told("long", retry_us=2)]

    def own(everything: Sequence[Told], binding: Told) -> list[Field]:
        assert everything == some
        return [(b"x-limit", binding.policy.encode())]

    assert text(fields(some, (own,))) == {"x-limit": "long"}
    assert list(text(fields(some, ("legacy", own)))) == [*TRIOS["legacy"], "x-limit"]


def test_a_dialect_that_raises_is_logged_and_leaves_the_other_fields_and_the_refusal_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken(everything: Sequence[Told], binding: Told) -> list[Field]:
        raise RuntimeError("no such plan")

    refusal = refuse([told(retry_us=1)], (broken, *DRAFT))
    assert refusal == refuse([told(retry_us=1)], DRAFT)
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("ratelimit", logging.ERROR)
    assert "dialect-failed: " in record.message
    assert "no such plan" in caplog.text


@pytest.mark.parametrize(
    "given",
    [[("x-a", b"1")], [(b"x-a", "1")], [(b"x-a", 1)], [(b"x-a", b"1"), (b"x-b",)], None],
)
def test_of_a_dialect_that_gives_anything_but_pairs_of_bytes_no_field_is_sent(
    given: Any, caplog: pytest.LogCaptureFixture
) -> None:
    assert fields([told()], (lambda *_: given, *DRAFT)) == fields([told()], DRAFT)
    assert "dialect-failed: " in caplog.text


def test_of_a_dialect_that_fails_half_way_no_field_is_sent(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def half(everything: Sequence[Told], binding: Told) -> Any:
        yield b"x-limit", b"1"
        raise RuntimeError("no such plan")

    assert fields([told()], (half,)) == []
    assert "no such plan" in caplog.text


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
@example(2**53 - 1, 60_000_000, 2**53 - 1, None, "api")
def test_every_field_is_valid_whatever_the_numbers(
    quota: int, window_us: int, remaining: int, retry_us: int | None, policy: str
) -> None:
    limit = Limit.of(quota, window_us, algorithm="sliding_log")
    some = [told(policy, limit, remaining=remaining, retry_us=retry_us)]
    sent = text(fields(some, ("draft", "draft-03")))
    most = 999_999_999_999_999
    window = {} if window_us % 1_000_000 else {"w": window_us // 1_000_000}
    quota = min(quota, most)
    assert items(sent["ratelimit-limit"], int) == [
        (quota, {}),
        *([(quota, window)] if window else []),
    ]
    for name in ("ratelimit-remaining", "ratelimit-reset"):
        number: Any = http_sf.parse(sent[name].encode(), tltype="item")
        assert (type(number[0]), number[1]) == (int, {})
    assert sent["ratelimit-remaining"] == str(min(remaining, most))
    ((name, parameters),) = items(sent["ratelimit-policy"])
    assert name == policy
    assert parameters == {"q": quota, **window}
    ((name, parameters),) = items(sent["ratelimit"])
    assert name == policy
    assert parameters.pop("r") == min(remaining, most)
    if retry_us:
        assert (parameters["t"] - 1) * 1_000_000 < retry_us <= parameters["t"] * 1_000_000
    else:
        assert parameters == {}


WAITS: Final = [told("a", retry_us=1_500_000, reset_us=9_500_000), told("b", retry_us=4), told("c")]


def jittered(some: Sequence[Told], jitter_us: int, *dialects: str) -> list[dict[str, str]]:
    random.seed(1)
    return [text(refuse(some, dialects, jitter_us).headers) for _ in range(300)]


def test_jitter_adds_up_to_so_much_to_retry_after_and_takes_nothing_away() -> None:
    waits = {int(sent["retry-after"]) for sent in jittered(WAITS, 3_000_000)}
    assert waits == {2, 3, 4, 5}  # 1.5 s, rounded up, to 4.5 s, rounded up


def test_jitter_adds_the_same_to_whatever_a_refusal_tells_of_when() -> None:
    for sent in jittered(WAITS, 30_000_000, "draft", "draft-03", "legacy"):
        retry = int(sent["retry-after"])
        assert items(sent["ratelimit"]) == [("a", {"r": 3, "t": retry})]
        assert int(sent["ratelimit-reset"]) == retry
        # The key is as new 8 s after the retry.
        assert int(sent["x-ratelimit-reset"]) - START_US // 1_000_000 == retry + 8


def test_the_body_tells_the_wait_that_the_fields_tell() -> None:
    random.seed(1)
    for _ in range(30):
        refusal = refuse(WAITS, (), 30_000_000)
        seconds = text(refusal.headers)["retry-after"]
        assert json.loads(refusal.body)["detail"].endswith(f" again in {seconds} seconds.")


def test_jitter_is_for_waits_alone() -> None:
    """Neither what passed nor what never will is told of it."""

    def own(everything: Sequence[Told], binding: Told) -> list[Field]:
        return [(policy.encode(), repr(decision).encode()) for policy, decision in everything]

    never = [told("never", retry_us=None), told("passed")]
    dialects: list[str | Dialect] = [*DIALECTS, own]
    assert refuse(never, dialects, 60_000_000) == refuse(never, dialects)


def test_without_jitter_the_answer_to_the_same_decisions_is_always_the_same() -> None:
    assert jittered(WAITS, 0, "draft") == [text(refuse(WAITS, DRAFT).headers)] * 300


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (1, "1 second"),
        (2, "2 seconds"),
        (119, "119 seconds"),
        (120, "2 minutes"),
        (121, "3 minutes"),
        (7_199, "120 minutes"),
        (7_201, "3 hours"),
        (172_799, "48 hours"),
        (172_801, "3 days"),
    ],
)
def test_a_wait_is_told_in_words_that_are_never_too_short(seconds: int, words: str) -> None:
    refusal = refuse([told(retry_us=seconds * 1_000_000)], DRAFT)
    assert refusal.detail == f"The quota is used up; try again in {words}."
    assert text(refusal.headers)["retry-after"] == str(seconds)


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
    problem = json.loads(error.refusal.body)
    assert (problem["detail"], problem["violated-policies"]) == ("The quota is used up.", [])


def test_an_exception_can_carry_an_answer_that_has_been_made_already() -> None:
    some = [told("a", retry_us=1_500_000)]
    refusal = refuse(some, ("legacy",), 60_000_000)
    error = RateLimitExceeded(some, refusal=refusal)
    assert error.refusal is refusal
    assert (error.headers or {})["retry-after"] == text(refusal.headers)["retry-after"]
    assert error.decisions == (some[0].decision,)
