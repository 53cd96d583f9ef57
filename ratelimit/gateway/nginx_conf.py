"""A configuration of nginx as a row of directives, in time that is linear in its length. Pure."""

import re
from collections.abc import Iterator, Sequence
from typing import Final

from ratelimit.gateway.converted import Converted
from ratelimit.words import shown

__all__ = ["directives"]

_TOKEN: Final = re.compile(
    r"""(?P<space>[ \t\r\n]++|\#[^\n]*+)
    |(?P<sign>[{};])
    |"(?P<double>[^"\\]*+(?:\\.[^"\\]*+)*+)"
    |'(?P<single>[^'\\]*+(?:\\.[^'\\]*+)*+)'
    |(?P<word>(?:\$\{[^}\s]*+\}|\\.|[^\s;{}\\])++)
    |(?P<odd>.)""",
    re.VERBOSE | re.DOTALL,
)


def directives(text: str, found: Converted) -> Iterator[tuple[int, Sequence[str], str]]:
    """Each directive: its line, its words, and the sign that ends it."""
    words: list[str] = []
    line = begun = 1
    for token in _TOKEN.finditer(text):
        kind = token.lastgroup
        if kind == "sign":
            if words or token[0] == "}":
                yield begun if words else line, words, token[0]
            elif token[0] == "{":
                yield line, [""], "{"
            words = []
        elif kind == "odd":
            found.leave(line, f"{shown(token[0])} cannot be read; the rest of the file is left out")
            return
        elif kind != "space":
            begun = begun if words else line
            words.append(re.sub(r"\\(.)", r"\1", token[kind or 0], flags=re.DOTALL))
        line += token[0].count("\n")
    if words:
        found.leave(begun, "the file ends within a directive")
