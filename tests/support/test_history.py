"""The history checker finds what a wrong limiter does, and nothing where it is right."""

from collections.abc import Callable
from random import Random

import pytest

from tests.support.history import Event, Loss, false_denials, most_admitted, overruns

QUOTA, WINDOW = 10, 1.0

SEEDS = pytest.mark.parametrize("seed", range(20))


def simulate(seed: int, decide: Callable[[list[float], float], bool]) -> list[Event]:
    """Ten seconds of some 30 requests a second, each decided somewhere between call and answer."""
    rng = Random(seed)
    calls = sorted(rng.uniform(0, 10) for _ in range(300))
    spans = [(t, t + rng.uniform(0, 0.03), t + rng.uniform(0.03, 0.06)) for t in calls]
    log: list[float] = []
    events = []
    for called, at, returned in sorted(spans, key=lambda span: span[1]):
        allowed = decide(log, at)
        if allowed:
            log.append(at)
        events.append(Event(called, returned, 1, "allowed" if allowed else "denied"))
    return events


def within(quota: int, window: float) -> Callable[[list[float], float], bool]:
    """An exact sliding log."""
    return lambda log, at: sum(t > at - window for t in log) < quota


@SEEDS
def test_an_exact_limiter_has_no_findings(seed: int) -> None:
    """Whatever the delays before and after a decision."""
    events = simulate(seed, within(QUOTA, WINDOW))
    assert "denied" in {event.verdict for event in events}
    assert overruns(events, QUOTA, WINDOW) == []
    assert false_denials(events, QUOTA, WINDOW) == []
    assert QUOTA // 2 < most_admitted(events, WINDOW) <= QUOTA


@SEEDS
def test_a_limiter_that_lets_too_many_through_is_found(seed: int) -> None:
    """Also where only its window is too short."""
    for wrong in (within(QUOTA + 2, WINDOW), within(QUOTA, WINDOW * 0.7)):
        assert overruns(simulate(seed, wrong), QUOTA, WINDOW)


@SEEDS
def test_a_limiter_that_denies_too_early_is_found(seed: int) -> None:
    """Also where only its window is too long."""
    for wrong in (within(QUOTA - 2, WINDOW), within(QUOTA, WINDOW * 1.4)):
        assert false_denials(simulate(seed, wrong), QUOTA, WINDOW)


@SEEDS
def test_a_loss_grants_one_more_quota_where_it_happened_and_nowhere_else(seed: int) -> None:
    """A store that forgets everything at five seconds."""
    exact = within(QUOTA, WINDOW)

    def forgets(log: list[float], at: float) -> bool:
        return exact([t for t in log if t > 5.0 or at <= 5.0], at)

    events = simulate(seed, forgets)
    assert overruns(events, QUOTA, WINDOW)
    assert overruns(events, QUOTA, WINDOW, [Loss(5.0, 5.0)]) == []
    assert overruns(events, QUOTA, WINDOW, [Loss(7.0, 7.0)])


def test_what_may_have_been_charged_excuses_a_denial_and_is_not_held_against_the_quota() -> None:
    """A request whose outcome nobody knows counts where that is in the limiter's favour."""
    unknown = Event(0.0, 0.1, 10, "unknown")
    denied = Event(0.5, 0.6, 1, "denied")
    assert false_denials([unknown, denied], QUOTA, WINDOW) == []
    assert false_denials([unknown._replace(cost=9), denied], QUOTA, WINDOW)
    assert most_admitted([unknown], WINDOW) == 0


def test_costs_count_and_windows_are_open_at_their_start() -> None:
    """Two requests of 6 units may pass a quota of 10 exactly a window apart, and no closer."""
    first = Event(0.0, 0.0, 6, "allowed")
    assert overruns([first, Event(1.0, 1.0, 6, "allowed")], QUOTA, WINDOW) == []
    assert overruns([first, Event(0.99, 0.99, 6, "allowed")], QUOTA, WINDOW)
    assert false_denials([first, Event(1.0, 1.0, 6, "denied")], QUOTA, WINDOW)
    assert false_denials([first, Event(0.99, 0.99, 6, "denied")], QUOTA, WINDOW) == []
