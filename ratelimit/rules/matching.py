"""The rules that a request matches, found by the start of its path, and the plan of such a set.

Pure, but for what it prepares and keeps.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from ratelimit.decisions import Action
from ratelimit.identity.addresses import Address
from ratelimit.identity.keys import KeyOf
from ratelimit.limits import Limit
from ratelimit.rules.route_rule import counter_of
from ratelimit.rules.rule import Rule
from ratelimit.rules.values import METHODS

__all__ = ["Found", "Index", "Matching", "Plan", "Terms"]

MOST_PLANS: Final = 1_000
"""Plans that are prepared and kept, of sets of rules and of what such sets have come to."""

_CHARGE: Final = int(Action.CHARGE)
_SHADOW: Final = int(Action.SHADOW)

Matching = Sequence[tuple[Rule, Mapping[str, object]]]
"""The rules that a request matches, each with its path's parameters."""


class Terms(NamedTuple):
    """All that one rule asks about a request, but the key."""

    rule: str
    counter: str
    """The text under which its counters are kept."""
    limits: tuple[Limit, ...]
    policies: tuple[str, ...]
    cost: int
    action: int


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """All that some rules ask about a request, but the keys, and how it is counted and told."""

    asked: tuple[tuple[Limit, int, int, str, int], ...]
    """Limit, place of the key, cost, counter and action of each check."""
    policies: tuple[str, ...]
    """The name of each check's limit before clients."""
    allowed: tuple[tuple[str, str], ...]
    """The rule of each check, and under what a limiter counts it where it is allowed."""
    shadows: bool
    """Whether a check has no say in the outcome."""
    readers: tuple[tuple[KeyOf, int], ...] = ()
    """The readers of each key, and the place of a rule that counts by it; of static rules alone."""
    watched: tuple[int, ...] = ()
    """The places of rules that may count by what the application has never set."""
    written: dict[int, Any] = field(default_factory=dict)
    """The fields written of the policies, by their writer and the place of the binding one."""

    def keys(
        self,
        scope: Mapping[str, Any],
        client: Address | None,
        matching: Matching,
        route: Callable[[], str | None],
    ) -> list[str] | None:
        """The keys of static rules; None where one is missing, or cannot be read.

        What becomes of the request then is for its rules to say, one by one.
        """
        keys = []
        try:
            for key_of, place in self.readers:
                key = key_of(scope, client, matching[place][1], route)
                if key is None:
                    return None
                keys.append(key)
        except Exception:  # noqa: BLE001  # an object of the application's; it is asked again, and told
            return None
        return keys


Found = tuple[Matching, Plan | None]
"""The rules of a request; and their plan, where all of them are static."""


_Candidates = tuple[list[Rule], Plan | None]
"""The rules that a path may match, in order; and their plan, where all are static."""


