"""The question of a proxy, answered."""

import json
import logging
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse

from ratelimit import ForwardAuth, MemoryStore, RateLimiter, RateLimitMiddleware, Rule, RuleSet
from ratelimit.gateway.dialects import DIALECTS, Reader
from ratelimit.gateway.forward_auth import doubts
from ratelimit.identity.addresses import read_network
from ratelimit.stores import StoreUnavailable
from ratelimit.testing import ManualClock
from tests.gateway.test_dialects import question
from tests.support.asgi import Answer, Inner, ask, call

PROXY = ("10.0.0.7", 50_000)
NETWORK = read_network("10.0.0.7/32")


def limiter_of(*rules: Rule, **options: Any) -> RateLimiter:
    """A limiter that trusts the proxy, by a clock that stands still."""
    store = options.pop("store", None) or MemoryStore(clock=ManualClock())
    more = {name: options.pop(name) for name in ("response",) if name in options}
    trust = {"trusted_proxies": (NETWORK,)} | options
    return RateLimiter(RuleSet(rules, **trust), store=store, **more)


def auth_of(dialect: str, *rules: Rule, **options: Any) -> ForwardAuth:
    return ForwardAuth(limiter_of(*rules, **options), dialect)


async def asked(
    auth: ForwardAuth, dialect: str, client: tuple[str, int] | None = PROXY, **changed: str
) -> Answer:
    """The answer to a proxy's question."""
    return await call(auth, question(dialect, **changed) | {"client": client})


class Down(MemoryStore):
    """A store that never answers."""

    async def decide(self, checks: Any) -> Any:
        raise StoreUnavailable("away", "refused", "server")


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_an_allowed_request_has_the_fields_that_the_middleware_writes(dialect: str) -> None:
    rule = Rule("posts", "3/hour", algorithm="fixed_window", path="/a b", methods=["POST"])
    answer = await asked(auth_of(dialect, rule), dialect)
    middleware = RateLimitMiddleware(Inner(), limiter_of(rule))
    direct = await ask(middleware, "/a b", "POST", client=("192.0.2.9", 1))
    assert answer.status == direct.status == 200
    for name in ("ratelimit", "ratelimit-policy"):
        assert answer.headers[name] == direct.headers[name]
    assert answer.body == b""
    assert answer.headers["content-length"] == "0"


@pytest.mark.parametrize("dialect", ["caddy", "traefik", "envoy"])
async def test_a_refusal_is_that_of_the_middleware(dialect: str) -> None:
    rule = Rule("posts", "1/hour", algorithm="sliding_log")
    auth = auth_of(dialect, rule)
    await asked(auth, dialect)
    answer = await asked(auth, dialect)
    middleware = RateLimitMiddleware(Inner(), limiter_of(rule))
    await ask(middleware)
    direct = await ask(middleware)
    assert answer.status == direct.status == 429
    assert answer.fields == direct.fields
    assert answer.body == direct.body


async def test_nginx_is_given_403_with_the_status_and_the_problem_in_fields() -> None:
    auth = auth_of("nginx", Rule("posts", "1/hour", algorithm="sliding_log"))
    await asked(auth, "nginx")
    answer = await asked(auth, "nginx", accept="text/html")
    assert answer.status == 403
    assert answer.headers["x-ratelimit-status"] == "429"
    assert answer.headers["retry-after"] == "3600"
    problem = json.loads(answer.headers["x-ratelimit-problem"])
    assert problem["violated-policies"] == ["posts"]
    assert problem["status"] == 429


