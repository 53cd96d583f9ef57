"""Redis is killed under a real application and real load; the application must not notice."""

import asyncio
import time
from collections.abc import Iterator

import httpx
import pytest

from tests.apps import Load, running
from tests.servers import Server, binaries, serving

pytestmark = pytest.mark.slow

RULES = """
version: 1
store: {store}
on_store_failure: {policy}
rules:
  - name: hits
    match: {{path: /hits}}
    limit: 20/second
    algorithm: token_bucket
"""


@pytest.fixture
def server() -> Iterator[Server]:
    """A server of this test's own, which it may kill."""
    with serving(binaries()[0].path) as started:
        yield started


async def under_load(server: Server, policy: str) -> tuple[Load, float, float, str]:
    """Kills the server a second into a load and starts it again later; gives both instants."""
    rules = RULES.format(store=server.url, policy=policy)
    with running(rules) as app:
        async with Load(f"{app.url}/hits") as load:
            await asyncio.sleep(1.5)
            killed = time.monotonic()
            await asyncio.to_thread(server.kill)
            await asyncio.sleep(1.5)
            restarted = time.monotonic()
            await asyncio.to_thread(server.start)
            await asyncio.sleep(4)
        log = app.log()
    print(  # noqa: T201  # what a person wants to see of an outage
        f"\n{policy}: {len(load.answers)} requests;",
        *(
            f"{name}: " + ", ".join(f"{count} x {status}" for status, count in counted.items())
            for name, counted in {
                "before": tally(load.statuses(until=killed)),
                "away": tally(load.statuses(killed + 0.3, restarted - 0.3)),
                "again, after 2 s": tally(load.statuses(restarted + 2)),
            }.items()
        ),
        f"slowest {max(answer.took for answer in load.answers) * 1000:.0f} ms",
        sep="\n  ",
    )
    return load, killed, restarted, log


def tally(statuses: list[int]) -> dict[int, int]:
    """How often each status came."""
    return {status: statuses.count(status) for status in sorted(set(statuses))}


@pytest.mark.parametrize("policy", ["allow", "deny"])
async def test_redis_is_killed_and_comes_back(server: Server, policy: str) -> None:
    """While it is away everything is allowed, or refused with 503; then the limit holds again."""
    load, killed, restarted, log = await under_load(server, policy)
    statuses = set(load.statuses())
    away = tally(load.statuses(killed + 0.3, restarted - 0.3))
    if policy == "allow":
        assert max(statuses) == 429
        assert set(away) == {200}
    else:
        assert statuses <= {200, 429, 503}
        assert set(away) == {503}
    # 20 per second hold again: a window of a second lets through at most the worst case.
    again = load.statuses(restarted + 2, restarted + 3)
    assert 1 <= again.count(200) <= 20 + 20 - 1
    assert 429 in again
    # Each change is said once, with what answers meanwhile.
    assert 1 <= log.count("store-failed") <= 3
    assert log.count("store-answers") == 1
    assert ("requests are allowed" if policy == "allow" else "requests are refused with 503") in log
    assert "Traceback" not in log


async def test_an_application_starts_serves_and_stops_without_redis(server: Server) -> None:
    """Redis is away from the start; it is used as soon as it is there."""
    server.kill()
    with running(RULES.format(store=server.url, policy="allow"), workers=2) as app:
        async with httpx.AsyncClient(base_url=app.url) as client:
            for _ in range(50):
                assert (await client.get("/hits")).status_code == 200
            await asyncio.to_thread(server.start)
            answers = await asyncio.gather(*(client.get("/hits") for _ in range(60)))
            passed = [answer.status_code for answer in answers].count(200)
            assert 20 <= passed <= 40
        app.process.terminate()
        assert await asyncio.to_thread(app.process.wait, 15) == 0