class Index:
    """The rules that are not off, by what a request's path must be, or start with."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._rules = rules
        self._always: tuple[int, ...] = ()
        self._exact: dict[str, tuple[int, ...]] = {}
        self._below: dict[str, tuple[int, ...]] = {}
        for number, rule in enumerate(rules):
            if rule.mode == "off":
                continue
            path = rule.compiled
            if path is None:
                self._always += (number,)
            else:
                group = self._exact if path.literal else self._below
                group[path.start] = (*group.get(path.start, ()), number)
        self._deepest = max((head.count("/") for head in self._below), default=0)
        self._longest_head = max(map(len, self._below), default=0)
        self.known: dict[tuple[str, str | None], Found] = {}
        """The rules found for paths without parameters, by method and path."""
        self.candidates: dict[tuple[str, str | None, tuple[int, ...]], _Candidates] = {}
        """The rules that a path may match, by method, path (if it has rules itself) and heads."""
        self.plans: dict[tuple[object, ...], tuple[object, Plan | None]] = {}
        """Plans by the rules they are of, or by what those ask; with what must not be freed."""

    def find(self, method: str, path: str) -> Found:
        """Every rule that applies and is not off, in order, with the path's parameters; the plan.

        Looks only at rules whose literal start is the path's own, so the number of other rules
        does not matter.
        """
        below = self._heads(path) if self._below else ()
        if below or path[-1:] == "\n":  # the router's "$" matches before one
            return self._find(method, path, below)
        # Without parameters the answer is one of a few.
        known = method, path if path in self._exact else None
        found = self.known.get(known)
        if found is None:
            found = self._find(method, path, below)
            if method in METHODS:  # others may be without end
                self.known[known] = found
        return found

    def _heads(self, path: str) -> tuple[int, ...]:
        """The rules whose literal start, up to a slash, a path begins with."""
        below: tuple[int, ...] = ()
        end = 0
        for _ in range(self._deepest):
            end = path.find("/", end, self._longest_head) + 1
            if end == 0:
                break
            below += self._below.get(path[:end], ())
        return below

    def _find(self, method: str, path: str, below: tuple[int, ...]) -> Found:
        exact = path if path in self._exact else None
        candidates = self.candidates.get((method, exact, below))
        if candidates is None or path[-1:] == "\n":
            numbers = self._always + below + self._exact.get(path, ())
            if path[-1:] == "\n":
                numbers += self._exact.get(path[:-1], ())
            rules = [
                rule
                for rule in (self._rules[number] for number in sorted(numbers))
                if rule.methods is None or method.upper() in rule.methods
            ]
            candidates = rules, _of_static(rules)
            if method in METHODS and path[-1:] != "\n":  # others may be without end
                self.candidates[method, exact, below] = candidates
        rules, plan = candidates
        found = []
        for rule in rules:
            parameters = {} if rule.compiled is None else rule.compiled.match(path)
            if parameters is not None:
                found.append((rule, parameters))
        return found, plan if len(found) == len(rules) else self.plan(found)

    def plan(self, matching: Matching) -> Plan | None:
        """The plan of rules, of this index or of a route, where all of them are static.

        Kept, since requests choose among few sets of rules; by identity, since rules hash slowly.
        """
        name = tuple([id(rule) for rule, _ in matching])
        kept = self.plans.get(name)
        if kept is None:
            rules = [rule for rule, _ in matching]
            kept = self._keep(name, rules, _of_static(rules))
        return kept[1]

    def plan_of(self, terms: Sequence[Terms]) -> Plan:
        """The plan of what rules have come to for a request; its keys are in the same order."""
        name: list[object] = []
        for rule, counter, limits, _, cost, action in terms:
            name += rule, counter, cost, action
            for limit in limits:  # by digest: text keeps its hash, and a Limit's own is a call
                name.append(limit.digest)
        kept = self.plans.get(tuple(name))
        if kept is None or kept[1] is None:
            plan = _plan(terms, range(len(terms)))
            self._keep(tuple(name), None, plan)
            return plan
        return kept[1]

    def _keep(
        self, name: tuple[object, ...], rules: object, plan: Plan | None
    ) -> tuple[object, Plan | None]:
        if len(self.plans) >= MOST_PLANS:  # paths choose among them, and clients choose the path
            self.plans.clear()
        kept = self.plans[name] = rules, plan
        return kept


def _of_static(rules: Sequence[Rule]) -> Plan | None:
    """The plan of static rules; None where one is not."""
    readers: list[tuple[KeyOf, int]] = []
    terms: list[Terms] = []
    keys: list[int] = []
    watched: list[int] = []
    known: dict[tuple[object, ...], int] = {}
    for place, rule in enumerate(rules):
        cost, key_of = rule.cost, rule.key_of
        if not rule.is_static or key_of is None or not isinstance(cost, int):
            return None
        of_path = {part[5:] for part in rule.by if part.startswith("path:")}
        # Rules by the same parts share a key, but parameters are those of a rule's own path.
        key = known.setdefault((rule.by, rule.on_missing, place if of_path else None), len(readers))
        if key == len(readers):
            readers.append((key_of, place))
        own = () if rule.compiled is None else rule.compiled.parameters
        if "user" in rule.by or not of_path <= set(own):
            watched.append(place)
        action = _SHADOW if rule.mode == "shadow" else _CHARGE
        terms.append(Terms(rule.name, counter_of(rule), rule.limits, rule.policies, cost, action))
        keys.append(key)
    return _plan(terms, keys, tuple(readers), tuple(watched))


def _plan(
    terms: Sequence[Terms],
    keys: Sequence[int],
    readers: tuple[tuple[KeyOf, int], ...] = (),
    watched: tuple[int, ...] = (),
) -> Plan:
    asked: list[tuple[Limit, int, int, str, int]] = []
    policies: list[str] = []
    allowed: list[tuple[str, str]] = []
    for (rule, counter, limits, names, cost, action), key in zip(terms, keys, strict=True):
        policies += names
        for limit in limits:
            asked.append((limit, key, cost, counter, action))
            allowed.append((rule, "shadow-allowed" if action == _SHADOW else "allowed"))
    shadows = any(each.action == _SHADOW for each in terms)
    return Plan(tuple(asked), tuple(policies), tuple(allowed), shadows, readers, watched)
