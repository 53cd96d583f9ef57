"""Advice on rules that are legal, but probably not what was meant."""

import re
from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

from ratelimit.limits import BUCKETS, Algorithm
from ratelimit.rules.effect import idle
from ratelimit.rules.rule import Rule
from ratelimit.rules.ruleset import RuleSet

__all__ = ["Advice", "advise", "doubts"]

_CHOSEN: Final = ("header", "cookie", "query")
"""Parts of an identity that a client can send as it likes, whatever the path."""

_DAY_US: Final = 86_400_000_000
_LARGE_LOG: Final = 10_000
_FOREIGN: Final = re.compile(r"\*|/:[A-Za-z_]|<[A-Za-z_:]+>")


class Advice(NamedTuple):
    """A sentence on what happens and what to write instead.

    ``code`` is short, stable and kebab-case; ``rule`` is a rule's name, None for the whole set.
    """

    code: str
    rule: str | None
    text: str

    def __str__(self) -> str:
        about = "the file" if self.rule is None else f"rule {self.rule!r}"
        return f"{about}: {self.text} [{self.code}]"


def advise(rule_set: RuleSet) -> list[Advice]:
    """All advice on a set of rules; rules that are off get none."""
    return [*doubts(rule_set), *(Advice(*each) for each in idle(rule_set))]


def doubts(rule_set: RuleSet) -> list[Advice]:
    """Advice on what a rule lets through or costs, in the order of the rules."""
    rules = [rule for rule in rule_set.rules if rule.mode != "off"]
    bounds: dict[str | None, list[Rule]] = {}
    for rule in rules:
        if _bounds(rule):
            bounds.setdefault(rule.path, []).append(rule)
    return [
        *_of_set(rule_set, rules),
        *(each for rule in rules for each in _of_rule(rule, bounds)),
    ]


def _of_set(rule_set: RuleSet, rules: list[Rule]) -> Iterator[Advice]:
    if rule_set.store == "memory://":
        yield Advice(
            "memory-store",
            None,
            "every process counts for itself, so that four workers let through four times as much; "
            "name a Redis server as the store where there is more than one",
        )
    if rule_set.trusted_hops:
        yield Advice(
            "trusted-hops",
            None,
            "whoever reaches the application past its proxies chooses the address that he is "
            "counted by; see that nobody can, or write trusted_proxies",
        )
    local = {rule.on_store_failure or rule_set.on_store_failure for rule in rules} & {"local"}
    if local and rule_set.workers == 1:
        yield Advice(
            "local-workers",
            None,
            "while the store fails, and until workers were seen, each of them counts the whole "
            "quota; write how many workers there are",
        )


def _of_rule(rule: Rule, bounds: Mapping[str | None, list[Rule]]) -> Iterator[Advice]:
    chosen = [part for part in rule.by if part.partition(":")[0] in _CHOSEN]
    beside = [*bounds.get(None, ()), *bounds.get(rule.path, ())] if chosen else []
    if chosen and not any(_covers(other, rule) for other in beside):
        yield Advice(
            "client-chosen",
            rule.name,
            f"a client that sends another {chosen[0].replace(':', ' ')} with each request is never "
            "refused; put a rule by client, with a higher limit, beside it",
        )
    if rule.by == ("global",) and rule.mode == "enforce":
        yield Advice(
            "shared-by-all",
            rule.name,
            "one client can use up what all of them share; put a rule by client, with a lower "
            "limit, beside it",
        )
    if "user" in rule.by:
        yield Advice(
            "by-user",
            rule.name,
            "a request without scope['user'] is counted by its address; see that the middleware "
            "that authenticates stands outside this one, or set on_missing",
        )
    yield from _of_match(rule, bounds)
    limits = [*rule.limits, *(each for some in rule.tiers.values() for each in some)]
    for limit in dict.fromkeys(limits):
        if limit.algorithm is Algorithm.FIXED_WINDOW:
            yield Advice(
                "fixed-window-double",
                rule.name,
                f"up to {limit.worst_case} pass within one window's length of '{limit}', half of "
                "them right before a new window and half right after; a sliding_log lets through "
                f"{limit.quota}",
            )
        if limit.algorithm is Algorithm.SLIDING_LOG and limit.quota > _LARGE_LOG:
            yield Advice(
                "large-log",
                rule.name,
                f"'{limit}' keeps the time of up to {limit.quota} units for each identity; a "
                "sliding_counter keeps two numbers",
            )
        if limit.algorithm in BUCKETS and limit.window_us >= _DAY_US:
            if limit.capacity >= limit.quota:
                yield Advice(
                    "long-bucket",
                    rule.name,
                    f"'{limit}' may be used up at once, and up to {limit.worst_case} pass in the "
                    f"first {_length(limit.window_us)}; write a burst for what may come at once",
                )


def _of_match(rule: Rule, bounds: Mapping[str | None, list[Rule]]) -> Iterator[Advice]:
    if rule.host is not None and rule.mode == "enforce":
        beside = [*bounds.get(None, ()), *bounds.get(rule.path, ())]
        if not any(other.host is None and _covers(other, rule) for other in beside):
            yield Advice(
                "host-only",
                rule.name,
                "a client that names another host is not limited by it; put a rule without host, "
                "with a higher limit, beside it",
            )
    foreign = _FOREIGN.search(rule.path or "")
    if foreign:
        yield Advice(
            "foreign-path",
            rule.name,
            f"{foreign[0]!r} in the path stands for itself; a parameter is written {{name}}, or "
            "{rest:path} for all that follows",
        )


def _bounds(rule: Rule) -> bool:
    """Whether a rule bounds every client that it matches, by nothing that the client chooses."""
    return (
        rule.mode == "enforce"
        and rule.enforce_share == 1
        and rule.cost != 0
        and rule.skip is None
        and rule.host is None
        and not rule.except_
        and (rule.on_missing != "skip" or rule.by == ("client",))
        and all(rule.tiers.values())
        and not any(part.partition(":")[0] in (*_CHOSEN, "path") for part in rule.by)
    )


def _covers(other: Rule, rule: Rule) -> bool:
    """Whether a rule, of the same path or of all, matches every method that another does."""
    return other.methods is None or (rule.methods is not None and rule.methods <= other.methods)


def _length(window_us: int) -> str:
    days = window_us // _DAY_US
    return "day" if days == 1 else f"{days} days"
