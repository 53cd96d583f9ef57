"""What the limiters around one request have decided about it so far."""

import logging
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from ratelimit.decisions import Check, Decision
from ratelimit.headers import Dialect, Refusal, Told, fields
from ratelimit.rules import Rule
from ratelimit.stores import Store

__all__ = ["Admission", "Charge"]

_LOG: Final = logging.getLogger("ratelimit")


class Charge(NamedTuple):
    """What was taken for a request, to be returned if something further in refuses it."""

    limiter: Any
    check: Check
    decision: Decision


class Admission:
    """What the limiters around one request have decided about it so far.

    The outermost middleware makes it and leaves it in the scope; limits further in add to it, so
    that no rule is decided twice and the client is told of all of them at once.
    """

    __slots__ = (
        "_decided",
        "app",
        "charges",
        "degraded",
        "delay_us",
        "dialects",
        "limiter",
        "refusal",
        "told",
    )

    def __init__(self, limiter: Any, app: Any) -> None:
        self.limiter = limiter
        self.app = app
        self.told: list[Told] = []
        """Every enforced check that a store decided, with its policy's name."""
        self.refusal: Refusal | None = None
        """The answer to give instead of the application's; None while the request may go on."""
        self.degraded: tuple[Decision, ...] = ()
        """What was assumed of checks that the store could not decide."""
        self.delay_us = 0
        """How long the request has to wait for its turn before it goes on."""
        self.dialects: Sequence[Dialect] = limiter.rules.headers
        self.charges: list[Charge] = []
        self._decided: dict[str, list[tuple[Store, Rule]]] = {}

    def headers(self) -> list[tuple[bytes, bytes]]:
        """The fields that an allowed response carries."""
        return fields(self.told, self.dialects)

    @property
    def decisions(self) -> tuple[Decision, ...]:
        """The enforced decisions in the order they were made, then the assumed ones."""
        return (*(decision for _, decision in self.told), *self.degraded)

    def knows(self, store: Store, rule: Rule) -> bool:
        """Whether a rule has been decided for this request by this store; remembers it if not."""
        before = self._decided.setdefault(rule.name, [])
        if any(each is store and other == rule for each, other in before):
            return True
        before.append((store, rule))
        return False

    async def give_back(self) -> None:
        """Returns what was charged: something further in has refused the request."""
        charges, self.charges = self.charges, []
        for limiter in {id(each.limiter): each.limiter for each in charges}.values():
            returned = [
                check.given_back(decision) for owner, check, decision in charges if owner is limiter
            ]
            try:
                await limiter.give_back(returned)
            except Exception:  # noqa: BLE001  # a refusal stands, whatever the store says of it
                _LOG.exception("give-back-failed: a refused request keeps its charge")
