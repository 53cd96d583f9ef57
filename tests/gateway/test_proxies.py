"""The recipes of examples/gateway, run by the real proxies.

Clients ask from addresses of their own in 127.0.0.0/8; the proxy asks from 127.0.0.1, which alone
is trusted.
"""

import json
import re
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from random import Random
from typing import Final, NamedTuple
from urllib.parse import unquote

import pytest

from ratelimit import RateLimiter, RateLimitMiddleware, RuleSet
from tests.support.asgi import Inner, ask
from tests.support.gateways import FILES, RECIPES, Client, Gateway, gateway, program
from tests.support.servers import Server, binaries, free_port, serving

RULES: Final = """\
version: 1
trusted_proxies: [127.0.0.1]
denylist: [127.0.9.0/24]
rules:
  - {name: api, match: {path: "/api/{rest:path}"}, limit: 40/day, algorithm: sliding_log}
  - name: login
    match: {path: /login, methods: [POST]}
    limit: 5/day; 8/3 days
    algorithm: sliding_log
  - name: key
    match: {path: "/items/{n}"}
    by: header:x-api-key
    limit: 20/day
    algorithm: token_bucket
  - {name: host, match: {path: /h, host: app.example}, limit: 10/day, algorithm: token_bucket}
  - {name: costly, match: {path: /costly}, cost: 3, limit: 10/day, algorithm: sliding_log}
  - {name: tried, match: {path: "/{rest:path}"}, limit: 3/day, mode: shadow}
"""
PROXIES: Final = [
    pytest.param("caddy"),
    pytest.param("nginx", marks=pytest.mark.slow),
    pytest.param("envoy", marks=pytest.mark.slow),
    pytest.param("envoy-rls", marks=pytest.mark.slow),
]
"""`make test` runs the one that is a small wheel."""
OURS: Final = ("ratelimit", "ratelimit-policy", "retry-after", "content-type")


@pytest.fixture(scope="module", params=PROXIES)
def proxy(request: pytest.FixtureRequest) -> Iterator[Gateway]:
    with gateway(request.param, RULES) as found:
        yield found


# --- the verdicts --------------------------------------------------------------------------------


class Asked(NamedTuple):
    """One request of many."""

    client: str
    method: str
    path: str
    headers: dict[str, str]


def requests(count: int) -> list[Asked]:
    """As many requests, the same in each run."""
    random = Random(18)
    found = []
    for _ in range(count):
        headers = {"Host": random.choice(["app.example", "app.example:80", "other.example"])}
        if random.random() < 0.5:
            headers["X-Api-Key"] = random.choice("abc")
        if random.random() < 0.3:
            headers["X-Forwarded-For"] = random.choice(["6.6.6.6", "127.0.0.1", "127.0.9.1"])
        path = random.choice(
            ["/api/x", "/api/y?q=1", "/login", "/login?a=/b", "/items/7", "/h", "/costly", "/else"]
        )
        method = random.choice(["GET", "POST", "POST", "HEAD"])
        client = f"127.0.{random.choice('1119')}.{random.randrange(1, 20)}"
        found.append(Asked(client, method, path, headers))
    return found


def plain(status: int, headers: dict[str, str], body: bytes) -> str:
    """An answer without what changes from second to second."""
    told: tuple[str, ...] = OURS if status != 200 else OURS[:2]
    if not body:
        told = OURS[:3]  # Envoy leaves the type of a body out where there is none, as for HEAD
    fields = {name: headers[name] for name in told if name in headers}
    problem = json.loads(body) if body and status != 200 else None
    text = json.dumps([status, fields, problem], sort_keys=True)
    return re.sub(r"(?<=t=)\d+|(?<=in )\d+(?= second)|(?<=retry-after\": \")\d+", "N", text)


async def test_two_thousand_requests_have_the_verdicts_and_fields_of_the_middleware(
    proxy: Gateway,
) -> None:
    middleware = RateLimitMiddleware(Inner(), RateLimiter(RuleSet.loads(RULES)))
    clients: dict[str, Client] = {}
    waits, statuses = [], set()
    with ExitStack() as end:
        for number, asked in enumerate(requests(2_000)):
            path, _, query = asked.path.partition("?")
            direct = await ask(
                middleware, path, asked.method, [(k.lower(), v) for k, v in asked.headers.items()],
                query_string=query.encode(), client=(asked.client, 1),
            )  # fmt: skip
            if asked.client not in clients:
                clients[asked.client] = end.enter_context(Client(proxy.port, asked.client))
            client = clients[asked.client]
            answer = client.ask(asked.path, asked.method, asked.headers)
            expected = plain(direct.status, direct.headers, direct.body)
            assert plain(answer.status, answer.headers, answer.body) == expected, (number, asked)
            statuses.add(answer.status)
            waits += [int(each.headers.get("retry-after", 0)) for each in (direct, answer)]
    assert statuses == {200, 403, 429}
    # The same instants, but for what it took to ask.
    assert all(abs(a - b) < 600 for a, b in zip(waits[::2], waits[1::2], strict=True))
    assert max(waits) > 80_000


