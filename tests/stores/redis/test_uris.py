"""A store's URI: every mistake is told before anything is opened, and nothing of its secrets."""

import ssl
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import pytest
import redis
import valkey
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import ConnectionPool, Redis, RedisCluster, Sentinel
from redis.asyncio.connection import Connection, SSLConnection

from ratelimit import RedisStore, open_store
from ratelimit.stores import check_uri
from ratelimit.stores.redis.uris import SCHEMES, StoreUri, read_uri
from tests.support.servers import certificates

SECRET: Final = "s3cret"
NOT_READ: Final = "/ ? # @ and brackets are written %2F %3F %23 %40 %5B %5D"

WRONG: Final = [
    # what is no URI
    ("", "the store is not a URI"),
    ("localhost:6379", "the store is not a URI"),
    ("REDIS://h", "the store's scheme is 'REDIS'; did you mean redis://"),
    ("async+redis://h", "the store's scheme is 'async+redis'; did you mean"),
    (
        "redis-cluster://h",
        "did you mean redis+cluster://; there are memory://, redis://, rediss://",
    ),
    (f"u:{SECRET}@redis://h", "the store's scheme is unknown"),
    ("memory://x", "something follows memory://"),
    ("redis://", "nothing, or a space, follows redis://"),
    ("redis://a b", "nothing, or a space, follows redis://"),
    ("valkey://", "nothing, or a space, follows valkey://"),
    # what is no host
    ("redis://h:", NOT_READ),
    ("redis://h:0", NOT_READ),
    ("redis://h:65536", NOT_READ),
    ("redis://h:6379:6379", NOT_READ),
    ("redis://[::1", NOT_READ),
    ("redis://h%00:1", NOT_READ),
    ("redis://a:1,b:2", "redis:// names one server; write redis+cluster:// or redis+sentinel://"),
    ("redis+cluster://h:1,,h:2", "redis+cluster:// names no host:port,host:port"),
    ("unix://run/socket", "no path follows unix://"),
    ("unix://h", "no path follows unix://"),
    ("unix://?db=0", "no path follows unix://"),
    ("unix:///", "no path follows unix://"),
    ("unix:///a%00", NOT_READ),
    # passwords with characters left as they are
    (f"redis://u:{SECRET}@x@h", NOT_READ),
    (f"redis://u:{SECRET}/x@h", NOT_READ),
    (f"redis://u:{SECRET}?x@h", NOT_READ),
    (f"redis://u:12?{SECRET}=x@h", NOT_READ),
    (f"redis://u:{SECRET}#x@h", NOT_READ),
    (f"redis://u:{SECRET}]x@h", NOT_READ),
    (f"redis://u/{SECRET}:x@h", NOT_READ),
    (f"rediss://:{SECRET}/@h", NOT_READ),
    (f"unix://u:{SECRET}/x@/socket", NOT_READ),
    (f"redis+cluster://u:{SECRET}@x@h:1", NOT_READ),
    (f"redis+cluster://u:1/{SECRET}@h:1", NOT_READ),
    (f"redis+sentinel://u:{SECRET}@x@h/s", NOT_READ),
    (f"redis+sentinel://u:1/{SECRET}@h/s", NOT_READ),
    (f"redis://h?password=x&{SECRET}=y", "a name in the query is not an option"),
    (f"redis://h?password={SECRET}@x", NOT_READ),
    (f"redis+sentinel://h/s?sentinel_password=x&sentinel_{SECRET}=y", "a name in the query is not"),
    (f"redis://h?{SECRET}%20=x", "a name in the query is not an option"),
    (f"redis://:{SECRET}@h?password=x", "'password' differs from what stands before the query"),
    # databases and services
    ("redis://h/name", "no database can be read behind the host; write redis://host:port/0"),
    ("redis://h/0/1", "no database can be read behind the host; write redis://host:port/0"),
    ("redis://h/0?db=1", "'db' differs from what stands before the query"),
    ("redis+cluster://h/0", "redis+cluster:// takes no database; a cluster has one"),
    ("redis+cluster://h?db=0", "'db' is not an option of a connection"),
    ("redis+sentinel://h", "no service follows the hosts"),
    (
        "redis+sentinel://h/s/x",
        "no database can be read; write redis+sentinel://host:port/service/0",
    ),
    # options
    ("redis://h?ssl=true", "'ssl' is not an option of a connection; write rediss:// for TLS"),
    ("valkey://h?ssl=true", "'ssl' is not an option of a connection; write valkeys:// for TLS"),
    ("redis://h?ssl=x", "'ssl' takes true or false"),
    ("unix:///s?ssl=true", "'ssl' is not an option of a connection"),
    ("rediss://h?ssl=false", "ssl=false contradicts rediss://"),
    ("rediss+cluster://h?ssl=0", "ssl=false contradicts rediss+cluster://"),
    ("redis://h?timeout=1", "'timeout' is not an option of a connection; the store's deadline"),
    ("redis+cluster://h?timeout=1", "'timeout' is not an option of a connection"),
    ("redis://h?host=x", "'host' is not an option of a connection; the host stands before"),
    ("redis://h?socket_timeuot=1", "'socket_timeuot' is not an option of a connection; did you"),
    ("redis+cluster://h?databse=1", "'databse' is not an option of a connection"),
    ("redis+sentinel://h/s?sentinel_user=x", "'sentinel_user' is not an option of a connection"),
    ("redis+sentinel://h/s?sentinel_db=1", "'sentinel_db' is not an option of a connection"),
    ("redis+cluster://h?sentinel_username=x", "'sentinel_username' is not an option"),
    ("redis+cluster://h?min_other_sentinels=1", "'min_other_sentinels' is not an option"),
    ("redis+sentinel://h/s?min_other_sentinels=x", "'min_other_sentinels' takes a whole number"),
    ("redis+cluster://h?address_remap=a", "'address_remap' takes announced=reachable"),
    ("redis+sentinel://h/s?address_remap=a:0=b", "'address_remap' takes announced=reachable"),
    ("redis://h?address_remap=a=b", "'address_remap' is not an option of a connection"),
    ("unix:///s?socket_keepalive=1", "'socket_keepalive' is not an option of a connection"),
    ("redis://h?db", "the option 'db' has no value"),
    ("redis://h?db=", "the option 'db' has no value"),
    ("redis://h?db=-1", "the option 'db' takes a whole number"),
    ("redis://h?db=1&db=2", "'db' is given twice"),
    ("redis://h?protocol=4", "the option 'protocol' takes 2 or 3"),
    ("redis://h?socket_timeout=nan", "'socket_timeout' takes a number of seconds above 0"),
    ("redis://h?client_name=a%20b", "'client_name' takes text without spaces"),
    ("redis://h?encoding=latin-99", "'encoding' takes the name of a codec"),
    ("redis://h?" + "&".join(f"a{n}=1" for n in range(101)), "more than 100 options"),
    # TLS
    ("redis://h?ssl_cert_reqs=none", "'ssl_cert_reqs' is for TLS; write rediss://"),
    ("valkey://h?ssl_ca_certs=/x", "'ssl_ca_certs' is for TLS; write valkeys://"),
    ("unix:///s?ssl_ca_certs=/x", "'ssl_ca_certs' is for TLS; a unix socket has none"),
    ("redis+cluster://h?ssl_ca_certs=/x", "'ssl_ca_certs' is for TLS; add ssl=true"),
    ("redis+sentinel://h/s?sentinel_ssl_ca_certs=/x", "is for TLS; add sentinel_ssl=true"),
    ("rediss://h?ssl_cert_reqs=CERT_NONE", "'ssl_cert_reqs' takes none, optional or required"),
    ("redis+cluster://h?ssl=1&ssl_cert_reqs=CERT_NONE", "'ssl_cert_reqs' takes none, optional"),
    ("redis+sentinel://h/s?ssl=1&ssl_cert_reqs=CERT_NONE", "'ssl_cert_reqs' takes none, optional"),
    (
        "redis+sentinel://h/s?sentinel_ssl=1&sentinel_ssl_cert_reqs=CERT_NONE",
        "'sentinel_ssl_cert_reqs' takes none, optional or required",
    ),
    ("rediss://h?ssl_min_version=1.2", "'ssl_min_version' takes 771 (TLS 1.2) or 772 (TLS 1.3)"),
    ("rediss://h?ssl_include_verify_flags=[NONE]", "takes names of ssl.VerifyFlags"),
    ("rediss://h?ssl_ciphers=none-such", "'ssl_ciphers' cannot be used"),
    ("rediss://h?ssl_ca_certs=/not/there", "'ssl_ca_certs' cannot be used: No such file"),
    ("rediss://h?ssl_ca_path=/not/there", "'ssl_ca_path' cannot be used: No such file"),
    ("rediss://h?ssl_ca_data=x", "'ssl_ca_data' cannot be used"),
    ("rediss://h?ssl_certfile=/not/there", "'ssl_certfile' cannot be used: No such file"),
    ("rediss://h?ssl_keyfile=/not/there", "'ssl_keyfile' needs ssl_certfile beside it"),
    ("redis+cluster://h?ssl=1&ssl_ca_certs=/not/there", "'ssl_ca_certs' cannot be used: No such"),
    (
        "redis+sentinel://h/s?ssl=1&ssl_ca_certs=/not/there",
        "'ssl_ca_certs' cannot be used",
    ),
    (
        "redis+sentinel://h/s?sentinel_ssl=1&sentinel_ssl_ca_certs=/not/there",
        "'sentinel_ssl_ca_certs' cannot be used",
    ),
]


