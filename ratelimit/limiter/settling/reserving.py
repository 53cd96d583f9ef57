"""Reservations: an estimate is charged before, and what it turns out to cost afterwards.

The laws of this module: an estimate is an ordinary charge, so that a crowd cannot pass while
nobody knows what it costs; what is never committed stays spent; and a commit is made once, however
often it is asked for, and whoever stops waiting for it.
"""

import asyncio
import secrets
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Final, Self

from anyio import from_thread

from ratelimit.decisions import MOST_COST, Action, Check, Decision
from ratelimit.limiter.settling.charged import Charged, Part
from ratelimit.limiter.settling.settler import Settler
from ratelimit.limiter.settling.tokens import Signer
from ratelimit.limits import Algorithm, Limit
from ratelimit.stores import StoreUnavailable
from ratelimit.words import whole

__all__ = ["Reservation", "Reserving", "from_token"]

_SHADOW: Final = int(Action.SHADOW)

SHORTEST_LIFE_US: Final = 3_600_000_000
"""The least time for which a token is good; a longer window makes it longer."""

_VERSION: Final = 1


class Reservation:
    """Charges made by an estimate, to be set to what it turns out to cost.

    ``commit``, ``progress`` and ``commit_sync`` take the total so far, in the units of the limit:
    a whole number from 0 to 2^42, for all budgets, or a list of one for each. `cost` is the
    estimate. A failure of the store is logged and raises nothing: the estimate then stays spent.
    """

    def __init__(
        self,
        settler: Settler,
        signer: Callable[[], Signer],
        parts: Sequence[Part],
        names: Sequence[str],
        cost: Sequence[int],
        identifier: str = "",
    ) -> None:
        self._settler = settler
        self._signer = signer
        self._parts = parts
        self._names = names
        self.cost: Final = tuple(cost)
        """The estimate of each budget."""
        self.committed = False
        """Whether it was committed, or asked to be, by this handle."""
        self.by_response = True
        """Whether the end of a response commits it."""
        self._reported: list[int] | None = None
        """The last progress of each budget."""
        self._left = True
        """The last answer to a progress that was charged."""
        self._id = identifier
        """Text that names it before the store, once it may be committed elsewhere."""
        self._going = 0
        """Progresses whose charges are on their way."""
        self._lock = asyncio.Lock()
        try:
            self._loop: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:
            self._loop = None

    @classmethod
    def of(
        cls,
        settler: Settler,
        signer: Callable[[], Signer],
        charged: Charged,
        cost: Sequence[int],
    ) -> Self:
        """The reservation that these charges are; what no store has counted is no part of it."""
        parts = [
            Part(budget, check, [(check.cost, decision.at_us, decision.level)])
            for check, decision, budget in zip(
                charged.checks, charged.decisions, charged.budgets, strict=True
            )
            if decision.allowed and not decision.degraded
        ]
        return cls(settler, signer, parts, charged.names, cost)

    async def commit(self, actual: int | Sequence[int]) -> bool:
        """Sets the charges to what it cost: less is given back, more is charged into debt.

        False where it was committed before, here or by its token. Raises TypeError or ValueError
        for what is not a cost.
        """
        numbers = self.numbers(actual)
        if self.committed:
            return False
        self.committed = True
        parts = self._parts
        if self._settler.sends and len(parts) == 1 and not (self._id or self._going):
            return await self._settle_one(parts[0], numbers[parts[0].budget])
        return await self._settler.finish(self._quietly(numbers))

    async def _settle_one(self, part: Part, actual: int) -> bool:
        """Does as `_quietly` does for a single limit, whose check is sent before anybody waits."""
        try:
            asked = part.to(actual)
            if asked:
                _insist(await self._settler.send(asked))
        except Exception as problem:  # noqa: BLE001  # a fault of ours is none of the application
            self._settler.reports.fault(problem)
        return True

    def commit_sync(self, actual: int | Sequence[int]) -> bool:
        """Commits from a thread that the event loop does not run in, and waits for it.

        Raises RuntimeError in the event loop's own thread, which would wait for ever, and where
        that loop is closed.
        """
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            pass
        else:
            raise RuntimeError("commit_sync is for threads; write `await reservation.commit(...)`")
        if self._loop is not None and self._loop.is_closed():
            raise RuntimeError("the event loop that made this reservation is closed")
        if self._loop is None:
            return from_thread.run(self.commit, actual)
        waits: Future[bool] = asyncio.run_coroutine_threadsafe(self.commit(actual), self._loop)
        return waits.result()

    async def progress(self, total: int | Sequence[int]) -> bool:
        """Reports what it has cost so far; False once a budget that has a say is used up.

        Up to the estimate nothing is asked. What goes beyond is charged at once, into debt. A
        response that ends without a commit is committed at the last progress, unless its token was
        read: then it is for who has that.
        """
        numbers = self.numbers(total)
        if self.committed:
            return True
        before = self._reported or [0] * len(numbers)
        self._reported = [max(each) for each in zip(before, numbers, strict=True)]
        if all(part.total >= self._reported[part.budget] for part in self._parts):
            return self._left
        self._going += 1
        return await self._settler.finish(self._go_on())

    @property
    def token(self) -> str:
        """Text with which `RateLimiter.commit` commits it, in another process as well, once.

        To be read after the last progress. Good for an hour, or the longest window if that is
        longer. Raises RuntimeError where the limiter has no secret.
        """
        identifier = self._id or secrets.token_hex(8)
        parts = [
            [part.budget, part.check.limit._value(), part.check.key, part.check.rule, part.taken]  # noqa: SLF001  # as it is pickled
            for part in self._parts
        ]
        content = [_VERSION, identifier, parts, list(self._names), list(self.cost)]
        token = self._signer().sign(content)
        self._id = identifier
        return token

    # --- what becomes of it with the response ----------------------------------------------------

    def answered(self, _: int, __: object) -> None:
        """Waits for the end of the response, which may take long."""

    def sent(self) -> None:
        """Commits at the last progress, where there was one and nobody else is to commit."""
        if self.by_response and self._reported is not None and not (self.committed or self._id):
            self.committed = True
            self._settler.leave(self._close(self._reported))

    async def close(self) -> None:
        """Commits at the last progress, as `sent` does, and waits for that."""
        if self._reported is not None and not self._id:
            await self.commit(self._reported)

    async def _close(self, numbers: Sequence[int]) -> None:
        await self._quietly(numbers)

    def ended(self, _: BaseException | None) -> None:
        """Does as `sent` does, where the response has not come to its end."""
        self.sent()

    def moved(self, at_its_place: Callable[[Decision], Decision]) -> None:
        """Changes nothing: it is made when the request has waited."""

    def withdrawn(self) -> None:
        """Leaves everything as it is: all charges of the request are given back."""
        self.committed = True

    # --- the store -------------------------------------------------------------------------------

    def numbers(self, actual: int | Sequence[int]) -> list[int]:
        """A cost for each budget; raises TypeError or ValueError for what is none."""
        if type(actual) is int and len(self.cost) == 1:
            if not 0 <= actual <= MOST_COST:
                whole("the cost", actual, 0, MOST_COST)
            return [actual]
        several = isinstance(actual, Sequence) and not isinstance(actual, str)
        numbers: list[Any] = list(actual) if several else [actual] * len(self.cost)  # type: ignore[arg-type]  # it is one then
        if len(numbers) != len(self.cost):
            raise ValueError(f"{len(numbers)} costs are given for {len(self.cost)} budgets")
        for each in numbers:
            whole("the cost", each, 0, MOST_COST)
        return numbers

    async def _quietly(self, numbers: Sequence[int]) -> bool:
        try:
            return await self.settle(numbers)
        except Exception as problem:  # noqa: BLE001  # a fault of ours is none of the application
            self._settler.reports.fault(problem)
            return True

    async def settle(self, numbers: Sequence[int]) -> bool:
        """Sets the charges to these costs; False where its token was used before, or is dead.

        Raises StoreUnavailable where the store does not answer.
        """
        async with self._lock:
            # Later, nobody knows any more whether it was used.
            if self._id and self._parts and await self._age_us() > self.life_us:
                return False
            parts, fresh = self._parts, True
            keys = [parts[0].check[1]] if len(parts) == 1 else {part.check[1] for part in parts}
            # An identity's counters are in one place; of several, each is settled by itself.
            for key in keys:
                own = [part for part in parts if part.check[1] == key]
                asked = [self._marker(own[0])] if self._id else []
                for part in own:
                    asked += part.to(numbers[part.budget])
                if asked:
                    decisions = await self._settler.ask(asked)
                    _insist(decisions)
                    fresh = fresh and (not self._id or decisions[0].allowed)
            return fresh

    async def _go_on(self) -> bool:
        """Charges what goes beyond the charges so far; False where a budget is used up."""
        try:
            async with self._lock:
                reported = self._reported or [0] * len(self.cost)
                parts = [part for part in self._parts if part.total < reported[part.budget]]
                asked = [check for part in parts for check in part.to(reported[part.budget])]
                if not asked:
                    return True
                decisions = await self._settler.ask(asked)
                left = True
                for part, check, decision in zip(parts, asked, decisions, strict=True):
                    if not decision.degraded:
                        part.taken.append((check.cost, decision.at_us, decision.level))
                        if part.check.action != _SHADOW and decision.remaining == 0:
                            left = False
                self._left = left
                return left
        except Exception as problem:  # noqa: BLE001  # a fault of ours is none of the application
            self._settler.reports.fault(problem)
            return True
        finally:
            self._going -= 1

    @property
    def life_us(self) -> int:
        """Microseconds for which its token is good."""
        return max([SHORTEST_LIFE_US, *(part.check.limit.window_us for part in self._parts)])

    def _marker(self, part: Part) -> Check:
        """The check that passes once: a counter of its own, beside those of the identity."""
        once = Limit.of(1, self.life_us, algorithm=Algorithm.SLIDING_LOG)
        return Check(once, part.check.key, 1, f"{part.check.rule}~{self._id}")

    async def _age_us(self) -> int:
        """Microseconds since it was made, by the store's clock."""
        part = self._parts[0]
        (now,) = await self._settler.ask([part.check._replace(cost=0, action=Action.CHARGE)])
        return now.at_us - min(at_us for _, at_us, _ in part.taken)


