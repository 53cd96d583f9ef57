"""The `ratelimit` command: what it prints, and what a script can go by."""

import asyncio
import json
import re
import shlex
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest
from click.testing import CliRunner, Result

from ratelimit import Check, Limit, RateLimiter, RedisStore, Rule, RuleSet
from ratelimit.cli.main import _bytes, main
from ratelimit.limits import Algorithm
from ratelimit.rules.file.schema import schema
from tests.support.asgi import http_scope
from tests.support.servers import Server

T = TypeVar("T")

RULES = """\
version: 1
store: redis://localhost:1
trusted_proxies: [10.0.0.0/8]
denylist: [203.0.113.0/24]
on_store_failure: local
workers: 4
rules:
  - name: api
    limit: 100/minute
  - name: login
    match: {path: /login, methods: [POST]}
    limit: 5/minute; 20/hour
    algorithm: sliding_log
    on_store_failure: deny
    overrides: {"198.51.100.9": 50/minute}
  - name: plans
    match: {path: "/v1/{rest:path}"}
    by: [user, client]
    limits: {free: 10/minute, internal: unlimited}
    tier: user:plan
    on_store_failure: allow
  - name: old
    limit: 1/second
    mode: "off"
"""


@pytest.fixture
def rules(tmp_path: Path) -> str:
    file = tmp_path / "rules.yaml"
    file.write_text(RULES)
    return str(file)


