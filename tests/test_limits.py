"""A limit is exact whole numbers, or a sentence that says why it can't be."""

import copy
import pickle
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratelimit.limits import BUCKETS, Algorithm, Limit, parse_duration_us
from tests.support.timelines import random_limit

S = 1_000_000
MINUTE, HOUR, DAY = 60 * S, 3_600 * S, 86_400 * S
SHAPES = "write '10/minute', '10 per 2 hours', '100/15m' or '10/s burst 20'"
UNITS = "there are ms, second (s, sec), minute (m, min), hour (h, hr), day (d), week (w)"


@pytest.mark.parametrize(
    ("text", "quota", "window_us"),
    [
        ("10/minute", 10, MINUTE),
        ("10/min", 10, MINUTE),
        ("10/mins", 10, MINUTE),
        ("10/m", 10, MINUTE),
        ("10/MINUTE", 10, MINUTE),
        ("10 PER Minute", 10, MINUTE),
        ("10 / minute", 10, MINUTE),
        ("10 per minute", 10, MINUTE),
        ("10  per\tminute", 10, MINUTE),
        ("  10/minute\n", 10, MINUTE),
        ("10/1minute", 10, MINUTE),
        ("10/60s", 10, MINUTE),
        ("10/60 seconds", 10, MINUTE),
        ("10 per 2 hours", 10, 2 * HOUR),
        ("10 per 2 hour", 10, 2 * HOUR),
        ("10/2hours", 10, 2 * HOUR),
        ("100/15m", 100, 15 * MINUTE),
        ("100 per 15 minutes", 100, 15 * MINUTE),
        ("5/s", 5, S),
        ("5/sec", 5, S),
        ("5/second", 5, S),
        ("5/secs", 5, S),
        ("5/1.5s", 5, 1_500_000),
        ("5/0.5 seconds", 5, 500_000),
        ("1/h", 1, HOUR),
        ("1/hr", 1, HOUR),
        ("1/hrs", 1, HOUR),
        ("1/hour", 1, HOUR),
        ("1/d", 1, DAY),
        ("1 per 1 day", 1, DAY),
        ("1000000/day", 1_000_000, DAY),
        ("10000/30 days", 10_000, 30 * DAY),
        ("3/w", 3, 7 * DAY),
        ("3/week", 3, 7 * DAY),
        ("3/2 weeks", 3, 14 * DAY),
        ("500/ms", 500, 1_000),
        ("500/50ms", 500, 50_000),
        ("1/0.001ms", 1, 1),
        ("007/minute", 7, MINUTE),
    ],
)
def test_a_limit_reads_what_users_of_other_libraries_write(
    text: str, quota: int, window_us: int
) -> None:
    """Any case and spacing, "/" or "per", units short, long and plural, with a count or without."""
    limit = Limit(text)
    assert (limit.quota, limit.window_us) == (quota, window_us)
    assert limit.window == window_us / S
    assert limit == Limit.of(quota, window_us)


def test_a_burst_is_written_behind_the_limit_or_given_beside_it() -> None:
    """Both mean the same; without one a bucket holds its quota, and windows have none."""
    for algorithm in BUCKETS:
        written = Limit("10/s burst 20", algorithm=algorithm)
        assert written.burst == written.capacity == 20
        assert written == Limit("10/s", algorithm=algorithm, burst=20)
        assert written == Limit("10/s BURST 20", algorithm=algorithm, burst=20)
        assert Limit("10/s", algorithm=algorithm).burst == 10
    assert Limit("10/s").burst is None
    assert Limit("10/s").capacity == 10


def test_without_options_a_limit_is_a_sliding_counter_that_rounds_down() -> None:
    """The defaults of every option."""
    limit = Limit("10/minute")
    assert limit.algorithm is Algorithm.SLIDING_COUNTER
    assert (limit.rounding, limit.max_delay) == ("down", None)
    assert [str(name) for name in Algorithm] == [
        "token_bucket",
        "leaking_bucket",
        "fixed_window",
        "sliding_log",
        "sliding_counter",
    ]


