"""Configurations of other limiters to rule files, with all that those do not say."""

import sys
from typing import Final

import click

from ratelimit.cli.output import fail, say
from ratelimit.cli.rulefiles import MISTAKES
from ratelimit.gateway.converted import rule_file
from ratelimit.gateway.from_envoy import from_envoy
from ratelimit.gateway.from_nginx import from_nginx
from ratelimit.rules.file.yaml import Mistakes, text_of

__all__ = ["convert"]

_KINDS: Final = {"envoy": from_envoy, "nginx": from_nginx}


@click.command()
@click.argument("file", type=click.Path())
@click.option(
    "--from",
    "kind",
    type=click.Choice(list(_KINDS)),
    help="Whose FILE it is, where that cannot be seen.",
)
def convert(file: str, kind: str | None) -> None:
    """Prints the rule file that another limiter's FILE comes to.

    A rule file of envoyproxy/ratelimit, or a configuration of nginx with limit_req. What rules
    cannot say is told with its line, and the exit code is 1.
    """
    mistakes = Mistakes(file)
    text = text_of(file, mistakes)
    if text is None:
        fail(str(mistakes[0]), 2)
    if kind is None:
        kind = "nginx" if "limit_req" in text or "limit_conn" in text else "envoy"
    found = _KINDS[kind](text)
    click.echo(rule_file(found, file), nl=False)
    for line, left in sorted(found.left):
        say(f"{file}:{line}: {left}" if line else f"{file}: {left}", "yellow")
    say(f"{len(found.rules)} rules; {len(found.left)} things that they do not say")
    if found.left:
        sys.exit(MISTAKES)
