"""Endpoints as limits see them: name, kind, signature, and whether a route has them already."""

import gc
import inspect
import sys
from collections.abc import Callable
from typing import Any, Final

from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.routing import BaseRoute

from ratelimit.asgi.routing import innermost

__all__ = ["is_async", "refuse_misplaced", "scope_of", "with_injected"]

# What FastAPI is asked to pass to a decorated endpoint; Starlette passes the request by itself.
_CONNECTION: Final = "ratelimit_connection"
_RESPONSE: Final = "ratelimit_response"


def scope_of(endpoint: Any) -> str:
    """Module and qualified name of an endpoint, seen through partials and wrappers."""
    function = innermost(endpoint)
    if not hasattr(function, "__qualname__"):
        function = type(function)
    return f"{function.__module__}.{function.__qualname__}"


def is_async(function: Any) -> bool:
    """Whether the outermost layer is async; what it wraps does not matter to its caller."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004  # whether *it* is async, not whether it is
    )


def with_injected(function: Callable[..., Any]) -> tuple[inspect.Signature, str, str]:
    """The function's signature with the two parameters that FastAPI is to inject, and their names.

    They are left out of OpenAPI. FastAPI fills one parameter of a kind, so one that the function
    has itself serves us as well.
    """
    signature = inspect.signature(function)
    parameters = list(signature.parameters.values())
    catch_all = parameters.pop() if parameters and parameters[-1].kind is _VAR_KEYWORD else None
    names = []
    for name, kind in ((_CONNECTION, HTTPConnection), (_RESPONSE, Response)):
        own = next((each.name for each in parameters if _is_given(each, kind, function)), None)
        if own is None:
            parameters.append(
                inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=kind)
            )
        names.append(own or name)
    parameters += [catch_all] if catch_all else []
    return signature.replace(parameters=parameters), names[0], names[1]


def _is_given(parameter: inspect.Parameter, kind: type, function: Any) -> bool:
    """Whether FastAPI would fill a parameter with the connection, or with the response."""
    annotation = parameter.annotation
    if isinstance(annotation, str):
        try:
            annotation = eval(annotation, getattr(innermost(function), "__globals__", {}))  # noqa: S307
        except Exception:  # noqa: BLE001  # a name that is not there yet, if ever
            return False
    markers = (parameter.default, *getattr(annotation, "__metadata__", ()))
    if any(hasattr(marker, "dependency") for marker in markers):
        return False
    annotation = getattr(annotation, "__origin__", annotation)
    return isinstance(annotation, type) and issubclass(annotation, kind)


_VAR_KEYWORD: Final = inspect.Parameter.VAR_KEYWORD


def refuse_misplaced(endpoint: Any) -> None:
    """Raises where a limit would have no effect: on classes, on generators, on what is routed.

    A route decorator returns the very function that it registered, so a limit above it wraps
    something that nobody will call. The route is then among the function's referrers; they are
    only searched where the function has more of them than a new one has.
    """
    if isinstance(endpoint, type):
        raise TypeError(f"@limit goes on the methods of {endpoint.__qualname__}, not on the class")
    if not callable(endpoint):
        raise TypeError(f"@limit goes on an endpoint, not on {type(endpoint).__name__}")
    if inspect.isgeneratorfunction(endpoint) or inspect.isasyncgenfunction(endpoint):
        raise TypeError(
            f"{endpoint.__qualname__} yields, so its response has begun before a limit could "
            "refuse it; use Depends(RateLimit(...)) on its route"
        )
    if sys.getrefcount(endpoint) <= _NEW_REFERENCES:
        return
    for referrer in gc.get_referrers(endpoint):
        owner = referrer
        if isinstance(referrer, dict) and referrer.get("endpoint") is endpoint:
            owner = next(
                (each for each in gc.get_referrers(referrer) if isinstance(each, BaseRoute)), None
            )
        if isinstance(owner, BaseRoute) and getattr(owner, "endpoint", None) is endpoint:
            raise RuntimeError(
                f"@limit stands above the route decorator of {scope_of(endpoint)}, which has "
                "registered the function below it, so the limit would never run; put @limit "
                "between the route decorator and the function"
            )


def _count_new_references() -> int:
    """Counts the references to a function that only its decorator knows of."""

    def measure(endpoint: Any) -> int:
        return sys.getrefcount(endpoint)

    def decorate(endpoint: Any) -> int:
        return measure(endpoint)

    @decorate
    def new() -> None: ...

    return new


_NEW_REFERENCES: Final[int] = _count_new_references()
