"""Rule files before they are deployed: every mistake, and what each limit lets through at worst."""

import sys
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Final

import click

from ratelimit.bans import Ban, length_in_words
from ratelimit.cli.output import Row, as_json, say, show
from ratelimit.limits import Algorithm, Limit
from ratelimit.rules.advice import advise
from ratelimit.rules.file.mistakes import RuleFileError
from ratelimit.rules.file.schema import schema as rule_file_schema
from ratelimit.rules.policies import with_concurrency
from ratelimit.rules.rule import Rule
from ratelimit.rules.ruleset import RuleSet
from ratelimit.rules.sockets import most_ahead

__all__ = ["check", "load", "schema", "spelled"]

MISTAKES: Final = 1
"""The exit code of a rule file with mistakes."""

BYTES_OF_A_KEY: Final = 136
"""Size of a bucket's or a window's key in Redis 7, its name included (benchmarks/redis.py)."""

BYTES_OF_A_UNIT: Final = 12.5
"""Size of each unit that a sliding log keeps, measured likewise."""

SHOWN: Final = ("rule", "whose", "mode", "limit", "algorithm", "at worst", "store away", "bytes")
"""The columns that fit a terminal. ``at worst`` is the most in any window, ``store away`` that
while the store fails, and ``bytes`` the size of one identity's key in Redis."""


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path())
@click.option("--strict", is_flag=True, help="Advice counts as a mistake.")
@as_json
def check(files: Sequence[str], strict: bool, json_: bool) -> None:
    """Tells every mistake in rule FILES, and what each rule can let through at worst."""
    failed = False
    reports: list[Row] = []
    for file in files:
        try:
            rules = RuleSet.load(file)
        except RuleFileError as error:
            failed = True
            reports.append({"file": file, "mistakes": [each._asdict() for each in error.mistakes]})
            if not json_:
                _tell(error)
            continue
        in_force = rules.in_force().rules
        rows = [row for rule in in_force for row in _rows(rule, rules)]
        advice = advise(rules)
        failed = failed or (strict and bool(advice))
        cluster = len({rule.by for rule in rules.rules if rule.mode != "off"})
        undecided = [text for rule in in_force for text in _undecided(rule)]
        scripts = f"one per request; in a Cluster at most {cluster}"
        reports.append(
            {
                "file": file,
                "mistakes": [],
                "rules": rows,
                "advice": [each._asdict() for each in advice],
                "undecided": undecided,
                "scripts": scripts,
            }
        )
        if not json_:
            say(f"{file}: {len(rules.rules)} rules, no mistake", "green")
            few = [{column: row[column] for column in SHOWN if column in row} for row in rows]
            show(few, json_=False)
            say(f"scripts in Redis: {scripts}; deny caches add nothing to what passes")
            for rule in in_force:
                if rule.ban is not None and rule.mode != "off":
                    say(_worst_of_ban(rule, rule.ban, rules))
            for text in undecided:
                say(text)
            for each in advice:
                say(f"advice: {each}", "yellow")
    if json_:
        show(reports, json_=True)
    if failed:
        sys.exit(MISTAKES)


@click.command()
@as_json
def schema(json_: bool) -> None:  # noqa: ARG001  # every command takes it, and this is JSON anyway
    """Prints the JSON Schema of rule files, for editors."""
    show(rule_file_schema(), json_=True)


def load(file: str) -> RuleSet:
    """The rules in a file; ends the command with its mistakes."""
    try:
        return RuleSet.load(file)
    except RuleFileError as error:
        _tell(error)
        sys.exit(MISTAKES)


def _tell(error: RuleFileError) -> None:
    for mistake in error.mistakes:
        say(str(mistake))


def spelled(limit: Limit) -> str:
    """A limit as a rule file would have it."""
    burst = f" burst {limit.burst}" if limit.burst not in (None, limit.quota) else ""
    return f"{limit}{burst}"


