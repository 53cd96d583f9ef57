"""Refusals, faults, reloads and switches, as the application and the log are told of them."""

import asyncio
import functools
import logging
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from ratelimit import (
    Event,
    MemoryStore,
    RateLimiter,
    RateLimitMiddleware,
    RedisStore,
    Rule,
    RuleSet,
    StoreUnavailable,
    limit,
)
from ratelimit.asgi import middleware, routing
from ratelimit.decisions import identity_digest
from ratelimit.limiter import telling
from ratelimit.testing import ManualClock
from tests.support.asgi import Inner, ask, call, http_scope, websocket_scope
from tests.support.servers import Server, binaries, serving

KEY = "sk_live_51HxQ7abcdef"


class Heard(list[Event]):
    """The events that a limiter has told of."""

    def __init__(self) -> None:
        super().__init__()
        self._more = asyncio.Event()

    def __call__(self, event: Event) -> None:
        self.append(event)
        self._more.set()

    async def until(self, kind: str) -> None:
        """Returns when an event of a kind was told."""
        async with asyncio.timeout(20):
            while kind not in self.kinds:
                self._more.clear()
                await self._more.wait()

    @property
    def kinds(self) -> list[str]:
        return [event.kind for event in self]


def limiting(heard: Any, *rules: Rule, **options: Any) -> RateLimiter:
    store = options.pop("store", None) or MemoryStore(clock=ManualClock())
    return RateLimiter(RuleSet(rules, **options), store=store, on_event=heard)


async def refused(limiter: RateLimiter, **request: Any) -> bool:
    return (await limiter.admit(http_scope(**request))).refusal is not None


# --- refusals ------------------------------------------------------------------------------------


async def test_a_refusal_is_told_with_who_it_was_by_which_rule_and_where() -> None:
    async def item(request: Request) -> PlainTextResponse:
        return PlainTextResponse("ok")

    heard = Heard()
    rule = Rule("items", "1/minute", algorithm="fixed_window", by="header:x-api-key")
    app = Starlette(routes=[Mount("/v1", routes=[Route("/items/{id}", item)])])
    app.add_middleware(RateLimitMiddleware, limiter=limiting(heard, rule))
    statuses = [(await ask(app, f"/v1/items/{n}", headers=[("x-api-key", KEY)])).status
                for n in range(2)]  # fmt: skip
    assert statuses == [200, 429]
    (event,) = heard
    assert event[:5] == ("denied", "items", "items", "enforce", f"header:x-api-key={KEY}")
    assert event.path == "/v1/items/{id}"
    assert event.retry_after is not None
    assert 0 < event.retry_after <= 60
    assert event.masked == f"header:x-api-key=sk_l… #{identity_digest(event.identity)}"
    assert KEY not in f"{event} {event!r} {event.for_log()}"
    assert event.masked in str(event)
    with pytest.raises(AttributeError):
        event.rule = "x"  # type: ignore[misc]


async def test_each_rule_that_refuses_is_told_once_by_its_limit_that_ends_last() -> None:
    heard = Heard()
    counted: dict[str, Any] = {"algorithm": "fixed_window"}
    limiter = limiting(
        heard, Rule("a", "1/second; 1/hour; 5/day", **counted), Rule("b", "1/hour", **counted)
    )
    assert [await refused(limiter) for _ in range(3)] == [False, True, True]
    assert [(event.rule, event.policy) for event in heard] == [
        ("a", "a:3600"), ("b", "b"), ("a", "a:3600"), ("b", "b"),
    ]  # fmt: skip


