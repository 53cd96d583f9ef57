"""Verdicts of a replay, beside those of the live middleware."""

import os
import tracemalloc
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from ratelimit import MemoryStore, RateLimiter, RateLimitMiddleware, RedisStore, RuleSet, Store
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

    async def app(_: Any, __: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
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
        await limited(scope, _nothing, send)
        headers = dict(sent[0]["headers"])
        passed = sent[0]["status"] == 200
        after = headers.get(b"retry-after")
        retry = 0 if passed else None if after is None else int(after)
        verdicts.append((passed, retry, sum(waits)))
    await limiter.aclose()
    return verdicts


async def _nothing() -> Any:
    return {"type": "http.request", "body": b"", "more_body": False}


NUMBER = 100_000 if os.environ.get("RATELIMIT_TEST_ALL") else 3_000


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
    requests = list(traffic(NUMBER if NUMBER > 3_000 else 600, seed=11))
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
