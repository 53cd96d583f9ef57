"""The outcomes of one rule in one pass."""

from ratelimit.insight.replay.counting import Distinct, LockedOut, Series

__all__ = ["RuleTally"]


class RuleTally:
    """The outcomes of one rule."""

    def __init__(self) -> None:
        self.passed = 0
        self.waited = 0
        """Requests among those passed that waited for their turn."""
        self.waited_us = 0
        self.longest_us = 0
        self.refused = 0
        self.never = 0
        """Requests among those refused that could never pass."""
        self.turned_away = 0
        """Requests refused without being counted: by a list, or for want of an identity."""
        self.series = Series()
        self.locked = LockedOut()
        self.identities = Distinct()
        """The identities that it refused."""

    def wait(self, delay_us: int) -> None:
        """Counts a request that waits for its turn."""
        self.waited += 1
        self.waited_us += delay_us
        if delay_us > self.longest_us:  # noqa: PLR1730  # a call costs more
            self.longest_us = delay_us
