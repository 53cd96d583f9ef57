"""The answer to a refused request: in which form, and what each form holds."""

import json
import re
import time
import types
from html.parser import HTMLParser
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient

from ratelimit import Decision, Limit, RateLimitMiddleware
from ratelimit.responses.headers import (
    Told,
    banned,
    blocked,
    fields,
    forbid,
    refuse,
    unavailable,
    unidentified,
)
from ratelimit.responses.problems import Refusal, Refused, closing, problem
from ratelimit.rules.policies import policy_names
from ratelimit.rules.units import Policy

JSON: Final = "application/problem+json"
HTML: Final = "text/html"
TEXT: Final = "text/plain"

REFUSALS: Final = [
    refuse(
        [Told("api", Decision(Limit("9/minute"), False, 0, 7_000_000, 7_000_000, 0))], ["draft"]
    ),
    forbid(),
    blocked(),
    unidentified(),
    unavailable(),
    closing(),
]


def form(accept: str | None) -> str:
    """The media type of the answer to an Accept field."""
    sent = dict(forbid().rendered(accept).headers)
    return sent[b"content-type"].decode().partition(";")[0]


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        # what is sent
        (None, JSON),
        ("*/*", JSON),  # curl, httpx, requests
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", HTML),  # Firefox
        (
            "text/html,application/xml;q=0.9,image/webp,*/*;q=0.8,application/signed-exchange;q=0.7",
            HTML,
        ),  # Chrome, in short
        ("application/json, text/plain, */*", JSON),  # axios
        ("application/json, text/javascript, */*; q=0.01", JSON),  # jQuery
        ("application/json;charset=utf-8, text/html;q=0.5", JSON),
        ("image/avif,image/webp,*/*", JSON),
        # each form by its name and by its ranges
        ("application/problem+json", JSON),
        ("application/json", JSON),
        ("application/*", JSON),
        ("text/html", HTML),
        ("text/plain", TEXT),
        ("text/*", HTML),
        ("TEXT/Plain", TEXT),
        # the greater weight wins, and of equal ones the problem
        ("text/html, application/json", JSON),
        ("text/html, application/*", JSON),
        ("text/plain;q=0.501, text/html;q=0.5, */*;q=0.4", TEXT),
        ("text/plain;q=0.5, text/html;q=0.50, */*;q=0.4", HTML),
        ("text/html;q=0.9, application/json;q=0.8", HTML),
        ("text/html;q=0.8, application/json;q=0.9", JSON),
        ("text/plain; Q=1.000, */*;q=0.999", TEXT),
        # the closest range counts, wherever it stands
        ("*/*, application/json;q=0.1", HTML),
        ("text/*, text/html;q=0.1, application/*;q=0.5", TEXT),
        ("application/json, application/problem+json;q=0.1, text/html;q=0.2", HTML),
        ("application/*;q=0.1, application/json, text/html;q=0.2", JSON),
        ("*/*;q=0.1, text/*, text/html;q=0.2", TEXT),
        ("text/html;q=0.1, text/html, application/json;q=0.5", HTML),
        ("text/html, text/html;q=0.1, application/json;q=0.5", HTML),
        # RFC 9110 section 12.5.1
        (
            "text/*;q=0.3,text/plain;q=0.7,text/plain;format=flowed,text/plain;a=b;q=0.4,*/*;q=0.5",
            TEXT,
        ),
        # nothing of 0, and the problem where nothing is left
        ("application/json;q=0, */*", HTML),
        ("application/json;q=0, text/html;q=0.000, */*", TEXT),
        ("*/*;q=0", JSON),
        ("image/png", JSON),
        ("application/json;q=0", JSON),
        # parameters
        ("text/html;charset=UTF-8", HTML),
        ('text/html;charset="utf-8"', HTML),
        ("text/html;charset=latin-1, text/plain;q=0.1", TEXT),
        ("text/html;level=1, text/plain;q=0.1", TEXT),
        ('text/html;a="x,y;q=0", text/plain;q=0.1', TEXT),
        ('text/html;a="\\"", text/plain;q=0.1', TEXT),
        ("text/html;q=0.5;level=1, */*;q=0.1", HTML),
        # lists as they may be written
        ("\t text/html \t;\tq=1.0 ; , ,, */*;q=0.1 ,", HTML),
        ("text/html;;q=0.2;, */*;q=0.1", HTML),
    ],
)
def test_the_form_is_the_one_that_accept_gives_the_most_weight(
    accept: str | None, expected: str
) -> None:
    assert form(accept) == expected