@pytest.mark.parametrize(("uri", "said"), WRONG)
def test_a_mistake_in_a_uri_is_told_alike_wherever_it_is_given(uri: str, said: str) -> None:
    """By `check_uri`, `open_store` and `RedisStore`, in one sentence without what is secret."""
    ways: list[Callable[[str], object]] = [check_uri, open_store]
    if not uri.startswith("memory://"):
        ways.append(RedisStore)
    messages = set()
    for way in ways:
        with pytest.raises(ValueError) as caught:
            way(uri)
        messages.add(str(caught.value))
    (message,) = messages
    assert said in message
    assert SECRET not in message
    assert "\n" not in message


@pytest.mark.parametrize("uri", [None, b"redis://h", 6379, Path("/run/socket")])
def test_what_is_not_text_is_not_a_uri(uri: Any) -> None:
    for way in (check_uri, open_store):
        with pytest.raises(TypeError, match=r"^a store's URI is text, not "):
            way(uri)


def test_memory_is_not_a_store_in_redis() -> None:
    with pytest.raises(ValueError, match=r"^memory:// is a MemoryStore's"):
        RedisStore("memory://")


@pytest.mark.parametrize(
    ("uri", "parts"),
    [
        ("memory://", StoreUri("memory")),
        ("redis:///2", StoreUri("redis", (("localhost", 6379),), settings={"db": 2})),
        ("redis://[::1]:1/", StoreUri("redis", (("::1", 1),))),
        ("redis://[fe80::1%25eth0]", StoreUri("redis", (("fe80::1%eth0", 6379),))),
        (
            "valkey://u:p%40%2F%3F%23%5B+%25@h:7/3?protocol=2&client_name=a",
            StoreUri(
                "redis",
                (("h", 7),),
                settings={
                    "protocol": 2,
                    "client_name": "a",
                    "db": 3,
                    "username": "u",
                    "password": "p@/?#[+%",
                },
            ),
        ),
        (
            "unix://:p@/run/a%20b?db=1",
            StoreUri("unix", settings={"db": 1, "password": "p", "path": "/run/a b"}),
        ),
        (
            "valkeys+cluster://a,b:1?address_remap=a=c",
            StoreUri(
                "cluster",
                (("a", 6379), ("b", 1)),
                secure=True,
                settings={"ssl_check_hostname": True},
                remap={"a": "c"},
            ),
        ),
        (
            "redis+sentinel://a,b:1/s/4?min_other_sentinels=2&sentinel_username=w",
            StoreUri(
                "sentinel",
                (("a", 26379), ("b", 1)),
                "s",
                settings={"db": 4},
                to_sentinels={"username": "w"},
                min_other_sentinels=2,
            ),
        ),
    ],
)
def test_a_uri_is_read_into_its_parts(uri: str, parts: StoreUri) -> None:
    assert read_uri(uri) == parts
    check_uri(uri)


