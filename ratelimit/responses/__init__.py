"""Answers to clients: header fields and the bodies of refusals. Nothing here knows ASGI.

Public are the names in `headers` (`Told`, `Field`, `DIALECTS`, `Refusal`), for dialects and answers
of one's own.
"""
