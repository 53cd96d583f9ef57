"""Rate limiting for ASGI applications: one decision, written in Lua, in process or in Redis."""

__all__ = [
    "Algorithm",
    "Check",
    "Dashboard",
    "Decision",
    "Event",
    "ForwardAuth",
    "Limit",
    "MemoryStore",
    "RateLimit",
    "RateLimitExceeded",
    "RateLimitMiddleware",
    "RateLimiter",
    "RedisStore",
    "Reservation",
    "Rule",
    "RuleFileError",
    "RuleSet",
    "Store",
    "StoreUnavailable",
    "TokenEstimate",
    "exempt",
    "limit",
    "open_store",
]

from ratelimit.asgi.decorators import RateLimit, exempt, limit
from ratelimit.asgi.estimates import TokenEstimate
from ratelimit.asgi.middleware import RateLimitMiddleware
from ratelimit.control.events import Event
from ratelimit.decisions import Check, Decision
from ratelimit.gateway.forward_auth import ForwardAuth
from ratelimit.insight.dashboard.app import Dashboard
from ratelimit.limiter.limiter import RateLimiter
from ratelimit.limiter.settling.reserving import Reservation
from ratelimit.limits import Algorithm, Limit
from ratelimit.responses.headers import RateLimitExceeded
from ratelimit.rules.file.mistakes import RuleFileError
from ratelimit.rules.rule import Rule
from ratelimit.rules.ruleset import RuleSet
from ratelimit.stores import MemoryStore, Store, StoreUnavailable, open_store
from ratelimit.stores.redis.store import RedisStore
