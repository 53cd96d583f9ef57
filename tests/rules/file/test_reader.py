"""Rule files: what is read from the good ones, and every mistake in the bad ones."""

import os
import pickle
import threading
import time
from collections.abc import Callable
from fractions import Fraction
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
import yaml

from ratelimit import limits, words
from ratelimit.limits import Limit
from ratelimit.rules.file import yaml as yamlfile
from ratelimit.rules.file.keys import FileKeys, Keys, MatchKeys, RuleKeys
from ratelimit.rules.file.mistakes import Mistake, RuleFileError
from ratelimit.rules.rule import Rule
from ratelimit.rules.ruleset import RuleSet

FOLDER = Path(__file__).parent
GOOD = sorted((FOLDER / "good").glob("*.yaml"))
BAD = sorted((FOLDER / "bad").glob("*.yaml"))
SECRET = "s3cret!"
SMALL = "version: 1\nrules:\n  - name: api\n    limit: 10/minute\n"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RULES_PASSWORD", SECRET)
    monkeypatch.setenv("RULES_PROXY", "10.0.0.0/8")
    monkeypatch.setenv("RULES_QUOTA", "5")
    monkeypatch.setenv("RULES_COST", "2")
    monkeypatch.setenv("RULES_VIP", "198.51.100.9")
    monkeypatch.setenv("RULES_NAME", "tuesday")
    monkeypatch.setenv("RULES_LIST", "latin1")
    monkeypatch.setenv("RULES_MODE", "shadow")
    monkeypatch.delenv("RULES_NOWHERE", raising=False)


