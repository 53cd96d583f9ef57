"""The answers of limits in the OpenAPI of a FastAPI application."""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from ratelimit.asgi.decorators import RateLimit
from ratelimit.asgi.routing import flat
from ratelimit.asgi.start import limits_on

__all__ = ["RESPONSES", "document"]

_PROBLEM: Final[dict[str, Any]] = {
    "type": "object",
    "description": "Problem details (RFC 9457)",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string", "format": "uri"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
    },
}


def _response(description: str, schema: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    content = {"application/problem+json": {"schema": schema}}
    return {"description": description, "content": content, **more}


RESPONSES: Final[dict[int | str, dict[str, Any]]] = {
    429: _response(
        "Too Many Requests",
        {
            **_PROBLEM,
            "properties": {
                **_PROBLEM["properties"],
                "violated-policies": {"type": "array", "items": {"type": "string"}},
            },
        },
        headers={
            "Retry-After": {
                "description": "Seconds to wait; absent where no wait will help",
                "schema": {"type": "integer", "minimum": 0},
            },
        },
    ),
    503: _response("The request could not be counted, and may not pass uncounted", _PROBLEM),
    403: _response("The request does not say who is asking", _PROBLEM),
}
"""The answers of a limit, by status, for ``responses=`` of an application, a router or a route."""


def document(app: Any) -> None:
    """Adds the answers of limits to the OpenAPI of each route of ``app`` that has limits.

    Those of `@limit` on its endpoint and of ``Depends(RateLimit(...))`` on it, on its routers or on
    the application: 429; 503 where ``on_store_failure="deny"`` stands there, or in the rules of a
    ``limiter`` of its own; 403 where ``on_missing="refuse"`` stands there. What an endpoint
    documents itself is kept. Rules of a middleware are not looked at; for these, pass `RESPONSES`
    where FastAPI takes ``responses``.

    ``app`` is a FastAPI application, and its ``openapi`` is replaced in the way that FastAPI's
    documentation describes; routes that are added later are documented as well.
    """
    describe = app.openapi

    def openapi() -> dict[str, Any]:
        schema: dict[str, Any] = describe()
        for route in flat(app.routes):
            operations = schema.get("paths", {}).get(getattr(route, "path_format", None), {})
            found = {status for each in limits_on(route) for status in _answers_of(each)}
            for method in getattr(route, "methods", None) or ():
                if method.lower() in operations:
                    responses = operations[method.lower()].setdefault("responses", {})
                    for status in sorted(found):
                        responses.setdefault(str(status), RESPONSES[status])
        return schema

    app.openapi = openapi


def _answers_of(limit: RateLimit) -> Iterable[int]:
    rule, limiter = limit.rule, limit.limiter
    if rule.mode == "enforce":
        yield 429
        if (rule.on_store_failure or (limiter and limiter.rules.on_store_failure)) == "deny":
            yield 503
        if rule.on_missing == "refuse":
            yield 403
