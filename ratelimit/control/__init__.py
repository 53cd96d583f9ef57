"""Operation while it runs: switches, a rule file that is followed, and the most denied clients.

Nothing of it is public.
"""
