"""A store's URI to its parts; a mistake in it is told here, in one sentence without its secrets.

For this neither redis-py nor a server is needed: a rule file is checked where none is at hand. What
is shown of a URI are the scheme and names of options: all else may be a piece of a password.
"""

import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple
from urllib.parse import unquote

from ratelimit.stores.redis.names import Address
from ratelimit.stores.redis.options import (
    OF_DATABASES,
    OF_TCP,
    OPTIONS,
    REMAP,
    TLS,
    WHOLE,
    YES_OR_NO,
    options_in,
    value,
    values,
)
from ratelimit.words import near, shown

__all__ = ["SCHEMES", "StoreUri", "read_uri"]

SCHEMES: Final = {
    "memory": ("memory", False),
    "redis": ("redis", False),
    "rediss": ("redis", True),
    "unix": ("unix", False),
    "redis+cluster": ("cluster", False),
    "redis+sentinel": ("sentinel", False),
    "valkey": ("redis", False),
    "valkeys": ("redis", True),
    "rediss+cluster": ("cluster", True),
    "rediss+sentinel": ("sentinel", True),
    "valkey+cluster": ("cluster", False),
    "valkey+sentinel": ("sentinel", False),
    "valkeys+cluster": ("cluster", True),
    "valkeys+sentinel": ("sentinel", True),
}
"""The kind of store that each scheme means, and whether it is reached over TLS."""

MOST_TOLD: Final = 8  # schemes, the first of them, in a sentence

_SEVERAL: Final = ("cluster", "sentinel")


class StoreUri(NamedTuple):
    """A URI's parts. ``settings`` have the names and types of redis-py's connections."""

    kind: str
    """``memory``, ``redis``, ``unix``, ``cluster`` or ``sentinel``."""
    hosts: tuple[Address, ...] = ()
    service: str = ""
    secure: bool = False
    settings: Mapping[str, Any] = {}
    to_sentinels: Mapping[str, Any] = {}
    """The settings of the connections to sentinels."""
    sentinels_secure: bool = False
    min_other_sentinels: int = 0
    remap: Mapping[str, str] | None = None


def read_uri(uri: str) -> StoreUri:
    """The parts of a store's URI, with TLS files looked at; connects to nothing.

    Raises TypeError for what is not text, and ValueError in one sentence.
    """
    if not isinstance(uri, str):
        raise TypeError(f"a store's URI is text, not {type(uri).__name__}")
    scheme, colon, rest = uri.partition("://")
    if not colon:
        raise ValueError("the store is not a URI; write one such as redis://localhost:6379/0")
    if scheme not in SCHEMES:
        looks_so = re.fullmatch("[A-Za-z][A-Za-z0-9+.-]*", scheme) is not None
        hint = near(scheme.lower(), SCHEMES, 0.6, "{}://".format)
        raise ValueError(
            f"the store's scheme is {shown(scheme) if looks_so else 'unknown'}{hint}; there are "
            + ", ".join(f"{each}://" for each in list(SCHEMES)[:MOST_TOLD])
        )
    kind, secure = SCHEMES[scheme]
    if kind == "memory":
        if rest:
            raise ValueError("something follows memory:// in the store; it is memory:// alone")
        return StoreUri("memory")
    if re.fullmatch(r"[^\s\x00-\x1f\x7f]+", rest) is None:
        raise ValueError(f"nothing, or a space, follows {scheme}:// in the store; name a server")
    authority, path, query = _split(scheme, rest)
    credentials, _, hosts = authority.rpartition("@")
    nodes = _hosts(scheme, kind, hosts)
    asked = options_in(query)
    user, _, password = map(unquote, credentials.partition(":"))
    place, database = _place(scheme, kind, path)
    for name, text in (("username", user), ("password", password), ("db", database)):
        if text and asked.get(name, text) != text:
            raise ValueError(f"the option {name!r} differs from what stands before the query")
    secure = _is_secure(scheme, kind, secure, asked)
    remap = asked.pop("address_remap", None) if kind in _SEVERAL else None
    others, sentinels_secure = "0", False
    to_sentinels: dict[str, Any] = {}
    if kind == "sentinel":
        others = asked.pop("min_other_sentinels", others)
        to_sentinels, sentinels_secure = _settings_of_sentinels(secure, asked)
    settings = _settings(scheme, kind, secure, asked)
    if database:
        settings["db"] = int(database)
    settings.update(
        {name: text for name, text in (("username", user), ("password", password)) if text}
    )
    if kind == "unix":
        settings["path"] = place
    return StoreUri(
        kind,
        nodes,
        place if kind == "sentinel" else "",
        secure,
        settings,
        to_sentinels,
        sentinels_secure,
        value("min_other_sentinels", others, WHOLE),
        None if remap is None else value("address_remap", remap, REMAP),
    )


