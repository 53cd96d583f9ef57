"""Failures of a store, each in one sentence that names the cause and the remedy."""

import re
from typing import Final, Literal

__all__ = ["Scope", "StoreUnavailable", "explain", "foreign_key", "no_reply", "overloaded"]

Scope = Literal["key", "command", "shard", "server", "own"]
"""The reach of a failure: one counter, one command, a part of a cluster, a whole server, or our own
process, of which the store knows nothing. Breakers hear only of shards and servers."""

MOST_SAID: Final = 200  # characters of a server's own words that are repeated


class StoreUnavailable(Exception):
    """The store could not answer, or not in time; says which, in one sentence.

    ``kind`` is a short stable word for the cause, by which repeated failures are told apart, and
    ``scope`` how far it reaches (`Scope`).
    """

    def __init__(
        self,
        message: str = "the store could not answer",
        kind: str = "failed",
        scope: Scope = "server",
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.scope: Scope = scope


def no_reply(deadline: float, why: str = "", round_trip: float | None = None) -> StoreUnavailable:
    """The failure of a caller whose time is up; ``round_trip`` is the last measured, in seconds."""
    because = f" (before that: {why})" if why else ""
    if round_trip is not None and round_trip > deadline:
        because += (
            f"; a round trip takes {round_trip * 1000:.0f} ms, which the deadline cannot hold"
        )
    return StoreUnavailable(
        f"Redis gave no answer within the deadline of {deadline * 1000:g} ms{because}",
        kind="late",
    )


def foreign_key() -> StoreUnavailable:
    """The failure of a check whose key holds what cannot be a counter's numbers."""
    return StoreUnavailable(
        "a key of this limit holds a value that is not the limiter's", "foreign-key", "key"
    )


def overloaded(what: str) -> StoreUnavailable:
    """The failure of a request that this process has no time for, whatever the store does."""
    return StoreUnavailable(
        f"this process has more to decide than it gets to: {what}", kind="overloaded", scope="own"
    )


# The scope of each kind of failure; all others are a server's.
_SCOPES: Final[dict[str, Scope]] = {
    "foreign-key": "key",
    "permission": "command",
    "script": "command",
    "old": "command",
    "cluster": "shard",
    "shard": "shard",
}

# What servers and redis-py say (found anywhere, in any case), a short word for it, and what it
# means. The first that is found counts.
_SAID: Final = tuple(
    (re.compile(pattern, re.IGNORECASE), kind, sentence)
    for kind, pattern, sentence in (
        (
            "password",
            "NOAUTH|HELLO must be called with the client already auth",
            "Redis demands a password; give one in the URI",
        ),
        (
            "password",
            "WRONGPASS|invalid username-password|invalid password|without any password configured",
            "Redis refuses this user name or password",
        ),
        (
            "permission",
            "NOPERM|no permissions to|can.t run this command|ACL failure",
            "this user of Redis may not run the script, or a command in it",
        ),
        (
            "read-only",
            "READONLY|read only replica",
            "this Redis is read-only: a replica, or a demoted master",
        ),
        ("full", "OOM command|OutOfMemory", "Redis has reached maxmemory and takes no more keys"),
        (
            "loading",
            "LOADING|loading the dataset",
            "Redis is loading its data and does not answer yet",
        ),
        ("read-only", "MASTERDOWN", "this Redis is a replica that has lost its master"),
        ("read-only", "MISCONF", "Redis refuses writes because it cannot save to its disk"),
        ("busy", "BUSY Redis|BUSY Valkey|is busy running", "Redis is busy with a long script"),
        (
            "cluster",
            "CLUSTERDOWN|ClusterDown",
            "the cluster has no master for this key at the moment",
        ),
        (
            "cluster",
            r"MOVED |\bASK [0-9]|TRYAGAIN|CROSSSLOT",
            "this Redis is part of a cluster; one server alone cannot answer for it",
        ),
        (
            "clients",
            "max number of clients",
            "Redis has as many clients as it takes (maxclients)",
        ),
        (
            "old",
            "unknown command.*HELLO",
            (
                "this server does not know HELLO: it is older than Redis 6, or a proxy; add "
                "?protocol=2 to the URI"
            ),
        ),
        (
            "old",
            "unknown command|unknown subcommand|wrong number of arguments",
            "this server lacks a command that the script needs; it takes Redis 6.2 or newer",
        ),
        (
            "foreign-key",
            # The last two are what scripts say of entries, and Lua of text that is not a number.
            "WRONGTYPE|do not add up|arithmetic on a string",
            "a key of this limit holds a value that is not the limiter's",
        ),
        ("script", "user_script|running script|Script attempted", "Redis could not run the script"),
        (
            "not-redis",
            "Protocol error|InvalidResponse|InvalidData",
            "what answers at this address is not Redis",
        ),
        (
            "name",
            (
                "Name or service not known|No address associated|nodename nor servname|"
                "name resolution|getaddrinfo"
            ),
            "the name of the Redis server does not resolve",
        ),
        (
            "refused",
            "Connect call failed|Connection refused|No such file|Error 111|Error 61|Error 2 ",
            "nothing listens where Redis should",
        ),
        ("tls", "CERTIFICATE|SSL|TLS", "the TLS connection to Redis could not be made"),
        (
            "no-master",
            "No master found|MasterNotFound",
            "Sentinel knows no master of this service at the moment",
        ),
        (
            "closed",
            "Connection closed|Connection reset|Broken pipe|closed by server|Connection lost",
            "Redis closed the connection",
        ),
        ("database", "Invalid Database|DB index", "Redis has no database of that number"),
    )
)


def explain(error: BaseException | bytes | str) -> StoreUnavailable:
    """A failure as one sentence; the server's or client's own words follow it, made printable."""
    if isinstance(error, StoreUnavailable):
        return error
    if isinstance(error, bytes):
        error = error.decode("utf-8", "replace")
    name = "" if isinstance(error, str) else type(error).__name__
    words = " ".join(str(error).split())[:MOST_SAID]
    # A server may say anything, and a terminal would obey it.
    said = "".join([each if each.isprintable() else "?" for each in words])
    if isinstance(error, TimeoutError) or name == "TimeoutError":
        return StoreUnavailable("Redis gave no answer", kind="late")
    text = f"{name} {said}"
    for pattern, kind, sentence in _SAID:
        if pattern.search(text):
            return StoreUnavailable(
                f"{sentence} ({said or name})", kind, _SCOPES.get(kind, "server")
            )
    return StoreUnavailable(f"Redis could not answer ({said or name})", kind="failed")
