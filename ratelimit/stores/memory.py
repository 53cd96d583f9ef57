"""The in-process store: the Lua that Redis runs, in a sandbox of its own, on Lua tables."""

import importlib
import logging
import multiprocessing
import os
import re
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from time import monotonic_ns
from typing import Any, Final, Literal, NamedTuple, Self

from ratelimit.decisions import (
    FIELDS,
    Action,
    Alike,
    Check,
    Decision,
    decision_of,
    decisions_of,
    identity_digest,
)
from ratelimit.limits import Limit
from ratelimit.stores.failures import AT_ONCE, MOST_FAILURES, as_text, from_text
from ratelimit.stores.script import SCRIPT
from ratelimit.words import whole

__all__ = ["MemoryStatistics", "MemoryStore", "live_stores"]

Runtime = Literal["luajit21", "lua51"]
Clock = Callable[[], int]

_GIVE_BACK: Final = int(Action.GIVE_BACK)
_LOG: Final = logging.getLogger("ratelimit")
_LONGEST_KEY: Final = 64  # characters kept as they are; a longer identity is kept as its digest
_LATEST_US: Final = 2**52  # the year 2112; what is added to it stays below 2^53
_SLACK_US: Final = 2_000_000  # that failures are kept beyond their counter's reset
_MOST_CHECKS: Final = 500  # per request; six numbers each have to fit Lua's stack
MOST_IN_RUN: Final = 200
MOST_OF_ONE: Final = 4
_MOST_LIMITS: Final = 10_000  # of kinds known to the Lua; dynamic limits may come without end


class MemoryStatistics(NamedTuple):
    """The present contents of a `MemoryStore`."""

    keys: int
    """Live counters, and expired ones not collected yet."""
    evictions: int
    """Counters given up while they were live, because the store was full."""
    lua_bytes: int
    """Memory that the Lua runtime counts as its own."""


