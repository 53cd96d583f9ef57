"""A report as one page: no script, nothing from elsewhere, and nothing from a log unescaped.

Mail clients leave out much of a page; what they keep are tables, inline styles and SVG. Where they
leave out the plots as well, every number stands in a table.
"""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, Final

from ratelimit.insight.replay.plots import bars, stacked
from ratelimit.insight.replay.report import moment

__all__ = ["page_of"]

_STYLE: Final = (
    "body{font:14px/1.45 sans-serif;max-width:60rem;margin:1.5rem auto;padding:0 1rem}"
    "table{border-collapse:collapse;margin:.5rem 0 1.25rem}"
    "th,td{padding:.2rem .6rem;border-bottom:1px solid #ccc;text-align:left}"
    "td.n{text-align:right;font-variant-numeric:tabular-nums}"
    "h2{margin:1.75rem 0 .25rem;font-size:1.1rem}svg{max-width:100%;height:auto}"
    "@media(prefers-color-scheme:dark){body{background:#1b1b1b;color:#ddd}a{color:#8bf}}"
)
_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'"


def page_of(report: Mapping[str, Any], name: str) -> str:
    """The page of a report on the rules of this name."""
    log = report["log"]
    span = f"{log['first']} to {log['last']}" if log["first"] else "no time"
    whence = f"from {', '.join(log['files'])} ({', '.join(log['formats']) or 'unknown'})"
    read = f"{log['requests']:,} requests in {log['lines']:,} lines, {span}, {whence}."
    parts = [f"<p>{_safe(read)}</p>"]
    if report["interrupted"]:
        parts.append("<p><strong>Interrupted: this is what was played until then.</strong></p>")
    parts.append(_section("All rules together", report["readings"], _READINGS))
    parts.append(_section("Each rule", report["rules"]))
    if report.get("algorithms"):
        parts.append(_section("The five algorithms, as logged", report["algorithms"]))
    for each in report.get("against", []):
        plain = {key: value for key, value in each.items() if not isinstance(value, list)}
        parts.append(_section("Compared with the other file", [plain]))
        for title in ("clients newly refused", "clients newly passed"):
            if each[title]:
                parts += [_section(title.capitalize(), each[title])]
    parts += [_over_time(each) for each in report["when"] if each["points"]]
    if report["worst"]:
        rows = [(f"{row['rule']}: {row['client']}", row["refused"]) for row in report["worst"]]
        parts.append(f"<h2>Those refused most</h2>{bars(rows[:20], 'Those refused most')}")
        parts.append(_table(report["worst"]))
        parts.append("<p>“Locked out” is in seconds.</p>")
    parts.append(_notes(report))
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Replay of {_safe(name)}</title><style>{_STYLE}</style></head><body>"
        f"<h1>Replay of {_safe(name)}</h1>{''.join(parts)}</body></html>\n"
    )


_READINGS: Final = (
    "Three readings of what a refused client does: it never comes again, it comes again exactly "
    "when Retry-After says, or it does what the log shows. Where the log has whole seconds, each "
    "is played in the best and the worst order."
)


def _section(title: str, rows: Sequence[Mapping[str, Any]], words: str = "") -> str:
    said = f"<p>{_safe(words)}</p>" if words else ""
    return f"<h2>{_safe(title)}</h2>{said}{_table(rows)}"


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    head = "".join(f'<th scope="col">{_safe(column)}</th>' for column in columns)
    body = "".join(
        f"<tr>{''.join(_cell(row.get(column, '')) for column in columns)}</tr>" for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(value: object) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f'<td class="n">{value:,}</td>'
    return f"<td>{_safe(str(value))}</td>"


def _over_time(when: Mapping[str, Any]) -> str:
    points = when["points"]
    begin, end = moment(points[0][0] * 1_000_000), moment(points[-1][0] * 1_000_000)
    title = f"{when['rule']}: passed (blue) and refused (red)"
    return f"<h2>{_safe(title)}</h2>" + stacked(
        points, when["step"], (begin or "", end or ""), title
    )


def _notes(report: Mapping[str, Any]) -> str:
    log = report["log"]
    notes = [*report["cannot know"], *log["troubles"]]
    if log["out of order"]:
        notes.append(f"{log['out of order']} lines out of order, {log['late']} by more than 2 s")
    items = "".join(f"<li>{_safe(note)}</li>" for note in notes)
    said = f"<h2>What this log cannot tell</h2><ul>{items}</ul>" if items else ""
    rows = [
        {"lines": times, "fault": fault, "for instance": (log["samples"].get(fault) or [""])[0]}
        for fault, times in log["faults"].items()
    ]
    return said + (_section("Lines with faults", rows) if rows else "")


def _safe(text: str) -> str:
    """Text of anybody's: escaped, and without characters that steer anything."""
    plain = "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)
    return escape(plain.encode("utf-8", "backslashreplace").decode())