def test_every_scheme_is_taken_by_all_who_take_uris() -> None:
    for scheme, (kind, secure) in SCHEMES.items():
        uri = {
            "memory": "memory://",
            "unix": "unix:///run/socket",
            "sentinel": f"{scheme}://h:1/service",
        }.get(kind, f"{scheme}://h:1")
        check_uri(uri)
        open_store(uri)
        assert read_uri(uri).secure is secure


def test_options_of_pools_and_clients_are_taken_and_without_effect() -> None:
    """Since others share the URI; as for what they decode, a store reads bytes by itself."""
    shared = "redis://h?max_connections=5&decode_responses=true&retry_on_timeout=1"
    assert read_uri(f"{shared}&health_check_interval=30&legacy_responses=no").settings == {}
    check_uri("rediss://h?ssl=true")  # redundant, and not wrong


def test_sentinels_behind_tls_take_the_options_of_the_master() -> None:
    """Where they have none of their own, and where they are behind TLS at all."""
    uri = "rediss+sentinel://h/s?ssl_cert_reqs=none"
    assert read_uri(uri).to_sentinels == {}
    assert read_uri(f"{uri}&sentinel_ssl=true").to_sentinels["ssl_cert_reqs"] == "none"
    own = read_uri(f"{uri}&sentinel_ssl=true&sentinel_ssl_cert_reqs=required").to_sentinels
    assert own == {"ssl_cert_reqs": "required", "ssl_check_hostname": True}


