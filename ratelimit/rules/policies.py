"""All limits that a request is held to by a rule, and their names before clients."""

from functools import lru_cache

from ratelimit.concurrency import Concurrency
from ratelimit.limits import Limit
from ratelimit.rules.units import REQUESTS, Policy

__all__ = ["policy_names", "with_concurrency"]


def with_concurrency(
    limits: tuple[Limit, ...], concurrency: Concurrency | None
) -> tuple[Limit, ...]:
    """All that a request is held to; what is counted at once comes last."""
    return limits if concurrency is None else (*limits, concurrency)


@lru_cache(maxsize=4096)
def policy_names(name: str, limits: tuple[Limit, ...], unit: str = REQUESTS) -> tuple[str, ...]:
    """The name of each limit of a rule before clients: ``login``, or ``login:60`` and so on.

    The number is the window in seconds, rounded up; limits of equal windows are counted as well:
    ``login:60:1``, ``login:60:2``. A concurrency beside them is ``login:concurrency``. Each limit
    but that tells the ``unit``, where that is not requests.
    """
    if limits and isinstance(limits[-1], Concurrency):
        rates = limits[:-1]
        own = f"{name}:concurrency" if rates else name
        return (*policy_names(name, rates, unit), own)
    if unit != REQUESTS:
        return tuple(Policy(each, unit) for each in policy_names(name, limits))
    if len(limits) == 1:
        return (name,)
    windows = [-(-limit.window_us // 1_000_000) for limit in limits]
    return tuple(
        f"{name}:{window}"
        + (f":{windows[:place].count(window) + 1}" if windows.count(window) > 1 else "")
        for place, window in enumerate(windows)
    )
