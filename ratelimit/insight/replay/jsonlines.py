"""Formats of one JSON object a request: Caddy's, Cloudflare's, and any by a map of fields."""

import json
from collections.abc import Callable, Mapping
from typing import Any, Final

from ratelimit.insight.replay.entries import LATEST_US, Entry, any_us, epoch_us
from ratelimit.words import near, shown

__all__ = ["FIELDS", "JSON_PRESETS", "JsonFormat"]

FIELDS: Final = (
    "time", "client", "method", "target", "path", "query", "request", "status", "host", "user",
)  # fmt: skip
"""The fields of a request that a map may name, beside ``header:NAME`` and ``cookie:NAME``."""

JSON_PRESETS: Final[dict[str, Mapping[str, tuple[str, ...]]]] = {
    "caddy": {
        "time": ("ts",),
        "client": ("request.remote_ip", "request.remote_addr"),
        "method": ("request.method",),
        "target": ("request.uri",),
        "status": ("status",),
        "host": ("request.host",),
        "user": ("user_id",),
    },
    "cloudflare": {
        "time": ("EdgeStartTimestamp",),
        "client": ("ClientIP",),
        "method": ("ClientRequestMethod",),
        "target": ("ClientRequestURI",),
        "status": ("EdgeResponseStatus",),
        "host": ("ClientRequestHost",),
        "header:user-agent": ("ClientRequestUserAgent",),
        "header:referer": ("ClientRequestReferer",),
    },
    "json": {
        "time": ("time", "timestamp", "@timestamp", "ts", "time_iso8601", "msec", "time_local"),
        "client": ("remote_addr", "client", "client_ip", "clientip", "remote_ip", "ip",
                   "client.address", "client.ip", "source.ip", "http.client_ip"),
        "request": ("request", "request_line"),
        "method": ("request_method", "method", "http.request.method", "http.method", "verb"),
        "target": ("request_uri", "uri", "url", "target", "http.target"),
        "path": ("path", "url.path", "http.path"),
        "query": ("args", "query_string", "query", "url.query"),
        "status": ("status", "status_code", "http.response.status_code", "http.status_code"),
        "host": ("host", "http_host", "server_name", "url.domain"),
        "user": ("remote_user", "user", "user.name"),
        "header:user-agent": ("http_user_agent", "user_agent", "user_agent.original"),
        "header:referer": ("http_referer", "referer"),
        "header:x-forwarded-for": ("http_x_forwarded_for", "x_forwarded_for"),
    },
}  # fmt: skip
"""Known formats: each field, and the keys in which it may stand. A dot goes one object deeper, but
a key that has the dot itself is found as well."""


class JsonFormat:
    """JSON lines, of which ``keys`` says where the fields of a request stand."""

    def __init__(self, name: str, given: Mapping[str, str] | None = None) -> None:
        if name not in JSON_PRESETS:
            raise ValueError(f"{shown(name)} is not a format of JSON{near(name, JSON_PRESETS)}")
        self.name = name
        keys: dict[str, tuple[str, ...]] = dict(JSON_PRESETS[name])
        for field, key in (given or {}).items():
            plain = field.lower() if field.startswith("header:") else field
            if plain.partition(":")[0] not in {*FIELDS, "header", "cookie"} or not key:
                raise ValueError(
                    f"{shown(field)} is not a field of a request{near(field, FIELDS)}; there are "
                    f"{', '.join(FIELDS)}, header:NAME and cookie:NAME"
                )
            keys[plain] = (key,)
        self._keys = {field: [_path(key) for key in some] for field, some in keys.items()}
        self._headers = name == "caddy"
        self.fields = frozenset(keys) | ({"header:user-agent"} if self._headers else frozenset())
        self.given = frozenset(given or {})

    def parse(self, lines: list[str], told: Callable[[str, str], None]) -> list[Entry]:
        """The requests in lines, in order; of other lines ``told`` hears the fault and the line."""
        found: list[Entry] = []
        for line in lines:
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                told("another format" if line.strip(" \t\r") else "empty", line)
                continue
            if not isinstance(record, dict):
                told("another format", line)
                continue
            fault = self._read(record, found)
            if fault:
                told(fault, line)
        return found

    def _read(self, record: dict[str, Any], found: list[Entry]) -> str:
        """Adds the request of a record; or the fault because of which there is none."""
        time = self._value(record, "time")
        if time is None:
            return "no time"
        try:
            at_us = _time(time)
        except (ValueError, OverflowError):
            return "unreadable time"
        method, target = self._text(record, "method"), self._text(record, "target")
        if not target:
            target = self._text(record, "path")
            query = self._text(record, "query").removeprefix("?")
            if query and target:
                target += f"?{query}"
        if not (method and target):
            method, _, target = self._text(record, "request").partition(" ")
            target = target.rpartition(" ")[0] if " HTTP/" in target else target
        if not (method and target):
            return "not a request"
        client = self._text(record, "client")
        if client.count(":") == 1:  # with a port; IPv6 has more colons
            client = client.partition(":")[0]
        status = self._text(record, "status")
        found.append((at_us, client, method, target, status, record, self))
        return ""

    def more(self, entry: Entry) -> dict[str, str]:
        """The values of a request's fields that are not in the entry itself."""
        record = entry[5]
        told = {}
        for field in self._keys:
            if field in {"host", "user"} or ":" in field:
                text = self._text(record, field)
                if text not in ("", "-"):
                    told[field] = text
        if self._headers:
            request = record.get("request")
            headers = request.get("headers") if isinstance(request, dict) else None
            for name, values in headers.items() if isinstance(headers, dict) else ():
                if isinstance(values, list) and values and isinstance(values[0], str):
                    told[f"header:{name.lower()}"] = values[0]
        return told

    def _value(self, record: dict[str, Any], field: str) -> Any:
        for whole, path in self._keys.get(field, ()):
            value = record.get(whole)
            if value is None and path:
                value = record
                for key in path:
                    value = value.get(key) if isinstance(value, dict) else None
            if value is not None and not isinstance(value, dict | list):
                return value
        return None

    def _text(self, record: dict[str, Any], field: str) -> str:
        value = self._value(record, field)
        if isinstance(value, str):
            return value
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else ""


def _path(key: str) -> tuple[str, tuple[str, ...]]:
    return key, tuple(key.split(".")) if "." in key else ()


def _time(value: Any) -> int:
    if isinstance(value, str):
        return any_us(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(value)  # noqa: TRY004  # what stands in a log is a value
    if isinstance(value, int):
        return epoch_us(str(value))
    if not 0 <= value < 10**11:  # of which a float is exact to some microseconds; not a number is
        raise ValueError(value)  # no more than that
    at_us = round(value * 1_000_000)
    if at_us >= LATEST_US:
        raise ValueError(value)
    return at_us
