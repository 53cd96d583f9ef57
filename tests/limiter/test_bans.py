"""Bans: whom a rule has refused too often is refused for a while, and nobody else."""

import asyncio
import json
import logging
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from ipaddress import ip_network
from typing import Any

import httpx
import pytest
import pytest_asyncio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from ratelimit import (
    MemoryStore,
    RateLimit,
    RateLimiter,
    RateLimitExceeded,
    RateLimitMiddleware,
    Rule,
    RuleSet,
    Store,
    limit,
)
from ratelimit.bans import Ban, covering
from ratelimit.control.events import Event
from ratelimit.decisions import Action, Check
from ratelimit.limiter import bans
from ratelimit.limits import Limit
from ratelimit.stores.redis.store import RedisStore
from ratelimit.testing import ManualClock
from tests.support.asgi import CLIENT, NEVER, http_scope
from tests.support.servers import Server

BAN: Mapping[str, int | str] = {"after": 3, "within": "1m", "for": "10m", "up_to": "1d"}
PROXY = ("10.0.0.1", 80)
Answer = tuple[int, str | None, str]
"""Status, Retry-After and type of a refusal's problem."""
PASSED: Answer = (200, None, "")
ABNORMAL = "https://iana.org/assignments/http-problem-types#abnormal-usage-detected"
QUOTA = "https://iana.org/assignments/http-problem-types#quota-exceeded"


class World:
    """A limiter by a clock that is moved by hand, with what it has told."""

    def __init__(self, *rules: Rule, store: Any = None, **options: Any) -> None:
        self.clock = ManualClock()
        self.events: list[Event] = []
        self.limiter = RateLimiter(
            RuleSet(rules or (Rule("login", "2/minute", ban=BAN),), **options),
            store=store or MemoryStore(clock=self.clock),
            on_event=self.events.append,
        )

    async def ask(self, **scope: Any) -> Answer:
        refusal = (await self.limiter.admit(http_scope(**scope))).refusal
        if refusal is None:
            return PASSED
        fields = {name.decode(): value.decode() for name, value in refusal.headers}
        return refusal.status, fields.get("retry-after"), json.loads(refusal.body)["type"]

    async def ask_often(self, times: int, **scope: Any) -> list[Answer]:
        return [await self.ask(**scope) for _ in range(times)]

    async def banned(self, **scope: Any) -> Answer:
        """The answer to the first request of a ban, which takes five in all."""
        answers = await self.ask_often(5, **scope)
        assert answers[:2] == [PASSED, PASSED]
        assert [each[2] for each in answers[2:]] == [QUOTA, QUOTA, ABNORMAL]
        return answers[-1]


# --- how it begins and ends ----------------------------------------------------------------------


async def test_the_last_strike_is_told_of_the_ban_that_it_begins() -> None:
    world = World()
    assert await world.banned() == (429, "600", ABNORMAL)


async def test_a_request_during_a_ban_is_not_a_strike_and_is_told_what_is_left() -> None:
    world = World()
    await world.banned()
    for minute in range(10):
        answers = set(await world.ask_often(5))
        assert answers == {(429, str(600 - 60 * minute), ABNORMAL)}
        world.clock.advance(60)
    assert await world.ask() == PASSED


async def test_a_ban_lasts_twice_as_long_each_time_and_the_threshold_stays() -> None:
    world = World(
        Rule("login", "2/minute", ban={**BAN, "up_to": "25m"}),
    )
    for seconds in (600, 1200, 1500, 1500):
        assert await world.banned() == (429, str(seconds), ABNORMAL)
        world.clock.advance(seconds)


async def test_of_each_quiet_length_of_a_ban_one_doubling_is_forgotten() -> None:
    world = World()
    for seconds in (600, 1200, 2400):
        assert (await world.banned())[1] == str(seconds)
        world.clock.advance(seconds)
    world.clock.advance(2400)
    assert (await world.banned())[1] == "2400"
    world.clock.advance(2400 + 2400 + 1200 + 600)
    assert (await world.banned())[1] == "600"


