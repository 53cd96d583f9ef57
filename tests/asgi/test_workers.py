"""Several workers behind one port share one count in Redis."""

import asyncio

import httpx

from ratelimit import Algorithm
from tests.support.apps import running
from tests.support.servers import Server

RULES = """
version: 1
store: {store}
deadline: 10s
rules:
"""
RULE = """
  - name: {name}
    match: {{path: /{name}}}
    limit: 200/day
    algorithm: {name}
"""


async def test_four_workers_let_through_exactly_the_quota(redis_server: Server) -> None:
    """Whatever worker a request meets, and whichever algorithm counts it."""
    redis_server.command("FLUSHALL")
    rules = RULES.format(store=redis_server.url) + "".join(
        RULE.format(name=algorithm.value)
        for algorithm in Algorithm
        if algorithm != "leaking_bucket"
    )
    with running(rules, workers=4) as app:
        # A connection each, so that the kernel deals the requests out to the workers.
        limits = httpx.Limits(max_connections=40, max_keepalive_connections=0)
        async with httpx.AsyncClient(base_url=app.url, limits=limits, timeout=60) as client:
            for algorithm in Algorithm:
                if algorithm == "leaking_bucket":  # it would have its clients wait for weeks
                    continue
                answers = await asyncio.gather(
                    *(client.get(f"/{algorithm.value}") for _ in range(300))
                )
                passed = [each.json() for each in answers if each.status_code == 200]
                assert len(passed) == 200, f"{algorithm}\n{app.log()}"
                assert {each.status_code for each in answers} == {200, 429}
                assert len({each["pid"] for each in passed}) > 1
        assert "failed" not in app.log()
