"""Counters and switches in a store, for whoever looks after the application while it runs."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import cached_property, wraps
from typing import Any, Final, TypeVar

import click

from ratelimit.bans import Ban
from ratelimit.cli.output import Row, as_json, fail, say, show
from ratelimit.cli.rulefiles import load, spelled
from ratelimit.control.switches import ALL
from ratelimit.decisions import Action, Check, Decision, identity_digest
from ratelimit.limiter.identified import Identified, no_such_rule, rule_named
from ratelimit.rules.overriding import BLOCKED
from ratelimit.rules.ruleset import RuleSet
from ratelimit.stores import StoreUnavailable
from ratelimit.stores.redis.store import MOST_DENIED, RedisStore

__all__ = ["inspect", "kill", "reset", "revive", "top", "unban"]

T = TypeVar("T")

UNAVAILABLE: Final = 3
"""The exit code where the store gives no answer."""

RULES: Final = "rules.yaml"


class Place:
    """A store as the command line names it, and the rule file beside it."""

    def __init__(self, store: str, file: str | None, prefix: str) -> None:
        self._store = store
        self._prefix = prefix
        self.is_file_used = file is not None or store == "-"
        """Whether the rule file was named, or is where the store is named."""
        self._file = file or RULES

    @cached_property
    def rules(self) -> RuleSet:
        """The rules in the file; ends the command with its mistakes."""
        return load(self._file)

    def ask(self, ask: Callable[[RedisStore], Awaitable[T]]) -> T:
        """A store's answer, within a second: no request waits for it."""
        uri = self.rules.store if self._store == "-" else self._store
        if uri.startswith("memory:"):
            raise click.UsageError("memory:// is inside of each process; ask the application there")

        async def run() -> T:
            async with RedisStore(uri, deadline=1.0, prefix=self._prefix) as store:
                return await ask(store)

        try:
            return asyncio.run(run())
        except (ValueError, ImportError) as error:
            raise click.UsageError(str(error)) from None
        except StoreUnavailable as error:
            fail(f"the store gives no answer: {error}", UNAVAILABLE)

    def asked(self, name: str, parts: Sequence[str]) -> Identified:
        """A rule and an identity, in force as a limiter would have them."""
        rules = self.rules.in_force()
        try:
            return Identified.of(rule_named(name, rules.rules), parts, rules.ipv6_prefix)
        except ValueError as error:
            raise click.UsageError(str(error)) from None

    def checks(self, name: str, parts: Sequence[str], cost: int) -> list[Check]:
        """A rule's checks for an identity, that of its ban last."""
        asked = self.asked(name, parts)
        try:
            limits = asked.every_limit()
        except ValueError as error:
            raise click.UsageError(str(error)) from None
        if not limits:
            what = "blocks" if asked.own is BLOCKED else "does not limit"
            raise click.UsageError(f"rule {name!r} {what} this identity, which has no counter")
        ban = asked.ban(Action.SHADOW)
        return [*asked.checks(limits, cost), *([] if ban is None else [ban])]


def of_store(command: Callable[..., None]) -> Callable[..., None]:
    """A command on a STORE, which gets it as a `Place`, with the options that go with one."""

    @wraps(command)
    def placed(store: str, file: str | None, prefix: str, **given: Any) -> None:
        command(Place(store, file, prefix), **given)

    for option in (
        as_json,
        click.option(
            "--prefix",
            default="rl:",
            show_default=True,
            envvar="RATELIMIT_PREFIX",
            help="What the store's keys begin with.",
        ),
        click.option(
            "--rules",
            "file",
            type=click.Path(),
            show_default=RULES,
            envvar="RATELIMIT_RULES",
            help="The rule file.",
        ),
        click.argument("store"),
    ):
        option(placed)
    return placed


@click.command()
@of_store
@click.argument("rule")
@click.argument("identity", nargs=-1)
def inspect(place: Place, rule: str, identity: Sequence[str], json_: bool) -> None:
    """Shows the state of an IDENTITY's counters under a RULE, and charges nothing.

    STORE is a URI, or - for the rule file's own. IDENTITY is one text for each part of the rule's
    `by`, in its order; `global` takes none.
    """
    checks = place.checks(rule, identity, cost=0)
    decisions = place.ask(lambda store: store.decide(checks))
    rows = [
        _state(rule, check, decision) for check, decision in zip(checks, decisions, strict=True)
    ]
    show(rows, json_=json_)


def _state(rule: str, check: Check, decision: Decision) -> Row:
    """A row on a counter; of a ban, what remains are strikes."""
    limit = decision.limit
    is_ban = isinstance(limit, Ban)
    row: dict[str, object] = {
        "rule": rule,
        "limit": f"ban {limit}" if is_ban else spelled(limit),
        "algorithm": "ban" if is_ban else limit.algorithm.value,
        "remaining": decision.remaining,
        "of": limit.capacity,
        "as if never used in s": round(decision.reset_after, 3),
        "key": identity_digest(check.key),
    }
    if is_ban:
        row["banned for s"] = round(decision.retry_after or 0, 3)
    return row


