"""Whose time it is that passes: what is late, what is overloaded, what a breaker hears of it."""

import asyncio
import gc
import re
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from typing import Any, Final

import pytest
import uvloop

from ratelimit import (
    Check,
    Limit,
    RateLimiter,
    RedisStore,
    Rule,
    StoreUnavailable,
)
from ratelimit.stores.redis import line, pipeline, queue
from tests.support.asgi import http_scope
from tests.support.servers import Server, binaries, serving

LIMIT: Final = Limit("5/minute", algorithm="sliding_log")
MANY: Final = Limit("1000000/day", algorithm="fixed_window")
LOOPS: Final = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}

Main = Callable[[], Coroutine[Any, Any, Any]]
Run = Callable[[Main], Any]


@pytest.fixture(params=LOOPS)
def run(request: pytest.FixtureRequest) -> Run:
    """A function that runs a coroutine function in an event loop of each kind."""

    def run(main: Main) -> Any:
        with asyncio.Runner(loop_factory=LOOPS[request.param]) as runner:
            return runner.run(main())

    return run


@pytest.fixture
def server() -> Iterator[Server]:
    """A server of this test's own."""
    with serving(binaries()[0].path) as started:
        yield started


async def failures(store: RedisStore, count: int = 1, key: str = "k") -> list[StoreUnavailable]:
    """Why decisions that are asked for together were not made; all of them have to fail."""
    answers = await asyncio.gather(
        *(store.decide([Check(LIMIT, f"{key}{number}")]) for number in range(count)),
        return_exceptions=True,
    )
    assert all(isinstance(answer, StoreUnavailable) for answer in answers)
    return [answer for answer in answers if isinstance(answer, StoreUnavailable)]


def is_script(said: bytes) -> bool:
    return b"EVALSHA" in said


class Server2:
    """A server whose answers a test writes: `says` gives them by what was asked, None for none."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []
        self.connections = 0
        self.says: Callable[[bytes], bytes | None] = lambda _: ALLOWED
        self.delay = 0.0
        self.url = ""

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while said := await reader.read(1 << 20):
                for command in re.findall(rb"\r\n(CLIENT|EVALSHA|SCRIPT)\r\n", said):
                    if command != b"EVALSHA":
                        writer.write(b"+OK\r\n")
                        continue
                    self.asked.append(said)
                    reply = self.says(said)
                    keys = re.search(rb"\$40\r\n[0-9a-f]{40}\r\n\$\d+\r\n(\d+)", said)
                    if reply is not None and keys is not None and reply.startswith(b"*6"):
                        numbers = reply.removeprefix(b"*6\r\n")
                        count = int(keys[1])
                        reply = b"*%d\r\n%b" % (6 * count, numbers * count)
                    if reply is not None:
                        asyncio.get_running_loop().call_later(self.delay, writer.write, reply)
        finally:
            writer.close()


ALLOWED: Final = b"*6\r\n:4\r\n:0\r\n:9\r\n:0\r\n:5\r\n:0\r\n"


@asynccontextmanager
async def answering() -> AsyncIterator[Server2]:
    """Such a server."""
    it = Server2()
    async with await asyncio.start_server(it.answer, "127.0.0.1", 0) as listener:
        port = listener.sockets[0].getsockname()[1]
        it.url = f"redis://127.0.0.1:{port}?protocol=2"
        yield it


# --- late, or only read late ---------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [0.06, 0.2])
def test_a_reply_that_lies_in_the_socket_is_not_late(
    run: Run, server: Server, seconds: float
) -> None:
    """However long anybody's handler holds the loop while the decision is under way."""

    async def main() -> None:
        async with RedisStore(server.url, deadline=0.05) as store:
            await store.decide([Check(MANY, "warm")])
            for _ in range(3):
                tasks = [
                    asyncio.create_task(store.decide([Check(LIMIT, f"{number}", 0)]))
                    for number in range(8)
                ]
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                time.sleep(seconds)  # noqa: ASYNC251  # what this test is about
                await asyncio.gather(*tasks)
            assert not store.breaker.recent

    run(main)


