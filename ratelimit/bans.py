"""A ban: after so many strikes in such a time an identity is refused for a while.

It is given to a store as a `Limit` is: the limit of strikes, of which the last one bans.
"""

from base64 import urlsafe_b64encode
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Final, NoReturn, Self

from ratelimit.limits import EXACT, UNITS_US, Algorithm, Limit
from ratelimit.words import whole

__all__ = ["Ban", "covering", "length_in_words"]

PLACE: Final = 6
"""Of ``lua/ban.lua`` among the algorithms."""

SHORTEST_US: Final = 1_000
LONGEST_US: Final = 366 * 86_400_000_000
"""The longest ban; for longer there are denylists."""


class Ban(Limit):
    """A ban of ``for_us`` microseconds after ``after`` strikes within ``within_us``.

    Each next one lasts twice as long, up to ``up_to_us``. A strike is a refusal by one of the
    ``covers`` checks that follow this one in a request.

    Raises ValueError, in one sentence, for numbers that cannot be meant or counted exactly.
    """

    __slots__ = ("covers", "for_us", "up_to_us")

    for_us: int
    up_to_us: int
    covers: int

    def __init__(
        self, after: int, within_us: int, for_us: int, up_to_us: int, *, covers: int = 0
    ) -> None:
        whole("after", after, 1)
        for name, us in (("within", within_us), ("for", for_us), ("up_to", up_to_us)):
            whole(name, us, 1)
            if not SHORTEST_US <= us <= LONGEST_US:
                raise ValueError(f"{name} is {us / 1_000_000:g} s; it is 1 ms to 366 days")
        if up_to_us < for_us:
            raise ValueError(
                f"up_to is {length_in_words(up_to_us)}, which is below for, "
                f"{length_in_words(for_us)}; leave it out where bans are not to grow"
            )
        if after * within_us >= EXACT:
            raise ValueError(
                f"{after} strikes in {within_us} microseconds cannot be counted exactly: after x "
                "within is below 2^53 microseconds"
            )
        put = object.__setattr__
        put(self, "for_us", for_us)
        put(self, "up_to_us", up_to_us)
        put(self, "covers", covers)
        self._build(after, within_us, Algorithm.TOKEN_BUCKET, None, "down", None, None)
        put(self, "tick_us", 1)
        put(self, "numbers", (PLACE, after, within_us, for_us, up_to_us, covers))
        # Without what it covers: requests whose limits are another tier's meet one ban.
        canonical = f"ban:{after}:{within_us}:{for_us}:{up_to_us}".encode()
        digest = blake2b(canonical, digest_size=6).digest()
        put(self, "digest", urlsafe_b64encode(digest).decode())

    @classmethod
    def of(cls, *_: Any, **__: Any) -> NoReturn:
        """Not for a ban, whose own constructor takes numbers."""
        raise TypeError("a Ban is made of its four numbers")

    def _reduce(self) -> tuple[int, tuple[int, int, int, int, int]]:
        return 1, (0, 0, 0, 0, 0)

    def _value(self) -> tuple[Any, ...]:
        return (self.quota, self.window_us, self.for_us, self.up_to_us, self.covers)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, self._value()

    def scaled(self, _: object) -> Self:
        """Itself: a region, or a worker, bans as all of them together do."""
        return self

    def __str__(self) -> str:
        """Its numbers in words: ``after 10 in 1 minute for 10 minutes, up to 1 day``."""
        more = "" if self.up_to_us == self.for_us else f", up to {length_in_words(self.up_to_us)}"
        return (
            f"after {self.quota} in {length_in_words(self.window_us)} for "
            f"{length_in_words(self.for_us)}{more}"
        )

    def __repr__(self) -> str:
        return f"<Ban {self}>"


@lru_cache(maxsize=4096)
def covering(ban: Ban, covers: int) -> Ban:
    """This ban, before so many checks of its rule."""
    if ban.covers == covers:
        return ban
    return Ban(ban.quota, ban.window_us, ban.for_us, ban.up_to_us, covers=covers)


def length_in_words(us: int) -> str:
    """A length of time in its largest whole unit: ``10 minutes``."""
    for name in ("day", "hour", "minute", "second"):
        count, rest = divmod(us, UNITS_US[name])
        if not rest:
            return f"{count} {name}{'s' * (count != 1)}"
    return f"{us / 1000:g} ms"


def _rebuild(after: int, within_us: int, for_us: int, up_to_us: int, covers: int) -> Ban:
    return Ban(after, within_us, for_us, up_to_us, covers=covers)