@pytest.fixture(params=["C", "Python"])
def parser(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "Python":
        monkeypatch.setattr(yamlfile, "_FAST", yaml.SafeLoader)
    elif not hasattr(yaml, "CSafeLoader"):
        pytest.skip("PyYAML was built without libyaml")


def refusal(text: str, name: str = "<rules>") -> RuleFileError | None:
    try:
        RuleSet.loads(text, name)
    except RuleFileError as error:
        return error
    return None


@pytest.mark.usefixtures("parser")
@pytest.mark.parametrize("file", GOOD, ids=lambda file: file.stem)
def test_a_good_file_is_a_rule_set(file: Path) -> None:
    assert isinstance(RuleSet.load(file), RuleSet)
    assert RuleSet.load(str(file)) == RuleSet.loads(file.read_text(encoding="utf-8"), str(file))


@pytest.mark.usefixtures("parser")
@pytest.mark.parametrize("file", BAD, ids=lambda file: file.stem)
def test_a_bad_file_is_refused_with_exactly_these_mistakes(file: Path) -> None:
    with pytest.raises(RuleFileError) as refused:
        RuleSet.load(file)
    text = str(refused.value).replace(f"{file.parent}/", "") + "\n"
    assert text == file.with_suffix(".txt").read_text(encoding="utf-8")
    assert SECRET not in repr(refused.value)
    assert refused.value.__context__ is None  # where a value from the environment could be


def test_every_expected_text_has_its_file() -> None:
    texts = {file.stem for file in (FOLDER / "bad").glob("*.txt")}
    assert texts == {file.stem for file in BAD}
    assert len(BAD) > 160


def test_the_contracts_example_is_read_as_it_is_written() -> None:
    assert RuleSet.load(FOLDER / "good" / "every_key.yaml") == RuleSet(
        rules=(
            Rule("api", "100/minute", path="/api/{rest:path}", methods=["GET", "POST"]),
            Rule(
                "login",
                "5/minute; 20/hour",
                path="/login",
                methods=["POST"],
                algorithm="sliding_log",
                on_store_failure="deny",
                overrides={"198.51.100.9": "50/minute"},
            ),
            Rule(
                "search",
                "10/second",
                path="/search",
                by=["client", "route"],
                algorithm="leaking_bucket",
                burst=20,
                cost=2,
                mode="shadow",
            ),
        ),
        store="redis://localhost:6379/0",
        deadline_us=50_000,
        on_store_failure="allow",
        trusted_proxies=(ip_network("10.0.0.0/8"),),
        allowlist=(ip_network("192.0.2.0/24"), ip_network("2001:db8::/32")),
        denylist=(ip_network("203.0.113.7"),),
        headers=("draft",),
    )


def test_what_is_left_out_of_a_file_is_what_a_rule_set_has() -> None:
    assert RuleSet.loads(SMALL) == RuleSet((Rule("api", "10/minute"),))


@pytest.mark.usefixtures("parser")
def test_scalars_are_the_text_that_is_written() -> None:
    """YAML 1.1 would read booleans, nulls, octal and sexagesimal numbers."""
    rule_set = RuleSet.load(FOLDER / "good" / "yaml_1_1_traps.yaml")
    assert [rule.name for rule in rule_set.rules] == ["on", "y", "null"]
    on, y, null = rule_set.rules
    assert on.mode == "off"
    assert y.by == ("no", "cookie:on", "query:1:30")
    assert (null.limits, null.path) == ((Limit("10/minute"),), "/1e3")
    assert list(null.overrides) == ["2001:db8::/64", "198.51.100.9"]
    assert [str(network) for network in rule_set.denylist] == [
        "::1/128", "2001:db8::7/128", "203.0.113.7/32",
    ]  # fmt: skip


def test_variables_are_taken_from_the_environment() -> None:
    rule_set = RuleSet.load(FOLDER / "good" / "environment.yaml")
    assert rule_set.store == f"redis://:{SECRET}@localhost:6379/0"
    assert rule_set.trusted_proxies == (ip_network("10.0.0.0/8"),)
    (rule,) = rule_set.rules
    assert (rule.limits, rule.cost) == ((Limit("5/minute"),), 2)
    assert dict(rule.overrides) == {"198.51.100.9": (Limit("50/minute"),)}


def test_a_variables_value_is_not_looked_into(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RULES_NAME", "${RULES_QUOTA}")
    with pytest.raises(RuleFileError) as refused:
        RuleSet.loads("version: 1\nrules:\n  - {name: '${RULES_NAME}', limit: 1/second}\n")
    assert [mistake.code for mistake in refused.value.mistakes] == ["bad-name"]


def test_max_delay_is_a_duration_or_none() -> None:
    rules = RuleSet.load(FOLDER / "good" / "no_cut.yaml").rules
    assert [rule.limits[0].max_delay for rule in rules] == [None, 0.5, None, None]


def test_a_mistake_knows_its_place() -> None:
    with pytest.raises(RuleFileError) as refused:
        RuleSet.loads(SMALL + "    mode: shadwo\n", "r.yaml")
    (mistake,) = refused.value.mistakes
    message = "'shadwo' is there; it is 'enforce', 'shadow' or 'off'"
    assert mistake == Mistake("r.yaml", 5, 11, "rules[0].mode", message, "bad-mode")
    assert str(mistake) == f"r.yaml:5:11: rules[0].mode: {message} [bad-mode]"
    assert str(refused.value) == str(mistake)


@pytest.mark.parametrize("file", ["nowhere.yaml", ".", "nul\0"])
def test_a_file_that_cannot_be_read_is_a_mistake(tmp_path: Path, file: str) -> None:
    with pytest.raises(RuleFileError) as refused:
        RuleSet.load(f"{tmp_path}/{file}")
    assert [mistake.code for mistake in refused.value.mistakes] == ["unreadable"]


def test_a_file_of_more_than_five_megabytes_is_refused_at_once(tmp_path: Path) -> None:
    file = tmp_path / "rules.yaml"
    file.write_text(SMALL + "#" * 5_000_000)
    with pytest.raises(RuleFileError) as refused:
        RuleSet.load(file)
    assert [mistake.code for mistake in refused.value.mistakes] == ["too-large"]


@pytest.mark.parametrize(
    "text",
    [
        "[" * 1_000_000,
        "{" * 1_000_000,
        "- " * 1_000_000,
        "? " * 1_000_000,
        "a: &a " * 100_000,
        "- x\n" * 1_000_000,
        "&a " * 1_000_000,
        "'" + "x" * 2_000_000,
        SMALL + "    cost: " + "9" * 2_000_000,
        SMALL + "    by: [" + "a, " * 150_000 + "]",
        SMALL + "    ${" * 300_000,
        SMALL.replace("api", "${X}" * 100_000),
        SMALL.replace("10/minute", "1" * 1_000_000 + "/minute"),
        SMALL.replace("10/minute", ";".join(f"{n}/minute" for n in range(1, 3_000))),
        SMALL + "    match: {path: '/" + "{a}/" * 400 + "'}",
        SMALL + "    match: {path: '/" + "{a" * 400_000 + "'}",
    ],
    ids=range(16),
)
def test_no_text_makes_reading_hang(text: str) -> None:
    start = time.process_time()
    with pytest.raises(RuleFileError):
        RuleSet.loads(text)
    assert time.process_time() - start < 5


def address(number: int) -> str:
    return f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"


ADDRESSES = ", ".join(map(address, range(50_000)))


@pytest.mark.skipif(not hasattr(yaml, "CSafeLoader"), reason="needs PyYAML with libyaml")
@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("".join(f"%TAG !a{n}! tag:x\n" for n in range(100_000)) + f"---\n{SMALL}", "too-large"),
        ("version: 1\nheaders: [" + "craft, " * 150_000 + "]\n" + SMALL[11:], "more-mistakes"),
        ("? " + "a" * 2_500_000 + "\n:\n" + "  k: 1\n" * 60_000, "more-mistakes"),
        (SMALL + "".join(f"    k{n}: 1\n" for n in range(90_000)), "more-mistakes"),
        (
            SMALL + "    match: {methods: [" + "".join(f"GT{n}, " for n in range(90_000)) + "]}",
            "more-mistakes",
        ),
        (
            SMALL + "    by: user\n    overrides:\n"
            + "".join(f"      u{n}: {n}/minut\n" for n in range(60_000)),
            "more-mistakes",
        ),
        (
            f"version: 1\ndenylist: [{ADDRESSES}]\nrules:\n"
            + "".join(f"- {{name: r, limit: 5/s, match: {{path: /{n}}}}}\n" for n in range(5_000)),
            "more-mistakes",
        ),
        (
            "version: 1\nrules:\n"
            + "".join(f"- {{name: r{n}, limit: {n + 1}/{n + 1}s}}\n" for n in range(9_000)),
            "too-many-limits",
        ),
    ],
    ids=["tags", "headers", "long key", "keys", "methods", "overrides", "networks", "rules"],
)  # fmt: skip
def test_nothing_in_a_file_takes_more_time_than_its_length_allows(text: str, code: str) -> None:
    """Each of these took minutes, or will, where something is compared with all before it."""
    start = time.process_time()
    error = refusal(text)
    assert time.process_time() - start < 10  # a second or two
    assert error is not None
    assert error.mistakes[-1].code == code