def test_tls_asks_for_the_name_unless_it_is_told_not_to() -> None:
    """With every release of redis-py, some of which do not by themselves."""
    for query, asks in (
        ("", True),
        ("?ssl_check_hostname=false", False),
        ("?ssl_check_hostname=off", False),
        ("?ssl_cert_reqs=none", False),
        ("?ssl_cert_reqs=none&ssl_check_hostname=true", False),
    ):
        assert read_uri(f"rediss://h{query}").settings["ssl_check_hostname"] is asks
        connection = RedisStore(f"rediss://h{query}")._target._kind.make()
        assert connection.ssl_context.get().check_hostname is asks


@pytest.mark.parametrize(
    "uri", ["redis://h", "valkeys://h", "redis+cluster://h", "redis+sentinel://h/s"]
)
def test_a_uri_means_the_same_with_every_redis_py(uri: str) -> None:
    """RESP3, and probes of an idle connection, which not every release has by itself."""
    target = RedisStore(uri)._target
    for kind in (target._kind, *target._sentinels):
        connection = kind.make()
        assert connection.protocol == 3
        assert connection.socket_keepalive
        assert sorted(connection.socket_keepalive_options.values()) == [3, 5, 30]
        assert connection.socket_timeout is None
    assert RedisStore(f"{uri}?protocol=2")._target._kind.make().protocol == 2


def test_files_of_tls_are_looked_at(tmp_path: Path) -> None:
    """One that holds something else, a key of another certificate, a key that wants a password."""
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    one, two = (certificates(str(tmp_path / name)) for name in ("one", "two"))
    text = tmp_path / "text"
    text.write_text("no certificate")
    locked = tmp_path / "locked.key"
    locking = ["openssl", "pkey", "-aes128", "-passout", "pass:pw", "-in", str(one.key)]
    locking += ["-out", str(locked)]
    subprocess.run(locking, check=True, capture_output=True)
    right = f"rediss://h?ssl_ca_certs={one.authority}&ssl_certfile={one.certificate}"
    check_uri(f"{right}&ssl_keyfile={one.key}")
    check_uri(f"{right}&ssl_keyfile={locked}&ssl_password=pw")
    for uri, name in (
        (f"rediss://h?ssl_ca_certs={text}", "ssl_ca_certs"),
        (f"rediss://h?ssl_ca_certs={tmp_path}", "ssl_ca_certs"),
        (f"{right}&ssl_keyfile={two.key}", "ssl_certfile"),
        (f"{right}&ssl_keyfile={locked}", "ssl_certfile"),
        (f"{right}&ssl_keyfile={locked}&ssl_password={SECRET}", "ssl_certfile"),
        (right, "ssl_certfile"),  # which holds no key
    ):
        with pytest.raises(ValueError, match=f"^the option '{name}' cannot be used: ") as caught:
            check_uri(uri)
        assert SECRET not in str(caught.value)


