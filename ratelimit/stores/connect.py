"""Where a store's servers are, and how connections to them are made: URIs, clients, TLS, Sentinel.

redis-py connects and authenticates; nothing here sends a command of the limiter's. Names are looked
up and TLS files read in threads of our own: asyncio's executor is the application's, and a resolver
that hangs would fill it.
"""

import asyncio
import contextlib
import copy
import ipaddress
import logging
import os
import re
import socket
import ssl
import threading
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Hashable,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any, ClassVar, Final, NamedTuple
from urllib.parse import parse_qsl, urlencode, urlsplit

from ratelimit.stores.failures import StoreUnavailable, explain

__all__ = ["PATIENCE", "Address", "Dialer", "Remap", "Target"]

_LOG: Final = logging.getLogger("ratelimit")

Address = tuple[str, int]

Remap = Callable[[Address], Address] | Mapping[Any, Any]
"""Where an announced address is reached: a function of ``(host, port)``, or a mapping of
``(host, port)``, ``"host:port"`` or ``"host"`` to one of the same."""

PATIENCE: Final = 1.0  # seconds at least that a server is given to take a connection
TOLD_AFTER: Final = 0.9  # of it: so that our own sentence comes before whoever waits gives up
TICKS: Final = 20  # in which a patience is counted
NEXT_SENTINEL_AFTER: Final = 0.05  # seconds at most; the one before may answer still
MOST_ADDRESSES: Final = 8  # of one name that are tried
MOST_ERRANDS: Final = 64  # threads at once; names may come from a cluster's nodes
MOST_OF_HOST: Final = 80  # characters of a host in a sentence
MOST_TOLD: Final = 150  # characters about sentinels in a sentence


# --- blocking work, outside the event loop -------------------------------------------------------


class _Errands:
    """Blocking work in daemon threads: one for each key at a time, whose askers share its result.

    For all event loops of the process. A thread ends with its work; one that hangs keeps nobody
    from leaving, neither a caller that is cancelled nor the interpreter.
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Begins anew, as a child of a fork must: its parent's threads did not come along."""
        self._lock = threading.Lock()
        self._under_way: dict[Hashable, set[asyncio.Future[Any]]] = {}

    async def result(self, key: Hashable, work: Callable[[], Any]) -> Any:
        """What ``work`` returns or raises, or did for whoever asked before; StoreUnavailable."""
        future = asyncio.get_running_loop().create_future()
        with self._lock:
            waiting = self._under_way.get(key)
            is_first = waiting is None
            if waiting is None:
                if len(self._under_way) >= MOST_ERRANDS:
                    raise StoreUnavailable(
                        f"{MOST_ERRANDS} names are being looked up already", kind="name"
                    )
                waiting = self._under_way[key] = set()
            waiting.add(future)
        try:
            if is_first:
                self._start(key, work)
            value, error = await future
        finally:
            with self._lock:
                waiting.discard(future)
        if error is not None:
            raise error.with_traceback(None)
        return value

    def _start(self, key: Hashable, work: Callable[[], Any]) -> None:
        thread = threading.Thread(
            target=self._run, args=(key, work), name="ratelimit-connect", daemon=True
        )
        try:
            thread.start()
        except RuntimeError as error:  # too many threads, or the interpreter ends
            self._settle(key, None, StoreUnavailable(f"no thread could be started ({error})"))

    def _run(self, key: Hashable, work: Callable[[], Any]) -> None:
        value, problem = None, None
        try:
            value = work()
        except Exception as error:  # noqa: BLE001 # whoever asked is told
            problem = error
        self._settle(key, value, problem)

    def _settle(self, key: Hashable, value: Any, problem: Exception | None) -> None:
        with self._lock:
            waiting = list(self._under_way.pop(key, ()))
        for future in waiting:
            with suppress(RuntimeError):  # its event loop was closed meanwhile
                future.get_loop().call_soon_threadsafe(_answer, future, (value, problem))


def _answer(future: asyncio.Future[Any], result: Any) -> None:
    if not future.done():
        future.set_result(result)


_errands: Final = _Errands()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_errands.forget)


