"""Rules before they are deployed, against the traffic that a log holds."""

import gc
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Final

import click

from ratelimit.cli.output import as_json, fail, say, show
from ratelimit.cli.progress import Progress
from ratelimit.cli.rulefiles import load
from ratelimit.insight.replay.detection import format_of
from ratelimit.insight.replay.entries import Format
from ratelimit.insight.replay.log import Log
from ratelimit.insight.replay.page import page_of
from ratelimit.insight.replay.readings import READINGS, Reading
from ratelimit.insight.replay.report import moment, report_of
from ratelimit.insight.replay.session import Replay
from ratelimit.words import shown

__all__ = ["interruptible", "log_options", "opened", "replay", "say_log", "written"]

INTERRUPTED: Final = 130
"""The exit code after SIGINT, as shells have it."""

_FORMAT: Final = click.option(
    "--format",
    "format_",
    default="auto",
    help="combined, common, vhost, alb, uvicorn, json, caddy, cloudflare; or a whole nginx "
    "log_format or Apache LogFormat. Left out, the lines tell.",
)
_FIELD: Final = click.option(
    "--field",
    "fields",
    multiple=True,
    help="Where JSON lines have a field, as 'client=request.remote_ip'.",
)


def log_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options of every command that reads a log."""
    return _FORMAT(_FIELD(command))


@click.command()
@click.argument("file", type=click.Path(), metavar="RULES")
@click.argument("logs", nargs=-1, required=True, type=click.Path(), metavar="LOG...")
@click.option("--against", type=click.Path(), help="Another rule file, to tell what changes.")
@click.option("--compare-algorithms", "compare", is_flag=True, help="All five, side by side.")
@click.option(
    "--reading",
    "readings",
    multiple=True,
    type=click.Choice(READINGS),
    help="How refused clients behave; left out, all three.",
)
@click.option("--html", type=click.Path(), help="Writes the report as a page into this file.")
@log_options
@as_json
def replay(
    file: str,
    logs: Sequence[str],
    against: str | None,
    compare: bool,
    readings: Sequence[Reading],
    html: str | None,
    format_: str,
    fields: Sequence[str],
    json_: bool,
) -> None:
    """Plays the requests of access LOGs against RULES: who would have been refused, and when.

    A LOG may be compressed by gzip; - is standard input.
    """
    rules = load(file)
    old = None if against is None else load(against)
    log = opened(logs, format_, fields)
    try:
        played = Replay(rules, log, readings=readings or READINGS, against=old, compare=compare)
    except ValueError as error:
        fail(str(error), 1)
    with interruptible() as stopped, Progress(log) as progress:
        played.run(lambda: progress.step() or stopped())
    log.close()
    report = report_of(played)
    if html is not None:
        written(html, page_of(report, Path(file).name))
    if json_:
        show(report, json_=True)
    else:
        _tell(report)
    if played.interrupted:
        raise SystemExit(INTERRUPTED)


def opened(names: Sequence[str], format_: str, fields: Sequence[str]) -> Log:
    """The log in these files; ends the command where there is none that can be read."""
    keys = {}
    for given in fields:
        name, equals, key = given.partition("=")
        if not equals:
            raise click.BadParameter(
                f"{shown(given)} is not a field and its key; write client=request.remote_ip"
            )
        keys[name] = key
    try:
        chosen: Format | None = format_of(format_, keys)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
    try:
        return Log(names, chosen)
    except OSError as error:
        fail(f"{error.filename or names[0]} cannot be read: {error.strerror or error}", 2)


def written(name: str, text: str) -> None:
    """Writes a file, and says so; ends the command where it cannot be written."""
    try:
        Path(name).write_text(text, encoding="utf-8")
    except OSError as error:
        fail(f"{name} cannot be written: {error.strerror or error}", 2)
    say(f"written: {name}", "green")


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Whether the user has interrupted; a second time ends the command at once."""
    seen: list[bool] = []

    def stop(_: int, __: FrameType | None) -> None:
        if seen:
            raise KeyboardInterrupt
        seen.append(True)

    before = signal.signal(signal.SIGINT, stop)
    # Requests are tuples that refer to nothing but what outlives them: no cycles are to be found,
    # and looking for them at each 700 takes a tenth of the time.
    threshold = gc.get_threshold()
    gc.set_threshold(100_000, *threshold[1:])
    try:
        yield lambda: bool(seen)
    finally:
        gc.set_threshold(*threshold)
        signal.signal(signal.SIGINT, before)


def say_log(log: dict[str, Any], *, interrupted: bool) -> None:
    """Tells what was read, and what was not understood."""
    formats = ", ".join(log["formats"]) or "no known format"
    span = f", {log['first']} to {log['last']}" if log["first"] else ""
    say(f"{log['requests']} requests in {log['lines']} lines ({formats}){span}", "green")
    if interrupted:
        say("interrupted: this is what was played until then", "yellow")
    for fault, times in log["faults"].items():
        sample = log["samples"].get(fault) or [""]
        say(f"{times} lines: {fault}: {sample[0][:100]}", "yellow")
    for sentence in log["troubles"]:
        say(sentence, "yellow")
    if log["out of order"]:
        say(f"{log['out of order']} lines out of order, {log['late']} of them by more than 2 s")


def _tell(report: dict[str, Any]) -> None:
    say_log(report["log"], interrupted=report["interrupted"])
    for title, rows in (
        ("all rules together", report["readings"]),
        ("each rule", report["rules"]),
        ("the five algorithms, as logged", report.get("algorithms", [])),
        ("those refused most, in seconds locked out", report["worst"]),
        ("busiest times", busiest(report["when"])),
    ):
        if rows:
            say(title, "cyan")
            show(rows, json_=False)
    for change in report.get("against", []):
        say("compared with the other file, as logged", "cyan")
        show([{k: v for k, v in change.items() if not isinstance(v, list)}], json_=False)
        for name in ("clients newly refused", "clients newly passed"):
            if change[name]:
                say(name, "cyan")
                show(change[name], json_=False)
    for sentence in report["cannot know"]:
        say(f"note: {sentence}", "yellow")


def busiest(when: Sequence[dict[str, Any]]) -> list[dict[str, object]]:
    """The times at which each rule refused most, three of each."""
    found = []
    for each in when:
        worst = sorted(each["points"], key=lambda point: -point[2])[:3]
        for second, passed, refused in sorted(worst):
            if refused:
                found.append(
                    {
                        "rule": each["rule"],
                        "from": moment(second * 1_000_000),
                        "seconds": each["step"],
                        "passed": passed,
                        "refused": refused,
                    }
                )
    return found
