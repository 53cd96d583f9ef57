"""Made-up traffic with a known truth, and logs of it in several formats."""

import random
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

__all__ = ["START_US", "Request", "combined", "msec", "traffic", "written"]

START_US: Final = 1_700_352_000_000_000
MSEC: Final = "$remote_addr $msec $request_method $request_uri $status"
"""An nginx format that tells milliseconds."""


class Request(NamedTuple):
    """A request as a client made it."""

    at_us: int
    client: str
    method: str
    target: str
    status: int = 200


def traffic(number: int, seed: int, rate: float = 100.0) -> Iterator[Request]:
    """Clients of a Zipf-like law, bursts among them, some behind IPv6; times in milliseconds."""
    chance = random.Random(seed)
    at_ms = START_US // 1_000
    while number:
        at_ms += round(chance.expovariate(rate) * 1_000)
        place = min(int(chance.paretovariate(0.7)), 5_000)
        client = f"10.0.{place >> 8}.{place & 255}"
        if place % 7 == 0:
            client = f"2001:db8:{place:x}::{chance.randrange(9) + 1:x}"
        burst = chance.randrange(1, 20) if chance.random() < 0.02 else 1
        for _ in range(min(burst, number)):
            method = "POST" if chance.random() < 0.1 else "GET"
            path = chance.choice(
                ["/", "/login", "/items/1", "/items/2?page=3", "/a%20b", "//items/1"]
            )
            yield Request(at_ms * 1_000, client, method, path)
            number -= 1


def msec(request: Request) -> str:
    """A line of the format with milliseconds."""
    seconds, rest = divmod(request.at_us, 1_000_000)
    return (
        f"{request.client} {seconds}.{rest // 1_000:03} {request.method} {request.target} "
        f"{request.status}"
    )


def combined(request: Request) -> str:
    """A line of the combined format."""
    at = datetime.fromtimestamp(request.at_us // 1_000_000, UTC)
    return (
        f"{request.client} - - [{at:%d/%b/%Y:%H:%M:%S} +0000] "
        f'"{request.method} {request.target} HTTP/1.1" {request.status} 12 "-" "curl/8"'
    )


def written(path: Path, lines: Iterable[str]) -> str:
    """A file of these lines; its name."""
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return str(path)
