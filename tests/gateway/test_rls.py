"""Envoy's rate limit service: descriptors to rules, and what it is told."""

import json
import logging
from typing import Any

import pytest

from ratelimit import MemoryStore, RateLimiter, RedisStore, Rule, RuleSet, StoreUnavailable
from ratelimit.gateway.calls import DENIED, INVALID, UNKNOWN_METHOD, Answered
from ratelimit.gateway.forward_auth import ForwardAuth
from ratelimit.gateway.messages import MOST_DESCRIPTORS, MOST_ENTRIES
from ratelimit.gateway.rls import SHOULD_RATE_LIMIT, RateLimitService
from ratelimit.gateway.spelling import spelled
from ratelimit.identity.addresses import read_network
from ratelimit.testing import ManualClock
from tests.gateway.test_dialects import question as http_question
from tests.support.asgi import call
from tests.support.calls import Entries, Said, descriptor, question, said, text
from tests.support.servers import Server

PROXY = ("10.0.0.7", 50_000)
LOG: dict[str, Any] = {"algorithm": "sliding_log"}


def limiter_of(*rules: Rule, store: Any = None, **options: Any) -> RateLimiter:
    """A limiter that trusts the proxy, by a clock that stands still."""
    trust = {"trusted_proxies": (read_network("10.0.0.7/32"),)} | options
    return RateLimiter(RuleSet(rules, **trust), store=store or MemoryStore(clock=ManualClock()))


def service_of(*rules: Rule, **options: Any) -> RateLimitService:
    return RateLimitService(limiter_of(*rules, **options))


def rule(name: str, limit: str, path: str, by: str = "global", **more: Any) -> Rule:
    return Rule(name, limit, path=f"/envoy:edge/{path}", by=by, **{**LOG, **more})


async def asked(service: RateLimitService, *descriptors: bytes, hits: int | None = None) -> Said:
    """The answer to a question."""
    answered = await service(SHOULD_RATE_LIMIT, question(*descriptors, hits=hits), PROXY)
    assert answered.status == 0, answered
    return said(answered.message)


PLAN = rule("plan", "3/minute", "plan/free/remote_address/{address}", "path:address")
FREE = descriptor([("plan", "free"), ("remote_address", "192.0.2.1")])


async def test_a_descriptor_is_counted_by_the_rule_whose_path_spells_it_out() -> None:
    service = service_of(PLAN)
    first = await asked(service, FREE)
    assert not first.over
    assert first.headers == {"ratelimit-policy": '"plan";q=3;w=60', "ratelimit": '"plan";r=2'}
    (status,) = first.statuses
    assert status == {
        "over": False, "quota": 3, "unit": 2, "name": "plan", "remaining": 2, "reset": 60.0,
    }  # fmt: skip
    assert [(await asked(service, FREE)).over for _ in range(3)] == [False, False, True]
    others: tuple[Entries, ...] = (
        [("plan", "free"), ("remote_address", "192.0.2.2")],
        [("plan", "paid")],
        [],
    )
    for other in others:
        assert not (await asked(service, descriptor(other))).over


async def test_a_refusal_has_the_fields_and_the_problem_of_the_middleware() -> None:
    service = service_of(PLAN)
    for _ in range(3):
        await asked(service, FREE)
    answer = await asked(service, FREE)
    assert answer.over
    assert answer.headers["retry-after"] == "60"
    assert answer.headers["ratelimit"] == '"plan";r=0;t=60'
    assert answer.headers["content-type"] == "application/problem+json"
    assert "x-ratelimit-status" not in answer.headers
    assert json.loads(answer.body)["violated-policies"] == ["plan"]
    assert answer.statuses[0]["over"]
    assert answer.statuses[0]["reset"] == 60.0


async def test_the_time_until_a_status_is_over_is_never_told_too_short() -> None:
    service = service_of(rule("any", "7/minute", "a/b", algorithm="token_bucket"))
    answer = await asked(service, descriptor([("a", "b")]))
    assert answer.statuses[0]["reset"] == 9.0  # a seventh of a minute is 8.57 seconds


async def test_of_two_descriptors_one_over_the_other_is_not_charged() -> None:
    service = service_of(rule("one", "1/hour", "a/{x}"), rule("many", "5/hour", "b/{x}"))
    a, b = descriptor([("a", "1")]), descriptor([("b", "1")])
    assert not (await asked(service, a, b)).over
    for order in ((a, b), (b, a)):
        answer = await asked(service, *order)
        assert answer.over
        by_name = {each["name"]: each for each in answer.statuses}
        assert [each["name"] for each in answer.statuses] == [
            "one" if each is a else "many" for each in order
        ]
        assert (by_name["one"]["over"], by_name["many"]["over"]) == (True, False)
        assert by_name["many"]["remaining"] == 4
    assert (await asked(service, b)).statuses[0]["remaining"] == 3


