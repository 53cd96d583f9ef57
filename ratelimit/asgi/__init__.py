"""Starlette and FastAPI: the middleware, limits on routes, and the documentation of both.

Public are `RateLimitMiddleware`, `limit`, `exempt` and `RateLimit`, by the package's own name, and
`openapi.document`.
"""
