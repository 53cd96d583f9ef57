"""Rule files: what is read from the good ones, and every mistake in the bad ones."""

import random
import time
from ipaddress import ip_network
from pathlib import Path

import pytest
import yaml

from ratelimit import yamlfile
from ratelimit.limits import Limit
from ratelimit.rulefile import Mistake, RuleFileError, load, loads
from ratelimit.rules import Rule, RuleSet

FOLDER = Path(__file__).parent / "rules"
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
    monkeypatch.delenv("RULES_NOWHERE", raising=False)


@pytest.fixture(params=["C", "Python"])
def parser(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "Python":
        monkeypatch.setattr(yamlfile, "_FAST", yaml.SafeLoader)
    elif not hasattr(yaml, "CSafeLoader"):
        pytest.skip("PyYAML was built without libyaml")


def refusal(text: str) -> RuleFileError | None:
    try:
        loads(text)
    except RuleFileError as error:
        return error
    return None


@pytest.mark.usefixtures("parser")
@pytest.mark.parametrize("file", GOOD, ids=lambda file: file.stem)
def test_a_good_file_is_a_rule_set(file: Path) -> None:
    assert isinstance(RuleSet.load(file), RuleSet)
    assert load(str(file)) == loads(file.read_text(encoding="utf-8"))


@pytest.mark.usefixtures("parser")
@pytest.mark.parametrize("file", BAD, ids=lambda file: file.stem)
def test_a_bad_file_is_refused_with_exactly_these_mistakes(file: Path) -> None:
    with pytest.raises(RuleFileError) as refused:
        load(file)
    text = str(refused.value).replace(str(file), file.name) + "\n"
    assert text == file.with_suffix(".txt").read_text(encoding="utf-8")
    assert SECRET not in repr(refused.value)
    assert refused.value.__context__ is None  # where a value from the environment could be


def test_every_expected_text_has_its_file() -> None:
    texts = {file.stem for file in (FOLDER / "bad").glob("*.txt")}
    assert texts == {file.stem for file in BAD}
    assert len(BAD) > 100


def test_the_contracts_example_is_read_as_it_is_written() -> None:
    assert load(FOLDER / "good" / "every_key.yaml") == RuleSet(
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
    assert loads(SMALL) == RuleSet((Rule("api", "10/minute"),))


@pytest.mark.usefixtures("parser")
def test_scalars_are_the_text_that_is_written() -> None:
    """YAML 1.1 would read booleans, nulls, octal and sexagesimal numbers."""
    rule_set = load(FOLDER / "good" / "yaml_1_1_traps.yaml")
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
    rule_set = load(FOLDER / "good" / "environment.yaml")
    assert rule_set.store == f"redis://:{SECRET}@localhost:6379/0"
    assert rule_set.trusted_proxies == (ip_network("10.0.0.0/8"),)
    (rule,) = rule_set.rules
    assert (rule.limits, rule.cost) == ((Limit("5/minute"),), 2)
    assert dict(rule.overrides) == {"198.51.100.9": (Limit("50/minute"),)}


def test_a_variables_value_is_not_looked_into(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RULES_NAME", "${RULES_QUOTA}")
    with pytest.raises(RuleFileError) as refused:
        loads("version: 1\nrules:\n  - {name: '${RULES_NAME}', limit: 1/second}\n")
    assert [mistake.code for mistake in refused.value.mistakes] == ["bad-name"]


def test_max_delay_is_a_duration_or_none() -> None:
    rules = load(FOLDER / "good" / "no_cut.yaml").rules
    assert [rule.limits[0].max_delay for rule in rules] == [None, 0.5, None, None]


def test_a_mistake_knows_its_place() -> None:
    with pytest.raises(RuleFileError) as refused:
        loads(SMALL + "    mode: shadwo\n", "r.yaml")
    (mistake,) = refused.value.mistakes
    message = "'shadwo' is there; it is 'enforce', 'shadow' or 'off'"
    assert mistake == Mistake("r.yaml", 5, 11, "rules[0].mode", message, "bad-mode")
    assert str(mistake) == f"r.yaml:5:11: rules[0].mode: {message} [bad-mode]"
    assert str(refused.value) == str(mistake)


@pytest.mark.parametrize("file", ["nowhere.yaml", ".", "nul\0"])
def test_a_file_that_cannot_be_read_is_a_mistake(tmp_path: Path, file: str) -> None:
    with pytest.raises(RuleFileError) as refused:
        load(f"{tmp_path}/{file}")
    assert [mistake.code for mistake in refused.value.mistakes] == ["unreadable"]


def test_a_file_of_more_than_five_megabytes_is_refused_at_once(tmp_path: Path) -> None:
    file = tmp_path / "rules.yaml"
    file.write_text(SMALL + "#" * 5_000_000)
    with pytest.raises(RuleFileError) as refused:
        load(file)
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
    start = time.perf_counter()
    with pytest.raises(RuleFileError):
        loads(text)
    assert time.perf_counter() - start < 5


@pytest.mark.skipif(not hasattr(yaml, "CSafeLoader"), reason="needs PyYAML with libyaml")
def test_a_large_file_that_is_no_yaml_is_refused_as_fast_as_one_that_is() -> None:
    start = time.perf_counter()
    error = refusal("'" + "x " * 2_400_000)
    assert error is not None
    assert [mistake.code for mistake in error.mistakes] == ["not-yaml"]
    assert time.perf_counter() - start < 2  # PyYAML's parser in Python takes more than 4


def test_a_mutilated_file_loads_or_is_refused_and_nothing_else() -> None:
    draw = random.Random(20)
    sources = [file.read_bytes() for file in GOOD]
    pieces = [
        b"\0", b"\xff", b"\xef\xbb\xbf", b"\t", b"\r", b"---\n", b"!!python/object:os.system ",
        b"&a ", b"*a ", b"<<: ", b"${", b"${HOME}", b"${RULES_PASSWORD}", b"null", b"off", b"~",
        b"[", b"]", b"{", b"}", b": ", b"- ", b"? ", b"'", b'"', b"|", b">", b"%", b"@", b"#",
        b"\n", b"\n  ", b"9" * 400, b"-1", b"1e999", b"0x1F", b"\xe2\x80\xa8", b"rules:", b"::1",
    ]  # fmt: skip
    loaded = 0
    for _ in range(600):
        raw = bytearray(draw.choice(sources))
        for _ in range(draw.randint(1, 2)):
            at = draw.randrange(len(raw))
            match draw.randrange(4):
                case 0:
                    raw[at:at] = draw.choice(pieces)
                case 1:
                    del raw[at : at + draw.randint(1, 9)]
                case 2:
                    raw[at] = draw.randrange(32, 128)
                case _:
                    end = at + draw.randint(1, 60)
                    other = draw.randrange(len(raw))
                    raw[other:other] = raw[at:end]
        start = time.perf_counter()
        error = refusal(raw.decode("utf-8", "surrogateescape"))
        loaded += error is None
        assert error is None or error.mistakes
        assert SECRET not in str(error)
        assert time.perf_counter() - start < 1
    assert 10 < loaded < 300


def test_no_message_shows_a_value_of_the_environment() -> None:
    """The variable stands in the place of each scalar of a file in turn."""
    text = (FOLDER / "good" / "every_key.yaml").read_text(encoding="utf-8")
    refusals = 0
    for token in yaml.scan(text):
        if not isinstance(token, yaml.ScalarToken):
            continue
        start, end = token.start_mark.index, token.end_mark.index
        for scalar in ('"${RULES_PASSWORD}"', '"/${RULES_PASSWORD}"', '"path:${RULES_PASSWORD}"'):
            error = refusal(text[:start] + scalar + text[end:])
            refusals += error is not None
            assert SECRET not in str(error)
            assert error is None or "${RULES_PASSWORD}" in str(error)
    assert refusals > 100


def test_a_thousand_rules_load_in_seconds() -> None:
    text = "version: 1\nrules:\n" + "".join(
        f"  - name: r{number}\n    limit: 10/minute\n    match: {{path: '/a/{{x}}/{number}'}}\n"
        f"    by: [client, 'path:x']\n    overrides: {{192.0.2.1: 20/minute}}\n"
        for number in range(1_000)
    )
    start = time.perf_counter()
    assert len(loads(text).rules) == 1_000
    assert time.perf_counter() - start < 5
