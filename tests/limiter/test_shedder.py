"""Requests that are shed, by priority, while this process is late."""

import asyncio
import json
import logging
from collections.abc import Mapping
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from fastapi import Depends, FastAPI
from fastapi.responses import PlainTextResponse as Plain
from starlette.applications import Starlette
from starlette.requests import HTTPConnection, Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from ratelimit import (
    Event,
    RateLimit,
    RateLimiter,
    RateLimitMiddleware,
    Rule,
    RuleSet,
    exempt,
    limit,
)
from ratelimit.insight.metrics.readings import readings
from ratelimit.limiter.shedder import Shedder, salt_of
from ratelimit.rules.shed import PRIORITIES
from ratelimit.runtime.lateness import Lateness
from tests.support.asgi import Counting, Inner, ask, call, statuses, websocket_scope

REDUCED = "https://iana.org/assignments/http-problem-types#temporary-reduced-capacity"
ON = {"lag": "20ms"}
SECRET = "a secret of a test"
BY_PATH = [Rule(each, "100000/second", path=f"/{each}", priority=each) for each in PRIORITIES]


MEASURES = Lateness.run


@pytest.fixture(autouse=True)
def still(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is measured but what a test says."""
    monkeypatch.setattr(Lateness, "run", lambda _: True)


@pytest.fixture
def measuring(still: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The event loop is measured, as ever."""
    monkeypatch.setattr(Lateness, "run", MEASURES)


def shedder_of(limiter: RateLimiter) -> Shedder:
    assert limiter.shedder is not None
    return limiter.shedder


def overload(limiter: RateLimiter, seconds: int = 60) -> None:
    """So many seconds that are 5 s late, one after the other."""
    for second in range(seconds):
        shedder_of(limiter).sample(second * 1.01, 5.0)


def limiting(*rules: Rule, shed: Any = ON, seconds: int = 60, **changes: Any) -> RateLimiter:
    """A limiter with these rules whose process is far too late."""
    settings = {key: changes.pop(key) for key in ("allowlist", "denylist") if key in changes}
    rule_set = RuleSet(rules, shed=shed, secret=SECRET, **settings)
    limiter = RateLimiter(rule_set, store=Counting(), **changes)
    overload(limiter, seconds)
    return limiter


def around(limiter: RateLimiter, app: Any = None) -> RateLimitMiddleware:
    return RateLimitMiddleware(app or Inner(), limiter)


async def test_critical_requests_pass_and_all_others_get_503_while_it_is_far_too_late() -> None:
    limiter = limiting(*BY_PATH)
    found = await statuses(around(limiter), *(f"/{each}" for each in PRIORITIES))
    assert found == [200, 503, 503, 503, 503]


async def test_a_shed_request_is_told_that_capacity_is_reduced_and_when_to_come_again() -> None:
    limiter = limiting(*BY_PATH)
    answers = [await ask(around(limiter), "/low") for _ in range(40)]
    assert {each.problem["type"] for each in answers} == {REDUCED}
    assert {each.problem["violated-policies"] == [] for each in answers} == {True}
    again = {each.headers["retry-after"] for each in answers}
    assert again <= {"1", "2", "3", "4", "5"}
    assert len(again) > 1
    assert not any(name.startswith("ratelimit") for name in answers[0].headers)


async def test_a_shed_request_is_neither_counted_nor_seen_by_the_application() -> None:
    limiter, inner = limiting(*BY_PATH), Inner()
    await statuses(around(limiter, inner), "/low", "/bulk", "/critical")
    assert [scope["path"] for scope in inner.scopes] == ["/critical"]
    assert isinstance(limiter.store, Counting)
    assert [[check.rule for check in checks] for checks in limiter.store.asked] == [["critical"]]


async def test_a_request_that_no_rule_matches_is_of_normal_priority() -> None:
    limiter = limiting(*BY_PATH)
    assert await statuses(around(limiter), "/other") == [503]
    assert limiter.shed == {("normal", "shed"): 1}


async def test_where_nothing_says_shed_nothing_is() -> None:
    for shed in (None, ON | {"mode": "off"}):
        limiter = RateLimiter(RuleSet(BY_PATH, shed=shed))
        assert limiter.shedder is None
        assert "shed" not in limiter.health()


@pytest.mark.usefixtures("measuring")
async def test_while_nothing_is_late_no_function_is_asked() -> None:
    asked = []
    rule = Rule("who", "100/minute", priority=lambda _: asked.append(1))
    limiter = RateLimiter(RuleSet([rule], shed=ON))
    assert await statuses(around(limiter), "/", "/", "/") == [200, 200, 200]
    assert not shedder_of(limiter).watching
    assert asked == []
    await limiter.aclose()


@pytest.mark.usefixtures("measuring")
async def test_the_next_request_after_the_end_begins_to_measure_again() -> None:
    limiter = RateLimiter(RuleSet([], shed=ON))
    assert shedder_of(limiter).watching
    await statuses(around(limiter), "/")
    assert not shedder_of(limiter).watching
    await limiter.aclose()
    assert shedder_of(limiter).watching
    await statuses(around(limiter), "/")
    assert not shedder_of(limiter).watching
    await limiter.aclose()


@pytest.mark.usefixtures("measuring")
async def test_a_loop_that_is_blocked_is_noticed_by_the_limiter_itself() -> None:
    limiter = RateLimiter(RuleSet(BY_PATH, shed=ON))
    limiter.start()
    control = shedder_of(limiter).control
    async with asyncio.timeout(30):
        while not control.shedding:
            await asyncio.to_thread(lambda: None)
            busy_until = asyncio.get_running_loop().time() + 0.2
            while asyncio.get_running_loop().time() < busy_until:
                pass
    assert await statuses(around(limiter), "/critical") == [200]
    await limiter.aclose()


async def test_a_queue_for_threads_that_grows_between_two_samples_sheds_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limiter = limiting(*BY_PATH, seconds=4)
    control = shedder_of(limiter).control
    control.press(0.0)
    assert control.ceiling > 400
    monkeypatch.setattr(Lateness, "foretold", lambda _: 30.0)
    assert await statuses(around(limiter), "/normal") == [503]
    assert control.ceiling < 110


# --- whose priority ------------------------------------------------------------------------------


async def test_of_several_rules_the_highest_priority_counts() -> None:
    everything = Rule("everything", "100000/second", priority="bulk")
    limiter = limiting(everything, *BY_PATH)
    assert await statuses(around(limiter), "/critical", "/low", "/other") == [200, 503, 503]
    assert limiter.shed == {("low", "shed"): 1, ("bulk", "shed"): 1}


async def test_a_rule_without_priority_has_no_say() -> None:
    limiter = limiting(Rule("everything", "100000/second"), *BY_PATH)
    await statuses(around(limiter), "/bulk")
    assert limiter.shed == {("bulk", "shed"): 1}


async def test_a_rule_that_is_replaced_has_no_say() -> None:
    vital = Rule("vital", "100000/second", priority="critical")
    export = Rule("export", "9/second", path="/export", priority="bulk", replaces="vital")
    limiter = limiting(vital, export)
    assert await statuses(around(limiter), "/export", "/other") == [503, 200]


async def test_a_rule_in_shadow_has_a_say_and_one_that_is_off_has_none() -> None:
    for mode, status in (("shadow", 200), ("off", 503)):
        vital = Rule("vital", "9/second", priority="critical", mode=mode)  # type: ignore[arg-type]
        assert await statuses(around(limiting(vital)), "/") == [status]


async def who(request: HTTPConnection) -> str | None:
    return request.headers.get("x-says")


async def test_a_function_says_the_priority_of_each_request() -> None:
    async def of_path(request: Request) -> str | None:
        return request.url.path.strip("/") or None

    for rule, named in (
        (Rule("a", "99/second", priority=of_path), {}),
        (Rule("a", "99/second", priority="of_path"), {"of_path": of_path}),
    ):
        limiter = limiting(rule, priorities=named)
        assert await statuses(around(limiter), "/critical", "/bulk", "/") == [200, 503, 503]
        assert limiter.shed == {("bulk", "shed"): 1, ("normal", "shed"): 1}


async def test_a_function_that_fails_leaves_a_request_at_normal_priority(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fails(_: Request) -> str:
        raise LookupError("no such user")

    def says(_: Request) -> str:
        return "urgent"

    for function in (fails, says):
        caplog.clear()
        limiter = limiting(Rule("a", "99/second", priority=function))
        assert await statuses(around(limiter), "/") == [503]
        assert limiter.shed == {("normal", "shed"): 1}
        assert "rule 'a' failed for a request, so it is of normal priority" in caplog.text


async def test_no_field_of_a_request_chooses_its_priority() -> None:
    limiter = limiting(*BY_PATH)
    for name in ("priority", "x-priority", "urgency", "importance"):
        answer = await ask(around(limiter), "/low", headers=[(name, "critical, u=0")])
        assert answer.status == 503


def test_a_function_that_nobody_registered_is_told_with_the_rule() -> None:
    with pytest.raises(ValueError, match="rule 'a' has the priority plan, which is not registered"):
        RateLimiter([Rule("a", "9/second", priority="plan")])
    with pytest.raises(ValueError, match=r"pass RateLimiter\(\.\.\., priorities={name: callable}"):
        RateLimiter([Rule("a", "9/second", priority="plan")])
    with pytest.raises(ValueError, match="names a function low, which is a priority itself"):
        RateLimiter(priorities={"low": lambda _: "critical"})


# --- routes --------------------------------------------------------------------------------------


@limit("99/second", priority="critical")
async def pays(request: Request) -> PlainTextResponse:
    return PlainTextResponse("paid")


@limit("99/second", priority="bulk", methods=["POST"])
async def writes(request: Request) -> PlainTextResponse:
    return PlainTextResponse("ok")


@exempt
async def lives(request: Request) -> PlainTextResponse:
    return PlainTextResponse("ok")


async def test_the_limits_on_a_route_are_known_before_it_is_reached() -> None:
    routes = [Route("/pay", pays), Route("/write", writes, methods=["GET", "POST"])]
    limiter = limiting(Rule("everything", "100000/second"))
    app = around(limiter, Starlette(routes=routes))
    assert await statuses(app, "/pay", "/write", "/nowhere") == [200, 503, 503]
    assert (await ask(app, "/write", "POST")).status == 503
    assert limiter.shed == {("normal", "shed"): 2, ("bulk", "shed"): 1}


async def test_a_dependency_of_fastapi_says_the_priority_as_well() -> None:
    app = FastAPI()

    @app.get("/pay", dependencies=[Depends(RateLimit("9/second", priority="critical"))])
    async def pay() -> Plain:
        return Plain("paid")

    @app.get("/read")
    async def read() -> Plain:
        return Plain("read")

    assert await statuses(around(limiting(), app), "/pay", "/read") == [200, 503]


async def test_an_exempt_endpoint_and_an_allowed_client_are_never_shed() -> None:
    limiter = limiting(Rule("everything", "100000/second", priority="bulk"))
    app = around(limiter, Starlette(routes=[Route("/live", lives)]))
    assert await statuses(app, "/live", "/other") == [200, 503]
    allowed = limiting(*BY_PATH, allowlist=[ip_network("192.0.2.0/24")])
    assert await statuses(around(allowed), "/bulk") == [200]
    denied = limiting(*BY_PATH, denylist=[ip_network("192.0.2.0/24")])
    assert await statuses(around(denied), "/critical", "/bulk") == [403, 403]


async def test_a_limit_without_a_middleware_sheds_by_itself() -> None:
    limiter = limiting()

    def made(priority: Any) -> Any:
        @limit("99/second", priority=priority, limiter=limiter)
        async def endpoint(request: Request) -> PlainTextResponse:
            return PlainTextResponse("ok")

        return endpoint

    app = Starlette(routes=[Route(f"/{each}", made(each)) for each in PRIORITIES])
    found = await statuses(app, *(f"/{each}" for each in PRIORITIES))
    assert found == [200, 503, 503, 503, 503]


async def test_a_request_is_asked_about_once_however_many_limits_it_meets() -> None:
    asked = []

    def priority(_: Request) -> str:
        asked.append(1)
        return "critical"

    @limit("99/second", by="global", name="a")
    @limit("99/second", name="b")
    async def endpoint(request: Request) -> PlainTextResponse:
        return PlainTextResponse("ok")

    limiter = limiting(Rule("everything", "100000/second", priority=priority))
    app = around(limiter, Starlette(routes=[Route("/", endpoint)]))
    assert await statuses(app, "/") == [200]
    assert asked == [1]


async def test_a_websockets_handshake_is_shed_too() -> None:
    limiter = limiting(*BY_PATH)
    answer = await call(around(limiter), websocket_scope("/low"))
    assert answer.messages[0]["type"] == "websocket.close"
    passed = await call(around(limiter), websocket_scope("/critical"))
    assert passed.messages[0]["type"] == "websocket.accept"


# --- who is shed first ---------------------------------------------------------------------------


async def test_the_same_clients_are_shed_whatever_header_they_count_by() -> None:
    rule = Rule("a", "100000/second", by="header:x-api-key")
    limiter = limiting(rule, seconds=0)
    control = shedder_of(limiter).control
    for second in range(22):
        shedder_of(limiter).sample(second * 1.01, 0.05)
    control.press(0.0)
    control.ceiling = float(int(control.ceiling))  # of the last level a part is let in, by chance
    app = around(limiter)
    every = set()
    for number in range(60):
        client = (f"198.51.100.{number}", 1)
        found = {
            (await ask(app, "/", headers=[("x-api-key", f"{key}")], client=client)).status
            for key in range(5)
        }
        assert len(found) == 1
        every |= found
    assert every == {200, 503}


async def test_users_are_told_apart_where_a_rule_counts_by_them() -> None:
    for by, statuses_of_one in (("user", 2), ("client", 1)):
        limiter = limiting(Rule("a", "100000/second", by=by), seconds=0)
        for second in range(22):
            shedder_of(limiter).sample(second * 1.01, 0.05)
        shedder_of(limiter).control.press(0.0)
        app = around(limiter)
        found = {(await ask(app, "/", user={"id": n})).status for n in range(100)}
        assert len(found) == statuses_of_one


def test_the_salt_is_alike_where_the_store_is_and_a_secret_where_it_is_not() -> None:
    assert salt_of((), "redis://:secret@a/0") == salt_of((), "redis://:secret@a/0")
    assert salt_of((), "redis://:secret@a/0") != salt_of((), "redis://:other@a/0")
    assert salt_of((), "memory://") != salt_of((), "memory://")
    assert salt_of(SECRET, "memory://") == salt_of([SECRET, "another"], "redis://a")
    assert salt_of(SECRET, "") != salt_of("another", "")
    assert len(salt_of("x" * 1_000, "")) <= 64


# --- on trial, off, and on again -----------------------------------------------------------------


async def test_on_trial_everybody_passes_and_who_would_be_shed_is_counted() -> None:
    limiter = limiting(*BY_PATH, shed=ON | {"mode": "shadow"})
    assert await statuses(around(limiter), "/critical", "/low", "/bulk") == [200, 200, 200]
    assert limiter.shed == {("low", "shadow-shed"): 1, ("bulk", "shadow-shed"): 1}
    assert limiter.counts["low", "allowed"] == 1
    assert limiter.counts["low", "shed"] == 0


async def test_a_limiter_that_is_off_or_whose_rules_all_are_sheds_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limiter = limiting(*BY_PATH)
    limiter.enabled = False
    assert await statuses(around(limiter), "/bulk", "/other") == [200, 200]
    monkeypatch.setenv("RATELIMIT_KILL", "*")
    assert await statuses(around(limiting(*BY_PATH)), "/bulk", "/other") == [200, 200]
    monkeypatch.setenv("RATELIMIT_KILL", "critical")
    assert await statuses(around(limiting(*BY_PATH)), "/critical") == [503]


async def test_new_rules_turn_it_on_and_off_and_keep_what_is_known() -> None:
    limiter = limiting(*BY_PATH)
    before = limiter.shedder
    limiter.use(RuleSet([*BY_PATH, Rule("more", "9/second")], shed=ON))
    assert limiter.shedder is before
    limiter.use(RuleSet(BY_PATH))
    assert await statuses(around(limiter), "/bulk") == [200]
    limiter.use(RuleSet(BY_PATH, shed=ON | {"lag": "50ms"}))
    assert shedder_of(limiter).control.lag == 0.05
    overload(limiter)
    assert await statuses(around(limiter), "/bulk") == [503]


# --- what is told --------------------------------------------------------------------------------


async def test_the_application_is_told_of_each_shed_request() -> None:
    heard: list[Event] = []
    limiter = limiting(*BY_PATH, on_event=heard.append)
    await statuses(around(limiter), "/low", "/critical")
    (event,) = heard
    assert (event.kind, event.rule, event.mode, event.path) == ("shed", "low", "enforce", "/low")
    assert (event.identity, event.detail) == ("192.0.2.1", "low at an admitted share of 1%")
    assert event.retry_after in {1, 2, 3, 4, 5}


async def test_shed_requests_are_counted_by_rule_and_by_priority() -> None:
    limiter = limiting(*BY_PATH)
    await statuses(around(limiter), "/low", "/low", "/bulk", "/critical")
    assert limiter.counts["low", "shed"] == 2
    found = [each for each in readings(limiter) if each.metric.name == "ratelimit.shed"]
    told = {each.labels: each.value for each in found}
    assert told == {("low", "enforce"): 2, ("bulk", "enforce"): 1}
    health: Any = limiter.health()["shed"]
    assert health["shed"] == {"low": 2, "bulk": 1}
    assert health | {"level": 0} == {
        "mode": "enforce", "lag_ms": 5000.0, "share": 0.01, "level": 0, "shed": health["shed"],
    }  # fmt: skip
    assert 100 <= health["level"] < 110
    json.dumps(limiter.health())


async def test_the_log_says_when_shedding_begins_and_ends(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    limiter = limiting(*BY_PATH, seconds=70)
    await statuses(around(limiter), "/low", "/bulk")
    for second in range(75, 140):
        shedder_of(limiter).sample(second * 1.01, 0.0)
    begun, going_on, ended = [
        each.getMessage() for each in caplog.records if each.getMessage().startswith("shedding")
    ]
    assert begun.startswith("shedding: requests begin 5000 ms late, above the lag of 20 ms")
    assert "shed in the last minute: none" in going_on
    assert ended == "shedding-ended: requests begin in time again; shed: 1 low, 1 bulk"


def test_a_rule_file_turns_it_on(tmp_path: Path) -> None:
    file = tmp_path / "rules.yaml"
    file.write_text("version: 1\nshed: {lag: 50ms, mode: shadow}\n")
    limiter = RateLimiter.from_file(file)
    config: Mapping[str, Any] = vars(shedder_of(limiter).config)
    assert config == {"lag_us": 50_000, "mode": "shadow"}
