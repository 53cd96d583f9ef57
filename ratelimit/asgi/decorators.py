"""Limits on a route: `@limit` and `@exempt` on endpoints, `RateLimit` for FastAPI's `Depends`."""

import asyncio
import functools
import inspect
import logging
import re
from base64 import urlsafe_b64encode
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from hashlib import blake2b
from typing import Any, Final, NamedTuple, ParamSpec, TypeVar, Unpack
from weakref import WeakKeyDictionary

from starlette.concurrency import run_in_threadpool
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.websockets import WebSocket

from ratelimit.asgi.answer import ROUTE_KEY, SCOPE_KEY, answer, register_refused
from ratelimit.asgi.ending import ended, raised, returned, unseen
from ratelimit.asgi.endpoints import (
    awaited,
    is_async,
    layers,
    readable,
    refuse_misplaced,
    scope_of,
    with_injected,
)
from ratelimit.asgi.places import OfEndpoint, place_of
from ratelimit.asgi.routing import EXEMPT, PRIORITIZED, Ahead, innermost
from ratelimit.asgi.sockets import called_here, charged, limited_here
from ratelimit.asgi.waiting import take_turn
from ratelimit.identity.connections import CONNECTION_KEY, Ask
from ratelimit.identity.keys import Identify
from ratelimit.identity.users import READABLE, is_nobody, user_id
from ratelimit.limiter.admission import Admission
from ratelimit.limiter.limiter import RateLimiter, off_by_environment
from ratelimit.limiter.settling.reserving import Reservation
from ratelimit.responses.headers import RateLimitExceeded, Refusal, Refused
from ratelimit.rules.options import RouteOptions
from ratelimit.rules.reading import refuse_unknown
from ratelimit.rules.route_rule import RouteRule
from ratelimit.rules.rule import Rule
from ratelimit.rules.values import SomeLimits

__all__ = ["LimitOptions", "RateLimit", "exempt", "limit", "limits_of"]

P = ParamSpec("P")
R = TypeVar("R")
Scope = MutableMapping[str, Any]
Dependency = Callable[..., Any]

_LOG: Final = logging.getLogger("ratelimit")

_MOST_TOGETHER: Final = 10_000
"""Lists of rules that are kept; an application has as many as limited endpoints."""

_MET_KEY: Final = "ratelimit.met"
"""Scope key of the limits that a request has met on its route, by name in lower case."""

_DEPENDS_KEY: Final = "ratelimit.depends"
"""Scope key of those among them that are dependencies, in the order of the route."""


class _Met(NamedTuple):
    """One limit that a request meets."""

    limit: "RateLimit"
    name: str
    counter: str


class LimitOptions(RouteOptions, total=False):
    """The options that `limit` and `RateLimit` take beside the limit and ``by``."""

    name: str | None
    """The name that clients, logs and commands see; else the scope, else the function's own."""
    scope: str | None
    """Routes that share a scope share their counters."""
    limiter: RateLimiter | None
    """The limiter that decides; else that of the middleware around, else one of the library's."""


