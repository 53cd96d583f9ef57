"""Counters in Redis or Valkey: one server, Sentinel, or a Cluster.

`RedisStore` is public.
"""

from ratelimit.stores.redis.store import RedisStore

__all__ = ["RedisStore"]
