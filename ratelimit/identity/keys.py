"""Who is asking: an address, a header, a user, or several of these together.

The law of this module: nobody chooses a bucket that is not his. What is missing is replaced by the
client's address, and what is read from a request is bounded before it is kept.
"""

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from inspect import isawaitable
from typing import Any, Final
from urllib.parse import parse_qsl

from starlette.requests import HTTPConnection

from ratelimit.decisions import identity_digest
from ratelimit.identity.addresses import Address, read_address

__all__ = ["LONGEST_VALUE", "UNIDENTIFIED", "Identify", "identity", "identity_of"]

Scope = Mapping[str, Any]
Identify = Callable[[HTTPConnection], "str | Awaitable[str | None] | None"]
"""An identity that the application registers: text, or None where there is none."""

UNIDENTIFIED: Final = "unidentified"
"""The one bucket per rule that everybody shares who has no address."""

LONGEST_VALUE: Final = 256
"""Characters of a value that are kept; a longer one is its digest from then on."""


async def identity(
    by: tuple[str, ...],
    scope: Scope,
    client: Address | None,
    *,
    route: Callable[[], str | None],
    path_params: Mapping[str, object],
    registered: Mapping[str, Identify],
    fall_back: bool = True,
) -> tuple[str, str] | None:
    """The text a request is counted under, and the value of its first part (for overrides).

    Parts are joined so that no two identities read alike. One that is missing is replaced by the
    client's address, never left out: leaving it out would let a client choose a fresh bucket. All
    clients without an address are one. With ``fall_back`` False a missing part, the address among
    them, makes it None.

    Raises TypeError where a registered identity gives something else than text or None.
    """
    if client is None and not fall_back and "client" in by:
        return None
    address = UNIDENTIFIED if client is None else client.key
    if by == ("client",):
        return address, address
    texts, values = [], []
    for part in by:
        value: str | None = address
        if part != "client":
            value = await _value(part, scope, route, path_params, registered)
        if value is None:
            if not fall_back:
                return None
            part, value = "client", address  # noqa: PLW2901  # under which it counts instead
        text, value = _spelled(part, value)
        texts.append(text)
        values.append(value)
    return _joined(texts), values[0]


def identity_of(
    by: tuple[str, ...], values: Sequence[str], ipv6_prefix: int = 64
) -> tuple[str, str]:
    """The same for a request that has these values, one for each part of ``by``.

    An address stands for what clients are counted by; that of ``global`` is of no account.
    """
    read = [_as_counted(part, value, ipv6_prefix) for part, value in zip(by, values, strict=True)]
    if by == ("client",):
        return read[0], read[0]
    spelled = [_spelled(part, value) for part, value in zip(by, read, strict=True)]
    return _joined([text for text, _ in spelled]), spelled[0][1]


def _spelled(part: str, value: str) -> tuple[str, str]:
    """A part with its value, and the value as it is kept."""
    if len(value) <= LONGEST_VALUE:
        return f"{part}={value}", value
    value = identity_digest(value)
    return f"{part}#{value}", value


def _joined(texts: list[str]) -> str:
    return texts[0] if len(texts) == 1 else "".join(f"{len(text)}:{text}" for text in texts)


def _as_counted(part: str, value: str, ipv6_prefix: int) -> str:
    if part == "global":
        return ""
    address = read_address(value, ipv6_prefix) if part == "client" else None
    return value if address is None else address.key


async def _value(
    part: str,
    scope: Scope,
    route: Callable[[], str | None],
    path_params: Mapping[str, object],
    registered: Mapping[str, Identify],
) -> str | None:
    """What a request has for a part other than the client."""
    kind, _, name = part.partition(":")
    if kind == "global":
        return ""
    if kind == "route":
        return route()
    if kind == "path":
        return _text(path_params.get(name))
    if kind in _READERS:
        return _READERS[kind](scope, name)
    answer = registered[part](HTTPConnection(dict(scope)))
    value = await answer if isawaitable(answer) else answer
    if value is not None and not isinstance(value, str):
        raise TypeError(f"the identity {part!r} gave {type(value).__name__}, not text")
    return value


_QUOTED: Final = re.compile(r"\\(?:([0-3][0-7][0-7])|(.))")


def _header(scope: Scope, name: str) -> str | None:
    """The first line of a name, which is the one that Starlette shows to the application."""
    wanted = name.lower().encode("latin-1")
    return next(
        (value.decode("latin-1") for key, value in scope.get("headers", ()) if key == wanted), None
    )


_COOKIES: Final = [(b"cookie", b"first="), (b"cookie", b"second=")]
_ALL_COOKIES: Final = "second" in HTTPConnection({"type": "http", "headers": _COOKIES}).cookies
"""Whether this Starlette shows an application every line of cookies; before 0.49 it was one."""


def _cookie(scope: Scope, name: str) -> str | None:
    """The last cookie of a name, as Starlette reads it, but in linear time.

    The standard library's unquoting takes seconds for 60 kB of backslashes (CVE-2024-7592).
    """
    lines = [value for key, value in scope.get("headers", ()) if key == b"cookie"]
    if not _ALL_COOKIES:
        del lines[1:]
    for chunk in reversed(b";".join(lines).decode("latin-1").split(";")):
        key, equals, value = chunk.partition("=")
        if equals and key.strip() == name:
            value = value.strip()
            if len(value) < 2 or value[0] != '"' or value[-1] != '"':
                return value
            return _QUOTED.sub(lambda it: chr(int(it[1], 8)) if it[1] else it[2], value[1:-1])
    return None


def _query(scope: Scope, name: str) -> str | None:
    """The last value of a name, which is the one that Starlette shows to the application."""
    text = scope.get("query_string", b"").decode("latin-1")
    return dict(parse_qsl(text, keep_blank_values=True)).get(name)


def _user(scope: Scope, _: str) -> str | None:
    """What Starlette's AuthenticationMiddleware, or one like it, says of the user."""
    user = scope.get("user")
    if user is None or not getattr(user, "is_authenticated", True):
        return None
    for attribute in ("identity", "username", "display_name", "id"):
        try:
            value = getattr(user, attribute, None)
        except NotImplementedError:  # starlette.authentication.BaseUser leaves some open
            continue
        if text := _text(value):
            return text
    return user if isinstance(user, str) and user else None


def _text(value: object) -> str | None:
    """A value as text; None where that would only name the object, another at each request."""
    if value is None or callable(value):
        return None
    text = str(value)
    return None if text == object.__repr__(value) else text


_READERS: Final[dict[str, Callable[[Scope, str], str | None]]] = {
    "header": _header,
    "cookie": _cookie,
    "query": _query,
    "user": _user,
}
