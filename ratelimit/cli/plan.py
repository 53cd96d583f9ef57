"""Quotas for the traffic that a log holds, as a rule file in shadow."""

from collections.abc import Sequence
from fractions import Fraction
from typing import Final

import click

from ratelimit.cli.output import as_json, fail, say, show
from ratelimit.cli.progress import Progress
from ratelimit.cli.replay import INTERRUPTED, interruptible, log_options, opened, say_log
from ratelimit.insight.replay.planfile import rule_file
from ratelimit.insight.replay.planning import WINDOWS, Plan
from ratelimit.words import near, shown

__all__ = ["plan"]

KINDS: Final = ("client", "user", "header:NAME", "cookie:NAME", "query:NAME")
"""Identities that a log may tell."""


@click.command()
@click.argument("logs", nargs=-1, required=True, type=click.Path(), metavar="LOG...")
@click.option(
    "--share",
    default="1%",
    show_default=True,
    help="The part of a rule's clients that it may refuse, as 0.01 or 1%.",
)
@click.option(
    "--window",
    "windows",
    multiple=True,
    type=click.Choice(list(WINDOWS)),
    help="The windows of the limits; left out, a minute.",
)
@click.option("--by", default="client", show_default=True, help="The identity, as in a rule.")
@click.option(
    "--routes", default=20, show_default=True, type=click.IntRange(0, 200), help="At most so many."
)
@log_options
@as_json
def plan(
    logs: Sequence[str],
    share: str,
    windows: Sequence[str],
    by: str,
    routes: int,
    format_: str,
    fields: Sequence[str],
    json_: bool,
) -> None:
    """Suggests rules for the requests in access LOGs, and prints them as a rule file in shadow.

    A LOG may be compressed by gzip; - is standard input.
    """
    part = _share(share)
    kind, colon, rest = by.partition(":")
    if kind not in (("header", "cookie", "query") if colon and rest else ("client", "user")):
        raise click.BadParameter(
            f"{shown(by)} is not an identity that a log can tell{near(by, KINDS)}; there are "
            f"{', '.join(KINDS)}"
        )
    log = opened(logs, format_, fields)
    chosen = list(dict.fromkeys(windows)) or ["minute"]
    found = Plan(log, share=part, windows=chosen, by=by, routes=routes)
    with interruptible() as stopped, Progress(log) as progress:
        try:
            found.run(lambda: progress.step() or stopped())
        except ValueError as error:
            fail(str(error), 2)
    log.close()
    report = found.report()
    if json_:
        show(report, json_=True)
    else:
        say_log(report["log"], interrupted=report["interrupted"])
        click.echo(rule_file(report), nl=False)
        for note in report["notes"]:
            say(f"note: {note}", "yellow")
    if found.interrupted:
        raise SystemExit(INTERRUPTED)


def _share(text: str) -> Fraction:
    try:
        if text.endswith("%"):
            part = Fraction(text.removesuffix("%").strip()) / 100
        else:
            part = Fraction(text)
    except (ValueError, ZeroDivisionError):
        part = Fraction(-1)
    if not 0 <= part < 1:
        raise click.BadParameter(f"{shown(text)} is not a share; write 0.01 or 1%")
    return part
