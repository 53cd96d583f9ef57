"""The contestants of redis.py: each library's fixed window on one server, one or three rules.

Each is driven by its documented asynchronous path, with hiredis and a pool that has a connection
for every waiting task.
"""

import asyncio
import json
import shutil
import subprocess
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, NamedTuple

from decisions import PyrateBuckets
from limits import RateLimitItemPerHour
from limits.aio.storage import RedisStorage
from limits.aio.strategies import FixedWindowRateLimiter
from pyrate_limiter import (
    AbstractBucket,
    Limiter,
    Rate,
    RedisStateStore,
    StateBucket,
    TokenBucket,
    WallClock,
)
from redis.asyncio import Redis
from throttled.asyncio import RedisStore as ThrottledStore
from throttled.asyncio import Throttled
from throttled.asyncio.rate_limiter import per_duration

from ratelimit.decisions import Check, identity_digest
from ratelimit.limits import Algorithm, Limit
from ratelimit.stores.memory import MemoryStore
from ratelimit.stores.redis import RedisStore
from ratelimit.stores.script import SCRIPT, SHA1

CONNECTIONS = 1024
"""At most, for each pool: redis-py's default of 100 refuses the 101st task that waits."""
PATIENCE = 10.0  # seconds: no contestant may give up where the machine is busy
HOURS = {1: (24,), 3: (1, 24, 168)}
"""The windows of one rule, and of three."""

Ask = Callable[[str], Awaitable[bool]]
"""One request of a client: whether it passes."""


class Setting(NamedTuple):
    """What is asked of a contestant; its rules have the quotas q, q + 1 and q + 2."""

    port: int
    rules: int
    quota: int
    stack: AsyncExitStack
    """Closes what was opened."""

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    async def client(self) -> Any:
        """A client of redis-py's; its pool makes as many connections as are waited for."""
        client: Any = Redis.from_url(self.url, max_connections=CONNECTIONS)
        return await self.stack.enter_async_context(client)

    @property
    def limits(self) -> list[tuple[int, int]]:
        """Each rule's quota, and its window in hours."""
        return [(self.quota + i, hours) for i, hours in enumerate(HOURS[self.rules])]


Role = Literal["ours", "floor", "peer", "node", "memory", "aside"]


@dataclass(frozen=True)
class Contestant:
    """One library; ``build`` connects nothing before the first request."""

    name: str
    role: Role
    build: Callable[[Setting], Awaitable[Ask]]


def our_checks(
    setting: Setting, algorithm: Algorithm = Algorithm.FIXED_WINDOW
) -> Callable[[str], tuple[Check, ...]]:
    limits = [Limit(f"{q} per {hours} hours", algorithm=algorithm) for q, hours in setting.limits]
    if len(limits) == 1:
        (limit,) = limits
        return lambda client: (Check(limit, client, 1, "api"),)
    return lambda client: tuple([Check(limit, client, 1, "api") for limit in limits])


def asking(store: Any, checks: Callable[[str], tuple[Check, ...]]) -> Ask:
    decide = store.decide

    async def ask(client: str) -> bool:
        # A loop, since all() and its generator would be most of what this adds to a decision.
        for decision in await decide(checks(client)):  # noqa: SIM110
            if not decision.allowed:
                return False
        return True

    return ask


def ours(algorithm: Algorithm, prefix: str) -> Callable[[Setting], Awaitable[Ask]]:
    async def build(setting: Setting) -> Ask:
        store = RedisStore(setting.url, deadline=PATIENCE, prefix=prefix)
        await setting.stack.enter_async_context(store)
        return asking(store, our_checks(setting, algorithm))

    return build


async def memory(setting: Setting) -> Ask:
    return asking(MemoryStore(), our_checks(setting))


async def floor(setting: Setting) -> Ask:
    """redis-py's EVALSHA of our script, with the arguments of lua/decide.lua's header made before.

    Only the verdict is read from the reply.
    """
    client = await setting.client()
    await client.script_load(SCRIPT)
    limits = [check.limit for check in our_checks(setting)("")]
    count = len(limits)
    arguments: list[str | int] = ["", 1, count]
    for limit in limits:
        arguments += [*limit.numbers, 1, 0, 0, 0]
    arguments.append(1)
    made: dict[str, tuple[str | int, ...]] = {}

    async def ask(name: str) -> bool:
        command = made.get(name)
        if command is None:
            digest = identity_digest(name)
            keys = [f"floor:{{{digest}}}:{limit.digest}:api" for limit in limits]
            command = made[name] = (*keys, *arguments)
        reply = await client.evalsha(SHA1, count, *command)
        return not any(reply[1::6])

    return ask


def in_turn(hits: Sequence[Ask]) -> Ask:
    """Each rule by a call of its own, until one denies."""
    if len(hits) == 1:
        return hits[0]

    async def ask(client: str) -> bool:
        for hit in hits:
            if not await hit(client):
                return False
        return True

    return ask


