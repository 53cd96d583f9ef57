"""The ways to a server: TLS, unix sockets, users and their rights, databases, older protocols."""

import re
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from typing import Final
from urllib.parse import quote

import pytest

from ratelimit import Check, Limit, RedisStore, StoreUnavailable
from ratelimit.concurrency import Concurrency
from ratelimit.testing import TABLES, ManualClock, check_table
from tests.support.servers import (
    Binary,
    Certificates,
    Server,
    binaries,
    certificates,
    has_tls,
    serving,
    tls_serving,
)

LIMIT: Final = Limit("5/minute", algorithm="sliding_log")
PASSWORD: Final = "p@ss:w/rd?#%& é+"

# What a user of Redis needs, besides the keys ~rl:*: to send the script, what `reset` sends, and
# what the script calls. A database other than 0 needs +select as well.
RIGHTS: Final = (
    "evalsha", "script|load", "del",
    "get", "hdel", "hgetall", "hset", "lindex", "lrange", "lset", "ltrim", "pexpire", "rpush",
    "set", "srandmember", "time",
)  # fmt: skip


async def remaining(store: RedisStore) -> int:
    """What is left after one decision, by a store that is closed afterwards."""
    async with store:
        (decision,) = await store.decide([Check(LIMIT, "someone")])
        assert decision.allowed
        return decision.remaining


async def refused(store: RedisStore) -> StoreUnavailable:
    """How a store says, in one sentence, why it cannot decide."""
    with pytest.raises(StoreUnavailable) as caught:
        await remaining(store)
    assert re.fullmatch(r"[^\n]{10,400}", str(caught.value))
    return caught.value


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """One that listens on a unix socket as well, and has a password besides."""
    with serving(binaries()[0].path, "--unixsocket", "{folder}/a socket") as started:
        started.ask("ACL", "SETUSER", "named", "on", f">{PASSWORD}", "~*", "+@all")
        yield started


@pytest.fixture(autouse=True)
def _empty(request: pytest.FixtureRequest) -> None:
    if "server" in request.fixturenames:
        request.getfixturevalue("server").ask("FLUSHALL")


# --- TLS -----------------------------------------------------------------------------------------


class Secured:
    """A server's TLS port, its plain port, the authority it was certified by, and another."""

    def __init__(self, server: Server, port: int, shown: Certificates, other: Certificates) -> None:
        self.plain_port = server.port
        self.port = port
        self.authority = shown.authority
        self.other = other.authority


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    """A server behind TLS: its own where it was built with it, else before it."""
    if not shutil.which("openssl"):
        pytest.skip("TLS: NOT RUN here; it needs openssl to make certificates")
    found = sorted(binaries(), key=lambda each: not has_tls(each.path))
    shown, other = (certificates(str(tmp_path_factory.mktemp("tls"))) for _ in range(2))
    with tls_serving(found[0].path, shown) as (started, port):
        yield Secured(started, port, shown, other)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_tls_with_an_authority_of_ones_own(secured: Secured, host: str) -> None:
    """``rediss://`` with ``ssl_ca_certs`` in the query trusts that authority, by name or number."""
    url = f"rediss://{host}:{secured.port}?ssl_ca_certs={secured.authority}"
    assert (
        await remaining(RedisStore(f"{url}&db={1 if host == 'localhost' else 2}", deadline=5)) == 4
    )


async def test_tls_by_a_stranger_is_refused(secured: Secured) -> None:
    """A certificate by an authority that is not trusted is one sentence of kind "tls"."""
    for query in ("", f"?ssl_ca_certs={secured.other}"):
        error = await refused(RedisStore(f"rediss://127.0.0.1:{secured.port}{query}", deadline=2))
        assert error.kind == "tls"
        assert "certificate verify failed" in str(error)


async def test_tls_for_another_name_is_refused(secured: Secured) -> None:
    """A certificate that names other hosts is of kind "tls" too, and no way round the check."""
    # Every 127.x.x.x is this machine, but the server listens at 127.0.0.1 alone.
    url = f"rediss://0:{secured.port}?ssl_ca_certs={secured.authority}"
    error = await refused(RedisStore(url, deadline=2))
    assert error.kind == "tls"


