"""One request, explained: which rules apply to it, to whom, and why the others do not."""

from pathlib import Path
from typing import Any

import pytest

from ratelimit import RuleSet
from ratelimit.identity.addresses import read_address
from tests.support.commands import rows, run


def test_explain_tells_which_rules_apply_to_whom_and_why_others_do_not(rules: str) -> None:
    found = {row["rule"]: row for row in rows("explain", rules, "GET", "/login")}
    assert found["api"] == {
        "rule": "api", "applies": "yes", "identity": "192.0.2.1", "limits": "100/minute", "cost": 1,
    }  # fmt: skip
    assert found["login"] == {"rule": "login", "applies": "no", "why": "its methods are POST"}
    assert found["plans"]["why"] == "its path is /v1/{rest:path}"
    assert found["old"]["why"] == "its mode is off"


def test_explain_believes_proxies_as_the_limiter_does(rules: str) -> None:
    def identity(*options: str) -> str:
        row = rows("explain", rules, "POST", "/login", *options)[0]
        return str(row["identity"])

    forwarded = "X-Forwarded-For: 198.51.100.7, 10.0.0.2"
    assert identity("--client", "10.0.0.1", "--header", forwarded) == "198.51.100.7"
    assert identity("--client", "192.0.2.5", "--header", forwarded) == "192.0.2.5"
    assert identity("--client", "2001:db8::5") == "2001:db8::/64"


def test_explain_sees_a_request_as_a_limiter_does(tmp_path: Path) -> None:
    """The path is decoded, a preflight free, and the route the application's to know."""
    file = tmp_path / "rules.yaml"
    file.write_text(
        "version: 1\nrules:\n  - {name: a, limit: 1/day, match: {path: /a b}}\n"
        "  - {name: r, limit: 2/day, by: route, on_missing: skip}\n"
    )
    assert [row["applies"] for row in rows("explain", str(file), "GET", "/a%20b")] == ["yes", "yes"]
    asked = ["--header", "Origin: https://a", "--header", "Access-Control-Request-Method: GET"]
    found = rows("explain", str(file), "OPTIONS", "/a%20b", *asked)
    assert [row["applies"] for row in found] == ["no", "no"]
    assert "preflight" in found[0]["why"]


def test_explain_tells_of_overrides_users_and_lists(rules: str) -> None:
    def login(client: str) -> Any:
        found = rows("explain", rules, "POST", "/login", "--client", client)
        return {row["rule"]: row for row in found}

    assert login("198.51.100.9")["login"]["limits"] == "50/minute"
    assert login("192.0.2.1")["login"]["limits"] == "5/minute; 20/hour"
    assert list(login("203.0.113.9")) == ["(denylist)"]
    user = rows("explain", rules, "GET", "/v1/x", "--user", "alice")[2]
    assert "user=alice" in user["identity"]


def test_explain_refuses_text_that_is_not_a_header_field(rules: str) -> None:
    assert (
        "is not a header field" in run("explain", rules, "GET", "/", "--header", "x", code=2).stderr
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["GET", "login"], "'login' is not a path; a path begins with a slash"),
        (["GET", "https://example.com/login"], "is not a path; a path begins with a slash"),
        (["GET", ""], "'' is not a path"),
        (["/login", "POST"], "'/login' is not a method; write GET or POST"),
        (["GET /", "/"], "'GET /' is not a method"),
        (["GET", "/", "--client", "banana"], "'banana' is not an address; write 192.0.2.7 or"),
        (["GET", "/", "--client", ""], "'' is not an address"),
        (["GET", "/", "--client", "192.0.2.7:80"], "'192.0.2.7:80' is not an address"),
        (["GET", "/", "--client", "192.0.2.0/24"], "'192.0.2.0/24' is not an address"),
        (["GET", "/", "--header", ": x"], "': x' is not a header field; write 'Name: value'"),
    ],
)
def test_a_request_that_cannot_be_meant_is_a_wrong_command(
    arguments: list[str], said: str, rules: str
) -> None:
    result = run("explain", rules, *arguments, code=2)
    assert said in result.stderr
    assert result.stdout == ""


def test_text_that_is_not_utf_8_is_explained_as_a_server_would_pass_it_on(rules: str) -> None:
    odd = "\udcff"
    assert (
        rows("explain", rules, "GET", f"/?a={odd}", "--header", f"X: {odd}")[0]["applies"] == "yes"
    )


LISTS = [
    "",
    "allowlist: [192.0.2.0/24]",
    "denylist: [192.0.2.1, 198.51.100.0/24]",
    "allowlist: [192.0.2.0/24, 198.51.100.0/24, 203.0.113.0/24]",
    "trusted_proxies: [192.0.2.0/24]",
    "allowlist: [192.0.2.0/24, 192.0.3.0/24, 198.51.100.0/24, 203.0.113.0/24, '2001:db8::/32']",
    "allowlist: [0.0.0.0/1, 128.0.0.0/1]",
    "allowlist: [0.0.0.0/1, 128.0.0.0/1, '2000::/3']",
    "allowlist: [192.0.0.0/2, '2001:db8::/32']",
]


@pytest.mark.parametrize(
    ("lists", "own"),
    [
        *((lists, "") for lists in LISTS),
        ("", "overrides: {192.0.2.1: 9/day}"),
        ("", "denylist: [192.0.2.1, 198.51.100.0/24]"),
        ("denylist: [198.51.100.0/24]", "allowlist: [192.0.2.0/24]"),
    ],
)
def test_a_client_is_made_up_of_whom_the_file_says_nothing(
    lists: str, own: str, tmp_path: Path
) -> None:
    file = tmp_path / "rules.yaml"
    file.write_text(f"version: 1\n{lists}\nrules: [{{name: a, limit: 1/day, {own}}}]\n")
    result = run("explain", str(file), "GET", "/")
    said = result.stderr.split()
    client = read_address(said[said.index("from") + 1].rstrip(","))
    assert client is not None
    found = RuleSet.load(file)
    for network in (*found.allowlist, *found.denylist, *found.trusted_proxies):
        span = int(network.network_address), int(network.broadcast_address)
        assert client.version != network.version or not span[0] <= client.number <= span[1]
    assert result.stdout.splitlines()[1].split("\t")[:3] == ["a", "yes", client.key]
    assert "1/day" in result.stdout


def test_where_a_file_names_everybody_the_client_is_told_all_the_same(tmp_path: Path) -> None:
    file = tmp_path / "rules.yaml"
    file.write_text(
        "version: 1\nallowlist: [0.0.0.0/1, 128.0.0.0/1, '::/1', '8000::/1']\n"
        "rules: [{name: a, limit: 1/day}]\n"
    )
    result = run("explain", str(file), "GET", "/")
    assert result.stderr == "without --client the request is from 192.0.2.1, which is made up\n"
    assert "not limited at all" in result.stdout


def test_a_client_that_is_given_is_not_told_of(rules: str) -> None:
    assert run("explain", rules, "GET", "/", "--client", "192.0.2.9").stderr == ""
