"""The middleware in raw ASGI messages: what comes in, what goes out, and what never happens."""

import asyncio
import contextvars
import logging
from collections.abc import Callable, Sequence
from ipaddress import ip_network
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ratelimit import (
    Check,
    Decision,
    Limit,
    MemoryStore,
    RateLimiter,
    RateLimitMiddleware,
    Rule,
    limit,
)
from ratelimit.testing import ManualClock
from tests.support.asgi import (
    NEVER,
    QUOTA_EXCEEDED,
    Counting,
    Inner,
    ask,
    call,
    http_scope,
    limiter,
    statuses,
    websocket_scope,
)

FIXED = "fixed_window"


def test_a_middleware_without_a_limiter_is_refused_when_it_is_built() -> None:
    for given in (None, "rules.yaml", RateLimiter):
        with pytest.raises(TypeError, match=r"^limiter is a RateLimiter, not (NoneType|str|type)$"):
            RateLimitMiddleware(Inner(), limiter=given)  # type: ignore[arg-type]


def guarded(*rules: Rule, **changes: Any) -> RateLimitMiddleware:
    return RateLimitMiddleware(Inner(), limiter(*rules, **changes))


# --- what is answered ----------------------------------------------------------------------------


async def test_an_allowed_request_is_answered_by_the_application_and_carries_the_fields() -> None:
    app = guarded(Rule("api", "2/minute"))
    answer = await ask(app)
    assert answer.status == 200
    assert answer.body == b"ok"
    assert answer.fields == [
        ("content-type", "text/plain"),
        ("ratelimit-policy", '"api";q=2;w=60'),
        ("ratelimit", '"api";r=1'),
    ]


async def test_nothing_of_ours_stays_in_the_scope_that_a_server_keeps() -> None:
    """Uvicorn keeps a connection's last scope until the next request comes."""
    app = guarded(Rule("api", "2/minute"))
    for status in (200, 200, 429):
        scope = http_scope()
        assert (await call(app, scope)).status == status
        assert scope == http_scope()


async def test_a_denied_request_is_a_429_with_a_problem_body_and_never_reaches_the_application(
    clock: ManualClock,
) -> None:
    inner = Inner()
    app = RateLimitMiddleware(inner, limiter(Rule("api", "1/minute", algorithm=FIXED), clock=clock))
    clock.advance(us=500_000)
    await ask(app)
    answer = await ask(app)
    assert answer.status == 429
    assert answer.fields == [
        ("content-type", "application/problem+json"),
        ("content-length", str(len(answer.body))),
        ("cache-control", "no-store"),
        ("retry-after", "60"),
        ("ratelimit-policy", '"api";q=1;w=60'),
        ("ratelimit", '"api";r=0;t=60'),
        ("vary", "accept"),
    ]
    assert answer.problem == {
        "type": QUOTA_EXCEEDED,
        "title": "Too Many Requests",
        "status": 429,
        "detail": "The quota is used up; try again in 60 seconds.",
        "violated-policies": ["api"],
    }
    assert len(inner.scopes) == 1
    clock.advance(60)
    assert (await ask(app)).status == 200


async def test_only_the_limits_that_refused_are_named_as_violated() -> None:
    app = guarded(Rule("a", "1/minute"), Rule("b", "9/minute; 1/hour"), Rule("c", "9/minute"))
    await ask(app)
    answer = await ask(app)
    assert answer.problem["violated-policies"] == ["a", "b:3600"]


async def test_a_cost_that_can_never_pass_has_a_problem_type_of_its_own_and_no_retry_after() -> (
    None
):
    # A rule that could never let it through is refused when it is built; this one is bent later.
    rule = Rule("api", "9/minute", cost=4, by="header:x-plan")
    small = Rule("api", "9/minute", by="header:x-plan", overrides={"free": "3/minute"})
    object.__setattr__(rule, "overrides", small.overrides)
    app = guarded(rule)
    answer = await ask(app, headers=[("x-plan", "free")])
    assert answer.status == 429
    assert "retry-after" not in answer.headers
    assert answer.headers["ratelimit"] == '"api";r=3'
    assert answer.problem["type"] == NEVER
    assert answer.problem["violated-policies"] == ["api"]
    assert (await ask(app, headers=[("x-plan", "paid")])).status == 200


