"""One open connection to a server: what is in flight over it, and what still lies in its socket.

redis-py makes and authenticates connections. Its streams are not used for reading, because they
tell nothing of what was not read yet: the transport is taken over from it, and read in callbacks.
"""

import asyncio
import math
import select
import warnings
from asyncio import Future
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from typing import Any, Final, Generic, Protocol, TypeVar

from ratelimit.decisions import Check
from ratelimit.stores.errors import StoreUnavailable, explain
from ratelimit.stores.redis.installed import is_not_supported
from ratelimit.stores.redis.names import Address
from ratelimit.stores.redis.wire import NOTHING, PUSHED, reader

__all__ = ["NO_SLOT", "Batch", "Line", "Owner", "Request", "Steps"]

MOST_UNPARSED: Final = 1 << 24  # bytes of one reply; the largest of ours has 30 kB

NO_SLOT: Final = -1
"""The slot of what is for one server, wherever slots are."""

T = TypeVar("T")


class Request:
    """The checks of one request on their way, and the future of whoever waits for their numbers."""

    # On the class what most requests leave as it is: one is made for each decision.
    asking = False
    """Whether the server is to be told that a redirection sent us (ASK)."""
    past = False
    """Whether it goes past an open breaker: a probe, or a charge of what was let through."""
    command = b""
    """A command of its own, instead of checks."""
    tries = 0
    owed = 0.0
    """Seconds of the server's time that it has waited before it was sent."""
    marks: tuple[float, float] | None = None
    """Readings of its link's two clocks at the first tick that found it in the queue."""

    def __init__(self, checks: Sequence[Check], future: Future[Any], slot: int = 0) -> None:
        self.checks = checks
        self.future = future
        self.slot = slot

    def fail(self, error: StoreUnavailable) -> None:
        """Tells who waits, if anybody still does; an exception of its own for each."""
        if not self.future.done():
            self.future.set_exception(StoreUnavailable(str(error), error.kind, error.scope))


class Batch:
    """Requests that went to the transport in one write: a script for each group of them."""

    __slots__ = (
        "counted", "due", "expected", "groups", "loads", "owed", "replies", "sent_at", "size",
    )  # fmt: skip

    def __init__(self, groups: list[list[Request]], size: int, expected: int) -> None:
        self.groups = groups
        self.size = size
        self.expected = expected
        self.replies: list[Any] = []
        self.sent_at = 0.0
        self.due = 0.0
        """The time at which the first of its members has waited as long as it may."""
        self.owed = 0.0
        """The most of the server's time that one of its members had waited before."""
        self.counted = False
        """Whether the breaker has heard of it."""
        self.loads = 0
        """Number of times that the script had been loaded over this connection when it was sent."""

    @property
    def waiting(self) -> int:
        """The number of its requests; at most as many as open a breaker matter."""
        return min(sum([len(group) for group in self.groups]), 5)

    def fail_late(self, now: float, deadline: float, error: StoreUnavailable) -> bool:
        """Tells the members that have waited for the server for a deadline; whether all have."""
        due = self.sent_at + deadline
        late = now >= due
        waiting = math.inf
        for group in self.groups:
            for request in group:
                if late or now >= due - request.owed:
                    request.fail(error)
                elif not request.future.done():
                    waiting = min(waiting, due - request.owed)
        self.due = waiting
        return waiting == math.inf


class Owner(Protocol):
    """The user of a line, who hears of what happens to it."""

    def answered(self, line: "Line", batch: Batch) -> None:
        """All replies to a batch have come."""

    def pump(self) -> None:
        """There may be room for more."""

    def tick(self) -> None:
        """All that lay in the socket was read."""

    def trust(self, line: "Line") -> None:
        """A doubted line has answered everything."""

    def lost(self, line: "Line", exc: BaseException | None) -> None:
        """The connection has ended."""


