"""Functions over each kind of connection, as a type checker sees them; never run, only checked."""

from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, Response
from starlette.websockets import WebSocket

from ratelimit import Limit, RateLimit, RateLimiter, Rule, limit
from ratelimit.responses.headers import Refusal


def by_request(request: Request) -> str | None:
    return request.method


async def by_request_async(request: Request) -> str | None:
    return request.method


def by_socket(socket: WebSocket) -> str:
    return socket.url.path


async def by_connection(connection: HTTPConnection) -> str:
    return connection.url.path


def cost_of_request(request: Request) -> int:
    return len(request.method)


async def cost_of_socket(socket: WebSocket) -> int:
    return 2


def skip_request(request: Request) -> bool:
    return request.method == "HEAD"


async def skip_connection(connection: HTTPConnection) -> bool:
    return True


def limit_of_request(request: Request) -> str | None:
    return "1/minute"


async def limit_of_socket(socket: WebSocket) -> Limit:
    return Limit("1/minute")


def limits_of_connection(connection: HTTPConnection) -> list[Limit]:
    return [Limit("1/minute")]


def answer_request(request: Request, refusal: Refusal) -> Response:
    return JSONResponse({"method": request.method}, refusal.status)


async def answer_connection(connection: HTTPConnection, refusal: Refusal) -> Response:
    return Response(status_code=refusal.status)


def functions() -> None:
    RateLimiter(
        identities={"one": by_request, "two": by_socket, "three": by_connection},
        tiers={"one": by_request_async, "two": by_socket, "three": by_connection},
        costs={"one": cost_of_request, "two": cost_of_socket, "three": lambda _: 3},
        skip=skip_request,
        response=answer_request,
    )
    RateLimiter(identities={"one": by_request}, skip=skip_connection, response=answer_connection)
    RateLimiter(skip=lambda connection: connection.url.path == "/")
    RateLimiter([Rule("one", limit_of_request, cost=cost_of_socket, skip=skip_request)])
    Rule("tiers", {"free": "1/minute", "pro": Limit("2/minute")}, tier=by_request)
    Rule("tiers", {"free": [7]}, tier=by_request)  # type: ignore[dict-item]
    RateLimit(limit_of_socket, cost=cost_of_request, skip=skip_connection)
    RateLimit(limits_of_connection, cost=lambda connection: 2, tier=None)
    RateLimit({"free": "1/minute"}, tier=by_request_async, name="one", scope="two")
    RateLimiter(identities={"one": cost_of_request})  # type: ignore[dict-item]
    RateLimiter(skip=by_request)  # type: ignore[arg-type]
    RateLimit("1/minute", cost=by_request)  # type: ignore[arg-type]


@limit(limit_of_request, by=["client"], cost=cost_of_request, skip=skip_request, methods=["GET"])
@limit({"free": "1/minute"}, tier=by_request, overrides={"192.0.2.1": [Limit("9/minute")]})
@limit([Limit("1/minute"), Limit("9/day")], skip=skip_connection)
async def limited(request: Request) -> Response:
    return Response()


@limit(limit_of_socket, cost=cost_of_socket, tier=None)
async def chat(socket: WebSocket) -> None: ...
