"""The rules that a request matches, found by the start of its path, and the plan of such a set.

Pure, but for what it prepares and keeps.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from os.path import commonprefix
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from ratelimit.concurrency import Concurrency
from ratelimit.decisions import Action, Alike, Check, new_check
from ratelimit.identity.addresses import Address
from ratelimit.identity.keys import KeyOf
from ratelimit.limits import Limit
from ratelimit.rules.charging import Charge
from ratelimit.rules.paths import normalised
from ratelimit.rules.replacing import order, whatever_is_sent
from ratelimit.rules.route_rule import counter_of
from ratelimit.rules.rule import Rule
from ratelimit.rules.values import METHODS

__all__ = ["Found", "Index", "Matching", "Plan", "Terms"]

_NONE: Final[Mapping[str, object]] = MappingProxyType({})
"""The parameters of a path without any."""

MOST_PLANS: Final = 1_000
"""Plans that are prepared and kept, of sets of rules and of what such sets have come to."""

_CHARGE: Final = int(Action.CHARGE)
_SHADOW: Final = int(Action.SHADOW)

Matching = Sequence[tuple[Rule, Mapping[str, object]]]
"""The rules that a request matches, each with its path's parameters."""


Route = Callable[[], "str | None"]
"""Tells the template of the route that a request meets."""


def _no_keys(_: object, __: object, ___: object, ____: object) -> None:
    """Of rules that are asked one by one."""


class Terms(NamedTuple):
    """All that one rule asks about a request, but the key."""

    rule: str
    counter: str
    """The text under which its counters are kept."""
    limits: tuple[Limit, ...]
    policies: tuple[str, ...]
    cost: int
    action: int
    charge: Charge | None = None
    """The outcomes that keep its charges; None where every charge is kept."""


Keys = Callable[[Mapping[str, Any], "Address | None", Matching, Route], "Sequence[str] | None"]
"""Reads the keys of a request's rules: from its scope, its client, the rules, and its route."""


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
    alike: Alike | None
    """All of that, where the checks are of one key, at one cost, and all have a say."""
    keys: Keys = _no_keys
    """Reads the keys of static rules; None where one is missing, or cannot be read.

    What becomes of the request then is for its rules to say, one by one.
    """
    watched: tuple[int, ...] = ()
    """The places of rules that may count by what the application has never set."""
    counted: tuple[tuple[str, str], ...] = ()
    """Those of ``allowed`` once each: a request counts once for a rule, whatever its limits."""
    undecided: tuple[tuple[int, Charge], ...] = ()
    """The places of checks whose charges an outcome decides."""
    holds: tuple[int, ...] = ()
    """The checks of concurrencies, of which the request holds a place until it ends."""
    written: dict[int, Any] = field(default_factory=dict)
    """The fields written of the policies, by their writer and the place of the binding one."""

    def checks(self, keys: Sequence[str]) -> list[Check]:
        """The checks that it comes to with these keys."""
        return [
            new_check((limit, keys[place], cost, counter, action, 0, 0))
            for limit, place, cost, counter, action in self.asked
        ]


Found = tuple[Matching, Plan | None]
"""The rules of a request; and their plan, where all of them are static."""


_Candidates = tuple[list[Rule], Plan | None, Found | None]
"""The rules that a path may match, in order; their plan, where all are static; and what is found,
where it is the same for every path."""