@click.command()
@of_store
@click.argument("rule")
@click.argument("identity", nargs=-1)
def reset(place: Place, rule: str, identity: Sequence[str], json_: bool) -> None:
    """Makes an IDENTITY's counters under a RULE as if they had never been used.

    STORE is a URI, or - for the rule file's own. IDENTITY is one text for each part of the rule's
    `by`, in its order; `global` takes none.
    """
    checks = place.checks(rule, identity, cost=1)
    place.ask(lambda store: store.reset(checks))
    if json_:
        limits = [spelled(check.limit) for check in checks if not isinstance(check.limit, Ban)]
        show({"rule": rule, "limits": limits}, json_=True)
    say(f"{' '.join((rule + ':', *identity))} starts afresh (deny caches hold for a second more)")


@click.command()
@of_store
@click.argument("rule")
@click.argument("identity", nargs=-1)
def unban(place: Place, rule: str, identity: Sequence[str], json_: bool) -> None:
    """Ends the ban of an IDENTITY under a RULE in all workers within 5 s, and forgets its strikes.

    STORE is a URI, or - for the rule file's own. IDENTITY is one text for each part of the rule's
    `by`, in its order. What is counted stays counted.
    """
    ban = place.asked(rule, identity).ban(Action.SHADOW)
    if ban is None:
        raise click.UsageError(f"rule {rule!r} does not ban this identity")

    async def lift(store: RedisStore) -> Decision:
        (decision,) = await store.decide([ban])
        await store.reset([ban])
        return decision

    decision = place.ask(lift)
    if json_:
        left = round(decision.retry_after or 0, 3)
        show({"rule": rule, "was_banned": not decision.allowed, "for_s": left}, json_=True)
    name = " ".join((rule + ":", *identity))
    if decision.allowed:
        say(f"{name} was not banned; its strikes are forgotten")
    else:
        say(f"{name} was banned for {decision.retry_after:.0f} s more, and is free within 5 s")


@click.command()
@of_store
@click.option("--count", type=click.IntRange(1), default=10, show_default=True, help="How many.")
def top(place: Place, count: int, json_: bool) -> None:
    """Shows who was denied most in the last ten to twenty minutes, by all workers.

    STORE is a URI, or - for the rule file's own. Identities that are not addresses are shown by
    their digest, which `inspect` shows as the key.
    """
    denied = place.ask(lambda store: store.denials(2 * MOST_DENIED))
    rows: list[Row] = [
        {"denied": number, "rule": name.partition(" ")[0], "identity": name.partition(" ")[2]}
        for name, number in denied[:count]
    ]
    show(rows, json_=json_)
    if not rows:
        say("nobody was denied lately")
    if len(denied) >= MOST_DENIED:
        say("more were denied than are kept; those who were denied seldom may be missing", "yellow")


@click.command()
@of_store
@click.argument("rule")
@click.option("--force", is_flag=True, help="Also a RULE that nobody knows of.")
def kill(place: Place, rule: str, force: bool, json_: bool) -> None:
    """Turns a RULE off in all workers within a second, until it is revived; '*' for all rules.

    STORE is a URI, or - for the rule file's own. A RULE that neither the workers nor the rule file
    (with --rules, or -) know of is refused.
    """
    in_file = [each.name for each in place.rules.rules] if place.is_file_used else []

    async def switch(store: RedisStore) -> frozenset[str]:
        try:
            reported = await store.rules()
        except StoreUnavailable:  # a right is missing, or the switch fails as well
            reported = frozenset()
        known = reported | set(in_file)
        if known and not force and rule not in known | {ALL} and ALL not in reported:
            raise click.UsageError(
                f"{no_such_rule(rule, sorted(known))}; --force turns it off all the same"
            )
        await store.switch(rule, off=True)
        return reported

    reported = place.ask(switch)
    is_known = rule in reported or (rule == ALL and bool(reported))
    unknown = not reported or ALL in reported
    if json_:
        heard = True if is_known else None if unknown else False
        show({"rule": rule, "off": True, "reported": heard}, json_=True)
    say(f"{rule} is off; `ratelimit revive` turns it on again", "yellow")
    if not reported:
        say("no worker reports its rules here, so it cannot be known whether one hears of this")
    elif not is_known:
        says = "there are more rules than are reported" if unknown else "no worker has such a rule"
        say(f"{says}; what has this name is off from its start on")


@click.command()
@of_store
@click.argument("rule")
def revive(place: Place, rule: str, json_: bool) -> None:
    """Turns a RULE on again that `kill` has turned off; '*' takes back a kill of all.

    STORE is a URI, or - for the rule file's own.
    """

    async def switch(store: RedisStore) -> tuple[bool, list[str]]:
        was_off = await store.switch(rule, off=False)
        return was_off, sorted(await store.switches())

    was_off, off = place.ask(switch)
    if json_:
        show({"rule": rule, "was_off": was_off, "off": off}, json_=True)
    now = "is on again" if was_off else "was not off"
    say(f"{rule} {now}" + (f"; still off: {', '.join(off)}" if off else ""), "green")