async def test_head_is_counted_with_get_and_its_refusal_has_no_body() -> None:
    app = guarded(Rule("api", "1/minute", methods=["GET"]))
    await ask(app)
    answer = await ask(app, method="HEAD")
    assert answer.status == 429
    assert answer.body == b""
    assert int(answer.headers["content-length"]) > 0


async def test_a_refusal_takes_the_form_that_the_client_asks_for() -> None:
    app = guarded(Rule("api", "1/minute"))
    await ask(app)
    for accept, kind in {
        "text/html,application/xhtml+xml,*/*;q=0.8": "text/html; charset=utf-8",
        "text/plain": "text/plain; charset=utf-8",
        "application/json": "application/problem+json",
    }.items():
        answer = await ask(app, headers=[("accept", accept)])
        assert answer.status == 429
        assert answer.headers["content-type"] == kind
        assert int(answer.headers["content-length"]) == len(answer.body)
        assert "ratelimit" in answer.headers


async def test_every_matching_rule_applies_and_a_refusal_by_one_charges_none() -> None:
    limits = limiter(Rule("all", "9/minute", by="global"), Rule("one", "1/minute"))
    app = RateLimitMiddleware(Inner(), limits)
    assert await statuses(app, "/", "/", "/") == [200, 429, 429]
    (seen,) = await limits.store.decide([Check(Limit("9/minute"), "global=", 0, "all")])
    assert seen.remaining == 8


async def test_rules_of_other_paths_and_methods_do_not_apply() -> None:
    app = guarded(Rule("login", "1/minute", path="/login", methods=["POST"]))
    assert await statuses(app, "/login", "/login", "/", method="GET") == [200] * 3
    assert await statuses(app, "/login", "/login", "/", method="POST") == [200, 429, 200]


async def test_a_shadow_rule_never_refuses_and_is_not_shown_but_is_counted() -> None:
    limits = limiter(Rule("shade", "1/minute", mode="shadow"))
    app = RateLimitMiddleware(Inner(), limits)
    for _ in range(3):
        answer = await ask(app)
        assert answer.status == 200
        assert answer.fields == [("content-type", "text/plain")]
    assert limits.counts == {("shade", "shadow-allowed"): 1, ("shade", "shadow-denied"): 2}


async def test_a_rule_that_is_off_asks_nothing_of_the_store() -> None:
    store = Counting()
    app = guarded(Rule("gone", "1/minute", mode="off"), store=store)
    assert await statuses(app, "/", "/") == [200, 200]
    assert store.asked == []


async def test_the_denylist_is_a_403_and_beats_the_allowlist() -> None:
    store = Counting()
    app = guarded(
        Rule("api", "9/minute"),
        store=store,
        denylist=[ip_network("192.0.2.1/32")],
        allowlist=[ip_network("192.0.2.0/24")],
    )
    answer = await ask(app)
    assert answer.status == 403
    assert answer.problem["type"] == "urn:ratelimit-asgi:problem:address-denied"
    assert [name for name, _ in answer.fields] == [
        "content-type",
        "content-length",
        "cache-control",
        "vary",
    ]
    assert store.asked == []
    assert (await ask(app, client=("::ffff:c000:201", 1))).status == 403


async def test_the_denylist_holds_where_no_rule_matches() -> None:
    app = guarded(Rule("api", "9/minute", path="/api"), denylist=[ip_network("192.0.2.1/32")])
    assert await statuses(app, "/", "/api") == [403, 403]


async def test_an_address_on_the_allowlist_costs_nothing_and_is_told_nothing() -> None:
    store = Counting()
    app = guarded(Rule("api", "1/minute"), store=store, allowlist=[ip_network("192.0.2.0/24")])
    for _ in range(3):
        answer = await ask(app)
        assert answer.status == 200
        assert answer.fields == [("content-type", "text/plain")]
    assert store.asked == []
    assert await statuses(app, "/", "/", client=("198.51.100.1", 1)) == [200, 429]


