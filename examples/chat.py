"""Three WebSockets whose messages are limited, each with another outcome for one too many.

uvicorn --app-dir examples chat:app
"""

from fastapi import FastAPI, WebSocket

from ratelimit import RateLimiter, RateLimitMiddleware, Rule, limit

rules = [
    # Whoever floods the chat is sent away; a message is at most 4,000 bytes long.
    Rule(
        "chat",
        "30/minute",
        path="/chat",
        websocket={"messages": "5/second", "bytes": "4000/second", "on_excess": "close"},
    ),
    # An upload is slowed down to its rate, and nothing of it is lost.
    Rule(
        "upload",
        "30/minute",
        path="/upload",
        websocket={"bytes": "64000/second burst 256000", "on_excess": "pause"},
    ),
]

app = FastAPI()
app.add_middleware(RateLimitMiddleware, limiter=RateLimiter(rules))


@app.websocket("/chat")
async def chat(websocket: WebSocket) -> None:
    """Says what it hears."""
    await websocket.accept()
    async for text in websocket.iter_text():
        await websocket.send_text(text)


@app.websocket("/upload")
async def upload(websocket: WebSocket) -> None:
    """Says how much it has got with each piece."""
    await websocket.accept()
    size = 0
    async for piece in websocket.iter_bytes():
        size += len(piece)
        await websocket.send_text(f"{size}")


@app.websocket("/cursor")
@limit("30/minute", websocket={"messages": "20/second", "on_excess": "drop"})
async def cursor(websocket: WebSocket) -> None:
    """Says where the cursor is; of many positions at once some are left out."""
    await websocket.accept()
    async for position in websocket.iter_text():
        await websocket.send_text(position)