BLOCKED: Final = """
import sys
sys.modules["redis"] = sys.modules["hiredis"] = None
from ratelimit import RedisStore
from ratelimit.stores import check_uri
check_uri("redis+sentinel://u:p@h:1/s?ssl=true")
try:
    check_uri("redis://h?ssl=true")
except ValueError as error:
    print(error)
try:
    RedisStore("redis://h")
except ImportError as error:
    print(error)
"""


def test_a_uri_is_checked_where_redis_py_is_not_installed() -> None:
    """There a store is what cannot be built, in one sentence that says how to mend it."""
    ran = subprocess.run(
        [sys.executable, "-c", BLOCKED], capture_output=True, text=True, check=True
    )
    assert ran.stdout.splitlines() == [
        "'ssl' is not an option of a connection; write rediss:// for TLS",
        "a RedisStore needs redis-py: pip install 'ratelimit-asgi[redis]'",
    ]


def test_a_hiredis_that_is_missing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the store is built, not at its first decision."""
    monkeypatch.setitem(sys.modules, "hiredis", None)
    with pytest.raises(ImportError, match=r"^a RedisStore needs hiredis: pip install "):
        RedisStore("redis://h")


PIECES: Final = st.lists(
    st.sampled_from(["zqxj", "12", *"/?#@[]:&=+,;%! é\t\0\n"]), min_size=1, max_size=6
).map("".join)
"""Passwords of all that separates the parts of a URI."""


@given(PIECES, st.sampled_from(["redis", "valkeys", "redis+cluster", "redis+sentinel", "unix"]))
def test_no_piece_of_a_password_is_taken_for_something_else(password: str, scheme: str) -> None:
    """It is read as it was meant, or the URI refused without a piece of it."""
    behind = {"redis+sentinel": "h:7/s", "unix": "/run/s"}.get(scheme, "h:7")
    for written, where in (
        (f"{scheme}://u:{password}@{behind}", "before"),
        (f"{scheme}://{behind}?password={password}", "in the query"),
        (f"{scheme}://u:{quote(password, safe='')}@{behind}", "encoded"),
    ):
        told, parts = tried(written)
        if parts is None:
            assert where != "encoded"
            assert "zqxj" not in told
            assert not {"'12'", ":12"}.intersection(told.split())
        else:
            assert parts.hosts in ((), (("h", 7),))
            if where == "encoded":
                assert parts.settings["password"] == password
            known = {"username", "password", "path", "ssl_check_hostname"}
            assert set(parts.settings) <= known


def tried(uri: str) -> tuple[str, StoreUri | None]:
    """What is said of a URI, or its parts."""
    try:
        return "", read_uri(uri)
    except ValueError as error:
        return str(error), None


# --- ready-made clients --------------------------------------------------------------------------


class OwnContext(Connection):
    """A connection with a TLS context of the application's own."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.ssl_context: Any = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.ssl_context.check_hostname = False
        self.ssl_context.verify_mode = ssl.CERT_NONE


def pooled(**settings: Any) -> Any:
    """A client of a pool that was made before it."""
    return Redis(connection_pool=ConnectionPool(**settings))


synchronous: Final[Any] = redis.Sentinel

MEANT: Final = "would trust any server; give its authority in ssl_ca_certs, or ssl_cert_reqs='none'"


