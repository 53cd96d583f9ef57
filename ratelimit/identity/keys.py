"""The identity of a request: an address, a header, a user, or several of these together.

The law of this module: nobody chooses a bucket that is not his. What is missing is replaced by the
client's address, and what is read from a request is bounded before it is kept.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from inspect import isawaitable
from typing import Any, Final
from urllib.parse import unquote_plus

from starlette.requests import HTTPConnection

from ratelimit.decisions import identity_digest
from ratelimit.identity.addresses import Address, read_address
from ratelimit.identity.connections import Ask, connection
from ratelimit.identity.users import user_id

__all__ = [
    "LONGEST_VALUE",
    "UNIDENTIFIED",
    "Identify",
    "KeyOf",
    "compiled",
    "identity",
    "identity_of",
    "read_joined",
]

Scope = Mapping[str, Any]
Route = Callable[[], "str | None"]
"""Tells the template of the route that a request meets; asked only where a rule counts by it."""
Read = Callable[[Scope, Mapping[str, object], Route], "str | None"]
"""Reads one part of an identity from a scope, its path's parameters and its route."""
KeyOf = Callable[[Scope, "Address | None", Mapping[str, object], Route], "str | None"]
"""Reads the text a request is counted under; None where a part is missing and has to be there."""
Identify = Ask[str | None]
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


def compiled(by: tuple[str, ...], *, fall_back: bool) -> KeyOf | None:
    """The synchronous reader of what `identity` gives as a request's text.

    None where a part is the application's to tell. What the reader raises comes of an object of
    the application's, such as its user.
    """
    if by == ("client",):
        return _client_or_all if fall_back else _client_alone
    parts: list[tuple[str, Read | None]] = []
    for part in by:
        read = None if part == "client" else _reader(part)
        if read is None and part != "client":
            return None
        parts.append((part, read))
    if len(parts) > 1:
        return _compiled_of_several(parts, fall_back)
    part, one = parts[0]
    return None if one is None else _compiled_of_one(part, one, fall_back)


def _client_or_all(_: Scope, client: Address | None, __: object, ___: object) -> str | None:
    return UNIDENTIFIED if client is None else client[2]


def _client_alone(_: Scope, client: Address | None, __: object, ___: object) -> str | None:
    return None if client is None else client[2]


def _compiled_of_one(part: str, read: Read, fall_back: bool) -> KeyOf:
    start = f"{part}="

    def key_of(
        scope: Scope, client: Address | None, path_params: Mapping[str, object], route: Route
    ) -> str | None:
        value = read(scope, path_params, route)
        if value is None:
            if not fall_back:
                return None
            return _spelled("client", UNIDENTIFIED if client is None else client.key)[0]
        return start + value if len(value) <= LONGEST_VALUE else _spelled(part, value)[0]

    return key_of


def _compiled_of_several(parts: list[tuple[str, Read | None]], fall_back: bool) -> KeyOf:
    needs_client = not fall_back and "client" in [part for part, _ in parts]

    def key_of(
        scope: Scope, client: Address | None, path_params: Mapping[str, object], route: Route
    ) -> str | None:
        if needs_client and client is None:
            return None
        address = UNIDENTIFIED if client is None else client.key
        texts = []
        for part, read in parts:
            value = address if read is None else read(scope, path_params, route)
            if value is not None:
                texts.append(_spelled(part, value)[0])
            elif fall_back:
                texts.append(_spelled("client", address)[0])
            else:
                return None
        return _joined(texts)

    return key_of


def identity_of(
    by: tuple[str, ...], values: Sequence[str], ipv6_prefix: int = 64
) -> tuple[str, str]:
    """The identity of a request that has these values, one for each part of ``by``.

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


def read_joined(key: str) -> list[str]:
    """The parts of an identity of several, each with its kind before it, from its text."""
    texts, at = [], 0
    while at < len(key):
        length, _, _ = key[at : at + 8].partition(":")
        at += len(length) + 1
        texts.append(key[at : at + int(length)])
        at += int(length)
    return texts


def _as_counted(part: str, value: str, ipv6_prefix: int) -> str:
    if part == "global":
        return ""
    address = read_address(value, ipv6_prefix) if part == "client" else None
    return value if address is None else address.key


async def _value(
    part: str,
    scope: Scope,
    route: Route,
    path_params: Mapping[str, object],
    registered: Mapping[str, Identify],
) -> str | None:
    """The value that a request has for a part other than the client."""
    read = _reader(part)
    if read is not None:
        return read(scope, path_params, route)
    answer: Any = registered[part](connection(scope))
    value = await answer if isawaitable(answer) else answer
    if value is not None and not isinstance(value, str):
        raise TypeError(f"the identity {part!r} gave {type(value).__name__}, not text")
    return value


@lru_cache(maxsize=1_024)
def _reader(part: str) -> Read | None:
    """The reader of a part other than the client; None where the application registers one."""
    kind, _, name = part.partition(":")
    if kind == "global":
        return lambda _, __, ___: ""
    if kind == "route":
        return lambda _, __, route: route()
    if kind == "path":
        return lambda _, path_params, __: _text(path_params.get(name))
    if kind == "user":
        return lambda scope, _, __: user_id(scope.get("user"))
    if kind in _READERS:
        return _READERS[kind](name)
    return None


_QUOTED: Final = re.compile(r"\\(?:([0-3][0-7][0-7])|(.))")


def _header(name: str) -> Read:
    """Reads the first line of a name, which is the one that Starlette shows to the application."""
    wanted = name.lower().encode("latin-1")

    def read(scope: Scope, _: object, __: object) -> str | None:
        for key, value in scope.get("headers", ()):
            if key == wanted:
                text: str = value.decode("latin-1")
                return text
        return None

    return read


_COOKIES: Final = [(b"cookie", b"first="), (b"cookie", b"second=")]
_ALL_COOKIES: Final = "second" in HTTPConnection({"type": "http", "headers": _COOKIES}).cookies
"""Whether this Starlette shows an application every line of cookies; before 0.49 it was one."""


def _cookie(name: str) -> Read:
    """Reads the last cookie of a name, as Starlette reads it, but in linear time.

    The standard library's unquoting takes seconds for 60 kB of backslashes (CVE-2024-7592).
    """

    def read(scope: Scope, _: object, __: object) -> str | None:
        lines = [value for key, value in scope.get("headers", ()) if key == b"cookie"]
        if not lines:
            return None
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

    return read


def _query(name: str) -> Read:
    """Reads the last value of a name, which is the one that Starlette shows to the application.

    As `urllib.parse.parse_qsl` reads it, from the right and without what comes before.
    """

    def read(scope: Scope, _: object, __: object) -> str | None:
        text = scope.get("query_string", b"").decode("latin-1")
        if not text:
            return None
        escaped = "%" in text or "+" in text
        for pair in reversed(text.split("&")):
            key, _, value = pair.partition("=")
            if key == name or (escaped and unquote_plus(key) == name):
                return unquote_plus(value) if escaped else value
        return None

    return read


def _text(value: object) -> str | None:
    """A value as text; None where that would only name the object, another at each request."""
    if type(value) is str or type(value) is int:  # most often by far
        return str(value)
    if value is None or callable(value):
        return None
    text = str(value)
    return None if text == object.__repr__(value) else text


_READERS: Final[dict[str, Callable[[str], Read]]] = {
    "header": _header,
    "cookie": _cookie,
    "query": _query,
}
