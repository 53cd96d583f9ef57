"""The pages that explain rule files and every code of a mistake or an advice, held to the code."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from ratelimit.rules.file.keys import FileKeys, MatchKeys, RuleKeys
from ratelimit.rules.file.mistakes import RuleFileError
from ratelimit.rules.options import FILE, RULE
from ratelimit.rules.ruleset import RuleSet

ROOT: Final = Path(__file__).resolve().parents[3]
MISTAKES: Final = (ROOT / "docs" / "mistakes.md").read_text(encoding="utf-8")
RULE_FILES: Final = (ROOT / "docs" / "rule-files.md").read_text(encoding="utf-8")


# --- docs/mistakes.md ----------------------------------------------------------------------------

AT: Final = {
    "_refusal": 0, "Contradiction": 0, "Idle": 0, "Misplaced": 2, "Advice": 0, "_stop": 3,
    "override": 3, "Mistake": 5, "Coded": 0,
}  # fmt: skip
"""Where a code stands among the arguments."""


def sources(*names: str) -> Iterator[ast.AST]:
    for name in names:
        yield from ast.walk(
            ast.parse((ROOT / "ratelimit" / "rules" / f"{name}.py").read_text("utf-8"))
        )


def codes_in(*names: str) -> set[str]:
    """Every code that a source gives as it is; those made of a key's name are left out."""
    found = set()
    for node in sources(*names):
        if not isinstance(node, ast.Call):
            continue
        function = node.func
        name = getattr(function, "attr", getattr(function, "id", ""))
        place = AT.get(name)
        if name == "add" and isinstance(function, ast.Attribute):
            place = 3 if ast.unparse(function.value) == "self" else 4
        arguments = node.args if place is None else node.args[place : place + 1]
        if place is None:
            arguments = [each.value for each in node.keywords if each.arg == "code"]
        found |= {each.value for each in arguments if isinstance(each, ast.Constant)}
    return {code for code in found if isinstance(code, str)}


def paragraphs(heading: str) -> dict[str, str]:
    """The paragraphs of a part of the page, by code."""
    (part,) = re.findall(rf"^## {heading}\n(.*?)(?=^## |\Z)", MISTAKES, re.MULTILINE | re.DOTALL)
    found = re.findall(r"^### ([a-z0-9-]+)\n\n(.+?)\n(?=\n### |\Z)", part, re.MULTILINE | re.DOTALL)
    assert len(found) == part.count("\n### ")
    assert len(dict(found)) == len(found)
    return dict(found)


def test_every_code_of_a_mistake_has_its_paragraph() -> None:
    fixed = codes_in(
        *(f"file/{name}" for name in ("yaml", "reader", "forms", "lists", "contradictions")),
        "banning",
        "charging",
        "replacing",
    )
    of_options = {
        option.code or f"bad-{key.replace('_', '-')}"
        for options in (RULE, FILE)
        for key, option in options.items()
        if option.form is not None and option.form.kind != "networks"  # told item by item
    }
    assert len(fixed) > 30
    assert paragraphs("Mistakes").keys() == fixed | of_options | {"bad-version"}


def test_every_mistake_links_a_file_that_has_it() -> None:
    for code, text in paragraphs("Mistakes").items():
        if code == "bad-rule":  # what no file is known to have
            continue
        files = re.findall(r"\]\(\.\./(tests/rules/file/bad/[a-z0-9_]+)\.yaml\)", text)
        assert files, code
        for file in files:
            shown = (ROOT / f"{file}.txt").read_text(encoding="utf-8")
            assert f"[{code}]\n" in shown, (code, file)


def test_every_file_with_a_mistake_has_only_codes_that_are_explained() -> None:
    known = paragraphs("Mistakes").keys()
    for file in (ROOT / "tests" / "rules" / "file" / "bad").glob("*.txt"):
        shown = re.findall(r"\[([a-z0-9-]+)\]$", file.read_text(encoding="utf-8"), re.MULTILINE)
        assert shown
        assert set(shown) <= known


def test_every_code_of_an_advice_has_its_paragraph() -> None:
    assert paragraphs("Advice").keys() == codes_in("advice", "effect")


# --- docs/rule-files.md --------------------------------------------------------------------------


EXAMPLE, *EXAMPLES, LIST, WRONG, SHOWN, _ = re.findall(
    r"^```(?:yaml|text)\n(.*?)^```", RULE_FILES, re.MULTILINE | re.DOTALL
)


def test_the_examples_of_the_page_load(tmp_path: Path) -> None:
    rules = tmp_path / "rules.yaml"
    rules.write_text(EXAMPLE, encoding="utf-8")
    (tmp_path / "blocked.txt").write_text("203.0.113.7\n", encoding="utf-8")
    assert len(RuleSet.load(rules).rules) == 3
    assert [len(RuleSet.loads(text).rules) for text in EXAMPLES] == [1, 2, 1]
    (tmp_path / "list.txt").write_text(LIST, encoding="utf-8")
    rules.write_text(
        "version: 1\nrules: [{name: a, limit: 1/second, overrides_file: list.txt}]\n", "utf-8"
    )
    (rule,) = RuleSet.load(rules).rules
    assert list(rule.overrides) == ["198.51.100.9", "2001:db8::/64", "192.0.2.77"]
    assert rule.overrides["192.0.2.77"] == ()


def test_the_page_has_a_row_for_each_key() -> None:
    for keys in (FileKeys, RuleKeys, MatchKeys):
        rows = [f"| `{key}` | {field.description} |" for key, field in keys.model_fields.items()]
        assert "\n".join(rows) in RULE_FILES


def test_the_pages_mistake_is_the_one_that_is_reported() -> None:
    with pytest.raises(RuleFileError) as refused:
        RuleSet.loads(WRONG, "rules.yaml")
    assert f"{refused.value}\n" == SHOWN


@pytest.mark.parametrize(
    "rules",
    [
        "[{name: '${NAME}', limit: 5/s}, {name: b, limit: 6/s, replaces: [hunter]}]",
        "[{name: '${NAME}', limit: 5/s, replaces: b}, {name: b, limit: 6/s, replaces: '${NAME}'}]",
        "[{name: a, limit: 5/s}, {name: b, limit: 6/s, by: '${BY}', replaces: [a]}]",
        "[{name: a, limit: 5/s, match: {host: '${NAME}:80', except: '${NAME}'}, free: '${NAME}'}]",
        "[{name: a, limit: 5/s, by: [user, route], overrides: {'${NAME}|': blocked}}]",
    ],
)
def test_no_mistake_in_the_newer_options_shows_the_environment(
    rules: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NAME", "hunter2")
    monkeypatch.setenv("BY", "header:x-hunter2")
    with pytest.raises(RuleFileError) as refused:
        RuleSet.loads(f"version: 1\nrules: {rules}\n")
    assert "hunter2" not in str(refused.value)