@asynccontextmanager
async def _within(seconds: float) -> AsyncIterator[None]:
    """Raises TimeoutError after so many seconds, of which an event loop that stalls uses up few.

    They are counted in ticks, and however long the loop was held up, that is one: what a server
    sent meanwhile is read before the next.
    """
    loop = asyncio.get_running_loop()
    timer: asyncio.TimerHandle
    async with asyncio.timeout(None) as limit:

        def tick(left: int) -> None:
            nonlocal timer
            if left:
                timer = loop.call_later(seconds / TICKS, tick, left - 1)
            else:
                limit.reschedule(loop.time())

        timer = loop.call_later(seconds / TICKS, tick, TICKS - 1)
        try:
            yield
        finally:
            timer.cancel()


# --- addresses -----------------------------------------------------------------------------------


def _spelt(host: str, port: int) -> str:
    """An address in words; servers announce any text as a host."""
    if not host.isprintable():
        host = ascii(host)[1:-1]
    if len(host) > MOST_OF_HOST:
        host = f"{host[:MOST_OF_HOST]}…"
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class _Progress:
    """How far the making of a connection has come."""

    def __init__(self, trying: str, patience: float = PATIENCE) -> None:
        self.trying = trying
        self.patience = patience
        """Seconds that it may take altogether."""
        self.waiting_for = ""
        self.failed: dict[str, str] = {}
        """What became of sentinels that gave no master."""

    def sentinels(self) -> str:
        """The sentinels that failed, and why."""
        told = "; ".join(f"{name}: {why}" for name, why in self.failed.items())
        return told if len(told) <= MOST_TOLD else f"{told[: MOST_TOLD - 1]}…"

    def late(self) -> StoreUnavailable:
        """What is told where time is up."""
        seconds = self.patience
        if self.waiting_for == "name":
            return StoreUnavailable(
                f"the name of {self.trying} was not resolved within {seconds:g} s", kind="name"
            )
        return self.told(
            StoreUnavailable(f"no connection to {self.trying} within {seconds:g} s", kind="late")
        )

    def told(self, error: BaseException) -> StoreUnavailable:
        """A failure with the address that was tried last."""
        why = explain(error)
        said = str(why) if self.trying in str(why) else f"{why}, at {self.trying}"
        if self.failed and why.kind != "no-master":
            said += f" (of the sentinels, {self.sentinels()})"
        return StoreUnavailable(said, kind=why.kind)


def _addresses(host: str, port: int) -> list[str]:
    """The addresses of a name, in the system's order. Blocks."""
    found: dict[str, None] = {}
    answers: list[Any] = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    for *_, at in answers:
        has_scope = len(at) == 4 and at[3] and "%" not in str(at[0])
        found[f"{at[0]}%{at[3]}" if has_scope else str(at[0])] = None
    return list(found)[:MOST_ADDRESSES]


async def _look_up(host: str, port: int, progress: _Progress) -> list[str]:
    """The addresses of a host; StoreUnavailable of kind "name" where it has none."""
    with suppress(ValueError):
        ipaddress.ip_address(host)
        return [host]
    progress.trying, progress.waiting_for = _spelt(host, port), "name"
    try:
        addresses: list[str] = await _errands.result(
            ("name", host, port), partial(_addresses, host, port)
        )
    except (OSError, ValueError, OverflowError) as error:  # it may be no name at all
        raise StoreUnavailable(
            f"the name of {progress.trying} does not resolve ({error})", kind="name"
        ) from None
    return addresses


def _remapper(remap: Remap | None) -> Callable[[Address], Address]:
    """``remap`` as a function; raises ValueError for a mapping that is not one of addresses."""
    if remap is None:
        return lambda address: address
    if isinstance(remap, Mapping):
        table = {_place(name): _place(to) for name, to in remap.items()}

        def mapped(address: Address) -> Address:
            host, port = table.get(address) or table.get((address[0], None)) or address
            return host, address[1] if port is None else port

        return mapped
    if not callable(remap):
        raise TypeError(f"address_remap is a function or a mapping, not {type(remap).__name__}")

    def asked(address: Address) -> Address:
        try:
            host, port = remap(address)
            return str(host), int(port)
        except Exception as error:
            raise StoreUnavailable(
                f"address_remap gave no (host, port) for {_spelt(*address)} ({error!r})",
                kind="cluster",
            ) from error

    return asked