@pytest.mark.parametrize(
    "accept",
    [
        "", " ", ",", "html", "text", "text/", "/html", "text/html/", "text /html", "text/ html",
        "te\txt/html",
        "text/html;q", "text/html;q=", "text/html;q =1", "text/html;q= 1", "text/html;q=2",
        "text/html;q=1.1", "text/html;q=-1", "text/html;q=0.1234", "text/html;q=nan",
        "text/html;q=1e0", "text/html;q=.5", 'text/html;q="1"', "text/html q=1", "text/html;=1",
        'text/html;a="', 'text/html;a="\\"', "text/html\n", "text/html\r\nx: y", "text/html\0",
        "text/html, text/plain;q=x", "text/html; charset=ü", "text/html; a=(b)", "\u0161/\u0161",
        "text/html \udcff",
    ],
)  # fmt: skip
def test_a_malformed_accept_means_the_problem(accept: str) -> None:
    assert form(accept) == JSON


def test_an_accept_of_more_than_1_000_characters_means_the_problem() -> None:
    assert form("text/html,".ljust(1_000)) == HTML
    assert form("text/html,".ljust(1_001)) == JSON


@given(
    st.text()
    | st.lists(
        st.sampled_from(
            ["text", "html", "*", "/", ";", "q=", "0.5", "1", ",", " ", '"', "\\", "charset=utf-8"]
        )
    ).map("".join)
)
@settings(max_examples=500, deadline=None)  # the machine may be busy
def test_no_accept_is_too_strange_for_an_answer(accept: str) -> None:
    assert form(accept) in {JSON, HTML, TEXT}


