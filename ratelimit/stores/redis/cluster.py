"""Redis Cluster: which node a slot is at, and requests whose keys lie in several slots.

redis-py's cluster client sends by itself, and again by itself, and blocks EVALSHA in pipelines; so
its part here is the slot of a key and the connections. Slots are learnt from CLUSTER SLOTS, and
from the redirections that nodes answer with, which prove that nothing ran.
"""

import asyncio
import random
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Final

from redis.crc import key_slot

from ratelimit.decisions import Check, Decision, assumed, passes, read_reply
from ratelimit.stores.breaker import Breaker
from ratelimit.stores.errors import StoreUnavailable, explain, no_reply
from ratelimit.stores.redis.connect import Target
from ratelimit.stores.redis.errands import within
from ratelimit.stores.redis.line import NO_SLOT, Request
from ratelimit.stores.redis.names import Address
from ratelimit.stores.redis.pipeline import Link, Reply
from ratelimit.stores.redis.queue import Load
from ratelimit.stores.redis.wire import Packer, ReplyError, packed

__all__ = ["Cluster"]

SLOTS: Final = 16_384
MOST_TRIES: Final = 64  # redirections of one request; the deadline ends it much sooner
MOST_AT_ONCE: Final = 3  # of them without a pause; more are nodes that do not agree
AGAIN_AFTER: Final = 0.01  # seconds, where a slot is nobody's for the moment
LEARN_AFTER: Final = 0.1  # seconds between two looks at the map of slots
SLOTS_TIMEOUT: Final = 0.5  # seconds that one node may take to tell the slots
WATCH_EVERY: Final = 0.005  # seconds between two looks whose time is up, without a known node


