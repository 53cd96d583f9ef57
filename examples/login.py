"""A login that bounds guesses, not logins: only failures count, and a success forgets them.

uvicorn --app-dir examples login:app

Five failures a minute for an account, whoever asks; twenty for a client, whatever the account. The
second one has no `reset_on`: with an account of his own, anybody could clear his guesses at others.
"""

import os
import secrets
from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException
from pydantic import BaseModel

from ratelimit import RateLimit, RateLimiter, RateLimitMiddleware, Rule

PASSWORDS = {"alice": "correct horse", "bob": "battery staple"}

by_client = Rule(
    "guesses-of-a-client",
    "20/minute",
    algorithm="sliding_log",
    path="/login",
    methods=["POST"],
    charge={"on_status": [401]},
)
limiter = RateLimiter([by_client], store=os.environ.get("STORE") or None)
app = FastAPI()
app.add_middleware(RateLimitMiddleware, limiter=limiter)


class Login(BaseModel):
    """A name and a password, as a form or an application sends them."""

    username: str
    password: str


async def account(login: Login) -> str:
    """The account that is asked for, alike however it is spelled."""
    return login.username.strip().casefold()


by_account = RateLimit(
    "5/minute",
    by=account,
    algorithm="sliding_log",
    name="guesses-at-an-account",
    charge={"on_status": [401], "reset_on": [200]},
)


@app.post("/login", dependencies=[Depends(by_account)])
async def login(name: Annotated[str, Depends(account)], login: Login) -> dict[str, str]:
    """Answers 401 for a wrong password, and for an account that is not there."""
    expected = PASSWORDS.get(name, "")
    right = secrets.compare_digest(login.password.encode(), expected.encode())
    if not (right and expected):
        raise HTTPException(401, "The name or the password is wrong.")
    return {"hello": name}
