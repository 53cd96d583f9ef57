"""The ``ratelimit`` command: rule files and counters from a shell.

Tables with colours on a terminal, plain columns where the output is piped, JSON with ``--json``.
Exit codes: 0 all is well, 1 a rule file has mistakes (or advice, with ``--strict``), 2 the command
is wrong, 3 the store gives no answer.
"""

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from fractions import Fraction
from ipaddress import IPv4Network, IPv6Network
from typing import Any, Final, NoReturn, TypeVar
from urllib.parse import unquote

try:
    import click
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
except ImportError:
    raise SystemExit(
        "the ratelimit command needs click and rich: pip install 'ratelimit-asgi[cli]'"
    ) from None

from ratelimit.control.switches import ALL
from ratelimit.decisions import Check, identity_digest
from ratelimit.identity.keys import identity_of
from ratelimit.identity.proxies import Proxies
from ratelimit.limiter.checks import Registered, Request, TurnedAway, question
from ratelimit.limits import Algorithm, Limit
from ratelimit.rules.advice import advise
from ratelimit.rules.file.mistakes import RuleFileError
from ratelimit.rules.file.schema import schema as rule_file_schema
from ratelimit.rules.rule import Rule
from ratelimit.rules.ruleset import RuleSet
from ratelimit.stores import Store, StoreUnavailable
from ratelimit.stores.redis.store import RedisStore

__all__ = ["main"]

T = TypeVar("T")

MISTAKES: Final = 1
UNAVAILABLE: Final = 3

BYTES_OF_A_KEY: Final = 136
"""Size of a bucket's or a window's key in Redis 7, its name included (benchmarks/redis.py)."""

BYTES_OF_A_UNIT: Final = 12.5
"""Size of each unit that a sliding log keeps, measured likewise."""

SHOWN: Final = ("rule", "whose", "mode", "limit", "algorithm", "at worst", "store away", "bytes")
"""The columns that fit a terminal. ``at worst`` is the most in any window, ``store away`` that
while the store fails, and ``bytes`` the size of one identity's key in Redis."""

as_json = click.option("--json", "json_", is_flag=True, help="JSON, for programs.")
rules_option = click.option(
    "--rules",
    "file",
    default="rules.yaml",
    show_default=True,
    envvar="RATELIMIT_RULES",
    help="The rule file, for the rule's limits.",
)

prefix_option = click.option(
    "--prefix",
    default="rl:",
    show_default=True,
    envvar="RATELIMIT_PREFIX",
    help="What the store's keys begin with.",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="ratelimit-asgi")
def main() -> None:
    """Checks and explains rule files, and looks at the counters in a store."""


@main.command()
@click.argument("files", nargs=-1, required=True)
@click.option("--strict", is_flag=True, help="Advice counts as a mistake.")
@as_json
def check(files: Sequence[str], strict: bool, json_: bool) -> None:
    """Tells every mistake in rule FILES, and what each rule can let through at worst."""
    failed = False
    reports = []
    for file in files:
        try:
            rules = RuleSet.load(file)
        except RuleFileError as error:
            failed = True
            reports.append({"file": file, "mistakes": [each._asdict() for each in error.mistakes]})
            if not json_:
                click.echo(str(error), err=True)
            continue
        in_force = rules.in_force().rules
        rows = [_row(rule, limit, rules) for rule in in_force for limit in _limits(rule)]
        advice = advise(rules)
        failed = failed or (strict and bool(advice))
        cluster = len({rule.by for rule in rules.rules if rule.mode != "off"})
        scripts = f"one per request; in a Cluster at most {cluster}"
        reports.append(
            {
                "file": file,
                "mistakes": [],
                "rules": rows,
                "advice": [each._asdict() for each in advice],
                "scripts": scripts,
            }
        )
        if not json_:
            click.secho(f"{file}: {len(rules.rules)} rules, no mistake", fg="green")
            _table([{column: row[column] for column in SHOWN if column in row} for row in rows])
            click.echo(f"scripts in Redis: {scripts}; deny caches add nothing to what passes")
            for each in advice:
                click.secho(f"advice: {each}", fg="yellow")
    if json_:
        click.echo(json.dumps(reports, indent=2))
    if failed:
        sys.exit(MISTAKES)


