"""Operation while it runs: switches, events, and the most denied clients.

Nothing of it is public.
"""
