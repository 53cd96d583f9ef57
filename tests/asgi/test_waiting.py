"""Leaking buckets: an accepted request really waits for its turn."""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import anyio
import pytest
from fastapi import Depends, FastAPI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ratelimit import (
    Check,
    Decision,
    MemoryStore,
    RateLimit,
    RateLimiter,
    RateLimitMiddleware,
    Rule,
    RuleSet,
    StoreUnavailable,
    limit,
)
from ratelimit.control.events import Event
from ratelimit.decisions import Action, assumed
from tests.support.asgi import Counting, Inner, ask, http_scope, limiter, websocket_scope
from tests.support.servers import free_port

LEAKING = "leaking_bucket"
TURN = 0.05  # seconds, at 20 per second


class Arrivals(Inner):
    """Remembers when each request came through, and with which path."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[tuple[str, float]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.times.append((scope["path"], time.monotonic()))
        await super().__call__(scope, receive, send)


async def test_concurrent_requests_leave_in_order_and_at_the_buckets_pace() -> None:
    """Of five at 20 a second each leaves no sooner than the store said."""
    inner = Arrivals()
    rule = Rule("slow", "20/second", algorithm=LEAKING)
    app = RateLimitMiddleware(inner, RateLimiter([rule], store=MemoryStore()))
    start = time.monotonic()
    answers = []
    async with anyio.create_task_group() as tasks:
        for number in range(5):

            async def one(number: int = number) -> None:
                answers.append(await ask(app, f"/{number}"))

            tasks.start_soon(one)
    assert [path for path, _ in inner.times] == ["/0", "/1", "/2", "/3", "/4"]
    assert [answer.status for answer in answers] == [200] * 5
    waits = [at - start for _, at in inner.times]
    for number, wait in enumerate(waits):
        assert number * TURN - 0.01 <= wait <= number * TURN + 0.3


@pytest.mark.parametrize("around", [True, False], ids=["middleware", "route"])
async def test_in_a_loop_that_was_late_a_newcomer_goes_behind_those_who_waited(
    around: bool,
) -> None:
    """Their timers stand behind its task, and it need not wait, since their places have leaked."""
    options: dict[str, Any] = {"algorithm": LEAKING, "burst": 9, "by": "global"}
    rules = [Rule("slow", "20/second", **options)] if around else []
    limiting = RateLimiter(rules, store=MemoryStore())
    ran: list[str] = []

    async def endpoint(request: Request) -> Response:
        ran.append(request.headers["x-number"])
        return PlainTextResponse("ok")

    limited = endpoint if around else limit("20/second", limiter=limiting, **options)(endpoint)
    inner = Starlette(routes=[Route("/", limited)])
    app: ASGIApp = RateLimitMiddleware(inner, limiting) if around else inner

    def come(number: int) -> asyncio.Task[Any]:
        return asyncio.create_task(ask(app, headers=[("x-number", f"{number}")]))

    tasks = [come(number) for number in range(4)]
    await turns()
    assert limiting.waiting == 3
    tasks.append(come(4))
    time.sleep(5 * TURN)  # noqa: ASYNC251  # what makes the loop late
    await asyncio.gather(*tasks)
    assert ran == ["0", "1", "2", "3", "4"]
    await limiting.aclose()


async def test_a_request_waits_as_long_as_the_stores_delay_says() -> None:
    """On a clock that stands still the third request in a bucket waits two turns."""
    store = Counting()
    rule = Rule("slow", "20/second", algorithm=LEAKING)
    app = RateLimitMiddleware(Inner(), limiter(rule, store=store))
    taken = []
    for _ in range(3):
        start = time.monotonic()
        await ask(app)
        taken.append(time.monotonic() - start)
    delays = [decision.delay for (decision,) in store.answered]
    assert delays == [0.0, TURN, 2 * TURN]
    for delay, took in zip(delays, taken, strict=True):
        assert delay - 0.005 <= took <= delay + 0.3


async def test_a_full_queue_is_refused_at_once_and_max_delay_cuts_it() -> None:
    app = RateLimitMiddleware(
        Inner(), limiter(Rule("slow", "20/second", algorithm=LEAKING, burst=9, max_delay=0.05))
    )
    await ask(app)
    await ask(app)
    start = time.monotonic()
    answer = await ask(app)
    assert time.monotonic() - start < TURN
    assert answer.status == 429
    assert answer.headers["retry-after"] == "1"


async def test_a_request_under_several_buckets_waits_for_the_slowest_alone() -> None:
    rules = [
        Rule("fast", "50/second", algorithm=LEAKING),
        Rule("slow", "20/second", algorithm=LEAKING),
    ]
    app = RateLimitMiddleware(Inner(), limiter(*rules))
    await ask(app)
    start = time.monotonic()
    await ask(app)
    assert TURN - 0.005 <= time.monotonic() - start < TURN + 0.3


@pytest.mark.parametrize("refusing", [True, False])
async def test_a_shadow_bucket_and_a_refused_request_make_nobody_wait(refusing: bool) -> None:
    rules = [Rule("slow", "1/second", algorithm=LEAKING, mode="shadow", burst=9)]
    if refusing:
        rules = [
            Rule("slow", "1/second", algorithm=LEAKING, burst=9),
            Rule("one", "1/minute"),
        ]
    app = RateLimitMiddleware(Inner(), limiter(*rules))
    await ask(app)
    start = time.monotonic()
    answer = await ask(app)
    assert time.monotonic() - start < 0.9
    assert answer.status == (429 if refusing else 200)


async def test_a_route_with_a_leaking_bucket_waits_too_after_the_middlewares_wait() -> None:
    @limit("20/second", algorithm=LEAKING)
    async def endpoint(request: Request) -> Response:
        return PlainTextResponse("ok")

    app = Starlette(routes=[Route("/", endpoint)])
    app.add_middleware(RateLimitMiddleware, limiter=limiter())
    start = time.monotonic()
    await ask(app)
    await ask(app)
    await ask(app)
    assert time.monotonic() - start >= 3 * TURN - 0.01


async def test_a_request_that_is_cancelled_while_it_waits_never_reaches_the_application() -> None:
    inner = Inner()
    app = RateLimitMiddleware(inner, limiter(Rule("slow", "2/second", algorithm=LEAKING)))
    await ask(app)

    async def nothing(*_: Any) -> Any: ...

    waiting = asyncio.create_task(app(http_scope(), nothing, nothing))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert len(inner.scopes) == 1


# --- who leaves ----------------------------------------------------------------------------------


class Client:
    """A client of one request, which sends its messages when told, and then may leave."""

    def __init__(self, app: ASGIApp, path: str = "/", kind: str = "http") -> None:
        self.app = app
        self.scope = http_scope(path) if kind == "http" else websocket_scope(path)
        self.asked = 0
        """Calls of receive so far."""
        self.sent: list[Message] = []
        self.told: list[Message] = []
        self._more = asyncio.Event()
        self.task = asyncio.create_task(self.run())

    async def run(self) -> None:
        await self.app(self.scope, self.receive, self.send)

    async def receive(self) -> Message:
        self.asked += 1
        while not self.told:
            self._more.clear()
            await self._more.wait()
        return self.told.pop(0)

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    async def tell(self, *messages: Message) -> None:
        """Sends, and gives the application time to see it."""
        self.told += messages
        self._more.set()
        await turns()

    async def leave(self) -> None:
        await self.tell({"type": f"{self.scope['type']}.disconnect"})

    @property
    def statuses(self) -> list[int]:
        return [each["status"] for each in self.sent if each["type"].endswith("response.start")]


BODY = {"type": "http.request", "body": b"", "more_body": False}


async def turns() -> None:
    """A few turns of the event loop."""
    for _ in range(12):
        await asyncio.sleep(0)


def queueing(rate: str = "20/second", **options: Any) -> Rule:
    return Rule("slow", rate, algorithm=LEAKING, by="global", **{"burst": 40, **options})


async def left_in(limiter: RateLimiter) -> int:
    """The places that are taken, as the store has them."""
    (look,) = await limiter.peek("slow")
    return look.limit.capacity - look.remaining


async def test_one_that_leaves_runs_nothing_and_those_behind_it_move_up() -> None:
    """Of nine, five leave: the others run in order at the first places, and no place is lost."""
    inner = Arrivals()
    limiting = limiter(queueing("4/second"), Rule("all", "100/hour", by="global"))
    app = RateLimitMiddleware(inner, limiting)
    await ask(app, "/first")
    start = time.monotonic()
    clients = [Client(app, f"/{number}") for number in range(9)]
    for client in clients:
        await client.tell(BODY)
    assert limiting.waiting == 9
    assert await left_in(limiting) == 10
    for number in (0, 3, 4, 8, 6):
        await clients[number].leave()
    assert limiting.waiting == 4
    assert await left_in(limiting) == 5
    (look,) = await limiting.peek("all")
    assert look.remaining == 95  # who runs nothing is charged nothing, by no rule
    await asyncio.gather(*(client.task for client in clients))
    assert [path for path, _ in inner.times] == ["/first", "/1", "/2", "/5", "/7"]
    for number, (_, at) in enumerate(inner.times):
        assert at - start >= number * 5 * TURN - 0.001
    assert [client.statuses for client in clients] == [
        [499], [200], [200], [499], [499], [200], [499], [200], [499],
    ]  # fmt: skip
    assert limiting.counts["slow", "waited"] == 9
    assert limiting.counts["all", "allowed"] == 10
    assert not limiting.waits.rooms


async def test_those_who_move_up_leave_at_the_places_of_those_who_left() -> None:
    """A long queue is empty at once when all but one have left it."""
    inner = Arrivals()
    app = RateLimitMiddleware(inner, limiter(queueing("1/minute", max_delay=None)))
    await ask(app)
    clients = [Client(app, f"/{number}") for number in range(3)]
    for client in clients:
        await client.tell(BODY)
    (room,) = app.limiter.waits.rooms.values()
    (queue,) = room.queues.values()
    before = queue.line.due_us()
    await clients[0].leave()
    assert queue.line.due_us() == before
    await clients[1].leave()
    assert queue.line.due_us() == before
    assert len(queue.line.places) == len(queue.line.requests) == 1
    await clients[2].leave()
    assert await left_in(app.limiter) == 1
    await asyncio.gather(*(client.task for client in clients))


@pytest.mark.parametrize("more", [True, False])
async def test_one_message_is_held_while_a_request_waits_and_replayed(more: bool) -> None:
    """Nothing is asked of the server while it could send a second; all arrives in order."""
    got: list[Message] = []

    async def reads(scope: Scope, receive: Receive, send: Send) -> None:
        while True:
            got.append(await receive())
            if not got[-1].get("more_body", False):
                break
        await PlainTextResponse("ok")(scope, receive, send)
        got.append(await receive())

    app = RateLimitMiddleware(reads, limiter(queueing()))
    await Client(app).tell(BODY)
    client = Client(app)
    await client.tell({"type": "http.request", "body": b"a", "more_body": more})
    assert client.asked == 1 + (not more)
    rest: list[Message] = [
        {"type": "http.request", "body": b"b", "more_body": True},
        {"type": "http.request", "body": b"c", "more_body": False},
    ]
    await client.tell(*(rest if more else ()))
    assert client.asked == 1 + (not more)
    assert got == [BODY]
    while len(client.sent) < 2:  # noqa: ASYNC110  # in real time
        await asyncio.sleep(TURN / 10)
    await client.leave()
    await client.task
    bodies = [each["body"] for each in got[1:] if each["type"] == "http.request"]
    assert bodies == ([b"a", b"b", b"c"] if more else [b"a"])
    assert got[-1] == {"type": "http.disconnect"}
    assert not [task for task in asyncio.all_tasks() if "_called" in repr(task)]


async def test_a_websocket_that_leaves_while_it_waits_runs_nothing() -> None:
    inner = Inner()
    app = RateLimitMiddleware(inner, limiter(queueing()))
    first, gone, stays = (Client(app, kind="websocket") for _ in range(3))
    for client in (first, gone, stays):
        await client.tell({"type": "websocket.connect"})
    await gone.leave()
    await gone.task
    assert app.limiter.waiting == 1
    await stays.task
    assert [each["type"] for each in stays.sent] == ["websocket.accept"]
    assert [each["type"] for each in gone.sent] == ["websocket.close"]
    assert len(inner.scopes) == 2


@pytest.mark.parametrize("of", ["decorator", "dependency"])
@pytest.mark.parametrize("middleware", [True, False])
async def test_limits_on_routes_wait_by_the_same_rules(of: str, middleware: bool) -> None:
    """A body that came meanwhile reaches the endpoint, and one that leaves runs nothing."""
    ran: list[bytes] = []
    options: dict[str, Any] = {"algorithm": LEAKING, "burst": 9, "by": "global", "max_waiting": 2}
    limiting = limiter()
    if not middleware:
        options["limiter"] = limiting
    app = FastAPI()
    wanted = RateLimit("20/second", **options)

    async def endpoint(request: Request) -> Response:
        ran.append(await request.body())
        return PlainTextResponse("ok")

    if of == "decorator":
        app.post("/")(limit("20/second", **options)(endpoint))
    else:
        app.post("/", dependencies=[Depends(wanted)])(endpoint)
    if middleware:
        app.add_middleware(RateLimitMiddleware, limiter=limiting)
    clients = []
    for number in range(4):
        client = Client(app)
        client.scope["method"] = "POST"
        clients.append(client)
        await client.tell({"type": "http.request", "body": b"%d" % number, "more_body": False})
        await turns()
    assert limiting.waiting == 2
    assert clients[3].statuses == [429]
    await clients[1].leave()
    await asyncio.gather(*(client.task for client in clients))
    assert ran == [b"0", b"2"]
    assert [client.statuses for client in clients] == [[200], [499], [200], [429]]
    assert limiting.waiting == 0


async def test_one_that_moved_up_and_is_refused_further_in_gives_back_its_new_place() -> None:
    """Not the one it was promised first, which is somebody else's by then."""
    limiting = limiter(queueing("4/second"))

    @limit("1/hour", by="global")
    async def endpoint(request: Request) -> Response:
        return PlainTextResponse("ok")

    app = Starlette(routes=[Route("/{number}", endpoint)])
    app.add_middleware(RateLimitMiddleware, limiter=limiting)
    await ask(app, "/first")
    clients = [Client(app, f"/{number}") for number in range(2)]
    for client in clients:
        await client.tell(BODY)
    await clients[0].leave()
    clients.append(Client(app, "/2"))
    await clients[-1].tell(BODY)
    assert await left_in(limiting) == 3
    await clients[1].task
    assert clients[1].statuses == [429]
    assert await left_in(limiting) == 3  # one is behind it, at the place that it was promised first
    await clients[2].leave()
    assert await left_in(limiting) == 2
    await asyncio.gather(*(client.task for client in clients))


