"""The recipes among the examples, served as their first lines say."""

import asyncio
import json
from collections import Counter
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import pytest

from tests.support.apps import serving_app
from tests.support.servers import Server

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


class Answer(NamedTuple):
    """A response, as far as these tests look at it."""

    status: int
    head: str


async def log_in(url: str, password: str, name: str = "alice") -> Answer:
    """One login on a connection of its own, so that all workers get some."""
    parts = urlsplit(url)
    body = json.dumps({"username": name, "password": password}).encode()
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    writer.write(
        b"POST /login HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"
        b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
    )
    answer = (await reader.read()).decode("latin-1")
    writer.close()
    return Answer(int(answer[9:12]), answer.lower().partition("\r\n\r\n")[0])


@pytest.mark.parametrize("workers", [1, 4])
async def test_of_a_thousand_parallel_guesses_five_are_looked_at(
    redis_server: Server, workers: int
) -> None:
    redis_server.command("FLUSHALL")
    env = {"STORE": redis_server.url} if workers > 1 else {}
    with serving_app("login:app", EXAMPLES, workers=workers, env=env) as app:
        guesses = await asyncio.gather(*(log_in(app.url, f"guess {n}") for n in range(1000)))
        assert Counter(each.status for each in guesses) == {401: 5, 429: 995}, app.log()
        assert {each.status for each in guesses if "retry-after" not in each.head} == {401}


@pytest.mark.parametrize("workers", [1, 4])
async def test_a_success_clears_failures_and_is_no_failure_itself(
    redis_server: Server, workers: int
) -> None:
    redis_server.command("FLUSHALL")
    env = {"STORE": redis_server.url} if workers > 1 else {}
    with serving_app("login:app", EXAMPLES, workers=workers, env=env) as app:
        for _ in range(3):
            for _ in range(3):
                assert (await log_in(app.url, "wrong")).status == 401
            assert (await log_in(app.url, "correct horse")).status == 200
        for _ in range(200):
            assert (await log_in(app.url, "correct horse")).status == 200
        for _ in range(40):
            five = await asyncio.gather(*(log_in(app.url, "correct horse") for _ in range(5)))
            assert {each.status for each in five} == {200}, app.log()