class Line(asyncio.Protocol):
    """One open connection: batches in flight in the order they were sent, replies in the same."""

    def __init__(self, link: "Owner", connection: Any) -> None:
        writer = getattr(connection, "_writer", None)
        stream = getattr(connection, "_reader", None)
        transport = getattr(writer, "transport", None)
        if transport is None or stream is None:
            raise StoreUnavailable(
                is_not_supported(f"its {type(connection).__name__} has no stream to take over"),
                kind="old",
            )
        if transport.is_closing() or stream.at_eof():
            raise StoreUnavailable("Redis closed the connection", kind="closed")
        self.batches: deque[Batch] = deque()
        self.heard = 0
        """Replies that have come."""
        self.heard_at = 0.0
        """The time at which the last batch was answered."""
        self.loads = 0
        """Number of times that the script was loaded over this connection."""
        self.refuses = False
        """Whether the transport holds bytes that the socket would not take."""
        self.retired = False
        """Whether nothing more is to be sent over it."""
        self.doubted = False
        """Whether it owed a reply for so long that others are sent over another connection."""
        self.tick_after_reading = False
        self.why: StoreUnavailable | None = None
        """The reason for which it is being closed."""
        self.address: Address | None = None
        self._link = link
        # They own the transport, and close it when they are collected.
        self._connection: Any = connection
        self._transport: Any = transport
        self._reader = reader()
        self._unparsed = 0
        sock = transport.get_extra_info("socket")
        self.indirect = transport.get_extra_info("ssl_object") is not None
        """Whether bytes go through TLS, where they may leave a little after they are written."""
        self._poll = select.poll() if hasattr(select, "poll") else None
        if self._poll is None or sock is None:
            raise StoreUnavailable("this event loop does not show its sockets", kind="old")
        self._fileno = sock.fileno()
        self._poll.register(self._fileno, select.POLLIN)
        with suppress(AttributeError):  # a client of another kind has none
            self.address = connection.host, connection.port
        transport.set_protocol(self)
        if not self.indirect:
            # Bytes leave when they are written, also on uvloop, and we hear when they cannot.
            transport.set_write_buffer_limits(high=0)

    def holds_bytes(self) -> bool:
        """Whether the socket has something that was not read yet, be it its end."""
        assert self._poll is not None  # noqa: S101  # __init__ saw to it
        return bool(self._poll.poll(0))

    def write(self, data: bytes) -> None:
        """Hands bytes to the transport."""
        self._transport.write(data)

    def would_take_bytes(self) -> bool:
        """Whether the socket has room for more."""
        poll = select.poll()
        poll.register(self._fileno, select.POLLOUT)
        return bool(poll.poll(0))

    def close(self, why: StoreUnavailable | None = None) -> None:
        """Closes the connection; what is in flight is failed by `connection_lost`."""
        self.retired = True
        self.why = self.why or why
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._unparsed += len(data)
        link = self._link
        try:
            self._reader.feed(data)
            gets, batches = self._reader.gets, self.batches
            while (reply := gets()) is not NOTHING:
                self._unparsed = 0
                if type(reply) is PUSHED:
                    continue
                self.heard += 1
                if not batches:
                    raise StoreUnavailable("Redis said something unasked", kind="not-redis")
                batch = batches[0]
                batch.replies.append(reply)
                if len(batch.replies) == batch.expected:
                    batches.popleft()
                    try:
                        link.answered(self, batch)
                    except BaseException:
                        batches.appendleft(batch)  # its members are still to be told
                        raise
            if self._unparsed > MOST_UNPARSED:
                raise StoreUnavailable(
                    "what answers at this address is not Redis", kind="not-redis"
                )
        except Exception as error:  # noqa: BLE001  # whatever a server sends ends the connection
            self.close(explain(error))
            return
        if not batches:
            if self.retired:
                self.close()
            elif self.doubted:
                link.trust(self)
        link.pump()
        if self.tick_after_reading:
            self.tick_after_reading = False
            link.tick()

    def eof_received(self) -> bool:
        return False  # closes

    def pause_writing(self) -> None:
        self.refuses = True

    def resume_writing(self) -> None:
        self.refuses = False
        self._link.pump()

    def connection_lost(self, exc: Exception | None) -> None:
        self.retired = True
        # redis-py would warn of a connection that was left open.
        self._connection._reader = self._connection._writer = None  # noqa: SLF001
        self._connection = None
        self._link.lost(self, exc)

    def drop(self) -> None:
        """Lets go of a connection whose event loop was closed before it."""
        with warnings.catch_warnings(), suppress(OSError):
            # No event loop can close it in order any more; what has no socket here was closed with
            # its loop, or is when it is collected.
            warnings.simplefilter("ignore", ResourceWarning)
            sock = getattr(self._transport, "_sock", None)
            if sock is not None:
                sock.close()
                self._transport._sock = None  # noqa: SLF001  # of which it would warn
            self._transport = None
            self._connection._reader = self._connection._writer = None  # noqa: SLF001
            self._connection = None

    @property
    def due(self) -> float:
        """The time at which the first of those in flight has waited as long as it may."""
        return min([batch.due for batch in self.batches])


class Steps(Generic[T]):
    """An awaitable that notes each time the coroutine in it is resumed."""

    def __init__(self, coroutine: Any) -> None:
        self._coroutine = coroutine
        self.taken = 0

    def __await__(self) -> Generator[Any, Any, T]:
        inner = self._coroutine.__await__()
        step: Callable[[], Any] = lambda: inner.send(None)  # noqa: E731
        while True:
            self.taken += 1
            try:
                waiting = step()
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]  # the coroutine's own
            try:
                value = yield waiting
            except BaseException as error:  # noqa: BLE001  # the coroutine's to handle
                step = lambda error=error: inner.throw(error)  # type: ignore[misc]  # noqa: E731
            else:
                step = lambda value=value: inner.send(value)  # type: ignore[misc]  # noqa: E731
