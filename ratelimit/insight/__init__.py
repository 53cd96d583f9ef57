"""Views of whom the limits hit, or would have hit: from outside, never on the way of a request.

Nothing here is public but the names that `ratelimit` and its command give.
"""
