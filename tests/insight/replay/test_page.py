"""The page of a replay: no script, nothing from elsewhere, nothing of a log unescaped."""

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

from ratelimit import RuleSet
from ratelimit.insight.replay.detection import format_of
from ratelimit.insight.replay.log import Log
from ratelimit.insight.replay.page import page_of
from ratelimit.insight.replay.plots import bars, stacked
from ratelimit.insight.replay.report import report_of
from ratelimit.insight.replay.session import Replay
from tests.insight.replay.logs import MSEC, msec, traffic, written

RULES = "version: 1\nrules:\n  - {name: one, limit: 5/minute}\n"
HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)>\u202e\x1b]0;evil\x07'


class Seen(HTMLParser):
    """The elements of a page with their attributes, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "rect", "line", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("rect", "line"):
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def page(path: Path, lines: list[str], **options: Any) -> tuple[str, Seen]:
    """The page of a replay of lines, as text and as read."""
    log = Log([written(path / "log", lines)], format_of(MSEC, {}))
    replay = Replay(RuleSet.loads(RULES), log, **options)
    replay.run()
    text = page_of(report_of(replay), HOSTILE)
    seen = Seen()
    seen.feed(text)
    return text, seen


def test_a_page_has_every_number_and_needs_nothing_from_elsewhere(tmp_path: Path) -> None:
    lines = [msec(each) for each in traffic(3_000, seed=1)]
    old = RuleSet.loads(RULES.replace("5/", "9/"))
    text, seen = page(tmp_path, lines, compare=True, against=old)
    assert seen.open == []
    names = {tag for tag, _ in seen.tags}
    assert not names & {"script", "img", "link", "iframe", "object", "form", "image", "use", "a"}
    assert {"table", "svg", "rect", "style"} <= names
    policy = next(attrs for tag, attrs in seen.tags if "http-equiv" in attrs)
    assert policy["content"] == "default-src 'none'; style-src 'unsafe-inline'"
    assert "url(" not in text
    assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)", text)
    for words in ("sliding_counter", "retry-after", "newly refused", "Those refused most", "3,000"):
        assert words in seen.text
    assert len(text) < 300_000


def test_nothing_of_a_log_or_a_name_is_read_as_markup(tmp_path: Path) -> None:
    lines = [msec(each) for each in traffic(50, seed=1)]
    lines += [HOSTILE.replace(" ", "") + " 1700352000.0 GET /x 200"] * 20
    lines += [f"something else {HOSTILE}"]
    text, seen = page(tmp_path, lines)
    assert not {"script", "img"} & {tag for tag, _ in seen.tags}
    assert not any(name.startswith("on") for _, attrs in seen.tags for name in attrs)
    assert "<script>alert(1)</script>" in seen.text
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert r"\u202e" in text


def test_a_plot_is_well_formed_and_as_high_as_its_largest_point() -> None:
    points = [[100, 5, 5], [101, 20, 0], [103, 0, 0]]
    picture = ET.fromstring(stacked(points, 1, ("<a>", "b"), 'x"<y>'))
    boxes = [each.attrib for each in picture if each.tag.endswith("rect")]
    assert [float(each["height"]) for each in boxes] == [32.5, 32.5, 130.0]
    assert float(boxes[1]["y"]) + 32.5 == float(boxes[0]["y"])
    assert stacked([], 1, ("", ""), "") == bars([], "") == ""
    picture = ET.fromstring(bars([("<a>", 4), ("b", 2)], "t"))
    widths = [float(each.attrib["width"]) for each in picture if each.tag.endswith("rect")]
    assert widths[0] == 2 * widths[1]


def test_a_page_without_requests_is_a_page(tmp_path: Path) -> None:
    _, seen = page(tmp_path, ["nothing"])
    assert seen.open == []
    assert "another format" in seen.text
