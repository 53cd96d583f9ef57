"""The `ratelimit` command. Nothing of it is public but the command itself."""

from ratelimit.cli.main import main

__all__ = ["main"]
