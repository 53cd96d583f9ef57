"""Formats of one line of text for each request: those of nginx and Apache, and what they write.

A format becomes one regex. Every quantifier in it is possessive, so that no line takes more than
time in proportion to its length.
"""

import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final, NamedTuple

from ratelimit.insight.replay.entries import TIMES, Entry, Time
from ratelimit.words import shown

__all__ = ["LineFormat", "of_apache", "of_nginx"]

NGINX: Final = {
    "remote_addr": "client",
    "remote_user": "user",
    "time_local": "time",
    "time_iso8601": "time:iso",
    "msec": "time:epoch",
    "request": "request",
    "request_method": "method",
    "request_uri": "target",
    "uri": "path",
    "document_uri": "path",
    "args": "args",
    "query_string": "args",
    "status": "status",
    "host": "host",
    "http_host": "host",
}
"""Variables of nginx, by the fields of a request that they tell."""

APACHE: Final = {
    "h": "client", "a": "client", "u": "user", "t": "time", "r": "request", "m": "method",
    "U": "path", "q": "query", "s": "status", "v": "host", "V": "host",
}  # fmt: skip
"""Directives of Apache, likewise."""

_QUOTED: Final = r'[^"\\]*+(?:\\.[^"\\]*+)*+'
_DATE: Final = r"\d\d/\w{3}/\d{4}:\d\d:\d\d:\d\d(?:\.\d++)?(?: [+-]\d{4})?"
_SHAPES: Final = {
    "time": _DATE,
    "time:iso": r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d++)?(?:Z|[+-]\d\d:?\d\d)?",
    "time:epoch": r"\d++(?:\.\d++)?",
    "time:ms": r"\d++",
    "time:us": r"\d++",
    "status": r"\d{3}|-",
    "method": r"[A-Za-z_-]++",
    "query": r"(?:\?[^ \"\\]*+)?",
}
_LAST: Final = re.compile(r"[ \t\r]*+")


class Part(NamedTuple):
    """A part of a format: text that stands in each line, or a field of the request."""

    text: str = ""
    field: str = ""
    """Its name; "-" for what is of no use here."""


class LineFormat:
    """A format that was put together of parts.

    Raises ValueError, in one sentence, where it tells no time, client or request.
    """

    def __init__(
        self, name: str, parts: list[Part], own_times: dict[str, Time] | None = None
    ) -> None:
        self.name = name
        parts = _joined(parts)
        self._names = [
            part.field for part in parts if part.field not in ("", "-")
        ]  # one for each group
        self.fields = frozenset(self._names)
        times = {**TIMES, **(own_times or {})}
        time = next((each for each in self._names if each in times), None)
        lacks = [
            *(["a time"] if time is None else []),
            *(["a client's address"] if "client" not in self.fields else []),
            *(
                ["a request"]
                if not self.fields & {"request", "target", "path"}
                or not self.fields & {"request", "method"}
                else []
            ),
        ]
        if lacks or time is None:
            raise ValueError(f"the format does not tell {' and '.join(lacks)}")
        self._when = times[time]
        whole = _regex(parts, request=r"[^ \"\\]++ [^ \"\\]++(?: HTTP/[\d.]++)?")
        self._fast = re.compile(whole, re.ASCII | re.DOTALL).fullmatch
        self._slow = re.compile(_regex(parts, request=_QUOTED), re.ASCII | re.DOTALL).fullmatch
        self._time = self._names.index(time)
        self._client = self._names.index("client")
        self._status = self._place("status")
        self._request = self._place("request")
        self._last_text, self._last_us = "", 0

    def _place(self, name: str) -> int:
        return self._names.index(name) if name in self._names else -1

    def parse(self, lines: list[str], told: Callable[[str, str], None]) -> list[Entry]:
        """The requests in lines, in order; of other lines ``told`` hears the fault and the line."""
        match, when = self._fast, self._when
        time, client, request, status = self._time, self._client, self._request, self._status
        last, at_us = self._last_text, self._last_us
        found: list[Entry] = []
        add = found.append
        for line in lines:
            matched = match(line)
            if matched is None or request < 0:
                entry = self._slowly(line, told)
                if entry is not None:
                    add(entry)
                continue
            groups = matched.groups()
            text = groups[time]
            if text != last:
                try:
                    at_us = when(text)
                except (ValueError, OverflowError):
                    told("unreadable time", line)
                    continue
                last = text
            method, _, target = groups[request].partition(" ")
            target = target[:-9] if target[-9:-3] == " HTTP/" else target.partition(" ")[0]
            add(
                (at_us, groups[client], method, target, groups[status] if status >= 0 else "",
                 groups, self)
            )  # fmt: skip
        self._last_text, self._last_us = last, at_us
        return found

    def _slowly(self, line: str, told: Callable[[str, str], None]) -> Entry | None:
        """The request in a line that is not as most are."""
        line = line.rstrip("\r\n \t")
        matched = self._slow(line)
        if matched is None:
            told("another format" if line else "empty", line)
            return None
        groups = matched.groups()
        try:
            at_us = self._when(groups[self._time])
        except (ValueError, OverflowError):
            told("unreadable time", line)
            return None
        values = {name: _plain(value) for name, value in zip(self._names, groups, strict=True)}
        if self._request >= 0:
            method, _, target = values["request"].partition(" ")
            head, space, protocol = target.rpartition(" ")
            if space and protocol.startswith("HTTP/"):
                target = head
        else:
            method = values["method"]
            target = values.get("target") or values["path"] + values.get("query", "")
            args = values.get("args", "")
            if "target" not in values and args not in ("", "-"):
                target += f"?{args}"
        if not _METHOD.fullmatch(method) or not target:
            told("not a request", line)
            return None
        client, status = groups[self._client] or "", values.get("status", "")
        return at_us, client, method, target, status, groups, self

    def more(self, entry: Entry) -> dict[str, str]:
        """The values of a request's fields that are not in the entry itself."""
        return {
            name: _plain(value)
            for name, value in zip(self._names, entry[5], strict=True)
            if value not in (None, "-")
        }