def _insist(decisions: Sequence[Decision]) -> None:
    """Raises what kept the store from deciding one of them."""
    for each in decisions:
        if each[8]:
            problem = getattr(each, "problem", None)
            raise problem or StoreUnavailable("no answer came", "shard", "shard")


def from_token(settler: Settler, signer: Callable[[], Signer], token: str) -> Reservation:
    """The reservation of a token; raises ValueError where no secret of the limiter's signed it."""
    version, *content = signer().read(token)
    if version != _VERSION:
        raise ValueError("this token is of another version of the library")
    identifier, told, names, cost = content
    parts = [
        Part(
            budget,
            Check(_limit(value), key, sum(units for units, _, _ in taken), rule),
            [tuple(each) for each in taken],
        )
        for budget, value, key, rule, taken in told
    ]
    return Reservation(settler, signer, parts, names, cost, identifier)


def _limit(value: Sequence[Any]) -> Limit:
    quota, window_us, algorithm, burst, rounding, max_delay, free = value
    return Limit.of(
        quota, window_us, algorithm=algorithm, burst=burst, rounding=rounding,
        max_delay=max_delay, free=free,
    )  # fmt: skip


class Reserving:
    """A reservation to be made when a block is entered, or when it is awaited."""

    def __init__(self, reserve: Callable[[], Any]) -> None:
        self._reserve = reserve
        self._made: Reservation | None = None

    def __await__(self) -> Generator[Any, None, Reservation]:
        found: Reservation = yield from self._reserve().__await__()
        return found

    async def __aenter__(self) -> Reservation:
        self._made = await self
        return self._made

    async def __aexit__(
        self,
        _: type[BaseException] | None,
        __: BaseException | None,
        ___: TracebackType | None,
    ) -> None:
        if self._made is not None:
            await self._made.close()