def run(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == code, result.output
    return result


def rows(*arguments: str) -> Any:
    return json.loads(run(*arguments, "--json").stdout)


# --- check ---------------------------------------------------------------------------------------


def test_check_prints_for_each_limit_what_can_pass_at_worst(rules: str) -> None:
    (report,) = rows("check", rules)
    found = {
        (row["rule"], row["whose"], row["limit"]): (
            row.get("at worst"),
            row.get("store away"),
        )
        for row in report["rules"]
    }
    assert found == {
        ("api", "all", "100/minute"): (200, "200 more"),
        ("login", "all", "5/minute"): (5, "nothing"),
        ("login", "all", "20/hour"): (20, "nothing"),
        ("login", "override 198.51.100.9", "50/minute"): (50, "nothing"),
        ("plans", "tier free", "10/minute"): (20, "everything"),
        ("plans", "tier internal", "unlimited"): (None, None),
        ("old", "all", "1/second"): (2, "8 more"),
    }
    assert report["scripts"] == "one per request; in a Cluster at most 2"


def checked(folder: Path, text: str) -> list[dict[str, Any]]:
    file = folder / "rules.yaml"
    file.write_text(f"version: 1\n{text}")
    found: list[dict[str, Any]] = rows("check", str(file))[0]["rules"]
    return found


def test_check_tells_of_a_regions_quota_what_it_lets_through_there(tmp_path: Path) -> None:
    (row,) = checked(tmp_path, "share: 50%\nrules: [{name: a, limit: 10/minute}]\n")
    assert (row["limit"], row["at worst"]) == ("5/minute", 10)


def test_check_counts_a_cost_above_a_workers_share_in_full(tmp_path: Path) -> None:
    """Each worker lets a request pass that takes all of its share, and that is ten units."""
    text = "on_store_failure: local\nworkers: 10\nrules: [{name: a, limit: 10/minute, cost: %s}]\n"
    assert checked(tmp_path, text % 10)[0]["store away"] == "200 more"
    assert checked(tmp_path, text % 1)[0]["store away"] == "20 more"
    assert checked(tmp_path, text % "pages")[0]["store away"] == "20 more, at a cost up to 1"


def test_check_shows_no_identity_that_may_be_a_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PARTNER", "from-the-environment")
    by = (
        "rules: [{name: a, limit: 1/day, by: %s, overrides: {sk_live: 2/day, '${PARTNER}': 3/day}}]"
    )
    found = checked(tmp_path, by % "user")
    assert "sk_live" not in str(found)
    assert "from-the-environment" not in str(found)
    assert sorted(row["whose"] for row in found) == ["all", "override no. 1", "override no. 2"]


def test_check_tells_every_mistake_of_every_file_and_fails(rules: str, tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("version: 1\nrules:\n  - {name: a, limit: 1/minut}\n  - {nam: b, limit: 1/s}\n")
    result = run("check", str(bad), rules, code=1)
    assert f"{bad}:3:22: rules[0].limit: 'minut' in" in result.stderr
    assert "did you mean 'name' [unknown-key]" in result.stderr
    assert f"{rules}: 4 rules, no mistake" in result.stdout
    assert rows_of_failure(str(bad))[0]["mistakes"][0]["code"] == "bad-limit"


def rows_of_failure(*files: str) -> Any:
    return json.loads(run("check", *files, "--json", code=1).stdout)


def test_advice_fails_only_where_it_is_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "keyed.yaml"
    file.write_text("version: 1\nrules: [{name: a, limit: 9/minute, by: 'header:x-key'}]\n")
    assert "[client-chosen]" in run("check", str(file)).stdout
    assert "[client-chosen]" in run("check", str(file), "--strict", code=1).stdout


def test_piped_output_is_plain(rules: str) -> None:
    lines = run("check", rules).stdout.splitlines()
    assert lines[1].split("\t")[:3] == ["RULE", "WHOSE", "MODE"]
    assert lines[2].split("\t")[:3] == ["api", "all", "enforce"]
    assert "\x1b" not in run("check", rules).stdout


# --- explain -------------------------------------------------------------------------------------


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


# --- counters in a store -------------------------------------------------------------------------


@pytest.fixture
def empty(redis_server: Server) -> Iterator[Server]:
    redis_server.command("FLUSHALL")
    yield redis_server
    redis_server.command("FLUSHALL")


def with_store(server: Server, use: Callable[[RedisStore], Awaitable[T]]) -> T:
    async def opened() -> T:
        async with RedisStore(server.url, deadline=10) as store:
            return await use(store)

    return asyncio.run(opened())


def test_inspect_shows_a_counter_without_charging_it(empty: Server, rules: str) -> None:
    limiting = RuleSet.load(rules)
    request = http_scope("/login", "POST", client=("198.51.100.7", 1))

    async def ask(store: RedisStore) -> None:
        async with RateLimiter(limiting, store=store) as limiter:
            assert (await limiter.admit(request)).refusal is None

    with_store(empty, ask)
    for _ in range(2):
        found = rows("inspect", empty.url, "login", "198.51.100.7", "--rules", rules)
        assert [(row["limit"], row["remaining"], row["of"]) for row in found] == [
            ("5/minute", 4, 5),
            ("20/hour", 19, 20),
        ]
    (override,) = rows("inspect", empty.url, "login", "198.51.100.9", "--rules", rules)
    assert (override["limit"], override["remaining"]) == ("50/minute", 50)


def test_reset_gives_back_the_whole_quota(empty: Server, rules: str) -> None:
    request = http_scope("/v1/x", client=("198.51.100.7", 1))

    async def ask(store: RedisStore) -> None:
        async with RateLimiter(RuleSet.load(rules), store=store) as limiter:
            await limiter.admit(request)

    with_store(empty, ask)
    identity = ["198.51.100.7", "198.51.100.7"]

    def remaining() -> int:
        found = rows("inspect", empty.url, "api", identity[0], "--rules", rules)
        return int(found[0]["remaining"])

    assert remaining() == 99
    run("reset", empty.url, "api", identity[0], "--rules", rules)
    assert remaining() == 100


def test_an_identity_is_spelled_part_by_part(empty: Server, rules: str) -> None:
    assert (
        "give 2 texts, not 1"
        in run("inspect", empty.url, "plans", "alice", "--rules", rules, code=2).stderr
    )
    request = http_scope("/v1/x", client=("198.51.100.7", 1))
    request["user"] = SimpleNamespace(is_authenticated=True, identity="alice", plan="free")

    async def ask(store: RedisStore) -> None:
        async with RateLimiter(RuleSet.load(rules), store=store) as limiter:
            await limiter.admit(request)

    with_store(empty, ask)
    found = rows("inspect", empty.url, "plans", "alice", "198.51.100.7", "--rules", rules)
    assert [row["remaining"] for row in found] == [9]


def test_top_shows_who_was_denied_most(empty: Server) -> None:
    limiter_rules = RuleSet((Rule("a", "1/hour"), Rule("b", "1/hour", by="header:x", path="/b")))

    async def ask(store: RedisStore) -> None:
        limiter = RateLimiter(limiter_rules, store=store)
        for client, times in (("192.0.2.1", 4), ("192.0.2.2", 6)):
            for _ in range(times):
                await limiter.admit(http_scope("/", client=(client, 1)))
        assert limiter.denials.busiest() == [("a 192.0.2.2", 5), ("a 192.0.2.1", 3)]
        for _ in range(9):
            await limiter.admit(http_scope("/b", client=("192.0.2.3", 1), headers=[("x", "s3")]))
        (background,) = limiter.denials._background._tasks.values()
        await background
        await limiter.aclose()

    with_store(empty, ask)
    found = rows("top", empty.url)
    assert [(row["denied"], row["rule"]) for row in found] == [
        (8, "a"),
        (8, "b"),
        (5, "a"),
        (3, "a"),
    ]
    named = {row["identity"] for row in found}
    assert {"192.0.2.1", "192.0.2.2", "192.0.2.3"} < named
    assert not any("s3" in name for name in named)
    assert run("top", empty.url, "--count", "1").stdout.count("\n") == 2


def test_nobody_was_denied(empty: Server) -> None:
    assert run("top", empty.url).stdout == "nobody was denied lately\n"


def test_kill_and_revive_turn_rules_off_and_on(empty: Server) -> None:
    assert "login is off" in run("kill", empty.url, "login").stdout
    run("kill", empty.url, "*")
    assert with_store(empty, lambda store: store.switches()) == {"login", "*"}
    assert "still off: *" in run("revive", empty.url, "login").stdout
    run("revive", empty.url, "*")
    assert with_store(empty, lambda store: store.switches()) == frozenset()


def test_a_kill_of_a_rule_that_the_file_does_not_have_is_refused(empty: Server, rules: str) -> None:
    result = run("kill", empty.url, "logn", "--rules", rules, code=2)
    assert "there is no rule 'logn'" in result.stderr
    assert with_store(empty, lambda store: store.switches()) == frozenset()
    run("kill", empty.url, "login", "--rules", rules)
    run("kill", empty.url, "*", "--rules", rules)


def test_another_prefix_is_another_set_of_counters_and_switches(empty: Server, rules: str) -> None:
    run("kill", empty.url, "login", "--prefix", "app:")
    assert empty.ask("SMEMBERS", "app:switches") == ["login"]
    assert with_store(empty, lambda store: store.switches()) == frozenset()
    run("top", empty.url, "--prefix", "app:")
    run("inspect", empty.url, "api", "192.0.2.1", "--rules", rules, "--prefix", "app:")


def test_a_store_that_is_away_is_told_in_a_sentence(rules: str) -> None:
    result = run("kill", "redis://127.0.0.1:1", "login", code=3)
    assert result.stderr.startswith("the store gives no answer: ")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("uri", ["memory://", "http://x", "nonsense"])
def test_a_store_that_cannot_be_looked_at_is_refused(uri: str) -> None:
    run("top", uri, code=2)


def test_a_rule_that_is_not_there_is_told_with_those_that_are(empty: Server, rules: str) -> None:
    result = run("inspect", empty.url, "logn", "x", "--rules", rules, code=2)
    assert "there is no rule 'logn'; there are api, login, plans, old" in result.stderr


def test_the_files_own_store_is_a_dash(rules: str) -> None:
    run("inspect", "-", "api", "192.0.2.1", "--rules", rules, code=3)


# --- schema --------------------------------------------------------------------------------------


def test_schema_prints_the_schema() -> None:
    assert json.loads(run("schema").stdout) == schema()


def test_bytes_per_key_are_no_less_than_redis_needs(empty: Server) -> None:
    """What `check` prints is held to the server's own MEMORY USAGE."""

    async def fill(store: RedisStore) -> None:
        for algorithm in Algorithm:
            limit = Limit("200/hour", algorithm=algorithm)
            await store.decide([Check(limit, "198.51.100.200", 1, "a.rather.long.name")])
            for _ in range(199 if algorithm is Algorithm.SLIDING_LOG else 0):
                await store.decide([Check(limit, "198.51.100.200", 1, "a.rather.long.name")])

    with_store(empty, fill)
    for algorithm in Algorithm:
        limit = Limit("200/hour", algorithm=algorithm)
        (key,) = empty.ask("KEYS", f"*{limit.digest}*")
        used = empty.ask("MEMORY", "USAGE", key, "SAMPLES", "0")
        assert 0.5 * _bytes(limit) < used <= 1.15 * _bytes(limit)


# --- what the documentation shows ----------------------------------------------------------------

PAGE = (Path(__file__).parents[2] / "docs" / "command.md").read_text()
COMMANDS = re.findall(r"^\$ ratelimit (.+)$", PAGE, re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_what_the_documentation_types_runs(
    command: str, empty: Server, rules: str, tmp_path: Path
) -> None:
    """Against a server and a file of the test's; what is redirected is printed."""
    words = shlex.split(command.partition(" > ")[0])
    known = {"redis://localhost:6379/0": empty.url, "rules.yaml": rules, "rules/*.yaml": rules}
    arguments = [known.get(word, word) for word in words]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == (1 if "--strict" in arguments else 0), result.output


def test_the_documentation_shows_every_command() -> None:
    assert {command.split()[0] for command in COMMANDS} == set(main.commands)
