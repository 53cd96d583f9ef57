"""YAML to a tree in which every value knows its line and column.

Scalars stay the text of the source: ``off`` is not a boolean, ``1:30`` not a number of minutes
and ``010`` not eight. Only PyYAML's parser runs, never a constructor: a tag is
a mistake, and so is whatever would make a small file into a large tree.
"""

import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Final, NoReturn

import yaml

from ratelimit.rules.file.mistakes import Mistake
from ratelimit.rules.overriding import is_address
from ratelimit.runtime.contents import contents
from ratelimit.words import shown

__all__ = [
    "Mistakes", "Node", "TooManyMistakes", "below", "read", "text_of",
]  # fmt: skip

MOST_BYTES: Final = 5_000_000
MOST_NODES: Final = 200_000
"""Most nodes, counted with every alias written out."""
MOST_ALIASES: Final = 100
MOST_DIRECTIVES: Final = 20
"""Most lines that begin with ``%``; the parser in C compares each ``%TAG`` with all before it."""
MOST_MISTAKES: Final = 1_000
"""Most mistakes that are reported of one rule file, so that a file cannot choose their cost."""
DEEPEST: Final = 20
SLOW_CHARACTERS: Final = 200_000
"""Characters that PyYAML's parser in Python reads in a second; the one in C is 20 times as fast."""

