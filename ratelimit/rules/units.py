"""The names of limits before clients, and of what they count."""

from typing import Final, Self

__all__ = ["REQUESTS", "Policy", "unit_of"]

REQUESTS: Final = "requests"
"""The unit of a limit that names none, of which clients are told nothing."""


class Policy(str):
    """The name of a limit that counts something other than requests; equal to its text."""

    __slots__ = ("unit",)
    unit: str
    """The name of what is counted, such as ``tokens``: at most 32 of ``a-z 0-9 -``."""

    def __new__(cls, name: str, unit: str) -> Self:
        policy = super().__new__(cls, name)
        policy.unit = unit
        return policy

    def __getnewargs__(self) -> tuple[str, str]:  # type: ignore[override]  # as `__new__` takes
        return str(self), self.unit


def unit_of(policy: str) -> str:
    """The name of what a limit counts, by the name that clients see of it."""
    return policy.unit if isinstance(policy, Policy) else REQUESTS
