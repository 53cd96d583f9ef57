"""Plots as SVG, drawn by hand: no script, no font and no picture from elsewhere."""

from collections.abc import Sequence
from html import escape
from typing import Final

__all__ = ["bars", "stacked"]

WIDTH: Final = 720
HEIGHT: Final = 160
LEFT: Final = 56
BOTTOM: Final = 22
TOP: Final = 8
PASSED: Final = "#5b8db8"
REFUSED: Final = "#b8412f"


def stacked(points: Sequence[Sequence[int]], step: int, labels: tuple[str, str], title: str) -> str:
    """Passed and refused requests over time: each point a second since the epoch and the two.

    ``step`` is how many seconds a point spans, ``labels`` the times of its two ends.
    """
    if not points:
        return ""
    first, last = points[0][0], points[-1][0]
    count = (last - first) // step + 1
    most = max(passed + refused for _, passed, refused in points) or 1
    room, tall = WIDTH - LEFT - 4, HEIGHT - BOTTOM - TOP
    wide = room / count
    drawn = []
    for second, passed, refused in points:
        x = LEFT + (second - first) // step * wide
        up, more = passed / most * tall, refused / most * tall
        base = HEIGHT - BOTTOM
        if passed:
            drawn.append(_bar(x, base - up, wide, up, PASSED))
        if refused:
            drawn.append(_bar(x, base - up - more, wide, more, REFUSED))
    rate = most / step
    top = f"{rate:,.1f}/s" if rate < 10 else f"{rate:,.0f}/s"
    return (
        f'<svg role="img" aria-label="{escape(title)}" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'width="{WIDTH}" height="{HEIGHT}" xmlns="http://www.w3.org/2000/svg">'
        f"<title>{escape(title)}</title>"
        f'<line x1="{LEFT}" y1="{HEIGHT - BOTTOM}" x2="{WIDTH - 4}" y2="{HEIGHT - BOTTOM}" '
        'stroke="#888"/>'
        f"{''.join(drawn)}"
        f"{_text(LEFT - 6, TOP + 10, top, 'end')}"
        f"{_text(LEFT - 6, HEIGHT - BOTTOM, '0', 'end')}"
        f"{_text(LEFT, HEIGHT - 6, labels[0], 'start')}"
        f"{_text(WIDTH - 4, HEIGHT - 6, labels[1], 'end')}"
        "</svg>"
    )


def bars(rows: Sequence[tuple[str, int]], title: str) -> str:
    """A bar for each row, with its name and number."""
    if not rows:
        return ""
    most = max(number for _, number in rows) or 1
    tall = 20 * len(rows) + 4
    drawn = []
    for place, (name, number) in enumerate(rows):
        y = 20 * place + 2
        wide = number / most * (WIDTH - 330)
        drawn.append(_text(214, y + 13, name[:34], "end"))
        drawn.append(_bar(220, y + 2, max(wide, 1), 14, REFUSED))
        drawn.append(_text(226 + wide, y + 13, f"{number:,}", "start"))
    return (
        f'<svg role="img" aria-label="{escape(title)}" viewBox="0 0 {WIDTH} {tall}" '
        f'width="{WIDTH}" height="{tall}" xmlns="http://www.w3.org/2000/svg">'
        f"<title>{escape(title)}</title>{''.join(drawn)}</svg>"
    )


def _bar(x: float, y: float, wide: float, tall: float, colour: str) -> str:
    return (
        f'<rect x="{x:.2f}" y="{y:.2f}" width="{max(wide, 0.5):.2f}" height="{tall:.2f}" '
        f'fill="{colour}"/>'
    )


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="11" '
        f'font-family="sans-serif" fill="#555">{escape(text)}</text>'
    )
