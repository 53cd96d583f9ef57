"""What answers when the store cannot."""

from collections.abc import Iterable

from ratelimit.decisions import Check, Decision

__all__ = ["unanswered"]


def unanswered(checks: Iterable[Check], *, allowed: bool) -> tuple[Decision, ...]:
    """Decisions, marked as degraded, for checks that no store has decided.

    Allowed ones claim that nothing was used, since nothing is known; refused ones that nothing is
    left, and not when there will be.
    """
    return tuple(
        Decision(
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
