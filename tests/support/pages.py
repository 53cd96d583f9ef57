"""The pages of the documentation: their blocks of code, links and anchors."""

import re
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).resolve().parents[2]
README: Final = ROOT / "README.md"
PAGES: Final = [README, *sorted((ROOT / "docs").glob("*.md"))]

BLOCK: Final = re.compile(
    r"^```(\w*)(?: title=\"([^\"]*)\")?\n(.*?)^```$", re.MULTILINE | re.DOTALL
)
LINK: Final = re.compile(r"\]\(([^)\s]+)\)|(?:src|srcset|href)=\"([^\"]+)\"")
MARK: Final = re.compile(r"<!-- not run: ([^>]+) -->\n\s*\Z")


class Block(NamedTuple):
    """A fenced block: ``title`` names another program's code, or is empty where it is ours."""

    page: Path
    heading: str
    language: str
    title: str
    text: str
    not_run: str
    """The reason that a comment above it gives, or ""."""
    at: int
    """Where on the page it begins, in characters."""

    @property
    def file(self) -> str:
        """The file that its first line names, as in ``# main.py``; or ""."""
        match = re.match(r"# (\w+\.\w+)\n", self.text)
        return match[1] if match else ""


def blocks(page: Path) -> list[Block]:
    """The blocks of a page, in order, each under its nearest heading."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in BLOCK.finditer(text):
        before = text[: match.start()]
        headings = re.findall(r"^#+ (.+)$", BLOCK.sub("", before), re.MULTILINE)
        mark = MARK.search(before)
        found.append(
            Block(
                page,
                headings[-1] if headings else "",
                match[1],
                match[2] or "",
                match[3],
                mark[1] if mark else "",
                match.start(),
            )
        )
    return found


def prose(page: Path) -> str:
    """A page without its blocks and without code in its lines."""
    return re.sub(r"`[^`\n]*`", "`", BLOCK.sub("", page.read_text(encoding="utf-8")))


def links(page: Path) -> list[str]:
    """Where a page leads, pictures included."""
    return [match[1] or match[2] for match in LINK.finditer(prose(page))]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings."""
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    return {
        re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip())
        for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    }