@pytest.mark.parametrize("named", ["2001:db8::1", "192.0.2.77"])
async def test_an_override_names_a_client_by_its_address(named: str) -> None:
    app = guarded(Rule("api", "1/minute", overrides={named: "2/minute"}))
    assert await statuses(app, "/", "/", "/", client=(named, 1)) == [200, 200, 429]
    assert await statuses(app, "/", "/", client=("198.51.100.1", 1)) == [200, 429]


# --- what passes through -------------------------------------------------------------------------


async def test_unknown_scope_types_pass_through_untouched() -> None:
    store = Counting()
    inner = Inner()
    app = RateLimitMiddleware(inner, limiter(Rule("api", "1/minute"), store=store))
    scope = {"type": "mystery", "anything": 1}
    assert (await call(app, scope)).messages == []
    assert inner.scopes == [scope]
    assert inner.scopes[0] is scope
    assert store.asked == []


async def lifespan(scope: Scope, receive: Receive, send: Send) -> None:
    while True:
        kind = (await receive())["type"]
        await send({"type": f"{kind}.complete"})
        if kind == "lifespan.shutdown":
            return


async def test_the_lifespan_passes_through_and_its_end_closes_the_store_before_it_is_told() -> None:
    store = Counting()
    closed_when_told: list[tuple[str, int]] = []
    incoming = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])

    async def receive() -> Message:
        return next(incoming)

    async def send(message: Message) -> None:
        closed_when_told.append((message["type"], store.closed))

    app = RateLimitMiddleware(lifespan, limiter(store=store))
    await app({"type": "lifespan", "state": {}}, receive, send)
    assert closed_when_told == [
        ("lifespan.startup.complete", 0),
        ("lifespan.shutdown.complete", 1),
    ]