_METHOD: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,32}")
_ESCAPE: Final = re.compile(r"\\(?:x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|(.))", re.DOTALL)
_LETTERS: Final = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "v": "\v"}


def _plain(text: str | None) -> str:
    """A value without the escapes of nginx, Apache and JSON."""
    if not text or "\\" not in text:
        return text or ""

    def one(found: re.Match[str]) -> str:
        if found[1] or found[2]:
            return chr(int(found[1] or found[2], 16))
        return _LETTERS.get(found[3], found[3])

    return _ESCAPE.sub(one, text)


def _joined(parts: list[Part]) -> list[Part]:
    """Parts without two pieces of text side by side; refuses two fields that nothing separates."""
    joined: list[Part] = []
    for part in parts:
        if not part.field and joined and not joined[-1].field:
            joined[-1] = Part(joined[-1].text + part.text)
        elif part.field or part.text:
            if (
                part.field
                and joined
                and joined[-1].field
                and part.field != "query"
                and joined[-1].field not in _SHAPES
            ):
                raise ValueError(
                    "two fields of the format stand side by side, with nothing between"
                )
            joined.append(part)
    return joined


def _regex(parts: list[Part], request: str) -> str:
    """The regex of a line, with one group for each field that is of use."""
    written = []
    for place, (text, field) in enumerate(parts):
        if not field:
            written.append(re.escape(text))
            continue
        behind = parts[place + 1].text if place + 1 < len(parts) else ""
        after = behind[:1]
        if field == "request":
            shape = request
        elif field.startswith("time:") and field not in _SHAPES:
            shape = "[^ ]*+" + "(?: [^ ]*+)" * field.count(" ")
            shape = shape.replace(" ", re.escape(after)) if after and " " not in field else shape
        elif field in _SHAPES:
            shape = _SHAPES[field]
        elif after == '"':
            shape = _QUOTED
        elif field == "client" and after == ":":  # before a port, and IPv6 has colons itself
            shape = r"[0-9A-Fa-f.:\[\]]{1,64}"
        elif len(behind) > 1 and after != "[":  # a user's name may hold spaces
            shape = f"(?:[^{re.escape(after)}]++|{re.escape(after)}(?!{re.escape(behind[1:9])}))*+"
        elif after == " ":
            shape = r"[^ ]*+(?:, [^ ]*+)*+" if field != "client" else "[^ ]*+"
        elif after:
            shape = f"[^{re.escape(after)}]*+"
        elif field == "path":
            shape = r"[^ ?\"\\]*+"
        else:
            shape = ".*+"
        written.append(f"(?:{shape})" if field == "-" else f"({shape})")
    return "".join(written)


