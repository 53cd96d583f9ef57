"""Requests to the bytes of one EVALSHA, and a server's bytes to replies that can be believed.

Nothing here waits or sends: bytes in, values out.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any, Final, Protocol

import hiredis

from ratelimit.decisions import FIELDS, Action, Check, identity_digest
from ratelimit.limits import Limit
from ratelimit.stores.errors import StoreUnavailable
from ratelimit.stores.script import OOM_SCRIPT, OOM_SHA1, SCRIPT, SHA1

__all__ = [
    "NOTHING",
    "PUSHED",
    "Packer",
    "ReplyError",
    "are_believable",
    "not_redis",
    "packed",
    "reader",
]

MOST_KINDS: Final = 1_000  # of requests, spelt and kept
LONGEST_KEPT: Final = 64  # characters, of a byte each, of an identity whose digest is kept
LARGEST: Final = 2**53  # what Lua counts to

_FORCE: Final = int(Action.FORCE)  # of the actions from here on, hardly two are alike
_OWN: Final = ""  # stands for the cost in the name of a kind whose requests bring their own
_DELAY: Final = 3  # the place of the delay among a decision's six numbers


class HasChecks(Protocol):
    """Anything that carries the checks of one request."""

    checks: Sequence[Check]


class ReplyError(Exception):
    """An error that a server replied, in its own words; ``code`` is the first of them."""

    @property
    def code(self) -> str:
        """``NOSCRIPT``, ``MOVED`` and the like, by which Redis tells errors apart."""
        return str(self).partition(" ")[0]


class NotRespError(Exception):
    """Bytes that are not RESP, as the parser says it."""


NOTHING: Final = object()
"""Stands for a reply that has not arrived as a whole."""

PUSHED: Final = hiredis.PushNotification
"""The type of what a server says unasked, in RESP3."""


def reader() -> Any:
    """A parser of one connection's replies: ``feed(bytes)``, and ``gets()`` until `NOTHING`.

    An error that the server replied is a `ReplyError`; bytes that are not RESP raise NotRespError.
    """
    return hiredis.Reader(protocolError=NotRespError, replyError=ReplyError, notEnoughData=NOTHING)


def not_redis() -> StoreUnavailable:
    """The failure of whoever was answered by something else."""
    return StoreUnavailable("what answers at this address is not Redis", kind="not-redis")


def packed(arguments: Iterable[str]) -> bytes:
    """One command in RESP."""
    encoded = [argument.encode("utf-8", "surrogatepass") for argument in arguments]
    parts = [b"$%d\r\n%b\r\n" % (len(each), each) for each in encoded]
    return b"*%d\r\n%b" % (len(parts), b"".join(parts))


def are_believable(numbers: Sequence[int], checks: Callable[[], Sequence[Check]]) -> bool:
    """Whether the script can have returned these numbers; ``checks`` are asked for where needed.

    A server that is broken, or not Redis at all, must not make a request wait for ever.
    """
    if min(numbers) < -1 or max(numbers) >= LARGEST:
        return False
    delays = numbers[_DELAY::FIELDS]
    return not max(delays) or all(
        delay_us <= _longest_delay_us(check[0]) or check[4] == _FORCE
        for check, delay_us in zip(checks(), delays, strict=True)
    )


def _longest_delay_us(limit: Limit) -> int:
    """The time a full bucket takes to leak, and a window more, by which a clock may step back."""
    places = limit.quota if limit.burst is None else limit.burst
    return -(-places * limit.window_us // limit.quota) + limit.window_us + limit.tick_us


_kept_digest: Final = lru_cache(maxsize=8_192)(identity_digest)


def _digest(key: str) -> str:
    """The digest of an identity; kept, but for long ones, which a client may send without end."""
    if len(key) > LONGEST_KEPT or not key.isascii():
        return identity_digest(key)
    return _kept_digest(key)


class Packer:
    """Requests to the bytes of one EVALSHA, as lua/decide.lua's header lists its arguments.

    What requests have in common, their kind, is spelt once and kept: the limits, rules, costs and
    actions of their checks, with all that stands around the identities in their keys.
    """

    def __init__(self, prefix: str, clock: Callable[[], int] | None, *, allow_oom: bool) -> None:
        self.script = OOM_SCRIPT if allow_oom else SCRIPT
        """The text that the server is given where it does not know it."""
        self._sha1 = OOM_SHA1 if allow_oom else SHA1
        self._prefix = prefix + "{"
        self._clock = clock
        self._kinds: dict[tuple[object, ...], tuple[list[str], str]] = {}

    def key(self, check: Check) -> str:
        """The identity's digest as a hash tag, so that its limits share a slot; limit and rule."""
        return f"{self._prefix}{_digest(check[1])}}}:{check[0].digest}:{check[3]}"

    def pack(self, requests: Iterable[HasChecks]) -> bytes:
        """The command, in RESP; redis-py's own packer takes several times as long."""
        keys: list[str] = []
        key_count = 0
        kinds: dict[tuple[object, ...], tuple[list[str], str]] = {}
        described: list[str] = []
        places: list[str] = []
        for request in requests:
            checks = request.checks
            key_count += len(checks)
            alike = True
            limit, identity, cost, rule, action, at_us, _ = checks[0]
            name: tuple[object, ...] = (limit.digest, rule, cost, action)
            own = at_us or action >= _FORCE
            if own or len(checks) > 1:
                parts: list[object] = []
                for limit, key, cost, rule, action, at_us, _ in checks:
                    parts += (limit.digest, rule, cost, action)
                    own = own or at_us or action >= _FORCE
                    if key != identity:
                        alike = False
                if own:  # then costs hardly ever repeat
                    parts[2::4] = [_OWN] * len(checks)
                name = tuple(parts)
            kind = kinds.get(name)
            if kind is None:
                around, numbers = self._kinds.get(name) or self._spell(name, checks, own=own)
                described.append(numbers)
                kind = kinds[name] = (around, _argument(len(described)))
            around, place = kind
            places.append(place)
            if own:
                for _, _, cost, _, _, at_us, level in checks:
                    places += (_argument(cost), _argument(at_us), _argument(level))
            if alike:
                keys.append(_digest(identity).join(around))
            else:
                for before, check in zip(around, checks, strict=False):
                    keys += (before, _digest(check[1]))
                keys.append(around[-1])
        now = _argument("" if self._clock is None else self._clock())
        arguments = "".join([now, _argument(len(described)), *described, *places])
        count = 3 + key_count + arguments.count("$")
        head = f"*{count}\r\n$7\r\nEVALSHA{_argument(self._sha1)}{_argument(key_count)}"
        text = "".join([head, *keys, arguments, "\r\n"])
        return text.encode("utf-8", "surrogatepass")

    def _spell(
        self, name: tuple[object, ...], checks: Sequence[Check], *, own: object
    ) -> tuple[list[str], str]:
        """The text around the identities where a request's keys are arguments, and its numbers."""
        around = [""]
        numbers = [-len(checks) if own else len(checks)]
        for limit, _, cost, rule, action, _, _ in checks:
            behind = f"}}:{limit.digest}:{rule}"
            length = len(self._prefix.encode()) + 16 + len(behind.encode("utf-8", "surrogatepass"))
            around[-1] += f"\r\n${length}\r\n{self._prefix}"
            around.append(behind)
            numbers += (*limit.numbers, 0 if own else cost, action, 0, 0)
        if len(self._kinds) >= MOST_KINDS:
            self._kinds.clear()
        kind = self._kinds[name] = (around, "".join(map(_argument, numbers)))
        return kind


def _argument(value: str | int) -> str:
    """An argument in ASCII as RESP has it; the line's end before it is that of the one before."""
    text = str(value)
    return f"\r\n${len(text)}\r\n{text}"
