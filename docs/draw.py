"""Draws docs/pictures/: the same requests met by each algorithm, as the engine decided them.

``python docs/draw.py`` writes the pictures; a test holds those that are checked in to what this
draws. Each is one SVG in light and dark: it goes by ``prefers-color-scheme``.
"""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from ratelimit import Algorithm, Check, Limit, MemoryStore
from ratelimit.testing import ManualClock

PICTURES: Final = Path(__file__).with_name("pictures")
QUOTA: Final = "5/10 seconds"
SECONDS: Final = 30
STEP_US: Final = 50_000
"""How often the state is looked at, which charges nothing."""

ARRIVALS_US: Final = [
    *range(7_400_000, 9_800_001, 400_000),  # a burst at the end of a window of the clock,
    *range(10_200_000, 12_600_001, 400_000),  # one at the start of the next,
    *range(15_000_000, 28_000_001, 1_000_000),  # and then one a second, twice the limit
]

LEFT, RIGHT, TOP, BOTTOM, ROW, HEIGHT, WIDTH = 54, 696, 44, 124, 146, 200, 720

STYLE: Final = """
svg{--paper:#fff;--ink:#1f2430;--faint:#8a92a6;--rule:#dfe3ec;--left:#c9d6f5;--edge:#4a6fd0;
--yes:#1c7c54;--wait:#9a6700;--no:#c0362c;font-family:ui-sans-serif,system-ui,sans-serif}
@media(prefers-color-scheme:dark){svg{--paper:#171a21;--ink:#e6e9f0;--faint:#8a92a6;--rule:#2c3240;
--left:#27365f;--edge:#7f9df0;--yes:#4cc38a;--wait:#e0a92e;--no:#f2766b}}
.paper{fill:var(--paper)}text{fill:var(--ink);font-size:12px}.faint{fill:var(--faint)}
.title{font-size:14px;font-weight:600}.rule{stroke:var(--rule)}.left{fill:var(--left)}
.edge{fill:none;stroke:var(--edge);stroke-width:1.5}.yes{fill:var(--yes)}
.wait{fill:var(--wait)}.turn{stroke:var(--wait);stroke-width:1.5}
.no{stroke:var(--no);stroke-width:1.8}
""".replace("\n", "")


class Met(NamedTuple):
    """One request: when it came, whether it passed, and how long it was held."""

    at_us: int
    passed: bool
    delay_us: int


class Story(NamedTuple):
    """All that one algorithm did: what was left at each instant, and each request."""

    remaining: list[tuple[int, int]]
    requests: list[Met]

    @property
    def most(self) -> int:
        """The most requests that left within any ten seconds."""
        left = sorted(met.at_us + met.delay_us for met in self.requests if met.passed)
        return max(sum(at - 10_000_000 < each <= at for each in left) for at in left)


async def play(algorithm: Algorithm) -> Story:
    """Sends the requests to a store whose clock is moved from one instant to the next."""
    clock = ManualClock()
    start_us = clock()
    limit = Limit(QUOTA, algorithm=algorithm)
    remaining: list[tuple[int, int]] = []
    requests: list[Met] = []
    async with MemoryStore(clock=clock) as store:
        for at_us in sorted({*range(0, SECONDS * 1_000_000 + 1, STEP_US), *ARRIVALS_US}):
            clock.set_us(start_us + at_us)
            if at_us in ARRIVALS_US:
                (decision,) = await store.decide([Check(limit, "client")])
                requests.append(Met(at_us, decision.allowed, decision.delay_us))
            (state,) = await store.decide([Check(limit, "client", cost=0)])
            remaining.append((at_us, state.remaining))
    return Story(remaining, requests)


def x(at_us: int) -> float:
    """The place of an instant, in units of the picture."""
    return LEFT + (RIGHT - LEFT) * at_us / (SECONDS * 1_000_000)