async def test_a_store_that_does_not_close_does_not_stop_the_shutdown(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Stuck(Counting):
        async def aclose(self) -> None:
            raise OSError("stuck")

    app = RateLimitMiddleware(lifespan, limiter(store=Stuck()))
    answer = await call(
        app, {"type": "lifespan"}, [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]
    )
    assert answer.messages[-1] == {"type": "lifespan.shutdown.complete"}
    assert "close-failed" in caplog.text


# --- WebSockets ----------------------------------------------------------------------------------


async def test_a_websocket_handshake_is_refused_with_the_answer_of_a_request() -> None:
    app = guarded(Rule("api", "1/minute"))
    scope = websocket_scope(extensions={"websocket.http.response": {}})
    assert (await call(app, scope)).messages == [{"type": "websocket.accept"}]
    answer = await call(app, dict(websocket_scope(extensions={"websocket.http.response": {}})))
    assert [each["type"] for each in answer.messages] == [
        "websocket.http.response.start",
        "websocket.http.response.body",
    ]
    assert answer.status == 429
    assert "retry-after" in answer.headers
    assert answer.problem["type"] == QUOTA_EXCEEDED


@pytest.mark.parametrize("extensions", [{}, {"extensions": {}}, {"extensions": None}])
async def test_without_the_extension_a_refused_websocket_is_closed_with_1008(
    extensions: dict[str, Any],
) -> None:
    app = guarded(Rule("api", "1/minute"))
    await call(app, websocket_scope(**extensions))
    assert (await call(app, websocket_scope(**extensions))).messages == [
        {"type": "websocket.close", "code": 1008, "reason": "Too Many Requests; try again in 61 s"}
    ]


async def test_websockets_and_requests_of_a_path_share_the_rule() -> None:
    app = guarded(Rule("api", "1/minute", methods=["GET"]))
    await ask(app)
    assert (await call(app, websocket_scope())).messages[0]["type"] == "websocket.close"


# --- streaming, background, context --------------------------------------------------------------


async def test_a_streamed_body_goes_out_chunk_by_chunk_after_one_start() -> None:
    """Each chunk has left before the application makes the next one."""
    sent: list[str] = []

    async def stream(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for number in range(3):
            assert len(sent) == number + 1
            await send({"type": "http.response.body", "body": b"%d" % number, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def send(message: Message) -> None:
        sent.append(message["type"])

    async def receive() -> Message:
        raise AssertionError("nobody reads the body")

    app = RateLimitMiddleware(stream, limiter(Rule("api", "9/minute")))
    await app(http_scope(), receive, send)
    assert sent == ["http.response.start", *["http.response.body"] * 4]


async def test_the_request_body_is_read_by_the_application_alone() -> None:
    chunks = [{"type": "http.request", "body": b"x", "more_body": more} for more in (True, False)]
    got: list[Message] = []

    async def reader(scope: Scope, receive: Receive, send: Send) -> None:
        got.extend([await receive(), await receive()])
        await send({"type": "http.response.start", "status": 204})

    app = RateLimitMiddleware(reader, limiter(Rule("api", "9/minute")))
    answer = await call(app, http_scope(), chunks)
    assert got == chunks
    assert answer.status == 204
    assert answer.headers["ratelimit"] == '"api";r=8'


async def test_header_fields_that_can_be_read_only_once_are_kept() -> None:
    async def once(scope: Scope, receive: Receive, send: Send) -> None:
        headers = (each for each in [(b"x-a", b"1"), (b"x-b", b"2")])
        await send({"type": "http.response.start", "status": 200, "headers": headers})

    answer = await ask(RateLimitMiddleware(once, limiter(Rule("api", "9/minute"))))
    assert list(answer.headers) == ["x-a", "x-b", "ratelimit-policy", "ratelimit"]


async def test_a_field_that_the_application_has_set_itself_is_kept() -> None:
    async def proxy(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"ratelimit", b"mine"), (b"x-a", b"1")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})

    answer = await ask(RateLimitMiddleware(proxy, limiter(Rule("api", "9/minute"))))
    assert answer.fields == [
        ("ratelimit", "mine"),
        ("x-a", "1"),
        ("ratelimit-policy", '"api";q=9;w=60'),
    ]


async def test_background_tasks_run_and_contextvars_are_those_of_the_caller() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")
    seen: list[str] = []

    async def endpoint(request: Request) -> Response:
        seen.append(variable.get())
        variable.set("by the endpoint")
        return PlainTextResponse("ok", background=BackgroundTask(seen.append, "background"))

    app = Starlette(routes=[Route("/", endpoint)])
    app.add_middleware(RateLimitMiddleware, limiter=limiter(Rule("api", "9/minute")))
    variable.set("by the caller")
    await ask(app)
    assert seen == ["by the caller", "background"]
    assert variable.get() == "by the endpoint"


async def test_an_exception_of_the_application_propagates_unchanged() -> None:
    problem = ZeroDivisionError("mine")

    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        raise problem

    with pytest.raises(ZeroDivisionError) as caught:
        await ask(RateLimitMiddleware(broken, limiter(Rule("api", "9/minute"))))
    assert caught.value is problem


# --- faults of the limiter -----------------------------------------------------------------------


class Failing(MemoryStore):
    """A store that answers with an exception, or with anything else."""

    def __init__(self, answer: Callable[[], Any]) -> None:
        super().__init__()
        self.answer = answer

    async def decide(self, checks: Sequence[Check]) -> tuple[Decision, ...]:
        decisions: tuple[Decision, ...] = self.answer()
        return decisions


def raising(problem: BaseException) -> Callable[..., Any]:
    def fail(*_: object) -> Any:
        raise problem

    return fail


BROKEN_LIMITERS: dict[str, Callable[..., RateLimiter]] = {
    "a store that raises": lambda rule: limiter(rule, store=Failing(raising(OSError("down")))),
    "a store that answers too little": lambda rule: limiter(rule, store=Failing(tuple)),
    "a store that answers nonsense": lambda rule: limiter(rule, store=Failing(lambda: (None,))),
    "a clock that raises": lambda rule: limiter(rule, clock=raising(ValueError("no time"))),
    "a clock that gives floats": lambda rule: limiter(rule, clock=lambda: 1.5),
    "a function for limits that raises": lambda rule: limiter(
        Rule("api", raising(LookupError("none")), on_store_failure=rule.on_store_failure)
    ),
    "a function for limits that gives none": lambda rule: limiter(
        Rule("api", lambda _: 7, on_store_failure=rule.on_store_failure)  # type: ignore[arg-type]
    ),
}


@pytest.mark.parametrize("kind", BROKEN_LIMITERS)
async def test_a_fault_of_the_limiter_allows_the_request_without_fields(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    limits = BROKEN_LIMITERS[kind](Rule("api", "1/minute"))
    app = RateLimitMiddleware(Inner(), limits)
    answer = await ask(app)
    assert answer.status == 200
    assert answer.fields == [("content-type", "text/plain")]
    assert limits.counts["api", "store-failed"] == 1
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


@pytest.mark.parametrize("kind", BROKEN_LIMITERS)
async def test_where_the_rule_says_deny_a_fault_is_a_503_of_its_own_type(kind: str) -> None:
    app = RateLimitMiddleware(
        Inner(), BROKEN_LIMITERS[kind](Rule("api", "1/minute", on_store_failure="deny"))
    )
    answer = await ask(app)
    assert answer.status == 503
    assert answer.problem["type"] == "urn:ratelimit-asgi:problem:store-unavailable"
    assert not {"retry-after", "ratelimit", "ratelimit-policy"} & answer.headers.keys()


@pytest.mark.parametrize("where", ["store", "identity"])
async def test_a_cancellation_inside_the_limiter_propagates(where: str) -> None:
    cancel = raising(asyncio.CancelledError())
    limits = (
        limiter(Rule("api", "1/minute"), store=Failing(cancel))
        if where == "store"
        else limiter(Rule("api", "1/minute", by="who"), identities={"who": cancel})
    )
    with pytest.raises(asyncio.CancelledError):
        await ask(RateLimitMiddleware(Inner(), limits))


async def test_a_store_that_fails_on_giving_back_does_not_turn_a_429_into_a_500() -> None:
    class NoReturns(MemoryStore):
        async def decide(self, checks: Sequence[Check]) -> tuple[Decision, ...]:
            if checks[0].at_us:
                raise OSError("no returns")
            return await super().decide(checks)

    @limit("1/minute")
    async def endpoint(request: Request) -> Response:
        return PlainTextResponse("ok")

    app = Starlette(routes=[Route("/", endpoint)])
    store = NoReturns(clock=ManualClock())
    app.add_middleware(RateLimitMiddleware, limiter=limiter(Rule("api", "9/minute"), store=store))
    assert await statuses(app, "/", "/") == [200, 429]


async def test_a_store_failure_beside_a_plain_rule_refuses_only_where_a_rule_says_deny() -> None:
    rules = [
        Rule("free", "1/minute"),
        Rule("paid", "1/minute", path="/paid", on_store_failure="deny"),
    ]
    app: ASGIApp = guarded(*rules, store=Failing(raising(OSError("down"))))
    assert await statuses(app, "/", "/paid") == [200, 503]


# --- several middlewares -------------------------------------------------------------------------


async def test_a_rule_that_two_middlewares_meet_is_decided_once_and_told_once() -> None:
    store = Counting()
    limits = limiter(Rule("api", "9/minute"), store=store)
    app = RateLimitMiddleware(RateLimitMiddleware(Inner(), limits), limits)
    answer = await ask(app)
    assert answer.headers["ratelimit"] == '"api";r=8'
    assert len(store.asked) == 1


async def test_what_an_outer_middleware_charged_is_given_back_when_an_inner_one_refuses(
    clock: ManualClock,
) -> None:
    outer = limiter(Rule("outer", "9/minute"), clock=clock)
    inner = limiter(Rule("inner", "1/minute"), clock=clock)
    app = RateLimitMiddleware(RateLimitMiddleware(Inner(), inner), outer)
    assert await statuses(app, "/", "/", "/") == [200, 429, 429]
    answer = await ask(app)
    assert answer.problem["violated-policies"] == ["inner"]
    (seen,) = await outer.store.decide([Check(Limit("9/minute"), "192.0.2.1", 0, "outer")])
    assert seen.remaining == 8


async def test_two_middlewares_tell_of_all_their_limits_in_one_pair_of_fields() -> None:
    app = RateLimitMiddleware(
        RateLimitMiddleware(Inner(), limiter(Rule("inner", "3/minute"))),
        limiter(Rule("outer", "9/minute")),
    )
    answer = await ask(app)
    assert answer.headers["ratelimit-policy"] == '"inner";q=3;w=60, "outer";q=9;w=60'
    assert answer.headers["ratelimit"] == '"inner";r=2'
