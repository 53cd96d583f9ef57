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

__all__ = ["DIALECTS", "ROOT", "Dialect", "Reader", "TooLong", "Unsaid", "target"]

LONGEST_URI: Final = 65_536
"""Bytes of a request's URI that are read; nginx takes 8 KiB of one unless told, Envoy 60."""


ROOT: Final = "/envoy:"
"""The start of the paths of descriptors, for which `rls` has rules: no request's path has it."""


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
_HOSTS: Final = frozenset([b"host", b"x-forwarded-host"])
_MOUNTED: Final = frozenset(["ratelimit", "ratelimit.route", "endpoint", "route", "path_params"])
"""Keys of a scope by which an application that this is mounted in tells of its own requests."""
_SCHEMES: Final = {b"http": "http", b"https": "https", b"ws": "http", b"wss": "https"}


class Reader:
    """Reads questions in one dialect; ``client`` is the field that tells the client.

    That is walked elsewhere, and has only to be there. The host has to be there where rules ask
    for it (``by_host``); a request of which it is not said has none.
    """

    def __init__(self, dialect: Dialect, client: str, *, by_host: bool) -> None:
        self._method, self._uri, self._host, self._scheme, _ = dialect
        self._client = client.encode()
        self._by_host = by_host
        self._once = {name for name in dialect[:4] if name is not None}

    def __call__(self, scope: Mapping[str, Any]) -> tuple[dict[str, Any], Sequence[str]]:
        """The scope of the request that a question is about, and the paths it may be taken for.

        The first path is the scope's own; a second one is what servers see that end a path at
        ``#``. Raises Unsaid or TooLong, in one sentence.
        """
        fields = scope["headers"]
        said: dict[bytes, bytes] = dict(fields)
        if len(said) != len(fields):
            self._hold_once(fields)
        if self._client not in said:
            raise Unsaid(f"there is no {self._client.decode()}, so the client is unknown")
        try:
            host = said[self._host] if self._by_host else said.get(self._host)
            if self._method is None or self._uri is None:
                method = scope.get("method", "GET")
                paths: Sequence[str] = (_as_request(route_path(scope)),)
                raw, query = scope.get("raw_path", b""), scope["query_string"]
            else:
                method = said[self._method].decode("latin-1")
                paths, raw, query = target(said[self._uri])
        except KeyError as missing:
            raise Unsaid(f"there is no {missing.args[0].decode()}") from None
        if method == "CONNECT" and paths[0].startswith("/"):
            method = "GET"  # RFC 8441: a WebSocket through HTTP/2, a GET to applications
        headers = [field for field in fields if field[0] not in _HOSTS]
        if host is not None:
            headers.append((b"host", host))
        request = dict(scope)  # one by one, since to add them at once takes twice as long
        request["type"] = "http"
        request["method"] = method
        request["path"] = paths[0]
        request["raw_path"] = raw
        request["query_string"] = query
        request["root_path"] = ""
        request["headers"] = headers
        scheme = said.get(self._scheme)
        if scheme is not None:
            request["scheme"] = _SCHEMES.get(scheme.lower()) or scope["scheme"]
        if not scope.keys().isdisjoint(_MOUNTED):
            for name in _MOUNTED:
                request.pop(name, None)
        return request, paths

    def _hold_once(self, fields: Sequence[tuple[bytes, bytes]]) -> None:
        """Raises Unsaid where a field that is believed is there twice."""
        found = [name for name, _ in fields if name in self._once]
        for name in found:
            if found.count(name) > 1:
                raise Unsaid(f"{name.decode()} is there twice")


def target(uri: bytes) -> tuple[Sequence[str], bytes, bytes]:
    """The decoded paths, the path as sent and the query of a request's target (RFC 9112, 3.2)."""
    if len(uri) > LONGEST_URI:
        raise TooLong(f"the URI has {len(uri)} bytes; {LONGEST_URI} are read")
    raw, _, query = uri.partition(b"?")
    if raw[:1] == b"/" and b"#" not in uri and b"%" not in raw:  # as most are: without a call
        path = raw.decode() if raw.isascii() else raw.decode("utf-8", "replace")
        return (path if "envoy:" not in path else _as_request(path),), raw, query
    if raw[:1] != b"/":
        absolute = _ABSOLUTE.match(raw)
        if absolute is not None:
            raw = raw[absolute.end() :]
        raw = raw or b"/"
    if b"#" not in uri:
        return (_decoded(raw),), raw, query
    # No client may send it, and some servers read a path to its end all the same.
    before = raw.partition(b"#")[0]
    if before == raw:
        return (_decoded(raw),), raw, query.partition(b"#")[0]
    return (_decoded(raw), _decoded(before or b"/")), raw, b""


def _decoded(path: bytes) -> str:
    """A path as servers decode it."""
    if b"%" in path:
        path = unquote_to_bytes(path)
    return _as_request(path.decode("utf-8", "replace"))


def _as_request(path: str) -> str:
    """A request's path, which is not a descriptor's, however a server would read it."""
    if "envoy:" not in path:
        return path
    return re.sub(r"([/\\])envoy:", r"\1envoy=3A", path)
