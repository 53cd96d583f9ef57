"""A pipelined connection to one server, the queue before it, and whose time it is that passes.

The laws of this module:

A charge is sent once. Whatever goes wrong after a script has left may have charged; it is reported
as `StoreUnavailable` and never tried again. Only an answer that proves that nothing ran (NOSCRIPT,
and a cluster's redirections) is followed by a second sending.

Our own lateness is never the server's. A reply is late when its socket was found empty at a moment
no earlier than the deadline after its batch went to the transport. Waiting in the queue is the
server's time only while everything in flight was owed (or no connection could be had) and nothing
came; all other waiting is ours, and fails nobody but beyond a bound of its own.

redis-py's client is not used for sending, because that retries by itself and takes a connection
from a pool for every command.
"""

import asyncio
import math
import time
from asyncio import AbstractEventLoop, Future
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import chain
from typing import Any, Final

from ratelimit.decisions import FIELDS, Check, Decision, assumed, read_reply
from ratelimit.stores.breaker import Breaker
from ratelimit.stores.errors import (
    StoreUnavailable,
    explain,
    foreign_key,
    no_reply,
    overloaded,
)
from ratelimit.stores.redis.connect import Dialer
from ratelimit.stores.redis.line import NO_SLOT, Batch, Line, Request, Steps
from ratelimit.stores.redis.names import PATIENCE
from ratelimit.stores.redis.queue import FEWEST_IN_FLIGHT, Load, Queue
from ratelimit.stores.redis.wire import (
    Packer,
    ReplyError,
    are_believable,
    not_redis,
    packed,
)

__all__ = ["Link", "Reply"]

MOST_IN_FLIGHT: Final = 32
ONE_MORE_EACH: Final = 0.002  # seconds that the oldest has been in flight: a longer round trip
LOOK_EVERY: Final = 1.0  # seconds between two questions who the master is, where it may change
MOST_QUEUED: Final = 20_000  # checks that wait in one event loop
LONGEST_QUEUED: Final = 1.0  # seconds at least, and 20 deadlines, that a request may wait for us

ASKING: Final = b"*1\r\n$6\r\nASKING\r\n"

Reply = tuple[Sequence[Any], int]
"""A script's numbers and where in them a request's begin; or its decisions, and -1."""


