"""What RedisStore promises beyond the suite that every store passes."""

import asyncio
import gc
import logging
import multiprocessing
import os
import re
import signal
import socket
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from redis.asyncio import Redis

from ratelimit import Algorithm, Check, Limit, RedisStore, StoreUnavailable, open_store
from ratelimit.decisions import Assumed
from ratelimit.stores.errors import explain
from ratelimit.stores.redis import wire
from tests.support.servers import Server, binaries, free_port, serving

LIMIT = Limit("5/minute", algorithm="sliding_log")


@pytest.fixture
def server() -> Iterator[Server]:
    """A server of this test's own, which it may kill."""
    with serving(binaries()[0].path) as started:
        yield started


@asynccontextmanager
async def listening(reply: bytes | None) -> AsyncIterator[int]:
    """Something that is no Redis: answers everything with `reply`, or (None) never answers."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.read(4096):
                if reply is not None:
                    writer.write(reply)
                    await writer.drain()
        finally:
            writer.close()

    listener = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with listener:
        yield listener.sockets[0].getsockname()[1]


@pytest.mark.parametrize(
    ("clock", "error"),
    [
        (lambda: 1.5, "^the clock gives whole microseconds, not float$"),
        (lambda: None, "^the clock gives whole microseconds, not NoneType$"),
        (lambda: -1, "^the clock gives -1; microseconds since the epoch, below 2\\^52$"),
        (lambda: 2**52, "^the clock gives 4503599627370496; "),
        (lambda: 1 // 0, "^integer division or modulo by zero$"),
    ],
    ids=["float", "None", "before the epoch", "too late", "raises"],
)
@pytest.mark.parametrize("deny_cache", [0, 1])
async def test_a_clock_that_gives_no_time_fails_each_decision_as_in_process(
    redis_server: Server, clock: Any, error: str, deny_cache: float
) -> None:
    """It is the caller's mistake: told at once, to all who share the trip, and nobody waits."""
    async with RedisStore(
        redis_server.url, clock=clock, deadline=5, deny_cache=deny_cache
    ) as store:
        found = await asyncio.wait_for(
            asyncio.gather(
                *(store.decide([Check(LIMIT, f"{i}")]) for i in range(3)), return_exceptions=True
            ),
            30,
        )
        for each in found:
            assert type(each) in (TypeError, ValueError, ZeroDivisionError)
            assert re.search(error, str(each))


async def refused(store: RedisStore) -> StoreUnavailable:
    """How a store says that it cannot decide, which it must within a second of any deadline."""
    started = time.monotonic()
    with pytest.raises(StoreUnavailable) as caught:
        await store.decide([Check(LIMIT, "someone")])
    assert time.monotonic() - started < 2
    assert re.fullmatch(r"[^\n]{10,400}", str(caught.value))
    await store.aclose()
    return caught.value


async def test_a_script_flush_goes_unnoticed(server: Server) -> None:
    """A server that has forgotten the script is given it again, and the charge is made once."""
    async with RedisStore(server.url, deadline=1) as store:
        for left in (4, 3, 2):
            server.command("SCRIPT", "FLUSH")
            (decision,) = await store.decide([Check(LIMIT, "someone")])
            assert decision.remaining == left


async def test_a_restart_is_noticed_by_nobody_but_the_counters(server: Server) -> None:
    """A connection that died while it was idle is replaced before it is used."""
    async with RedisStore(server.url, deadline=1) as store:
        await store.decide([Check(LIMIT, "someone")])
        await asyncio.to_thread(server.kill)
        await asyncio.to_thread(server.start)
        (decision,) = await store.decide([Check(LIMIT, "someone")])
        assert decision.remaining == 4


async def test_a_late_charge_is_never_sent_again(server: Server) -> None:
    """What a frozen server had received when the deadline passed is charged once, not more."""
    async with RedisStore(server.url, deadline=0.1) as store:
        await store.decide([Check(LIMIT, "someone")])
        server.signal(signal.SIGSTOP)
        with pytest.raises(StoreUnavailable, match="no answer within the deadline of 100 ms"):
            await store.decide([Check(LIMIT, "someone")])
        server.signal(signal.SIGCONT)
        (decision,) = await store.decide([Check(LIMIT, "someone", cost=0)])
        assert decision.remaining == 3


