"""Clients that come back by themselves, against applications of ours: once, and when they may."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.apps import Running, serving_app
from tests.support.servers import Server

SUPPORT = Path(__file__).resolve().parents[1] / "support"

openai = pytest.importorskip("openai", reason="the openai SDK is not installed")
urllib3 = pytest.importorskip("urllib3", reason="urllib3 is not installed")


@pytest.fixture(params=["in process", "in Redis"])
def app(request: pytest.FixtureRequest) -> Iterator[Running]:
    env = {}
    if request.param == "in Redis":
        server: Server = request.getfixturevalue("redis_server")
        server.command("FLUSHALL")
        env["STORE"] = server.url
    with serving_app("comeback:app", SUPPORT, env=env) as app:
        yield app


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits of a client, in seconds, each of which is slept through."""
    found: list[float] = []
    sleep = time.sleep

    def remembered(seconds: float) -> None:
        found.append(seconds)
        sleep(seconds)

    monkeypatch.setattr(time, "sleep", remembered)
    return found


def told(app: Running, who: str) -> list[dict[str, str]]:
    """The answers that a client has had, as far as they tell of it."""
    answer = urllib3.request("GET", f"{app.url}/told/{who}")
    found: list[dict[str, str]] = answer.json()
    return found


def test_the_openai_sdk_comes_back_once_at_the_promised_instant(
    app: Running, slept: list[float]
) -> None:
    with openai.OpenAI(base_url=f"{app.url}/v1", api_key="one", max_retries=3) as client:
        words = [{"role": "user", "content": "2"}]
        while not slept:  # two requests, where this machine is not slower than the limit
            answer = client.chat.completions.create(model="words", messages=words, max_tokens=60)
            assert answer.usage.completion_tokens == 2
    *before, refused, again = told(app, "one")
    assert {each["status"] for each in before} == {"200"}
    assert (refused["status"], again["status"]) == ("429", "200")
    promised = int(refused["retry-after-ms"]) / 1_000
    assert slept == [promised]
    assert 0 <= int(refused["retry-after"]) - promised < 1


def test_the_openai_sdk_does_not_come_back_where_that_is_in_vain(
    app: Running, slept: list[float]
) -> None:
    with openai.OpenAI(base_url=f"{app.url}/v1", api_key="two", max_retries=3) as client:
        words = [{"role": "user", "content": "2"}]
        with pytest.raises(openai.RateLimitError) as refused:
            client.chat.completions.create(model="words", messages=words, max_tokens=60, n=2)
    assert refused.value.response.headers["x-should-retry"] == "false"
    assert refused.value.response.json()["title"] == "Cost Exceeds Limit"
    assert [each["status"] for each in told(app, "two")] == ["429"]
    assert slept == []


def test_urllib3_comes_back_once_at_the_promised_instant(app: Running, slept: list[float]) -> None:
    with urllib3.PoolManager(retries=urllib3.Retry(total=3)) as client:
        while not slept:
            answer = client.request("GET", f"{app.url}/page", headers={"x-who": "three"})
            assert answer.status == 200
    *before, refused, again = told(app, "three")
    assert {each["status"] for each in before} == {"200"}
    assert (refused["status"], again["status"]) == ("429", "200")
    assert slept == [int(refused["retry-after"])]
