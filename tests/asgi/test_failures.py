"""What clients and operators see while the store cannot answer."""

import logging
from collections.abc import Sequence

import pytest
from fastapi import Depends, FastAPI
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse

from ratelimit import (
    Check,
    Decision,
    MemoryStore,
    RateLimit,
    RateLimiter,
    RateLimitExceeded,
    RateLimitMiddleware,
    Rule,
    RuleSet,
    StoreUnavailable,
    limit,
)
from ratelimit.decisions import assumed
from ratelimit.limiter.admission import Admission
from ratelimit.limiter.reports import STEADY_AFTER
from tests.support.asgi import Inner, ask, http_scope

UNAVAILABLE = "urn:ratelimit-asgi:problem:store-unavailable"


class Breakable(MemoryStore):
    """A store that fails with whatever it is given, until that is taken away."""

    problem: Exception | None = None

    async def decide(self, checks: Sequence[Check]) -> tuple[Decision, ...]:
        if self.problem is not None:
            raise self.problem
        return await super().decide(checks)


def broken(kind: str = "refused") -> Breakable:
    """A store that cannot be reached."""
    store = Breakable()
    store.problem = StoreUnavailable(f"nothing listens ({kind})", kind=kind)
    return store


def in_front(store: MemoryStore, *rules: Rule, default: str = "allow") -> RateLimitMiddleware:
    """A middleware with these rules before the smallest application."""
    rule_set = RuleSet(rules, on_store_failure=default)  # type: ignore[arg-type]
    return RateLimitMiddleware(Inner(), RateLimiter(rule_set, store=store))


async def test_requests_are_allowed_without_fields() -> None:
    """By default nothing is refused, and nothing is claimed about quotas."""
    answer = await ask(in_front(broken(), Rule("all", "1/minute")))
    assert answer.status == 200
    assert not [name for name, _ in answer.fields if "ratelimit" in name]


@pytest.mark.parametrize(
    ("default", "own", "status"),
    [("allow", None, 200), ("deny", None, 503), ("allow", "deny", 503), ("deny", "allow", 200)],
)
async def test_a_rule_has_the_word_over_the_files(
    default: str, own: str | None, status: int
) -> None:
    """`on_store_failure` of the rule counts, and where it has none, that of the file."""
    rule = Rule("all", "1/minute", on_store_failure=own)  # type: ignore[arg-type]
    answer = await ask(in_front(broken(), rule, default=default))
    assert answer.status == status


async def test_a_503_is_a_problem_of_its_own_type() -> None:
    """It is no 429, names no policy as violated, and tells no time to come back."""
    strict = Rule("strict", "1/minute", on_store_failure="deny")
    answer = await ask(in_front(broken(), Rule("lax", "1/minute"), strict))
    assert (answer.status, answer.problem["type"]) == (503, UNAVAILABLE)
    assert answer.headers["content-type"] == "application/problem+json"
    assert "retry-after" not in answer.headers
    assert "violated-policies" not in answer.problem


async def test_a_shadow_rule_refuses_nobody_even_then() -> None:
    """A rule that has no say has none when the store fails."""
    rule = Rule("new", "1/minute", mode="shadow", on_store_failure="deny")
    assert (await ask(in_front(broken(), rule))).status == 200


async def test_decisions_that_were_assumed_say_so() -> None:
    """`degraded` tells them from what a store decided."""
    store = broken()
    limiter = RateLimiter([Rule("all", "7/minute")], store=store)
    admission = await limiter.admit(http_scope("/"))
    assert isinstance(admission, Admission)
    (decision,) = admission.decisions
    assert (decision.degraded, decision.allowed, decision.remaining) == (True, True, 7)
    store.problem = None
    (decision,) = (await limiter.admit(http_scope("/"))).decisions
    assert (decision.degraded, decision.remaining) == (False, 6)


