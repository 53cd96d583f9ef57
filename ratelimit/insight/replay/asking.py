"""Requests of a log as a rule set sees them: which rules apply, and under which keys.

Rules, keys and plans are those of production, made by its own code; here they are only kept, so
that the same question is not asked for each line.
"""

from collections.abc import Sequence
from typing import Any, Final
from urllib.parse import unquote

from ratelimit.identity.addresses import Address
from ratelimit.identity.hosts import host_of
from ratelimit.insight.replay.counting import Distinct
from ratelimit.insight.replay.entries import Entry, as_path
from ratelimit.insight.replay.outcomes import missing_outcome
from ratelimit.limiter.in_force import InForce
from ratelimit.rules.matching import Matching, Plan
from ratelimit.rules.rule import Rule
from ratelimit.rules.ruleset import RuleSet
from ratelimit.stores.memory import MOST_OF_ONE

__all__ = ["Asked", "Asker", "Group", "missing", "scope_of"]

MOST_KEPT: Final = 100_000
"""Paths, clients and keys that are kept; clients choose them, so there may be any number."""
LONGEST_KEPT: Final = 256
"""Characters of a path, or of a client's address, that is kept."""
MOST_METHODS: Final = 100
_OF_ADDRESS: Final = frozenset({"client", "global"})
_NOBODY: Final = ("", 0)


class Group:
    """The requests to which the same rules apply in the same way."""

    def __init__(self, number: int, matching: Matching, plan: Plan | None) -> None:
        self.number = number
        self.matching = matching
        self.plan = plan
        self.alike = None if plan is None else plan.alike
        rules = [rule for rule, _ in matching]
        self.by_address = plan is not None and all(_OF_ADDRESS.issuperset(r.by) for r in rules)
        """Whether keys depend on the client's address alone."""
        asked = () if plan is None else plan.asked
        alone = plan is not None and bool(plan.undecided)
        self.in_run = self.alike if len(asked) <= MOST_OF_ONE and not alone else None
        """Its checks, where it may be decided in a run of others."""
        self.cost = sum(cost for _, _, cost, _, _ in asked)
        self.names = tuple(dict.fromkeys(name for _, _, _, name, _ in asked))
        self.keys: dict[str, Sequence[str]] = {}
        """Keys by the client's address as the log has it, where they depend on that alone."""


Asked = tuple[int, Group, "Sequence[str] | None", Entry]
"""A request: its time, the rules that apply, the keys (None where the whole limiter is to be
asked), and what the log tells. A plain tuple, since one is made for each line."""


def scope_of(entry: Entry) -> dict[str, Any]:
    """The request as a server would hand it to an application."""
    _, client, method, target, *_ = entry
    path, query = as_path(target)
    headers: list[tuple[bytes, bytes]] = []
    scope: dict[str, Any] = {
        "type": "http",
        "method": method,
        "path": unquote(path) if "%" in path else path,
        "root_path": "",
        "query_string": query.encode("utf-8", "surrogatepass"),
        "headers": headers,
        "client": (client, 0) if client else _NOBODY,
        "server": ("localhost", 80),
        "scheme": "http",
    }
    cookies = []
    for field, value in entry[6].more(entry).items():
        kind, _, name = field.partition(":")
        raw = value.encode("utf-8", "surrogatepass")
        if kind == "header":
            headers.append((name.encode("latin-1", "replace"), raw))
        elif kind == "host":
            headers.append((b"host", raw))
        elif kind == "cookie":
            cookies.append(name.encode("latin-1", "replace") + b"=" + raw)
        elif kind == "user":
            scope["user"] = value
    if cookies:
        headers.append((b"cookie", b"; ".join(cookies)))
    return scope


