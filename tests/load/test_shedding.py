"""More load than a worker can serve, offered over real connections at an even pace.

The capacity is measured in the same run, as the critical requests that it serves when asked without
end; a request that is shed is one that is answered with 503.
"""

import json
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Thread
from typing import Any, Final, NamedTuple

import pytest

from tests.load.client import Answer
from tests.load.machine import Application, application, ended, needs_two_cores, started
from tests.load.offering import Offer, Offered

pytestmark = [pytest.mark.slow, needs_two_cores]

Say = Callable[[str], None]

LAG: Final = 0.02
SETTLED: Final = 15.0  # seconds after which the share is what it is to be

RULES: Final = """
version: 1
shed: {lag: 20ms}
rules:
  - name: pay
    match: {path: "/{kind}/pay"}
    limit: 1000000/second
    priority: critical
  - name: state
    match: {path: /state}
    limit: 1000000/second
    priority: critical
"""


class Seen(NamedTuple):
    """The answers that were asked for in a span."""

    critical: list[Answer]
    others: list[Answer]

    @property
    def shed(self) -> int:
        """Requests that were shed."""
        return sum(status == 503 for *_, status in (*self.critical, *self.others))

    @property
    def served(self) -> int:
        """Requests that were answered with what was asked for."""
        return sum(status == 200 for *_, status in (*self.critical, *self.others))


def offered(
    application: Application, path: str, rate: float, seconds: float, **more: Any
) -> Offered:
    """Offers so many requests a second, a fifth of them critical."""
    order = Offer(application.port, rate, seconds, f"{path}/pay", path, **{"every": 5, **more})
    with ended(started("offering", core=0)) as process:
        said, _ = process.communicate(json.dumps(order._asdict()) + "\n", timeout=seconds + 60)
    return Offered(*json.loads(said))


def seen(found: Offered, since: float = 0.0, until: float = 1e9) -> Seen:
    """Those of a span, in seconds since it began."""
    spans = [
        [each for each in answers if since <= each[0] - found.began < until]
        for answers in (found.first, found.others)
    ]
    return Seen(spans[0], spans[1])


def p99(answers: Sequence[Answer]) -> float:
    """Seconds that all but one in a hundred took at most."""
    took = sorted(end - asked for asked, end, status in answers if status == 200)
    return took[int(len(took) * 0.99)]


def capacity(application: Application, path: str, connections: int) -> float:
    """Requests a second, of those that are never shed."""
    found = offered(application, path, 0, 6, connections=connections)
    return len(seen(found, 1, 6).critical) / 5


def ask(application: Application, path: str) -> None:
    """Asks for a path, and waits for the answer."""
    url = f"http://127.0.0.1:{application.port}{path}"
    with urllib.request.urlopen(url, timeout=60) as answer:
        answer.read()


def shed_by(application: Application) -> dict[str, int]:
    """Requests shed so far, by priority."""
    found: dict[str, int] = application.states()[0]["health"]["shed"]["shed"]
    return found


@pytest.fixture
def limited(tmp_path: Path, request: pytest.FixtureRequest) -> Any:
    with application(tmp_path, RULES, workers=1, loop=request.param) as found:
        yield found


on_each_loop = pytest.mark.parametrize("limited", ["asyncio", "uvloop"], indirect=True)
of_each_kind = pytest.mark.parametrize(
    ("path", "connections"), [("/busy", 16), ("/wait", 60)], ids=["async", "sync"]
)


@on_each_loop
@of_each_kind
def test_at_twice_the_capacity_critical_requests_are_served_in_time(
    limited: Application, path: str, connections: int, say: Say
) -> None:
    full = capacity(limited, path, connections)
    alone = p99(offered(limited, path, full / 10, 10, every=1).first)
    time.sleep(35)  # until what came of the measuring is over
    found = offered(limited, path, 2 * full, SETTLED + 30)
    span = seen(found, SETTLED)
    critical = [status for *_, status in span.critical]
    # Before, more are under way than the generator has connections.
    lost = sum(at >= SETTLED for at in found.lost)
    goodput = span.served / 30 / full
    part = critical.count(200) / len(critical)
    say(
        f"{path}: capacity {full:.0f}/s; critical {part:.2%}, p99 {p99(span.critical) * 1000:.0f} "
        f"ms, alone {alone * 1000:.0f} ms; goodput {goodput:.2f}; lost {lost}"
    )
    say(str(shed_by(limited)))
    assert part >= 0.994
    assert p99(span.critical) <= alone + 2 * LAG
    assert goodput >= 0.85
    assert lost == 0
    back = offered(limited, path, 0.8 * full, 30)
    assert seen(back, 10).shed == 0


@on_each_loop
@pytest.mark.parametrize("blocks", [0.1, 0.5])
def test_a_blocking_call_sheds_nobody(limited: Application, blocks: float, say: Say) -> None:
    full = capacity(limited, "/busy", 16)
    time.sleep(35)
    before = shed_by(limited)

    def block() -> None:
        for _ in range(6):
            time.sleep(4)
            ask(limited, f"/block?seconds={blocks}")

    thread = Thread(target=block)
    thread.start()
    found = seen(offered(limited, "/busy", 0.6 * full, 26))
    thread.join()
    say(f"blocked for {blocks} s, at 0.6 of {full:.0f}/s: {found.shed} of {found.served} shed")
    assert found.shed == 0
    assert shed_by(limited) == before


@on_each_loop
@of_each_kind
def test_a_stall_of_ten_seconds_is_over_ten_seconds_later(
    limited: Application, path: str, connections: int, say: Say
) -> None:
    full = capacity(limited, path, connections)
    time.sleep(35)

    def block() -> None:
        time.sleep(5)
        ask(limited, "/block?seconds=10")

    thread = Thread(target=block)
    thread.start()
    found = offered(limited, path, 0.8 * full, 45, connections=1_500)
    thread.join()
    later = seen(found, 25)
    last = max((each[0] - found.began for each in found.others if each[2] == 503), default=0.0)
    say(
        f"{path}: stalled from 5 to 15 s; last shed after {last:.1f} s, "
        f"p99 {p99(later.critical):.3f} s"
    )
    assert later.shed == 0
    assert p99([*later.critical, *later.others]) <= 0.25


@on_each_loop
@of_each_kind
def test_at_four_fifths_of_the_capacity_nothing_is_shed_in_five_minutes(
    limited: Application, path: str, connections: int, say: Say
) -> None:
    full = capacity(limited, path, connections)
    time.sleep(35)
    before = shed_by(limited)
    found = seen(offered(limited, path, 0.8 * full, 300))
    say(f"{path}: 0.8 of {full:.0f}/s for 5 minutes: {found.shed} of {found.served} shed")
    assert found.shed == 0
    assert shed_by(limited) == before