@pytest.mark.parametrize("way", ["decorator", "dependency"])
async def test_a_route_answers_503_and_not_as_if_a_quota_were_exceeded(way: str) -> None:
    """The application's handler for RateLimitExceeded is not asked about a broken store."""
    app = FastAPI()
    own = RateLimiter([], store=broken())
    if way == "decorator":

        @app.get("/")
        @limit("1/minute", limiter=own, on_store_failure="deny")
        async def endpoint() -> str:
            return "ok"

    else:
        needs = Depends(RateLimit("1/minute", limiter=own, on_store_failure="deny"))
        app.get("/", dependencies=[needs])(lambda: "ok")

    @app.exception_handler(RateLimitExceeded)
    async def exceeded(request: Request, error: RateLimitExceeded) -> JSONResponse:
        return JSONResponse({"mine": True}, 429)

    answer = await ask(app)
    assert (answer.status, answer.problem["type"]) == (503, UNAVAILABLE)


async def test_each_change_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """One line says what happened and what answers meanwhile, another that it is over."""
    store = broken()
    app = in_front(store, Rule("lax", "9/minute"), Rule("pay", "9/minute", on_store_failure="deny"))
    for _ in range(2):
        await ask(app)
    store.problem = StoreUnavailable("gave no answer", kind="late")
    for _ in range(2):
        await ask(app)
    store.problem = None
    app.limiter._reports.failed_at -= STEADY_AFTER  # a while passes
    for _ in range(3):
        await ask(app)
    said = [record.getMessage() for record in caplog.records]
    meanwhile = "until it answers, requests are allowed, but refused with 503 by pay"
    assert said == [
        f"store-failed: nothing listens (refused); {meanwhile}",
        f"store-failed: gave no answer; {meanwhile}",
        "store-answers: the store answers again, and limits are enforced",
    ]
    assert not any(record.exc_info for record in caplog.records)


async def test_a_fault_of_ours_is_logged_with_its_traceback_once_a_minute(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """An exception that is no store's is treated as one, and told so that it can be mended."""
    store = Breakable()
    store.problem = ZeroDivisionError("a bug")
    app = in_front(store, Rule("all", "1/minute"))
    assert [(await ask(app)).status for _ in range(3)] == [200, 200, 200]
    (record,) = caplog.records
    assert (record.levelno, bool(record.exc_info)) == (logging.ERROR, True)
    assert "ZeroDivisionError: a bug" in record.getMessage()


async def test_a_refusal_stands_where_its_give_back_fails(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The middleware's store fails between its charge and the route's refusal."""
    outer = Breakable()

    class Later(MemoryStore):
        async def decide(self, checks: Sequence[Check]) -> tuple[Decision, ...]:
            outer.problem = StoreUnavailable("gone", kind="closed")
            return await super().decide(checks)

    app = FastAPI()

    @app.get("/")
    @limit("1/minute", limiter=RateLimiter(store=Later()))
    async def endpoint() -> PlainTextResponse:
        outer.problem = None
        return PlainTextResponse("ok")

    rules = [Rule("all", "9/minute")]
    app.add_middleware(RateLimitMiddleware, limiter=RateLimiter(rules, store=outer))
    answers = [(await ask(app)).status for _ in range(5)]
    assert answers == [200, 429, 429, 429, 429]
    # Said once a minute, and not for each request that a client likes to send.
    assert caplog.text.count("give-back-failed: StoreUnavailable: gone") == 1


@pytest.mark.parametrize(("policy", "status"), [("allow", 200), ("deny", 503)])
async def test_where_one_shard_fails_its_rules_have_their_own_word(
    policy: str, status: int
) -> None:
    """What other shards decided counts, and is given back if the request is refused after all."""

    class Sharded(MemoryStore):
        async def decide(self, checks: Sequence[Check]) -> tuple[Decision, ...]:
            decisions = await super().decide(checks)
            return tuple(
                assumed([check], allowed=True)[0] if check.rule == "lost" else decision
                for check, decision in zip(checks, decisions, strict=True)
            )

    lost = Rule("lost", "9/minute", by="global", on_store_failure=policy)  # type: ignore[arg-type]
    kept = Rule("kept", "9/minute")
    store = Sharded()
    answer = await ask(in_front(store, kept, lost))
    assert answer.status == status
    if status == 200:
        assert answer.headers["ratelimit-policy"] == '"kept";q=9;w=60'
    (look,) = await store.decide([Check(kept.limits[0], "192.0.2.1", 0, "kept")])
    assert look.remaining == (8 if status == 200 else 9)
