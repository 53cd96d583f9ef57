"""The format of a log, by its first lines."""

from collections.abc import Mapping, Sequence
from typing import Final

from ratelimit.identity.addresses import read_address
from ratelimit.insight.replay.entries import Entry, Format
from ratelimit.insight.replay.jsonlines import JSON_PRESETS, JsonFormat
from ratelimit.insight.replay.presets import PRESETS, of_text

__all__ = ["detected", "format_of", "has_whole_seconds"]

LOOKED_AT: Final = 200
"""Lines by which a format is told."""

_SOONEST: Final = ("combined", "common", "vhost", "alb", "uvicorn")


def format_of(given: str, keys: Mapping[str, str]) -> Format | None:
    """The format that a user names, spells out or maps; None where the lines are to tell.

    Raises ValueError in one sentence.
    """
    if given in JSON_PRESETS or (keys and given == "auto"):
        return JsonFormat("json" if given == "auto" else given, keys)
    if keys:
        raise ValueError("a map of fields goes with a format of JSON lines")
    return None if given == "auto" else of_text(given)


def detected(lines: Sequence[str]) -> Format | None:
    """The known format that most of the first lines have; None where none has any."""
    some = [line for line in lines if line.strip(" \t\r")][:LOOKED_AT]
    best: tuple[int, Format] | None = None
    json = sum(line.lstrip()[:1] == "{" for line in some) * 2 > len(some)
    formats: list[Format] = []
    if json:
        formats = [JsonFormat(name) for name in ("caddy", "cloudflare", "json")]
    else:
        formats = [PRESETS[name]() for name in _SOONEST]
    for each in formats:
        found = each.parse(some, _nobody)
        # What is not an address is hardly the client, though a server may have looked up its name.
        fits = len(found) + sum(read_address(entry[1]) is not None for entry in found)
        if fits and (best is None or fits > best[0]):
            best = fits, each
    return None if best is None else best[1]


def has_whole_seconds(entries: Sequence[Entry]) -> bool:
    """Whether no time of these requests tells a part of a second."""
    return all(entry[0] % 1_000_000 == 0 for entry in entries)


def _nobody(_: str, __: str) -> None:
    """Not told yet: the lines are read again."""
