"""Redis Cluster: which node a slot is at, and requests whose keys lie in several slots.

redis-py's cluster client sends by itself, and again by itself, and blocks EVALSHA in pipelines; so
its part here is the slot of a key, the connections and their replies. Slots are learnt from CLUSTER
SLOTS, and from the redirections that nodes answer with, which prove that nothing ran.
"""

import asyncio
import random
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from redis.crc import key_slot
from redis.exceptions import AskError, ClusterDownError, MovedError, TryAgainError

from ratelimit.decisions import Action, Check, Decision, assumed, read_reply
from ratelimit.stores.failures import StoreUnavailable, explain
from ratelimit.stores.link import Deadlines, Link, Packer, Reply, Request

__all__ = ["Cluster"]

Address = tuple[str, int]

MOST_TRIES: Final = 64  # redirections of one request; the deadline ends it much sooner
MOST_AT_ONCE: Final = 3  # of them without a pause; more are nodes that do not agree
MOST_UNREACHED: Final = 5  # trips in a row, after which requests no longer wait for a node
AGAIN_AFTER: Final = 0.01  # seconds, where a slot is nobody's for the moment
LEARN_AFTER: Final = 0.1  # seconds between two looks at the map of slots
SLOTS_TIMEOUT: Final = 0.5  # seconds that one node may take to tell the slots


class SlotMap:
    """Which node has a slot: ranges as CLUSTER SLOTS tells them, and slots that moved since.

    Ranges, since a table of all 16,384 slots takes 10 ms to build, which requests would wait for.
    """

    def __init__(self, ranges: Iterable[tuple[int, int, Address]] = ()) -> None:
        self._ranges = sorted(ranges)
        self._firsts = [first for first, _, _ in self._ranges]
        self.moved: dict[int, Address] = {}

    def owner(self, slot: int) -> Address | None:
        """The master of a slot, as far as it is known."""
        moved = self.moved.get(slot)
        if moved is not None:
            return moved
        place = bisect_right(self._firsts, slot) - 1
        if place < 0:
            return None
        _, last, node = self._ranges[place]
        return node if slot <= last else None

    def nodes(self) -> set[Address]:
        """All masters."""
        return {node for _, _, node in self._ranges} | set(self.moved.values())


