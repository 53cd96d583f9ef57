"""The identity of a request: addresses, networks, trusted proxies, and the other keys.

Nothing of it is public.
"""
