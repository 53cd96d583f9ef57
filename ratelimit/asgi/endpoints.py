"""Endpoints as limits see them: name, kind, signature, and whether a route has them already."""

import functools
import gc
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any, Final

from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.routing import BaseRoute

from ratelimit.asgi.routing import innermost

if sys.version_info >= (3, 13):
    from inspect import iscoroutinefunction
else:  # as Starlette and FastAPI ask there, since only this one knows the mark of `awaited`
    from asyncio import iscoroutinefunction

__all__ = [
    "awaited", "is_async", "layers", "readable", "refuse_misplaced", "scope_of", "with_injected",
]  # fmt: skip

# What FastAPI is asked to pass to a decorated endpoint; Starlette passes the request by itself.
_CONNECTION: Final = "ratelimit_connection"
_RESPONSE: Final = "ratelimit_response"


def scope_of(endpoint: Any) -> str:
    """Module and qualified name of an endpoint, seen through partials and wrappers."""
    function = _named(endpoint)
    return f"{function.__module__}.{function.__qualname__}"


def readable(endpoint: Any) -> str:
    """A name that clients may see, and several endpoints may have: ``report``, ``Page.get``."""
    own = _named(endpoint).__qualname__.rpartition("<locals>.")[2]
    return re.sub("[^A-Za-z0-9_.]", "", own)[-40:].strip("_0123456789.") or "route"


def _named(endpoint: Any) -> Any:
    function = innermost(endpoint)
    return function if hasattr(function, "__qualname__") else type(function)


def layers(endpoint: Any) -> Iterator[Any]:
    """Everything that an endpoint runs, as far as it can be seen from outside, outermost first.

    Partials, wrappers (functools.wraps), bound methods, the methods of a class, ``__call__``.
    """
    while endpoint is not None:
        endpoint = getattr(endpoint, "__func__", endpoint)
        yield endpoint
        if isinstance(endpoint, functools.partial):
            endpoint = endpoint.func
        elif hasattr(endpoint, "__wrapped__"):
            endpoint = endpoint.__wrapped__
        elif isinstance(endpoint, type):
            for name in dir(endpoint):
                if not name.startswith("__"):
                    yield from layers(_method(inspect.getattr_static(endpoint, name)))
            return
        else:
            endpoint = None if inspect.isroutine(endpoint) else _method(type(endpoint).__call__)


def _method(value: Any) -> Any:
    """A function, or what wraps one; None for anything else."""
    value = getattr(value, "__func__", value)
    return value if inspect.isfunction(value) or hasattr(value, "__wrapped__") else None


def is_async(function: Any) -> bool:
    """Whether the outermost layer is async; what it wraps does not matter to its caller."""
    return iscoroutinefunction(function) or iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004  # whether *it* is async, not whether it is
    )


def awaited(function: Any) -> None:
    """Marks a plain function as one whose result frameworks are to await."""
    if sys.version_info >= (3, 12):
        inspect.markcoroutinefunction(function)
    else:
        function._is_coroutine = sys.modules["asyncio"].coroutines._is_coroutine  # noqa: SLF001


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