async def test_tls_unverified_by_option(secured: Secured) -> None:
    """``ssl_cert_reqs=none`` takes any certificate."""
    url = f"rediss://127.0.0.1:{secured.port}/3?ssl_cert_reqs=none&ssl_check_hostname=false"
    assert await remaining(RedisStore(url, deadline=2)) == 4


async def test_tls_spoken_to_a_plain_port(secured: Secured) -> None:
    """``rediss://`` where the server speaks plainly ends with the deadline at the latest."""
    # It waits for the end of the line that a handshake never has, or has by chance.
    error = await refused(RedisStore(f"rediss://127.0.0.1:{secured.plain_port}", deadline=0.3))
    assert error.kind in ("late", "tls")


async def test_plain_spoken_to_a_tls_port(secured: Secured) -> None:
    """``redis://`` where the server wants TLS is one sentence, at once."""
    error = await refused(RedisStore(f"redis://127.0.0.1:{secured.port}", deadline=2))
    assert error.kind in ("closed", "not-redis", "tls")


async def test_an_authority_that_is_not_there(secured: Secured, tmp_path: Path) -> None:
    """A file of authorities that does not exist is told as such, not as a server that is away."""
    url = f"rediss://127.0.0.1:{secured.port}?ssl_ca_certs={tmp_path}/none.crt"
    with pytest.raises(ValueError, match=r"^the option 'ssl_ca_certs' cannot be used: No such "):
        RedisStore(url)


# --- sockets, databases, passwords, protocols ----------------------------------------------------


async def test_a_unix_socket(server: Server) -> None:
    """``unix://`` with the socket's path, percent-encoded, and the database in the query."""
    url = f"unix://{quote(server.folder)}/a%20socket"
    assert await remaining(RedisStore(url)) == 4
    assert await remaining(RedisStore(f"{url}?db=1")) == 4
    assert await remaining(RedisStore(server.url)) == 3
    assert await remaining(RedisStore(f"unix://named:{quote(PASSWORD, '')}@{url[7:]}")) == 2


async def test_a_unix_socket_that_is_not_there(server: Server) -> None:
    """Of kind "refused", as a port is."""
    error = await refused(RedisStore(f"unix://{quote(server.folder)}/none"))
    assert error.kind == "refused"


async def test_databases_are_apart(server: Server) -> None:
    """The number after the last slash, or ``db`` in the query; each counts by itself."""
    base = f"redis://127.0.0.1:{server.port}"
    for left in (4, 3):
        assert await remaining(RedisStore(f"{base}/0")) == left
        assert await remaining(RedisStore(f"{base}/3")) == left
    assert await remaining(RedisStore(f"{base}?db=3")) == 2
    assert await remaining(RedisStore(base)) == 2


async def test_a_database_that_is_not_there(server: Server) -> None:
    """A number above the server's is told as such."""
    error = await refused(RedisStore(f"redis://127.0.0.1:{server.port}/99"))
    assert error.kind == "database"


@pytest.mark.parametrize("protocol", [3, 2])
async def test_a_user_and_a_password_with_special_characters(server: Server, protocol: int) -> None:
    """Percent-encoded in the URI, over either protocol; a wrong one is told and not shown."""
    address = f"127.0.0.1:{server.port}?protocol={protocol}"
    assert await remaining(RedisStore(f"redis://named:{quote(PASSWORD, '')}@{address}")) == 4
    error = await refused(RedisStore(f"redis://named:{quote(PASSWORD + '!', '')}@{address}"))
    assert error.kind == "password"
    assert PASSWORD not in str(error)


@pytest.mark.parametrize("protocol", [3, 2])
async def test_a_password_alone_with_special_characters(protocol: int) -> None:
    """``redis://:password@`` is the default user's."""
    with serving(binaries()[0].path, "--requirepass", PASSWORD) as locked:
        url = f"redis://:{quote(PASSWORD, '')}@127.0.0.1:{locked.port}/2?protocol={protocol}"
        assert await remaining(RedisStore(url)) == 4


