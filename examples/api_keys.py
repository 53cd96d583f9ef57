"""API keys with plans: each owner has a quota by its plan, and guesses at keys are bounded.

uvicorn --app-dir examples api_keys:app
curl -i -H 'X-Api-Key: key-of-ann' http://127.0.0.1:8000/v1/items

Only digests of keys are kept. Two keys of one owner share its quota, so that a key may be changed.
An unknown key counts by the client's address, and only once it was answered with 401.
"""

import os
from hashlib import sha256
from typing import Annotated, NamedTuple

from fastapi import Depends, FastAPI, HTTPException
from starlette.requests import HTTPConnection

from ratelimit import RateLimiter, RateLimitMiddleware, Rule


class Owner(NamedTuple):
    """Whom a key belongs to."""

    name: str
    plan: str


def digest(key: str) -> str:
    """The form in which a key is kept; it is long and drawn by chance, so one round will do."""
    return sha256(key.encode()).hexdigest()


OWNERS = {
    digest("key-of-ann"): Owner("ann", "free"),
    digest("key-of-bob"): Owner("bob", "pro"),
    digest("new-key-of-bob"): Owner("bob", "pro"),
    digest("key-of-ops"): Owner("ops", "internal"),
    digest("key-of-eve"): Owner("eve", "free"),
}


def owner_of(connection: HTTPConnection) -> Owner | None:
    """The owner of the key that a request carries; None where nobody has it."""
    return OWNERS.get(digest(connection.headers.get("x-api-key", "")))


def owner(connection: HTTPConnection) -> str | None:
    """The identity that the rule counts by."""
    found = owner_of(connection)
    return found and found.name


def plan(connection: HTTPConnection) -> str | None:
    """The tier of that identity."""
    found = owner_of(connection)
    return found and found.plan


limiter = RateLimiter(
    [
        Rule(
            "unknown-keys",
            "10/minute",
            algorithm="sliding_log",
            path="/v1/{rest:path}",
            charge={"on_status": [401]},
        ),
        Rule(
            "api",
            {"free": "3/minute", "pro": "10/minute", "internal": "unlimited"},
            algorithm="sliding_log",
            path="/v1/{rest:path}",
            by="owner",
            tier="plan",
            on_missing="skip",  # it is refused by the application, and counted as unknown
            overrides={"eve": "blocked"},
        ),
    ],
    identities={"owner": owner},
    tiers={"plan": plan},
    store=os.environ.get("STORE") or None,
)
app = FastAPI()
app.add_middleware(RateLimitMiddleware, limiter=limiter)


def known(connection: HTTPConnection) -> Owner:
    """The owner of a known key; 401 for anybody else."""
    found = owner_of(connection)
    if found is None:
        raise HTTPException(401, "The key is not known.")
    return found


@app.get("/v1/items")
async def items(owner: Annotated[Owner, Depends(known)]) -> dict[str, str]:
    """Something worth a key."""
    return {"item": f"of {owner.name}"}
