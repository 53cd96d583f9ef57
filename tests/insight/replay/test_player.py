"""Verdicts of a replay, beside those of the live middleware."""

import os
import random
import re
import tracemalloc
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ratelimit import (
    MemoryStore,
    RateLimiter,
    RateLimitMiddleware,
    RedisStore,
    Rule,
    RuleSet,
    Store,
)
from ratelimit.insight.replay.asking import Asker
from ratelimit.insight.replay.detection import format_of
from ratelimit.insight.replay.log import Log
from ratelimit.insight.replay.player import Player, Verdict
from ratelimit.insight.replay.session import Replay
from ratelimit.limiter.admission import Admission
from ratelimit.limits import Algorithm
from ratelimit.testing.clock import ManualClock
from tests.insight.replay.logs import MSEC, Request, combined, msec, traffic, written
from tests.support.servers import Server

EVERY_KIND = """\
version: 1
trusted_proxies: [10.0.0.9]
allowlist: [10.0.0.3]
denylist: [10.0.0.4]
rules:
  - name: all
    by: global
    limit: 60/second; 3000/minute
    algorithm: {algorithm}
  - name: clients
    limit: 20/minute
    algorithm: {algorithm}
    overrides: {{"10.0.0.1": 100/minute, "10.0.0.2": unlimited}}
  - name: items
    match: {{path: "/items/{{id}}", except: ["/items/2"]}}
    by: [client, "path:id"]
    limit: 5/10 seconds
    algorithm: {algorithm}
  - name: login
    match: {{path: /login, methods: [POST]}}
    limit: 4/10 seconds
    cost: 2
    algorithm: {algorithm}
    replaces: [clients]
  - name: watched
    limit: 3/minute
    algorithm: {algorithm}
    mode: shadow
"""
ONE_KIND = """\
version: 1
rules:
  - name: clients
    limit: 20/minute; 1000/hour
    algorithm: {algorithm}
"""


def with_outcomes(requests: Iterable[Request], seed: int) -> Iterator[Request]:
    """Requests of which some have failed."""
    chance = random.Random(seed)
    for each in requests:
        yield each._replace(status=chance.choice([200, 200, 204, 401, 401, 404, 429, 500, 302]))


def replayed(rules: str, log: Log) -> list[Verdict]:
    """The verdicts of a replay, one for each request."""
    parsed = RuleSet.loads(rules)
    asker = Asker(parsed, log.fields)
    verdicts: list[Verdict] = []
    player = Player(asker, parsed, verdicts=verdicts)
    for entries in log.seconds():
        player.play(asker.ask(entries))
    assert log.troubles.counts == {}
    return verdicts


