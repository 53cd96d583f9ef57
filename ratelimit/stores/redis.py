"""The shared store: one script per round trip, run inside Redis by its own clock."""

import asyncio
import re
import time
import weakref
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Self
from urllib.parse import parse_qsl, urlencode, urlsplit

from ratelimit.decisions import Action, Check, Decision, read_reply
from ratelimit.stores.deny_cache import DenyCache
from ratelimit.stores.failures import StoreUnavailable, explain

__all__ = ["RedisStore"]

Clock = Callable[[], int]

_GIVE_BACK: Final = int(Action.GIVE_BACK)

DENIALS_FOR: Final = 600  # seconds in which denials are counted together
MOST_DENIED: Final = 1_000  # names kept of them

MOST_SWITCHES: Final = 1000
"""Rules that can be turned off one by one."""


class RedisStore:
    """Counters in Redis or Valkey, shared by all workers that name the same server.

    ``target`` is a URI, or a ``redis.asyncio.Redis`` client, whose connection settings are then
    used and which stays its owner's to close:

    - ``redis://``, ``rediss://`` (TLS) and ``unix://``, with redis-py's options in the query;
    - ``redis+sentinel://host:port,host:port/service``;
    - ``redis+cluster://host:port,host:port``, any of its nodes.

    ``clock`` gives microseconds since the epoch; without one the server's TIME counts, so that all
    workers share one clock. ``deadline`` (seconds, above 0) is how long a decision may take;
    ``prefix`` begins every key. ``deny_cache`` (seconds, 0 for off) is how long a denial is
    repeated in process, at most until its `retry_after`; `remaining` is then that of the first.
    ``allow_oom`` lets the script write where the server is at maxmemory (Redis 7 and later): it
    then grows past it by the counters, about 150 bytes for each that is live.

    Opens at the first decision, in each event loop by itself. Raises StoreUnavailable from
    `decide`, `reset` and `ping`, and nothing of redis-py's.
    """

    def __init__(
        self,
        target: Any,
        clock: Clock | None = None,
        *,
        deadline: float = 0.05,
        prefix: str = "rl:",
        deny_cache: float = 1.0,
        allow_oom: bool = False,
    ) -> None:
        self._deadline = _seconds("deadline", deadline)
        if deadline <= 0:
            raise ValueError(f"deadline is {deadline}; it is above 0 s, and at most an hour")
        if type(prefix) is not str or set(prefix) & set("{}"):
            raise ValueError(f"prefix is {prefix!r}; it is text without braces")
        self._denials = DenyCache(round(_seconds("deny_cache", deny_cache) * 1_000_000), clock)
        self._caches = deny_cache > 0
        self._prefix = prefix
        self._one_server = not (isinstance(target, str) and target.startswith("redis+cluster://"))
        self._make_way = _way_maker(target, self._deadline, prefix, clock, allow_oom=allow_oom)
        self._ways: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Any] = (
            weakref.WeakKeyDictionary()
        )
        self._last: tuple[Any, Any] = (None, None)

    async def decide(self, checks: Sequence[Check]) -> tuple[Decision, ...]:
        """One decision per check, all charged or none, in one round trip; see `Store.decide`.

        In a cluster, checks of several identities are charged in parallel, and given back where
        one is denied.
        """
        if not checks:
            return ()
        asked = tuple(checks)
        asked_at = 0
        if self._caches:
            denials = self._denials
            # Most services deny nobody most of the time, and hashing checks takes its while.
            found = denials.find(asked) if denials.entries else None
            if found is not None:
                return found
            for check in asked:
                if check[4] == _GIVE_BACK:
                    denials.returned(asked)
                    break
            asked_at = denials.now()
        loop = asyncio.get_running_loop()
        last, way = self._last
        if last is not loop:
            way = self._way()
        if way.is_cluster:
            decisions: tuple[Decision, ...] = await way.decide(asked)
        else:
            decisions = read_reply(asked, *await way.ask(asked, 0))
        for decision in decisions:
            if not decision[1]:
                # A denial by checks of several slots may be over as soon as one of them is.
                if self._caches and (
                    not way.is_cluster or len({way.slot(check) for check in asked}) == 1
                ):
                    self._denials.keep(asked, decisions, asked_at)
                break
        return decisions

    async def reset(self, checks: Sequence[Check]) -> None:
        """Forgets the counters that these checks name; costs and actions play no part."""
        self._denials.clear()
        way = self._way()
        for check in checks:
            key = way.key(check)
            reply = await way.command(key, "DEL", key)
            if isinstance(reply, Exception):
                raise explain(reply) from None

    async def ping(self) -> None:
        """Returns if the server answers and can run the script; raises StoreUnavailable if not."""
        way = self._way()
        reply = await way.command(None, "SCRIPT", "LOAD", way.script)
        if isinstance(reply, Exception):
            raise explain(reply) from None

    async def heartbeat(self, worker: str, alive_for: float) -> int:
        """Makes a worker known for ``alive_for`` seconds; gives how many are known now.

        Workers keep their own clocks out of it: the server's counts, to the second.
        """
        key = f"{self._prefix}workers"
        way = self._way()
        time = await way.command(key, "TIME")
        if isinstance(time, Exception):
            raise explain(time) from None
        now = int(time[0]) + int(time[1]) / 1_000_000
        count: Any = 0
        for command in (
            ("ZADD", key, f"{now + alive_for:.3f}", worker),
            ("ZREMRANGEBYSCORE", key, "-inf", f"({now:.3f}"),
            ("PEXPIRE", key, str(round(alive_for * 1000) + 1000)),
            ("ZCARD", key),
        ):
            count = await way.command(key, *command)
            if isinstance(count, Exception):
                raise explain(count) from None
        return int(count)

    async def switches(self) -> frozenset[str]:
        """The names of the rules that are turned off for all workers; ``*`` stands for every rule.

        Raises StoreUnavailable, also where there are more than 1,000.
        """
        key = f"{self._prefix}switches"
        # The same as SMEMBERS, but for a set that grew without bounds, which nobody has to read.
        reply = await self._way().command(key, "SRANDMEMBER", key, str(MOST_SWITCHES + 1))
        if isinstance(reply, Exception):
            raise explain(reply) from None
        if not isinstance(reply, list):
            raise StoreUnavailable("what answers at this address is no Redis", kind="not-redis")
        if len(reply) > MOST_SWITCHES:
            raise StoreUnavailable(
                f"{key} holds more than {MOST_SWITCHES} names; turn off * instead", kind="switches"
            )
        return frozenset(name.decode("utf-8", "replace") for name in reply)

    async def switch(self, rule: str, *, off: bool) -> None:
        """Turns a rule off for all workers, until it is turned on again; ``*`` is every rule.

        Raises StoreUnavailable where it may not have been.
        """
        key = f"{self._prefix}switches"
        reply = await self._way().command(key, "SADD" if off else "SREM", key, rule)
        if isinstance(reply, Exception):
            raise explain(reply) from None

    async def note_denials(self, counts: Mapping[str, int]) -> None:
        """Adds to who was denied how often in these ten minutes, by ``rule identity``."""
        key = f"{self._prefix}denied:{int(time.time()) // DENIALS_FOR}"
        for command in (
            *(("ZINCRBY", key, str(count), name) for name, count in counts.items()),
            ("ZREMRANGEBYRANK", key, "0", str(-MOST_DENIED - 1)),
            ("EXPIRE", key, str(3 * DENIALS_FOR)),
        ):
            reply = await self._way().command(key, *command)
            if isinstance(reply, Exception):
                raise explain(reply) from None

    async def denials(self, count: int = 10) -> list[tuple[str, int]]:
        """``rule identity`` of those denied most in the last ten to twenty minutes, with how often.

        By the clocks of the workers, which need not agree to the second.
        """
        bucket = int(time.time()) // DENIALS_FOR
        total: Counter[str] = Counter()
        for each in (bucket - 1, bucket):
            key = f"{self._prefix}denied:{each}"
            reply = await self._way().command(
                key, "ZREVRANGE", key, "0", str(MOST_DENIED - 1), "WITHSCORES"
            )
            if isinstance(reply, Exception):
                raise explain(reply) from None
            if not isinstance(reply, list):
                raise StoreUnavailable("what answers at this address is no Redis", kind="not-redis")
            # RESP3 gives pairs, RESP2 one list.
            flat = [part for pair in reply for part in (pair if isinstance(pair, list) else [pair])]
            for name, score in zip(flat[::2], flat[1::2], strict=True):
                total[name.decode("utf-8", "replace")] += int(float(score))
        return sorted(total.items(), key=lambda each: (-each[1], each[0]))[:count]

    @property
    def one_server(self) -> bool:
        """Whether all counters are at one server, so that one failure speaks for all of them."""
        return self._one_server

    @property
    def denials_repeated(self) -> int:
        """Requests that were denied in process, without a round trip."""
        return self._denials.hits

    async def aclose(self) -> None:
        """Closes the connections that this event loop has opened; they open again when needed."""
        way = self._ways.pop(asyncio.get_running_loop(), None)
        self._last = (None, None)
        if way is not None:
            await way.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def _way(self) -> Any:
        loop = asyncio.get_running_loop()
        way = self._ways.get(loop)
        if way is None:
            way = self._ways[loop] = self._make_way(loop)
        self._last = (loop, way)
        return way

    def _key(self, check: Check) -> str:
        return str(self._way().key(check))


