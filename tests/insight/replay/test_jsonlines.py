"""JSON lines: Caddy's, Cloudflare's, and others by a map of fields."""

import json
from typing import Any

import pytest

from ratelimit.insight.replay.asking import scope_of
from ratelimit.insight.replay.detection import detected, format_of
from ratelimit.insight.replay.entries import Entry
from ratelimit.insight.replay.jsonlines import JsonFormat
from tests.insight.replay.logs import START_US

CADDY = {
    "level": "info", "ts": START_US / 1e6 + 0.25, "logger": "http.log.access",
    "request": {"remote_ip": "192.0.2.7", "remote_port": "5", "method": "GET", "host": "h.example",
                "uri": "/a?b=1", "headers": {"X-Api-Key": ["k1", "k2"]}},
    "status": 200, "user_id": "ann",
}  # fmt: skip
CLOUDFLARE = {
    "ClientIP": "192.0.2.7", "ClientRequestMethod": "GET", "ClientRequestURI": "/a?b=1",
    "ClientRequestHost": "h.example", "EdgeStartTimestamp": "2023-11-19T00:00:00.25Z",
    "EdgeResponseStatus": 200, "ClientRequestUserAgent": "curl/8",
}  # fmt: skip
OTHER = {
    "@timestamp": "2023-11-19T00:00:00.25", "client": {"ip": "192.0.2.7"},
    "http": {"request": {"method": "GET"}}, "url.path": "/a", "url": {"query": "b=1"},
}  # fmt: skip


def read(format_: JsonFormat, record: Any) -> tuple[list[Entry], list[str]]:
    """The requests in a record, and its fault."""
    faults: list[str] = []
    line = record if isinstance(record, str) else json.dumps(record)
    return format_.parse([line], lambda fault, _: faults.append(fault)), faults


@pytest.mark.parametrize(
    ("name", "record"), [("caddy", CADDY), ("cloudflare", CLOUDFLARE), ("json", OTHER)]
)
def test_a_known_format_of_json_is_told_and_read(name: str, record: Any) -> None:
    found = detected([json.dumps(record)] * 2)
    assert isinstance(found, JsonFormat)
    assert found.name == name
    entries, faults = read(found, record)
    assert faults == []
    assert entries[0][:3] == (START_US + 250_000, "192.0.2.7", "GET")
    assert scope_of(entries[0])["path"] == "/a"
    assert scope_of(entries[0])["query_string"] == b"b=1"


def test_caddy_tells_headers_host_and_user() -> None:
    scope = scope_of(read(JsonFormat("caddy"), CADDY)[0][0])
    assert (b"x-api-key", b"k1") in scope["headers"]
    assert (b"host", b"h.example") in scope["headers"]
    assert scope["user"] == "ann"


def test_a_map_says_where_fields_stand() -> None:
    format_ = format_of(
        "auto", {"client": "who.ip", "target": "what", "time": "when", "header:X-Key": "key"}
    )
    assert isinstance(format_, JsonFormat)
    record = {
        "who": {"ip": "::1"},
        "what": "/x",
        "method": "PUT",
        "when": 1700352000250,
        "key": "k",
    }
    entries, _ = read(format_, record)
    assert entries[0][:4] == (START_US + 250_000, "::1", "PUT", "/x")
    assert scope_of(entries[0])["headers"] == [(b"x-key", b"k")]


@pytest.mark.parametrize(
    ("number", "us"),
    [
        (1700352000, 0), (1700352000.25, 250_000), ("1700352000.25", 250_000),
        (1700352000250, 250_000), (1700352000250000, 250_000), (1700352000250000000, 250_000),
        ("2023-11-19T01:00:00.250+01:00", 250_000), ("19/Nov/2023:00:00:00 +0000", 0),
        ("2023-11-19T00:00:00.250123456Z", 250_123),
    ],
)  # fmt: skip
def test_a_time_is_read_by_its_form_and_size(number: Any, us: int) -> None:
    record = {"time": number, "client": "::1", "request": "GET / HTTP/1.1"}
    assert read(JsonFormat("json"), record)[0][0][0] == START_US + us


@pytest.mark.parametrize(
    ("record", "fault"),
    [
        ("{", "another format"),
        ("[" * 60_000, "another format"),
        ([1], "another format"),
        ({"client": "::1", "request": "GET /"}, "no time"),
        ({"time": True, "request": "GET /"}, "unreadable time"),
        ({"time": 1e300, "request": "GET /"}, "unreadable time"),
        ('{"time": NaN, "request": "GET /"}', "unreadable time"),
        ({"time": "yesterday", "request": "GET /"}, "unreadable time"),
        ({"time": [1], "request": "GET /"}, "no time"),
        ({"time": 10**30, "request": "GET /"}, "unreadable time"),
        ('{"time": ' + "9" * 5_000 + "}", "another format"),
        ({"time": 1, "request": {"method": 7}}, "not a request"),
        ({"time": 1, "method": None, "path": []}, "not a request"),
    ],
)
def test_a_record_that_is_not_a_request_is_told_with_its_fault(record: Any, fault: str) -> None:
    assert read(JsonFormat("json"), record) == ([], [fault])


@pytest.mark.parametrize(
    ("given", "keys", "sentence"),
    [
        ("json", {"cleint": "ip"}, "did you mean client"),
        ("combined", {"client": "ip"}, "goes with a format of JSON lines"),
    ],
)
def test_a_map_with_a_mistake_is_refused(given: str, keys: dict[str, str], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        format_of(given, keys)
