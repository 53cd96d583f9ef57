"""A path's parameters are those that Starlette's own regex finds, however long the path."""

import random
import re
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.convertors import CONVERTOR_TYPES, StringConvertor, register_url_convertor
from starlette.routing import compile_path

from ratelimit.rules import paths
from ratelimit.rules.paths import Path

LITERALS = ["/", "/", "/", "-", ".", "/a", "a/", "/-/", "1", "..", "--", "a-a", "/b/", "1-1", ""]
REGEXES = {
    "day": "[0-9]{2}-[0-9]{1,2}",
    "word": "[a-z]*",
    "few": r"[ab-]{2,3}",
    "loose": r"a?(?:-1?)?\.?",
    "line": ".+",
    "seen": r"\w+",
    "pair": "(a[.-]*1)?[^a]{0,2}",
}
OPAQUE = {"slug": "[a-z]+(?:-[a-z]+)*", "either": "a|a-|1.*", "lazy": "[a-z]+?", "ahead": "(?=a).+"}


@pytest.fixture(autouse=True)
def convertors() -> Iterator[None]:
    before = dict(CONVERTOR_TYPES)
    for name, regex in (REGEXES | OPAQUE).items():
        register_url_convertor(name, type(name, (StringConvertor,), {"regex": regex})())
    yield
    CONVERTOR_TYPES.clear()
    CONVERTOR_TYPES.update(before)


@pytest.fixture(params=["any length", "as steps alone"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Short paths go to the regex: here even they are matched as long ones are."""
    if request.param == "as steps alone":
        monkeypatch.setattr(paths, "_longest", lambda *_: -1)
    return str(request.param)


def template(draw: random.Random, kinds: list[str]) -> str:
    text = "/" + draw.choice(["", "", "a/", "a", "-"])
    for number in range(draw.randint(1, 4)):
        text += f"{{p{number}{draw.choice(kinds)}}}" + draw.choice(LITERALS)
    return text


def request_path(draw: random.Random, text: str) -> str:
    """Mostly what the pattern might match; then some noise."""
    alphabet = ["a", "a", "b", "-", ".", "/", "1", "1", "0", "\n", "é", "_"]
    uuid = "0123abcd-0123-0123-0123-0123456789ab"

    def value(kind: str) -> str:
        match kind:
            case ":int" | ":float":
                return draw.choice(["1", "01", "1.0", "0.11", "1.", "111"])
            case ":uuid":
                return draw.choice([uuid, uuid.replace("-", "", draw.randint(1, 4)), uuid[1:]])
            case ":day":
                return draw.choice(["11-1", "11-11", "1-1", "11-111"])
            case ":few" | ":loose" | ":pair" | ":word":
                return "".join(draw.choices("aab-1.", k=draw.randint(0, 4)))
        return "".join(draw.choices(alphabet, k=draw.randint(0 if kind == ":path" else 1, 5)))

    path = "".join(
        value(piece[1:-1].lstrip("p0123")) if piece.startswith("{") else piece
        for piece in re.split("({.*?})", text)
    )
    if draw.random() < 0.3:
        at = draw.randrange(len(path) + 1)
        path = path[:at] + draw.choice([*alphabet, ""]) + path[at + draw.randint(0, 2) :]
    return path + draw.choice(["", "", "", "\n"])


def by_regex(text: str, path: str) -> dict[str, Any] | None:
    """What Starlette's router finds; where that is nothing, with dots that cross lines."""
    regex = compile_path(text)[0]
    found = regex.match(path) or re.compile(regex.pattern, re.DOTALL).match(path)
    return None if found is None else found.groupdict()


@pytest.mark.parametrize(
    "seeds", [range(3_000), pytest.param(range(3_000, 100_000), marks=pytest.mark.slow)], ids=str
)
def test_a_path_matches_with_the_parameters_of_starlettes_regex(
    seeds: range, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "_converted", lambda _, text: text)
    built_in = ["", "", ":path", ":path", ":int", ":float", ":uuid"]
    matched = 0
    for seed in seeds:
        draw = random.Random(seed)
        own = [f":{name}" for name in REGEXES] if seed % 2 else []
        text = template(draw, built_in + own)
        compiled = Path(text)
        for _ in range(8):
            path = request_path(draw, text)
            found = compiled.match(path)
            assert found == by_regex(text, path), (seed, way, text, path)
            matched += found is not None
    assert matched > len(seeds)


@pytest.mark.parametrize(
    "seeds", [range(1_000), pytest.param(range(1_000, 30_000), marks=pytest.mark.slow)], ids=str
)
def test_an_applications_regex_decides_on_short_paths_and_may_hold_more_on_long_ones(
    seeds: range, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "_converted", lambda _, text: text)
    matched = wider = 0
    for seed in seeds:
        draw = random.Random(seed)
        text = template(draw, ["", ":path", ":int", *(f":{name}" for name in OPAQUE)])
        path = request_path(draw, text)
        expected = by_regex(text, path)
        assert Path(text).match(path) == expected, (seed, text, path)
        matched += expected is not None
        if any(f":{name}}}" in text for name in OPAQUE):
            with monkeypatch.context() as patch:
                patch.setattr(paths, "_longest", lambda *_: -1)
                found = Path(text).match(path)
            assert found is not None or expected is None, (seed, text, path)
            wider += found is not None and expected is None
    assert matched > len(seeds) / 10
    assert wider > len(seeds) / 10
