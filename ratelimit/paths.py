"""A path in Starlette's route syntax, as a rule matches requests by it.

A rule matches at least what Starlette's router would: whatever reaches a route is limited by the
rule of the same path.
"""

import re
from typing import Any, Final

from starlette.routing import compile_path

__all__ = ["Path"]

_PARAMETER: Final = re.compile("{([a-zA-Z_][a-zA-Z0-9_]*)(?::([a-zA-Z_][a-zA-Z0-9_]*))?}", re.ASCII)
_NEVER_IN_PATH: Final = re.compile(r"[?#\x00-\x1f\x7f]|%[0-9A-Fa-f]{2}")
_LONGEST: Final = 2_000


class Path:
    """``/api/{rest:path}``, compiled; ``literal`` where it has no parameters.

    Raises ValueError, in one sentence, for text that no request's path could match.
    """

    __slots__ = ("_across_lines", "_convertors", "_regex", "literal", "parameters", "start")

    def __init__(self, text: str) -> None:
        if not text.startswith("/"):
            raise ValueError(f"the path is {_shown(text)}; it starts with /")
        if len(text) > _LONGEST:
            raise ValueError(f"the path has {len(text)} characters; it has at most {_LONGEST}")
        never = _NEVER_IN_PATH.search(text)
        if never:
            raise ValueError(
                f"the path {_shown(text)} holds {_shown(never[0])}; it is the decoded path alone, "
                "without query or fragment"
            )
        if re.search("[{}]", _PARAMETER.sub("", text)):
            raise ValueError(
                f"the path {_shown(text)} has a brace that belongs to no parameter; parameters are "
                "written {name} or {name:int}"
            )
        names = [name for name, _ in _PARAMETER.findall(text)]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(
                    f"the path {_shown(text)} has two parameters {name!r}; each has its own name"
                )
        try:
            self._regex, _, self._convertors = compile_path(text)
        except (AssertionError, KeyError):  # KeyError where Python runs with -O
            raise ValueError(
                f"the path {_shown(text)} has a convertor that does not exist; there are str, int, "
                "float, uuid, path and those that the application registered"
            ) from None
        # A rule for "/api/{rest:path}" must also hold what a route "/api/{name}" accepts, and
        # that includes "/api/a%0Ab": the dot of Starlette's path convertor stops at a new line.
        self._across_lines = re.compile(self._regex.pattern, re.DOTALL)
        self.parameters = tuple(names)
        first = _PARAMETER.search(text)
        self.literal = first is None
        self.start = text if first is None else text[: text.rindex("/", 0, first.start()) + 1]
        """The path itself, or the whole segments before its first parameter."""

    def match(self, path: str) -> dict[str, object] | None:
        """The parameters, converted, of a decoded path; None where it is another one.

        Never raises: a value that its convertor refuses (5,000 digits for an ``int``) stays text.
        """
        found = self._regex.match(path)
        if found is None and "\n" in path:
            found = self._across_lines.match(path)
        if found is None:
            return None
        return {name: _converted(each, found[name]) for name, each in self._convertors.items()}


def _converted(convertor: Any, text: str) -> object:
    try:
        return convertor.convert(text)
    except Exception:  # noqa: BLE001  any convertor of the application's
        return text


def _shown(value: object) -> str:
    """A user's value for a message: quoted, and cut where it is long."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