def test_a_cold_connection_is_not_late_while_the_loop_is_busy(run: Run, server: Server) -> None:
    """Each step towards it is ours to take, and may take its while."""

    async def main() -> None:
        async def hold() -> None:
            while True:
                time.sleep(0.03)  # noqa: ASYNC251
                await asyncio.sleep(0)

        holding = asyncio.create_task(hold())
        async with RedisStore(server.url, deadline=0.05) as store:
            (decision,) = await store.decide([Check(LIMIT, "k")])
            assert decision.remaining == 4
        holding.cancel()

    run(main)


def test_a_server_that_owes_is_late_on_the_busiest_loop(run: Run, server: Server) -> None:
    """The loop turns once in 30 ms; the deadline of 100 ms counts all the same."""

    async def main() -> None:
        turns = 0

        async def hold() -> None:
            nonlocal turns
            while True:
                time.sleep(0.03)  # noqa: ASYNC251
                turns += 1
                await asyncio.sleep(0)

        async with RedisStore(server.url, deadline=0.1) as store:
            await store.decide([Check(MANY, "warm")])
            server.command("CLIENT", "PAUSE", "1500", "ALL")
            holding = asyncio.create_task(hold())
            (failure,) = await failures(store)
            holding.cancel()
            assert failure.kind == "late"
            # Four turns are 120 ms; some more are for reading first, and on a busy machine.
            assert 3 <= turns <= 12

    run(main)


async def test_a_reply_in_many_pieces_is_late_where_the_last_is_missing() -> None:
    """And comes whole where it arrives in time."""
    async with answering() as server:
        async with RedisStore(server.url, deadline=0.2) as store:
            server.says = lambda _: ALLOWED[:-1]
            (failure,) = await failures(store)
            assert failure.kind == "late"
        server.says = lambda _: ALLOWED
        async with RedisStore(server.url, deadline=2) as store:
            server.says = lambda _: ALLOWED[:7]
            asking = asyncio.create_task(store.decide([Check(LIMIT, "k")]))
            while store._way()._line is None or not store._way()._line._unparsed:
                await asyncio.wait([asking], timeout=0.001)
            store._way()._line._transport.get_protocol().data_received(ALLOWED[7:])
            assert (await asking)[0].remaining == 4


async def test_who_is_late_is_told_how_long_a_round_trip_takes() -> None:
    """So that an operator sees which deadline would hold; and `health` tells it."""
    async with answering() as server:
        server.delay = 0.08
        store = RedisStore(server.url, deadline=0.03)
        async with RateLimiter([Rule("all", "5/minute")], store=store) as limiter:
            for _ in range(2):
                await limiter.admit(http_scope("/"))
                await asyncio.wait([asyncio.create_task(asyncio.sleep(0.1))])
            (failure,) = await failures(store)
            assert re.search(
                r"a round trip takes [3-9]\d ms, which the deadline cannot hold", str(failure)
            )
            measured = limiter.health()["round_trip_ms"]
            assert isinstance(measured, float)
            assert measured > 30


async def test_a_connection_that_owes_is_left_until_it_answers() -> None:
    """The next request goes over another; nobody is given an answer meant for somebody else."""
    async with answering() as server, RedisStore(server.url, deadline=0.1) as store:
        await store.decide([Check(LIMIT, "first")])
        server.says = lambda _: None
        await failures(store)
        server.says = lambda _: ALLOWED.replace(b":4", b":3")
        (decision,) = await store.decide([Check(LIMIT, "second")])
        assert decision.remaining == 3
        assert server.connections == 2


async def test_a_doubted_connection_that_answers_ends_the_search_for_another(
    server: Server,
) -> None:
    """Also one that has not taken its first step; and when it is lost, there is another search."""
    async with RedisStore(server.url, deadline=5, deny_cache=0) as store:
        await store.decide([Check(LIMIT, "k")])
        way = store._way()
        known = way._line
        way._line, known.doubted = None, True
        way._leaving.add(known)
        way._connect()
        way.trust(known)
        assert (await store.decide([Check(LIMIT, "k")]))[0].remaining == 3
        known.close()
        assert (await store.decide([Check(LIMIT, "k")]))[0].remaining == 2


