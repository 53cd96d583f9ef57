"""A path in Starlette's route syntax, as a rule matches requests by it.

A rule matches at least what Starlette's router would: whatever reaches a route is limited by the
rule of the same path. It does so in time that is linear in the length of a request's path, which
is the client's: a regex tries ``/{year}-{month}-{day}`` in as many ways as there are three dashes.

So a pattern is a row of steps, each of which takes some characters. From the last to the first, the
positions are found from which the steps that remain can reach the end; then, from the first to the
last, each step takes as much as it can where the rest still reaches it, which is what the regex
would have found. The positions are the bits of one whole number, so that all of them take a step
at once: Cameron et al., "Bitwise data parallelism in regular expression matching", PACT 2014.
"""

import posixpath
import re
import sys
from bisect import bisect_right
from collections.abc import Mapping
from math import comb
from typing import Any, Final, NamedTuple

from starlette.convertors import FloatConvertor, PathConvertor, StringConvertor, UUIDConvertor
from starlette.routing import compile_path

from ratelimit.words import shown

__all__ = ["Path", "route_path"]

_PARAMETER: Final = re.compile("{([a-zA-Z_][a-zA-Z0-9_]*)(?::([a-zA-Z_][a-zA-Z0-9_]*))?}", re.ASCII)
_NEVER_IN_PATH: Final = re.compile(r"[?#\x00-\x1f\x7f]|%[0-9A-Fa-f]{2}")
_LONGEST: Final = 2_000

_FEW_WAYS: Final = 2_000
"""Ways in which the regex may try a path: on a short one it is faster than the steps."""
_MOST_WAYS: Final = 100_000
"""Ways in which it may try one where only the regex can tell: some milliseconds."""
_LONGEST_FOR_REGEX: Final = 1_000
"""Characters on which a regex is tried that is not known to be linear."""

# One character or class of a convertor's regex, and how often, as much as can be.
_ATOM: Final = re.compile(
    r"(\[\^?[^\\\[\]]+\]|\\[dDsSwW]|\\[^A-Za-z0-9]|[^\\\[\](){}*+?|^$])"
    r"([*+?]|\{[0-9]{1,3}(?:,[0-9]{0,3})?\})?(?![*+?{])"
)
_GROUP: Final = re.compile(r"\((?:\?:)?([^()]+)\)\?(?![*+?{])")
_ONE_SEGMENT: Final = ("[^/]+", "[0-9]+", FloatConvertor.regex, UUIDConvertor.regex)
"""Regexes that, as a whole segment, end in one place only, or nearly so."""


class _Step(NamedTuple):
    """``least`` to ``most`` characters of one class, as many as can be; None for any number."""

    one: "re.Pattern[str]"
    run: "re.Pattern[str]"
    least: int
    most: int | None
    spared: int = 0
    """Number of steps, from this one on, that are left out where they cannot be taken."""


class _Pattern(NamedTuple):
    """A path's steps between its first and its last text."""

    first: str
    steps: list[_Step]
    last: str
    parameters: list[tuple[str, int, int]]
    """Names, each with its first step and the one after its last."""


def normalised(path: str) -> str:
    """A path as a server of files reads it: without ``//``, ``/./``, ``/../`` and backslashes."""
    if "//" not in path and "/." not in path and "\\" not in path:
        return path
    path = path.replace("\\", "/")
    normal = posixpath.normpath("/" + path.lstrip("/"))
    return f"{normal}/" if path.endswith(("/", "/.", "/..")) and normal != "/" else normal


