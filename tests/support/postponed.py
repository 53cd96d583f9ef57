"""Endpoints whose annotations are text, as ``from __future__ import annotations`` makes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import Depends, Query
from starlette.requests import Request
from starlette.responses import Response


def who(request: Request) -> str:
    return request.headers.get("x-user", "nobody")


def endpoints() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """New functions each time, since one that is routed already cannot be limited."""

    async def endpoint(
        name: str, request: Request, response: Response, user: Annotated[str, Depends(who)]
    ) -> dict[str, str]:
        response.headers["x-name"] = name
        return {"name": name, "path": request.url.path, "user": user}

    def sync_endpoint(
        response: Annotated[Response, "filled by FastAPI"], page: Annotated[int, Query(ge=0)] = 1
    ) -> int:
        response.headers["x-page"] = str(page)
        return page

    return endpoint, sync_endpoint
