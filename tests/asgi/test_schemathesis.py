"""Fuzzing, the long way: what the schemas of the examples allow, and what no schema would."""

import asyncio
import importlib.util
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from ipaddress import ip_network
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route, Router

from ratelimit import RateLimiter, RateLimitMiddleware, RedisStore, Rule, RuleSet, limit
from tests.support.asgi import Answer, call, http_scope
from tests.support.servers import Server, binaries, serving

ROOT = Path(__file__).resolve().parents[2]
EVERYTHING = ["client", "route", "user", "header:x-key", "cookie:key", "query:key"]

pytestmark = pytest.mark.slow

thorough = settings(
    deadline=None, max_examples=1_000, suppress_health_check=list(HealthCheck), print_blob=True
)


def example(name: str) -> ModuleType:
    """An example, executed anew."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["app", "items", "order"])
def test_no_request_that_a_schema_allows_or_forbids_makes_an_example_fail(name: str) -> None:
    """Valid and invalid ones for every operation, until its limits refuse."""
    schemathesis: Any = pytest.importorskip(
        "schemathesis", reason="schemathesis IS NOT INSTALLED: the examples are not fuzzed"
    )
    module = example(name)
    schema = schemathesis.openapi.from_asgi("/openapi.json", module.app)
    operations = [found.ok() for found in schema.get_all_operations()]
    seen: Counter[int] = Counter()

    def fuzz(operation: Any, mode: Any) -> None:
        @settings(thorough, max_examples=100)
        @given(case=operation.as_strategy(generation_mode=mode))
        def ask(case: Any) -> None:
            answer = case.call()
            seen[answer.status_code] += 1
            assert answer.status_code < 500
            assert ("retry-after" in answer.headers) == (answer.status_code == 429)

        ask()

    for operation in operations:
        fuzz(operation, schemathesis.GenerationMode.POSITIVE)
        with suppress(Unsatisfiable):  # where a schema forbids nothing
            fuzz(operation, schemathesis.GenerationMode.NEGATIVE)
    assert operations
    assert seen[200]
    if name == "items":
        assert seen[422]
        assert seen[429]


# --- beyond any schema ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def redis() -> Iterator[Server]:
    with serving(binaries()[0].path) as server:
        yield server


async def ok(request: Request) -> Response:
    return PlainTextResponse("ok")


class Site(NamedTuple):
    """What is asked, and the limiter whose counts tell how it fared."""

    ask: Callable[[dict[str, Any]], Answer]
    limiter: RateLimiter


def application(limits: RateLimiter) -> RateLimitMiddleware:
    """Routes of every kind of parameter, one of them limited by itself.

    Starlette builds no redirect here, which it fails to do for a query that is no UTF-8.
    """
    kinds = ["/{name}", "/n/{n:int}", "/f/{x:float}", "/u/{u:uuid}", "/rest/{rest:path}"]
    routes = [Route("/own", limit("5/minute", by=["client", "header:x-key"])(ok))]
    routes += [Route(kind, ok) for kind in kinds]
    return RateLimitMiddleware(Router(routes, redirect_slashes=False), limits)


NAMES = [b"x-forwarded-for", b"forwarded", b"x-real-ip", b"x-key", b"cookie", b"authorization",
         b"accept", b"origin", b"access-control-request-method", b"host", b"x-plan"]  # fmt: skip
ADDRESS = st.one_of(
    st.ip_addresses().map(str),
    st.sampled_from(["unknown", "_hidden", "", "::", "::1%eth0", "0177.0.0.1", "1", "127.1",
                     "[::1]:80", "1.2.3.4:5", "::ffff:1.2.3.4", "64:ff9b::1", "256.1.1.1"]),
    st.text(max_size=70),
)  # fmt: skip
ELEMENT = ADDRESS.map(lambda text: f'for="{text}";proto=https')
LIST = st.lists(ADDRESS | ELEMENT, max_size=40).map(", ".join)
VALUE = st.one_of(
    st.binary(max_size=60),
    LIST.map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.sampled_from([b"a" * 65_536, b"," * 65_536, b'for="' * 10_000, b"key=" + b"k" * 65_536]),
)
HEADER = st.tuples(st.sampled_from(NAMES) | st.binary(max_size=20), VALUE)
PATH = st.one_of(
    st.text(max_size=60).map("/".__add__),
    st.text(max_size=20),
    st.sampled_from(["/own", "/n/1", "/n/" + "9" * 4_000, "/f/1e999", "/rest/" + "../" * 2_000,
                     "/u/not-one", "//own", "/own/", "/own\x00", "/\ud800"]),
)  # fmt: skip
PEER = st.none() | st.tuples(ADDRESS, st.integers(0, 65_535))


@pytest.fixture(scope="module")
def behind_proxies(redis: Server) -> Iterator[Site]:
    """An application whose rules look everywhere for who is asking."""
    rules = RuleSet(
        (
            Rule("all", "1000000/day", by=EVERYTHING),
            Rule("client", "1000000/day"),
            Rule("plan", "1000000/day", by="header:x-plan"),
        ),
        trusted_proxies=(ip_network("10.0.0.0/8"), ip_network("fd00::/8")),
    )
    store = RedisStore(redis.url, deadline=10)
    limits = RateLimiter(rules, store=store)
    app = application(limits)
    with asyncio.Runner() as runner:
        yield Site(lambda scope: runner.run(call(app, scope)), limits)
        runner.run(store.aclose())


@thorough
@given(
    path=PATH,
    method=st.sampled_from(["GET", "POST", "HEAD", "OPTIONS", "get", ""]) | st.text(max_size=12),
    headers=st.lists(HEADER, max_size=8),
    query=st.binary(max_size=60) | st.just(b"key=" + b"q" * 65_536),
    peer=PEER | st.just(("10.0.0.1", 1)),
    root=st.sampled_from(["", "/own", "/x"]) | st.text(max_size=12),
)
def test_whatever_arrives_is_answered_and_leaves_no_key_longer_than_a_rule_and_two_digests(
    behind_proxies: Site,
    redis: Server,
    path: str,
    method: str,
    headers: list[tuple[bytes, bytes]],
    query: bytes,
    peer: tuple[str, int] | None,
    root: str,
) -> None:
    """No exception, no 500; and the limiter itself has never failed over one of them."""
    scope = http_scope(path, client=peer, query_string=query, root_path=root)
    scope |= {"method": method, "headers": headers}
    redis.command("FLUSHALL")
    behind_proxies.limiter.counts.clear()
    answer = behind_proxies.ask(scope)
    assert answer.status < 500
    assert not [what for what in behind_proxies.limiter.counts if what[1] == "store-failed"]
    keys = redis.ask("KEYS", "*")
    assert all(len(key) < 128 for key in keys), max(keys, key=len)
    assert len(keys) <= 4, "one request left more than a key for each rule"
