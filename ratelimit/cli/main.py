"""The ``ratelimit`` command: rule files and counters from a shell.

Exit codes: 0 all is well, 1 a rule file has mistakes (or advice, with ``--strict``), 2 the command
is wrong, 3 the store gives no answer.
"""

import os

try:
    import click
    import rich  # noqa: F401
except ImportError:
    raise SystemExit(
        "the ratelimit command needs click and rich: pip install 'ratelimit-asgi[cli]'"
    ) from None

from ratelimit.cli.convert import convert
from ratelimit.cli.counters import inspect, kill, reset, revive, top, unban
from ratelimit.cli.explain import explain
from ratelimit.cli.plan import plan
from ratelimit.cli.replay import replay
from ratelimit.cli.rulefiles import check, schema
from ratelimit.cli.serve import serve

__all__ = ["main"]


@click.group(
    commands=[
        check,
        convert,
        explain,
        inspect,
        kill,
        plan,
        replay,
        reset,
        revive,
        schema,
        serve,
        top,
        unban,
    ],
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(package_name="ratelimit-asgi")
@click.pass_context
def main(context: click.Context) -> None:
    """Checks, explains and replays rule files, and looks at the counters in a store."""
    if os.environ.get("NO_COLOR"):
        context.color = False
