"""Pairs of reserve and commit on one hot bucket, against bare decisions.

``python benchmarks/reserve.py``: a thousand tasks of one event loop, in process and on a server of
its own; rounds are interleaved, and each figure is the median of its rounds.
"""

import argparse
import asyncio
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ratelimit import MemoryStore, RateLimiter, RedisStore, Rule, Store
from tests.support.servers import binaries, serving

LIMIT = "1000000000/minute"
TASKS = 1_000


def limiter(store: Store) -> RateLimiter:
    return RateLimiter([Rule("tokens", LIMIT, algorithm="token_bucket", by="global")], store=store)


async def bare(limits: RateLimiter) -> None:
    await limits.charge("tokens", cost=800)


async def pair(limits: RateLimiter) -> None:
    reservation = await limits.reserve("tokens", cost=800)
    await reservation.commit(412)


async def rate(
    job: Callable[[RateLimiter], Awaitable[None]], limits: RateLimiter, each: int
) -> float:
    """How often it was done a second, by all tasks together."""

    async def task() -> None:
        for _ in range(each):
            await job(limits)

    start = time.perf_counter()
    await asyncio.gather(*(task() for _ in range(TASKS)))
    return TASKS * each / (time.perf_counter() - start)


async def measure(name: str, store: Store, rounds: int, each: int) -> None:
    limits = limiter(store)
    found: dict[str, list[float]] = {"bare": [], "pairs": []}
    for number in range(rounds + 1):
        for kind, job in (("bare", bare), ("pairs", pair)):
            measured = await rate(job, limits, each)
            if number:  # the first round warms up
                found[kind].append(measured)
    await limits.aclose()
    bare_rate, pairs = (statistics.median(found[kind]) for kind in ("bare", "pairs"))
    ratios = [one / other for one, other in zip(found["pairs"], found["bare"], strict=True)]
    print(
        f"{name:12} {bare_rate:10,.0f} decisions/s {pairs:10,.0f} pairs/s   "
        f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--each", type=int, default=20)
    given = parser.parse_args()
    asyncio.run(measure("in process", MemoryStore(), given.rounds, given.each))
    with serving(binaries()[0].path) as server:
        store = RedisStore(server.url, deadline=5)
        asyncio.run(measure("Redis", store, given.rounds, given.each))


if __name__ == "__main__":
    main()
