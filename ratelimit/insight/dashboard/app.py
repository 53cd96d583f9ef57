"""The live page as an ASGI application, closed unless a function of the application opens it.

The law of this module: whoever is not let in learns nothing, not even that something is here; a
GET changes nothing and carries no identity; and a page that is looked at never holds up requests,
nor the end of the server.
"""

import json
import logging
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from importlib.resources import files
from inspect import isawaitable
from typing import Any, Final
from urllib.parse import quote

import anyio
from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ratelimit.identity.connections import Ask, connection
from ratelimit.insight.dashboard.telling import (
    MOST_DENIED,
    Gathered,
    numbers_of,
    rules_of,
    state_of,
)
from ratelimit.insight.metrics.fleet import Fleet, Gathering
from ratelimit.limiter.limiter import RateLimiter
from ratelimit.rules.paths import route_path
from ratelimit.stores import StoreUnavailable

__all__ = ["Dashboard"]

_LOG: Final = logging.getLogger("ratelimit")

MOST_LISTENERS: Final = 20
"""Pages that are told at once by one process; the next is asked to come again."""

EVERY: Final = 1.0
"""Seconds between two snapshots."""

LASTS: Final = 60.0
"""Seconds that one stream of snapshots lasts; the browser opens the next by itself, and whether it
may is asked again."""

STALLED: Final = 10.0
"""Seconds that a reader may leave one snapshot unread."""

MOST_BYTES: Final = 8_192
"""Bytes of a question for the state of a key."""

HEADERS: Final = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
    "cache-control": "no-store",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
"""Fields of every answer to those who are let in."""

FILES: Final = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}

_EVENTS: Final = {"content-type": "text/event-stream", "x-accel-buffering": "no", **HEADERS}


