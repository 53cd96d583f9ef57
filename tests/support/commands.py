"""The `ratelimit` command, run within the tests, and a rule file for it."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

from click.testing import CliRunner, Result

from ratelimit import RedisStore
from ratelimit.cli.main import main
from tests.support.servers import Server

T = TypeVar("T")

RULES: Final = """\
version: 1
store: redis://localhost:1
trusted_proxies: [10.0.0.0/8]
denylist: [203.0.113.0/24]
on_store_failure: local
workers: 4
rules:
  - name: api
    limit: 100/minute
  - name: login
    match: {path: /login, methods: [POST]}
    limit: 5/minute; 20/hour
    algorithm: sliding_log
    on_store_failure: deny
    overrides: {"198.51.100.9": 50/minute}
  - name: plans
    match: {path: "/v1/{rest:path}"}
    by: [user, client]
    limits: {free: 10/minute, internal: unlimited}
    tier: user:plan
    on_store_failure: allow
  - name: old
    limit: 1/second
    mode: "off"
"""


def run(*arguments: str, code: int = 0) -> Result:
    """The outcome of a command that ends with this exit code."""
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == code, result.output
    return result


def rows(*arguments: str, code: int = 0) -> Any:
    """The JSON that a command prints."""
    return json.loads(run(*arguments, "--json", code=code).stdout)


def with_store(server: Server, use: Callable[[RedisStore], Awaitable[T]], **options: Any) -> T:
    """An answer of a server's store, which waits for a busy machine."""

    async def opened() -> T:
        async with RedisStore(server.url, deadline=10, **options) as store:
            return await use(store)

    return asyncio.run(opened())