# --- how many wait -------------------------------------------------------------------------------


async def test_beyond_max_waiting_a_request_is_refused_until_the_first_goes_on() -> None:
    """It is charged nothing in the same turn, and told exactly when there is room again."""
    told: list[Event] = []
    rules = [queueing("1/second", max_waiting=2, max_delay=None), Rule("all", "9/hour")]
    hinted = RuleSet(rules, retry_hints=True)
    limiting = RateLimiter(hinted, store=MemoryStore(), on_event=told.append)
    app = RateLimitMiddleware(Inner(), limiting)
    await ask(app)
    clients = [Client(app) for _ in range(2)]
    for client in clients:
        await client.tell(BODY)
    answer = await ask(app)
    assert answer.status == 429
    assert answer.headers["retry-after"] == "1"
    assert 0 < int(answer.headers["retry-after-ms"]) <= 1_000
    assert answer.problem["violated-policies"] == ["slow"]
    assert answer.headers["ratelimit"] == '"slow";r=0;t=1'
    assert await left_in(limiting) == 3
    (look,) = await limiting.peek("all", "192.0.2.1")
    assert look.remaining == 6
    assert (limiting.counts["slow", "waited"], limiting.counts["slow", "denied"]) == (2, 1)
    assert [(each.kind, each.rule) for each in told] == [("denied", "slow")]
    assert 0 < (told[0].retry_after or 0) <= 1
    await clients[0].leave()
    clients.append(Client(app))
    await clients[-1].tell(BODY)
    assert limiting.waiting == 2
    for client in clients[1:]:
        await client.leave()
    await asyncio.gather(*(client.task for client in clients))
    assert await left_in(limiting) == 1
    await limiting.aclose()


