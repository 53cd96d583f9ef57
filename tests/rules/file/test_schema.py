"""The JSON Schema of rule files, held to the loader both ways by another reader of schemas."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from ratelimit.limits import Algorithm
from ratelimit.rules.file.keys import FileKeys, MatchKeys, RuleKeys
from ratelimit.rules.file.mistakes import RuleFileError
from ratelimit.rules.file.schema import as_text, schema
from ratelimit.rules.ruleset import RuleSet
from ratelimit.rules.values import METHODS

ROOT = Path(__file__).resolve().parents[3]
GOOD = sorted((ROOT / "tests" / "rules" / "file" / "good").glob("*.yaml"))
BAD = sorted((ROOT / "tests" / "rules" / "file" / "bad").glob("*.yaml"))
VALIDATOR = Draft202012Validator(schema())
SMALL: dict[str, Any] = {"version": 1, "rules": [{"name": "a", "limit": "9/second"}]}

BEYOND = {
    # YAML's own, before there is anything to look at
    "documents", "duplicate-key", "not-utf-8", "not-yaml", "tag", "too-deep", "too-large",
    "unknown-alias", "bad-key",
    # other files, and the environment
    "unreadable", "more-mistakes", "missing-variable", "bad-variable",
    # what two values are to each other, or to what is between them
    "allows-everyone", "ban-by-chosen", "hops-of-one-address", "replaces-by-choice",
    "replaces-circle", "replaces-itself", "reset-by-client", "same-name", "same-override",
    "same-policy", "too-many-limits", "trusts-everyone", "unknown-rule", "untrusted-tier",
}  # fmt: skip
"""Codes of mistakes that a schema cannot see."""

BEYOND_FILES = {
    "what a text means": {
        "deadline_long", "deadline_zero", "limit_inexact", "limit_many", "limit_twice",
        "network_host_bits", "path_brace", "path_convertor", "path_parameter_twice",
        "forwarded_header_bad", "retry_jitter_long", "shed_too_long", "store_cert_none",
        "store_cluster_database",
        "store_cluster_option", "store_no_ca_file", "store_password_at", "store_password_slash",
        "store_ssl", "store_timeout",
    },
    "what two values are to each other": {
        "burst_in_text_of_window", "burst_twice", "by_path_other", "by_path_without_path",
        "by_twice", "cost_above_override", "cost_above_region", "cost_cut_by_max_delay",
        "cost_too_high", "override_global", "override_network", "override_no_address",
    },
    "what is in another file": {"list_file_of_another_kind", "overrides_file_bad"},
    "what is in the environment": {
        "override_by_variable_with_list", "variable_bad_limit", "variable_in_contradiction",
        "variable_in_tier",
    },
    "how a number is written: 010 and 1.0 are ten and one in YAML 1.2": {
        "burst_octal", "version_float",
    },
}  # fmt: skip
"""Files whose codes a schema sees in others, but not there."""


class Yaml12(yaml.SafeLoader):
    """Scalars as YAML 1.2's core schema has them, and so what an editor gives the schema."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  # as its base declares it


Yaml12.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"~|null|Null|NULL|\Z"), None)
Yaml12.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile("true|True|TRUE|false|False|FALSE"), None
)
Yaml12.add_implicit_resolver("tag:core:int", re.compile(r"[-+]?[0-9]+\Z"), None)
Yaml12.add_implicit_resolver(
    "tag:core:float", re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?\Z"), None
)
Yaml12.add_constructor("tag:core:int", lambda loader, node: int(node.value))
Yaml12.add_constructor("tag:core:float", lambda loader, node: float(node.value))


def mistakes_of(document: object) -> list[str]:
    return [f"{error.json_path}: {error.message}" for error in VALIDATOR.iter_errors(document)]


def in_yaml_1_2(text: str) -> Any:
    return yaml.load(text, Yaml12)