def _split(scheme: str, rest: str) -> tuple[str, str, str]:
    """Authority, path and query.

    Where a character of a password was left as it is, a piece of it would be taken for the host,
    and shown.
    """
    found = re.fullmatch(r"([^/?#@]*@)?([^/?#@]*)(/[^?#@]*)?(?:\?([^#@]*))?", rest)
    if found is None or re.search(r"[\[\]]", found[1] or ""):
        raise _unreadable(scheme)
    return (found[1] or "") + found[2], found[3] or "", found[4] or ""


def _unreadable(scheme: str) -> ValueError:
    return ValueError(
        f"no host and port can be read in the {scheme}:// URI; in a user's "
        "name or password, / ? # @ and brackets are written %2F %3F %23 %40 %5B %5D"
    )


def _hosts(scheme: str, kind: str, text: str) -> tuple[Address, ...]:
    several = kind in _SEVERAL
    if kind == "unix":
        if text:
            raise ValueError(
                "no path follows unix:// in the store; write unix:///path/of/the/socket"
            )
        return ()
    if "," in text and not several:
        raise ValueError(
            f"{scheme}:// names one server; write redis+cluster:// or redis+sentinel:// for several"
        )
    default = 26379 if kind == "sentinel" else 6379
    nodes = []
    for each in text.split(","):
        found = re.fullmatch(
            r"(\[[0-9a-fA-F:.]+(?:%[\w.%-]+)?\]|[^:\[\]]+|)(?::([0-9]{1,5}))?", each
        )
        host = "" if found is None else unquote(found[1].strip("[]"))
        port = int((found and found[2]) or default)
        if several and not host:
            raise ValueError(f"{scheme}:// names no host:port,host:port")
        if found is None or not 0 < port < 65536 or not host.isprintable() or " " in host:
            raise _unreadable(scheme)
        nodes.append((host or "localhost", port))
    return tuple(nodes)


def _place(scheme: str, kind: str, path: str) -> tuple[str, str]:
    """The socket's path, or the service that sentinels know; and the database."""
    path = unquote(path)
    first, _, rest = path.removeprefix("/").partition("/")
    if not path.isprintable():
        raise _unreadable(scheme)
    if kind == "unix":
        if not path.strip("/"):
            raise ValueError(
                "no path follows unix:// in the store; write unix:///path/of/the/socket"
            )
        return path, ""
    if kind == "sentinel":
        if not first:
            raise ValueError(
                "no service follows the hosts in the store; write "
                f"{scheme}://host:port,host:port/service"
            )
        if re.fullmatch("[0-9]{0,9}", rest) is None:
            raise ValueError(f"no database can be read; write {scheme}://host:port/service/0")
        return first, rest
    if kind == "cluster" and path.strip("/"):
        raise ValueError(f"{scheme}:// takes no database; a cluster has one")
    if re.fullmatch("[0-9]{0,9}", first) is None or rest:
        raise ValueError(f"no database can be read behind the host; write {scheme}://host:port/0")
    return "", first


def _is_secure(scheme: str, kind: str, secure: bool, asked: dict[str, str]) -> bool:
    """Whether servers are reached over TLS, by the scheme and ``ssl=true``."""
    if kind == "unix" or "ssl" not in asked:
        return secure
    said = value("ssl", asked.pop("ssl"), YES_OR_NO)
    if kind == "redis" and said and not secure:
        raise ValueError(
            f"'ssl' is not an option of a connection; write {_over_tls(scheme)} for TLS"
        )
    if secure and not said:
        raise ValueError(f"ssl=false contradicts {scheme}://, which is TLS")
    return bool(said)


def _over_tls(scheme: str) -> str:
    return "valkeys://" if scheme.startswith("valkey") else "rediss://"


def _settings(scheme: str, kind: str, secure: bool, asked: Mapping[str, str]) -> dict[str, Any]:
    """The settings of the connections to servers."""
    allowed = OPTIONS if kind == "cluster" else {**OPTIONS, **OF_DATABASES}
    if kind != "unix":
        allowed = {**allowed, **OF_TCP}
    if kind == "unix":
        for_tls = "a unix socket has none"
    else:
        for_tls = "add ssl=true" if kind in _SEVERAL else f"write {_over_tls(scheme)}"
    return values(asked, allowed, secure, for_tls)


def _settings_of_sentinels(secure: bool, asked: dict[str, str]) -> tuple[dict[str, Any], bool]:
    """The settings of the connections to sentinels, taken from the options, and whether of TLS."""
    own = {name: asked.pop(name) for name in list(asked) if name.startswith("sentinel_")}
    over_tls = bool(value("sentinel_ssl", own.pop("sentinel_ssl", "false"), YES_OR_NO))
    allowed = {f"sentinel_{name}": each for name, each in {**OPTIONS, **OF_TCP}.items()}
    if over_tls and secure:
        # The master's, where they have none of their own.
        for name in TLS:
            if name in asked:
                own.setdefault(f"sentinel_{name}", asked[name])
    return values(own, allowed, over_tls, "add sentinel_ssl=true", "sentinel_"), over_tls