async def test_one_rule_counts_each_of_its_descriptors() -> None:
    service = service_of(rule("each", "2/hour", "a/{x}", "path:x"))
    one, two = descriptor([("a", "1")]), descriptor([("a", "2")])
    assert not (await asked(service, one, two)).over
    assert not (await asked(service, one)).over
    answer = await asked(service, two, one)
    assert [each["over"] for each in answer.statuses] == [False, True]
    assert answer.statuses[0]["remaining"] == 1


@pytest.mark.parametrize(
    ("of_question", "of_descriptor", "left"),
    [(None, None, 9), (0, None, 9), (3, None, 7), (3, 2, 8), (3, 0, 10), (None, 0, 10)],
)
async def test_hits_are_charged_and_a_descriptors_own_beat_the_questions(
    of_question: int | None, of_descriptor: int | None, left: int
) -> None:
    service = service_of(rule("all", "10/hour", "a/b"))
    entry = descriptor([("a", "b")], of_descriptor)
    answer = await asked(service, entry, hits=of_question)
    assert answer.statuses[0]["remaining"] == left


async def test_hits_multiply_the_cost_of_a_rule() -> None:
    service = service_of(rule("all", "10/hour", "a/b", cost=2))
    answer = await asked(service, descriptor([("a", "b")], 3))
    assert answer.statuses[0]["remaining"] == 4


@pytest.mark.parametrize("hits", [11, 2**32, 2**42, 2**42 + 1, 2**63, 2**64 - 1])
async def test_hits_that_can_never_pass_are_refused_and_charge_nothing(hits: int) -> None:
    service = service_of(rule("all", "10/hour", "a/b"))
    answer = await asked(service, descriptor([("a", "b")], hits))
    assert answer.over
    assert "retry-after" not in answer.headers
    assert json.loads(answer.body)["type"].endswith("cost-exceeds-limit")
    assert (await asked(service, descriptor([("a", "b")]))).statuses[0]["remaining"] == 9


async def test_what_is_done_is_charged_without_asking() -> None:
    service = service_of(rule("tokens", "100/hour", "user/{u}", "path:u"))
    user = ("user", "7")
    assert not (await asked(service, descriptor([user]))).over
    done = await asked(service, descriptor([user, (":done", "1")], 500))
    assert not done.over
    assert done.statuses[0]["remaining"] == 0
    assert (await asked(service, descriptor([user]))).over
    assert not (await asked(service, descriptor([("user", "8")]))).over


async def test_what_is_done_is_charged_in_redis_as_well(redis_server: Server) -> None:
    redis_server.command("FLUSHALL")
    store = RedisStore(redis_server.url)
    limiter = limiter_of(rule("tokens", "3/hour", "user/{u}", "path:u"), store=store)
    service = RateLimitService(limiter)
    user = ("user", "7")
    overs = [(await asked(service, descriptor([user]))).over for _ in range(4)]
    assert overs == [False, False, False, True]
    done = await asked(service, descriptor([user, (":done", "1")], 2))  # behind a known denial
    assert not done.over
    (decision,) = await limiter.peek("tokens", "7")
    assert decision.remaining == 0
    assert decision.reset_after > 3_600 - 10
    await limiter.aclose()


async def test_a_descriptor_with_a_path_is_the_request_itself() -> None:
    rules = (
        Rule("login", "1/hour", path="/login", methods=["POST"], **LOG),
        Rule("key", "1/hour", path="/items/{n}", by="header:x-api-key", **LOG),
        Rule("host", "1/hour", path="/h", host="app.example", **LOG),
    )
    service = service_of(*rules)

    async def overs(**entries: str) -> list[bool]:
        said = [(":" + k if k in ("path", "method", "authority") else k, v)
                for k, v in entries.items()]  # fmt: skip
        said = [(key.replace("x_", "x-").replace("api_", "api-"), value) for key, value in said]
        return [(await asked(service, descriptor(said))).over for _ in range(2)]

    one = {"remote_address": "192.0.2.1"}
    assert await overs(path="/login?a=b", method="POST", **one) == [False, True]
    assert await overs(path="/log%69n", method="POST", remote_address="192.0.2.2") == [False, True]
    assert await overs(path="/login", method="GET", **one) == [False, False]
    assert await overs(path="/items/1", x_api_key="a", **one) == [False, True]
    assert await overs(path="/items/1", x_api_key="b", **one) == [False, True]
    assert await overs(path="/h", authority="app.example:80", **one) == [False, True]
    assert await overs(path="/h", authority="other.example", **one) == [False, False]


