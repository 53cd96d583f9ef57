"""fakeredis as the client, in place of a server: what tests of applications often use."""

from typing import Any

import fakeredis
import pytest
from redis.asyncio.connection import Connection

from ratelimit import Algorithm, Check, Limit, RedisStore, StoreUnavailable
from ratelimit.stores.redis.stand_in import _resp, needs_stand_in
from ratelimit.stores.redis.wire import PUSHED, ReplyError, reader


@pytest.mark.parametrize("decode", [False, True])
@pytest.mark.parametrize("algorithm", Algorithm)
async def test_a_fake_client_decides_as_a_server_does(algorithm: Algorithm, decode: bool) -> None:
    client = fakeredis.FakeAsyncRedis(decode_responses=decode)
    async with RedisStore(client, deadline=5, deny_cache=0) as store:
        check = Check(Limit("2/hour", algorithm=algorithm), "a")
        decided = [(await store.decide([check]))[0].allowed for _ in range(3)]
        assert decided == [True, True, False]
        await store.reset([check])
        assert (await store.decide([check]))[0].allowed
    await client.aclose()


async def test_what_workers_share_goes_through_a_fake_client_too() -> None:
    """Two stores on one fake server; a script that it has forgotten is loaded again."""
    server = fakeredis.FakeServer()
    clients = [fakeredis.FakeAsyncRedis(server=server) for _ in range(2)]
    one, two = (RedisStore(client, deadline=5, deny_cache=0) for client in clients)
    check = Check(Limit("2/hour"), "a")
    async with one, two:
        await one.ping()
        assert [(await each.decide([check]))[0].allowed for each in (one, two)] == [True, True]
        await clients[0].script_flush()
        assert not (await two.decide([check]))[0].allowed
        await one.switch("login", off=True)
        assert await two.switches() == {"login"}
        assert [await one.heartbeat("a", 60), await two.heartbeat("b", 60)] == [1, 2]
        await one.note_denials({"login a": 3})
        assert await two.denials() == [("login a", 3)]
    for client in clients:
        await client.aclose()


async def test_a_fake_server_that_is_down_is_told() -> None:
    server = fakeredis.FakeServer()
    server.connected = False
    client = fakeredis.FakeAsyncRedis(server=server)
    async with RedisStore(client, deadline=1) as store:
        with pytest.raises(StoreUnavailable):
            await store.decide([Check(Limit("2/hour"), "a")])
    await client.aclose()


@pytest.mark.parametrize(
    ("value", "read"),
    [
        (None, None),
        (True, 1),
        (-7, -7),
        (b"a\r\nb", b"a\r\nb"),
        ("é", "é".encode()),
        (1.5, b"1.5"),
        ([1, [b"a", None]], [1, [b"a", None]]),
        ({"a": 1}, [b"a", 1]),
    ],
)
def test_a_value_is_put_back_into_what_a_server_sends(value: Any, read: Any) -> None:
    parser = reader()
    parser.feed(_resp(value))
    got = parser.gets()
    assert got == read
    assert type(got) is not PUSHED


def test_an_error_has_the_code_that_a_server_gives_it() -> None:
    class NoScriptError(Exception):
        pass

    for error, code in (
        (NoScriptError("No matching script"), "NOSCRIPT"),
        (Exception("WRONGTYPE of a\r\nkey"), "WRONGTYPE"),
        (Exception("unknown command"), "ERR"),
    ):
        parser = reader()
        parser.feed(_resp(error))
        got = parser.gets()
        assert isinstance(got, ReplyError)
        assert got.code == code


def test_redis_pys_own_connections_are_never_stood_in_for() -> None:
    """One of them without a transport is a release that is told as not supported."""

    class Derived(Connection):
        pass

    assert not needs_stand_in(Connection())
    assert not needs_stand_in(Derived())
    assert needs_stand_in(object())
