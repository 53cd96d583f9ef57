"""A store's URI or client to its servers and the settings of their connections."""

import inspect
import socket
import ssl
from collections.abc import (
    Mapping,
    Sequence,
)
from typing import Any, Final, NamedTuple

from ratelimit.stores.redis.names import (
    Address,
    Remap,
)
from ratelimit.stores.redis.uris import read_uri

__all__ = ["Plan", "of_client", "of_uri", "tls_options"]

KEEPALIVE: Final = {
    "socket_keepalive": True,
    "socket_keepalive_options": {
        getattr(socket, name): seconds
        for name, seconds in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3))
        if hasattr(socket, name)
    },
}
"""Probes after 30 s and the end 15 s later, as redis-py 8 has them; older ones had none."""


_NOT_THE_CLIENTS: Final = ("retry", "maint_notifications_config")


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


def of_client(client: Any, options: Mapping[str, Any]) -> Plan:
    """The settings of a client of redis-py's, without its retries."""
    import redis
    from redis.asyncio import RedisCluster
    from redis.asyncio.connection import Connection, SSLConnection
    from redis.asyncio.sentinel import (
        SentinelConnectionPool,
        SentinelManagedConnection,
        SentinelManagedSSLConnection,
    )

    if isinstance(client, redis.Redis | redis.RedisCluster | redis.Sentinel):
        raise _synchronous(client)
    if isinstance(client, RedisCluster):
        return _of_cluster(client, options)
    pool = getattr(client, "connection_pool", None)
    connect = getattr(getattr(pool, "connection_class", None), "connect", None)
    if pool is None or not inspect.iscoroutinefunction(connect):
        if pool is not None and not hasattr(client, "__aenter__"):
            raise _synchronous(client)
        name = f"{type(client).__module__}.{type(client).__qualname__}".removeprefix("builtins.")
        raise TypeError(f"a RedisStore takes a URI or a redis.asyncio client, not {name}")
    connection_class, settings = pool.connection_class, dict(pool.connection_kwargs)
    if not isinstance(pool, SentinelConnectionPool):
        return Plan(connection_class, _own(connection_class, settings, options))
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
        _own(connection_class, settings, options),
        service=pool.service_name,
        manager=pool.sentinel_manager,
        sentinels=[
            (each.connection_class, _own(each.connection_class, each.connection_kwargs, options))
            for each in pools
        ],
    )


def _of_cluster(client: Any, options: Mapping[str, Any]) -> Plan:
    from redis.asyncio.connection import Connection

    manager = client.nodes_manager
    settings = dict(manager.connection_kwargs)
    connection_class = settings.pop("connection_class", Connection)
    # The pool's and the client's, and what makes a node's connections read-only.
    for name in ("max_connections", "response_callbacks", "redis_connect_func"):
        settings.pop(name, None)
    # Before 8 they are known to the manager alone.
    nodes = getattr(client, "startup_nodes", manager.startup_nodes.values())
    return Plan(
        connection_class,
        _own(connection_class, settings, options),
        seeds=[(node.host, int(node.port)) for node in nodes],
        remap=manager.address_remap,
    )


def _own(
    connection_class: Any, settings: Mapping[str, Any], options: Mapping[str, Any]
) -> dict[str, Any]:
    """A client's settings, for connections without its retries."""
    from redis.asyncio.connection import AbstractConnection

    is_usual = issubclass(connection_class, AbstractConnection)
    ours = {
        name: value
        for name, value in options.items()
        if name in _NOT_THE_CLIENTS and (is_usual or name in settings)
    }
    asked = settings.get("ssl_cert_reqs")
    if asked in (ssl.CERT_OPTIONAL, ssl.CERT_REQUIRED):  # which 5.2 knows as words alone
        ours["ssl_cert_reqs"] = ssl.VerifyMode(asked).name.removeprefix("CERT_").lower()
    return {**settings, **ours}


def _synchronous(client: Any) -> TypeError:
    return TypeError(
        f"a RedisStore takes a redis.asyncio client, and this {type(client).__name__} is a "
        "synchronous one"
    )


def of_uri(uri: str, options: Mapping[str, Any]) -> Plan:
    """The servers and settings in a URI."""
    from redis.asyncio import Sentinel
    from redis.asyncio.connection import Connection, SSLConnection, UnixDomainSocketConnection

    told = read_uri(uri)
    if told.kind == "memory":
        raise ValueError("memory:// is a MemoryStore's, and this is a RedisStore")
    options = {**options, "protocol": 3}  # the default since 8 alone
    if told.kind == "unix":
        return Plan(UnixDomainSocketConnection, {**options, **told.settings})
    connection_class: Any = SSLConnection if told.secure else Connection
    settings = {**options, **KEEPALIVE, **told.settings}
    if told.kind == "cluster":
        return Plan(connection_class, settings, seeds=told.hosts, remap=told.remap)
    if told.kind == "redis":
        ((host, port),) = told.hosts
        return Plan(connection_class, {**settings, "host": host, "port": port})
    common = {**options, **KEEPALIVE, **told.to_sentinels}
    sentinel_class: Any = SSLConnection if told.sentinels_secure else Connection
    makes: Any = Sentinel
    return Plan(
        connection_class,
        settings,
        service=told.service,
        manager=makes([], min_other_sentinels=told.min_other_sentinels),
        sentinels=[
            (sentinel_class, {**common, "host": host, "port": port}) for host, port in told.hosts
        ],
        remap=told.remap,
    )