async def test_a_ban_without_a_longest_does_not_grow() -> None:
    world = World(Rule("login", "2/minute", ban={"after": 3, "within": "1m", "for": "10m"}))
    for _ in range(3):
        assert (await world.banned())[1] == "600"
        world.clock.advance(600)


async def test_strikes_are_forgotten_with_time() -> None:
    world = World(Rule("login", "1/second", algorithm="fixed_window", ban=BAN))
    for _ in range(20):  # one refusal in 20 s, which is as many as are forgotten
        assert [each[2] for each in await world.ask_often(2)] == ["", QUOTA]
        world.clock.advance(20)


async def test_what_another_rule_refuses_is_not_a_strike() -> None:
    other = Rule("other", "1/minute")
    world = World(Rule("login", "100/minute", ban={**BAN, "after": 1}), other)
    assert {each[2] for each in await world.ask_often(20)} == {"", QUOTA}


async def test_the_longest_of_several_bans_is_told() -> None:
    short = Rule("short", "1/minute", ban={"after": 1, "within": "1m", "for": "20s"})
    long = Rule("long", "1/minute", ban={"after": 1, "within": "1m", "for": "70s"})
    world = World(short, long)
    assert await world.ask_often(2) == [PASSED, (429, "70", ABNORMAL)]
    assert world.limiter.counts["short", "banned"] == world.limiter.counts["long", "banned"] == 1


@pytest.mark.parametrize("jump_s", [-86_400 * 365, -3600, -30, 30, 3600, 86_400 * 365])
async def test_no_jump_of_the_clock_bans_for_longer_than_the_longest_ban(jump_s: float) -> None:
    world = World()
    await world.banned()
    world.clock.advance(jump_s)
    for _ in range(24 * 60 + 1):
        if await world.ask() == PASSED:
            break
        world.clock.advance(60)
    else:
        pytest.fail("it is banned for longer than a day")


async def test_an_end_that_no_ban_can_have_is_set_right_for_good() -> None:
    world = World()
    world.clock.advance(86_400 * 365)
    await world.banned()
    world.clock.advance(-86_400 * 365)
    assert (await world.ask())[2] == QUOTA  # by its limit, whose clock is broken as well
    world.clock.advance(86_400 * 365 + 60)  # within the ban, had it been one
    assert await world.ask() == PASSED


# --- who is never banned -------------------------------------------------------------------------


async def test_clients_whose_address_is_not_known_are_not_banned() -> None:
    world = World()
    assert {each[2] for each in await world.ask_often(20, client=None)} == {"", QUOTA}


@pytest.mark.parametrize(
    "trust", [{"trusted_proxies": [ip_network("10.0.0.0/8")]}, {"trusted_hops": 1}]
)
async def test_a_trusted_proxy_itself_is_not_banned(trust: dict[str, Any]) -> None:
    world = World(Rule("login", "2/minute", ban=BAN), **trust)
    assert {each[2] for each in await world.ask_often(20, client=PROXY)} == {"", QUOTA}
    behind = {"client": PROXY, "headers": [("x-forwarded-for", "198.51.100.9")]}
    assert (await world.banned(**behind))[1] == "600"


async def test_who_is_on_an_allowlist_or_unlimited_is_not_banned() -> None:
    home = [ip_network("192.0.2.1")]
    for rule, options in (
        (Rule("login", "1/day", ban=BAN, allowlist=home), {}),
        (Rule("login", "1/day", ban=BAN, overrides={"192.0.2.1": "unlimited"}), {}),
        (Rule("login", "1/day", ban=BAN), {"allowlist": home}),
    ):
        world = World(rule, **options)
        assert set(await world.ask_often(9, client=("192.0.2.1", 1))) == {PASSED}


async def test_an_override_has_strikes_of_its_own_limit() -> None:
    world = World(Rule("login", "1/day", ban=BAN, overrides={"192.0.2.1": "2/minute"}))
    assert (await world.banned(client=("192.0.2.1", 1)))[1] == "600"