def _limits(rule: Rule) -> list[tuple[str, Limit | None]]:
    """Every limit of a rule with whose it is; None where it is chosen by request, or unlimited."""
    found: list[tuple[str, Limit | None]] = []
    groups: list[tuple[str, tuple[Limit, ...]]] = [("", rule.limits)]
    if rule.tiers:
        groups = [(f"tier {name}", limits) for name, limits in rule.tiers.items()]
    # Overrides come by the thousand, and repeat few limits. What is no address may be a secret.
    names = {
        limits: f"override {name if rule.by[0] == 'client' else f'no. {number}'}"
        for number, (name, limits) in reversed([*enumerate(rule.overrides.items(), 1)])
    }
    groups += [(name, limits) for limits, name in names.items()]
    for whose, limits in groups:
        found += [(whose, limit) for limit in limits] or [(whose, None)]
    return found


def _row(rule: Rule, found: tuple[str, Limit | None], rules: RuleSet) -> dict[str, object]:
    whose, limit = found
    row: dict[str, object] = {
        "rule": rule.name,
        "whose": whose or "all",
        "by": ", ".join(rule.by),
        "mode": _mode(rule),
        "limit": "unlimited",
    }
    if limit is None:
        return row
    failure = rule.on_store_failure or rules.on_store_failure
    return row | {
        "limit": _spelled(limit),
        "algorithm": limit.algorithm.value,
        "at worst": limit.worst_case,
        "store away": _while_away(limit, failure, rules.workers, rule.cost),
        "deny cache adds": 0,
        "bytes": _bytes(limit),
    }


def _mode(rule: Rule) -> str:
    if rule.enforce_share != 1:
        return f"{rule.mode} {float(rule.enforce_share * 100):g}%"
    return rule.mode


def _spelled(limit: Limit) -> str:
    burst = f" burst {limit.burst}" if limit.burst not in (None, limit.quota) else ""
    return f"{limit}{burst}"


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


@main.command()
@click.argument("file")
@click.argument("method")
@click.argument("path")
@click.option("--client", default="192.0.2.1", show_default=True, help="The peer's address.")
@click.option("--header", "headers", multiple=True, help="A header field, as 'Name: value'.")
@click.option("--user", help="Whom scope['user'] is to name.")
@as_json
def explain(
    file: str,
    method: str,
    path: str,
    client: str,
    headers: Sequence[str],
    user: str | None,
    json_: bool,
) -> None:
    """Tells which rules of FILE apply to METHOD PATH, to whom, and why the others do not."""
    rules = _load(file)
    path, _, query = path.partition("?")
    fields = []
    for header in headers:
        name, colon, value = header.partition(":")
        if not colon:
            raise click.BadParameter(f"{header!r} is not a header field; write 'Name: value'")
        fields.append((name.strip().lower().encode(), value.strip().encode("latin-1", "replace")))
    scope: dict[str, Any] = {
        "type": "http",
        "method": method.upper(),
        "path": unquote(path),
        "root_path": "",
        "query_string": query.encode(),
        "headers": fields,
        "client": (client, 0),
        "server": ("localhost", 80),
        "scheme": "http",
    }
    if user is not None:
        scope["user"] = user
    rows = asyncio.run(_explained(rules.in_force(), scope))
    _show(rows, json_=json_)


async def _explained(rules: RuleSet, scope: dict[str, Any]) -> list[dict[str, object]]:
    proxies = Proxies(
        rules.trusted_proxies, rules.trusted_hops, rules.forwarded_header, rules.ipv6_prefix
    )
    client = proxies.client(scope)
    rows: list[dict[str, object]] = []
    for name in ("denylist", "allowlist"):
        for network in getattr(rules, name):
            if client is not None and _holds(network, client.number, client.version):
                what = "refused with 403" if name == "denylist" else "not limited at all"
                return [{"rule": f"({name})", "applies": what, "identity": client.key}]
    for rule in rules.rules:
        row: dict[str, object] = {"rule": rule.name, "applies": "no"}
        rows.append(row)
        params = rule.match(scope["method"], scope["path"])
        why_not = _why_not(rules, rule, scope)
        if why_not:
            row["why"] = why_not
        elif _asks_application(rule):
            row |= {"applies": "yes", "why": "the application says by whom and how much"}
            row |= {"identity": ", ".join(rule.by), "limits": "; ".join(map(_spelled, rule.limits))}
        else:
            request = Request(scope, client, proxies, Registered({}, {}, {}), lambda: None, _ignore)
            try:
                asked = await question(rule, params or {}, request, strict=True)
            except TurnedAway as turned:
                row |= {"applies": "refused", "why": turned.refusal.detail}
                continue
            if asked is None:
                row["why"] = "the client is on its allowlist, has no limit, or is not identified"
                continue
            row |= {
                "applies": "yes" if asked.action == 0 else "as a shadow",
                "identity": asked.key,
                "limits": "; ".join(map(_spelled, asked.limits)),
                "cost": asked.cost,
            }
            if str(rule.tier).startswith("user:"):
                row["why"] = "of the first tier, since the application alone knows a user's"
    return rows


