"""A store's URI or client to its servers and the settings of their connections."""

import re
from collections.abc import (
    Mapping,
    Sequence,
)
from contextlib import suppress
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlencode, urlsplit

from ratelimit.stores.redis.names import (
    Address,
    Remap,
)

__all__ = ["Plan", "read_client", "read_uri", "tls_options"]


class Plan(NamedTuple):
    """A target's servers and settings, before a connection is made."""

    connection_class: Any
    settings: dict[str, Any]
    seeds: Sequence[Address] = ()
    service: str = ""
    manager: Any = None
    sentinels: Sequence[tuple[Any, dict[str, Any]]] = ()
    remap: Remap | None = None


def tls_options(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name.startswith("ssl_")}


def read_client(client: Any, options: dict[str, Any]) -> Plan:
    """The settings of a client of redis-py's, without its retries."""
    import redis
    from redis.asyncio import RedisCluster
    from redis.asyncio.connection import AbstractConnection, Connection, SSLConnection
    from redis.asyncio.sentinel import (
        SentinelConnectionPool,
        SentinelManagedConnection,
        SentinelManagedSSLConnection,
    )

    def own(connection_class: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
        ours = {name: options[name] for name in ("retry", "maint_notifications_config")}
        if not issubclass(connection_class, AbstractConnection):
            ours = {name: value for name, value in ours.items() if name in settings}
        return {**settings, **ours}

    if isinstance(client, redis.Redis | redis.RedisCluster | redis.Sentinel):
        raise TypeError(
            f"a RedisStore takes a redis.asyncio client, and this {type(client).__name__} is a "
            "synchronous one"
        )
    if isinstance(client, RedisCluster):
        settings = dict(client.nodes_manager.connection_kwargs)
        connection_class = settings.pop("connection_class", Connection)
        # The pool's and the client's, and what makes a node's connections read-only.
        for name in ("max_connections", "response_callbacks", "redis_connect_func"):
            settings.pop(name, None)
        return Plan(
            connection_class,
            own(connection_class, settings),
            seeds=[(node.host, int(node.port)) for node in client.startup_nodes],
            remap=client.nodes_manager.address_remap,
        )
    pool = getattr(client, "connection_pool", None)
    if pool is None:
        raise TypeError(
            f"a RedisStore takes a URI or a redis.asyncio client, not {type(client).__name__}"
        )
    connection_class, settings = pool.connection_class, dict(pool.connection_kwargs)
    if not isinstance(pool, SentinelConnectionPool):
        return Plan(connection_class, own(connection_class, settings))
    if not pool.is_master:
        raise ValueError(
            "this client reads from replicas, which take no writes; give the one of master_for"
        )
    plain = {SentinelManagedConnection: Connection, SentinelManagedSSLConnection: SSLConnection}
    if connection_class in plain:
        connection_class = plain[connection_class]
        settings.pop("connection_pool", None)
    pools = [each.connection_pool for each in pool.sentinel_manager.sentinels]
    return Plan(
        connection_class,
        own(connection_class, settings),
        service=pool.service_name,
        manager=pool.sentinel_manager,
        sentinels=[
            (each.connection_class, own(each.connection_class, each.connection_kwargs))
            for each in pools
        ],
    )


def read_uri(uri: str, options: dict[str, Any]) -> Plan:
    """The servers and settings in a URI."""
    from redis.asyncio import Sentinel

    scheme, separator, rest = uri.partition("://")
    if scheme in ("valkey", "valkeys"):
        uri = f"redis{scheme.removeprefix('valkey')}{separator}{rest}"
    scheme, _, rest = uri.partition("://")
    if scheme not in ("redis+sentinel", "redis+cluster"):
        return Plan(*_settings(uri, options))
    authority, _, query = rest.partition("?")
    authority, _, path = authority.partition("/")
    if "@" in path + query.partition("=")[0]:
        raise _unreadable(scheme)
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
    remap = _read_remap(asked.pop("address_remap", ""))
    others = asked.pop("min_other_sentinels", "0") if service else "0"
    if re.fullmatch(r"[0-9]{1,3}", others) is None:
        raise ValueError(f"min_other_sentinels is {others!r}; it is a whole number")
    to_sentinels = {
        name.removeprefix("sentinel_"): asked.pop(name)
        for name in list(asked)
        if name.startswith("sentinel_") and service
    }
    secure = _is_yes(asked.pop("ssl", "false"))
    start = f"{'rediss' if secure else 'redis'}://{credentials}{at}localhost/{database}"
    connection_class, settings = _settings(f"{start}?{urlencode(asked)}", options)
    settings.pop("host", None)
    settings.pop("port", None)
    if not service:
        return Plan(connection_class, settings, seeds=nodes, remap=remap)
    secure = _is_yes(to_sentinels.pop("ssl", "false"))
    asked_of_them = {**(tls_options(asked) if secure else {}), **to_sentinels}
    start = f"{'rediss' if secure else 'redis'}://localhost"
    sentinel_class, common = _settings(f"{start}?{urlencode(asked_of_them)}", options)
    makes: Any = Sentinel
    return Plan(
        connection_class,
        settings,
        service=service,
        manager=makes([], min_other_sentinels=int(others)),
        sentinels=[
            (sentinel_class, {**common, "host": host, "port": port}) for host, port in nodes
        ],
        remap=remap,
    )


def _is_yes(text: str) -> bool:
    return text.lower() in ("true", "1", "yes")


def _read_remap(text: str) -> dict[str, str] | None:
    """``announced=reachable,announced=reachable`` of a URI."""
    if not text:
        return None
    pairs = [pair.split("=") for pair in text.split(",")]
    if any(len(pair) != 2 for pair in pairs):
        raise ValueError(
            f"address_remap is {text!r}; it is announced=reachable,announced=reachable"
        )
    return dict(pairs)


def _settings(uri: str, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """redis-py's connection class and settings of a URI with one host, or a path."""
    from redis.asyncio import ConnectionPool

    _refuse_unreadable(uri)
    pool = ConnectionPool.from_url(uri, **options)
    return pool.connection_class, dict(pool.connection_kwargs)


def _refuse_unreadable(uri: str) -> None:
    """Raises where a URI has no readable host and port.

    urllib's own sentence would show the start of a password that holds a ``/``, ``?`` or ``#``,
    and where that is a number it would be taken for the port.
    """
    with suppress(ValueError):
        split = urlsplit(uri)
        split.port  # noqa: B018  # which raises
        first, _, _ = split.query.partition("=")
        if split.scheme == "unix" or "@" not in split.path + first + split.fragment:
            return
    raise _unreadable(uri.partition("://")[0])


def _unreadable(scheme: str) -> ValueError:
    return ValueError(
        f"no host and port can be read in the {scheme}:// URI; in a user's "
        "name or password, / ? # @ and brackets are written %2F %3F %23 %40 %5B %5D"
    )