async def test_a_user_is_banned_wherever_he_comes_from_and_nobody_else() -> None:
    world = World(Rule("login", "2/minute", by="user", ban=BAN))
    assert (await world.banned(user="a"))[1] == "600"
    assert (await world.ask(user="a", client=("192.0.2.77", 1)))[2] == ABNORMAL
    assert await world.ask(user="b") == PASSED
    # Without a user it is the address that counts, and one that is not known is nobody's.
    assert {each[2] for each in await world.ask_often(20, client=None)} == {"", QUOTA}
    assert (await world.banned(client=("192.0.2.78", 1)))[1] == "600"


async def test_a_user_is_banned_where_addresses_are_not_known() -> None:
    world = World(Rule("login", "2/minute", by="user", ban=BAN))
    assert (await world.banned(user="a", client=None))[1] == "600"


# --- shadow, events and counts -------------------------------------------------------------------


async def test_a_ban_in_shadow_refuses_nobody_and_tells_whom_it_would() -> None:
    world = World(Rule("login", "2/minute", mode="shadow", ban=BAN))
    assert set(await world.ask_often(8)) == {PASSED}
    counts = {outcome: times for (_, outcome), times in world.limiter.counts.items()}
    assert counts == {"shadow-allowed": 2, "shadow-denied": 2, "shadow-banned": 4}
    (begun,) = [each for each in world.events if each.kind == "banned"]
    assert (begun.mode, begun.detail) == ("shadow", "begins, for 10 minutes")


async def test_events_and_counts_tell_each_request_that_a_ban_refuses() -> None:
    world = World()
    await world.ask_often(7)
    assert [each.kind for each in world.events] == ["denied"] * 2 + ["banned"] * 3
    begun, *during = [each for each in world.events if each.kind == "banned"]
    assert begun.detail == "begins, for 10 minutes"
    assert (begun.rule, begun.mode, begun.identity) == ("login", "enforce", CLIENT[0])
    assert {each.detail for each in during} == {""}
    assert {each.retry_after for each in (begun, *during)} == {600.0}
    counts = world.limiter.counts
    assert counts == {("login", "allowed"): 2, ("login", "denied"): 2, ("login", "banned"): 3}
    assert world.limiter.denials.busiest() == [(f"login {CLIENT[0]}", 5)]
    assert world.limiter.banned == world.limiter.health()["banned"] == 1


async def test_bans_are_told_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "ratelimit")
    await World().banned()
    assert "banned: by rule 'login' for" in caplog.text


# --- by name -------------------------------------------------------------------------------------


async def test_a_peek_tells_what_is_left_of_a_ban() -> None:
    world = World()
    assert [each.allowed for each in await world.limiter.peek("login", CLIENT[0])] == [True]
    await world.banned()
    world.clock.advance(100)
    counted, ban = await world.limiter.peek("login", CLIENT[0])
    assert (counted.allowed, ban.allowed, ban.retry_after) == (True, False, 500.0)
    assert isinstance(ban.limit, Ban)


async def test_a_charge_is_refused_by_a_ban_and_its_refusals_are_strikes() -> None:
    world = World()
    allowed = [(await world.limiter.charge("login", "192.0.2.9")).allowed for _ in range(5)]
    assert allowed == [True, True, False, False, False]
    outcome = await world.limiter.charge("login", "192.0.2.9")
    assert (outcome.allowed, outcome.retry_after) == (False, 600.0)
    assert (await world.ask(client=("192.0.2.9", 1)))[2] == ABNORMAL


async def test_unbanned_is_as_if_never_banned_and_stays_counted() -> None:
    world = World()
    await world.banned()
    assert await world.limiter.unban("login", CLIENT[0])
    assert world.events[-1].kind == "unbanned"
    assert (await world.ask())[2] == QUOTA
    assert not await world.limiter.unban("login", CLIENT[0])
    world.clock.advance(120)
    assert (await world.banned())[1] == "600"


async def test_a_reset_lifts_the_ban_as_well() -> None:
    world = World()
    await world.banned()
    await world.limiter.reset("login", CLIENT[0])
    assert (await world.banned())[1] == "600"


