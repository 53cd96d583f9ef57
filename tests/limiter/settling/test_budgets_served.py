"""Budgets across real processes: workers that share a store, one that is killed, a real server."""

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from ratelimit import Algorithm, Limit
from tests.support.apps import ROOT, running
from tests.support.budgets import QUOTA, WINDOW, limiting
from tests.support.model import Ask, Model
from tests.support.servers import Server, wait_until

WINDOW_US = 500_000


def worker(*arguments: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "tests.support.budgets", *arguments]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def admitted_by_the_model(events: Sequence[dict[str, Any]]) -> int:
    """Tokens that the model admits of the same calls, with the same commits."""
    limit = Limit(f"{QUOTA}/{WINDOW}", algorithm="sliding_log")
    model, total = Model(), 0
    steps = [(each["at"], 0, number) for number, each in enumerate(events)]
    # A call that was refused would have taken as long as the others took.
    took = sorted(each["by"] - each["at"] for each in events if "by" in each)
    usual = took[len(took) // 2]
    steps += [(each.get("by", each["at"] + usual), 1, n) for n, each in enumerate(events)]
    made = {}
    for now_us, is_commit, number in sorted(steps):
        cost, actual = events[number]["cost"], events[number]["actual"]
        if not is_commit:
            (answer,) = model.decide(now_us, [Ask(limit, "alice", cost)])
            if answer.allowed:
                made[number] = answer
                total += actual
        elif number in made and actual < cost:
            back = Ask(limit, "alice", cost - actual, "give_back", made[number])
            model.decide(now_us, [back])
    return total


@pytest.mark.parametrize(
    ("workers", "seconds"),
    [(4, 2), *(pytest.param(count, 20, marks=pytest.mark.slow) for count in (1, 4))],
)
def test_what_calls_really_cost_fits_each_window_and_uses_it(
    redis_server: Server, workers: int, seconds: int
) -> None:
    redis_server.command("FLUSHALL")
    processes = [worker(redis_server.url, str(seed), str(seconds)) for seed in range(workers)]
    events = [
        json.loads(line)
        for process in processes
        for line in process.communicate(timeout=60 + seconds)[0].splitlines()
    ]
    assert [process.returncode for process in processes] == [0] * workers
    made = sorted((each["at"], each["actual"]) for each in events if each["event"] == "made")
    assert len({each["event"] for each in events}) == 2
    assert len(made) > seconds * 4
    for place, (last_us, _) in enumerate(made):
        window = [units for at, units in made[: place + 1] if at > last_us - WINDOW_US]
        assert sum(window) <= QUOTA
    assert sum(units for _, units in made) >= 0.9 * admitted_by_the_model(events)


async def test_what_a_killed_worker_has_not_committed_stays_spent(redis_server: Server) -> None:
    """Its counters are those of the model in which each estimate, or progress, was the cost."""
    redis_server.command("FLUSHALL")
    process = worker(redis_server.url)
    assert process.stdout is not None
    told: list[dict[str, Any]] = []
    for line in process.stdout:
        each = json.loads(line)
        if each["what"] == "ready":
            break
        told.append(each)
    process.send_signal(signal.SIGKILL)
    assert process.wait(10) == -signal.SIGKILL
    process.stdout.close()
    for algorithm in {each["algorithm"] for each in told}:
        limit = Limit("9000/day", algorithm=Algorithm(algorithm))
        model = Model()
        for each in (each for each in told if each["algorithm"] == algorithm):
            replay(model, limit, each)
        limits = limiting(redis_server.url, "9000/day", algorithm)
        (seen,) = await limits.peek("tokens", algorithm)
        (expected,) = model.decide(seen.at_us, [Ask(limit, "alice", 0)])
        assert (seen.remaining, seen.reset_after_us) == (expected.remaining, expected.reset_us)
        assert seen.remaining - 5150 in range(100)  # a bucket has refilled a few since
        await limits.aclose()


def replay(model: Model, limit: Limit, told: dict[str, Any]) -> None:
    """Makes in the model what the worker has told of one of its reservations."""
    (_, at_us, _), *more = told["taken"]
    (charge,) = model.decide(at_us, [Ask(limit, "alice", told["cost"])])
    for units, then_us, _ in more:
        model.decide(then_us, [Ask(limit, "alice", units, "force")])
    missing = told["actual"] - told["cost"]
    if told["what"] == "commit" and missing > 0:
        model.decide(at_us, [Ask(limit, "alice", missing, "force")])
    elif told["what"] == "commit":
        model.decide(at_us, [Ask(limit, "alice", -missing, "give_back", charge)])


def test_a_client_that_leaves_a_stream_has_paid_for_what_was_produced(
    redis_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    redis_server.command("FLUSHALL")
    monkeypatch.setenv("STORE", redis_server.url)
    body = json.dumps({"max_tokens": 1000}).encode()
    with running("", app=("tests.support.budgets:make", "--factory")) as app:
        address = urlsplit(app.url)
        with socket.create_connection((address.hostname, address.port), 30) as client:
            head = f"POST /chat HTTP/1.1\r\nhost: x\r\nx-user: alice\r\ncontent-length: {len(body)}"
            client.sendall(head.encode() + b"\r\n\r\n" + body)
            got = b""
            while got.count(b"token ") < 100:
                got += client.recv(4096)

        def state() -> tuple[int, int]:
            found = httpx.get(f"{app.url}/state", timeout=30).json()
            return found["produced"], found["left"]

        # The estimate of 1000 is charged until the stream has ended.
        wait_until(lambda: state()[1] != 9000 - 1000, "the stream was settled")
        produced, left = state()
        assert 100 <= produced < 1000
        assert left == 9000 - produced