class MemoryStore:
    """Counters in this process: nothing to install, nothing shared with other processes.

    ``max_keys`` (at least 1) bounds the counters held; about 300 bytes each. When it is reached,
    expired ones go first, then, of a few taken by chance, the one soonest to be as if never used,
    and an exhausted one only if all of those are. ``clock`` gives microseconds since the epoch as
    a whole number; without one it is the epoch at the start plus the monotonic clock. ``runtime``
    chooses the Lua; without one LuaJIT where lupa has it (not on macOS), else Lua 5.1.

    The Lua is built at the first decision, in the process that makes it. Safe to call from several
    threads; any event loop will do.
    """

    clock: Clock | None = None
    """Microseconds since the epoch, or None for the process's own; may be set at any time, also on
    the class, for every store that was given none."""

    is_shared: bool = True
    """Whether all workers would be meant to count here, were it not in each of them."""

    def __init__(
        self,
        max_keys: int = 1_000_000,
        clock: Clock | None = None,
        *,
        runtime: Runtime | None = None,
    ) -> None:
        whole("max_keys", max_keys, 1)
        require_clock(clock)
        self._max_keys = max_keys
        if clock is not None:
            self.clock = clock
        self._start_ns = time.time_ns() - monotonic_ns()
        self._runtime = runtime
        self._warned_full = False
        self._next_place = 0  # never used twice, whatever Lua a place was given in
        self._forget_lua()
        _STORES.add(self)

    def clear(self) -> None:
        """Forgets every counter, and gives the memory back."""
        self._forget_lua()

    def _forget_lua(self) -> None:
        """Goes back to before the first decision, which is also how a forked child starts."""
        self._lua: Any = None
        self._alike: Any = None
        self._run: Any = None
        self._kinds: dict[tuple[str, ...], tuple[int, bytes]] = {}
        """A kind's number and the start of its keys, by its counters (`Alike` has them so)."""
        self._kinds_hold = 0
        """Checks in all kinds."""
        self._lock = threading.Lock()

    async def decide(self, checks: Sequence[Check]) -> tuple[Decision, ...]:
        """One decision per check, all charged or none; see `Store.decide`."""
        if len(checks) == 1:
            limit, key, cost, rule, action, _, _ = checks[0]
            if action < _GIVE_BACK and limit.__class__ is Limit:
                return self.decide_alike(((limit,), (limit.digest, rule), cost, action), key)
        elif not checks:
            return ()
        elif len(checks) > _MOST_CHECKS:
            raise ValueError(f"{len(checks)} checks in one request; at most {_MOST_CHECKS}")
        clock = self.clock
        now_us = (self._start_ns + monotonic_ns()) // 1000 if clock is None else read_clock(clock)
        counters: list[str] = []
        arguments: list[int | bytes] = []
        for limit, key, cost, rule, action, at_us, level in checks:
            counters += limit.digest, rule
            arguments += _spelled(key), cost, action, at_us, level
        limits = [check[0] for check in checks]
        with self._lock:
            place, begin = self._kind(tuple(counters), limits)
            if begin:  # of a single check, to which the Lua adds nothing
                arguments[0] = begin + arguments[0]  # type: ignore[operator]
            reply = self._lua.each(now_us, place, *arguments)
        if len(reply) % FIELDS:
            self._warn_full()
        return decisions_of(limits, reply)

    def decide_alike(self, alike: Alike, key: str) -> tuple[Decision, ...]:
        """Decides as `decide` does, for checks of one key that are alike; at once, and cheaper.

        Not for give-backs.
        """
        limits, counters, cost, action = alike
        clock = self.clock
        now_us = (self._start_ns + monotonic_ns()) // 1000 if clock is None else read_clock(clock)
        decide = self._alike  # read before the kinds, which are of the same Lua or of a later one
        kind = self._kinds.get(counters)
        reply = None
        # Without a lock: lupa runs one call at a time.
        if kind is not None and decide is not None:
            reply = decide(now_us, kind[0], kind[1] + _spelled(key), cost, action)
        if reply is None:
            with self._lock:
                place, begin = self._kind(counters, limits)
                reply = self._alike(now_us, place, begin + _spelled(key), cost, action)
        if len(reply) == FIELDS:
            return (decision_of(limits[0], reply),)
        if len(reply) % FIELDS:
            self._warn_full()
        return decisions_of(limits, reply)

    def decide_run(self, requests: Sequence[tuple[int, Alike, str]]) -> Sequence[int]:
        """Decides requests in order, each at a time of its own; for logs, and not for give-backs.

        Each is its time in microseconds, its checks, and their key. Returns, of those alone that
        are denied or have to wait, the place, then for each check ``retry_after_us`` (0 where it
        passed, -1 for never) and ``delay_us``. At most `MOST_IN_RUN` at once, of `MOST_OF_ONE`
        checks: all their numbers are on Lua's stack.
        """
        given: list[int | bytes] = []
        with self._lock:
            if self._kinds_hold > _MOST_LIMITS - MOST_IN_RUN * MOST_OF_ONE:
                self._forget_kinds()  # not half way, when some were given already
            for at_us, (limits, counters, cost, action), key in requests:
                kind = self._kinds.get(counters) or self._kind(counters, limits)
                given += at_us, kind[0], kind[1] + _spelled(key), cost, action
            return (self._run(*given) if given else None) or ()

    def _kind(self, counters: tuple[str, ...], limits: Sequence[Limit]) -> tuple[int, bytes]:
        """A kind of request that the Lua knows; its number is never used for another."""
        if self._lua is None:
            self._build()
        kind = self._kinds.get(counters)
        if kind is None:
            self._kinds_hold += len(limits)
            if self._kinds_hold > _MOST_LIMITS:
                self._forget_kinds()
                self._kinds_hold = len(limits)
            self._next_place += 1
            begins: list[bytes | bool] = [*map(_begin, limits, counters[1::2])]
            # A key that was put together here is known to the Lua; one that it makes is garbage.
            first = b""
            if len(limits) == 1:
                first, begins = _begin(limits[0], counters[1]), [False]
            arguments: list[int | bytes] = []
            for limit, begin in zip(limits, begins, strict=True):
                arguments += begin, *limit.numbers
            self._lua.know(self._next_place, *arguments)
            kind = self._kinds[counters] = self._next_place, first
        return kind

    def _forget_kinds(self) -> None:
        self._kinds.clear()
        self._lua.forget_kinds()
        self._kinds_hold = 0

    async def reset(self, checks: Sequence[Check]) -> None:
        """Forgets the counters that these checks name; costs and actions play no part."""
        with self._lock:
            if self._lua is not None:
                for limit, key, _, rule, *_ in checks:
                    self._lua.forget(_begin(limit, rule) + _spelled(key))
                    self._lua.forget(_failures(limit, key, rule))

    async def add_failure(self, returned: Check, for_us: int) -> None:
        """Remembers the check that gives a failure back; see `Failures`."""
        limit, key, *_ = returned
        with self._lock:
            if self._lua is not None:
                self._lua.note(
                    self._now_us(), _failures(limit, key, returned.rule),
                    as_text(returned).encode(), MOST_FAILURES, for_us + _SLACK_US,
                )  # fmt: skip

    async def forget_failures(self, check: Check) -> None:
        """Gives back the failures of a counter, and forgets them; see `Failures`."""
        limit, key, *_ = check
        with self._lock:
            if self._lua is None:
                return
            found = self._lua.take(self._now_us(), _failures(limit, key, check.rule))
        texts = found if isinstance(found, tuple) else () if found is None else (found,)
        # The newest first: a sliding log is walked from its newest charge.
        newest = [from_text(check, text.decode()) for text in reversed(texts)]
        for first in range(0, len(newest), AT_ONCE):
            await self.decide(newest[first : first + AT_ONCE])

    def _now_us(self) -> int:
        clock = self.clock
        return (self._start_ns + monotonic_ns()) // 1000 if clock is None else read_clock(clock)

    async def aclose(self) -> None:
        """Gives the memory back; a later decision starts afresh."""
        self.clear()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def statistics(self) -> MemoryStatistics:
        """Keys held, keys evicted, and the Lua's memory in bytes."""
        with self._lock:
            if self._lua is None:
                return MemoryStatistics(0, 0, 0)
            keys, evictions, lua_bytes = self._lua.statistics()
        return MemoryStatistics(keys, evictions, int(lua_bytes))

    @property
    def lua(self) -> str:
        """The Lua that decides, as it names itself: "LuaJIT 2.1…" or "Lua 5.1"."""
        implementation: bytes = (
            _runtime_module(self._runtime)
            .LuaRuntime(encoding=None, register_eval=False, register_builtins=False)
            .lua_implementation
        )
        return implementation.decode()

    def _build(self) -> None:
        lua = _runtime_module(self._runtime).LuaRuntime(
            encoding=None,
            register_eval=False,
            register_builtins=False,
            unpack_returned_tuples=True,
        )
        shim = files("ratelimit.stores").joinpath("memory.lua").read_bytes()
        build = lua.execute(shim)
        api = build(SCRIPT.encode(), self._max_keys, int.from_bytes(os.urandom(4)))
        self._alike = api[b"alike"]
        self._run = api[b"run"]
        self._lua = _Lua(
            lua, api[b"each"], api[b"know"], api[b"forget_kinds"], api[b"forget"], api[b"note"],
            api[b"take"], api[b"statistics"],
        )  # fmt: skip
        if self.is_shared and several_workers():
            _LOG.warning(
                "memory-in-workers: this process looks like one of several workers, and each "
                "counts alone with memory://, so clients get each quota once per worker; use "
                "redis://, or one worker"
            )

    def _warn_full(self) -> None:
        if not self._warned_full:
            self._warned_full = True
            _LOG.warning(
                "memory-full: the in-process store holds max_keys=%d counters and now gives up "
                "live ones, those soonest to be as if never used first; raise max_keys, or use "
                "redis:// (said once; MemoryStore.statistics() counts them)",
                self._max_keys,
            )


