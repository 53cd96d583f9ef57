"""The options of shedding: when requests are shed, and in which order."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from ratelimit.limits import parse_duration_us
from ratelimit.rules.reading import Reading, text
from ratelimit.rules.values import REGISTERED, Mode
from ratelimit.words import shown

__all__ = ["PRIORITIES", "Priority", "Shed", "priority", "shed"]

Priority = Literal["critical", "high", "normal", "low", "bulk"]

PRIORITIES: Final[tuple[Priority, ...]] = get_args(Priority)
"""The classes of requests, in the order in which they are kept."""

LEAST_LAG_US: Final = 1_000
MOST_LAG_US: Final = 10_000_000


@dataclass(frozen=True)
class Shed:
    """The kept form of ``shed``: ``{"lag": "20ms"}`` in a `RuleSet`."""

    lag_us: int
    """The lateness of this process, in microseconds, above which it is overloaded."""
    mode: Mode = "enforce"


def shed(value: object, reading: Reading) -> Shed | None:
    """``lag`` as a duration, and ``mode`` if given; None for nothing shed."""
    if value is None or isinstance(value, Shed):
        return value
    if not isinstance(value, Mapping):
        raise TypeError(f"shed is a mapping such as {{'lag': '20ms'}}, not {type(value).__name__}")
    reading.refuse_unknown(value, tuple(_KEYS))
    given: dict[str, Any] = {
        key: reading.at((key,), reader, value[key]) for key, reader in _KEYS.items() if key in value
    }
    if "lag" not in value:
        raise ValueError("shed is given without lag, such as 20ms, above which this is overloaded")
    if reading.key in reading.failed:
        return None
    return Shed(given["lag"], given.get("mode", "enforce"))


def _lag(value: object) -> int:
    lag_us = parse_duration_us(text("the lag", value))
    if not LEAST_LAG_US <= lag_us <= MOST_LAG_US:
        raise ValueError(f"the lag is {shown(value)}; it is 1 ms to 10 s")
    return lag_us


def _mode(value: object) -> str:
    if value not in get_args(Mode):
        raise ValueError(f"the mode is {shown(value)}; it is 'enforce', 'shadow' or 'off'")
    return str(value)


_KEYS: Final[Mapping[str, Callable[[object], Any]]] = {"lag": _lag, "mode": _mode}


def priority(value: object, _: Reading) -> Any:
    """One of `PRIORITIES`, a registered name or a function over the connection."""
    if callable(value) or value in PRIORITIES:
        return value
    if not REGISTERED.fullmatch(text("priority", value)):
        raise ValueError(
            f"priority is {shown(value)}; it is {', '.join(PRIORITIES)} or a registered name "
            "(a-z, 0-9 and _)"
        )
    return value
