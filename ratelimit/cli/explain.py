"""One request, and which rules of a file apply to it."""

import asyncio
import os
import re
from collections.abc import Collection, Mapping, Sequence
from ipaddress import ip_address, ip_network
from itertools import chain
from typing import Any, Final
from urllib.parse import unquote

import click

from ratelimit.cli.output import as_json, say, show
from ratelimit.cli.rulefiles import load, spelled
from ratelimit.identity.addresses import read_address
from ratelimit.identity.hosts import host_of
from ratelimit.identity.networks import Networks
from ratelimit.limiter.checks import Registered, Request, TurnedAway, question
from ratelimit.limiter.in_force import InForce
from ratelimit.rules.matching import Index
from ratelimit.rules.paths import normalised
from ratelimit.rules.rule import Rule
from ratelimit.rules.ruleset import RuleSet
from ratelimit.words import shown

__all__ = ["explain"]

MADE_UP: Final = ("192.0.2.1", "198.51.100.1", "203.0.113.1", "2001:db8::1")
"""Clients to explain a request for, from the networks of documentation (RFC 5737, RFC 3849)."""

_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


@click.command()
@click.argument("file", type=click.Path())
@click.argument("method")
@click.argument("path")
@click.option("--client", help="The peer's address; without it, one that the file does not name.")
@click.option("--header", "headers", multiple=True, help="A header field, as 'Name: value'.")
@click.option("--user", help="Whom scope['user'] is to name.")
@as_json
def explain(
    file: str,
    method: str,
    path: str,
    client: str | None,
    headers: Sequence[str],
    user: str | None,
    json_: bool,
) -> None:
    """Tells which rules of FILE apply to METHOD PATH, to whom, and why the others do not."""
    if not _TOKEN.fullmatch(method):
        raise click.BadParameter(f"{shown(method)} is not a method; write GET or POST")
    if not path.startswith("/"):
        raise click.BadParameter(f"{shown(path)} is not a path; a path begins with a slash")
    if client is not None and read_address(client) is None:
        raise click.BadParameter(
            f"{shown(client)} is not an address; write 192.0.2.7 or 2001:db8::7"
        )
    fields = [_field(header) for header in headers]
    rules = load(file)
    if client is None:
        client = _unnamed(rules)
        say(f"without --client the request is from {client}, which is made up")
    path, _, query = path.partition("?")
    scope: dict[str, Any] = {
        "type": "http",
        "method": method.upper(),
        "path": unquote(path),
        "root_path": "",
        "query_string": os.fsencode(query),
        "headers": fields,
        "client": (client, 0),
        "server": ("localhost", 80),
        "scheme": "http",
    }
    if user is not None:
        scope["user"] = user
    show(asyncio.run(_explained(rules, scope)), json_=json_)


def _field(header: str) -> tuple[bytes, bytes]:
    name, colon, value = header.partition(":")
    if not colon or not _TOKEN.fullmatch(name.strip()):
        raise click.BadParameter(f"{shown(header)} is not a header field; write 'Name: value'")
    return name.strip().lower().encode(), os.fsencode(value.strip())


def _unnamed(rules: RuleSet) -> str:
    """A client of which the file says nothing: on no list, without an override, not a proxy."""
    named = Networks(chain(rules.allowlist, rules.denylist, rules.trusted_proxies))
    for rule in rules.rules:
        for network in chain(rule.allowlist, rule.denylist):
            named.add(network)
        for identity in rule.overrides if rule.by[0] == "client" else ():
            named.add(ip_network(identity.partition("|")[0]))
    for text in MADE_UP:
        address = read_address(text)
        if address is not None and address not in named:
            return text
    for start in (ip_address(MADE_UP[0]), ip_address(MADE_UP[-1])):
        free = int(start)
        ranges = [
            (int(each.network_address), int(each.broadcast_address))
            for each in named
            if each.version == start.version
        ]
        for first, last in sorted(ranges):
            if first <= free <= last:
                free = last + 1
        if free < 2**start.max_prefixlen:
            return str(type(start)(free))
    return MADE_UP[0]


