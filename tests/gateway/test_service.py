"""The application that `ratelimit serve` runs."""

import json
from pathlib import Path
from typing import Any

import pytest

from ratelimit import RateLimiter
from ratelimit.gateway.service import Plan, Service, built, make
from tests.gateway.test_dialects import question
from tests.support.asgi import Answer, ask, call, websocket_scope

RULES = """\
version: 1
trusted_proxies: [10.0.0.7]
rules:
  - {name: posts, limit: 1/hour, match: {path: "/a b"}}
"""
PROXY = ("10.0.0.7", 50_000)
LOCAL = ("127.0.0.1", 50_000)


@pytest.fixture
def rules(tmp_path: Path) -> str:
    file = tmp_path / "rules.yaml"
    file.write_text(RULES)
    return str(file)


@pytest.fixture
def service(rules: str) -> Service:
    """A service that shows its page to this machine."""
    return Service(RateLimiter.from_file(rules), "envoy", page=["127.0.0.0/8"])


async def asked(service: Service, path: str, host: str = "localhost:8750", **more: Any) -> Answer:
    """The answer to an operator's question."""
    return await ask(service, path, headers=[("host", host)], **{"client": LOCAL, **more})


async def test_a_proxy_asks_below_auth_and_envoy_by_the_path_itself(service: Service) -> None:
    scope = question("envoy") | {"client": PROXY, "root_path": ""}
    assert [(await call(service, dict(scope))).status for _ in range(2)] == [200, 429]
    scope["path"] = "/auth"
    assert (await call(service, scope)).status == 200


async def test_health_tells_what_the_limiter_tells(service: Service) -> None:
    answer = await asked(service, "/health")
    assert answer.status == 200
    assert answer.problem["status"] == "ok"
    assert answer.problem["rules"]["mistakes"] == []
    assert (await asked(service, "/ready")).problem == {"status": "ready"}


async def test_metrics_count_what_proxies_asked(service: Service) -> None:
    for _ in range(2):
        await call(service, question("envoy") | {"client": PROXY, "root_path": ""})
    text = (await asked(service, "/metrics")).body.decode()
    assert 'ratelimit_requests_total{mode="enforce",result="denied",rule="posts"} 1.0' in text
    assert "192.0.2.9" not in text


@pytest.mark.parametrize(
    ("host", "peer", "status"),
    [
        ("localhost:8750", LOCAL, 200),
        ("127.0.0.1", LOCAL, 200),
        ("[::1]:8750", LOCAL, 200),
        ("rebound.example", LOCAL, 404),
        ("localhost.evil.example", LOCAL, 404),
        ("localhost", ("192.0.2.1", 1), 404),
        ("localhost", PROXY, 404),
        ("localhost", None, 404),
    ],
)
async def test_the_page_is_open_to_its_networks_asked_by_an_address(
    service: Service, host: str, peer: tuple[str, int] | None, status: int
) -> None:
    answer = await asked(service, "/ratelimit/", host, client=peer)
    assert answer.status == status
    forwarded = [
        ("host", "localhost"),
        ("x-forwarded-for", "127.0.0.1"),
        ("x-forwarded-host", "::1"),
    ]
    page = await ask(service, "/ratelimit/", headers=forwarded, client=("192.0.2.1", 1))
    assert page.status == 404


async def test_the_page_is_closed_unless_it_is_opened(rules: str) -> None:
    closed = Service(RateLimiter.from_file(rules))
    assert (await asked(closed, "/ratelimit/")).status == 404


@pytest.mark.parametrize("path", ["/", "/login", "/healthz", "/ratelimitx", "/metrics/", ""])
async def test_any_other_path_is_not_there(service: Service, path: str) -> None:
    assert (await asked(service, path)).status == 404


async def test_a_handshake_with_anything_but_the_answers_is_left_alone(service: Service) -> None:
    answer = await call(service, websocket_scope("/health"), [{"type": "websocket.connect"}])
    assert [each["type"] for each in answer.messages] == ["websocket.close"]


def test_a_worker_is_told_its_plan_by_the_environment(
    rules: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RATELIMIT_SERVE", "")
    plan = Plan(rules, "caddy", ("127.0.0.1",), 1, watch=False)
    plan.leave()
    assert Plan.found() == plan
    assert isinstance(make(), Service)


def test_workers_that_each_count_for_themselves_are_refused(rules: str) -> None:
    with pytest.raises(ValueError, match="2 workers need a store that they share"):
        built(Plan(rules, workers=2))


def test_what_is_not_a_network_is_told(rules: str) -> None:
    with pytest.raises(ValueError, match="'localhost' is not an address or a network"):
        built(Plan(rules, page=("localhost",)))


def test_health_holds_no_secret(tmp_path: Path) -> None:
    file = tmp_path / "rules.yaml"
    file.write_text(RULES + "store: redis://user:s3cret@127.0.0.1:1/0\n")
    service = built(Plan(str(file)))
    assert "s3cret" not in json.dumps(service.auth.limiter.health())