class Index:
    """The rules that are not off, by what a request's path must be, or start with."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._rules = rules
        self._numbers = {id(rule): number for number, rule in enumerate(rules)}
        self.hosts: Final = any(rule.host is not None for rule in rules)
        """Whether the host of a request has a say."""
        self.order: Final = order(rules)
        """The places of rules that replace others, or are replaced, in the order to ask them."""
        self._replaced = whatever_is_sent(rules)
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
        stem = commonprefix([*self._below])  # noqa: RUF071  # it is cut below
        self._stem = stem[: stem.rfind("/") + 1]
        """The start of all paths that have rules with parameters."""
        deepest = max((head.count("/") for head in self._below), default=0)
        self._deeper = deepest - self._stem.count("/")
        self._longest_head = max(map(len, self._below), default=0)
        self.candidates: dict[tuple[str, str | None, tuple[int, ...]], _Candidates] = {}
        """The rules that a path may match, by method, path (if it has rules itself) and heads."""
        self.plans: dict[tuple[object, ...], tuple[object, Plan | None]] = {}
        """Plans by the rules they are of, or by what those ask; with what must not be freed."""

    def find(self, method: str, path: str, host: str = "") -> Found:
        """Every rule that applies and is not off, in order, with the path's parameters; the plan.

        A path that a server of files would read as another one is that one as well. ``host`` is
        the request's, as `ratelimit.identity.hosts` reads it.

        Looks only at rules whose literal start is the path's own, so the number of other rules
        does not matter.
        """
        if self.hosts or "//" in path or "/." in path or "\\" in path:
            return self._find_widely(method, path, host)
        return self._find(method, path)

    def replaced_by(self, rule: Rule, *, known: bool) -> Collection[str]:
        """The rules that do not apply where a rule is enforced and has counted a request.

        ``known`` says that no client could have picked the identity, as `Rule.is_known` does.
        """
        return rule.replaces if known else self._replaced.get(rule.name, ())

    def _find_widely(self, method: str, path: str, host: str) -> Found:
        normal = normalised(path)
        found = {id(rule): (rule, parameters) for rule, parameters in self._find(method, path)[0]}
        if normal != path:
            of_normal = self._find(method, normal, path)[0]
            # Whose parameters are alike however the path is written.
            found |= {id(each[0]): each for each in of_normal}
        of_path = [
            each
            for number, each in sorted((self._numbers[key], each) for key, each in found.items())
            if each[0].host is None or host in each[0].host
        ]
        return of_path, self.plan(of_path)

    def _find(self, method: str, path: str, raw: str = "") -> Found:
        below = self._heads(path) if self._below else ()
        exact = None
        if self._exact:
            # The router's "$" matches before a new line as well.
            literal = path[:-1] if path[-1:] == "\n" else path
            exact = literal if literal in self._exact else None
        candidates = self.candidates.get((method, exact, below))
        if candidates is None:
            candidates = self._candidates(method, exact, below)
            if method in METHODS:  # others may be without end
                self.candidates[method, exact, below] = candidates
        rules, plan, same = candidates
        if same is not None:
            return same
        found: list[tuple[Rule, Mapping[str, object]]] = []
        for rule in rules:
            parameters = _NONE if rule.compiled is None else rule.compiled.match(path)
            if parameters is not None and not (
                rule.excepted and rule.excepts(raw or path, normalised(path))
            ):
                found.append((rule, parameters))
        return found, plan if len(found) == len(rules) else self.plan(found)

    def _heads(self, path: str) -> tuple[int, ...]:
        """The rules whose literal start, up to a slash, a path begins with."""
        if not path.startswith(self._stem):
            return ()
        below = self._below.get(self._stem, ())
        end = len(self._stem)
        for _ in range(self._deeper):
            end = path.find("/", end, self._longest_head) + 1
            if end == 0:
                break
            below += self._below.get(path[:end], ())
        return below

    def _candidates(self, method: str, exact: str | None, below: tuple[int, ...]) -> _Candidates:
        numbers = self._always + below + (() if exact is None else self._exact[exact])
        rules = [
            rule
            for rule in (self._rules[number] for number in sorted(numbers))
            if rule.methods is None or method.upper() in rule.methods
        ]
        plan = _of_static(rules, self)
        if all(
            (rule.compiled is None or rule.compiled.literal) and not rule.excepted for rule in rules
        ):
            return rules, plan, ([(rule, _NONE) for rule in rules], plan)
        return rules, plan, None

    def plan(self, matching: Matching) -> Plan | None:
        """The plan of rules, of this index or of a route, where all of them are static.

        Kept, since requests choose among few sets of rules; by identity, since rules hash slowly.
        """
        name = tuple([id(rule) for rule, _ in matching])
        kept = self.plans.get(name)
        if kept is None:
            rules = [rule for rule, _ in matching]
            kept = self._keep(name, rules, _of_static(rules, self))
        return kept[1]

    def plan_of(self, terms: Sequence[Terms]) -> Plan:
        """The plan of what rules have come to for a request; its keys are in the same order."""
        name: list[object] = []
        for rule, counter, limits, _, cost, action, charge in terms:
            name += rule, counter, cost, action, charge
            for limit in limits:  # by digest: text keeps its hash, and a Limit's own is a call
                name.append(limit.digest)
            if limits and isinstance(limits[-1], Concurrency):
                name.append(limits[-1].until)  # which has no say in what is counted
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


def _of_static(rules: Sequence[Rule], index: Index) -> Plan | None:
    """The plan of static rules; None where one is not."""
    order = index.order
    replaced: set[str] = set()
    for rule in sorted(rules, key=lambda rule: order.get(rule.name, 0)) if order else ():
        if rule.name not in replaced and rule.mode == "enforce":
            replaced.update(index.replaced_by(rule, known=not rule.is_chosen))
    readers: list[tuple[KeyOf, int]] = []
    terms: list[Terms] = []
    keys: list[int] = []
    watched: list[int] = []
    known: dict[tuple[object, ...], int] = {}
    for place, rule in enumerate(rules):
        cost, key_of = rule.cost, rule.key_of
        if not rule.is_static or key_of is None or not isinstance(cost, int):
            return None
        if rule.name in replaced:
            continue
        of_path = {part[5:] for part in rule.by if part.startswith("path:")}
        # Rules by the same parts share a key, but parameters are those of a rule's own path.
        key = known.setdefault((rule.by, rule.on_missing, place if of_path else None), len(readers))
        if key == len(readers):
            readers.append((key_of, place))
        own = () if rule.compiled is None else rule.compiled.parameters
        if "user" in rule.by or not of_path <= set(own):
            watched.append(place)
        action = _SHADOW if rule.mode == "shadow" else _CHARGE
        counter = counter_of(rule)
        terms.append(Terms(rule.name, counter, rule.asks, rule.policies, cost, action, rule.charge))
        keys.append(key)
    return _plan(terms, keys, _keys(readers), tuple(watched))


def _keys(readers: Sequence[tuple[KeyOf, int]]) -> Keys:
    """The reader of all keys, from that of each and the place of a rule that counts by it."""

    def several(
        scope: Mapping[str, Any], client: Address | None, matching: Matching, route: Route
    ) -> Sequence[str] | None:
        keys = []
        try:
            for key_of, place in readers:
                key = key_of(scope, client, matching[place][1], route)
                if key is None:
                    return None
                keys.append(key)
        except Exception:  # noqa: BLE001  # an object of the application's; it is asked again, and told
            return None
        return keys

    if len(readers) != 1:
        return several
    key_of, place = readers[0]

    def one(
        scope: Mapping[str, Any], client: Address | None, matching: Matching, route: Route
    ) -> Sequence[str] | None:
        try:
            key = key_of(scope, client, matching[place][1], route)
        except Exception:  # noqa: BLE001  # as above
            return None
        return None if key is None else (key,)

    return one


def _plan(
    terms: Sequence[Terms],
    keys: Sequence[int],
    read: Keys = _no_keys,
    watched: tuple[int, ...] = (),
) -> Plan:
    asked: list[tuple[Limit, int, int, str, int]] = []
    policies: list[str] = []
    holds: list[int] = []
    allowed: list[tuple[str, str]] = []
    undecided: list[tuple[int, Charge]] = []
    for (rule, counter, limits, names, cost, action, charge), key in zip(terms, keys, strict=True):
        policies += names
        for limit in limits:
            units = cost
            if isinstance(limit, Concurrency):
                holds.append(len(asked))
                units = 1
            elif charge is not None:
                undecided.append((len(asked), charge))
            asked.append((limit, key, units, counter, action))
            allowed.append((rule, "shadow-allowed" if action == _SHADOW else "allowed"))
    shadows = any(each.action == _SHADOW for each in terms)
    alike: Alike | None = None
    if len({check[1:3] for check in asked}) == 1 and not shadows and not holds:
        _, _, cost, _, action = asked[0]
        counters = [text for check in asked for text in (check[0].digest, check[3])]
        alike = tuple([check[0] for check in asked]), tuple(counters), cost, action
    counted = tuple(dict.fromkeys(allowed))
    return Plan(
        tuple(asked), tuple(policies), tuple(allowed), shadows, alike, read, watched, counted,
        tuple(undecided), tuple(holds),
    )  # fmt: skip
