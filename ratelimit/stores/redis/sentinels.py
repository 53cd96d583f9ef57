"""The master that sentinels name, where some of them hang."""

import asyncio
import copy
from collections.abc import (
    Sequence,
)
from typing import Any, Final

from ratelimit.stores.errors import StoreUnavailable, explain
from ratelimit.stores.redis.kinds import Kind
from ratelimit.stores.redis.names import (
    Address,
    Progress,
)

__all__ = ["Sentinels"]

NEXT_SENTINEL_AFTER: Final = 0.05  # seconds at most; the one before may answer still


class _Said:
    """A sentinel that has answered, for redis-py's own judgement of the answer."""

    def __init__(self, masters: Any) -> None:
        self._masters = masters

    async def sentinel_masters(self) -> Any:
        return self._masters


def _states(said: Any) -> dict[str, dict[str, Any]]:
    """The state of each service by its name, with what redis-py's judgement looks at.

    Raises StoreUnavailable for what no sentinel says.
    """
    states = {}
    try:
        for each in said:
            pairs = (
                each.items() if isinstance(each, dict) else zip(each[::2], each[1::2], strict=True)
            )
            state: dict[str, Any] = {_text(name): _text(value) for name, value in pairs}
            flags = state["flags"].split(",")
            state["num-other-sentinels"] = int(state["num-other-sentinels"])
            for name, flag in (("master", "master"), ("sdown", "s_down"), ("odown", "o_down")):
                state[f"is_{name}"] = flag in flags
            states[state["name"]] = state
    except (TypeError, ValueError, KeyError, AttributeError):
        raise StoreUnavailable("no sentinel answers there", kind="not-redis") from None
    return states


def _text(said: Any) -> str:
    return said.decode("utf-8", "replace") if isinstance(said, bytes) else str(said)


class Sentinels:
    """One event loop's way to the sentinels: the master's address from the first that tells it."""

    def __init__(self, service: str, manager: Any, kinds: Sequence[Kind], order: list[int]) -> None:
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

    async def master(self, progress: Progress, patience: float) -> Address:
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
        from redis.exceptions import ResponseError

        # In two words, of which redis-py makes nothing: before 8 it could not read it in RESP3.
        try:
            said = await self._clients[number].execute_command("SENTINEL", "MASTERS")
        except ResponseError as error:
            if "unknown command" not in str(error).lower():
                raise
            raise StoreUnavailable("no sentinel answers there", kind="not-redis") from None
        judge = copy.copy(self._manager)
        judge.sentinels = [_Said(_states(said))]
        host, port = await judge.discover_master(self._service)
        return str(host), int(port)

    async def aclose(self) -> None:
        for client in self._clients:
            await client.aclose()
