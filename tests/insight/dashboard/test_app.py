"""The live page over raw ASGI: who is let in, and what is sent."""

import asyncio
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Final

import pytest
from starlette.applications import Starlette
from starlette.requests import HTTPConnection
from starlette.routing import Mount
from starlette.types import Message

from ratelimit import Dashboard, RateLimitMiddleware, RedisStore, Rule, StoreUnavailable
from ratelimit.insight.dashboard import app as module
from tests.support.asgi import (
    Answer,
    Counting,
    Inner,
    ask,
    call,
    http_scope,
    limiter,
    websocket_scope,
)
from tests.support.servers import Server

PATHS: Final = ("/", "/page.js", "/page.css", "/icon.svg", "/events", "/state", "/nowhere")
PAGE: Final = Path(module.__file__).parent / "page"


def opened(*rules: Rule, **changes: Any) -> Dashboard:
    return Dashboard(limiter(*rules, **changes), allow=lambda _: True)


async def question(page: Dashboard, asked: Any, **headers: str) -> Answer:
    """A question for a key's state, as the page asks it."""
    fields = {"content-type": "application/json", "sec-fetch-site": "same-origin"}
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    pairs = [(name, value) for name, value in (fields | named).items() if value]
    body = asked if isinstance(asked, bytes) else json.dumps(asked).encode()
    received: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
    return await call(page, http_scope("/state", "POST", pairs), received)


class Reader:
    """A browser's side of the stream: takes messages until it leaves."""

    def __init__(self, page: Dashboard, *, stalls: bool = False) -> None:
        self.left = asyncio.Event()
        self.came = asyncio.Event()
        self.answer = Answer([])
        self._stalls = stalls
        self.task = asyncio.ensure_future(page(http_scope("/events"), self._receive, self._send))

    async def _receive(self) -> Message:
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        self.answer.messages.append(message)
        if message.get("body"):
            self.came.set()
            if self._stalls:
                await asyncio.Event().wait()

    async def next(self) -> str:
        async with asyncio.timeout(20):
            await self.came.wait()
        self.came.clear()
        return self.answer.messages[-1]["body"].decode()  # type: ignore[no-any-return]

    async def leave(self) -> None:
        self.left.set()
        async with asyncio.timeout(20):
            await self.task


def events(text: str) -> dict[str, Any]:
    found = re.findall(r"^event: (\w+)\ndata: (.*)\n\n", text, re.MULTILINE)
    return {name: json.loads(data) for name, data in found}


# --- who is let in -------------------------------------------------------------------------------


async def _refuses(_: HTTPConnection) -> bool:
    return False


def _fails(_: HTTPConnection) -> bool:
    raise RuntimeError("the session is away")


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "allow",
    [None, _refuses, _fails, lambda _: None, lambda _: "yes", lambda _: 1],
    ids=["none", "async", "raises", "gives None", "gives text", "gives 1"],
)
async def test_a_stranger_gets_404_for_every_path(allow: Any, path: str) -> None:
    page = Dashboard(limiter(Rule("secret-rule", "1/second")), allow=allow)
    for method in ("GET", "POST"):
        answer = await ask(page, path, method)
        assert (answer.status, answer.body) == (404, b"Not Found")
        assert "content-security-policy" not in answer.headers


async def test_a_function_sync_or_async_lets_people_in() -> None:
    async def is_staff(connection: HTTPConnection) -> bool:
        return connection.headers.get("x-staff") == "yes"

    for allow in (is_staff, lambda request: request.headers.get("x-staff") == "yes"):
        page = Dashboard(limiter(), allow=allow)
        assert (await ask(page, headers=[("x-staff", "yes")])).status == 200
        assert (await ask(page, headers=[("x-staff", "no")])).status == 404


async def test_a_websocket_is_refused_even_to_those_who_are_let_in() -> None:
    answer = await call(opened(), websocket_scope("/events"))
    assert [each["type"] for each in answer.messages] == ["websocket.close"]


def test_an_allow_that_cannot_be_called_is_a_mistake() -> None:
    with pytest.raises(TypeError) as caught:
        Dashboard(limiter(), allow=True)  # type: ignore[arg-type]
    assert str(caught.value) == "allow is a function, not bool"


async def test_why_the_page_is_closed_is_in_the_log_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    page = Dashboard(limiter(), allow=_fails)
    await ask(page)
    await ask(page)
    assert [each.levelname for each in caplog.records] == ["ERROR"]
    assert caplog.records[0].message.startswith("dashboard-closed: ")