def require_clock(clock: object) -> None:
    """Raises TypeError for what is neither a function nor None."""
    if clock is not None and not callable(clock):
        raise TypeError(
            f"the clock is a function that gives microseconds, not {type(clock).__name__}"
        )


def read_clock(clock: Clock) -> int:
    """The time by a clock of the caller's; raises for what are no microseconds since the epoch."""
    now_us = clock()
    if type(now_us) is not int:
        raise TypeError(f"the clock gives whole microseconds, not {type(now_us).__name__}")
    if not 0 <= now_us < _LATEST_US:
        raise ValueError(f"the clock gives {now_us}; microseconds since the epoch, below 2^52")
    return now_us


class _Lua(NamedTuple):
    """The runtime, and the functions of memory.lua but the one that is called most."""

    runtime: Any
    each: Any
    know: Any
    forget_kinds: Any
    forget: Any
    note: Any
    take: Any
    statistics: Any


def _begin(limit: Limit, rule: str) -> bytes:
    """Limit and rule without ambiguity: the first has a fixed length, the second tells its own."""
    return f"{limit.digest}{len(rule)}:{rule}".encode("utf-8", "surrogatepass")


def _failures(limit: Limit, key: str, rule: str) -> bytes:
    """The key of a counter's failures, which no counter has: an identity begins otherwise."""
    return _begin(limit, rule) + b"!" + _spelled(key)


