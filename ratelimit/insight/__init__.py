"""Whom the limits hit, and whom they would have hit: seen from outside, never on a request's way.

Nothing here is public but the names that `ratelimit` and its command give.
"""
