"""The control of shedding, by a clock that is moved by hand."""

import random
from collections import Counter
from itertools import count

import pytest

from ratelimit.control.shedding import CALM, COHORTS, LEVELS, PATIENCE, Control, level_of
from tests.support.loops import Request, served, served_by_threads

LAG = 0.02
SALT = b"a salt of a test"


class Clock:
    """Seconds of 20 samples each, told to a control."""

    def __init__(self) -> None:
        self.control = Control(LAG)
        self.now = 0.0
        self.control.sample(0.0, 0.0)

    def second(self, *late: float) -> None:
        """A second whose samples are these, and the last of them for the rest of it."""
        for number in range(20):
            self.now += 0.0501
            self.control.sample(self.now, late[min(number, len(late) - 1)])

    def overloaded(self, seconds: int, late: float = 0.05) -> Control:
        """So many seconds, late by so much."""
        for _ in range(seconds):
            self.second(late)
        return self.control


def shares(control: Control, clock: Clock, seconds: int, late: float) -> list[float]:
    """The shares after each of some seconds."""
    found = []
    for _ in range(seconds):
        clock.second(late)
        found.append(round(control.share, 4))
    return found


# --- the share -----------------------------------------------------------------------------------


def test_nothing_is_asked_and_nothing_shed_while_everything_is_in_time() -> None:
    clock = Clock()
    control = clock.overloaded(100, late=LAG)
    assert (control.share, control.watching, control.shedding) == (1.0, False, False)
    assert control.ceiling == LEVELS


def test_the_third_late_second_lowers_the_share_and_each_that_follows() -> None:
    clock = Clock()
    assert shares(clock.control, clock, PATIENCE - 1, 0.05) == [1.0, 1.0]
    assert clock.control.watching
    assert shares(clock.control, clock, 3, 0.05) == [0.95, 0.9025, 0.8574]


def test_a_second_that_is_five_times_too_late_takes_a_fifth_of_the_share() -> None:
    clock = Clock()
    clock.overloaded(PATIENCE - 1)
    assert shares(clock.control, clock, 3, 0.2) == [0.8, 0.64, 0.512]


def test_the_share_comes_back_by_a_hundredth_and_twice_as_much_in_each_calm_second() -> None:
    clock = Clock()
    clock.overloaded(PATIENCE - 1)
    clock.overloaded(5, 0.2)
    assert shares(clock.control, clock, 7, 0.001) == [
        0.3377, 0.3577, 0.3977, 0.4777, 0.6377, 0.9577, 1.0,
    ]  # fmt: skip


def test_close_to_what_is_too_late_the_share_goes_up_by_a_hundredth_at_a_time() -> None:
    clock = Clock()
    clock.overloaded(PATIENCE - 1)
    clock.overloaded(1, 0.2)
    assert shares(clock.control, clock, 4, 0.015) == [0.81, 0.82, 0.83, 0.84]


def test_a_late_second_begins_the_steps_anew() -> None:
    clock = Clock()
    clock.overloaded(PATIENCE - 1)
    clock.overloaded(3, 0.2)
    shares(clock.control, clock, 3, 0.001)
    before = clock.control.share
    assert shares(clock.control, clock, 2, 0.03) == [
        round(before * 0.95, 4), round(before * 0.95 * 0.95, 4),
    ]  # fmt: skip
    assert shares(clock.control, clock, 1, 0.001) == [round(before * 0.95 * 0.95 + 0.01, 4)]


def test_the_share_never_falls_below_a_hundredth() -> None:
    assert Clock().overloaded(60, 5.0).share == 0.01


def test_a_second_is_as_late_as_the_median_of_its_samples() -> None:
    clock = Clock()
    for _ in range(30):
        clock.second(*[0.9] * 9, 0.0)
    assert clock.control.share == 1.0
    for _ in range(PATIENCE):
        clock.second(*[0.0] * 9, 0.05)
    assert clock.control.share == 0.95


def test_a_queue_that_is_gone_at_the_end_of_its_second_sheds_nobody() -> None:
    clock = Clock()
    for _ in range(30):
        clock.second(*[0.4] * 15, 0.0)
    assert clock.control.share == 1.0