# --- rights --------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=binaries(), ids=lambda binary: binary.name)
def guarded(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server of each kind, for users with some rights only."""
    binary: Binary = request.param
    with serving(binary.path) as started:
        yield started


@asynccontextmanager
async def acting(server: Server, *rules: str, database: int = 0) -> AsyncIterator[str]:
    """The URI of a user with these rules, on a server that has neither keys nor the script."""
    server.ask("FLUSHALL")
    server.ask("SCRIPT", "FLUSH")
    server.ask("ACL", "SETUSER", "worker", "reset", "on", ">pw", "-@all", *rules)
    yield f"redis://worker:pw@127.0.0.1:{server.port}/{database}"


async def everything(url: str) -> None:
    """All that a store may send: the tables, every action of them, by a clock and without; reset.

    Raises what the store raises.
    """
    clock = ManualClock()
    store = RedisStore(url, deadline=10)
    async with store:
        await store.ping()
        await store.switches()
        await store.decide([Check(LIMIT, "someone")])
        await store.reset([Check(LIMIT, "someone")])
    store = RedisStore(url, clock, deadline=10, deny_cache=0)
    async with store:
        for table in TABLES.values():
            clock.set_us(ManualClock()())
            await check_table(store, clock, table)
        at_once = Check(Concurrency(2), "someone", at_us=1, level=1)
        (charged,) = await store.decide([at_once])
        if problem := getattr(charged, "problem", None):
            raise problem
        await store.decide([at_once.given_back(charged)])


def granted(*without: str) -> list[str]:
    """The rules of a user who has all that is needed, but for these."""
    return ["~rl:*", *(f"+{right}" for right in RIGHTS if right not in without)]


def test_the_rights_are_those_that_the_script_needs() -> None:
    """Four of them are the store's own; the others are the commands in lua/, no more and no less.

    The documentation lists them: what changes here changes there.
    """
    folder = Path(__file__).resolve().parents[3] / "lua"
    called = {
        name.lower()
        for path in folder.glob("*.lua")
        for name in re.findall(r"redis\.p?call\('(\w+)'", path.read_text(encoding="ascii"))
    }
    assert set(RIGHTS) == called | {"evalsha", "script|load", "del", "srandmember"}


async def test_a_user_with_the_least_rights(guarded: Server) -> None:
    """These rights are enough for all that a store does, over either protocol."""
    async with acting(guarded, *granted()) as url:
        await everything(url)
        await everything(f"{url}?protocol=2")


async def test_a_success_that_forgets_failures_needs_one_right_more(guarded: Server) -> None:
    check = Check(LIMIT, "someone")
    for more in ((), ("+eval",)):
        async with acting(guarded, *granted(), *more) as url, RedisStore(url, deadline=10) as store:
            (charged,) = await store.decide([check])
            refused_without = pytest.raises(StoreUnavailable, match="'eval' command")
            with nullcontext() if more else refused_without:
                await store.add_failure(check.given_back(charged), 1_000_000)
                await store.forget_failures(check)
                assert await remaining(RedisStore(url, deadline=10)) == 4


@pytest.mark.parametrize("right", RIGHTS)
async def test_no_right_can_be_left_out(guarded: Server, right: str) -> None:
    """Where one is missing, that is what is said, of kind "permission"."""
    async with acting(guarded, *granted(right)) as url:
        with pytest.raises(StoreUnavailable) as caught:
            await everything(url)
    assert caught.value.kind == "permission"


async def test_keys_out_of_a_users_reach(guarded: Server) -> None:
    """A user whose keys do not begin with the store's prefix is refused for that."""
    async with acting(guarded, "~other:*", *granted()[1:]) as url:
        assert (await refused(RedisStore(url))).kind == "permission"
        assert await remaining(RedisStore(url, prefix="other:")) == 4


async def test_a_database_needs_a_right_of_its_own(guarded: Server) -> None:
    """Any but the first is chosen by SELECT."""
    async with acting(guarded, *granted(), database=1) as url:
        assert (await refused(RedisStore(url))).kind == "permission"
    async with acting(guarded, *granted(), "+select", database=1) as url:
        assert await remaining(RedisStore(url)) == 4
