"""A rule file that is followed: read again when it changes, and put in force between two requests.

The law of this module: rules are replaced by rules without a mistake, or not at all.
"""

import asyncio
import contextlib
import hashlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, NamedTuple

from ratelimit.control.events import Events
from ratelimit.rules.file.mistakes import RuleFileError
from ratelimit.rules.ruleset import RuleSet
from ratelimit.runtime.background import Background
from ratelimit.runtime.contents import contents

__all__ = ["Watcher"]

_LOG: Final = logging.getLogger("ratelimit")

EVERY: Final = 2.0
"""Seconds between two looks at the files where the system does not report changes."""

QUIET: Final = 0.1
"""Seconds without a change after which files are taken to be written to their end."""

LOUD: Final = 1.0
"""Seconds after which they are read although they change all the time."""

MOST_LINKS: Final = 40
"""Symbolic links on the way to a file, as many as Linux follows."""

MOST_BYTES: Final = 10_000_001
"""Most of a file that is looked at for a change; no file that is longer is read."""

_HANGUP: Final[signal.Signals | None] = getattr(signal, "SIGHUP", None)


class _Reading(NamedTuple):
    """The outcome of reading a rule file once: rules, or the problem."""

    digests: dict[str, bytes]
    """Digests of the files that were read, taken before reading."""
    rules: RuleSet | None
    problem: Exception | None


class Watcher:
    """Keeps a limiter's rules those of a file, and of the files that it names.

    With ``watch`` changes are seen by themselves: files written in place, replaced by renaming, or
    reached through symbolic links that were swapped. With ``sighup`` they are read again when the
    process receives that signal; whatever heeded it before does not then. `reload` is for calling.

    Raises what `RuleSet.load` raises, and where the system lacks what is asked for, ImportError or
    ValueError.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, watch: bool = False, sighup: bool = False
    ) -> None:
        self._path = os.fspath(path)
        self._jobs: list[Background] = []
        if watch:
            try:
                import watchfiles  # noqa: F401, PLC0415  # an extra
            except ImportError:
                raise ImportError(
                    "to watch a rule file needs watchfiles: pip install 'ratelimit-asgi[watch]'"
                ) from None
            self._jobs.append(Background("watch", self._watch))
        if sighup:
            if _HANGUP is None:
                raise ValueError("sighup is asked for; this system has no such signal")
            self._jobs.append(Background("sighup", self._heed))
            self._hung_up = False
            if _in_main_thread() and signal.getsignal(_HANGUP) == signal.SIG_DFL:
                # The process must not end by a signal that comes before an event loop heeds it.
                signal.signal(_HANGUP, self._remember)
        reading = _read(self._path, (self._path,))
        if reading.rules is None:
            raise reading.problem or RuntimeError
        self.rules = reading.rules
        """The rules in force, as the file gave them."""
        self._use: Callable[[RuleSet], None] = lambda _: None
        self._events = Events()
        self._digests = reading.digests
        self._since = time.time()
        self._mistakes: list[str] = []
        self._begun = self._ended = 0
        self.reloads = self.failures = 0
        """Times that it was read again and put in force, and that it was not, for a mistake."""

    def follow(self, use: Callable[[RuleSet], None], events: Events | None = None) -> None:
        """Has ``use`` called with the rules whenever they were read again; it may refuse them.

        It is called in the event loop that asked, and raises ValueError for what it cannot use.
        ``events`` are told what came of it.
        """
        self._use = use
        self._events = events or self._events

    def run(self) -> None:
        """Begins to watch, and to heed the signal, in this event loop, where that was asked for."""
        for job in self._jobs:
            job.run()

    async def reload(self) -> bool:
        """Reads the file again, whether it changed or not, and puts its rules in force.

        False where it has a mistake: the rules stay as they are, and the log and `health` say why.
        """
        self._begun += 1
        number = self._begun
        reading = await asyncio.to_thread(_read, self._path, tuple(self._digests))
        if number > self._ended:  # or one that began later is in force
            self._ended = number
            self._conclude(reading)
        return not self._mistakes

    def health(self) -> dict[str, object]:
        """The file, the time since which its rules are in force (epoch seconds), and its mistakes.

        ``mistakes`` are those of the file as it was last read, empty where it was put in force.
        """
        return {
            "file": self._path,
            "since": round(self._since, 3),
            "mistakes": list(self._mistakes),
        }

    async def aclose(self) -> None:
        """Ends what runs in the background of this event loop."""
        for job in self._jobs:
            await job.aclose()

    def _conclude(self, reading: _Reading) -> None:
        self._digests = reading.digests
        problem, change = reading.problem, ""
        if reading.rules is not None:
            try:
                self._use(reading.rules)
            except Exception as error:  # noqa: BLE001  # the law of this module
                problem = error
            else:
                change = f"{self._path}: {_change(self.rules, reading.rules)}"
                _LOG.info("rules-reloaded: %s", change)
                self.rules = reading.rules
                self._since = time.time()
        self._mistakes = [] if problem is None else _mistakes(self._path, problem)
        for mistake in self._mistakes:
            _LOG.error("rules-not-reloaded: the rules stay as they are: %s", mistake)
        if self._mistakes:
            self.failures += 1
            self._events.happened("rules-not-reloaded", "; ".join(self._mistakes))
        elif reading.rules is not None:
            self.reloads += 1
            self._events.happened("rules-reloaded", change)

    async def _watch(self) -> None:
        """Looks whenever the system reports a change, and every now and then without a report.

        Not every file system reports changes, and a folder may be replaced with all that is in it.
        """
        from watchfiles import awatch  # noqa: PLC0415  # an extra

        told = False
        while True:
            trail = await self._look()
            changes = awatch(
                *{place.parent for place in trail},
                watch_filter=_named({place.name for place in trail}),
                step=round(QUIET * 1000),
                debounce=round(LOUD * 1000),
                rust_timeout=round(EVERY * 1000),
                yield_on_timeout=True,
                recursive=False,
            )
            try:
                async with contextlib.aclosing(changes):
                    async for _ in changes:
                        if await self._look() != trail:
                            break
            except Exception as error:  # noqa: BLE001  # too many watches, a folder that is gone
                if not told:
                    told = True
                    _LOG.warning(
                        "watch-failed: %s; the rule file is looked at every %g seconds instead",
                        error,
                        EVERY,
                    )
                await asyncio.sleep(EVERY)

    async def _look(self) -> set[Path]:
        """Reads the files again if they changed; gives all that may be replaced to change them."""
        if await asyncio.to_thread(_digests, self._digests) != self._digests:
            await self.reload()
        files = tuple(self._digests)
        return await asyncio.to_thread(lambda: set[Path]().union(*map(_trail, files)))

    def _remember(self, *_: object) -> None:
        self._hung_up = True

    async def _heed(self) -> None:
        """Reads the file again at each SIGHUP."""
        if _HANGUP is None or not _in_main_thread():
            _LOG.warning("sighup-unheard: a signal is heard in the main thread only; call reload()")
            await asyncio.Event().wait()
            return
        loop = asyncio.get_running_loop()
        asked = asyncio.Event()
        before = signal.getsignal(_HANGUP) or signal.SIG_DFL
        loop.add_signal_handler(_HANGUP, asked.set)
        if self._hung_up:
            asked.set()
        try:
            while True:
                await asked.wait()
                asked.clear()
                await self.reload()
        finally:
            loop.remove_signal_handler(_HANGUP)
            signal.signal(_HANGUP, before)


def _in_main_thread() -> bool:
    """Whether signals can be heeded here."""
    return threading.current_thread() is threading.main_thread()


def _read(path: str, known: tuple[str, ...]) -> _Reading:
    """Reads a rule file that is known to name these files, or others by now."""
    while True:
        digests = _digests(known)
        rules: RuleSet | None = None
        problem: Exception | None = None
        try:
            rules = RuleSet.load(path)
            files = {path, *rules.files}
        except RuleFileError as error:
            problem = error
            # What is wrong may be put right in any of these.
            files = {*known, *getattr(error, "files", ())}
        except Exception as error:  # noqa: BLE001  # the law of this module
            problem = error
            files = set(known)
        if files <= set(known):
            return _Reading({file: digests[file] for file in files}, rules, problem)
        # A file that was not known may have changed since it was read, unnoticed.
        known = tuple(files)


def _digests(files: Iterable[str]) -> dict[str, bytes]:
    """A digest of each file's contents; empty for a file that cannot be read."""
    digests = {}
    for path in files:
        digests[path] = b""
        with contextlib.suppress(OSError, ValueError):
            digests[path] = hashlib.blake2b(contents(path, MOST_BYTES)).digest()
    return digests