class Asker:
    """Asks a rule set about requests; ``fields`` are those that the log tells.

    The rules are put in force as a limiter does it, at the share of their region.
    """

    def __init__(self, rules: RuleSet, fields: frozenset[str]) -> None:
        self.now = InForce.of(rules.in_force(), rules.share)
        rules = self.now.rules
        self._believes = self.now.proxies.believes and f"header:{rules.forwarded_header}" in fields
        self._lists = bool(rules.allowlist or rules.denylist)
        self._numbers: dict[tuple[int, ...], Group] = {}
        self.groups: list[Group] = []
        self._paths: dict[str, dict[str, Group]] = {}
        """Groups by method and path, where nothing else has a say."""
        self.identities: dict[str, Distinct] = {rule.name: Distinct() for rule in rules.rules}
        self._seen: set[tuple[int, str]] = set()

    def ask(self, entries: Sequence[Entry]) -> list[Asked]:
        """The questions of requests, in the same order."""
        found: list[Asked] = []
        add, paths = found.append, self._paths
        for entry in entries:
            _, client, method, path, *_ = entry
            if "?" in path:
                path = path[: path.index("?")]
            group = paths[method].get(path) if method in paths else None
            if group is None:
                group = self._find(entry)
            if client in group.keys:
                add((entry[0], group, group.keys[client], entry))
            else:
                add((entry[0], *self._keys(entry, client, group), entry))
        return found

    def _find(self, entry: Entry) -> Group:
        scope = scope_of(entry)
        found = self.now.rules.index
        host = ""
        if found.hosts:
            host = host_of(scope, self.now.proxies)
        matching, plan = self.now.rules.find(scope["method"], scope["path"], host)
        if scope["method"] == "OPTIONS":
            matching = self.now.rules.without_preflight(matching, scope)
            plan = found.plan(matching)
        group = self._group(matching, plan)
        short = len(entry[3]) <= LONGEST_KEPT
        if short and group.by_address and not (self._believes or found.hosts):
            paths = self._paths.setdefault(entry[2], {})
            if len(paths) >= MOST_KEPT or len(self._paths) > MOST_METHODS:
                self._paths.clear()
            paths[entry[3].partition("?")[0]] = group
        return group

    def _group(self, matching: Matching, plan: Plan | None) -> Group:
        name = tuple([id(rule) for rule, _ in matching])
        group = self._numbers.get(name)
        if group is None or (group.matching is not matching and not group.by_address):
            # Parameters of a path are keys, so that such a group is this request's alone.
            number = len(self.groups) if group is None else group.number
            made = Group(number, matching, plan)
            if group is None:
                self.groups.append(made)
                self._numbers[name] = made
            group = made
        return group

    def _keys(self, entry: Entry, client: str, group: Group) -> tuple[Group, Sequence[str] | None]:
        """The keys of a request; None where the whole limiter is to be asked."""
        if not group.matching and not self._lists:
            return group, ()
        scope = scope_of(entry)
        address: Address | None = self.now.proxies.client(scope)
        rules = self.now.rules
        if address is not None and self._lists:
            if address in rules.denied_clients or address in rules.allowed_clients:
                return group, None
        if group.plan is None:
            return group, None
        keys = group.plan.keys(scope, address, group.matching, _no_route)
        if keys is None:
            return group, None
        if group.by_address and not self._believes and len(client) <= LONGEST_KEPT:
            if len(group.keys) >= MOST_KEPT:
                group.keys.clear()
            group.keys[client] = keys
        for _, place, _, name, _ in group.plan.asked:
            self.count(name, keys[place])
        return group, keys

    def count(self, rule: str, key: str) -> None:
        """Counts who asks a rule, each once."""
        known = (hash(rule), key)
        if known not in self._seen:
            if len(self._seen) >= MOST_KEPT:
                self._seen.clear()
            self._seen.add(known)
            distinct = self.identities.get(rule)
            if distinct is not None:
                distinct.add(key)


def _no_route() -> None:
    """No router is known here."""


def missing(rules: RuleSet, fields: frozenset[str], *, options: bool) -> list[str]:
    """Sentences on what a log of these fields cannot know about these rules."""
    said: list[str] = []
    for rule in rules.rules:
        if rule.mode == "off":
            continue
        said += [each for part in rule.by if (each := _missing_part(rule, part, fields))]
        if isinstance(rule.cost, str):
            said.append(
                f"rule {rule.name!r} costs what {rule.cost} says, which only the application "
                "knows; each request was played at a cost of 1"
            )
        if isinstance(rule.tier, str) and f"{rule.tier}" not in fields:
            said.append(
                f"rule {rule.name!r} has tiers by {rule.tier}, which is not logged; everybody was "
                f"played as of the tier {next(iter(rule.tiers))!r}"
            )
        if rule.charge is not None:
            said.append(f"rule {rule.name!r} {missing_outcome(rule.charge, fields)}")
        if rule.host is not None and "host" not in fields:
            said.append(
                f"rule {rule.name!r} is for some hosts, and none is logged; it applied to nothing"
            )
    believes = bool(rules.trusted_proxies or rules.trusted_hops)
    if believes and f"header:{rules.forwarded_header}" not in fields:
        said.append(
            f"the rules trust proxies, and {rules.forwarded_header} is not logged; clients are the "
            "addresses that the log has"
        )
    if options and rules.preflights == "free":
        said.append("a log does not tell CORS preflights, so that every OPTIONS was counted")
    if rules.retry_jitter_us:
        said.append("the chance in Retry-After was left out")
    return said


def _missing_part(rule: Rule, part: str, fields: frozenset[str]) -> str:
    """A sentence on a part of an identity that a log cannot tell; empty where it can."""
    kind = part.partition(":")[0]
    counts = f"rule {rule.name!r} counts by {part}"
    if part in rule.registered_names:
        return f"{counts}, which only the application knows; it was played as for requests without"
    if (kind in ("header", "cookie") and part not in fields) or (
        kind == "user" and "user" not in fields
    ):
        return f"{counts}, which is not logged; it was played as for requests without it"
    if kind == "route":
        return f"{counts}, and routes are not known here; it was played as for requests without one"
    return ""