class Path:
    """``/api/{rest:path}``, compiled; ``literal`` where it has no parameters.

    An application's own convertors match by their regex. Where that is more than characters and
    classes in a row, each as often as may be, a path that is long for it (1,000 characters; fewer
    beside other parameters that are not whole segments) matches as if it were ``.*``: a rule may
    then hold more than the route, and never less.

    Raises ValueError, in one sentence, for text that no request's path could match.
    """

    __slots__ = (
        "_across_lines", "_convertors", "_is_deep", "_known", "_last", "_longest", "_patterns",
        "_regex", "literal", "parameters", "start",
    )  # fmt: skip

    def __init__(self, text: str) -> None:
        names = _names(text)
        try:
            self._regex, _, self._convertors = compile_path(text)
        except (AssertionError, KeyError):  # KeyError where Python runs with -O
            raise ValueError(
                f"the path {shown(text)} has a convertor that does not exist; there are str, int, "
                "float, uuid, path and those that the application registered"
            ) from None
        # A rule for "/api/{rest:path}" must also hold what a route "/api/{name}" accepts, and
        # that includes "/api/a%0Ab": the dot of Starlette's path convertor stops at a new line.
        dots = any("." in each.regex for each in self._convertors.values())
        self._across_lines = re.compile(self._regex.pattern, re.DOTALL) if dots else self._regex
        self.parameters = tuple(names)
        first = _PARAMETER.search(text)
        self.literal = first is None
        self.start = text if first is None else text[: text.rindex("/", 0, first.start()) + 1]
        """The path itself, or the whole segments before its first parameter."""
        rest = _PARAMETER.fullmatch(text, len(self.start))
        convertor = None if rest is None else type(self._convertors[rest[1]])
        self._is_deep = convertor is PathConvertor
        """Whether `_last` is all that follows, and not one segment."""
        self._last = names[0] if convertor in (StringConvertor, PathConvertor) else None
        """The only parameter, where it is all behind the start and any text."""
        self._longest = _longest(text, self._convertors)
        """Characters of a path up to which the regex is tried: it is faster there, or must be."""
        self._known = None not in [
            _steps(each.regex, re.NOFLAG) for each in self._convertors.values()
        ]
        self._patterns: tuple[_Pattern, ...] = (
            ()
            if self._longest == sys.maxsize
            else (
                _pattern(text, self._convertors, re.NOFLAG),
                _pattern(text, self._convertors, re.DOTALL),
            )
        )

    def match(self, path: str, *, exactly: bool = False) -> dict[str, object] | None:
        """The parameters, converted, of a decoded path; None where it is another one.

        With ``exactly`` it holds no more than the route: what only a regex could tell of a path
        that is long for it is then another one, and so is a new line that its dots do not match.
        Never raises: a value that its convertor refuses (5,000 digits for an ``int``) stays text.
        """
        if self._last is not None:  # by far the commonest, and a fifth of the regex's cost
            if not path.startswith(self.start):
                return None
            rest = path[len(self.start) :]
            if not self._is_deep:
                return {self._last: rest} if rest and "/" not in rest else None
            if "\n" not in rest:
                return {self._last: rest}
        found: re.Match[str] | dict[str, str] | None
        if len(path) <= self._longest:
            found = self._regex.match(path)
            if found is None and "\n" in path and not exactly:
                found = self._across_lines.match(path)
        elif exactly and not self._known:
            return None
        else:
            found = _walk(self._patterns[0], path)
            if found is None and "\n" in path and not exactly:
                found = _walk(self._patterns[1], path)
        if found is None:
            return None
        return {name: _converted(each, found[name]) for name, each in self._convertors.items()}


def _names(text: str) -> list[str]:
    """The names of a path's parameters; raises ValueError for what is no path, as `Path` does."""
    if not text.startswith("/"):
        raise ValueError(f"the path is {shown(text)}; it starts with /")
    if len(text) > _LONGEST:
        raise ValueError(f"the path has {len(text)} characters; it has at most {_LONGEST}")
    never = _NEVER_IN_PATH.search(text)
    if never:
        raise ValueError(
            f"the path {shown(text)} holds {shown(never[0])}; it is the decoded path alone, "
            "without query or fragment"
        )
    if re.search("[{}]", _PARAMETER.sub("", text)):
        raise ValueError(
            f"the path {shown(text)} has a brace that belongs to no parameter; parameters are "
            "written {name} or {name:int}"
        )
    if text.endswith("*"):
        raise ValueError(
            f"the path {shown(text)} ends with '*', which would stand for itself; write "
            f"{shown(text.rstrip('*') + '{rest:path}')} for all that follows"
        )
    names = [name for name, _ in _PARAMETER.findall(text)]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(
                f"the path {shown(text)} has two parameters {name!r}; each has its own name"
            )
    return names


def _converted(convertor: Any, text: str) -> object:
    try:
        return convertor.convert(text)
    except Exception:  # noqa: BLE001  any convertor of the application's
        return text


# --- steps ---------------------------------------------------------------------------------------


def _split(text: str) -> tuple[list[str], list[str]]:
    """The literal texts of a path, and the names of the parameters between them."""
    pieces = _PARAMETER.split(text)
    return pieces[::3], pieces[1::3]