def test_a_request_reaches_the_application_as_its_client_sent_it(proxy: Gateway) -> None:
    with Client(proxy.port, "127.0.2.1") as client:
        for method, body in (("POST", b"x" * 100_000), ("PUT", b"{}"), ("GET", b""), ("HEAD", b"")):
            answer = client.ask("/else?a=%20b", method, {"X-Mine": "1"}, body)
            assert answer.status == 200
            seen = proxy.behind.seen[-1]
            assert (seen.method, seen.path, seen.body) == (method, "/else?a=%20b", body)
            assert seen.headers.get("X-Mine", seen.headers.get("x-mine")) == "1"
            assert not [name for name in seen.headers if "ratelimit" in name.lower()]


def exhausted(proxy: Gateway, address: str) -> Client:
    """A client whose quota of logins is used up."""
    client = Client(proxy.port, address)
    statuses = [client.ask("/login", "POST").status for _ in range(6)]
    assert statuses == [200] * 5 + [429]
    return client


OWN: Final[list[dict[str, str]]] = [
    {"X-Forwarded-For": "6.6.6.6"},
    {"X-Forwarded-For": "127.0.0.1"},
    {"X-Forwarded-For": "6.6.6.6, 127.0.0.1"},
    {"X-Real-IP": "6.6.6.6", "Forwarded": "for=6.6.6.6", "X-Envoy-External-Address": "6.6.6.6"},
    {"X-Original-URI": "/else", "X-Original-Method": "GET", "X-Original-URL": "/else"},
    {"X_Original_URI": "/else", "X_Forwarded_For": "6.6.6.6"},
    {"X-Forwarded-Uri": "/else", "X-Forwarded-Method": "GET", "X-Forwarded-Path": "/else"},
    {"X-Forwarded-Host": "else.example", "X-Forwarded-Proto": "gopher"},
    {"X-Ratelimit-Status": "200", "X-Ratelimit-Problem": "{}"},
    {"X-Envoy-Original-Path": "/else", "X-Rewrite-URL": "/else"},
    {"Content-Length": "0", "Expect": "100-continue"},
    {"Connection": "X-Forwarded-For, X-Original-URI, X-Forwarded-Uri, X-Forwarded-Method"},
    {"Connection": "close, x-original-method, x-forwarded-host"},
    {"Connection": "Upgrade", "Upgrade": "h2c", "HTTP2-Settings": "AAMAAABkAAQAAP__"},
    {"Connection": "Upgrade", "Upgrade": "anything"},
    {"Cookie": "a=" + "b" * 3_000, "X-Much": "c" * 3_000},
    {"X-Odd": "a\x01b"},
    {"X-Odd": "a\xffb"},
]


@pytest.mark.parametrize("own", OWN, ids=",".join)
def test_fields_of_a_clients_own_change_no_verdict(proxy: Gateway, own: dict[str, str]) -> None:
    address = f"127.0.3.{OWN.index(own) + 1}"
    client = exhausted(proxy, address)
    before = len(proxy.behind.seen)
    answer = client.ask("/login", "POST", own)
    client.close()
    assert answer.status in (429, 400, 403)  # a proxy may refuse what it cannot read
    assert len(proxy.behind.seen) == before
    with Client(proxy.port, address) as again:
        assert again.ask("/login", "POST").status == 429
        assert again.ask("/else", "POST").status == 200


def test_fields_sent_twice_change_no_verdict(proxy: Gateway) -> None:
    client = exhausted(proxy, "127.0.4.1")
    for name in ("X-Original-URI", "X-Forwarded-Uri", "X-Forwarded-Method", "X-Forwarded-Host"):
        lines = f"POST /login HTTP/1.1\r\nHost: app.example\r\n{name}: /a\r\n{name}: /b\r\n"
        answer = client.raw(f"{lines}Content-Length: 0\r\n\r\n".encode())
        assert answer.status == 429, name
    client.close()


