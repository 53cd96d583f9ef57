"""What stands between a client and a server, and can be made to fail."""

import asyncio
from collections.abc import Callable
from typing import Any, Self


class Proxy:
    """A way to a server that can be made bad: slow, silent in either direction, cut or closed.

    An async context manager of one event loop. ``delay`` holds each piece of either direction for
    so many seconds; ``swallow_requests`` and ``swallow_replies`` read what comes and drop it. They
    may be changed at any time, and hold for what comes from then on.
    """

    def __init__(self, port: int) -> None:
        self.port = 0
        self.delay = 0.0
        self.swallow_requests = False
        self.swallow_replies = False
        self._behind = port
        self._listener: asyncio.Server | None = None
        self._ways: dict[asyncio.Task[Any], tuple[asyncio.StreamWriter, ...]] = {}

    @property
    def url(self) -> str:
        """The URI of the server's first database, by this way."""
        return f"redis://127.0.0.1:{self.port}/0"

    async def accept(self) -> None:
        """Takes connections, again on the same port after `refuse`."""
        if self._listener is None:
            self._listener = await asyncio.start_server(self._carry, "127.0.0.1", self.port)
            self.port = self._listener.sockets[0].getsockname()[1]

    def refuse(self) -> None:
        """Takes no more connections; those that there are live on until `cut`."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    async def cut(self) -> None:
        """Closes every connection at once; new ones are still taken."""
        ways = list(self._ways.items())
        for task, writers in ways:
            for writer in writers:
                writer.transport.abort()
            task.cancel()
        await asyncio.gather(*(task for task, _ in ways), return_exceptions=True)

    async def __aenter__(self) -> Self:
        await self.accept()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.refuse()
        await self.cut()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, until either end closes it."""
        task = asyncio.current_task()
        assert task is not None
        self._ways[task] = (writer,)
        try:
            replies, requests = await asyncio.open_connection("127.0.0.1", self._behind)
            self._ways[task] = (writer, requests)
            directions = [
                asyncio.create_task(self._pass_on(reader, requests, lambda: self.swallow_requests)),
                asyncio.create_task(self._pass_on(replies, writer, lambda: self.swallow_replies)),
            ]
            try:
                await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for direction in directions:
                    direction.cancel()
                await asyncio.gather(*directions, return_exceptions=True)
        except (OSError, asyncio.CancelledError):
            pass  # the server is away, or `cut`: either way the client finds its connection closed
        finally:
            for each in self._ways.pop(task):
                each.transport.abort()

    async def _pass_on(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        swallows: Callable[[], bool],
    ) -> None:
        while piece := await reader.read(1 << 16):
            if swallows():
                continue
            if self.delay:
                await asyncio.sleep(self.delay)
            writer.write(piece)
            await writer.drain()