# --- the page ------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS)
async def test_every_answer_has_the_strict_policy(path: str) -> None:
    page = opened()
    answer = await ask(page, path) if path != "/events" else await ask(page, path, "HEAD")
    policy = answer.headers["content-security-policy"]
    named = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    assert named["default-src"] == "'none'"
    assert {named["script-src"], named["style-src"]} == {"'self'"}
    assert "unsafe" not in policy
    assert "http" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-store"


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] in {"script", "style"}:
            self.scripts += data.strip()


@pytest.fixture
def parsed() -> Page:
    page = Page()
    page.feed((PAGE / "index.html").read_text("utf-8"))
    return page


async def test_the_page_has_nothing_inline_and_nothing_from_elsewhere(parsed: Page) -> None:
    assert parsed.scripts == ""
    for tag, attributes in parsed.tags:
        assert tag != "style"
        assert not {name for name in attributes if name == "style" or name.startswith("on")}
        for name in ("src", "href"):
            if name in attributes:
                assert (await ask(opened(), f"/{attributes[name]}")).status == 200
    assert {tag for tag, _ in parsed.tags} >= {"script", "link", "caption", "label", "main"}


def test_every_table_has_a_caption_and_every_control_a_label(parsed: Page) -> None:
    names = [tag for tag, _ in parsed.tags]
    assert names.count("table") == names.count("caption") > 0
    labelled = {attributes.get("for") for tag, attributes in parsed.tags if tag == "label"}
    assert {each["id"] for tag, each in parsed.tags if tag in {"select", "input"}} <= labelled
    live = [each for _, each in parsed.tags if each.get("aria-live")]
    assert {each["aria-live"] for each in live} == {"polite"}


def test_the_script_makes_text_of_everything_and_markup_of_nothing() -> None:
    script = (PAGE / "page.js").read_text("utf-8")
    dangerous = (
        r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|new Function|\.style\b"
    )
    assert re.findall(dangerous, script) == []
    assert "textContent" in script


def _luminance(colour: str) -> float:
    digits = colour * 2 if len(colour) == 3 else colour
    parts = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    linear = [
        each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in parts
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_text_stands_out_from_its_ground_in_the_light_and_in_the_dark() -> None:
    css = (PAGE / "page.css").read_text("utf-8")
    schemes = [
        dict(re.findall(r"--([\w]+): #(\w+);", each)) for each in re.findall(r":root \{[^}]+", css)
    ]
    assert len(schemes) == 2
    for scheme in schemes:
        for ground in ("ground", "card"):
            for text in ("text", "quiet", "passed", "refused", "would"):
                ours = sorted((_luminance(scheme[ground]), _luminance(scheme[text])))
                assert (ours[1] + 0.05) / (ours[0] + 0.05) >= 4.5, (ground, text)


async def test_the_page_works_where_it_is_mounted() -> None:
    app = Starlette(routes=[Mount("/ops/limits", opened())])
    assert (await ask(app, "/ops/limits/")).status == 200
    assert (await ask(app, "/ops/limits/page.js")).headers["content-type"].startswith("text/java")
    assert (await ask(app, "/ops/limits/", "DELETE")).status == 405
    bare = await ask(opened(), "/ops/limits", root_path="/ops/limits")
    assert (bare.status, bare.headers["location"]) == (307, "./limits/")


# --- the stream ----------------------------------------------------------------------------------


async def test_the_stream_begins_with_the_rules_and_the_numbers_and_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "EVERY", 0.01)
    page = opened(Rule("login", "1/hour", algorithm="sliding_log"))
    reader = Reader(page)
    first = events(await reader.next())
    assert [rule["name"] for rule in first["rules"]["rules"]] == ["login"]
    assert first["numbers"]["rules"] == {}
    assert reader.answer.headers["content-type"] == "text/event-stream"
    await ask(RateLimitMiddleware(Inner(), limiter=page.limiter))
    later = events(await reader.next())
    while not later["numbers"]["rules"]:
        later = events(await reader.next())
    assert "rules" not in later
    assert later["numbers"]["rules"] == {"login": {"passed": 1}}
    await reader.leave()