SPELLINGS: Final = [
    "//login", "/./login", "/a/../login", "/a/%2e%2e/login", "/log%69n", "/%6c%6F%67%69%6E",
    "/log%2569n", "/login/", "/login//", "/login/.", "/%2flogin", "/login%2f", "/login#x",
    "/login%23x", "/login;a=b", "/login?", "/login?x=/else", "/LOGIN", "\\login", "/\\login",
    "/a%5c..%5clogin", "http://app.example/login", "http://app.example//login", "/login%00",
    "/login%0a", "/\xe9/../login", "/login\xe9", "/login%c0%af", "/login%20", "/ login", "login",
    "*", "//app.example/login", "/a/b/../../login", "/../login", "/..//login", "/%2e/login",
]  # fmt: skip


def test_no_spelling_of_a_path_reaches_the_application_uncounted(proxy: Gateway) -> None:
    """Whatever the application would take for /login, as ASGI servers and servers of files do."""
    client = exhausted(proxy, "127.0.5.1")
    statuses: dict[str, int] = {}
    for spelling in SPELLINGS:
        before = len(proxy.behind.seen)
        try:
            statuses[spelling] = client.ask(spelling, "POST").status
        except OSError:  # hung up on
            client.close()
            continue
        for seen in proxy.behind.seen[before:]:
            path = unquote(seen.path.partition("?")[0].partition("#")[0])
            assert path != "/login", spelling
    client.close()
    refused = {spelling for spelling, status in statuses.items() if status == 429}
    assert {"//login", "/a/../login", "/log%69n", "/login?", "http://app.example/login"} <= refused
    assert not [spelling for spelling, status in statuses.items() if status >= 500]


def test_a_long_uri_is_counted_or_refused(proxy: Gateway) -> None:
    for number, length in enumerate((2_000, 7_000, 40_000, 200_000)):
        client = exhausted(proxy, f"127.0.6.{number + 1}")
        before = len(proxy.behind.seen)
        try:
            answer = client.ask("/login?" + "a" * length, "POST")
        except OSError:
            continue
        finally:
            client.close()
        assert 400 <= answer.status < 500
        assert len(proxy.behind.seen) == before


def test_odd_methods_are_counted_or_refused(proxy: Gateway) -> None:
    statuses = {}
    for method in ("PROPFIND", "OPTIONS", "FOO", "get", "CONNECT", "TRACE"):
        with Client(proxy.port, "127.0.7.1") as client:
            before = len(proxy.behind.seen)
            answer = client.ask("/api/x", method)
            statuses[method] = answer.status
            if len(proxy.behind.seen) > before and answer.status == 200:
                assert answer.headers["ratelimit-policy"] == '"api";q=40;w=86400', method
    assert statuses["PROPFIND"] == statuses["OPTIONS"] == 200


def test_a_websockets_handshake_is_counted_as_the_get_that_it_is(proxy: Gateway) -> None:
    handshake = {
        "Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
    }  # fmt: skip
    left = []
    for _ in range(3):
        with Client(proxy.port, "127.0.8.1") as client:
            left.append(client.ask("/api/ws", "GET", handshake).headers["ratelimit"])
    assert left == ['"api";r=39', '"api";r=38', '"api";r=37']
    assert proxy.behind.seen[-1].path == "/api/ws"


def test_an_application_keeps_its_own_errors(proxy: Gateway) -> None:
    with Client(proxy.port, "127.0.2.2") as client:
        for status in ("403", "429", "500", "502", "503", "504"):
            before = len(proxy.behind.seen)
            answer = client.ask("/else", "POST", {"X-Answer": status}, b"once")
            assert (answer.status, answer.body) == (int(status), b"ok")
            assert len(proxy.behind.seen) == before + 1, "asked twice"


# --- faults --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROXIES)
def test_requests_flow_while_the_service_hangs_and_when_it_is_gone(name: str) -> None:
    with gateway(name, RULES) as proxy:
        client = exhausted(proxy, "127.0.1.1")
        proxy.service.tell(signal.SIGSTOP)
        for _ in range(2):
            answer = client.ask("/login", "POST", body=b"whole")
            assert answer.status == 200
            assert "ratelimit" not in answer.headers
            assert proxy.behind.seen[-1].body == b"whole"
        proxy.service.tell(signal.SIGCONT)
        assert client.ask("/login", "POST").status == 429
        proxy.service.end(signal.SIGKILL)
        for _ in range(3):
            answer = client.ask("/login", "POST", body=b"whole")
            assert answer.status == 200
            assert proxy.behind.seen[-1].body == b"whole"
        assert client.ask("/login", "POST", {"X-Answer": "503"}).status == 503
        client.close()