async def test_max_waiting_is_of_a_rule_whoever_waits_for_it() -> None:
    rule = Rule("slow", "1/second", algorithm=LEAKING, burst=9, by="header:x-key", max_waiting=1)
    app = RateLimitMiddleware(Inner(), limiter(rule))
    for key in "ab":
        assert (await ask(app, headers=[("x-key", key)])).status == 200
    client = Client(app)
    client.scope["headers"] = [(b"x-key", b"a")]
    await client.tell(BODY)
    assert (await ask(app, headers=[("x-key", "b")])).status == 429
    await client.leave()
    await client.task


class Watched(Counting):
    """A store that may fail to read the counters of some rules."""

    lost: tuple[str, ...] = ()

    async def decide(self, checks: Sequence[Check]) -> tuple[Decision, ...]:
        decisions = await super().decide([each for each in checks if each.rule not in self.lost])
        known = iter(decisions)
        return tuple(
            assumed([each], allowed=True, problem=StoreUnavailable(scope="key"))[0]
            if each.rule in self.lost
            else next(known)
            for each in checks
        )


async def test_a_flood_at_a_full_queue_asks_the_store_once_for_each_request() -> None:
    """It is charged nothing; whatever else refuses it is told, and strikes its ban, as ever."""
    rules = [
        queueing("1/second", max_waiting=1, max_delay=None),
        Rule("all", "9/hour", by="global"),
        Rule("few", "3/hour", ban={"after": 2, "within": "1m", "for": "10m"}),
        Rule("together", concurrency=5),
    ]
    store = Watched()
    limiting = RateLimiter(rules, store=store)
    app = RateLimitMiddleware(Inner(), limiting)
    assert (await ask(app)).status == 200
    client = Client(app)
    await client.tell(BODY)
    await limiting.charge("few", "192.0.2.7", cost=3)
    store.asked.clear()
    for _ in range(2):
        answer = await ask(app, client=("192.0.2.8", 1))
        assert answer.status == 429
        assert answer.problem["violated-policies"] == ["slow"]
    assert len(store.asked) == 2
    answer = await ask(app, client=("192.0.2.7", 1))
    assert answer.problem["violated-policies"] == ["slow", "few"]
    assert int(answer.headers["retry-after"]) > 60
    assert len(store.asked) == 3
    answer = await ask(app, client=("192.0.2.7", 1))
    assert answer.problem["type"].endswith("abnormal-usage-detected")
    assert (await limiting.peek("all"))[0].remaining == 7
    assert (await limiting.peek("few", "192.0.2.8"))[0].remaining == 3
    assert limiting.in_flight["together"] == 1
    await client.leave()
    await client.task
    await limiting.aclose()