async def test_no_name_breaks_out_of_an_event(monkeypatch: pytest.MonkeyPatch) -> None:
    hostile = "login <img src=x onerror=alert(1)>\n\nevent: rules\ndata: {}\r\n\u2028"

    class Gathering(Counting):
        async def denials(self, count: int = 10) -> list[tuple[str, int]]:
            return [(hostile, 3)]

    reader = Reader(opened(store=Gathering()))
    text = await reader.next()
    await reader.leave()
    assert text.isascii()
    assert re.findall(r"^event: (\w+)", text, re.MULTILINE) == ["rules", "numbers"]
    assert events(text)["numbers"]["whose"] == "all workers"


async def test_the_identities_refused_by_all_workers_of_a_redis_are_told(
    redis_server: Server,
) -> None:
    redis_server.command("FLUSHALL")
    async with RedisStore(redis_server.url, deadline=10) as here:
        async with RedisStore(redis_server.url, deadline=10) as elsewhere:
            await elsewhere.note_denials({"login 192.0.2.7": 4})
        await here.note_denials({"login 192.0.2.7": 3})
        page = opened(store=here)
        reader = Reader(page)
        numbers = events(await reader.next())["numbers"]
        await reader.leave()
        await page.limiter.aclose()  # else it would go on to tell the store of itself
    assert numbers["whose"] == "all workers"
    assert numbers["denied"] == [{"rule": "login", "identity": "192.0.2.7", "number": 7}]


async def test_a_store_that_is_away_leaves_this_workers_own_numbers() -> None:
    class Away(Counting):
        async def denials(self, count: int = 10) -> list[tuple[str, int]]:
            raise StoreUnavailable("away")

    reader = Reader(opened(store=Away()))
    assert events(await reader.next())["numbers"]["whose"] == "this worker"
    await reader.leave()


async def test_only_so_many_read_at_once_and_whoever_leaves_makes_room() -> None:
    page = opened()
    readers = [Reader(page) for _ in range(module.MOST_LISTENERS)]
    for reader in readers:
        await reader.next()
    full = await ask(page, "/events")
    assert (full.status, full.headers["retry-after"]) == (503, "10")
    await readers[0].leave()
    again = Reader(page)
    await again.next()
    for reader in [*readers[1:], again]:
        await reader.leave()


async def test_a_reader_that_stalls_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STALLED", 0.02)
    page = opened()
    reader = Reader(page, stalls=True)
    async with asyncio.timeout(20):
        await asyncio.wait([reader.task])
    assert page._listening == 0
    assert reader.task.exception() is None


async def test_a_stream_ends_in_time_so_that_it_is_asked_again_who_may_look(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "EVERY", 0.01)
    monkeypatch.setattr(module, "LASTS", 0.05)
    reader = Reader(opened())
    async with asyncio.timeout(20):
        await reader.task
    assert reader.answer.messages[-1] == {"type": "http.response.body", "body": b""}


# --- one key -------------------------------------------------------------------------------------


async def test_the_state_of_a_key_is_asked_for_from_the_page() -> None:
    page = opened(Rule("login", "5/minute", algorithm="sliding_log"))
    answer = await question(page, {"rule": "login", "identity": ["192.0.2.1"]})
    assert answer.status == 200
    assert answer.problem["counters"][0]["remaining"] == "5"


async def test_a_question_by_get_is_refused() -> None:
    answer = await ask(opened(), "/state", query_string=b"rule=login&identity=192.0.2.1")
    assert (answer.status, answer.headers["allow"]) == (405, "POST")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 400),
        ({"sec_fetch_site": "same-site"}, 403),
        ({"sec_fetch_site": "cross-site"}, 403),
        ({"sec_fetch_site": "none"}, 403),
        ({"sec_fetch_site": ""}, 403),
        ({"sec_fetch_site": "", "origin": "null", "host": "a"}, 403),
        ({"sec_fetch_site": "", "origin": "http://b", "host": "a"}, 403),
        ({"sec_fetch_site": "", "origin": "http://", "host": ""}, 403),
        ({"sec_fetch_site": "cross-site", "origin": "http://a", "host": "a"}, 403),
        ({"sec_fetch_site": "", "origin": "http://a", "host": "a"}, 400),
        ({"content_type": "text/plain"}, 415),
    ],
)
async def test_a_question_from_another_origin_is_refused(
    headers: dict[str, str], status: int
) -> None:
    assert (await question(opened(), {}, **headers)).status == status


@pytest.mark.parametrize(
    ("body", "status"),
    [(b"", 400), (b"{", 400), (b"\xff", 400), (b"[" * 8_000, 400), (b" " * 9_000, 413)],
)
async def test_a_question_is_json_and_short(body: bytes, status: int) -> None:
    assert (await question(opened(), body)).status == status
