"""A user object to the text that the user is counted under.

The law of this module: a stable id comes before a name, and a name that its bearer can change
(``display_name``) never counts, since it would let a user choose another bucket.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Final
from uuid import UUID

__all__ = ["READABLE", "attribute", "is_nobody", "user_id"]

_PLAIN: Final = (str, int, UUID)  # a user that is text itself
_NAMES: Final = ("identity", "id", "pk", "sub", "uuid", "username")
"""Attributes that tell a user from others, the first that is readable; Starlette's comes first."""

READABLE: Final = (
    "text, a whole number or a UUID, or an object or a mapping that has one as its "
    f"{', '.join(_NAMES[:-1])} or {_NAMES[-1]}"
)
"""The users that `user_id` can tell apart, in words for a message."""


def user_id(user: object) -> str | None:
    """The text that tells a user from others; None for nobody, and for one that cannot be told.

    See `READABLE`. Values of other types are passed over, and an arbitrary object is never made
    text: that may be another one at each request. Raises what the user's own properties raise.
    """
    if is_nobody(user):
        return None
    if isinstance(user, _PLAIN):
        return _text(user)
    for name in _NAMES:
        value = _text(attribute(user, name))
        if value is not None:
            return value
    return None


def is_nobody(user: object) -> bool:
    """Whether there is no user: None, empty text, or one whose ``is_authenticated`` is false."""
    if user is None or (isinstance(user, str) and not user):
        return True
    return not attribute(user, "is_authenticated", default=True)


def attribute(user: object, name: str, *, default: object = None) -> object:
    """An attribute of a user, or a key where the user is a mapping; ``default`` if not there."""
    if _is_mapping(type(user)):  # type: ignore[arg-type]  # the abstract class hashes it, too
        return user.get(name, default)  # type: ignore[attr-defined]  # it is a mapping
    try:
        return getattr(user, name, default)
    except NotImplementedError:  # starlette.authentication.BaseUser leaves some open
        return default


@lru_cache(maxsize=256)
def _is_mapping(kind: type) -> bool:
    """Whether a class is of mappings; to ask the abstract class takes ten times as long."""
    return issubclass(kind, Mapping)


def _text(value: object) -> str | None:
    """Text, a whole number or a UUID as text; None for all else, and for empty text."""
    if isinstance(value, str):
        return str.__str__(value) or None  # an enum's own __str__ would give its name
    if isinstance(value, int) and not isinstance(value, bool):
        return int.__repr__(value)
    return str(value) if isinstance(value, UUID) else None