def refused(text: str) -> bool:
    try:
        RuleSet.loads(text)
    except RuleFileError:
        return True
    return False


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"COST": "2", "PROXY": "10.0.0.0/8", "QUOTA": "5", "VIP": "198.51.100.9"}
    for name in (*values, "LIST", "MODE", "NAME", "PASSWORD"):
        monkeypatch.setenv(f"RULES_{name}", values.get(name, "x"))
    monkeypatch.delenv("RULES_NOWHERE", raising=False)


def test_the_published_schema_is_the_one_that_is_generated() -> None:
    assert (ROOT / "docs" / "rules.schema.json").read_text(encoding="utf-8") == as_text()


def test_the_schema_is_one_of_2020_12() -> None:
    Draft202012Validator.check_schema(schema())
    assert schema()["$schema"] == "https://json-schema.org/draft/2020-12/schema"


@pytest.mark.parametrize("file", [*GOOD, ROOT / "examples" / "rules.yaml"], ids=lambda it: it.stem)
def test_a_file_that_the_loader_accepts_is_valid(file: Path) -> None:
    RuleSet.load(file)
    assert mistakes_of(in_yaml_1_2(file.read_text(encoding="utf-8-sig"))) == []


@pytest.mark.parametrize("file", BAD, ids=lambda file: file.stem)
def test_a_file_with_a_mistake_of_its_structure_is_invalid(file: Path) -> None:
    with pytest.raises(RuleFileError) as found:
        RuleSet.load(file)
    codes = {mistake.code for mistake in found.value.mistakes} - BEYOND
    try:
        document = in_yaml_1_2(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError):
        return  # an editor says so without a schema
    beyond = any(file.stem in files for files in BEYOND_FILES.values())
    if codes or beyond:
        assert bool(mistakes_of(document)) != beyond, codes


def test_every_key_is_described() -> None:
    found = {None: schema(), **schema()["$defs"]}
    for name, model in ((None, FileKeys), ("rule", RuleKeys), ("match", MatchKeys)):
        properties = found[name]["properties"]
        assert properties.keys() == model.model_fields.keys()
        assert all(each["description"].endswith(".") for each in properties.values())


