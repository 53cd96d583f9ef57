"""The values of options: each function reads one, or refuses it in a sentence."""

import re
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from http import HTTPMethod
from ipaddress import IPv4Network, IPv6Network
from typing import Any, Final, Literal, TypeVar, get_args

from ratelimit.identity.addresses import Network, unwrapped
from ratelimit.limits import Limit
from ratelimit.rules.paths import Path
from ratelimit.rules.reading import Reading, text
from ratelimit.stores import check_uri
from ratelimit.words import near, shown, whole

Mode = Literal["enforce", "shadow", "off"]
OnStoreFailure = Literal["allow", "deny", "local"]
OnMissing = Literal["client", "skip", "refuse"]
Header = Literal["draft", "legacy", "draft-03", "openai", "anthropic"]
Preflights = Literal["free", "count"]

T = TypeVar("T")
SomeLimits = str | Limit | Sequence[Limit] | Sequence[str] | None
"""One limit or several; None (or the text "unlimited") for none."""

BUILT_IN_BY: Final = ("client", "global", "route", "user")
NAMED_BY: Final = ("header", "cookie", "query", "path")
CLIENT_CHOSEN: Final = ("header", "cookie", "query", "path")
"""Parts of an identity whose value a client can pick as it likes."""
METHODS: Final = frozenset(HTTPMethod) | {
    "QUERY", "PURGE", "PROPFIND", "PROPPATCH", "MKCOL", "COPY", "MOVE", "LOCK", "UNLOCK", "REPORT",
    "SEARCH",
}  # fmt: skip

_NAME: Final = re.compile("[A-Za-z][A-Za-z0-9_.:-]{0,63}", re.ASCII)
TOKEN: Final = re.compile("[A-Za-z0-9!#$%&'*+.^_`|~-]+", re.ASCII)
REGISTERED: Final = re.compile("[a-z_][a-z0-9_]{0,63}", re.ASCII)
ATTRIBUTE: Final = re.compile("[A-Za-z_][A-Za-z0-9_]{0,63}", re.ASCII)
_UNIT: Final = re.compile("[a-z][a-z0-9-]{0,31}", re.ASCII)
_MOST_PARTS: Final = 10
_MOST_LISTED: Final = 100
_HOST: Final = re.compile(
    r"[a-z0-9_](?:[a-z0-9_-]{0,62})(?:\.[a-z0-9_](?:[a-z0-9_-]{0,62})){0,126}|[0-9a-f:.]{2,45}",
    re.ASCII,
)
_PORT: Final = re.compile(r"^[^:]+:[0-9]+$|\]:[0-9]+$")

LISTS_OF_HOPS: Final = ("x-forwarded-for", "forwarded")
"""Fields that hold the address of each hop; any other holds one address alone."""
_NO_ADDRESS: Final = frozenset({"host", "via", "x-forwarded-host", "x-forwarded-proto"})
MOST_WORKERS: Final = 10_000
SHORTEST_SECRET: Final = 16
LONGEST_JITTER_US: Final = 60_000_000


def name(value: object, _: Reading) -> str:
    """A rule's name."""
    if not _NAME.fullmatch(text("name", value)):
        raise ValueError(
            f"the name is {shown(value)}; it is 1 to 64 letters, digits and _ . : - "
            "that start with a letter"
        )
    return str(value)  # a StrEnum is text as well


def path(value: object, _: Reading) -> Path:
    """A path's pattern, compiled."""
    return Path(text("path", value))


def paths(values: object, reading: Reading) -> tuple[tuple[str, Path], ...]:
    """Patterns of paths, each with its text."""
    texts = _listed(reading.key.rstrip("_"), values)
    read = [reading.at((number,), path, each, reading) for number, each in enumerate(texts)]
    return tuple(zip(map(str, texts), filter(None, read), strict=False))


def hosts(values: object, reading: Reading) -> frozenset[str]:
    """Names of hosts, in lower case, without a final dot."""
    texts = _listed("host", values)
    return frozenset(str(reading.at((number,), _host, each)) for number, each in enumerate(texts))


def _host(value: object) -> str:
    host = text("host", value).lower().removesuffix(".")
    if _PORT.search(host):
        raise ValueError(f"host is {shown(value)}; it is compared without port, so leave it out")
    if not _HOST.fullmatch(host):
        raise ValueError(
            f"host is {shown(value)}; it is a name such as app.example.com, or an address, without "
            "scheme, path and wildcards"
        )
    return host


def names(values: object, reading: Reading) -> tuple[str, ...]:
    """Names of rules, each once."""
    texts = _listed(reading.key, values)
    read = [str(reading.at((number,), name, each, reading)) for number, each in enumerate(texts)]
    for each in read:
        if read.count(each) > 1:
            raise ValueError(f"{reading.key} names {shown(each)} twice; once is enough")
    return tuple(read)