async def test_never_shadow_and_blocked_are_told_as_such() -> None:
    heard = Heard()
    limiter = limiting(
        heard,
        Rule("never", "2/hour", path="/never", cost=lambda _: 3),
        Rule("huge", f"{2**42}/day", path="/huge", algorithm="fixed_window", cost=lambda _: 2**43),
        Rule("trial", "1/hour", path="/trial", mode="shadow"),
        Rule("keys", "9/hour", path="/keys", by="header:x-key", overrides={KEY: "blocked"}),
        Rule("who", "9/hour", path="/who", by="header:x-key", on_missing="refuse"),
        Rule("ours", "9/hour", path="/ours", denylist=[ip_network("192.0.2.1/32")]),
        denylist=[ip_network("203.0.113.0/24")],
    )
    for path in ("/never", "/huge", "/trial", "/trial", "/who", "/ours", "/nothing"):
        await refused(limiter, path=path)
    assert await refused(limiter, path="/keys", headers=[("x-key", KEY)])
    assert await refused(limiter, path="/nothing", client=("203.0.113.9", 1))
    assert [(event.kind, event.rule, event.mode, event.identity) for event in heard] == [
        ("never", "never", "enforce", "192.0.2.1"),
        ("never", "huge", "enforce", "192.0.2.1"),
        ("shadow-denied", "trial", "shadow", "192.0.2.1"),
        ("blocked", "who", "enforce", ""),
        ("blocked", "ours", "enforce", "192.0.2.1"),
        ("blocked", "keys", "enforce", f"header:x-key={KEY}"),
        ("blocked", "", "", "203.0.113.9"),
    ]
    assert [event.path for event in heard[:2]] == ["/never", "/huge"]
    assert heard[0].retry_after is None
    assert heard[2].retry_after is not None


async def test_a_limit_on_a_route_tells_the_routes_template_with_and_without_a_middleware() -> None:
    for outer in (True, False):
        heard = Heard()
        limiter = limiting(heard)

        @limit("1/hour", limiter=limiter, by="path:id")
        async def item(request: Request) -> PlainTextResponse:
            return PlainTextResponse("ok")

        app = Starlette(routes=[Mount("/v1", routes=[Route("/items/{id}", item)])])
        if outer:
            app.add_middleware(RateLimitMiddleware, limiter=limiter)
        assert [(await ask(app, "/v1/items/1")).status for _ in range(2)] == [200, 429]
        (event,) = heard
        assert (event.kind, event.path, event.identity) == ("denied", "/v1/items/{id}", "path:id=1")


async def test_what_a_client_wrote_is_never_told_as_the_path() -> None:
    heard = Heard()
    limiter = limiting(heard, Rule("a", "1/hour"), Rule("b", "1/hour", path="/b/{rest:path}"))
    for _ in range(2):
        await ask(RateLimitMiddleware(Inner(), limiter=limiter), "/b/\x1b[31m")
    assert [(event.rule, event.path) for event in heard] == [("a", None), ("b", "/b/{rest:path}")]
    app = Starlette(routes=[Route("/n/{number:int}", Inner())])
    app.add_middleware(RateLimitMiddleware, limiter=limiter)
    assert (await ask(app, f"/n/{'9' * 5_000}")).status == 429  # which the converter cannot read
    assert heard[-1].path is None


async def test_the_route_is_looked_up_only_for_who_reads_it_also_afterwards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for place in (routing, middleware):  # where an endpoint is exempt, every request asks for it
        monkeypatch.setattr(place, "EXEMPT", {})
    asked: list[str] = []

    class Watched(Route):
        def matches(self, scope: Any) -> Any:
            asked.append(scope["path"])
            return super().matches(scope)

    heard = Heard()
    app = Starlette(routes=[Mount("/v1", routes=[Watched("/{id}", Inner())])])
    limiter = limiting(heard, Rule("r", "1/hour"), Rule("trial", "1/hour", mode="shadow"))
    app.add_middleware(RateLimitMiddleware, limiter=limiter)
    assert (await ask(app, "/v1/1")).status == 200
    assert (await ask(app, "/v1/1", client=("192.0.2.2", 1))).status == 200
    asked.clear()
    await ask(app, "/v1/1")
    assert heard.kinds == ["denied", "shadow-denied"]
    assert asked == []
    assert [event.path for event in heard] == ["/v1/{id}"] * 2
    assert asked == ["/v1/1"]


def test_an_event_is_made_by_hand_for_a_test_of_a_function() -> None:
    event = Event("denied", "login", identity="192.0.2.1", path="/login", retry_after=2.5)
    assert (event.kind, event.rule, event.path, event.masked) == (
        "denied", "login", "/login", "192.0.2.1",
    )  # fmt: skip
    assert str(event) == (
        "Event(kind='denied', rule='login', masked='192.0.2.1', path='/login', retry_after=2.5)"
    )
    assert Event("switched", path=lambda: "/x").path == "/x"


