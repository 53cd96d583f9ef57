"""Limits and the options that count them: read as text, and held against each other."""

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from types import EllipsisType
from typing import Any, Final, TypeVar

from ratelimit.limits import Algorithm, Limit, Rounding
from ratelimit.rules.reading import Reading, text
from ratelimit.rules.values import ATTRIBUTE, REGISTERED, TOKEN
from ratelimit.words import shown, whole

T = TypeVar("T")

UNLIMITED: Final = "unlimited"

MOST_COST: Final = 2**42
"""The most units that one check can carry (ratelimit.decisions has the same bound)."""

DEFAULT_MAX_DELAY: Final = 10.0
"""Seconds that a leaking bucket may hold a request, where a rule does not say."""

DEFAULT_MAX_WAITING: Final = 1_000
"""Requests that may wait for one rule in one worker, where it does not say."""

_MOST_LIMITS: Final = 20

COUNTED: Final = ("algorithm", "burst", "rounding", "max_delay", "free")
"""The options that go with limits given as text."""


class Counting:
    """The algorithm, and its options, that count the limits given as text."""

    __slots__ = ("algorithm", "burst", "free", "max_delay", "rounding")

    def __init__(
        self,
        algorithm: Algorithm | str | None = None,
        burst: int | None = None,
        rounding: Rounding | None = None,
        max_delay: float | EllipsisType | None = ...,
        free: int | None = None,
    ) -> None:
        self.algorithm = Algorithm.SLIDING_COUNTER if algorithm is None else algorithm
        self.burst = burst
        self.rounding: Rounding = rounding or "down"
        leaks = self.algorithm == Algorithm.LEAKING_BUCKET
        if max_delay is ...:
            max_delay = DEFAULT_MAX_DELAY if leaks else None
        elif max_delay is None and not leaks:
            raise ValueError(f"a max_delay belongs to a leaking_bucket; {self.algorithm} has none")
        self.max_delay = max_delay
        self.free = free
        if rounding is not None and self.algorithm != Algorithm.SLIDING_COUNTER:
            raise ValueError(f"a rounding belongs to a sliding_counter; {algorithm} has none")

    @classmethod
    def like(cls, limit: Limit) -> "Counting":
        """As a ready-made limit is counted, but for its burst."""
        counting = cls(limit.algorithm)
        counting.rounding, counting.max_delay = limit.rounding, limit.max_delay
        counting.free = limit.free
        return counting

    def limits(
        self, value: object, *, burst: bool = True, exactly: bool = True
    ) -> tuple[Limit, ...]:
        """The limits of a text, a `Limit` or several of either; empty for no limit.

        ``burst`` False leaves out the burst that is given beside a text (an override has its own).
        Without it, or without ``exactly``, no more is free than the bucket holds.
        """
        value = as_text(value)
        if value is None or value == UNLIMITED:
            return ()
        if isinstance(value, str):
            return _parsed(
                value,
                str(self.algorithm),
                self.burst if burst else None,
                self.rounding,
                self.max_delay,
                self.free,
                burst and exactly,
            )
        return ready_limits(value)


@lru_cache(maxsize=4096)  # a file repeats few texts in many overrides, and so do dynamic limits
def _parsed(
    text: str,
    algorithm: str,
    burst: int | None,
    rounding: Rounding,
    max_delay: float | None,
    free: int | None,
    exactly: bool,
) -> tuple[Limit, ...]:
    limits = Limit.parse_all(
        text,
        algorithm=algorithm,
        burst=burst,
        rounding=rounding,
        max_delay=max_delay,
        free=free if exactly else None,
    )
    if free is not None and not exactly:
        limits = tuple(each.with_free(min(free, each.burst or 1)) for each in limits)
    return _few(limits)


