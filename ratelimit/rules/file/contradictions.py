"""Parts of a rule file that cannot be meant, since another part contradicts them."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final, NamedTuple

from ratelimit.rules.file.yaml import identity_shown
from ratelimit.rules.overriding import is_address, override_key
from ratelimit.rules.replacing import misplaced
from ratelimit.rules.rule import Rule
from ratelimit.rules.values import LISTS_OF_HOPS

__all__ = ["Contradiction", "contradictions"]

Place = tuple[str | int, ...]

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
    names: Collection[str] = (),
) -> Iterator[Contradiction]:
    """Every contradiction; ``top`` and ``given`` are the keys that the file itself holds.

    ``rules`` are those without mistakes, by their number, and ``given`` the keys of all; ``bad``
    are the keys of ``top`` with one, ``names`` the names of all rules.
    """
    yield from _of_file(top)
    trusted = bool(
        top.get("trusted_proxies")
        or top.get("trusted_hops")
        or {"trusted_proxies", "trusted_hops"} & set(bad)
    )
    for number, rule in rules.items():
        at: Place = ("rules", number)
        keys = given[number]
        if isinstance(rule.tier, str) and rule.tier.startswith("header:") and not trusted:
            yield Contradiction(
                "untrusted-tier", (*at, "tier"),
                "a header chooses the tier, but no proxy is trusted that could have set it, so "
                "that it is never believed; give trusted_proxies or trusted_hops, or choose by "
                "user",
            )  # fmt: skip
        everyone = [net.version for net in keys.get("allowlist", ()) if net.prefixlen == 0]
        if set(everyone) == {4, 6}:
            yield Contradiction(
                "allows-everyone", (*at, "allowlist"),
                "the allowlist holds every address, so that the rule never applies; a rule that is "
                "to do nothing has mode 'off'",
            )  # fmt: skip
        yield from _of_prefix(rule, keys, at, top.get("ipv6_prefix", IPV6_PREFIX))
    replacing = {number: keys.get("replaces", ()) for number, keys in given.items()}
    for number, place, code, message in misplaced(rules, names, replacing):
        shown = [("rules", each, "name") for each, rule in rules.items() if rule.name in message]
        yield Contradiction(
            code, ("rules", number, "replaces", place), message, (("rules", number, "by"), *shown)
        )


def _of_file(top: Mapping[str, Any]) -> Iterator[Contradiction]:
    if "trusted_hops" in top and "trusted_proxies" in top:
        yield Contradiction(
            "both-trusted", ("trusted_hops",),
            "trusted_hops is given beside trusted_proxies; give the one by which you know your "
            "proxies", (("trusted_proxies",),),
        )  # fmt: skip
    elif (
        "trusted_hops" in top and top.get("forwarded_header", LISTS_OF_HOPS[0]) not in LISTS_OF_HOPS
    ):
        yield Contradiction(
            "hops-of-one-address", ("trusted_hops",),
            f"{top['forwarded_header']} holds one address, so that no hops can be counted in it; "
            "give trusted_proxies instead", (("forwarded_header",),),
        )  # fmt: skip
    for number, network in enumerate(top.get("allowlist", ())):
        if network.prefixlen == 0:
            yield Contradiction(
                "allows-everyone", ("allowlist", number),
                f"{network} allows every IPv{network.version} client, so that no rule applies to "
                "any; rules that are to do nothing have mode 'off'",
            )  # fmt: skip


def _of_prefix(
    rule: Rule, keys: Mapping[str, Any], at: Place, prefix: int
) -> Iterator[Contradiction]:
    """Overrides of addresses that a shorter prefix makes one client."""
    if "client" not in rule.by or prefix >= IPV6_PREFIX:
        return
    own = keys.get("overrides", ())
    first: dict[str, str] = {}
    for identity in rule.named:
        key, _ = override_key(identity, rule.by, prefix)
        other = first.setdefault(key, identity)
        if other == identity:
            continue
        place = (*at, "overrides", identity) if identity in own else (*at, "overrides_file")
        which = f"{identity_shown(identity)} is the same client as {identity_shown(other)}"
        if not is_address(identity):
            which = "an override is for the same client as another"
        yield Contradiction(
            "same-override", place,
            f"with an ipv6_prefix of {prefix} {which}; give it once",
            (("ipv6_prefix",), (*at, "overrides")),
        )  # fmt: skip
        if identity not in own:
            return  # whoever has one of these in a list has many
