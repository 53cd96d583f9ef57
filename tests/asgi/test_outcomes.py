"""Charges that an outcome decides: made before the request runs, given back unless it failed."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import pytest
import pytest_asyncio
from fastapi import Depends, FastAPI, HTTPException
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from ratelimit import (
    Check,
    Decision,
    MemoryStore,
    RateLimit,
    RateLimiter,
    RateLimitMiddleware,
    Rule,
    Store,
    StoreUnavailable,
    limit,
)
from ratelimit.testing import ManualClock
from tests.support.asgi import CLIENT, Inner, ask, call, limiter, websocket_scope

LOGIN: Mapping[str, Sequence[int | str]] = {"on_status": [401, "5xx"], "reset_on": [200]}
ALGORITHMS = [
    "token_bucket", "leaking_bucket", "fixed_window", "sliding_log", "sliding_counter",
]  # fmt: skip


MADE: list[RateLimiter] = []


@pytest_asyncio.fixture(autouse=True)
async def close_limiters() -> AsyncIterator[None]:
    """Ends what runs in the background of every limiter that a test has made."""
    yield
    while MADE:
        await MADE.pop().aclose()


def limiting(store: Store, *rules: Rule) -> RateLimiter:
    MADE.append(RateLimiter(rules, store=store))
    return MADE[-1]


class Outcome:
    """An application that answers with the status that the test has set, when it is let to."""

    def __init__(self) -> None:
        self.status = 200
        self.reached = 0
        self.gate: asyncio.Event | None = None
        self._arrivals = asyncio.Semaphore(0)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.reached += 1
        self._arrivals.release()
        status = self.status
        if self.gate is not None:
            await self.gate.wait()
        if status == 0:
            return
        if status < 0:
            raise ZeroDivisionError
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def has_reached(self, count: int) -> None:
        """Waits until so many requests were let in."""
        for _ in range(count):
            await self._arrivals.acquire()


class Login:
    """A login behind a limit on its failures, by account."""

    def __init__(self, store: Store, limit: str = "3/minute", **options: Any) -> None:
        options = {"charge": LOGIN, "by": "header:x-account", "algorithm": "sliding_log"} | options
        self.inner = Outcome()
        self.limiter = limiting(store, Rule("login", limit, **options))
        self.app: ASGIApp = RateLimitMiddleware(self.inner, self.limiter)

    async def post(self, status: int, account: str = "alice", method: str = "POST") -> int:
        self.inner.status = status
        headers = [("x-account", account)]
        return (await ask(self.app, "/login", method, headers)).status

    async def left(self, account: str = "alice") -> int:
        (decision,) = await self.limiter.peek("login", account)
        return decision.remaining


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_only_outcomes_that_are_named_keep_a_charge(store: Store, algorithm: str) -> None:
    free: dict[str, Any] = {"free": 3, "max_delay": None} if algorithm == "leaking_bucket" else {}
    login = Login(store, charge={"on_status": [401, "5xx"]}, algorithm=algorithm, **free)
    for status in (200, 404, 302, 400):
        assert await login.post(status) == status
    assert await login.left() == 3
    for status in (401, 503, 500):
        assert await login.post(status) == status
    assert await login.left() == 0
    assert await login.post(200) == 429
    assert login.inner.reached == 7


class Away(MemoryStore):
    """A store that answers nothing."""

    async def decide(self, checks: Sequence[Check]) -> tuple[Decision, ...]:
        raise StoreUnavailable("it is away", kind="refused", scope="server")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_outcomes_decide_what_is_charged_in_process_while_the_store_is_away(
    algorithm: str,
) -> None:
    free: dict[str, Any] = {"free": 2, "max_delay": None} if algorithm == "leaking_bucket" else {}
    login = Login(Away(), "2/minute", on_store_failure="local", algorithm=algorithm, **free)
    statuses = [200, 200, 401, 200, 404, 500, 200]
    assert [await login.post(status) for status in statuses] == [*statuses[:-1], 429]


async def test_a_success_forgets_the_failures_of_its_account_alone(store: Store) -> None:
    login = Login(store)
    await login.post(401, "bob")
    for status in (401, 401, 200):
        assert await login.post(status) == status
    assert (await login.left(), await login.left("bob")) == (3, 2)


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
async def test_a_method_that_proves_nothing_forgets_nothing(store: Store, method: str) -> None:
    login = Login(store)
    await login.post(401)
    assert await login.post(200, method=method) == 200
    assert await login.left() == 2


@pytest.mark.parametrize("by", ["user", ["user", "client"], ["client", "user"]])
async def test_a_success_without_an_account_forgets_nothing(store: Store, by: Any) -> None:
    """Else whoever leaves the account out would clear what he has guessed from his address."""
    login = Login(store, by=by)
    for status in (401, 200):
        assert await login.post(status) == status
    assert [await login.post(401) for _ in range(3)] == [401, 401, 429]


async def test_a_success_leaves_charges_alone_that_are_not_decided_yet(store: Store) -> None:
    """Nor does one give back what is still a guess."""
    login = Login(store, "5/minute")
    for _ in range(2):
        await login.post(401)
    login.inner.gate = asyncio.Event()
    guess = asyncio.create_task(login.post(401))
    await login.inner.has_reached(3)
    gate, login.inner.gate = login.inner.gate, None
    assert await login.post(200) == 200
    assert await login.left() == 4
    gate.set()
    assert await guess == 401
    assert await login.left() == 4


async def test_no_more_than_the_limit_are_undecided_at_once(store: Store) -> None:
    login = Login(store)
    login.inner.gate = asyncio.Event()
    guesses = [asyncio.create_task(login.post(401)) for _ in range(50)]
    refused, waiting = await asyncio.wait(guesses, timeout=0.5)
    while len(refused) < 47:
        refused, waiting = await asyncio.wait(guesses, timeout=0.5)
    assert login.inner.reached == len(waiting) == 3
    assert {each.result() for each in refused} == {429}
    login.inner.gate.set()
    assert [each.result() for each in (await asyncio.wait(waiting))[0]] == [401] * 3


async def test_a_denial_beside_undecided_charges_promises_a_second(store: Store) -> None:
    login = Login(store)
    login.inner.gate = asyncio.Event()
    guesses = [asyncio.create_task(login.post(401)) for _ in range(3)]
    await login.inner.has_reached(3)
    refused = await ask(login.app, "/login", "POST", [("x-account", "alice")])
    assert refused.headers["retry-after"] == "1"
    login.inner.gate.set()
    await asyncio.gather(*guesses)
    refused = await ask(login.app, "/login", "POST", [("x-account", "alice")])
    assert refused.headers["retry-after"] == "60"


async def test_successes_never_use_up_the_limit(store: Store) -> None:
    login = Login(store)
    assert {await login.post(200) for _ in range(50)} == {200}
    for _ in range(10):
        assert await asyncio.gather(*(login.post(200) for _ in range(3))) == [200] * 3


@pytest.mark.parametrize(
    ("status", "left"),
    [(-1, 2), (0, 2)],
    ids=["an exception counts as 500", "who got no answer stays charged"],
)
async def test_what_never_became_an_answer_is_charged(store: Store, status: int, left: int) -> None:
    login = Login(store)
    with suppress(ZeroDivisionError, ValueError):
        await login.post(status)
    assert await login.left() == left


async def test_an_exception_is_given_back_where_500_keeps_nothing(store: Store) -> None:
    login = Login(store, charge={"on_status": [401]})
    with pytest.raises(ZeroDivisionError):
        await login.post(-1)
    await login.limiter._settler.aclose()  # nobody waits for it otherwise
    assert await login.left() == 3


async def test_a_client_that_leaves_stays_charged_where_nothing_was_sent(store: Store) -> None:
    login = Login(store)
    login.inner.gate = asyncio.Event()
    guess = asyncio.create_task(login.post(200))
    await login.inner.has_reached(1)
    guess.cancel()
    await asyncio.wait([guess])
    assert await login.left() == 2
    login.inner.gate = None
    assert await login.post(200) == 200
    assert await login.left() == 3  # it was decided as a failure, which a success forgets


async def test_a_rule_in_shadow_counts_failures_as_in_earnest(store: Store) -> None:
    login = Login(store, mode="shadow")
    for status in (200, 401, 401, 200):
        assert await login.post(status) == status
    assert await login.left() == 3


async def test_a_function_says_of_a_response_whether_it_keeps_the_charge(store: Store) -> None:
    async def failed(response: Any) -> bool:
        await asyncio.sleep(0)
        return bool(response.headers["x-login"] == "wrong")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"x-login", dict(scope["headers"])[b"x-as"])]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b""})

    rule = Rule("login", "3/minute", charge_if=failed)
    rules = limiting(store, rule)
    guarded = RateLimitMiddleware(app, rules)
    for said in ("right", "wrong", "right"):
        assert (await ask(guarded, headers=[("x-as", said)])).status == 200
    (decision,) = await rules.peek("login", CLIENT[0])
    assert decision.remaining == 2


async def test_a_charge_stays_where_the_function_fails(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(_: object) -> bool:
        raise ZeroDivisionError

    login = Login(store, charge=None, charge_if=fails)
    assert await login.post(200) == 200
    assert await login.left() == 2
    assert "function-failed: a function of rule 'login'" in caplog.text


async def test_rules_are_settled_together_each_by_its_own_outcomes(store: Store) -> None:
    inner = Outcome()
    rules = [
        Rule("failures", "9/minute", charge={"on_status": [401]}, by="client"),
        Rule("accounts", "9/minute", charge=LOGIN, by="header:x-account"),
        Rule("errors", "9/minute", charge={"on_status": ["5xx"]}),
        Rule("all", "9/minute"),
    ]
    limits = limiting(store, *rules)
    app = RateLimitMiddleware(inner, limits)
    for inner.status in (401, 500, 404, 401, 200, 401):
        await ask(app, "/", "POST", [("x-account", "alice")])
    left = [
        (await limits.peek(rule.name, "alice" if rule.name == "accounts" else CLIENT[0]))[0]
        for rule in rules
    ]
    assert [each.remaining for each in left] == [6, 8, 8, 3]


async def test_a_limit_on_an_endpoint_is_decided_by_its_outcome(store: Store) -> None:
    rules = limiting(store, Rule("all", "99/minute"))
    app = FastAPI()
    app.add_middleware(RateLimitMiddleware, limiter=rules)

    @app.post("/decorated")
    @limit("2/minute", charge={"on_status": [401]}, name="decorated")
    async def decorated(ok: bool) -> str:
        if not ok:
            raise HTTPException(401)
        return "in"

    per_route = Depends(RateLimit("2/minute", charge={"on_status": [401]}, name="depends"))

    @app.post("/depends", dependencies=[per_route])
    async def depends(ok: bool) -> str:
        return await decorated.__wrapped__(ok)  # type: ignore[attr-defined,no-any-return]  # functools.wraps

    for path in ("/decorated", "/depends"):

        async def post(ok: str, path: str = path) -> int:
            return (await ask(app, path, "POST", query_string=f"ok={ok}".encode())).status

        assert [await post(ok) for ok in ("1", "1", "1", "0", "1", "0", "1")] == [
            200, 200, 200, 401, 200, 401, 429,
        ]  # fmt: skip


async def test_without_a_middleware_an_endpoint_decides_by_what_it_returns(store: Store) -> None:
    own = limiting(store)

    @limit("2/minute", charge={"on_status": [401]}, limiter=own, name="login")
    async def login(request: Request) -> PlainTextResponse:
        return PlainTextResponse("", int(request.query_params["status"]))

    app = Starlette(routes=[Route("/", login)])

    async def status(text: str) -> int:
        return (await ask(app, query_string=f"status={text}".encode())).status

    assert [await status(each) for each in ("200", "200", "200", "401", "401", "200")] == [
        200, 200, 200, 401, 401, 429,
    ]  # fmt: skip


async def test_a_limit_further_in_that_refuses_gives_the_charge_back_once(store: Store) -> None:
    rules = limiting(
        store, Rule("outer", "5/minute", charge=LOGIN, by=["client", "path:x"], path="/{x}")
    )

    @limit("1/minute", name="inner")
    async def endpoint(_: Request) -> PlainTextResponse:
        return PlainTextResponse("", 401)

    app = RateLimitMiddleware(Starlette(routes=[Route("/{x}", endpoint)]), rules)
    assert [(await ask(app, "/a")).status for _ in range(4)] == [401, 429, 429, 429]
    (decision,) = await rules.peek("outer", CLIENT[0], "a")
    assert decision.remaining == 4


async def test_a_handshake_that_is_accepted_is_a_status_of_101() -> None:
    rules = limiter(Rule("ws", "2/minute", charge={"on_status": [403]}))
    app = RateLimitMiddleware(Inner(), rules)
    for _ in range(5):
        assert (await call(app, websocket_scope())).messages[0]["type"] == "websocket.accept"


async def test_failures_are_forgotten_with_their_counter(store: Store, clock: ManualClock) -> None:
    """What a success gives back was charged to this very window, or is not given back at all."""
    login = Login(store, "3/second", algorithm="fixed_window")
    await login.post(401)
    await login.limiter.reset("login", "alice")
    login.inner.gate = asyncio.Event()
    guess = asyncio.create_task(login.post(401))
    await login.inner.has_reached(2)
    gate, login.inner.gate = login.inner.gate, None
    await login.post(200)
    assert await login.left() == 2
    gate.set()
    await guess
    clock.advance(1.0)
    await login.post(401)
    clock.advance(1.0)
    await login.post(401)
    await login.post(200)
    assert await login.left() == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"charge": {"on_status": [401], "reset_on": [200]}}, "names no account"),
        ({"charge": {"on_status": [401], "reset_on": [200]}, "by": "query:q"}, "names no account"),
        ({"charge": {"on_status": []}}, "on_status is empty"),
        ({"charge": {}}, "has no on_status"),
        ({"charge": {"on_status": [600]}}, "'600' is not a status"),
        ({"charge": {"on_status": [True]}}, "is a status such as 401"),
        ({"charge": {"on_stat": [401]}}, "did you mean 'on_status'"),
        ({"charge": [401]}, "charge is a mapping"),
        ({"charge": {"on_status": [401]}, "charge_if": print}, "beside on_status"),
        ({"charge_if": 401}, "a function over the response"),
        ({"charge": {"on_status": ["4xx"], "reset_on": [404]}, "by": "user"}, "404 would both"),
    ],
)
def test_outcomes_that_cannot_be_meant_are_refused(options: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        Rule("login", "5/minute", **options)
