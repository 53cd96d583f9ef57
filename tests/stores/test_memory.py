"""The in-process store: what it keeps, what it gives up when full, and what its sandbox allows."""

import logging
import os
import threading
import time
import warnings
from collections.abc import Iterable, Sequence
from functools import partial
from importlib import import_module
from importlib.resources import files
from itertools import product
from random import Random
from typing import Any, Literal

import pytest

from ratelimit.decisions import Alike, Check, Decision, identity_digest
from ratelimit.limits import Algorithm, Limit
from ratelimit.stores import MemoryStore
from ratelimit.stores.redis import RedisStore
from ratelimit.testing import ManualClock

Runtime = Literal["luajit21", "lua51"]
RUNTIMES: tuple[Runtime, ...] = ("luajit21", "lua51")

MINUTELY = Limit("10/minute")


@pytest.fixture(params=RUNTIMES)
def runtime(request: pytest.FixtureRequest) -> Runtime:
    """Each Lua that runs the store."""
    chosen: Runtime = request.param
    return chosen


def decide(store: MemoryStore, *checks: Check) -> tuple[Decision, ...]:
    """One request without an event loop: deciding in process never waits."""
    try:
        store.decide(checks).send(None)
    except StopIteration as done:
        decisions: tuple[Decision, ...] = done.value
        return decisions
    raise RuntimeError("the store waited")


def counted(store: MemoryStore, limit: Limit, keys: Iterable[str]) -> set[str]:
    """Those of the keys that the store still counts something for."""
    return {key for key in keys if decide(store, Check(limit, key, 0))[0].reset_after_us}


