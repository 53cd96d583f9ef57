"""The texts of Envoy's descriptors as segments of a path, which rules name. Pure."""

import re
from hashlib import blake2b
from typing import Final
from urllib.parse import unquote_to_bytes

__all__ = ["spelled", "unspelled"]

LONGEST_VALUE: Final = 2_000
"""Bytes of a value that are spelled out; a longer one is its digest, which no rule names."""

_PLAIN: Final = re.compile(rb"(?:[A-Za-z0-9_~:@!$'(),;&+-][A-Za-z0-9_~:@!$'(),;&+.-]*+)")
_OTHER: Final = re.compile(rb"^\.|[^A-Za-z0-9_~:@!$'(),;&+.-]")


def spelled(text: bytes) -> str:
    """A domain, a key or a value as a segment of a path: what could be misread as ``=2F``."""
    if _PLAIN.fullmatch(text) and len(text) <= LONGEST_VALUE:
        return text.decode()
    if len(text) > LONGEST_VALUE:
        return "=~" + blake2b(text, digest_size=16).hexdigest()
    return _OTHER.sub(lambda found: b"=%02X" % found[0][0], text).decode() or "="


def unspelled(segment: object) -> object:
    """The value of a segment, as overrides and counters name it."""
    if not isinstance(segment, str) or "=" not in segment or segment.startswith("=~"):
        return segment
    # What is no UTF-8 stays apart from all that is.
    return unquote_to_bytes(segment.replace("=", "%").rstrip("%")).decode(errors="surrogateescape")