_FAST: Final[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_NULL: Final = frozenset({"", "~", "null", "Null", "NULL"})
_FORBIDDEN: Final = re.compile(
    "[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]"
)
_VARIABLE: Final = re.compile(r"\$\{([^}]*)\}?")
_DIRECTIVE: Final = re.compile("(?:^|[\n\r\x85\u2028\u2029])\ufeff?(%)")
_PLAIN_KEY: Final = re.compile("[A-Za-z0-9_-]{1,60}", re.ASCII)


class TooManyMistakes(Exception):
    """More mistakes than are reported: the rest of the file is not looked at."""


class Mistakes(list[Mistake]):
    """The mistakes found so far in one file; adding more than ``most`` raises TooManyMistakes."""

    def __init__(self, file: str, most: int = sys.maxsize) -> None:
        super().__init__()
        self.file = file
        self.most = most
        self.more: Mistake | None = None
        """A last mistake, which says that there are more."""
        self.cut = False
        """Whether there may be more, in a list that was not looked at to its end."""
        self.unset: set[str] = set()
        """Variables that the environment lacks; what follows from that is not reported again."""
        self.at_least: Mistake | None = None
        """The mistake to report where no other is found."""

    def add(self, line: int, column: int, place: str, message: str, code: str) -> None:
        if len(self) >= self.most:
            message = f"there are more mistakes than these {self.most}; mend them first"
            self.more = Mistake(self.file, line, column, place or "file", message, "more-mistakes")
            raise TooManyMistakes
        self.append(Mistake(self.file, line, column, place or "file", message, code))


_NO_KEYS: Final[Mapping[str, Any]] = MappingProxyType({})


@dataclass(slots=True, eq=False)
class Node:
    """A value with its place; ``line`` and ``column`` count from 1."""

    line: int
    column: int
    value: "str | list[Node] | dict[str, Node] | None"
    """Text with its variables replaced; None where nothing, ``~`` or ``null`` is written."""
    shown: str = ""
    """The text as it is in the file, which a message may show."""
    variables: tuple[str, ...] = ()
    """Names of the environment's variables in it, or anywhere below it."""
    size: int = 1
    keys: "Mapping[str, Node]" = field(default_factory=lambda: _NO_KEYS)
    """The keys of a mapping, for their places."""

    def plain(self) -> Any:
        """The value as text, lists and dicts alone."""
        if isinstance(self.value, list):
            return [each.plain() for each in self.value]
        if isinstance(self.value, dict):
            return {key: each.plain() for key, each in self.value.items()}
        return self.value

    def child(self, key: str | int) -> "Node | None":
        """The value under a key or an index; None where there is none."""
        if isinstance(self.value, dict) and isinstance(key, str):
            return self.value.get(key)
        if isinstance(self.value, list) and isinstance(key, int):
            return self.value[key]
        return None

    def at(self, place: str, path: tuple[str | int, ...]) -> "tuple[Node, str]":
        """The node at a path of keys and its place; the nearest above it where there is none."""
        node = self
        for key in path:
            child = node.child(key)
            if child is None:
                break
            name = node.keys[key].shown if isinstance(key, str) else key
            node, place = child, below(place, name)
        return node, place

    def __str__(self) -> str:
        """The value, for a message."""
        match self.value:
            case None:
                return "nothing is there"
            case list():
                return "a list is there"
            case dict():
                return "a mapping is there"
        return f"{shown(self.shown)} is there"


def below(place: str, key: str | int) -> str:
    """The place of a key or an index in the value at ``place``: ``rules[0].match.path``."""
    if isinstance(key, int):
        return f"{place}[{key}]"
    if place.endswith(".overrides") and not is_address(key):
        return place  # an identity may be a secret; the line tells which
    if not _PLAIN_KEY.fullmatch(key):
        return f"{place}[{shown(key)}]"
    return f"{place}.{key}" if place else key


def named(key: str) -> str:
    """A key as a sentence may show it, with a blank behind: not one that may be a secret.

    An identity that stands in the wrong place, say.
    """
    plain = is_address(key) or not re.search("[0-9]", key) or "${" in key
    return f"{shown(key)} " if plain and len(key) <= 40 else ""


def identity_shown(identity: str) -> str:
    """An identity as a sentence may show it."""
    return shown(identity) if is_address(identity) else "the identity"


def text_of(path: str, mistakes: Mistakes) -> str | None:
    """The text of the file at ``path``; None where it cannot be read, is too large or not UTF-8."""
    try:
        raw = contents(path, MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        mistakes.add(
            1, 1, "", f"the file cannot be read ({reason(error)}); it is one that this process "
            "may read", "unreadable",
        )  # fmt: skip
        return None
    return decoded(raw, MOST_BYTES, mistakes)


def reason(error: OSError | ValueError) -> str:
    """The reason why a file cannot be read, without its name."""
    return getattr(error, "strerror", None) or str(error)


def decoded(raw: bytes, most: int, mistakes: Mistakes, place: str = "") -> str | None:
    """A file's bytes as text; None where there are more than ``most``, or it is not UTF-8."""
    if len(raw) > most:
        mistakes.add(1, 1, place, f"the file is too large; at most {most} bytes", "too-large")
        return None
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        line, column = position(raw[: error.start].decode())
        mistakes.add(
            line, column, place, f"the byte 0x{raw[error.start]:02x} is not UTF-8; the file is",
            "not-utf-8",
        )  # fmt: skip
        return None


def read(text: str, environ: Mapping[str, str], mistakes: Mistakes) -> Node | None:
    """The tree of the one document in ``text``; None where a mistake leaves nothing to look at.

    ``${NAME}`` is replaced from ``environ``, in every scalar.
    """
    if len(text) > MOST_BYTES:
        mistakes.add(1, 1, "", f"the file is too large; at most {MOST_BYTES} bytes", "too-large")
        return None
    forbidden = _FORBIDDEN.search(text)
    if forbidden:
        mistakes.add(
            *position(text[: forbidden.start()]), "",
            f"the character {forbidden[0]!r} is there; YAML is printable text", "not-yaml",
        )  # fmt: skip
        return None
    for number, directive in enumerate(_DIRECTIVE.finditer(text), 1):
        if number > MOST_DIRECTIVES:
            mistakes.add(
                *position(text[: directive.start(1)]), "",
                f"one directive too many; at most {MOST_DIRECTIVES} lines begin with %",
                "too-large",
            )  # fmt: skip
            return None
    try:
        try:
            events = _events(text, _FAST)
        except yaml.YAMLError as error:
            if len(text) > SLOW_CHARACTERS:
                raise
            # The parser in Python says better what is wrong; but where it finds nothing, the file
            # is still wrong, as a longer one would be.
            mistakes.at_least = _not_yaml(error, text, mistakes.file)
            events = _events(text, yaml.SafeLoader)
        return _Reader(events, environ, mistakes).document()
    except yaml.YAMLError as error:
        mistakes.append(_not_yaml(error, text, mistakes.file))
    except (_Stop, TooManyMistakes):
        pass
    return None


def _not_yaml(error: yaml.YAMLError, text: str, file: str) -> Mistake:
    mark, problem = None, "it cannot be read"
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        problem = " ".join(filter(None, (error.problem, error.context)))
        problem += _advice(problem, text[mark.index - 1 : mark.index + 1] if mark else "")
    line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
    message = f"this is not YAML: {problem}; a rule file is one YAML mapping"
    return Mistake(file, line, column, "file", message, "not-yaml")


def _advice(problem: str, there: str) -> str:
    """Advice where the parser's words do not help; ``there`` ends where it stopped."""
    if there == "${":
        return " (within braces and brackets, ${NAME} is put in quotes)"
    if there[1:] == "\t":
        return " (lines are indented with spaces)"
    if "unexpected ':'" in problem:
        return " (within braces and brackets, an address with colons is put in quotes)"
    if "mapping values are not allowed" in problem:
        return " (text with a colon and a space in it is put in quotes)"
    if "cannot start any token" in problem:
        return " (text that starts with this character is put in quotes)"
    return ""


def position(before: str) -> tuple[int, int]:
    """Line and column, from 1, of what follows the text ``before``."""
    lines = re.split("\r\n|\r|\n", before)
    return len(lines), len(lines[-1]) + 1


class _Stop(Exception):
    """A mistake after which nothing in the file can be trusted."""


def _events(text: str, loader: Any) -> list[Any]:
    """The parser's events, up to the first that is too deep or too many."""
    events: list[Any] = []
    depth = 0
    for event in yaml.parse(text, Loader=loader):
        events.append(event)
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > DEEPEST or len(events) > 2 * MOST_NODES:
            break
    return events


class _Reader:
    def __init__(self, events: list[Any], environ: Mapping[str, str], mistakes: Mistakes) -> None:
        self.events: Iterator[Any] = iter(events)
        self.environ = environ
        self.mistakes = mistakes
        self.anchors: dict[str, Node] = {}
        self.aliases = 0
        self.size = 0

    def document(self) -> Node | None:
        root = None
        for event in self.events:
            if isinstance(event, yaml.DocumentStartEvent) and root is not None:
                self._stop(event, "", "a second document starts; a rule file is one", "documents")
            if isinstance(event, yaml.NodeEvent):
                root = self._node(event, "", 1)
        if root is None or root.value is None:
            message = "the file is empty; it begins with 'version: 1'"
            self.mistakes.add(1, 1, "", message, "empty")
            return None
        return root

    def _node(self, event: Any, place: str, depth: int) -> Node:
        line, column = event.start_mark.line + 1, event.start_mark.column + 1
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event, place)
        node = Node(line, column, None)
        self._grow(event, place, 1)
        if event.tag is not None:
            self.mistakes.add(
                line, column, place,
                f"the tag {shown(event.tag)} is there; values are plain text, lists and mappings",
                "tag",
            )  # fmt: skip
        if isinstance(event, yaml.ScalarEvent):
            self._scalar(node, event, place)
        elif depth > DEEPEST:
            self._stop(event, place, f"this is too deep; at most {DEEPEST} levels", "too-deep")
        elif isinstance(event, yaml.SequenceStartEvent):
            self._sequence(node, place, depth)
        else:
            self._mapping(node, place, depth)
        if event.anchor is not None:
            self.anchors[event.anchor] = node
        return node

    def _alias(self, event: Any, place: str) -> Node:
        line, column = event.start_mark.line + 1, event.start_mark.column + 1
        self.aliases += 1
        if self.aliases > MOST_ALIASES:
            self._stop(event, place, f"one alias too many; at most {MOST_ALIASES}", "too-large")
        # An anchor is known when its value is complete, so that no value can hold itself.
        anchored = self.anchors.get(event.anchor)
        if anchored is None:
            self._stop(
                event, place, f"no value before *{event.anchor} has that anchor; "
                f"an alias repeats one that does", "unknown-alias",
            )  # fmt: skip
        self._grow(event, place, anchored.size)
        return replace(anchored, line=line, column=column)

    def _sequence(self, node: Node, place: str, depth: int) -> None:
        items: list[Node] = []
        for event in self.events:
            if isinstance(event, yaml.SequenceEndEvent):
                break
            items.append(self._node(event, below(place, len(items)), depth + 1))
        node.value = items
        _sum_up(node, items)

    def _mapping(self, node: Node, place: str, depth: int) -> None:
        values: dict[str, Node] = {}
        keys: dict[str, Node] = {}
        hides = place.endswith(".overrides")  # whose identities may be secrets; the line tells
        for event in self.events:
            if isinstance(event, yaml.MappingEndEvent):
                break
            key = self._node(event, place, depth + 1)
            under = place if hides else below(place, key.shown)
            value = self._node(next(self.events), under, depth + 1)
            if not isinstance(key.value, str):
                self.mistakes.add(
                    key.line, key.column, place, f"as a key, {key}; a key is text", "bad-key"
                )
            elif key.value in values:
                first = keys[key.value].line
                self.mistakes.add(
                    key.line, key.column, under,
                    f"the key {named(key.shown)}was given on line {first} already; give it once",
                    "duplicate-key",
                )  # fmt: skip
            else:
                values[key.value] = value
                keys[key.value] = key
        node.value, node.keys = values, keys
        _sum_up(node, [*values.values(), *keys.values()])

    def _scalar(self, node: Node, event: Any, place: str) -> None:
        node.shown = event.value
        if not event.style and event.value in _NULL:  # plain, not quoted
            return
        if "${" not in event.value:
            node.value = event.value
            return
        parts: list[str] = []
        names: dict[str, str] = {}
        end = 0
        for found in _VARIABLE.finditer(event.value):
            names.setdefault(found[1], found[0])
            parts += event.value[end : found.start()], self.environ.get(found[1], "")
            end = found.end()
        node.value = "".join(parts) + event.value[end:]
        node.variables = tuple(names)
        for name, source in names.items():
            if not re.fullmatch(r"\$\{[A-Za-z_][A-Za-z0-9_]*\}", source, re.ASCII):
                message = f"{shown(source)} names no variable; write ${{NAME}}"
                self.mistakes.add(node.line, node.column, place, message, "bad-variable")
            elif name not in self.environ:
                message = f"${{{name}}} is not set in the environment; set {name}"
                self.mistakes.add(node.line, node.column, place, message, "missing-variable")
            else:
                continue
            self.mistakes.unset.add(name)

    def _grow(self, event: Any, place: str, by: int) -> None:
        self.size += by
        if self.size > MOST_NODES:
            self._stop(event, place, f"one value too many; at most {MOST_NODES}", "too-large")

    def _stop(self, event: Any, place: str, message: str, code: str) -> NoReturn:
        mark = event.start_mark
        self.mistakes.add(mark.line + 1, mark.column + 1, place, message, code)
        raise _Stop


def _sum_up(node: Node, parts: list[Node]) -> None:
    node.size += sum(part.size for part in parts)
    names = [name for part in parts if part.variables for name in part.variables]
    node.variables = tuple(dict.fromkeys(names))