def _place(spelt: Any) -> tuple[str, int | None]:
    """A host, and a port if there is one, of how either side of a remap is written."""
    if isinstance(spelt, tuple) and len(spelt) == 2 and isinstance(spelt[0], str):
        host, port = spelt
        if type(port) is int and 0 < port < 65536:
            return host, port
    elif isinstance(spelt, str):
        with suppress(ValueError):
            return str(ipaddress.ip_address(spelt)), None
        found = re.fullmatch(r"(\[[^\]\s]+\]|[^:\[\]\s]+)(?::([0-9]{1,5}))?", spelt)
        if found is not None and (found[2] is None or 0 < int(found[2]) < 65536):
            return found[1].strip("[]"), None if found[2] is None else int(found[2])
    raise ValueError(
        f"address_remap has {spelt!r}; it takes (host, port), 'host:port' or 'host' to the same"
    )


# --- TLS -----------------------------------------------------------------------------------------


class _Tls:
    """The TLS context of all connections of one kind, read anew when its files have changed."""

    def __init__(self) -> None:
        self._good: Any = None
        self._stamp: Any = None
        self._complained = False

    def read(self, fresh: Any) -> Any:
        """The context now, given one of redis-py's that was not read yet. Blocks.

        Raises OSError (ssl.SSLError is one) where no context was ever read.
        """
        # Before they are read: what changes meanwhile is read again.
        stamp = [_stamp(path) for path in _files(fresh)]
        if self._good is not None and stamp == self._stamp:
            return self._good
        try:
            fresh.get()
        except OSError as error:
            if self._good is None:
                raise
            if not self._complained:
                self._complained = True
                _LOG.warning(
                    "the certificates or keys for TLS have changed and cannot be used, "
                    "so those of before are still used: %s",
                    error,
                )
            return self._good
        self._good, self._stamp, self._complained = fresh, stamp, False
        return fresh

    async def give(self, connection: Any) -> None:
        """Gives a connection that speaks TLS the context that all have."""
        fresh = getattr(connection, "ssl_context", None)
        if hasattr(fresh, "get") and hasattr(fresh, "context"):
            connection.ssl_context = await _errands.result(self, partial(self.read, fresh))


def _files(context: Any) -> list[Any]:
    """Files and folders that a context of redis-py's is read from, with the system's."""
    system = ssl.get_default_verify_paths()
    named = [
        getattr(context, name, None) for name in ("ca_certs", "ca_path", "certfile", "keyfile")
    ]
    return [*named, system.cafile, system.capath]


def _stamp(path: Any) -> Any:
    try:
        found = os.stat(path)  # noqa: PTH116 # a path may be bytes
    except (OSError, TypeError, ValueError):
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


# --- connections ---------------------------------------------------------------------------------


class _Dialing:
    """What is put before a connection class of redis-py's, which then resolves by `_look_up`.

    The addresses of a name are tried in order, each within its share of the time. TLS goes on
    asking for the name.
    """

    __slots__ = ()
    tls: ClassVar[_Tls]

    async def connect(self) -> None:
        this: Any = self
        parent: Any = super()
        if this.is_connected:
            return
        progress = this.__dict__.get("progress") or _Progress("")
        name, port = this.host, this.port
        addresses = await _look_up(name, port, progress)
        progress.waiting_for = ""
        await self.tls.give(this)
        share = progress.patience * 0.9 / len(addresses)
        this.server_name = name
        progress.waiting_for = "connection"
        try:
            for number, address in enumerate(addresses, 1):
                this.host = address
                progress.trying = _spelt(name, port)
                if address != name:
                    progress.trying += f" ({address})"
                is_last = number == len(addresses)
                try:
                    async with contextlib.nullcontext() if is_last else _within(share):
                        await parent.connect()
                except Exception as error:
                    if is_last or not _is_unreached(error):
                        raise
                    await this.disconnect(nowait=True)
                else:
                    return
        finally:
            this.host = name

    def _connection_arguments(self) -> Mapping[str, Any]:
        parent: Any = super()
        arguments = dict(parent._connection_arguments())  # noqa: SLF001
        if arguments.get("ssl"):
            this: Any = self
            arguments.setdefault("server_hostname", this.__dict__.get("server_name", this.host))
        return arguments