ESCAPES = [
    "/envoy:edge/plan/free/remote_address/192.0.2.1",
    "//envoy:edge/plan/free/remote_address/192.0.2.1",
    "/x/../envoy:edge/plan/free/remote_address/192.0.2.1",
    "/%65nvoy:edge/plan/free/remote_address/192.0.2.1",
    "/\\envoy:edge/plan/free/remote_address/192.0.2.1",
    "\\envoy:edge/plan/free/remote_address/192.0.2.1",
    "/envoy:edge/plan/free/remote_address/192.0.2.1#x",
    "envoy:edge/plan/free/remote_address/192.0.2.1",
    "http://h/envoy:edge/plan/free/remote_address/192.0.2.1",
]


@pytest.mark.parametrize("path", ESCAPES)
async def test_no_requests_path_is_taken_for_a_descriptor(path: str) -> None:
    limiter = limiter_of(PLAN)
    request = descriptor([(":path", path), ("remote_address", "192.0.2.9")])
    assert (await asked(RateLimitService(limiter), request)).statuses == [{"over": False}]
    for dialect in ("nginx", "caddy"):
        await call(
            ForwardAuth(limiter, dialect), http_question(dialect, uri=path) | {"client": PROXY}
        )
    assert (await asked(RateLimitService(limiter), FREE)).statuses[0]["remaining"] == 2


async def test_a_rule_for_every_request_is_not_for_descriptors() -> None:
    service = service_of(
        Rule("every", "1/hour"), Rule("below", "1/hour", path="/{rest:path}"), PLAN
    )
    answer = await asked(service, FREE, descriptor([("a", "b")]))
    assert [each.get("name") for each in answer.statuses] == ["plan", None]


VALUES = [
    ("/api/v1", "=2Fapi=2Fv1"), ("", "="), (".", "=2E"), ("..", "=2E."), ("a.b", "a.b"),
    ("a=b", "a=3Db"), ("{x}", "=7Bx=7D"), ("50%", "50=25"), ("a b", "a=20b"), ("a*", "a=2A"),
    ("\\", "=5C"), ("é", "=C3=A9"), ("10.0.0.0/8", "10.0.0.0=2F8"), ("::1", "::1"),
    ("a?b#c", "a=3Fb=23c"), ("\n", "=0A"),
]  # fmt: skip


@pytest.mark.parametrize(("value", "segment"), VALUES)
async def test_a_value_is_spelled_so_that_a_path_can_hold_it(value: str, segment: str) -> None:
    assert spelled(value.encode()) == segment
    service = service_of(rule("this", "5/hour", f"k/{segment}"), rule("any", "9/hour", "k/{v}/x/1"))
    answer = await asked(service, descriptor([("k", value)]))
    assert answer.statuses[0]["name"] == "this"


async def test_overrides_name_a_value_as_it_is() -> None:
    own = {"/api/v1": "1/hour", "é": "unlimited"}
    service = service_of(rule("any", "9/hour", "k/{v}", "path:v", overrides=own))
    assert (await asked(service, descriptor([("k", "/api/v1")]))).statuses[0]["quota"] == 1
    assert (await asked(service, descriptor([("k", "é")]))).statuses == [{"over": False}]
    assert (await asked(service, descriptor([("k", "b")]))).statuses[0]["quota"] == 9


async def test_no_two_values_share_a_counter() -> None:
    service = service_of(rule("any", "1/hour", "k/{v}", "path:v"))
    values: list[bytes] = [
        b"\xff", b"\xfe", b"=FF", b"%FF", "ÿ".encode(), b"=", b"", b"==", b"%", b".", b"=2E",
        b"x" * 2_000, b"x" * 2_001, b"x" * 60_000, b"x" * 59_999 + b"y", b"=~" + b"0" * 32,
    ]  # fmt: skip
    overs = [(await asked(service, descriptor([("k", value)]))).over for value in values]
    assert overs == [False] * len(values)
    again = [(await asked(service, descriptor([("k", value)]))).over for value in values]
    assert again == [True] * len(values)


async def test_a_list_of_clients_is_kept_by_their_address() -> None:
    service = service_of(
        PLAN,
        denylist=(read_network("203.0.113.0/24"),),
        allowlist=(read_network("192.0.2.1/32"),),
    )
    assert [(await asked(service, FREE)).statuses for _ in range(5)] == [[{"over": False}]] * 5
    denied = [("plan", "free"), ("remote_address", "203.0.113.5")]
    answer = await asked(service, descriptor(denied), FREE)
    assert answer.over
    assert [each["over"] for each in answer.statuses] == [True, False]
    assert answer.headers["x-ratelimit-status"] == "403"