@pytest.mark.parametrize(("dialect", "status"), [("nginx", 403), ("envoy", 403), ("caddy", 503)])
async def test_a_rules_own_503_travels_as_its_429_does(dialect: str, status: int) -> None:
    """To Envoy a 5xx would be a failure of the service, after which requests flow."""
    auth = auth_of(dialect, Rule("posts", "1/hour", on_store_failure="deny"), store=Down())
    answer = await asked(auth, dialect)
    assert answer.status == status
    assert answer.headers.get("x-ratelimit-status") == (None if status == 503 else "503")
    assert json.loads(answer.body)["status"] == 503


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_a_store_that_fails_lets_a_request_go_on_without_fields(dialect: str) -> None:
    answer = await asked(auth_of(dialect, Rule("posts", "1/hour"), store=Down()), dialect)
    assert answer.status == 200
    assert answer.headers == {"content-length": "0"}


@pytest.mark.parametrize("peer", [("203.0.113.9", 1), ("10.0.0.8", 1), ("", 1), ("proxy", 1), None])
@pytest.mark.parametrize("dialect", DIALECTS)
async def test_nobody_but_a_trusted_proxy_is_told_anything(
    dialect: str, peer: tuple[str, int] | None, caplog: pytest.LogCaptureFixture
) -> None:
    auth = auth_of(dialect, Rule("posts", "1/hour"))
    for _ in range(3):
        answer = await asked(auth, dialect, peer)
        assert answer.status == 403
        assert "ratelimit" not in answer.headers
        assert b"posts" not in answer.body
    assert caplog.text.count("proxy-untrusted") == 1
    assert (await asked(auth, dialect)).status == 200  # nothing was charged


async def test_a_proxy_that_does_not_say_the_host_is_unclear_where_a_rule_asks_for_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    auth = auth_of("nginx", Rule("posts", "1/hour"))
    assert (await asked(auth, "nginx", without="x-forwarded-host")).status == 200
    auth.limiter.use(
        RuleSet((Rule("posts", "9/hour", host="app.example"),), trusted_proxies=(NETWORK,))
    )
    assert (await asked(auth, "nginx", without="x-forwarded-host")).status == 403
    assert "there is no x-forwarded-host" in caplog.text
    assert (await asked(auth, "nginx")).headers["ratelimit"] == '"posts";r=8'


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_a_question_that_does_not_say_whose_it_is_is_refused_and_told_once(
    dialect: str, caplog: pytest.LogCaptureFixture
) -> None:
    auth = auth_of(dialect, Rule("posts", "1/hour"))
    for _ in range(3):
        assert (await asked(auth, dialect, without="x-forwarded-for")).status == 403
    assert caplog.text.count("proxy-unclear") == 1
    assert "there is no x-forwarded-for" in caplog.text


async def test_the_client_is_the_last_that_a_trusted_proxy_names() -> None:
    auth = auth_of("nginx", Rule("each", "1/hour", algorithm="sliding_log"))
    own = [await asked(auth, "nginx", x_forwarded_for=f"6.6.6.{n}, 192.0.2.1") for n in range(3)]
    assert [each.status for each in own] == [200, 403, 403]
    other = await asked(auth, "nginx", x_forwarded_for="192.0.2.1, 192.0.2.2")
    assert other.status == 200


async def test_fields_that_a_client_sends_itself_change_nothing() -> None:
    auth = auth_of("nginx", Rule("login", "1/hour", path="/login", host=["app.example"]))
    mine: dict[str, Any] = {
        "x_forwarded_uri": "/else", "x_forwarded_method": "GET", "x_ratelimit_status": "200",
        "x_original_url": "/else", "forwarded": "for=6.6.6.6", "x_real_ip": "6.6.6.6",
        "x_http_method_override": "GET",
    }  # fmt: skip
    for status in (200, 403):
        assert (await asked(auth, "nginx", x_original_uri="/login", **mine)).status == status


@pytest.mark.parametrize(
    "uri",
    ["/login", "//login", "/./login", "/a/../login", "/log%69n", "/%2e/login", "/login#",
     "/login#/x", "/login?x", "http://app.example/login", "/\\login", "/a%2f..%2flogin",
     "/login#?y"],
)  # fmt: skip
async def test_every_spelling_of_a_path_meets_its_rule(uri: str) -> None:
    auth = auth_of("nginx", Rule("login", "1/hour", path="/login"))
    assert (await asked(auth, "nginx", x_original_uri="/login")).status == 200
    assert (await asked(auth, "nginx", x_original_uri=uri)).status == 403


