"""What is charged by outcome, or reserved, where nobody is there to settle it."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Annotated, Any

import pytest
from fastapi import Depends, FastAPI, Request
from starlette.responses import JSONResponse, StreamingResponse

from ratelimit import RateLimit, RateLimiter, RateLimitMiddleware, Reservation, Rule, limit
from ratelimit.asgi import decorators
from ratelimit.decisions import Check, Decision
from ratelimit.stores import MemoryStore, StoreUnavailable
from ratelimit.testing import ManualClock
from tests.support.asgi import Counting, Inner, ask

FAILURES: dict[str, Any] = {"on_status": [401]}


def undecided(limits: RateLimiter) -> int:
    return sum(limits._decider._outcomes.open.values())


async def test_an_answer_that_is_cancelled_while_the_application_decides_keeps_its_charge() -> None:
    begun = asyncio.Event()

    async def charge_if(_: object) -> bool:
        begun.set()
        await asyncio.Event().wait()
        return False

    limits = RateLimiter([Rule("exports", "5/hour", charge_if=charge_if)])
    request = asyncio.create_task(ask(RateLimitMiddleware(Inner(), limits), "/"))
    await begun.wait()
    assert undecided(limits) == 1
    request.cancel()
    with suppress(asyncio.CancelledError):
        await request
    del request
    assert undecided(limits) == 0
    (decision,) = await limits.peek("exports", "192.0.2.1")
    assert decision.remaining == 4


async def test_a_dependency_that_nobody_settles_says_so_and_keeps_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    decorators._say_unsettled.cache_clear()
    limits = RateLimiter()
    app = FastAPI()
    failures = RateLimit("3/minute", by="header:x-account", charge=FAILURES, limiter=limits)

    @app.post("/login", dependencies=[Depends(failures)])
    async def login() -> None:
        pass

    with caplog.at_level(logging.WARNING, "ratelimit"):
        for account in range(5):
            answer = await ask(app, "/login", "POST", [("x-account", str(account))])
            assert answer.status == 200
    assert caplog.text.count("charge-unsettled") == 1
    assert undecided(limits) == 0


async def test_an_endpoint_of_limits_settles_its_dependencies_as_well(
    caplog: pytest.LogCaptureFixture,
) -> None:
    decorators._say_unsettled.cache_clear()
    limits = RateLimiter()
    app = FastAPI()
    failures = RateLimit("3/minute", charge=FAILURES, limiter=limits, name="failures")

    @app.post("/login", dependencies=[Depends(failures)])
    @limit("99/minute", limiter=limits)
    async def login(request: Request) -> None:
        pass

    with caplog.at_level(logging.WARNING, "ratelimit"):
        for _ in range(5):
            assert (await ask(app, "/login", "POST")).status == 200
    assert "charge-unsettled" not in caplog.text
    assert undecided(limits) == 0


class Wrong(Exception):
    """An application's own, which a handler of its answers with 401."""


@pytest.mark.parametrize("how", ["returned", "handled"])
@pytest.mark.parametrize("place", ["endpoint", "dependency"])
async def test_a_failure_that_nobody_sees_is_not_given_back(how: str, place: str) -> None:
    """Without a middleware, a guess is not free because its answer was made further out."""
    limits = RateLimiter()
    app = FastAPI()
    options: dict[str, Any] = {"charge": FAILURES, "limiter": limits, "name": "login"}
    depends = [Depends(RateLimit("3/minute", **options))] if place == "dependency" else []

    async def login(request: Request) -> JSONResponse:
        if how == "handled":
            raise Wrong
        return JSONResponse({}, 401)

    async def answer(_: Request, __: Exception) -> JSONResponse:
        return JSONResponse({}, 401)

    app.add_exception_handler(Wrong, answer)
    endpoint = login if depends else limit("3/minute", **options)(login)
    app.post("/login", dependencies=depends)(endpoint)
    answers = [(await ask(app, "/login", "POST")).status for _ in range(5)]
    assert answers == [401, 401, 401, 429, 429]
    assert undecided(limits) == 0


async def test_a_success_gives_back_the_newest_failures_few_at_a_time() -> None:
    """What an account may have the store do by one success is bounded, however often it failed."""

    class Watched(Counting):
        most = 0

        async def decide(self, checks: Any) -> tuple[Decision, ...]:
            self.most = max(self.most, len(checks))
            return await super().decide(checks)

    store = Watched(ManualClock())
    charge = {**FAILURES, "reset_on": [200]}
    rule = Rule("login", "1000/hour", by="header:x-account", charge=charge)
    limits = RateLimiter([rule], store=store)
    for status, left in ((401, 1000 - 300), (200, 1000 - 100)):
        app = RateLimitMiddleware(Answering(status), limits)
        for _ in range(300 if status == 401 else 1):
            await ask(app, "/login", "POST", [("x-account", "alice")])
        (decision,) = await limits.peek("login", "alice")
        assert decision.remaining == left
    assert store.most == 50