def shape(text: str) -> tuple[str, str]:
    return text, f"{text!r} is not a limit; {SHAPES}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        shape(""),
        shape("/"),
        shape("10"),
        shape("10/"),
        shape("/minute"),
        shape("minute"),
        shape("unlimited"),
        shape("10 per"),
        shape("10per minute"),
        shape("10 in minute"),
        shape("10-minute"),
        shape("10//minute"),
        shape("10/per minute"),
        shape("10/minute/2"),
        shape("10/-1s"),
        shape("10/.5s"),
        shape("10/1e3s"),
        shape("10/1m30s"),
        shape("10/m\u00efnute"),
        shape("10/\u0661s"),
        shape("10 requests/minute"),
        shape("10/minute burst"),
        shape("10/minute burst 20 burst 30"),
        ("x" * 300, f"{repr('x' * 300)[:57]}... is not a limit; {SHAPES}"),
        ("0/minute", "the quota in '0/minute' is 0; it is at least 1"),
        (
            "-1/minute",
            "the quota in '-1/minute' is '-1'; it is a whole number of at most 18 digits",
        ),
        (
            "+1/minute",
            "the quota in '+1/minute' is '+1'; it is a whole number of at most 18 digits",
        ),
        (
            "1.5/minute",
            "the quota in '1.5/minute' is '1.5'; it is a whole number of at most 18 digits",
        ),
        (
            "1e3/minute",
            "the quota in '1e3/minute' is '1e3'; it is a whole number of at most 18 digits",
        ),
        (
            "1_000/minute",
            "the quota in '1_000/minute' is '1_000'; it is a whole number of at most 18 digits",
        ),
        (
            "ten/minute",
            "the quota in 'ten/minute' is 'ten'; it is a whole number of at most 18 digits",
        ),
        ("10r/s", "the quota in '10r/s' is '10r'; it is a whole number of at most 18 digits"),
        (
            "\uff11\uff10/minute",
            (
                "the quota in '\uff11\uff10/minute' is '\uff11\uff10'; "
                "it is a whole number of at most 18 digits"
            ),
        ),
        (
            "10\x00/minute",
            "the quota in '10\\x00/minute' is '10\\x00'; it is a whole number of at most 18 digits",
        ),
        ("10/s burst 0", "the burst in '10/s burst 0' is 0; it is at least 1"),
        (
            "10/s burst -1",
            "the burst in '10/s burst -1' is '-1'; it is a whole number of at most 18 digits",
        ),
        (
            "10/s burst 1.5",
            "the burst in '10/s burst 1.5' is '1.5'; it is a whole number of at most 18 digits",
        ),
        (
            "10/s burst x",
            "the burst in '10/s burst x' is 'x'; it is a whole number of at most 18 digits",
        ),
        ("10/s burst 20", "a burst belongs to a bucket; sliding_counter has none"),
        ("10/month", "'month' in '10/month' has no fixed length; write it in days"),
        ("10/2 years", "'years' in '10/2 years' has no fixed length; write it in days"),
        ("10/mo", "'mo' in '10/mo' has no fixed length; write it in days"),
        ("10/fortnight", f"'fortnight' in '10/fortnight' is not a unit of time; {UNITS}"),
        (
            "10/secnd",
            f"'secnd' in '10/secnd' is not a unit of time; did you mean 'second'; {UNITS}",
        ),
        (
            "10/minut",
            f"'minut' in '10/minut' is not a unit of time; did you mean 'minute'; {UNITS}",
        ),
        ("10/2.5.1s", "'2.5.1' in '10/2.5.1s' is not a number"),
        ("10/0s", "0 s in '10/0s' is not a whole number of microseconds"),
        ("10/0.0000001s", "0.0000001 s in '10/0.0000001s' is not a whole number of microseconds"),
        ("1/s;9/m", "'1/s;9/m' holds several limits; Limit.parse_all reads those"),
        ("1,000/m", "'1,000/m' holds several limits; Limit.parse_all reads those"),
        ("1/s|9/m", "'1/s|9/m' holds several limits; Limit.parse_all reads those"),
        (
            "1/100000w",
            "a window of 60480000000000000 microseconds is too long; at most 2251799813685247",
        ),
    ],
)
def test_text_that_is_not_a_limit_is_refused_in_one_sentence(text: str, message: str) -> None:
    """The sentence says what is there and what is allowed; a typo is never "unlimited"."""
    with pytest.raises(ValueError) as refusal:
        Limit(text)
    assert str(refusal.value) == message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"algorithm": "tokenbucket"},
            "'tokenbucket' is not an algorithm; did you mean token_bucket; ",
        ),
        (
            {"algorithm": "gcra"},
            "'gcra' is not an algorithm; there are token_bucket, leaking_bucket, ",
        ),
        ({"burst": 5}, "a burst belongs to a bucket; sliding_counter has none"),
        (
            {"burst": 5, "algorithm": "fixed_window"},
            "a burst belongs to a bucket; fixed_window has",
        ),
        ({"burst": 0, "algorithm": "token_bucket"}, "burst is 0; it is at least 1"),
        ({"rounding": "nearest"}, "rounding is 'nearest'; it is 'down' or 'up'"),
        (
            {"rounding": "up", "algorithm": "sliding_log"},
            "a rounding belongs to a sliding_counter; sliding_log has none",
        ),
        (
            {"max_delay": 1.0, "algorithm": "token_bucket"},
            "a max_delay belongs to a leaking_bucket; token_bucket has none",
        ),
        (
            {"max_delay": -1, "algorithm": "leaking_bucket"},
            "max_delay is -1; it is at least 0 seconds, and finite",
        ),
        (
            {"max_delay": float("nan"), "algorithm": "leaking_bucket"},
            "max_delay is nan; it is at least 0 seconds, and finite",
        ),
        (
            {"max_delay": float("inf"), "algorithm": "leaking_bucket"},
            "max_delay is inf; it is at least 0 seconds, and finite",
        ),
    ],
)
def test_an_option_that_does_not_fit_is_refused_in_one_sentence(
    options: dict[str, object], message: str
) -> None:
    """An option of another algorithm is a mistake, not something to ignore."""
    with pytest.raises(ValueError) as refusal:
        Limit("10/minute", **options)  # type: ignore[arg-type]
    assert str(refusal.value).startswith(message)
    assert len(str(refusal.value)) < 200


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Limit(10), "a limit is text such as '10/minute', not int"),  # type: ignore[arg-type]
        (lambda: Limit(b"10/s"), "a limit is text such as '10/minute', not bytes"),  # type: ignore[arg-type]
        (lambda: Limit.parse_all(None), "a limit is text such as '10/minute', not NoneType"),  # type: ignore[arg-type]
        (lambda: Limit.of(1.0, S), "quota is a whole number, not float"),  # type: ignore[arg-type]
        (lambda: Limit.of(True, S), "quota is a whole number, not bool"),
        (lambda: Limit.of(1, 1e6), "window is a whole number, not float"),  # type: ignore[arg-type]
        (
            lambda: Limit("1/s", algorithm="token_bucket", burst=2.0),  # type: ignore[arg-type]
            "burst is a whole number, not float",
        ),
        (
            lambda: Limit("1/s", algorithm="leaking_bucket", max_delay="1s"),  # type: ignore[arg-type]
            "max_delay is a number of seconds, not str",
        ),
        (
            lambda: Limit("1/s", algorithm="leaking_bucket", max_delay=True),
            "max_delay is a number of seconds, not bool",
        ),
    ],
)
def test_a_value_of_the_wrong_type_is_a_type_error(make: object, message: str) -> None:
    """Numbers are not guessed from floats, texts or truth values."""
    assert callable(make)
    with pytest.raises(TypeError) as refusal:
        make()
    assert str(refusal.value) == message


