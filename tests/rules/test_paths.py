"""Paths that clients choose: each is matched in linear time, by any pattern."""

import re
import time
from collections.abc import Iterator

import pytest
from starlette.convertors import CONVERTOR_TYPES, StringConvertor, register_url_convertor
from starlette.routing import compile_path

from ratelimit.rules.paths import Path
from ratelimit.rules.rule import Rule
from ratelimit.rules.ruleset import RuleSet

LONG = 60_000


@pytest.fixture(autouse=True)
def slug() -> Iterator[None]:
    before = dict(CONVERTOR_TYPES)
    regex = "[a-z]+(?:-[a-z]+)*"
    register_url_convertor("slug", type("Slug", (StringConvertor,), {"regex": regex})())
    yield
    CONVERTOR_TYPES.clear()
    CONVERTOR_TYPES.update(before)


@pytest.mark.parametrize(
    ("pattern", "path"),
    [
        ("/archive/{y}-{m}-{d}", "/archive/" + "-" * LONG + "/"),
        ("/archive/{y}-{m}-{d}", "/archive/" + "-é" * LONG + "/"),
        ("/files/{a}.{ext}", "/files/" + "." * LONG + "/"),
        ("/t/{a:path}/files/{b:path}", "/t" + "/files" * 10_000 + "\n\n"),
        ("/t/{a:path}/f/{b:path}/edit/{x:int}", "/t" + "/f/edit" * 8_000 + "/x"),
        ("/{a}{b}{c}{d}{e}{f}{g}{h}{i}{j}", "/" + "a" * LONG + "/"),
        ("/{a:path}{b:path}{c:path}{d:path}{e:path}{f:path}{g:path}{h:path}.x", "/" + "a" * 25),
        ("/" + "".join(f"{{p{number}:path}}" for number in range(30)) + ".x", "/" + "a" * 30),
        ("/{a:int}{b:int}{c:int}x", "/" + "1" * LONG),
        ("/{a:float}{b:float}{c:float}x", "/" + "1." * LONG + "x"),
        ("/{a:slug}-{b:slug}-{c:slug}", "/" + "a-" * LONG),
        ("/{a:path}/{b}/{c}/{d}/edit", "/" * LONG),
        ("/{a:path}/{b}/{c}/{d}/edit", "/a" * LONG),
        ("/{a:path}/{b:int}", "/" + "1" * LONG + "/a"),
        ("/" + "/a" * 900 + "/{a}", "/" + "/a" * 900 + "/" * LONG),
    ],
    ids=lambda text: text[:40],
)
def test_no_path_takes_longer_to_match_than_its_length_allows(pattern: str, path: str) -> None:
    rule_set = RuleSet((Rule("a", "1/second", path=pattern),))
    start = time.process_time()
    rule_set.matching("GET", path)
    assert time.process_time() - start < 1  # mostly a thousandth; the regex takes minutes or years


@pytest.mark.parametrize(
    ("pattern", "path"),
    [
        ("/archive/{y}-{m}-{d}", "/archive/2024-" + "x-" * 300 + "07"),
        ("/archive/{y}-{m}-{d}", "/archive/" + "2024" * 20 + "-05-07\n"),
        ("/files/{a}.{ext}", "/files/" + "a.b" * 100),
        ("/t/{a:path}/f/{b:path}/edit/{x:int}", "/t" + "/f/a\n/edit" * 30 + "/7"),
        ("/{a:float}{b:float}", "/" + "1.2" * 30),
    ],
)
def test_a_long_path_has_the_parameters_that_starlette_gives_it(pattern: str, path: str) -> None:
    regex, _, convertors = compile_path(pattern)
    found = regex.match(path) or re.compile(regex.pattern, re.DOTALL).match(path)
    expected = found and {name: each.convert(found[name]) for name, each in convertors.items()}
    assert Path(pattern).match(path) == expected


@pytest.mark.parametrize("pattern", ["/{rest:path}", "/api/{rest:path}", "/api/{rest}"])
@pytest.mark.parametrize(
    "end",
    [
        "",
        "/",
        "a",
        "a/b",
        "//",
        "/a/",
        "a\n",
        "a/\nb",
        "\n",
        "\n\n",
        "a\n\n",
        "a\r",
        "\x85",
        "\u2028",
        "é%2F",
    ],
)
@pytest.mark.parametrize(
    "before", ["/api/", "/api", "/", "", "/apis/", "/Api/", "x/api/", "/api\n/"]
)
def test_the_commonest_patterns_are_matched_as_starlette_would(
    pattern: str, end: str, before: str
) -> None:
    path = before + end
    regex, _, convertors = compile_path(pattern)
    found = regex.match(path)
    exact = found and {name: each.convert(found[name]) for name, each in convertors.items()}
    assert Path(pattern).match(path, exactly=True) == exact
    if ":path" in pattern:  # whose dot would stop at a new line, and a rule's does not
        found = found or re.compile(regex.pattern, re.DOTALL).match(path)
        exact = found and {name: each.convert(found[name]) for name, each in convertors.items()}
    assert Path(pattern).match(path) == exact


def test_an_applications_own_regex_holds_at_least_what_its_route_does() -> None:
    """Of a long path its regex is not asked; the rule then takes anything for the parameter."""
    path = Path("/blog/{slug:slug}/{page:int}")
    assert path.match("/blog/a-b/7") == {"slug": "a-b", "page": 7}
    assert path.match("/blog/A/7") is None
    long = "a-" * 1_000 + "a"
    assert path.match(f"/blog/{long}/7") == {"slug": long, "page": 7}
    assert path.match(f"/blog/{long}!/7") == {"slug": f"{long}!", "page": 7}
    assert path.match(f"/blog/{long}/x") is None
