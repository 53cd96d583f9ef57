"""A worker that reserves and commits against a real store, and an application that streams tokens.

``python -m tests.support.budgets URL SEED SECONDS`` is the worker: it writes one line of JSON for
each event, by the store's clock, and takes SIGKILL like any other process.
"""

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator
from random import Random
from typing import Annotated, Any, Final

from fastapi import Depends, FastAPI, Request
from starlette.responses import StreamingResponse

from ratelimit import (
    RateLimit,
    RateLimiter,
    RateLimitExceeded,
    RateLimitMiddleware,
    RedisStore,
    Reservation,
    Rule,
)

QUOTA: Final = 400
WINDOW: Final = "500ms"
LIMIT: Final = f"{QUOTA}/{WINDOW}"
CROWD: Final = 5
"""Calls at once of each worker."""


def limiting(url: str, limit: str = LIMIT, algorithm: str = "sliding_log") -> RateLimiter:
    """A limiter with one budget, which a busy machine does not make late."""
    rule = Rule("tokens", limit, by="user", algorithm=algorithm)
    return RateLimiter([rule], store=RedisStore(url, deadline=10))


def charge_of(reservation: Reservation) -> tuple[int, int]:
    """When a reservation was charged, by the store's clock, and the bucket's level after it."""
    _, at_us, level = reservation._parts[0].taken[0]
    return at_us, level


def tell(**event: Any) -> None:
    """Writes an event, which is read though the process is killed."""
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


async def call(limits: RateLimiter, rng: Random, until: float) -> None:
    """Calls of a model, each with a cap, of which it uses a part."""
    while time.time() < until:
        cost = rng.choice((100, 175, 250))
        actual = rng.randint(20, cost)
        try:
            reservation = await limits.reserve("tokens", "alice", cost=cost)
        except RateLimitExceeded as refused:
            tell(event="refused", at=refused.decisions[0].at_us, cost=cost, actual=actual)
            await asyncio.sleep(0.02)
            continue
        at_us, _ = charge_of(reservation)
        await asyncio.sleep(rng.uniform(0, 0.03))
        before = time.time_ns() // 1000
        await reservation.commit(actual)
        tell(event="made", at=at_us, cost=cost, actual=actual, by=before)


async def work(url: str, seed: str, seconds: str) -> None:
    """Calls as many at once as there are in a crowd."""
    limits = limiting(url)
    until = time.time() + float(seconds)
    rng = Random(seed)
    await asyncio.gather(*(call(limits, rng, until) for _ in range(CROWD)))
    await limits.aclose()


async def wait_to_be_killed(url: str) -> None:
    """Reserves of each algorithm, commits some of that, and waits between the two for ever."""
    for algorithm in ("token_bucket", "fixed_window", "sliding_log", "sliding_counter"):
        limits = limiting(url, "9000/day", algorithm)
        for what, cost, actual in (
            ("commit", 800, 100), ("commit", 800, 950), ("progress", 800, 1200),
            ("progress", 800, 300), ("nothing", 800, 800),
        ):  # fmt: skip
            reservation = await limits.reserve("tokens", algorithm, cost=cost)
            if what == "commit":
                await reservation.commit(actual)
            elif what == "progress":
                await reservation.progress(actual)
            taken = [*reservation._parts[0].taken]
            tell(algorithm=algorithm, what=what, cost=cost, actual=actual, taken=taken)
    tell(what="ready")
    await asyncio.Event().wait()


async def estimate(request: Request) -> int:
    """The cap that a request declares."""
    return int((await request.json())["max_tokens"])


def make() -> FastAPI:
    """Streams as many tokens as a request declares, and tells how many it has produced."""
    app = FastAPI()
    limits = RateLimiter(store=RedisStore(os.environ["STORE"], deadline=10))
    app.add_middleware(RateLimitMiddleware, limiter=limits)
    budget = RateLimit(
        "9000/day", by="header:x-user", unit="tokens", cost=estimate, name="tokens",
        algorithm="sliding_log",
    )  # fmt: skip
    produced = 0

    @app.post("/chat")
    async def chat(reservation: Annotated[Reservation, Depends(budget)]) -> StreamingResponse:
        async def tokens() -> AsyncIterator[bytes]:
            nonlocal produced
            for produced in range(1, reservation.cost[0] + 1):
                await reservation.progress(produced)
                yield b"token "
                await asyncio.sleep(0.001)

        return StreamingResponse(tokens())

    @app.get("/state")
    async def state() -> dict[str, int]:
        (decision,) = await limits.peek("tokens", "alice")
        return {"produced": produced, "left": decision.remaining}

    return app


if __name__ == "__main__":
    asyncio.run(work(*sys.argv[1:]) if len(sys.argv) > 2 else wait_to_be_killed(sys.argv[1]))
