"""Connections to a store's servers, from a URI or a client, with TLS and Sentinel.

redis-py connects and authenticates; nothing here sends a command of the limiter's. Names are looked
up and TLS files read in threads of our own: asyncio's executor is the application's, and a resolver
that hangs would fill it.
"""

import os
from collections.abc import (
    Awaitable,
    Callable,
    Coroutine,
)
from inspect import signature
from typing import Any

from ratelimit.stores.errors import StoreUnavailable
from ratelimit.stores.redis.errands import ERRANDS, TOLD_AFTER, within
from ratelimit.stores.redis.installed import check_installed, unlike
from ratelimit.stores.redis.kinds import Dialing, Kind
from ratelimit.stores.redis.names import (
    PATIENCE,
    Address,
    Progress,
    Remap,
    remapper,
    spelt,
)
from ratelimit.stores.redis.plans import of_client, of_uri, tls_options
from ratelimit.stores.redis.sentinels import Sentinels
from ratelimit.stores.redis.stand_in import StandIn, needs_stand_in
from ratelimit.stores.redis.tls import Tls

__all__ = ["Dialer", "Target"]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=ERRANDS.forget)


# --- connections ---------------------------------------------------------------------------------


class Dialer:
    """Connections to one server, or to the master that Sentinel names; for one event loop."""

    def __init__(
        self,
        make: Callable[[Address | None], Any],
        place: str,
        patience: float,
        tls: Tls,
        sentinels: Sentinels | None = None,
        reachable: Callable[[Address], Address] = lambda address: address,
    ) -> None:
        self._make = make
        self._place = place
        self._patience = patience
        self._tls = tls
        self._sentinels = sentinels
        self._reachable = reachable
        self._progress = Progress(place)
        self.master: Callable[[], Awaitable[Address]] | None = (
            None if sentinels is None else self._master
        )
        """The address of the server that connections are to lead to, where sentinels tell it.

        Ends in time by itself; raises StoreUnavailable.
        """

    @property
    def trying(self) -> str:
        """The address that was tried last: ``host:port``, the path, or the sentinel."""
        return self._progress.trying

    @property
    def waiting_for(self) -> str:
        """``name`` or ``connection`` while or after these were waited for; else ``""``."""
        return self._progress.waiting_for

    async def open(self, within: float | None = None) -> Any:
        """A connection of redis-py's that is open and authenticated.

        Ends by itself somewhat before the seconds given; a stall of the event loop uses up few of
        them. Raises StoreUnavailable, which names the address that was tried last.
        """
        progress = self._progress = self._begin(within)
        connection: Any = await self._bounded(progress, self._open(progress))
        progress.waiting_for = ""
        return connection

    async def _open(self, progress: Progress) -> Any:
        address = None
        if self._sentinels is not None:
            # One half: what is left is the master's, or the others would not matter.
            address = await self._first_master(progress, progress.patience / 2)
            progress.trying = spelt(*address)
        connection = self._make(address)
        if isinstance(connection, Dialing):
            connection.__dict__["progress"] = progress
        else:
            await self._tls.give(connection)
            progress.waiting_for = "connection"
        try:
            await connection.connect()
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        return await StandIn.of(connection) if needs_stand_in(connection) else connection

    async def _first_master(self, progress: Progress, patience: float) -> Address:
        sentinels: Any = self._sentinels
        async with within(patience):
            address: Address = await sentinels.master(progress, patience)
        return self._reachable(address)

    async def _master(self) -> Address:
        progress = self._begin(None)
        address: Address = await self._bounded(
            progress, self._first_master(progress, progress.patience)
        )
        return address

    def _begin(self, within: float | None) -> Progress:
        seconds = self._patience if within is None else within
        return Progress(self._place, seconds * TOLD_AFTER)

    async def _bounded(self, progress: Progress, work: Coroutine[Any, Any, Any]) -> Any:
        from redis.exceptions import RedisError

        try:
            async with within(progress.patience):
                return await work
        except TimeoutError:
            raise progress.late() from None
        except (RedisError, OSError, StoreUnavailable) as error:
            raise progress.told(error) from None
        except (AttributeError, TypeError, ImportError) as error:
            raise unlike(error) from error

    async def aclose(self) -> None:
        """Closes the connections to sentinels."""
        if self._sentinels is not None:
            await self._sentinels.aclose()


# --- what a store was given ----------------------------------------------------------------------


class Target:
    """The URI or client that a store was given; a mistake in it is raised when this is built.

    ``address_remap`` is for a Cluster or Sentinel whose servers announce addresses that cannot be
    reached from here.

    Raises ImportError where redis-py is missing or another than those tested, TypeError and
    ValueError, in one sentence that shows no password.
    """

    def __init__(self, target: Any, deadline: float, address_remap: Remap | None = None) -> None:
        check_installed()
        from redis.asyncio.connection import AbstractConnection
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff

        self._patience = max(deadline, PATIENCE)
        options: dict[str, Any] = {
            "socket_timeout": None,
            "socket_connect_timeout": None,  # `within` bounds it, which no stall of ours uses up
            "retry": Retry(NoBackoff(), 0),
        }
        # Since 8.1 they would change a connection's timeouts by themselves.
        if "maint_notifications_config" in signature(AbstractConnection).parameters:
            from redis.maint_notifications import MaintNotificationsConfig

            options["maint_notifications_config"] = MaintNotificationsConfig(enabled=False)
        plan = of_uri(target, options) if isinstance(target, str) else of_client(target, options)
        self.is_cluster = bool(plan.seeds)
        self.seeds = plan.seeds
        """The nodes of a cluster that were named."""
        remap = plan.remap if address_remap is None else address_remap
        if remap is not None and not (self.is_cluster or plan.service):
            raise ValueError("address_remap is for a Cluster or Sentinel, and this is one server")
        self.reachable = remapper(remap)
        """The address at which an announced one is reached: itself, unless it was remapped."""
        self._kind = Kind(plan.connection_class, plan.settings)
        self._kind.check()
        self._service, self._manager = plan.service, plan.manager
        self._sentinels: list[Kind] = []
        for each in plan.sentinels:
            alike = (
                it.tls for it in self._sentinels if tls_options(it.settings) == tls_options(each[1])
            )
            self._sentinels.append(Kind(*each, next(alike, None)))
            self._sentinels[-1].check()
        self._order = list(range(len(self._sentinels)))

    def dialer(self, address: Address | None = None) -> Dialer:
        """Connections for one event loop: to the server, or to the cluster's node at an address.

        Such an address is `reachable` already.
        """
        make, tls = self._kind.make, self._kind.tls
        if address is not None:
            node = address
            return Dialer(lambda _: make(node), spelt(*node), self._patience, tls)
        if not self._service:
            return Dialer(make, self._kind.place(), self._patience, tls)
        sentinels = Sentinels(self._service, self._manager, self._sentinels, self._order)
        place = f"the master of {self._service}"
        return Dialer(make, place, self._patience, tls, sentinels, self.reachable)
