"""Parts of a rule set that can never have an effect, since another part comes first.

The law of this module: nothing is reported that could, for any request, make a difference. A limit
is unreachable only where it is proved that another one refuses first.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property, lru_cache
from ipaddress import ip_network
from itertools import chain
from typing import Final, NamedTuple

from ratelimit.identity.addresses import Network
from ratelimit.limits import BUCKETS, Algorithm, Limit
from ratelimit.rules.rule import Rule
from ratelimit.rules.ruleset import RuleSet
from ratelimit.rules.values import LISTS_OF_HOPS

__all__ = ["Idle", "at_most", "idle", "unreachable"]

_ALWAYS_THERE: Final = ("global", "path")
"""Parts of an identity that no request lacks if the rule matches it."""

MOST_PAIRS: Final = 300_000
"""Pairs of rules that are compared: all of 500, which is more than one request may have."""

MOST_NETWORKS: Final = 10_000
"""Networks of a list that are compared with others; a longer one is somebody else's."""


class Idle(NamedTuple):
    """A part without an effect: its code, its rule (None for the whole set), and why."""

    code: str
    rule: str | None
    text: str


def idle(rule_set: RuleSet) -> Iterator[Idle]:
    """Every part that can have no effect, of rules that are not off."""
    rules = [rule for rule in rule_set.rules if rule.mode != "off"]
    if not rule_set.rules:
        yield Idle("no-rules", None, "there are no rules, so that only limits on routes apply")
    trusted = rule_set.trusted_hops or rule_set.trusted_proxies
    if rule_set.forwarded_header != LISTS_OF_HOPS[0] and not trusted:
        yield Idle(
            "pointless-forwarded-header", None,
            "no proxy is trusted, so that forwarded_header is never read; give trusted_proxies or "
            "trusted_hops",
        )  # fmt: skip
    everywhere = _Cover(rule_set.denylist), _Cover(rule_set.allowlist)
    yield from _allowed_and_denied(None, rule_set.allowlist, everywhere[0], "the denylist")
    for rule in rules:
        yield from _of_options(rule)
        yield from _of_limits(rule)
        yield from _of_networks(rule, *everywhere)
    yield from _between(rules)


def _of_options(rule: Rule) -> Iterator[Idle]:
    if rule.on_missing != "client" and all(
        part.partition(":")[0] in _ALWAYS_THERE for part in rule.by
    ):
        yield Idle(
            "pointless-on-missing", rule.name,
            f"no request that the rule matches lacks {' or '.join(rule.by)}; leave on_missing out",
        )  # fmt: skip
    if rule.enforce_share != 1 and rule.mode != "enforce":
        yield Idle(
            "pointless-enforce-share", rule.name,
            f"mode {rule.mode!r} refuses nobody; enforce_share goes with mode 'enforce'",
        )  # fmt: skip


# --- limits --------------------------------------------------------------------------------------


