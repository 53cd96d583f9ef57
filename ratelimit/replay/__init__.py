"""Yesterday's traffic against tomorrow's rules: logs, what they come to, and the rules they suggest.

For the command `ratelimit replay` and `ratelimit plan`; loaded by nothing else.
"""
