"""The shared store: one script per round trip, run inside Redis by its own clock."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final, Self

from ratelimit.decisions import FIELDS, Check, Decision, decision_of, read_reply
from ratelimit.runtime.histogram import SECONDS, SIZES, Histogram
from ratelimit.stores.breaker import PROBE, Breaker
from ratelimit.stores.errors import StoreUnavailable, explain
from ratelimit.stores.memory import Clock, read_clock, require_clock
from ratelimit.stores.redis import failures
from ratelimit.stores.redis.connect import Target
from ratelimit.stores.redis.deny_cache import DenyCache
from ratelimit.stores.redis.names import Address, Remap

__all__ = ["RedisStore"]


DENIALS_FOR: Final = 600  # seconds in which denials are counted together
MOST_DENIED: Final = 1_000  # names kept of them

RENEWED_WITHIN: Final = 1.0  # seconds at least that a renewal may take

MOST_BREAKERS: Final = 1_000  # nodes of a cluster, which come and go

MOST_SWITCHES: Final = 1000
"""Rules that can be turned off one by one."""

MOST_RULES: Final = 10_000
"""Names of rules that are kept of what workers report, and of workers that are read."""

SERIALS_FOR: Final = 86_400
"""Seconds that the last addition of a worker is remembered, so that it is not added twice."""

# A field that holds no number spoils no other one. One that Redis has lost is raised to what was
# known of it.
_ADD_COUNTS: Final = """\
local serial, floors = tonumber(redis.call('GET', KEYS[2]) or '0'), 4 + 2 * tonumber(ARGV[3])
if serial < tonumber(ARGV[1]) then
  redis.call('SET', KEYS[2], ARGV[1])
  for place = 4, floors - 1, 2 do
    redis.pcall('HINCRBY', KEYS[1], ARGV[place], ARGV[place + 1])
  end
end
redis.call('PEXPIRE', KEYS[2], ARGV[2])
for place = floors, #ARGV, 2 do
  local has = tonumber(redis.call('HGET', KEYS[1], ARGV[place])) or 0
  local lacking = tonumber(ARGV[place + 1]) - has
  if lacking > 0 then
    redis.pcall('HINCRBY', KEYS[1], ARGV[place], string.format('%.0f', lacking))
  end
