"""The application's functions over a request, and the object that they are given."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from starlette.requests import HTTPConnection, Request
from starlette.types import Message
from starlette.websockets import WebSocket

__all__ = ["CONNECTION_KEY", "Ask", "connection"]

T = TypeVar("T")

Ask = (
    Callable[[HTTPConnection], T | Awaitable[T]]
    | Callable[[Request], T | Awaitable[T]]
    | Callable[[WebSocket], T | Awaitable[T]]
)
"""A function of the application over the connection, sync or async.

It may ask for the kind of connection that it is used for: every request is a `Request`, every
handshake a `WebSocket`, and both are an `HTTPConnection`."""


CONNECTION_KEY = "ratelimit.connection"
"""Scope key of the endpoint's own connection, where a function may read the body with it."""


def connection(scope: Mapping[str, Any]) -> Any:
    """The request or the handshake of a scope, whose body and messages are the endpoint's alone."""
    known = scope.get(CONNECTION_KEY)
    if known is not None:
        return known
    if scope["type"] == "websocket":
        return WebSocket(dict(scope), _nothing, _unheard)
    return Request(dict(scope))


async def _nothing() -> Message:
    raise RuntimeError("a limit decides before the handshake; its messages are the endpoint's")


async def _unheard(_: Message) -> None:
    raise RuntimeError("a limit decides before the handshake; answering is the endpoint's")