def _why_not(rules: RuleSet, rule: Rule, scope: Mapping[str, Any]) -> str:
    """The reason why a limiter would not apply a rule to a request; empty where it would."""
    method, names = scope["method"], {name for name, _ in scope["headers"]}
    named = rule.methods or ()
    if rule.mode == "off":
        return "its mode is off"
    if rule.methods is not None and method not in rule.methods:
        return f"its methods are {', '.join(sorted(rule.methods))}"
    if rule.match(method, scope["path"]) is None:
        return f"its path is {rule.path}"
    preflight = method == "OPTIONS" and names >= {b"origin", b"access-control-request-method"}
    if preflight and rules.preflights == "free" and "OPTIONS" not in named:
        return "a CORS preflight is free to a rule that does not name OPTIONS"
    return ""


def _asks_application(rule: Rule) -> bool:
    """Whether the rule depends on the application's own functions or routes."""
    registered = isinstance(rule.tier, str) and ":" not in rule.tier
    return bool(
        rule.registered_names or isinstance(rule.cost, str) or "route" in rule.by or registered
    )


def _holds(network: IPv4Network | IPv6Network, number: int, version: int) -> bool:
    shift = network.max_prefixlen - network.prefixlen
    return network.version == version and number >> shift == int(network.network_address) >> shift


@main.command()
@click.argument("store")
@click.argument("rule")
@click.argument("identity", nargs=-1, required=True)
@rules_option
@prefix_option
@as_json
def inspect(
    store: str, rule: str, identity: Sequence[str], file: str, prefix: str, json_: bool
) -> None:
    """Shows the state of an IDENTITY's counters under a RULE, and charges nothing.

    STORE is a URI, or - for the rule file's own. IDENTITY is one text for each part of the rule's
    `by`, in its order.
    """
    rules = _load(file)
    checks = _checks(rules, rule, identity, cost=0)

    async def look(opened: Store) -> list[dict[str, object]]:
        decisions = await opened.decide(checks)
        return [
            {
                "rule": rule,
                "limit": _spelled(decision.limit),
                "algorithm": decision.limit.algorithm.value,
                "remaining": decision.remaining,
                "of": decision.limit.capacity,
                "as if never used in s": round(decision.reset_after, 3),
                "key": identity_digest(check.key),
            }
            for check, decision in zip(checks, decisions, strict=True)
        ]

    _show(_asked(store, prefix, look, rules), json_=json_)


@main.command()
@click.argument("store")
@click.argument("rule")
@click.argument("identity", nargs=-1, required=True)
@rules_option
@prefix_option
def reset(store: str, rule: str, identity: Sequence[str], file: str, prefix: str) -> None:
    """Makes an IDENTITY's counters under a RULE as if they had never been used."""
    rules = _load(file)
    checks = _checks(rules, rule, identity, cost=1)
    _asked(store, prefix, lambda opened: opened.reset(checks), rules)
    click.echo(f"{rule}: {' '.join(identity)} starts afresh (deny caches hold for a second more)")


@main.command()
@click.argument("store")
@click.option("--count", default=10, show_default=True, help="How many to show.")
@prefix_option
@as_json
def top(store: str, count: int, prefix: str, json_: bool) -> None:
    """Shows who was denied most in the last ten to twenty minutes, by all workers.

    Identities that are not addresses are shown by their digest, which `inspect` shows as the key.
    """

    async def ask(opened: RedisStore) -> list[tuple[str, int]]:
        return await opened.denials(count)

    rows: list[dict[str, object]] = [
        {"denied": number, "rule": name.partition(" ")[0], "identity": name.partition(" ")[2]}
        for name, number in _asked(store, prefix, ask)
    ]
    _show(rows, json_=json_, empty="nobody was denied lately")


