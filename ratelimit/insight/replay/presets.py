"""Formats of lines that are known by name."""

import re
from collections.abc import Callable
from typing import Final

from ratelimit.insight.replay.entries import TIMES, Entry
from ratelimit.insight.replay.lines import LineFormat, of_apache, of_nginx
from ratelimit.words import near, shown

__all__ = ["PRESETS", "Uvicorn", "of_text"]


class Uvicorn:
    """Lines of uvicorn's access log, behind a time that the formatter or the journal has put there.

    ``2026-11-27 11:00:00,123 INFO: 192.0.2.7:5000 - "GET / HTTP/1.1" 200 OK``; uvicorn's own format
    has no time.
    """

    name = "uvicorn"
    fields = frozenset({"client", "time:iso", "request", "status"})
    _LINE: Final = re.compile(
        r"\[?(\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d++)?(?:Z| ?[+-]\d\d:?\d\d)?)?"
        r"([^\"]*+)\"([A-Z]++) ([^ \"]++) HTTP/[\d.]++\" (\d{3}).*+",
        re.ASCII | re.DOTALL,
    )
    _PEER: Final = re.compile(r"(?:^|[ \t])([0-9A-Fa-f:.]++|\[[0-9A-Fa-f:.]++\]):\d++ - $")

    def parse(self, lines: list[str], told: Callable[[str, str], None]) -> list[Entry]:
        """The requests in lines, in order; of other lines ``told`` hears the fault and the line."""
        found: list[Entry] = []
        for line in lines:
            matched = self._LINE.match(line)
            if matched is None:
                told("another format" if line.strip(" \t\r") else "empty", line)
                continue
            time, before, method, target, status = matched.groups()
            if time is None:
                told("no time", line)
                continue
            try:
                at_us = TIMES["time:iso"](time.replace(" +", "+").replace(" -", "-"))
            except ValueError:
                told("unreadable time", line)
                continue
            client = _peer(before)
            found.append((at_us, client, method, target, status, None, self))
        return found

    def more(self, entry: Entry) -> dict[str, str]:  # noqa: ARG002  # as other formats have it
        """Nothing: all that it tells is in the entry."""
        return {}


def _peer(before: str) -> str:
    """The address of ``... 192.0.2.7:5000 - ``, in which IPv6 has no brackets."""
    text = before.rstrip().removesuffix("-").rstrip().rpartition(" ")[2]
    return text.rpartition(":")[0].strip("[]")


_COMBINED: Final = (
    '$remote_addr - $remote_user [$time_local] "$request" $status $body_bytes_sent '
    '"$http_referer" "$http_user_agent"'
)
_ALB: Final = (
    "$type $time_iso8601 $elb ${remote_addr}:$port $target $t1 $t2 $t3 $status $target_status "
    '$received $sent "$request" "$http_user_agent" $rest'
)


def _common(start: str = "") -> LineFormat:
    return of_apache(start + '%h %l %u %t "%r" %>s %b', "vhost-common" if start else "common")


PRESETS: Final[dict[str, Callable[[], "LineFormat | Uvicorn"]]] = {
    "combined": lambda: of_nginx(_COMBINED.replace(" - ", " $ident "), "combined"),
    "common": _common,
    "vhost": lambda: of_apache(
        '%v:%p %h %l %u %t "%r" %>s %O "%{Referer}i" "%{User-Agent}i"', "vhost"
    ),
    "alb": lambda: of_nginx(_ALB, "alb"),
    "uvicorn": Uvicorn,
}
"""Known formats of lines, by name."""


def of_text(given: str) -> "LineFormat | Uvicorn":
    """The format that a user names or spells out. Raises ValueError in one sentence."""
    if given in PRESETS:
        return PRESETS[given]()
    if "$" in given:
        return of_nginx(given)
    if "%" in given:
        return of_apache(given)
    raise ValueError(
        f"{shown(given)} is not a format{near(given, [*PRESETS, 'json', 'caddy', 'cloudflare'])}; "
        f"give one of {', '.join(PRESETS)}, json, caddy, cloudflare, or a log_format or LogFormat"
    )