VALUES: dict[str, list[Any]] = {
    "algorithm": [*map(str, Algorithm), "leaky_bucket"],
    "by": ["client", "path", "header:X-A", "header:", "Client", ["client"], [], ["user", "x" * 65]],
    "charge": [
        {"on_status": [401, "5xx"]}, {"on_status": "401"}, {"on_status": 401}, {"on_status": []},
        {"on_status": [600]}, {"on_status": ["6xx"]}, {"reset_on": [200]}, {"on": [401]}, {}, 401,
        {"on_status": [401], "reset_on": 99}, {"on_status": ["4XX"]},
    ],
    "cost": [0, 2, "2", "tokens", -1, 1.5, "02", "Tokens"],
    "enforce_share": ["25%", 0.25, 1, 0, 1.5, "x", "25 %"],
    "limit": [
        "1/s", "1/S", "1 per 2 Hours", "; 1/s, 2/h |", "1/s burst x", "1/month", "0/s", "1", 1, "",
        "1/1.5s", "1 PER minute", "1per minute", "00001/s",
    ],
    "match": [
        {}, {"path": "/a%zz"}, {"path": "/a%20"}, {"path": "/a?b"}, {"path": "a"},
        {"methods": ["get", "Get", "GET"]}, {"methods": []}, {"methods": ["GTE"]}, {"paht": "/"},
    ],
    "mode": ["enforce", "on", True, "Off"],
    "name": ["a", "A1:b.c-d_e", "1a", "a" * 64, "a" * 65, "a b"],
    "on_missing": ["client", "skip", "refuse", "deny"],
    "overrides": [
        {"192.0.2.1": "unlimited"}, {"192.0.2.1": "none"}, {"192.0.2.1": None}, {},
    ],
    "unit": ["tokens", "input-tokens", "Tokens", "", 1],
    "rounding": ["up", "down", "nearest"],
    "allowlist": [["192.0.2.1", "2001:db8::/32"], ["192.0.2.x"], "192.0.2.1", []],
}  # fmt: skip
TOP: dict[str, list[Any]] = {
    "deadline": ["50ms", "50 MS", "50", 50, "1:30"],
    "headers": [
        [], ["draft", "legacy", "draft-03"], ["openai", "anthropic"], ["draft", "draft"], ["x"],
        "draft",
    ],
    "ipv6_prefix": [16, 128, 15, 129],
    "preflights": ["free", "count", "on"],
    "retry_hints": [True, False, "true", "yes", 1],
    "secret": ["a secret of many characters", ["x" * 16, "y" * 15], [], "short", 1],
    "share": ["50%", 0.5, 2],
    "store": [
        "memory://", "memory://x", "redis://a", "redis+sentinel://a/b", "redis+sentinel://a",
        "unix:///a", "unix://a", "http://a", "redis://",
    ],
    "trusted_hops": [0, 1, 32, 33, -1],
    "version": [1, "1", 2, "2"],
    "workers": [1, 10_000, 0, 10_001],
    "on_store_failure": ["allow", "deny", "local", "skip"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("key", "value"),
    [(key, value) for some in (VALUES, TOP) for key, values in some.items() for value in values],
)
def test_loader_and_schema_say_the_same_of_a_value(key: str, value: object) -> None:
    document = {
        **SMALL,
        "rules": [{**SMALL["rules"][0], **({key: value} if key in VALUES else {})}],
    }
    if key in TOP:
        document[key] = value
    text = yaml.safe_dump(document, sort_keys=False)
    assert refused(text) == bool(mistakes_of(in_yaml_1_2(text))), mistakes_of(document)


@pytest.mark.parametrize(
    ("rule", "wrong"),
    [
        ({"limit": "1/s", "limits": {"a": "1/s"}, "tier": "plan"}, True),
        ({"limits": {"a": "1/s"}}, True),
        ({"limits": {"a": "1/s", "b": "unlimited"}, "tier": "user:plan"}, False),
        ({"limits": {}, "tier": "plan"}, True),
        ({"tier": "plan"}, True),
        ({"limit": "1/s", "tier": "plan"}, True),
        ({}, True),
        ({"limit": "1/s", "burst": 2}, True),
        ({"limit": "1/s", "burst": 2, "algorithm": "token_bucket"}, False),
        ({"limit": "1/s", "burst": 2, "algorithm": "sliding_log"}, True),
        ({"limit": "1/s", "max_delay": "1s"}, True),
        ({"limit": "1/s", "max_delay": "1s", "algorithm": "leaking_bucket"}, False),
        ({"limit": "1/s", "max_delay": "none", "algorithm": "token_bucket"}, True),
        ({"limit": "1/s", "rounding": "up"}, False),
        ({"limit": "1/s", "rounding": "up", "algorithm": "sliding_counter"}, False),
        ({"limit": "1/s", "rounding": "up", "algorithm": "sliding_log"}, True),
        ({"limit": "1/s", "enforce_share": "25%"}, False),
        ({"limit": "1/s", "enforce_share": "25%", "mode": "shadow"}, False),
    ],
    ids=str,
)
def test_loader_and_schema_say_the_same_of_keys_that_go_together(
    rule: dict[str, object], wrong: bool
) -> None:
    document = {"version": 1, "rules": [{"name": "a", **rule}]}
    text = yaml.safe_dump(document, sort_keys=False)
    assert (refused(text), bool(mistakes_of(in_yaml_1_2(text)))) == (wrong, wrong)


def test_methods_are_completed_in_upper_case() -> None:
    methods = schema()["$defs"]["match"]["properties"]["methods"]["items"]["anyOf"][0]["enum"]
    assert methods == sorted(METHODS)


def test_a_variable_may_stand_for_any_text() -> None:
    for key in ("version", "store", "deadline", "workers", "share", "preflights"):
        assert mistakes_of({**SMALL, key: "${SOME_NAME}"}) == []
        assert mistakes_of({**SMALL, key: "${SOME NAME}"}) != []