@pytest.mark.parametrize("name", PROXIES)
def test_a_refusal_by_many_rules_at_once_is_a_refusal(name: str) -> None:
    """Its fields are longer than nginx's usual buffer, by which it would count as no answer."""
    rules = "".join(
        f"  - {{name: a-rule-with-quite-a-long-name-{number:03}, limit: 1/day}}\n"
        for number in range(80)
    )
    head = RULES.partition("denylist")[0]
    with gateway(name, f"{head}rules:\n{rules}") as proxy, Client(proxy.port) as client:
        assert client.ask("/").status == 200
        answer = client.ask("/")
        assert answer.status == 429
        assert len(answer.problem["violated-policies"]) == 80
        assert answer.headers["ratelimit-policy"].count(";q=1;") == 80


@pytest.mark.parametrize("name", PROXIES)
def test_an_application_that_is_gone_is_told_as_such(name: str) -> None:
    nothing = free_port()
    with gateway(name, RULES, application_port=nothing) as proxy, Client(proxy.port) as client:
        statuses = [client.ask("/login", "POST").status for _ in range(7)]
        assert set(statuses[:5]) <= {502, 503, 504}
        assert statuses[5:] == [429, 429]


POLICIES: Final = """\
version: 1
trusted_proxies: [127.0.0.1]
store: {store}
deadline: 1s
rules:
  - {{name: strict, match: {{path: /strict}}, limit: 100/day, on_store_failure: deny}}
  - {{name: shared, match: {{path: /shared}}, limit: 3/day, on_store_failure: local}}
  - {{name: easy, match: {{path: /easy}}, limit: 3/day, algorithm: sliding_log}}
"""


@pytest.mark.parametrize("name", PROXIES)
def test_each_rule_keeps_its_policy_when_redis_is_gone(name: str) -> None:
    with (
        serving(binaries()[0].path) as redis,
        gateway(name, POLICIES.format(store=redis.url)) as proxy,
        Client(proxy.port) as before_it,
        Client(proxy.port, "127.0.0.3") as client,  # of whom no denial is remembered
    ):
        assert [before_it.ask("/easy").status for _ in range(4)] == [200, 200, 200, 429]
        assert client.ask("/strict").headers["ratelimit"] == '"strict";r=99'
        redis.kill()
        before = len(proxy.behind.seen)
        assert [client.ask("/easy").status for _ in range(4)] == [200, 200, 200, 200]
        assert len(proxy.behind.seen) == before + 4
        strict = client.ask("/strict")
        assert strict.status == strict.problem["status"] == 503
        assert strict.problem["type"] == "urn:ratelimit-asgi:problem:store-unavailable"
        assert client.ask("/shared").status == 200
        assert 429 in [client.ask("/shared").status for _ in range(4)]
        assert len(proxy.behind.seen) < before + 9


@pytest.mark.parametrize("name", PROXIES)
def test_workers_share_the_counters_of_redis(name: str, redis_server: Server) -> None:
    redis_server.command("FLUSHALL")
    rules = POLICIES.format(store=redis_server.url)
    with gateway(name, rules, "--workers=2") as proxy:
        statuses = []
        for _ in range(6):
            with Client(proxy.port) as client:
                statuses.append(client.ask("/easy").status)
        assert statuses == [200] * 3 + [429] * 3


# --- the recipes ---------------------------------------------------------------------------------


def test_every_recipe_is_run_or_says_that_it_is_not() -> None:
    named = {each.name for each in RECIPES.iterdir()} - {"rules.yaml", "rules-rls.yaml"}
    not_run = {name for name in named if "NOT RUN" in (RECIPES / name).read_text()}
    assert not_run == {"traefik.yaml"}
    assert named - not_run == set(FILES.values())
    assert {name for each in PROXIES for name in each.values} == FILES.keys()


def test_the_rules_of_the_recipes_can_be_loaded() -> None:
    rules = RuleSet.load(RECIPES / "rules.yaml")
    assert [rule.name for rule in rules.rules] == ["api", "login"]
    descriptors = RuleSet.load(RECIPES / "rules-rls.yaml")
    assert [rule.name for rule in descriptors.rules] == ["api", "login", "free-plan"]
    assert RateLimiter(rules).proxies.believes


def test_a_proxy_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert program("no-such-proxy") is None
