"""One TLS context for all connections, read again when its files have changed."""

import logging
import os
import ssl
from functools import partial
from typing import Any, Final

from ratelimit.stores.redis.errands import ERRANDS

__all__ = ["Tls"]

_LOG: Final = logging.getLogger("ratelimit")


class Tls:
    """The TLS context of all connections of one kind, read anew when its files have changed."""

    def __init__(self) -> None:
        self._good: Any = None
        self._stamp: Any = None
        self._complained = False

    def read(self, fresh: Any) -> Any:
        """The context now, given one of redis-py's that was not read yet. Blocks.

        Raises OSError (ssl.SSLError is one) where no context was ever read.
        """
        # Before they are read: what changes meanwhile is read again.
        stamp = [_stamp(path) for path in _files(fresh)]
        if self._good is not None and stamp == self._stamp:
            return self._good
        try:
            fresh.get()
        except OSError as error:
            if self._good is None:
                raise
            if not self._complained:
                self._complained = True
                _LOG.warning(
                    "the certificates or keys for TLS have changed and cannot be used, "
                    "so those of before are still used: %s",
                    error,
                )
            return self._good
        self._good, self._stamp, self._complained = fresh, stamp, False
        return fresh

    async def give(self, connection: Any) -> None:
        """Gives a connection that speaks TLS the context that all have."""
        fresh = getattr(connection, "ssl_context", None)
        if hasattr(fresh, "get") and hasattr(fresh, "context"):
            connection.ssl_context = await ERRANDS.result(self, partial(self.read, fresh))


def _files(context: Any) -> list[Any]:
    """Files and folders that a context of redis-py's is read from, with the system's."""
    system = ssl.get_default_verify_paths()
    named = [
        getattr(context, name, None) for name in ("ca_certs", "ca_path", "certfile", "keyfile")
    ]
    return [*named, system.cafile, system.capath]


def _stamp(path: Any) -> Any:
    try:
        found = os.stat(path)  # noqa: PTH116 # a path may be bytes
    except (OSError, TypeError, ValueError):
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