def y(remaining: int) -> float:
    """The height of what is left."""
    return BOTTOM - (BOTTOM - TOP) * remaining / 5


def steps(remaining: list[tuple[int, int]]) -> Iterator[str]:
    """The line of what is left, as the points where it turns."""
    before = remaining[0][1]
    yield f"M{x(0):.1f} {y(before):.1f}"
    for at_us, now in remaining[1:]:
        if now != before:
            yield f"H{x(at_us):.1f}V{y(now):.1f}"
            before = now
    yield f"H{x(SECONDS * 1_000_000):.1f}"


def marks(requests: list[Met]) -> Iterator[str]:
    """A dot for what passed, a cross for what was refused, a line to the turn of what waited."""
    for met in requests:
        at = x(met.at_us)
        if not met.passed:
            yield (
                f'<path class="no" d="M{at - 3.5:.1f} {ROW - 3.5}l7 7m0 -7l-7 7">'
                f"<title>{met.at_us / 1e6:g} s: refused</title></path>"
            )
        elif met.delay_us:
            turn = x(met.at_us + met.delay_us)
            yield (
                f'<path class="turn" d="M{at:.1f} {ROW}L{turn:.1f} {ROW + 22}"/>'
                f'<circle class="wait" cx="{turn:.1f}" cy="{ROW + 22}" r="4">'
                f"<title>{met.at_us / 1e6:g} s: waits {met.delay_us / 1e6:g} s</title></circle>"
            )
        else:
            yield (
                f'<circle class="yes" cx="{at:.1f}" cy="{ROW}" r="4">'
                f"<title>{met.at_us / 1e6:g} s: passes</title></circle>"
            )


def summary(story: Story) -> str:
    """How the requests fared, in a line."""
    passed = sum(met.passed for met in story.requests)
    waited = sum(met.delay_us > 0 for met in story.requests)
    held = f", {waited} of them after a wait" if waited else ""
    return f"{passed} of {len(story.requests)} pass{held}; at most {story.most} within any 10 s"


def draw(algorithm: Algorithm) -> str:
    """The picture of an algorithm, as the text of an SVG."""
    story = asyncio.run(play(algorithm))
    line = "".join(steps(story.remaining))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
        f"<title>{algorithm}, {QUOTA}: {summary(story)}</title>",
        f"<style>{STYLE}</style>",
        f'<rect class="paper" width="{WIDTH}" height="{HEIGHT}" rx="8"/>',
        f'<text class="title" x="{LEFT}" y="24">{algorithm}</text>',
        f'<text x="{RIGHT}" y="24" text-anchor="end">{summary(story)}</text>',
        f'<path class="left" d="{line}V{BOTTOM}H{LEFT}Z"/>',
    ]
    for second in range(0, SECONDS + 1, 10):
        at = x(second * 1_000_000)
        parts.append(f'<path class="rule" d="M{at:.1f} {TOP - 8}V{ROW + 28}"/>')
        parts.append(
            f'<text class="faint" x="{at:.1f}" y="{HEIGHT - 4}" text-anchor="middle">'
            f"{second} s</text>"
        )
    parts += [
        f'<path class="edge" d="{line}"/>',
        f'<text class="faint" x="{LEFT - 8}" y="{TOP + 4}" text-anchor="end">5 left</text>',
        f'<text class="faint" x="{LEFT - 8}" y="{BOTTOM + 4}" text-anchor="end">0</text>',
        f'<clipPath id="c"><path d="M0 0H{RIGHT + 8}V{HEIGHT}H0Z"/></clipPath>',
        '<g clip-path="url(#c)">',
        *marks(story.requests),
        "</g>",
        "</svg>\n",
    ]
    return "\n".join(parts)


if __name__ == "__main__":
    PICTURES.mkdir(exist_ok=True)
    for each in Algorithm:
        (PICTURES / f"{each}.svg").write_text(draw(each), encoding="utf-8")
