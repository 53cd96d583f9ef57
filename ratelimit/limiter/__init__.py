"""A request to its decisions, and what becomes of it when the store fails; no router is known here.

`RateLimiter` is public, by the package's own name.
"""

from ratelimit.limiter.identified import Outcome
from ratelimit.limiter.limiter import RateLimiter

__all__ = ["Outcome", "RateLimiter"]