async def test_whom_a_rule_does_not_ban_cannot_be_unbanned() -> None:
    world = World(Rule("login", "2/minute", ban=BAN), Rule("other", "1/minute"))
    for rule in ("login", "other"):
        with pytest.raises(ValueError, match="does not ban this identity"):
            await world.limiter.unban(rule, "unidentified" if rule == "login" else "192.0.2.1")


# --- beside other words, and on routes -----------------------------------------------------------


async def test_a_reservation_is_refused_by_a_ban_and_its_refusals_are_strikes() -> None:
    world = World(Rule("tokens", "100/minute", ban=BAN))
    for kind in (QUOTA, QUOTA, ABNORMAL, ABNORMAL):
        with pytest.raises(RateLimitExceeded) as refused:
            await world.limiter.reserve("tokens", "192.0.2.9", cost=101)
        assert json.loads(refused.value.refusal.body)["type"] in (kind, NEVER)
    assert world.limiter.counts["tokens", "banned"] == 2


async def test_a_budget_that_is_named_twice_strikes_by_either(store: Store) -> None:
    limits = RateLimiter([Rule("tokens", "10/minute", ban=BAN)], store=store)
    budgets = [("tokens", "192.0.2.9", 8), ("tokens", "192.0.2.9", 5)]
    told = []
    for _ in range(4):
        with pytest.raises(RateLimitExceeded) as refused:
            await limits.reserve_all(budgets)
        told.append(json.loads(refused.value.refusal.body)["type"])
    assert told == [NEVER, NEVER, ABNORMAL, ABNORMAL]
    await limits.aclose()


async def test_what_a_route_refuses_is_a_strike_of_its_own_ban() -> None:
    limiter = RateLimiter(store=MemoryStore(clock=ManualClock()))

    @limit("2/minute", ban=BAN, name="here", limiter=limiter)
    async def here(request: Request) -> PlainTextResponse:
        return PlainTextResponse("ok")

    async def there(request: Request) -> PlainTextResponse:
        return PlainTextResponse("ok")

    app = Starlette(routes=[Route("/here", here), Route("/there", there)])
    app.add_middleware(RateLimitMiddleware, limiter=limiter)
    transport = httpx.ASGITransport(app, client=("192.0.2.1", 1))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        answers = [await client.get("/here") for _ in range(6)]
        assert [each.status_code for each in answers] == [200, 200, 429, 429, 429, 429]
        assert [each.json()["type"] for each in answers[2:]] == [QUOTA, QUOTA, ABNORMAL, ABNORMAL]
        assert answers[-1].headers["retry-after"] == "600"
        assert answers[-1].json()["violated-policies"] == ["here"]
        assert "ratelimit" not in answers[-1].headers
        assert (await client.get("/there")).status_code == 200


async def test_a_refusal_further_in_gives_no_strike_back() -> None:
    """What the middleware charged is given back where a route refuses; strikes are no charge."""
    world = World(Rule("login", "2/minute", ban=BAN))
    for _ in range(4):
        admission = await world.limiter.admit(http_scope())
        await admission.give_back()
    assert (await world.banned())[1] == "600"


def test_a_dependency_of_a_route_may_be_banned() -> None:
    def current_user() -> str:
        return "alice"

    assert RateLimit("5/minute", by=current_user, ban=BAN).rule.ban is not None
    with pytest.raises(ValueError, match="ban by client or"):
        RateLimit("5/minute", by="path:name", ban=BAN)


# --- with Redis ----------------------------------------------------------------------------------

Open = Callable[..., World]


@pytest_asyncio.fixture
async def in_redis(redis_server: Server) -> AsyncIterator[Open]:
    """Opens limiters on one empty server, by one clock."""
    redis_server.command("FLUSHALL")
    clock, opened = ManualClock(), []

    def open_world(*rules: Rule, **options: Any) -> World:
        store = RedisStore(redis_server.url, clock=clock, deadline=10, **options)
        world = World(*rules, store=store)
        world.clock = clock
        opened.append(world.limiter)
        return world

    yield open_world
    for limiter in opened:
        await limiter.aclose()