def _longest(text: str, convertors: Mapping[str, Any]) -> int:
    """Characters up to which the regex takes no more than a moment on a path."""
    texts, names = _split(text)
    unbounded, ways, known = 0, 1, True
    for number, name in enumerate(names):
        regex = convertors[name].regex
        after = texts[number + 1] or ("/" if number + 1 == len(names) else "")
        if texts[number].endswith("/") and after.startswith("/") and regex in _ONE_SEGMENT:
            continue
        steps = _steps(regex, re.NOFLAG)
        known = known and steps is not None
        for step in steps or _ANY:
            unbounded += step.most is None
            ways *= 1 if step.most is None else step.most - step.least + 1
            ways *= 2 if step.spared else 1
    if known and unbounded <= 1 and ways <= 100:
        return sys.maxsize  # a slash ends all but one of them, so that its regex is linear
    longer = bisect_right(
        range(_LONGEST_FOR_REGEX + 1),
        _FEW_WAYS if known else _MOST_WAYS,
        key=lambda length: ways * comb(length + unbounded, unbounded),
    )
    return len(texts[0]) + longer - 1


def _pattern(text: str, convertors: Mapping[str, Any], flags: int) -> _Pattern:
    texts, names = _split(text)
    steps: list[_Step] = []
    parameters = []
    for number, name in enumerate(names):
        if number:
            steps += _steps(re.escape(texts[number]), flags) or ()
        begin = len(steps)
        known = _steps(convertors[name].regex, flags)
        steps += _ANY if known is None else known
        parameters.append((name, begin, len(steps)))
    return _Pattern(texts[0], steps, texts[-1], parameters)


def _steps(regex: str, flags: int) -> list[_Step] | None:
    """A regex as steps; None where it is more than those can say."""
    steps: list[_Step] = []
    at = 0
    while at < len(regex):
        group = _GROUP.match(regex, at)
        if group is not None:
            inner = _steps(group[1], flags)
            if not inner:
                return None
            steps += [inner[0]._replace(spared=len(inner)), *inner[1:]]
            at = group.end()
            continue
        atom = _ATOM.match(regex, at)
        if atom is None:
            return None
        least, comma, most = _OFTEN.get(atom[2], atom[2] or "").strip("{}").partition(",")
        steps.append(
            _Step(
                re.compile(atom[1], flags),
                re.compile(atom[0], flags),
                int(least),
                int(most) if most else None if comma else int(least),
            )
        )
        at = atom.end()
    return steps


_OFTEN: Final[dict[str | None, str]] = {None: "1", "*": "0,", "+": "1,", "?": "0,1"}
_ANY: Final = [_Step(re.compile(".", re.DOTALL), re.compile(".*", re.DOTALL), 0, None)]


def _walk(pattern: _Pattern, path: str) -> dict[str, str] | None:
    """The texts of the parameters, as the regex would find them; None where it does not match."""
    at, steps = len(pattern.first), pattern.steps
    if not path.startswith(pattern.first):
        return None
    reaching = _reaching(pattern, path)
    if not reaching[0] >> (len(path) - at) & 1:
        return None
    places = [0] * len(reaching)
    number = 0
    while number < len(steps):
        step = steps[number]
        places[number] = at
        run = step.run.match(path, at)
        end = -1
        if run is not None:
            shorter = reaching[number + 1] >> (len(path) - run.end())
            end = run.end() + 1 - (shorter & -shorter).bit_length() if shorter else -1
        if end >= at + step.least:
            at = end
            number += 1
        else:
            number += step.spared
    places[number] = at
    return {name: path[places[begin] : places[end]] for name, begin, end in pattern.parameters}


def _reaching(pattern: _Pattern, path: str) -> list[int]:
    """The positions from which each step, and those after it, can reach the end of the path.

    Bit 0 of each is the end itself, bit 1 before the last character, and so on.
    """
    ends = 0
    for last in (pattern.last, pattern.last + "\n"):  # "$" matches before a new line as well
        ends |= path.endswith(last) << len(last)
    reaching = [ends]
    alphabet = "".join(set(path))
    masks: dict[re.Pattern[str], int] = {}
    for step in reversed(pattern.steps):
        mask = masks.get(step.one)
        if mask is None:  # where in the path its characters are
            bits = dict.fromkeys(map(ord, alphabet), "0")
            bits |= dict.fromkeys(map(ord, step.one.findall(alphabet)), "1")
            mask = masks[step.one] = int(path.translate(bits), 2)
        here = reaching[-1]
        for _ in range(step.least):
            here = (here & mask) << 1
        if step.most is None:  # the carry of an addition runs through all of a run's characters
            here |= ((here & mask) + mask) ^ mask
        else:
            for _ in range(step.most - step.least):
                here |= (here & mask) << 1
        reaching.append(here | reaching[-step.spared] if step.spared else here)
    reaching.reverse()
    return reaching


def route_path(scope: Mapping[str, Any]) -> str:
    """The decoded path below `root_path`, which is what routes are matched against."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    if root and path.startswith(root) and (len(path) == len(root) or path[len(root)] == "/"):
        return path[len(root) :] or "/"
    return path
