"""The limiter as a service, for proxies that ask it about each request."""

import os
import re
import signal
from inspect import signature
from typing import Any, Final, NamedTuple

import click

from ratelimit.cli.output import fail, say
from ratelimit.cli.rulefiles import MISTAKES, load
from ratelimit.gateway.dialects import DIALECTS
from ratelimit.gateway.service import AUTH, PAGE, Plan, application, write_log
from ratelimit.rules.ruleset import RuleSet
from ratelimit.words import shown

__all__ = ["serve"]

KEPT: Final = 3_700
"""Seconds that an idle connection is kept: longer than proxies do (nginx 60 s, Caddy two minutes,
Envoy an hour), so that none asks by one that is just being closed, and lets its request go on."""

MOST_HEAD: Final = 1_048_576
"""Bytes of a question's head where h11 reads it: more than any proxy takes from a client."""


class Place(NamedTuple):
    """An address to listen on: a host and a port, or the path of a unix socket."""

    host: str
    port: int
    unix: str | None

    def __str__(self) -> str:
        if self.unix is not None:
            return f"unix:{self.unix}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@click.command()
@click.argument("rules", type=click.Path())
@click.option(
    "--dialect",
    default="nginx",
    show_default=True,
    type=click.Choice(list(DIALECTS)),
    help="The proxy that asks.",
)
@click.option(
    "--listen",
    default="127.0.0.1:8750",
    show_default=True,
    metavar="HOST:PORT",
    help="Where it asks; or unix:PATH.",
)
@click.option(
    "--envoy-grpc",
    metavar="HOST:PORT",
    help="Where Envoy's rate limit service listens as well; or unix:PATH.",
)
@click.option(
    "--workers", default=1, show_default=True, type=click.IntRange(1, 256), help="Processes."
)
@click.option("--watch", is_flag=True, help="Follow the rule file; SIGHUP reads it again anyway.")
@click.option(
    "--page",
    multiple=True,
    metavar="NETWORK",
    help="Open the live page to peers in this network, such as 127.0.0.1.",
)
def serve(
    rules: str,
    dialect: str,
    listen: str,
    envoy_grpc: str | None,
    workers: int,
    watch: bool,
    page: tuple[str, ...],
) -> None:
    """Answers a proxy (nginx, Caddy, Traefik, Envoy) by the RULES of a file.

    The proxy asks at /auth about each request; /health, /ready, /metrics and /ratelimit/ are for
    you. SIGTERM ends it when all questions are answered.
    """
    try:
        import uvicorn  # noqa: PLC0415  # an extra, and slow to import
    except ImportError:
        fail("to serve needs uvicorn: pip install 'ratelimit-asgi[serve]'", 2)
    place = _place(listen)
    calls = None if envoy_grpc is None else _place(envoy_grpc)
    known = load(rules)
    for each in filter(None, (place, calls)):
        _check_trust(known, each)
    write_log()
    plan = Plan(os.path.abspath(rules), dialect, page, workers, watch, calls)  # noqa: PTH100  # as it is
    try:
        app: Any = application(plan)
    except (ValueError, ImportError) as error:
        fail(str(error), 2)
    options: dict[str, Any] = {
        "host": place.host,
        "port": place.port,
        "uds": place.unix,
        "workers": workers,
        "ws": "none",  # a proxy's handshake is a question as well, and gets a plain answer
        "lifespan": "on",
        "proxy_headers": False,  # the rules say whom to believe
        "server_header": False,
        "date_header": False,
        "access_log": False,
        "log_config": None,
        "timeout_keep_alive": KEPT,
        "h11_max_incomplete_event_size": MOST_HEAD,
    }
    say(f"{dialect} asks at {place}{AUTH}")
    if calls is not None:
        say(f"envoy asks by gRPC at {calls}")
    if page:
        say(f"the live page is at {place}{PAGE}/ for {', '.join(page)}")
    if workers == 1:
        config = uvicorn.Config(app, **options)
        uvicorn.Server(config).run([config.bind_socket()])
        return
    plan.leave()
    config = uvicorn.Config("ratelimit.gateway.service:make", factory=True, **options)
    _supervise(config)


def _supervise(config: Any) -> None:
    from uvicorn import Server  # noqa: PLC0415  # as above
    from uvicorn.supervisors import Multiprocess  # noqa: PLC0415

    class Workers(Multiprocess):
        def handle_hup(self) -> None:
            """Lets each worker read its rules again, instead of starting others."""
            for process in self.processes:
                if process.pid is not None:
                    os.kill(process.pid, signal.SIGHUP)

    more: dict[str, Any] = {}
    if "target" in signature(Multiprocess).parameters:  # of an older uvicorn
        more = {"target": Server(config).run}
    Workers(config, sockets=[config.bind_socket()], **more).run()


def _place(listen: str) -> Place:
    if listen.startswith("unix:") and len(listen) > len("unix:"):
        return Place("127.0.0.1", 0, listen.removeprefix("unix:"))
    found = re.fullmatch(r"(?:\[([0-9A-Fa-f:.%]+)\]|([^:\[\]/\s]+)):([0-9]{1,5})", listen)
    if found is None or int(found[3]) > 65_535:
        raise click.BadParameter(
            f"{shown(listen)} is not a place to listen; write 127.0.0.1:8750, [::1]:8750 or "
            "unix:/run/ratelimit/socket"
        )
    return Place(found[1] or found[2], int(found[3]), None)


def _check_trust(rules: RuleSet, place: Place) -> None:
    """Ends the command where nobody would be believed."""
    if not rules.trusted_proxies and not rules.trusted_hops:
        fail(
            "the file names no trusted_proxies, so that anybody could say whose a request is; "
            "name the addresses that your proxy asks from, such as 127.0.0.1",
            MISTAKES,
        )
    if place.unix is not None and not rules.trusted_hops:
        fail(
            "a peer at a unix socket has no address that trusted_proxies could name; the file says "
            "trusted_hops: 1 there, and the socket's folder who may reach it",
            MISTAKES,
        )
