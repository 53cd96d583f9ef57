"""Failures that a success forgets, where the store fails in the middle of it."""

import asyncio

import pytest

from ratelimit import Algorithm, Check, Limit, RedisStore, StoreUnavailable
from ratelimit.decisions import Decision
from ratelimit.stores.failures import MOST_FAILURES
from ratelimit.testing import ManualClock
from tests.support.proxy import Proxy
from tests.support.servers import Server

LIMIT = Limit("9/hour", algorithm="fixed_window")


async def fail(store: RedisStore, check: Check, times: int) -> None:
    """Charges so many failures, and notes them."""
    for _ in range(times):
        (charged,) = await store.decide([check])
        await store.add_failure(check.given_back(charged), charged.reset_after_us)


async def look(store: RedisStore, check: Check) -> Decision:
    (decision,) = await store.decide([check._replace(cost=0)])
    return decision


async def test_a_success_whose_reply_is_lost_has_forgotten_once(redis_server: Server) -> None:
    """What came of it needs no reply: a later success gives nothing back twice."""
    redis_server.command("FLUSHALL")
    async with (
        Proxy(redis_server.port) as way,
        RedisStore(redis_server.url, deadline=10, deny_cache=0) as direct,
        RedisStore(way.url, deadline=0.2, deny_cache=0) as store,
    ):
        check = Check(LIMIT, "alice", rule="login")
        await fail(direct, check, 3)
        await direct.decide([check, check])
        await direct.forget_failures(Check(LIMIT, "bob"))  # so that its script is there
        await look(store, check)
        way.swallow_replies = True
        with pytest.raises(StoreUnavailable):
            await store.forget_failures(check)
        for _ in range(2):
            assert (await look(direct, check)).remaining == 7
            await direct.forget_failures(check)


async def test_a_success_that_the_store_never_hears_of_leaves_failures_for_the_next(
    redis_server: Server,
) -> None:
    redis_server.command("FLUSHALL")
    async with (
        Proxy(redis_server.port) as way,
        RedisStore(redis_server.url, deadline=10, deny_cache=0) as direct,
        RedisStore(way.url, deadline=0.2, deny_cache=0) as store,
    ):
        check = Check(LIMIT, "alice")
        await fail(direct, check, 3)
        await look(store, check)
        way.swallow_requests = True
        with pytest.raises(StoreUnavailable):
            await store.forget_failures(check)
        assert (await look(direct, check)).remaining == 6
        await direct.forget_failures(check)
        assert (await look(direct, check)).remaining == 9


@pytest.mark.parametrize("algorithm", list(Algorithm))
async def test_two_successes_at_once_give_back_each_failure_once(
    redis_server: Server, algorithm: Algorithm
) -> None:
    redis_server.command("FLUSHALL")
    check = Check(Limit("300/hour", algorithm=algorithm), "alice")
    async with RedisStore(redis_server.url, ManualClock(), deadline=10, deny_cache=0) as store:
        await store.decide([check._replace(cost=20)])
        await fail(store, check, MOST_FAILURES)
        assert (await look(store, check)).remaining == 80
        await asyncio.gather(*(store.forget_failures(check) for _ in range(3)))
        assert (await look(store, check)).remaining == 280
    assert redis_server.ask("KEYS", "*!failed") == []


async def test_failures_that_could_not_be_given_back_stay(redis_server: Server) -> None:
    """A counter that another program has overwritten: the failure is told, and nothing is lost."""
    redis_server.command("FLUSHALL")
    check = Check(LIMIT, "alice")
    async with RedisStore(redis_server.url, deadline=10, deny_cache=0) as store:
        await fail(store, check, 2)
        redis_server.command("RENAME", store._key(check), "elsewhere")
        redis_server.command("HSET", store._key(check), "a", "b")
        with pytest.raises(StoreUnavailable, match="not the limiter's"):
            await store.forget_failures(check)
        redis_server.command("RENAME", "elsewhere", store._key(check))
        redis_server.command("RPUSH", f"{store._key(check)}!failed", "what nobody has noted")
        await store.forget_failures(check)
        assert (await look(store, check)).remaining == 9


async def test_a_denial_is_not_repeated_once_its_failures_are_forgotten(
    redis_server: Server,
) -> None:
    redis_server.command("FLUSHALL")
    check = Check(Limit("2/hour"), "alice")
    async with RedisStore(redis_server.url, deadline=10, allow_oom=True) as store:
        await fail(store, check, 2)
        for _ in range(2):
            assert not (await store.decide([check]))[0].allowed
        await store.forget_failures(check)
        assert (await store.decide([check]))[0].allowed
