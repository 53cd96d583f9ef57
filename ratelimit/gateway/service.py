"""The application that `ratelimit serve` runs: the answers to proxies, and what an operator asks.

The law of this module: nothing but the question of a proxy is worth an answer to a stranger, so the
rest tells no identity, and the live page is closed.
"""

import json
import logging
import os
import signal
from collections.abc import Iterable
from typing import Final, NamedTuple, Self

from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ratelimit.gateway.forward_auth import ForwardAuth
from ratelimit.identity.addresses import read_address
from ratelimit.identity.hosts import host_of
from ratelimit.identity.networks import Networks
from ratelimit.identity.proxies import Proxies
from ratelimit.insight.dashboard.app import Dashboard
from ratelimit.limiter.limiter import RateLimiter
from ratelimit.stores import MemoryStore

__all__ = [
    "AUTH",
    "PAGE",
    "Plan",
    "Service",
    "WithCalls",
    "application",
    "built",
    "make",
    "write_log",
]

AUTH: Final = "/auth"
"""The path below which proxies ask."""
PAGE: Final = "/ratelimit"
"""The path of the live page."""
_PLAN: Final = "RATELIMIT_SERVE"
_NOBODY: Final = Proxies()


class Plan(NamedTuple):
    """All that a worker is told of what it serves."""

    rules: str
    """The path of the rule file."""
    dialect: str = "nginx"
    page: tuple[str, ...] = ()
    """Networks whose peers may see the live page."""
    workers: int = 1
    watch: bool = False
    """Whether the rule file is followed."""
    calls: tuple[str, int, str | None] | None = None
    """The host and the port, or the unix socket, where Envoy's rate limit service listens."""

    def leave(self) -> None:
        """Leaves it to the workers that this process starts."""
        os.environ[_PLAN] = json.dumps(self)

    @classmethod
    def found(cls) -> Self:
        """The plan that was left to this process."""
        rules, dialect, page, workers, watch, calls = json.loads(os.environ[_PLAN])
        return cls(rules, dialect, tuple(page), workers, watch, calls and tuple(calls))


class Service:
    """Answers proxies below ``/auth``, beside health, metrics and the live page.

    ``page`` are the networks whose peers may see the page; it stays closed without any. With
    ``shared`` the metrics are those of all workers of the store.

    Raises ValueError for what is not a network, and what `ForwardAuth` raises.
    """

    def __init__(
        self,
        limiter: RateLimiter,
        dialect: str = "nginx",
        *,
        page: Iterable[str] = (),
        shared: bool = False,
    ) -> None:
        self.auth = ForwardAuth(limiter, dialect)
        """The answers to proxies."""
        self._limiter = limiter
        networks = Networks(page)
        self._page = Dashboard(limiter, allow=lambda asked: _may_look(asked, networks))
        self._metrics = _metrics(limiter, shared=shared)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request, or the lifespan of the whole."""
        path: str = scope.get("path", AUTH)  # a lifespan has none
        if path.startswith(AUTH):
            scope["root_path"] = AUTH
            await self.auth(scope, receive, send)
        elif path == PAGE or path.startswith(PAGE + "/"):
            await self._page({**scope, "root_path": PAGE}, receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})
        else:
            await self._operators(path)(scope, receive, send)

    def _operators(self, path: str) -> ASGIApp:
        if path == "/metrics":
            return self._metrics
        if path == "/health":
            return _said(200, self._limiter.health())
        if path == "/ready":  # whatever the store does: what rules say of that is to be heard
            return _said(200, {"status": "ready"})
        return _said(404, {"error": "there is nothing here"})


def _said(status: int, answer: object) -> Response:
    headers = {"content-type": "application/json", "cache-control": "no-store"}
    return Response(json.dumps(answer), status, headers)


def _may_look(asked: HTTPConnection, networks: Networks) -> bool:
    """Whether the peer itself is in a network, and asks by an address, or by localhost.

    A page of somebody else's whose name suddenly leads here has that name as its host.
    """
    peer = read_address(asked.client.host, 128) if asked.client else None
    if peer is None or peer not in networks:
        return False
    host = host_of(asked.scope, _NOBODY)
    return host == "localhost" or read_address(host) is not None


def _metrics(limiter: RateLimiter, *, shared: bool) -> ASGIApp:
    """The metrics for Prometheus, as an application."""
    try:
        from prometheus_client import CollectorRegistry, make_asgi_app  # noqa: PLC0415  # an extra

        from ratelimit.insight.metrics.prometheus import PrometheusMetrics  # noqa: PLC0415
    except ImportError as missing:
        return _said(404, {"error": str(missing)})
    registry = CollectorRegistry()
    registry.register(PrometheusMetrics(limiter, shared=shared))
    return make_asgi_app(registry)


class WithCalls:
    """A service that also takes Envoy's calls, from its start to its end.

    Raises ImportError, in one sentence, without the extra ``envoy``.
    """

    def __init__(
        self, service: Service, place: tuple[str, int, str | None], *, share: bool
    ) -> None:
        try:
            from ratelimit.gateway.calls import Server  # noqa: PLC0415  # an extra
            from ratelimit.gateway.rls import RateLimitService  # noqa: PLC0415  # which needs it
        except ImportError:
            raise ImportError(
                "Envoy's rate limit service needs h2: pip install 'ratelimit-asgi[envoy]'"
            ) from None
        answers = RateLimitService(service.auth.limiter)
        self._server = Server(answers, answers.trusts)
        self._service = service
        self._place = place
        self._share = share

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request, or the lifespan of the whole."""
        if scope["type"] != "lifespan":
            await self._service(scope, receive, send)
            return

        async def heard() -> Message:
            message = await receive()
            if message["type"] == "lifespan.shutdown":  # while the store is still open
                await self._server.aclose()
            return message

        async def said(message: Message) -> None:
            if message["type"] == "lifespan.startup.complete":
                host, port, unix = self._place
                try:
                    await self._server.open(host, port, unix, share=self._share)
                except OSError as error:
                    failed = f"{unix or f'{host}:{port}'} cannot be listened on: {error.strerror}"
                    message = {"type": "lifespan.startup.failed", "message": failed}
            await send(message)

        await self._service(scope, heard, said)


def make() -> ASGIApp:
    """The service that a worker runs, by the plan that was left to it.

    Raises what reading the rule file raises, and ValueError, in one sentence, for what cannot be.
    """
    write_log()
    return application(Plan.found())


def write_log() -> None:
    """Writes the log of this process to standard error."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    logging.getLogger("uvicorn.error").addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a line of the server's says anything: clients may ask for any upgrade they like."""
    return "upgrade" not in record.msg and "WebSocket" not in record.msg


def built(plan: Plan) -> Service:
    """The service of a plan."""
    limiter = RateLimiter.from_file(plan.rules, watch=plan.watch, sighup=hasattr(signal, "SIGHUP"))
    shared = plan.workers > 1
    if shared and type(limiter.store) is MemoryStore:
        raise ValueError(
            f"{plan.workers} workers need a store that they share, and the file's is memory://, in "
            "which each counts for itself; name a Redis"
        )
    return Service(limiter, plan.dialect, page=plan.page, shared=shared)


def application(plan: Plan) -> ASGIApp:
    """The service of a plan, and Envoy's beside it where the plan has one."""
    service = built(plan)
    if plan.calls is None:
        return service
    return WithCalls(service, plan.calls, share=plan.workers > 1)