class RateLimit:
    """A limit as a FastAPI dependency: ``Depends(RateLimit("5/minute"))``.

    On a route, a router or the whole application; each endpoint counts by itself unless ``scope``
    names what they share. ``limit`` and the options are those of `limit`, and ``by`` may be, or
    hold, one dependency of the application's: ``by=current_user`` counts by what
    ``Depends(current_user)`` gives, which FastAPI resolves once per request. That is text, a whole
    number or a UUID, or an object or a mapping that has one as its ``identity``, ``id``, ``pk``,
    ``sub``, ``uuid`` or ``username``, the first that is there. None, an empty text and a user who
    is not authenticated are a missing identity (``on_missing``).

    With a ``unit``, such as "tokens", it gives a `Reservation`: ``cost`` is the estimate, a number
    or a function over the request (which may read its body), and the endpoint commits what it
    turns out to cost.

    Raises RateLimitExceeded when called, and what `limit` raises when built.
    """

    def __init__(
        self,
        limit: "SomeLimits | Mapping[str, SomeLimits] | Ask[SomeLimits]" = None,
        *,
        by: str | Dependency | Sequence[str | Dependency] = "client",
        **options: Unpack[LimitOptions],
    ) -> None:
        refuse_unknown("a limit", options, {"by", *LimitOptions.__optional_keys__})
        of_rule: dict[str, Any] = dict(options)
        self.limiter: RateLimiter | None = of_rule.pop("limiter", None)
        if not isinstance(self.limiter, RateLimiter | None):
            raise TypeError(f"limiter is a RateLimiter, not {type(self.limiter).__name__}")
        self.scope: str | None = of_rule.pop("scope", None)
        self._reserves = "unit" in options
        self.name: str | None = of_rule.pop("name", None)
        """The name that clients see; None for the scope, or that of the endpoint."""
        names, self.dependency = _parts(by)
        self._rules: dict[tuple[str, str], Rule] = {}
        self._build: Callable[[str, str], Rule] = lambda name, counter: RouteRule(
            name, limit, by=names, counter=counter, **of_rule
        )
        # A mistake is told where it is made.
        for name in ("anything", self.scope, self.name):
            if name is not None:
                self.rule = self.rule_for(name, "~")
        if self.rule.priority is not None:
            PRIORITIZED.add(self)
        self.__signature__ = _signature(self.dependency)
        self._met = OfEndpoint(self._on_endpoint)

    @property
    def known(self) -> tuple[str, ...]:
        """The part of ``by`` that its dependency gives, whatever the limiter has registered."""
        return () if self.dependency is None else (_part(self.dependency),)

    @property
    def is_off(self) -> bool:
        """Whether nothing is limited by it, as far as that can be told without a request."""
        if self.limiter is not None:
            return not (self.limiter.enabled and RateLimiter.everywhere)
        return off_by_environment() or not RateLimiter.everywhere

    def rule_for(self, name: str, counter: str) -> Rule:
        """The rule of this limit under a name, counted under a text."""
        rule = self._rules.get((name, counter))
        if rule is None:
            rule = self._rules[name, counter] = self._build(name, counter)
        return rule

    def met(self, endpoint: Any, place: str, number: int) -> _Met:
        """This limit as it is met on an endpoint; ``number`` tells limits of one endpoint apart."""
        name = self.name or self.scope or readable(endpoint)
        if self.scope is not None:
            return _Met(self, name, f"{self.scope}~{number if number > 1 else ''}")
        where = f"{scope_of(endpoint)}\0{place}\0{number}"
        digest = urlsafe_b64encode(blake2b(where.encode(), digest_size=6).digest()).decode()
        return _Met(self, name, f"{name}~{digest}")

    async def __call__(
        self, connection: HTTPConnection, response: Response, identity: object = None
    ) -> Reservation | None:
        scope = connection.scope
        identities: dict[str, Identify] = {name: lambda _: _who(identity) for name in self.known}
        before = scope.setdefault(_DEPENDS_KEY, [])
        if self not in before:
            before.append(self)
        admission: Admission | None = scope.get(SCOPE_KEY) or scope.get(ROUTE_KEY)
        passed = len(admission.passed) if admission else 0
        if self._reserves:
            scope[CONNECTION_KEY] = connection  # whose body an estimate may read
        try:
            admission = await _admit(connection, [self._met(scope)], identities)
            if admission.refusal is not None:
                raise _error(scope, admission, admission.refusal)
            reservation = None
            if self._reserves:
                reservation = await self._reserved(admission, passed, scope)
        finally:
            scope.pop(CONNECTION_KEY, None)
        if self.rule.websocket is not None and isinstance(connection, WebSocket):
            limited_here(connection, admission, passed)
        if SCOPE_KEY not in scope:
            _tell(response, admission)
            if admission.held:
                if self.rule.charge is not None and not limits_of(scope.get("endpoint")):
                    _say_unsettled()
                _end_with_call(admission, scope)
        return reservation

    async def _reserved(self, admission: Admission, passed: int, scope: Scope) -> Reservation:
        """The reservation of what was charged since so many others had passed."""
        made = admission.passed[passed:]
        reservation: Reservation
        if made:
            limiter, *charges = made[0]
            reservation = limiter.reserved(charges)
        else:
            reservation = await (self.limiter or admission.limiter).unreserved(self.rule, scope)
        reservation.by_response = SCOPE_KEY in scope
        admission.held.append(reservation)
        return reservation

    def _on_endpoint(self, scope: Mapping[str, Any]) -> _Met:
        number = 1 if self.scope else scope[_DEPENDS_KEY].index(self) + 1
        return self.met(scope.get("endpoint"), f"{place_of(scope)} depends", number)


