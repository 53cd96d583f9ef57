"""Limits on a route: `@limit` and `@exempt` on endpoints, `RateLimit` for FastAPI's `Depends`."""

import functools
import gc
import inspect
import logging
import re
import sys
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import blake2b
from types import EllipsisType
from typing import Any, Final, ParamSpec, TypeVar
from weakref import WeakKeyDictionary

import anyio
from starlette.concurrency import run_in_threadpool
from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.websockets import WebSocket

from ratelimit.admission import Admission
from ratelimit.headers import RateLimitExceeded, Refusal, Refused
from ratelimit.limiter import RateLimiter
from ratelimit.limits import Algorithm, Limit, Rounding
from ratelimit.middleware import SCOPE_KEY, register_refused, send_refusal
from ratelimit.routing import EXEMPT, innermost
from ratelimit.rules import OnStoreFailure, Rule

__all__ = ["RateLimit", "exempt", "limit"]

P = ParamSpec("P")
R = TypeVar("R")

_LOG: Final = logging.getLogger("ratelimit")

# What FastAPI is asked to pass to a decorated endpoint; Starlette passes the request by itself.
_CONNECTION: Final = "ratelimit_connection"
_RESPONSE: Final = "ratelimit_response"


class RateLimit:
    """A limit as a FastAPI dependency: ``Depends(RateLimit("5/minute"))``.

    On a route, a router or the whole application; each route counts by itself unless ``scope``
    names what they share. The options are those of `limit`. Raises RateLimitExceeded.
    """

    def __init__(
        self,
        limit: str | Limit | Sequence[Limit],
        *,
        by: str | Sequence[str] = "client",
        algorithm: Algorithm | str | None = None,
        burst: int | None = None,
        rounding: Rounding | None = None,
        max_delay: float | EllipsisType | None = ...,
        cost: int = 1,
        scope: str | None = None,
        limiter: RateLimiter | None = None,
        on_store_failure: OnStoreFailure | None = None,
    ) -> None:
        self.limiter = limiter
        self._scope = scope
        self._rules: dict[str, Rule] = {}
        self._build = functools.partial(
            Rule,
            limit=limit,
            by=by,
            algorithm=algorithm,
            burst=burst,
            rounding=rounding,
            max_delay=max_delay,
            cost=cost,
            on_store_failure=on_store_failure,
        )
        self.rule_for(scope or "anything")  # a mistake is told where it is made

    def rule_for(self, scope: str, number: int = 1) -> Rule:
        """The rule under which a scope is counted; ``number`` tells limits of one scope apart."""
        name = self._scope or _rule_name(scope)
        if number > 1:
            name = f"{name}.{number}"
        rule = self._rules.get(name)
        if rule is None:
            rule = self._rules[name] = self._build(name)
        return rule

    async def __call__(self, connection: HTTPConnection, response: Response) -> None:
        scope = connection.scope
        endpoint = scope.get("endpoint")
        admission = await _admit(scope, [(self.limiter, self.rule_for(_scope_of(endpoint)))])
        if admission.refusal is not None:
            raise _error(scope, admission, admission.refusal)
        if SCOPE_KEY not in scope:
            _tell(response, admission)


