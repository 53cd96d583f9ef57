"""Failures that a success forgets, in Redis: a list beside each counter, in its slot.

The law of this module: a failure is given back and forgotten by one script, so that neither is lost
with a reply. What was not forgotten is there for the next success, and expires with its counter.
"""

from collections.abc import Callable
from functools import lru_cache
from hashlib import sha1
from typing import Any, Final

from ratelimit.decisions import Action, Check
from ratelimit.stores.errors import StoreUnavailable, explain
from ratelimit.stores.failures import AT_ONCE, MOST_FAILURES, as_text

__all__ = ["add", "beside", "forget"]

SLACK_MS: Final = 2_000
"""Milliseconds that failures are kept beyond their counter's reset, as counters are."""

_ADD: Final = """\
redis.call('RPUSH', KEYS[1], ARGV[1])
redis.call('LTRIM', KEYS[1], ARGV[2], -1)
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 1
"""

_FORGET: Final = """\
local found = redis.call('LRANGE', KEYS[1], '-' .. ARGV[1], -1)
local keys, words = {}, {ARGV[2], 1, -1}
for i = 3, 8 do
  words[i + 1] = ARGV[i]
end
words[10], words[11], words[12], words[13] = 0, GIVE_BACK, 0, 0
for i = #found, 1, -1 do
  local cost, at_us, level = string.match(found[i], '^(%d+) (%d+) (-?%d+)$')
  if cost then
    keys[#keys + 1] = KEYS[2]
    local last = #words
    words[last + 1], words[last + 2], words[last + 3], words[last + 4] = 1, cost, at_us, level
  end
end
if #keys > 0 then
  local first = decide(keys, words)[1]
  -- One that is emptied while its slot moves is gone, and cannot be looked at again.
  if type(first) == 'string' and not string.find(first, 'non local key') then
    return {err = first}
  end
end
redis.call('LTRIM', KEYS[1], 0, -1 - #found)
return #found
"""


def beside(key: str) -> str:
    """The key of a counter's failures."""
    return f"{key}!failed"


async def add(way: Any, returned: Check, for_us: int) -> None:
    """Remembers the check that gives a failure back, for so many microseconds at least."""
    key = beside(way.key(returned))
    kept_ms = for_us // 1000 + SLACK_MS
    _number(
        await way.command(
            key, "EVAL", _ADD, "1", key, as_text(returned), str(-MOST_FAILURES), str(kept_ms)
        )
    )


async def forget(way: Any, check: Check, clock: Callable[[], int] | None) -> None:
    """Gives back each failure of a check's counter, the newest first, and forgets it."""
    counter = way.key(check)
    key = beside(counter)
    if way.is_cluster:
        # A script of two keys, of which one is missing, waits for the end where a slot moves.
        newest = await way.command(key, "LRANGE", key, "-1", "-1")
        if isinstance(newest, Exception):
            raise explain(newest) from None
        if not newest:
            return
    text, digest = _script(way.script)
    now = "" if clock is None else str(clock())
    words = ("2", key, counter, str(AT_ONCE), now, *map(str, check.limit.numbers))
    for _ in range(0, MOST_FAILURES, AT_ONCE):
        reply = await way.command(key, "EVALSHA", digest, *words)
        if getattr(reply, "code", "") == "NOSCRIPT":
            reply = await way.command(key, "EVAL", text, *words)
        if _number(reply) < AT_ONCE:
            return


@lru_cache(maxsize=2)
def _script(decision: str) -> tuple[str, str]:
    """The script that forgets, over that of all decisions, and its name for EVALSHA."""
    flags, body = "", decision
    if decision.startswith("#!"):
        flags, _, body = decision.partition("\n")
        flags += "\n"
    action = f"local GIVE_BACK = {int(Action.GIVE_BACK)}\n"
    text = f"{flags}local function decide(KEYS, ARGV)\n{body}\nend\n{action}{_FORGET}"
    return text, sha1(text.encode(), usedforsecurity=False).hexdigest()


def _number(reply: object) -> int:
    """A reply that is a number; raises StoreUnavailable where it is not."""
    if isinstance(reply, Exception):
        raise explain(reply) from None
    if type(reply) is not int:
        raise StoreUnavailable("what answers at this address is not Redis", kind="not-redis")
    return reply
