"""A replay: the passes over one reading of a log, and what they came to."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ratelimit.insight.replay.asking import Asked, Asker, missing
from ratelimit.insight.replay.counting import LockedOut
from ratelimit.insight.replay.log import WINDOW_US, Log
from ratelimit.insight.replay.player import MOST_TRIES, Player
from ratelimit.insight.replay.quiet import Quiet
from ratelimit.insight.replay.readings import READINGS, Order, Reading, Repeats, in_order
from ratelimit.limits import Algorithm
from ratelimit.rules.ruleset import RuleSet

__all__ = ["Pass", "Replay"]


@dataclass
class Pass:
    """One pass: a rule set in one reading and order."""

    reading: Reading
    order: Order
    algorithm: str
    """The algorithm of all limits; empty where each is of its own."""
    asker: Asker
    player: Player


@dataclass
class Difference:
    """Requests, as logged, that one of two rule sets refuses and the other does not."""

    new: Pass
    old: Pass
    newly_refused: int = 0
    newly_passed: int = 0
    both_refused: int = 0

    def __post_init__(self) -> None:
        self.refused_clients = LockedOut()
        self.passed_clients = LockedOut()


class Replay:
    """Rules played against a log.

    ``readings`` and ``orders`` are those to play; a log that tells parts of a second has but one
    order. ``against`` are the rules to compare with; ``compare`` plays all five algorithms.
    """

    def __init__(
        self,
        rules: RuleSet,
        log: Log,
        *,
        readings: Sequence[Reading] = READINGS,
        orders: Sequence[Order] = ("best", "worst"),
        against: RuleSet | None = None,
        compare: bool = False,
    ) -> None:
        self._at_once = [rule.name for rule in rules.rules if rule.concurrency is not None]
        rules = rules.without_concurrency()
        self.rules = rules
        self.log = log
        self.interrupted = False
        self._repeats = Repeats()
        self._options = False
        self._quiet = Quiet()
        orders = orders if log.whole_seconds else ("logged",)
        asker = self._asker = Asker(rules, log.fields)
        self.passes: list[Pass] = []
        with self._quiet:
            for reading in readings:
                for order in orders:
                    player = Player(asker, rules, retries=reading == "retry-after")
                    self.passes.append(Pass(reading, order, "", asker, player))
            self.compared = list(self._compared(rules, orders)) if compare else []
            self.differences: list[Difference] = []
            if against is not None:
                against = against.without_concurrency()
                old = Asker(against, log.fields)
                for order in orders:
                    new = next(
                        (p for p in self.passes if (p.reading, p.order) == ("logged", order)), None
                    )
                    if new is None:
                        new = Pass("logged", order, "", asker, Player(asker, rules))
                        self.passes.append(new)
                    played = Pass("logged", order, "", old, Player(old, against))
                    self.differences.append(Difference(new, played))

    def _compared(self, rules: RuleSet, orders: Sequence[Order]) -> Iterator[Pass]:
        for algorithm in Algorithm:
            other = rules.counted_by(algorithm)
            asker = Asker(other, self.log.fields)
            for order in orders:
                yield Pass("logged", order, algorithm.value, asker, Player(asker, other))

    def run(self, stopped: Callable[[], bool] = lambda: False) -> None:
        """Plays the log to its end, or until it is told to stop between two seconds."""
        others = [each.old for each in self.differences] + self.compared
        for entries in self.log.seconds():
            if stopped():
                self.interrupted = True
                break
            with self._quiet:
                requests = self._asker.ask(entries)
                if not self._options:
                    self._options = any(entry[2] == "OPTIONS" for entry in entries)
                refused = {id(each): self._play(each, requests) for each in self.passes}
                asked: dict[int, list[Asked]] = {}
                for each in others:
                    if id(each.asker) not in asked:
                        asked[id(each.asker)] = each.asker.ask(entries)
                    refused[id(each)] = self._play(each, asked[id(each.asker)])
                for difference in self.differences:
                    _compare(difference, refused)
        self._known = None
        with self._quiet:
            for each in self.passes:
                each.player.finish()

    def _play(self, each: Pass, requests: list[Asked]) -> list[Asked]:
        """Plays a second in one pass; the requests that were refused."""
        kept = requests
        if each.reading != "logged":
            kept = list(self._without_repeats(requests))
        ordered = in_order(kept, each.order)
        return [ordered[place] for place in each.player.play(ordered)]

    def _without_repeats(self, requests: list[Asked]) -> Sequence[Asked]:
        # Of all passes over a second the first finds them, for the others as well.
        known = self._known
        if known is None or known[0] is not requests:
            known = self._known = requests, self._repeats.without(requests)
        return known[1]

    _known: tuple[list[Asked], Sequence[Asked]] | None = None

    def unknown(self) -> list[str]:
        """Sentences on what this log cannot tell, or was not able to."""
        log = self.log
        said = missing(self._asker.now.rules, log.fields, options=self._options)
        said += [
            f"rule {name!r} has a concurrency, and a log does not tell what is under way at once; "
            "it was left out"
            for name in self._at_once
        ]
        if "status" not in log.fields and any(p.reading != "logged" for p in self.passes):
            said.append(
                "no status is logged, so that no retry can be told in the log: the readings leave "
                "none out"
            )
        if log.whole_seconds:
            said.append(
                "its times are whole seconds, so that each second was played in its best and its "
                "worst order"
            )
        if log.late:
            said.append(
                f"{log.late} lines came more than {WINDOW_US // 1_000_000} s after younger ones, "
                "and were played later than they say"
            )
        if log.crowded:
            said.append(f"{log.crowded} times a second held more requests than are sorted together")
        if evicted := sum(each.player.evictions for each in self.passes):
            said.append(
                f"{evicted} counters were given up because there were too many, so that more "
                "passed than would have"
            )
        if gave_up := sum(each.player.gave_up for each in self.passes):
            said.append(
                f"{gave_up} requests gave up: after {MOST_TRIES} more in vain, because none could "
                "ever pass, or for want of room"
            )
        return [*said, *self._quiet.said]


def _compare(difference: Difference, refused: dict[int, list[Asked]]) -> None:
    new = {id(asked[3]): asked for asked in refused[id(difference.new)]}
    old = {id(asked[3]): asked for asked in refused[id(difference.old)]}
    for name, asked in new.items():
        if name not in old:
            difference.newly_refused += 1
            difference.refused_clients.add(asked[3][1][:64], asked[0], 0)
    for name, asked in old.items():
        if name not in new:
            difference.newly_passed += 1
            difference.passed_clients.add(asked[3][1][:64], asked[0], 0)
    difference.both_refused += len(new.keys() & old.keys())
