"""Counters and switches in a store, as the command shows and changes them."""

import asyncio
from pathlib import Path
from types import SimpleNamespace

import pytest

from ratelimit import RateLimiter, RedisStore, Rule, RuleSet
from ratelimit.stores.redis import store as module
from tests.support.asgi import http_scope
from tests.support.commands import rows, run, with_store
from tests.support.servers import Server


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
    result = run("top", empty.url)
    assert (result.stdout, result.stderr) == ("", "nobody was denied lately\n")
    assert rows("top", empty.url) == []


def test_kill_and_revive_turn_rules_off_and_on(empty: Server) -> None:
    assert "login is off" in run("kill", empty.url, "login").stderr
    run("kill", empty.url, "*")
    assert with_store(empty, lambda store: store.switches()) == {"login", "*"}
    assert "login is on again; still off: *" in run("revive", empty.url, "login").stderr
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
    assert "there is no rule 'logn'; did you mean 'login'" in result.stderr


@pytest.fixture
def own_store(empty: Server, rules: str, monkeypatch: pytest.MonkeyPatch) -> Server:
    """The server is the rule file's own store, and its password is in the environment."""
    file = Path(rules)
    file.write_text(file.read_text().replace("redis://localhost:1", "${STORE}"))
    monkeypatch.setenv("STORE", empty.url)
    monkeypatch.setenv("RATELIMIT_RULES", rules)
    return empty


@pytest.mark.usefixtures("own_store")
def test_the_files_own_store_is_a_dash_in_every_command() -> None:
    assert rows("inspect", "-", "api", "192.0.2.1")[0]["remaining"] == 100
    assert rows("reset", "-", "api", "192.0.2.1") == {"rule": "api", "limits": ["100/minute"]}
    assert rows("top", "-") == []
    assert rows("kill", "-", "login") == {"rule": "login", "off": True, "reported": None}
    assert rows("revive", "-", "login") == {"rule": "login", "was_off": True, "off": []}


