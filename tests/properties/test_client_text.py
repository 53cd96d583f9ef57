"""Whatever text clients send, what the process keeps of it stays small."""

import tracemalloc
from collections.abc import Callable
from typing import Final

import pytest

from ratelimit import Check, Decision, Limit
from ratelimit.control.denials import Denials
from ratelimit.identity import addresses
from ratelimit.responses import headers, problems
from ratelimit.stores import MemoryStore
from ratelimit.stores.failover import Failover
from ratelimit.stores.redis import wire
from ratelimit.stores.redis.deny_cache import LONGEST_US, DenyCache

MOST_BYTES: Final = 16 * 2**20
LIMIT: Final = Limit("5/minute", algorithm="token_bucket")

TEXTS: Final[dict[str, tuple[int, Callable[[int], str]]]] = {
    "short": (10_000, lambda number: f"{number:064}"),
    "short and wide": (10_000, lambda number: f"\U00010000{number:063}"),
    "medium": (9_000, lambda number: f"{number:0128}"),
    "8 kB": (3_000, lambda number: f"{number:08000}"),
    "60 kB": (600, lambda number: f"{number:060000}"),
}
"""How many of them are sent, and the one of a number."""


class Tables:
    """All that is kept of clients' text in a process, each table with what puts a text in."""

    def __init__(self) -> None:
        self.denials = Denials(None)
        self.cache = DenyCache(LONGEST_US, None)
        self.failover = Failover(MemoryStore())
        addresses._read_address.cache_clear()
        problems._preferred.cache_clear()
        wire._kept_digest.cache_clear()

    def repeated(self, number: int, text: str) -> None:
        """A denial that may be repeated; its numbers are large and of its own."""
        denied = Decision(LIMIT, False, 0, 10**12 + number, 10**13 + number, 0, 10**15 + number, 9)
        self.cache.keep((Check(LIMIT, text, 1, "login"),), (denied,), self.cache.now())

    def given_back(self, _: int, text: str) -> None:
        """A counter that was changed by a route that refused."""
        self.cache.changed([Check(LIMIT, text, 1, "login")])

    def denied(self, _: int, text: str) -> None:
        """One of those who are denied most."""
        self.denials.add("login", text)

    def address(self, _: int, text: str) -> None:
        """What a client says that it was forwarded for, or something like it."""
        addresses.read_address(f"2001:db8::{int(text[-8:]):x}" if text.isascii() else text)

    def accept(self, _: int, text: str) -> None:
        """What a client says that it accepts."""
        problems._preferred(text[: problems._LONGEST_ACCEPT])

    def digest(self, _: int, text: str) -> None:
        """What an identity is counted under in Redis."""
        wire._digest(text)


def bytes_kept(texts: str, put: Callable[[int, str], None]) -> int:
    """How much more memory is held at most while that many texts are put somewhere."""
    count, text = TEXTS[texts]
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(count):
            put(number, text(number))
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


def test_all_tables_of_clients_text_hold_at_most_16_mib() -> None:
    """Each filled by whichever texts fill it most."""
    kept: dict[str, tuple[int, str]] = {}
    for name in ("repeated", "given_back", "denied", "address", "accept", "digest"):
        for texts in TEXTS:
            tables = Tables()
            size = bytes_kept(texts, getattr(tables, name))
            kept[name] = max(kept.get(name, (0, "")), (size, texts))
    total = sum(size for size, _ in kept.values())
    assert 0 < total <= MOST_BYTES, f"{total / 2**20:.1f} MiB: {kept}"


@pytest.mark.parametrize("texts", ["short", "8 kB", "60 kB"])
async def test_what_was_let_through_while_the_store_was_away_is_remembered_within_4_mib(
    texts: str,
) -> None:
    """Who sends long identities then is counted in process, but not charged afterwards for ever."""
    count, text = TEXTS[texts]
    failover = Failover(MemoryStore())
    failover._guarded = True
    failover._local = MemoryStore(max_keys=10)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(count):
            await failover.decide_locally([Check(LIMIT, text(number), 1, "login")])
        assert tracemalloc.get_traced_memory()[0] - before <= 4 * 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("policies", [1, 20])
def test_what_is_written_of_limits_that_come_without_end_is_bounded(policies: int) -> None:
    """An application may compute a limit for every request."""
    others = [
        headers.Told(f"policy:{place}", Decision(LIMIT, True, 2, 0, 9, 0))
        for place in range(1, policies)
    ]

    def respond(number: int, _: str) -> None:
        limit = Limit.of(number + 1, 60_000_000)
        told = [headers.Told("policy:0", Decision(limit, True, 1, 0, 9, 0)), *others]
        assert headers.fields(told, ["draft"])

    headers._WRITTEN.clear()
    kept = bytes_kept("medium", respond)
    headers._WRITTEN.clear()
    assert 0 < kept <= 2 * 2**20