_DIRECTIVE: Final = re.compile(r"^\s*log_format\s+\S+\s+(?:escape=\w+\s+)?", re.ASCII)
_PIECES: Final = re.compile(r"'((?:[^'\\]|\\.)*)'|\"((?:[^\"\\]|\\.)*)\"", re.DOTALL)
_VARIABLE: Final = re.compile(r"\$(?:\{(\w+)\}|(\w+))", re.ASCII)


def of_nginx(given: str, name: str = "own") -> LineFormat:
    """The format of an nginx ``log_format``: the whole directive, or its text alone."""
    head = _DIRECTIVE.match(given)
    text = given
    if head:
        rest = given[head.end() :].rstrip().removesuffix(";")
        pieces = _PIECES.findall(rest)
        text = "".join(one or two for one, two in pieces) if pieces else rest
        text = text.replace("\\'", "'").replace('\\"', '"')
    parts: list[Part] = []
    end = 0
    for found in _VARIABLE.finditer(text):
        parts.append(Part(text[end : found.start()]))
        parts.append(Part(field=_of_variable(found[1] or found[2])))
        end = found.end()
    return LineFormat(name, [*parts, Part(text[end:])])


def _of_variable(name: str) -> str:
    if name in NGINX:
        return NGINX[name]
    if name.startswith("http_"):
        return "header:" + name.removeprefix("http_").replace("_", "-")
    if name.startswith("cookie_"):
        return "cookie:" + name.removeprefix("cookie_")
    return "-"


_LOG_FORMAT: Final = re.compile(r"^\s*LogFormat\s+\"((?:[^\"\\]|\\.)*)\"\s*\S*\s*$", re.DOTALL)
_PERCENT: Final = re.compile(r"%(?:%|[!<>,\d]*(?:\{([^}]*)\})?(\^?[A-Za-z]{1,2}?))")


def of_apache(given: str, name: str = "own") -> LineFormat:
    """The format of an Apache ``LogFormat``: the whole directive, or its text alone."""
    whole = _LOG_FORMAT.match(given)
    text = whole[1] if whole else given
    text = text.replace('\\"', '"').replace("\\t", "\t").replace("\\\\", "\\")
    parts: list[Part] = []
    own: dict[str, Time] = {}
    end = 0
    for found in _PERCENT.finditer(text):
        parts.append(Part(text[end : found.start()]))
        end = found.end()
        if found[0] == "%%":
            parts.append(Part("%"))
            continue
        argument, letter = found[1], found[2]
        if letter == "t" and argument is None:
            parts += Part("["), Part(field="time"), Part("]")
            continue
        parts.append(Part(field=_of_directive(letter, argument, own)))
    return LineFormat(name, [*parts, Part(text[end:])], own)


def _of_directive(  # noqa: PLR0911  # a directive each
    letter: str, argument: str | None, own: dict[str, Time]
) -> str:
    if letter == "i" and argument:
        return "host" if argument.lower() == "host" else f"header:{argument.lower()}"
    if letter == "C" and argument:
        return f"cookie:{argument}"
    if letter == "a" and argument == "c":
        return "-"  # the peer of a connection, where %a is what mod_remoteip took for the client
    if letter == "t" and argument is not None:
        argument = argument.removeprefix("begin:").removeprefix("end:")
        known = {"sec": "time:epoch", "msec": "time:ms", "usec": "time:us"}
        if argument in known:
            return known[argument]
        if argument.endswith("_frac"):
            return "-"
        own[f"time:{argument}"] = _strptime(argument)
        return f"time:{argument}"
    return APACHE.get(letter, "-") if argument is None else "-"


def _strptime(pattern: str) -> Time:
    pattern = pattern.replace("%T", "%H:%M:%S").replace("%F", "%Y-%m-%d").replace("%D", "%m/%d/%y")
    if not pattern.isascii() or len(pattern) > 100:
        raise ValueError(f"{shown(pattern)} is not a format of a time")

    def read(text: str) -> int:
        at = datetime.strptime(text.strip("[]"), pattern)  # noqa: DTZ007  # below, where it has none
        at = at if at.tzinfo else at.replace(tzinfo=UTC)
        return TIMES["time:iso"](at.isoformat())

    return read