@pytest.mark.usefixtures("own_store")
def test_a_dash_without_a_file_is_the_store_of_the_rules_beside(
    rules: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RATELIMIT_RULES")
    monkeypatch.chdir(Path(rules).parent)
    assert rows("top", "-") == []
    monkeypatch.chdir("/")
    assert "rules.yaml:1:1: file: the file cannot be read" in run("top", "-", code=1).stderr


def test_a_store_in_process_is_refused_behind_a_dash_too(tmp_path: Path) -> None:
    file = tmp_path / "rules.yaml"
    file.write_text("version: 1\nrules: [{name: a, limit: 1/day}]\n")
    assert "ask the application" in run("top", "-", "--rules", str(file), code=2).stderr


# --- the rules that workers report ---------------------------------------------------------------


@pytest.fixture
def worker(empty: Server) -> Server:
    """A server to which a worker has reported the rules api and login, and a route's."""

    async def start(store: RedisStore) -> None:
        async with RateLimiter([Rule("api", "1/day"), Rule("login", "1/day")], store=store) as one:
            one.check_registered([Rule("of.a.route", "1/day", on_route=True)])
            one.start()
            while not await store.rules():  # noqa: ASYNC110  # told by a task of the limiter's
                await asyncio.sleep(0.01)

    with_store(empty, start)
    return empty


def off(server: Server) -> frozenset[str]:
    return with_store(server, lambda store: store.switches())


def test_a_kill_of_a_name_that_no_workers_rule_has_is_refused(worker: Server) -> None:
    result = run("kill", worker.url, "logn", code=2)
    assert "there is no rule 'logn'; did you mean 'login'; --force" in result.stderr
    assert off(worker) == frozenset()
    for name in ("login", "of.a.route", "*"):
        assert rows("kill", worker.url, name) == {"rule": name, "off": True, "reported": True}
        assert f"{name} is off; " in run("kill", worker.url, name).stderr
    assert off(worker) == {"login", "of.a.route", "*"}


def test_a_kill_that_is_forced_says_that_no_worker_has_the_rule(worker: Server) -> None:
    result = run("kill", worker.url, "logn", "--force", "--json")
    assert '"reported": false' in result.stdout
    assert "no worker has such a rule" in result.stderr
    assert off(worker) == {"logn"}


def test_a_rule_that_the_file_alone_has_may_be_killed_before_workers_have_it(
    worker: Server, rules: str
) -> None:
    assert "no worker has" in run("kill", worker.url, "plans", "--rules", rules).stderr
    assert run("kill", worker.url, "of.a.route", "--rules", rules).stderr.count("\n") == 1
    assert off(worker) == {"plans", "of.a.route"}


def test_where_no_worker_reports_a_kill_says_that_it_cannot_know(empty: Server) -> None:
    for name in ("login", "*"):
        result = run("kill", empty.url, name)
        assert "no worker reports its rules here, so it cannot be known" in result.stderr
    assert off(empty) == {"login", "*"}


def test_where_more_rules_are_reported_than_are_kept_a_kill_cannot_know(
    worker: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_RULES", 2)
    result = run("kill", worker.url, "logn", "--json")
    assert '"reported": null' in result.stdout
    assert "there are more rules than are reported" in result.stderr


def test_a_user_who_may_not_read_the_rules_turns_them_off_all_the_same(worker: Server) -> None:
    rights = ("~rl:*", "-@all", "+sadd", "+srandmember")
    worker.ask("ACL", "SETUSER", "operator", "reset", "on", ">pw", *rights)
    try:
        url = worker.url.replace("redis://", "redis://operator:pw@")
        assert "cannot be known" in run("kill", url, "logn").stderr
    finally:
        worker.ask("ACL", "DELUSER", "operator")
    assert off(worker) == {"logn"}


def test_a_revive_of_what_was_not_off_says_so(empty: Server) -> None:
    run("kill", empty.url, "login")
    assert "logn was not off; still off: login" in run("revive", empty.url, "logn").stderr
    assert rows("revive", empty.url, "login") == {"rule": "login", "was_off": True, "off": []}
    assert rows("revive", empty.url, "login") == {"rule": "login", "was_off": False, "off": []}


def test_a_name_in_the_store_moves_no_cursor_and_ends_no_line(empty: Server) -> None:
    empty.ask("SADD", "rl:switches", "\x1b[2Jgone\nlogin is on again")
    said = run("revive", empty.url, "api").stderr
    assert said.count("\n") == 1
    assert "\\x1b[2Jgone\\nlogin" in said


def test_top_says_where_more_were_denied_than_are_kept(
    empty: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_store(empty, lambda store: store.note_denials({"a 192.0.2.1": 9, "a 192.0.2.2": 1}))
    assert run("top", empty.url).stderr == ""
    monkeypatch.setattr("ratelimit.cli.counters.MOST_DENIED", 2)
    result = run("top", empty.url)
    assert "more were denied than are kept" in result.stderr
    assert result.stdout.splitlines()[1:] == ["9\ta\t192.0.2.1", "1\ta\t192.0.2.2"]


OVERRIDES = """\
version: 1
rules:
  - name: two
    match: {path: /two}
    by: [user, client]
    limit: 5/minute
    overrides: {"alice|192.0.2.9": 50/minute, mallory: blocked, root: unlimited}
  - name: all
    match: {path: /all}
    by: global
    limit: 7/minute
"""


def test_an_override_by_all_parts_is_found_and_who_has_no_counter_is_told(
    empty: Server, tmp_path: Path
) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(OVERRIDES)
    place = ("--rules", str(file))

    def limits(*identity: str) -> list[object]:
        return [row["limit"] for row in rows("inspect", empty.url, *identity, *place)]

    assert limits("two", "alice", "192.0.2.9") == ["50/minute"]
    assert limits("two", "alice", "192.0.2.1") == ["5/minute"]
    assert limits("all") == ["7/minute"]
    assert run("reset", empty.url, "all", *place).stderr.startswith("all: starts afresh")
    for identity, said in (
        (("two", "mallory", "192.0.2.1"), "rule 'two' blocks this identity"),
        (("two", "root", "192.0.2.1"), "rule 'two' does not limit this identity"),
        (("two", "alice", "banana"), "'banana' is not the address of a client"),
        (("all", "x"), "rule 'all' counts by global: give no texts, not 1"),
    ):
        assert said in run("inspect", empty.url, *identity, *place, code=2).stderr


# --- bans ----------------------------------------------------------------------------------------

BANNING = """
version: 1
rules:
  - {name: login, limit: 2/minute, ban: {after: 3, within: 1m, for: 10m, up_to: 1d}}
  - {name: other, limit: 2/minute}
"""


def test_a_ban_is_inspected_and_lifted(empty: Server, tmp_path: Path) -> None:
    file = tmp_path / "banning.yaml"
    file.write_text(BANNING)
    place = ("login", "198.51.100.7", "--rules", str(file))

    async def ask(store: RedisStore) -> None:
        async with RateLimiter(RuleSet.load(file), store=store) as limiter:
            for _ in range(6):
                await limiter.charge("login", "198.51.100.7")

    def state() -> tuple[object, ...]:
        counted, ban = rows("inspect", empty.url, *place)
        assert "banned for s" not in counted
        assert ban["limit"] == "ban after 3 in 1 minute for 10 minutes, up to 1 day"
        return ban["remaining"], ban["of"], ban["banned for s"] > 0

    assert state() == (3, 3, False)
    empty.command("FLUSHALL")
    with_store(empty, ask, deny_cache=0)
    assert state() == (0, 3, True)
    lifted = rows("unban", empty.url, *place)
    assert lifted.pop("for_s") > 500
    assert lifted == {"rule": "login", "was_banned": True}
    assert state() == (3, 3, False)
    assert "was not banned" in run("unban", empty.url, *place).stderr
    with_store(empty, ask, deny_cache=0)
    assert state() == (0, 3, True)
    run("reset", empty.url, *place)
    assert state() == (3, 3, False)
    refused = run("unban", empty.url, "other", *place[1:], code=2)
    assert "does not ban" in refused.stderr
