"""Who was denied most: what is counted, how much of it, and what is never shown."""

import asyncio
import sys
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from random import Random

import pytest

from ratelimit import MemoryStore, RateLimiter, Rule, StoreUnavailable
from ratelimit.control import denials as module
from ratelimit.control.denials import Denials
from ratelimit.decisions import identity_digest
from tests.support.asgi import http_scope


class Notes(MemoryStore):
    """A store that writes down what it is told, or raises."""

    def __init__(self) -> None:
        super().__init__()
        self.noted: list[dict[str, int]] = []
        self.error: Exception | None = None

    async def note_denials(self, counts: Mapping[str, int]) -> None:
        if self.error is not None:
            raise self.error
        self.noted.append(dict(counts))


@pytest.fixture
def notes(monkeypatch: pytest.MonkeyPatch) -> Notes:
    monkeypatch.setattr(module, "EVERY", 0)
    return Notes()


async def reported(denials: Denials) -> None:
    """Waits until all is told to the store."""
    await denials._background._tasks[asyncio.get_running_loop()]


async def test_addresses_are_counted_as_they_are_and_secrets_by_their_digest() -> None:
    denials = Denials(MemoryStore())
    denials.add("a", "192.0.2.1")
    denials.add("a", "header:x-key=s3cret")
    denials.add("a", "header:x-key=s3cret")
    (first, second) = denials.busiest()
    assert second == ("a 192.0.2.1", 1)
    assert first[1] == 2
    assert first[0].startswith("a #")
    assert "s3cret" not in first[0]


@pytest.mark.parametrize("key", ["192.0.2.1" * 8, "\U00010000", "17:header:x#" * 30])
def test_a_long_identity_is_counted_by_its_digest(key: str) -> None:
    """Nobody makes a name longer than an address, or of wider characters."""
    denials = Denials(MemoryStore())
    denials.add("a", key)
    assert denials.busiest() == [(f"a #{identity_digest(key)}", 1)]


async def test_denials_of_the_cache_count_too_and_what_passes_does_not() -> None:
    limiter = RateLimiter([Rule("a", "2/hour"), Rule("b", "9/hour", mode="shadow", cost=9)])
    for _ in range(5):
        await limiter.admit(http_scope())
    assert limiter.denials.busiest() == [("a 192.0.2.1", 3)]


async def test_what_is_counted_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST", 3)
    denials = Denials(MemoryStore())
    for number in range(9):
        denials.add("a", f"192.0.2.{number}")
    assert len(denials.busiest(100)) == 3


NAMES = [f"2001:db8:{number:x}::/64" for number in range(1_000)]


def test_strangers_who_were_denied_once_hide_nobody_who_is_denied_often(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whether they come before, after or in between."""
    monkeypatch.setattr(module, "MOST", 20)
    for order in (
        [*NAMES, *["192.0.2.1"] * 100],
        [*["192.0.2.1"] * 100, *NAMES],
        [key for name in NAMES[:100] for key in (*[name] * 5, "192.0.2.1")],
    ):
        denials = Denials(MemoryStore())
        for key in order:
            denials.add("a", key)
        (name, number), *_ = denials.busiest()
        assert name == "a 192.0.2.1"
        assert 100 - denials.missed <= number <= 100
        assert len(denials.busiest(1_000)) == 20


@pytest.mark.parametrize("seed", range(20))
def test_a_number_is_never_too_high_and_too_low_by_no_more_than_is_told(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also that of a name which is not there at all."""
    random = Random(seed)
    monkeypatch.setattr(module, "MOST", random.randint(1, 30))
    now = [0.0]
    denials = Denials(MemoryStore(), clock=lambda: now[0])
    true: Counter[str] = Counter()
    for _ in range(3_000):
        key = NAMES[min(int(random.expovariate(0.1)), 999)]
        denials.add("a", key)
        true[f"a {key}"] += 1
        now[0] += random.random() * 0.3  # some 450 s: within two spans of time
    found = dict(denials.busiest(1_000))
    for name, number in true.items():
        assert number - denials.missed <= found.get(name, 0) <= number


def test_nothing_is_missed_until_there_is_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST", 3)
    denials = Denials(MemoryStore())
    for _ in range(2):
        for name in NAMES[:3]:
            assert denials.missed < 2
            denials.add("a", name)
    denials.add("a", NAMES[3])
    assert denials.missed == 2


def test_denials_are_forgotten_after_ten_to_twenty_minutes() -> None:
    now = [0.0]
    denials = Denials(MemoryStore(), clock=lambda: now[0])
    denials.add("a", "192.0.2.1")
    now[0] = module.SPAN - 1
    denials.add("a", "192.0.2.2")
    now[0] = module.SPAN + 1
    denials.add("a", "192.0.2.2")
    assert denials.busiest() == [("a 192.0.2.2", 2), ("a 192.0.2.1", 1)]
    now[0] = 2 * module.SPAN + 2
    assert denials.busiest() == [("a 192.0.2.2", 1)]
    denials.add("a", "192.0.2.2")
    now[0] = 4 * module.SPAN + 3
    assert denials.busiest() == []
    assert denials.missed == 0


def test_event_loops_in_threads_may_share_what_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST", 5)
    denials = Denials(MemoryStore())

    def deny_all() -> None:
        for name in NAMES:
            denials.add("a", name)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            threads = [pool.submit(deny_all) for _ in range(4)]
        assert all(thread.exception() is None for thread in threads)
    finally:
        sys.setswitchinterval(before)
    assert len(denials.busiest(100)) == 5


async def test_only_the_most_denied_are_reported(
    notes: Notes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "REPORTED", 2)
    denials = Denials(notes)
    for name, times in (("x", 1), ("y", 3), ("z", 2)):
        for _ in range(times):
            denials.add("a", name)
    await reported(denials)
    assert notes.noted == [{"a y": 3, "a z": 2}]
    denials.add("a", "x")
    denials.add("a", "y")
    await reported(denials)
    assert notes.noted[1:] == [{"a y": 1, "a x": 2}], "what was not reported yet is now"
    assert dict(denials.busiest())["a x"] == 2


async def test_names_that_lost_their_place_are_reported_by_what_was_counted_since(
    notes: Notes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST", 2)
    denials = Denials(notes)
    for name in ("x", "x", "y", "z"):
        denials.add("a", name)
    await reported(denials)
    assert notes.noted == [{"a x": 2, "a z": 1}]
    for name in ("y", "z"):
        denials.add("a", name)
    await reported(denials)
    assert notes.noted[1:] == [{"a y": 1, "a z": 1}]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (StoreUnavailable("no reply", kind="deadline"), 0),
        (StoreUnavailable("may not", kind="permission"), 1),
        (RuntimeError("a bug"), 1),
    ],
)
async def test_a_report_that_fails_is_said_once_and_an_outage_is_the_breakers_to_say(
    notes: Notes, error: Exception, said: int, caplog: pytest.LogCaptureFixture
) -> None:
    notes.error = error
    denials = Denials(notes)
    for _ in range(3):
        denials.add("a", "192.0.2.1")
        await reported(denials)
    assert caplog.text.count("denials-unreported: ") == said
    notes.error = None
    denials.add("a", "192.0.2.1")
    await reported(denials)
    assert notes.noted == [{"a 192.0.2.1": 1}]


async def test_closing_ends_what_runs_in_the_background(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EVERY", 3600)
    denials = Denials(Notes())
    denials.add("a", "192.0.2.1")
    task = denials._background._tasks[asyncio.get_running_loop()]
    await denials.aclose()
    assert task.done()