@pytest.mark.parametrize(
    "piece",
    ["a/b;", " ", "; ", "\t;", ";a=", ';a="', ";a=\\", 'a/b;c="\\"', "a/b,", '"', "a/b;q=0;"],
)
@pytest.mark.parametrize("start", ["", "a/b", "a/b;", "a/b;c=", 'a/b;c="'])
def test_the_time_to_read_an_accept_grows_no_faster_than_its_length(
    start: str, piece: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ratelimit.responses.problems._LONGEST_ACCEPT", 30_001)
    accept = (start + piece * 30_000)[:30_000]
    started = time.process_time()
    form(accept + "(")
    assert time.process_time() - started < 0.5


@pytest.mark.parametrize("refusal", REFUSALS)
@pytest.mark.parametrize("accept", [None, "text/html", "text/plain"])
def test_every_form_has_the_fields_of_the_refusal_and_its_own_length(
    refusal: Refusal, accept: str | None
) -> None:
    rendered = refusal.rendered(accept)
    assert rendered.status == refusal.status
    sent = dict(rendered.headers)
    assert len(sent) == len(rendered.headers)
    assert sent.pop(b"content-length") == str(len(rendered.body)).encode()
    assert sent.pop(b"vary") == b"accept"
    assert sent.pop(b"content-type").decode() == (f"{accept}; charset=utf-8" if accept else JSON)
    assert sent[b"cache-control"] == b"no-store"
    own = {b"content-length", b"content-type"}
    assert sent == {name: value for name, value in refusal.headers if name not in own}


@pytest.mark.parametrize("refusal", REFUSALS)
def test_a_refusal_is_not_changed_by_being_rendered(refusal: Refusal) -> None:
    before = list(refusal.headers)
    refusal.rendered("text/html")
    assert refusal.headers == before
    assert refusal.rendered(None).body == refusal.body


@pytest.mark.parametrize("refusal", REFUSALS)
def test_every_form_says_what_the_problem_says(refusal: Refusal) -> None:
    content = json.loads(refusal.body)
    assert (content["status"], content["title"]) == (refusal.status, refusal.title)
    assert content["detail"] == refusal.detail
    text = refusal.rendered("text/plain").body.decode()
    assert text == f"{refusal.title}. {refusal.detail}\n"
    page = Page(refusal)
    assert page.texts["title"] == page.texts["h1"] == refusal.title
    assert page.texts["p"] == refusal.detail


class Page(HTMLParser):
    """The page of a refusal, with the texts of its elements."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__()
        self.texts: dict[str, str] = {}
        self.attributes: list[tuple[str, str, str | None]] = []
        self.open: list[str] = []
        self.source = refusal.rendered("text/html").body.decode()
        self.feed(self.source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts[self.open[-1]] = data


def test_the_page_is_whole_and_asks_for_nothing_more() -> None:
    page = Page(REFUSALS[0])
    assert page.source.startswith('<!doctype html>\n<html lang="en">\n')
    assert page.open == []
    assert page.texts == {
        "title": "Too Many Requests",
        "h1": "Too Many Requests",
        "p": "The quota is used up; try again in 7 seconds.",
    }
    assert page.attributes == [
        ("html", "lang", "en"),
        ("meta", "charset", "utf-8"),
        ("meta", "name", "viewport"),
        ("meta", "content", "width=device-width"),
    ]


def test_the_page_shows_markup_as_text() -> None:
    hostile = problem(429, "urn:x", "<i>&amp;", '</p><script src="//x">')
    page = Page(hostile)
    assert page.texts == {"title": "<i>&amp;", "h1": "<i>&amp;", "p": '</p><script src="//x">'}
    assert "<script" not in page.source


@pytest.mark.parametrize(
    ("refusal", "status", "kind"),
    [
        (forbid(), 403, "address-denied"),
        (blocked(), 403, "identity-blocked"),
        (unidentified(), 403, "identity-missing"),
        (unavailable(), 503, "store-unavailable"),
    ],
)
def test_what_is_no_lack_of_quota_has_a_type_of_its_own_and_no_rate_limit_fields(
    refusal: Refusal, status: int, kind: str
) -> None:
    assert refusal.status == status
    assert json.loads(refusal.body)["type"] == f"urn:ratelimit-asgi:problem:{kind}"
    assert {name for name, _ in refusal.headers} == {
        b"content-type",
        b"content-length",
        b"cache-control",
    }


def test_a_refusal_is_a_starlette_response_with_the_same_status_fields_and_body() -> None:
    refusal = REFUSALS[0].rendered("text/plain")
    response = refusal.response()
    assert (response.status_code, response.body) == (429, refusal.body)
    assert response.raw_headers == refusal.headers
    response.headers["x-own"] = "1"
    assert (b"x-own", b"1") not in refusal.headers


def test_an_error_that_refuses_carries_the_fields_that_hold_for_any_body() -> None:
    error = Refused(unidentified())
    assert (error.status_code, error.detail) == (403, "Identity Missing")
    assert error.headers == {"cache-control": "no-store"}


# --- docs/answers.md -----------------------------------------------------------------------------

MANUAL: Final = (Path(__file__).resolve().parents[2] / "docs" / "answers.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", MANUAL, re.MULTILINE | re.DOTALL)


def manual_module() -> types.ModuleType:
    """The Python of the page as one module."""
    module = types.ModuleType("answers_md")
    exec(compile("\n".join(blocks("python")), "docs/answers.md", "exec"), module.__dict__)
    return module


def shown(headers: list[tuple[bytes, bytes]]) -> str:
    return "".join(f"{name.decode()}: {value.decode()}\n" for name, value in headers)


def manual_told(*, allowed: bool) -> list[Told]:
    """What the page tells of: a minute's limit, the binding one, and an hour's beside it."""
    limits = Limit.parse_all("100/minute; 1000/hour")
    minute, hour = policy_names("api", limits)
    retry_us = 0 if allowed else 12_000_000
    at_us = 1_767_225_600_000_000
    return [
        Told(hour, Decision(limits[1], True, 700, 0, 3_000_000_000, 0, at_us)),
        Told(
            minute,
            Decision(limits[0], allowed, 41 if allowed else 0, retry_us, 27_000_000, 0, at_us),
        ),
    ]


def manual_budgets() -> list[Told]:
    """What the page tells of units: a request a second, of which some tokens a minute."""
    at_us = 1_767_225_600_000_000
    asked = [
        ("requests", "60/minute", 59, 1_000_000),
        ("tokens", "90000/minute", 88_200, 1_200_000),
    ]
    return [
        Told(Policy(unit, unit) if unit == "tokens" else unit, decision)
        for unit, limit, left, reset_us in asked
        for decision in [Decision(Limit(limit), True, left, 0, reset_us, 0, at_us)]
    ]


def test_the_fields_and_answers_of_the_manual_are_those_that_are_sent() -> None:
    allowed, unit, openai, anthropic, *refused = blocks("http")
    assert allowed == shown(fields(manual_told(allowed=True), ("draft", "legacy", "draft-03")))
    requests, tokens = manual_budgets()
    assert unit == shown(fields([tokens], ("draft",)))
    assert openai == shown(fields([requests, tokens], ("openai",)))
    assert anthropic == shown(fields([requests, tokens], ("anthropic",)))
    refusal = refuse(manual_told(allowed=False), ("draft",))
    for block, accept in zip(refused, (None, "text/plain"), strict=True):
        rendered = refusal.rendered(accept)
        head = f"HTTP/1.1 429 Too Many Requests\n{shown(rendered.headers)}\n"
        assert block == head + rendered.body.decode().rstrip("\n") + "\n"


def test_the_dialect_of_the_manual_renames_the_parameters_of_the_draft() -> None:
    renamed = manual_module().renamed
    for allowed, state in ((True, '"api:60";a=41'), (False, '"api:60";a=0;w=12')):
        told = manual_told(allowed=allowed)
        policies, _ = fields(told, ("draft",))
        assert fields(told, (renamed,)) == [policies, (b"ratelimit", state.encode())]


def test_the_application_of_the_manual_answers_in_its_own_words_and_dialects() -> None:
    async def home(request: Request) -> Response:
        return PlainTextResponse("ok")

    limiter = manual_module().limiter
    app = Starlette(
        routes=[Route("/", home)],
        middleware=[Middleware(RateLimitMiddleware, limiter=limiter)],
    )
    with TestClient(app, client=("192.0.2.1", 1)) as client:
        answers = [client.get("/") for _ in range(101)]
    assert [answer.status_code for answer in answers] == [200] * 100 + [429]
    assert answers[0].headers["ratelimit"] == '"api:60";a=99'
    assert answers[0].headers["x-ratelimit-remaining"] == "99"
    refused = answers[-1]
    assert refused.json()["sorry"].startswith("The quota is used up; try again in ")
    assert refused.headers["cache-control"] == "no-store"
    assert f";w={refused.headers['retry-after']}" in refused.headers["ratelimit"]


def test_the_manual_names_every_problem_type() -> None:
    kinds = {json.loads(refusal.body)["type"] for refusal in REFUSALS}
    never = Decision(Limit("9/minute"), False, 9, None, 0, 0)
    kinds.add(json.loads(refuse([Told("api", never)], ()).body)["type"])
    kinds.add(json.loads(banned(["api"], 1).body)["type"])
    assert kinds == set(re.findall(r"\| `((?:https|urn):[^`]+)` \|", MANUAL))


def test_a_ban_tells_what_is_left_of_it_in_whole_seconds_and_whose_rule_it_is() -> None:
    refusal = banned(["login", "api"], 599_000_001)
    told = json.loads(refusal.body)
    assert (refusal.status, dict(refusal.headers)[b"retry-after"]) == (429, b"600")
    assert told["violated-policies"] == ["login", "api"]
    assert told["detail"] == "Too many requests were refused; try again in 10 minutes."
    waits = {int(dict(banned(["a"], 10**6, 9 * 10**6).headers)[b"retry-after"]) for _ in range(200)}
    assert min(waits) >= 1
    assert 5 < max(waits) <= 10
