"""Rule files of envoyproxy/ratelimit to rules for descriptors (its README, "Configuration").

There, a descriptor is looked up level by level: a value that is named wins over a prefix, that over
the key alone, and nothing is tried again; a limit holds where the last entry has it. Each limit
comes to a rule for the path of its descriptor, which leaves out what a named value takes. Both
count by fixed windows that begin at whole multiples of their length.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ratelimit.gateway.converted import MOST_EXCEPT, Converted
from ratelimit.gateway.dialects import ROOT
from ratelimit.gateway.spelling import spelled
from ratelimit.rules.file.yaml import MOST_MISTAKES, Mistakes, Node, read
from ratelimit.words import near, shown

__all__ = ["from_envoy"]

UNITS: Final = {
    "second": "second", "minute": "minute", "hour": "hour", "day": "day", "week": "week",
    "month": "30 days", "year": "365 days",
}  # fmt: skip
_KEYS: Final = ("key", "value", "rate_limit", "descriptors", "shadow_mode")
_OF_LIMIT: Final = ("unit", "requests_per_unit", "unlimited", "name", "replaces")
_MOST_OF_A_NAME: Final = 100
_MOST_PARTS: Final = 10
_LONGEST_PATH: Final = 2_000


@dataclass(slots=True, eq=False)
class _Level:
    """One entry on the way to a limit."""

    key: str
    value: str
    """Empty for every value; one that ends in an asterisk is a prefix."""
    others: Sequence[str]
    """Values of the same key, beside it, that win over it."""

    @property
    def prefix(self) -> str | None:
        """The text that a value begins with, where not all of it is named."""
        if not self.value:
            return ""
        return self.value[:-1] if self.value.endswith("*") else None


def from_envoy(text: str) -> Converted:
    """The rules that such a file comes to."""
    found = Converted()
    mistakes = Mistakes("", MOST_MISTAKES)
    tree = read(text, {}, mistakes)
    for mistake in mistakes:
        found.leave(mistake.line, mistake.message)
    if tree is None or not isinstance(tree.value, dict):
        if not mistakes:
            found.leave(1, "the file is not a domain with descriptors")
        return found
    _Reader(found).file(tree)
    return found


class _Reader:
    def __init__(self, found: Converted) -> None:
        self._found = found
        self._domain = ""
        self._named: dict[str, list[str]] = {}
        """The rules that limits of a name have come to."""
        self._replacing: list[tuple[Node, dict[str, Any]]] = []

    def file(self, tree: Node) -> None:
        """Reads all of a file."""
        parts = self._parts(tree, ("domain", "descriptors"))
        domain = parts.get("domain")
        self._domain = _text(domain)
        if domain is None or not self._domain:
            self._found.leave(tree.line, "there is no domain, so that no descriptor can be meant")
            return
        # The address that Envoy asks from is not in such a file.
        self._found.top["trusted_proxies"] = ["127.0.0.1"]
        self._level(parts.get("descriptors"), [])
        self._replace()

    def _level(self, node: Node | None, way: list[_Level]) -> None:
        entries = [(each, self._parts(each, _KEYS)) for each in self._items(node, "descriptors")]
        values: dict[str, list[str]] = {}
        for _, parts in entries:
            values.setdefault(_text(parts.get("key")), []).append(_text(parts.get("value")))
        seen: set[tuple[str, str]] = set()
        prefixes = 0
        for each, parts in entries:
            key, value = _text(parts.get("key")), _text(parts.get("value"))
            if not key:
                self._found.leave(each.line, "a descriptor without a key is never met")
                continue
            if (key, value) in seen:
                self._found.leave(each.line, f"{shown(key)} is there twice with the same value")
                continue
            seen.add((key, value))
            prefixes += value.endswith("*")
            if prefixes > MOST_EXCEPT:
                self._found.leave(each.line, f"there are more than {MOST_EXCEPT} prefixes here")
                return
            here = [*way, _Level(key, value, _winning(value, values[key]))]
            limit = parts.get("rate_limit")
            shadow = self._is_on(parts.get("shadow_mode"))
            if limit is not None:
                self._limit(limit, here, shadow=shadow)
            elif shadow:
                self._found.leave(each.line, "shadow_mode without a rate_limit says nothing")
            self._level(parts.get("descriptors"), here)

    def _limit(self, node: Node, way: list[_Level], *, shadow: bool) -> None:
        parts = self._parts(node, _OF_LIMIT)
        if self._is_on(parts.get("unlimited")):
            return  # no rule, and what a named value takes is left out of others
        unit, number = _text(parts.get("unit")).lower(), _text(parts.get("requests_per_unit"))
        if unit not in UNITS:
            self._found.leave(
                node.line, f"the unit is {shown(unit)}{near(unit, UNITS)}; it is not one of theirs"
            )
            return
        if not re.fullmatch("[0-9]{1,10}", number) or int(number) == 0:
            self._found.leave(
                node.line,
                f"requests_per_unit is {shown(number or '0')}, which lets nothing through; a rule "
                "refuses single identities with overrides: {VALUE: blocked}",
            )
            return
        rule = self._rule(node, way)
        if rule is None:
            return
        rule |= {"limit": f"{int(number)}/{UNITS[unit]}", "algorithm": "fixed_window"}
        if shadow:
            rule["mode"] = "shadow"
        self._found.add(node.line, rule)
        name = _text(parts.get("name"))
        if name:
            named = self._named.setdefault(name, [])
            if len(named) < _MOST_OF_A_NAME:
                named.append(rule["name"])
        if parts.get("replaces") is not None:
            self._replacing.append((parts["replaces"], rule))

    def _rule(self, node: Node, way: list[_Level]) -> dict[str, Any] | None:
        """A rule without its limit, for the descriptor at the end of a way."""
        names = _parameters(way)
        path = self._path(way, names)
        by = [f"path:{name}" for name in names if name]
        number = sum(len(each.others) for each in way)
        if len(by) > _MOST_PARTS or len(path) > _LONGEST_PATH:
            self._found.leave(node.line, "its descriptor is too long for a rule")
            return None
        if not self._found.leaves_out(number):
            self._found.leave(
                node.line,
                f"{number} values beside it have limits of their own, and a rule leaves out at "
                f"most {MOST_EXCEPT}; write these values as its overrides",
            )
            return None
        match: dict[str, Any] = {"path": path}
        excepted = [
            self._path([*way[:place], _Level(each.key, value, ()), *way[place + 1 :]], names)
            for place, each in enumerate(way)
            for other in each.others
            for value in ([other, other[:-1]] if other.endswith("*") else [other])
        ]
        if excepted:
            match["except"] = excepted
        if any(each.value.endswith("*") for each in way):
            self._found.leave(
                node.line, "a value that is the prefix and nothing more is not counted by the rule"
            )
        words = [each.key + ("_" + each.value if each.value else "") for each in way]
        rule = {"name": self._found.name(self._domain, *words), "match": match}
        return rule | {"by": by[0] if len(by) == 1 else by or "global"}

    def _path(self, way: Sequence[_Level], names: Sequence[str]) -> str:
        path = ROOT + spelled(self._domain.encode())
        for each, name in zip(way, names, strict=True):
            prefix = each.prefix
            value = spelled(each.value.encode())
            if prefix is not None:
                value = (spelled(prefix.encode()) if prefix else "") + f"{{{name}}}"
            path += f"/{spelled(each.key.encode())}/{value}"
        return path

    def _replace(self) -> None:
        """Says which rules others replace, once all of them have names."""
        for node, rule in self._replacing:
            names: list[str] = []
            for each in self._items(node, "replaces"):
                wanted = _text(self._parts(each, ("name",)).get("name"))
                found = [name for name in self._named.get(wanted, ()) if name != rule["name"]]
                if not found:
                    self._found.leave(each.line, f"no limit is named {shown(wanted)}")
                elif rule["by"] != "global":
                    self._found.leave(
                        each.line,
                        f"rule {rule['name']} cannot replace {shown(wanted)}, as it counts each "
                        "value for itself, and who picks a value would escape by it",
                    )
                else:
                    names += found
            if names:
                rule["replaces"] = list(dict.fromkeys(names))

    def _parts(self, node: Node, known: Sequence[str]) -> dict[str, Node]:
        """The known keys of a mapping; the others are left."""
        if not isinstance(node.value, dict):
            self._found.leave(node.line, f"there is no mapping with {', '.join(known)}")
            return {}
        for key, value in node.value.items():
            if key not in known:
                line = node.keys[key].line if key in node.keys else value.line
                what = "which metrics there are" if key == "detailed_metric" else "nothing here"
                self._found.leave(line, f"{shown(key)} says {what}, and is left out")
        return {key: each for key, each in node.value.items() if key in known}

    def _items(self, node: Node | None, what: str) -> Iterator[Node]:
        if node is None or node.value is None:
            return
        if not isinstance(node.value, list):
            self._found.leave(node.line, f"{what} is not a list")
            return
        yield from node.value

    def _is_on(self, node: Node | None) -> bool:
        text = _text(node).lower()
        if text not in ("", "true", "false", "yes", "no", "on", "off") and node is not None:
            self._found.leave(node.line, f"{shown(text)} is neither true nor false")
        return text in ("true", "yes", "on")


def _text(node: Node | None) -> str:
    return node.shown if node is not None and isinstance(node.value, str) else ""


def _winning(value: str, values: Sequence[str]) -> list[str]:
    """Of the values of a key, those that are looked up before one."""
    if value and not value.endswith("*"):
        return []
    prefix = value[:-1]
    return [
        other
        for other in values
        if other and other != value and other.startswith(prefix)
        and (not value or not other.endswith("*"))
    ]  # fmt: skip


def _parameters(way: Sequence[_Level]) -> list[str]:
    """A parameter's name for each level that does not name its value, no two alike."""
    names: list[str] = []
    for each in way:
        name = ""
        if each.prefix is not None:
            wanted = re.sub(r"[^A-Za-z0-9_]", "_", each.key, flags=re.ASCII)[:40] or "value"
            wanted = wanted if wanted[0].isalpha() or wanted[0] == "_" else f"_{wanted}"
            name, number = wanted, 1
            while name in names:
                number += 1
                name = f"{wanted}_{number}"
        names.append(name)
    return names
