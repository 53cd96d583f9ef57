"""`Messages`: the limits on what a client sends over a WebSocket, once it is open."""

from collections.abc import Mapping
from typing import Final, Literal, NamedTuple, NotRequired, Self, TypedDict, get_args

from ratelimit.limits import Algorithm, Limit
from ratelimit.rules.reading import Reading, text
from ratelimit.words import shown

__all__ = ["KEYS", "Messages", "MessagesOptions", "OnExcess", "messages", "most_ahead", "policy_of"]

OnExcess = Literal["close", "drop", "pause"]

AHEAD: Final = 10
"""The part of a full bucket that a worker may charge ahead for one identity: one in so many."""


class Messages(NamedTuple):
    """Limits on a WebSocket's messages and their bytes, token buckets both; one at least is there.

    Each holds for every connection by itself, and for all connections of an identity together.
    """

    messages: Limit | None
    bytes: Limit | None
    on_excess: OnExcess
    """The outcome for a message beyond them: the connection is closed, the message is dropped, or
    nothing more is received until it fits."""

    def map(self, change: "Mapping[Limit, Limit]") -> Self:
        """These with other limits in place of their own."""
        return self._replace(
            messages=self.messages and change[self.messages],
            bytes=self.bytes and change[self.bytes],
        )

    @property
    def limits(self) -> tuple[Limit, ...]:
        """Those of the two that are there."""
        return tuple(each for each in (self.messages, self.bytes) if each is not None)


class MessagesOptions(TypedDict):
    """A mapping that says `Messages`, as a rule and a rule file write it."""

    messages: NotRequired[str | Limit]
    bytes: NotRequired[str | Limit]
    on_excess: NotRequired[OnExcess]


def policy_of(rule: str, what: str) -> str:
    """The name of a rule's limit on ``messages`` or ``bytes`` before clients, of 64 characters."""
    return f"{rule[:55]}:{what}"


KEYS: Final = ("messages", "bytes", "on_excess")


def most_ahead(limit: Limit) -> int:
    """The most units that a worker holds for one identity: charged already, and not used yet.

    It holds them no longer than the bucket takes to gain as many, so that an identity passes its
    limit by no more than that in any window, however many workers there are.
    """
    return max(0, limit.capacity // AHEAD - 1)


def messages(value: object, reading: Reading) -> Messages:
    """Limits on messages, bytes or both, and what becomes of a message beyond them."""
    if not isinstance(value, Mapping):
        raise TypeError(
            "websocket is a mapping such as {'messages': '10/second'}, not "
            f"{type(value).__name__}"
        )
    reading.refuse_unknown(value, KEYS)
    found = {key: reading.at((key,), _limit, key, value[key]) for key in KEYS[:2] if key in value}
    on_excess = reading.at(("on_excess",), _on_excess, value.get("on_excess", "close"))
    if not found and reading.key not in reading.failed:
        raise ValueError("websocket limits nothing; give messages, bytes or both")
    return Messages(found.get("messages"), found.get("bytes"), on_excess or "close")


def _limit(key: str, value: object) -> Limit:
    if isinstance(value, Limit):
        limits = [value]
    else:
        limits = list(Limit.parse_all(text(key, value), algorithm=Algorithm.TOKEN_BUCKET))
    if len(limits) > 1:
        raise ValueError(f"{key} is {shown(value)}; it is one limit, and a rule more has another")
    if limits[0].algorithm != Algorithm.TOKEN_BUCKET:
        raise ValueError(
            f"{key} is counted by a {limits[0].algorithm}; what comes over a WebSocket is counted "
            "by a token_bucket"
        )
    return limits[0]


def _on_excess(value: object) -> OnExcess:
    for word in get_args(OnExcess):
        if value == word:
            found: OnExcess = word
            return found
    raise ValueError(f"on_excess is {shown(value)}; it is 'close', 'drop' or 'pause'")
