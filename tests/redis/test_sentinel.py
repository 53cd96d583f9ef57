"""RedisStore behind sentinels: who is asked, after a master was replaced on demand."""

import asyncio
import gc
import re
from collections.abc import Iterator

import pytest

from ratelimit import Check, Limit, RedisStore
from tests.sentinels import Sentinels, sentinel
from tests.servers import binaries

CHECK = Check(Limit("1000000/day", algorithm="fixed_window"), "someone")


@pytest.fixture(scope="module")
def grounds() -> Iterator[Sentinels]:
    """A master, two replicas and three sentinels."""
    with sentinel(binaries()[0].path) as started:
        yield started


def commands(grounds: Sentinels) -> int:
    """How many commands the sentinels have run; they ask each other, too, some 10 a second."""
    said = "".join(each.ask("INFO", "stats") for each in grounds.alive)
    return sum(map(int, re.findall(r"total_commands_processed:(\d+)", said)))


async def test_the_sentinels_are_asked_once_in_a_while_and_not_per_trip(
    grounds: Sentinels,
) -> None:
    """A question for each new connection and one a second, however many trips there are."""
    before = await asyncio.to_thread(commands, grounds)
    now = asyncio.get_running_loop().time
    started = now()
    async with RedisStore(grounds.url, deadline=10, deny_cache=0) as store:
        for _ in range(500):
            await store.decide([CHECK])
    asked = await asyncio.to_thread(commands, grounds) - before
    assert 1 <= asked <= 50 + 50 * (now() - started)
    gc.collect()  # a connection left open, to a sentinel too, is a warning, and so an error


async def test_a_master_that_was_replaced_on_demand_is_left_before_it_is_demoted(
    grounds: Sentinels,
) -> None:
    """It takes writes for some 8 s more, and forgets them when it becomes a replica."""
    async with RedisStore(grounds.url, deadline=10, deny_cache=0) as store:
        (first,) = await store.decide([CHECK])
        old = await asyncio.to_thread(grounds.master)
        new = await asyncio.to_thread(grounds.failover, kill=False)
        assert new is not old
        new.command("CONFIG", "RESETSTAT")
        while "cmdstat_evalsha" not in new.ask("INFO", "commandstats"):
            (decision,) = await store.decide([CHECK])
        assert old.ask("ROLE")[0] == "master"
        # What was counted before the failover had reached the replica.
        assert decision.remaining < first.remaining