def _is_unreached(error: Exception) -> bool:
    """Whether no server spoke, so that the next address may do better."""
    from redis.exceptions import ConnectionError as Unreached
    from redis.exceptions import TimeoutError as Late

    # Those exactly: a wrong password is a ConnectionError, too.
    return isinstance(error, OSError) or type(error) in (Unreached, Late)


class _Kind:
    """How connections of one kind are made: redis-py's class, and its settings."""

    def __init__(
        self,
        connection_class: Any,
        settings: Mapping[str, Any],
        tls: _Tls | None = None,
    ) -> None:
        self.tls = tls or _Tls()
        self.settings = dict(settings)
        self.connection_class = connection_class
        if _resolves_as_usual(connection_class):
            self.connection_class = type(
                connection_class.__name__,
                (_Dialing, connection_class),
                {"tls": self.tls},
            )

    def make(self, address: Address | None = None) -> Any:
        """A connection that is not open yet."""
        if address is None:
            return self.connection_class(**self.settings)
        return self.connection_class(**{**self.settings, "host": address[0], "port": address[1]})

    def place(self) -> str:
        """Where connections lead to, in words."""
        if "path" in self.settings:
            return str(self.settings["path"])
        return _spelt(str(self.settings.get("host", "localhost")), self.settings.get("port", 6379))

    def check(self) -> None:
        """Raises ValueError where no connection can be made of the settings."""
        from redis.exceptions import RedisError

        try:
            connection = self.make()
        except TypeError as error:
            found = re.search(r"unexpected keyword argument '(\w+)'", str(error))
            if found is None:
                raise
            hint = "; write rediss:// for TLS" if found[1] == "ssl" else ""
            raise ValueError(f"{found[1]!r} is not an option of a connection{hint}") from None
        except RedisError as error:
            raise ValueError(f"no connection can be made of these options: {error}") from None
        fresh = getattr(connection, "ssl_context", None)
        if hasattr(fresh, "get") and hasattr(fresh, "context"):
            try:
                self.tls.read(fresh)
            except OSError as error:
                raise ValueError(
                    f"the certificates or keys for TLS cannot be used: {error}"
                ) from None


def _resolves_as_usual(connection_class: Any) -> bool:
    """Whether a class of connections looks names up as redis-py does; others go on by themselves.

    Raises ImportError where redis-py has changed so that this cannot be told.
    """
    import redis
    from redis.asyncio.connection import Connection, SSLConnection

    for name in ("_connect", "_connection_arguments"):
        if not callable(getattr(SSLConnection, name, None)):
            raise ImportError(  # noqa: TRY004 # another version of it would do
                f"redis-py {redis.__version__} is not supported: its SSLConnection has no {name}; "
                "install a version of it that ratelimit was tested with"
            )
    return (
        isinstance(connection_class, type)
        and issubclass(connection_class, Connection)
        and all(
            getattr(connection_class, name) is getattr(Connection, name)
            for name in ("connect", "_connect")
        )
    )


class _Said:
    """A sentinel that has answered, for redis-py's own judgement of the answer."""

    def __init__(self, masters: Any) -> None:
        self._masters = masters

    async def sentinel_masters(self) -> Any:
        return self._masters


