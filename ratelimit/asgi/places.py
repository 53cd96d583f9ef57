"""Endpoints in the routes of an application: where one stands, and which limiter stands around it.

The law of this module: two endpoints are never one, and one is the same in every worker. So an
endpoint is the object that the router chooses, and it is named by the path of its route, which is
the same wherever the application's modules are loaded, in whatever order and however often.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, Generic, NamedTuple, TypeVar
from weakref import ref

from starlette.routing import Host, Mount, WebSocketRoute

from ratelimit.asgi.routing import flat
from ratelimit.limiter.limiter import RateLimiter

__all__ = ["NOTHING", "OfEndpoint", "Placed", "Readers", "beneath", "place_of", "placed", "readers"]

T = TypeVar("T")

_MOST: Final = 10_000
"""Endpoints of which something is kept; there are as many as an application has routes."""


class Placed(NamedTuple):
    """A route of an application, also of one that is mounted in it."""

    template: str
    """Its path with all prefixes, as the application has written it."""
    route: Any
    limiter: RateLimiter | None
    """That of the innermost middleware around it."""


def beneath(app: Any, limiter: RateLimiter | None) -> tuple[Any, RateLimiter | None]:
    """The object with the routes behind any middlewares, and the innermost limiter in front of it.

    None where a middleware hides it; ``limiter`` is the one further out.
    """
    while app is not None and not hasattr(app, "routes"):
        around = getattr(app, "limiter", None)
        limiter = around if isinstance(around, RateLimiter) else limiter
        app = getattr(app, "app", None)
    # An application puts its own middlewares together when it is first asked.
    for waiting in getattr(app, "user_middleware", ()):
        for value in (*waiting.args, *waiting.kwargs.values()):
            limiter = value if isinstance(value, RateLimiter) else limiter
    return app, limiter


def placed(
    routes: Any, limiter: RateLimiter | None = None, prefix: str = "", seen: tuple[Any, ...] = ()
) -> Iterator[Placed]:
    """Every route among ``routes`` and in what is mounted there, as far as it can be seen."""
    for route in flat(routes or ()):
        inner, around = beneath(getattr(route, "app", None), limiter)
        path = prefix + getattr(route, "path", "")
        if not isinstance(route, Mount | Host):
            yield Placed(path, route, around)
        elif not any(each is route for each in seen):
            if isinstance(route, Host):
                path = f"{prefix}//{route.host}"
            below = getattr(inner, "routes", None) or route.routes
            yield from placed(below, around, path, (*seen, route))


class Readers(NamedTuple):
    """Readers of paths further in than a middleware, which read them in another way."""

    files: bool
    """Whether some of it is no route, such as a folder, which takes ``/a/`` for ``/a``."""
    roots: frozenset[str]
    """The `root_path` that applications set for themselves (``FastAPI(root_path=...)``)."""


NOTHING: Final = Readers(False, frozenset())


def readers(app: Any, seen: tuple[Any, ...] = ()) -> Readers:
    """The parts of an application that read paths in another way than a middleware around it."""
    inner, _ = beneath(app, None)
    if not hasattr(inner, "routes"):
        return Readers(True, frozenset())
    files, roots = False, {getattr(inner, "root_path", "")}
    # FastAPI keeps the files of a frontend there, and lists them nowhere.
    for each in (inner, getattr(inner, "router", None), *inner.routes):
        files |= bool(getattr(getattr(each, "original_router", each), "_low_priority_routes", ()))
    for each in flat(inner.routes):
        if isinstance(each, Mount | Host) and not any(each is one for one in seen):
            hidden = each.routes and not hasattr(beneath(each.app, None)[0], "routes")
            below = readers(each if hidden else each.app, (*seen, each))
            files |= below.files
            if not getattr(each, "path", ""):
                roots |= below.roots
    return Readers(files, frozenset(root for root in roots if isinstance(root, str) and root))


def place_of(scope: Mapping[str, Any]) -> str:
    """The route that leads to a request's endpoint, as text; of several the first by its text.

    Empty where no router that the scope names knows the endpoint.
    """
    endpoint = scope.get("endpoint")
    for router in () if endpoint is None else (scope.get("router"), scope.get("app")):
        known = [
            f"{template} {_kind(route)}"
            for template, route, _ in placed(getattr(router, "routes", None))
            if _same(getattr(route, "endpoint", None), endpoint)
        ]
        if known:
            return min(known)
    return ""


def _kind(route: Any) -> str:
    if isinstance(route, WebSocketRoute):
        return "websocket"
    return ",".join(sorted(getattr(route, "methods", None) or ["*"]))


def _same(one: object, other: object) -> bool:
    """Whether two are one object; a bound method is made anew whenever it is asked for."""
    return one is other or (inspect.ismethod(one) and one == other)


class OfEndpoint(Generic[T]):
    """Remembers what ``find`` gives for the endpoint that a request has reached."""

    def __init__(self, find: Callable[[Mapping[str, Any]], T]) -> None:
        self._find = find
        self._known: dict[tuple[int, int], tuple[ref[Any], ref[Any], T]] = {}

    def __call__(self, scope: Mapping[str, Any]) -> T:
        """Gives what was found; never that of another router, or of an endpoint that is gone."""
        router, endpoint = scope.get("router") or scope.get("app"), scope.get("endpoint")
        name = id(router), id(endpoint)
        kept = self._known.get(name)
        if kept is not None and kept[0]() is router and kept[1]() is endpoint:
            return kept[2]
        found = self._find(scope)
        try:
            kept = ref(router), ref(endpoint), found
        except TypeError:  # None, and what has no place for weak references
            return found
        if len(self._known) >= _MOST:
            self._known.clear()
        self._known[name] = kept
        return found
