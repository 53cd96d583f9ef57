"""Events: who was refused, and what became of the limiter, told to the application and the log.

The law of this module: the request pays no more than a look whether anybody listens, and what a
listener raises is logged once and goes no further.
"""

import inspect
import logging
from collections.abc import Callable
from typing import Any, Final, Literal, NamedTuple

from ratelimit.identity.masking import masked

__all__ = ["Event", "Events", "Kind"]

_LOG: Final = logging.getLogger("ratelimit")

Kind = Literal[
    "denied", "never", "shadow-denied", "blocked", "overloaded", "store-failed", "store-answers",
    "rules-reloaded", "rules-not-reloaded", "switched",
]  # fmt: skip
"""The kinds of events; more may come."""


class Event(NamedTuple):
    """Something that the application may want to know; made only where somebody listens.

    ``denied``: a rule refused a request; ``never``: at a cost that can never pass;
    ``shadow-denied``: a rule on trial would have. ``blocked``: 403, by a denylist, an override, or
    for want of an identity. ``overloaded``, ``store-failed`` and ``store-answers``,
    ``rules-reloaded`` and ``rules-not-reloaded``, ``switched``: as the log lines of these names.

    Its text, unlike ``identity``, may be logged: ``masked`` stands in it.
    """

    kind: Kind
    rule: str = ""
    """The rule's name; empty where it is no rule's doing (the denylist of all rules among it)."""
    policy: str = ""
    """The name of the limit before clients, the one that ends last of those that refuse."""
    mode: str = ""
    """``enforce`` or ``shadow``, as it was for this identity; empty where there is no rule."""
    identity: str = ""
    """The text that it is counted under, in full: an address by ``client``, else
    ``header:x-api-key=…`` and so on, also a secret; empty where nothing was counted."""
    path: str | None = None
    """The template of the route, else the rule's own path; never what a client wrote."""
    retry_after: float | None = None
    """Seconds until it passes again; None where that is never, or not known."""
    detail: str = ""
    """One sentence on a fault, a reload or a switch."""

    @property
    def masked(self) -> str:
        """``identity`` without what may be a secret.

        Addresses and routes as they are; of anything else at most four characters, and the digest
        that `ratelimit top` and `inspect` show.
        """
        return masked(self.identity)

    def __repr__(self) -> str:
        fields = self._asdict() | {"identity": self.masked}
        given = [f"{name}={value!r}" for name, value in fields.items() if value not in ("", None)]
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