async def test_a_success_waits_for_all_its_limits_at_once() -> None:
    """A store that is slow, or away, holds it up once, and not once for each limit and rule."""

    class Meeting(Counting):
        """A store in which each of two has to be asked before one is answered."""

        both = asyncio.Barrier(2)

        async def forget_failures(self, check: Check) -> None:
            await self.both.wait()
            await super().forget_failures(check)

    store = Meeting(ManualClock())
    charge = {**FAILURES, "reset_on": [200]}
    rule = Rule("login", "5/hour; 9/day", by="header:x-account", charge=charge)
    limits = RateLimiter([rule], store=store)
    async with asyncio.timeout(10):
        for status in (401, 200):
            app = RateLimitMiddleware(Answering(status), limits)
            await ask(app, "/login", "POST", [("x-account", "alice")])
    assert [each.remaining for each in await limits.peek("login", "alice")] == [5, 9]


class Answering:
    """An application that always answers with one status."""

    def __init__(self, status: int) -> None:
        self.status = status

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": self.status, "headers": []})
        await send({"type": "http.response.body", "body": b""})


# --- reservations --------------------------------------------------------------------------------


async def estimate(request: Request) -> int:
    return int((await request.body()).decode() or 70)


class Away(MemoryStore):
    """A store that never answers."""

    async def decide(self, checks: Any) -> tuple[Decision, ...]:
        raise StoreUnavailable("gone", kind="refused")


def streaming(limits: RateLimiter, *, middleware: bool = True, **options: Any) -> FastAPI:
    """An application that streams as many units as were reserved."""
    app = FastAPI()
    if middleware:
        app.add_middleware(RateLimitMiddleware, limiter=limits)
    budget = RateLimit("100/minute", unit="tokens", name="tokens", limiter=limits, **options)

    @app.post("/stream")
    @limit("99/minute", limiter=limits)
    async def stream(
        request: Request, reservation: Annotated[Reservation, Depends(budget)]
    ) -> StreamingResponse:
        await reservation.progress(1)

        async def units() -> AsyncIterator[bytes]:
            for total in range(2, reservation.cost[0] + 1):
                yield b"x"
                await reservation.progress(total)

        return StreamingResponse(units())

    return app


@pytest.mark.parametrize("cost", [70, estimate])
@pytest.mark.parametrize(
    "limits",
    [
        lambda: RateLimiter(enabled=False),
        lambda: RateLimiter(store=Away()),
        RateLimiter,
    ],
    ids=["off", "away", "counted"],
)
async def test_an_estimate_is_told_whether_or_not_it_is_counted(limits: Any, cost: Any) -> None:
    """A store that is away does not make an answer shorter."""
    answer = await ask(streaming(limits(), cost=cost), "/stream", "POST")
    assert (answer.status, len(answer.body)) == (200, 69)


async def test_without_a_middleware_a_stream_is_not_committed_when_its_endpoint_returns() -> None:
    limits = RateLimiter()
    app = streaming(limits, middleware=False, cost=10)
    assert len((await ask(app, "/stream", "POST")).body) == 9
    await limits._settler.aclose()
    (decision,) = await limits.peek("tokens", "192.0.2.1")
    assert decision.remaining == 90  # and not 99, by what it was when the endpoint returned


async def test_a_response_that_ends_leaves_the_commit_to_who_has_the_token() -> None:
    limits = RateLimiter([Rule("tokens", "1000/minute", by="user")], secret="x" * 20)
    async with limits.reserve("tokens", "alice", cost=800) as reservation:
        await reservation.progress(10)
        token = reservation.token
    reservation.sent()
    reservation.ended(None)
    assert await limits.commit(token, 412)
    (decision,) = await limits.peek("tokens", "alice")
    assert decision.remaining == 1000 - 412


async def test_a_token_that_could_not_be_made_leaves_the_reservation_as_it_was() -> None:
    limits = RateLimiter([Rule("tokens", "1000/minute", by="user")])
    async with limits.reserve("tokens", "alice", cost=800) as reservation:
        await reservation.progress(10)
        with pytest.raises(RuntimeError, match="no secret"):
            _ = reservation.token
    (decision,) = await limits.peek("tokens", "alice")
    assert decision.remaining == 990


async def test_a_budget_that_is_used_up_stays_so_until_more_is_reported() -> None:
    clock = ManualClock()
    limits = RateLimiter(
        [Rule("tokens", "100/minute", by="user", algorithm="sliding_log")],
        store=MemoryStore(clock=clock),
    )
    reservation = await limits.reserve("tokens", "alice", cost=60)
    assert await reservation.progress(60)
    for _ in range(2):
        assert not await reservation.progress(100)
    assert not await reservation.progress(50)
    clock.advance(61)
    assert await reservation.progress(101)
    assert await reservation.progress(101)