@pytest.mark.parametrize("last_words", [b"", b"hello\r\n", b"+OK\r\n"])
async def test_a_server_that_greets_and_leaves_is_away(last_words: bytes) -> None:
    """It is told so at once, without being called again and again, and counts as a failure."""
    made = 0

    async def leave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal made
        made += 1
        for _ in range(2):  # what redis-py says of itself
            await reader.readuntil(b"SETINFO\r\n")
            writer.write(b"+OK\r\n")
        writer.write(last_words)
        writer.close()

    async with await asyncio.start_server(leave, "127.0.0.1", 0) as listener:
        port = listener.sockets[0].getsockname()[1]
        url = f"redis://127.0.0.1:{port}?protocol=2"
        async with RedisStore(url, deadline=2) as store:
            (failure,) = await failures(store)
            assert failure.kind in ("closed", "not-redis")
            assert failure.scope == "server"
            assert made <= 2
            assert sum(store.breaker.recent) >= 1


async def test_numbers_that_cannot_be_are_one_counters_affair(server: Server) -> None:
    """Neighbours in the same script are decided, and the breaker hears nothing of it."""
    limit = Limit("5/minute", algorithm="token_bucket")
    async with RedisStore(server.url, deadline=5, deny_cache=0) as store:
        poisoned = Check(limit, "poisoned")
        for value in (f"nan{' ' * 13}nan", "9" * 40, "inf" + " " * 13 + "5", "-1" * 16):
            server.command("SET", store._key(poisoned), value)
            answers = await asyncio.gather(
                *(store.decide([Check(limit, f"{value}{number}")]) for number in range(9)),
                store.decide([poisoned]),
                *(store.decide([Check(limit, f"{value}{number}")]) for number in range(9)),
                return_exceptions=True,
            )
            neighbours = [each for place, each in enumerate(answers) if place != 9]
            assert not any(isinstance(each, BaseException) for each in neighbours)
        assert not store.breaker.recent


async def test_commands_keep_their_deadline_while_the_breaker_is_open() -> None:
    """A server that is away keeps nobody longer, whoever asks past the breaker."""
    async with answering() as server:
        server.says = lambda _: None
        async with RedisStore(server.url, deadline=0.1) as store:
            await failures(store, 30)
            assert store.breaker.is_open()
            way = store._way()
            asked = time.monotonic()
            request = line.Request((), asyncio.get_running_loop().create_future())
            request.command, request.past = b"*1\r\n$4\r\nPING\r\n", True
            way.send(request)
            with pytest.raises(StoreUnavailable):
                await request.future
            # Many times as long where its clocks start anew at each look at the queue.
            assert time.monotonic() - asked < 1


async def test_a_longer_round_trip_has_more_batches_in_flight() -> None:
    """So that nobody waits for a second one: 20 requests, one a millisecond, over 60 ms."""
    async with answering() as server:
        server.delay = 0.06
        async with RedisStore(server.url, deadline=0.1, deny_cache=0) as store:
            await store.decide([Check(LIMIT, "warm")])
            tasks = []
            for number in range(20):
                tasks.append(asyncio.create_task(store.decide([Check(LIMIT, str(number))])))
                await asyncio.wait([asyncio.create_task(asyncio.sleep(0.001))])
            await asyncio.gather(*tasks)
        assert len(server.asked) > 5


async def test_who_asks_in_one_turn_leaves_together_once_others_did(server: Server) -> None:
    """The first of a turn does not go ahead by itself, unless the last one was alone."""
    async with RedisStore(server.url, deny_cache=0) as store:
        await store.decide([Check(MANY, "warm")])
        trips, sent = sum(store.sizes.buckets), []
        for count in (1, 8, 8, 1, 1, 8):
            await asyncio.gather(*(store.decide([Check(MANY, str(n))]) for n in range(count)))
            trips, before = sum(store.sizes.buckets), trips
            sent.append(trips - before)
    assert sent == [1, 2, 1, 1, 1, 2]


