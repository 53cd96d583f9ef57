"""What the counters leave behind, by the server's own clock: nothing."""

import asyncio
from random import Random

import pytest
from redis.asyncio import Redis

from ratelimit import Algorithm, Check, Limit, RedisStore
from tests.support.servers import Binary, binaries, serving

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("binary", binaries(), ids=lambda binary: binary.name)
async def test_every_key_leaves_with_its_reset(binary: Binary) -> None:
    """After random decisions every key has an expiry, at most a few seconds after its reset."""
    rng = Random(1)
    limits = [
        Limit(text, algorithm=algorithm)
        for algorithm in Algorithm
        for text in ("3/second", "10/2s", "7/500ms")
    ]
    with serving(binary.path) as server:
        async with (
            RedisStore(server.url, deadline=5) as store,
            Redis.from_url(f"{server.url}?decode_responses=true") as client,
        ):
            asked = {}
            for _ in range(3_000):
                limit, key = rng.choice(limits), f"k{rng.randrange(50)}"
                check = Check(limit, key, rng.choice((0, 1, 1, 2)), "rule")
                (decision,) = await store.decide([check])
                asked[store._key(check)] = check
                if rng.random() < 0.1 and decision.allowed and check.cost:
                    await store.decide([check.given_back(decision)])
            longest_us = 0
            for name in await client.keys("*"):
                left_ms = await client.pttl(name)
                limit, key, _, rule, *_ = asked[str(name)]
                (look,) = await store.decide([Check(limit, key, 0, rule)])
                longest_us = max(longest_us, look.reset_after_us)
                assert left_ms != -1, f"{name!r} has no expiry"
                assert left_ms <= look.reset_after_us / 1000 + 3_000
            assert longest_us > 0
            await asyncio.sleep(longest_us / 1_000_000 + 3)
            assert await client.dbsize() == 0