def calls(server: Server) -> int:
    """The scripts that a server has run since its statistics were reset."""
    line = [each for each in server.ask("INFO", "commandstats").splitlines() if "_evalsha:" in each]
    return int(line[0].partition("calls=")[2].partition(",")[0]) if line else 0


async def strikes_sent() -> None:
    """Returns when the store was told of every strike so far."""
    sending = [each for each in asyncio.all_tasks() if each.get_name() == "ratelimit strikes"]
    await asyncio.wait_for(asyncio.gather(*sending), 10)


async def test_denials_that_are_repeated_in_process_are_strikes_as_well(
    in_redis: Open, redis_server: Server
) -> None:
    world = in_redis(Rule("login", "2/minute", ban={**BAN, "after": 100}))
    assert (await world.ask_often(2), (await world.ask())[2]) == ([PASSED, PASSED], QUOTA)
    redis_server.ask("CONFIG", "RESETSTAT")
    for _ in range(98):  # the store counted one, and 98 are to come
        assert (await world.ask())[2] == QUOTA
    assert calls(redis_server) == 0
    # All of them in one trip; the hundredth, which meets the store, is the one that bans.
    await strikes_sent()
    assert calls(redis_server) == 1
    assert (await world.ask())[2] == ABNORMAL
    assert calls(redis_server) == 2


async def test_strikes_alone_can_begin_a_ban(in_redis: Open) -> None:
    world = in_redis()
    assert [each[2] for each in await world.ask_often(9)] == ["", ""] + [QUOTA] * 7
    await strikes_sent()
    assert world.limiter.banned == 1
    assert (await world.ask())[:2] == (429, "600")
    begun = [each for each in world.events if each.detail]
    assert [each.detail for each in begun] == ["begins, for 10 minutes"]


async def test_strikes_of_one_identity_make_one_trip_in_a_tenth_of_a_second(
    in_redis: Open, redis_server: Server
) -> None:
    world = in_redis(Rule("login", "2/minute", ban={**BAN, "after": 10**6}))
    await world.ask_often(3)
    redis_server.ask("CONFIG", "RESETSTAT")
    loop = asyncio.get_running_loop()
    began = loop.time()
    struck = 0
    while loop.time() - began < 1:
        await world.ask()
        struck += 1
        await asyncio.sleep(0)
    trips = calls(redis_server)
    # Each is followed by one request that meets the store, since a strike may have banned.
    assert trips <= 2 * (loop.time() - began) / 0.1 + 2
    assert struck > 10 * trips


async def test_a_banned_client_costs_one_trip_in_five_seconds(
    in_redis: Open, redis_server: Server
) -> None:
    world = in_redis(deny_cache=0)
    await world.banned()
    redis_server.ask("CONFIG", "RESETSTAT")
    for _ in range(19_999):  # 4,000 a second
        world.clock.advance(0.00025)
        assert (await world.limiter.admit(http_scope())).refusal is not None
    assert calls(redis_server) == 0
    for _ in range(19_999):
        world.clock.advance(0.00025)
        assert (await world.limiter.admit(http_scope())).refusal is not None
    assert calls(redis_server) == 1


async def test_one_request_asks_again_for_all_that_come_meanwhile(
    in_redis: Open, redis_server: Server
) -> None:
    world = in_redis(deny_cache=0)
    await world.banned()
    world.clock.advance(5)
    redis_server.ask("CONFIG", "RESETSTAT")
    answers = await asyncio.gather(*(world.ask() for _ in range(200)))
    assert {each[2] for each in answers} == {ABNORMAL}
    assert calls(redis_server) == 1


