"""Mistakes in a rule file, and the error that tells all of them at once.

Apart from the reader, which loads pydantic and PyYAML, since whoever writes rules in Python needs
neither.
"""

from typing import NamedTuple

__all__ = ["Mistake", "RuleFileError"]


class Mistake(NamedTuple):
    """One mistake in a rule file: where it is, what is there and what is allowed.

    ``line`` and ``column`` count from 1; ``code`` is short, stable and kebab-case.
    """

    file: str
    line: int
    column: int
    place: str
    message: str
    code: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}: {self.place}: {self.message} [{self.code}]"


class RuleFileError(Exception):
    """Every mistake in a rule file at once, by line and column; its text is one line for each."""

    def __init__(self, mistakes: tuple[Mistake, ...], files: tuple[str, ...] = ()) -> None:
        super().__init__(mistakes, files)
        self.mistakes = mistakes
        self.files = files
        """The files that the rule file names, whether they are there or not."""

    def __str__(self) -> str:
        return "\n".join(map(str, self.mistakes))
