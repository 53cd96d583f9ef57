"""What is legal but probably not meant, and the pages that explain every code."""

import ast
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from ratelimit.limits import Limit
from ratelimit.rules.advice import Advice, advise
from ratelimit.rules.file.keys import FileKeys, MatchKeys, RuleKeys
from ratelimit.rules.file.mistakes import RuleFileError
from ratelimit.rules.file.reader import load, loads
from ratelimit.rules.rule import Rule
from ratelimit.rules.ruleset import RuleSet

ROOT: Final = Path(__file__).resolve().parents[2]
MISTAKES: Final = (ROOT / "docs" / "mistakes.md").read_text(encoding="utf-8")
RULE_FILES: Final = (ROOT / "docs" / "rule-files.md").read_text(encoding="utf-8")


def codes(*rules: Rule, **more: object) -> list[str]:
    rule_set = RuleSet(rules, **{"store": "redis://localhost:6379/0"} | more)  # type: ignore[arg-type]
    return [advice.code for advice in advise(rule_set)]


def about(rule: Rule) -> str:
    (advice,) = advise(RuleSet((rule,), store="redis://localhost:6379/0"))
    assert advice.rule == rule.name
    return advice.text


# --- advice --------------------------------------------------------------------------------------


def test_a_plain_rule_on_redis_is_worth_no_word() -> None:
    assert codes(Rule("api", "100/minute")) == []


def test_an_advice_reads_as_a_line() -> None:
    (advice,) = advise(RuleSet((Rule("a", "1/second", by="global"),), store="redis://a"))
    assert advice == Advice("shared-by-all", "a", advice.text)
    assert str(advice) == f"rule 'a': {advice.text} [shared-by-all]"
    (advice,) = advise(RuleSet((Rule("a", "1/second"),)))
    assert str(advice) == f"the file: {advice.text} [memory-store]"


CHOSEN = Rule("keys", "10/minute", by="header:X-API-Key", path="/a", methods=["GET"])


def test_who_chooses_his_own_identity_is_never_refused() -> None:
    for by in ("header:X-Key", "cookie:session", "query:key", ["client", "header:X-Key"]):
        assert codes(Rule("keys", "10/minute", by=by)) == ["client-chosen"]
    assert "another header x-api-key" in about(CHOSEN)
    assert codes(Rule("items", "10/minute", by="path:id", path="/{id}")) == []


@pytest.mark.parametrize(
    ("other", "enough"),
    [
        (Rule("all", "100/minute"), True),
        (Rule("all", "100/minute", path="/a", methods=["GET", "POST"]), True),
        (Rule("all", "100/minute", path="/b"), False),
        (Rule("all", "100/minute", methods=["POST"]), False),
        (Rule("all", "100/minute", mode="shadow"), False),
        (Rule("all", "100/minute", mode="off"), False),
        (Rule("all", "100/minute", by="cookie:session", path="/a"), False),
        (Rule("all", "100/minute", enforce_share=0.5), False),
        (Rule("all", "100/minute", cost=0), False),
        (Rule("all", "100/minute", skip=bool), False),
        (Rule("all", "100/minute", on_missing="skip"), True),
        (Rule("all", "100/minute", by="user", on_missing="skip"), False),
        (Rule("all", {"free": "9/minute", "pro": "unlimited"}, tier="user:plan"), False),
    ],
    ids=str,
)
def test_a_rule_by_client_beside_it_bounds_what_clients_choose(other: Rule, enough: bool) -> None:
    assert ("client-chosen" not in codes(CHOSEN, other)) == enough


def test_a_bound_holds_for_all_methods_only_where_it_names_none() -> None:
    everything = Rule("keys", "10/minute", by="header:X-API-Key")
    assert codes(everything, Rule("all", "100/minute", methods=["GET"])) == ["client-chosen"]


def test_advice_on_thousands_of_rules_takes_no_time_that_a_request_would_notice() -> None:
    rules = [Rule(f"r{n}", "9/second", by="header:X-Key", path=f"/{n}") for n in range(2_000)]
    started = time.perf_counter()
    assert len(codes(*rules)) == len(rules)
    assert time.perf_counter() - started < 1  # each with each would take 2.5 s


def test_a_rule_that_is_off_is_worth_no_word() -> None:
    assert codes(Rule("a", "1/second", by="global", mode="off")) == []


def test_a_quota_that_all_share_can_be_used_up_by_one() -> None:
    assert codes(Rule("a", "1/second", by="global")) == ["shared-by-all"]
    assert codes(Rule("a", "1/second", by="global", mode="shadow")) == []


def test_a_rule_by_user_needs_someone_who_says_who_the_user_is() -> None:
    assert codes(Rule("a", "1/second", by="user")) == ["by-user"]
    assert codes(Rule("a", "1/second", by=["client", "user"])) == ["by-user"]


@pytest.mark.parametrize("path", ["/api/*", "/users/:id", "/users/<int:id>", "/a/.*/b"])
def test_the_syntax_of_other_routers_stands_for_itself(path: str) -> None:
    assert codes(Rule("a", "1/second", path=path)) == ["foreign-path"]