class Link:
    """The connection to one server in one event loop, and the queue before it.

    Requests of one turn of the event loop leave together where there are fewer than two batches in
    flight; where the last one was alone, the next leaves at once. Those that come meanwhile leave
    together in the next batch. The longer the oldest batch is in flight, the more may follow it, so
    that a long round trip makes nobody wait for a second one. A caller that is cancelled, or whose
    time is up, loses its answer, not the connection and not its neighbours' answers.

    ``reroute``, in a cluster, is given each request that provably did not run and the error that
    says so; it returns whether it has taken the request over.

    With Sentinel, the dialer tells who the master is. A master that was replaced on demand takes
    writes for some 8 s more, and then forgets them.
    """

    is_cluster = False

    def __init__(
        self,
        loop: AbstractEventLoop,
        dialer: Dialer,
        packer: Packer,
        deadline: float,
        breaker: Breaker,
        load: Load,
        reroute: Callable[[Request, StoreUnavailable | ReplyError], bool] | None = None,
    ) -> None:
        self._loop = loop
        # Not the loop's own: uvloop reads its clock once for all that runs in a turn.
        self._now = time.monotonic
        self._dialer = dialer
        self._packer = packer
        self._deadline = deadline
        self._patience = max(deadline, PATIENCE)
        self._interval = min(max(deadline / 10, 0.001), 0.005)
        self._longest_queued = max(LONGEST_QUEUED, 20 * deadline)
        self.breaker = breaker
        self._load = load
        self._reroute = reroute
        self._queue = Queue(load)
        self._in_flight = 0  # checks
        self._line: Line | None = None
        self._leaving: set[Line] = set()  # retired or doubted, with replies to come
        self._connecting: asyncio.Task[None] | None = None
        self._connect_within = self._patience
        self._steps: Steps[Any] | None = None
        self._is_silent = False  # whether the last connection ended without another word
        self._seen = (0, 0)  # replies heard and steps taken at the last tick
        self._flushing = False
        self._alone = True  # whether the last request in the queue had no other beside it
        self._looked_at = 0.0
        self._looking: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._armed = math.inf
        """The time at which the next tick is due."""
        self._ticked = 0.0
        self._closed = ""
        self.round_trip: float | None = None
        """Seconds that a round trip takes at the moment, smoothed; None before the first."""

    # --- what callers use ------------------------------------------------------------------------

    def ask(self, checks: Sequence[Check], slot: int = 0, *, past: bool = False) -> Future[Reply]:
        """The numbers of the Lua's reply for one request; to be awaited by its caller alone."""
        request = Request(checks, self._loop.create_future(), slot)
        if past:
            request.past = True
        self.send(request)
        return request.future

    def command(self, _: str | None, *arguments: str) -> Future[Any]:
        """One command of its own and its reply, within the deadline; not for charges.

        An error that the server replied is a result, a `ReplyError`; whatever else happens is
        raised as StoreUnavailable.
        """
        request = Request((), self._loop.create_future(), NO_SLOT)
        request.command = packed(arguments)
        request.past = True
        self.send(request)
        return request.future

    @property
    def script(self) -> str:
        """The text that the server is given."""
        return self._packer.script

    def key(self, check: Check) -> str:
        """The key that a check is counted under."""
        return self._packer.key(check)

    def send(self, request: Request) -> None:
        """Puts a request into the next batch, which leaves at once where it may be alone."""
        if self.breaker.state == "open" and not request.past and self.breaker.turns_away():
            request.fail(self.breaker.away())
            return
        if self._closed:
            request.fail(StoreUnavailable(self._closed, "closed", "own"))
            return
        line = self._line
        waiting = self._queue.requests
        size = len(request.checks)
        if line is not None:
            alone = self._alone and not waiting and not line.batches
            if alone and self._takes(line) and self._is_fit(line):
                if not request.command:
                    self._write(line, [[request]], size)
                else:
                    self._write_command(line, request)
                return
            if not self._flushing:
                # Those who ask in this turn of the event loop leave together.
                self._flushing = True
                self._loop.call_soon(self._flush)
        load = self._load
        if load.queued + size > MOST_QUEUED:
            request.fail(overloaded(f"{load.queued} checks wait already"))
            return
        if not waiting:
            self._ticked = now = self._now()
            self._seen = self.progress()
            self._arm(now + self._interval)
        self._queue.put(request, size)
        if self._line is None:
            self._connect()

    def _flush(self) -> None:
        self._flushing = False
        self.pump()

    # --- sending ---------------------------------------------------------------------------------

    def _takes(self, line: Line) -> bool:
        """Whether one more batch may be in flight."""
        if line.refuses or line.retired:
            return False
        batches = line.batches
        count = len(batches)
        if count < FEWEST_IN_FLIGHT:
            return True
        if count >= MOST_IN_FLIGHT:
            return False
        age = self._now() - batches[0].sent_at
        return count < FEWEST_IN_FLIGHT + age // ONE_MORE_EACH

    def _is_fit(self, line: Line) -> bool:
        """Whether a connection can be written to: an idle one may have been closed meanwhile."""
        if self._dialer.master is not None:
            self._look_for_master()
            if line.retired:
                return False
        if not line.batches and line.holds_bytes():
            # Its end, or something unasked: that is read first, and then it is known.
            line.tick_after_reading = True
            return False
        return True

    def pump(self) -> None:
        """Sends what is queued, as far as there is room for it."""
        line = self._line
        if line is None:
            if self._queue.requests:
                self._connect()
            return
        queue = self._queue
        while queue.requests and self._takes(line):
            if not self._is_fit(line):
                if self._line is None:
                    self._connect()
                return
            if queue.requests[0].command:
                request = queue.take()
                if not request.future.done():
                    self._write_command(line, request)
                continue
            groups, size = queue.take_batch(self._in_flight)
            if groups:
                self._alone = len(groups) == len(groups[0]) == 1
                self._write(line, groups, size)

    def _write(self, line: Line, groups: list[list[Request]], size: int) -> None:
        """Sends each group's script, all in one write."""
        pack = self._packer.pack
        try:
            if len(groups) == 1 and not groups[0][0].asking:
                batch = Batch(groups, size, 1)
                data = pack(groups[0])
            else:
                asking = [group[0].asking for group in groups]
                batch = Batch(groups, size, len(groups) + sum(asking))
                data = b"".join(
                    [(ASKING if group[0].asking else b"") + pack(group) for group in groups]
                )
        except Exception as problem:  # noqa: BLE001  # a clock of the caller's own, which raises
            for request in chain.from_iterable(groups):
                if not request.future.done():
                    request.future.set_exception(problem)
            return
        self._in_flight += size
        self._send_batch(line, batch, data)

    def _write_command(self, line: Line, request: Request) -> None:
        data = ASKING + request.command if request.asking else request.command
        self._send_batch(line, Batch([[request]], 0, 1 + request.asking), data)

    def _send_batch(self, line: Line, batch: Batch, data: bytes) -> None:
        batch.loads = line.loads
        if self._queue.owing or self._reroute is not None:
            batch.owed = max([request.owed for group in batch.groups for request in group])
        line.batches.append(batch)
        line.write(data)
        now = self._now()
        self._stamp(batch, now)
        if line.indirect:
            self._loop.call_soon(self._stamp_now, batch)
        if batch.due < self._armed:
            self._arm(batch.due)

    def _stamp(self, batch: Batch, now: float) -> None:
        """Starts the deadline of a batch, less what its members have waited for the server."""
        batch.sent_at = now
        batch.due = now + self._deadline - batch.owed

    def _stamp_now(self, batch: Batch) -> None:
        self._stamp(batch, self._now())

    # --- receiving -------------------------------------------------------------------------------

    def answered(self, line: Line, batch: Batch) -> None:
        """Deals with all replies to one batch."""
        self._in_flight -= batch.size
        line.heard_at = now = self._now()
        took = now - batch.sent_at
        known = self.round_trip
        # Our own lateness only ever adds to it.
        self.round_trip = took if known is None or took < known else known + (took - known) / 16
        first = batch.groups[0][0]
        if first.command:
            self._answer_command(first, batch.replies, took)
            return
        self._load.trips.observe(took)
        self._load.sizes.observe(batch.size)
        failure: StoreUnavailable | None = None
        replies = iter(batch.replies)
        again: list[list[Request]] = []
        for group in batch.groups:
            asked = next(replies) if group[0].asking else None
            reply = next(replies)
            # A script that was refused was, where ASKING was, refused for that.
            if isinstance(asked, ReplyError) and isinstance(reply, ReplyError):
                reply = asked
            if isinstance(reply, ReplyError):
                if reply.code == "NOSCRIPT" and group[0].tries < MOST_IN_FLIGHT:
                    again.append(group)
                else:
                    failure = self._refused(line, group, reply, took) or failure
            else:
                failure = self._deliver(line, group, reply) or failure
        if again:
            self._load_script(line, batch, again)
        if batch.counted:
            return
        if failure is None:
            self._load.why = ""
            self.breaker.succeeded()
        else:
            self.breaker.failed(failure)

    def _answer_command(self, request: Request, replies: Sequence[Any], took: float) -> None:
        asked, reply = replies[0], replies[-1]
        if isinstance(reply, ReplyError):
            # As of a script: what was refused was, where ASKING was, refused for that.
            reply = asked if isinstance(asked, ReplyError) else reply
            request.owed += min(took, self.round_trip or took)
            if self._reroute is not None and self._reroute(request, reply):
                return
        if not request.future.done():
            request.future.set_result(reply)

    def _load_script(self, line: Line, batch: Batch, groups: list[list[Request]]) -> None:
        """Sends the script, which is not known there (any more), and what has not run once more."""
        if batch.loads == line.loads:
            line.loads += 1
            load = Request((), self._loop.create_future(), NO_SLOT)
            load.command = packed(("SCRIPT", "LOAD", self._packer.script))
            load.future.add_done_callback(_heard)
            self._write_command(line, load)
        size = 0
        for group in groups:
            for request in group:
                request.tries += 1
                size += len(request.checks)
        self._write(line, groups, size)

    def _refused(
        self, line: Line, group: list[Request], reply: ReplyError, took: float
    ) -> StoreUnavailable | None:
        """Deals with a script that did not run; returns the failure, if it is the server's.

        What sending it ``took`` is the server's time, as far as a round trip usually takes as long.
        """
        error = explain(reply)
        self._load.why = str(error)
        if reply.code == "READONLY":
            self._retire(line)
        taken = True
        took = min(took, self.round_trip or took)
        for request in group:
            request.owed += took
            if self._reroute is None or not self._reroute(request, reply):
                request.fail(error)
                taken = False
        if reply.code == "CLUSTERDOWN":
            return error
        return error if not taken and error.scope == "server" else None

    def _deliver(self, line: Line, group: list[Request], reply: Any) -> StoreUnavailable | None:
        """Gives each member of a script its own numbers; returns the server's failure, if any."""
        failure: StoreUnavailable | None = None
        count = len(group[0].checks) if len(group) == 1 else sum([len(it.checks) for it in group])
        if (
            not isinstance(reply, list)
            or len(reply) != FIELDS * count
            or not (kinds := set(map(type, reply))) <= {int, bytes}
        ):
            failure = not_redis()
        elif len(kinds) > 1 or not are_believable(
            reply, lambda: [check for request in group for check in request.checks]
        ):
            return self._deliver_with_failures(line, group, reply)
        start = 0
        for request in group:
            future = request.future
            if not future.done():
                if failure is None:
                    future.set_result((reply, start))
                else:
                    request.fail(failure)
            start += FIELDS * len(request.checks)
        return failure

    def _deliver_with_failures(
        self, line: Line, group: list[Request], reply: list[Any]
    ) -> StoreUnavailable | None:
        """As `_deliver`, where some keys could not be read or written.

        Only their checks are assumed (`Decision.degraded`); a request of which none was decided
        fails as a whole.
        """
        failure: StoreUnavailable | None = None
        start = 0
        for request in group:
            decisions: list[Decision] = []
            errors: list[StoreUnavailable] = []
            for check in request.checks:
                numbers = reply[start : start + FIELDS]
                start += FIELDS
                if type(numbers[0]) is bytes and set(map(type, numbers[1:])) == {int}:
                    error = explain(numbers[0])
                elif set(map(type, numbers)) == {int} and are_believable(numbers, lambda: (check,)):  # noqa: B023  # called at once
                    decisions += read_reply((check,), numbers)
                    continue
                else:
                    error = foreign_key()
                errors.append(error)
                decisions += assumed((check,), allowed=True, problem=error)
            for each in errors:
                if each.scope == "server":
                    failure = each
                    if each.kind == "read-only":
                        self._retire(line)
            if request.future.done():
                continue
            if len(errors) == len(decisions):
                request.fail(errors[0])
            else:
                request.future.set_result((decisions, -1))
        return failure

    def lost(self, line: Line, exc: BaseException | None) -> None:
        """Deals with the end of a connection: what was in flight may have been charged."""
        self._leaving.discard(line)
        if self._line is line:
            self._line = None
        self._is_silent = self._is_silent or line.doubted
        why = line.why
        if self._closed:
            why = StoreUnavailable(self._closed, "closed", "own")
        elif why is None:
            why = explain(exc) if exc is not None else None
            if why is None or why.kind == "failed":
                why = StoreUnavailable("Redis closed the connection", kind="closed")
        counts = False
        unused = not line.heard and not line.batches
        for batch in line.batches:
            self._in_flight -= batch.size
            counts = counts or not (batch.counted or batch.groups[0][0].command)
            for group in batch.groups:
                for request in group:
                    request.fail(why)
        line.batches.clear()
        if counts and why.scope == "server":
            self.breaker.failed(why)
        if self._queue.requests and not self._closed:
            if unused:  # it is no better than one that could not be made
                self._unconnected(why)
            else:
                self._connect()

    # --- time ------------------------------------------------------------------------------------

    def _arm(self, when: float) -> None:
        """Makes sure that the next tick is no later than that."""
        if when < self._armed:
            if self._timer is not None:
                self._timer.cancel()
            self._armed = when
            self._timer = self._loop.call_later(max(0.0, when - self._now()), self.tick)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._armed = math.inf

    def tick(self) -> None:
        """Looks whose time is up, and tells them."""
        self._disarm()
        now = self._now()
        unread = False
        for line in (self._line, *self._leaving):
            if line is not None and line.batches and line.due <= now:
                if line.holds_bytes():
                    # What was sent may be among it: it is read first, on any event loop.
                    line.tick_after_reading = unread = True
                else:
                    self._fail_late(line, now)
        if self._queue.requests:
            self._pass_time(now)
            self.pump()
            if self._queue.requests:
                self._fail_queued()
                self._queue.mark()
        self._arm_next(now, unread=unread)

    def _arm_next(self, now: float, *, unread: bool) -> None:
        when = None
        if self._queue.requests or unread:
            when = now + self._interval
        for line in (self._line, *self._leaving):
            if line is not None and line.batches:
                due = max(line.due, now + 0.001)
                when = due if when is None else min(when, due)
        if when is not None:
            self._arm(when)

    def _fail_late(self, line: Line, now: float) -> None:
        """Tells the members of batches that are owed for too long, and the breaker.

        The socket was just found empty, so all that is in flight is owed.
        """
        deadline = self._deadline
        age = now - line.batches[0].sent_at
        if line.refuses and line.would_take_bytes():
            # Our own loop held back what the socket would have taken: it leaves first.
            for batch in line.batches:
                self._stamp(batch, now)
            return
        if self.round_trip is None or age > self.round_trip:
            self.round_trip = age
        error = no_reply(deadline, self._load.why, self.round_trip)
        for batch in line.batches:
            if batch.due <= now and batch.fail_late(now, deadline, error):
                # Its reply may come yet, and then tells nobody but the connection that it lives.
                batch.due = max(batch.sent_at + self._patience, now + self._interval)
                if not batch.counted:
                    batch.counted = True
                    if not batch.groups[0][0].command:
                        # One slow batch is one failure. A server that has said nothing at all for a
                        # deadline fails everybody who waits for it.
                        silent = now - line.heard_at >= deadline
                        for _ in range(batch.waiting if silent else 1):
                            self.breaker.failed(error)
        if age >= self._patience:
            line.close(error)
        elif self._line is line and any(batch.counted for batch in line.batches):
            # What is asked next goes over another connection, lest this one has died in silence.
            self._line, line.doubted = None, True
            self._leaving.add(line)
        if self.breaker.is_open():
            self._turn_away()

    def _pass_time(self, now: float) -> None:
        """Moves both clocks on: by the time in which the server surely owed, and by ours.

        Ours counts no more than a deadline at once, however long something has held the loop.
        """
        elapsed = now - self._ticked
        self._ticked = now
        queue = self._queue
        queue.own += min(elapsed, max(self._deadline, 2 * self._interval))
        before, self._seen = self._seen, self.progress()
        if self._seen != before:
            return
        line = self._line
        lines = [line] if line is not None else [it for it in self._leaving if it.doubted]
        if not lines and not self._is_silent:
            # Whether a socket that is being connected has something cannot be told: only a loop
            # that goes round without a step proves that it has nothing.
            queue.owing += min(elapsed, self._interval)
        elif line is None or line.refuses or not self._takes(line):
            if not any(each.holds_bytes() for each in lines):
                queue.owing += elapsed

    def progress(self) -> tuple[int, int]:
        """The replies that came over the open connections, and the steps towards another."""
        heard = sum([line.heard for line in self._leaving])
        if self._line is not None:
            heard += self._line.heard
        return heard, 0 if self._steps is None else self._steps.taken

    def _fail_queued(self) -> None:
        """Tells those in the queue whose time is up: the server's, or, far later, ours."""
        if self.breaker.is_open():
            self._turn_away()
        late: StoreUnavailable | None = None
        for request, owed in self._queue.take_overdue(self._deadline, self._longest_queued):
            if request.future.done():
                continue
            if not owed:
                request.fail(overloaded(f"it has waited for {self._longest_queued:g} s"))
                continue
            if late is None:
                late = no_reply(self._deadline, self._why_not_connected())
            request.fail(late)
            if not request.command:
                self.breaker.failed(late)

    def _why_not_connected(self) -> str:
        if self._load.why or self._connecting is None:
            return self._load.why
        return f"no connection to {self._dialer.trying} yet" if self._dialer.trying else ""

    def _turn_away(self) -> None:
        """Nobody waits for a server that is known to be away, but probes."""
        if not self.breaker.turns_away():
            return
        error = self.breaker.away()
        for request in self._queue.take_but_past():
            request.fail(error)

    # --- connecting ------------------------------------------------------------------------------

    def _retire(self, line: Line) -> None:
        """Sends nothing more over a connection; it closes when all is answered."""
        if self._line is line:
            self._line = None
        line.retired = True
        if line.batches:
            self._leaving.add(line)
        else:
            line.close()

    def trust(self, line: Line) -> None:
        """Uses a connection again that was doubted and has answered, where there is no other."""
        self._leaving.discard(line)
        line.doubted = False
        if self._line is not None:
            line.close()
            return
        self._line = line
        if self._connecting is not None:
            self._connecting.cancel()

    def _connect(self) -> None:
        # One that was cancelled before its first step has not cleared up after itself.
        if (self._connecting is None or self._connecting.done()) and not self._closed:
            self._connecting = self._loop.create_task(self._open())
            self._connecting._log_destroy_pending = False  # type: ignore[attr-defined]  # noqa: SLF001  # as in Background

    async def _open(self) -> None:
        """Opens a connection and sends what waits for it; or tells them why there is none."""
        problem: BaseException | None = None
        started = self._now()
        try:
            self._steps = steps = Steps[Any](self._dialer.open(self._connect_within))
            connection = await steps
            try:
                self._is_silent = False
                if self._line is None:
                    self._line = Line(self, connection)
                else:  # one that was doubted has answered
                    await connection.disconnect(nowait=True)
            except BaseException:
                await connection.disconnect(nowait=True)
                raise
            took = self._now() - started
            self._connect_within = min(self._patience, max(self._deadline, 0.2, 5 * took))
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            problem = StoreUnavailable("connecting was cancelled from within", kind="closed")
        except Exception as error:  # noqa: BLE001  # those who wait are told
            problem = error
            if explain(error).kind == "late":
                self._connect_within = min(self._patience, 2 * self._connect_within)
        finally:
            if self._connecting is asyncio.current_task():
                self._steps = None
                self._connecting = None
            if problem is None and self._queue.requests and self._line is None:
                self._connect()  # it was cancelled for a connection that has been lost since
        if problem is None:
            self._seen = self.progress()
            self.pump()
        else:
            self._unconnected(problem)

    def _unconnected(self, problem: BaseException) -> None:
        """Tells those who waited for a connection, of whom none was sent."""
        error = explain(problem)
        if error.scope != "server":
            error = StoreUnavailable(str(error), error.kind)  # without a connection, all is away
        self._load.why = str(error)
        counts = False
        for request in list(self._queue.take_all()):
            if request.future.done():
                continue
            counts = counts or not request.command
            if self._reroute is None or not self._reroute(request, error):
                request.fail(error)
        if counts:
            self.breaker.failed(error)

    def _look_for_master(self) -> None:
        """Begins to ask who the master is, if that was not asked of late."""
        now = self._now()
        if now >= self._looked_at + LOOK_EVERY and self._looking is None:
            self._looked_at = now
            self._looking = self._loop.create_task(self._find_master())

    async def _find_master(self) -> None:
        try:
            with suppress(Exception):  # where nobody can tell, it is who it was
                assert self._dialer.master is not None  # noqa: S101  # for the type checker
                master = await self._dialer.master()
                line = self._line
                if line is not None and line.address != master:
                    self._retire(line)
                    self.pump()
        finally:
            self._looking = None

    @property
    def is_idle(self) -> bool:
        """Whether nobody waits for it."""
        return not self._queue.requests and not self._in_flight

    async def close(self, why: str = "the store was closed") -> None:
        """Ends all that is under way, tells its callers why, and closes the connections."""
        self._closed = why
        self.let_go()
        tasks = [task for task in (self._connecting, self._looking) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for line in (self._line, *self._leaving):
            if line is not None:
                line.close()
        await self._dialer.aclose()
        for _ in range(2):
            await asyncio.sleep(0)  # in which the transports close their sockets

    def let_go(self) -> None:
        """Fails what is queued, and stops the timer; drops what is left of a closed loop."""
        if self._loop.is_closed():
            self._queue.requests.clear()
            for line in (self._line, *self._leaving):
                if line is not None:
                    line.drop()
            return
        self._disarm()
        for request in self._queue.take_all():
            request.fail(StoreUnavailable(self._closed or "the store was closed", "closed", "own"))


def _heard(future: Future[Any]) -> None:
    if not future.cancelled():
        future.exception()  # the scripts behind it tell what is wrong
