"""Rules that take the place of others: what cannot be meant, and the order to ask them in."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from types import MappingProxyType
from typing import NamedTuple

from ratelimit.rules.rule import Rule
from ratelimit.words import near, shown

__all__ = ["Misplaced", "misplaced", "order", "whatever_is_sent"]


class Misplaced(NamedTuple):
    """A name in ``replaces`` that cannot be meant: its rule, its place there, and why."""

    rule: int
    place: int
    code: str
    message: str


def misplaced(
    rules: Mapping[int, Rule],
    names: Collection[str] = (),
    replacing: Mapping[int, Sequence[str]] = MappingProxyType({}),
) -> Iterator[Misplaced]:
    """Every name in ``replaces`` that cannot be meant, of rules by their number.

    ``names`` are those of rules beside them, which have a mistake of their own, and ``replacing``
    the names that all of them replace.
    """
    named = {rule.name: rule for rule in rules.values()}
    replaced = {**replacing, **{number: rule.replaces for number, rule in rules.items()}}
    for number, others in replaced.items():
        for place, name in enumerate(others):
            if name not in named and name not in names:
                hint = near(name, named)
                message = f"{shown(name)} is not the name of a rule{hint}; name one of this file"
                yield Misplaced(number, place, "unknown-rule", message)
    for number, rule in rules.items():
        for place, name in enumerate(rule.replaces):
            other = named.get(name)
            if other is None:
                continue
            if other is rule:
                message = "a rule cannot replace itself; name another"
                yield Misplaced(number, place, "replaces-itself", message)
            elif (chosen := _escape(rule, other)) and not rule.names_all_it_counts:
                yield Misplaced(
                    number, place, "replaces-by-choice",
                    f"{name!r} bounds a client whatever {chosen} it sends, and would be escaped by "
                    "sending another with each request; name the values that are meant in "
                    "overrides, or count by something that the application knows",
                )  # fmt: skip
    yield from _circle(rules)


def _circle(rules: Mapping[int, Rule]) -> Iterator[Misplaced]:
    graph = {
        rule.name: {name for name in rule.replaces if name != rule.name} for rule in rules.values()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        circle: list[str] = error.args[1]
        for number, rule in rules.items():
            for place, name in enumerate(rule.replaces):
                if rule.name in circle and name in circle and name != rule.name:
                    message = (
                        f"{' and '.join(map(repr, sorted(set(circle))))} replace each other, so "
                        "that neither would apply; leave one out"
                    )
                    yield Misplaced(number, place, "replaces-circle", message)
                    return


def _escape(rule: Rule, other: Rule) -> str | None:
    """A part by which a client would escape another rule: it picks it, and that counts by none.

    Parameters are those of a rule's own path, so that one name may stand for two values.
    """
    for part in rule.by:
        shared = part in other.by and (rule.path == other.path or not part.startswith("path:"))
        if rule.is_chosen_part(part) and not shared:
            return part.replace(":", " ")
    return None


def whatever_is_sent(rules: Iterable[Rule]) -> dict[str, frozenset[str]]:
    """The names that each rule replaces for every identity, not only for those it knows."""
    named = {rule.name: rule for rule in rules}
    return {
        rule.name: frozenset(name for name in rule.replaces if _escape(rule, named[name]) is None)
        for rule in named.values()
        if rule.replaces
    }


def order(rules: Iterable[Rule]) -> dict[str, int]:
    """The rules' places in an order in which each comes behind those that replace it.

    Empty where none replaces another.
    """
    replacing = [rule for rule in rules if rule.replaces]
    graph: dict[str, set[str]] = {}
    for rule in replacing:
        for name in rule.replaces:
            graph.setdefault(name, set()).add(rule.name)
    return {name: place for place, name in enumerate(TopologicalSorter(graph).static_order())}