@pytest.mark.parametrize("path", ["/api/{rest:path}", "/a:b", "/a<b", "/users/{id:int}"])
def test_paths_of_starlette_are_worth_no_word(path: str) -> None:
    assert codes(Rule("a", "1/second", path=path)) == []


def test_a_fixed_window_lets_through_twice_its_quota() -> None:
    assert codes(Rule("a", "10/minute", algorithm="fixed_window")) == ["fixed-window-double"]
    assert "up to 20 pass" in about(Rule("a", "10/minute", algorithm="fixed_window"))
    assert codes(Rule("a", {"x": Limit("1/s", algorithm="fixed_window")}, tier="user:plan")) == [
        "fixed-window-double"
    ]


def test_a_large_log_is_large() -> None:
    assert codes(Rule("a", "10001/hour", algorithm="sliding_log")) == ["large-log"]
    assert codes(Rule("a", "10000/hour", algorithm="sliding_log")) == []
    assert codes(Rule("a", "10001/hour")) == []


def test_a_bucket_of_a_day_may_be_used_up_at_once() -> None:
    assert codes(Rule("a", "1000/day", algorithm="token_bucket")) == ["long-bucket"]
    assert "up to 1999 pass in the first day" in about(
        Rule("a", "1000/day", algorithm="token_bucket")
    )
    assert "the first 2 days" in about(Rule("a", "100/2 days", algorithm="token_bucket"))
    assert codes(Rule("a", "1000/day", algorithm="token_bucket", burst=20)) == []
    assert codes(Rule("a", "1000/hour", algorithm="token_bucket")) == []


def test_counters_in_process_are_those_of_one_process() -> None:
    assert codes(Rule("a", "1/second"), store="memory://") == ["memory-store"]


def test_a_count_of_proxies_trusts_whoever_comes_past_them() -> None:
    assert codes(Rule("a", "1/second"), trusted_hops=1) == ["trusted-hops"]


def test_a_local_quota_is_each_workers_until_they_are_counted() -> None:
    local = Rule("a", "1/second", on_store_failure="local")
    assert codes(local) == ["local-workers"]
    assert codes(Rule("a", "1/second"), on_store_failure="local") == ["local-workers"]
    assert codes(local, workers=2) == []
    assert codes(Rule("a", "1/second", on_store_failure="deny"), on_store_failure="local") == []


# --- docs/mistakes.md ----------------------------------------------------------------------------

AT: Final = {
    "_refusal": 0, "_meant": 0, "Contradiction": 0, "Advice": 0, "trial": 1, "_stop": 3,
    "override": 3, "Mistake": 5,
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
        "file/yaml", "file/reader", "file/keys", "file/lists", "file/contradictions", "file/trials"
    )
    alone = {"bad-name", "bad-path", "bad-algorithm", "bad-share"}
    of_options = {"bad-burst", "bad-rounding", "bad-max-delay"}
    of_words = {
        f"bad-{key.replace('_', '-')}"
        for keys in (FileKeys, RuleKeys, MatchKeys)
        for key, field in keys.model_fields.items()
        if "Literal" in str(field.annotation)
    }
    assert len(fixed) > 40
    assert len(of_words) > 5
    assert paragraphs("Mistakes").keys() == fixed | alone | of_options | of_words


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
    assert paragraphs("Advice").keys() == codes_in("advice")


# --- docs/rule-files.md --------------------------------------------------------------------------


EXAMPLE, LIST, WRONG, SHOWN, _ = re.findall(
    r"^```(?:yaml|text)\n(.*?)^```", RULE_FILES, re.MULTILINE | re.DOTALL
)


def test_the_examples_of_the_page_load(tmp_path: Path) -> None:
    rules = tmp_path / "rules.yaml"
    rules.write_text(EXAMPLE, encoding="utf-8")
    (tmp_path / "blocked.txt").write_text("203.0.113.7\n", encoding="utf-8")
    assert len(load(rules).rules) == 3
    (tmp_path / "list.txt").write_text(LIST, encoding="utf-8")
    rules.write_text(
        "version: 1\nrules: [{name: a, limit: 1/second, overrides_file: list.txt}]\n", "utf-8"
    )
    (rule,) = load(rules).rules
    assert list(rule.overrides) == ["198.51.100.9", "2001:db8::/64", "192.0.2.77"]
    assert rule.overrides["192.0.2.77"] == ()


def test_the_page_has_a_row_for_each_key() -> None:
    for keys in (FileKeys, RuleKeys, MatchKeys):
        rows = [f"| `{key}` | {field.description} |" for key, field in keys.model_fields.items()]
        assert "\n".join(rows) in RULE_FILES


def test_the_pages_mistake_is_the_one_that_is_reported() -> None:
    with pytest.raises(RuleFileError) as refused:
        loads(WRONG, "rules.yaml")
    assert f"{refused.value}\n" == SHOWN
