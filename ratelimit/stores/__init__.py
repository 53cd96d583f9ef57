"""Stores of counters: the `Store` protocol, and `open_store` from a URI to a store."""

from collections.abc import Sequence
from typing import Protocol, Self, runtime_checkable

from ratelimit.decisions import Check, Decision
from ratelimit.stores.errors import StoreUnavailable
from ratelimit.stores.memory import MemoryStore

__all__ = ["ManagedStore", "MemoryStore", "Store", "StoreUnavailable", "check_uri", "open_store"]


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


class ManagedStore(Store, Protocol):
    """A store that ``async with`` closes, as all of ours are."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *_: object) -> None: ...


def open_store(uri: str, *, deadline: float = 0.05) -> ManagedStore:
    """The store at a URI; nothing is opened until it is first asked.

    ``memory://``, and what `RedisStore` takes: ``redis://``, ``rediss://`` and ``unix://`` with
    redis-py's options in the query, ``redis+sentinel://host:port,host:port/service`` and
    ``redis+cluster://host:port,host:port``; the same with ``valkey`` for ``redis``.
    ``deadline``, in seconds, bounds a decision in Redis.

    Raises what `check_uri` raises, and ImportError where redis-py is not installed, or one that is
    not supported.
    """
    from ratelimit.stores.redis import RedisStore
    from ratelimit.stores.redis.uris import read_uri

    if read_uri(uri).kind == "memory":
        return MemoryStore()
    return RedisStore(uri, deadline=deadline)


def check_uri(uri: str) -> None:
    """Returns where a store can be opened at a URI; neither redis-py nor a server is asked.

    Raises TypeError for what is not text, and ValueError for any mistake in it, TLS files that
    cannot be used among them: one sentence, which shows neither names, passwords nor hosts.
    """
    from ratelimit.stores.redis.uris import read_uri

    read_uri(uri)