def _limits(rule: Rule) -> list[tuple[str, Limit | None]]:
    """Every limit of a rule with whose it is; None where it is chosen by request, or unlimited."""
    found: list[tuple[str, Limit | None]] = []
    groups: list[tuple[str, tuple[Limit, ...]]] = [("", rule.asks)]
    if rule.tiers:
        groups = [
            (f"tier {name}", with_concurrency(limits, rule.concurrency) if limits else ())
            for name, limits in rule.tiers.items()
        ]
    # Overrides come by the thousand, and repeat few limits. What is no address may be a secret.
    names = {
        limits: f"override {name if rule.by[0] == 'client' else f'no. {number}'}"
        for number, (name, limits) in reversed([*enumerate(rule.overrides.items(), 1)])
    }
    groups += [(name, limits) for limits, name in names.items()]
    for whose, limits in groups:
        found += [(whose, limit) for limit in limits] or [(whose, None)]
    return found


def _rows(rule: Rule, rules: RuleSet) -> Iterator[dict[str, object]]:
    """Every limit of a rule, then those of the messages that it lets come over WebSockets."""
    for found in _limits(rule):
        yield _row(rule, found, rules)
    for whose in ("messages", "bytes"):
        limit: Limit | None = getattr(rule.websocket, whose, None)
        if limit is not None:
            row = _row(rule, (whose, limit), rules)
            ahead = 0 if rules.store.startswith("memory:") else max(1, most_ahead(limit))
            row["at worst"] = limit.worst_case + ahead
            row["charged ahead"] = ahead
            if row["store away"] == "everything":
                row["store away"] = "by connection"
            yield row


def _row(rule: Rule, found: tuple[str, Limit | None], rules: RuleSet) -> dict[str, object]:
    whose, limit = found
    part = "" if rule.enforce_share == 1 else f" {float(rule.enforce_share * 100):g}%"
    row: dict[str, object] = {
        "rule": rule.name,
        "whose": whose or "all",
        "by": ", ".join(rule.by),
        "mode": rule.mode + part,
        "limit": "unlimited",
    }
    if limit is None:
        return row
    if rule.ban is not None:
        row["ban"] = str(rule.ban)
    failure = rule.on_store_failure or rules.on_store_failure
    return row | {
        "limit": spelled(limit),
        "algorithm": str(limit.algorithm),
        "at worst": limit.worst_case,
        "store away": _while_away(limit, failure, rules.workers, rule.cost),
        "deny cache adds": 0,
        "bytes": _bytes(limit),
    }


def _worst_of_ban(rule: Rule, ban: Ban, rules: RuleSet) -> str:
    """A sentence on whom a ban hits at worst, and for how long."""
    lasts = length_in_words(ban.up_to_us)
    many = (
        f"everybody behind one address (a NAT), or in one IPv6 /{rules.ipv6_prefix}, is refused "
        f"together, for up to {lasts}, once any of them was refused {ban.quota} times"
    )
    if "client" not in rule.by:
        many = f"whoever has a user's session has him refused for up to {lasts}"
        if rule.on_missing == "client":
            many += "; without a user, everybody behind one address is refused together"
    return f"rule {rule.name!r} bans {ban}: at worst {many}"


def _undecided(rule: Rule) -> list[str]:
    """A sentence on the requests whose outcome decides whether they count, where it does."""
    groups = [limits for limits in (rule.limits, *rule.tiers.values()) if limits]
    if rule.charge is None or rule.mode == "off" or not groups:
        return []
    most = max(min(limit.capacity for limit in limits) for limits in groups)
    told = (
        f"rule {rule.name!r}: a request counts until its outcome says that it does not, so that at "
        f"most {most} of one identity are looked at at once"
    )
    return [told]


def _while_away(limit: Limit, failure: str, workers: int, cost: object = 1) -> str:
    """Units that a window lets through beside while the store is away, at worst."""
    if failure == "allow":
        return "everything"
    if failure == "deny":
        return "nothing"
    share = limit.scaled(Fraction(1, workers))
    # A part below one unit is one in a longer window, of which this one sees two at most.
    units = share.worst_case
    if isinstance(cost, int) and cost > share.capacity:  # it is then all that the share holds
        units = units // share.capacity * cost
    more = f"{workers * units} more"
    return more if isinstance(cost, int) else f"{more}, at a cost up to {share.capacity}"


def _bytes(limit: Limit) -> int:
    """An estimate of what one identity takes in Redis."""
    if limit.algorithm is Algorithm.SLIDING_LOG:
        return round(BYTES_OF_A_KEY + BYTES_OF_A_UNIT * limit.quota)
    return BYTES_OF_A_KEY
