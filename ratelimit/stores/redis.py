"""The shared store: one script per round trip, run inside Redis by its own clock.

The law of this module: a charge is sent once. Whatever goes wrong after a script has left may have
charged; it is reported as `StoreUnavailable` and never tried again. Only an answer that proves that
nothing ran (NOSCRIPT) is followed by a second sending.

redis-py makes and authenticates the connections and reads the replies. Its client is not used for
sending, because that retries by itself and takes a connection from a pool for every command.
"""

import asyncio
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any, Final, Self

from ratelimit.decisions import FIELDS, Action, Check, Decision, identity_digest, read_reply
from ratelimit.limits import Limit
from ratelimit.scripts import SCRIPT, SHA1
from ratelimit.stores.failures import StoreUnavailable, explain, no_reply

__all__ = ["RedisStore"]

Clock = Callable[[], int]

MOST_CHECKS: Final = 128  # in one trip, so that no script holds the server for about a millisecond
MOST_TRIPS: Final = 2  # under way at once: one is decided while the other's answers are read
TRIP_TIMEOUT: Final = 1.0  # seconds; a connection that is silent for longer is given up

_digest: Final = lru_cache(maxsize=65_536)(identity_digest)


class RedisStore:
    """Counters in Redis or Valkey, shared by all workers that name the same server.

    ``target`` is a URI (``redis://``, ``rediss://``, ``unix://``) with redis-py's options in its
    query, or a ``redis.asyncio.Redis`` client, whose connection settings are then used and which
    stays its owner's to close. ``clock`` gives microseconds since the epoch; without one the
    server's TIME counts, so that all workers share one clock. ``deadline`` (seconds, above 0) is
    how long a decision may take; ``prefix`` begins every key.

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
    ) -> None:
        if isinstance(deadline, bool) or not isinstance(deadline, int | float):
            raise TypeError(f"deadline is a number of seconds, not {type(deadline).__name__}")
        if not 0 < deadline <= 3600:
            raise ValueError(f"deadline is {deadline}; it is above 0 s, and at most an hour")
        if type(prefix) is not str or set(prefix) & set("{}"):
            raise ValueError(f"prefix is {prefix!r}; it is text without braces")
        self._pool_of = _pool_maker(target, deadline)
        self._clock = clock
        self._deadline = float(deadline)
        self._prefix = prefix
        self._links: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Link] = (
            weakref.WeakKeyDictionary()
        )

    async def decide(self, checks: Sequence[Check]) -> tuple[Decision, ...]:
        """One decision per check, all charged or none, in one round trip; see `Store.decide`."""
        if not checks:
            return ()
        reply = await self._link().ask(checks)
        return read_reply(checks, reply)

    async def reset(self, checks: Sequence[Check]) -> None:
        """Forgets the counters that these checks name; costs and actions play no part."""
        if checks:
            await self._link().command("DEL", *{self._key(check) for check in checks})

    async def ping(self) -> None:
        """Returns if the server answers and can run the script; raises StoreUnavailable if not."""
        await self._link().command("SCRIPT", "LOAD", SCRIPT)

    async def aclose(self) -> None:
        """Closes the connections that this event loop has opened; they open again when needed."""
        link = self._links.pop(asyncio.get_running_loop(), None)
        if link is not None:
            await link.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def _link(self) -> "_Link":
        loop = asyncio.get_running_loop()
        link = self._links.get(loop)
        if link is None:
            link = self._links[loop] = _Link(loop, self._pool_of(), self._deadline, self._command)
        return link

    def _key(self, check: Check) -> str:
        """The identity as a hash tag, so that all its limits share a slot; then limit and rule."""
        limit, key, _, rule, *_ = check
        return f"{self._prefix}{{{_digest(key)}}}:{limit.digest}:{rule}"

    def _command(self, batch: Iterable[Sequence[Check]]) -> tuple[str | int, ...]:
        """The arguments of EVALSHA after the digest, as lua/decide.lua's header lists them."""
        keys: list[str] = []
        limits: dict[str, tuple[int, Limit]] = {}
        kinds: dict[tuple[str, int, Action, int, int], int] = {}
        numbers: list[int] = []
        places: list[int] = []
        for checks in batch:
            for check in checks:
                limit, _, cost, _, action, at_us, level = check
                keys.append(self._key(check))
                kind = (limit.digest, cost, action, at_us, level)
                place = kinds.get(kind)
                if place is None:
                    if limit.digest not in limits:
                        limits[limit.digest] = (len(limits) + 1, limit)
                    place = kinds[kind] = len(kinds) + 1
                    numbers += (limits[limit.digest][0], cost, int(action), at_us, level)
                places.append(place)
            places[-1] = -places[-1]
        known = [number for _, limit in limits.values() for number in limit.numbers]
        now_us = "" if self._clock is None else self._clock()
        return (
            len(keys), *keys, now_us, len(limits), *known, len(kinds), *numbers, *places,
        )  # fmt: skip