def test_of_a_rule_file_a_thousand_mistakes_are_told() -> None:
    error = refusal(SMALL + "".join(f"    k{number}: 1\n" for number in range(1_001)))
    assert error is not None
    assert len(error.mistakes) == 1_001
    assert str(error.mistakes[-1]) == (
        "<rules>:1005:5: rules[0]: there are more mistakes than these 1000; mend them first "
        "[more-mistakes]"
    )


def test_a_list_of_overrides_with_many_mistakes_is_not_read_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_for: list[str] = []

    def near(word: str, *arguments: Any) -> str:
        looked_for.append(word)
        return words.near(word, *arguments)

    monkeypatch.setattr(limits, "near", near)
    lines = "".join(f"u{number} {number}/minut\n" for number in range(100_000))
    (tmp_path / "list.txt").write_text(lines)
    text = SMALL + "    by: user\n    overrides_file: list.txt\n"
    error = refusal(text, str(tmp_path / "rules.yaml"))
    assert error is not None
    assert "the list has at least 980 more mistakes" in str(error.mistakes[-1])
    assert len(looked_for) <= yamlfile.MOST_MISTAKES + 1


@pytest.mark.skipif(not hasattr(yaml, "CSafeLoader"), reason="needs PyYAML with libyaml")
@pytest.mark.parametrize("size", [0, 300_000])
@pytest.mark.parametrize(
    "text",
    ["%FOO bar\n---\n" + SMALL, SMALL.replace("api", "\tapi"), "denylist: [::1, 1::]\n" + SMALL],
)
def test_a_file_is_right_or_wrong_at_any_length(size: int, text: str) -> None:
    """PyYAML's parser in Python, which words the mistakes of short files, would take some more."""
    assert (refusal(text) is None) == (refusal(f"{text}#{'x' * size}\n") is None)