class _Sentinels:
    """One event loop's way to the sentinels: the master's address from the first that tells it."""

    def __init__(
        self, service: str, manager: Any, kinds: Sequence[_Kind], order: list[int]
    ) -> None:
        from redis.asyncio import ConnectionPool, Redis

        self._service = service
        self._manager = manager
        self._order = order
        self._names = [kind.place() for kind in kinds]
        self._clients: list[Any] = [
            # Which closes its pool, unlike one that is given it.
            Redis.from_pool(ConnectionPool(kind.connection_class, **kind.settings))
            for kind in kinds
        ]

    async def master(self, progress: _Progress, patience: float) -> Address:
        """The master's address; StoreUnavailable where no sentinel tells it.

        The sentinel that answered last is asked first. Each of the others is asked when the one
        before it has failed or not answered for a while, and then both are waited for.
        """
        from redis.exceptions import RedisError

        gap = min(NEXT_SENTINEL_AFTER, patience / (len(self._names) + 1))
        waiting = list(self._order)
        asked: dict[asyncio.Task[Address], int] = {}
        progress.waiting_for = "connection"
        try:
            while asked or waiting:
                if waiting:
                    number = waiting.pop(0)
                    progress.trying = f"the sentinel {self._names[number]}"
                    asked[asyncio.create_task(self._ask(number))] = number
                done, _ = await asyncio.wait(
                    asked,
                    timeout=gap if waiting else None,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                for task in done:
                    number = asked.pop(task)
                    try:
                        address = task.result()
                    except (RedisError, OSError, StoreUnavailable) as error:
                        why, _, _ = str(explain(error)).partition(" (")
                        progress.failed[self._names[number]] = why
                    else:
                        # At once: event loops of other threads read it.
                        self._order[:] = [number, *(it for it in self._order if it != number)]
                        return address
        finally:
            for task, number in asked.items():
                progress.failed[self._names[number]] = "no answer"
                task.cancel()
            if asked:
                await asyncio.gather(*asked, return_exceptions=True)
        raise StoreUnavailable(
            f"Sentinel knows no master of {self._service!r} at the moment ({progress.sentinels()})",
            kind="no-master",
        )

    async def _ask(self, number: int) -> Address:
        masters = await self._clients[number].sentinel_masters()
        judge = copy.copy(self._manager)
        judge.sentinels = [_Said(masters)]
        host, port = await judge.discover_master(self._service)
        return str(host), int(port)

    async def aclose(self) -> None:
        for client in self._clients:
            await client.aclose()


class Dialer:
    """Connections to one server, or to the master that Sentinel names; for one event loop."""

    def __init__(
        self,
        make: Callable[[Address | None], Any],
        place: str,
        patience: float,
        tls: _Tls,
        sentinels: _Sentinels | None = None,
        reachable: Callable[[Address], Address] = lambda address: address,
    ) -> None:
        self._make = make
        self._place = place
        self._patience = patience
        self._tls = tls
        self._sentinels = sentinels
        self._reachable = reachable
        self._progress = _Progress(place)
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

    async def _open(self, progress: _Progress) -> Any:
        address = None
        if self._sentinels is not None:
            # One half: what is left is the master's, or the others would not matter.
            address = await self._first_master(progress, progress.patience / 2)
            progress.trying = _spelt(*address)
        connection = self._make(address)
        if isinstance(connection, _Dialing):
            connection.__dict__["progress"] = progress
        else:
            await self._tls.give(connection)
            progress.waiting_for = "connection"
        try:
            await connection.connect()
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        return connection

    async def _first_master(self, progress: _Progress, patience: float) -> Address:
        sentinels: Any = self._sentinels
        async with _within(patience):
            address: Address = await sentinels.master(progress, patience)
        return self._reachable(address)

    async def _master(self) -> Address:
        progress = self._begin(None)
        address: Address = await self._bounded(
            progress, self._first_master(progress, progress.patience)
        )
        return address

    def _begin(self, within: float | None) -> _Progress:
        seconds = self._patience if within is None else within
        return _Progress(self._place, seconds * TOLD_AFTER)

    async def _bounded(self, progress: _Progress, work: Coroutine[Any, Any, Any]) -> Any:
        from redis.exceptions import RedisError

        try:
            async with _within(progress.patience):
                return await work
        except TimeoutError:
            raise progress.late() from None
        except (RedisError, OSError, StoreUnavailable) as error:
            raise progress.told(error) from None

    async def aclose(self) -> None:
        """Closes the connections to sentinels."""
        if self._sentinels is not None:
            await self._sentinels.aclose()


# --- what a store was given ----------------------------------------------------------------------


class _Plan(NamedTuple):
    """What a target comes to, before a connection is made."""

    connection_class: Any
    settings: dict[str, Any]
    seeds: Sequence[Address] = ()
    service: str = ""
    manager: Any = None
    sentinels: Sequence[tuple[Any, dict[str, Any]]] = ()
    remap: Remap | None = None


class Target:
    """What a store was given, a URI or a client; a mistake in it is told when this is built.

    ``address_remap`` is for a Cluster or Sentinel whose servers announce addresses that cannot be
    reached from here.

    Raises ImportError where redis-py is missing or another than it was, TypeError and ValueError,
    in one sentence that shows no password.
    """

    def __init__(self, target: Any, deadline: float, address_remap: Remap | None = None) -> None:
        try:
            from redis.asyncio.retry import Retry
            from redis.backoff import NoBackoff
            from redis.maint_notifications import MaintNotificationsConfig
        except ImportError:
            raise ImportError(
                "a RedisStore needs redis-py 8 or newer: pip install 'ratelimit-asgi[redis]'"
            ) from None
        self._patience = max(deadline, PATIENCE)
        options = {
            "socket_timeout": None,
            "socket_connect_timeout": self._patience,
            "retry": Retry(NoBackoff(), 0),
            "maint_notifications_config": MaintNotificationsConfig(enabled=False),
        }
        plan = _read(target, options) if isinstance(target, str) else _taken(target, options)
        self.is_cluster = bool(plan.seeds)
        self.seeds = plan.seeds
        """The nodes of a cluster that were named."""
        remap = plan.remap if address_remap is None else address_remap
        if remap is not None and not (self.is_cluster or plan.service):
            raise ValueError("address_remap is for a Cluster or Sentinel, and this is one server")
        self.reachable = _remapper(remap)
        """Where an address that a server announced is reached: itself, unless it was remapped."""
        self._kind = _Kind(plan.connection_class, plan.settings)
        self._kind.check()
        self._service, self._manager = plan.service, plan.manager
        self._sentinels: list[_Kind] = []
        for each in plan.sentinels:
            alike = (
                it.tls
                for it in self._sentinels
                if _tls_options(it.settings) == _tls_options(each[1])
            )
            self._sentinels.append(_Kind(*each, next(alike, None)))
            self._sentinels[-1].check()
        self._order = list(range(len(self._sentinels)))

    def dialer(self, address: Address | None = None) -> Dialer:
        """Connections for one event loop: to the server, or to the cluster's node at an address.

        Such an address is `reachable` already.
        """
        make, tls = self._kind.make, self._kind.tls
        if address is not None:
            node = address
            return Dialer(lambda _: make(node), _spelt(*node), self._patience, tls)
        if not self._service:
            return Dialer(make, self._kind.place(), self._patience, tls)
        sentinels = _Sentinels(self._service, self._manager, self._sentinels, self._order)
        place = f"the master of {self._service}"
        return Dialer(make, place, self._patience, tls, sentinels, self.reachable)


def _tls_options(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name.startswith("ssl_")}


def _taken(client: Any, options: dict[str, Any]) -> _Plan:
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
        return _Plan(
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
        return _Plan(connection_class, own(connection_class, settings))
    if not pool.is_master:
        raise ValueError(
            "this client reads from replicas, which take no writes; give the one of master_for"
        )
    plain = {SentinelManagedConnection: Connection, SentinelManagedSSLConnection: SSLConnection}
    if connection_class in plain:
        connection_class = plain[connection_class]
        settings.pop("connection_pool", None)
    pools = [each.connection_pool for each in pool.sentinel_manager.sentinels]
    return _Plan(
        connection_class,
        own(connection_class, settings),
        service=pool.service_name,
        manager=pool.sentinel_manager,
        sentinels=[
            (each.connection_class, own(each.connection_class, each.connection_kwargs))
            for each in pools
        ],
    )


def _read(uri: str, options: dict[str, Any]) -> _Plan:
    """What a URI says."""
    from redis.asyncio import Sentinel

    scheme, separator, rest = uri.partition("://")
    if scheme in ("valkey", "valkeys"):
        uri = f"redis{scheme.removeprefix('valkey')}{separator}{rest}"
    scheme, _, rest = uri.partition("://")
    if scheme not in ("redis+sentinel", "redis+cluster"):
        return _Plan(*_settings(uri, options))
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
        return _Plan(connection_class, settings, seeds=nodes, remap=remap)
    secure = _is_yes(to_sentinels.pop("ssl", "false"))
    asked_of_them = {**(_tls_options(asked) if secure else {}), **to_sentinels}
    start = f"{'rediss' if secure else 'redis'}://localhost"
    sentinel_class, common = _settings(f"{start}?{urlencode(asked_of_them)}", options)
    makes: Any = Sentinel
    return _Plan(
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
