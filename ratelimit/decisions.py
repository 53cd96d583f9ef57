"""Questions to a store, and its answers: `Check` in, `Decision` out.

Both are tuples, because one of each is made per limit and request, and a tuple costs a fifth of
a frozen dataclass. Python never judges here: every number is read from the Lua's reply as it is.
"""

from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterable, Sequence
from enum import IntEnum
from functools import partial
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self, TypeVar

from ratelimit.limits import Limit

__all__ = [
    "Action",
    "Alike",
    "Assumed",
    "Check",
    "Decision",
    "Repeated",
    "assumed",
    "decision_of",
    "decisions_of",
    "identity_digest",
    "passes",
    "read_reply",
]

MOST_COST: Final = 2**42
"""Over 4 * 10^12 units at once: beyond any use, and a thousand forced ones stay below 2^53."""

FIELDS: Final = 6
"""Numbers per check in the Lua's reply; lua/decide.lua's header gives their order."""


class Action(IntEnum):
    """The effect of a check on its counter; the numbers are those of lua/decide.lua."""

    CHARGE = 0
    """Take the cost if it fits."""
    SHADOW = 1
    """Take the cost if it fits, without a say in the outcome of the request."""
    FORCE = 2
    """Take the cost without asking, into debt if need be."""
    GIVE_BACK = 3
    """Return what a charge took."""
    RENEW = 4
    """Tell how many requests a worker has under way; of a `Concurrency` alone."""


T = TypeVar("T")

if TYPE_CHECKING:

    def _new(cls: type[T], fields: tuple[object, ...]) -> T: ...

else:
    _new = tuple.__new__  # a NamedTuple's own takes twice as long
_CHARGE, _SHADOW = int(Action.CHARGE), int(Action.SHADOW)  # an enum is slow to look up and hash


class _Check(NamedTuple):
    limit: Limit
    key: str
    cost: int
    rule: str
    action: int  # an Action's number
    at_us: int
    level: int


class Check(_Check):
    """One limit applied to one key at one cost.

    ``key`` is the identity (any text); ``cost`` is a whole number from 0 (look, write nothing)
    to 2^42; ``rule`` is the name under which the counter is kept, so that two rules never share
    one; ``shadow=True`` decides and counts without a say in the outcome.

    Raises TypeError or ValueError, in one sentence, for anything else.
    """

    __slots__ = ()

    def __new__(
        cls,
        limit: Limit,
        key: str,
        cost: int = 1,
        rule: str = "",
        shadow: bool = False,
        *,
        action: Action | None = None,
        at_us: int = 0,
        level: int = 0,
    ) -> Self:
        if type(limit) is not Limit or type(key) is not str or type(rule) is not str:
            _require_types(limit, key, rule)
        if type(cost) is not int:
            raise TypeError(f"cost is a whole number, not {type(cost).__name__}")
        if not 0 <= cost <= MOST_COST:
            raise ValueError(f"cost is {cost}; it is at least 0 and at most 2^42")
        number = (_SHADOW if shadow else _CHARGE) if action is None else int(action)
        return _new(cls, (limit, key, cost, rule, number, at_us, level))

    def __reduce__(self) -> tuple[Any, ...]:
        # For copies and pickles: a named tuple would give its fields to __new__, which has others.
        return type(self)._make, (tuple(self),)

    @property
    def shadow(self) -> bool:
        """Whether this check has no say in the outcome of its request."""
        return self.action == _SHADOW

    def forced(self) -> Self:
        """This check as a charge that does not ask, and may go into debt."""
        limit, key, cost, rule, *_ = self
        return type(self)(limit, key, cost, rule, action=Action.FORCE)

    def given_back(self, decision: "Decision") -> Self:
        """The check that returns what this one took, as ``decision`` reported it.

        It carries the charge's time (and a bucket's level after it), so that what has left its
        window since is not given back twice; of a `Concurrency`, the name of who was charged.
        """
        limit, key, cost, rule, _, at_us, level = self
        if not at_us:
            at_us, level = decision.at_us, decision.level
        return type(self)(
            limit, key, cost, rule, action=Action.GIVE_BACK, at_us=at_us, level=level
        )  # fmt: skip