async def test_a_cancelled_caller_loses_its_answer_and_nothing_else(server: Server) -> None:
    """Its neighbours get theirs, over the same connections."""
    async with RedisStore(server.url, deadline=1) as store:
        limit = Limit("1000/minute", algorithm="fixed_window")
        await store.decide([Check(limit, "warm")])
        before = server.command("INFO", "stats")
        tasks = [
            asyncio.create_task(store.decide([Check(limit, f"k{number}")])) for number in range(100)
        ]
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(each, asyncio.CancelledError) for each in answers[::2])
        for answer in answers[1::2]:
            assert not isinstance(answer, BaseException)
            assert answer[0].remaining == 999
        after = server.command("INFO", "stats")
        made = [int(re.search(r"total_connections_received:(\d+)", said)[1])  # type: ignore[index]
                for said in (before, after)]  # fmt: skip
        # One by each of these two questions, and one more for a second trip under way.
        assert made[1] - made[0] <= 2


@pytest.mark.parametrize("algorithm", Algorithm)
@pytest.mark.parametrize("foreign", [["SET", "not the limiter's"], ["SET", "5"], ["SADD", "5"]])
async def test_a_foreign_value_fails_its_own_check_alone(
    server: Server, algorithm: Algorithm, foreign: list[str]
) -> None:
    """The others of its request are decided and charged without it, and so are its neighbours."""
    command, value = foreign
    limit = Limit("5/minute", algorithm=algorithm)
    async with RedisStore(server.url, deadline=1) as store:
        broken, whole = Check(limit, "broken"), Check(limit, "whole")
        server.command(command, store._key(broken), value)
        answers = await asyncio.gather(
            *(
                store.decide(checks)
                for checks in ([whole], [broken, whole, broken], [whole], [broken])
            ),
            return_exceptions=True,
        )
        assert isinstance(answers[3], StoreUnavailable)
        assert (answers[3].kind, answers[3].scope) == ("foreign-key", "key")
        for answer, left in ((answers[0], 4), (answers[2], 2)):
            assert not isinstance(answer, BaseException)
            assert answer[0].remaining == left
        assert not isinstance(answers[1], BaseException)
        lost, decided, also = answers[1]
        assert (lost.degraded, decided.degraded, also.degraded) == (True, False, True)
        assert (decided.allowed, decided.remaining) == (True, 3)
        assert isinstance(lost, Assumed)
        assert isinstance(lost.problem, StoreUnavailable)
        assert lost.problem.kind == "foreign-key"
        assert store.breaker.recent == deque()
        denied = await store.decide([broken, Check(limit, "whole", 3)])
        assert [decision.allowed for decision in denied] == [True, False]
        (look,) = await store.decide([Check(limit, "whole", 0)])
        assert look.remaining == 2


async def test_checks_of_one_request_are_each_counted_under_their_own_identity(
    server: Server,
) -> None:
    """Also where two of them, with another between, are of one."""
    async with RedisStore(server.url, deadline=1) as store:
        names = ("one", "other", "one")
        decisions = await store.decide([Check(LIMIT, name) for name in names])
        assert [decision.remaining for decision in decisions] == [4, 4, 3]
        for name, left in (("one", 3), ("other", 4), ("nobody", 5)):
            assert (await store.decide([Check(LIMIT, name, 0)]))[0].remaining == left