@lru_cache(maxsize=4096)
def at_most(first: Limit, second: Limit) -> int | None:
    """The most that ``second`` can ever find used, while ``first`` decides as well.

    Units that pass are counted. None where the most is not known. Both count in whole windows since
    the epoch, so that windows of which one is a multiple of the other begin together.
    """
    alike = first.algorithm is second.algorithm and first.rounding == second.rounding
    if not alike or first.tick_us != 1 or second.tick_us != 1:
        return None
    windows = -(-second.window_us // first.window_us)
    aligned = second.window_us % first.window_us == 0
    within = first.window_us % second.window_us == 0
    match first.algorithm:
        case Algorithm.SLIDING_LOG:
            return first.quota * windows
        case Algorithm.FIXED_WINDOW:
            return first.quota * (windows if aligned or within else windows + 1)
        case Algorithm.SLIDING_COUNTER:
            # Of equal windows the counts are equal; else a part of the one before comes on top.
            if first.window_us == second.window_us:
                return first.quota
            return first.quota * (windows + 1) if aligned or within else None
    # A bucket that holds no more and fills no faster is empty first.
    slower = first.quota * second.window_us <= second.quota * first.window_us
    return first.capacity if slower and first.capacity <= second.capacity else None


def unreachable(first: Limit, second: Limit) -> bool:
    """Whether ``second`` can never refuse what ``first`` lets pass."""
    most = at_most(first, second)
    return most is not None and most <= (second.capacity if second.burst else second.quota)


def _why(first: Limit, second: Limit) -> str:
    if first.algorithm in BUCKETS:
        return (
            f"{_named(first)} holds no more and fills no faster, so it is empty first; leave one "
            "of them out"
        )
    return (
        f"beside {_named(first)} at most {at_most(first, second)} of it are ever used; write a "
        "quota below that, or leave it out"
    )


def _named(limit: Limit) -> str:
    burst = f" burst {limit.burst}" if limit.burst not in (None, limit.quota) else ""
    return f"'{limit}{burst}'"


def _of_limits(rule: Rule) -> Iterator[Idle]:
    groups = rule.tiers.values() if rule.tiers else (rule.limits,)
    for limits in dict.fromkeys((*groups, *rule.overrides.values())):
        for number, second in enumerate(limits):
            for other, first in enumerate(limits):
                if other == number or not unreachable(first, second):
                    continue
                if other > number and unreachable(second, first):
                    continue  # they do the same; the later one is too much
                yield Idle(
                    "unreachable-limit", rule.name,
                    f"{_named(second)} can never refuse a request: {_why(first, second)}",
                )  # fmt: skip
                break


def _between(rules: Sequence[Rule]) -> Iterator[Idle]:
    """Limits that a wider rule by the same identity makes unreachable."""
    wider: dict[tuple[tuple[str, ...], str | None], list[tuple[int, Rule]]] = {}
    replaced = {name for rule in rules for name in rule.replaces}
    for number, rule in enumerate(rules):
        if _holds_for_all(rule) and rule.name not in replaced:
            wider.setdefault((rule.by, rule.path), []).append((number, rule))
    pairs = 0
    for number, rule in enumerate(rules):
        if rule.mode != "enforce" or rule.tiers or rule.overrides or not isinstance(rule.cost, int):
            continue
        candidates = [wider.get((rule.by, path), ()) for path in dict.fromkeys((rule.path, None))]
        for other, wide in chain(*candidates):
            pairs += 1
            if pairs > MOST_PAIRS:
                return
            if other == number or not _covers(wide, rule):
                continue
            alike = other > number and _covers(rule, wide)
            found = next(
                (
                    (first, second)
                    for second in rule.limits
                    for first in wide.limits
                    if unreachable(first, second) and not (alike and unreachable(second, first))
                ),
                None,
            )
            if found is None:
                continue
            first, second = found
            yield Idle(
                "unreachable-limit", rule.name,
                f"{_named(second)} can never refuse a request that the rule {wide.name!r} lets "
                f"pass: {_why(first, second)}",
            )  # fmt: skip
            break


def _holds_for_all(rule: Rule) -> bool:
    """Whether all that a rule matches is charged to it and refused by it."""
    return (
        rule.mode == "enforce"
        and rule.enforce_share == 1
        and isinstance(rule.cost, int)
        and not (rule.tiers or rule.overrides or rule.allowlist or rule.skip or rule.dynamic)
        and not (rule.except_ or rule.replaces)
    )


def _covers(wide: Rule, rule: Rule) -> bool:
    """Whether every request of ``rule`` is one of ``wide``, at no lower a cost."""
    if wide.path is not None and wide.path != rule.path:
        return False
    if wide.methods is None:
        # Preflights may be free to a rule that does not name OPTIONS.
        methods = rule.methods is None or "OPTIONS" not in rule.methods
    else:
        methods = rule.methods is not None and rule.methods <= wide.methods
    return (
        methods
        and (wide.host is None or wide.host == rule.host)
        and wide.cost >= rule.cost  # type: ignore[operator]  # both are numbers
        and wide.on_missing == rule.on_missing
        and wide.on_store_failure == rule.on_store_failure
    )


# --- networks ------------------------------------------------------------------------------------


class _Cover:
    """Networks, asked for one that holds another."""

    def __init__(self, networks: Sequence[Network]) -> None:
        self.networks = networks

    @cached_property  # most are asked nothing
    def by_size(self) -> dict[tuple[int, int], dict[int, Network]]:
        by_size: dict[tuple[int, int], dict[int, Network]] = {}
        for network in self.networks:
            size = network.version, network.max_prefixlen - network.prefixlen
            number = int(network.network_address) >> size[1]
            by_size.setdefault(size, {})[number] = network
        return by_size

    def of(self, network: Network) -> Network | None:
        number = int(network.network_address)
        for (version, shift), numbers in self.by_size.items():
            if version == network.version and shift >= network.max_prefixlen - network.prefixlen:
                if number >> shift in numbers:
                    return numbers[number >> shift]
        return None


def _allowed_and_denied(
    rule: str | None, allowlist: Sequence[Network], denied: _Cover, where: str
) -> Iterator[Idle]:
    for network in allowlist if len(allowlist) <= MOST_NETWORKS else ():
        denying = denied.of(network)
        if denying is not None:
            yield Idle(
                "allowed-and-denied", rule,
                f"{network} is in the allowlist, but {denying} is in {where}, which beats it; take "
                "it out of one",
            )  # fmt: skip


def _of_networks(rule: Rule, denied: "_Cover", allowed: "_Cover") -> Iterator[Idle]:
    """Networks and overrides without an effect; those that are refused or allowed everywhere."""
    own = _Cover(rule.denylist)
    yield from _allowed_and_denied(rule.name, rule.allowlist, own, "its denylist")
    yield from _allowed_and_denied(rule.name, rule.allowlist, denied, "the file's denylist")
    if 0 < len(rule.denylist) <= MOST_NETWORKS and all(map(denied.of, rule.denylist)):
        yield Idle(
            "pointless-denylist", rule.name,
            "all of its denylist is in the file's, which is refused everywhere; leave it out",
        )  # fmt: skip
    if rule.by != ("client",) or len(rule.overrides) > MOST_NETWORKS:
        return
    places = (
        (denied, "is refused", "the file's denylist"),
        (own, "is refused", "its denylist"),
        (allowed, "is never limited", "the file's allowlist"),
        (_Cover(rule.allowlist), "is never limited", "its allowlist"),
    )
    for cover, effect, where in places:
        for identity in rule.overrides if cover.networks else ():
            network = cover.of(ip_network(identity))
            if network:
                yield Idle(
                    "pointless-override", rule.name,
                    f"the override for {identity} is for a client that {effect}, since {network} "
                    f"is in {where}; take it out of one",
                )  # fmt: skip
