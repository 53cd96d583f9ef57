"""Limits on a route: `@limit` and `@exempt` on endpoints, `RateLimit` for FastAPI's `Depends`."""

import functools
import inspect
import logging
import re
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from hashlib import blake2b
from typing import Any, Final, ParamSpec, TypeVar, Unpack
from weakref import WeakKeyDictionary

import anyio
from starlette.concurrency import run_in_threadpool
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.websockets import WebSocket

from ratelimit.asgi.answer import ROUTE_KEY, SCOPE_KEY, answer, register_refused
from ratelimit.asgi.endpoints import is_async, refuse_misplaced, scope_of, with_injected
from ratelimit.asgi.routing import EXEMPT, innermost
from ratelimit.identity.keys import Identify
from ratelimit.identity.users import READABLE, is_nobody, user_id
from ratelimit.limiter.admission import Admission
from ratelimit.limiter.limiter import RateLimiter
from ratelimit.responses.headers import RateLimitExceeded, Refusal, Refused
from ratelimit.rules.options import RouteOptions
from ratelimit.rules.reading import refuse_unknown
from ratelimit.rules.rule import Rule
from ratelimit.rules.values import Ask, SomeLimits

__all__ = ["LimitOptions", "RateLimit", "exempt", "limit", "limits_of"]

P = ParamSpec("P")
R = TypeVar("R")
Scope = MutableMapping[str, Any]
Dependency = Callable[..., Any]

_LOG: Final = logging.getLogger("ratelimit")

_MET_KEY: Final = "ratelimit.met"
"""The dependencies that a request has met so far, each with its number on its route."""


class LimitOptions(RouteOptions, total=False):
    """The options that `limit` and `RateLimit` take beside the limit and ``by``."""

    scope: str | None
    """Routes that share a scope share their counters."""
    limiter: RateLimiter | None
    """The limiter that decides; else that of the middleware around, else one of the library's."""


class RateLimit:
    """A limit as a FastAPI dependency: ``Depends(RateLimit("5/minute"))``.

    On a route, a router or the whole application; each route counts by itself unless ``scope``
    names what they share. ``limit`` and the options are those of `limit`, and ``by`` may be, or
    hold, one dependency of the application's: ``by=current_user`` counts by what
    ``Depends(current_user)`` gives, which FastAPI resolves once per request. That is text, a whole
    number or a UUID, or an object or a mapping that has one as its ``identity``, ``id``, ``pk``,
    ``sub``, ``uuid`` or ``username``, the first that is there. None, an empty text and a user who
    is not authenticated are a missing identity (``on_missing``).

    Raises RateLimitExceeded when called, and what `limit` raises when built.
    """

    def __init__(
        self,
        limit: "SomeLimits | Mapping[str, SomeLimits] | Ask[SomeLimits]",
        *,
        by: str | Dependency | Sequence[str | Dependency] = "client",
        **options: Unpack[LimitOptions],
    ) -> None:
        refuse_unknown("a limit", options, {"by", *LimitOptions.__optional_keys__})
        of_rule: dict[str, Any] = dict(options)
        self.limiter: RateLimiter | None = of_rule.pop("limiter", None)
        self._scope: str | None = of_rule.pop("scope", None)
        names, self.dependency = _parts(by)
        self._rules: dict[str, Rule] = {}
        self._alone: dict[str, OnRoute] = {}
        self._build: Callable[[str], Rule] = lambda name: Rule(
            name, limit, by=names, on_route=True, **of_rule
        )
        # A mistake is told where it is made.
        self.rule = self.rule_for(self._scope or "anything")
        self.__signature__ = _signature(self.dependency)

    def rule_for(self, scope: str, number: int = 1) -> Rule:
        """The rule under which a scope is counted; ``number`` tells limits of one scope apart."""
        name = self._scope or _rule_name(scope)
        if number > 1:
            name = f"{name}.{number}"
        rule = self._rules.get(name)
        if rule is None:
            rule = self._rules[name] = self._build(name)
        return rule

    async def __call__(
        self, connection: HTTPConnection, response: Response, identity: object = None
    ) -> None:
        scope = connection.scope
        identities: dict[str, Identify] = {}
        if self.dependency is not None:
            identities[_part(self.dependency)] = lambda _: _who(identity)
        rule = self._rule_on_route(scope)
        rules = self._alone.get(rule.name)
        if rules is None:
            rules = self._alone[rule.name] = OnRoute([(self.limiter, rule)])
        admission = await _admit(scope, rules, identities)
        if admission.refusal is not None:
            raise _error(scope, admission, admission.refusal)
        if SCOPE_KEY not in scope:
            _tell(response, admission)

    def _rule_on_route(self, scope: Scope) -> Rule:
        if self._scope is not None:
            return self.rule
        met: dict[RateLimit, int] = scope.setdefault(_MET_KEY, {})
        number = met.setdefault(self, len(met) + 1)
        # Beside its name, so that no @limit on the endpoint has the same one.
        return self.rule_for(f"{scope_of(scope.get('endpoint'))}()", number)


