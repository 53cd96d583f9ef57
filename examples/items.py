"""A FastAPI application that limits by each part of a request: header, path, query, cookie.

uvicorn --app-dir examples items:app
"""

from typing import Annotated

from fastapi import Cookie, FastAPI, Header, Path, Query
from pydantic import BaseModel

from ratelimit import RateLimiter, RateLimitMiddleware, Rule, limit

limiter = RateLimiter(
    [
        # What a client chooses itself gives it a new quota whenever it likes: a rule by the
        # client's address stands beside those that count by it.
        Rule("clients", "300/minute", by="client"),
        Rule("keys", "60/minute", by="header:x-api-key"),
        Rule("item", "30/minute", by=["client", "path:item_id"], path="/items/{item_id}"),
        Rule("search", "20/minute", by=["client", "query:q"], path="/search"),
        Rule("cart", "10/minute", by="cookie:cart", path="/cart", methods=["POST"]),
    ]
)
app = FastAPI()
app.add_middleware(RateLimitMiddleware, limiter=limiter)


class Order(BaseModel):
    """What is put into a cart."""

    item_id: int
    note: str = ""


@app.get("/items/{item_id}")
async def item(
    item_id: Annotated[int, Path(ge=1)], x_api_key: Annotated[str | None, Header()] = None
) -> dict[str, object]:
    """One item; each is counted apart."""
    return {"item_id": item_id, "known": x_api_key is not None}


@app.get("/search")
async def search(q: Annotated[str, Query(max_length=50)], page: int = 1) -> dict[str, object]:
    """The same question counts together, whatever the page."""
    return {"q": q, "page": page}


@app.post("/cart")
async def cart(order: Order, cart: Annotated[str, Cookie(max_length=20)] = "") -> dict[str, object]:
    """Ten orders a minute for one cart."""
    return {"cart": cart, "item_id": order.item_id}


@app.get("/report/{year}")
@limit("5/minute")
def report(year: int) -> dict[str, int]:
    """Limited where it is defined, whatever the year."""
    return {"year": year}