def test_numbers_of_a_limit_are_at_least_one() -> None:
    """A quota or a window of 0 would mean never, or always."""
    for quota, window_us, message in (
        (0, S, "quota is 0; it is at least 1"),
        (-3, S, "quota is -3; it is at least 1"),
        (1, 0, "window is 0; it is at least 1"),
    ):
        with pytest.raises(ValueError) as refusal:
            Limit.of(quota, window_us)
        assert str(refusal.value) == message


def test_a_burst_written_and_given_differently_is_refused() -> None:
    """The sentence shows both numbers."""
    with pytest.raises(ValueError) as refusal:
        Limit("1/s burst 3", algorithm="token_bucket", burst=4)
    assert str(refusal.value) == "burst is 3 in '1/s burst 3' and 4 beside it; give one"


def test_several_limits_are_read_from_one_text() -> None:
    """Separated by ; , or | with any spacing; all get the options."""
    assert Limit.parse_all("5/second; 100/minute") == (Limit("5/second"), Limit("100/minute"))
    assert Limit.parse_all("5/s,100/m|1/d;") == (Limit("5/s"), Limit("100/m"), Limit("1/d"))
    assert Limit.parse_all("5/s burst 9; 7/m", algorithm="token_bucket") == (
        Limit("5/s burst 9", algorithm="token_bucket"),
        Limit("7/m", algorithm="token_bucket"),
    )
    for text, message in (
        ("", "no limit in ''; write one such as '10/minute'"),
        (" ; ,", "no limit in ' ; ,'; write one such as '10/minute'"),
        ("5/s; 5 per second", "'5/s; 5 per second' gives the same limit twice"),
        ("5/s; x", f"'x' is not a limit; {SHAPES}"),
    ):
        with pytest.raises(ValueError) as refusal:
            Limit.parse_all(text)
        assert str(refusal.value) == message


