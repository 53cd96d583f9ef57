"""Why a store could not answer, in one sentence that names the cause and what to do about it."""

import re
from typing import Final

__all__ = ["StoreUnavailable", "explain", "no_reply"]


class StoreUnavailable(Exception):
    """The store could not answer, or not in time; says which, in one sentence.

    ``kind`` is a short stable word for the cause, by which repeated failures are told apart.
    """

    def __init__(self, message: str = "the store could not answer", kind: str = "failed") -> None:
        super().__init__(message)
        self.kind = kind


def no_reply(deadline: float, why: str = "") -> StoreUnavailable:
    """What a caller is told whose time is up."""
    because = f" (before that: {why})" if why else ""
    return StoreUnavailable(
        f"Redis gave no answer within the deadline of {deadline * 1000:g} ms{because}",
        kind="late",
    )


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
            "MOVED |MovedError|AskError|CROSSSLOT",
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
            # The last two are what scripts say of entries, and Lua of text that is no number.
            "WRONGTYPE|do not add up|arithmetic on a string",
            "a key of this limit holds a value that is not the limiter's",
        ),
        ("script", "user_script|running script|Script attempted", "Redis could not run the script"),
        (
            "not-redis",
            "Protocol error|InvalidResponse|InvalidData",
            "what answers at this address is no Redis",
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
    """What a failure means, as one sentence; the server's or client's own words follow it."""
    if isinstance(error, StoreUnavailable):
        return error
    if isinstance(error, bytes):
        error = error.decode("utf-8", "replace")
    name = "" if isinstance(error, str) else type(error).__name__
    said = " ".join(str(error).split())
    if isinstance(error, TimeoutError) or name == "TimeoutError":
        return StoreUnavailable("Redis gave no answer", kind="late")
    text = f"{name} {said}"
    for pattern, kind, sentence in _SAID:
        if pattern.search(text):
            return StoreUnavailable(f"{sentence} ({said[:200] or name})", kind=kind)
    return StoreUnavailable(f"Redis could not answer ({said[:200] or name})", kind="failed")