async def _explained(rules: RuleSet, scope: dict[str, Any]) -> list[dict[str, object]]:
    """A row for each rule, or one for a list that decides by itself."""
    now = InForce.of(rules.in_force(), rules.share)
    rules, proxies = now.rules, now.proxies
    client = proxies.client(scope)
    if client is not None:
        for name, networks, what in (
            ("denylist", rules.denied_clients, "refused with 403"),
            ("allowlist", rules.allowed_clients, "not limited at all"),
        ):
            if client in networks:
                return [{"rule": f"({name})", "applies": what, "identity": client.key}]
    host = host_of(scope, proxies)
    matching = rules.matching(scope["method"], scope["path"], host)
    counted = rules.without_preflight(matching, scope)
    found = {rule.name: params for rule, params in counted}
    free = {rule.name for rule, _ in matching} - found.keys()
    request = Request(scope, client, proxies, Registered({}, {}, {}, {}), lambda: None, _ignore)
    rows: dict[str, dict[str, object]] = {}
    replaced: dict[str, str] = {}
    order = rules.index.order
    for rule in sorted(rules.rules, key=lambda rule: order.get(rule.name, 0)):
        row: dict[str, object] = {"rule": rule.name, "applies": "no"}
        rows[rule.name] = row
        if rule.name in free:
            row["why"] = "a CORS preflight is free to a rule that does not name OPTIONS"
        elif rule.name in replaced:
            row["why"] = f"{replaced[rule.name]!r} takes its place"
        elif rule.name in found:
            more, replaces = await _applied(rule, found[rule.name], request, rules.index)
            row |= more
            replaced |= dict.fromkeys(replaces, rule.name)
        else:
            row["why"] = _why_not(rule, scope["method"], scope["path"], host)
    return [rows[rule.name] for rule in rules.rules]


async def _applied(
    rule: Rule, params: Mapping[str, object], request: Request, index: Index
) -> tuple[Mapping[str, object], Collection[str]]:
    """The rest of the row of a rule that matches a request, and the rules that it replaces."""
    if _asks_application(rule):
        known = {
            "applies": "yes",
            "why": "the application says by whom and how much",
            "identity": ", ".join(rule.by),
            "limits": "; ".join(map(spelled, rule.limits)),
        }
        return known, index.replaced_by(rule, known=False) if rule.mode == "enforce" else ()
    try:
        asked = await question(rule, params, request, strict=True)
    except TurnedAway as turned:
        return {"applies": "refused", "why": turned.refusal.detail}, ()
    if asked is None:
        return {"why": "the client is on its allowlist, has no limit, or is not identified"}, ()
    row: dict[str, object] = {
        "applies": "yes" if asked.action == 0 else "as a shadow",
        "identity": asked.key,
        "limits": "; ".join(map(spelled, asked.limits)),
        "cost": asked.cost,
    }
    if str(rule.tier).startswith("user:"):
        row["why"] = "of the first tier, since the application alone knows a user's"
    replaces = index.replaced_by(rule, known=asked.known) if asked.action == 0 else ()
    return row, replaces


def _why_not(rule: Rule, method: str, path: str, host: str) -> str:
    """The reason why a rule does not match a request."""
    if rule.mode == "off":
        return "its mode is off"
    if rule.methods is not None and method not in rule.methods:
        return f"its methods are {', '.join(sorted(rule.methods))}"
    if rule.compiled is not None and rule.compiled.match(normalised(path)) is None:
        return f"its path is {rule.path}"
    if rule.host is not None and host not in rule.host:
        return f"its host is {' or '.join(sorted(rule.host))}"
    return "the path is one of its exceptions"


def _asks_application(rule: Rule) -> bool:
    """Whether the rule depends on the application's own functions or routes."""
    registered = isinstance(rule.tier, str) and ":" not in rule.tier
    return bool(
        rule.registered_names or isinstance(rule.cost, str) or "route" in rule.by or registered
    )


def _ignore(*_: object) -> None:
    """Nothing fails here: what the application registers is not asked."""