def test_late_seconds_with_a_calm_one_between_them_shed_nobody() -> None:
    clock = Clock()
    for _ in range(20):
        clock.overloaded(PATIENCE - 1)
        clock.second(0.0)
    assert clock.control.share == 1.0


def test_what_is_later_than_a_second_is_shed_at_once() -> None:
    clock = Clock()
    clock.second(0.0)
    clock.control.sample(clock.now + 10, 9.95)
    control = clock.control
    assert (control.shedding, control.share, control.late) == (True, 1.0, 9.95)
    assert control.ceiling < COHORTS + 5


def test_half_a_minute_after_the_last_shed_request_it_is_over() -> None:
    clock = Clock()
    clock.overloaded(PATIENCE)
    control = clock.control
    while control.share < 1:
        clock.second(0.0)
    for _ in range(CALM - 1):
        clock.second(0.0)
    assert (control.shedding, control.watching) == (True, True)
    clock.second(0.0)
    assert (control.shedding, control.watching) == (False, False)


def test_within_that_half_minute_the_first_late_second_lowers_the_share() -> None:
    clock = Clock()
    clock.overloaded(PATIENCE)
    while clock.control.share < 1:
        clock.second(0.0)
    assert shares(clock.control, clock, 1, 0.05) == [0.95]


# --- the level -----------------------------------------------------------------------------------


def fed(control: Control, clock: Clock, levels: list[int], share_of: float = 0.05) -> None:
    """Requests of these levels, twenty times in a second."""
    for _ in range(20):
        for level in levels:
            control.admits(level)
    clock.second(share_of)


def test_critical_requests_are_never_shed() -> None:
    clock = Clock()
    control = clock.overloaded(60, 5.0)
    assert control.ceiling < COHORTS + 2
    assert all(control.admits(level) for level in range(COHORTS))


def test_the_share_is_that_of_recent_requests_the_lowest_levels_first() -> None:
    clock = Clock()
    control = clock.control
    while control.share > 0.6:
        fed(control, clock, [150, 250, 350, 450], 0.019 if control.share < 0.7 else 0.05)
        if control.share < 0.8:
            break
    clock.second(0.0)
    passed = Counter(level for _ in range(200) for level in (150, 250, 350, 450)
                     if control.admits(level))  # fmt: skip
    assert passed[150] == passed[250] == passed[350] == 200
    assert 0 <= passed[450] < 100


def test_of_one_large_client_a_part_is_let_in() -> None:
    random.seed(1)
    clock = Clock()
    control = clock.control
    while control.share > 0.5:
        fed(control, clock, [230])
    control.press(0.0)
    passed = sum(control.admits(230) for _ in range(1_000))
    assert abs(passed - 1_000 * control.share) < 60


def test_what_is_late_at_the_moment_takes_its_part_of_the_share() -> None:
    clock = Clock()
    control = clock.overloaded(PATIENCE)
    control.press(0.0)
    whole = control.ceiling
    control.press(3 * LAG)
    assert control.ceiling - COHORTS == pytest.approx((whole - COHORTS) / 4)
    control.press(0.75 * LAG)
    assert control.ceiling == whole


def test_nothing_is_pressed_before_anything_is_shed() -> None:
    clock = Clock()
    clock.control.press(5.0)
    assert clock.control.ceiling == LEVELS


# --- who is shed first ---------------------------------------------------------------------------


def test_an_identity_has_one_level_for_an_hour_and_another_in_the_next() -> None:
    levels = [level_of(2, "192.0.2.1", hour, SALT) for hour in range(50)]
    assert levels == [level_of(2, "192.0.2.1", hour, SALT) for hour in range(50)]
    assert all(200 <= level < 300 for level in levels)
    assert len(set(levels)) > 25


def test_identities_spread_over_all_cohorts() -> None:
    found = Counter(level_of(4, f"192.0.2.{n}", 1, SALT) for n in range(20_000))
    assert set(found) == set(range(400, 500))
    assert min(found.values()) > 100