def ready_limits(limit: object) -> tuple[Limit, ...]:
    """A `Limit`, or several, as they are."""
    limits = (limit,) if isinstance(limit, Limit) else limit
    if not isinstance(limits, Sequence):
        raise TypeError(f"a limit is text, a Limit or several, not {type(limit).__name__}")
    for each in limits:
        if not isinstance(each, Limit):
            raise TypeError(f"a sequence of limits holds Limit objects, not {type(each).__name__}")
    if not limits:
        raise ValueError("the sequence of limits is empty; it holds at least one")
    if len({each.digest for each in limits}) < len(limits):
        raise ValueError(f"{shown(list(map(str, limits)))} gives the same limit twice")
    return _few(tuple(limits))


def _few(limits: tuple[Limit, ...]) -> tuple[Limit, ...]:
    if len(limits) > _MOST_LIMITS:
        raise ValueError(f"there are {len(limits)} limits; at most {_MOST_LIMITS} together")
    return limits


def counting_of(reading: Reading) -> Counting | None:
    """Counts texts as the rule's own; None where an option that says how has a mistake."""
    limit = reading.get("limit")
    if not reading.keys() >= set(COUNTED):
        return None
    if limit is None or isinstance(limit, str | Mapping) or callable(limit):
        return Counting(*map(reading.get, COUNTED))
    return Counting.like(ready_limits(limit)[0])


def as_text(value: object) -> object:
    """Texts of limits as one text; anything else as it is."""
    texts = isinstance(value, list | tuple) and value and all(isinstance(e, str) for e in value)
    return "; ".join(value) if texts else value  # type: ignore[arg-type]  # of text alone


def limit(value: object, reading: Reading) -> Any:
    """A rule's limit: text, limits, a function, or a mapping of tiers to those, as it is given."""
    value = as_text(value)
    if isinstance(value, Mapping):
        _tiers(value, reading)
    elif isinstance(value, str):
        if not _under_algorithm(reading).limits(value):
            raise ValueError(f"the limit is {shown(value)}; a rule without a limit has mode 'off'")
    elif not callable(value):
        ready_limits(value)
        for key in COUNTED:
            if key in reading.given and reading.given[key] not in (None, ...):
                raise ValueError(f"{key} is given beside a Limit; a Limit carries its own")
    return value


def _under_algorithm(reading: Reading) -> Counting:
    # Where the algorithm has a mistake, any that takes a burst will do to read a limit.
    return Counting(reading.get("algorithm", Algorithm.TOKEN_BUCKET))


def _tiers(limits: Mapping[Any, Any], reading: Reading) -> None:
    counting = _under_algorithm(reading)
    some = False
    for name, limit in limits.items():
        text("a tier's name", name)
        reading.at((name,), _tier_name, name)
        some |= reading.at((name,), counting.limits, limit) != ()
    if not limits:
        raise ValueError("there are no tiers; name at least one with its limit")
    if not some:
        raise ValueError("every tier is unlimited; a rule limits at least one")


def _tier_name(name: str) -> None:
    if not name or len(name) > 64:
        raise ValueError(f"a tier is named {shown(name)}; a name has 1 to 64 characters")


def algorithm(value: Any, _: Reading) -> Algorithm:
    """One of `Algorithm`, by its name."""
    return Limit("1/second", algorithm=value).algorithm


def burst(value: int, reading: Reading) -> int:
    """Units, at least 1, that go with a bucket's limit."""
    whole("burst", value, 1)
    return _beside(value, reading, Counting(reading["algorithm"], value))


def rounding(value: Any, reading: Reading) -> Any:
    """The way to round that goes with a sliding counter."""
    return _beside(value, reading, Counting(reading["algorithm"], None, value))


def max_delay(value: float | None, reading: Reading) -> float | None:
    """Seconds, or None, that go with a leaking bucket."""
    return _beside(value, reading, Counting(reading["algorithm"], None, None, value))


def free(value: int, reading: Reading) -> int:
    """Units, at least 1, that pass a leaking bucket at once."""
    whole("free", value, 1)
    return _beside(
        value, reading, Counting(reading["algorithm"], reading["burst"], None, ..., value)
    )