class _Server:
    """One event loop's way to one server, or to the master that Sentinel names."""

    is_cluster = False

    def __init__(self, deadlines: Any, link: Any, packer: Any, sentinels: Sequence[Any]) -> None:
        self._deadlines = deadlines
        self._link = link
        self._packer = packer
        self._sentinels = sentinels
        self.ask: Callable[[Sequence[Check], int], asyncio.Future[Any]] = link.ask

    @property
    def script(self) -> str:
        """The text that a server is given."""
        return str(self._packer.script)

    def key(self, check: Check) -> str:
        """The key that a check is counted under."""
        return str(self._packer.key(check))

    async def command(self, _: str | None, *arguments: str) -> Any:
        """One command of its own and its reply; not for charges."""
        return await self._link.command(*arguments)

    async def close(self) -> None:
        """Ends what is under way and closes the connections."""
        await self._link.close()
        for sentinel in self._sentinels:
            await sentinel.aclose()
        self._deadlines.close()


def _way_maker(
    target: Any, deadline: float, prefix: str, clock: Clock | None, *, allow_oom: bool
) -> Callable[[asyncio.AbstractEventLoop], Any]:
    """What makes an event loop's way to the counters; a mistake in the target is told here."""
    try:
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff
        from redis.maint_notifications import MaintNotificationsConfig
    except ImportError:
        raise ImportError(
            "a RedisStore needs redis-py 8 or newer: pip install 'ratelimit-asgi[redis]'"
        ) from None
    from ratelimit.stores.cluster import Cluster
    from ratelimit.stores.link import PATIENCE, Deadlines, Link, Packer

    options = {
        "socket_timeout": None,
        "socket_connect_timeout": max(deadline, PATIENCE),
        "retry": Retry(NoBackoff(), 0),
        "maint_notifications_config": MaintNotificationsConfig(enabled=False),
    }
    packer = Packer(prefix, clock, allow_oom=allow_oom)
    share = _TlsContext().share
    if isinstance(target, str) and target.startswith("redis+cluster://"):
        nodes, _, settings = _read_uri(target, options)
        connection_class = settings.pop("connection_class")

        def connect(address: tuple[str, int]) -> Callable[[], Any]:
            host, port = address
            return share(lambda: connection_class(**{**settings, "host": host, "port": port}))

        return lambda loop: Cluster(loop, nodes, connect, packer, deadline)

    def server(loop: asyncio.AbstractEventLoop) -> _Server:
        deadlines = Deadlines(loop, deadline)
        pool = make_pool()
        master = getattr(pool, "get_master_address", None)  # where sentinels tell it
        link = Link(loop, share(pool.make_connection), packer, deadlines, master=master)
        sentinels = pool.sentinel_manager.sentinels if master is not None else ()
        return _Server(deadlines, link, packer, sentinels)

    make_pool = _pool_maker(target, options)
    share(make_pool().make_connection)()
    return server


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


def _pool_maker(target: Any, options: dict[str, Any]) -> Callable[[], Any]:
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


def _seconds(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} is a number of seconds, not {type(value).__name__}")
    if not 0 <= value <= 3600:
        raise ValueError(f"{name} is {value}; it is at least 0 s, and at most an hour")
    return float(value)
