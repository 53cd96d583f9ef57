"""Charges that an outcome decides: which responses keep one, and which forget failures."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ratelimit.identity.keys import read_joined
from ratelimit.rules.reading import Coded, Reading
from ratelimit.words import shown

__all__ = ["NO_ACCOUNT", "Charge", "charge", "charge_if", "charge_of", "names_account"]

KEYS: Final = ("on_status", "reset_on")
NO_ACCOUNT: Final = ("client", "global", "route")
"""Parts of an identity that are no account; nor is a parameter of the query."""

_STATUS: Final = re.compile("[1-5]([0-9][0-9]|xx)", re.ASCII | re.IGNORECASE)
_MOST: Final = 100


@dataclass(frozen=True, slots=True)
class Charge:
    """The outcomes that keep a charge, which is made first and given back at any other one."""

    on_status: frozenset[int] = frozenset()
    """Statuses that keep it."""
    reset_on: frozenset[int] = frozenset()
    """Statuses at which the failures of an identity are forgotten; not for GET, HEAD, OPTIONS."""
    keep_if: Callable[[Any], Any] | None = None
    """Says of a response, in place of its status, whether the charge is kept."""
    by: tuple[str, ...] = ()
    """The parts of the identity that is charged."""

    def may_reset(self, key: str) -> bool:
        """Whether a success proves something of the identity of this key.

        It does not where the account was missing, and the client's address stands in for it.
        """
        parts = read_joined(key) if len(self.by) > 1 else (key,)
        return any(
            part not in NO_ACCOUNT
            and not part.startswith("query:")
            and not text.startswith(("client=", "client#"))
            for part, text in zip(self.by, parts, strict=True)
        )


def charge(value: object, reading: Reading) -> Charge:
    """The outcomes in a mapping of ``on_status`` and ``reset_on`` to statuses."""
    if not isinstance(value, Mapping):
        raise TypeError(
            "charge is a mapping such as {on_status: [401, 403, 5xx]}, not "
            f"{type(value).__name__}"
        )
    reading.refuse_unknown(value, KEYS)
    on_status, reset_on = (
        _statuses(key, value[key], reading) if key in value else frozenset() for key in KEYS
    )
    found = Charge(on_status, reset_on, by=reading["by"])
    both = found.on_status & found.reset_on
    if both:
        raise ValueError(
            f"a status of {min(both)} would both keep the charge and forget the failures; name it "
            "once"
        )
    if found.reset_on and not names_account(reading["by"]):
        raise Coded(
            "reset-by-client",
            f"reset_on stands beside by: {', '.join(reading['by'])}, which names no account, so "
            "that anybody's success with an account of his own would clear his guesses at others; "
            "count by an account or a user, or leave reset_on out",
        )
    if "on_status" not in value and "charge_if" not in reading.given:
        raise ValueError("charge has no on_status, so that no outcome would keep a charge")
    return found


def names_account(by: Sequence[str]) -> bool:
    """Whether an identity is that of an account, rather than of whoever asks."""
    return any(part not in NO_ACCOUNT and not part.startswith("query:") for part in by)


def charge_if(value: object, reading: Reading) -> Any:
    """A function over the response."""
    if not callable(value):
        raise TypeError(f"charge_if is a function over the response, not {type(value).__name__}")
    of_charge = reading.get("charge")
    if of_charge is not None and of_charge.on_status:
        raise ValueError("charge_if is given beside on_status; give the one that decides")
    return value


def charge_of(reading: Reading) -> Charge | None:
    """The outcomes that keep the charges of a rule; None where every charge is kept."""
    found, keep_if = reading["charge"], reading["charge_if"]
    if keep_if is None:
        return found  # type: ignore[no-any-return]  # what `charge` has read
    return Charge(frozenset(), found.reset_on if found else frozenset(), keep_if, reading["by"])


def _statuses(key: str, values: object, reading: Reading) -> frozenset[int]:
    texts = [values] if isinstance(values, str | int) else values
    if not isinstance(texts, Sequence | frozenset | set):
        raise TypeError(f"{key} is a status or several, not {type(values).__name__}")
    if not texts:
        raise ValueError(f"{key} is empty; leave it out")
    if len(texts) > _MOST:
        raise ValueError(f"{key} has {len(texts)} items; it has at most {_MOST}")
    read = [reading.at((key, number), _status, key, each) for number, each in enumerate(texts)]
    return frozenset().union(*filter(None, read))


def _status(key: str, value: object) -> frozenset[int]:
    text = str(value) if type(value) is int else value
    if not isinstance(text, str):
        raise TypeError(f"an item of {key} is a status such as 401 or 5xx, not {shown(value)}")
    if not _STATUS.fullmatch(text):
        raise ValueError(f"{shown(text)} is not a status; write one such as 401, or a class: 5xx")
    if text[1:].lower() == "xx":
        first = int(text[0]) * 100
        return frozenset(range(first, first + 100))
    return frozenset((int(text),))