def limit(
    limit: "SomeLimits | Mapping[str, SomeLimits] | Ask[SomeLimits]",
    *,
    by: str | Sequence[str] = "client",
    **options: Unpack[LimitOptions],
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Limits an endpoint: put it *below* the route decorator.

    ``limit`` is text (``"5/minute; 100/day"``), ready-made limits, a mapping of tiers to those
    (``tier`` says who chooses), or a function over the connection, sync or async, that gives one
    of those, or None for no limit. ``by`` says who is counted together; ``"path:NAME"`` is a
    parameter of the route. The other options are those of `LimitOptions`; ``cost``, ``tier`` and
    ``skip`` may be such functions, too.

    Routes that share a ``scope`` share their counters; without one an endpoint counts by its
    module and qualified name. ``limiter`` decides, else the innermost middleware around the route,
    else an in-process one of the library's, with a warning.

    Works on async and sync functions and methods, which need no ``request`` parameter. Several may
    be stacked; all of them are decided together, all or nothing.

    Raises ValueError or TypeError for options that make no rule, and RuntimeError where it stands
    above the route decorator and would never run.
    """
    one = RateLimit(limit, by=by, **options)
    if one.dependency is not None:
        raise TypeError(
            f"by names the dependency {_part(one.dependency)}, which FastAPI gives to "
            "Depends(RateLimit(...)) alone; on an endpoint, by is text"
        )

    def decorate(endpoint: Callable[P, R]) -> Callable[P, R]:
        refuse_misplaced(endpoint)
        function, inner = _LIMITED.get(endpoint, (endpoint, []))
        return _wrap(function, [*inner, one])

    return decorate


def exempt(endpoint: Callable[P, R]) -> Callable[P, R]:
    """Takes an endpoint out of every middleware's rules; limits of its own still apply."""
    function = innermost(endpoint)
    EXEMPT[id(function)] = function  # by identity, since not every endpoint can be hashed
    return endpoint


_LIMITED: Final[WeakKeyDictionary[Any, tuple[Any, list[RateLimit]]]] = WeakKeyDictionary()
"""The functions that `_wrap` made, and their inner ones: functools.wraps copies attributes."""


def limits_of(endpoint: Any) -> list[RateLimit]:
    """The limits that stand on an endpoint, seen through partials, wrappers and bound methods."""
    found: list[RateLimit] = []
    while endpoint is not None:
        endpoint = getattr(endpoint, "__func__", endpoint)
        try:
            found += _LIMITED.get(endpoint, (None, ()))[1]
        except TypeError:  # what cannot be hashed has not been limited
            return found
        if isinstance(endpoint, functools.partial):
            endpoint = endpoint.func
        else:
            endpoint = getattr(endpoint, "__wrapped__", None)
    return found


def _wrap(function: Callable[P, R], limits: list[RateLimit]) -> Callable[P, R]:
    scope_name = scope_of(function)
    names: dict[str, int] = {}
    named: list[tuple[RateLimiter | None, Rule]] = []
    for each in limits:
        name = each.rule_for(scope_name).name
        names[name] = names.get(name, 0) + 1
        named.append((each.limiter, each.rule_for(scope_name, names[name])))
    rules = OnRoute(named)
    awaits = is_async(function)
    signature, connection_name, response_name = with_injected(function)
    added = signature.parameters.keys() - inspect.signature(function).parameters.keys()

    @functools.wraps(function)
    async def limited(*args: Any, **kwargs: Any) -> Any:
        connection = response = None
        if kwargs:
            connection, response = kwargs.get(connection_name), kwargs.get(response_name)
            for name in added:
                kwargs.pop(name, None)
        if connection is None or not isinstance(connection, HTTPConnection):
            connection = _connection_in((*args, *kwargs.values()))
        if connection is None:
            raise RuntimeError(
                f"{scope_name} is limited, but was called without a request; call the function "
                "under @limit (its __wrapped__) where no request is meant, and put "
                "RateLimitMiddleware around an application of another framework"
            )
        scope = connection.scope
        admission = await _admit(scope, rules)
        if admission.refusal is not None:
            if isinstance(connection, WebSocket):
                receive, send = connection._receive, connection._send  # noqa: SLF001  # what its own methods are built on
                await answer(admission.limiter, admission.refusal, scope, receive, send)
                return None
            raise _error(scope, admission, admission.refusal)
        result: Any
        if awaits:
            result = await function(*args, **kwargs)  # type: ignore[misc]  # it is async
        else:
            result = await run_in_threadpool(function, *args, **kwargs)
            if inspect.isawaitable(result):  # of a plain function around an async one
                result = await result
        if SCOPE_KEY not in scope:
            told = result if isinstance(result, Response) else response
            if isinstance(told, Response):
                _tell(told, admission)
        return result

    limited.__signature__ = signature  # type: ignore[attr-defined]
    _LIMITED[limited] = function, limits
    return limited  # type: ignore[return-value]  # frameworks await what an endpoint returns


def _connection_in(values: Iterable[object]) -> HTTPConnection | None:
    """The connection among the values that an endpoint is called with."""
    for each in values:
        # Most often it is exactly that; to ask the abstract class costs ten times as much.
        if type(each) is Request or isinstance(each, HTTPConnection):
            return each
    return None


def _tell(response: Response, admission: Admission) -> None:
    """Sets the fields, rather than adding them: a response may be one that is returned again."""
    raw = response.raw_headers
    for field in admission.headers():
        name, value = field
        for known, _ in raw:
            if known == name:
                response.headers[name.decode()] = value.decode()
                break
        else:
            raw.append(field)


class OnRoute:
    """The rules on a route, by the limiter that decides them."""

    def __init__(self, rules: Iterable[tuple[RateLimiter | None, Rule]]) -> None:
        self._rules = tuple(rules)
        self._last: tuple[RateLimiter | None, Sequence[tuple[RateLimiter, Sequence[Rule]]]]
        self._last = None, ()
        self.asks_route = any("route" in rule.by for _, rule in self._rules)
        """Whether a rule counts by the route."""

    def by_limiter(self, outer: RateLimiter | None) -> Sequence[tuple[RateLimiter, Sequence[Rule]]]:
        """Each limiter with its rules, in order; ``outer`` is the one of the middleware around."""
        last, groups = self._last
        if last is not outer or not groups:
            found: dict[int, tuple[RateLimiter, list[Rule]]] = {}
            for own, rule in self._rules:
                limiter = own or outer or _fallback()
                found.setdefault(id(limiter), (limiter, []))[1].append(rule)
            groups = [*found.values()]
            self._last = outer, groups
        return groups


async def _admit(
    scope: Scope,
    rules: OnRoute,
    identities: Mapping[str, Identify] = {},  # only read
) -> Admission:
    """Decides a route's rules, each by its own limiter, and waits for the request's turn.

    Without a middleware around it, the first limit of a route leaves its admission for the next,
    so that a later refusal gives back what an earlier one took.
    """
    outer: Admission | None = scope.get(SCOPE_KEY)
    admission = outer or scope.get(ROUTE_KEY)
    route = functools.partial(_scope_of_endpoint, scope) if rules.asks_route else None
    delay_us = 0
    for limiter, own in rules.by_limiter(outer.limiter if outer else None):
        if admission is None:
            admission = scope[ROUTE_KEY] = Admission(limiter, None)
        limiter.check_registered(own, known=identities)
        await limiter.decide(admission, scope, own, route=route, identities=identities)
        if admission.refusal is not None:
            admission.limiter = limiter  # it has refused, so it answers
            await admission.give_back()
            return admission
        delay_us = max(delay_us, admission.delay_us)
    if admission is None:
        raise RuntimeError("a route's limit was asked without a rule")
    admission.delay_us = 0
    if delay_us:
        await anyio.sleep(delay_us / 1_000_000)
    return admission


def _scope_of_endpoint(scope: Scope) -> str:
    return scope_of(scope.get("endpoint"))


def _error(scope: Scope, admission: Admission, refusal: Refusal) -> Refused:
    """The exception for a refusal; makes sure that somebody will answer it."""
    handlers = scope.get("starlette.exception_handlers")
    if handlers is not None:
        register_refused(*handlers)
    if refusal.status == 429:
        return RateLimitExceeded(admission.told, admission.dialects, refusal=refusal)
    return Refused(refusal)


@functools.cache
def _fallback() -> RateLimiter:
    _LOG.warning(
        "no-limiter: a route is limited, but there is no RateLimitMiddleware around it and no "
        "limiter= beside it; it is counted in this process alone"
    )
    return RateLimiter()


def _rule_name(scope: str) -> str:
    """A name that clients may see: the function's, and a digest of where it is."""
    label = re.sub("[^A-Za-z0-9_]", "", scope.rpartition(".")[2])[:40].lstrip("_0123456789")
    digest = urlsafe_b64encode(blake2b(scope.encode(), digest_size=6).digest()).decode()
    return f"{label or 'route'}.{digest.replace('=', '')}"


def _parts(by: object) -> tuple[Any, Dependency | None]:
    """The ``by`` that a rule is given, and the dependency among its parts."""
    if isinstance(by, str) or not (callable(by) or isinstance(by, Sequence)):
        return by, None
    parts = (by,) if callable(by) else by
    dependencies = [each for each in parts if callable(each)]
    if len(dependencies) > 1:
        raise TypeError(
            f"by names {len(dependencies)} dependencies; it may name one, which can depend on more"
        )
    names = [_part(each) if callable(each) else each for each in parts]
    return names, dependencies[0] if dependencies else None


def _part(dependency: Dependency) -> str:
    """The name of a dependency among the parts of ``by``."""
    name = scope_of(dependency).rpartition(".")[2].lower()
    return "depends_" + re.sub("[^a-z0-9_]", "_", name)[:50]


def _signature(dependency: Dependency | None) -> inspect.Signature:
    """The parameters that FastAPI is to pass: connection, response, and the dependency's value."""
    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [
        inspect.Parameter("connection", keyword, annotation=HTTPConnection),
        inspect.Parameter("response", keyword, annotation=Response),
    ]
    if dependency is not None:
        from fastapi import Depends  # noqa: PLC0415  # an extra, which only this needs

        parameters.append(inspect.Parameter("identity", keyword, default=Depends(dependency)))
    return inspect.Signature(parameters)


def _who(value: object) -> str | None:
    """The identity in a dependency's result, read as a user is; None for nobody."""
    found = user_id(value)
    if found is None and not is_nobody(value):
        raise TypeError(
            f"a dependency named in by gave {type(value).__name__}; it gives {READABLE}"
        )
    return found
