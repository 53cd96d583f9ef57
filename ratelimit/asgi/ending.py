"""The end of a request, for whatever of it is settled by that: its status, its last byte."""

from collections.abc import Mapping, Sequence
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Message, Send

from ratelimit.limiter.admission import Admission

__all__ = ["ended", "raised", "returned", "send_and_tell", "unseen"]

_REFUSED = 403
"""The answer to a handshake that is closed before it was accepted."""
_SWITCHED = 101


async def send_and_tell(admission: Admission, message: Message, send: Send) -> None:
    """Sends a message of the application's, and tells what is held what it means."""
    kind = message["type"]
    status = 0
    if kind in ("http.response.start", "websocket.http.response.start"):
        status = message["status"]
        admission.trails = bool(message.get("trailers"))
    elif kind == "websocket.accept":
        status = _SWITCHED
    elif kind == "websocket.close":
        status = _REFUSED
    if status and not admission.status:
        await _answered(admission, status, [*message.get("headers", ())])
    await send(message)
    if _is_last(kind, message, trails=admission.trails):
        for each in admission.held:
            each.sent()


async def _answered(
    admission: Admission, status: int, headers: Sequence[tuple[bytes, bytes]]
) -> None:
    """Tells what is held of the response, before its start is sent."""
    admission.status = status
    for each in admission.held:
        waits = each.answered(status, headers)
        if waits is not None:
            await waits


def ended(admission: Admission, error: BaseException | None) -> None:
    """Tells what is held that the application's call has ended."""
    held, admission.held = admission.held, []
    for each in held:
        each.ended(error)


async def raised(admission: Admission, error: BaseException, scope: Mapping[str, Any]) -> None:
    """Tells what is held that an endpoint has raised, where no middleware sees the response."""
    if isinstance(error, Exception) and not admission.status:
        status = _of_error(error, scope)
        if not status:
            ended(admission, None)
            return
        await _answered(admission, status, ())
    ended(admission, error)


def unseen(admission: Admission) -> None:
    """Tells what is held that a request is over, of whose response nobody has seen anything."""
    for each in admission.held:
        each.sent()
    ended(admission, None)


async def returned(
    admission: Admission, scope: Mapping[str, Any], response: Response | None
) -> None:
    """Tells what is held that an endpoint has returned, where no middleware sees the response."""
    if not admission.status:
        status = getattr(response, "status_code", None) or _of_route(scope)
        await _answered(admission, status, [] if response is None else response.raw_headers)
    for each in admission.held:
        each.sent()
    ended(admission, None)


def _of_route(scope: Mapping[str, Any]) -> int:
    """The status of what a route returns."""
    if scope["type"] == "websocket":
        return _SWITCHED
    return getattr(scope.get("route"), "status_code", None) or 200


def _of_error(error: Exception, scope: Mapping[str, Any]) -> int:
    """The status of the answer to an exception; 0 where a handler of the application's gives it."""
    if isinstance(error, HTTPException):
        return error.status_code
    handlers = scope.get("starlette.exception_handlers", ({}, {}))[0]
    return 0 if any(kind in handlers for kind in type(error).__mro__) else 500


def _is_last(kind: str, message: Message, *, trails: bool) -> bool:
    """Whether nothing of the response follows a message."""
    if kind in ("http.response.body", "websocket.http.response.body"):
        return not (message.get("more_body") or trails)
    if kind == "http.response.trailers":
        return not message.get("more_trailers")
    return (kind == "http.response.pathsend" and not trails) or kind == "websocket.close"
