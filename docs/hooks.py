"""Hooks of the site's generator: links out of docs/, recorded figures, and files of the root."""

import logging
import re
from pathlib import Path
from posixpath import normpath
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[1]
LOG: Final = logging.getLogger("mkdocs.hooks")

OUTWARD: Final = re.compile(r"(?<!!)\[([^\]\n]*)\]\((\.\./[^)\s#]+)(#[^)\s]*)?\)")
"""A link to a file of the repository that is no page of the site."""
RESULTS: Final = re.compile(r"<!-- results: (benchmarks/results/\w+\.md) -->")
INCLUDED: Final = re.compile(r"<!-- included: (\w+\.md) -->")
"""Where the site shows a file of the repository's root, below its title."""


def on_page_markdown(markdown: str, *, config: Any, page: Any, **_: Any) -> str:
    """Puts figures and files in their place, and points outward links at the repository.

    While that has no address (``repo_url``), their text is left. A file that is not there is a
    warning, at which a strict build fails.
    """

    def link(match: re.Match[str]) -> str:
        text, target, anchor = match[1], normpath(f"docs/{match[2]}"), match[3] or ""
        if not (ROOT / target).exists():
            LOG.warning("docs/%s: %s is not in the repository", page.file.src_uri, target)
        if config.repo_url:
            return f"[{text}]({config.repo_url.rstrip('/')}/blob/main/{target}{anchor})"
        return text if text.strip("`") == target else f"{text} (`{target}`)"

    markdown = RESULTS.sub(lambda match: results(match[1]), markdown)
    markdown = INCLUDED.sub(lambda match: included(match[1]), markdown)
    return OUTWARD.sub(link, markdown)


def included(name: str) -> str:
    """A file of the root without its title, its links as from docs/."""
    _, _, text = (ROOT / name).read_text(encoding="utf-8").partition("\n")
    return re.sub(r"\]\((?!https?:|#)(docs/)?", lambda link: "](" if link[1] else "](../", text)


def results(name: str) -> str:
    """The list that a benchmark's results open with: what ran where, and what it came to."""
    text = (ROOT / name).read_text(encoding="utf-8")
    return text[text.index("\n") : re.search(r"^(###|!\[)", text, re.MULTILINE).start()]  # type: ignore[union-attr]
