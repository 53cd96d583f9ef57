"""Reservations: an estimate is charged before, and set to what it turned out to cost afterwards."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Annotated, Any

import pytest
import pytest_asyncio
from anyio import to_thread
from fastapi import Depends, FastAPI, Request
from starlette.responses import StreamingResponse

from ratelimit import (
    RateLimit,
    RateLimiter,
    RateLimitExceeded,
    RateLimitMiddleware,
    RedisStore,
    Rule,
    RuleFileError,
    RuleSet,
    Store,
)
from ratelimit.limiter.settling.reserving import Reservation
from ratelimit.testing import MakeStore, ManualClock
from tests.support.asgi import ask, call, http_scope
from tests.support.servers import Server

ALGORITHMS = [
    "token_bucket", "leaking_bucket", "fixed_window", "sliding_log", "sliding_counter",
]  # fmt: skip
SECRET = "a secret of many characters"  # of this test


def tokens(limit: str = "1000/minute", name: str = "tokens", **options: Any) -> Rule:
    options = {"by": "user", "algorithm": "sliding_log"} | options
    return Rule(name, limit, **options)


MADE: list[RateLimiter] = []


@pytest_asyncio.fixture(autouse=True)
async def close_limiters() -> AsyncIterator[None]:
    """Ends what runs in the background of every limiter that a test has made."""
    yield
    while MADE:
        await MADE.pop().aclose()


def limiter(store: Store, *rules: Rule, **options: Any) -> RateLimiter:
    MADE.append(RateLimiter(rules or [tokens()], store=store, **options))
    return MADE[-1]


async def left(limits: RateLimiter, user: str = "alice", rule: str = "tokens") -> int:
    (decision,) = await limits.peek(rule, user)
    return decision.remaining


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("actual", [0, 412, 800, 950, 1300])
async def test_a_commit_makes_of_the_estimate_what_it_cost(
    store: Store, algorithm: str, actual: int
) -> None:
    more: dict[str, Any] = (
        {"burst": 1000, "free": 1000, "max_delay": None} if algorithm == "leaking_bucket" else {}
    )
    limits = limiter(store, tokens(algorithm=algorithm, **more))
    async with limits.reserve("tokens", "alice", cost=800) as reservation:
        assert await left(limits) == 200
        assert await reservation.commit(actual)
    assert await left(limits) == max(0, 1000 - actual)
    assert not await reservation.commit(1)  # once is once
    assert await left(limits) == max(0, 1000 - actual)


async def test_what_is_never_committed_stays_spent(store: Store, clock: ManualClock) -> None:
    limits = limiter(store)
    with pytest.raises(ZeroDivisionError):
        async with limits.reserve("tokens", "alice", cost=800):
            raise ZeroDivisionError
    assert await left(limits) == 200
    clock.advance(60)
    assert await left(limits) == 1000


@pytest.mark.parametrize("algorithm", ["fixed_window", "sliding_log", "sliding_counter"])
async def test_a_commit_after_its_window_gives_nothing_back_into_the_next(
    store: Store, clock: ManualClock, algorithm: str
) -> None:
    limits = limiter(store, tokens(algorithm=algorithm))
    reservation = await limits.reserve("tokens", "alice", cost=800)
    clock.advance(120)
    await limits.charge("tokens", "alice", cost=100)
    await reservation.commit(1)
    assert await left(limits) == 900


async def test_debt_is_paid_off_by_waiting(store: Store, clock: ManualClock) -> None:
    limits = limiter(store, tokens(algorithm="token_bucket"))
    async with limits.reserve("tokens", "alice", cost=100) as reservation:
        await reservation.commit(2000)
    with pytest.raises(RateLimitExceeded) as refused:
        await limits.reserve("tokens", "alice", cost=500)
    (decision,) = refused.value.decisions
    assert decision.retry_after == 90.0
    clock.advance(90)
    await limits.reserve("tokens", "alice", cost=500)


async def test_a_reservation_that_can_never_pass_says_never(store: Store) -> None:
    limits = limiter(store)
    with pytest.raises(RateLimitExceeded) as refused:
        await limits.reserve("tokens", "alice", cost=1001)
    assert refused.value.decisions[0].retry_after is None
    assert "retry-after" not in dict(refused.value.headers or {})


async def test_progress_charges_what_goes_beyond_the_estimate_and_says_when_it_is_used_up(
    store: Store,
) -> None:
    limits = limiter(store)
    async with limits.reserve("tokens", "alice", cost=400) as reservation:
        assert await reservation.progress(300)
        assert await left(limits) == 600
        assert await reservation.progress(700)
        assert await left(limits) == 300
        assert not await reservation.progress(1000)
        assert not await reservation.progress(1100)
        assert await reservation.commit(900)
    assert await left(limits) == 100


async def test_a_commit_beside_progress_that_is_on_its_way_is_what_it_cost(store: Store) -> None:
    limits = limiter(store)
    reservation = await limits.reserve("tokens", "alice", cost=10)
    await asyncio.gather(
        *(reservation.progress(total) for total in (60, 120)),
        reservation.commit(42),
        reservation.progress(500),
    )
    assert await left(limits) == 958


async def test_a_commit_that_its_key_does_not_take_is_told_in_the_log(
    redis_server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    redis_server.command("FLUSHALL")
    limits = limiter(RedisStore(redis_server.url, deadline=10))
    reservation = await limits.reserve("tokens", "alice", cost=10)
    (key,) = redis_server.ask("KEYS", "rl:*")
    redis_server.command("SET", key, "of somebody else")
    assert await reservation.commit(100)
    assert caplog.text.count("check-failed") == 1


async def test_a_block_that_ends_is_committed_at_the_last_progress(store: Store) -> None:
    limits = limiter(store)
    with suppress(ZeroDivisionError):
        async with limits.reserve("tokens", "alice", cost=400) as reservation:
            await reservation.progress(20)
            await reservation.progress(10)  # a total so far never falls
            raise ZeroDivisionError
    assert await left(limits) == 980


async def test_several_budgets_are_reserved_together_or_not_at_all(store: Store) -> None:
    limits = limiter(store, tokens(), tokens("900/minute", "team", by="header:x-team"))
    budgets = [("tokens", "alice", 500), ("team", ("red",), 800)]
    async with limits.reserve_all(budgets) as reservation:
        assert (await left(limits), await left(limits, "red", "team")) == (500, 100)
        await reservation.commit([200, 850])
    assert (await left(limits), await left(limits, "red", "team")) == (800, 50)
    with pytest.raises(RateLimitExceeded) as refused:
        await limits.reserve_all(budgets)
    assert [policy for policy, each in refused.value.told if not each.allowed] == ["team"]
    assert b'"violated-policies": ["team"]' in refused.value.refusal.body
    assert (await left(limits), await left(limits, "red", "team")) == (800, 50)


async def test_one_number_is_for_every_budget(store: Store) -> None:
    limits = limiter(store, tokens(), tokens("900/minute", "team"))
    async with limits.reserve_all([("tokens", "a", 500), ("team", "a", 500)]) as reservation:
        await reservation.commit(100)
    assert (await left(limits, "a"), await left(limits, "a", "team")) == (900, 800)
    for wrong in ([1], [1, 2, 3], -1, 2**42 + 1, 1.5, "12", True):
        with pytest.raises((ValueError, TypeError)):
            await reservation.commit(wrong)  # type: ignore[arg-type]  # of a wrong type


async def test_every_limit_of_a_rule_is_committed(store: Store) -> None:
    limits = limiter(store, tokens("1000/minute; 5000/day"))
    async with limits.reserve("tokens", "alice", cost=800) as reservation:
        await reservation.commit(100)
    assert [each.remaining for each in await limits.peek("tokens", "alice")] == [900, 4900]


async def test_a_rule_in_shadow_is_committed_as_in_earnest_and_refuses_nobody(
    store: Store,
) -> None:
    limits = limiter(store, tokens(mode="shadow"))
    async with limits.reserve("tokens", "alice", cost=800) as reservation:
        assert await reservation.progress(1100)
        await reservation.commit(900)
    assert await left(limits) == 100
    async with limits.reserve("tokens", "alice", cost=800) as reservation:
        await reservation.commit(50)  # which would not have passed: nothing was charged
    assert await left(limits) == 100


async def test_who_is_unlimited_reserves_nothing_and_who_is_blocked_is_refused(
    store: Store,
) -> None:
    limits = limiter(store, tokens(overrides={"vip": None, "bad": "blocked", "big": "9000/day"}))
    async with limits.reserve("tokens", "vip", cost=10**6) as reservation:
        assert await reservation.progress(10**7)
        assert await reservation.commit(10**7)
    with pytest.raises(RateLimitExceeded) as refused:
        await limits.reserve("tokens", "bad", cost=1)
    assert refused.value.status_code == 403
    async with limits.reserve("tokens", "big", cost=8000) as reservation:
        await reservation.commit(10)
    assert await left(limits, "big") == 8990


# --- elsewhere, and at the wrong moment ----------------------------------------------------------


async def test_a_token_commits_in_another_process_once(
    make_store: MakeStore, clock: ManualClock
) -> None:
    store = make_store(clock)
    here, there = (limiter(store, tokens(), secret=SECRET) for _ in range(2))
    reservation = await here.reserve("tokens", "alice", cost=800)
    token = reservation.token
    assert await there.commit(token, 100)
    assert await left(here) == 900
    assert not await there.commit(token, 1)
    assert not await reservation.commit(1)
    assert await left(here) == 900
    await store.aclose()


async def test_once_its_token_was_read_the_handle_commits_for_both(store: Store) -> None:
    limits = limiter(store, secret=SECRET)
    reservation = await limits.reserve("tokens", "alice", cost=800)
    token = reservation.token
    assert await reservation.commit(100)
    assert not await limits.commit(token, 1)
    assert await left(limits) == 900


async def test_a_token_is_good_for_an_hour_or_for_the_longest_window(
    store: Store, clock: ManualClock
) -> None:
    limits = limiter(store, tokens(), tokens("9000/day", "daily"), secret=SECRET)
    short = (await limits.reserve("tokens", "alice", cost=800)).token
    long = (await limits.reserve("daily", "alice", cost=800)).token
    clock.advance(3601)
    assert not await limits.commit(short, 1)
    assert await limits.commit(long, 100)
    assert await left(limits, rule="daily") == 8900


async def test_a_secret_that_was_rotated_is_still_believed(store: Store) -> None:
    old = limiter(store, secret=SECRET)
    new = limiter(store, secret=["another secret of many", SECRET])
    token = (await old.reserve("tokens", "alice", cost=800)).token
    assert await new.commit(token, 100)
    with pytest.raises(ValueError, match="was not signed"):
        await old.commit((await new.reserve("tokens", "alice", cost=1)).token, 1)


async def test_nobody_makes_a_token_up(store: Store) -> None:
    limits = limiter(store, secret=SECRET)
    token = (await limits.reserve("tokens", "alice", cost=800)).token
    body, _, mac = token.partition(".")
    other = limiter(store, secret="x" * 16)
    forged = (await other.reserve("tokens", "bob", cost=1)).token
    for wrong in ("", ".", body, f"{body}.", f".{mac}", f"A{token}", f"{token}A", forged,
                  f"{forged.partition('.')[0]}.{mac}", "\u00e9.\u00e9", "a" * 200_000):  # fmt: skip
        with pytest.raises(ValueError, match="token"):
            await limits.commit(wrong, 0)
    with pytest.raises(TypeError):
        await limits.commit(b"x", 0)  # type: ignore[arg-type]  # of a wrong type
    assert await left(limits) == 200


async def test_a_token_of_another_version_says_so(store: Store) -> None:
    limits = limiter(store, secret=SECRET)
    for content in ([2], [2, "id", {"another": "shape"}]):
        with pytest.raises(ValueError, match="another version"):
            await limits.commit(limits._signer().sign(content), 1)


async def test_without_a_secret_there_is_no_token(store: Store) -> None:
    reservation = await limiter(store).reserve("tokens", "alice", cost=1)
    with pytest.raises(RuntimeError, match="no secret to sign"):
        _ = reservation.token


def test_a_secret_comes_from_the_rule_file_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENS", SECRET)
    monkeypatch.setenv("SHORT", "s3cret!")
    assert RuleSet.loads("version: 1\nsecret: ${TOKENS}\n").secret == (SECRET,)
    two = RuleSet.loads("version: 1\nsecret: [another secret of many, '${TOKENS}']\n")
    assert two.secret == ("another secret of many", SECRET)
    assert "secret of many" not in repr(two)
    for text in ("secret: ${SHORT}", "secret: ['${SHORT}']", "secret: s3cret!"):
        with pytest.raises(RuleFileError, match="bad-secret") as error:
            RuleSet.loads(f"version: 1\n{text}\n")
        assert "s3cret!" not in str(error.value)
    with pytest.raises(ValueError, match="it has at least 16"):
        RateLimiter(secret="short")


async def test_a_commit_is_made_though_nobody_waits_for_it_any_more(store: Store) -> None:
    limits = limiter(store)
    reservation = await limits.reserve("tokens", "alice", cost=800)
    waiting = asyncio.create_task(reservation.commit(100))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    await limits._settler.aclose()  # nobody waits for it otherwise
    assert await left(limits) == 900


async def test_a_thread_commits_and_waits_for_it(store: Store) -> None:
    limits = limiter(store)
    reservation = await limits.reserve("tokens", "alice", cost=800)
    with pytest.raises(RuntimeError, match="is for threads"):
        reservation.commit_sync(100)
    assert await to_thread.run_sync(reservation.commit_sync, 100)
    assert await left(limits) == 900
    other = await limits.reserve("tokens", "alice", cost=800)
    thread = threading.Thread(target=other.commit_sync, args=(0,))
    thread.start()
    await to_thread.run_sync(thread.join)
    assert await left(limits) == 900


def test_a_thread_that_outlives_the_event_loop_is_told_so() -> None:
    async def reserve() -> Reservation:
        return await RateLimiter([tokens()]).reserve("tokens", "alice", cost=1)

    reservation = asyncio.run(reserve())
    with pytest.raises(RuntimeError, match="made this reservation is closed"):
        reservation.commit_sync(1)


# --- on a route ----------------------------------------------------------------------------------


async def estimate(request: Request) -> int:
    body = await request.json()
    return int(body["max_tokens"]) * int(body.get("n", 1))


def chat(store: Store, limit: str = "1000/minute", **options: Any) -> tuple[FastAPI, RateLimiter]:
    """An application that streams as many units as a request asks for, and reports each ten."""
    limits = limiter(store, Rule("all", "9999/minute"))
    app = FastAPI()
    app.add_middleware(RateLimitMiddleware, limiter=limits)
    budget = RateLimit(limit, unit="tokens", cost=estimate, name="tokens",
                       algorithm="sliding_log", **options)  # fmt: skip

    @app.post("/chat")
    async def endpoint(
        request: Request, reservation: Annotated[Reservation, Depends(budget)]
    ) -> StreamingResponse:
        wanted = (await request.json())["wanted"]

        async def produce() -> AsyncIterator[bytes]:
            for total in range(10, wanted + 1, 10):
                yield b"x" * 10
                if not await reservation.progress(total):
                    return

        return StreamingResponse(produce())

    @app.post("/sync")
    def in_a_thread(reservation: Annotated[Reservation, Depends(budget)]) -> int:
        reservation.commit_sync(7)
        return reservation.cost[0]

    return app, limits


async def post(app: FastAPI, path: str = "/chat", **body: int) -> Any:
    content = {"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}
    headers = [("content-type", "application/json")]
    return await call(app, http_scope(path, "POST", headers), [content])


async def test_a_stream_is_charged_for_what_it_has_produced(store: Store) -> None:
    app, limits = chat(store)
    answer = await post(app, max_tokens=800, wanted=50)
    assert (answer.status, len(answer.body)) == (200, 50)
    await limits._settler.aclose()  # nobody waits for it otherwise
    answer = await post(app, max_tokens=950, wanted=0)
    assert answer.status == 200


async def test_a_stream_can_be_cut_when_the_budget_is_gone(store: Store) -> None:
    app, _ = chat(store, "100/minute")
    assert len((await post(app, max_tokens=10, wanted=5000)).body) == 100
    assert (await post(app, max_tokens=1, wanted=0)).status == 429


async def test_a_client_that_leaves_is_charged_for_what_was_produced(store: Store) -> None:
    app, limits = chat(store)
    sent = 0

    async def receive() -> Any:
        if sent >= 100:
            return {"type": "http.disconnect"}
        if sent:
            await asyncio.Event().wait()
        return {"type": "http.request", "body": b'{"max_tokens": 1000, "wanted": 1000}'}

    async def send(message: Any) -> None:
        nonlocal sent
        sent += len(message.get("body", b""))
        if sent >= 100:
            raise OSError

    headers = [("content-type", "application/json")]
    with suppress(Exception):  # of which Starlette makes another one
        await app(http_scope("/chat", "POST", headers), receive, send)
    await limits._settler.aclose()  # nobody waits for it otherwise
    assert sent == 100
    assert (await post(app, max_tokens=910, wanted=0)).status == 200  # 90 had been reported
    assert (await post(app, max_tokens=1, wanted=0)).status == 429


async def test_all_that_is_declared_is_reserved(store: Store) -> None:
    app, _ = chat(store)
    never = await post(app, max_tokens=300, n=4, wanted=0)
    assert never.status == 429
    assert never.problem["title"] == "Cost Exceeds Limit"


async def test_an_endpoint_in_a_thread_commits_as_well(store: Store) -> None:
    app, _ = chat(store)
    for _ in range(5):
        answer = await post(app, "/sync", max_tokens=900)
        assert (answer.status, answer.body) == (200, b"900")


async def test_counting_before_lets_no_crowd_through(store: Store, clock: ManualClock) -> None:
    """The five calls of BerriAI/litellm#18730, where a limit of 100 let 663 units through."""
    limits = limiter(store, tokens("100/minute"), tokens("400/minute", "larger"))
    actual = [58, 80, 175, 175, 175]

    async def reserve(rule: str) -> Reservation | RateLimitExceeded:
        try:
            return await limits.reserve(rule, "alice", cost=175)
        except RateLimitExceeded as refused:
            return refused

    small = await asyncio.gather(*(reserve("tokens") for _ in actual))
    assert [isinstance(each, RateLimitExceeded) and each.decisions[0].retry_after
            for each in small] == [None] * 5  # fmt: skip
    crowd = await asyncio.gather(*(reserve("larger") for _ in actual))
    admitted = [each for each in crowd if isinstance(each, Reservation)]
    refused = [each for each in crowd if isinstance(each, RateLimitExceeded)]
    assert len(admitted) == 2
    assert [each.decisions[0].retry_after for each in refused] == [60.0] * 3
    for reservation, units in zip(admitted, actual, strict=False):
        await reservation.commit(units)
    assert await left(limits, rule="larger") == 400 - 138
    assert isinstance(await reserve("larger"), Reservation)
    assert isinstance(await reserve("larger"), RateLimitExceeded)


async def test_the_fields_of_a_reservation_are_those_of_its_estimate(store: Store) -> None:
    app, _ = chat(store)
    answer = await post(app, max_tokens=800, wanted=0)
    assert answer.headers["ratelimit"] == '"tokens";r=200'
    assert (await ask(app, "/nowhere")).headers["ratelimit"].startswith('"all"')
