"""Tables, columns or JSON on standard output; sentences on standard error."""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final, NoReturn

import click
from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

__all__ = ["Row", "as_json", "fail", "say", "show"]

Row = Mapping[str, object]

as_json: Final = click.option("--json", "json_", is_flag=True, help="JSON, for programs.")


def say(sentence: str, colour: str | None = None) -> None:
    """Tells a sentence, in one line, to whoever reads along."""
    click.secho(_printable(sentence), fg=colour, err=True)


def fail(sentence: str, code: int) -> NoReturn:
    """Ends the command with a sentence and an exit code."""
    say(sentence, "red")
    sys.exit(code)


def show(found: Any, *, json_: bool) -> None:
    """Prints what was found: JSON where that is asked for, else rows of columns.

    On a terminal rows are a table, or stand below each other where it is too narrow for one; where
    the output goes elsewhere, columns stand between tabs. Without rows nothing is printed.
    """
    if json_:
        click.echo(json.dumps(found, indent=2))
    elif found:
        _show_rows(found)


def _show_rows(rows: Sequence[Row]) -> None:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    cells = [[_printable(str(row.get(column, ""))) for column in columns] for row in rows]
    if not sys.stdout.isatty():
        for line in ([column.upper() for column in columns], *cells):
            click.echo("\t".join(line))
        return
    console = Console()
    widths = _widths([columns, *cells], console.width - len(columns) + 1)
    if widths:
        table = Table(box=SIMPLE_HEAD, padding=0, show_edge=False)
        for column, width in zip(columns, widths, strict=True):
            numbers = all(isinstance(row.get(column, 0), int) for row in rows)
            table.add_column(column, justify="right" if numbers else "left", width=width)
        for line in cells:
            table.add_row(*map(Text, line))
        console.print(table)
        return
    for line in cells:
        alone = Table.grid(padding=(0, 2, 0, 0))
        alone.add_column(style="bold", no_wrap=True)
        alone.add_column(overflow="fold")
        for column, cell in zip(columns, line, strict=True):
            if cell:
                alone.add_row(column, Text(cell))
        console.print(alone, "")


def _widths(lines: Sequence[Sequence[str]], room: int) -> list[int]:
    """The width of each column, in which lines break between words; empty for too little room."""
    columns = list(zip(*lines, strict=True))
    widths = [max(cell_len(word) for text in each for word in text.split()) for each in columns]
    room -= sum(widths)
    if room < 0:
        return []
    wanted = [max(map(cell_len, each)) - width for each, width in zip(columns, widths, strict=True)]
    for done, number in enumerate(sorted(range(len(wanted)), key=wanted.__getitem__)):
        more = min(wanted[number], room // (len(wanted) - done))
        widths[number] += more
        room -= more
    return widths


def _printable(text: str) -> str:
    """Text that moves no cursor and ends no line: names in a store may be anybody's."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)
