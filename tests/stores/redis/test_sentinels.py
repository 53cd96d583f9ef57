"""RedisStore behind sentinels: who is asked, where some hang, where the master was replaced."""

import asyncio
import gc
import re
import shutil
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
from redis.asyncio import Sentinel

from ratelimit import Check, Limit, RedisStore, StoreUnavailable
from ratelimit.stores.redis.connect import Dialer, Target
from ratelimit.stores.redis.sentinels import _states
from tests.support.sentinels import SERVICE, Sentinels, sentinel
from tests.support.servers import Certificates, binaries, certificates, free_port
from tests.support.servers import _terminating as terminating

CHECK = Check(Limit("1000000/day", algorithm="fixed_window"), "someone")


@pytest.fixture(scope="module")
def grounds() -> Iterator[Sentinels]:
    """A master, two replicas and three sentinels."""
    with sentinel(binaries()[0].path) as started:
        yield started


@contextmanager
def hanging(grounds: Sentinels, *numbers: int) -> Iterator[None]:
    """Sentinels that take connections and never answer, as where a network drops packets."""
    for number in numbers:
        grounds.sentinels[number].signal(signal.SIGSTOP)
    try:
        yield
    finally:
        for number in numbers:
            grounds.sentinels[number].signal(signal.SIGCONT)


async def dialed(dialer: Dialer) -> int:
    """The port of the server that a dialer leads to."""
    connection = await dialer.open()
    await connection.send_command("CONFIG", "GET", "port")
    said = await connection.read_response()
    await connection.disconnect()
    return int((list(said.values()) if isinstance(said, dict) else said)[-1])


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


@pytest.mark.parametrize("hung", [[0], [1], [2], [0, 1], [0, 2], [1, 2]])
async def test_sentinels_that_hang_cost_the_time_of_one_question(
    grounds: Sentinels, hung: list[int]
) -> None:
    """The others are asked meanwhile, whether connections to the hanging ones were open or not."""
    before = asyncio.all_tasks()  # other tests of this loop may have left some
    master = (await asyncio.to_thread(grounds.master)).port
    target = Target(grounds.url, 5)
    dialers = [target.dialer(), target.dialer()]
    assert await dialed(dialers[0]) == master
    with hanging(grounds, *hung):
        for dialer in dialers:
            assert await dialed(dialer) == master
            assert dialer.master is not None
            assert await dialer.master() == ("127.0.0.1", master)
            assert asyncio.all_tasks() <= before
    for dialer in dialers:
        await dialer.aclose()
    gc.collect()


async def test_a_store_decides_while_sentinels_hang(grounds: Sentinels) -> None:
    """Whether it knew the master before or not."""
    async with (
        RedisStore(grounds.url, deadline=5, deny_cache=0) as old,
        RedisStore(grounds.url, deadline=5, deny_cache=0) as new,
    ):
        await old.decide([CHECK])
        with hanging(grounds, 0, 1):
            for store in (old, new):
                (decision,) = await store.decide([CHECK])
                assert decision.allowed