async def live(
    rules: str, requests: Iterable[Request], store: Store, clock: ManualClock, patch: Any
) -> list[Verdict]:
    """The verdicts of the middleware, asked request by request at the time of each."""
    waits: list[int] = []

    async def take_turn(admission: Admission, receive: Any) -> Any:
        waits.append(admission.delay_us)
        admission.turns = ()
        return receive

    ran: list[int] = []

    async def app(_: Any, __: Any, send: Any) -> None:
        ran.append(request.status)
        await send({"type": "http.response.start", "status": request.status, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    patch.setattr("ratelimit.asgi.middleware.take_turn", take_turn)
    limiter = RateLimiter(RuleSet.loads(rules), store=store)
    limited = RateLimitMiddleware(app, limiter)
    verdicts: list[Verdict] = []
    for request in requests:
        clock.set_us(request.at_us)
        sent: list[Any] = []
        path, _, query = request.target.partition("?")
        scope = {
            "type": "http", "method": request.method, "path": path.replace("%20", " "),
            "root_path": "", "query_string": query.encode(), "headers": [],
            "client": (request.client, 5000), "server": ("localhost", 80), "scheme": "http",
        }  # fmt: skip

        async def send(message: Any, sent: list[Any] = sent) -> None:
            sent.append(message)

        waits.clear()
        ran.clear()
        await limited(scope, _nothing, send)
        headers = dict(sent[0]["headers"])
        passed = bool(ran)
        after = headers.get(b"retry-after")
        retry = 0 if passed else None if after is None else int(after)
        verdicts.append((passed, retry, sum(waits)))
    await limiter.aclose()
    return verdicts


async def _nothing() -> Any:
    return {"type": "http.request", "body": b"", "more_body": False}


BY_OUTCOME = """\
version: 1
rules:
  - name: guesses
    limit: 4/minute
    algorithm: {algorithm}
    charge: {{on_status: [401, 5xx]}}
  - name: account
    by: "path:id"
    match: {{path: "/items/{{id}}"}}
    limit: 3/10 seconds
    algorithm: {algorithm}
    charge: {{on_status: [401, 404], reset_on: [200]}}
  - name: clients
    limit: 30/minute
    algorithm: {algorithm}
    overrides: {{"10.0.0.1": 100/minute}}
    charge: {{on_status: 4xx}}
"""

NUMBER = 100_000 if os.environ.get("RATELIMIT_TEST_ALL") else 1_000


@pytest.mark.parametrize("algorithm", Algorithm)
@pytest.mark.parametrize("rules", [ONE_KIND, EVERY_KIND], ids=["one rule", "every kind"])
async def test_a_replay_comes_to_the_verdicts_of_the_live_middleware(
    algorithm: Algorithm, rules: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = rules.format(algorithm=algorithm.value)
    requests = list(traffic(NUMBER, seed=7))
    log = Log([written(tmp_path / "log", map(msec, requests))], format_of(MSEC, {}))
    clock = ManualClock()
    found = replayed(text, log)
    expected = await live(text, requests, MemoryStore(clock=clock), clock, monkeypatch)
    assert len(found) == len(expected)
    different = [
        n for n, (one, other) in enumerate(zip(found, expected, strict=True)) if one != other
    ]
    assert different == []
    outcomes = {passed for passed, _, _ in found}
    assert outcomes == {True, False}
    if algorithm is Algorithm.LEAKING_BUCKET:
        assert any(wait for _, _, wait in found)


@pytest.mark.parametrize("algorithm", Algorithm)
async def test_a_replay_comes_to_the_verdicts_of_the_middleware_on_redis(
    algorithm: Algorithm, redis_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    redis_server.command("FLUSHALL")
    text = EVERY_KIND.format(algorithm=algorithm.value)
    requests = list(traffic(NUMBER if NUMBER > 1_000 else 600, seed=11))
    log = Log([written(tmp_path / "log", map(msec, requests))], format_of(MSEC, {}))
    clock = ManualClock()
    async with RedisStore(redis_server.url, clock=clock, deadline=30) as store:
        expected = await live(text, requests, store, clock, monkeypatch)
    assert replayed(text, log) == expected


async def test_a_log_of_whole_seconds_is_played_at_those_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = [
        each._replace(at_us=each.at_us // 1_000_000 * 1_000_000) for each in traffic(2_000, seed=3)
    ]
    log = Log([written(tmp_path / "log", map(combined, requests))])
    assert log.formats == ["combined"]
    clock = ManualClock()
    text = ONE_KIND.format(algorithm="token_bucket")
    expected = await live(text, requests, MemoryStore(clock=clock), clock, monkeypatch)
    assert replayed(text, log) == expected


def test_long_paths_and_clients_of_anybodys_are_not_kept(tmp_path: Path) -> None:
    """Each of 2,000 lines names another one, of 10,000 characters."""
    rules = RuleSet.loads(ONE_KIND.format(algorithm="fixed_window"))
    for client, path in (("x" * 10_000, "/"), ("", "/" + "x" * 10_000)):
        lines = [
            f"{client}{n} {1_700_352_000 + n // 20}.001 GET {path}{n} 429" for n in range(2_000)
        ]
        log = Log([written(tmp_path / "log", lines)], format_of(MSEC, {}))
        replay = Replay(rules, log, against=rules)
        tracemalloc.start()
        replay.run()
        kept = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        assert log.requests == 2_000
        assert kept < 4 << 20  # the lines are 20 MB


@pytest.mark.parametrize("algorithm", Algorithm)
def test_the_counts_of_a_replay_are_those_of_its_verdicts(
    algorithm: Algorithm, tmp_path: Path
) -> None:
    rules = RuleSet.loads(
        "version: 1\nrules:\n  - {name: one, limit: 20/minute, algorithm: " + algorithm + "}\n"
    )
    name = written(tmp_path / "log", map(msec, traffic(3_000, seed=5)))
    tallies = []
    verdicts: list[Verdict] = []
    for keep in (None, verdicts):
        log = Log([name], format_of(MSEC, {}))
        asker = Asker(rules, log.fields)
        player = Player(asker, rules, verdicts=keep)
        refused = sum(len(player.play(asker.ask(entries))) for entries in log.seconds())
        one = player.rules["one"]
        tallies.append(
            (
                refused, player.refused, player.waited, one.passed, one.waited, one.waited_us,
                one.longest_us, one.refused, len(one.identities), one.locked.most(50),
                list(one.series),
            )
        )  # fmt: skip
    assert tallies[0] == tallies[1]
    passed = sum(each[0] for each in verdicts)
    assert tallies[0][3] == passed
    assert tallies[0][0] == 3_000 - passed > 0
    assert tallies[0][5] == sum(each[2] for each in verdicts)


@pytest.mark.parametrize("algorithm", Algorithm)
async def test_a_replay_keeps_the_charges_that_the_middleware_keeps_by_the_status_in_the_log(
    algorithm: Algorithm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = BY_OUTCOME.format(algorithm=algorithm.value)
    requests = list(with_outcomes(traffic(NUMBER, seed=8), seed=9))
    log = Log([written(tmp_path / "log", map(msec, requests))], format_of(MSEC, {}))
    clock = ManualClock()
    found = replayed(text, log)
    expected = await live(text, requests, MemoryStore(clock=clock), clock, monkeypatch)
    assert [
        n for n, both in enumerate(zip(found, expected, strict=True)) if both[0] != both[1]
    ] == []
    kept = re.sub("    charge: .*\n", "", text)
    log = Log([written(tmp_path / "log", map(msec, requests))], format_of(MSEC, {}))
    refused = sum(not passed for passed, _, _ in found)
    assert 0 < refused < sum(not passed for passed, _, _ in replayed(kept, log))


@pytest.mark.parametrize(
    ("status", "passed"), [("200", 5), ("401", 2), ("499", 2), ("-", 2), ("999", 2)]
)
def test_a_charge_stays_where_the_log_tells_no_status_that_was_sent(
    status: str, passed: int, tmp_path: Path
) -> None:
    rules = """\
version: 1
rules: [{name: a, limit: 2/minute, algorithm: sliding_log, charge: {on_status: [401]}}]
"""
    line = f"192.0.2.1 1700352000.000 GET / {status}"
    log = Log([written(tmp_path / "log", [line] * 5)], format_of(MSEC, {}))
    assert [verdict[0] for verdict in replayed(rules, log)].count(True) == passed


def test_a_request_that_comes_again_has_the_outcome_that_was_logged(tmp_path: Path) -> None:
    rules = """\
version: 1
rules: [{name: a, limit: 1/10s, algorithm: sliding_log, charge: {on_status: [401]}}]
"""
    lines = [f"192.0.2.1 170035200{n}.000 GET /{n} {status}" for n, status in enumerate([401] * 3)]
    log = Log([written(tmp_path / "log", lines)], format_of(MSEC, {}))
    replay = Replay(RuleSet.loads(rules), log, readings=("retry-after",), orders=("logged",))
    replay.run()
    (played,) = replay.passes
    # Two come again ten seconds later, of whom one passes and fails, and the other comes once more.
    assert (played.player.refused_first, played.player.retried, played.player.gave_up) == (2, 3, 0)


@pytest.mark.parametrize(
    ("format_", "sentence"),
    [
        (MSEC, "each was played as decided when it came, which refuses least"),
        ("$remote_addr $msec $request_method $request_uri",
         "charges by outcome, and no status is logged; every charge was kept"),
    ],
)  # fmt: skip
def test_what_is_not_known_of_outcomes_is_said(format_: str, sentence: str, tmp_path: Path) -> None:
    rule = Rule("a", "9/minute", charge={"on_status": [401]})
    line = "192.0.2.1 1700352000.000 GET /" + (" 200" if format_ is MSEC else "")
    log = Log([written(tmp_path / "log", [line])], format_of(format_, {}))
    replay = Replay(RuleSet([rule]), log)
    replay.run()
    (said,) = [each for each in replay.unknown() if each.startswith("rule 'a' ")]
    assert said.endswith(sentence)


def test_whether_a_function_keeps_a_charge_is_not_known(tmp_path: Path) -> None:
    both = [
        Rule("a", "1/minute", charge_if=lambda _: False),
        Rule("b", "3/minute", charge={"on_status": [401]}),
    ]
    log = Log(
        [written(tmp_path / "log", ["192.0.2.1 1700352000.000 GET / 200"] * 9)], format_of(MSEC, {})
    )
    replay = Replay(RuleSet(both), log, readings=("logged",), orders=("logged",))
    replay.run()
    (played,) = replay.passes
    assert (played.player.rules["a"].refused, played.player.rules["b"].refused) == (8, 0)
    assert "rule 'a' has a charge_if, which only the application knows; every charge was kept" in (
        replay.unknown()
    )


def test_nothing_stays_undecided_in_the_limiter_that_a_replay_asks(tmp_path: Path) -> None:
    rule = Rule("a", "9/minute", charge={"on_status": [401]}, overrides={"192.0.2.9": "1/day"})
    lines = [f"192.0.2.1 1700352000.000 GET / {status}" for status in (200, 401, 499)]
    log = Log([written(tmp_path / "log", lines)], format_of(MSEC, {}))
    rules = RuleSet([rule])
    player = Player(Asker(rules, log.fields), rules)
    for entries in log.seconds():
        player.play(player._asker.ask(entries))
    assert player.limiter._decider._outcomes.open == {}
    assert player._logged._outcomes.open == {}