@pytest.mark.parametrize(
    ("lost", "status", "left"),
    [(("slow",), 200, 6), (("ratelimit.full",), 429, 7), (("all",), 429, 7)],
)
async def test_what_cannot_be_read_while_a_queue_is_full_lets_nobody_in_for_free(
    lost: tuple[str, ...], status: int, left: int
) -> None:
    store = Watched()
    rules = [queueing("1/second", max_waiting=1, max_delay=None), Rule("all", "9/hour")]
    limiting = RateLimiter(rules, store=store)
    app = RateLimitMiddleware(Inner(), limiting)
    await ask(app)
    client = Client(app)
    await client.tell(BODY)
    store.lost = lost
    assert (await ask(app)).status == status
    store.lost = ()
    assert (await limiting.peek("all", "192.0.2.1"))[0].remaining == left
    await client.leave()
    await client.task
    await limiting.aclose()


# --- who ends it ---------------------------------------------------------------------------------


async def test_one_that_is_cancelled_while_it_gives_its_place_back_takes_it_up_no_more() -> None:
    """As a time-out around it does, or a server that shuts down, while the store is slow."""
    going = asyncio.Event()

    class Slow(MemoryStore):
        async def decide(self, checks: Sequence[Check]) -> tuple[Decision, ...]:
            if checks[0].action == Action.GIVE_BACK:
                await going.wait()
            return await super().decide(checks)

    limiting = RateLimiter([queueing("1/second", max_waiting=1)], store=Slow())
    app = RateLimitMiddleware(Inner(), limiting)
    await ask(app)
    client = Client(app)
    await client.tell(BODY)
    await client.leave()
    client.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await client.task
    assert limiting.waiting == 1
    going.set()
    await turns()
    assert limiting.waiting == 0
    assert not limiting.waits.rooms
    assert await left_in(limiting) == 1
    await limiting.aclose()