class _Waiting:
    """One request on its way: its checks, who waits for them, and until when."""

    __slots__ = ("checks", "expires", "future")

    def __init__(
        self, checks: Sequence[Check], future: asyncio.Future[Sequence[int]], expires: float
    ) -> None:
        self.checks = checks
        self.future = future
        self.expires = expires


class _Link:
    """One event loop's way to the server: a queue, its trips, and the deadline of each member.

    A request that finds no trip under way leaves at once; those that come meanwhile leave together
    in the next. A trip is a task of its own: a caller that is cancelled, or whose time is up, loses
    its answer, not the connection and not its neighbours' answers.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        pool: Any,
        deadline: float,
        command: Callable[[Iterable[Sequence[Check]]], tuple[str | int, ...]],
    ) -> None:
        self._loop = loop
        self._pool = pool
        self._deadline = deadline
        self._command = command
        self._queue: deque[_Waiting] = deque()
        self._waiting: deque[_Waiting] = deque()  # in order of expiry, answered ones among them
        self._timer: asyncio.TimerHandle | None = None
        self._trips: set[asyncio.Task[None]] = set()
        self._idle: list[Any] = []
        self._why = ""  # what the trips last complained of, to tell those whose time is up

    def ask(self, checks: Sequence[Check]) -> asyncio.Future[Sequence[int]]:
        """The numbers of the Lua's reply for one request; to be awaited by its caller alone."""
        future = self._loop.create_future()
        waiting = _Waiting(checks, future, self._loop.time() + self._deadline)
        self._queue.append(waiting)
        self._waiting.append(waiting)
        if self._timer is None:
            self._timer = self._loop.call_at(waiting.expires, self._expire)
        if len(self._trips) < MOST_TRIPS:
            trip = self._loop.create_task(self._travel())
            self._trips.add(trip)
            trip.add_done_callback(self._trips.discard)
        return future

    def _expire(self) -> None:
        """Tells those whose time is up; the timer is then set for the next who still waits."""
        now, waiting = self._loop.time(), self._waiting
        while waiting and (waiting[0].expires <= now or waiting[0].future.done()):
            late = waiting.popleft()
            if not late.future.done():
                late.future.set_exception(no_reply(self._deadline, self._why))
        self._timer = self._loop.call_at(waiting[0].expires, self._expire) if waiting else None

    async def _travel(self) -> None:
        """Takes what is queued to the server, batch after batch, until nothing is left."""
        while batch := self._next_batch():
            try:
                reply = await self._round_trip(batch)
            except asyncio.CancelledError:
                self._fail(batch, StoreUnavailable("the store was closed", kind="closed"))
                raise
            except Exception as error:  # noqa: BLE001  # each member is told; the task must go on
                self._fail(batch, explain(error))
            else:
                self._why = ""
                self._deliver(batch, reply)

    def _next_batch(self) -> list[_Waiting]:
        """The oldest who still wait, up to what one script may carry; a single one always."""
        batch: list[_Waiting] = []
        room = MOST_CHECKS
        while self._queue:
            if self._queue[0].future.done():
                self._queue.popleft()
                continue
            room -= len(self._queue[0].checks)
            if room < 0 and batch:
                break
            batch.append(self._queue.popleft())
        return batch

    async def _round_trip(self, batch: list[_Waiting]) -> Sequence[Any]:
        command = self._command([waiting.checks for waiting in batch])
        connection = await self._connect()
        try:
            reply = await _exchange(connection, "EVALSHA", SHA1, *command)
            if _is_noscript(reply):
                # The script did not run: it is not known there (any more).
                loaded = await _exchange(connection, "SCRIPT", "LOAD", SCRIPT)
                if isinstance(loaded, Exception):
                    raise loaded
                reply = await _exchange(connection, "EVALSHA", SHA1, *command)
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        self._idle.append(connection)
        if isinstance(reply, Exception):
            raise reply
        return reply  # type: ignore[no-any-return]  # redis-py is not typed here

    def _deliver(self, batch: list[_Waiting], reply: Sequence[Any]) -> None:
        start = 0
        for waiting in batch:
            end = start + FIELDS * len(waiting.checks)
            if not waiting.future.done():
                if isinstance(reply[start], int):
                    waiting.future.set_result(reply[start:end])
                else:
                    waiting.future.set_exception(explain(reply[start]))
            start = end

    def _fail(self, batch: list[_Waiting], error: StoreUnavailable) -> None:
        self._why = str(error)
        for waiting in batch:
            if not waiting.future.done():
                waiting.future.set_exception(StoreUnavailable(str(error), kind=error.kind))

    async def _connect(self) -> Any:
        """A connection that is ready; what the server closed while it was idle is not."""
        while self._idle:
            connection = self._idle.pop()
            if connection.is_connected and not await connection.can_read():
                return connection
            await connection.disconnect(nowait=True)
        connection = self._pool.make_connection()
        async with asyncio.timeout(TRIP_TIMEOUT):
            await connection.connect()
        return connection

    async def command(self, *arguments: str) -> None:
        """One command of its own, within the deadline; not for charges."""
        try:
            async with asyncio.timeout(self._deadline):
                connection = await self._connect()
                try:
                    reply = await _exchange(connection, *arguments)
                except BaseException:
                    await connection.disconnect(nowait=True)
                    raise
        except TimeoutError:
            raise no_reply(self._deadline, self._why) from None
        except Exception as error:  # noqa: BLE001  # nothing of redis-py's goes out
            raise explain(error) from None
        self._idle.append(connection)
        if isinstance(reply, Exception):
            raise explain(reply) from None

    async def close(self) -> None:
        """Ends the trips, tells who still waits, and closes the connections."""
        if self._timer is not None:
            self._timer.cancel()
        for trip in tuple(self._trips):
            trip.cancel()
        await asyncio.gather(*self._trips, return_exceptions=True)
        for waiting in self._waiting:
            if not waiting.future.done():
                waiting.future.set_exception(
                    StoreUnavailable("the store was closed", kind="closed")
                )
        for connection in self._idle:
            await connection.disconnect()
        self._idle.clear()


