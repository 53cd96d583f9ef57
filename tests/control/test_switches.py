"""Rules that are turned off while they run: by Redis, by a file, by the environment."""

import asyncio
import gc
import logging
import os
import re
import socket
import time
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from pathlib import Path

import httpx
import pytest

from ratelimit import Check, Limit, MemoryStore, RateLimiter, RedisStore, Rule, RuleSet
from ratelimit.control import switches as module
from ratelimit.control.switches import Switches
from ratelimit.runtime.background import Background
from ratelimit.stores import StoreUnavailable
from ratelimit.stores.redis import store as redis
from ratelimit.testing import MakeStore, ManualClock
from tests.support.apps import running
from tests.support.clusters import cluster
from tests.support.servers import Server, binaries, serving

NOBODY = frozenset[str]()
DAY = Limit("5/day")


@pytest.fixture(autouse=True)
def _no_switches_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RATELIMIT_KILL", raising=False)
    monkeypatch.delenv("RATELIMIT_KILL_FILE", raising=False)


class KillFile:
    """The file that RATELIMIT_KILL_FILE names."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def says(self, text: str | bytes) -> None:
        self.path.write_bytes(text.encode() if isinstance(text, str) else text)

    def vanishes(self) -> None:
        self.path.unlink()


@pytest.fixture
def kill_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> KillFile:
    """It is not there yet."""
    monkeypatch.setenv("RATELIMIT_KILL_FILE", str(tmp_path / "off"))
    return KillFile(tmp_path / "off")


@pytest.fixture
def switchboard(redis_server: Server) -> Server:
    """A server that knows of no switch."""
    redis_server.command("FLUSHALL")
    return redis_server


async def within_a_second(holds: Callable[[], object]) -> None:
    """Returns when it holds; TimeoutError if that takes a second."""
    async with asyncio.timeout(1):
        while not holds():  # noqa: ASYNC110  # what is waited for happens in another process
            await asyncio.sleep(0.005)


def scope(path: str, host: str = "192.0.2.1") -> dict[str, object]:
    """A request, as far as rules look at it."""
    return {"type": "http", "method": "GET", "path": path, "headers": [], "client": (host, 1)}


async def passed(limiter: RateLimiter, path: str, times: int) -> int:
    """How many of so many requests passed."""
    admissions = [await limiter.admit(scope(path)) for _ in range(times)]
    return sum(admission.refusal is None for admission in admissions)


# --- where it is said ----------------------------------------------------------------------------


async def test_without_a_place_to_look_at_nothing_is_off_and_nothing_runs() -> None:
    switches = Switches(MemoryStore())
    tasks = len(asyncio.all_tasks())
    switches.run()
    assert switches.off == NOBODY
    assert len(asyncio.all_tasks()) == tasks


def test_the_environment_names_rules_that_are_off_from_the_start(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("RATELIMIT_KILL", "login, search")
    assert Switches(MemoryStore()).off == {"login", "search"}
    assert caplog.messages == ["switched: off until further notice: login, search"]


async def test_a_file_names_rules_for_as_long_as_it_is_there(kill_file: KillFile) -> None:
    """One name a line, comments behind #; taking the name, or the file, away turns it on again."""
    switches = Switches(MemoryStore())
    await switches.look()
    assert switches.off == NOBODY
    kill_file.says("# since Monday\nlogin  # refuses everyone\nsearch\n")
    await switches.look()
    assert switches.off == {"login", "search"}
    kill_file.says("search\n")
    await switches.look()
    assert switches.off == {"search"}
    kill_file.vanishes()
    await switches.look()
    assert switches.off == NOBODY


