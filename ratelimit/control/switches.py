"""The rules that are turned off at the moment, learnt in the background so that no request asks.

The law of this module: a source that cannot be read keeps its last value.
"""

import asyncio
import logging
import os
import random
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final, Protocol, runtime_checkable

from ratelimit.control.events import Events
from ratelimit.runtime.background import Background
from ratelimit.runtime.contents import contents
from ratelimit.stores import StoreUnavailable

__all__ = ["ALL", "Reporting", "Switchable", "Switches"]

_LOG: Final = logging.getLogger("ratelimit")

ALL: Final = "*"
"""The name that stands for every rule."""

EVERY: Final = 0.5
"""Seconds between two looks, at most; half of the second within which a switch works."""

MOST_BYTES: Final = 100_000
"""Most bytes of a file of names."""

REPORT: Final = 10.0
"""Seconds between two reports of the rules that there are, unless they change."""

REPORTED_FOR: Final = 25.0
"""Seconds that a report counts, so that one may be lost."""

MOST_REPORTED: Final = 1_000
"""Most names in a report."""

_LASTING: Final = ("permission", "switches")
"""Kinds of failure that a decision does not meet, and that do not pass by themselves."""


@runtime_checkable
class Switchable(Protocol):
    """A store in which rules are turned off for all workers at once."""

    async def switches(self) -> frozenset[str]:
        """The names of the rules that are off; ``*`` stands for all of them."""
        ...


@runtime_checkable
class Reporting(Protocol):
    """A store in which workers tell what their rules are named, for whoever turns one off."""

    async def report_rules(self, names: Sequence[str], alive_for: float) -> None:
        """Makes names known for so many seconds; ``*`` among them says that there are more."""
        ...


class Switches:
    """The rules that are turned off at the moment.

    Three places say so, and one of them is enough: the store, if it is `Switchable`; the file that
    RATELIMIT_KILL_FILE names, which need not be there; and RATELIMIT_KILL, which is read once.
    ``off`` holds the names, ``*`` for every rule.

    ``names`` gives the names of the rules that there are, which a `Reporting` store is told.
    ``events`` are told of every change but the one that it starts with.
    """

    def __init__(
        self,
        store: object,
        names: Callable[[], Iterable[str]] = tuple,
        events: Events | None = None,
    ) -> None:
        self._places: dict[str, Callable[[], Awaitable[frozenset[str]]]] = {}
        file = os.environ.get("RATELIMIT_KILL_FILE")
        if file:
            self._places[file] = lambda: asyncio.to_thread(_names_in, file)
        if isinstance(store, Switchable):
            self._places["the store"] = store.switches
        self._said = {"RATELIMIT_KILL": _names(os.environ.get("RATELIMIT_KILL", ""))}
        self._complaints: dict[str, str] = {}
        self._reporting = store if isinstance(store, Reporting) else None
        self._names = names
        self._reported: list[str] = []
        self._reported_at = -REPORT
        self._complained = False
        self._background = Background("switches", self._learn)
        self.off: frozenset[str] = frozenset()
        self._events = Events()
        self._put_together()
        self._events = events or self._events

    def run(self) -> None:
        """Begins to learn of changes in this event loop, if there is anything to learn from."""
        if self._places:
            self._background.run()

    async def look(self) -> None:
        """Reads the present state of the file and the store."""
        for place, read in self._places.items():
            try:
                self._said[place] = await read()
                self._complaints.pop(place, None)
            except Exception as error:  # noqa: BLE001  # a store of the application's raises anything
                # That a store is away is the breaker's to say.
                if not isinstance(error, StoreUnavailable) or error.kind in _LASTING:
                    self._complain(place, f"{type(error).__name__}: {error}")
        self._put_together()

    async def aclose(self) -> None:
        """Ends what runs in the background of this event loop."""
        await self._background.aclose()

    async def _learn(self) -> None:
        while True:
            await self.look()
            await self._report()
            await asyncio.sleep(EVERY * random.uniform(0.8, 1))  # noqa: S311  # jitter

    async def _report(self) -> None:
        """Tells the store the names of the rules, now and then, and when they have changed."""
        names = sorted(set(self._names()))
        if len(names) > MOST_REPORTED:
            names = [*names[:MOST_REPORTED], ALL]
        due = time.monotonic() - self._reported_at >= REPORT
        if self._reporting is None or not names or (names == self._reported and not due):
            return
        self._reported, self._reported_at = names, time.monotonic()
        try:
            await self._reporting.report_rules(names, REPORTED_FOR)
        except Exception as error:  # noqa: BLE001  # a store of the application's raises anything
            if isinstance(error, StoreUnavailable) and error.kind != "permission":
                self._reported_at -= REPORT  # told again once the store is back
            elif not self._complained:
                self._complained = True
                _LOG.info(
                    "rules-unreported: `ratelimit kill` cannot tell which rules there are: %s: %s",
                    type(error).__name__,
                    error,
                )

    def _put_together(self) -> None:
        off = frozenset[str]().union(*self._said.values())
        if off != self.off:
            self.off = off
            said = "every rule is in force again"
            if off:
                said = f"off until further notice: {', '.join(sorted(off))}"
            _LOG.warning("switched: %s", said)
            self._events.happened("switched", said)

    def _complain(self, place: str, problem: str) -> None:
        if self._complaints.get(place) != problem:
            self._complaints[place] = problem
            _LOG.error(
                "switches-unread: %s does not say which rules are off; they stay as they are: %s",
                place,
                problem,
            )


def _names(text: str) -> frozenset[str]:
    """Names between commas, blanks and new lines; what follows a # is a comment."""
    return frozenset(re.sub("#.*", "", text).replace(",", " ").split())


def _names_in(file: str) -> frozenset[str]:
    """The names in a file; none where it is not there."""
    try:
        text = contents(file, MOST_BYTES + 1)
    except FileNotFoundError:
        return frozenset()
    if len(text) > MOST_BYTES:  # a name that was cut would be another
        raise ValueError(f"it is longer than {MOST_BYTES} bytes; write * to turn off every rule")
    return _names(text.decode())
