"""The voice of every message: a value as it was given, a number out of range, the word meant."""

import sys
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import Final

__all__ = ["near", "shown", "whole"]

_LONGEST: Final = 60

if "RateLimitMiddleware" not in getattr(sys.modules["ratelimit"], "__all__", ()):
    # PyPI has another "ratelimit", and whichever is installed last has the package's first file.
    raise ImportError(
        "another distribution has written its own 'ratelimit' over this one; uninstall it (pip "
        "uninstall ratelimit) and install this one again (pip install --force-reinstall "
        "ratelimit-asgi)"
    )


def shown(value: object) -> str:
    """A user's value for a message: quoted, and cut to 60 characters."""
    quoted = repr(value)
    return quoted if len(quoted) <= _LONGEST else quoted[: _LONGEST - 3] + "..."


def whole(name: str, value: object, least: int, most: int | None = None) -> None:
    """Refuses what is not a whole number from ``least`` to ``most`` (None for no bound).

    Raises TypeError for another type (bool included), ValueError for another range.
    """
    if type(value) is not int:
        raise TypeError(f"{name} is a whole number, not {type(value).__name__}")
    if most is None and value < least:
        raise ValueError(f"{name} is {value}; it is at least {least}")
    if most is not None and not least <= value <= most:
        raise ValueError(f"{name} is {value}; it is {least} to {most}")


def near(
    word: str,
    words: Iterable[str],
    likeness: float = 0.5,
    write: Callable[[str], str] = str,
) -> str:
    """The end of a sentence that asks for the word meant; empty where none is alike.

    ``; did you mean WORD``, the word as ``write`` writes it. ``likeness`` is 0 to 1, as difflib
    measures it.
    """
    found = get_close_matches(word, list(words), 1, likeness)
    return f"; did you mean {write(found[0])}" if found else ""
