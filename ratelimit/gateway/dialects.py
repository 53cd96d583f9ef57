"""A proxy's question to the request that it is about.

The law of this module: of a question nothing is read but the fields that its dialect names, each
exactly once. The proxy writes them, in place of whatever its client has sent under these names; so
one that is missing, or there twice, is a proxy that was set up wrongly, and its client's word may
be among them. Pure.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple
from urllib.parse import unquote_to_bytes

from ratelimit.rules.paths import route_path

__all__ = ["DIALECTS", "Dialect", "TooLong", "Unsaid", "readings"]

LONGEST_URI: Final = 65_536
"""Bytes of a request's URI that are read; nginx takes 8 KiB of one unless told, Envoy 60."""


class Unsaid(ValueError):
    """The question does not say what it is about."""


class TooLong(ValueError):
    """The request's URI is longer than any that is read."""


class Dialect(NamedTuple):
    """The places where one kind of proxy says what it asks about, and the answers it hands on.

    A field that is None is not sent: the question itself has the method and the URI then.
    """

    method: bytes | None
    uri: bytes | None
    host: bytes
    scheme: bytes
    hands_on: range
    """The statuses of a refusal that reach the client; any other is told as 403, by a marker."""


_FORWARDED: Final = Dialect(
    b"x-forwarded-method", b"x-forwarded-uri", b"x-forwarded-host", b"x-forwarded-proto",
    range(300, 600),
)  # fmt: skip

DIALECTS: Final[Mapping[str, Dialect]] = {
    # Makes a 500 of every refusal but 401 and 403.
    "nginx": Dialect(
        b"x-original-method", b"x-original-uri", b"x-forwarded-host", b"x-forwarded-proto", range(0)
    ),
    "caddy": _FORWARDED,
    "traefik": _FORWARDED,
    # Takes 5xx for a failure of ours, and then lets the request through or not, as it was told.
    "envoy": Dialect(None, None, b"host", b"x-forwarded-proto", range(300, 500)),
}
"""The dialects by the names under which they are chosen."""

_ABSOLUTE: Final = re.compile(rb"[A-Za-z][A-Za-z0-9+.-]*+://[^/?#]*+")
_SCHEMES: Final = {b"http": "http", b"https": "https", b"ws": "http", b"wss": "https"}


def readings(
    dialect: Dialect, scope: Mapping[str, Any], client: str
) -> tuple[dict[str, Any], Sequence[str]]:
    """The scope of the request that a question is about, and the paths that it may be taken for.

    ``client`` is the field that tells the client, which is read elsewhere and only has to be there.
    The first path is the scope's own; a second one is what servers see that end a path at ``#``.

    Raises Unsaid or TooLong, in one sentence.
    """
    said: dict[bytes, list[bytes]] = {}
    asked = {*dialect[:4], client.encode()}
    headers = []
    for field in scope["headers"]:
        name = field[0]
        if name in asked:
            said.setdefault(name, []).append(field[1])
        if name not in (b"host", b"x-forwarded-host"):
            headers.append(field)
    if client.encode() not in said:
        raise Unsaid(f"there is no {client}, so the client is unknown")
    headers.append((b"host", _only(said, dialect.host)))
    method = scope.get("method", "GET")
    if dialect.method is not None:
        method = _only(said, dialect.method).decode("latin-1")
    paths: Sequence[str] = (route_path(scope),)
    if dialect.uri is None:
        raw, query = scope.get("raw_path", b""), scope["query_string"]
    else:
        paths, raw, query = _target(_only(said, dialect.uri))
    if method == "CONNECT" and paths[0].startswith("/"):
        method = "GET"  # RFC 8441: a WebSocket through HTTP/2 or 3, which applications see as a GET
    schemes = said.get(dialect.scheme, [])
    if len(schemes) > 1:
        raise Unsaid(f"{dialect.scheme.decode()} is there twice")
    request = {
        **scope,
        "type": "http",
        "method": method,
        "path": paths[0],
        "raw_path": raw,
        "query_string": query,
        "root_path": "",
        "headers": headers,
        "path_params": {},
        "scheme": _SCHEMES.get(schemes[0].lower() if schemes else b"", scope.get("scheme", "http")),
    }
    # Of the application that this is mounted in: of its own requests, and none of a proxy's.
    for name in ("ratelimit", "ratelimit.route", "endpoint", "route"):
        request.pop(name, None)
    return request, paths


def _only(said: Mapping[bytes, Sequence[bytes]], name: bytes) -> bytes:
    """The value of a field that is there once."""
    values = said.get(name, ())
    if len(values) != 1:
        raise Unsaid(f"{name.decode()} is there {'twice' if values else 'not at all'}")
    return values[0]


def _target(uri: bytes) -> tuple[Sequence[str], bytes, bytes]:
    """The decoded paths, the path as sent and the query of a request's target (RFC 9112, 3.2)."""
    if len(uri) > LONGEST_URI:
        raise TooLong(f"the URI has {len(uri)} bytes; {LONGEST_URI} are read")
    raw, _, query = uri.partition(b"?")
    if raw[:1] != b"/":
        absolute = _ABSOLUTE.match(raw)
        if absolute is not None:
            raw = raw[absolute.end() :]
        raw = raw or b"/"
    paths: tuple[str, ...] = (_decoded(raw),)
    if b"#" in raw:  # which no client may send, and some servers read to the end all the same
        paths = (*paths, _decoded(raw.partition(b"#")[0] or b"/"))
        query = b""
    return paths, raw, query.partition(b"#")[0]


def _decoded(path: bytes) -> str:
    """A path as servers decode it."""
    if b"%" in path:
        path = unquote_to_bytes(path)
    return path.decode("utf-8", "replace")
