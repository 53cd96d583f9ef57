"""What users write, as a type checker sees it; never run, only checked (`make check`)."""

from collections.abc import Sequence
from typing import assert_type

from starlette.applications import Starlette
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response

from ratelimit import (
    Algorithm,
    Check,
    Decision,
    Event,
    Limit,
    MemoryStore,
    RateLimit,
    RateLimiter,
    RateLimitMiddleware,
    Rule,
    RuleSet,
    Store,
    exempt,
    limit,
    open_store,
)


def limits() -> None:
    one = Limit("10/minute")
    assert_type(one.quota, int)
    assert_type(one.window, float)
    assert_type(one.algorithm, Algorithm)
    assert_type(one.burst, int | None)
    assert_type(one.max_delay, float | None)
    assert_type(one.worst_case, int)
    assert_type(Limit.parse_all("5/second; 100/minute"), tuple[Limit, ...])
    Limit("10/s", algorithm="token_bucket", burst=20)
    Limit("10/s", algorithm=Algorithm.LEAKING_BUCKET, max_delay=1.5)
    Limit("10/s", rounding="up")
    Limit("10/s", rounding="sideways")  # type: ignore[arg-type]
    Limit(10)  # type: ignore[arg-type]
    Limit("10/s", "token_bucket")  # type: ignore[call-arg]  # options have names


def checks(one: Limit) -> None:
    check = Check(one, "203.0.113.7")
    Check(one, key="203.0.113.7", cost=3, rule="login", shadow=True)
    assert_type(check.cost, int)
    assert_type(check.shadow, bool)
    assert_type(check.forced(), Check)
    Check("10/minute", "203.0.113.7")  # type: ignore[arg-type]
    Check(one, "203.0.113.7", cost=0.5)  # type: ignore[arg-type]
    check.cost = 2  # type: ignore[misc]  # immutable


async def decisions(store: Store, check: Check) -> None:
    answers = await store.decide([check])
    assert_type(answers, tuple[Decision, ...])
    decision = answers[0]
    assert_type(decision.limit, Limit)
    assert_type(decision.allowed, bool)
    assert_type(decision.remaining, int)
    assert_type(decision.retry_after, float | None)
    assert_type(decision.retry_after_us, int | None)
    assert_type(decision.reset_after, float)
    assert_type(decision.reset_after_us, int)
    assert_type(decision.delay, float)
    assert_type(decision.delay_us, int)
    assert_type(decision.degraded, bool)
    assert_type(check.given_back(decision), Check)
    await store.reset((check,))


async def stores(check: Check) -> None:
    async with MemoryStore(max_keys=10_000, clock=lambda: 1_000_000) as store:
        assert_type(store, MemoryStore)
        assert_type(await store.decide((check,)), tuple[Decision, ...])
        assert_type(store.statistics().keys, int)
    opened: Store = open_store("memory://")
    await opened.aclose()
    async with open_store("redis://localhost") as shared:
        assert_type(await shared.decide((check,)), tuple[Decision, ...])
    MemoryStore(clock=lambda: 0.5)  # type: ignore[arg-type,return-value]  # whole microseconds


class Mine:
    """Another store is one class with three methods."""

    async def decide(self, checks: Sequence[Check]) -> tuple[Decision, ...]:
        return tuple(Decision(check.limit, True, 1, 0, 0, 0) for check in checks)

    async def reset(self, checks: Sequence[Check]) -> None: ...

    async def aclose(self) -> None: ...


class Half:
    async def decide(self, checks: Sequence[Check]) -> tuple[Decision, ...]:
        return ()


mine: Store = Mine()
half: Store = Half()  # type: ignore[assignment]


@limit("5/minute", by="client")
async def limited(request: Request, number: int) -> Response:
    return Response(str(number))


async def dynamic(connection: HTTPConnection) -> str | None:
    return None


def plan(connection: HTTPConnection) -> str:
    return "free"


def current_user() -> int:
    return 1


@limit({"free": "1/minute", "pro": Limit("9/minute"), "internal": None}, tier=plan)
@limit(dynamic, by=["client", "path:name"], cost=lambda connection: 2, methods=["POST"])
@limit("1/minute", skip=lambda connection: True, on_missing="skip", mode="shadow")
def limited_by_the_request(request: Request) -> Response:
    return Response()


def dependencies() -> None:
    RateLimit("5/minute", by=current_user, scope="mail", max_delay=None)
    RateLimit(Limit("5/minute"), by=["client", current_user], tier=None)
    RateLimit("5/minute", by=7)  # type: ignore[arg-type]
    RateLimit("5/minute", path="/x")  # type: ignore[call-arg]
    RateLimit("5/minute", on_missing="no")  # type: ignore[arg-type]
    limit("5/minute", by=current_user)  # type: ignore[arg-type]  # FastAPI gives it to RateLimit
    limit(5)  # type: ignore[arg-type]
    limit(lambda connection: 5)  # type: ignore[arg-type]
    limit("5/minute", cost=lambda connection: "5")  # type: ignore[arg-type]


@exempt
async def free(request: Request) -> Response:
    return Response()


async def endpoints(request: Request) -> None:
    assert_type(await limited(request, number=1), Response)
    await limited(request, number="one")  # type: ignore[arg-type]
    assert_type(await free(request), Response)


def applications() -> None:
    rule = Rule("login", "5/minute; 20/hour", path="/login", methods=["POST"])
    assert_type(rule.limits, tuple[Limit, ...])
    Rule("login", "5/minute", mode="strict")  # type: ignore[arg-type]
    assert_type(RuleSet.load("rules.yaml"), RuleSet)
    limiter = RateLimiter([rule], store=MemoryStore())
    assert_type(RateLimiter.from_file("rules.yaml", store="memory://"), RateLimiter)
    Starlette().add_middleware(RateLimitMiddleware, limiter=limiter)
    Starlette().add_middleware(RateLimitMiddleware)  # type: ignore[call-arg]


async def by_name(limiter: RateLimiter) -> None:
    assert_type(await limiter.peek("login", "alice", "203.0.113.9"), tuple[Decision, ...])
    outcome = await limiter.charge("login", "alice", 7, cost=2, tier="pro")
    assert_type(outcome.allowed, bool)
    assert_type(outcome.retry_after, float | None)
    assert_type(outcome[0], Decision)
    await limiter.reset("login")
    await limiter.peek("login", None)  # type: ignore[arg-type]
    await limiter.charge("login", "alice", 2.5)  # type: ignore[arg-type]


def events() -> None:
    def told(event: Event) -> None:
        assert_type(event.path, str | None)
        assert_type(event.masked, str)
        if event.kind == "denied":
            return
        event.rule = "x"  # type: ignore[misc]  # immutable

    RateLimiter(on_event=told)
    heard: list[Event] = []
    RateLimiter.from_file("rules.yaml", on_event=heard.append)
    RateLimiter(on_event=lambda: None)  # type: ignore[misc, arg-type]
