"""The files that a rule file names: networks or overrides, one a line, ``#`` before a comment.

Their mistakes carry their own names, lines and columns. Nothing in them is taken from the
environment.
"""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

from ratelimit.identity.addresses import Network
from ratelimit.identity.networks import networks_in
from ratelimit.rules.file.yaml import Mistakes, decoded, identity_shown, reason
from ratelimit.runtime.contents import contents

__all__ = ["Lists", "Override"]

MOST_BYTES: Final = 10_000_000
MOST_LINES: Final = 200_000
MOST_LINES_IN_ALL: Final = 500_000
"""Of all files together, one that several rules name counted for each."""

_COMMENT: Final = re.compile(r"(?:^|\s)#")
_NEW_LINE: Final = re.compile("\r\n|\r|\n")

T = TypeVar("T")


class Override(NamedTuple):
    """One line of a file of overrides; ``line`` and the columns count from 1."""

    line: int
    column: int
    limit_column: int
    limit: str


class Lists:
    """The list files of one rule file, each read once.

    What both methods return is shared. They raise ValueError, in one sentence, where a file cannot
    be read at all.
    """

    def __init__(self, rule_file: str, found: list[Mistakes]) -> None:
        self.folder = Path(rule_file).parent
        self.found = found
        """Takes the mistakes of every file."""
        self.files: dict[str, None] = {}
        """The files that were asked for, as they can be opened, in order."""
        self._read: dict[tuple[str, object], tuple[object, Mistakes, int]] = {}
        self._lines = 0

    def networks(self, name: str, title: str, place: str) -> tuple[list[Network], Mistakes]:
        """The networks in the file ``name``, which mistakes call ``title``."""

        def parse(text: str, mistakes: Mistakes) -> list[Network]:
            networks, wrong = networks_in(text)
            for line, column, message in wrong:
                mistakes.add(line, column, place, message, "bad-network")
            return networks

        return self._parsed(name, title, place, parse, [])

    def overrides(self, name: str, title: str, place: str) -> tuple[dict[str, Override], Mistakes]:
        """The overrides in the file ``name``, by identity; their limits are not looked into."""

        def parse(text: str, mistakes: Mistakes) -> dict[str, Override]:
            return _overrides(text, place, mistakes)

        return self._parsed(name, title, place, parse, {})

    def _parsed(
        self, name: str, title: str, place: str, parse: Callable[[str, Mistakes], T], nothing: T
    ) -> tuple[T, Mistakes]:
        path = os.fspath(self.folder / name)
        self.files[path] = None
        kind = type(nothing)
        if (path, kind) not in self._read:
            mistakes = Mistakes(title)
            self.found.append(mistakes)
            text = self._text(path, place, mistakes)
            lines = 0 if text is None else len(_NEW_LINE.findall(text)) + 1
            if lines > MOST_LINES:
                message = f"the file has {lines} lines; at most {MOST_LINES}"
                mistakes.add(1, 1, place, message, "too-large")
                text = None
            parsed = nothing if text is None else parse(text.removeprefix("\ufeff"), mistakes)
            self._read[path, kind] = parsed, mistakes, lines
        parsed, mistakes, lines = self._read[path, kind]  # type: ignore[assignment]
        self._lines += lines
        if self._lines > MOST_LINES_IN_ALL:
            raise ValueError(
                f"with this file the lists have more than {MOST_LINES_IN_ALL} lines in all; that "
                "is the most"
            )
        return parsed, mistakes

    def _text(self, path: str, place: str, mistakes: Mistakes) -> str | None:
        try:
            raw = contents(path, MOST_BYTES + 1)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"the file cannot be read ({reason(error)}); name one that is there, relative to "
                "the rule file"
            ) from None
        return decoded(raw, MOST_BYTES, mistakes, place)


def _overrides(text: str, place: str, mistakes: Mistakes) -> dict[str, Override]:
    found: dict[str, Override] = {}
    for number, line in enumerate(_NEW_LINE.split(text), 1):
        content = _COMMENT.split(line, 1)[0] if "#" in line else line
        words = content.split(None, 1)
        if not words:
            continue
        identity = words[0]
        column = content.index(identity) + 1
        if len(words) == 1:
            mistakes.add(
                number, column, place, "an identity is there without a limit; write an "
                "identity, a space and its limit, 'unlimited' or 'blocked'", "bad-override",
            )  # fmt: skip
        elif identity in found:
            mistakes.add(
                number, column, place, f"{identity_shown(identity)} was given on line "
                f"{found[identity].line} already; give it once", "same-override",
            )  # fmt: skip
        else:
            start = content.index(words[1], column - 1 + len(identity))
            found[identity] = Override(number, column, start + 1, words[1].rstrip())
    return found
