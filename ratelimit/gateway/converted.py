"""Another limiter's configuration as rules, with all that they do not say.

The law of this module: nothing is dropped in silence, and what is written is a rule file that can
be loaded. Pure.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from ratelimit.rules.file.mistakes import RuleFileError
from ratelimit.rules.ruleset import RuleSet
from ratelimit.words import shown

__all__ = ["MOST_EXCEPT", "Converted", "Left", "rule_file"]

MOST_LEFT: Final = 1_000
"""Most that is told of one file."""
MOST_RULES: Final = 10_000
MOST_EXCEPT: Final = 100
"""Most paths that a rule leaves out."""
_MOST_IN_ALL: Final = 20_000
"""Most paths that all rules together leave out."""
_LONGEST_NAME: Final = 64
_PLAIN: Final = re.compile(r"[A-Za-z][A-Za-z0-9:/._-]*")
_NOT_IN_NAMES: Final = re.compile(r"[^A-Za-z0-9_.:-]+")


class Left(NamedTuple):
    """Something that the rules do not say, by its line in the file that was read; 0 for all."""

    line: int
    text: str


@dataclass(slots=True, eq=False)
class Converted:
    """Rules, as they are written, and what they do not say."""

    top: dict[str, Any] = field(default_factory=dict)
    """Settings of the file."""
    rules: list[dict[str, Any]] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)
    _excepted: int = 0
    _names: dict[str, int] = field(default_factory=dict)
    """The names that were given, in lower case, and how often each was wanted."""

    def leave(self, line: int, text: str) -> None:
        """Says what is left out."""
        if len(self.left) < MOST_LEFT:
            self.left.append(Left(line, text))
        elif len(self.left) == MOST_LEFT:
            self.left.append(Left(line, f"there is more than these {MOST_LEFT}"))

    def add(self, line: int, rule: dict[str, Any]) -> None:
        """Adds a rule."""
        if len(self.rules) < MOST_RULES:
            self.rules.append(rule)
        else:
            self.leave(line, f"there are more than {MOST_RULES} rules")

    def leaves_out(self, number: int) -> bool:
        """Whether a rule may leave out so many paths more."""
        self._excepted += number
        return number <= MOST_EXCEPT and self._excepted <= _MOST_IN_ALL

    def name(self, *words: str) -> str:
        """A rule's name made of words, which no other has in any case."""
        wanted = _NOT_IN_NAMES.sub("-", ".".join(word for word in words if word)).strip("-.:_")[
            :_LONGEST_NAME
        ]
        if not wanted[:1].isalpha():
            wanted = f"rule-{wanted}".rstrip("-")
        number = self._names.get(wanted.lower(), 0)
        while True:
            number += 1
            end = "" if number == 1 else f"-{number}"
            found = wanted[: _LONGEST_NAME - len(end)] + end
            if found.lower() not in self._names:
                break
        self._names[wanted.lower()] = number
        self._names.setdefault(found.lower(), 1)
        return found


def rule_file(converted: Converted, source: str) -> str:
    """The text of a rule file; what is wrong with it, if anything, is added to what is left."""
    lines = [f"# Converted from {shown(source)}."]
    lines += ["version: 1", *(f"{key}: {_written(value)}" for key, value in converted.top.items())]
    lines.append("rules:" if converted.rules else "rules: []")
    for rule in converted.rules:
        for place, (key, value) in enumerate(rule.items()):
            lines.append(f"  {'- ' if place == 0 else '  '}{key}: {_written(value)}")
    text = "\n".join(lines) + "\n"
    try:
        RuleSet.loads(text, "<converted>")
    except RuleFileError as error:
        for mistake in error.mistakes[:20]:
            converted.leave(0, f"of the rules as they came out, {mistake}")
    return text


def _written(value: object) -> str:
    """A value in YAML, on one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_written(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_written, value)) + "]"
    if isinstance(value, int):
        return str(value)
    text = str(value)
    if _PLAIN.fullmatch(text) or re.fullmatch(r"[0-9]+/[A-Za-z0-9 ]+", text):
        return text
    return json.dumps(text, ensure_ascii=False)