class Cluster:
    """One event loop's way to a cluster: a `Link` per node, and the map of slots."""

    is_cluster = True

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        seeds: Sequence[Address],
        connect: Callable[[Address], Callable[[], Any]],
        packer: Packer,
        deadline: float,
    ) -> None:
        self._loop = loop
        self._seeds = tuple(seeds)
        self._connect = connect
        self._packer = packer
        self._deadlines = Deadlines(loop, deadline)
        self._links: dict[Address, Link] = {}
        self._slots = SlotMap()
        self._homeless: list[Request] = []
        self._refreshing: asyncio.Task[None] | None = None
        self._again = False

    def slot(self, check: Check) -> int:
        """The slot of a check's key, which is that of its identity alone."""
        slot: int = key_slot(self._packer.key(check).encode("utf-8", "surrogatepass"))
        return slot

    def ask(self, checks: Sequence[Check], slot: int) -> asyncio.Future[Reply]:
        """The numbers of the Lua's reply for checks of one slot."""
        future = self._deadlines.future()
        self._send(Request(checks, future, slot))
        return future

    async def decide(self, checks: Sequence[Check]) -> tuple[Decision, ...]:
        """Decides checks of one slot or several; the latter in parallel, and given back if denied.

        Of a shard that fails, only its checks are assumed (`Decision.degraded`); the others count.
        Raises StoreUnavailable where all of them fail.
        """
        slots = [self.slot(check) for check in checks]
        if len(set(slots)) == 1:
            return read_reply(checks, *await self.ask(checks, slots[0]))
        groups = {slot: [i for i, it in enumerate(slots) if it == slot] for slot in slots}
        answers = await asyncio.gather(
            *(self.ask([checks[i] for i in group], slot) for slot, group in groups.items()),
            return_exceptions=True,
        )
        decisions: dict[int, Decision] = {}
        failures: list[StoreUnavailable] = []
        for group, answer in zip(groups.values(), answers, strict=True):
            own = [checks[i] for i in group]
            if isinstance(answer, StoreUnavailable):
                failures.append(answer)
                decided = assumed(own, allowed=True)
            elif isinstance(answer, BaseException):
                raise answer
            else:
                decided = read_reply(own, *answer)
            decisions.update(zip(group, decided, strict=True))
        if len(failures) == len(groups):
            raise failures[0]
        refused = any(
            not decision.allowed
            for i, decision in decisions.items()
            if checks[i].action != Action.SHADOW
        )
        if refused:
            await self._give_back(checks, groups, decisions)
        return tuple(decisions[i] for i in range(len(checks)))

    async def _give_back(
        self,
        checks: Sequence[Check],
        groups: dict[int, list[int]],
        decisions: dict[int, Decision],
    ) -> None:
        """Returns what the slots that passed have charged, and tells their state without it."""
        returning: dict[int, list[int]] = {}
        for slot, group in groups.items():
            enforced = [i for i in group if checks[i].action != Action.SHADOW]
            if all(decisions[i].allowed and not decisions[i].degraded for i in enforced):
                charged = [i for i in group if decisions[i].allowed and checks[i].cost]
                if charged:
                    returning[slot] = charged
        answers = await asyncio.gather(
            *(
                self.ask([checks[i].given_back(decisions[i]) for i in group], slot)
                for slot, group in returning.items()
            ),
            return_exceptions=True,
        )
        for group, answer in zip(returning.values(), answers, strict=True):
            if isinstance(answer, BaseException):
                continue  # the charge stays; nobody can be told more than was decided
            for i, state in zip(
                group, read_reply([checks[i] for i in group], *answer), strict=True
            ):
                decisions[i] = state._replace(allowed=True, retry_after_us=0, delay_us=0)
        for i, decision in decisions.items():
            if decision.delay_us:
                decisions[i] = decision._replace(delay_us=0)

    def _send(self, request: Request) -> None:
        owner = self._slots.owner(request.slot)
        if owner is None:
            self._homeless.append(request)
            self._refresh()
        else:
            self._link(owner).send(request)

    def _link(self, address: Address) -> Link:
        link = self._links.get(address)
        if link is None:
            link = self._links[address] = Link(
                self._loop, self._connect(address), self._packer, self._deadlines, self._reroute
            )
        return link

    def _reroute(self, request: Request, error: BaseException) -> bool:
        """Sends a request on that did not run; False where nothing can be done for it."""
        request.asking = False
        request.tries += 1
        if request.future.done():
            return True
        disagree = request.tries > MOST_AT_ONCE and isinstance(error, MovedError)
        if disagree:
            self._deadlines.why = (
                f"the cluster's nodes do not agree whose slot {request.slot} is; "
                "see redis-cli --cluster check"
            )
        if request.tries > MOST_TRIES:
            request.fail(StoreUnavailable(self._deadlines.why, kind="cluster"))
        elif isinstance(error, MovedError):
            self._slots.moved[request.slot] = (error.host, error.port)
            self._refresh()
            if disagree:
                self._loop.call_later(AGAIN_AFTER, self._send, request)
            else:
                self._send(request)
        elif isinstance(error, AskError):
            request.asking = True
            self._link((error.host, error.port)).send(request)
        elif isinstance(error, TryAgainError):
            self._loop.call_later(AGAIN_AFTER, self._send, request)
        elif isinstance(error, ClusterDownError | OSError) or _not_connected(error):
            self._refresh()
            if self._is_away(request.slot):
                return False
            self._loop.call_later(AGAIN_AFTER, self._send, request)
        else:
            return False
        return True

    def _is_away(self, slot: int) -> bool:
        """Whether the node of a slot is known to be away, so that nobody should wait for it."""
        owner = self._slots.owner(slot)
        link = None if owner is None else self._links.get(owner)
        return link is not None and link.unreached > MOST_UNREACHED

    def _refresh(self) -> None:
        """Learns the slots anew, once at a time; a wish that comes meanwhile is met after it."""
        if self._refreshing is not None and not self._refreshing.done():
            self._again = True
            return
        self._refreshing = self._loop.create_task(self._learn())

    async def _learn(self) -> None:
        problem: StoreUnavailable | None = None
        while True:
            self._again = False
            try:
                self._slots = await self._ask_slots()
            except StoreUnavailable as error:
                problem = error
                self._deadlines.why = str(error)
            else:
                problem = None
                await self._close_unused()
            if problem is None and not self._again:
                break
            if problem is not None and not any(not it.future.done() for it in self._homeless):
                break
            await asyncio.sleep(LEARN_AFTER)
        homeless, self._homeless = self._homeless, []
        for request in homeless:
            if self._slots.owner(request.slot) is not None:
                self._send(request)
            else:
                request.fail(problem or StoreUnavailable("no node has this slot", kind="cluster"))

    async def _ask_slots(self) -> "SlotMap":
        """The map, from the first node that tells."""
        known = list(dict.fromkeys([*self._slots.nodes(), *self._seeds]))
        random.shuffle(known)
        problem = StoreUnavailable("no node of the cluster answered", kind="cluster")
        for address in known:
            try:
                async with asyncio.timeout(SLOTS_TIMEOUT):
                    reply = await self._link(address).command("CLUSTER", "SLOTS")
            except (StoreUnavailable, TimeoutError) as error:
                problem = explain(error)
                continue
            if isinstance(reply, Exception):
                problem = explain(reply)
                continue
            if reply:
                return SlotMap(
                    (int(first), int(last), (_host(node[0]) or address[0], int(node[1])))
                    for first, last, node, *_ in reply
                )
            problem = StoreUnavailable("this Redis serves no slots of a cluster", kind="cluster")
        raise problem

    async def _close_unused(self) -> None:
        """Closes the ways to nodes that have no slots any more."""
        used = self._slots.nodes()
        for address in [each for each in self._links if each not in used]:
            await self._links.pop(address).close("its node has no slots any more")

    @property
    def script(self) -> str:
        """The text that a node is given."""
        return self._packer.script

    def key(self, check: Check) -> str:
        """The key that a check is counted under."""
        return self._packer.key(check)

    async def command(self, key: str | None, *arguments: str) -> Any:
        """One command at the node of a key's slot, or at any; not for charges."""
        slot: int = 0 if key is None else key_slot(key.encode("utf-8", "surrogatepass"))
        if self._slots.owner(slot) is None:
            self._slots = await self._ask_slots()
        owner = self._slots.owner(slot)
        if owner is None:
            raise StoreUnavailable("no node has this slot", kind="cluster")
        try:
            reply = await self._link(owner).command(*arguments)
        except StoreUnavailable:
            self._refresh()
            raise
        if isinstance(reply, MovedError):
            self._refresh()
        return reply

    async def close(self) -> None:
        """Ends what is under way and closes the connections."""
        if self._refreshing is not None:
            self._refreshing.cancel()
            await asyncio.gather(self._refreshing, return_exceptions=True)
        for link in self._links.values():
            await link.close()
        self._links.clear()
        self._deadlines.close()


def _host(name: object) -> str:
    if isinstance(name, bytes):
        name = name.decode()
    return name if isinstance(name, str) and name != "?" else ""


def _not_connected(error: BaseException) -> bool:
    """Whether a connection could not be made, so that nothing was sent over it."""
    return explain(error).kind in ("refused", "closed", "late", "loading", "name", "cluster")
