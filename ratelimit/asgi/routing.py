"""The route that a request will meet, found before the router runs.

Starlette writes the route into the scope only once it has routed, so the routes are asked here as
the router will ask them. FastAPI 0.137 and later keep included routers as a tree whose nodes match
without naming their endpoint; each node lists its routes through `effective_route_contexts`.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple
from weakref import WeakSet

from starlette.routing import Host, Match, Mount

from ratelimit.rules.rule import Rule

__all__ = [
    "EXEMPT",
    "PRIORITIZED",
    "Ahead",
    "Below",
    "Resolved",
    "below",
    "innermost",
    "resolve",
    "router_below",
]

EXEMPT: Final[dict[int, Any]] = {}
"""Innermost functions of the endpoints that no middleware limits; `@exempt` adds to it."""


PRIORITIZED: Final[WeakSet[Any]] = WeakSet()
"""The limits on routes that have a priority; `RateLimit` adds to it."""


class Resolved(NamedTuple):
    """A route as its application knows it."""

    template: str
    """The path with its prefixes and parameters by name: ``/v1/items/{item_id}``."""
    endpoint: Any
    """The function or object that will answer; None where it cannot be told."""
    route: Any = None
    """The route itself; None where the application below has no routes to see."""


class Below(NamedTuple):
    """The routes further in than a middleware, and where the middleware stands."""

    routes: Sequence[Any]
    root: str
    """The `root_path` that requests to them have."""
    prefix: str
    """The start of every template: the path of the mounts further out. Empty where that path cannot
    be told from text that a client has written."""


def router_below(app: Any) -> Any:
    """The object with the routes, behind any middlewares; None where one of them hides it."""
    while app is not None and not hasattr(app, "routes"):
        app = getattr(app, "app", None)
    return app


def below(router: Any, scope: Mapping[str, Any]) -> Any:
    """The routes that `resolve` searches for a request: those of the ``router`` further in.

    Without a router, those of the application that the scope names.
    """
    if router is None:
        return scope.get("app")
    root = scope.get("root_path", "")
    mounted = "app_root_path" in scope and not scope.get("path_params")
    prefix = root[len(scope["app_root_path"]) :] if mounted else ""
    # FastAPI puts its own root_path in the place of the server's.
    return Below(router.routes, getattr(router, "root_path", "") or root, prefix)


def resolve(app: Any, scope: Mapping[str, Any]) -> Resolved | None:
    """The route that ``app`` will choose for a request, or None where it will choose none.

    ``app`` is what `below` gave, or anything with Starlette's ``routes``. A method that a path does
    not take counts as that path's.
    """
    root = scope.get("app_root_path", scope.get("root_path", ""))
    prefix, routes = "", getattr(app, "routes", None) or []
    if isinstance(app, Below):
        _, root, prefix = app
    scope = {**scope, "root_path": root}
    while True:
        full = partial = None
        for route in flat(routes):
            try:
                match, child = route.matches(scope)
            except Exception:  # noqa: BLE001  # a convertor (5,000 digits); the router fails alike
                return None
            if match is Match.FULL:
                full = route, child
                break
            if match is Match.PARTIAL and partial is None:
                partial = route, child
        found = full or partial
        if found is None:
            return None
        route, child = found
        if not isinstance(route, Mount | Host):
            return Resolved(prefix + route.path_format, child.get("endpoint"), route)
        if isinstance(route, Mount):
            prefix += route.path
        if not route.routes:
            return Resolved(prefix + "/{path}", route.app)
        scope.update(child)
        routes = route.routes


def flat(routes: Any) -> Iterator[Any]:
    """The routes themselves, also those that FastAPI keeps by the router that was included."""
    for route in routes:
        contexts = getattr(route, "effective_route_contexts", None)
        if contexts is None:
            yield route
        else:
            for context in contexts():
                yield context.starlette_route or context


def innermost(endpoint: Any) -> Any:
    """The plain function of an endpoint, seen through partials, wrappers and bound methods."""
    while True:
        if isinstance(endpoint, functools.partial):
            endpoint = endpoint.func
        elif hasattr(endpoint, "__wrapped__"):
            endpoint = endpoint.__wrapped__
        else:
            return getattr(endpoint, "__func__", endpoint)


def _no_rules(_: Any) -> Sequence[Rule]:
    return ()


class Ahead:
    """The route that a request will meet in ``app``, looked up when it is first asked for.

    ``rules_on`` gives the rules that stand on a route itself.
    """

    def __init__(
        self,
        app: Any,
        scope: Mapping[str, Any],
        rules_on: Callable[[Any], Sequence[Rule]] = _no_rules,
    ) -> None:
        self._app = app
        self._scope = scope
        self._rules_on = rules_on

    @functools.cached_property
    def _resolved(self) -> Resolved | None:
        return resolve(self._app, self._scope)

    @property
    def template(self) -> str | None:
        """The route's path with its prefixes, parameters by name; None where there is none."""
        return self._resolved.template if self._resolved else None

    @property
    def rules(self) -> Sequence[Rule]:
        """The limits on the route itself, and among its dependencies, as far as they are seen."""
        if not PRIORITIZED or self._resolved is None:
            return ()
        method = self._scope.get("method", "GET")
        return [
            rule
            for rule in self._rules_on(self._resolved.route)
            if rule.mode != "off" and (rule.methods is None or method in rule.methods)
        ]

    @property
    def is_exempt(self) -> bool:
        """Whether ``@exempt`` stands at its endpoint, or at the method that will answer."""
        if not EXEMPT or self._resolved is None:
            return False
        endpoint = self._resolved.endpoint
        if isinstance(endpoint, type):  # an HTTPEndpoint, of which a method may be exempt
            method = self._scope.get("method", "").lower()
            if method == "head" and not hasattr(endpoint, "head"):
                method = "get"
            handler = getattr(endpoint, method, None)
            if handler is not None and id(innermost(handler)) in EXEMPT:
                return True
        return id(innermost(endpoint)) in EXEMPT
