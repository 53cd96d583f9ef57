"""One event loop's way to one server: a queue, its round trips, and the deadline of each member.

The law of this module: a charge is sent once. Whatever goes wrong after a script has left may have
charged; it is reported as `StoreUnavailable` and never tried again. Only an answer that proves that
nothing ran (NOSCRIPT, and a cluster's redirections) is followed by a second sending.

redis-py makes and authenticates the connections and reads the replies. Its client is not used for
sending, because that retries by itself and takes a connection from a pool for every command.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any, Final

from redis.exceptions import NoScriptError, ReadOnlyError, ResponseError

from ratelimit.decisions import FIELDS, Action, Check, identity_digest
from ratelimit.scripts import OOM_SCRIPT, OOM_SHA1, SCRIPT, SHA1
from ratelimit.stores.failures import StoreUnavailable, explain, no_reply

__all__ = ["Deadlines", "Link", "Packer", "Reply", "Request", "close_idle", "exchange"]

LEAST_SHARE: Final = 32  # checks; measured beside 24 and 48 with benchmarks/redis.py
MOST_CHECKS: Final = 192  # in one script, so that none holds the server for about a millisecond
MOST_TRIPS: Final = 2  # under way at once: one is decided while the other's answers are read
MOST_KINDS: Final = 1_000  # of requests, spelt and kept; what is given back is of a kind of its own
LOOK_EVERY: Final = 1.0  # seconds between two questions who the master is, where it may change
PATIENCE: Final = 1.0  # seconds at least; a connection silent for longer is given up

_GIVE_BACK: Final = int(Action.GIVE_BACK)
_digest: Final = lru_cache(maxsize=65_536)(identity_digest)


Reply = tuple[Sequence[int], int]
"""A script's reply, and where in it a request's numbers begin."""


class Request:
    """The checks of one request on their way, and who waits for their numbers."""

    __slots__ = ("asking", "checks", "future", "slot", "tries")

    def __init__(self, checks: Sequence[Check], future: asyncio.Future[Reply], slot: int) -> None:
        self.checks = checks
        self.future = future
        self.slot = slot
        self.asking = False
        """Whether the server is to be told that a redirection sent us (ASK)."""
        self.tries = 0

    def fail(self, error: StoreUnavailable) -> None:
        """Tells who waits, if anybody still does; an exception of its own for each."""
        if not self.future.done():
            self.future.set_exception(StoreUnavailable(str(error), kind=error.kind))


class Deadlines:
    """Tells those whose time is up, with one timer for all of them.

    All wait equally long, so they fall due in the order in which they came.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, deadline: float) -> None:
        self._loop = loop
        self._waiting: deque[tuple[float, asyncio.Future[Any]]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self.deadline = deadline
        self.why = ""
        """What trips last complained of; told to those whose time is up."""

    def future(self) -> asyncio.Future[Any]:
        """A new future, which fails at the deadline if nothing else has happened to it."""
        future = self._loop.create_future()
        due = self._loop.time() + self.deadline
        waiting = self._waiting
        waiting.append((due, future))
        # Answers come in about the order of the questions: forget the oldest with the newest, or
        # a long deadline keeps as many as come within it.
        while waiting[0][1].done():
            waiting.popleft()
        if self._timer is None:
            self._timer = self._loop.call_at(due, self._expire)
        return future

    def _expire(self) -> None:
        now, waiting = self._loop.time(), self._waiting
        while waiting and (waiting[0][0] <= now or waiting[0][1].done()):
            _, future = waiting.popleft()
            if not future.done():
                future.set_exception(no_reply(self.deadline, self.why))
        self._timer = self._loop.call_at(waiting[0][0], self._expire) if waiting else None

    def close(self) -> None:
        """Tells all that still wait that the store was closed."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for _, future in self._waiting:
            if not future.done():
                future.set_exception(StoreUnavailable("the store was closed", kind="closed"))
        self._waiting.clear()


class Packer:
    """Requests to the bytes of one EVALSHA, as lua/decide.lua's header lists its arguments.

    What requests have in common, their kind, is spelt once and kept: the limits, rules, costs and
    actions of their checks, with all that stands around the identities in their keys.
    """

    def __init__(self, prefix: str, clock: Callable[[], int] | None, *, allow_oom: bool) -> None:
        self.script = OOM_SCRIPT if allow_oom else SCRIPT
        """The text that the server is given where it does not know it."""
        self._sha1 = OOM_SHA1 if allow_oom else SHA1
        self._prefix = prefix + "{"
        self._clock = clock
        self._kinds: dict[tuple[object, ...], tuple[list[str], str]] = {}

    def key(self, check: Check) -> str:
        """The identity's digest as a hash tag, so that its limits share a slot; limit and rule."""
        return f"{self._prefix}{_digest(check[1])}}}:{check[0].digest}:{check[3]}"

    def pack(self, requests: Iterable[Request]) -> bytes:
        """The command, in RESP; redis-py's own packer takes several times as long."""
        keys: list[str] = []
        key_count = 0
        kinds: dict[tuple[object, ...], tuple[list[str], str]] = {}
        described: list[str] = []
        places: list[str] = []
        for request in requests:
            checks = request.checks
            key_count += len(checks)
            alike = True
            limit, identity, cost, rule, action, at_us, level = checks[0]
            name: tuple[object, ...] = (limit.digest, rule, cost, action)
            if len(checks) > 1 or action == _GIVE_BACK:
                parts: list[object] = []
                for limit, key, cost, rule, action, at_us, level in checks:
                    parts += (limit.digest, rule, cost, action)
                    if action == _GIVE_BACK:
                        parts += (at_us, level)
                    if key != identity:
                        alike = False
                name = tuple(parts)
            kind = kinds.get(name)
            if kind is None:
                around, numbers = self._kinds.get(name) or self._spell(name, checks)
                described.append(numbers)
                kind = kinds[name] = (around, _argument(len(described)))
            around, place = kind
            places.append(place)
            if alike:
                keys.append(_digest(identity).join(around))
            else:
                for before, check in zip(around, checks, strict=False):
                    keys += (before, _digest(check[1]))
                keys.append(around[-1])
        now = _argument("" if self._clock is None else self._clock())
        arguments = "".join([now, _argument(len(described)), *described, *places])
        count = 3 + key_count + arguments.count("$")
        head = f"*{count}\r\n$7\r\nEVALSHA{_argument(self._sha1)}{_argument(key_count)}"
        text = "".join([head, *keys, arguments, "\r\n"])
        return text.encode("utf-8", "surrogatepass")

    def _spell(self, name: tuple[object, ...], checks: Sequence[Check]) -> tuple[list[str], str]:
        """What stands around the identities where a request's keys are arguments; its numbers."""
        around = [""]
        numbers = [len(checks)]
        for limit, _, cost, rule, action, at_us, level in checks:
            behind = f"}}:{limit.digest}:{rule}"
            length = len(self._prefix.encode()) + 16 + len(behind.encode("utf-8", "surrogatepass"))
            around[-1] += f"\r\n${length}\r\n{self._prefix}"
            around.append(behind)
            numbers += (*limit.numbers, cost, action, at_us, level)
        if len(self._kinds) >= MOST_KINDS:
            self._kinds.clear()
        kind = self._kinds[name] = (around, "".join(map(_argument, numbers)))
        return kind


def _argument(value: str | int) -> str:
    """An argument in ASCII as RESP has it; the line's end before it is that of the one before."""
    text = str(value)
    return f"\r\n${len(text)}\r\n{text}"


class Link:
    """The way to one server.

    A request that finds no trip under way leaves at once; those that come meanwhile leave together
    in the next. A trip is a task of its own: a caller that is cancelled, or whose time is up, loses
    its answer, not the connection and not its neighbours' answers.

    ``connect`` makes a connection of redis-py's, not yet open. ``reroute``, in a cluster, is given
    each request that provably did not run and the error that says so; it returns whether it has
    taken the request over.

    ``master``, with Sentinel, gives the address of the server that connections are to lead to. A
    master that was replaced on demand takes writes for some 8 s more, and then forgets them.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        connect: Callable[[], Any],
        packer: Packer,
        deadlines: Deadlines,
        reroute: Callable[[Request, BaseException], bool] | None = None,
        master: Callable[[], Awaitable[tuple[str, int]]] | None = None,
    ) -> None:
        self._loop = loop
        self._make = connect
        self._packer = packer
        self._deadlines = deadlines
        self._patience = max(deadlines.deadline, PATIENCE)
        self._reroute = reroute
        self._ask_master = master
        self._master: tuple[str, int] | None = None
        self._looked_at = 0.0
        self._queue: deque[Request] = deque()
        self._queued = 0  # checks in the queue, and checks under way
        self._flying = 0
        self._travelling = 0
        self._trips: set[asyncio.Task[None]] = set()
        self._idle: list[Any] = []
        self._closed = "the trip was cancelled"
        self.unreached = 0
        """Trips in a row that could not even be begun."""

    def ask(self, checks: Sequence[Check], slot: int) -> asyncio.Future[Reply]:
        """The numbers of the Lua's reply for one request; to be awaited by its caller alone."""
        future = self._deadlines.future()
        self.send(Request(checks, future, slot))
        return future

    def send(self, request: Request) -> None:
        """Puts a request into the next trip."""
        self._queue.append(request)
        self._queued += len(request.checks)
        if self._travelling < MOST_TRIPS:
            self._travelling += 1
            trip = self._loop.create_task(self._travel())
            self._trips.add(trip)
            trip.add_done_callback(self._trips.discard)

    async def _travel(self) -> None:
        """Takes what is queued to the server, trip after trip, until nothing is left."""
        try:
            while True:
                groups, size = self._next_groups()
                if not groups:
                    break
                self._flying += size
                try:
                    await self._trip(groups)
                except asyncio.CancelledError:
                    self._fail(groups, StoreUnavailable(self._closed, kind="closed"))
                    raise
                except Exception as error:  # noqa: BLE001  # each member is told; the task goes on
                    self._fail(groups, explain(error))
                finally:
                    self._flying -= size
        finally:
            # In the same step as the last look at the queue: what is put there next, before this
            # task counts as done, has to find that nobody travels for it.
            self._travelling -= 1

    def _next_groups(self) -> tuple[list[list[Request]], int]:
        """The oldest who still wait, up to what one trip may carry; a single one always.

        One group is one script: a script takes keys of one slot only. Their checks are counted.
        """
        groups: dict[tuple[int, bool], list[Request]] = {}
        group: list[Request] = []
        last = None
        queue = self._queue
        # A trip's share of all that is under way, so that one is decided while another's answers
        # are read; trips that are too small cost more than that saves.
        share = (self._queued + self._flying) // MOST_TRIPS
        room = most = min(MOST_CHECKS, max(LEAST_SHARE, share))
        while queue:
            request = queue[0]
            size = len(request.checks)
            if not request.future.done():
                if size > room and groups:
                    break
                room -= size
                if last is None or request.slot != last.slot or request.asking != last.asking:
                    group = groups.setdefault((request.slot, request.asking), [])
                    last = request
                group.append(request)
            queue.popleft()
            self._queued -= size
        return list(groups.values()), most - room

    async def _trip(self, groups: list[list[Request]]) -> None:
        try:
            connection = await self._connection()
        except Exception as error:
            self.unreached += 1
            if not self._redirect(groups, error):
                raise
            return
        self.unreached = 0
        try:
            replies = await self._exchange_groups(connection, groups)
            unknown = [group for group, reply in zip(groups, replies, strict=True)
                       if isinstance(reply, NoScriptError)]  # fmt: skip
            if unknown:
                # The script did not run: it is not known there (any more).
                loaded = await exchange(
                    connection, self._patience, "SCRIPT", "LOAD", self._packer.script
                )
                if isinstance(loaded, Exception):
                    raise loaded
                again = iter(await self._exchange_groups(connection, unknown))
                replies = [
                    next(again) if isinstance(reply, NoScriptError) else reply for reply in replies
                ]
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        if any(isinstance(reply, ReadOnlyError) for reply in replies):
            # A master that was demoted: its successor is found by connecting again.
            await connection.disconnect(nowait=True)
            await close_idle(self._idle)
        else:
            self._idle.append(connection)
        self._deadlines.why = ""
        for group, reply in zip(groups, replies, strict=True):
            if not isinstance(reply, Exception):
                _deliver(group, reply)
            elif not self._redirect([group], reply):
                self._fail([group], explain(reply))

    async def _exchange_groups(self, connection: Any, groups: list[list[Request]]) -> list[Any]:
        """Sends each group's script, all in one write, and reads a reply or an error for each."""
        pack = self._packer.pack
        command = b"".join(
            [
                (b"*1\r\n$6\r\nASKING\r\n" if group[0].asking else b"") + pack(group)
                for group in groups
            ]
        )
        async with asyncio.timeout(self._patience):
            await connection.send_packed_command(command, check_health=False)
            replies = []
            for group in groups:
                asked = await _read(connection) if group[0].asking else None
                reply = await _read(connection)
                # A script that was refused was, where ASKING was, refused for that.
                both = isinstance(asked, Exception) and isinstance(reply, Exception)
                replies.append(asked if both else reply)
            return replies

    def _redirect(self, groups: list[list[Request]], error: Exception) -> bool:
        """Hands requests that did not run to the cluster; whether it took them."""
        if self._reroute is None:
            return False
        self._deadlines.why = str(explain(error))
        taken = [self._reroute(request, error) for group in groups for request in group]
        return all(taken)

    def _fail(self, groups: list[list[Request]], error: StoreUnavailable) -> None:
        self._deadlines.why = str(error)
        for group in groups:
            for request in group:
                request.fail(error)

    async def _connection(self) -> Any:
        """A connection that is ready; what the server closed while it was idle is not."""
        if self._ask_master is not None:
            self._look_for_master(self._ask_master)
        while self._idle:
            connection = self._idle.pop()
            if (
                connection.is_connected
                and (self._master is None or self._master == (connection.host, connection.port))
                and not await connection.can_read()
            ):
                return connection
            await connection.disconnect(nowait=True)
        connection = self._make()
        async with asyncio.timeout(self._patience):
            await connection.connect()
        return connection

    def _look_for_master(self, ask: Callable[[], Awaitable[tuple[str, int]]]) -> None:
        """Begins to ask who the master is, if that was not asked of late."""
        now = self._loop.time()
        if now >= self._looked_at + LOOK_EVERY:
            self._looked_at = now
            look = self._loop.create_task(self._find_master(ask))
            self._trips.add(look)
            look.add_done_callback(self._trips.discard)

    async def _find_master(self, ask: Callable[[], Awaitable[tuple[str, int]]]) -> None:
        with suppress(Exception):  # where nobody can tell, it is who it was
            async with asyncio.timeout(self._patience):
                self._master = await ask()

    async def command(self, *arguments: str) -> Any:
        """One command of its own and its reply, within the deadline; not for charges.

        An error that the server replied is returned, and whatever else happens is raised as
        StoreUnavailable.
        """
        try:
            async with asyncio.timeout(self._deadlines.deadline):
                connection = await self._connection()
                try:
                    reply = await exchange(connection, self._patience, *arguments)
                except BaseException:
                    await connection.disconnect(nowait=True)
                    raise
        except TimeoutError:
            raise no_reply(self._deadlines.deadline, self._deadlines.why) from None
        except Exception as error:  # noqa: BLE001  # nothing of redis-py's goes out
            raise explain(error) from None
        self._idle.append(connection)
        return reply

    async def close(self, why: str = "the store was closed") -> None:
        """Ends the trips, tells their members why, and closes the connections."""
        self._closed = why
        for trip in tuple(self._trips):
            trip.cancel()
        await asyncio.gather(*self._trips, return_exceptions=True)
        await close_idle(self._idle)


def _deliver(group: list[Request], reply: Sequence[Any]) -> None:
    """Gives each member of a script its own numbers, or the error that it alone met.

    Raises StoreUnavailable for a reply that no script of ours gives.
    """
    expected = FIELDS * sum([len(request.checks) for request in group])
    if not isinstance(reply, list) or len(reply) != expected or None in reply:
        raise StoreUnavailable("what answers at this address is no Redis", kind="not-redis")
    start = 0
    for request in group:
        end = start + FIELDS * len(request.checks)
        future = request.future
        if not future.done():
            if isinstance(reply[start], int):
                future.set_result((reply, start))
            else:
                future.set_exception(explain(reply[start]))
        start = end


async def exchange(connection: Any, patience: float, *arguments: str) -> Any:
    """One command and its reply; an error that the server replied is returned, not raised."""
    encoded = [argument.encode("utf-8", "surrogatepass") for argument in arguments]
    packed = [b"$%d\r\n%b\r\n" % (len(each), each) for each in encoded]
    async with asyncio.timeout(patience):
        command = b"*%d\r\n%b" % (len(packed), b"".join(packed))
        await connection.send_packed_command(command, check_health=False)
        return await _read(connection)


async def _read(connection: Any) -> Any:
    try:
        return await connection.read_response(disable_decoding=True)
    except ResponseError as error:
        return error


async def close_idle(connections: list[Any]) -> None:
    """Closes connections and forgets them."""
    while connections:
        await connections.pop().disconnect()