@pytest.mark.skipif(not hasattr(yaml, "CSafeLoader"), reason="needs PyYAML with libyaml")
def test_what_one_parser_of_yaml_refuses_is_refused() -> None:
    text = f"%FOO bar\n---\n{SMALL}"
    assert list(yaml.parse(text, yaml.SafeLoader))
    assert str(refusal(text)).startswith("<rules>:1:5: file: this is not YAML: found unknown dire")
    both = refusal(text + "    mode: shadwo\n")
    assert both is not None
    assert [mistake.code for mistake in both.mistakes] == ["bad-mode"]


@pytest.mark.skipif(not hasattr(yaml, "CSafeLoader"), reason="needs PyYAML with libyaml")
def test_a_large_file_that_is_not_yaml_is_refused_as_fast_as_one_that_is() -> None:
    start = time.process_time()
    error = refusal("'" + "x " * 2_400_000)
    assert error is not None
    assert [mistake.code for mistake in error.mistakes] == ["not-yaml"]
    assert time.process_time() - start < 2  # PyYAML's parser in Python takes more than 4


def test_no_message_shows_a_value_of_the_environment() -> None:
    """The variable stands in the place of each scalar of a file in turn."""
    refusals = 0
    for file in (FOLDER / "good" / "every_key.yaml", FOLDER / "good" / "tiers_and_lists.yaml"):
        refusals += refusals_with_a_secret(file)
    assert refusals > 250


def refusals_with_a_secret(file: Path) -> int:
    text = file.read_text(encoding="utf-8")
    refusals = 0
    for token in yaml.scan(text):
        if not isinstance(token, yaml.ScalarToken):
            continue
        start, end = token.start_mark.index, token.end_mark.index
        for scalar in ('"${RULES_PASSWORD}"', '"/${RULES_PASSWORD}"', '"path:${RULES_PASSWORD}"'):
            error = refusal(text[:start] + scalar + text[end:], str(file))
            refusals += error is not None
            assert SECRET not in str(error)
            assert error is None or "${RULES_PASSWORD}" in str(error)
    return refusals


def seconds_of(load_it: Callable[[], object]) -> float:
    """Seconds of this process, which other processes do not lengthen."""
    start = time.process_time()
    load_it()
    return time.process_time() - start


@pytest.mark.skipif(not hasattr(yaml, "CSafeLoader"), reason="needs PyYAML with libyaml")
def test_ten_thousand_overrides_in_a_thousand_rules_take_no_longer_each_than_in_a_few() -> None:
    def text_of(count: int) -> str:
        return "version: 1\nrules:\n" + "".join(
            f"  - name: r{number}\n    limit: 10/minute\n"
            f"    match: {{path: '/a/{{x}}/{number}'}}\n"
            f"    by: [client, 'path:x']\n    overrides:\n"
            + "".join(
                f"      10.0.{number % 250}.{host}: {20 + host}/minute\n" for host in range(10)
            )
            for number in range(count)
        )

    few, many = text_of(100), text_of(1_000)
    assert sum(len(rule.overrides) for rule in RuleSet.loads(many).rules) == 10_000
    each_of_few = min(seconds_of(lambda: RuleSet.loads(few)) for _ in range(3)) / 100
    each_of_many = min(seconds_of(lambda: RuleSet.loads(many)) for _ in range(2)) / 1_000
    assert each_of_many < 4 * each_of_few


def test_a_thousand_rules_with_a_mistake_each_are_refused_in_seconds() -> None:
    text = "version: 1\nrules:\n" + "".join(
        f"  - {{name: r{number}, limit: 10/minut, by: user}}\n" for number in range(1_000)
    )
    start = time.process_time()
    error = refusal(text)
    assert error is not None
    assert len(error.mistakes) == 1_000
    assert time.process_time() - start < 5


KINDS = [
    "", "x", "1", "[]", "{}", "[x]", "[[x]]", "[{x: y}]", "{x: y}", "{x: [y]}", "{x: {y: z}}",
    "{int: 1}", "{? [a] : b}", "[~]", "{x: ~}", "'${X Y}'", "{path: {a: b}, methods: {a: b}}",
    "{path: [a], methods: [[a]]}",
]  # fmt: skip
FORMS: dict[type[Keys], str] = {
    FileKeys: "version: 1\nrules: [{name: a, limit: 1/second}]\nKEY: VALUE\n",
    RuleKeys: "version: 1\nrules:\n  - name: a\n    limit: 1/second\n    KEY: VALUE\n",
    MatchKeys: "version: 1\nrules:\n  - name: a\n    limit: 1/second\n    match: {KEY: VALUE}\n",
}
OTHERS = {"version: 1\n": "version", "rules: [{name: a, limit: 1/second}]\n": "rules"}