async def test_the_sentinel_that_answered_last_is_asked_first(
    grounds: Sentinels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By connections and event loops to come as well, so that a hanging one is asked once."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.setblocking(False)
        port = silent.getsockname()[1]
        target = Target(grounds.url.replace("sentinel://", f"sentinel://127.0.0.1:{port},"), 5)
        await close(target)
        # One that answers does not do so at once on a busy machine.
        monkeypatch.setattr("ratelimit.stores.redis.sentinels.NEXT_SENTINEL_AFTER", 1)
        for _ in range(2):
            await close(target)
        silent.accept()[0].close()
        with pytest.raises(BlockingIOError):
            silent.accept()


async def close(target: Target) -> None:
    """Opens a connection of a new dialer, and closes both."""
    dialer = target.dialer()
    await dialed(dialer)
    await dialer.aclose()


async def test_where_all_sentinels_hang_the_look_for_the_master_ends(grounds: Sentinels) -> None:
    """In time, with a sentence that names them; and the same dialer goes on afterwards."""
    dialer = Target(grounds.url, 0.5).dialer()
    assert dialer.master is not None
    await dialer.master()
    with hanging(grounds, 0, 1, 2):
        for ask in (dialer.master, dialer.open):
            with pytest.raises(StoreUnavailable) as caught:
                await ask()
            assert caught.value.kind == "late"
            for each in grounds.sentinels:
                assert f"127.0.0.1:{each.port}: no answer" in str(caught.value)
    assert await dialed(dialer) == (await asyncio.to_thread(grounds.master)).port
    await dialer.aclose()


async def test_the_making_of_a_connection_may_be_cancelled_at_any_moment(
    grounds: Sentinels,
) -> None:
    """Neither a task nor an open connection is left, to the master or a sentinel."""
    before = asyncio.all_tasks()
    target = Target(grounds.url.replace("127.0.0.1", "localhost"), 5)
    ended = set()
    for steps in range(60):
        dialer = target.dialer()
        opening = asyncio.create_task(dialer.open())
        for _ in range(steps):
            await asyncio.sleep(0.0001)
        opening.cancel()
        result: Any = (await asyncio.gather(opening, return_exceptions=True))[0]
        ended.add(type(result).__name__)
        if not isinstance(result, BaseException):
            await result.disconnect()
        await dialer.aclose()
        assert asyncio.all_tasks() <= before
    assert "CancelledError" in ended
    gc.collect()


async def test_a_master_out_of_reach_is_told_with_the_sentinels_that_failed(
    grounds: Sentinels,
) -> None:
    """The address that was tried is the master's, here remapped to where nothing listens."""
    port, away = free_port(), free_port()
    url = grounds.url.replace("sentinel://", f"sentinel://127.0.0.1:{away},")
    master = (await asyncio.to_thread(grounds.master)).port
    dialer = Target(f"{url}?address_remap=127.0.0.1:{master}=127.0.0.1:{port}", 5).dialer()
    with pytest.raises(StoreUnavailable) as caught:
        await dialer.open()
    assert caught.value.kind == "refused"
    assert f"127.0.0.1:{port}" in str(caught.value)
    assert f"127.0.0.1:{away}: nothing listens" in str(caught.value)
    assert dialer.trying == f"127.0.0.1:{port}"
    await dialer.aclose()


async def test_a_service_that_no_sentinel_knows_is_told(grounds: Sentinels) -> None:
    """Of kind "no-master", as is a sentinel that sees fewer others than it should."""
    for url in (f"{grounds.url}x", f"{grounds.url}?min_other_sentinels=3"):
        dialer = Target(url, 5).dialer()
        with pytest.raises(StoreUnavailable) as caught:
            await dialer.open()
        assert caught.value.kind == "no-master"
        assert f"127.0.0.1:{grounds.sentinels[0].port}" in str(caught.value)
        await dialer.aclose()
    await close(Target(f"{grounds.url}?min_other_sentinels=2", 5))


async def test_a_client_of_sentinels_is_taken_over(grounds: Sentinels) -> None:
    """``master_for`` with its sentinels, which are asked as those of a URI are."""
    hosts = [("127.0.0.1", each.port) for each in grounds.sentinels]
    manager = Sentinel(hosts)  # type: ignore[no-untyped-call]
    client = manager.master_for(SERVICE)
    with hanging(grounds, 0):
        await close(Target(client, 5))
    replicas = manager.slave_for(SERVICE)
    with pytest.raises(ValueError, match="reads from replicas"):
        Target(replicas, 5)
    for each in (client, replicas, *manager.sentinels):
        await each.aclose()


@pytest.mark.parametrize("protocol", [2, 3])
async def test_sentinels_are_read_in_both_protocols(grounds: Sentinels, protocol: int) -> None:
    """Also by a redis-py that cannot read their states in RESP3."""
    await close(Target(f"{grounds.url}?sentinel_protocol={protocol}", 5))


@pytest.mark.parametrize(
    ("flags", "believed"),
    [("master", True), ("master,s_down", False), ("master,o_down", False), ("slave", False)],
)
async def test_a_master_that_a_sentinel_holds_for_down_is_not_believed(
    flags: str, believed: bool
) -> None:
    """As redis-py judges it, in lists of RESP2 and mappings of RESP3, in bytes and in text."""
    flat = ["name", "s", "ip", "h", "port", "7", "flags", flags, "num-other-sentinels", "0"]
    pairs = dict(zip(flat[::2], flat[1::2], strict=True))
    for said in (flat, [each.encode() for each in flat], pairs):
        state = _states([said])["s"]
        judge = Sentinel([])  # type: ignore[no-untyped-call]
        assert judge.check_master_state(state, "s") is believed
        assert (state["ip"], state["port"]) == ("h", "7")


@pytest.mark.parametrize("said", [None, 7, [7], [["name"]], [{"name": "s"}], [["flags", "a"]]])
def test_a_state_that_no_sentinel_gives_is_told(said: object) -> None:
    with pytest.raises(StoreUnavailable, match=r"^no sentinel answers there$"):
        _states(said)


async def test_what_is_no_sentinel_is_told(grounds: Sentinels) -> None:
    """Such as the master's own port, where that of a sentinel belongs."""
    port = (await asyncio.to_thread(grounds.master)).port
    dialer = Target(f"redis+sentinel://127.0.0.1:{port}/{SERVICE}", 5).dialer()
    with pytest.raises(StoreUnavailable, match="no sentinel answers there") as caught:
        await dialer.open()
    assert caught.value.kind == "no-master"
    await dialer.aclose()


async def test_sentinels_have_credentials_of_their_own(grounds: Sentinels) -> None:
    """``sentinel_username`` and ``sentinel_password``; a wrong one is told and not shown."""
    for each in grounds.sentinels:
        each.ask("ACL", "SETUSER", "watcher", "on", ">secret", "+@all")
    await close(Target(f"{grounds.url}?sentinel_username=watcher&sentinel_password=secret", 5))
    wrong = f"{grounds.url}?sentinel_username=watcher&sentinel_password=Secret"
    dialer = Target(wrong, 5).dialer()
    with pytest.raises(StoreUnavailable, match="refuses this user name or password") as caught:
        await dialer.open()
    assert "ecret" not in str(caught.value)
    await dialer.aclose()


class Secured(NamedTuple):
    """Ports where the first sentinel and the master are reached by TLS."""

    sentinel: int
    master: int
    plain_master: int
    shown: Certificates


@pytest.fixture(scope="module")
def secured(grounds: Sentinels, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    """TLS before a sentinel and the master."""
    if not shutil.which("openssl"):
        pytest.skip("TLS: NOT RUN here; it needs openssl to make certificates")
    shown = certificates(str(tmp_path_factory.mktemp("tls")))
    plain = grounds.master().port
    with (
        terminating(grounds.sentinels[0].port, shown) as port,
        terminating(plain, shown) as master,
    ):
        yield Secured(port, master, plain, shown)


async def test_sentinels_may_be_behind_tls(secured: Secured) -> None:
    """``sentinel_ssl=true``, with options of their own, or those of the master."""
    url = f"redis+sentinel://127.0.0.1:{secured.sentinel}/{SERVICE}?sentinel_ssl=true"
    await close(Target(f"{url}&sentinel_ssl_ca_certs={secured.shown.authority}", 5))
    remap = f"127.0.0.1:{secured.plain_master}=127.0.0.1:{secured.master}"
    both = f"{url}&ssl=true&ssl_ca_certs={secured.shown.authority}&address_remap={remap}"
    await close(Target(both, 5))
    dialer = Target(url, 5).dialer()
    with pytest.raises(StoreUnavailable, match="the TLS connection to Redis could not be made"):
        await dialer.open()
    await dialer.aclose()