# --- our own queue -------------------------------------------------------------------------------


async def test_more_than_a_loop_can_queue_is_refused_whatever_the_policy(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """503 with the reduced-capacity type; said once; the breaker hears nothing of it."""
    monkeypatch.setattr(pipeline, "MOST_QUEUED", 100)
    for policy in ("allow", "deny", "local"):
        caplog.clear()
        store = RedisStore(server.url, deadline=5)
        rules = [Rule("all", "1000/minute", on_store_failure=policy)]
        async with RateLimiter(rules, store=store) as limiter:
            admissions = await asyncio.gather(*(limiter.admit(http_scope("/")) for _ in range(150)))
            refusals = [each.refusal for each in admissions if each.refusal is not None]
            assert len(refusals) == 50
            assert {refusal.status for refusal in refusals} == {503}
            assert all(b"temporary-reduced-capacity" in refusal.body for refusal in refusals)
            assert not store.breaker.recent
            said = [it.getMessage() for it in caplog.records if it.levelname == "ERROR"]
            assert [each.partition(":")[0] for each in said] == ["overloaded"]


async def test_who_waits_too_long_for_us_is_refused(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where more is asked than goes out; the server answers all the while, so it is not late."""
    monkeypatch.setattr(pipeline, "LONGEST_QUEUED", 0.02)
    monkeypatch.setattr(queue, "MOST_CHECKS", 1)
    monkeypatch.setattr(queue, "LEAST_SHARE", 1)
    async with RedisStore(server.url, deadline=0.001, deny_cache=0) as store:
        while store.round_trip is None:
            try:
                await store.decide([Check(MANY, "warm")])
            except StoreUnavailable:
                continue
        store._way()._deadline = 5
        answers = await asyncio.gather(
            *(store.decide([Check(MANY, "k")]) for _ in range(4000)), return_exceptions=True
        )
        kinds = {getattr(answer, "kind", "decided") for answer in answers}
        assert kinds == {"decided", "overloaded"}
        assert not store.breaker.recent


async def test_a_request_whose_task_was_cancelled_is_never_sent(server: Server) -> None:
    """It waits in the queue until its turn, and is left out then."""
    async with RedisStore(server.url, deadline=5) as store:
        tasks = [asyncio.create_task(store.decide([Check(LIMIT, "k")])) for _ in range(3)]
        await asyncio.sleep(0)  # they are queued, behind a connection that is not open yet
        tasks[1].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        (look,) = await store.decide([Check(LIMIT, "k", 0)])
        assert look.remaining == 3


# --- what a breaker hears ------------------------------------------------------------------------


async def test_a_batch_counts_once_however_many_wait_for_it() -> None:
    """A connection that is lost under a hundred callers is one failure, not a hundred."""
    async with answering() as server, RedisStore(server.url, deadline=2) as store:
        await store.decide([Check(LIMIT, "warm")])
        server.says = lambda _: b"nonsense\r\n"
        assert {each.kind for each in await failures(store, 2)} == {"not-redis"}
        assert sum(store.breaker.recent) == 1
        assert not store.breaker.is_open()


async def test_batches_that_are_owed_together_open_it_within_the_deadline(server: Server) -> None:
    """A frozen server opens it as soon as five requests have waited; none waits after that."""
    async with RedisStore(server.url, deadline=0.1) as store:
        await store.decide([Check(LIMIT, "warm")])
        server.command("CLIENT", "PAUSE", "500", "ALL")
        assert {each.kind for each in await failures(store, 100)} <= {"late", "open"}
        assert store.breaker.is_open()
        assert {each.kind for each in await failures(store)} == {"open"}
        for _ in range(300):
            if not store.breaker.is_open():
                break
            await asyncio.wait([asyncio.create_task(asyncio.sleep(0.02))])
        assert (await store.decide([Check(LIMIT, "after")]))[0].remaining == 4


async def test_scripts_that_are_flushed_under_load_charge_once(server: Server) -> None:
    """With many batches in flight, each of which has to be sent again."""
    limit = Limit("2000/day", algorithm="fixed_window")
    async with RedisStore(server.url, deadline=20, deny_cache=0) as store:

        async def ask() -> int:
            passed = 0
            for _ in range(100):
                (decision,) = await store.decide([Check(limit, "k")])
                passed += decision.allowed
            return passed

        asking = asyncio.gather(*(ask() for _ in range(30)))
        for _ in range(20):
            await asyncio.to_thread(server.command, "SCRIPT", "FLUSH")
        assert sum(await asking) == 2000


async def test_one_unreadable_counter_is_its_own_rules_affair(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """Its rule's policy answers for it; all other rules and clients are limited as ever."""
    kept: Any = {"by": "header:x-key", "algorithm": "sliding_log"}
    rules = [
        Rule("a", "5/minute", path="/a", **kept),
        Rule("b", "3/minute", path="/a", **kept),
        Rule("strict", "5/minute", path="/strict", on_store_failure="deny", **kept),
        Rule("own", "4/minute", path="/own", on_store_failure="local", **kept),
    ]

    def scope(path: str, key: str) -> dict[str, Any]:
        return http_scope(path, headers=(("x-key", key),))

    async with RateLimiter(rules, store=RedisStore(server.url, deadline=5)) as limiter:
        for path in ("/a", "/strict", "/own"):
            await limiter.admit(scope(path, "victim"))
        for key in server.ask("KEYS", "rl:{*"):
            if not key.endswith(":b"):
                server.command("DEL", key)
                server.command("LPUSH", key, "x")
        for path, expected in (
            ("/a", [200, 200, 429, 429]),  # by rule b, of which one is spent
            ("/strict", [503] * 4),
            ("/own", [200, 200, 200, 200, 429]),  # by a count of this process's own
        ):
            for status in expected:
                admission = await limiter.admit(scope(path, "victim"))
                got = 200 if admission.refusal is None else admission.refusal.status
                assert (path, got) == (path, status)
            others = [await limiter.admit(scope(path, "another")) for _ in range(6)]
            assert sum(each.refusal is None for each in others) == {"/a": 3, "/strict": 5}.get(
                path, 4
            )
            assert not any(each.degraded for each in others)
        assert limiter.health()["breaker"] == "closed"
        said = [it.getMessage().partition(":")[0] for it in caplog.records]
        assert said.count("check-failed") == 1


# --- event loops that come and go ----------------------------------------------------------------


def connected(server: Server) -> int:
    found = re.search(r"connected_clients:(\d+)", server.ask("INFO", "clients"))
    assert found is not None
    return int(found[1])


def test_an_event_loop_that_ends_takes_its_connections_with_it(run: Run, server: Server) -> None:
    """Scripts and test clients begin a new one again and again, and close no store."""
    store = RedisStore(server.url, deadline=5)
    before = connected(server)
    for left in (4, 3, 2, 1, 0):

        async def main() -> int:
            (decision,) = await store.decide([Check(LIMIT, "k")])
            return decision.remaining

        assert run(main) == left
    assert connected(server) == before
    assert not store._ways


def test_a_loop_that_was_closed_by_hand_is_forgotten(server: Server) -> None:
    """When the store is next asked in another one."""
    store = RedisStore(server.url, deadline=5)
    for left in (4, 3, 2):
        loop = asyncio.new_event_loop()
        (decision,) = loop.run_until_complete(store.decide([Check(LIMIT, "k")]))
        assert decision.remaining == left
        assert len(store._ways) == 1
        loop.close()
    asyncio.run(store.decide([Check(LIMIT, "k")]))  # closes in order what it opens
    assert not store._ways
    gc.collect()
