"""Mistakes in limits on routes, told when the application starts rather than at a request."""

from collections.abc import Iterator
from typing import Any

from ratelimit.asgi.decorators import RateLimit, limits_of
from ratelimit.asgi.endpoints import scope_of
from ratelimit.asgi.places import beneath, placed
from ratelimit.limiter.limiter import RateLimiter
from ratelimit.rules.rule import Rule

__all__ = ["limits_on", "mistakes", "rules_on"]


def limits_on(route: Any) -> Iterator[RateLimit]:
    """The limits of a route: on its endpoint, and among its dependencies."""
    yield from limits_of(getattr(route, "endpoint", None))
    below = [getattr(route, "dependant", None)]
    while below:
        dependant = below.pop()
        call = getattr(dependant, "call", None)
        if isinstance(call, RateLimit):
            yield call
        below += getattr(dependant, "dependencies", ())


def rules_on(route: Any) -> list[Rule]:
    """The rules of the limits of a route, whatever they are named there."""
    return [each.rule for each in limits_on(route)]


def mistakes(app: Any, limiter: RateLimiter) -> list[str]:
    """Sentences on limits of routes that name functions which nobody registered.

    ``app`` is what stands further in than a middleware of ``limiter``; routes that a middleware
    further in decides are left to that one.
    """
    inner, around = beneath(app, limiter)
    found: list[str] = []
    for template, route, decides in placed(getattr(inner, "routes", None), around):
        for each in limits_on(route):
            if each.limiter is None and decides is not limiter:
                continue
            try:
                (each.limiter or limiter).hold_registered(each.rule, each.known)
            except ValueError as error:
                found.append(f"{template} ({scope_of(route.endpoint)}): {error}")
    return found
