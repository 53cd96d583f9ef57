"""A limit: so many units in such a time, as exact whole numbers.

The law of this module: every number that the Lua computes for a limit stays below 2^53, where
doubles hold every whole number. A limit that needs more is refused here, when it is built.
"""

import math
import re
from base64 import urlsafe_b64encode
from collections.abc import Callable
from enum import StrEnum
from fractions import Fraction
from hashlib import blake2b
from typing import Any, Final, Literal, NoReturn, Self

from ratelimit.words import near, shown, whole

__all__ = ["Algorithm", "Limit", "Rounding", "parse_duration_us"]

Rounding = Literal["down", "up"]

EXACT: Final = 2**53
"""Doubles hold every whole number below this one (IEEE 754, binary64)."""

LONGEST_US: Final = 2**51
"""About 71 years: epoch microseconds plus two of these still stay below 2^53."""


class Algorithm(StrEnum):
    """The five ways to count; each is one file of that name in ``lua/``."""

    TOKEN_BUCKET = "token_bucket"
    LEAKING_BUCKET = "leaking_bucket"
    FIXED_WINDOW = "fixed_window"
    SLIDING_LOG = "sliding_log"
    SLIDING_COUNTER = "sliding_counter"


BUCKETS: Final = frozenset({Algorithm.TOKEN_BUCKET, Algorithm.LEAKING_BUCKET})

UNITS_US: Final = {
    name: us
    for us, names in {
        1_000: ("ms", "millisecond", "milliseconds"),
        1_000_000: ("s", "sec", "secs", "second", "seconds"),
        60_000_000: ("m", "min", "mins", "minute", "minutes"),
        3_600_000_000: ("h", "hr", "hrs", "hour", "hours"),
        86_400_000_000: ("d", "day", "days"),
        604_800_000_000: ("w", "week", "weeks"),
    }.items()
    for name in names
}

_UNIT_NAMES: Final = "ms, second (s, sec), minute (m, min), hour (h, hr), day (d), week (w)"
_NO_FIXED_LENGTH: Final = re.compile(r"(?:mo|mon|month|y|yr|year)s?", re.ASCII | re.IGNORECASE)
_LIMIT: Final = re.compile(
    r"\s* (?P<quota>[^\s/]+?) \s* (?: / | (?<=\s) per (?=\s) ) \s*"
    r"(?P<count>[0-9][0-9.]*)? \s* (?P<unit>[a-z]+)"
    r"(?: \s+ burst \s+ (?P<burst>\S+) )? \s*",
    re.ASCII | re.IGNORECASE | re.VERBOSE,
)
_DURATION: Final = re.compile(
    r"\s*([0-9]{1,15}(?:\.[0-9]{1,15})?)\s*([a-z]+)\s*", re.ASCII | re.IGNORECASE
)
_LONGEST_TEXT: Final = 200
_SEPARATOR: Final = re.compile("[;,|]")
_MOST_FREE: Final = 2**50 - 1
"""It travels with the algorithm's place in one number."""