class SlotMap:
    """The node of each slot: ranges as CLUSTER SLOTS tells them, and slots that moved since.

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
    """One event loop's connections to a cluster: a `Link` per node, and the map of slots.

    ``breaker_of`` gives the breaker of a node by its address, which all event loops share.
    """

    is_cluster = True

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        target: Target,
        packer: Packer,
        deadline: float,
        breaker_of: Callable[[Address | None], Breaker],
        load: Load,
    ) -> None:
        self._loop = loop
        self._target = target
        self._packer = packer
        self._deadline = deadline
        self._breaker_of = breaker_of
        self._load = load
        self._links: dict[Address, Link] = {}
        self._slots = SlotMap()
        # Those whose node is not known yet, each with the clock's reading when it came.
        self._homeless: deque[tuple[float, Request]] = deque()
        self._owing = 0.0
        self._watching: asyncio.TimerHandle | None = None
        self._watched = 0.0
        self._refreshing: asyncio.Task[None] | None = None
        self._again = False
        self._closed = False
        self._progress: list[tuple[int, int]] = []
        self._unused: set[Address] = set()
        self._probed: dict[Address, Check] = {}

    def slot(self, check: Check) -> int:
        """The slot of a check's key, which is that of its identity alone."""
        slot: int = key_slot(self._packer.key(check).encode("utf-8", "surrogatepass"))
        return slot

    def ask(
        self, checks: Sequence[Check], slot: int, *, past: bool = False
    ) -> asyncio.Future[Reply]:
        """The numbers of the Lua's reply for checks of one slot."""
        request = Request(checks, self._loop.create_future(), slot)
        request.past = past
        self._send(request)
        return request.future

    async def decide(self, checks: Sequence[Check], *, past: bool = False) -> tuple[Decision, ...]:
        """Decides checks of one slot or several; the latter in parallel, and given back if denied.

        Of a shard that fails, only its checks are assumed (`Decision.degraded`); the others count.
        Raises StoreUnavailable where all of them fail.
        """
        slots = [self.slot(check) for check in checks]
        if len(set(slots)) == 1:
            return _decisions(checks, await self.ask(checks, slots[0], past=past))
        groups = {slot: [i for i, it in enumerate(slots) if it == slot] for slot in slots}
        answers = await asyncio.gather(
            *(
                self.ask([checks[i] for i in group], slot, past=past)
                for slot, group in groups.items()
            ),
            return_exceptions=True,
        )
        decisions: dict[int, Decision] = {}
        failures: list[StoreUnavailable] = []
        for group, answer in zip(groups.values(), answers, strict=True):
            own = [checks[i] for i in group]
            if isinstance(answer, StoreUnavailable):
                failures.append(answer)
                decided = assumed(own, allowed=True, problem=answer)
            elif isinstance(answer, BaseException):
                raise answer
            else:
                decided = _decisions(own, answer)
            decisions.update(zip(group, decided, strict=True))
        if len(failures) == len(groups):
            raise failures[0]
        if not passes(checks, [decisions[i] for i in range(len(checks))]):
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
            if passes([checks[i] for i in group], [decisions[i] for i in group]):
                charged = [
                    i
                    for i in group
                    if decisions[i].allowed and checks[i].cost and not decisions[i].degraded
                ]
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
            states = _decisions([checks[i] for i in group], answer)
            for i, state in zip(group, states, strict=True):
                if state.degraded:
                    continue
                decisions[i] = state._replace(allowed=True, retry_after_us=0, delay_us=0)
        for i, decision in decisions.items():
            if decision.delay_us:
                decisions[i] = decision._replace(delay_us=0)

    def _send(self, request: Request) -> None:
        if self._closed:
            request.fail(StoreUnavailable("the store was closed", "closed", "own"))
            return
        owner = self._slots.owner(request.slot)
        if owner is not None:
            link = self._link(owner)
            if link.breaker.state == "open":
                self._refresh()  # another node may have its slots by now
            link.send(request)
            return
        breaker = self._breaker_of(None)
        if breaker.is_open() and not request.past and breaker.turns_away():
            request.fail(breaker.away())
            return
        now = time.monotonic()
        if not self._homeless:
            self._watched = now
            self._watch_soon()
        self._homeless.append((self._owing + now - self._watched - request.owed, request))
        self._refresh()

    def _watch_soon(self) -> None:
        if self._watching is None:
            self._watching = self._loop.call_later(WATCH_EVERY, self._watch)

    def _watch(self) -> None:
        """Tells those whose time is up; a loop that is late is not the cluster's time."""
        self._watching = None
        now = time.monotonic()
        progress = [link.progress() for link in self._links.values()]
        if progress == self._progress:
            self._owing += min(now - self._watched, WATCH_EVERY)
        self._progress = progress
        self._watched = now
        late = self._owing - self._deadline
        while self._homeless and self._homeless[0][0] <= late:
            _, request = self._homeless.popleft()
            if not request.future.done():
                error = no_reply(self._deadline, self._load.why)
                request.fail(error)
                if not request.command:
                    self._breaker_of(None).failed(error)
        if self._homeless:
            self._watch_soon()

    def _link(self, address: Address) -> Link:
        link = self._links.get(address)
        if link is None:
            link = self._links[address] = Link(
                self._loop,
                self._target.dialer(address),
                self._packer,
                self._deadline,
                self._breaker_of(address),
                self._load,
                partial(self._reroute, address),
            )
        return link

    def _reroute(
        self, node: Address, request: Request, error: StoreUnavailable | ReplyError
    ) -> bool:
        """Sends a request on that did not run; False where nothing can be done for it."""
        request.asking = False
        request.tries += 1
        request.marks = None
        if request.slot == NO_SLOT or request.future.done():
            return request.future.done()
        if request.owed >= self._deadline:
            request.fail(no_reply(self._deadline, self._load.why or str(explain(error))))
            return True
        code = error.code if isinstance(error, ReplyError) else ""
        disagree = request.tries > MOST_AT_ONCE and code == "MOVED"
        if disagree:
            self._load.why = (
                f"the cluster's nodes do not agree whose slot {request.slot} is; "
                "see redis-cli --cluster check"
            )
        if request.tries > MOST_TRIES:
            request.fail(StoreUnavailable(self._load.why, kind="cluster", scope="shard"))
        elif code in ("MOVED", "ASK"):
            return self._follow(node, request, str(error), later=disagree)
        elif code == "TRYAGAIN":
            self._send_later(request)
        elif code == "CLUSTERDOWN" or explain(error).kind in _NOT_CONNECTED:
            self._refresh()
            if self._breaker_of(node).is_open():
                return False
            self._send_later(request)
        else:
            return False
        return True

    def _follow(self, node: Address, request: Request, words: str, *, later: bool) -> bool:
        """Sends a request where a redirection says; False where that is nowhere."""
        try:
            address = self._redirected(node, words)
        except StoreUnavailable as unmapped:
            self._load.why = str(unmapped)
            address = None
        if address is None:
            return False
        if words.startswith("ASK"):
            request.asking = True
            self._link(address).send(request)
            return True
        self._slots.moved[request.slot] = address
        self._refresh()
        if later:
            self._send_later(request)
        else:
            self._send(request)
        return True

    def _redirected(self, node: Address, words: str) -> Address | None:
        """The address in ``MOVED 3999 127.0.0.1:6381``; an empty host is that of who says it."""
        host, colon, port = words.rpartition(" ")[2].rpartition(":")
        if not colon or not port.isascii() or not port.isdecimal() or not 0 < int(port) < 65536:
            return None
        known = host.strip("[]") if host not in ("", "?") else node[0]
        return self._target.reachable((known, int(port)))

    def _send_later(self, request: Request) -> None:
        """Sends a request again in a while, which is the cluster's time and not ours."""
        request.owed += AGAIN_AFTER
        if request.owed >= self._deadline:
            request.fail(no_reply(self._deadline, self._load.why))
        else:
            self._loop.call_later(AGAIN_AFTER, self._send, request)

    def _refresh(self) -> None:
        """Learns the slots anew, once at a time; a wish that comes meanwhile is met after it."""
        if self._closed:
            return
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
                self._load.why = str(error)
            else:
                problem = None
                self._breaker_of(None).succeeded()
                await self._close_unused()
            if problem is None and not self._again:
                break
            if problem is not None and not any(not it.future.done() for _, it in self._homeless):
                break
            await asyncio.sleep(LEARN_AFTER)
        homeless, self._homeless = self._homeless, deque()
        for mark, request in homeless:
            request.owed = max(0.0, self._owing - mark)
            if self._slots.owner(request.slot) is not None:
                self._send(request)
            else:
                request.fail(
                    problem or StoreUnavailable("no node has this slot", "cluster", "shard")
                )

    async def _ask_slots(self) -> "SlotMap":
        """The map, from the first node that tells."""
        known = list(dict.fromkeys([*self._slots.nodes(), *self._target.seeds]))
        random.shuffle(known)
        problem = StoreUnavailable("no node of the cluster answered", kind="cluster")
        for address in known:
            try:
                async with within(SLOTS_TIMEOUT):
                    reply = await self._link(address).command(None, "CLUSTER", "SLOTS")
            except (StoreUnavailable, TimeoutError) as error:
                problem = explain(error)
                continue
            if isinstance(reply, Exception):
                problem = explain(reply)
                continue
            if reply:
                try:
                    return self._read_slots(reply, address)
                except StoreUnavailable as error:
                    problem = error
                    continue
                except (TypeError, ValueError, LookupError, ArithmeticError):
                    problem = StoreUnavailable(
                        "what answers at this address is not Redis", kind="not-redis"
                    )
                    continue
            problem = StoreUnavailable("this Redis serves no slots of a cluster", kind="cluster")
        raise problem

    def _read_slots(self, reply: Any, node: Address) -> SlotMap:
        """The answer to CLUSTER SLOTS; raises TypeError or ValueError where it is none."""
        ranges = [
            (int(first), int(last), self._target.reachable((_host(at[0]) or node[0], int(at[1]))))
            for first, last, at, *_ in reply
        ]
        if not all(0 <= first <= last < SLOTS for first, last, _ in ranges):
            raise ValueError
        return SlotMap(ranges)

    async def _close_unused(self) -> None:
        """Closes idle connections to nodes without slots, where they had none before either.

        A node whose first slot is on its way has none yet, and one that has just given its last
        away may still owe answers.
        """
        unused = {address for address in self._links if address not in self._slots.nodes()}
        for address in unused & self._unused:
            if self._links[address].is_idle:
                await self._links.pop(address).close("its node has no slots any more")
        self._unused = unused

    async def probe(self, address: Address | None, check: Check) -> None:
        """Asks a node to write, or, for None, any node for the slots; raises StoreUnavailable.

        Returns as well where the node has no slots any more: nobody waits for it then.
        """
        # A map in which it has no slots any more is newer than what some nodes still tell.
        known = self._slots.nodes()
        if address is None or not known or address in known:
            self._slots = await self._ask_slots()
        if address is None or address not in self._slots.nodes():
            return
        own = self._probed.get(address, check)
        number = 0
        while self._slots.owner(self.slot(own)) != address:
            own = check._replace(key=f"probe:{number}")
            number += 1
            if not number % 500:
                await asyncio.sleep(0)  # a node of one slot takes sixteen thousand tries
            if number > 20 * SLOTS:
                raise StoreUnavailable(f"no key was found for {address[0]}:{address[1]}")
        self._probed[address] = own
        await self.ask([own], self.slot(own), past=True)

    @property
    def round_trip(self) -> float | None:
        """The longest of the nodes' round trips, in seconds; None before the first."""
        known = [link.round_trip for link in self._links.values() if link.round_trip is not None]
        return max(known, default=None)

    @property
    def script(self) -> str:
        """The text that a node is given."""
        return self._packer.script

    def key(self, check: Check) -> str:
        """The key that a check is counted under."""
        return self._packer.key(check)

    async def command(self, key: str | None, *arguments: str) -> Any:
        """One command at the node of a key's slot, or at any; not for charges.

        It follows redirections as checks do: they prove that nothing ran. While a slot moves, only
        a command of one key is sure to be answered.
        """
        slot: int = 0 if key is None else key_slot(key.encode("utf-8", "surrogatepass"))
        request = Request((), self._loop.create_future(), slot)
        request.command = packed(arguments)
        request.past = True
        self._send(request)
        try:
            return await request.future
        except StoreUnavailable:
            self._refresh()
            raise

    def let_go(self) -> None:
        """Lets go of what an event loop that was closed has left."""
        for link in self._links.values():
            link.let_go()

    async def close(self) -> None:
        """Ends what is under way and closes the connections."""
        self._closed = True
        if self._watching is not None:
            self._watching.cancel()
        if self._refreshing is not None:
            self._refreshing.cancel()
            await asyncio.gather(self._refreshing, return_exceptions=True)
        for _, request in self._homeless:
            request.fail(StoreUnavailable("the store was closed", "closed", "own"))
        self._homeless.clear()
        for link in self._links.values():
            await link.close()
        self._links.clear()


_NOT_CONNECTED: Final = frozenset({"refused", "closed", "late", "loading", "name", "cluster"})
"""Kinds of failures of a connection that could not be made, over which nothing was sent."""


def _decisions(checks: Sequence[Check], reply: Reply) -> tuple[Decision, ...]:
    numbers, start = reply
    return tuple(numbers) if start < 0 else read_reply(checks, numbers, start)


def _host(name: object) -> str:
    if isinstance(name, bytes):
        name = name.decode("utf-8", "replace")
    return name if isinstance(name, str) and name != "?" else ""
