"""The breaker before the store: when it opens."""

from ratelimit import StoreUnavailable
from ratelimit.stores.breaker import Breaker

GONE = StoreUnavailable("nothing listens", kind="refused")


def test_five_failures_in_a_row_open_it() -> None:
    """Fewer do not, and each success starts the row anew."""
    breaker = Breaker()
    for _ in range(3):
        for _ in range(4):
            breaker.failed(GONE)
        assert not breaker.is_open()
        for _ in range(20):
            breaker.succeeded()
    for _ in range(5):
        breaker.failed(GONE)
    assert (breaker.state, breaker.last_error) == ("open", "nothing listens")


def test_half_of_twenty_failures_open_it() -> None:
    """A store that fails every other time is away as well."""
    breaker = Breaker()
    told: list[str] = []
    breaker.on_change.append(told.append)
    for turn in range(9):
        breaker.failed(GONE)
        breaker.succeeded()
        assert not breaker.is_open(), turn
    breaker.failed(GONE)
    breaker.succeeded()
    breaker.failed(GONE)
    assert breaker.is_open()
    assert told == ["open"]
