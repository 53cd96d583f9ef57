"""Connections of one kind: a class of redis-py's that resolves names in our threads."""

import contextlib
import re
import ssl
from collections.abc import (
    Mapping,
)
from typing import Any, ClassVar

from ratelimit.stores.redis.errands import within
from ratelimit.stores.redis.installed import version
from ratelimit.stores.redis.names import (
    Address,
    Progress,
    look_up,
    spelt,
)
from ratelimit.stores.redis.tls import Tls

__all__ = ["Dialing", "Kind"]


class Dialing:
    """A mixin before a connection class of redis-py's, which then resolves by `look_up`.

    The addresses of a name are tried in order, each within its share of the time. TLS goes on
    asking for the name.
    """

    __slots__ = ()
    tls: ClassVar[Tls]

    async def connect(self) -> None:
        this: Any = self
        parent: Any = super()
        if this.is_connected:
            return
        progress = this.__dict__.get("progress") or Progress("")
        name, port = this.host, this.port
        addresses = await look_up(name, port, progress)
        progress.waiting_for = ""
        await self.tls.give(this)
        share = progress.patience * 0.9 / len(addresses)
        this.server_name = name
        progress.waiting_for = "connection"
        try:
            for number, address in enumerate(addresses, 1):
                this.host = address
                progress.trying = spelt(name, port)
                if address != name:
                    progress.trying += f" ({address})"
                is_last = number == len(addresses)
                try:
                    async with contextlib.nullcontext() if is_last else within(share):
                        await parent.connect()
                except Exception as error:
                    if is_last or not _is_unreached(error):
                        raise
                    await this.disconnect(nowait=True)
                else:
                    return
        finally:
            this.host = name

    def _connection_arguments(self) -> Mapping[str, Any]:
        parent: Any = super()
        arguments = dict(parent._connection_arguments())  # noqa: SLF001
        if arguments.get("ssl"):
            this: Any = self
            arguments.setdefault("server_hostname", this.__dict__.get("server_name", this.host))
        return arguments


def _is_unreached(error: Exception) -> bool:
    """Whether no server spoke, so that the next address may do better."""
    from redis.exceptions import ConnectionError as Unreached
    from redis.exceptions import TimeoutError as Late

    # Those exactly: a wrong password is a ConnectionError, too.
    return isinstance(error, OSError) or type(error) in (Unreached, Late)


class Kind:
    """A kind of connection: redis-py's class, and its settings."""

    def __init__(
        self,
        connection_class: Any,
        settings: Mapping[str, Any],
        tls: Tls | None = None,
    ) -> None:
        self.tls = tls or Tls()
        self.settings = dict(settings)
        self.connection_class = connection_class
        if _resolves_as_usual(connection_class):
            self.connection_class = type(
                connection_class.__name__,
                (Dialing, connection_class),
                {"tls": self.tls},
            )

    def make(self, address: Address | None = None) -> Any:
        """A connection that is not open yet."""
        if address is None:
            return self.connection_class(**self.settings)
        return self.connection_class(**{**self.settings, "host": address[0], "port": address[1]})

    def place(self) -> str:
        """The server that connections lead to, in words."""
        if "path" in self.settings:
            return str(self.settings["path"])
        return spelt(str(self.settings.get("host", "localhost")), self.settings.get("port", 6379))

    def check(self) -> None:
        """Raises ValueError where no connection can be made of the settings."""
        from redis.exceptions import RedisError

        try:
            connection = self.make()
        except TypeError as error:
            found = re.search(r"unexpected keyword argument '(\w+)'", str(error))
            if found is None:
                raise
            raise ValueError(
                f"{found[1]!r} is not an option of a connection of redis-py {version()}"
            ) from None
        except RedisError as error:
            raise ValueError(f"no connection can be made of these options: {error}") from None
        fresh = getattr(connection, "ssl_context", None)
        self._refuse_unverified(fresh)
        if hasattr(fresh, "get") and hasattr(fresh, "context"):
            try:
                self.tls.read(fresh)
            except OSError as error:
                raise ValueError(
                    f"the certificates or keys for TLS cannot be used: {error}"
                ) from None

    def _refuse_unverified(self, context: Any) -> None:
        """Raises ValueError for TLS with any server, unless "none" says that it is meant."""
        asked = self.settings.get("ssl_cert_reqs", "required")
        if asked in ("none", None):
            return
        modes = [getattr(context, name, None) for name in ("cert_reqs", "verify_mode")]
        if ssl.CERT_NONE in (asked, *modes):
            raise ValueError(
                "TLS with CERT_NONE would trust any server; give its authority in ssl_ca_certs, "
                "or ssl_cert_reqs='none' where that is meant"
            )


def _resolves_as_usual(connection_class: Any) -> bool:
    """Whether a class looks names up as redis-py does; others go on by themselves."""
    from redis.asyncio.connection import Connection

    return (
        isinstance(connection_class, type)
        and issubclass(connection_class, Connection)
        and all(
            getattr(connection_class, name) is getattr(Connection, name)
            for name in ("connect", "_connect")
        )
    )
