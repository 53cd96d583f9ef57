"""The live page: rules and their numbers, to be looked at in a browser by those who may.

Public is `Dashboard`, by the package's own name.
"""
