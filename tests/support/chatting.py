"""An application of WebSockets for the tests of servers: what each path limits, and what it says.

``RATELIMIT_TEST_CHATS`` in the environment is a file to which it writes what became of connections.
"""

import logging
import os
import resource
from pathlib import Path

from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket

from ratelimit import RateLimiter, RateLimitMiddleware, Rule
from ratelimit.rules.sockets import MessagesOptions

logging.getLogger("ratelimit").setLevel(logging.ERROR)  # clients choose whom they are here
OPEN = 0


def chat(name: str, websocket: MessagesOptions, handshakes: str = "10000/second") -> Rule:
    """The rule of a path; clients tell themselves apart by a field."""
    return Rule(name, handshakes, path=f"/{name}", by="header:x-test", websocket=websocket)


RULES = [
    Rule("few", "1/hour", path="/few", by="header:x-test", algorithm="sliding_log"),
    chat("close", {"messages": "3/minute"}),
    chat("large", {"bytes": "100/second"}),
    chat("drop", {"messages": "3/minute", "on_excess": "drop"}),
    chat("pause", {"messages": "100/second burst 20", "on_excess": "pause"}),
    chat("stop", {"messages": "1/second burst 3", "on_excess": "pause"}),
]


async def echo(websocket: WebSocket) -> None:
    """Says again what it hears, and how the connection ended to the file."""
    global OPEN  # noqa: PLW0603  # of the process, as its memory is
    await websocket.accept()
    OPEN += 1
    ended = "cancelled"
    try:
        while True:
            message = await websocket.receive()
            if message["type"] == "websocket.disconnect":
                ended = f"{message.get('code')}"
                return
            if message.get("text") == "how much?":
                await websocket.send_text(f"{_resident()} {OPEN}")
            elif message.get("text") is not None:
                await websocket.send_text(message["text"][:100])
    finally:
        OPEN -= 1
        _tell(f"{websocket.url.path} {ended}")


def _tell(line: str) -> None:
    if "RATELIMIT_TEST_CHATS" in os.environ:
        with Path(os.environ["RATELIMIT_TEST_CHATS"]).open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")


def _resident() -> int:
    """The bytes of memory that this process has at the moment."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize()


limiter = RateLimiter(RULES)
app = Starlette(routes=[WebSocketRoute("/{path:path}", echo)])
app.add_middleware(RateLimitMiddleware, limiter=limiter)