async def test_a_rule_in_shadow_refuses_nobody() -> None:
    service = service_of(rule("new", "1/hour", "a/b", mode="shadow"))
    a = descriptor([("a", "b")])
    answers = [await asked(service, a) for _ in range(3)]
    assert not any(each.over for each in answers)
    assert answers[-1].statuses == [{"over": False}]


@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside"])
async def test_nothing_is_held_for_a_request_whose_end_nobody_tells(beside: bool) -> None:
    full = rule("full", "9/hour", "a/{x}", "path:x", concurrency=1)
    service = service_of(full, rule("other", "99/hour", "b/{x}"))
    entries = [descriptor([("a", "1")]), *([descriptor([("b", "1")])] if beside else [])]
    answers = [await asked(service, *entries) for _ in range(3)]
    assert [each.over for each in answers] == [False] * 3
    done = await asked(service, descriptor([("a", "1"), (":done", "")], 9))
    assert not done.over
    assert (await asked(service, *entries)).over


async def test_whoever_is_banned_is_refused_beside_others_and_alone() -> None:
    ban = Rule(
        "login", "1/hour", path="/envoy:edge/ip/{ip}/remote_address/{a}", by="client",
        ban={"after": 2, "within": "1m", "for": "10m"}, **LOG,
    )  # fmt: skip
    service = service_of(ban, rule("other", "99/hour", "b/{x}"))
    mine = descriptor([("ip", "x"), ("remote_address", "192.0.2.1")])
    other = descriptor([("b", "1")])
    for _ in range(4):
        await asked(service, mine)
    for entries in ((mine,), (mine, other), (other, mine)):
        answer = await asked(service, *entries)
        assert answer.over
        assert int(answer.headers["retry-after"]) == 600
    assert not (await asked(service, other)).over


class Down(MemoryStore):
    """A store that never answers."""

    async def decide(self, checks: Any) -> Any:
        raise StoreUnavailable("away", "refused", "server")


async def test_each_rule_keeps_its_policy_when_the_store_is_away() -> None:
    strict = rule("strict", "1/hour", "a/b", on_store_failure="deny")
    easy = rule("easy", "1/hour", "c/d")
    local = rule("local", "1/hour", "e/f", on_store_failure="local")
    service = service_of(strict, easy, local, store=Down())
    assert not (await asked(service, descriptor([("c", "d")]))).over
    answer = await asked(service, descriptor([("a", "b")]), descriptor([("c", "d")]))
    assert answer.over
    assert answer.headers["x-ratelimit-status"] == "503"
    assert json.loads(answer.body)["type"].endswith("store-unavailable")
    shares = [(await asked(service, descriptor([("e", "f")]))).over for _ in range(2)]
    assert shares == [False, True]


