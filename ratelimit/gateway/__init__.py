"""The limiter as a service, for proxies that ask it about each request.

Public are `forward_auth.ForwardAuth` (an application to mount, also in `ratelimit`), and
`service.Service`, which `ratelimit serve` runs.
"""
