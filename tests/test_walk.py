"""The way of a request through the house, as ARCHITECTURE.md tells it."""

import re
import sys
from pathlib import Path
from types import FrameType
from typing import Any, Final

import pytest
from starlette.responses import PlainTextResponse
from starlette.types import Message, Receive, Scope, Send

from ratelimit import RateLimiter, RateLimitMiddleware, Rule
from tests.support.asgi import http_scope

ROOT: Final = Path(__file__).resolve().parents[1]
PACKAGE: Final = f"{ROOT / 'ratelimit'}/"


async def answer(scope: Scope, receive: Receive, send: Send) -> None:
    """The application behind the middleware."""
    await PlainTextResponse("ok")(scope, receive, send)


async def walked(rule: Rule, *, refused: bool) -> list[str]:
    """The files of the package that one request enters, in order, without those it stays in."""
    app = RateLimitMiddleware(answer, RateLimiter([rule]))
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        raise AssertionError

    async def ask() -> None:
        await app(http_scope("/", headers=(("x-key", "someone"),)), receive, send)

    for _ in range(5 if refused else 2):
        await ask()
    entered: list[str] = []

    def enter(frame: FrameType, event: str, _: Any) -> None:
        file = frame.f_code.co_filename
        if event == "call" and file.startswith(PACKAGE):
            file = file.removeprefix(PACKAGE)
            if not entered or entered[-1] != file:
                entered.append(file)

    before = sys.getprofile()
    sys.setprofile(enter)
    try:
        await ask()
    finally:
        sys.setprofile(before)
    starts = [message for message in sent if message["type"] == "http.response.start"]
    assert starts[-1]["status"] == (429 if refused else 200)
    return entered


def packages(files: list[str]) -> list[str]:
    """The packages that files are in, each once, in the order in which they were entered."""
    return list(dict.fromkeys(file.partition("/")[0] for file in files if "/" in file))


@pytest.mark.parametrize("by", ["client", "header:x-key"])
async def test_a_refusal_is_decided_in_five_packages(by: str) -> None:
    """From the middleware to the store; what is told and noted of it comes after."""
    files = await walked(Rule("all", "3/hour", by=by), refused=True)
    verdict = files.index("stores/memory.py")
    assert len(packages(files[: verdict + 1])) <= 5
    assert packages(files[: verdict + 1])[0] == "asgi"
    assert set(packages(files[verdict:])) <= {"stores", "limiter", "control", "responses", "asgi"}


async def test_the_way_of_a_refusal_is_the_one_that_is_told() -> None:
    """ARCHITECTURE.md names files in order, and a refused request enters those of Python so."""
    page = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    told = next(line for line in page.splitlines() if line.startswith('"Why was this refused?"'))
    named = [name for name in re.findall(r"`([a-z/_.]+)`", told) if name.endswith(".py")]
    assert len(named) >= 2
    files = await walked(Rule("all", "3/hour"), refused=True)
    places = [files.index(name) for name in named]
    assert places == sorted(places)


async def test_an_allowed_request_enters_no_package_that_only_refusals_need() -> None:
    """Nothing is noted of it in `control`."""
    files = await walked(Rule("all", "1000/hour"), refused=False)
    assert "control" not in packages(files)
