"""A rule file to the arguments of a `RuleSet`: YAML with places, keys, lists, and every mistake.

`RuleFileError` is public, by the package's own name.
"""
