"""The routes behind the paths of a log, guessed from how many different ones stand at one place."""

import re
from collections import Counter
from collections.abc import Iterable
from typing import Final, NamedTuple

from ratelimit.insight.replay.asking import scope_of
from ratelimit.insight.replay.entries import Entry

__all__ = ["Route", "routes_of"]

MOST_CHILDREN: Final = 1_000
"""Different segments at one place that are told apart while reading."""
FEW: Final = 20
"""Different segments at one place that are routes of their own, where none of them stands out."""
DEEPEST: Final = 12

_PLAIN: Final = re.compile(r"[A-Za-z0-9._~!$&'(),;=:@+-]{1,100}")
_NUMBER: Final = re.compile(r"[0-9]+")
_UUID: Final = re.compile(r"[0-9a-fA-F]{8}(?:-?[0-9a-fA-F]{4}){3}-?[0-9a-fA-F]{12}")
_INT, _UUIDS, _ANY = "{int}", "{uuid}", "{}"


class Route(NamedTuple):
    """A path in the syntax of rules, and a method."""

    method: str
    path: str
    requests: int
    """Requests among those that were looked at."""


class _Node:
    __slots__ = ("children", "ends")

    def __init__(self) -> None:
        self.ends: Counter[str] = Counter()
        """Requests that end here, by method."""
        self.children: dict[str, _Node] = {}

    @property
    def total(self) -> int:
        return self.ends.total() + sum(child.total for child in self.children.values())


def routes_of(entries: Iterable[Entry], most: int, least: float = 0.005) -> list[Route]:
    """The busiest routes, each with at least a part of the requests, the busiest first.

    Requests that were answered with an error tell nothing of routes: scanners ask for anything.
    """
    root, looked_at = _Node(), 0
    for entry in entries:
        if entry[4][:1] in ("4", "5") and entry[4] not in ("401", "403", "429"):
            continue
        looked_at += 1
        scope = scope_of(entry)
        segments = scope["path"].split("/")
        if segments[0] or len(segments) > DEEPEST + 1:
            continue
        _add(root, segments[1:], "GET" if entry[2] == "HEAD" else entry[2])
    _merge(root)
    found: list[Route] = []
    _walk(root, [], found)
    floor = max(2, looked_at * least)
    found = [route for route in found if route.requests >= floor]
    return sorted(found, key=lambda route: (-route.requests, route[:2]))[:most]


def _add(node: _Node, segments: list[str], method: str) -> None:
    last = len(segments) - 1
    for place, segment in enumerate(segments):
        if segment == "" and place == last:
            name = ""
        elif _NUMBER.fullmatch(segment):
            name = _INT
        elif _UUID.fullmatch(segment):
            name = _UUIDS
        elif _PLAIN.fullmatch(segment) and segment[0] != ".":
            name = segment
        else:
            return  # cannot be written as a path of a rule
        if name not in node.children and len(node.children) >= MOST_CHILDREN:
            name = _ANY
        node = node.children.setdefault(name, _Node())
    if method.isascii() and method.isalpha() and method.isupper():
        node.ends[method] += 1


def _merge(node: _Node) -> None:
    """Makes one of the many segments at a place that are hardly routes of their own."""
    small = {name: child for name, child in node.children.items() if name not in ("", _ANY)}
    if len(small) > FEW:
        floor = sum(child.total for child in small.values()) / FEW
        merged = node.children.setdefault(_ANY, _Node())
        for name, child in small.items():
            if child.total < floor:
                _put(merged, child)
                del node.children[name]
        if not (merged.ends or merged.children):
            del node.children[_ANY]
    for child in node.children.values():
        _merge(child)


def _put(into: _Node, node: _Node) -> None:
    into.ends += node.ends
    for name, child in node.children.items():
        _put(into.children.setdefault(name, _Node()), child)


_CONVERTORS: Final = {_INT: ("id", ":int"), _UUIDS: ("id", ":uuid"), _ANY: ("name", "")}


def _walk(node: _Node, way: list[str], found: list[Route]) -> None:
    if node.ends and way:
        path, number = "", 0
        for segment in way:
            if segment in _CONVERTORS:
                name, convertor = _CONVERTORS[segment]
                number += 1
                path += f"/{{{name}{number if number > 1 else ''}{convertor}}}"
            else:
                path += f"/{segment}"
        found += [Route(method, path, times) for method, times in node.ends.items()]
    for segment, child in node.children.items():
        _walk(child, [*way, segment], found)