@main.command()
@click.argument("store")
@click.argument("rule")
@click.option("--rules", "file", envvar="RATELIMIT_RULES", help="A rule file that has the RULE.")
@prefix_option
def kill(store: str, rule: str, file: str | None, prefix: str) -> None:
    """Turns a RULE off in all workers within a second, until it is revived; '*' for all rules.

    With a rule file at hand, a RULE that is not in it is refused.
    """
    if file is not None and rule != ALL:
        _rule(_load(file), rule)
    _asked(store, prefix, lambda opened: opened.switch(rule, off=True))
    click.secho(f"{rule} is off; `ratelimit revive` turns it on again", fg="yellow")


@main.command()
@click.argument("store")
@click.argument("rule")
@prefix_option
def revive(store: str, rule: str, prefix: str) -> None:
    """Turns a RULE on again that `kill` has turned off; '*' takes back a kill of all."""
    off = _asked(store, prefix, lambda opened: _revived(opened, rule))
    click.secho(
        f"{rule} is on again" + (f"; still off: {', '.join(off)}" if off else ""), fg="green"
    )


async def _revived(opened: RedisStore, rule: str) -> list[str]:
    await opened.switch(rule, off=False)
    return sorted(await opened.switches())


@main.command()
def schema() -> None:
    """Prints the JSON Schema of rule files, for editors."""
    click.echo(json.dumps(rule_file_schema(), indent=2))


def _load(file: str) -> RuleSet:
    try:
        return RuleSet.load(file)
    except RuleFileError as error:
        click.echo(str(error), err=True)
        sys.exit(MISTAKES)


def _rule(rules: RuleSet, name: str) -> Rule:
    for rule in rules.rules:
        if rule.name == name:
            return rule
    raise click.UsageError(
        f"there is no rule {name!r}; there are {', '.join(each.name for each in rules.rules)}"
    )


def _checks(rules: RuleSet, name: str, parts: Sequence[str], cost: int) -> list[Check]:
    """A rule's checks for an identity, in force as a limiter would have them."""
    rule = _rule(rules.in_force(), name)
    if len(parts) != len(rule.by):
        raise click.UsageError(
            f"rule {name!r} counts by {', '.join(rule.by)}: give {len(rule.by)} texts, not "
            f"{len(parts)}"
        )
    key, first = identity_of(rule.by, parts, rules.ipv6_prefix)
    limits = rule.overrides.get(first, rule.limits)
    groups = [limits] if first in rule.overrides or not rule.tiers else rule.tiers.values()
    unique = {limit.digest: limit for group in groups for limit in group}
    if not unique:
        raise click.UsageError(f"rule {name!r} has no limit for this identity that the file names")
    return [Check(limit, key, cost, rule.name) for limit in unique.values()]


def _asked(
    uri: str, prefix: str, ask: Callable[[RedisStore], Awaitable[T]], rules: RuleSet | None = None
) -> T:
    """A store's answer, within a second: no request waits for it."""
    if uri == "-" and rules is not None:
        uri = rules.store
    if uri.startswith("memory:"):
        raise click.UsageError("memory:// is inside of each process; ask the application there")

    async def run() -> T:
        async with RedisStore(uri, deadline=1.0, prefix=prefix) as store:
            return await ask(store)

    try:
        return asyncio.run(run())
    except (ValueError, ImportError) as error:
        raise click.UsageError(str(error)) from None
    except StoreUnavailable as error:
        _fail(f"the store gives no answer: {error}", UNAVAILABLE)


def _fail(message: str, code: int) -> NoReturn:
    click.secho(message, fg="red", err=True)
    sys.exit(code)


def _show(rows: Sequence[Mapping[str, object]], *, json_: bool, empty: str = "nothing") -> None:
    if json_:
        click.echo(json.dumps(rows, indent=2))
    elif rows:
        _table(rows)
    else:
        click.echo(empty)


def _table(rows: Sequence[Mapping[str, object]]) -> None:
    """A table on a terminal; columns between tabs where the output goes elsewhere."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    cells = [[str(row.get(column, "")) for column in columns] for row in rows]
    if not sys.stdout.isatty():
        for line in ([column.upper() for column in columns], *cells):
            click.echo("\t".join(line))
        return
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in columns:
        numbers = all(isinstance(row.get(column, 0), int) for row in rows)
        table.add_column(column, justify="right" if numbers else "left")
    for line in cells:
        table.add_row(*line)
    Console().print(table)


def _ignore(*_: object) -> None:
    """Nothing fails here: what the application registers is not asked."""
