"""Who was denied most: what is counted, how much of it, and what is never shown."""

import asyncio
from collections.abc import Mapping

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
    denials.add("a", "192.0.2.0")
    assert denials.busiest() == [("a 192.0.2.0", 2), ("a 192.0.2.1", 1), ("a 192.0.2.2", 1)]


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
    await reported(denials)
    assert notes.noted[1:] == [{"a x": 1}]
    assert dict(denials.busiest())["a x"] == 2


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