@pytest.mark.parametrize(
    ("form", "key"),
    [(form, key) for keys, form in FORMS.items() for key in keys.model_fields],
)
def test_every_key_takes_or_refuses_any_kind_of_value(form: str, key: str) -> None:
    for other, name in OTHERS.items():
        form = form.replace(other, "") if name == key else form
    for kind in KINDS:
        refusal(form.replace("KEY", key).replace("VALUE", kind))  # and raises nothing else
    error = refusal(form.replace("KEY", key).replace("VALUE", "{a: {b: {c: d}}}"))
    assert error is not None
    assert any(key in mistake.place for mistake in error.mistakes)


# --- tiers, lists and shares ---------------------------------------------------------------------


def test_tiers_and_lists_are_read_as_they_are_written() -> None:
    file = FOLDER / "good" / "tiers_and_lists.yaml"
    rule_set = RuleSet.load(file)
    offices = (ip_network("192.0.2.0/24"), ip_network("2001:db8:1::/48"))
    assert rule_set == RuleSet(
        rules=(
            Rule(
                "plans",
                {"free": "10/minute", "pro": "1000/minute; 20000/hour", "internal": None},
                tier="header:x-plan",
                path="/api/{rest:path}",
                by="header:x-api-key",
                on_missing="refuse",
                cost="tokens",
                overrides={
                    "alice": None,
                    "bob the builder": "20/minute",
                    "carol#1": "50/minute; 500/hour",
                    "dave": None,
                },
            ),
            Rule(
                "signup",
                "5/minute",
                path="/signup",
                methods=["POST"],
                enforce_share=0.25,
                allowlist=(ip_network("198.51.100.0/24"), *offices),
                denylist=(ip_network("203.0.113.128/25"), ip_network("203.0.113.64/26")),
                overrides={"198.51.100.9": "50/minute", "2001:db8::9": "10 per 2 minutes"},
            ),
        ),
        share=Fraction(1, 2),
        trusted_hops=1,
        forwarded_header="forwarded",
        ipv6_prefix=56,
        allowlist=offices,
        denylist=(ip_network("203.0.113.7"), ip_network("2001:db8:bad::/48")),
        headers=("legacy", "draft-03"),
        retry_jitter_us=2_000_000,
        retry_hints=True,
        preflights="count",
    )
    names = ["offices", "blocked", "keys", "proxies", "clients"]
    assert rule_set.files == (str(file), *(f"{file.parent}/lists/{name}.txt" for name in names))


def test_a_refusal_knows_the_files_that_were_named(tmp_path: Path) -> None:
    """So that a watcher sees them come, or be mended."""
    (tmp_path / "list.txt").write_text("x")
    text = (
        "version: 1\nallowlist_file: list.txt\ndenylist_file: nowhere.txt\n"
        "rules: [{name: a, limit: 1/second, denylist_file: list.txt}]\n"
    )
    error = refusal(text, f"{tmp_path}/rules.yaml")
    assert error is not None
    assert error.files == (f"{tmp_path}/list.txt", f"{tmp_path}/nowhere.txt")
    again = pickle.loads(pickle.dumps(error))
    assert (again.mistakes, again.files) == (error.mistakes, error.files)


def test_text_finds_its_lists_beside_the_file_that_it_is_named_after() -> None:
    file = FOLDER / "good" / "tiers_and_lists.yaml"
    text = file.read_text(encoding="utf-8")
    assert RuleSet.loads(text, str(file)) == RuleSet.load(file)
    error = refusal(text)
    assert error is not None
    assert {mistake.code for mistake in error.mistakes} == {"unreadable"}


def list_of(tmp_path: Path, key: str, content: bytes, rule: str = "") -> RuleSet:
    (tmp_path / "list.txt").write_bytes(content)
    rules = tmp_path / "rules.yaml"
    rules.write_text(f"version: 1\nrules: [{{name: a, limit: 1/second, {key}: list.txt{rule}}}]\n")
    return RuleSet.load(rules)


