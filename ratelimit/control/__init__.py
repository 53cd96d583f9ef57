"""What changes while it runs: switches, a rule file that is followed, and who was denied most.

Nothing of it is public.
"""
