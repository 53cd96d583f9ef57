"""A proxy in front of a language model: requests, input and output tokens a minute for each user.

UPSTREAM=http://127.0.0.1:9000/v1 uvicorn --app-dir examples llm_proxy:app

What a request may cost is reserved before the model is asked, by the largest cap that it declares,
and set to what it has cost afterwards. A stream that goes beyond is charged as it goes, and cut
where the budget is used up; a client that leaves has paid for what was written. Users are told in
the header fields that clients of OpenAI read, and come back at the instant that these promise.
"""

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import httpx
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from ratelimit import (
    RateLimit,
    RateLimiter,
    RateLimitMiddleware,
    Reservation,
    RuleSet,
    TokenEstimate,
)

UPSTREAM = os.environ.get("UPSTREAM", "http://127.0.0.1:9000/v1")
USERS = {"key-of-ann": "ann", "key-of-bob": "bob"}
MOST = 500  # output tokens, where a request declares no cap

rules = RuleSet(
    [],
    store=os.environ.get("STORE", "memory://"),
    headers=["openai"],
    retry_hints=True,
)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Opens the connections to the model."""
    async with httpx.AsyncClient(base_url=UPSTREAM, timeout=60) as app.state.model:
        yield


app = FastAPI(lifespan=lifespan)
app.add_middleware(RateLimitMiddleware, limiter=RateLimiter(rules))


def user(given: Annotated[HTTPAuthorizationCredentials, Depends(HTTPBearer())]) -> str:
    """The user whose key a request carries."""
    if given.credentials not in USERS:
        raise HTTPException(401, "The key is not known.")
    return USERS[given.credentials]


requests = RateLimit(os.environ.get("REQUESTS", "60/minute"), by=user, name="requests")
input_tokens = RateLimit(
    os.environ.get("INPUT", "20000/minute"),
    by=user,
    unit="input-tokens",
    cost=TokenEstimate("input-tokens"),
    name="input-tokens",
)
output_tokens = RateLimit(
    os.environ.get("OUTPUT", "4000/minute"),
    by=user,
    unit="output-tokens",
    cost=TokenEstimate("output-tokens", default=MOST),
    name="output-tokens",
)


@app.post("/v1/chat/completions", dependencies=[Depends(requests)])
async def complete(
    request: Request,
    body: dict[str, Any],
    read: Annotated[Reservation, Depends(input_tokens)],
    written: Annotated[Reservation, Depends(output_tokens)],
) -> Any:
    """Answers as the model does, at once or as a stream."""
    if not (body.get("max_tokens") or body.get("max_completion_tokens")):
        body["max_completion_tokens"] = MOST
    model: httpx.AsyncClient = request.app.state.model
    if body.get("stream"):
        body["stream_options"] = {"include_usage": True}
        return StreamingResponse(relay(model, body, read, written), media_type="text/event-stream")
    answer = await model.post("/chat/completions", json=body)
    content = answer.json()
    await settle(content.get("usage") or {}, read, written)
    return JSONResponse(content, answer.status_code)


async def settle(usage: dict[str, int], read: Reservation, written: Reservation) -> None:
    """Sets the reservations to what the model says it has cost; nothing where it failed."""
    await read.commit(usage.get("prompt_tokens", 0))
    await written.commit(usage.get("completion_tokens", 0))


async def relay(
    model: httpx.AsyncClient, body: dict[str, Any], read: Reservation, written: Reservation
) -> AsyncIterator[str]:
    """The events of the model's stream, for as long as the budget lasts."""
    total = 0
    async with model.stream("POST", "/chat/completions", json=body) as answer:
        async for line in answer.aiter_lines():
            if not line.startswith("data:"):
                continue
            yield f"{line}\n\n"
            data = line.removeprefix("data:").strip()
            event = {} if data == "[DONE]" else json.loads(data)
            if event.get("usage"):
                await settle(event["usage"], read, written)
            # An event has a token of one candidate, or two of them.
            total += len(event.get("choices") or ())
            if not await written.progress(total):
                break
        else:
            return
    yield 'data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]}\n\n'
    yield "data: [DONE]\n\n"
