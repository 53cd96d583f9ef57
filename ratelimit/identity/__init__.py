"""Who is asking: addresses, networks, what trusted proxies say, and the other keys of a request.

Nothing of it is public.
"""