async def test_a_path_that_is_read_in_two_ways_is_charged_once_or_not_at_all() -> None:
    every = Rule("every", "3/hour", algorithm="sliding_log")
    login = Rule("login", "1/hour", algorithm="sliding_log", path="/login")
    auth = auth_of("caddy", every, login)
    left = []
    for uri in ("/login#x", "/login#x", "/else"):
        answer = await asked(auth, "caddy", x_forwarded_uri=uri)
        left.append((answer.status, answer.headers["ratelimit"].partition(";")[0]))
    assert left == [(200, '"login"'), (429, '"login"'), (200, '"every"')]
    assert answer.headers["ratelimit"] == '"every";r=1'


async def test_a_uri_that_is_too_long_is_refused_and_not_let_through() -> None:
    auth = auth_of("caddy", Rule("login", "1/hour", path="/login"))
    assert (await asked(auth, "caddy", x_forwarded_uri="/" + "a" * 70_000)).status == 414


async def test_a_fault_of_ours_lets_a_request_through_and_is_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    auth = auth_of("envoy", Rule("posts", "1/hour"))

    def broken(*_: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(Reader, "__call__", broken)
    for _ in range(3):
        assert (await asked(auth, "envoy")).status == 200
    assert caplog.text.count("forward-auth-failed") == 1


async def test_a_request_that_waits_stays_counted_though_its_proxy_gives_up() -> None:
    """Such a proxy lets it go on; given back, it would be a way around the limit."""
    slow = Rule("slow", "20/second", algorithm="leaking_bucket", burst=2)
    auth = auth_of("caddy", slow)
    scope = question("caddy") | {"client": PROXY}
    given_up: list[dict[str, Any]] = [
        {"type": "http.request", "body": b""},
        {"type": "http.disconnect"},
    ]
    assert [(await call(auth, dict(scope), given_up)).status for _ in range(3)] == [200, 200, 429]
    assert auth.limiter.counts["slow", "waited"] == 1
    assert auth.limiter.waiting == 0


@pytest.mark.parametrize("able", [True, False])
async def test_a_handshake_is_answered_as_a_request(*, able: bool) -> None:
    auth = auth_of("caddy", Rule("posts", "1/hour", methods=["GET"]))
    scope = question("caddy", x_forwarded_method="GET") | {"type": "websocket", "client": PROXY}
    del scope["method"]
    if able:
        scope["extensions"] = {"websocket.http.response": {}}
    statuses = []
    for _ in range(2):
        answer = await call(auth, scope, [{"type": "websocket.connect"}])
        if able:
            kinds = [each["type"] for each in answer.messages]
            assert kinds == ["websocket.http.response.start", "websocket.http.response.body"]
            statuses.append(answer.status)
        else:
            assert [each["type"] for each in answer.messages] == ["websocket.close"]
    assert statuses == ([200, 429] if able else [])


async def test_an_application_may_give_its_own_answer_where_the_proxy_hands_it_on() -> None:
    def own(_: Request, refusal: object) -> PlainTextResponse:
        return PlainTextResponse("enough", 420)

    statuses = {}
    for dialect in ("caddy", "nginx"):
        auth = auth_of(dialect, Rule("posts", "1/hour"), response=own)
        await asked(auth, dialect)
        answer = await asked(auth, dialect)
        statuses[dialect] = answer.status, answer.headers.get("x-ratelimit-status")
    assert statuses == {"caddy": (420, None), "nginx": (403, "429")}


async def test_what_fields_hold_cannot_break_a_line() -> None:
    rule = Rule("posts", "1/hour", by="header:x-key")
    auth = auth_of("nginx", rule)
    for _ in range(2):
        answer = await asked(auth, "nginx", x_key="a\r\nx-evil: 1", x_original_uri="/\r\nx: 1")
    for name, value in answer.fields:
        assert "\r" not in name + value
        assert "\n" not in name + value
        assert value.isascii()


async def test_a_lifespan_closes_the_store_at_its_end() -> None:
    closed: list[bool] = []

    class Closed(MemoryStore):
        async def aclose(self) -> None:
            closed.append(True)

    auth = auth_of("nginx", store=Closed())
    received = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]
    answer = await call(auth, {"type": "lifespan"}, received)
    said = [each["type"] for each in answer.messages]
    assert said == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert closed == [True]


