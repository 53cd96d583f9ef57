"""WebSockets whose messages are limited: between what a server receives and the application.

`receive` is what is limited. `send` only learns when a limit has closed the connection, since the
application does not know it yet and a server would raise at whatever it sends then.
"""

from collections.abc import Awaitable
from contextlib import suppress
from time import monotonic
from typing import Final, TypeVar

import anyio
import anyio.lowlevel
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from ratelimit.asgi.answer import ROUTE_KEY, SCOPE_KEY
from ratelimit.limiter.admission import Admission
from ratelimit.limiter.limiter import RateLimiter
from ratelimit.limiter.sockets.sockets import Excess, Socket

__all__ = ["LONGEST_PAUSE", "called_here", "charged", "limited", "limited_here"]

T = TypeVar("T")

LONGEST_PAUSE: Final = 10.0
"""Seconds that one message is held at most; where it would be more, the connection is closed."""

LONGEST_BEHIND: Final = 300.0
"""Seconds of pauses after which a connection is closed whose sender never waited itself meanwhile:
it may have left, and what a server has read of many tiny messages can last for days."""

_CAUGHT_UP: Final = 0.05
"""Seconds without a message that tell that all that was sent has come, and the sender is there."""

_DROPS_AT_ONCE: Final = 16
"""Messages dropped before others of the event loop have their turn."""

_PRIVATE: Final = 3000
"""Added to a code, it is one that applications may choose: 4008 for 1008."""

_END_WITHIN: Final = 1.0
"""Seconds for what is given back at the end, also of a connection that is cancelled."""


def limited(app: ASGIApp, limiter: RateLimiter, admission: Admission, since: int) -> ASGIApp:
    """The application as one WebSocket meets it that this limiter's rules have let in.

    Those are the rules of the charges from number ``since`` on.
    """
    socket = limiter.sockets.opened(admission, since)
    if socket is None:
        return app

    async def with_limits(scope: Scope, receive: Receive, send: Send) -> None:
        flow = Flow(socket, receive, send)
        try:
            await app(scope, flow.receive, flow.send)
        finally:
            await flow.end()

    return with_limits


def charged(scope: Scope) -> int:
    """The number of charges that were made for a connection until now."""
    admission = scope.get(SCOPE_KEY) or scope.get(ROUTE_KEY)
    return 0 if admission is None else len(admission.passed)


def limited_here(websocket: WebSocket, admission: Admission, since: int) -> "list[Flow]":
    """Limits an endpoint's own WebSocket by what its route's limits have charged for it.

    Those are the charges from number ``since`` on. Each flow ends by itself when the endpoint hears
    of the end, or closes.
    """
    flows: list[Flow] = []
    for limiter in {id(each[0]): each[0] for each in admission.passed[since:]}.values():
        socket = limiter.sockets.opened(admission, since)
        if socket is not None:
            flow = Flow(socket, websocket._receive, websocket._send)  # noqa: SLF001  # what its own methods are built on
            websocket._receive, websocket._send = flow.receive, flow.send  # noqa: SLF001
            flows.append(flow)
    return flows


async def called_here(
    websocket: WebSocket, admission: Admission, since: int, called: Awaitable[T]
) -> T:
    """The result of an endpoint whose WebSocket is limited as `limited_here` has it."""
    flows = limited_here(websocket, admission, since)
    try:
        return await called
    finally:
        for flow in flows:
            await flow.end()


class Flow:
    """One connection's messages on their way to the application."""

    __slots__ = ("_behind", "_gone", "_held", "_receive", "_send", "_socket")

    def __init__(self, socket: Socket, receive: Receive, send: Send) -> None:
        self._socket = socket
        self._receive = receive
        self._send = send
        self._held: Message | None = None
        """A message that was received and is not let through yet."""
        self._gone: Message | None = None
        """The end of the connection, as the application is told it, once a limit has closed it."""
        self._behind = 0.0
        """Seconds of pauses since a message was last waited for."""

    async def receive(self) -> Message:
        """The next message that the limits let through, or the end of the connection."""
        dropped = 0
        while self._gone is None:
            message, self._held = self._held, None
            if message is None:
                message = await (self._next() if self._behind else self._receive())
            if message["type"] != "websocket.receive":
                if message["type"] == "websocket.disconnect":
                    await self.end()
                return message
            excess = await self._excess(message)
            if excess is None:
                return message
            self._socket.refused(excess)
            if excess.on_excess != "drop":
                await self._close(excess)
                break
            dropped += 1
            if dropped % _DROPS_AT_ONCE == 0:  # of a queue that may never be empty
                await anyio.lowlevel.checkpoint()
        return dict(self._gone or {})

    async def _next(self) -> Message:
        """The next message of one that has paused."""
        asked_at = monotonic()
        try:
            return await self._receive()
        finally:
            if monotonic() - asked_at > _CAUGHT_UP:
                self._behind = 0.0

    async def _excess(self, message: Message) -> Excess | None:
        """The reason to refuse a message, once those who pause have paused for it."""
        waited = False
        try:
            while True:
                excess = await self._socket.admit(message, waited=waited)
                if excess is None or excess.on_excess != "pause":
                    return excess
                pause = excess.decision.retry_after or 0.0
                if pause > LONGEST_PAUSE or self._behind + pause > LONGEST_BEHIND:
                    return excess
                waited = True
                paused_at = monotonic()
                try:
                    await anyio.sleep(pause)
                finally:
                    self._behind += monotonic() - paused_at
        except BaseException:  # the application has stopped to listen, and may do it again
            self._held = message
            raise

    async def _close(self, excess: Excess) -> None:
        code, reason = _last_words(excess)
        self._gone = {"type": "websocket.disconnect", "code": code, "reason": reason}
        try:
            await self._send({"type": "websocket.close", "code": code, "reason": reason})
        except OSError:
            pass  # the client is gone already
        except Exception:  # noqa: BLE001  # of a server that sends private codes alone: daphne
            with suppress(Exception):
                own = code + _PRIVATE
                await self._send({"type": "websocket.close", "code": own, "reason": reason})
        finally:
            await self.end()

    def send(self, message: Message) -> Awaitable[None]:
        """Sends on, as long as no limit has closed the connection."""
        if self._gone is not None or message["type"] == "websocket.close":
            return self._send_last(message)
        return self._send(message)

    async def _send_last(self, message: Message) -> None:
        if self._gone is None:
            await self._send(message)
            await self.end()
        elif message["type"] != "websocket.close":
            # As ASGI has it of a client that is gone; frameworks take it for that.
            raise ConnectionAbortedError("a limit has closed this WebSocket")

    async def end(self) -> None:
        """Gives back what this connection has not used; may be called again."""
        with anyio.move_on_after(_END_WITHIN, shield=True):
            await self._socket.end()


def _last_words(excess: Excess) -> tuple[int, str]:
    """The code and the reason, of at most 123 bytes, with which a connection is closed."""
    if excess.is_unavailable:
        return 1013, "the limit cannot be decided at the moment; try again later"
    capacity = excess.lease.kind.limit.capacity
    if excess.decision.retry_after_us is None:
        return 1009, f"{excess.policy}: at most {capacity} at once"
    seconds = -(-excess.decision.retry_after_us // 1_000_000)
    return 1008, f"{excess.policy}: try again in {seconds} s"