def fill_and_empty(store: MemoryStore, clock: ManualClock, callers: int) -> str:
    """Each caller once, then nobody but one who looks; what it cost, as a sentence."""
    cpu_ns = time.thread_time_ns
    took_ns = []
    for caller in range(callers):
        check = Check(MINUTELY, f"caller-{caller}")
        start_ns = cpu_ns()
        decide(store, check)
        took_ns.append(cpu_ns() - start_ns)
    peak = store.statistics()
    assert (peak.keys, peak.evictions) == (callers, 0)
    took_ns.sort()
    assert took_ns[int(callers * 0.999)] < 1_000_000

    clock.advance(600)
    look = Check(MINUTELY, "someone else", 0)
    # Each decision looks at up to 16 expired keys.
    for _ in range(callers // 16 + 1):
        decide(store, look)
    assert store.statistics().keys == 0
    # Decisions on a known key make no garbage: the store itself brings Lua's collector round.
    further = 0
    while store.statistics().lua_bytes >= peak.lua_bytes / 4:
        assert further < callers, "the memory stays although nothing is kept"
        further += 1_000
        for _ in range(1_000):
            decide(store, look)
    return (
        f"{store.lua}: {callers} callers, {peak.lua_bytes / callers:.0f} bytes each, "
        f"median {took_ns[callers // 2] / 1e3:.1f} us, longest stall {took_ns[-1] / 1e6:.1f} ms "
        f"of CPU, memory back after {further} decisions more"
    )


def test_many_callers_neither_stall_the_store_nor_stay(
    clock: ManualClock, runtime: Runtime, capsys: pytest.CaptureFixture[str]
) -> None:
    """99.9 % of decisions take less than 1 ms of CPU; what has expired is collected as we go."""
    store = MemoryStore(max_keys=200_000, clock=clock, runtime=runtime)
    report = fill_and_empty(store, clock, 200_000)
    with capsys.disabled():
        print(f"\n  {report}", end=" ")  # noqa: T201  # a measurement that nobody sees is none


@pytest.mark.slow
def test_a_million_callers_neither_stall_the_store_nor_stay(
    clock: ManualClock, runtime: Runtime, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same for as many as the store holds unless told otherwise."""
    store = MemoryStore(clock=clock, runtime=runtime)
    report = fill_and_empty(store, clock, 1_000_000)
    with capsys.disabled():
        print(f"\n  {report}", end=" ")  # noqa: T201  # a measurement that nobody sees is none


def test_no_key_outlives_its_reset_by_more_than_a_few_seconds(
    clock: ManualClock, runtime: Runtime
) -> None:
    """Every key of every algorithm expires, also after a give-back, a debt or a broken clock."""
    store = MemoryStore(clock=clock, runtime=runtime)
    look = Check(MINUTELY, "someone else", 0)
    for algorithm in Algorithm:
        check = Check(Limit("10/minute", algorithm=algorithm), "k")
        charges = [
            check._replace(cost=4),
            check._replace(cost=30).forced(),
            check._replace(cost=10),
        ]
        for step in range(3):
            (decision,) = decide(store, charges[step])
            if step == 0:
                decide(store, check)
                (decision,) = decide(store, charges[0].given_back(decision))
            if step == 2:
                clock.advance(-1_000)
                (decision,) = decide(store, check)
                assert not decision.allowed
            assert store.statistics().keys == 1
            clock.advance(us=decision.reset_after_us - 1)
            decide(store, look)
            assert store.statistics().keys == 1, algorithm
            clock.advance(3)
            decide(store, look)
            assert store.statistics().keys == 0, algorithm


def test_a_full_store_collects_what_has_expired_before_it_gives_up_what_counts(
    clock: ManualClock, runtime: Runtime
) -> None:
    """As long as expired keys make room, no live counter goes."""
    store = MemoryStore(max_keys=1_000, clock=clock, runtime=runtime)
    hourly, secondly = Limit("10/hour"), Limit("10/second")
    live = [f"live-{place}" for place in range(500)]
    for key in live:
        decide(store, Check(hourly, key), Check(secondly, f"short-{key}"))
    assert store.statistics().keys == 1_000
    clock.advance(10)
    for place in range(100):
        decide(store, Check(hourly, f"new-{place}"))
    assert store.statistics().evictions == 0
    assert counted(store, hourly, live) == set(live)


def test_a_full_store_gives_up_first_what_is_soonest_as_if_never_used(
    clock: ManualClock, runtime: Runtime
) -> None:
    """Of keys with a minute and an hour to go, those of an hour stay (16 are sampled each time)."""
    store = MemoryStore(max_keys=1_000, clock=clock, runtime=runtime)
    minutely, hourly = (
        Limit(text, algorithm="token_bucket") for text in ("1000/minute", "1000/hour")
    )
    keys = [f"k{place}" for place in range(500)]
    for key in keys:
        decide(store, Check(minutely, key, 500), Check(hourly, key, 500))
    for place in range(300):
        decide(store, Check(Limit("10/day", algorithm="token_bucket"), f"stranger-{place}"))
    assert store.statistics() == (1_000, 300, store.statistics().lua_bytes)
    gone_hourly = 500 - len(counted(store, hourly, keys))
    gone_minutely = 500 - len(counted(store, minutely, keys))
    # The chance to see none of the minute's among 16 is at most 0.8^16 = 2.8 %, at the very end.
    assert gone_hourly <= 15
    assert gone_minutely >= 285


@pytest.mark.parametrize("algorithm", list(Algorithm))
def test_strangers_do_not_reset_a_client_that_is_out(
    clock: ManualClock, runtime: Runtime, algorithm: Algorithm
) -> None:
    """Ten times max_keys strangers, and the clients that had used up their quota are still out."""
    store = MemoryStore(max_keys=500, clock=clock, runtime=runtime)
    limit = Limit("10/minute", algorithm=algorithm)
    out = [f"out-{place}" for place in range(50)]
    for key in out:
        decide(store, Check(limit, key, 10))
    # Those that use up their quota last live as long as others, so only being out protects them.
    for place in range(5_000):
        assert decide(store, Check(limit, f"stranger-{place}"))[0].allowed
    assert store.statistics().evictions == 4_550
    for key in out:
        (decision,) = decide(store, Check(limit, key))
        assert (decision.allowed, decision.remaining) == (False, 0)


def test_a_full_store_warns_once_and_never_raises(
    clock: ManualClock, runtime: Runtime, caplog: pytest.LogCaptureFixture
) -> None:
    """Even a store of one key, all of whose clients are out; the warning says what to do."""
    store = MemoryStore(max_keys=1, clock=clock, runtime=runtime)
    with caplog.at_level(logging.WARNING, "ratelimit"):
        for place in range(20):
            assert decide(store, Check(MINUTELY, f"{place}", 10))[0].allowed
            two = decide(store, Check(MINUTELY, f"a{place}"), Check(MINUTELY, f"b{place}"))
            assert all(decision.allowed for decision in two)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 1
    assert messages[0].startswith("memory-full: the in-process store holds max_keys=1 counters")
    assert store.statistics().keys == 1
    assert store.statistics().evictions == 59


def test_what_a_request_gives_up_for_a_key_of_its_own_does_not_come_back_for_ever(
    clock: ManualClock, runtime: Runtime
) -> None:
    """A counter that makes room for another of the same request leaves no key without an end."""
    store = MemoryStore(max_keys=1, clock=clock, runtime=runtime)
    limit = Limit("10/minute", algorithm="fixed_window")
    decide(store, Check(limit, "old"))
    decide(store, Check(limit, "new"), Check(limit, "old"))
    assert store.statistics().keys == 1
    clock.advance(600)
    decide(store, Check(limit, "someone else", 0))
    assert store.statistics().keys == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
def test_a_forked_child_starts_empty_and_decides(clock: ManualClock, runtime: Runtime) -> None:
    """Even where another thread of the parent was deciding at the moment of the fork."""
    store = MemoryStore(clock=clock, runtime=runtime)
    check = Check(MINUTELY, "k", 4)
    assert decide(store, check)[0].remaining == 6
    with store._lock, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12 warns of threads; none decide
        child = os.fork()
        if child == 0:
            code = 3
            try:
                empty = store.statistics().keys == 0
                fresh = decide(store, check)[0].remaining == 6
                code = 0 if empty and fresh else 1
            finally:
                os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert decide(store, check)[0].remaining == 2


@pytest.mark.parametrize("algorithm", list(Algorithm))
def test_threads_share_one_exact_count(
    clock: ManualClock, runtime: Runtime, algorithm: Algorithm
) -> None:
    """Four threads of 2,000 decisions on one key admit exactly the quota."""
    store = MemoryStore(clock=clock, runtime=runtime)
    check = Check(Limit("3000/minute", algorithm=algorithm), "k")
    start = threading.Barrier(4)
    admitted = []

    def run() -> None:
        start.wait()
        admitted.append(sum(decide(store, check)[0].allowed for _ in range(2_000)))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(admitted) == 3_000
    assert len(admitted) == 4


LONG = "x" * 64
NAMES = (
    "", "a", "ab", "b", "A", " a", "a ", "\x00", "a\x00", "\x00a", "\x01", "\x01a", "\n", ":",
    "a:b", LONG, LONG + "x", LONG + "xx", LONG + "y", "x" * 10_000, "x" * 9_999 + "y",
    "\ud800", "\udfff", "\ud800" * 65, "\u00e9", "e\u0301", "\U0001f600" * 64, "\U0001f600" * 65,
)  # fmt: skip
"""Empty, alike but for a letter, with NUL, long, and no valid UTF-8."""


def all_apart(store: MemoryStore, names: Sequence[tuple[str, str]]) -> None:
    """Charges every (rule, key) in turn, each a different cost, and then reads them all back."""
    limit = Limit("100000/minute", algorithm="fixed_window")
    for cost, (rule, key) in enumerate(names, 1):
        decide(store, Check(limit, key, cost, rule))
    for cost, (rule, key) in enumerate(names, 1):
        (look,) = decide(store, Check(limit, key, 0, rule))
        assert limit.quota - look.remaining == cost, (rule[:70], key[:70])


def test_two_identities_never_share_a_counter(clock: ManualClock, runtime: Runtime) -> None:
    """Nor do two rules, whatever their names have in common, nor a rule and an identity."""
    store = MemoryStore(clock=clock, runtime=runtime)
    all_apart(store, list(product(NAMES, NAMES)))


def test_a_rule_may_be_named_with_any_text(clock: ManualClock, runtime: Runtime) -> None:
    """A NUL in a rule's name does not make it another rule's identity."""
    store = MemoryStore(clock=clock, runtime=runtime)
    all_apart(store, [("a", "b\x00c"), ("a\x00b", "c")])


def test_no_identity_can_pass_for_a_long_one(clock: ManualClock, runtime: Runtime) -> None:
    """Long identities are kept by their digest, and no text that a client sends is that."""
    store = MemoryStore(clock=clock, runtime=runtime)
    all_apart(
        store,
        [
            ("", LONG + "x"),
            *(("", f"{mark}{identity_digest(LONG + 'x')}") for mark in ("", "#", "=#")),
        ],
    )


def run_in_sandbox(runtime: Runtime, source: str) -> Any:
    """Runs a script as the store would, which builds its functions from what it returns."""
    lua = import_module(f"lupa.{runtime}").LuaRuntime(encoding=None, unpack_returned_tuples=True)
    build = lua.execute(files("ratelimit.stores").joinpath("memory.lua").read_bytes())
    return build(source.encode(), 10, 1)


def test_the_sandbox_runs_what_redis_would(runtime: Runtime) -> None:
    """Locals, the names that Redis has, and the commands of the shim."""
    assert run_in_sandbox(
        runtime,
        "local x = math.floor(1.5) + tonumber('2') + #string.rep('a', 3)\n"
        "redis.call('DEL', 'k')\nif KEYS then error('KEYS') end\nreturn function() return x end",
    )


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("return nothing", "nonexistent global variable 'nothing'"),
        ("x = 1", "must not create .*variable 'x'"),
        ("local function f() y = 1 end f()", "must not create .*variable 'y'"),
        ("KEYS2 = KEYS", "nonexistent global variable 'KEYS'|must not create .*'KEYS2'"),
        ("return redis.call('INCR', 'k')", "unknown command 'INCR'"),
        ("return redis.call('GET', 'k')", "unknown command 'GET'"),
        ("return redis.call('del', 'k')", "unknown command 'del'"),
        ("return (", "unexpected symbol near '<eof>'|'<eof>' expected|unexpected"),
        *(
            (f"return {name}", f"nonexistent global variable '{name}'")
            for name in (
                "os", "io", "require", "package", "debug", "print", "load", "loadstring", "dofile",
                "loadfile", "setfenv", "getfenv", "rawset", "rawget", "setmetatable", "python",
                "collectgarbage", "_G", "jit", "ffi", "bit", "cjson", "ARGV", "newproxy",
            )
        ),
    ],
)  # fmt: skip
def test_a_script_that_leaves_the_sandbox_raises(
    runtime: Runtime, source: str, message: str
) -> None:
    """A global read or written, a command that the shim has not: an error, as in Redis."""
    error = import_module(f"lupa.{runtime}").LuaError
    with pytest.raises(error, match=message):
        run_in_sandbox(runtime, source)


@pytest.mark.parametrize("now", [1.0, "1", None, True])
async def test_a_clock_that_gives_no_whole_number_is_a_type_error(now: Any) -> None:
    """Fractions of a microsecond would be lost on the way, and not the same way everywhere."""
    store = MemoryStore(clock=lambda: now)
    with pytest.raises(TypeError) as refusal:
        await store.decide([Check(MINUTELY, "k")])
    name = type(now).__name__
    assert str(refusal.value) == f"the clock gives whole microseconds, not {name}"


@pytest.mark.parametrize("store", [MemoryStore, partial(RedisStore, "redis://localhost")])
def test_a_clock_that_is_no_function_is_refused_at_once(store: Any) -> None:
    for clock in (0, "now"):
        with pytest.raises(TypeError, match=r"^the clock is a function that gives microseconds, "):
            store(clock=clock)


async def test_without_a_clock_the_epoch_goes_on_monotonically() -> None:
    """The store's own clock is near the system's, and an immediate second check is not earlier."""
    store = MemoryStore()
    (first,) = await store.decide([Check(MINUTELY, "k")])
    (second,) = await store.decide([Check(MINUTELY, "k")])
    assert abs(first.at_us - time.time_ns() // 1_000) < 60_000_000
    assert second.at_us >= first.at_us - first.at_us % MINUTELY.tick_us


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"limit": "10/minute"}, TypeError, 'limit is a Limit("10/minute"), not str'),
        ({"limit": None}, TypeError, 'limit is a Limit("10/minute"), not NoneType'),
        ({"key": b"k"}, TypeError, "key is text, not bytes"),
        ({"key": None}, TypeError, "key is text, not NoneType"),
        ({"rule": 1}, TypeError, "rule is text, not int"),
        ({"cost": 1.0}, TypeError, "cost is a whole number, not float"),
        ({"cost": "1"}, TypeError, "cost is a whole number, not str"),
        ({"cost": True}, TypeError, "cost is a whole number, not bool"),
        ({"cost": -1}, ValueError, "cost is -1; it is at least 0 and at most 2^42"),
        (
            {"cost": 2**42 + 1},
            ValueError,
            "cost is 4398046511105; it is at least 0 and at most 2^42",
        ),
    ],
)
def test_a_check_of_something_else_is_refused_in_one_sentence(
    arguments: dict[str, Any], kind: type[Exception], message: str
) -> None:
    """The sentence names the argument, what it is and what came."""
    with pytest.raises(kind) as refusal:
        Check(**{"limit": MINUTELY, "key": "k", **arguments})
    assert str(refusal.value) == message


def test_a_store_of_impossible_size_or_runtime_is_refused() -> None:
    """max_keys is a whole number of at least 1, and there are two runtimes."""
    for wrong, kind, message in (
        (0, ValueError, "max_keys is 0; it is at least 1"),
        (1.5, TypeError, "max_keys is a whole number, not float"),
        (True, TypeError, "max_keys is a whole number, not bool"),
    ):
        with pytest.raises(kind) as refusal:
            MemoryStore(max_keys=wrong)  # type: ignore[arg-type]
        assert str(refusal.value) == message
    store = MemoryStore(runtime="lua54")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^runtime is 'lua54'; it is 'luajit21' or 'lua51'$"):
        decide(store, Check(MINUTELY, "k"))


def test_a_request_of_too_many_checks_is_refused(clock: ManualClock, runtime: Runtime) -> None:
    """500 checks are decided, 501 are not, and nothing is charged."""
    store = MemoryStore(clock=clock, runtime=runtime)
    limit = Limit("500/minute")
    checks = [Check(limit, "k")] * 500
    with pytest.raises(ValueError, match=r"^501 checks in one request; at most 500$"):
        decide(store, *checks, checks[0])
    decisions = decide(store, *checks)
    assert [decision.remaining for decision in decisions] == list(range(499, -1, -1))


async def test_a_closed_store_starts_afresh(clock: ManualClock, runtime: Runtime) -> None:
    """It holds no memory of Lua before its first decision, nor after it was closed."""
    async with MemoryStore(clock=clock, runtime=runtime) as store:
        assert store.statistics() == (0, 0, 0)
        await store.decide([Check(MINUTELY, "k", 10)])
        assert store.statistics().keys == 1
        assert store.statistics().lua_bytes > 10_000
    assert store.statistics() == (0, 0, 0)
    (decision,) = await store.decide([Check(MINUTELY, "k", 10)])
    assert decision.allowed


def test_limits_without_end_leave_nothing_behind(clock: ManualClock, runtime: Runtime) -> None:
    """25,000 limits made on the fly: the Lua forgets old ones, and counts none of them wrongly."""
    store = MemoryStore(clock=clock, runtime=runtime)
    first = Limit("10/second", algorithm="fixed_window")
    decide(store, Check(first, "k", 7))
    for quota in range(1, 25_000):
        limit = Limit.of(quota, 60_000_000 + quota, algorithm="fixed_window")
        assert decide(store, Check(limit, "k"))[0].remaining == quota - 1
    assert decide(store, Check(first, "k", 0))[0].remaining == 3
    assert len(store._kinds) <= 10_000


def test_the_store_names_its_lua(runtime: Runtime) -> None:
    """LuaJIT where lupa has it, else Lua 5.1."""
    expected = {"luajit21": "LuaJIT 2.1", "lua51": "Lua 5.1"}[runtime]
    assert MemoryStore(runtime=runtime).lua.startswith(expected)


@pytest.mark.parametrize("algorithm", Algorithm)
def test_a_run_decides_as_one_request_after_the_other(
    algorithm: Algorithm, runtime: Runtime
) -> None:
    clock = ManualClock()
    alone, in_runs = (MemoryStore(clock=clock, runtime=runtime) for _ in range(2))
    one = Limit("5/minute", algorithm=algorithm)
    two = (one, Limit("9/hour", algorithm=algorithm))
    chance = Random(3)
    asked: list[tuple[int, Alike, str]] = []
    told: list[int] = []
    at_us = clock()
    for number in range(1_000):
        at_us += chance.randrange(4_000_000)
        limits = two if chance.random() < 0.3 else (one,)
        counters = tuple(text for limit in limits for text in (limit.digest, str(len(limits))))
        alike = (limits, counters, chance.choice([1, 1, 2, 6]), 0)
        key = chance.choice(["a", "b", "\udcff", "x" * 100])
        asked.append((at_us, alike, key))
        clock.set_us(at_us)
        decisions = alone.decide_alike(alike, key)
        if not all(each.allowed and not each.delay_us for each in decisions):
            told.append(number % 200)
            for each in decisions:
                after = -1 if each.retry_after_us is None else each.retry_after_us
                told += after, each.delay_us
    found: list[int] = []
    for begin in range(0, 1_000, 200):
        found += in_runs.decide_run(asked[begin : begin + 200])
    assert found == told
    assert -1 in told
    assert in_runs.decide_run([]) == ()


def test_a_run_of_many_kinds_knows_all_of_them(runtime: Runtime) -> None:
    store = MemoryStore(runtime=runtime)
    for begin in range(0, 12_000, 200):
        limits = [(Limit.of(number + 1, 1_000_000),) for number in range(begin, begin + 200)]
        run = [(1_000, (each, (each[0].digest, "r"), 1, 0), "a") for each in limits]
        assert list(store.decide_run(run)) == []
        assert len(store.decide_run(run)) == (3 if begin == 0 else 0)  # the quota of 1 is used up