def limit(
    limit: "SomeLimits | Mapping[str, SomeLimits] | Ask[SomeLimits]" = None,
    *,
    by: str | Sequence[str] = "client",
    **options: Unpack[LimitOptions],
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Limits an endpoint: put it *below* the route decorator.

    ``limit`` is text (``"5/minute; 100/day"``), ready-made limits, a mapping of tiers to those
    (``tier`` says who chooses), or a function over the connection, sync or async, that gives one
    of those, or None for no limit; it may be left out beside a ``concurrency``. ``by`` says who is
    counted together; ``"path:NAME"`` is a parameter of the route. The other options are those of
    `LimitOptions`; ``cost``, ``tier`` and ``skip`` may be such functions, too.

    Routes that share a ``scope`` share their counters; without one each endpoint, which is the
    object that the router calls, counts by itself. ``name`` is what clients, logs and commands see
    of the limit; without one it is the scope, or the function's own name. ``limiter`` decides, else
    the innermost middleware around the route, else an in-process one of the library's, with a
    warning.

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
    """Takes an endpoint out of every middleware's rules; limits of its own still apply.

    Raises TypeError for what cannot be called.
    """
    if not callable(endpoint):
        raise TypeError(f"@exempt goes on an endpoint, not on {type(endpoint).__name__}")
    function = innermost(endpoint)
    EXEMPT[id(function)] = function  # by identity, since not every endpoint can be hashed
    return endpoint


_LIMITED: Final[WeakKeyDictionary[Any, tuple[Any, list[RateLimit]]]] = WeakKeyDictionary()
"""The functions that `_wrap` made, and their inner ones: functools.wraps copies attributes."""


def limits_of(endpoint: Any) -> list[RateLimit]:
    """The limits that stand on an endpoint, seen through partials, wrappers and bound methods."""
    found: list[RateLimit] = []
    for each in layers(endpoint):
        try:
            found += _LIMITED.get(each, (None, ()))[1]
        except TypeError:  # what cannot be hashed has not been limited
            continue
    return found


_DEFINED: Final[Counter[str]] = Counter()
"""The number of limited functions of each qualified name."""


def _wrap(  # noqa: PLR0915  # what it knows of a function, the functions in it share
    function: Callable[P, R], limits: list[RateLimit]
) -> Callable[P, R]:
    scope_name = scope_of(function)
    _DEFINED[scope_name] += 1
    awaits = is_async(function)
    limits_messages = awaits and any(each.rule.websocket is not None for each in limits)
    signature, connection_name, response_name = with_injected(function)
    added = signature.parameters.keys() - inspect.signature(function).parameters.keys()

    def on_endpoint(scope: Mapping[str, Any]) -> list[_Met]:
        # A function that endpoints call is no endpoint: it counts by itself, for all of them. Only
        # where there are several of its name, it takes the endpoint to tell them apart.
        place = ""
        if _DEFINED[scope_name] > 1 or any(each is whole for each in layers(scope.get("endpoint"))):
            place = place_of(scope)
        met: list[_Met] = []
        counters: Counter[str | None] = Counter()
        for each in limits:
            counters[each.scope] += 1
            met.append(each.met(function, place, counters[each.scope]))
        return met

    met = OfEndpoint(on_endpoint)

    def find_connection(args: Any, kwargs: Any) -> HTTPConnection | None:
        given = kwargs.get(connection_name) if kwargs else None
        for each in (given, *args, *kwargs.values()):
            # Most often it is exactly that; to ask the abstract class costs ten times as much.
            if type(each) is Request or isinstance(each, HTTPConnection):
                return each
        return None

    async def limited(  # noqa: PLR0912  # one step after the other
        connection: HTTPConnection, *args: Any, **kwargs: Any
    ) -> Any:
        response = None
        if kwargs:
            response = kwargs.get(response_name)
            for name in added:
                kwargs.pop(name, None)
        scope = connection.scope
        before = charged(scope) if limits_messages else 0
        admission = await _admit(connection, met(scope))
        if admission.refusal is not None:
            if isinstance(connection, WebSocket):
                receive, send = connection._receive, connection._send  # noqa: SLF001  # what its own methods are built on
                await answer(admission.limiter, admission.refusal, scope, receive, send)
                return None
            raise _error(scope, admission, admission.refusal)
        result: Any
        try:
            if awaits:
                called: Any = function(*args, **kwargs)
                if limits_messages and isinstance(connection, WebSocket):
                    called = called_here(connection, admission, before, called)
                result = await called
            else:
                result = await run_in_threadpool(function, *args, **kwargs)
                if inspect.isawaitable(result):  # of a plain function around an async one
                    result = await result
        except BaseException as error:
            if admission.held and SCOPE_KEY not in scope:
                await raised(admission, error, scope)
            raise
        if SCOPE_KEY not in scope:
            told = result if isinstance(result, Response) else response
            if admission.held:
                await returned(admission, scope, told)
            if isinstance(told, Response):
                _tell(told, admission)
        return result

    def enter(args: Any, kwargs: Any) -> Any:
        connection = find_connection(args, kwargs)
        if connection is not None:
            return limited(connection, *args, **kwargs)
        if all(each.is_off for each in limits):
            return function(*args, **kwargs)
        raise RuntimeError(
            f"{scope_name} is limited, but was called without a request; where none is meant, turn "
            "limits off (ratelimit.testing.disabled()) or call the function under @limit (its "
            "__wrapped__); put RateLimitMiddleware around an application of another framework"
        )

    whole: Any
    if awaits:

        @functools.wraps(function)
        async def whole(*args: Any, **kwargs: Any) -> Any:
            return await enter(args, kwargs)

    else:  # without limits a plain function gives what it always gives, not an awaitable

        @functools.wraps(function)
        def whole(*args: Any, **kwargs: Any) -> Any:
            return enter(args, kwargs)

        awaited(whole)
    whole.__signature__ = signature
    _LIMITED[whole] = function, limits
    return whole  # type: ignore[no-any-return]  # frameworks await what an endpoint returns


def _end_with_call(admission: Admission, scope: Scope) -> None:
    """Tells what a dependency holds when FastAPI is done with the request, its response unseen.

    FastAPI leaves the stack of what it closes then in the scope.
    """
    stack = scope.get("fastapi_inner_astack")
    if stack is None:
        raise RuntimeError(
            "a limit that depends on how a request ends was met by a dependency, and this FastAPI "
            "does not tell when that is; put RateLimitMiddleware around the application"
        )
    if not admission.ends:
        admission.ends = True

        async def end(_: object, error: BaseException | None, __: object) -> None:
            if error is None:
                unseen(admission)
            else:
                await raised(admission, error, scope)

        stack.push_async_exit(end)


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


async def _admit(
    connection: HTTPConnection,
    limits: Iterable[_Met],
    identities: Mapping[str, Identify] = {},  # only read
) -> Admission:
    """Decides a route's rules, each by its own limiter, and waits for the request's turn.

    Without a middleware around it, the first limit of a route leaves its admission for the next,
    so that a later refusal gives back what an earlier one took.
    """
    scope = connection.scope
    outer: Admission | None = scope.get(SCOPE_KEY)
    admission = outer or scope.get(ROUTE_KEY)
    route = None
    groups: dict[int, tuple[RateLimiter, list[Rule]]] = {}
    for met in limits:
        limiter = met.limit.limiter or (outer.limiter if outer else _fallback())
        rule = met.limit.rule_for(_name_here(met, limiter, scope), met.counter)
        if "route" in rule.by:
            route = functools.partial(_route_of, scope)
        groups.setdefault(id(limiter), (limiter, []))[1].append(rule)
    waiting = 0
    for limiter, rules in groups.values():
        own = _together(rules)
        waiting += limiter.waits.count
        if admission is None:
            ahead = Ahead(scope.get("app"), scope) if limiter.events.has_listener else None
            admission = scope[ROUTE_KEY] = Admission(limiter, ahead)
        limiter.check_registered(own, known=identities)
        await limiter.decide(admission, scope, own, route=route, identities=identities)
        if admission.refusal is not None:
            admission.limiter = limiter  # it has refused, so it answers
            await admission.give_back()
            return admission
    if admission is None:
        raise RuntimeError("a route's limit was asked without a rule")
    if admission.turns or waiting:
        receive = getattr(connection, "_receive", _nothing)  # a bare connection has none
        try:
            received = await take_turn(admission, receive)
        except BaseException as error:
            if outer is None:
                ended(admission, error)
            raise
        if received is not receive and receive is not _nothing:
            connection._receive = received  # type: ignore[attr-defined]  # noqa: SLF001  # its own methods read by it
    return admission


async def _nothing() -> Any:
    await asyncio.Event().wait()


def _name_here(met: _Met, limiter: RateLimiter, scope: Scope) -> str:
    """The name of a limit in this request, in which no other limit or rule has it."""
    names: dict[str, _Met] = scope.setdefault(_MET_KEY, {})
    name, number = met.name, 1
    while name.lower() in limiter.names or (
        (before := names.setdefault(name.lower(), met)) != met and not _is_same(before, met, name)
    ):
        number += 1
        name = f"{met.name[:60]}.{number}"
    return name


def _is_same(before: _Met, met: _Met, name: str) -> bool:
    """Whether both are one rule, be it written down twice: equal by value, and in one scope.

    Not where it reserves: an endpoint commits what it was given by its own.
    """
    one, other = before.limit, met.limit
    return (
        before.counter == met.counter
        and one.limiter is other.limiter
        and not (one._reserves or other._reserves)  # noqa: SLF001  # this module's own
        and one.rule_for(name, met.counter) == other.rule_for(name, met.counter)
    )


_TOGETHER: Final[dict[tuple[int, ...], list[Rule]]] = {}


def _together(rules: list[Rule]) -> list[Rule]:
    """The one list of these rules, by which a limiter remembers what it has prepared for them."""
    if len(_TOGETHER) >= _MOST_TOGETHER:
        _TOGETHER.clear()
    return _TOGETHER.setdefault(tuple(map(id, rules)), rules)


def _route_of(scope: Scope) -> str:
    return place_of(scope) or scope_of(scope.get("endpoint"))


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


@functools.cache
def _say_unsettled() -> None:
    _LOG.warning(
        "charge-unsettled: a dependency charges by outcome, but there is no RateLimitMiddleware "
        "around its route, so nobody sees what an endpoint answers, and all but an exception keeps "
        "its charge"
    )


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
