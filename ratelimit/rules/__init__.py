"""Rules, their options and paths, and the set that a request is matched with.

`Rule` and `RuleSet` are public, by the package's own name.
"""