class Decision(NamedTuple):
    """The outcome of one check. Times in whole microseconds, and in seconds beside them.

    With 10 per minute, a fixed window and 6 units used in a window that ends in 20 s, a check
    of cost 1 gives: ``allowed`` True, ``remaining`` 3, ``retry_after`` 0.0, ``reset_after`` 20.0,
    ``delay`` 0.0; one of cost 5: ``allowed`` False, ``remaining`` 4, ``retry_after`` 20.0.
    """

    limit: Limit
    allowed: bool
    """This check's own answer; the request passes if every enforced one does."""
    remaining: int
    """The largest cost that would pass now; never negative."""
    retry_after_us: int | None
    """Until the same cost passes if nothing else comes: 0 if it passed, None if it never can."""
    reset_after_us: int
    """Until the key is as if it had never been used."""
    delay_us: int
    """Until an accepted leaking-bucket request's turn; 0 everywhere else."""
    at_us: int = 0
    """The time of the decision by the store's clock (epoch), which a give-back carries."""
    level: int = 0
    """A bucket's level after the charge, in the limit's own units; 0 elsewhere.

    Of a request that was refused: microseconds until ``remaining`` grows by itself, -1 for never.
    """
    degraded: bool = False
    """Whether a fallback answered, because the store could not."""

    @property
    def retry_after(self) -> float | None:
        """``retry_after_us`` in seconds."""
        return None if self.retry_after_us is None else self.retry_after_us / 1_000_000

    @property
    def reset_after(self) -> float:
        """``reset_after_us`` in seconds."""
        return self.reset_after_us / 1_000_000

    @property
    def delay(self) -> float:
        """``delay_us`` in seconds."""
        return self.delay_us / 1_000_000


new_check: Final[Callable[[tuple[object, ...]], Check]] = partial(_new, Check)
"""A check of its seven fields, unseen: for values that a rule was held to when it was built."""


Alike = tuple[tuple[Limit, ...], tuple[str, ...], int, int]
"""The checks of one request, but for the key, where all have one key, cost and action: the limits,
the digest of each with the rule it is counted under (one after the other), cost and action."""


def decision_of(limit: Limit, numbers: Sequence[int]) -> Decision:
    """The decision in six numbers of the Lua's reply."""
    remaining, retry, reset, delay, at, level = numbers
    never = None if retry < 0 else retry
    return _new(Decision, (limit, retry == 0, remaining, never, reset, delay, at, level, False))


def decisions_of(
    limits: Iterable[Limit], reply: Sequence[int], start: int = 0
) -> tuple[Decision, ...]:
    """The decisions in the Lua's flat reply: from ``start`` on, six numbers per limit."""
    decisions = []
    for limit in limits:
        end = start + FIELDS
        # As decision_of has it, without the call.
        remaining, retry, reset, delay, at, level = reply[start:end]
        never = None if retry < 0 else retry
        decisions.append(
            _new(Decision, (limit, retry == 0, remaining, never, reset, delay, at, level, False))
        )
        start = end
    return tuple(decisions)


def read_reply(
    checks: Sequence[Check], reply: Sequence[int], start: int = 0
) -> tuple[Decision, ...]:
    """The decisions in a reply in which those of these checks begin at ``start``."""
    return decisions_of([check[0] for check in checks], reply, start)


def passes(checks: Iterable[Check], decisions: Iterable[Decision]) -> bool:
    """Whether a request passes: every check that has a say was allowed."""
    return all(
        decision[1]
        for check, decision in zip(checks, decisions, strict=True)
        if check[4] != _SHADOW
    )


class Repeated(Decision):
    """A decision that was made before and told again, without a round trip."""

    __slots__ = ()


class Assumed(Decision):
    """A decision, marked as degraded, on a check that no store has decided."""

    problem: Exception | None = None
    """The failure because of which it was not decided, where that is known."""


def assumed(
    checks: Iterable[Check], *, allowed: bool, problem: Exception | None = None
) -> tuple[Decision, ...]:
    """Decisions, marked as degraded, for checks that no store has decided.

    Allowed ones claim that nothing was used, since nothing is known; refused ones that nothing is
    left, and not when there will be.
    """
    decisions = tuple(
        Assumed(
            limit=check.limit,
            allowed=allowed,
            remaining=check.limit.capacity if allowed else 0,
            retry_after_us=0 if allowed else None,
            reset_after_us=0,
            delay_us=0,
            degraded=True,
        )
        for check in checks
    )
    for decision in decisions:
        decision.problem = problem
    return decisions


def identity_digest(key: str) -> str:
    """16 URL-safe characters (96 bits) that stand for an identity wherever it would be stored.

    96 bits: to share a counter with one given stranger takes 2^96 tries (second preimage).
    """
    raw = blake2b(key.encode("utf-8", "surrogatepass"), digest_size=12).digest()
    return urlsafe_b64encode(raw).decode()


def _require_types(limit: object, key: object, rule: object) -> None:
    for name, value, kind in (("limit", limit, Limit), ("key", key, str), ("rule", rule, str)):
        if not isinstance(value, kind):
            what = 'a Limit("10/minute")' if kind is Limit else "text"
            raise TypeError(f"{name} is {what}, not {type(value).__name__}")
