"""The process around: a job in an event loop that ends with its owner, and files of an operator.

Nothing of it is public.
"""
