"""Rate limiting for ASGI applications: one decision, written in Lua, in process or in Redis."""

from ratelimit.decisions import Check, Decision
from ratelimit.headers import RateLimitExceeded
from ratelimit.limiter import RateLimiter
from ratelimit.limits import Algorithm, Limit
from ratelimit.middleware import RateLimitMiddleware
from ratelimit.routes import RateLimit, exempt, limit
from ratelimit.rule import Rule
from ratelimit.rulefile import RuleFileError
from ratelimit.rules import RuleSet
from ratelimit.stores import MemoryStore, Store, StoreUnavailable, open_store
from ratelimit.stores.redis import RedisStore

__all__ = [
    "Algorithm",
    "Check",
    "Decision",
    "Limit",
    "MemoryStore",
    "RateLimit",
    "RateLimitExceeded",
    "RateLimitMiddleware",
    "RateLimiter",
    "RedisStore",
    "Rule",
    "RuleFileError",
    "RuleSet",
    "Store",
    "StoreUnavailable",
    "exempt",
    "limit",
    "open_store",
]
