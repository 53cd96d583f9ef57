"""Quotas for the traffic in a log: for each route, the smallest that refuses at most a share.

The suggested rules are found for a request by production's own matching, so that what a rule would
count is what was counted here.
"""

from collections.abc import Callable, Sequence
from fractions import Fraction
from math import floor
from typing import Any, Final

from ratelimit.insight.replay.asking import Asker
from ratelimit.insight.replay.entries import Entry
from ratelimit.insight.replay.log import Log
from ratelimit.insight.replay.report import log_of, masked
from ratelimit.insight.replay.routes import Route, routes_of
from ratelimit.insight.replay.use import Histogram, Use
from ratelimit.rules.rule import Rule
from ratelimit.rules.ruleset import RuleSet

__all__ = ["WINDOWS", "Plan"]

WINDOWS: Final = {"second": 1_000_000, "minute": 60_000_000, "hour": 3_600_000_000}
LEARNT_FROM: Final = 50_000
"""Requests by which routes are guessed."""
QUANTILES: Final = {"half": 0.5, "9 in 10": 0.9, "99 in 100": 0.99, "999 in 1000": 0.999}
NAMED: Final = 20
"""Clients above a quota that are named."""
EVERYTHING: Final = "everything"


class Plan:
    """The use of each route by each identity, and the quotas that follow from it.

    ``share`` (0 to 1) is the part of a rule's clients that it may refuse, all its ``windows``
    together; ``by`` is the identity, as in a rule.
    """

    def __init__(
        self, log: Log, *, share: Fraction, windows: Sequence[str], by: str, routes: int
    ) -> None:
        self.log = log
        self.interrupted = False
        self._share = share
        self._windows = tuple(windows)
        self._by = by
        self._most = routes
        self._routes: dict[str, Route | None] = {}
        self._uses: dict[str, dict[str, Use]] = {}
        self._requests: dict[str, int] = {}
        self._asker: Asker | None = None

    def run(self, stopped: Callable[[], bool] = lambda: False) -> None:
        """Reads the log to its end, or until it is told to stop."""
        held: list[list[Entry]] = []
        waiting = 0
        for entries in self.log.seconds():
            if stopped():
                self.interrupted = True
                break
            if self._asker is None:
                held.append(entries)
                waiting += len(entries)
                if waiting >= LEARNT_FROM:
                    self._learn(held)
                    held = []
            else:
                self._count(entries)
        if self._asker is None:
            self._learn(held)

    def _learn(self, held: list[list[Entry]]) -> None:
        every = [entry for entries in held for entry in entries]
        rules = []
        names: set[str] = set()
        for route in routes_of(every, self._most):
            name = _name(route, names)
            rules.append(
                Rule(name, "1/second", path=route.path, methods=[route.method], by=self._by)
            )
            self._routes[name] = route
        rules.append(Rule(EVERYTHING, "1/second", by=self._by))
        self._routes[EVERYTHING] = None
        self._uses = {
            name: {window: Use(us) for window, us in WINDOWS.items()} for name in self._routes
        }
        self._requests = dict.fromkeys(self._routes, 0)
        self._asker = Asker(RuleSet(tuple(rules)), self.log.fields)
        for entries in held:
            self._count(entries)

    def _count(self, entries: list[Entry]) -> None:
        asker = self._asker
        if asker is None:
            return
        for at_us, group, keys, _ in asker.ask(entries):
            if not keys or group.plan is None:
                continue
            for _, place, _, name, _ in group.plan.asked:
                self._requests[name] += 1
                for use in self._uses[name].values():
                    use.add(keys[place], at_us)

    def report(self) -> dict[str, Any]:
        """The plan as plain values; "rules" in the order of the file."""
        rules = [self._rule(name) for name in self._routes if self._requests[name]]
        return {
            "log": log_of(self.log),
            "interrupted": self.interrupted,
            "share": float(self._share),
            "by": self._by,
            "windows": list(self._windows),
            "rules": rules,
            "notes": self._notes(),
        }

    def _rule(self, name: str) -> dict[str, Any]:
        route, uses = self._routes[name], self._uses[name]
        part = self._share / len(self._windows)
        found: dict[str, Any] = {}
        over: dict[str, int] = {}
        for window, use in uses.items():
            histogram = use.histogram()
            share = part if window in self._windows else self._share
            quota = max(1, histogram.smallest(floor(share * histogram.count)))
            above = dict(use.above(quota))
            if window in self._windows:
                over |= {key: max(most, over.get(key, 0)) for key, most in above.items()}
            found[window] = {
                **_quantiles(histogram),
                "quota": quota,
                "clients above": histogram.above(quota),
            }
        worst = sorted(over.items(), key=lambda each: (-each[1], each[0]))
        return {
            "name": name,
            "method": None if route is None else route.method,
            "path": None if route is None else route.path,
            "requests": self._requests[name],
            "clients": uses["minute"].histogram().count,
            "use": found,
            "limit": "; ".join(f"{found[window]['quota']}/{window}" for window in self._windows),
            "refused clients": len(over),
            "most": [
                {"client": masked((self._by,), key), "use": most} for key, most in worst[:NAMED]
            ],
        }

    def _notes(self) -> list[str]:
        notes = []
        kind = self._by.partition(":")[0]
        if kind not in ("client", "query") and not self._tells(kind):
            notes.append(f"{self._by} is not logged: everybody is counted by their address")
        if self.log.late:
            notes.append(f"{self.log.late} lines came out of order, and count later than they say")
        if let_go := sum(use.let_go for uses in self._uses.values() for use in uses.values()):
            notes.append(
                f"{let_go} times an identity was let go for want of room; where it came again, it "
                "counts as another"
            )
        return notes

    def _tells(self, kind: str) -> bool:
        return (self._by if kind in ("header", "cookie") else kind) in self.log.fields


def _quantiles(histogram: Histogram) -> dict[str, int]:
    return {
        **{words: histogram.quantile(part) for words, part in QUANTILES.items()},
        "all": histogram.quantile(1),
    }


def _name(route: Route, names: set[str]) -> str:
    """A name for a rule: the method and what its path begins with."""
    plain = "".join(each if each.isalnum() and each.isascii() else "-" for each in route.path)
    words = "-".join(word for word in plain.split("-") if word) or "root"
    name = f"{route.method.lower()[:10]}-{words}"[:50].rstrip("-")
    number = 2
    unique = name
    while unique.lower() in names:
        unique = f"{name}-{number}"
        number += 1
    names.add(unique.lower())
    return unique