def _listed(what: str, values: object) -> Sequence[object]:
    """One text, or several, as several."""
    texts = (values,) if isinstance(values, str) else values
    if not isinstance(texts, Sequence | frozenset):
        raise TypeError(f"{what} is text or several texts, not {type(values).__name__}")
    if not texts:
        raise ValueError(f"{what} is empty; leave it out")
    if len(texts) > _MOST_LISTED:
        raise ValueError(f"{what} has {len(texts)} items; it has at most {_MOST_LISTED}")
    return tuple(texts)


def methods(values: Iterable[str], reading: Reading) -> frozenset[str]:
    """HTTP methods in upper case, with HEAD wherever GET is among them."""
    if isinstance(values, str):
        raise TypeError(f"methods is a list such as ['GET'], not the text {shown(values)}")
    known = {reading.at((number,), _method, each) for number, each in enumerate(values)}
    if not known:
        raise ValueError("methods is empty and would match nothing; leave it out to match all")
    return frozenset(str(each) for each in (known | {"HEAD"} if "GET" in known else known))


def _method(method: object) -> str:
    upper = text("a method", method).upper()
    if upper not in METHODS:
        hint = near(upper, sorted(METHODS))
        raise ValueError(
            f"{shown(method)} is not an HTTP method{hint}; there are " + ", ".join(sorted(METHODS))
        )
    return upper


def by(value: object, reading: Reading) -> tuple[str, ...]:
    """The parts of an identity."""
    parts: Any = (value,) if isinstance(value, str) else value
    if not isinstance(parts, Sequence):
        raise TypeError(f"by is text or several texts, not {type(value).__name__}")
    if len(parts) > _MOST_PARTS:
        raise ValueError(f"by has {len(parts)} parts; it has at most {_MOST_PARTS}")
    # Any parameter is taken where a route gives it, and where the path has a mistake of its own.
    path = reading.get("path")
    parameters = None if "path" in reading.failed else path.parameters if path else ()
    if reading.given.get("on_route"):
        parameters = None
    where = reading.given.get("path")
    read = [
        reading.at((number,), _by_part, each, parameters, where)
        for number, each in enumerate(parts)
    ]
    if not read:
        raise ValueError("by is empty; it names at least one, such as 'client'")
    for part in filter(None, read):
        if read.count(part) > 1:
            raise ValueError(f"by names {shown(part)} twice; once is enough")
    return tuple(map(str, read))


def _by_part(value: object, parameters: Iterable[str] | None, path: str | None) -> str:
    part = text("a part of by", value)
    kind, _, name = part.partition(":")
    if part not in NAMED_BY and REGISTERED.fullmatch(part):
        return part
    if kind not in NAMED_BY:
        raise ValueError(
            f"by is {shown(part)}; it is client, global, route, user, header:NAME, cookie:NAME, "
            "query:NAME, path:NAME or a registered name (a-z, 0-9 and _)"
        )
    if not name:
        raise ValueError(f"by is {shown(part)} without a name; write {kind}:NAME")
    if kind in ("header", "cookie") and not TOKEN.fullmatch(name):
        raise ValueError(
            f"by is {shown(part)}; a {kind}'s name is letters, digits and !#$%&'*+.^_`|~-"
        )
    if kind == "path" and parameters is not None and name not in parameters:
        there = f"{shown(path)} has {', '.join(parameters) or 'none'}" if path else "it has no path"
        raise ValueError(
            f"by is {shown(part)}, which is not a parameter of the rule's path; {there}"
        )
    return part.lower() if kind == "header" else part


def networks(values: Iterable[object], _: object = None) -> tuple[Network, ...]:
    """Networks, as addresses are compared with them: IPv4 within IPv6 is IPv4."""
    found = []
    for network in values:
        if not isinstance(network, IPv4Network | IPv6Network):
            raise TypeError(
                f"a list of networks holds {shown(network)}; its items are IPv4Network or "
                "IPv6Network"
            )
        found.append(unwrapped(network))
    return tuple(found)


def trusted_proxies(values: Iterable[object], reading: Reading) -> tuple[Network, ...]:
    """Networks of proxies, none of which is everyone."""
    found = networks(values)
    for number, network in enumerate(found):
        reading.at((number,), refuse_everyone, network)
    return found


def refuse_everyone(network: Network) -> None:
    """Raises ValueError where every client would be a trusted proxy."""
    if network.prefixlen == 0:
        raise ValueError(
            f"{network} trusts everyone, so that any client could choose its address; "
            "trusted_proxies are the networks of the proxies alone"
        )


