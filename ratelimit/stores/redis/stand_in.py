"""A socket before a connection that has none: fakeredis, which tests use in place of a server.

Its answers come as values, through the methods of redis-py's connections. They are put back into
bytes, so that everything else meets what a server would send.
"""

import asyncio
import re
import socket
from contextlib import suppress
from typing import Any, Self

__all__ = ["StandIn", "needs_stand_in"]


def needs_stand_in(connection: Any) -> bool:
    """Whether an open connection, of a class that connects in its own way, has no transport."""
    transport = getattr(getattr(connection, "_writer", None), "transport", None)
    module = getattr(getattr(type(connection), "_connect", None), "__module__", "")
    return not isinstance(transport, asyncio.BaseTransport) and not module.startswith("redis.")


class StandIn:
    """An open connection over a pair of sockets, at whose other end another one is asked."""

    def __init__(self, behind: Any) -> None:
        self._behind = behind
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._task: asyncio.Task[None] | None = None

    @classmethod
    async def of(cls, behind: Any) -> Self:
        """One before a connection that is open; it closes that with itself."""
        self = cls(behind)
        ours, theirs = socket.socketpair()
        for each in (ours, theirs):
            each.setblocking(False)
        self._reader, self._writer = await asyncio.open_connection(sock=ours)
        self._task = asyncio.create_task(self._serve(theirs))
        return self

    async def disconnect(self, nowait: bool = False) -> None:  # noqa: ARG002  # redis-py's
        if self._writer is not None:
            self._writer.close()
        self._reader = self._writer = None

    async def _serve(self, theirs: socket.socket) -> None:
        """Answers one command after the other, until our end is closed."""
        import hiredis

        loop = asyncio.get_running_loop()
        commands = hiredis.Reader()
        try:
            while data := await loop.sock_recv(theirs, 65_536):
                commands.feed(data)
                while command := commands.gets():
                    await loop.sock_sendall(theirs, _resp(await self._answer(command)))
        except OSError:
            pass
        finally:
            theirs.close()
            with suppress(Exception):
                await self._behind.disconnect()

    async def _answer(self, command: list[bytes]) -> Any:
        from redis.exceptions import ResponseError

        await self._behind.send_command(*command)
        try:
            return await self._behind.read_response(disable_decoding=True)
        except ResponseError as error:
            return error


def _resp(value: Any) -> bytes:
    """A value as a server sends it."""
    if value is None:
        return b"$-1\r\n"
    if isinstance(value, int):
        return b":%d\r\n" % value
    if isinstance(value, Exception):
        # redis-py takes the code off the words of an error, and makes a class of it.
        said = " ".join(str(value).split())
        code = "NOSCRIPT" if type(value).__name__ == "NoScriptError" else "ERR"
        return f"-{said if re.match('[A-Z]{3,} ', said) else f'{code} {said}'}\r\n".encode()
    if isinstance(value, dict):
        value = [each for pair in value.items() for each in pair]
    if isinstance(value, list | tuple | set):
        return b"*%d\r\n%b" % (len(value), b"".join(map(_resp, value)))
    data = value if isinstance(value, bytes) else str(value).encode()
    return b"$%d\r\n%b\r\n" % (len(data), data)
