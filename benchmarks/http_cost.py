"""What rules add to one request in process, beside a middleware written by hand for one limit.

``python benchmarks/http_cost.py [ROUNDS]`` from the repository's root. No server and no socket: an
application is called as a server would. Each round calls every row in turn, in small parts of
whose processor time the least counts; medians and quartiles are those of the rounds.
"""

import asyncio
import logging
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ratelimit import Check, Limit, MemoryStore, RateLimiter, RateLimitMiddleware, Rule, limit

App = Callable[[Any, Any, Any], Awaitable[None]]

PARTS: Final = 5
CALLS: Final = 400
MANY: Final = "1000000000/minute"


class User:
    is_authenticated = True
    identity = "alice"


SCOPE: Final[dict[str, Any]] = {
    "type": "http",
    "asgi": {"version": "3.0"},
    "http_version": "1.1",
    "method": "GET",
    "scheme": "http",
    "path": "/items/7",
    "raw_path": b"/items/7",
    "root_path": "",
    "query_string": b"page=2&account=acme",
    "headers": [
        (b"host", b"example.com"),
        (b"user-agent", b"curl/8.5.0"),
        (b"accept", b"*/*"),
        (b"accept-encoding", b"gzip"),
        (b"x-api-key", b"0123456789abcdef"),
        (b"cookie", b"theme=dark; session=0123456789abcdef"),
    ],
    "client": ("192.0.2.7", 50_000),
    "server": ("192.0.2.1", 80),
    "user": User(),
}


async def endpoint(_: Request) -> Response:
    return Response(b"ok")


async def another(_: Request) -> Response:
    return Response(b"ok")


class Floor:
    """One check of one limit and two fields: what nobody can do without."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.limit = Limit(MANY)
        self.store = MemoryStore()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        check = Check(self.limit, scope["client"][0], 1, "by_hand")
        (decision,) = await self.store.decide([check])
        if not decision.allowed:
            raise RuntimeError("refused")

        async def send_with_fields(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] += [
                    (b"ratelimit-policy", b'"by_hand";q=1000000000;w=60'),
                    (b"ratelimit", b'"by_hand";r=%d' % decision.remaining),
                ]
            await send(message)

        await self.app(scope, receive, send_with_fields)


def bare(function: Any = endpoint) -> App:
    app = Starlette(routes=[Route("/items/{item}", function)])
    # Nothing but the routes: what stands around them is the same in every row.
    return app.router


def ruled(*rules: Rule) -> App:
    return RateLimitMiddleware(bare(), RateLimiter(rules, store=MemoryStore()))


def by(*parts: str, **options: Any) -> App:
    return ruled(Rule("one", MANY, by=parts, **options))


def rows() -> dict[str, App]:
    limiter = RateLimiter((), store=MemoryStore())
    return {
        "bare": bare(),
        "floor": Floor(bare()),
        "client": by("client"),
        "header": by("header:x-api-key"),
        "user": by("user"),
        "path": by("path:item", path="/items/{item}"),
        "query": by("query:account"),
        "cookie": by("cookie:session"),
        "client and header": by("client", "header:x-api-key"),
        "client, own path": by("client", path="/items/{item}"),
        "five": ruled(*(Rule(f"r{each}", f"{each + 1}000000000/minute") for each in range(5))),
        "@limit": bare(limit(MANY, limiter=limiter)(another)),
    }


async def one_round(apps: dict[str, App]) -> dict[str, float]:
    """Microseconds per request of each row."""
    clock = time.process_time
    least = dict.fromkeys(apps, float("inf"))

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        pass

    for _ in range(PARTS):
        for name, app in apps.items():
            scopes = [dict(SCOPE) for _ in range(CALLS)]
            begun = clock()
            for scope in scopes:
                await app(scope, receive, send)
            least[name] = min(least[name], (clock() - begun) / CALLS * 1e6)
    return least


def main() -> None:
    logging.disable()  # that clients choose their headers is known here
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    apps = rows()

    async def run() -> list[dict[str, float]]:
        await one_round(apps)
        return [await one_round(apps) for _ in range(rounds)]

    found = asyncio.run(run())
    added = {name: [each[name] - each["bare"] for each in found] for name in apps}
    against = {"client": "floor", "five": "client", "@limit": "client", "floor": "floor"}
    print(f"{rounds} rounds; added microseconds per request: median (quartiles)")
    for name in apps:
        if name == "bare":
            print(f"{name:18}{statistics.median(each[name] for each in found):8.2f} in all")
            continue
        low, middle, high = statistics.quantiles(added[name], n=4)
        other = against.get(name, "client")
        ratios = [mine / its for mine, its in zip(added[name], added[other], strict=True)]
        first, ratio, last = statistics.quantiles(ratios, n=4)
        print(
            f"{name:18}{middle:8.2f} ({low:.2f} to {high:.2f})"
            f"   {ratio:.2f} ({first:.2f} to {last:.2f}) x {other}"
        )


if __name__ == "__main__":
    main()
