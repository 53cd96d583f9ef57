"""The redis-py that is installed: what of it is relied on, and what is said of changes."""

from importlib import import_module
from typing import Any, Final

from ratelimit.stores.errors import StoreUnavailable

__all__ = ["TESTED", "check_installed", "is_not_supported", "unlike", "version"]

TESTED: Final = "5.2 to 8.1"
"""The versions of redis-py with which `make test-all` runs the tests of stores."""

_NEEDED: Final = (
    ("redis.asyncio.connection", "Connection._connect"),
    ("redis.asyncio.connection", "Connection.is_connected"),
    ("redis.asyncio.connection", "SSLConnection._connect"),
    ("redis.asyncio.connection", "SSLConnection._connection_arguments"),
    ("redis.asyncio.connection", "UnixDomainSocketConnection._connect"),
    ("redis.asyncio.sentinel", "SentinelConnectionPool"),
    ("redis.asyncio.sentinel", "SentinelManagedSSLConnection"),
    ("redis.asyncio.sentinel", "Sentinel.discover_master"),
    ("redis.asyncio", "Redis.from_pool"),
    ("redis.asyncio", "RedisCluster"),
    ("redis.asyncio.retry", "Retry"),
    ("redis.backoff", "NoBackoff"),
    ("redis.crc", "key_slot"),
)


def version() -> str:
    """The version of redis-py, as it says it."""
    import redis

    return str(getattr(redis, "__version__", "of an unknown version"))


def is_not_supported(what: str) -> str:
    """The sentence about what redis-py lacks or does otherwise."""
    return (
        f"redis-py {version()} is not supported: {what}; "
        f"ratelimit was tested with redis-py {TESTED}"
    )


def unlike(error: Exception) -> StoreUnavailable:
    """The failure where redis-py, or a class of the application's, raised what is no failure."""
    return StoreUnavailable(
        f"redis-py {version()} made no connection ({type(error).__name__}: {error}); "
        f"ratelimit was tested with redis-py {TESTED}",
        kind="old",
    )


def check_installed() -> None:
    """Raises ImportError where redis-py or hiredis is missing, or not one that can be used."""
    for name in ("redis", "hiredis"):
        try:
            import_module(name)
        except ImportError:
            raise ImportError(
                f"a RedisStore needs {'redis-py' if name == 'redis' else name}: "
                "pip install 'ratelimit-asgi[redis]'"
            ) from None
    for module, path in _NEEDED:
        try:
            found: Any = import_module(module)
            for name in path.split("."):
                found = getattr(found, name)
        except (ImportError, AttributeError):
            raise ImportError(is_not_supported(f"it has no {module}.{path}")) from None