class Limit:
    """A quota per window, counted by one of the five algorithms; immutable, equal by value.

    ``Limit("10/minute")``, ``Limit("100/15m", algorithm="token_bucket", burst=20)``.

    Attributes: ``quota`` (units, at least 1), ``window`` (seconds), ``algorithm``, ``burst``
    (units a bucket holds when full; None for windows and logs), ``rounding`` ("down" or "up",
    sliding counter only), ``max_delay`` (seconds, leaking bucket only; None for no cut),
    ``free`` (units that pass at once, leaking bucket only) and ``worst_case`` (the most units that
    any window of this length can let through).

    Raises ValueError, in one sentence, for text that is not a limit, for options that the algorithm
    does not have, and for numbers that whole-number arithmetic below 2^53 cannot hold; TypeError
    for values of the wrong type.
    """

    __slots__ = (
        "_hash", "algorithm", "burst", "digest", "free", "max_delay", "numbers", "quota",
        "rounding", "tick_us", "window_us",
    )  # fmt: skip

    quota: int
    window_us: int
    algorithm: Algorithm
    burst: int | None
    rounding: Rounding
    max_delay: float | None
    free: int | None
    """Units of a leaking bucket that pass at once, the others waiting; 1 if not given."""
    tick_us: int
    """The clock of this limit, in microseconds: 1 unless the numbers need a coarser one."""
    numbers: tuple[int, int, int, int, int, int]
    """The Lua's arguments: the algorithm's place, then its numbers (see each file's header)."""
    digest: str
    """8 URL-safe characters that stand for the algorithm and its numbers in stored keys."""

    def __init__(
        self,
        text: str,
        *,
        algorithm: Algorithm | str = Algorithm.SLIDING_COUNTER,
        burst: int | None = None,
        rounding: Rounding = "down",
        max_delay: float | None = None,
        free: int | None = None,
    ) -> None:
        quota, window_us, text_burst = _parse(text)
        if burst is not None and text_burst is not None and burst != text_burst:
            raise ValueError(f"burst is {text_burst} in {text!r} and {burst} beside it; give one")
        burst = text_burst if burst is None else burst
        self._build(quota, window_us, algorithm, burst, rounding, max_delay, free)

    @classmethod
    def of(
        cls,
        quota: int,
        window_us: int,
        *,
        algorithm: Algorithm | str = Algorithm.SLIDING_COUNTER,
        burst: int | None = None,
        rounding: Rounding = "down",
        max_delay: float | None = None,
        free: int | None = None,
    ) -> Self:
        """A limit from numbers: ``quota`` units per ``window_us`` microseconds."""
        limit = cls.__new__(cls)
        limit._build(  # noqa: SLF001  # the other constructor's own
            quota, window_us, algorithm, burst, rounding, max_delay, free
        )
        return limit

    @classmethod
    def parse_all(
        cls,
        text: str,
        *,
        algorithm: Algorithm | str = Algorithm.SLIDING_COUNTER,
        burst: int | None = None,
        rounding: Rounding = "down",
        max_delay: float | None = None,
        free: int | None = None,
    ) -> tuple[Self, ...]:
        """Several limits from one text, separated by ``;``, ``,`` or ``|``; at least one."""
        if not isinstance(text, str):
            raise TypeError(f"a limit is text such as '10/minute', not {type(text).__name__}")
        if _SEPARATOR.search(text) is None and text.strip():
            parts = [text]  # as most are, and there may be many
        else:
            parts = [part for part in _SEPARATOR.split(text) if part.strip()]
        if not parts:
            raise ValueError(f"no limit in {shown(text)}; write one such as '10/minute'")
        limits = tuple(
            cls(
                part.strip(),
                algorithm=algorithm,
                burst=burst,
                rounding=rounding,
                max_delay=max_delay,
                free=free,
            )
            for part in parts
        )
        if len(limits) > 1 and len(set(limits)) < len(limits):
            raise ValueError(f"{shown(text)} gives the same limit twice")
        return limits

    def _build(
        self,
        quota: int,
        window_us: int,
        algorithm: Algorithm | str,
        burst: int | None,
        rounding: Rounding,
        max_delay: float | None,
        free: int | None,
    ) -> None:
        try:
            algorithm = Algorithm(algorithm)
        except ValueError:
            hint = near(str(algorithm), Algorithm)
            raise ValueError(
                f"{shown(algorithm)} is not an algorithm{hint}; there are {', '.join(Algorithm)}"
            ) from None
        bucket = algorithm in BUCKETS
        whole("quota", quota, 1)
        whole("window", window_us, 1)
        if window_us >= LONGEST_US:
            raise ValueError(
                f"a window of {window_us} microseconds is too long; at most {LONGEST_US - 1}"
            )
        if burst is not None:
            if not bucket:
                raise ValueError(f"a burst belongs to a bucket; {algorithm} has none")
            whole("burst", burst, 1)
        if rounding not in ("down", "up"):
            raise ValueError(f"rounding is {shown(rounding)}; it is 'down' or 'up'")
        if rounding != "down" and algorithm is not Algorithm.SLIDING_COUNTER:
            raise ValueError(f"a rounding belongs to a sliding_counter; {algorithm} has none")
        if max_delay is not None:
            if algorithm is not Algorithm.LEAKING_BUCKET:
                raise ValueError(f"a max_delay belongs to a leaking_bucket; {algorithm} has none")
            max_delay = _seconds("max_delay", max_delay)
        leaks = algorithm is Algorithm.LEAKING_BUCKET
        if free is not None:
            if not leaks:
                raise ValueError(f"free belongs to a leaking_bucket; {algorithm} has none")
            whole("free", free, 1, min(quota if burst is None else burst, _MOST_FREE))

        put = object.__setattr__
        put(self, "quota", quota)
        put(self, "window_us", window_us)
        put(self, "algorithm", algorithm)
        put(self, "burst", (quota if burst is None else burst) if bucket else None)
        put(self, "rounding", rounding)
        put(self, "max_delay", max_delay)
        put(self, "free", (free or 1) if leaks else None)
        tick_us, numbers = self._reduce()
        put(self, "tick_us", tick_us)
        place, more = list(Algorithm).index(algorithm) + 1, (self.free or 1) - 1
        put(self, "numbers", (place + 8 * more, *numbers))

    def __getattr__(self, name: str) -> Any:
        # Made when first asked for: many limits of a rule file are never met.
        if name == "digest":
            more = (self.free or 1) - 1
            numbers = [*self.numbers[1:], *([more] if more else [])]
            canonical = ":".join([self.algorithm, *map(str, numbers)]).encode()
            digest = blake2b(canonical, digest_size=6).digest()
            value: Any = urlsafe_b64encode(digest).decode()
        elif name == "_hash":
            value = hash(self._value())
        else:
            raise AttributeError(f"a Limit has no {name}")
        object.__setattr__(self, name, value)
        return value

    def _reduce(self) -> tuple[int, tuple[int, int, int, int, int]]:
        """The tick (microseconds) and the five numbers that the algorithm's Lua takes."""
        quota, window_us = self.quota, self.window_us
        if quota >= EXACT or (self.burst or 0) >= EXACT:
            self._refuse("holds whole numbers below 2^53 only")
        match self.algorithm:
            case Algorithm.FIXED_WINDOW | Algorithm.SLIDING_LOG:
                return 1, (quota, window_us, 0, 0, 0)
            case Algorithm.SLIDING_COUNTER:
                # Its largest product is the previous count times the window in ticks.
                tick = _finest_tick(window_us, lambda ticks: quota * ticks < EXACT)
                if tick is None:
                    self._refuse("needs quota x window in ticks below 2^53")
                return tick, (quota, window_us // tick, tick, int(self.rounding == "up"), 0)
        capacity = self.capacity
        # The longest a bucket takes to fill is an instant that must be a whole number as well.
        if capacity * window_us >= quota * 2 * LONGEST_US:
            self._refuse("would take more than 142 years to fill")

        def fits(ticks: int) -> bool:
            shared = math.gcd(quota, ticks)
            return (
                capacity * (ticks // shared) < EXACT
                and (quota // shared) * (window_us // ticks) < EXACT
            )

        tick = _finest_tick(window_us, fits)
        if tick is None:
            self._refuse("needs burst x window in ticks, reduced by the quota, below 2^53")
        ticks = window_us // tick
        shared = math.gcd(quota, ticks)
        return tick, (capacity, quota // shared, ticks // shared, tick, ticks)

    def _refuse(self, why: str) -> NoReturn:
        burst = f", burst {self.burst}" if self.burst is not None else ""
        raise ValueError(
            f"{self.quota} per {self.window_us} microseconds{burst} cannot be counted exactly: "
            f"a {self.algorithm} {why}"
        )

    def scaled(self, part: Fraction) -> "Limit":
        """A part (above 0, at most 1) of this limit; units are rounded down.

        A part below one unit is one unit in a longer window, never none.
        """
        if not 0 < part <= 1:
            raise ValueError(f"the part is {part}; it is above 0 and at most 1")
        quota, window_us = self.quota * part, self.window_us
        if quota < 1:
            window_us = min(math.ceil(window_us / quota), LONGEST_US - 1)
            quota = Fraction(1)
        return Limit.of(
            math.floor(quota),
            window_us,
            algorithm=self.algorithm,
            burst=None if self.burst is None else max(1, math.floor(self.burst * part)),
            rounding=self.rounding,
            max_delay=self.max_delay,
            free=None if self.free is None else max(1, math.floor(self.free * part)),
        )

    def counted_by(self, algorithm: Algorithm) -> "Limit":
        """This limit by another algorithm, with what that has no use for left out.

        A leaking bucket that was none before has queues of 10 s, as rules have.
        """
        if algorithm is self.algorithm:
            return self
        bucket = algorithm in (Algorithm.TOKEN_BUCKET, Algorithm.LEAKING_BUCKET)
        return Limit.of(
            self.quota,
            self.window_us,
            algorithm=algorithm,
            burst=self.burst if bucket else None,
            max_delay=10 if algorithm is Algorithm.LEAKING_BUCKET else None,
        )

    def with_free(self, free: int) -> "Limit":
        """This limit of a leaking bucket, with so many units that pass at once."""
        return Limit.of(
            self.quota,
            self.window_us,
            algorithm=self.algorithm,
            burst=self.burst,
            max_delay=self.max_delay,
            free=free,
        )

    @property
    def capacity(self) -> int:
        """Units that pass at one instant when nothing was used: a bucket's places, or the quota.

        ``max_delay`` cuts a leaking bucket to the places whose turn comes within it.
        """
        if self.burst is None:
            return self.quota
        if self.max_delay is None:
            return self.burst
        within = Fraction(str(self.max_delay)) * 1_000_000 * self.quota // self.window_us
        return min(self.burst, within + (self.free or 1))

    @property
    def window(self) -> float:
        """The window in seconds."""
        return self.window_us / 1_000_000

    @property
    def worst_case(self) -> int:
        """The most units that any window (t - W, t] can let through, counted when decided."""
        match self.algorithm:
            case Algorithm.FIXED_WINDOW:
                return 2 * self.quota
            case Algorithm.SLIDING_LOG:
                return self.quota
            case Algorithm.SLIDING_COUNTER:
                return 2 * self.quota - (self.rounding == "up")
            case _:
                return self.capacity + self.quota - (self.tick_us == 1)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"a Limit is immutable; build another one to change its {name}")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"a Limit is immutable; {name} cannot be deleted")

    def _value(self) -> tuple[Any, ...]:
        return (
            self.quota, self.window_us, self.algorithm, self.burst, self.rounding, self.max_delay,
            self.free,
        )  # fmt: skip

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return self._value() == other._value() if isinstance(other, Limit) else NotImplemented

    def __hash__(self) -> int:
        return int(self._hash)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, self._value()

    def __str__(self) -> str:
        """The limit as text that ``Limit`` reads back: ``10/minute``, ``100/15 minutes``."""
        for us, name in _SPOKEN:
            if self.window_us % us == 0:
                count = self.window_us // us
                return f"{self.quota}/{name}" if count == 1 else f"{self.quota}/{count} {name}s"
        return f"{self.quota}/{self.window_us // 1_000}.{self.window_us % 1_000:03d}ms"

    def __repr__(self) -> str:
        extra = f", algorithm={self.algorithm.value!r}"
        if self.burst not in (None, self.quota):
            extra += f", burst={self.burst}"
        if self.rounding != "down":
            extra += f", rounding={self.rounding!r}"
        if self.max_delay is not None:
            extra += f", max_delay={self.max_delay}"
        if self.free not in (None, 1):
            extra += f", free={self.free}"
        return f"Limit({str(self)!r}{extra})"


_SPOKEN: Final = tuple(
    (UNITS_US[name], name) for name in ("week", "day", "hour", "minute", "second", "millisecond")
)


def parse_duration_us(text: str) -> int:
    """Microseconds in a duration with its unit: ``"50ms"``, ``"1.5s"``, ``"2 hours"``.

    Raises ValueError, in one sentence, for anything else.
    """
    match = _DURATION.fullmatch(text) if len(text) <= _LONGEST_TEXT else None
    if match is None:
        raise ValueError(
            f"{shown(text)} is not a duration; write a number and a unit: '50ms', '1.5s'"
        )
    return _span_us(match[1], match[2], text)


def _parse(text: str) -> tuple[int, int, int | None]:
    """Quota, window in microseconds and burst (None if not given) of one limit's text."""
    if not isinstance(text, str):
        raise TypeError(f"a limit is text such as '10/minute', not {type(text).__name__}")
    if re.search("[;,|]", text):
        raise ValueError(f"{shown(text)} holds several limits; Limit.parse_all reads those")
    match = _LIMIT.fullmatch(text) if len(text) <= _LONGEST_TEXT else None
    if match is None:
        raise ValueError(
            f"{shown(text)} is not a limit; write '10/minute', '10 per 2 hours', '100/15m' or "
            "'10/s burst 20'"
        )
    quota = _count("quota", match["quota"], text)
    burst = None if match["burst"] is None else _count("burst", match["burst"], text)
    return quota, _span_us(match["count"] or "1", match["unit"], text), burst


def _count(name: str, digits: str, text: str) -> int:
    if not re.fullmatch("[0-9]{1,18}", digits, re.ASCII):
        raise ValueError(
            f"the {name} in {shown(text)} is {digits!r}; it is a whole number of at most 18 digits"
        )
    if int(digits) == 0:
        raise ValueError(f"the {name} in {shown(text)} is 0; it is at least 1")
    return int(digits)


def _span_us(number: str, unit: str, text: str) -> int:
    unit_us = UNITS_US.get(unit.lower())
    if unit_us is None:
        if _NO_FIXED_LENGTH.fullmatch(unit):
            raise ValueError(f"{unit!r} in {shown(text)} has no fixed length; write it in days")
        hint = near(unit.lower(), UNITS_US, 0.6, repr)
        raise ValueError(
            f"{unit!r} in {shown(text)} is not a unit of time{hint}; there are {_UNIT_NAMES}"
        )
    if number.isascii() and number.isdigit() and int(number) > 0:
        return int(number) * unit_us  # ten times as fast, for files of a hundred thousand limits
    try:
        span_us = Fraction(number) * unit_us
    except ValueError:
        raise ValueError(f"{number!r} in {shown(text)} is not a number") from None
    if span_us.denominator != 1 or span_us < 1:
        raise ValueError(f"{number} {unit} in {shown(text)} is not a whole number of microseconds")
    return int(span_us)


def _seconds(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} is a number of seconds, not {type(value).__name__}")
    if not (math.isfinite(value) and 0 <= value < LONGEST_US / 1_000_000):
        raise ValueError(f"{name} is {value}; it is at least 0 seconds, and finite")
    return float(value)


def _finest_tick(window_us: int, fits: Callable[[int], bool]) -> int | None:
    """The smallest tick, in microseconds, that divides the window and with which it fits."""
    if fits(window_us):
        return 1
    return next((tick for tick in _divisors(window_us) if fits(window_us // tick)), None)


def _divisors(number: int) -> list[int]:
    """All divisors, ascending; factored by trial, since windows are products of small primes."""
    divisors, rest, prime = [1], number, 2
    while rest > 1 and prime <= 1_000_000:
        power = 1
        grown = divisors
        while rest % prime == 0:
            rest //= prime
            power *= prime
            divisors = divisors + [each * power for each in grown]
        prime += 1 if prime == 2 else 2
        if prime * prime > rest > 1:
            divisors = divisors + [each * rest for each in divisors]
            break
    return sorted(divisors)


def _rebuild(
    quota: int,
    window_us: int,
    algorithm: Algorithm,
    burst: int | None,
    rounding: Rounding,
    max_delay: float | None,
    free: int | None,
) -> Limit:
    return Limit.of(
        quota, window_us, algorithm=algorithm, burst=burst, rounding=rounding, max_delay=max_delay,
        free=free,
    )  # fmt: skip