def one_of(words: tuple[str, ...]) -> Callable[[object, Reading], str]:
    """Reads one of a few words."""

    def read(value: Any, reading: Reading) -> str:
        if value not in words:
            raise ValueError(f"{reading.key} is {shown(value)}; it is {_either(words)}")
        return str(value)

    return read


def _either(words: tuple[str, ...]) -> str:
    *most, last = map(repr, words)
    return f"{', '.join(most)} or {last}"


def between(least: int, most: int) -> Callable[[object, Reading], int]:
    """Reads a whole number, both bounds included."""

    def read(value: Any, reading: Reading) -> int:
        whole(reading.key, value, least, most)
        return int(value)

    return read


def part(value: object, reading: Reading) -> Fraction:
    """A part of a whole, above 0 and at most 1."""
    if isinstance(value, bool) or not isinstance(value, int | float | Fraction):
        raise TypeError(f"{reading.key} is a number, not {type(value).__name__}")
    if not 0 < value <= 1:
        raise ValueError(f"{reading.key} is {value}; it is above 0 and at most 1")
    return Fraction(str(value))


def deadline(value: object, _: Reading) -> int:
    """Microseconds, 1 ms to 60 s."""
    if type(value) is not int:
        raise TypeError(f"the deadline is whole microseconds, not {type(value).__name__}")
    if not 1_000 <= value <= 60_000_000:
        raise ValueError(f"the deadline is {value / 1_000_000:.12g} s; it is 1 ms to 60 s")
    return value


def retry_jitter(value: object, _: Reading) -> int:
    """Microseconds, at most 60 s."""
    if type(value) is not int:
        raise TypeError(f"the jitter is whole microseconds, not {type(value).__name__}")
    if not 0 <= value <= LONGEST_JITTER_US:
        raise ValueError(f"the jitter is {value / 1_000_000:.12g} s; it is at most 60 s")
    return value


def forwarded_header(value: object, _: Reading) -> str:
    """A field's name, in lower case."""
    name = text("forwarded_header", value).lower()
    hint = near(name, LISTS_OF_HOPS, 0.85)
    if not TOKEN.fullmatch(name) or name in _NO_ADDRESS or (hint and name not in LISTS_OF_HOPS):
        raise ValueError(
            f"forwarded_header is {shown(value)}{hint}; it is x-forwarded-for, forwarded or a "
            "field that holds one address, such as x-real-ip"
        )
    return name


def headers(values: Iterable[Any], _: Reading) -> tuple[Any, ...]:
    """Dialects: names, or functions such as those in ratelimit.responses.headers."""
    found = tuple(dict.fromkeys(values))
    for header in found:
        if header not in get_args(Header) and not callable(header):
            names = ", ".join(map(repr, get_args(Header)))
            raise ValueError(f"headers holds {shown(header)}; its items are {names}")
    return found


def retry_hints(value: object, _: Reading) -> bool:
    """Whether it is so."""
    if not isinstance(value, bool):
        raise TypeError(f"retry_hints is true or false, not {type(value).__name__}")
    return value


def unit(value: object, _: Reading) -> str:
    """The name of what is counted."""
    if not _UNIT.fullmatch(text("unit", value)):
        raise ValueError(
            f"unit is {shown(value)}; it is what is counted, such as tokens, in at most 32 of a-z, "
            "0-9 and -"
        )
    return str(value)


def skip(value: object, _: Reading) -> Any:
    """A function over the connection."""
    if not callable(value):
        raise TypeError(f"skip is a function over the connection, not {type(value).__name__}")
    return value


def secrets(values: object, reading: Reading | None = None) -> tuple[str, ...]:
    """Secrets that sign tokens, one text or several; no mistake shows one."""
    texts = (values,) if isinstance(values, str) else values
    if not isinstance(texts, Iterable):
        raise TypeError(f"secret is text or several texts, not {type(values).__name__}")
    found = tuple(texts)
    if reading is not None and not found:
        raise ValueError("secret is empty; leave it out")
    for number, each in enumerate(found):
        if reading is None:
            _secret(each)
        else:
            reading.at((number,) if values is not each else (), _secret, each)
    return found


def _secret(value: object) -> None:
    if len(text("a secret", value)) < SHORTEST_SECRET:
        raise ValueError(
            f"a secret has {len(str(value))} characters; it has at least {SHORTEST_SECRET}, as one "
            "of `openssl rand -hex 32` does"
        )


def store(value: object, _: Reading) -> str:
    """A store's URI; mistakes show no more of it than its scheme and the names of its options."""
    uri = text("store", value)
    check_uri(uri)
    return uri
