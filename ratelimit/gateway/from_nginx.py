"""nginx's ``limit_req`` to rules (ngx_http_limit_req_module).

There, requests flow out of a key's bucket at a rate, and ``burst`` may be in it beside the one
that is on its way. So a burst of b is a bucket that holds b + 1: with ``nodelay`` what is in it
passes at once, as by a token bucket; else it waits for its turn, as by a leaking bucket, all but
the first d + 1 with ``delay=d``. nginx counts in thousandths of a request and in milliseconds,
rules exactly.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from ratelimit.gateway.converted import MOST_EXCEPT, Converted
from ratelimit.gateway.nginx_conf import directives
from ratelimit.words import shown

__all__ = ["from_nginx"]

MOST_BYTES: Final = 5_000_000
DEEPEST: Final = 20
MOST_BLOCKS: Final = 2_000
_RATE: Final = re.compile("rate=([1-9][0-9]{0,8})r/([sm])")
_NUMBER: Final = re.compile("(burst|delay)=([0-9]{1,9})")
_VARIABLE: Final = re.compile(r"\$\{?([A-Za-z0-9_]+)\}?")
_OTHERS: Final = ("limit_conn", "limit_conn_zone", "limit_conn_status", "limit_rate", "limit_zone")
_HOST: Final = re.compile(r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*")
_BLOCKS: Final = ("http", "server", "location")
_PATH: Final = re.compile(r"/[A-Za-z0-9_~:@!$'(),;&+./=-]*")


class _Zone(NamedTuple):
    line: int
    quota: int
    unit: str
    by: Sequence[str]
    fields: bool
    """Whether it counts by what a request may lack, and then leaves it alone."""


@dataclass(slots=True, eq=False)
class _Block:
    """A block of a configuration, as far as it says what is limited."""

    kind: str
    words: Sequence[str]
    line: int
    above: "_Block | None" = None
    limits: list[tuple[int, Sequence[str]]] = field(default_factory=list)
    within: "list[_Block]" = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    """Of a server."""
    own: dict[str, str] = field(default_factory=dict)
    """The settings of limits, as they are said here."""

    def setting(self, name: str, otherwise: str) -> str:
        """A setting that holds here, or that of what is around."""
        if name in self.own or self.above is None:
            return self.own.get(name, otherwise)
        return self.above.setting(name, otherwise)

    @property
    def path(self) -> tuple[str, bool] | None:
        """Of a location: its path, and whether it is that alone; None for any other."""
        if len(self.words) == 1:
            return self.words[0], False
        if len(self.words) == 2 and self.words[0] in ("=", "^~"):
            return self.words[1], self.words[0] == "="
        return None


def from_nginx(text: str) -> Converted:
    """The rules that a configuration comes to."""
    found = Converted()
    if len(text) > MOST_BYTES:
        found.leave(1, f"the file is too large; at most {MOST_BYTES} bytes")
        return found
    _Reader(found).file(text)
    return found


class _Reader:
    def __init__(self, found: Converted) -> None:
        self._found = found
        self._zones: dict[str, _Zone] = {}
        self._used: dict[str, int] = {}
        """The line where each zone is used first."""
        self._known: dict[int, list[str]] = {}
        """The paths that are left out of each block."""

    def file(self, text: str) -> None:
        """Reads all of a configuration."""
        top = _Block("http", (), 0)
        here, depth, blocks = top, 0, 0
        for line, words, opens in directives(text, self._found):
            if opens == "}":
                if here.above is not None:
                    here, depth = here.above, depth - 1
                continue
            if opens == "{":
                depth, blocks = depth + 1, blocks + 1
                if depth > DEEPEST or blocks > MOST_BLOCKS:
                    self._found.leave(
                        line, f"the rest is left out: there are more than {MOST_BLOCKS} "
                        f"blocks, or they lie more than {DEEPEST} deep",
                    )  # fmt: skip
                    break
                kind = words[0] if words else ""
                here = _Block(kind, words[1:], line, here)
                if here.above is not None:
                    here.above.within.append(here)
                if kind == "location" and here.path is None:
                    self._found.leave(line, "a location by a pattern is not a path of a rule, and "
                                      "what it takes from others counts by theirs")  # fmt: skip
                continue
            self._take(line, words, here)
        self._rules(top)

    def _take(self, line: int, words: Sequence[str], here: _Block) -> None:
        """Takes note of a directive that has to do with limits."""
        name, given = words[0], words[1:]
        if name == "limit_req_zone":
            self._zone(line, given)
        elif name == "limit_req":
            here.limits.append((line, given))
        elif name in ("limit_req_status", "limit_req_dry_run") and given:
            here.own[name] = given[0]
            if name == "limit_req_status" and given[0] != "429":
                self._found.leave(line, f"status {given[0]}: a refusal is 429 here")
        elif name == "limit_req_log_level":
            self._found.leave(line, "limit_req_log_level: the log has levels of its own")
        elif name == "server_name":
            here.names += given
        elif name == "include":
            self._found.leave(line, f"include {shown(' '.join(given))} is not read; convert what "
                              "nginx -T prints, which has all files")  # fmt: skip
        elif name in _OTHERS:
            self._found.leave(line, f"{name} limits something else than requests a second")

    def _zone(self, line: int, given: Sequence[str]) -> None:
        zone = next((each[5:] for each in given if each.startswith("zone=")), "")
        rate = next((_RATE.fullmatch(each) for each in given if each.startswith("rate=")), None)
        name = zone.partition(":")[0]
        if not given or not name or rate is None:
            self._found.leave(line, "limit_req_zone without a key, a zone and a rate is not one")
            return
        parts = _VARIABLE.findall(given[0])
        rest = _VARIABLE.sub("", given[0])
        by = [_by(each) for each in parts]
        for part, each in zip(parts, by, strict=True):
            if each is None:
                self._found.leave(line, f"zone {shown(name)} counts by ${part}, which no rule "
                                  "reads, so that its limits are left out")  # fmt: skip
                return
        if parts and rest:
            self._found.leave(line, f"the text {shown(rest)} in the key of zone {shown(name)} "
                              "tells nobody apart")  # fmt: skip
        known = list(dict.fromkeys(each for each in by if each)) or ["global"]
        if "client" in known:
            self._found.top["ipv6_prefix"] = 128  # nginx counts every address for itself
        lacks = any(":" in each for each in known)
        unit = "second" if rate[2] == "s" else "minute"
        self._zones[name] = _Zone(line, int(rate[1]), unit, known, lacks)

    # --- blocks to rules ---

    def _rules(self, top: _Block) -> None:
        waiting = [top]
        limits: list[tuple[int, Sequence[str], _Block]] = []
        said = False
        while waiting:
            block = waiting.pop()
            limits += [(line, given, block) for line, given in block.limits]
            said = said or "limit_req_status" in block.own
            waiting += block.within
        limits.sort(key=lambda each: each[0])
        for each in limits:
            self._limit(*each)
        if limits and not said:
            text = "without limit_req_status nginx refuses with 503; a refusal is 429 here"
            self._found.leave(limits[0][0], text)

    def _limit(self, line: int, given: Sequence[str], block: _Block) -> None:
        """A rule for one limit_req."""
        if block.kind not in _BLOCKS:
            self._found.leave(
                line, f"limit_req in {block.kind or 'a block'} is not a path of a rule"
            )
            return
        name = next((each[5:] for each in given if each.startswith("zone=")), "")
        zone = self._zones.get(name)
        if zone is None:
            self._found.leave(line, f"zone {shown(name)} is not one that could be read")
            return
        match = self._match(line, block)
        if match is None:
            return
        first = self._used.get(name)
        if first is not None:
            self._found.leave(line, f"zone {shown(name)} is shared with line {first}; the rules "
                              "count apart")  # fmt: skip
        self._used.setdefault(name, line)
        rule: dict[str, Any] = {"name": self._found.name(name or "zone")}
        if match:
            rule["match"] = match
        by = zone.by[0] if len(zone.by) == 1 else list(zone.by)
        if by != "client":
            rule["by"] = by
        if zone.fields:
            rule["on_missing"] = "skip"
        rule["limit"] = f"{zone.quota}/{zone.unit}"
        numbers = {found[1]: int(found[2]) for each in given if (found := _NUMBER.fullmatch(each))}
        for each in given:
            if not each.startswith("zone=") and each != "nodelay" and not _NUMBER.fullmatch(each):
                self._found.leave(line, f"{shown(each)} is not known")
        burst, delay = numbers.get("burst", 0), numbers.get("delay", 0)
        waits = burst > delay and "nodelay" not in given
        rule["algorithm"] = "leaking_bucket" if waits else "token_bucket"
        rule["burst"] = burst + 1
        if waits:
            rule["max_delay"] = "none"
            if delay:
                rule["free"] = delay + 1
        if block.setting("limit_req_dry_run", "off") == "on":
            rule["mode"] = "shadow"
        self._found.add(line, rule)

    def _match(self, line: int, block: _Block) -> dict[str, Any] | None:
        """The requests of a block; None where no rule could say which."""
        match: dict[str, Any] = {}
        server: _Block | None = block
        while server is not None and server.kind != "server":
            if server.kind not in _BLOCKS:
                self._found.leave(line, f"limit_req within {server.kind} is not a path of a rule")
                return None
            server = server.above
        if block.kind == "location":
            path = block.path
            if path is None or path[0].startswith("@") or not _PATH.fullmatch(path[0]):
                self._found.leave(line, "limit_req of a location that is not a path")
                return None
            text, alone = path
            if alone:
                match["path"] = text
            elif text != "/":
                match["path"] = text + "{rest:path}"
        excepted = self._known.get(id(block))
        if excepted is None:  # a block may have many limits
            excepted = self._known[id(block)] = self._excepted(line, block)
        if excepted:
            match["except"] = excepted
        if server is not None:
            names = [each.lower() for each in server.names]
            plain = [each for each in names if _HOST.fullmatch(each) and each != "_"]
            if plain and len(plain) == len(names):
                match["host"] = plain
            elif any(each not in ("_", '""', "") for each in names):
                self._found.leave(line, "the rule is for every host, as a server_name is a pattern")
        return match

    def _excepted(self, line: int, block: _Block) -> list[str]:
        """The paths that locations within a block, or beside it, take for themselves."""
        within = list(_locations(block))
        beside: list[_Block] = []
        if block.kind == "location" and block.above is not None and block.path is not None:
            beside = [
                each
                for each in block.above.within
                if each.kind == "location" and each is not block and _is_longer(each, block)
            ]
        taken = [*beside, *(each for each in within if each.limits)]
        found: dict[str, None] = {}
        for each in taken:
            if each.path is not None and _PATH.fullmatch(each.path[0]):
                found[each.path[0] + ("" if each.path[1] else "{rest:path}")] = None
        beside_others: dict[int, list[_Block]] = {}
        for one in taken[:MOST_EXCEPT]:
            beside_others.setdefault(id(one.above), []).append(one)
        for each in within:
            others = beside_others.get(id(each.above), [])
            if not each.limits and any(_is_longer(each, one) for one in others):
                self._found.leave(
                    each.line, f"this location is left out by the rule of line {line}, with one of "
                    "a shorter path that has limits of its own",
                )  # fmt: skip
        if not self._found.leaves_out(len(found)):
            self._found.leave(
                line, f"{len(found)} locations beside count by this rule as well: it "
                f"leaves out at most {MOST_EXCEPT}",
            )  # fmt: skip
            found.clear()
        if block.kind == "http" and any(_has_limits(each) for each in block.within):
            self._found.leave(
                line, "servers and locations with limits of their own count by this rule as well"
            )
        return list(found)


def _is_longer(one: _Block, other: _Block) -> bool:
    """Whether a location takes requests from another beside it."""
    if one.path is None or other.path is None or other.path[1]:
        return False
    return one.path[0].startswith(other.path[0]) and one.path != other.path


def _has_limits(block: _Block) -> bool:
    return bool(block.limits) or any(each.limits for each in _locations(block))


def _locations(block: _Block) -> Iterator[_Block]:
    """The locations within a block, at any depth."""
    waiting = [each for each in block.within if each.kind == "location"]
    while waiting:
        each = waiting.pop()
        yield each
        waiting += [one for one in each.within if one.kind == "location"]


def _by(variable: str) -> str | None:
    """The part of an identity that a variable is."""
    if variable in ("binary_remote_addr", "remote_addr", "realip_remote_addr"):
        return "client"
    if variable == "server_name":  # whose server's rule it is
        return ""
    for start, kind in (("http_", "header"), ("cookie_", "cookie"), ("arg_", "query")):
        if variable.startswith(start) and len(variable) > len(start):
            name = variable.removeprefix(start)
            return f"{kind}:{name.replace('_', '-') if kind == 'header' else name}"
    return None
