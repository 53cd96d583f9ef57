"""Formats of lines: presets, and those that nginx and Apache are configured with."""

import time

import pytest

from ratelimit.insight.replay.asking import scope_of
from ratelimit.insight.replay.detection import detected, format_of
from ratelimit.insight.replay.entries import Entry, Format
from tests.insight.replay.logs import START_US

AT = "19/Nov/2023:00:00:00 +0000"
US = START_US


def read(given: str | Format, *lines: str) -> tuple[list[Entry], list[str]]:
    """The requests in lines, and the faults of the others."""
    format_ = format_of(given, {}) if isinstance(given, str) else given
    assert format_ is not None
    faults: list[str] = []
    return format_.parse(list(lines), lambda fault, _: faults.append(fault)), faults


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ("combined", f'192.0.2.7 - ann [{AT}] "GET /a?b=1 HTTP/1.1" 404 12 "-" "curl/8"'),
        ("common", f'192.0.2.7 - ann [{AT}] "GET /a?b=1 HTTP/1.1" 404 12'),
        ("vhost", f'h.example:443 192.0.2.7 - ann [{AT}] "GET /a?b=1 HTTP/1.1" 404 12 "-" "x"'),
        (
            "uvicorn",
            '2023-11-19 00:00:00,000 INFO: 192.0.2.7:5000 - "GET /a?b=1 HTTP/1.1" 404 Not Found',
        ),
        (
            "alb",
            (
                "https 2023-11-19T00:00:00.000000Z app/lb/1 192.0.2.7:5000 10.0.0.1:80 0.1 0.2 0.0 "
                '404 404 1 2 "GET https://h.example:443/a?b=1 HTTP/1.1" "curl/8" ECDHE TLS arn "t"'
            ),
        ),
        (
            (
                "log_format main '$remote_addr - $remote_user [$time_local] \"$request\" '\n"
                "                '$status $body_bytes_sent \"$http_referer\" $request_time';"
            ),
            f'192.0.2.7 - ann [{AT}] "GET /a?b=1 HTTP/1.1" 404 12 "-" 0.005',
        ),
        (
            "$time_iso8601|$remote_addr|$request_method|$request_uri|$status",
            "2023-11-19T01:00:00+01:00|192.0.2.7|GET|/a?b=1|404",
        ),
        (
            '{"t":"$msec","c":"$remote_addr","r":"$request","s":$status}',
            '{"t":"1700352000.000","c":"192.0.2.7","r":"GET /a?b=1 HTTP/1.1","s":404}',
        ),
        (
            'LogFormat "%h %l %u %t \\"%r\\" %>s %b \\"%{Referer}i\\" %D" timed',
            f'192.0.2.7 - ann [{AT}] "GET /a?b=1 HTTP/1.1" 404 12 "-" 1200',
        ),
        ('%a %{usec}t "%m %U%q" %s', f'192.0.2.7 {US} "GET /a?b=1" 404'),
        ('%a %{%Y-%m-%d %T}t "%r" %s', '192.0.2.7 2023-11-19 00:00:00 "GET /a?b=1 HTTP/2.0" 404'),
    ],
)
def test_a_line_of_a_known_or_given_format_is_read(given: str, line: str) -> None:
    for each in (line, f"{line}\r"):
        entries, faults = read(given, each)
        assert faults == []
        assert entries[0][:2] == (US, "192.0.2.7")
        assert entries[0][2] == "GET"
        assert scope_of(entries[0])["path"] == "/a"
        assert scope_of(entries[0])["query_string"] == b"b=1"
        assert entries[0][4] == "404"


@pytest.mark.parametrize("name", ["combined", "common", "vhost", "alb", "uvicorn"])
def test_the_first_lines_tell_the_format(name: str) -> None:
    line = {
        "combined": f'::1 - - [{AT}] "GET / HTTP/1.1" 200 1 "-" "x"',
        "common": f'::1 - - [{AT}] "GET / HTTP/1.1" 200 1',
        "vhost": f'h:80 ::1 - - [{AT}] "GET / HTTP/1.1" 200 1 "-" "x"',
        "alb": 'http 2023-11-19T00:00:00.1Z lb 192.0.2.7:5 - 1 1 1 200 - 1 2 "GET http://h/ '
        'HTTP/1.1" "x" - - a b',
        "uvicorn": '2023-11-19T00:00:00Z host uvicorn[5]: INFO: ::1:5000 - "GET / HTTP/1.1" 200 OK',
    }[name]
    found = detected(["a line of something else", line, line])
    assert found is not None
    assert found.name == name
    entries, _ = read(found, line)
    assert len(entries) == 1
    assert entries[0][1] in ("::1", "192.0.2.7")


