"""A plan as a rule file in shadow, with its reasons as comments."""

import json
from collections.abc import Mapping
from typing import Any

__all__ = ["rule_file"]


def rule_file(plan: Mapping[str, Any]) -> str:
    """The rule file of a plan's report, which `ratelimit check` accepts."""
    log = plan["log"]
    share = f"{plan['share'] * 100:g} %"
    lines = [
        f"# {log['requests']} requests, {log['first']} to {log['last']}.",
        f"# Each quota is the smallest that refuses at most {share} of a rule's clients.",
        "# Every rule is a shadow: it counts and refuses nobody, until its mode is enforce.",
    ]
    if plan["interrupted"]:
        lines.append("# Interrupted: the log was not read to its end.")
    lines += [f"# {_comment(note)}" for note in plan["notes"]]
    lines += ["version: 1", "rules:" if plan["rules"] else "rules: []"]
    for rule in plan["rules"]:
        lines += _of_rule(rule, plan["by"])
    return "\n".join(lines) + "\n"


def _of_rule(rule: Mapping[str, Any], by: str) -> list[str]:
    whose = "every request" if rule["path"] is None else f"{rule['method']} {rule['path']}"
    lines = [
        "",
        f"  # {_comment(whose)}: {rule['requests']} requests of {rule['clients']} clients.",
    ]
    for window, use in rule["use"].items():
        told = ", ".join(
            f"{words} up to {most}"
            for words, most in use.items()
            if words not in ("quota", "clients above")
        )
        a_window = f"{'an' if window == 'hour' else 'a'} {window}"
        refused = f"{use['quota']}/{window} would refuse {use['clients above']}"
        lines.append(f"  # In {a_window}: {told}; {refused}.")
    if rule["most"]:
        named = ", ".join(f"{each['client']} ({each['use']})" for each in rule["most"][:5])
        more = ", ..." if rule["refused clients"] > 5 else ""
        lines.append(
            f"  # Refused would have been {rule['refused clients']} clients: "
            f"{_comment(named)}{more}"
        )
    lines.append(f"  - name: {rule['name']}")
    if rule["path"] is not None:
        lines.append(
            f"    match: {{path: {json.dumps(rule['path'])}, methods: [{rule['method']}]}}"
        )
    lines += [f"    by: {json.dumps(by)}", f"    limit: {rule['limit']}", "    mode: shadow"]
    return lines


def _comment(text: str) -> str:
    """Text of anybody's that ends no line."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)
