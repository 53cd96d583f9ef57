"""Options, and the one way to read them: for `Rule`, for `RuleSet` and for rule files."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeVar

from ratelimit.words import near, shown

__all__ = [
    "REQUIRED",
    "Coded",
    "Enough",
    "Form",
    "Note",
    "Option",
    "Options",
    "Place",
    "Reading",
    "UnknownKey",
    "refuse_unknown",
    "text",
]

T = TypeVar("T")

Place = tuple[str | int, ...]
Note = Callable[[Place, Exception], None]
"""Takes a mistake and its place: the option's key, and where in its value it is."""


class Coded(ValueError):
    """A value that cannot be meant, with a code of its own."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class UnknownKey(Coded):
    """A key that a mapping does not have, told where the key stands."""

    def __init__(self, mapping: str, key: object, known: Sequence[str]) -> None:
        hint = near(str(key), known, write=repr) or f"; known are {', '.join(known)}"
        super().__init__("unknown-key", f"the key {shown(str(key))} of {mapping} is unknown{hint}")


class _Unread(LookupError):
    """A value that is asked for has a mistake of its own."""


class Reading(dict[str, Any]):
    """The values kept of the options that were read so far, and the way to report a mistake."""

    def __init__(self, given: Mapping[str, Any], note: Note | None, failed: Iterable[str]) -> None:
        super().__init__()
        self.given = given
        """The values of the options that were not left out."""
        self.failed = set(failed)
        """Options with a mistake."""
        self.key = ""
        """The option that is being read."""
        self._note = note

    def __missing__(self, key: str) -> Any:
        raise _Unread(key)

    def at(self, place: Place, reads: Callable[..., T], *arguments: Any) -> T | None:
        """The value that a function gives; None for a mistake, which is noted if not raised."""
        if self._note is None:
            return reads(*arguments)
        try:
            return reads(*arguments)
        except (ValueError, TypeError) as error:
            self.failed.add(self.key)
            self._note((self.key, *place), error)
            return None

    def refuse_unknown(self, value: Mapping[Any, Any], known: Sequence[str]) -> None:
        """Reports the keys of a mapping that are not known."""
        for key in value:
            if key not in known:
                self.at((str(key),), self._unknown, key, known)

    def _unknown(self, key: object, known: Sequence[str]) -> None:
        raise UnknownKey(self.key, key, known)


class Enough(Exception):  # it ends a reading, and is no error
    """Raised by a note that takes no more mistakes of an option, of which no more is read then."""


class Form(NamedTuple):
    """The way in which a rule file writes a value; `ratelimit.rules.file.forms` knows the kinds."""

    kind: str
    words: tuple[str, ...] = ()
    """The words that the value, or each item of it, is one of."""
    least: int = 0
    most: int | None = None
    """Bounds of a whole number, the most included; None for none."""
    examples: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Option:
    about: str
    """One sentence for the documentation and for editors."""
    form: Form | None
    """None for an option that is a function of the application, which no file can hold."""
    read: Callable[[Any, Reading], Any]
    """Gives what is kept of a value; raises ValueError or TypeError, in one sentence."""
    default: Any = None
    """Kept where the option is left out; given as it is, it means the same."""
    needs: tuple[str, ...] = ()
    """Options whose values it is held against, as far as they have no mistake; read before it."""
    shows: tuple[str, ...] = ()
    """Other options whose values a mistake may show."""
    code: str = ""
    """The code of its mistakes; ``bad-`` and its key if empty."""
    inside: str = ""
    """The mapping of a rule that it stands in."""
    also: tuple[str, Form, str] | None = None
    """Another key of a file that gives it, or more of it: its name, form and sentence."""


REQUIRED: Final = object()
"""The default of an option that cannot be left out."""


class Options(dict[str, Option]):
    """Options by their keys, in the order of the documentation."""

    def __init__(self, **options: Option) -> None:
        super().__init__(options)
        self._order = tuple(_as_read(self))

    def read(
        self,
        given: Mapping[str, Any],
        note: Note | None = None,
        failed: Iterable[str] = (),
    ) -> Reading:
        """The value kept of each option without a mistake, the default of one that is left out.

        Without ``note`` the first mistake is raised: a ValueError or TypeError in one sentence.
        With it each is noted, and its option is missing in what is returned, as are those of
        ``failed`` and what cannot be held against them: of that, the mistakes are noted that can
        be told without.
        """
        reading = Reading(given, note, failed)
        for key in self._order:
            option = self[key]
            value = given.get(key, option.default)
            if key not in given and key in reading.failed:
                continue
            if value is option.default:
                reading[key] = value
                continue
            reading.key = key
            try:
                kept = reading.at((), option.read, value, reading)
            except (_Unread, Enough):
                continue
            if key not in reading.failed:
                reading[key] = kept
        return reading


def refuse_unknown(what: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raises TypeError where a keyword is not known."""
    names = sorted(known)
    for each in given:
        if each not in names:
            raise TypeError(
                f"{what} has no option {each}{near(each, names)}; there are {', '.join(names)}"
            )


def _as_read(options: Mapping[str, Option]) -> Iterator[str]:
    """The keys in the order of the options, each behind those that it needs or shows."""
    rest = dict(options)
    while rest:
        key = next(
            key for key, each in rest.items() if rest.keys().isdisjoint((*each.needs, *each.shows))
        )
        del rest[key]
        yield key


def text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name} is text, not {type(value).__name__}")
    return value
