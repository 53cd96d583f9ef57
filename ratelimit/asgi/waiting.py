"""A request that waits for its turn, and the client that may leave meanwhile."""

import asyncio
from typing import Final

import anyio
from starlette.types import Message, Receive

from ratelimit.limiter.admission import Admission
from ratelimit.limiter.queueing.waiting import begin, give_up, go_behind
from ratelimit.responses.problems import closing, left

__all__ = ["take_turn"]

DISCONNECTS: Final = ("http.disconnect", "websocket.disconnect")


async def take_turn(admission: Admission, receive: Receive) -> Receive:
    """Waits for a request's turn, and gives the `receive` for whoever runs it.

    One that need not wait goes behind those who did. Nothing may run where ``admission.refusal``
    is set afterwards: the client has left, as many wait as may, or the limiter closes; what was
    charged is given back then.
    """
    if not admission.turns:
        await go_behind(admission)
        return receive
    turns, delay_us = admission.turns, admission.delay_us
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:  # another library's, in which nothing can watch beside the request
        loop = None
    wait = begin(admission, loop)
    held = _Held(receive)
    runs = False
    try:
        if wait is not None and wait.turn is None:
            await anyio.sleep(delay_us / 1_000_000)
        elif wait is not None and wait.turn is not None:
            if not await held.stays_until(wait.turn):
                admission.refuse(left())
            elif not wait.turn.result():
                admission.refuse(closing())
            elif wait.moved:
                admission.move(wait.moved)
        runs = admission.refusal is None
    finally:  # also where the server, or something around, has given up
        if not runs:
            held.close()
            with anyio.CancelScope(shield=True):
                await give_up(admission, wait, turns)
        elif wait is not None:
            wait.end()
    return receive if held.is_empty else held


class _Held:
    """The `receive` of a request that has waited: what came meanwhile comes first.

    One message is held at most, and nothing is asked of the server while it could send a second.
    A call that was begun is ended by whoever calls next, since what it brings would be lost if it
    were cancelled.
    """

    __slots__ = ("_call", "_left", "_message", "_receive", "_turn")

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._message: Message | None = None
        self._call: asyncio.Task[Message] | None = None
        self._turn: asyncio.Future[bool] | None = None
        self._left = False

    async def __call__(self) -> Message:
        if self._message is not None:
            message, self._message = self._message, None
            return message
        if self._call is not None:
            call, self._call = self._call, None
            return await call
        return await self._receive()

    @property
    def is_empty(self) -> bool:
        """Whether nothing has come, and no call is under way."""
        return self._message is None and self._call is None

    async def stays_until(self, turn: "asyncio.Future[bool]") -> bool:
        """Waits for a turn; False, and sooner, where the client leaves before."""
        self._turn = turn
        self._listen()
        await turn
        self._end_with_the_request()
        return not self._left

    def _listen(self) -> None:
        self._call = asyncio.create_task(_called(self._receive))
        self._call.add_done_callback(self._came)

    def _came(self, call: "asyncio.Task[Message]") -> None:
        """Looks at what a call has brought, unless whoever runs the request has taken it over."""
        if self._call is not call or call.cancelled() or call.exception() is not None:
            return  # a failure is for whoever calls next
        message, turn = call.result(), self._turn
        if message["type"] in DISCONNECTS:
            self._left = True
            if turn is not None and not turn.done():
                turn.set_result(False)
        elif self._message is None and turn is not None and not turn.done():
            self._message, self._call = message, None
            if not message.get("more_body", False):  # nothing but a disconnect can follow
                self._listen()

    def close(self) -> None:
        """Ends a call that nobody will ask for."""
        if self._call is not None:
            self._call.cancel()

    def _end_with_the_request(self) -> None:
        task = asyncio.current_task()
        if task is not None and self._call is not None:
            task.add_done_callback(lambda _: self.close())


async def _called(receive: Receive) -> Message:
    return await receive()