end
return redis.call('HGETALL', KEYS[1])
"""


class RedisStore:
    """Counters in Redis or Valkey, shared by all workers that name the same server.

    ``target`` is a URI, or a ``redis.asyncio.Redis`` client, whose connection settings are then
    used and which stays its owner's to close:

    - ``redis://``, ``rediss://`` (TLS) and ``unix://``, with redis-py's options in the query;
    - ``redis+sentinel://host:port,host:port/service``;
    - ``redis+cluster://host:port,host:port``, any of its nodes.

    ``clock`` gives microseconds since the epoch; without one the server's TIME counts, so that all
    workers share one clock. ``deadline`` (seconds, above 0) is how long a decision may take;
    ``prefix`` begins every key. ``deny_cache`` (seconds, 0 to 1, 0 for off) is how long a denial is
    repeated in process where the store would tell the same, at most until its `retry_after`.
    ``allow_oom`` lets the script write where the server is at maxmemory (Redis 7 and later): it
    then grows past it by the counters, about 150 bytes for each that is live. ``address_remap``, a
    mapping or a function of (host, port), gives for each address that nodes of a cluster or
    sentinels announce the one at which it can be reached from here.

    Opens at the first decision, in each event loop by itself. Raises StoreUnavailable from
    `decide`, `reset` and `ping`, and nothing of redis-py's.
    """

    def __init__(
        self,
        target: Any,
        clock: Clock | None = None,
        *,
        deadline: float = 0.05,
        prefix: str = "rl:",
        deny_cache: float = 1.0,
        allow_oom: bool = False,
        address_remap: Remap | None = None,
    ) -> None:
        self._deadline = _seconds("deadline", deadline)
        if deadline <= 0:
            raise ValueError(f"deadline is {deadline}; it is above 0 s, and at most an hour")
        if type(prefix) is not str or set(prefix) & set("{}"):
            raise ValueError(f"prefix is {prefix!r}; it is text without braces")
        require_clock(clock)
        if clock is not None:
            clock = partial(read_clock, clock)
        self._denials = DenyCache(round(_seconds("deny_cache", deny_cache) * 1_000_000), clock)
        self._caches = deny_cache > 0
        self._prefix = prefix
        self._target = Target(target, self._deadline, address_remap)
        self._clock = clock
        self._allow_oom = allow_oom
        self.trips = Histogram(SECONDS)
        """Seconds that each round trip of decisions took."""
        self.sizes = Histogram(SIZES)
        """Checks in each of them."""
        self.breaker = Breaker(None if self._target.is_cluster else self._probe_server)
        """Whether the server is asked; of a cluster, whether all of its nodes are."""
        self._breakers: dict[Address | None, Breaker] = {}
        self._ways: dict[asyncio.AbstractEventLoop, tuple[Any, AsyncGenerator[None, None]]] = {}
        self._apart: dict[asyncio.AbstractEventLoop, tuple[Any, AsyncGenerator[None, None]]] = {}
        """Those for renewals."""
        self._last: tuple[Any, Any] = (None, None)

    async def decide(self, checks: Sequence[Check]) -> tuple[Decision, ...]:
        """One decision per check, all charged or none, in one round trip; see `Store.decide`.

        In a cluster, checks of several identities are charged in parallel, and given back where
        one is denied. A check whose counter cannot be read is assumed (`Decision.degraded`), and
        the others are decided without it.
        """
        if not checks:
            return ()
        asked = tuple(checks)
        denials = self._denials
        if not self._caches:
            return await self._decide(asked)
        found = denials.find(asked) if denials.entries else None
        if found is not None:
            return found
        asked_at, changes = denials.now(), denials.changes
        loop = _running_loop()
        last, way = self._last
        if last is not loop:
            way = self._way()
        try:
            decisions: tuple[Decision, ...]
            if way.is_cluster:
                decisions = await way.decide(asked)
            else:  # as _decide has it, without a coroutine between
                numbers, start = await way.ask(asked)
                if start >= 0 and len(asked) == 1:  # as read_reply has it, without the lists
                    decisions = (decision_of(asked[0][0], numbers[start : start + FIELDS]),)
                else:
                    decisions = tuple(numbers) if start < 0 else read_reply(asked, numbers, start)
        except BaseException:
            denials.changed(asked)  # it may have been charged all the same
            raise
        if not denials.entries and len(asked) == 1 and decisions[0][1] and not asked[0][4]:
            return (
                decisions  # an allowed charge, by far the commonest, changes nothing that is kept
            )
        # A denial by checks of several slots may be over as soon as one of them is.
        if way.is_cluster and len({way.slot(check) for check in asked}) > 1:
            denials.changed(asked)
        else:
            denials.learn(asked, decisions, asked_at, changes)
        return decisions

    async def decide_past_breaker(self, checks: Sequence[Check]) -> tuple[Decision, ...]:
        """As `decide`, also while the breaker is open: for what was let through meanwhile."""
        try:
            return await self._decide(tuple(checks), past=True)
        finally:
            self._denials.changed(checks)

    async def _decide(
        self, asked: tuple[Check, ...], *, past: bool = False
    ) -> tuple[Decision, ...]:
        loop = _running_loop()
        last, way = self._last
        if last is not loop:
            way = self._way()
        if way.is_cluster:
            return await way.decide(asked, past=past)  # type: ignore[no-any-return]  # a Cluster
        numbers, start = await way.ask(asked, past=past)
        return tuple(numbers) if start < 0 else read_reply(asked, numbers, start)

    def send(self, checks: Sequence[Check]) -> asyncio.Future[Any]:
        """Sends checks of one identity at once, in this event loop, whoever waits for the answer.

        For what is given back and forced. Gives the future of what `decided` reads.
        """
        way = self._way()
        asked = tuple(checks)
        self._denials.changed(asked)
        future: asyncio.Future[Any] = way.ask(asked, way.slot(asked[0]) if way.is_cluster else 0)
        return future

    @staticmethod
    def decided(checks: Sequence[Check], answer: Any) -> tuple[Decision, ...]:
        """The decisions in the result of what `send` gave."""
        numbers, start = answer
        return tuple(numbers) if start < 0 else read_reply(checks, numbers, start)

    async def decide_apart(self, checks: Sequence[Check]) -> tuple[Decision, ...]:
        """As `decide`, over connections of its own, which no load delays and no breaker bars.

        For renewals, which may be late by a second.
        """
        way = self._way(apart=True)
        asked = tuple(checks)
        if way.is_cluster:
            return await way.decide(asked, past=True)  # type: ignore[no-any-return]  # a Cluster
        numbers, start = await way.ask(asked, past=True)
        return tuple(numbers) if start < 0 else read_reply(asked, numbers, start)

    async def _probe_server(self) -> None:
        await self._decide((PROBE,), past=True)

    def _breaker_of(self, address: Address | None) -> Breaker:
        """The breaker of a cluster's node; that of all who could tell the slots, for None."""
        breaker = self._breakers.get(address)
        if breaker is None:
            if len(self._breakers) >= MOST_BREAKERS:
                for known in [it for it, each in self._breakers.items() if not each.is_open()]:
                    del self._breakers[known]
            breaker = self._breakers[address] = Breaker(
                lambda: self._way().probe(address, PROBE), self.breaker
            )
        return breaker

    async def reset(self, checks: Sequence[Check]) -> None:
        """Forgets the counters that these checks name; costs and actions play no part."""
        way = self._way()
        try:
            for check in checks:
                key = way.key(check)
                # One after the other: both at once fail where a slot moves and one is missing.
                for each in (failures.beside(key), key):
                    reply = await way.command(each, "DEL", each)
                    if isinstance(reply, Exception):
                        raise explain(reply) from None
        finally:
            self._denials.changed(checks)

    async def add_failure(self, returned: Check, for_us: int) -> None:
        """Remembers the check that gives a failure back; see `Failures`."""
        await failures.add(self._way(), returned, for_us)

    async def forget_failures(self, check: Check) -> None:
        """Gives back the failures of a counter, and forgets them; see `Failures`."""
        try:
            await failures.forget(self._way(), check, self._clock)
        finally:
            self._denials.changed((check,))

    async def ping(self) -> None:
        """Returns if the server answers and can run the script; raises StoreUnavailable if not."""
        way = self._way()
        reply = await way.command(None, "SCRIPT", "LOAD", way.script)
        if isinstance(reply, Exception):
            raise explain(reply) from None

    async def heartbeat(self, worker: str, alive_for: float) -> int:
        """Makes a worker known for ``alive_for`` seconds; gives how many are known now.

        Workers keep their own clocks out of it: the server's counts, to the second.
        """
        return await self._sign_of_life("workers", (worker,), alive_for)

    async def workers(self) -> frozenset[str]:
        """The names of at most 10,000 workers that have made themselves known of late."""
        key = f"{self._prefix}workers"
        names = _list(await self._way().command(key, "ZRANGE", key, "0", str(MOST_RULES - 1)))
        return frozenset(name.decode("utf-8", "replace") for name in names)

    async def report_rules(self, names: Sequence[str], alive_for: float) -> None:
        """Makes names of rules known for ``alive_for`` seconds, by the server's clock.

        Of all workers together, at most 10,000 names are kept.
        """
        if await self._sign_of_life("rules", names, alive_for) > MOST_RULES:
            key = f"{self._prefix}rules"
            await self._way().command(key, "ZREMRANGEBYRANK", key, "0", str(-MOST_RULES - 1))

    async def rules(self) -> frozenset[str]:
        """The names of the rules that workers have reported; empty where none has of late.

        ``*`` among them says that there are more.
        """
        key = f"{self._prefix}rules"
        reply = await self._way().command(key, "ZRANGE", key, "0", str(MOST_RULES))
        names = _list(reply)
        if len(names) >= MOST_RULES:
            names.append(b"*")
        return frozenset(name.decode("utf-8", "replace") for name in names)

    async def _sign_of_life(self, what: str, names: Sequence[str], alive_for: float) -> int:
        """Keeps names for so many seconds; gives how many are kept."""
        key = f"{self._prefix}{what}"
        way = self._way()
        time = await way.command(key, "TIME")
        if isinstance(time, Exception):
            raise explain(time) from None
        now = int(time[0]) + int(time[1]) / 1_000_000
        count: Any = 0
        for command in (
            ("ZADD", key, *(word for name in names for word in (f"{now + alive_for:.3f}", name))),
            ("ZREMRANGEBYSCORE", key, "-inf", f"({now:.3f}"),
            ("PEXPIRE", key, str(round(alive_for * 1000) + 1000)),
            ("ZCARD", key),
        ):
            count = await way.command(key, *command)
            if isinstance(count, Exception):
                raise explain(count) from None
        return int(count)

    async def switches(self) -> frozenset[str]:
        """The names of the rules that are turned off for all workers; ``*`` stands for every rule.

        Raises StoreUnavailable, also where there are more than 1,000.
        """
        key = f"{self._prefix}switches"
        # The same as SMEMBERS, but for a set that grew without bounds, which nobody has to read.
        reply = await self._way().command(key, "SRANDMEMBER", key, str(MOST_SWITCHES + 1))
        names = _list(reply)
        if len(names) > MOST_SWITCHES:
            raise StoreUnavailable(
                f"{key} holds more than {MOST_SWITCHES} names; turn off * instead", kind="switches"
            )
        return frozenset(name.decode("utf-8", "replace") for name in names)

    async def switch(self, rule: str, *, off: bool) -> bool:
        """Turns a rule off for all workers, until it is turned on again; ``*`` is every rule.

        False where it was already. Raises StoreUnavailable where it may not have been turned.
        """
        key = f"{self._prefix}switches"
        reply = await self._way().command(key, "SADD" if off else "SREM", key, rule)
        if isinstance(reply, Exception):
            raise explain(reply) from None
        return bool(reply)

    async def note_denials(self, counts: Mapping[str, int]) -> None:
        """Adds to who was denied how often in these ten minutes, by ``rule identity``."""
        key = f"{self._prefix}denied:{int(time.time()) // DENIALS_FOR}"
        for command in (
            *(("ZINCRBY", key, str(count), name) for name, count in counts.items()),
            ("ZREMRANGEBYRANK", key, "0", str(-MOST_DENIED - 1)),
            ("EXPIRE", key, str(3 * DENIALS_FOR)),
        ):
            reply = await self._way().command(key, *command)
            if isinstance(reply, Exception):
                raise explain(reply) from None

    async def denials(self, count: int = 10) -> list[tuple[str, int]]:
        """``rule identity`` of those denied most in the last ten to twenty minutes, with how often.

        By the clocks of the workers, which need not agree to the second.
        """
        bucket = int(time.time()) // DENIALS_FOR
        total: Counter[str] = Counter()
        for each in (bucket - 1, bucket):
            key = f"{self._prefix}denied:{each}"
            reply = await self._way().command(
                key, "ZREVRANGE", key, "0", str(MOST_DENIED - 1), "WITHSCORES"
            )
            # RESP3 gives pairs, RESP2 one list.
            pairs = _list(reply)
            flat = [part for pair in pairs for part in (pair if isinstance(pair, list) else [pair])]
            for name, score in zip(flat[::2], flat[1::2], strict=True):
                total[name.decode("utf-8", "replace")] += int(float(score))
        return sorted(total.items(), key=lambda each: (-each[1], each[0]))[:count]

    async def add_counts(
        self,
        worker: str,
        serial: int,
        counts: Mapping[str, int],
        at_least: Mapping[str, int] | None = None,
    ) -> dict[str, int]:
        """Adds to what all workers have counted, and gives the totals, by name.

        ``serial`` numbers a worker's additions from 1: one that was added before is not added
        again, so that it may be sent again where its reply was lost. Totals below ``at_least`` are
        raised to it, afterwards and each time.
        """
        key = f"{self._prefix}{{metrics}}:totals"
        pairs = (*counts.items(), *(at_least or {}).items())
        reply = await self._way().command(
            key, "EVAL", _ADD_COUNTS, "2", key, f"{self._prefix}{{metrics}}:worker:{worker}",
            str(serial), str(SERIALS_FOR * 1000), str(len(counts)),
            *(word for name, count in pairs for word in (name, str(count))),
        )  # fmt: skip
        flat = _list(reply)
        return {
            name.decode("utf-8", "replace"): int(count)
            for name, count in zip(flat[::2], flat[1::2], strict=True)
            if count.isdigit()
        }

    def now_us(self) -> int:
        """Microseconds by the clock that denials are repeated by, which is this process's own."""
        return self._denials.now_us()

    @property
    def denials_repeated(self) -> int:
        """Requests that were denied in process, without a round trip."""
        return self._denials.hits

    @property
    def round_trip(self) -> float | None:
        """Seconds that a round trip takes at the moment; None before the first."""
        known = [way.round_trip for way, _ in self._ways.values() if way.round_trip is not None]
        return max(known, default=None)

    def servers(self) -> dict[str, str]:
        """The state of the breaker of each node of a cluster, by ``host:port``; else nothing."""
        return {
            f"{address[0]}:{address[1]}": breaker.state
            for address, breaker in self._breakers.items()
            if address is not None
        }

    async def aclose(self) -> None:
        """Closes the connections that this event loop has opened; they open again when needed."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # not asyncio's, where none was opened
            return
        for breaker in (self.breaker, *self._breakers.values()):
            await breaker.aclose()
        for ways in (self._apart, self._ways):
            if loop in ways:
                await ways[loop][1].aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def _way(self, *, apart: bool = False) -> Any:
        """This event loop's connections, or those for renewals: a `Link`, or a `Cluster`."""
        loop = _running_loop()
        ways = self._apart if apart else self._ways
        known = ways.get(loop)
        if known is None:
            for other in [each for each in ways if each.is_closed()]:
                gone = ways.pop(other, None)  # another thread may have been faster
                if gone is not None:
                    gone[0].let_go()
            way = self._make_way(loop, apart=apart)
            life = self._until_closed(loop, way, ways)
            # Begun here, so that the event loop knows it, and ends it when it is closed itself.
            with suppress(StopIteration):
                life.__anext__().send(None)
            known = ways[loop] = way, life
        if not apart:
            self._last = (loop, known[0])
        return known[0]

    async def _until_closed(
        self, loop: asyncio.AbstractEventLoop, way: Any, ways: dict[asyncio.AbstractEventLoop, Any]
    ) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            ways.pop(loop, None)
            self._last = (None, None)
            await way.close()

    def _make_way(self, loop: asyncio.AbstractEventLoop, *, apart: bool) -> Any:
        from ratelimit.stores.redis.cluster import Cluster
        from ratelimit.stores.redis.pipeline import Link
        from ratelimit.stores.redis.queue import Load
        from ratelimit.stores.redis.wire import Packer

        packer = Packer(self._prefix, self._clock, allow_oom=self._allow_oom)
        load = Load() if apart else Load(self.trips, self.sizes)
        deadline = max(self._deadline, RENEWED_WITHIN) if apart else self._deadline
        if self._target.is_cluster:
            breaker_of = _Unbroken.of_each() if apart else self._breaker_of
            return Cluster(loop, self._target, packer, deadline, breaker_of, load)
        breaker = _Unbroken() if apart else self.breaker
        return Link(loop, self._target.dialer(), packer, deadline, breaker, load)

    def _key(self, check: Check) -> str:
        return str(self._way().key(check))


class _Unbroken(Breaker):
    """A breaker that never opens, for what is sent again in a moment anyway."""

    @classmethod
    def of_each(cls) -> Callable[[Address | None], Breaker]:
        """Gives the same one for every server: it has no state but the last failure."""
        one = cls()
        return lambda _: one

    def failed(self, error: StoreUnavailable) -> None:
        self.note(error)


def _list(reply: object) -> list[Any]:
    """A reply that is a list; raises StoreUnavailable where it is not."""
    if isinstance(reply, Exception):
        raise explain(reply) from None
    if not isinstance(reply, list):
        raise StoreUnavailable("what answers at this address is not Redis", kind="not-redis")
    return reply


def _running_loop() -> asyncio.AbstractEventLoop:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise StoreUnavailable(
            "a RedisStore needs the event loop of asyncio or uvloop, and another one runs here",
            kind="not-asyncio",
        ) from None


def _seconds(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} is a number of seconds, not {type(value).__name__}")
    if not 0 <= value <= 3600:
        raise ValueError(f"{name} is {value}; it is at least 0 s, and at most an hour")
    return float(value)