def test_another_salt_is_another_order() -> None:
    names = [f"user={n}" for n in range(300)]
    one, other = ([level_of(1, name, 1, salt) for name in names] for salt in (SALT, b"another"))
    assert sum(a == b for a, b in zip(one, other, strict=True)) < 20


def test_without_an_identity_the_level_is_by_chance() -> None:
    assert len({level_of(3, None, 1, SALT) for _ in range(300)}) > 50


# --- a whole loop, simulated ---------------------------------------------------------------------


def goodput(requests: list[Request], since: float, until: float, work: float) -> float:
    """The part of what a loop can serve that it has served."""
    return sum(r.served and since <= r.at < until for r in requests) * work / (until - since)


def p99(requests: list[Request], since: float) -> float:
    """Seconds within which all but one in a hundred critical requests were answered."""
    took = sorted(r.took for r in requests if r.priority == 0 and r.at >= since)
    return took[int(len(took) * 0.99)]


@pytest.mark.parametrize("even", [True, False])
@pytest.mark.parametrize("work", [0.002, 0.005])
def test_at_twice_the_capacity_critical_requests_are_in_time_and_most_work_is_done(
    work: float, even: bool
) -> None:
    alone = p99(served(Control(LAG), 0.1, 60, work=work, even=even), 0)
    found = served(Control(LAG), 2.0, 60, work=work, even=even)
    assert all(r.served for r in found if r.priority == 0)
    assert goodput(found, 15, 60, work) >= 0.85
    # Arrivals by chance make a queue by themselves, at any load that is close to the capacity.
    assert p99(found, 15) <= alone + (2 if even else 3) * LAG


@pytest.mark.parametrize("even", [True, False])
def test_at_four_fifths_of_the_capacity_nothing_is_shed_in_five_minutes(even: bool) -> None:
    found = served(Control(LAG), 0.8, 300, work=0.004, even=even)
    assert all(r.served for r in found)


@pytest.mark.parametrize("load", [0.3, 0.5, 0.8])
@pytest.mark.parametrize("blocked", [0.1, 0.5])
def test_a_call_that_blocks_the_loop_now_and_then_sheds_nobody(blocked: float, load: float) -> None:
    stalls = [(at, blocked) for at in range(5, 60, 6)]
    found = served(Control(LAG), load, 60, stalls=stalls)
    assert all(r.served for r in found)


@pytest.mark.parametrize("load", [0.5, 0.8])
def test_ten_seconds_after_a_stall_of_ten_seconds_everything_is_served_again(load: float) -> None:
    found = served(Control(LAG), load, 60, stalls=[(20, 10)])
    later = [r for r in found if r.at >= 40]
    assert later
    assert all(r.served for r in later)
    assert p99(found, 40) < 0.1


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("load", "lags"), [(2.0, 2), (4.0, 4)])
def test_with_threads_at_many_times_the_capacity_critical_requests_are_in_time(
    load: float, lags: int, seed: int
) -> None:
    """Of 40 threads that have each request for a tenth of a second.

    At four times their capacity, four fifths of that are critical requests.
    """
    alone = p99(served_by_threads(Control(LAG), 0.1, 60), 0)
    found = served_by_threads(Control(LAG), load, 90, seed=seed)
    settled = [each for each in found if each.at >= 30]
    assert p99(settled, 0) <= alone + lags * LAG
    assert sum(each.served for each in settled) / 60 >= 0.95 * 400


def test_with_threads_at_four_fifths_of_the_capacity_nothing_is_shed() -> None:
    assert all(each.served for each in served_by_threads(Control(LAG), 0.8, 300))


def test_each_level_is_counted_for_a_while_and_forgotten() -> None:
    clock = Clock()
    control = clock.control
    for _ in count():
        fed(control, clock, [120] * 5 + [480])
        if control.share < 0.9:
            break
    assert control.ceiling < 200
    for _ in range(20):
        fed(control, clock, [480], 0.05 if control.share > 0.5 else 0.015)
    assert control.ceiling > 400
