"""Events: who was refused, and what became of the limiter, told to the application and the log.

The law of this module: the request pays no more than a look whether anybody listens, and what a
listener raises is logged once and goes no further.
"""

import inspect
import logging
from collections.abc import Callable
from typing import Any, Final, Literal, NamedTuple, Self

from ratelimit.identity.masking import masked

__all__ = ["Event", "Events", "Kind"]

_LOG: Final = logging.getLogger("ratelimit")

Kind = Literal[
    "denied", "never", "shadow-denied", "blocked", "banned", "unbanned", "overloaded",
    "store-failed", "store-answers", "rules-reloaded", "rules-not-reloaded", "switched", "shed",
]  # fmt: skip
"""The kinds of events; more may come."""


Where = str | Callable[[], str | None] | None


class _Event(NamedTuple):
    kind: Kind
    rule: str
    policy: str
    mode: str
    identity: str
    where: Where
    retry_after: float | None
    detail: str


class Event(_Event):
    """Something that the application may want to know; made only where somebody listens.

    ``kind`` is ``denied``: a rule refused a request; ``never``: it did, at a cost that can never
    pass; ``shadow-denied``: a rule on trial would have; ``blocked``: 403, by a denylist, an
    override, or for want of an identity; ``banned``: 429, of an identity that was refused too
    often, with a ``detail`` where its ban begins; ``unbanned``: by hand; ``shed``: 503, since
    others come first under too much load (``detail`` has its priority). ``overloaded``,
    ``store-failed`` and ``store-answers``, ``rules-reloaded`` and ``rules-not-reloaded``,
    ``switched``: as the log lines of these names, of which ``detail`` is the sentence.

    ``rule`` is its name, empty where it is not a rule's doing (the denylist of all, a fault);
    ``policy`` the name of the limit before clients, of several that refuse the one that ends last;
    ``mode`` "enforce" or "shadow", as it was for this identity; ``retry_after`` the seconds until
    it passes again, None for never and for what is not counted. ``identity`` is the text that it
    is counted under, in full, *and may be a secret*: an address by ``client``,
    ``header:x-api-key=…`` and so on; empty where nobody could be told. Everything else may be
    logged, and so may the event itself: its text has ``masked`` for ``identity``.
    """

    __slots__ = ()

    def __new__(
        cls,
        kind: Kind,
        rule: str = "",
        policy: str = "",
        mode: str = "",
        identity: str = "",
        path: Where = None,
        retry_after: float | None = None,
        detail: str = "",
    ) -> Self:
        """``path`` may be a function that gives it, called when it is read."""
        return tuple.__new__(cls, (kind, rule, policy, mode, identity, path, retry_after, detail))

    @property
    def path(self) -> str | None:
        """The template of the route, else the rule's own path; never what a client wrote.

        Looked up when it is read, which takes as long as a router does.
        """
        return self.where() if callable(self.where) else self.where

    @property
    def masked(self) -> str:
        """``identity`` without what may be a secret.

        Addresses and routes as they are; of anything else at most four characters, and the digest
        that `ratelimit top` and `inspect` show.
        """
        return masked(self.identity)

    def for_log(self) -> dict[str, str | float | None]:
        """All that may be logged, by name: ``masked`` stands for ``identity``."""
        return {
            "kind": self.kind,
            "rule": self.rule,
            "policy": self.policy,
            "mode": self.mode,
            "masked": self.masked,
            "path": self.path,
            "retry_after": self.retry_after,
            "detail": self.detail,
        }

    def __repr__(self) -> str:
        given = [f"{name}={value!r}" for name, value in self.for_log().items() if value]
        return f"Event({', '.join(given)})"


class Events:
    """Tells of events: the log at DEBUG, and ``listener``, a plain function over an `Event`.

    Raises TypeError where that is not callable, or async: nobody would await it.
    """

    def __init__(self, listener: Callable[[Event], object] | None = None) -> None:
        if listener is not None and not callable(listener):
            raise TypeError(f"on_event is a function, not {type(listener).__name__}")
        if _is_async(listener):
            raise TypeError(
                "on_event is async, and a request does not wait for it; give a plain function, "
                "which may begin a task or fill a queue"
            )
        self._listener = listener
        self._complained = False
        self.has_listener = listener is not None
        """Whether a function is told."""

    @property
    def wanted(self) -> bool:
        """Whether refusals are to be told of at all."""
        return self.has_listener or _LOG.isEnabledFor(logging.DEBUG)

    def refused(self, event: Event) -> None:
        """Tells of a request that was refused, or would have been; to be asked `wanted` before."""
        if _LOG.isEnabledFor(logging.DEBUG):
            again = "never" if event.retry_after is None else f"in {event.retry_after:g} s"
            _LOG.debug(
                "%s: by %s%s for %s at %s; passes again %s",
                event.kind,
                f"rule {event.rule!r}" if event.rule else "the denylist",
                f", policy {event.policy!r}," if event.policy else "",
                event.masked or "nobody that could be told",
                event.path or "any path",
                again,
            )
        self.tell(event)

    def happened(self, kind: Kind, detail: str) -> None:
        """Tells the function of a fault, a reload or a switch; the log was told in full."""
        if self.has_listener:
            self.tell(Event(kind, detail=detail))

    def tell(self, event: Event) -> None:
        """Tells the function."""
        if self._listener is None:
            return
        try:
            answer: Any = self._listener(event)
            if inspect.iscoroutine(answer):
                answer.close()
                raise TypeError("it gave a coroutine, which nobody awaits")
        except Exception:  # noqa: BLE001  # the law of this module
            if not self._complained:
                self._complained = True
                _LOG.exception(
                    "on-event-failed: the function on_event raised at a %s event; it is told of "
                    "what comes all the same (said once)", event.kind,
                )  # fmt: skip


def _is_async(function: object) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004  # whether *it* is async
    )