async def test_who_is_unbanned_by_one_worker_passes_by_the_others_within_five_seconds(
    in_redis: Open,
) -> None:
    rule = Rule("login", "2/minute", ban=BAN)
    here, there = in_redis(rule, deny_cache=0), in_redis(rule, deny_cache=0)
    await here.banned()
    assert (await there.ask())[2] == ABNORMAL
    assert await here.limiter.unban("login", CLIENT[0])
    assert (await here.ask())[2] == QUOTA  # at once
    assert (await there.ask())[2] == ABNORMAL
    there.clock.advance(5)
    assert (await there.ask())[2] == QUOTA


async def test_what_is_remembered_of_bans_is_bounded(
    in_redis: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bans, "MOST", 10)
    world = in_redis(Rule("login", "1/minute", ban={**BAN, "after": 1}))
    for number in range(50):
        await world.ask_often(2, client=(f"192.0.2.{number}", 1))
    assert world.limiter.banned == 10
    # The others are as banned as before; the store says so.
    assert (await world.ask(client=("192.0.2.0", 1)))[2] == ABNORMAL


async def test_while_the_store_is_away_nobody_is_banned_anew(redis_server: Server) -> None:
    store = RedisStore("redis://127.0.0.1:1/0", deadline=0.05)
    world = World(Rule("login", "2/minute", on_store_failure="local", ban=BAN), store=store)
    assert {each[2] for each in await world.ask_often(9)} == {"", QUOTA}
    assert world.limiter.banned == 0
    await world.limiter.aclose()


WORKER = """
import asyncio, json, sys
from ratelimit.bans import Ban, covering
from ratelimit.decisions import Check
from ratelimit.limiter import bans
from ratelimit.limits import Limit
from ratelimit.stores.redis.store import RedisStore

async def main(url):
    ban, limit = covering(Ban(10, 60_000_000, 600_000_000, 600_000_000), 1), Limit("5/day")
    rounds = []
    async with RedisStore(url, deadline=30, deny_cache=0) as store:
        await store.ping()
        print("ready", flush=True)
        sys.stdin.readline()
        for number in range(20):
            key = f"{number}"
            found = await asyncio.gather(*(
                store.decide([Check(ban, key, 0, "r"), Check(limit, key, 1, "r")])
                for _ in range(10)
            ))
            rounds.append([
                [banned.allowed, counted.allowed, banned.level == 0] for banned, counted in found
            ])
    print(json.dumps(rounds), flush=True)

asyncio.run(main(sys.argv[1]))
"""


@pytest.mark.slow
async def test_a_ban_begins_with_the_strike_that_completes_it_whatever_process_it_is_of(
    redis_server: Server,
) -> None:
    redis_server.command("FLUSHALL")
    pipe = asyncio.subprocess.PIPE
    workers = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-c", WORKER, redis_server.url, stdin=pipe, stdout=pipe
        )
        for _ in range(8)
    ]
    for worker in workers:
        assert worker.stdout is not None
        assert await worker.stdout.readline() == b"ready\n"
    replies = await asyncio.gather(*(worker.communicate(b"go\n") for worker in workers))
    rounds = [json.loads(out) for out, _ in replies]
    for number in range(20):
        found = [tuple(each) for worker in rounds for each in worker[number]]
        passed = sum(counted and banned for banned, counted, _ in found)
        struck = sum(banned and not counted for banned, counted, _ in found)
        begun = sum(not banned and first for banned, _, first in found)
        assert (passed, struck, begun, len(found)) == (5, 9, 1, 80)


async def test_a_strike_of_many_is_as_many_strikes() -> None:
    clock = ManualClock()
    store = MemoryStore(clock=clock)
    ban = Ban(10, 60_000_000, 600_000_000, 600_000_000)
    for times, left in ((4, 6), (5, 1), (1, 0)):
        (told,) = await store.decide([Check(ban, "a", times, action=Action.FORCE)])
        assert told.remaining == left
    assert (told.allowed, told.retry_after) == (False, 600.0)
    # What is refused beside it is not its to count where it does not cover it.
    for covers, left in ((0, 10), (1, 9)):
        rule = f"covering-{covers}"
        checks = [Check(covering(ban, covers), "b", 0, rule), Check(Limit("1/day"), "b", 2, rule)]
        assert (await store.decide(checks))[0].remaining == left
