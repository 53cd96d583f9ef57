"""The README as the package index shows it, where a relative link leads nowhere.

Pages of docs/ are linked on the site, ``Documentation`` among the project's URLs, and other files
in the repository, ``Source``. Without such a URL the link is left out and its text stays; so does
the text of a picture.
"""

import re
from pathlib import Path
from typing import Any, Final

from hatchling.metadata.plugin.interface import MetadataHookInterface

RELATIVE: Final = re.compile(r"(!?)\[([^\]\n]*)\]\((?!https?:|#)([^)#\s]+)(#[^)\s]*)?\)")


def outward(text: str, urls: dict[str, str]) -> str:
    """The README with absolute links; ``urls`` are the project's, by their labels."""
    site, source = urls.get("Documentation"), urls.get("Source")

    def link(match: re.Match[str]) -> str:
        picture, label, target, anchor = match[1], match[2], match[3], match[4] or ""
        page = re.fullmatch(r"docs/([\w/-]+?)(\.md|\.\w+)", target)
        url = None
        if page and site:
            url = f"{site.rstrip('/')}/{page[1]}{'/' if page[2] == '.md' else page[2]}{anchor}"
        elif source:
            url = f"{source.rstrip('/')}/{'raw' if picture else 'blob'}/main/{target}{anchor}"
        return f"{picture}[{label}]({url})" if url else label

    return RELATIVE.sub(link, text)


class Readme(MetadataHookInterface):
    """Sets the long description."""

    PLUGIN_NAME = "custom"

    def update(self, metadata: dict[str, Any]) -> None:
        """Adds ``readme`` to the project's metadata."""
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        urls = metadata.get("urls", {})
        metadata["readme"] = {"content-type": "text/markdown", "text": outward(text, urls)}