async def _exchange(connection: Any, *arguments: str | int) -> Any:
    """One command and its reply; an error that the server replied is returned, not raised."""
    from redis.exceptions import ResponseError

    async with asyncio.timeout(TRIP_TIMEOUT):
        await connection.send_packed_command(_pack(arguments), check_health=False)
        try:
            return await connection.read_response(disable_decoding=True)
        except ResponseError as error:
            return error


def _is_noscript(reply: object) -> bool:
    from redis.exceptions import NoScriptError

    return isinstance(reply, NoScriptError)


def _pack(arguments: Sequence[str | int]) -> bytes:
    """A command as RESP. redis-py's own packer takes several times as long for many arguments."""
    encoded = [str(argument).encode("utf-8", "surrogatepass") for argument in arguments]
    return b"*%d\r\n" % len(encoded) + b"".join(
        [b"$%d\r\n%b\r\n" % (len(each), each) for each in encoded]
    )


def _pool_maker(target: Any, deadline: float) -> Callable[[], Any]:
    """What makes a pool of connections for an event loop; only its connections are used."""
    try:
        from redis.asyncio import ConnectionPool
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff
        from redis.maint_notifications import MaintNotificationsConfig
    except ImportError:
        raise ImportError(
            "a RedisStore needs redis-py 8 or newer: pip install 'ratelimit-asgi[redis]'"
        ) from None

    if isinstance(target, str):
        options = {
            "socket_timeout": None,
            "socket_connect_timeout": max(deadline, TRIP_TIMEOUT),
            "retry": Retry(NoBackoff(), 0),
            "maint_notifications_config": MaintNotificationsConfig(enabled=False),
        }
        ConnectionPool.from_url(target, **options)  # a mistake in the URI is told here
        return lambda: ConnectionPool.from_url(target, **options)
    pool = getattr(target, "connection_pool", None)
    if pool is None:
        raise TypeError(
            f"a RedisStore takes a URI or a redis.asyncio client, not {type(target).__name__}"
        )
    settings = {**pool.connection_kwargs, "retry": Retry(NoBackoff(), 0)}
    return lambda: ConnectionPool(pool.connection_class, **settings)
