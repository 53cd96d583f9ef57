"""A language model without a language: it writes as many words as the last message says.

Its answers are those of OpenAI's chat completions, as a stream or at once. ``/written`` tells how
many words it has written in all.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI
from starlette.responses import StreamingResponse

app = FastAPI()
app.state.written = 0
READ = 7
"""Tokens that every prompt is said to have."""


@app.get("/written")
async def written() -> int:
    return int(app.state.written)


@app.post("/v1/chat/completions")
async def complete(body: dict[str, Any]) -> Any:
    words = int(body["messages"][-1]["content"])
    usage = {"prompt_tokens": READ, "completion_tokens": words, "total_tokens": READ + words}
    told = {"id": "1", "object": "chat.completion", "created": 1, "model": "words"}
    if not body.get("stream"):
        app.state.written += words
        message = {"role": "assistant", "content": "word " * words}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return told | {"choices": [choice], "usage": usage}

    async def events() -> AsyncIterator[str]:
        chunk = told | {"object": "chat.completion.chunk"}
        for _ in range(words):
            app.state.written += 1
            await asyncio.sleep(0)  # a model takes its time, and others have theirs
            choice = {"index": 0, "delta": {"content": "word "}, "finish_reason": None}
            yield f"data: {json.dumps(chunk | {'choices': [choice]})}\n\n"
        yield f"data: {json.dumps(chunk | {'choices': [], 'usage': usage})}\n\n"
        yield "data: [DONE]\n\n"

    return StreamingResponse(events(), media_type="text/event-stream")
