"""Parts of a rule file that can never have an effect, since another part contradicts them.

The law of this module: nothing is reported that could, for any request, make a difference. A limit
is unreachable only where it is proved that another one refuses first.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from ipaddress import ip_network
from itertools import chain
from typing import Any, Final, NamedTuple

from ratelimit.identity.addresses import Network, read_address
from ratelimit.limits import BUCKETS, Algorithm, Limit
from ratelimit.rules.replacing import misplaced
from ratelimit.rules.rule import Rule
from ratelimit.rules.values import LISTS_OF_HOPS

__all__ = ["Contradiction", "contradictions"]

Place = tuple[str | int, ...]

_ALWAYS_THERE: Final = ("global", "path")
"""Parts of an identity that no request lacks if the rule matches it."""

MOST_PAIRS: Final = 300_000
"""Pairs of rules that are compared: all of 500, which is more than one request may have."""

IPV6_PREFIX: Final = 64
"""The prefix by which a `Rule` tells its overrides apart."""


class Contradiction(NamedTuple):
    code: str
    place: Place
    message: str
    against: tuple[Place, ...] = ()
    """Other places whose values the message may show."""


def contradictions(
    top: Mapping[str, Any],
    rules: Mapping[int, Rule],
    given: Mapping[int, Mapping[str, Any]],
    bad: Collection[str] = (),
) -> Iterator[Contradiction]:
    """Every contradiction; ``top`` and ``given`` are the keys that the file itself holds.

    ``rules`` are those without mistakes, by their number; ``bad`` the keys of ``top`` with one.
    """
    covers = {name: _Cover(top.get(name, ())) for name in ("denylist", "allowlist")}
    yield from _of_file(top, bad, covers)
    trusted = bool(
        top.get("trusted_proxies")
        or top.get("trusted_hops")
        or {"trusted_proxies", "trusted_hops"} & set(bad)
    )
    for number, rule in rules.items():
        at: Place = ("rules", number)
        keys = given[number]
        yield from _of_options(rule, keys, at, trusted=trusted)
        yield from _of_limits(rule, keys, at)
        yield from _of_networks(rule, keys, at, covers)
        yield from _of_prefix(rule, keys, at, top.get("ipv6_prefix", IPV6_PREFIX))
    yield from _between(rules)
    for number, place, code, message in misplaced(rules):
        yield Contradiction(code, ("rules", number, "replaces", place), message)


def _of_file(
    top: Mapping[str, Any], bad: Collection[str], covers: "Mapping[str, _Cover]"
) -> Iterator[Contradiction]:
    if "trusted_hops" in top and "trusted_proxies" in top:
        yield Contradiction(
            "both-trusted", ("trusted_hops",),
            "trusted_hops is given beside trusted_proxies; give the one by which you know your "
            "proxies", (("trusted_proxies",),),
        )  # fmt: skip
    elif "trusted_hops" in top and top.get("forwarded_header", LISTS_OF_HOPS[0]) not in LISTS_OF_HOPS:
        yield Contradiction(
            "hops-of-one-address", ("trusted_hops",),
            f"{top['forwarded_header']} holds one address, so that no hops can be counted in it; "
            "give trusted_proxies instead", (("forwarded_header",),),
        )  # fmt: skip
    elif "forwarded_header" in top and not {"trusted_hops", "trusted_proxies"} & {*top, *bad}:
        yield Contradiction(
            "pointless-forwarded-header", ("forwarded_header",),
            "forwarded_header is given, but no proxy is trusted, so that it is never read; give "
            "trusted_proxies or trusted_hops",
        )  # fmt: skip
    for number, network in enumerate(top.get("allowlist", ())):
        if network.prefixlen == 0:
            yield Contradiction(
                "allows-everyone", ("allowlist", number),
                f"{network} allows every IPv{network.version} client, so that no rule applies to "
                "any; rules that are to do nothing have mode 'off'",
            )  # fmt: skip
    yield from _allowed_and_denied(("allowlist",), top, (("denylist",), covers["denylist"]))
    headers: set[str] = set()
    for number, name in enumerate(top.get("headers", ())):
        if name in headers:
            yield Contradiction(
                "same-header", ("headers", number), f"{name!r} is there twice; once is enough",
            )  # fmt: skip
        headers.add(name)


def _of_options(
    rule: Rule, keys: Mapping[str, Any], at: Place, *, trusted: bool
) -> Iterator[Contradiction]:
    if isinstance(rule.tier, str) and rule.tier.startswith("header:") and not trusted:
        yield Contradiction(
            "untrusted-tier", (*at, "tier"),
            "a header chooses the tier, but no proxy is trusted that could have set it, so that "
            "it is never believed; give trusted_proxies or trusted_hops, or choose by user",
        )  # fmt: skip
    if "on_missing" in keys and all(part.partition(":")[0] in _ALWAYS_THERE for part in rule.by):
        yield Contradiction(
            "pointless-on-missing", (*at, "on_missing"),
            f"on_missing is given, but no request that the rule matches lacks "
            f"{' or '.join(rule.by)}; leave it out", ((*at, "by"),),
        )  # fmt: skip
    if "enforce_share" in keys and rule.mode != "enforce":
        yield Contradiction(
            "pointless-enforce-share", (*at, "enforce_share"),
            f"enforce_share is given, but mode is {rule.mode!r}, which refuses nobody; it goes "
            "with mode 'enforce'", ((*at, "mode"),),
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


def _of_limits(rule: Rule, keys: Mapping[str, Any], at: Place) -> Iterator[Contradiction]:
    own: dict[Place, tuple[Limit, ...]] = {(*at, "limit"): rule.limits}
    if rule.tiers:
        own = {(*at, "limits", tier): limits for tier, limits in rule.tiers.items()}
    # The file's own overrides come first among the rule's.
    for identity, limits in zip(keys.get("overrides", ()), rule.overrides.values(), strict=False):
        if len(limits) > 1:
            own[*at, "overrides", identity] = limits
    for place, limits in own.items():
        for number, second in enumerate(limits):
            for other, first in enumerate(limits):
                if other == number or not unreachable(first, second):
                    continue
                if other > number and unreachable(second, first):
                    continue  # they do the same; the later one is too much
                yield Contradiction(
                    "unreachable-limit", place,
                    f"{_named(second)} can never refuse a request: {_why(first, second)}",
                    ((*at, "algorithm"), (*at, "burst"), (*at, "max_delay")),
                )  # fmt: skip
                break


def _between(rules: Mapping[int, Rule]) -> Iterator[Contradiction]:
    """Limits that a wider rule by the same identity makes unreachable."""
    wider: dict[tuple[tuple[str, ...], str | None], list[tuple[int, Rule]]] = {}
    for number, rule in rules.items():
        if _holds_for_all(rule):
            wider.setdefault((rule.by, rule.path), []).append((number, rule))
    pairs = 0
    for number, rule in rules.items():
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
            yield Contradiction(
                "unreachable-limit", ("rules", number, "limit"),
                f"{_named(second)} can never refuse a request that the rule "
                f"{wide.name!r} lets pass: {_why(first, second)}",
                (("rules", number), ("rules", other)),
            )  # fmt: skip
            break


def _holds_for_all(rule: Rule) -> bool:
    """Whether all that a rule matches is charged to it and refused by it."""
    return (
        rule.mode == "enforce"
        and rule.enforce_share == 1
        and isinstance(rule.cost, int)
        and not (rule.tiers or rule.overrides or rule.allowlist)
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
    allowlist: Place, keys: Mapping[str, Any], *denied: "tuple[Place, _Cover]"
) -> Iterator[Contradiction]:
    for place, cover in denied:
        for number, network in enumerate(keys.get("allowlist", ())):
            denying = cover.of(network)
            if denying is not None:
                yield Contradiction(
                    "allowed-and-denied", (*allowlist, number),
                    f"{network} is allowed, but {denying} is in the denylist, which beats the "
                    "allowlist; take it out of one", (place,),
                )  # fmt: skip


def _of_networks(
    rule: Rule, keys: Mapping[str, Any], at: Place, covers: Mapping[str, _Cover]
) -> Iterator[Contradiction]:
    """Contradictions of a rule's own networks; ``covers`` are the file's."""
    allowlist, denylist = (*at, "allowlist"), (*at, "denylist")
    own = keys.get("allowlist", ())
    if {network.version for network in own if network.prefixlen == 0} == {4, 6}:
        yield Contradiction(
            "allows-everyone", allowlist,
            "the allowlist holds every address, so that the rule never applies; a rule that is to "
            "do nothing has mode 'off'",
        )  # fmt: skip
    denied = _Cover(keys.get("denylist", ()))
    everywhere = covers["denylist"]
    yield from _allowed_and_denied(allowlist, keys, (denylist, denied), (("denylist",), everywhere))
    if denied.networks and all(everywhere.of(network) for network in denied.networks):
        yield Contradiction(
            "pointless-denylist", denylist,
            "all of it is in the file's denylist, which is refused everywhere; leave one of them "
            "out", (("denylist",),),
        )  # fmt: skip
    if rule.by[0] != "client":
        return
    places: tuple[tuple[Place, _Cover], ...] = (
        (("denylist",), everywhere),
        (denylist, denied),
        (("allowlist",), covers["allowlist"]),
        (allowlist, _Cover(own)),
    )
    for place, cover in places:
        name = place[-1]
        for identity in keys.get("overrides", ()) if cover.networks else ():
            address = read_address(identity)
            network = address and cover.of(ip_network(address.key))
            if network:
                effect = "is refused" if name == "denylist" else "is never limited"
                yield Contradiction(
                    "pointless-override", (*at, "overrides", identity),
                    f"the override is for a client that {effect}, since {network} is in the "
                    f"{name}; take it out of one", (place,),
                )  # fmt: skip


def _of_prefix(
    rule: Rule, keys: Mapping[str, Any], at: Place, prefix: int
) -> Iterator[Contradiction]:
    """Overrides of addresses that a shorter prefix makes one client."""
    if rule.by[0] != "client" or prefix >= IPV6_PREFIX:
        return
    own = keys.get("overrides", ())
    # Behind the file's own are those of its list, which are here by their networks of 64 bits.
    listed = [*rule.overrides][len(own) :]
    first: dict[str, str] = {}
    for identity in (*own, *listed):
        address = read_address(identity.partition("/")[0], prefix)
        other = first.setdefault(address.key, identity) if address else identity
        if address and other != identity:
            place, which = (*at, "overrides", identity), "it"
            if identity not in own:
                place, which = (*at, "overrides_file"), repr(identity)
            yield Contradiction(
                "same-override", place,
                f"with an ipv6_prefix of {prefix} {which} is the same client as {other!r}, "
                f"{address.key}; give it once",
                (("ipv6_prefix",), (*at, "overrides")),
            )  # fmt: skip
            if identity not in own:
                return  # whoever has one of these in a list has many