@pytest.mark.parametrize(
    ("client", "said"),
    [
        (lambda: Redis(ssl=True, ssl_cert_reqs=ssl.CERT_NONE), MEANT),
        (lambda: pooled(connection_class=SSLConnection, ssl_cert_reqs=ssl.CERT_NONE), MEANT),
        (lambda: pooled(connection_class=OwnContext), MEANT),
        (lambda: RedisCluster("h", ssl=True, ssl_cert_reqs=ssl.CERT_NONE), MEANT),
        (
            lambda: Sentinel(  # type: ignore[no-untyped-call]
                [("h", 1)], sentinel_kwargs={"ssl": True, "ssl_cert_reqs": ssl.CERT_NONE}
            ).master_for("s"),
            MEANT,
        ),
        (
            lambda: Redis.from_url("rediss://h?ssl_cert_reqs=CERT_NONE"),
            "Invalid SSL Certificate Requirements Flag",
        ),
        (lambda: Redis.from_url("redis://h?ssl=true"), "'ssl' is not an option of a connection"),
        (lambda: pooled(timeout=1), "'timeout' is not an option of a connection of redis-py "),
        (lambda: Redis(ssl=True, ssl_ca_certs="/not/there"), "certificates or keys for TLS"),
    ],
)
def test_a_mistake_in_a_ready_made_client_is_told(client: Callable[[], Any], said: str) -> None:
    """When the store is built, not at each decision."""
    with pytest.raises(ValueError) as caught:
        RedisStore(client())
    assert said in str(caught.value)


@pytest.mark.parametrize("meant", ["none", None])
def test_tls_with_any_server_is_taken_where_it_is_meant(meant: Any) -> None:
    """``none`` in a URI, and ``"none"`` or None in a client; it cannot come from a slip."""
    RedisStore(Redis(ssl=True, ssl_cert_reqs=meant, ssl_check_hostname=False))
    RedisStore("rediss://h?ssl_cert_reqs=none")


@pytest.mark.parametrize("asked", [ssl.CERT_REQUIRED, ssl.CERT_OPTIONAL])
def test_a_client_may_ask_for_certificates_in_the_words_of_ssl(asked: ssl.VerifyMode) -> None:
    connection = RedisStore(Redis(ssl=True, ssl_cert_reqs=asked))._target._kind.make()
    assert connection.ssl_context.cert_reqs == asked


@pytest.mark.parametrize(
    "client",
    [
        lambda: redis.Redis(password=SECRET),
        lambda: redis.from_url(f"redis://:{SECRET}@h"),
        lambda: synchronous([("h", 1)]),
        lambda: synchronous([("h", 1)]).master_for("s"),
        lambda: redis.RedisCluster.__new__(redis.RedisCluster),
        lambda: redis.Redis().pipeline(),
        lambda: valkey.Valkey(password=SECRET),
    ],
)
def test_a_synchronous_client_is_refused(client: Callable[[], Any]) -> None:
    """Of every kind, also of redis-py's relatives, when the store is built."""
    with pytest.raises(
        TypeError, match=r"^a RedisStore takes a redis\.asyncio client, and this "
    ) as caught:
        RedisStore(client())
    assert SECRET not in str(caught.value)


def test_an_asynchronous_client_of_another_library_is_refused_as_such() -> None:
    """It would be called synchronous otherwise, where its connections are opened in another way."""

    class Unlike:
        def connect(self) -> None: ...

    class Other:
        class connection_pool:  # noqa: N801
            connection_class = Unlike

        async def __aenter__(self) -> None: ...

    with pytest.raises(TypeError, match=r"a redis\.asyncio client, not .*\.Other$"):
        RedisStore(Other())


@pytest.mark.parametrize(
    "given",
    [ConnectionPool(), redis.ConnectionPool(), Sentinel([("h", 1)]), 6379, None, b"redis://h"],  # type: ignore[no-untyped-call]
)
def test_what_is_neither_a_uri_nor_a_client_is_refused(given: Any) -> None:
    with pytest.raises(
        TypeError, match=r"^a RedisStore takes a URI or a redis\.asyncio client, not "
    ):
        RedisStore(given)