def test_headers_that_are_logged_are_there_to_count_by() -> None:
    given = '$remote_addr $msec "$request" "$http_x_api_key" "$http_x_forwarded_for" $cookie_sid'
    line = r'10.0.0.1 1700352000.1 "GET / HTTP/1.1" "k\x22\x5C1" "192.0.2.7, 10.0.0.2" s1'
    entries, _ = read(given, line)
    headers = dict(scope_of(entries[0])["headers"])
    assert headers[b"x-api-key"] == b'k"\\1'
    assert headers[b"x-forwarded-for"] == b"192.0.2.7, 10.0.0.2"
    assert headers[b"cookie"] == b"sid=s1"
    assert entries[0][0] == US + 100_000


def test_a_field_that_is_not_there_is_missing_and_not_a_dash() -> None:
    entries, _ = read("combined", f'192.0.2.7 - - [{AT}] "GET / HTTP/1.1" 200 1 "-" "-"')
    scope = scope_of(entries[0])
    assert scope["headers"] == []
    assert "user" not in scope


def test_a_user_with_spaces_in_the_name_is_one_field() -> None:
    entries, _ = read("combined", f'::1 - ann b c [{AT}] "GET / HTTP/1.1" 200 1 "-" "-"')
    assert scope_of(entries[0])["user"] == "ann b c"


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("", "empty"),
        ("hello", "another format"),
        (f'::1 - - [{AT}] "-" 400 0 "-" "-"', "not a request"),
        (f'::1 - - [{AT}] "\\x16\\x03\\x01" 400 0 "-" "-"', "not a request"),
        ('::1 - - [99/Nov/2023:00:00:00 +0000] "GET / HTTP/1.1" 1 1 "-" "-"', "another format"),
        ('::1 - - [31/Feb/2023:00:00:00 +0000] "GET / HTTP/1.1" 200 1 "-" "-"', "unreadable time"),
        ('::1 - - [01/Foo/2023:00:00:00 +0000] "GET / HTTP/1.1" 200 1 "-" "-"', "unreadable time"),
    ],
)
def test_a_line_that_is_not_a_request_is_told_with_its_fault(line: str, fault: str) -> None:
    assert read("combined", line) == ([], [fault])


def test_uvicorns_own_lines_are_told_to_have_no_time() -> None:
    assert read("uvicorn", 'INFO:     ::1:5 - "GET / HTTP/1.1" 200 OK') == ([], ["no time"])


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("http://h.example/a/b?c", "/a/b"),
        ("HTTPS://h.example", "/"),
        ("/a%2Fb%20c", "/a/b c"),
        ("//a", "//a"),
        ("*", "*"),
    ],
)
def test_a_target_is_the_path_that_an_application_sees(target: str, path: str) -> None:
    line = f'::1 - - [{AT}] "GET {target} HTTP/1.1" 200 1 "-" "-"'
    assert scope_of(read("combined", line)[0][0])["path"] == path


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("$remote_addr $request", "the format does not tell a time"),
        ("%t %r", "the format does not tell a client's address"),
        ("$remote_addr $msec", "the format does not tell a request"),
        ("$remote_addr$remote_user $msec $request", "two fields of the format stand side by side"),
        ("combine", "did you mean combined"),
    ],
)
def test_a_format_that_cannot_be_replayed_is_refused(given: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        format_of(given, {})


def test_a_hostile_line_takes_time_in_proportion_to_its_length() -> None:
    def seconds(length: int) -> float:
        lines = [
            "a " * length, '"' * length, "\\" * length, f"::1 - {'a [' * length}",
            f'::1 - - [{AT}] "{"a " * length}',
        ]  # fmt: skip
        start = time.process_time()
        for line in lines:
            read("combined", line)
        return time.process_time() - start

    seconds(1_000)
    assert seconds(20_000) < 40 * seconds(2_000) + 0.2
