"""Where a store's servers are, and how connections to them are made: URIs, clients, TLS, Sentinel.

redis-py resolves, connects and authenticates; nothing here sends a command of the limiter's.
"""

import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode, urlsplit

__all__ = ["PATIENCE", "Address", "Dialer", "Target"]

Address = tuple[str, int]

PATIENCE: Final = 1.0  # seconds at least that a server is given to take a connection


class Dialer:
    """Connections to one server, or to the master that Sentinel names; for one event loop."""

    def __init__(self, make: Callable[[], Any], pool: Any = None) -> None:
        self._make = make
        self._pool = pool
        self.master: Callable[[], Awaitable[Address]] | None = getattr(
            pool, "get_master_address", None
        )
        """The address of the server that connections are to lead to, where sentinels tell it."""

    async def open(self) -> Any:
        """A connection of redis-py's that is open and authenticated; raises what redis-py does.

        The caller bounds the time it may take.
        """
        connection = self._make()
        try:
            await connection.connect()
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        return connection

    async def aclose(self) -> None:
        """Closes the connections to sentinels."""
        if self.master is not None:
            for sentinel in self._pool.sentinel_manager.sentinels:
                await sentinel.aclose()


class Target:
    """What a store was given, a URI or a client; a mistake in it is told when this is built.

    Raises ImportError where redis-py is missing, TypeError and ValueError in one sentence that
    shows no password.
    """

    def __init__(self, target: Any, deadline: float) -> None:
        try:
            from redis.asyncio.retry import Retry
            from redis.backoff import NoBackoff
            from redis.maint_notifications import MaintNotificationsConfig
        except ImportError:
            raise ImportError(
                "a RedisStore needs redis-py 8 or newer: pip install 'ratelimit-asgi[redis]'"
            ) from None
        options = {
            "socket_timeout": None,
            "socket_connect_timeout": max(deadline, PATIENCE),
            "retry": Retry(NoBackoff(), 0),
            "maint_notifications_config": MaintNotificationsConfig(enabled=False),
        }
        self._share = _TlsContext().share
        self.is_cluster = isinstance(target, str) and target.startswith("redis+cluster://")
        self.seeds: Sequence[Address] = ()
        """The nodes of a cluster that were named."""
        if self.is_cluster:
            self.seeds, _, self._settings = _read_uri(target, options)
            self._class = self._settings.pop("connection_class")
        else:
            self._make_pool = pool_maker(target, options)
            self._share(self._make_pool().make_connection)()

    def dialer(self, address: Address | None = None) -> Dialer:
        """Connections for one event loop: to the server, or to the cluster's node at an address."""
        if address is not None:
            host, port = address
            settings = {**self._settings, "host": host, "port": port}
            return Dialer(self._share(lambda: self._class(**settings)))
        pool = self._make_pool()
        return Dialer(self._share(pool.make_connection), pool)


class _TlsContext:
    """One TLS context for all connections: reading certificates takes half a deadline."""

    def __init__(self) -> None:
        self._context: Any = None

    def share(self, make: Callable[[], Any]) -> Callable[[], Any]:
        """``make``, whose connections have this context if they have any.

        Raises ValueError, when the first is made, where its files cannot be used.
        """

        def made() -> Any:
            connection = make()
            if hasattr(connection, "ssl_context"):
                if self._context is None:
                    try:
                        connection.ssl_context.get()
                    except OSError as error:  # ssl.SSLError is one
                        raise ValueError(
                            f"the certificates or keys for TLS cannot be used: {error}"
                        ) from None
                    self._context = connection.ssl_context
                connection.ssl_context = self._context
            return connection

        return made


def pool_maker(target: Any, options: dict[str, Any]) -> Callable[[], Any]:
    """What makes a pool of redis-py's, of which only `make_connection` is used."""
    from redis.asyncio import ConnectionPool, Sentinel
    from redis.asyncio.sentinel import SentinelConnectionPool

    if not isinstance(target, str):
        pool = getattr(target, "connection_pool", None)
        if pool is None:
            raise TypeError(
                f"a RedisStore takes a URI or a redis.asyncio client, not {type(target).__name__}"
            )
        settings = {**pool.connection_kwargs, "retry": options["retry"]}
        return lambda: ConnectionPool(pool.connection_class, **settings)
    if not target.startswith("redis+sentinel://"):
        _refuse_unreadable(target)
        return lambda: ConnectionPool.from_url(target, **options)
    nodes, service, settings = _read_uri(target, options)
    tls = "ssl" in settings.pop("connection_class").__name__.lower()
    sentinel_settings = {
        name.removeprefix("sentinel_"): settings.pop(name)
        for name in ("sentinel_username", "sentinel_password")
        if name in settings
    }

    def make() -> Any:
        sentinels: Any = Sentinel
        pool: Any = SentinelConnectionPool
        manager = sentinels(nodes, sentinel_kwargs={**options, **sentinel_settings})
        return pool(service, manager, ssl=tls, **settings)

    return make


def _read_uri(uri: str, options: dict[str, Any]) -> tuple[list[tuple[str, int]], str, Any]:
    """Hosts, service and connection settings of a URI with several hosts."""
    from redis.asyncio import ConnectionPool

    scheme, _, rest = uri.partition("://")
    authority, _, query = rest.partition("?")
    authority, _, path = authority.partition("/")
    credentials, at, hosts = authority.rpartition("@")
    nodes = []
    for host in hosts.split(","):
        found = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^:\[\]\s]+)(?::([0-9]{1,5}))?", host)
        if found is None:
            raise ValueError(f"{scheme}:// names no host:port,host:port")
        default = 26379 if scheme == "redis+sentinel" else 6379
        nodes.append((found[1].strip("[]"), int(found[2] or default)))
    service, _, database = path.partition("/")
    if scheme == "redis+sentinel" and not service:
        raise ValueError(f"{scheme}:// names no service; write {scheme}://host:port/service")
    if scheme == "redis+cluster" and path:
        raise ValueError(f"{scheme}:// takes no database; a cluster has one")
    asked = dict(parse_qsl(query))
    secure = asked.pop("ssl", "false").lower() in ("true", "1", "yes")
    plain = f"{'rediss' if secure else 'redis'}://{credentials}{at}localhost/{database}"
    _refuse_unreadable(plain)
    pool = ConnectionPool.from_url(f"{plain}?{urlencode(asked)}", **options)
    settings = {**pool.connection_kwargs, "connection_class": pool.connection_class}
    settings.pop("host", None)
    settings.pop("port", None)
    return nodes, service, settings


def _refuse_unreadable(uri: str) -> None:
    """Raises where a URI has no readable host and port.

    urllib's own sentence would show the start of a password that holds a ``/``, ``?`` or ``#``.
    """
    try:
        urlsplit(uri).port  # noqa: B018  # which raises
    except ValueError:
        raise ValueError(
            f"no host and port can be read in the {uri.partition('://')[0]}:// URI; in a user's "
            "name or password, / ? # @ and brackets are written %2F %3F %23 %40 %5B %5D"
        ) from None
