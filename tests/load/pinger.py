"""A process that asks a Redis how it does, every other millisecond, over a connection of its own.

``python -m tests.load.pinger PORT`` goes on until its standard input ends, a minute and a half at
most, and then writes, as JSON, how often it asked, and of slow replies when that was due and how
long they took from then, in seconds. That it was kept from asking counts like a reply that is slow.
"""

import json
import select
import socket
import sys
import time
from typing import Final

EVERY: Final = 0.002  # seconds
SLOW: Final = 0.0005  # seconds; quicker replies are counted and forgotten
AT_MOST: Final = 90.0  # seconds


def main() -> None:
    """Pings until it is told to stop."""
    slow: list[tuple[float, float]] = []
    count = 0
    end = time.monotonic() + AT_MOST
    with socket.create_connection(("127.0.0.1", int(sys.argv[1])), 30) as connection:
        due = time.monotonic()
        while due < end:
            connection.sendall(b"PING\r\n")
            if not connection.recv(64):
                break
            now = time.monotonic()
            count += 1
            if now - due > SLOW:
                slow.append((due, now - due))
            due = now + EVERY
            if select.select([sys.stdin], [], [], EVERY)[0]:
                break
    sys.stdout.write(json.dumps({"asked": count, "slow": slow}) + "\n")


if __name__ == "__main__":
    main()
