"""A rule's `ban`: read, and held to identities that their bearers have proven."""

import re
from collections.abc import Mapping
from typing import Any, Final

from ratelimit.bans import Ban
from ratelimit.limits import parse_duration_us
from ratelimit.rules.reading import Coded, Reading
from ratelimit.words import shown, whole

__all__ = ["ban"]

KEYS: Final = ("after", "within", "for", "up_to")
NEEDED: Final = KEYS[:3]
PROVEN: Final = ("client", "user")
"""Parts of an identity that nobody can have in another's place."""


def ban(value: Any, reading: Reading) -> Ban | None:
    """The ban of a rule, from a mapping of `KEYS`; ``up_to`` is ``for`` if left out."""
    if value is None or isinstance(value, Ban):
        _refuse_chosen(value, reading)
        return value
    if not isinstance(value, Mapping):
        raise TypeError(f"ban is a mapping of {', '.join(KEYS)}, not {type(value).__name__}")
    reading.refuse_unknown(value, KEYS)
    for key in NEEDED:
        if key not in value:
            raise ValueError(
                f"ban lacks {key!r}; it is such as {{after: 10, within: 1m, for: 10m, up_to: 1d}}"
            )
    after = reading.at(("after",), _count, value["after"])
    spans = {key: reading.at((key,), _span, key, value[key]) for key in KEYS[1:] if key in value}
    if reading.key in reading.failed or after is None or None in spans.values():
        return None
    within_us, for_us = int(spans["within"] or 0), int(spans["for"] or 0)
    found = Ban(after, within_us, for_us, int(spans.get("up_to") or for_us))
    _refuse_chosen(found, reading)
    return found


def _count(value: object) -> int:
    if isinstance(value, str) and re.fullmatch("0|[1-9][0-9]{0,29}", value, re.ASCII):
        value = int(value)  # as a file has it
    if type(value) is int:
        whole("after", value, 1)
        return value
    raise ValueError(f"after is {shown(str(value))}; it is a whole number of at least 1")


def _span(key: str, value: object) -> int:
    if not isinstance(value, str):
        raise TypeError(f"{key} is a duration such as '10m', not {type(value).__name__}")
    return parse_duration_us(value)


def _refuse_chosen(value: Ban | None, reading: Reading) -> None:
    by: tuple[str, ...] = reading["by"]
    # What a dependency of a route gives is the application's word, as a user is.
    given = reading.given.get("on_route") and any(part.startswith("depends_") for part in by)
    if value is None or given or not set(by).isdisjoint(PROVEN):
        return
    if set(by) <= {"global", "route"}:
        raise Coded(
            "ban-by-chosen",
            f"by is {', '.join(by)}, and a ban of that would be one of everybody; ban by client or "
            "by user",
        )
    raise Coded(
        "ban-by-chosen",
        f"by is {', '.join(by)}, which its bearer has not proven, so that anybody could have "
        "another banned; ban by client or user, alone or beside that",
    )