@pytest.mark.parametrize("algorithm", list(Algorithm))
@pytest.mark.parametrize("text", ["1000000/day", "10000/30 days", "1/ms", "1/weeks"])
def test_big_and_small_limits_work_for_all_five(text: str, algorithm: Algorithm) -> None:
    """Their tick is as fine as the numbers allow, and divides the window."""
    limit = Limit(text, algorithm=algorithm)
    assert limit.window_us % limit.tick_us == 0
    exact = {Algorithm.FIXED_WINDOW, Algorithm.SLIDING_LOG} | BUCKETS
    assert limit.tick_us == 1 or algorithm not in exact
    assert limit.tick_us <= 10


def test_a_tick_is_the_finest_that_fits() -> None:
    """Coarser only where a product would reach 2^53, and by a divisor of the window."""
    assert Limit("104249/day").tick_us == 1
    assert 104_249 * DAY < 2**53 < 104_250 * DAY
    assert Limit("104250/day").tick_us == 2
    assert Limit("1000000/day").tick_us == 10
    assert Limit("1000000/day", algorithm="token_bucket").tick_us == 1
    assert Limit("999983/day", algorithm="token_bucket").tick_us == 10


@pytest.mark.parametrize(
    ("quota", "window_us", "algorithm", "burst", "numbers", "why"),
    [
        (
            2**53, S, "fixed_window", None,
            "9007199254740992 per 1000000 microseconds",
            "a fixed_window holds whole numbers below 2^53 only",
        ),
        (
            2, S, "token_bucket", 2**53,
            "2 per 1000000 microseconds, burst 9007199254740992",
            "a token_bucket holds whole numbers below 2^53 only",
        ),
        (
            10_007, 999_999_999_989, "leaking_bucket", None,
            "10007 per 999999999989 microseconds, burst 10007",
            "a leaking_bucket needs burst x window in ticks, reduced by the quota, below 2^53",
        ),
        (
            1, 30 * DAY, "token_bucket", 10_000,
            "1 per 2592000000000 microseconds, burst 10000",
            "a token_bucket would take more than 142 years to fill",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_exact_is_refused_with_its_numbers(
    quota: int, window_us: int, algorithm: str, burst: int | None, numbers: str, why: str
) -> None:
    """Never counted inexactly; a window that is a prime number has no tick of use to a bucket."""
    with pytest.raises(ValueError) as refusal:
        Limit.of(quota, window_us, algorithm=algorithm, burst=burst)
    assert str(refusal.value) == f"{numbers} cannot be counted exactly: {why}"


def test_a_window_is_at_most_71_years() -> None:
    """Two of them after any instant of the epoch are still a whole number below 2^53."""
    longest = Limit.of(1, 2**51 - 1, algorithm="fixed_window")
    assert longest.window_us == 2**51 - 1
    with pytest.raises(ValueError) as refusal:
        Limit.of(1, 2**51, algorithm="fixed_window")
    assert str(refusal.value) == (
        "a window of 2251799813685248 microseconds is too long; at most 2251799813685247"
    )


def test_every_number_for_the_lua_stays_exact() -> None:
    """The largest products of the bucket and the counter stay below 2^53 in 2,000 limits."""
    for seed in range(2_000):
        limit = random_limit(Random(seed))
        place, *numbers = limit.numbers
        assert list(Algorithm)[place % 8 - 1] is limit.algorithm
        assert place // 8 == (limit.free or 1) - 1
        if limit.algorithm in BUCKETS:
            capacity, refill, unit, tick, ticks = numbers
            assert capacity * unit < 2**53
            assert ticks * tick == limit.window_us
            assert refill * ticks == limit.quota * unit
        elif limit.algorithm is Algorithm.SLIDING_COUNTER:
            assert numbers[0] * numbers[1] < 2**53


@pytest.mark.parametrize(
    ("limit", "worst"),
    [
        (Limit("10/minute", algorithm="token_bucket"), 19),
        (Limit("10/minute burst 25", algorithm="token_bucket"), 34),
        (Limit("999983/day", algorithm="token_bucket"), 2 * 999_983),
        (Limit("10/minute", algorithm="leaking_bucket"), 19),
        (Limit("10/s burst 100", algorithm="leaking_bucket", max_delay=1), 20),
        (Limit("10/minute", algorithm="fixed_window"), 20),
        (Limit("10/minute", algorithm="sliding_log"), 10),
        (Limit("10/minute"), 20),
        (Limit("10/minute", rounding="up"), 19),
    ],
    ids=repr,
)
def test_the_worst_case_follows_the_algorithm(limit: Limit, worst: int) -> None:
    """tests/properties/test_worst_case.py shows that each of them is reached."""
    assert limit.worst_case == worst


def test_max_delay_cuts_the_queue_to_what_leaves_within_it() -> None:
    """Exactly: a place whose turn comes at max_delay itself is kept."""
    for max_delay, places in ((0, 1), (0.29, 3), (0.3, 4), (0.31, 4), (9.9, 100), (50, 100)):
        limit = Limit("10/s burst 100", algorithm="leaking_bucket", max_delay=max_delay)
        assert limit.capacity == places, max_delay
        assert limit.burst == 100


def test_a_limit_is_immutable() -> None:
    """The sentence says what to do instead."""
    limit = Limit("10/minute")
    with pytest.raises(AttributeError) as refusal:
        limit.quota = 11
    assert str(refusal.value) == "a Limit is immutable; build another one to change its quota"
    with pytest.raises(
        AttributeError, match=r"^a Limit is immutable; window_us cannot be deleted$"
    ):
        del limit.window_us
    with pytest.raises(AttributeError, match="immutable"):
        limit.note = "x"
    assert (limit.quota, limit.window_us) == (10, MINUTE)


def test_limits_are_equal_by_value() -> None:
    """Whatever they were written as; any other number, option or algorithm makes another one."""
    one = Limit("10/minute")
    assert one == Limit("10 per 60 seconds")
    assert hash(one) == hash(Limit("10 per 60 seconds"))
    others = [
        Limit("11/minute"),
        Limit("10/hour"),
        Limit("10/minute", rounding="up"),
        Limit("10/minute", algorithm="fixed_window"),
        Limit("10/minute", algorithm="token_bucket"),
        Limit("10/minute", algorithm="leaking_bucket"),
        Limit("10/minute burst 5", algorithm="token_bucket"),
        Limit("10/minute", algorithm="leaking_bucket", max_delay=1),
    ]
    assert len({one, *others}) == len({limit.digest for limit in (one, *others)}) == 9
    assert one != "10/minute"
    assert all(one != other for other in others)


def test_a_limit_survives_pickling_copying_its_text_and_its_repr() -> None:
    """`str` reads back to the same quota and window, `repr` to an equal limit."""
    for seed in range(500):
        limit = random_limit(Random(seed))
        for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
            again = pickle.loads(pickle.dumps(limit, protocol))
            assert (again, again.numbers, again.digest) == (limit, limit.numbers, limit.digest)
        assert copy.deepcopy(limit) == copy.copy(limit) == limit
        text = Limit(str(limit), algorithm=limit.algorithm)
        assert (text.quota, text.window_us) == (limit.quota, limit.window_us)
        assert eval(repr(limit), {"Limit": Limit}) == limit


def test_a_limit_speaks_in_the_largest_unit_that_fits() -> None:
    """So that a person reads "2 hours", not 7,200,000 milliseconds."""
    for text, spoken in (
        ("10/60s", "10/minute"),
        ("10/120m", "10/2 hours"),
        ("10/7d", "10/week"),
        ("10/30 days", "10/30 days"),
        ("10/90s", "10/90 seconds"),
        ("10/1.5s", "10/1500 milliseconds"),
        ("10/1.5ms", "10/1.500ms"),
    ):
        assert str(Limit(text)) == spoken
    assert repr(Limit("10/s burst 20", algorithm="token_bucket")) == (
        "Limit('10/second', algorithm='token_bucket', burst=20)"
    )


@given(st.integers(1, 10**9), st.integers(1, 2**51 - 1))
def test_every_limit_reads_its_own_text_back(quota: int, window_us: int) -> None:
    """Whatever the window, down to the microsecond."""
    limit = Limit.of(quota, window_us, algorithm="fixed_window")
    assert Limit(str(limit), algorithm="fixed_window") == limit


@given(st.text(max_size=30))
def test_any_text_is_a_limit_or_one_short_sentence(text: str) -> None:
    """No other exception, no second line, and nothing endless."""
    sentence = ""
    try:
        assert Limit(text).quota >= 1
    except ValueError as refusal:
        sentence = str(refusal)
    assert "\n" not in sentence
    assert len(sentence) < 350


def test_a_duration_carries_its_unit() -> None:
    """Whole microseconds, never rounded."""
    for text, duration_us in (
        ("50ms", 50_000),
        ("1.5s", 1_500_000),
        (" 2 hours ", 2 * HOUR),
        ("0.001 ms", 1),
        ("1 Week", 7 * DAY),
    ):
        assert parse_duration_us(text) == duration_us
    for text, message in (
        ("50", "'50' is not a duration; write a number and a unit: '50ms', '1.5s'"),
        ("ms", "'ms' is not a duration; write a number and a unit: '50ms', '1.5s'"),
        ("-1s", "'-1s' is not a duration; write a number and a unit: '50ms', '1.5s'"),
        ("1.s", "'1.s' is not a duration; write a number and a unit: '50ms', '1.5s'"),
        ("0s", "0 s in '0s' is not a whole number of microseconds"),
        ("0.0001ms", "0.0001 ms in '0.0001ms' is not a whole number of microseconds"),
        ("1 month", "'month' in '1 month' has no fixed length; write it in days"),
        ("5 sek", f"'sek' in '5 sek' is not a unit of time; did you mean 'sec'; {UNITS}"),
    ):
        with pytest.raises(ValueError) as refusal:
            parse_duration_us(text)
        assert str(refusal.value) == message