def codes_of(tmp_path: Path, key: str, content: bytes, rule: str = "") -> list[str]:
    with pytest.raises(RuleFileError) as refused:
        list_of(tmp_path, key, content, rule)
    assert all(mistake.file == f"{tmp_path}/list.txt" for mistake in refused.value.mistakes)
    return [mistake.code for mistake in refused.value.mistakes]


def test_a_hundred_thousand_overrides_come_from_a_file(tmp_path: Path) -> None:
    lines = "".join(f"user{number} {number % 50 + 1}/minute\n" for number in range(100_000))
    (rule,) = list_of(tmp_path, "overrides_file", lines.encode(), ", by: user").rules
    assert len(rule.overrides) == 100_000
    assert rule.overrides["user99999"] == (Limit("50/minute"),)


def test_a_hundred_thousand_networks_come_from_a_file(tmp_path: Path) -> None:
    lines = "".join(f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}\n" for n in range(100_000))
    (rule,) = list_of(tmp_path, "denylist_file", lines.encode()).rules
    assert len(rule.denylist) == 100_000


def test_a_list_has_at_most_200000_lines_and_ten_megabytes(tmp_path: Path) -> None:
    assert list_of(tmp_path, "denylist_file", b"\n" * 199_999).rules
    assert codes_of(tmp_path, "denylist_file", b"\n" * 200_000) == ["too-large"]
    assert list_of(tmp_path, "denylist_file", b"#" * 10_000_000).rules
    assert codes_of(tmp_path, "denylist_file", b"#" * 10_000_001) == ["too-large"]


def test_all_lists_together_have_at_most_500000_lines(tmp_path: Path) -> None:
    """One that several rules name counts for each of them."""
    (tmp_path / "list.txt").write_bytes(b"\n" * 99_999)
    rules = tmp_path / "rules.yaml"
    text = "version: 1\nrules:\n" + "".join(
        f"  - {{name: r{n}, limit: 1/second, match: {{path: /{n}}}, denylist_file: list.txt}}\n"
        for n in range(6)
    )
    rules.write_text(text.rpartition("  - ")[0])
    assert len(RuleSet.load(rules).files) == 2
    rules.write_text(text)
    with pytest.raises(RuleFileError) as refused:
        RuleSet.load(rules)
    (mistake,) = refused.value.mistakes
    assert (mistake.code, mistake.place) == ("unreadable", "rules[5].denylist_file")


def test_a_list_that_would_never_end_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "list")
    rules = tmp_path / "rules.yaml"
    rules.write_text("version: 1\ndenylist_file: list\nrules: [{name: a, limit: 1/second}]\n")
    found: list[RuleFileError | None] = []
    text = rules.read_text()
    thread = threading.Thread(target=lambda: found.append(refusal(text, str(rules))), daemon=True)
    thread.start()
    thread.join(10)
    assert found
    assert found[0] is not None
    assert [mistake.code for mistake in found[0].mistakes] == ["unreadable"]


def test_a_list_names_a_name_from_the_environment_as_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / SECRET).write_text("example.org\n")
    rules = tmp_path / "rules.yaml"
    rules.write_text(
        "version: 1\ndenylist_file: ${RULES_PASSWORD}\nrules: [{name: a, limit: 1/second}]\n"
    )
    with pytest.raises(RuleFileError) as refused:
        RuleSet.load(rules)
    (mistake,) = refused.value.mistakes
    assert (mistake.file, mistake.line, mistake.column) == ("${RULES_PASSWORD}", 1, 1)
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize("text", ["25%", "25 %", "0.25", '"0.250"'])
def test_a_share_is_a_number_or_in_percent(text: str) -> None:
    (rule,) = RuleSet.loads(SMALL + f"    enforce_share: {text}\n").rules
    assert rule.enforce_share == Fraction(1, 4)


def test_a_refusal_that_belongs_to_no_key_is_a_mistake_of_the_rule(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever `Rule` refuses, a file is refused with it, and not with a traceback."""

    def refuse(reading: object) -> Rule:
        raise ValueError("no; never")

    monkeypatch.setattr(Rule, "of", refuse)
    error = refusal(SMALL)
    assert str(error) == "<rules>:3:5: rules[0]: no; never [bad-rule]"
