"""Yesterday's traffic against tomorrow's rules, and the rules that it suggests.

For the command `ratelimit replay` and `ratelimit plan`; loaded by nothing else.
"""
