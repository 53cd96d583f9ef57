"""Hooks of the site's generator: what a page links outside of docs/ leads to the repository."""

import re
from pathlib import Path
from posixpath import normpath
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[1]
OUTWARD: Final = re.compile(r"(?<!!)\[([^\]\n]*)\]\((\.\./[^)\s#]+)(#[^)\s]*)?\)")
"""A link to a file of the repository that is no page of the site."""


def on_page_markdown(markdown: str, *, config: Any, page: Any, **_: Any) -> str:
    """Points outward links at the repository, or, while it has no address, leaves their text.

    Raises FileNotFoundError where a page names a file that the repository does not have.
    """

    def link(match: re.Match[str]) -> str:
        text, target, anchor = match[1], normpath(f"docs/{match[2]}"), match[3] or ""
        if not (ROOT / target).exists():
            raise FileNotFoundError(f"docs/{page.file.src_uri}: {target} is not in the repository")
        if config.repo_url:
            return f"[{text}]({config.repo_url.rstrip('/')}/blob/main/{target}{anchor})"
        return text if text.strip("`") == target else f"{text} (`{target}`)"

    return OUTWARD.sub(link, markdown)