async def test_kinds_of_requests_without_end_are_counted_alike(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Costs and limits that are made on the fly, in one trip and in many."""
    monkeypatch.setattr(wire, "MOST_KINDS", 2)
    async with RedisStore(server.url, deadline=1) as store:
        limits = [Limit(f"{quota}/minute", algorithm="fixed_window") for quota in range(100, 110)]
        checks = [[Check(limit, "someone", cost)] for limit in limits for cost in (3, 5, 3)]
        for spent in (11, 22):
            answers = await asyncio.gather(*map(store.decide, checks))
            assert [answer.remaining for (answer,) in answers[2::3]] == [
                limit.quota - spent for limit in limits
            ]
        assert len(store._way()._packer._kinds) <= 2


async def test_keys_hold_no_identity_and_leave_in_time(server: Server) -> None:
    """Every key carries an expiry near its reset, and no more than a digest of who asked."""
    url = f"{server.url}?decode_responses=true"
    async with RedisStore(server.url, deadline=1) as store, Redis.from_url(url) as client:
        for algorithm in Algorithm:
            limit = Limit("7/2s", algorithm=algorithm)
            (decision,) = await store.decide([Check(limit, "secret@example.org", 3, "rule")])
            key = store._key(Check(limit, "secret@example.org", 3, "rule"))
            left_ms = await client.pttl(key)
            assert 0 < left_ms <= decision.reset_after_us / 1000 + 3000
        keys = await client.keys("*")
        assert len(keys) == len(Algorithm)
        for name in keys:
            assert re.fullmatch(r"rl:\{[A-Za-z0-9_-]{16}\}:[A-Za-z0-9_-]{8}:rule", str(name))


async def test_reset_forgets(server: Server) -> None:
    """After a reset a key is as if it had never been used."""
    async with RedisStore(server.url, deadline=1) as store:
        check = Check(LIMIT, "someone", 5)
        await store.decide([check])
        await store.reset([check])
        (decision,) = await store.decide([Check(LIMIT, "someone", 0)])
        assert (decision.remaining, decision.reset_after_us) == (5, 0)


async def test_a_client_of_the_applications_is_not_closed_and_not_retried(server: Server) -> None:
    """Its settings are used for connections of the store's own, without its retries."""
    client = Redis.from_url(server.url, client_name="the-app")
    store = RedisStore(client, deadline=1)
    await store.decide([Check(LIMIT, "someone")])
    await store.aclose()
    assert await client.ping()
    await client.aclose()


def test_each_event_loop_has_connections_of_its_own(server: Server) -> None:
    """A store outlives a loop: the next one opens what it needs, and nothing is left open."""
    store = RedisStore(server.url, deadline=1)

    async def ask() -> int:
        (decision,) = await store.decide([Check(LIMIT, "someone")])
        await store.aclose()
        return decision.remaining

    assert [asyncio.run(ask()) for _ in range(3)] == [4, 3, 2]
    gc.collect()  # an unclosed connection would warn now, and warnings are errors


async def test_nobody_listens() -> None:
    """An address without a server is one sentence, at once."""
    error = await refused(RedisStore(f"redis://127.0.0.1:{free_port()}"))
    assert error.kind == "refused"
    assert "nothing listens" in str(error)


async def test_a_name_that_does_not_resolve() -> None:
    """A name without an address is one sentence, within the deadline or with the cause."""
    error = await refused(RedisStore("redis://no-such-host.invalid:6379"))
    assert error.kind in ("name", "late")


async def test_a_listener_that_never_answers() -> None:
    """The deadline holds while the handshake waits."""
    async with listening(None) as port:
        store = RedisStore(f"redis://127.0.0.1:{port}", deadline=0.05)
        assert (await refused(store)).kind == "late"


async def test_a_full_backlog() -> None:
    """The deadline holds while the connection is being made."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        held = [socket.socket() for _ in range(4)]
        for each in held:
            each.setblocking(False)
            each.connect_ex(listener.getsockname())
        store = RedisStore(f"redis://127.0.0.1:{listener.getsockname()[1]}", deadline=0.05)
        assert (await refused(store)).kind == "late"
        for each in held:
            each.close()


async def test_no_redis_at_all() -> None:
    """A web server at the address is told as such."""
    async with listening(b"HTTP/1.1 400 Bad Request\r\n\r\n") as port:
        error = await refused(RedisStore(f"redis://127.0.0.1:{port}", deadline=1))
    assert error.kind == "not-redis"


async def test_a_server_without_hello() -> None:
    """A server or proxy that only speaks the older protocol is told, with what to write."""
    async with listening(
        b"-ERR unknown command 'HELLO', with args beginning with: '3' \r\n"
    ) as port:
        error = await refused(RedisStore(f"redis://127.0.0.1:{port}", deadline=1))
    assert error.kind == "old"
    assert "protocol=2" in str(error)


async def test_resp2_by_option(server: Server) -> None:
    """``?protocol=2`` speaks the older protocol, to the same effect."""
    async with RedisStore(f"{server.url}?protocol=2", deadline=1) as store:
        (decision,) = await store.decide([Check(LIMIT, "someone")])
        assert decision.remaining == 4


async def test_a_server_without_scripts() -> None:
    """A server that runs no scripts is told as too old."""
    with serving(binaries()[0].path, "--rename-command", "EVALSHA", "") as bare:
        error = await refused(RedisStore(bare.url, deadline=1))
    assert error.kind == "old"


async def test_a_password_is_demanded_or_wrong() -> None:
    """Which of the two it is, is said; the password itself is not."""
    with serving(binaries()[0].path, "--requirepass", "s3cret") as locked:
        missing = await refused(RedisStore(locked.url, deadline=1))
        wrong = await refused(RedisStore(f"redis://:wr0ng@127.0.0.1:{locked.port}", deadline=1))
        async with RedisStore(f"redis://:s3cret@127.0.0.1:{locked.port}", deadline=1) as store:
            assert (await store.decide([Check(LIMIT, "someone")]))[0].allowed
    assert (missing.kind, wrong.kind) == ("password", "password")
    assert "demands a password" in str(missing)
    assert "refuses" in str(wrong)
    assert "wr0ng" not in str(wrong)


async def test_a_read_only_replica(server: Server) -> None:
    """A replica is told as such; so is a master that was demoted."""
    with serving(binaries()[0].path, "--replicaof", f"127.0.0.1 {server.port}") as replica:
        error = await refused(RedisStore(replica.url, deadline=1))
    assert error.kind in ("read-only", "loading")


async def test_a_full_server() -> None:
    """Being at maxmemory with nothing to evict is told as such, and charges nothing."""
    with serving(
        binaries()[0].path, "--maxmemory", "1", "--maxmemory-policy", "noeviction"
    ) as full:
        error = await refused(RedisStore(full.url, deadline=1))
        assert error.kind == "full"
        full.command("CONFIG", "SET", "maxmemory", "0")
        async with RedisStore(full.url, deadline=1) as store:
            assert (await store.decide([Check(LIMIT, "someone", 0)]))[0].remaining == 5


async def test_a_full_server_is_written_to_by_option() -> None:
    """`allow_oom` counts at maxmemory too, where the server is Redis 7 or newer."""
    binary = next(each for each in binaries() if "-6." not in each.name)
    with serving(binary.path, "--maxmemory", "1", "--maxmemory-policy", "noeviction") as full:
        async with RedisStore(full.url, allow_oom=True, deadline=1) as store:
            await store.ping()
            for left in (4, 3):
                assert (await store.decide([Check(LIMIT, "someone")]))[0].remaining == left


async def test_too_many_clients() -> None:
    """A server that takes no more clients is told as such."""
    with (
        serving(binaries()[0].path, "--maxclients", "1") as small,
        socket.create_connection(("127.0.0.1", small.port)) as held,
    ):
        held.sendall(b"PING\r\n")
        held.recv(16)
        error = await refused(RedisStore(small.url, deadline=1))
    assert error.kind in ("clients", "closed")


async def test_ping_tells_the_same(server: Server) -> None:
    """`ping` returns where a decision would be answered, and raises what it would raise."""
    async with RedisStore(server.url, deadline=1) as store:
        await store.ping()
    silent = RedisStore(f"redis://127.0.0.1:{free_port()}")
    with pytest.raises(StoreUnavailable, match="nothing listens"):
        await silent.ping()
    await silent.aclose()


def test_loading_and_other_rare_words_are_understood() -> None:
    """Errors that cannot be provoked in milliseconds are read from what servers say."""
    said = {
        "LOADING Redis is loading the dataset in memory": "loading",
        "BUSY Redis is busy running a script. You can only call SCRIPT KILL": "busy",
        "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.": (
            "read-only"
        ),
        "MISCONF Redis is configured to save RDB snapshots": "read-only",
        "NOPERM this user has no permissions to run the 'evalsha' command": "permission",
        "MOVED 3999 127.0.0.1:6381": "cluster",
        "something that nobody has ever seen": "failed",
    }
    assert {words: explain(words).kind for words in said} == said


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("redis+cluster://:s3cret@", "redis+cluster:// names no host:port,host:port"),
        ("redis+cluster://h:1,,h:2", "redis+cluster:// names no host:port,host:port"),
        ("redis+cluster://h:1/0", "redis+cluster:// takes no database; a cluster has one"),
        (
            "redis+sentinel://u:s3cret@h:1",
            "no service follows the hosts in the store; write redis+sentinel://",
        ),
        ("redis+sentinel://h:x/s", "redis+sentinel:// names no host:port,host:port"),
        ("http://:s3cret@localhost", "the store's scheme is 'http'; there are memory://, redis://"),
        ("redis", "the store is not a URI; write one such as redis://"),
        ("", "the store is not a URI"),
        ("redis://", "nothing, or a space, follows redis:// in the store"),
        ("redis://u:s3cret#x@h", "no host and port can be read in the redis:// URI"),
        ("redis://u:s3cret/x@h", "no host and port can be read in the redis:// URI"),
        (
            "redis+cluster://u:s3cret#x@h:1",
            "no host and port can be read in the redis+cluster:// URI",
        ),
        ("memory://x", "something follows memory:// in the store"),
    ],
)
def test_open_store_says_what_a_uri_lacks(uri: str, message: str) -> None:
    """A URI that names no store is refused in one sentence that shows no password."""
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        open_store(uri)
    assert "s3cret" not in str(caught.value)


def test_eight_processes_pass_exactly_the_quota(server: Server) -> None:
    """Eight processes on one key of one server let through the quota, not one more or less."""
    rounds = 20 if os.environ.get("RATELIMIT_TEST_ALL") == "1" else 2
    assert_exact_from_eight_processes(server.url, rounds)


def assert_exact_from_eight_processes(url: str, rounds: int) -> None:
    """All of them ask for the same keys at the same time, with each algorithm in turn."""
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(8), context.Queue()
    arguments = (url, rounds, barrier, results)
    workers = [context.Process(target=_ask_often, args=arguments) for _ in range(8)]
    for worker in workers:
        worker.start()
    passed = Counter[tuple[int, str]]()
    for _ in workers:
        passed.update(results.get(timeout=120))
    for worker in workers:
        worker.join(30)
    assert passed == {(turn, each): 200 for turn in range(rounds) for each in Algorithm}


def _ask_often(url: str, rounds: int, barrier: Any, results: Any) -> None:
    async def ask() -> dict[tuple[int, str], int]:
        passed = {}
        async with RedisStore(url, deadline=10) as store:
            await store.ping()
            for turn in range(rounds):
                for algorithm in Algorithm:
                    limit = Limit("200/day", algorithm=algorithm)
                    barrier.wait(60)
                    answers = await asyncio.gather(
                        *(store.decide([Check(limit, f"key {turn}")]) for _ in range(100))
                    )
                    passed[turn, algorithm.value] = sum(each.allowed for (each,) in answers)
        return passed

    logging.disable()
    results.put(asyncio.run(ask()))


@pytest.mark.parametrize(
    "reply",
    [
        b"*0",
        b"*2\r\n:1\r\n:2",
        b"$-1",
        b":5",
        b"+OK",
        b"*6" + b"\r\n$-1" * 6,
        b"*6\r\n:4\r\n:0\r\n:9\r\n:1000000000000000\r\n:5\r\n:0",  # a delay of 31 years
        b"*6\r\n:4\r\n:0\r\n:9\r\n:-5\r\n:5\r\n:0",
        b"*6\r\n:4\r\n:0\r\n:9223372036854775807\r\n:0\r\n:5\r\n:0",
        b"*6\r\n,nan\r\n:0\r\n:9\r\n:0\r\n:5\r\n:0",  # RESP3's kinds
        b"*6\r\n:4\r\n,0.5\r\n:9\r\n:0\r\n:5\r\n:0",
        b"*6\r\n#t\r\n:0\r\n:9\r\n:0\r\n:5\r\n:0",
        b"#f",
        b"%1\r\n+a\r\n:1",
        b":1\r\n:2",  # more than was asked for
        b"hello",
    ],
)
async def test_a_reply_that_no_script_gives_is_no_decision(reply: bytes) -> None:
    """Whatever an odd proxy answers, a caller gets StoreUnavailable and nothing else."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while said := await reader.read(65_536):
            for command in re.findall(rb"\r\n(CLIENT|EVALSHA)\r\n", said):
                writer.write((reply if command == b"EVALSHA" else b"+OK") + b"\r\n")
            await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as listener:
        port = listener.sockets[0].getsockname()[1]
        error = await refused(RedisStore(f"redis://127.0.0.1:{port}?protocol=2", deadline=1))
    # Six whole numbers are what a script of ours gives, but these are not a counter's.
    numbers = reply.startswith(b"*6\r\n:4\r\n:")
    assert error.kind == ("foreign-key" if numbers else "not-redis")


@pytest.mark.parametrize("reply", [b"$-1", b":5", b"+OK"])
async def test_a_reply_that_lists_nothing_names_no_rule_and_nobody(reply: bytes) -> None:
    """Whoever asks for switches or denials gets StoreUnavailable and nothing else."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while said := await reader.read(65_536):
            for command in re.findall(rb"\r\n(CLIENT|SRANDMEMBER|ZREVRANGE)\r\n", said):
                writer.write((b"+OK" if command == b"CLIENT" else reply) + b"\r\n")
            await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as listener:
        port = listener.sockets[0].getsockname()[1]
        async with RedisStore(f"redis://127.0.0.1:{port}?protocol=2", deadline=1) as store:
            for ask in (store.switches, store.denials):
                with pytest.raises(StoreUnavailable) as caught:
                    await ask()
                assert caught.value.kind == "not-redis"
