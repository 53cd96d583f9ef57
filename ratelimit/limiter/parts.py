"""The parts of one request that somebody else has taken apart, which pass together."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ratelimit.limiter.checks import Request
from ratelimit.responses.headers import Told
from ratelimit.rules.matching import Found

__all__ = ["Asked", "Part"]


@dataclass(slots=True, eq=False)
class Part:
    """One of them: a request of its own to the rules."""

    scope: Mapping[str, Any]
    """An ASGI scope, as far as rules look at it."""
    find: Callable[[Mapping[str, Any]], Found]
    """The rules that apply to it."""
    times: int = 1
    """The number of times that it counts."""
    forced: bool = False
    """Whether it is charged without being asked about, into debt if need be."""
    told: list[Told] = field(default_factory=list)
    """Afterwards: its enforced checks, as a store has decided them."""
    over: bool = False
    """Afterwards: whether it was turned away without being counted."""

    @property
    def is_plain(self) -> bool:
        """Whether it is decided as any request, where it is alone."""
        return self.times == 1 and not self.forced and self.scope["client"] is not None


class Asked(NamedTuple):
    """A part, and its request as rules ask about it."""

    request: Request
    part: Part
