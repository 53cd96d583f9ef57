"""A replay as plain values: for a terminal, for JSON, and for the page."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

from ratelimit.decisions import identity_digest
from ratelimit.insight.replay.player import Player
from ratelimit.insight.replay.session import Pass, Replay
from ratelimit.insight.replay.tally import RuleTally
from ratelimit.rules.rule import Rule

__all__ = ["log_of", "masked", "moment", "report_of"]

WORST: Final = 10
"""Clients of a rule that are told."""


def moment(us: int | None) -> str | None:
    """A time in UTC."""
    if us is None:
        return None
    return datetime.fromtimestamp(us // 1_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def masked(by: tuple[str, ...], key: str) -> str:
    """An identity as it is shown: addresses as they are, others by their digest."""
    return key if set(by) <= {"client", "global"} else f"#{identity_digest(key)}"


def log_of(log: Any) -> dict[str, Any]:
    """The log that was read: how much, from when to when, and what was not understood."""
    troubles = log.troubles
    return {
        "files": [source.name for source in log.sources],
        "formats": log.formats,
        "lines": log.lines,
        "requests": log.requests,
        "first": moment(log.first_us),
        "last": moment(log.last_us),
        "whole seconds": log.whole_seconds,
        "out of order": log.out_of_order,
        "late": log.late,
        "faults": dict(sorted(troubles.counts.items())),
        "samples": {fault: _clean(lines) for fault, lines in sorted(troubles.samples.items())},
        "troubles": _clean(troubles.files),
    }


def _clean(lines: Sequence[str]) -> list[str]:
    """Text that can be written in UTF-8; bytes that are not stand as escapes."""
    return [line.encode("utf-8", "backslashreplace").decode() for line in lines]


def report_of(replay: Replay) -> dict[str, Any]:
    """All that a replay came to."""
    first = _main(replay.passes)
    rules = {rule.name: rule for rule in replay.rules.rules}
    report: dict[str, Any] = {
        "log": log_of(replay.log),
        "interrupted": replay.interrupted,
        "readings": [_totals(each) for each in replay.passes],
        "rules": [
            {"reading": each.reading, "order": each.order, **row}
            for each in replay.passes
            for row in _rows(each, rules)
        ],
        "worst": [] if first is None else _worst(first, rules),
        "when": [] if first is None else _when(first.player),
        "cannot know": replay.unknown(),
    }
    if replay.compared:
        report["algorithms"] = [
            {"algorithm": each.algorithm, "order": each.order, **_short(each, name)}
            for name in rules
            for each in replay.compared
            if rules[name].mode != "off"
        ]
    if replay.differences:
        report["against"] = [
            {
                "order": each.new.order,
                "newly refused": each.newly_refused,
                "newly passed": each.newly_passed,
                "refused by both": each.both_refused,
                "clients newly refused": _names(each.refused_clients.most(WORST)),
                "clients newly passed": _names(each.passed_clients.most(WORST)),
            }
            for each in replay.differences
        ]
    return report


def _main(passes: Sequence[Pass]) -> Pass | None:
    """The pass whose clients and times are told: as logged, at worst."""
    for order in ("worst", "logged", "best"):
        for each in passes:
            if each.reading == "logged" and each.order == order:
                return each
    return passes[-1] if passes else None


def _totals(each: Pass) -> dict[str, Any]:
    player = each.player
    return {
        "reading": each.reading,
        "order": each.order,
        "requests": player.requests,
        "passed": player.requests - player.refused_first,
        "waited": player.waited,
        "refused": player.refused_first,
        "came again": player.retried,
        "gave up": player.gave_up,
    }


def _rows(each: Pass, rules: dict[str, Rule]) -> list[dict[str, Any]]:
    rows = []
    for name, tally in each.player.rules.items():
        rule = rules[name]
        if rule.mode == "off":
            continue
        asked = each.asker.identities[name]
        rows.append(
            {
                "rule": name,
                "mode": rule.mode,
                "passed": tally.passed,
                "waited": tally.waited,
                "mean wait": _mean(tally),
                "longest wait": round(tally.longest_us / 1_000_000, 3),
                "refused": tally.refused,
                "never": tally.never,
                "turned away": tally.turned_away,
                "clients": len(asked),
                "clients refused": len(tally.identities),
            }
        )
    return rows


def _mean(tally: RuleTally) -> float:
    return round(tally.waited_us / tally.waited / 1_000_000, 3) if tally.waited else 0.0


def _short(each: Pass, name: str) -> dict[str, Any]:
    tally = each.player.rules[name]
    return {
        "rule": name,
        "passed": tally.passed,
        "waited": tally.waited,
        "refused": tally.refused,
        "clients refused": len(tally.identities),
    }


def _worst(each: Pass, rules: dict[str, Rule]) -> list[dict[str, Any]]:
    found = []
    for name, tally in each.player.rules.items():
        for key, times, locked_us, first_us, last_us in tally.locked.most(WORST):
            found.append(
                {
                    "rule": name,
                    "client": masked(rules[name].by, key),
                    "refused": times,
                    "locked out": round(locked_us / 1_000_000, 1),
                    "first": moment(first_us),
                    "last": moment(last_us),
                }
            )
    return found


def _when(player: Player) -> list[dict[str, Any]]:
    return [
        {
            "rule": name,
            "step": tally.series.step,
            "points": [list(point) for point in tally.series],
        }
        for name, tally in player.rules.items()
    ]


def _names(found: list[tuple[str, int, int, int, int]]) -> list[dict[str, Any]]:
    return [{"client": _clean([name])[0], "requests": times} for name, times, *_ in found]
