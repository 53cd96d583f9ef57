"""Serves an application with the live page, and traffic to look at, until Ctrl-C: ``make serve``.

Without ``STORE`` two workers share a Redis that is started for them, where this machine has one;
``make serve STORE=redis://localhost`` takes yours, ``STORE=memory://`` none. Everything listens on
this machine alone, and ends with it.
"""

import argparse
import asyncio
import contextlib
import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import httpx
import uvicorn
from servers import redis

from ratelimit import open_store

HERE: Final = Path(__file__).parent
TICK: Final = 0.25  # seconds

VISITORS: Final = [
    # The last part of a loopback address, a path, a key, and requests a second: the mean, how far
    # it swings, and the seconds that a swing takes.
    (2, "/api/orders", "acme", 9, 6, 23),
    (3, "/api/orders", "globex", 7, 3, 17),
    (4, "/api/stock", "initech", 16, 12, 31),
    (5, "/search?q=shoes", "", 7, 6, 37),
    (6, "/login", "", 1, 1, 13),
    (7, "/login", "", 4, 4, 29),
]
"""Who asks for what: some seventy requests a second at most, each visitor one at a time."""


def is_bindable(address: str) -> bool:
    """Whether requests can come from an address; all of 127.0.0.0/8 on Linux, elsewhere the 1."""
    with contextlib.suppress(OSError), socket.socket() as probe:
        probe.bind((address, 0))
        return True
    return False


async def visit(url: str, *visitor: Any) -> None:
    """One visitor's requests, until it is cancelled."""
    last, path, key, mean, swing, seconds = visitor
    address = f"127.0.0.{last}" if is_bindable(f"127.0.0.{last}") else None
    transport = httpx.AsyncHTTPTransport(local_address=address)
    headers = {"x-api-key": key} if key else {}
    async with httpx.AsyncClient(transport=transport, headers=headers, timeout=5) as client:
        owed = 0.0
        while True:
            began = time.monotonic()
            owed += TICK * (mean + swing * math.sin(2 * math.pi * began / seconds))
            with contextlib.suppress(httpx.HTTPError):  # no worker listens yet, or any more
                while owed >= 1 and time.monotonic() < began + TICK:
                    owed -= 1
                    await client.get(url + path)
            owed = min(owed, 1.0)  # what was not sent in time never comes
            await asyncio.sleep(max(0.05, began + TICK - time.monotonic()))


@contextmanager
def traffic(url: str) -> Iterator[None]:
    """All visitors, in a thread of their own."""
    loop = asyncio.new_event_loop()

    async def everybody() -> None:
        await asyncio.gather(*(visit(url, *each) for each in VISITORS))

    task = loop.create_task(everybody())

    def run() -> None:
        with contextlib.closing(loop), contextlib.suppress(asyncio.CancelledError):
            loop.run_until_complete(task)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        loop.call_soon_threadsafe(task.cancel)
        thread.join(10)


def free_port(wanted: int) -> int:
    """The port that was wanted, or another one where it is taken."""
    for port in (wanted, 0):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)) as probe:
            found: int = probe.getsockname()[1]
            return found
    sys.exit("no port is free")


def serve(store: str, workers: int, port: int) -> None:
    """The application with its traffic, until it is told to end."""
    rules = min(str(HERE / "live.yaml"), os.path.relpath(HERE / "live.yaml"), key=len)
    os.environ.update(STORE=store, RULES=rules)
    url = f"http://127.0.0.1:{port}"
    print(f"{workers} worker{'s' * (workers > 1)}, counting in {store}")
    print(f"the live page: {url}/ratelimit/  (Ctrl-C ends it)", flush=True)
    with traffic(url):
        uvicorn.run(
            "app:app", app_dir=str(HERE), port=port, workers=workers, log_level="warning",
            timeout_graceful_shutdown=5,
        )  # fmt: skip


def main() -> None:
    """Reads the options, and starts what they ask for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", help="where the counters live; without it, in a Redis for this")
    parser.add_argument("--port", type=int, default=8000, help="another one where it is taken")
    parser.add_argument("--workers", type=int, help="1 for memory://, else 2")
    options = parser.parse_args()
    # uvicorn ends by the signal that it got, once it has ended: as an exception, so that the rest
    # ends as well.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with contextlib.ExitStack() as stack:
        store = options.store
        if store is None:
            started = stack.enter_context(redis())
            store = "memory://" if started is None else started.url
        try:
            open_store(store)  # which opens nothing yet: a server may be away for now
        except (ValueError, ImportError) as error:
            sys.exit(f"this store cannot be used: {error}")
        workers = options.workers or (1 if store.startswith("memory:") else 2)
        with contextlib.suppress(KeyboardInterrupt):
            serve(store, workers, free_port(options.port))


if __name__ == "__main__":
    main()