def max_waiting(value: int, reading: Reading) -> int:
    """Requests that may wait, 1 to 100,000; of a rule of which a limit makes them wait."""
    whole("max_waiting", value, 1, 100_000)
    limit = reading["limit"]
    given = list(limit.values()) if isinstance(limit, Mapping) else [limit]
    known = [reading["algorithm"] or Algorithm.SLIDING_COUNTER]
    for each in given:
        if each is not None and not isinstance(each, str) and not callable(each):
            known += [one.algorithm for one in ready_limits(each)]
    if Algorithm.LEAKING_BUCKET not in known:
        raise ValueError(f"max_waiting belongs to a leaking_bucket; nobody waits for a {known[-1]}")
    return value


def _beside(value: T, reading: Reading, counting: Counting) -> T:
    """A value that goes with the texts of a rule's limits."""
    limit = reading["limit"]
    if callable(limit) and counting.free is not None:
        whole("free", counting.free, 1, counting.burst)
        counting.free = 1  # the function's limits may hold more than any example
    if isinstance(limit, Mapping):
        texts = [each for each in limit.values() if isinstance(each, str)]
    else:
        texts = [limit if isinstance(limit, str) else "1/second"]
    for each in texts:
        counting.limits(each)
    return value


def tier(value: object, reading: Reading) -> Any:
    """The source of a request's tier: ``user:ATTRIBUTE``, ``header:NAME`` or a registered name."""
    found = value if callable(value) else _chooser(text("tier", value))
    if not isinstance(reading["limit"], Mapping):
        raise ValueError(  # noqa: TRY004  # of the other option, that is
            "tier is given without tiers; the limit is then a mapping of them"
        )
    return found


def _chooser(value: str) -> str:
    kind, colon, name = value.partition(":")
    if kind == "user" and ATTRIBUTE.fullmatch(name):
        return value
    if kind == "header" and TOKEN.fullmatch(name):
        return f"header:{name.lower()}"
    if not colon and REGISTERED.fullmatch(kind):
        return value
    raise ValueError(
        f"tier is {shown(value)}; it is user:ATTRIBUTE, header:NAME (believed from trusted proxies "
        "alone) or a registered name (a-z, 0-9 and _)"
    )


def limits_of(reading: Reading) -> tuple[tuple[Limit, ...], dict[str, tuple[Limit, ...]]]:
    """A rule's limits, and those of each tier, none for an unlimited one."""
    limit, counting = reading["limit"], counting_of(reading) or Counting()
    if isinstance(limit, Mapping):
        tiers = {name: counting.limits(each) for name, each in limit.items()}
        return next(iter(tiers.values())), tiers
    return () if callable(limit) else counting.limits(limit), {}


def cost_of_rule(value: object, reading: Reading) -> Any:
    """Units per request that every limit can let through, a name or a function."""
    cost(value, ())  # whatever the limits are
    limits, tiers = limits_of(reading)
    return cost(value, [*limits, *(each for some in tiers.values() for each in some)])


def cost(value: object, limits: Iterable[Limit]) -> Any:
    """Units per request: a number that every limit can let through, a name or a function."""
    if callable(value):
        return value
    if isinstance(value, str):
        if not REGISTERED.fullmatch(value):
            raise ValueError(
                f"cost is {shown(value)}; it is a whole number or a registered name "
                "(a-z, 0-9 and _)"
            )
        return value
    if type(value) is not int:
        raise TypeError(f"cost is a whole number, not {type(value).__name__}")
    if not 0 <= value <= MOST_COST:
        raise ValueError(f"cost is {value}; it is at least 0 and at most 2^42")
    for limit in limits:
        if value > limit.capacity:
            raise ValueError(
                f"cost is {value} and can never pass; {str(limit)!r} lets through at most "
                f"{limit.capacity} at once"
            )
    return value
