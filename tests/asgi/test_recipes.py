"""The recipes among the examples, served as their first lines say."""

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httpx
import pytest

from tests.support.apps import Running, serving_app
from tests.support.servers import Server

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SUPPORT = Path(__file__).resolve().parents[1] / "support"


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


# --- API keys ------------------------------------------------------------------------------------


def with_key(app: Running, key: str) -> httpx.Response:
    return httpx.get(f"{app.url}/v1/items", headers={"x-api-key": key})


def test_each_owner_of_a_key_has_the_quota_of_its_plan() -> None:
    with serving_app("api_keys:app", EXAMPLES) as app:
        for key, passed in (("key-of-ann", 3), ("key-of-bob", 10)):
            statuses = [with_key(app, key).status_code for _ in range(passed + 1)]
            assert statuses == [200] * passed + [429]
        assert {with_key(app, "key-of-ops").status_code for _ in range(30)} == {200}
        # A new key is none of a new owner.
        assert with_key(app, "new-key-of-bob").status_code == 429
        assert with_key(app, "key-of-eve").status_code == 403


def test_guesses_at_keys_are_bounded_and_keys_that_are_known_are_no_guesses() -> None:
    with serving_app("api_keys:app", EXAMPLES) as app:
        assert {with_key(app, "key-of-ops").status_code for _ in range(30)} == {200}
        statuses = [with_key(app, f"guess-{n}").status_code for n in range(12)]
        assert statuses == [401] * 10 + [429] * 2


# --- a proxy to a language model -----------------------------------------------------------------

ANN = {"authorization": "Bearer key-of-ann"}
LEFT = "x-ratelimit-remaining-tokens"


@contextlib.contextmanager
def proxying(**env: str) -> Iterator[tuple[str, Callable[[], int]]]:
    """The proxy in front of a model, and how many words the model has written."""
    with (
        serving_app("language_model:app", SUPPORT) as model,
        serving_app("llm_proxy:app", EXAMPLES, env={"UPSTREAM": f"{model.url}/v1", **env}) as proxy,
    ):
        yield (
            f"{proxy.url}/v1/chat/completions",
            lambda: int(httpx.get(f"{model.url}/written").text),
        )


def prompt(words: int, **more: Any) -> dict[str, Any]:
    return {"model": "words", "messages": [{"role": "user", "content": str(words)}], **more}


def test_a_completion_is_charged_what_the_model_says_it_has_cost() -> None:
    with proxying(OUTPUT="1000/100d", INPUT="100000/100d") as (url, written):
        for max_tokens, words, left in ((800, 58, 200), (900, 80, 42), (100, 1, 762)):
            # 58 of 800 were used, so that 942 are left to reserve 900 of, and so on.
            answer = httpx.post(url, headers=ANN, json=prompt(words, max_tokens=max_tokens))
            assert answer.json()["usage"]["completion_tokens"] == words
            assert answer.headers[LEFT] == str(left)
        assert written() == 58 + 80 + 1


def test_what_may_cost_more_than_is_left_is_refused_before_the_model_is_asked() -> None:
    with proxying(OUTPUT="1000/100d") as (url, written):
        told = httpx.post(
            url, headers=ANN, json=prompt(1, max_tokens=5, max_completion_tokens=400, n=3)
        )
        assert told.status_code == 429
        assert told.headers["x-should-retry"] == "false"
        assert httpx.post(url, headers=ANN, json=prompt(900, max_tokens=900)).status_code == 200
        wait = httpx.post(url, headers=ANN, json=prompt(1, max_tokens=900))
        assert wait.status_code == 429
        assert int(wait.headers["retry-after-ms"]) <= 1000 * int(wait.headers["retry-after"])
        assert httpx.post(url, headers=ANN, json=prompt(1)).status_code == 429  # 500 by default
        bob = {"authorization": "Bearer key-of-bob"}
        assert httpx.post(url, headers=bob, json=prompt(1)).status_code == 200
        assert written() == 901


def test_a_stream_is_charged_word_by_word_and_cut_where_the_budget_ends() -> None:
    with proxying(OUTPUT="300/100d") as (url, written):
        stream = prompt(20, max_tokens=100, stream=True)
        answer = httpx.post(url, headers=ANN, json=stream)
        assert answer.text.count('"word "') == 20
        assert answer.text.endswith("data: [DONE]\n\n")
        # A model that ignores its cap.
        stream = prompt(100_000, max_tokens=100, stream=True)
        answer = httpx.post(url, headers=ANN, json=stream)
        assert answer.headers[LEFT] == "180"  # of 280, 100 are reserved
        assert answer.text.count('"word "') == 280
        assert answer.text.endswith("data: [DONE]\n\n")
        assert '"finish_reason": "length"' in answer.text
        assert written() < 100_000
        assert httpx.post(url, headers=ANN, json=stream).status_code == 429


def test_clients_of_a_model_are_told_of_requests_and_tokens_as_they_know_them() -> None:
    with proxying(REQUESTS="2/100d", INPUT="20000/100d") as (url, _):
        answer = httpx.post(url, headers=ANN, json=prompt(1, max_tokens=100))
        told = {name: value for name, value in answer.headers.items() if "ratelimit" in name}
        assert {name: told[name] for name in told if "reset" not in name} == {
            "x-ratelimit-limit-requests": "2",
            "x-ratelimit-remaining-requests": "1",
            "x-ratelimit-limit-tokens": "4000",
            "x-ratelimit-remaining-tokens": "3900",
        }
        assert httpx.post(url, headers=ANN, json=prompt(1)).status_code == 200
        assert httpx.post(url, headers=ANN, json=prompt(1)).status_code == 429
        assert httpx.post(url, json=prompt(1)).status_code in {401, 403}
