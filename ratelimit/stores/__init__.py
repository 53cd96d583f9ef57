"""Stores of counters: the `Store` protocol, and `open_store` from a URI to a store."""

from collections.abc import Sequence
from typing import Final, Protocol, runtime_checkable

from ratelimit.decisions import Check, Decision
from ratelimit.stores.errors import StoreUnavailable
from ratelimit.stores.memory import MemoryStore

SCHEMES: Final = ("redis", "rediss", "unix", "redis+sentinel", "redis+cluster")

__all__ = ["MemoryStore", "Store", "StoreUnavailable", "open_store"]


@runtime_checkable
class Store(Protocol):
    """A store of counters: three methods. Ours are also async context managers that close it.

    `ratelimit.testing` holds the suite that every store passes.
    """

    async def decide(self, checks: Sequence[Check]) -> tuple[Decision, ...]:
        """One decision per check of one request, in their order; all are charged, or none.

        Raises StoreUnavailable where the store cannot answer.
        """
        ...

    async def reset(self, checks: Sequence[Check]) -> None:
        """Makes the counters that these checks name as if they had never been used."""
        ...

    async def aclose(self) -> None:
        """Releases the store's resources; it opens again when it is next asked."""
        ...


def open_store(uri: str, *, deadline: float = 0.05) -> Store:
    """The store at a URI; nothing is opened until it is first asked.

    ``memory://``, and what `RedisStore` takes: ``redis://``, ``rediss://`` and ``unix://`` with
    redis-py's options in the query, ``redis+sentinel://host:port,host:port/service`` and
    ``redis+cluster://host:port,host:port``.
    ``deadline``, in seconds, bounds a decision in Redis.

    Raises ValueError, in one sentence that shows no password, for a URI that names no store, and
    ImportError where redis-py is not installed.
    """
    if not isinstance(uri, str):
        raise TypeError(f"a store's URI is text, not {type(uri).__name__}")
    scheme, found, rest = uri.partition("://")
    if uri == "memory://":
        return MemoryStore()
    if found and scheme in SCHEMES and rest:
        from ratelimit.stores.redis import RedisStore  # redis-py is an extra

        return RedisStore(uri, deadline=deadline)
    shown = f"{scheme}://" if found else "the text"
    raise ValueError(
        f"{shown} names no store; there are memory://, redis://host:port/db, "
        "rediss://host:port/db, unix:///path, redis+sentinel://host:port/service and redis+cluster://host:port"
    )