def test_an_unknown_dialect_is_told_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"'ngnix' is not a dialect; did you mean nginx"):
        auth_of("ngnix")


def test_rules_that_trust_nobody_are_refused() -> None:
    with pytest.raises(ValueError, match="name those that ask in trusted_proxies"):
        ForwardAuth(RateLimiter([Rule("a", "1/hour")]))


async def test_a_reload_that_trusts_nobody_closes_the_door() -> None:
    auth = auth_of("nginx", Rule("posts", "9/hour"))
    assert (await asked(auth, "nginx")).status == 200
    auth.limiter.use(RuleSet((Rule("posts", "9/hour"),)))
    assert (await asked(auth, "nginx")).headers["x-ratelimit-status"] == "403"
    auth.limiter.use(RuleSet((Rule("posts", "9/hour"),), trusted_proxies=(NETWORK,)))
    assert (await asked(auth, "nginx")).status == 200


async def test_a_rule_that_a_question_cannot_hold_is_told_when_it_comes_into_force(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    auth = auth_of("nginx", Rule("fine", "1/hour"))
    await asked(auth, "nginx")
    assert caplog.text == ""
    slow = Rule("slow", "1/second", algorithm="leaking_bucket", burst=5)
    auth.limiter.use(RuleSet((slow,), trusted_proxies=(NETWORK,)))
    for _ in range(2):
        await auth(question("nginx") | {"client": ("203.0.113.9", 1)}, None, _ignore)  # type: ignore[arg-type]
    assert caplog.text.count("waits-too-long: rule 'slow' lets requests wait up to 4 s") == 1


async def _ignore(_: object) -> None:
    pass


async def test_what_an_outcome_would_give_back_stays_charged() -> None:
    auth = auth_of("caddy", Rule("tries", "2/hour", charge={"on_status": [401]}))
    assert [(await asked(auth, "caddy")).status for _ in range(3)] == [200, 200, 429]


async def test_no_place_is_held_for_a_request_whose_end_nobody_tells() -> None:
    auth = auth_of("caddy", Rule("few", concurrency=1))
    assert [(await asked(auth, "caddy")).status for _ in range(3)] == [200, 200, 200]
    assert auth.limiter.in_flight.total() == 0


def test_rules_that_a_question_does_not_tell_enough_for_are_doubted() -> None:
    leaking: dict[str, Any] = {"algorithm": "leaking_bucket", "burst": 100}
    rules = [
        Rule("route", "1/hour", by="route"),
        Rule("quick", "1000/second", **leaking),
        Rule("cut", "10/second", max_delay=0.2, **leaking),
        Rule("slow", "10/second", **leaking),
        Rule("off", "10/second", mode="off", **leaking),
        Rule("tries", "1/hour", charge={"on_status": [401]}),
        Rule("socket", "1/hour", websocket={"messages": "10/second"}),
        Rule("few", concurrency=2),
        Rule("plain", "1/hour"),
    ]
    told = [(code, text.split("'")[1]) for code, text in doubts(RuleSet(tuple(rules)))]
    assert told == [
        ("routes-unknown", "route"), ("waits-too-long", "slow"), ("outcomes-unknown", "tries"),
        ("messages-unknown", "socket"), ("ends-unknown", "few"),
    ]  # fmt: skip