async def test_a_fault_of_ours_lets_the_request_through(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = service_of(PLAN)

    def broken(*_: object) -> None:
        raise RuntimeError("out of order")

    monkeypatch.setattr(service, "_part", broken)
    with caplog.at_level(logging.ERROR, "ratelimit"):
        answers = [await asked(service, FREE, FREE) for _ in range(2)]
    assert [(each.over, each.statuses) for each in answers] == [(False, [{"over": False}] * 2)] * 2
    assert caplog.text.count("rate-limit-service-failed") == 1


async def test_a_stranger_is_told_nothing(caplog: pytest.LogCaptureFixture) -> None:
    service = service_of(PLAN)
    for peer in (("10.0.0.8", 1), None):
        answered = await service(SHOULD_RATE_LIMIT, question(FREE), peer)
        assert answered == Answered(status=DENIED, sentence="the caller is not trusted")
    assert "proxy-untrusted" in caplog.text
    assert (await asked(service, FREE)).statuses[0]["remaining"] == 2


async def test_rules_that_are_read_again_hold_from_the_next_question_on() -> None:
    limiter = limiter_of(PLAN)
    service = RateLimitService(limiter)
    await asked(service, FREE)
    tight = rule("tight", "1/hour", "plan/free/remote_address/{a}", "path:a")
    limiter.use(RuleSet((tight,), trusted_proxies=(read_network("10.0.0.0/24"),)))
    assert (await asked(service, FREE)).statuses[0]["name"] == "tight"
    assert (await service(SHOULD_RATE_LIMIT, question(FREE), ("10.0.0.9", 1))).status == 0


async def test_an_address_that_is_missing_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    service = service_of(rule("mine", "9/hour", "a/{x}", "client"))
    for _ in range(2):
        await asked(service, descriptor([("a", "1")]))
    assert caplog.text.count("address-missing") == 1


# --- what is no question, or too much of one -----------------------------------------------------


@pytest.mark.parametrize(
    "message",
    [
        b"\xff", b"\x0a\x05ab", b"\x08\x01", b"\x0b", b"\x12\x02\x08\x01", b"\xff" * 20,
        b"\x18" + b"\x80" * 11, b"\x12\x04\x0a\x02\x08\x01", b"GET / HTTP/1.1\r\n\r\n",
    ],
)  # fmt: skip
async def test_what_is_not_a_question_is_said_to_be_none(message: bytes) -> None:
    answered = await service_of(PLAN)(SHOULD_RATE_LIMIT, message, PROXY)
    assert answered.status == INVALID
    assert answered.sentence


async def test_a_field_that_is_not_known_is_skipped() -> None:
    service = service_of(PLAN)
    unknown = text(9, b"later") + b"\x50\x01" + b"\x59" + b"x" * 8 + b"\x5d" + b"x" * 4
    answered = await service(SHOULD_RATE_LIMIT, question(FREE) + unknown, PROXY)
    assert said(answered.message).statuses[0]["remaining"] == 2


async def test_an_entry_is_read_alike_however_it_is_written() -> None:
    service = service_of(rule("any", "9/hour", "k/{v}", "path:v", overrides={"b": "1/hour"}))
    key, value = text(1, b"k"), text(2, b"b")
    long = b"\x0a\x81\x00k"  # a length of two bytes where one would do
    for body in (key + value, value + key, key + text(2, b"x") + value, long + value,
                 key + value + text(9, b"later"), b"\x50\x01" + key + value):  # fmt: skip
        answered = await service(SHOULD_RATE_LIMIT, question(text(2, text(1, body))), PROXY)
        assert said(answered.message).statuses[0]["quota"] == 1, body
    for body in (key, key + text(2, b""), b"\x0a\x01k\x12\x00"):
        answered = await service(SHOULD_RATE_LIMIT, question(text(2, text(1, body))), PROXY)
        assert said(answered.message).statuses[0]["quota"] == 9, body


async def test_there_is_one_method() -> None:
    assert (await service_of()("/grpc.health.v1.Health/Check", b"", PROXY)).status == UNKNOWN_METHOD


@pytest.mark.parametrize(
    "message",
    [
        None,
        question(*[FREE] * (MOST_DESCRIPTORS + 1)),
        question(descriptor([("a", "b")] * (MOST_ENTRIES + 1))),
        question(descriptor([(":path", "/" + "a" * 70_000)])),
    ],
    ids=["long", "descriptors", "entries", "path"],
)
async def test_too_much_is_refused_since_a_client_may_have_chosen_it(message: bytes | None) -> None:
    answered = await service_of(PLAN)(SHOULD_RATE_LIMIT, message, PROXY)
    answer = said(answered.message)
    assert answer.over
    assert answer.headers["x-ratelimit-status"] in ("414", "431")


async def test_as_many_descriptors_as_are_read_are_decided_at_once() -> None:
    service = service_of(rule("any", "1/hour", "k/{v}", "path:v"))
    many = [descriptor([("k", str(number))]) for number in range(MOST_DESCRIPTORS)]
    assert len((await asked(service, *many)).statuses) == MOST_DESCRIPTORS
    assert all(each["over"] for each in (await asked(service, *many)).statuses)


async def test_a_limit_of_a_descriptors_own_is_not_used(caplog: pytest.LogCaptureFixture) -> None:
    service = service_of(PLAN)
    body = text(1, text(1, b"plan") + text(2, b"free"))
    body += text(1, text(1, b"remote_address") + text(2, b"192.0.2.1"))
    body += text(2, b"\x08\x01\x10\x01")
    answered = await service(SHOULD_RATE_LIMIT, question(text(2, body)), PROXY)
    assert said(answered.message).statuses[0]["quota"] == 3
    assert "limit-ignored" in caplog.text


@pytest.mark.parametrize(
    ("limit", "unit"),
    [("2/second", 1), ("2/minute", 2), ("2/hour", 3), ("2/day", 4), ("2/7 days", 7), ("2/9s", 0)],
)
async def test_a_status_names_envoys_unit(limit: str, unit: int) -> None:
    service = service_of(rule("any", limit, "a/b"))
    assert (await asked(service, descriptor([("a", "b")]))).statuses[0]["unit"] == unit