def limits(implementation: str) -> Callable[[Setting], Awaitable[Ask]]:
    async def build(setting: Setting) -> Ask:
        storage: Any = RedisStorage(
            f"async+{setting.url}", implementation=implementation,
            key_prefix=f"limits-{implementation}", max_connections=CONNECTIONS,
        )  # fmt: skip
        if implementation == "coredis":
            # Since coredis 6 a client works only inside its context; limits does not enter it.
            await setting.stack.enter_async_context(storage.bridge.storage)
        limiter = FixedWindowRateLimiter(storage)

        def hit(quota: int, hours: int) -> Ask:
            item = RateLimitItemPerHour(quota, hours)
            return lambda client: limiter.hit(item, client)

        return in_turn([hit(*limit) for limit in setting.limits])

    return build


async def throttled(setting: Setting) -> Ask:
    store = ThrottledStore(
        server=setting.url, options={"CONNECTION_POOL_KWARGS": {"max_connections": CONNECTIONS}}
    )

    def hit(quota: int, hours: int) -> Ask:
        limit = Throttled(
            using="fixed_window", quota=per_duration(timedelta(hours=hours), quota), store=store
        ).limit

        async def ask(client: str) -> bool:
            return not (await limit(f"{client}:{hours}")).limited

        return ask

    return in_turn([hit(*limit) for limit in setting.limits])


async def pyrate(setting: Setting) -> Ask:
    """Its GCRA, one small hash: its only fixed window in Redis is a log that grows."""
    client = await setting.client()
    rates = [Rate(quota, hours * 3_600_000) for quota, hours in setting.limits]

    def bucket(name: str) -> AbstractBucket:
        store = RedisStateStore(client, f"pyrate:{setting.rules}:{name}")
        return StateBucket(rates, algorithm=TokenBucket(), store=store)

    acquire = Limiter(PyrateBuckets(bucket, WallClock())).try_acquire_async

    async def ask(name: str) -> bool:
        return bool(await acquire(name, blocking=False))

    return ask


async def redis_sdk(setting: Setting) -> Ask:
    # Not in the bench dependencies of every machine: without it, its rows say so.
    from redis_fastapi.ratelimit_backend import RateLimitBackend  # noqa: PLC0415

    backend = RateLimitBackend(await setting.client())

    def hit(quota: int, hours: int) -> Ask:
        scope, window = f"{quota}-{hours}", 3600 * hours

        async def ask(client: str) -> bool:
            result = await backend.hit(client, limit=quota, window=window, scope=scope)
            if result.degraded:
                raise RuntimeError("it could not reach Redis, and let the request pass")
            return result.allowed

        return ask

    return in_turn([hit(*limit) for limit in setting.limits])


def contestants() -> list[Contestant]:
    return [
        Contestant("ratelimit", "ours", ours(Algorithm.FIXED_WINDOW, "rl:")),
        Contestant("redis-py, EVALSHA of our script", "floor", floor),
        Contestant("limits, redis-py", "peer", limits("redispy")),
        Contestant("limits, coredis", "peer", limits("coredis")),
        Contestant("throttled-py", "peer", throttled),
        Contestant("pyrate-limiter (GCRA)", "peer", pyrate),
        Contestant("fastapi-redis-sdk", "peer", redis_sdk),
    ]


class Node:
    """A process of Node's that runs node_peer.js, idle between the rounds."""

    def __init__(self, folder: str, port: int, pipeline: bool) -> None:
        script = str(Path(__file__).with_name("node_peer.js"))
        self.process = subprocess.Popen(
            ["node", script, folder, str(port), str(int(pipeline))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    async def drive(self, **order: Any) -> dict[str, float]:
        def exchange() -> str:
            assert self.process.stdin is not None
            assert self.process.stdout is not None
            self.process.stdin.write(json.dumps(order) + "\n")
            self.process.stdin.flush()
            return self.process.stdout.readline()

        answer = await asyncio.wait_for(asyncio.to_thread(exchange), 60)
        if not answer:
            raise RuntimeError("node ended; its error is above")
        result: dict[str, float] = json.loads(answer)
        return result

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


def install_node() -> tuple[str, dict[str, str]] | str:
    """A folder with the packages in it, and their versions; or why there is none."""
    npm = shutil.which("npm")
    if not (npm and shutil.which("node")):
        return "node or npm is not installed"
    folder = tempfile.mkdtemp(prefix="ratelimit-bench-")
    packages = ("rate-limiter-flexible", "ioredis")
    command = [npm, "install", "--no-audit", "--no-fund", "--no-save", "--prefix", folder]
    try:
        done = subprocess.run(
            [*command, *packages], capture_output=True, text=True, timeout=120, check=False
        )
        why = "" if not done.returncode else (done.stderr.strip() or "no reason").splitlines()[-1]
    except subprocess.TimeoutExpired:
        why = "no end after 120 s"
    if why:
        shutil.rmtree(folder, ignore_errors=True)
        return f"npm install failed: {why}"
    versions = {"node": subprocess.check_output(["node", "--version"], text=True).strip()}
    for package in packages:
        about = json.loads(Path(folder, "node_modules", package, "package.json").read_text())
        versions[package] = about["version"]
    return folder, versions