def _trail(path: str) -> set[Path]:
    """A file and all symbolic links on the way to it, each of which can change it."""
    trail: set[Path] = set()
    place = Path(os.path.abspath(path))  # noqa: PTH100  # links are followed one by one
    for _ in range(MOST_LINKS):
        trail.add(place)
        link = next((part for part in (*reversed(place.parents), place) if part.is_symlink()), None)
        if link is None:
            break
        trail.add(link)
        target = link.parent / link.readlink() / place.relative_to(link)
        place = Path(os.path.abspath(target))  # noqa: PTH100
    return trail


def _named(names: set[str]) -> Callable[[object, str], bool]:
    """A filter for changes of these names, not of their neighbours in a folder."""
    return lambda _, path: Path(path).name in names


def _mistakes(path: str, problem: Exception) -> list[str]:
    if isinstance(problem, RuleFileError):
        return [str(mistake) for mistake in problem.mistakes]
    if isinstance(problem, ValueError):
        return [f"{path}: {problem}"]
    return [f"{path}: {type(problem).__name__}: {problem}"]


def _change(before: RuleSet, after: RuleSet) -> str:
    """The rules that are new, changed or gone, in words."""
    old, new = ({rule.name: rule for rule in rules.rules} for rules in (before, after))
    words = {
        "new": new.keys() - old.keys(),
        "changed": {name for name in new.keys() & old.keys() if new[name] != old[name]},
        "gone": old.keys() - new.keys(),
    }
    said = [f"{word} {', '.join(sorted(names))}" for word, names in words.items() if names]
    return "; ".join(said) or "no rule changed"