async def test_places_that_the_store_does_not_take_back_are_told_once_a_minute(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Whoever leaves while the store is away would else write as many lines as he likes."""

    class Away(MemoryStore):
        away = False

        async def decide(self, checks: Sequence[Check]) -> tuple[Decision, ...]:
            if self.away:
                raise StoreUnavailable("gone", kind="closed")
            return await super().decide(checks)

    store = Away()
    limiting = RateLimiter([queueing("1/second")], store=store)
    app = RateLimitMiddleware(Inner(), limiting)
    await ask(app)
    clients = [Client(app) for _ in range(5)]
    for client in clients:
        await client.tell(BODY)
    assert limiting.waiting == 5
    store.away = True
    for client in reversed(clients):
        await client.leave()
    assert [client.statuses for client in clients] == [[499]] * 5
    assert limiting.waiting == 0
    assert caplog.text.count("give-back-failed") == 1
    await limiting.aclose()


async def test_closing_the_limiter_ends_the_waits_with_503_and_no_charge() -> None:
    """Nothing runs before its instant, and the places are given back before the store closes."""
    store = Counting()
    inner = Inner()
    limiting = limiter(queueing("1/minute", max_delay=None), Rule("all", "9/hour"), store=store)
    app = RateLimitMiddleware(inner, limiting)
    clients = [Client(app) for _ in range(4)]
    for client in clients:
        await client.tell(BODY)
    assert limiting.waiting == 3
    await limiting.aclose()
    asked = len(store.asked)
    assert limiting.waiting == 0
    await asyncio.gather(*(client.task for client in clients))
    assert len(store.asked) == asked
    assert [client.statuses for client in clients] == [[200], [503], [503], [503]]
    assert len(inner.scopes) == 1
    last = {each.limit.quota: each for answered in store.answered for each in answered}
    assert (last[1].remaining, last[9].remaining) == (39, 8)
    started = dict(clients[1].sent[0]["headers"])
    assert started[b"retry-after"] == b"1"


async def test_one_that_is_cancelled_while_it_waits_gives_its_place_back() -> None:
    limiting = limiter(queueing("1/minute", max_delay=None))
    app = RateLimitMiddleware(Inner(), limiting)
    clients = [Client(app) for _ in range(3)]
    for client in clients:
        await client.tell(BODY)
    clients[1].task.cancel()
    await turns()
    assert clients[1].task.cancelled()
    assert await left_in(limiting) == 2
    assert limiting.waiting == 1
    clients[2].task.cancel()
    await turns()
    assert not limiting.waits.rooms


async def test_a_share_that_is_counted_in_process_waits_by_the_same_rules() -> None:
    """While the store is away, and gives its places back to that share."""
    rule = queueing("1/minute", max_delay=None, on_store_failure="local", max_waiting=1)
    limiting = RateLimiter([rule], store=f"redis://127.0.0.1:{free_port()}")
    app = RateLimitMiddleware(Inner(), limiting)
    clients = [Client(app) for _ in range(2)]
    for client in clients:
        await client.tell(BODY)
        while not client.sent and not limiting.waiting:  # noqa: ASYNC110  # in real time
            await asyncio.sleep(0.001)
    assert limiting.waiting == 1
    assert (await ask(app)).status == 429
    ((_, name),) = [(room, name) for room in limiting.waits.rooms.values() for name in room.queues]
    await clients[1].leave()
    await clients[1].task
    local = limiting._failover._local
    assert local is not None
    (look,) = await local.decide([Check(rule.limits[0], name[0], 0, "slow")])
    assert look.limit.capacity - look.remaining == 1
    assert limiting.counts["slow", "waited"] == 1
    await limiting.aclose()