async def test_the_handshake_of_a_websocket_and_a_charge_by_name_are_told() -> None:
    heard = Heard()
    limiter = limiting(heard, Rule("r", "1/hour", overrides={"192.0.2.9": "blocked"}))
    app = RateLimitMiddleware(Inner(), limiter=limiter)
    for _ in range(2):
        await call(app, websocket_scope())
    await limiter.charge("r", "192.0.2.1")
    await limiter.charge("r", "192.0.2.9")
    assert [(event.kind, event.identity) for event in heard] == [
        ("denied", "192.0.2.1"), ("denied", "192.0.2.1"), ("blocked", "192.0.2.9"),
    ]  # fmt: skip


async def test_a_request_that_passes_is_not_told_and_without_a_listener_no_event_is_made(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    heard = Heard()
    limiter = limiting(heard, Rule("r", "1/hour"))
    assert not await refused(limiter)
    assert heard == []

    def made(*_: object) -> Event:
        raise AssertionError("an event was made")

    monkeypatch.setattr(telling, "Event", made)
    limiter = limiting(None, Rule("r", "1/hour"), Rule("trial", "1/hour", mode="shadow"))
    assert [await refused(limiter) for _ in range(2)] == [False, True]
    assert "event-lost" not in caplog.text
    with caplog.at_level(logging.DEBUG, "ratelimit"):  # and here one would have been
        assert await refused(limiter)
    assert "event-lost" in caplog.text


# --- the log -------------------------------------------------------------------------------------


async def test_a_refusal_is_a_line_at_debug_that_shows_no_secret(
    caplog: pytest.LogCaptureFixture,
) -> None:
    counted: dict[str, Any] = {"algorithm": "fixed_window", "by": ["client", "header:x-key"]}
    limiter = limiting(None, Rule("login", "1/hour", path="/login", **counted))
    request: dict[str, Any] = {"path": "/login", "headers": [("x-key", f"\x1b[31m {KEY}")]}
    await refused(limiter, **request)
    assert await refused(limiter, **request)
    assert "denied" not in caplog.text
    with caplog.at_level(logging.DEBUG, "ratelimit"):
        assert await refused(limiter, **request)
    (line,) = [each.getMessage() for each in caplog.records if each.levelno == logging.DEBUG]
    assert line.startswith(
        "denied: by rule 'login', policy 'login', for client=192.0.2.1 header:x-key=?[31… #"
    )
    assert " at /login; passes again in " in line
    assert KEY not in line


# --- the function --------------------------------------------------------------------------------


async def test_what_the_function_raises_is_logged_once_and_the_request_stays_refused(
    caplog: pytest.LogCaptureFixture,
) -> None:
    told: list[Event] = []

    def failing(event: Event) -> None:
        told.append(event)
        raise LookupError("theirs")

    limiter = limiting(failing, Rule("r", "1/hour", on_store_failure="allow"))
    assert [await refused(limiter) for _ in range(5)] == [False, True, True, True, True]
    assert len(told) == 4
    (record,) = caplog.records
    assert "on-event-failed: the function on_event raised at a denied event" in record.getMessage()
    assert "LookupError: theirs" in caplog.text


async def test_a_coroutine_that_a_plain_function_gives_is_closed_and_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def later(event: Event) -> None:
        raise AssertionError(event)

    def begun(event: Event) -> object:
        return later(event)

    limiter = limiting(begun, Rule("r", "1/hour"))
    assert [await refused(limiter) for _ in range(3)] == [False, True, True]
    assert caplog.text.count("TypeError: it gave a coroutine, which nobody awaits") == 1


def test_an_async_function_is_refused_where_it_is_given() -> None:
    async def later(event: Event) -> None: ...

    class Later:
        async def __call__(self, event: Event) -> None: ...

    for function in (later, Later(), functools.partial(later)):
        with pytest.raises(TypeError, match="on_event is async, and a request does not wait"):
            RateLimiter(on_event=function)
    with pytest.raises(TypeError, match="on_event is a function, not str"):
        RateLimiter(on_event="log")  # type: ignore[arg-type]


async def test_whatever_fails_in_the_telling_a_refused_request_stays_refused(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(*_: object) -> Event:
        raise LookupError("ours")

    monkeypatch.setattr(telling, "Event", failing)
    rule = Rule("r", "1/hour", on_store_failure="allow", overrides={"192.0.2.9": "blocked"})
    limiter = limiting(Heard(), rule)
    assert [await refused(limiter) for _ in range(3)] == [False, True, True]
    assert await refused(limiter, client=("192.0.2.9", 1))
    assert "event-lost: a refusal could not be told of; it stands" in caplog.text


# --- faults, reloads and switches ----------------------------------------------------------------


@pytest.fixture
def mortal() -> Iterator[Server]:
    """A server that a test may kill."""
    with serving(binaries()[0].path) as server:
        yield server


async def test_a_store_that_goes_and_comes_back_is_told_once_each(mortal: Server) -> None:
    heard = Heard()
    rules = [Rule("allow", "9/hour"), Rule("local", "1/hour", on_store_failure="local")]
    store = RedisStore(mortal.url, deadline=0.5)
    async with RateLimiter(rules, store=store, on_event=heard) as limiter:
        assert not await refused(limiter)
        mortal.kill()
        outcomes = [await refused(limiter) for _ in range(10)]
        assert outcomes[-1]
        down = [event for event in heard if event.kind == "store-failed"]
        assert 1 <= len(down) <= 3
        assert "Redis" in down[0].detail
        local = next(event for event in heard if event.kind == "denied")
        assert (local.rule, local.identity) == ("local", "192.0.2.1")
        mortal.start()
        await heard.until("store-answers")
        assert heard.kinds.count("store-answers") == 1


async def test_a_process_with_more_to_decide_than_it_gets_to_is_told_as_overloaded() -> None:
    class Full(MemoryStore):
        async def decide(self, checks: Any) -> Any:
            raise StoreUnavailable("too much", kind="overloaded", scope="own")

    heard = Heard()
    limiter = limiting(heard, Rule("r", "1/hour"), store=Full(clock=ManualClock()))
    assert [await refused(limiter) for _ in range(3)] == [True] * 3
    assert [(event.kind, event.detail) for event in heard] == [("overloaded", "too much")]


async def test_a_reload_and_a_mistake_in_it_are_told(tmp_path: Path) -> None:
    heard = Heard()
    file = tmp_path / "rules.yaml"
    file.write_text("version: 1\nrules:\n  - {name: a, limit: 1/hour}\n")
    async with RateLimiter.from_file(file, on_event=heard) as limiter:
        file.write_text("version: 1\nrules:\n  - {name: b, limit: 1/hour}\n")
        assert await limiter.reload()
        file.write_text("version: 1\nrules:\n  - {name: b, limit: 1/huor}\n")
        assert not await limiter.reload()
    assert heard.kinds == ["rules-reloaded", "rules-not-reloaded"]
    assert "new b; gone a" in heard[0].detail
    assert f"{file}:3:" in heard[1].detail


async def test_a_switch_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "off"
    file.write_text("r")
    monkeypatch.setenv("RATELIMIT_KILL", "old")  # which is so from the start on
    monkeypatch.setenv("RATELIMIT_KILL_FILE", str(file))
    heard = Heard()
    async with limiting(heard, Rule("r", "1/hour")) as limiter:
        assert heard == []
        await refused(limiter)
        await heard.until("switched")
    assert [(event.kind, event.detail) for event in heard] == [
        ("switched", "off until further notice: old, r")
    ]


async def test_a_user_is_told_in_full_and_masked() -> None:
    heard = Heard()
    limiter = limiting(heard, Rule("r", "1/hour", by="user"))
    alice = SimpleNamespace(is_authenticated=True, identity="alice")
    for _ in range(2):
        await refused(limiter, user=alice)
    assert heard[0].identity == "user=alice"
    assert heard[0].masked == f"user=… #{identity_digest('user=alice')}"
