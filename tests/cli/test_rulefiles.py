"""Rule files before they are deployed: what `check` and `schema` print."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from ratelimit import Check, Limit, RedisStore
from ratelimit.cli.rulefiles import _bytes
from ratelimit.limits import Algorithm
from ratelimit.rules.file.schema import schema
from tests.support.commands import rows, run, with_store
from tests.support.servers import Server


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


@pytest.mark.parametrize(("store", "ahead"), [("memory://", 0), ("redis://localhost", 9)])
def test_check_tells_what_messages_pass_at_worst(tmp_path: Path, store: str, ahead: int) -> None:
    """By so much a limit is passed at most, whatever the number of workers."""
    text = (
        f"store: {store}\nrules: [{{name: a, limit: 1/minute, "
        "websocket: {messages: 100/second, bytes: 5/second}}]\n"
    )
    _, messages, size = checked(tmp_path, text)
    assert (messages["whose"], messages["charged ahead"]) == ("messages", ahead)
    assert messages["at worst"] == 199 + ahead
    assert messages["store away"] == "by connection"
    assert (size["whose"], size["limit"]) == ("bytes", "5/second")
    assert size["at worst"] == 9 + min(1, ahead)


def test_check_tells_how_many_requests_are_undecided_at_once(tmp_path: Path) -> None:
    file = tmp_path / "rules.yaml"
    charge = "charge: {on_status: [401]}"
    file.write_text(
        f"version: 1\nrules:\n  - {{name: a, limit: 5/minute; 20/hour, {charge}}}\n"
        f"  - {{name: b, limit: 5/minute}}\n  - {{name: c, limit: 5/minute, mode: off, {charge}}}\n"
    )
    (report,) = rows("check", str(file))
    (told,) = report["undecided"]
    assert told.startswith("rule 'a': ")
    assert "at most 5 of one identity are looked at at once" in told
    assert told in run("check", str(file)).output


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
    assert f"{rules}: 4 rules, no mistake" in result.stderr
    assert rows("check", str(bad), code=1)[0]["mistakes"][0]["code"] == "bad-limit"


def test_advice_fails_only_where_it_is_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "keyed.yaml"
    file.write_text("version: 1\nrules: [{name: a, limit: 9/minute, by: 'header:x-key'}]\n")
    assert "[client-chosen]" in run("check", str(file)).stderr
    assert "[client-chosen]" in run("check", str(file), "--strict", code=1).stderr


def test_a_rule_file_that_is_a_pipe_is_told_of_and_never_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, kind in (("pipe", "a pipe"), (".", "a folder")):
        result = run("check", str(tmp_path / name), code=1)
        assert f"cannot be read (it is {kind}, not a file)" in result.stderr


def test_schema_prints_the_schema() -> None:
    assert json.loads(run("schema").stdout) == rows("schema") == schema()


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


def test_check_tells_whom_a_ban_hits_at_worst(tmp_path: Path) -> None:
    file = tmp_path / "rules.yaml"
    ban = "ban: {after: 10, within: 1m, for: 10m, up_to: 1d}"
    file.write_text(
        f"version: 1\nipv6_prefix: 56\nrules:\n  - {{name: a, limit: 5/minute, {ban}}}\n"
        f"  - {{name: b, limit: 5/minute, by: user, {ban}}}\n"
    )
    said = run("check", str(file)).stderr
    assert (
        "rule 'a' bans after 10 in 1 minute for 10 minutes, up to 1 day: at worst everybody behind "
        "one address (a NAT), or in one IPv6 /56, is refused together, for up to 1 day, once any "
        "of them was refused 10 times"
    ) in said
    assert "rule 'b' bans" in said
    assert "without a user, everybody behind one address" in said
    assert rows("check", str(file))[0]["rules"][0]["ban"].startswith("after 10 in 1 minute")
