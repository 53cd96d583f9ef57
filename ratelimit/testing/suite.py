"""The suite that every store must pass. Importing it needs no pytest.

To hold a store of your own to the promise, in a test module::

    from ratelimit.testing import StoreSuite

    @pytest.fixture
    def make_store():
        return lambda clock: MyStore(clock=clock)

    class TestMyStore(StoreSuite):
        pass

with pytest-asyncio in auto mode (or anyio's). ``TABLES`` holds the decision tables as data.
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable

from ratelimit.decisions import Check
from ratelimit.limits import Algorithm, Limit
from ratelimit.stores import Store
from ratelimit.testing.clock import START_US, ManualClock
from ratelimit.testing.tables import TABLES, Table, _same, check_table

__all__ = ["StoreSuite"]


MakeStore = Callable[["ManualClock"], Store]


async def _with_store(
    make_store: MakeStore, run: Callable[[Store, ManualClock, str], Awaitable[None]]
) -> None:
    clock = ManualClock()
    store = make_store(clock)
    try:
        await run(store, clock, secrets.token_hex(8))
    finally:
        await store.aclose()


class StoreSuite:
    """The tests that every store must pass; subclass it beside a fixture ``make_store``.

    ``make_store`` is a function from a `ManualClock` to a fresh `Store` that decides by it. Keys
    are chosen anew in every test, so that a shared server need not be emptied. There is a further
    test for each of `TABLES`.
    """

    async def test_checks_of_one_request_are_charged_all_or_none(
        self, make_store: MakeStore
    ) -> None:
        """A refused request charges nothing, and every decision shows the uncharged state."""
        wide, narrow = Limit("3/minute", algorithm="fixed_window"), Limit("1/minute")

        async def run(store: Store, clock: ManualClock, key: str) -> None:
            request = [Check(wide, key), Check(narrow, key)]
            both = await store.decide(request)
            _same("the first request", [d[1:3] for d in both], [(True, 2), (True, 0)])
            both = await store.decide(request)
            _same("the second request", [d[1:3] for d in both], [(True, 2), (False, 0)])
            _same("its first check's wait", both[0].retry_after_us, 0)
            (left,) = await store.decide([Check(wide, key, 0)])
            _same("remaining after the refusal", left.remaining, 2)

        await _with_store(make_store, run)

    async def test_checks_of_the_same_counter_see_each_other(self, make_store: MakeStore) -> None:
        """Two checks of one counter are two charges, and are refused where both do not fit."""

        async def run(store: Store, clock: ManualClock, key: str) -> None:
            for name in Algorithm:
                limit = Limit("3/minute", algorithm=name)
                two = await store.decide([Check(limit, key, 2), Check(limit, key, 2)])
                _same(f"{name}, 2 and 2 of 3", [d[1:3] for d in two], [(True, 3), (False, 3)])
                _same(f"{name}, 4 at once can never pass", two[1].retry_after_us, None)
                two = await store.decide([Check(limit, key, 1), Check(limit, key, 2)])
                _same(f"{name}, 1 and 2 of 3", [d[1:3] for d in two], [(True, 2), (True, 0)])

        await _with_store(make_store, run)

    async def test_a_shadow_check_has_no_say(self, make_store: MakeStore) -> None:
        """A shadow check is charged where it would pass, and never changes the outcome."""

        async def run(store: Store, clock: ManualClock, key: str) -> None:
            for name in Algorithm:
                strict = Limit("1/minute", algorithm=name)
                loose = Limit("3/minute", algorithm=name)
                request = [Check(strict, key, shadow=True), Check(loose, key)]
                first = await store.decide(request)
                _same(f"{name}, both", [d[1:3] for d in first], [(True, 0), (True, 2)])
                second = await store.decide(request)
                _same(f"{name}, the shadow's no", [d[1:3] for d in second], [(False, 0), (True, 1)])
                other = f"{key}-other"
                refused = await store.decide(
                    [Check(strict, other, shadow=True), Check(loose, other, 4)]
                )
                _same(f"{name}, refused", [d[1:3] for d in refused], [(True, 1), (False, 3)])

        await _with_store(make_store, run)

    async def test_a_refusal_tells_no_delay(self, make_store: MakeStore) -> None:
        """A leaking bucket's wait is told only to a request that passed as a whole."""
        queue = Limit("1/s burst 5", algorithm="leaking_bucket")

        async def run(store: Store, clock: ManualClock, key: str) -> None:
            await store.decide([Check(queue, key, 2)])
            two = await store.decide([Check(queue, key), Check(queue, f"{key}-2", 6)])
            _same("allowed and delay", [(d[1], d.delay_us) for d in two], [(True, 0), (False, 0)])
            three = await store.decide([Check(queue, key), Check(queue, key), Check(queue, key)])
            _same("delays", [d.delay for d in three], [2.0, 3.0, 4.0])

        await _with_store(make_store, run)

    async def test_rules_keys_and_limits_never_share_a_counter(self, make_store: MakeStore) -> None:
        """Another rule, another identity, another number or algorithm is another counter."""

        async def run(store: Store, clock: ManualClock, key: str) -> None:
            limits = [Limit("1/minute", algorithm=name) for name in Algorithm]
            limits += [Limit("1/hour"), Limit("2/minute"), Limit("1/minute", rounding="up")]
            limits += [Limit("1/minute burst 2", algorithm="token_bucket")]
            names = [("", key), ("a", key), ("ab", key), ("a", f"b{key}"), ("", f"{key}\x00")]
            names += [("", key.upper() + "G"), ("", f"{key} "), ("a\x00b", key)]
            for limit in limits:
                for rule, name in names:
                    (decision,) = await store.decide([Check(limit, name, 1, rule)])
                    _same(
                        f"the first use of {limit!r}, rule {rule!r}, key {name!r}",
                        decision.remaining,
                        limit.capacity - 1,
                    )

        await _with_store(make_store, run)

    async def test_reset_forgets_a_counter(self, make_store: MakeStore) -> None:
        """After a reset a counter is as if it had never been used; others are left alone."""

        async def run(store: Store, clock: ManualClock, key: str) -> None:
            for name in Algorithm:
                limit = Limit("2/minute", algorithm=name)
                mine, other = Check(limit, key, 2), Check(limit, f"{key}-other", 2)
                await store.decide([mine, other])
                await store.reset([mine])
                looks = [Check(limit, key, 0), Check(limit, other.key, 0)]
                decisions = await store.decide(looks)
                _same(f"{name}, remaining", [d.remaining for d in decisions], [2, 0])
                _same(f"{name}, reset_after_us", decisions[0].reset_after_us, 0)

        await _with_store(make_store, run)

    async def test_a_decision_carries_its_limit_and_seconds(self, make_store: MakeStore) -> None:
        """A decision names its limit, gives seconds beside microseconds, and is not degraded."""
        limit = Limit("1/1500ms", algorithm="fixed_window")

        async def run(store: Store, clock: ManualClock, key: str) -> None:
            await store.decide([Check(limit, key)])
            (decision,) = await store.decide([Check(limit, key)])
            _same("limit", decision.limit, limit)
            _same("retry_after", decision.retry_after, 1.5)
            _same("reset_after", decision.reset_after, 1.5)
            _same("degraded", decision.degraded, False)
            (never,) = await store.decide([Check(limit, key, 2)])
            _same("never", never.retry_after, None)
            _same("no checks, no decisions", await store.decide([]), ())

        await _with_store(make_store, run)

    async def test_what_comes_at_once_is_decided_one_after_another(
        self, make_store: MakeStore
    ) -> None:
        """A hundred tasks on a quota of ten: exactly ten pass, whatever they wait for."""

        async def run(store: Store, clock: ManualClock, key: str) -> None:
            for name in Algorithm:
                check = Check(Limit("10/minute", algorithm=name), key)
                answers = await asyncio.gather(*(store.decide([check]) for _ in range(100)))
                _same(f"{name}, passed", sum(d.allowed for (d,) in answers), 10)

        await _with_store(make_store, run)

    async def test_a_denial_and_a_cost_of_0_write_nothing(self, make_store: MakeStore) -> None:
        """A refused request, or one that only looked, leaves no trace in later answers."""

        async def run(store: Store, clock: ManualClock, key: str) -> None:
            for name in Algorithm:
                limit = Limit("5/minute", algorithm=name)
                await store.decide([Check(limit, key, 5), Check(limit, f"{key}-0", 5)])
                for cost in (0, 1, 5, 6):
                    clock.advance(us=1)
                    await store.decide([Check(limit, key, cost)])
                clock.advance(us=-4)
                looks = [Check(limit, key, 0), Check(limit, f"{key}-0", 0)]
                noisy, quiet = await store.decide(looks)
                _same(f"{name}, after denials", noisy[1:6], quiet[1:6])

        await _with_store(make_store, run)

    async def test_retry_after_is_exact_to_the_tick(self, make_store: MakeStore) -> None:
        """One tick before the promised instant is refused, the instant itself is not."""

        async def run(store: Store, clock: ManualClock, key: str) -> None:
            for name in Algorithm:
                for limit in (
                    Limit("7/minute", algorithm=name),
                    Limit("999983/day", algorithm=name),
                ):
                    clock.set_us(START_US)
                    taken = Check(limit, key, limit.quota - limit.quota // 3)
                    await store.decide([taken])
                    clock.advance(us=12_345_678)
                    (denied,) = await store.decide([taken])
                    _same(f"{limit!r}, at first", denied.allowed, False)
                    if denied.retry_after_us is None:
                        raise AssertionError(f"{limit!r}: never, for {taken.cost}")
                    clock.advance(us=denied.retry_after_us - 1)
                    (early,) = await store.decide([taken])
                    _same(f"{limit!r}, too early", early[1:4:2], (False, 1))
                    clock.advance(us=1)
                    (due,) = await store.decide([taken])
                    _same(f"{limit!r}, when due", due.allowed, True)

        await _with_store(make_store, run)


def _table_test(name: str, table: Table) -> Callable[[StoreSuite, MakeStore], Awaitable[None]]:
    async def test(self: StoreSuite, make_store: MakeStore) -> None:
        async def run(store: Store, clock: ManualClock, key: str) -> None:
            await check_table(store, clock, table)

        await _with_store(make_store, run)

    test.__doc__ = f"{name[0].upper()}{name[1:]}."
    return test


for _name, _table in TABLES.items():
    setattr(
        StoreSuite,
        "test_" + "_".join("".join(c if c.isalnum() else " " for c in _name.lower()).split()),
        _table_test(_name, _table),
    )