class Dashboard:
    """A live page on a limiter, for those that ``allow`` lets in: an ASGI application to mount.

    ``app.mount("/ratelimit", Dashboard(limiter, allow=is_staff))``. ``allow`` is a function over
    the connection, sync or async, that gives True for whoever may look; anything else that it
    gives, and whatever it raises, keeps the page closed, and so does None. Who is not let in gets
    404 for every path, a WebSocket is always refused.

    The numbers are those of all workers where their store gathers them, as Redis does: each worker
    that has the page adds its own to it once a second. Elsewhere, and while the store does not
    answer, they are those of the worker that answers; the page says which. Nothing can be changed
    from it.

    Raises TypeError where ``allow`` cannot be called.
    """

    def __init__(
        self,
        limiter: RateLimiter,
        *,
        allow: Callable[[HTTPConnection], object] | Ask[bool] | None = None,
    ) -> None:
        if allow is not None and not callable(allow):
            raise TypeError(f"allow is a function, not {type(allow).__name__}")
        self.limiter = limiter
        """The limiter that is shown."""
        self._allow: Any = allow
        self._listening = 0
        self._told: set[str] = set()
        self._denied: list[tuple[str, int]] | None = None
        self._asked_at = float("-inf")
        self._fleet: Fleet | None = None
        if allow is not None and isinstance(limiter.store, Gathering):
            # One for each limiter: two would add the same counts twice.
            found = [each for each in limiter.companions if isinstance(each, Fleet)]
            self._fleet = found[0] if found else Fleet(limiter)
            limiter.companions += () if found else (self._fleet,)
            limiter.count_workers()
        if allow is None:
            self._once("dashboard-closed: it is given no function `allow`, so nobody may see it")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request; a lifespan is not answered, as a mounted application has none."""
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})
        elif scope["type"] == "http":
            if not await self._is_open_to(scope):
                # Starlette's own words for a path that is not there.
                response: Response | None = Response("Not Found", 404, media_type="text/plain")
            else:
                response = await self._answer(scope, receive, send)
            if response is not None:
                await response(scope, receive, send)

    async def _is_open_to(self, scope: Scope) -> bool:
        if self._allow is None:
            return False
        try:
            answer = self._allow(connection(scope))
            if isawaitable(answer):
                answer = await answer
        except Exception:  # noqa: BLE001  # the application's
            if "failed" not in self._told:
                self._told.add("failed")
                _LOG.exception(
                    "dashboard-closed: `allow` raised, so the page stays closed (said once)"
                )
            return False
        if not isinstance(answer, bool | None):
            self._once(
                f"dashboard-closed: `allow` gave {type(answer).__name__}, and only True opens "
                "the page (said once)"
            )
        return answer is True

    def _once(self, sentence: str) -> None:
        if sentence not in self._told:
            self._told.add(sentence)
            _LOG.warning("%s", sentence)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> Response | None:
        """The response to somebody who was let in; None where it was sent already."""
        path, methods = route_path(scope), "GET, HEAD"
        if path == "/state":
            methods = "POST"
        elif path != "/events" and path not in FILES:
            return _said(404, "there is nothing here")
        if scope["method"] not in methods.split(", "):
            return _said(405, f"this is asked for by {methods}", allow=methods)
        if path == "/state":
            return await self._state(Request(scope, receive))
        return await self._events(scope, receive, send) if path == "/events" else _page(scope)

    async def _events(self, scope: Scope, receive: Receive, send: Send) -> Response | None:
        """The stream of snapshots, which it has sent when it gives None."""
        if scope["method"] == "HEAD":
            return Response(None, 200, _EVENTS)
        if self._listening >= MOST_LISTENERS:
            return _said(503, "too many pages are open", retry_after="10")
        self._listening += 1
        try:
            await self._stream(receive, send)
        finally:
            self._listening -= 1
        return None

    async def _stream(self, receive: Receive, send: Send) -> None:
        """Sends a snapshot a second until somebody has had enough: reader, server, or the clock.

        Each reader takes the newest when it has read the last, so a slow one costs nobody else.
        """
        async with anyio.create_task_group() as group:

            async def wait_for_the_end() -> None:
                while (await receive())["type"] != "http.disconnect":
                    pass
                group.cancel_scope.cancel()

            group.start_soon(wait_for_the_end)
            with suppress(OSError):  # by which some servers say that the reader has left
                await self._send_all(send)
            group.cancel_scope.cancel()

    async def _send_all(self, send: Send) -> None:
        self.limiter.start()  # what gathers the numbers, where no request has come yet
        headers = [(name.encode(), value.encode()) for name, value in _EVENTS.items()]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        ends, text, rules = anyio.current_time() + LASTS, "retry: 1000\n\n", ""
        while anyio.current_time() < ends and not _server_ends():
            now = _json(rules_of(self.limiter))
            if now != rules:
                rules = now
                text += f"event: rules\ndata: {rules}\n\n"
            text += f"event: numbers\ndata: {_json(await self._numbers())}\n\n"
            part = {"type": "http.response.body", "body": text.encode(), "more_body": True}
            with anyio.move_on_after(STALLED) as patience:
                await send(part)
            if patience.cancelled_caught:
                return  # with the response unfinished, so that the server drops the connection
            text = ""
            await anyio.sleep(EVERY)
        await send({"type": "http.response.body", "body": b""})

    async def _numbers(self) -> dict[str, Any]:
        store = self.limiter.store
        if isinstance(store, Gathered) and time.monotonic() - self._asked_at >= EVERY:
            self._asked_at = time.monotonic()  # so that readers share one question
            try:
                self._denied = await store.denials(MOST_DENIED)
            except StoreUnavailable:
                self._denied = None  # this worker's own are known all the same
            except Exception as error:  # noqa: BLE001  # a store of the application's
                self._denied = None
                self._once(f"dashboard: the store's denials are unread: {type(error).__name__}")
        return numbers_of(self.limiter, self._denied, self._fleet)

    async def _state(self, request: Request) -> Response:
        if not _is_from_here(request.headers):
            return _said(403, "a question comes from the page itself")
        if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            return _said(415, "a question is JSON")
        body = bytearray()
        try:
            async for chunk in request.stream():
                body += chunk
                if len(body) > MOST_BYTES:
                    return _said(413, f"a question has at most {MOST_BYTES} bytes")
        except ClientDisconnect:
            return _said(400, "the question broke off")
        try:
            asked = json.loads(body)
        except (ValueError, RecursionError):
            return _said(400, "a question is JSON")
        status, answer = await state_of(self.limiter, asked)
        return Response(_json(answer), status, {**HEADERS, "content-type": "application/json"})


def _page(scope: Scope) -> Response:
    """One of the files of the page."""
    path: str = scope["path"]
    name, kind = FILES[route_path(scope)]
    if name == "index.html" and not path.endswith("/"):
        # Without the slash the page would look for its files one floor above.
        here = quote(path.rpartition("/")[2], safe="")
        return Response(None, 307, {**HEADERS, "location": f"./{here}/"})
    return Response(_file(name), 200, {**HEADERS, "content-type": kind})


def _is_from_here(headers: Mapping[str, str]) -> bool:
    """Whether a browser sent this from a page of the same origin, by its own word.

    Sec-Fetch-Site is sent where the connection is secure; Origin with every POST.
    """
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site == "same-origin"
    scheme, _, host = headers.get("origin", "").partition("://")
    return scheme in ("http", "https") and host != "" and host == headers.get("host")


def _server_ends() -> bool:
    """Whether uvicorn was told to end; it tells no application so, and waits for each response."""
    server = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    return getattr(server, "should_exit", False) is True


def _said(status: int, sentence: str, **fields: str) -> Response:
    named = {name.replace("_", "-"): value for name, value in fields.items()}
    headers = {**HEADERS, **named, "content-type": "application/json"}
    return Response(_json({"error": sentence}), status, headers)


def _json(value: object) -> str:
    """JSON in ASCII and one line, which no name in it can break out of."""
    return json.dumps(value, separators=(",", ":"))


@cache
def _file(name: str) -> bytes:
    return (files("ratelimit.insight.dashboard") / "page" / name).read_bytes()