async def test_a_file_that_cannot_be_read_says_what_it_said_last(
    kill_file: KillFile, caplog: pytest.LogCaptureFixture
) -> None:
    """The log says so once, and once more if it happens again."""
    switches = Switches(MemoryStore())
    kill_file.says("login\n")
    await switches.look()
    for content in (b"\xff\xfe", b"login", b"\xff\xfe"):
        kill_file.says(content)
        await switches.look()
        await switches.look()
        assert switches.off == {"login"}
    unread = [line for line in caplog.messages if line.startswith("switches-unread: ")]
    assert len(unread) == 2
    assert str(kill_file.path) in unread[0]
    assert "can't decode byte 0xff" in unread[0]


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("pipe", "it is a pipe, not a file"),
        ("folder", "it is a folder, not a file"),
        ("device", "it is a device, not a file"),
        ("socket", "it is a socket, not a file"),
        ("long", "it is longer than 100000 bytes"),
    ],
)
async def test_a_place_of_another_kind_than_a_file_says_what_it_said_last(
    kill_file: KillFile, kind: str, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing waits for it, and the other places are heard."""

    class Store(MemoryStore):
        async def switches(self) -> frozenset[str]:
            return frozenset({"search"})

    switches = Switches(Store())
    kill_file.says("login\n")
    await switches.look()
    kill_file.vanishes()
    with socket.socket(socket.AF_UNIX) as listener:
        match kind:
            case "pipe":
                os.mkfifo(kill_file.path)
            case "folder":
                kill_file.path.mkdir()
            case "device":
                kill_file.path.symlink_to("/dev/zero")
            case "socket":
                listener.bind(os.path.relpath(kill_file.path))  # noqa: ASYNC240  # a path has to be short
            case _:
                kill_file.says("api\n" * 30_000)
        async with asyncio.timeout(5):
            await switches.look()
    assert switches.off == {"login", "search"}
    (line,) = [line for line in caplog.messages if line.startswith("switches-unread: ")]
    assert said in line


# --- the rules that there are --------------------------------------------------------------------


async def told(store: RedisStore, names: set[str]) -> None:
    """Returns when the store has been told exactly these names; TimeoutError after 2 s."""
    async with asyncio.timeout(2):
        while await store.rules() != names:  # noqa: ASYNC110  # told by a task of the limiter's
            await asyncio.sleep(0.01)


async def test_workers_tell_the_store_the_names_of_their_rules(switchboard: Server) -> None:
    """At the start, and when they change; those of routes from their first request on."""
    async with (
        RedisStore(switchboard.url, deadline=10) as store,
        RateLimiter([Rule("login", DAY), Rule("old", DAY, mode="off")], store=store) as limiter,
    ):
        assert await store.rules() == NOBODY
        limiter.start()
        await told(store, {"login", "old"})
        limiter.check_registered([Rule("a.route", DAY)])
        await told(store, {"login", "old", "a.route"})
        assert 20_000 < int(switchboard.ask("PTTL", "rl:rules")) <= 26_000
        limiter.use(RuleSet((Rule("search", DAY),)))
        await told(store, {"login", "old", "a.route", "search"})
        switchboard.ask("ZADD", "rl:rules", "1", "login", "1", "old")  # reported long ago
        await store.report_rules(["search"], 20)
        assert await store.rules() == {"search", "a.route"}, "what nobody reports any more is gone"


class Told(MemoryStore):
    """A store that writes down the names that it is told, or raises."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[list[str]] = []
        self.error: Exception | None = None

    async def switches(self) -> frozenset[str]:
        return NOBODY

    async def report_rules(self, names: Sequence[str], alive_for: float) -> None:
        self.told.append(list(names))
        if self.error is not None:
            raise self.error


async def test_names_are_told_again_only_when_they_change_or_time_has_passed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store, names = Told(), ["b", "a", "b"]
    switches = Switches(store, lambda: names)
    for _ in range(3):
        await switches._report()
    assert store.told == [["a", "b"]]
    names.remove("a")
    await switches._report()
    monkeypatch.setattr(module, "REPORT", 0)
    await switches._report()
    assert store.told[1:] == [["b"], ["b"]]


async def test_a_report_is_bounded_and_says_that_there_are_more(
    monkeypatch: pytest.MonkeyPatch, switchboard: Server
) -> None:
    monkeypatch.setattr(module, "MOST_REPORTED", 2)
    store = Told()
    await Switches(store, lambda: ["c", "b", "a"])._report()
    assert store.told == [["a", "b", "*"]]
    monkeypatch.setattr(redis, "MOST_RULES", 3)
    async with RedisStore(switchboard.url, deadline=10) as shared:
        for number in range(5):
            await shared.report_rules([f"rule-{number}"], 10 + number)
        assert await shared.rules() == {"rule-2", "rule-3", "rule-4", "*"}


@pytest.mark.parametrize(
    ("error", "said", "tries"),
    [
        (StoreUnavailable("no reply", kind="deadline"), 0, 3),
        (StoreUnavailable("may not", kind="permission"), 1, 1),
        (RuntimeError("a bug"), 1, 1),
    ],
)
async def test_a_report_that_fails_is_said_once_and_one_that_is_lost_is_tried_again(
    error: Exception, said: int, tries: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "ratelimit")
    store = Told()
    store.error = error
    switches = Switches(store, lambda: ["a"])
    for _ in range(3):
        await switches._report()
    assert len(store.told) == tries
    assert caplog.text.count("rules-unreported: ") == said


# --- what is done about it -----------------------------------------------------------------------


async def test_each_change_is_one_line_in_the_log(
    kill_file: KillFile, caplog: pytest.LogCaptureFixture
) -> None:
    switches = Switches(MemoryStore())
    for text in ("login", "login", "*, login", ""):
        kill_file.says(text)
        await switches.look()
    assert caplog.messages == [
        "switched: off until further notice: login",
        "switched: off until further notice: *, login",
        "switched: every rule is in force again",
    ]


async def test_redis_says_it_to_every_worker_until_it_is_taken_back(switchboard: Server) -> None:
    """A switch has no expiry, and outlives the worker that it was turned by."""
    async with RedisStore(switchboard.url, deadline=10) as one:
        await one.switch("login", off=True)
        await one.switch("*", off=True)
        await one.switch("*", off=True)
    assert switchboard.ask("TTL", "rl:switches") == -1
    async with RedisStore(switchboard.url, deadline=10) as other:
        switches = Switches(other)
        await switches.look()
        assert switches.off == {"login", "*"}
        await other.switch("*", off=False)
        await switches.look()
        assert switches.off == {"login"}
        await other.switch("login", off=False)
        await switches.look()
        assert switches.off == NOBODY


@pytest.mark.parametrize("protocol", [2, 3])
async def test_an_operator_needs_no_more_than_a_redis_client(
    switchboard: Server, protocol: int
) -> None:
    """SADD and SREM at the key that begins with the store's prefix."""
    store = RedisStore(f"{switchboard.url}?protocol={protocol}", deadline=10, prefix="shop:")
    async with store:
        assert await store.switches() == NOBODY
        switchboard.ask("SADD", "shop:switches", "login", "search")
        assert await store.switches() == {"login", "search"}
        switchboard.ask("SREM", "shop:switches", "search")
        assert await store.switches() == {"login"}


async def test_what_any_place_says_is_off(
    switchboard: Server, kill_file: KillFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RATELIMIT_KILL", "one")
    kill_file.says("two")
    async with RedisStore(switchboard.url, deadline=10) as store:
        await store.switch("three", off=True)
        switches = Switches(store)
        await switches.look()
        assert switches.off == {"one", "two", "three"}


async def test_a_store_of_ones_own_may_have_switches() -> None:
    class Own(MemoryStore):
        async def switches(self) -> frozenset[str]:
            return frozenset({"login"})

    switches = Switches(Own())
    await switches.look()
    assert switches.off == {"login"}


async def test_a_store_that_is_away_says_what_it_said_last_and_the_log_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """That it is away is said by the breaker."""
    with serving(binaries()[0].path) as server:
        async with RedisStore(server.url, deadline=10) as store:
            switches = Switches(store)
            server.ask("SADD", "rl:switches", "login")
            await switches.look()
            assert switches.off == {"login"}
            caplog.clear()
            server.kill()
            await switches.look()
            with pytest.raises(StoreUnavailable):
                await store.switch("login", off=False)
            assert switches.off == {"login"}
            assert caplog.messages == []


async def test_a_user_of_redis_without_the_right_is_told_so_once(
    switchboard: Server, caplog: pytest.LogCaptureFixture
) -> None:
    switchboard.ask("ACL", "SETUSER", "blind", "on", ">pw", "~rl:*", "+@all", "-srandmember")
    async with RedisStore(f"redis://blind:pw@127.0.0.1:{switchboard.port}/0", deadline=10) as store:
        switches = Switches(store)
        await switches.look()
        await switches.look()
    (line,) = caplog.messages
    assert line.startswith("switches-unread: the store does not say which rules are off")
    assert "srandmember" in line


async def test_a_key_that_grew_beyond_a_thousand_names_is_not_read(
    switchboard: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """What was off before stays off; the log names the way out."""
    async with RedisStore(switchboard.url, deadline=10) as store:
        switches = Switches(store)
        names = [f"rule-{number}" for number in range(1_000)]
        switchboard.ask("SADD", "rl:switches", *names)
        await switches.look()
        assert switches.off == set(names)
        caplog.clear()
        switchboard.ask("SADD", "rl:switches", "one-more")
        await switches.look()
        assert switches.off == set(names)
        assert "more than 1000 names; turn off * instead" in caplog.text


@pytest.mark.slow
async def test_in_a_cluster_the_switches_are_one_key_that_may_move() -> None:
    with cluster(binaries()[0].path) as nodes:
        async with RedisStore(nodes.url, deadline=10) as store:
            switches = Switches(store)
            await store.switch("login", off=True)
            await switches.look()
            assert switches.off == {"login"}
            slot = nodes.slot("rl:switches")
            source = nodes.master_of(slot)
            target = next(node for node in nodes.masters() if node is not source)
            await asyncio.to_thread(nodes.migrate, slot, source, target)
            target.ask("SADD", "rl:switches", "search")
            switches.run()
            await within_a_second(lambda: switches.off == {"login", "search"})
            await switches.aclose()


# --- when it is learnt ---------------------------------------------------------------------------


async def test_a_switch_is_learnt_within_a_second_without_a_trip_per_request(
    switchboard: Server,
) -> None:
    """However many requests there are, Redis is asked about twice a second."""
    switchboard.ask("CONFIG", "RESETSTAT")
    start = time.monotonic()
    async with RedisStore(switchboard.url, deadline=10) as store:
        limiter = RateLimiter([Rule("api", "1000/day")], store=store)
        async with asyncio.timeout(10):
            await passed(limiter, "/", 300)
            await store.switch("api", off=True)
            await within_a_second(lambda: limiter.health()["off"] == ["api"])
            await store.switch("api", off=False)
            await within_a_second(lambda: limiter.health()["off"] == [])
        await limiter.aclose()
    asked = re.search(r"cmdstat_srandmember:calls=(\d+)", switchboard.ask("INFO", "commandstats"))
    assert asked
    assert 2 <= int(asked[1]) <= 2 + (time.monotonic() - start) / (0.8 * 0.5)


async def test_a_kill_file_is_learnt_within_a_second(kill_file: KillFile) -> None:
    switches = Switches(MemoryStore())
    switches.run()
    kill_file.says("*")
    await within_a_second(lambda: switches.off)
    kill_file.vanishes()
    await within_a_second(lambda: not switches.off)
    await switches.aclose()


async def test_every_worker_behind_a_real_server_turns_a_rule_off_within_a_second(
    switchboard: Server,
) -> None:
    """While it is off nothing is charged: once on again, it goes on where it was."""
    rules = f"""
        version: 1
        store: {switchboard.url}
        deadline: 10s
        rules: [{{name: login, by: global, limit: 5/day, algorithm: sliding_log}}]
    """
    with running(rules, workers=2) as app:
        limits = httpx.Limits(max_keepalive_connections=0)
        async with httpx.AsyncClient(base_url=app.url, limits=limits, timeout=30) as client:

            async def seen(times: int) -> tuple[set[int], set[str]]:
                answers = await asyncio.gather(*(client.get("/free") for _ in range(times)))
                return (
                    {answer.status_code for answer in answers},
                    {answer.headers["x-worker"] for answer in answers},
                )

            async def all_workers_say(status: int) -> None:
                """Returns when twenty requests, met by both of them, have this status alone."""
                statuses, workers = set[int](), set[str]()
                async with asyncio.timeout(10):
                    while len(workers) < 2 or statuses != {status}:
                        statuses, workers = await seen(20)

            await all_workers_say(429)
            switchboard.ask("SADD", "rl:switches", "login")
            await asyncio.sleep(1)
            assert (await seen(40))[0] == {200}
            switchboard.ask("SREM", "rl:switches", "login")
            await asyncio.sleep(1)
            await all_workers_say(429)
            assert (await seen(40))[0] == {429}


# --- whose it is ---------------------------------------------------------------------------------


async def test_what_runs_in_the_background_ends_with_its_limiter(kill_file: KillFile) -> None:
    limiter = RateLimiter([Rule("api", "5/day")])
    before = asyncio.all_tasks()
    await limiter.admit(scope("/"))
    (task,) = asyncio.all_tasks() - before
    assert task.get_name() == "ratelimit switches"
    await limiter.admit(scope("/"))
    assert asyncio.all_tasks() - before == {task}
    await limiter.aclose()
    assert task.cancelled()
    await limiter.admit(scope("/"))
    assert len(asyncio.all_tasks() - before) == 1
    await limiter.aclose()


async def test_what_runs_in_the_background_is_no_part_of_the_request_that_started_it() -> None:
    """Nor of its trace; and it starts again where somebody else has ended it."""
    request = ContextVar("request", default="none")
    seen: list[str] = []

    async def job() -> None:
        seen.append(request.get())
        await asyncio.Event().wait()

    background = Background("job", job)
    request.set("first")
    for times in (1, 2):
        before = asyncio.all_tasks()
        assert background.run()
        await asyncio.sleep(0)
        assert seen == ["none"] * times
        (task,) = asyncio.all_tasks() - before
        task.cancel()
        await asyncio.wait([task])
    await background.aclose()


def test_without_an_event_loop_nothing_starts() -> None:
    async def job() -> None:
        pass

    assert Background("job", job).run() is False


def test_every_event_loop_learns_for_itself(kill_file: KillFile) -> None:
    switches = Switches(MemoryStore())

    async def learn(name: str) -> None:
        kill_file.says(name)
        switches.run()
        await within_a_second(lambda: switches.off == {name})

    asyncio.run(learn("one"))
    asyncio.run(learn("two"))


def test_several_event_loops_at_once_learn_with_one_task_each(kill_file: KillFile) -> None:
    switches = Switches(MemoryStore())
    loops = [asyncio.new_event_loop() for _ in range(2)]

    async def run() -> int:
        switches.run()
        return len(asyncio.all_tasks()) - 1

    assert [loop.run_until_complete(run()) for _ in range(3) for loop in loops] == [1] * 6
    for loop in loops:
        loop.run_until_complete(switches.aclose())
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()


def test_an_event_loop_that_is_closed_by_hand_hears_nothing_of_it(
    kill_file: KillFile, caplog: pytest.LogCaptureFixture
) -> None:
    switches = Switches(MemoryStore())

    async def start() -> None:
        switches.run()
        await asyncio.sleep(0)

    loop = asyncio.new_event_loop()
    loop.run_until_complete(start())
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()
    del loop
    asyncio.run(start())  # which lets go of the one that is closed
    gc.collect()
    assert caplog.messages == []


# --- what it does --------------------------------------------------------------------------------


async def off(kill_file: KillFile, limiter: RateLimiter, names: str) -> None:
    kill_file.says(names)
    await limiter._switches.look()


async def test_a_rule_that_is_off_neither_limits_nor_charges_and_others_go_on(
    kill_file: KillFile,
) -> None:
    """Once it is on again, it goes on where it was."""
    limiter = RateLimiter([Rule("login", "5/day", path="/login"), Rule("api", "20/day")])
    assert await passed(limiter, "/login", 3) == 3
    await off(kill_file, limiter, "login")
    assert await passed(limiter, "/login", 9) == 9
    assert limiter.health()["off"] == ["login"]
    await off(kill_file, limiter, "")
    assert await passed(limiter, "/login", 9) == 2
    assert await passed(limiter, "/", 9) == 6
    await limiter.aclose()


async def test_a_star_turns_every_rule_off(kill_file: KillFile) -> None:
    limiter = RateLimiter([Rule("one", "1/day"), Rule("two", "2/day", by="global")])
    await off(kill_file, limiter, "*")
    assert await passed(limiter, "/", 9) == 9
    await off(kill_file, limiter, "one")
    assert await passed(limiter, "/", 9) == 2
    await limiter.aclose()


async def test_a_name_that_no_rule_has_changes_nothing(kill_file: KillFile) -> None:
    limiter = RateLimiter([Rule("login", "1/day")])
    await off(kill_file, limiter, "Login, log")
    assert await passed(limiter, "/", 3) == 1
    await limiter.aclose()


# --- shadow --------------------------------------------------------------------------------------


async def left(limiter: RateLimiter, rule: str, host: str = "192.0.2.1") -> int:
    """What is left of five a day, without a charge."""
    (look,) = await limiter.store.decide([Check(DAY, host, 0, rule)])
    return look.remaining


async def test_a_shadow_never_refuses_and_never_touches_the_counters_of_an_enforced_rule(
    make_store: MakeStore, clock: ManualClock
) -> None:
    """Not even of a rule with the same limit for the same client."""
    rules = [
        Rule("enforced", DAY, path="/enforced"),
        Rule("tried", DAY, mode="shadow"),
    ]
    limiter = RateLimiter(rules, store=make_store(clock))
    assert await passed(limiter, "/elsewhere", 9) == 9
    assert await left(limiter, "tried") == 0
    assert await left(limiter, "enforced") == 5
    assert await passed(limiter, "/enforced", 9) == 5
    assert await left(limiter, "enforced") == 0
    assert limiter.counts == {
        ("tried", "shadow-allowed"): 5,
        ("tried", "shadow-denied"): 13,
        ("enforced", "allowed"): 5,
        ("enforced", "denied"): 4,
    }
    await limiter.aclose()


async def test_a_shadow_is_charged_by_the_requests_that_pass_and_by_no_other(
    make_store: MakeStore, clock: ManualClock
) -> None:
    """So that it shows what it would do if it were enforced."""
    rules = [Rule("enforced", Limit("2/day")), Rule("tried", DAY, mode="shadow")]
    limiter = RateLimiter(rules, store=make_store(clock))
    assert await passed(limiter, "/", 9) == 2
    assert await left(limiter, "tried") == 3
    await limiter.aclose()