def limit(
    limit: str | Limit | Sequence[Limit],
    *,
    by: str | Sequence[str] = "client",
    algorithm: Algorithm | str | None = None,
    burst: int | None = None,
    rounding: Rounding | None = None,
    max_delay: float | EllipsisType | None = ...,
    cost: int = 1,
    scope: str | None = None,
    limiter: RateLimiter | None = None,
    on_store_failure: OnStoreFailure | None = None,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Limits an endpoint: put it *below* the route decorator.

    ``limit`` is text (``"5/minute; 100/day"``) or ready-made limits; ``by`` says who is counted
    together; ``cost`` is what one request takes. ``max_delay`` bounds the wait in a leaking
    bucket, in seconds (10 if left out, None for no bound). Routes that share a ``scope`` share
    their counters; without one an endpoint counts by its module and qualified name. ``limiter``
    decides, else the middleware around the application, else an in-process one of the library's,
    with a warning.

    Works on async and sync functions and methods, which need no ``request`` parameter. Several may
    be stacked; all of them are decided together, all or nothing.

    Raises ValueError or TypeError for options that make no rule, and RuntimeError where it stands
    above the route decorator and would never run.
    """
    dependency = RateLimit(
        limit,
        by=by,
        algorithm=algorithm,
        burst=burst,
        rounding=rounding,
        max_delay=max_delay,
        cost=cost,
        scope=scope,
        limiter=limiter,
        on_store_failure=on_store_failure,
    )

    def decorate(endpoint: Callable[P, R]) -> Callable[P, R]:
        _refuse_misplaced(endpoint)
        function, inner = _LIMITED.get(endpoint, (endpoint, []))
        return _wrap(function, [*inner, dependency])

    return decorate


def exempt(endpoint: Callable[P, R]) -> Callable[P, R]:
    """Takes an endpoint out of every middleware's rules; limits of its own still apply."""
    function = innermost(endpoint)
    EXEMPT[id(function)] = function  # by identity, since not every endpoint can be hashed
    return endpoint


_LIMITED: Final[WeakKeyDictionary[Any, tuple[Any, list[RateLimit]]]] = WeakKeyDictionary()
"""What `_wrap` made, with what it wraps; an attribute would be copied by functools.wraps."""


def _wrap(function: Callable[P, R], limits: list[RateLimit]) -> Callable[P, R]:
    scope_name = _scope_of(function)
    names: dict[str, int] = {}
    rules: list[tuple[RateLimiter | None, Rule]] = []
    for each in limits:
        name = each.rule_for(scope_name).name
        names[name] = names.get(name, 0) + 1
        rules.append((each.limiter, each.rule_for(scope_name, names[name])))
    is_async = _is_async(function)
    signature, connection_name, response_name = _with_injected(function)
    added = signature.parameters.keys() - inspect.signature(function).parameters.keys()

    @functools.wraps(function)
    async def limited(*args: Any, **kwargs: Any) -> Any:
        connection, response = kwargs.get(connection_name), kwargs.get(response_name)
        for name in added:
            kwargs.pop(name, None)
        if not isinstance(connection, HTTPConnection):
            connection = next(
                (each for each in (*args, *kwargs.values()) if isinstance(each, HTTPConnection)),
                None,
            )
        if connection is None:
            raise RuntimeError(
                f"{scope_name} is limited, but was called without a request; call the function "
                "under @limit (its __wrapped__) where no request is meant"
            )
        scope = connection.scope
        admission = await _admit(scope, rules)
        if admission.refusal is not None:
            if isinstance(connection, WebSocket):
                await send_refusal(admission.refusal, scope, connection._send)  # noqa: SLF001  # what its own send is built on
                return None
            raise _error(scope, admission, admission.refusal)
        result: Any
        if is_async:
            result = function(*args, **kwargs)
        else:
            result = await run_in_threadpool(function, *args, **kwargs)
        if inspect.isawaitable(result):  # also of a plain function around an async one
            result = await result
        if SCOPE_KEY not in scope:
            told = result if isinstance(result, Response) else response
            if isinstance(told, Response):
                _tell(told, admission)
        return result

    limited.__signature__ = signature  # type: ignore[attr-defined]
    _LIMITED[limited] = function, limits
    return limited  # type: ignore[return-value]  # frameworks await what an endpoint returns


def _tell(response: Response, admission: Admission) -> None:
    """Sets the fields, rather than adding them: a response may be one that is returned again."""
    for name, value in admission.headers():
        response.headers[name.decode()] = value.decode()


async def _admit(
    scope: Mapping[str, Any], rules: Iterable[tuple[RateLimiter | None, Rule]]
) -> Admission:
    """Decides a route's rules, each by its own limiter, and waits for the request's turn."""
    outer: Admission | None = scope.get(SCOPE_KEY)
    groups: dict[int, tuple[RateLimiter, list[tuple[Rule, Mapping[str, object]]]]] = {}
    for own, rule in rules:
        limiter = own or (outer.limiter if outer else _fallback())
        groups.setdefault(id(limiter), (limiter, []))[1].append(
            (rule, scope.get("path_params", {}))
        )
    admission = outer
    delay_us = 0
    for limiter, matching in groups.values():
        if admission is None:
            admission = Admission(limiter, scope.get("app"))
        limiter.check_identities(rule for rule, _ in matching)
        await limiter.decide(admission, scope, matching, template=_scope_of(scope.get("endpoint")))
        if admission.refusal is not None:
            await admission.give_back()
            return admission
        delay_us = max(delay_us, admission.delay_us)
    if admission is None:
        raise RuntimeError("a route's limit was asked without a rule")
    admission.delay_us = 0
    if delay_us:
        await anyio.sleep(delay_us / 1_000_000)
    return admission


def _error(scope: Mapping[str, Any], admission: Admission, refusal: Refusal) -> Refused:
    """What to raise for a refusal; makes sure that somebody will answer it."""
    handlers = scope.get("starlette.exception_handlers")
    if handlers is not None:
        register_refused(*handlers)
    if refusal.status == 429:
        return RateLimitExceeded(admission.told, admission.dialects)
    return Refused(refusal)


@functools.cache
def _fallback() -> RateLimiter:
    _LOG.warning(
        "no-limiter: a route is limited, but there is no RateLimitMiddleware around it and no "
        "limiter= beside it; it is counted in this process alone"
    )
    return RateLimiter()


def _scope_of(endpoint: Any) -> str:
    """Module and qualified name of an endpoint, seen through partials and wrappers."""
    function = innermost(endpoint)
    if not hasattr(function, "__qualname__"):
        function = type(function)
    return f"{function.__module__}.{function.__qualname__}"


def _rule_name(scope: str) -> str:
    """A name that clients may see: the function's, and a digest of where it is."""
    label = re.sub("[^A-Za-z0-9_]", "_", scope.rpartition(".")[2])[:40].lstrip("_0123456789")
    digest = urlsafe_b64encode(blake2b(scope.encode(), digest_size=6).digest()).decode()
    return f"{label or 'route'}.{digest.replace('=', '')}"


def _is_async(function: Any) -> bool:
    """Whether the outermost layer is async; what it wraps does not matter to its caller."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004  # whether *it* is async, not whether it is
    )


def _with_injected(function: Callable[..., Any]) -> tuple[inspect.Signature, str, str]:
    """The function's signature and what FastAPI is to inject, with the names of the two.

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


def _refuse_misplaced(endpoint: Any) -> None:
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
                f"@limit stands above the route decorator of {_scope_of(endpoint)}, which has "
                "registered the function below it, so the limit would never run; put @limit "
                "between the route decorator and the function"
            )


def _count_new_references() -> int:
    """How many references a function has that nobody but its decorator knows of."""

    def measure(endpoint: Any) -> int:
        return sys.getrefcount(endpoint)

    def decorate(endpoint: Any) -> int:
        return measure(endpoint)

    @decorate
    def new() -> None: ...

    return new


_NEW_REFERENCES: Final[int] = _count_new_references()