def _spelled(key: str) -> bytes:
    """An identity at the end of a key; no short one can spell what a long one is kept as."""
    text = f"={key}" if len(key) <= _LONGEST_KEY else f"#{identity_digest(key)}"
    try:
        return text.encode()
    except UnicodeEncodeError:  # lone surrogates; asking for them at once takes twice as long
        return text.encode("utf-8", "surrogatepass")


_STORES: Final[weakref.WeakSet[MemoryStore]] = weakref.WeakSet()


def live_stores() -> list[MemoryStore]:
    """Every store of this process that somebody holds."""
    return list(_STORES)


def _forget_after_fork() -> None:
    for store in _STORES:
        store._forget_lua()  # noqa: SLF001  # this module's own


if hasattr(os, "register_at_fork"):  # where there is no fork, there is no such function
    os.register_at_fork(after_in_child=_forget_after_fork)


def _runtime_module(runtime: Runtime | None) -> Any:
    """The lupa module of a Lua; Lua 5.1 where LuaJIT is missing or has been taken over.

    Another package may have loaded a Lua with global symbols (fakeredis does); ``luajit21`` then
    runs that one, and says so.
    """
    if runtime is None or runtime == "luajit21":
        try:
            module = importlib.import_module("lupa.luajit21")
        except ImportError:
            if runtime:
                raise
        else:
            if b"LuaJIT" in module.LuaRuntime(encoding=None).lua_implementation:
                return module
            if runtime:
                raise ImportError("lupa.luajit21 is shadowed by another Lua in this process")
    elif runtime != "lua51":
        raise ValueError(f"runtime is {runtime!r}; it is 'luajit21' or 'lua51'")
    return importlib.import_module("lupa.lua51")


def several_workers() -> bool:
    """Whether this process looks like one of several workers of one server.

    On Linux it is asked of /proc: sibling processes started by the same command, whatever the
    server. Elsewhere only an environment that says so (WEB_CONCURRENCY) is believed.
    """
    try:
        parent = os.getppid()
        mine = _command(os.getpid())
        siblings = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        return sum(_command(int(pid)) == mine for pid in siblings) > 1 and (
            multiprocessing.parent_process() is not None or "SERVER_SOFTWARE" in os.environ
        )
    except OSError:
        return os.environ.get("WEB_CONCURRENCY", "1") not in ("", "0", "1")


def _command(pid: int) -> bytes:
    """A process's command line, without the digits that tell spawned workers apart."""
    return re.sub(rb"[0-9]+", b"", Path(f"/proc/{pid}/cmdline").read_bytes())
