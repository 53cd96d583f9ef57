"""Options in the query of a store's URI: their names, their values, and every mistake in them.

They are redis-py's, read here, since its releases read them differently or not at all.
"""

import codecs
import math
import os
import re
import ssl
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qsl

from ratelimit.stores.redis.names import remapper
from ratelimit.words import near

__all__ = [
    "OF_DATABASES",
    "OF_TCP",
    "OPTIONS",
    "REMAP",
    "TLS",
    "WHOLE",
    "YES_OR_NO",
    "Option",
    "options_in",
    "value",
    "values",
]

MOST_OPTIONS: Final = 100


class Option(NamedTuple):
    """A way from an option's text to its value, which raises ValueError, and what is allowed."""

    read: Callable[[str], Any]
    allowed: str


# --- options -------------------------------------------------------------------------------------

_TRUE: Final = ("true", "1", "yes", "y", "t", "on")
_FALSE: Final = ("false", "0", "no", "n", "f", "off")


def _yes_or_no(text: str) -> bool:
    if text.lower() not in (*_TRUE, *_FALSE):
        raise ValueError
    return text.lower() in _TRUE


def _whole(text: str) -> int:
    if re.fullmatch("[0-9]{1,9}", text) is None:
        raise ValueError
    return int(text)


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise ValueError
    return value


def _one_of(allowed: Mapping[str, Any]) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        if text not in allowed:
            raise ValueError
        return allowed[text]

    return read


def _word(text: str) -> str:
    if re.fullmatch("[!-~]+", text) is None:
        raise ValueError
    return text


def _encoding(text: str) -> str:
    codecs.lookup(text)
    return text


def _flags(text: str) -> list[ssl.VerifyFlags]:
    names = [name.strip() for name in text.strip("[]").split(",")]
    if not all(name in ssl.VerifyFlags.__members__ for name in names):
        raise ValueError
    return [ssl.VerifyFlags[name] for name in names]


def _remap(text: str) -> dict[str, str]:
    """``announced=reachable,announced=reachable``."""
    remap = dict([pair.split("=") for pair in text.split(",")])
    remapper(remap)
    return remap


_TEXT: Final = Option(str, "text")
YES_OR_NO: Final = Option(_yes_or_no, "true or false")
WHOLE: Final = Option(_whole, "a whole number")
_SECONDS: Final = Option(_seconds, "a number of seconds above 0")
_FLAGS: Final = Option(_flags, "names of ssl.VerifyFlags, separated by commas")

OPTIONS: Final = {
    "username": _TEXT,
    "password": _TEXT,
    "client_name": Option(_word, "text without spaces"),
    "lib_name": Option(_word, "text without spaces"),
    "lib_version": Option(_word, "text without spaces"),
    "protocol": Option(_one_of({"2": 2, "3": 3}), "2 or 3"),
    "encoding": Option(_encoding, "the name of a codec"),
    "encoding_errors": Option(
        _one_of({"strict": "strict", "replace": "replace"}), "strict or replace"
    ),
    "socket_timeout": _SECONDS,
    "socket_connect_timeout": _SECONDS,
    "socket_read_size": WHOLE,
    # Of clients and pools, which others that share the URI have: taken, and without effect here.
    "max_connections": WHOLE,
    "decode_responses": YES_OR_NO,
    "retry_on_timeout": YES_OR_NO,
    "health_check_interval": WHOLE,
    "legacy_responses": YES_OR_NO,
}

_NOT_OURS: Final = (
    "max_connections", "decode_responses", "retry_on_timeout", "health_check_interval",
    "legacy_responses",
)  # fmt: skip

OF_DATABASES: Final = {"db": WHOLE}

OF_TCP: Final = {"socket_keepalive": YES_OR_NO}

TLS: Final = {
    "ssl_keyfile": _TEXT,
    "ssl_certfile": _TEXT,
    "ssl_password": _TEXT,
    "ssl_ca_certs": _TEXT,
    "ssl_ca_path": _TEXT,
    "ssl_ca_data": _TEXT,
    # redis-py's words. CERT_NONE, that of others, would be a refusal of each connection.
    "ssl_cert_reqs": Option(
        _one_of({each: each for each in ("none", "optional", "required")}),
        "none, optional or required",
    ),
    "ssl_check_hostname": YES_OR_NO,
    "ssl_ciphers": _TEXT,
    "ssl_min_version": Option(
        _one_of({"771": ssl.TLSVersion.TLSv1_2, "772": ssl.TLSVersion.TLSv1_3}),
        "771 (TLS 1.2) or 772 (TLS 1.3)",
    ),
    "ssl_include_verify_flags": _FLAGS,
    "ssl_exclude_verify_flags": _FLAGS,
}

REMAP: Final = Option(_remap, "announced=reachable,announced=reachable")

_KNOWN: Final = {
    *OPTIONS, *OF_DATABASES, *OF_TCP, *TLS, "ssl", "timeout", "host", "port", "path",
    "address_remap", "min_other_sentinels",
}  # fmt: skip

_SECRET: Final = ("password", "ssl_password", "sentinel_password", "sentinel_ssl_password")

_NOT_OPTIONS: Final = {
    "timeout": "the store's deadline says how long a decision may take",
    "host": "the host stands before the query",
    "port": "the port stands behind the host",
    "path": "the path stands before the query",
}


# --- the query ---------------------------------------------------------------------------------


def options_in(query: str) -> dict[str, str]:
    """The options of the query, each of them once."""
    try:
        pairs = parse_qsl(query, keep_blank_values=True, max_num_fields=MOST_OPTIONS)
    except ValueError:
        raise ValueError(f"the store's URI has more than {MOST_OPTIONS} options") from None
    asked: dict[str, str] = {}
    for name, text in pairs:
        if name in asked:
            raise ValueError(
                f"{_named(name, {**asked, **dict(pairs)})} is given twice as an option"
            )
        asked[name] = text
    return asked


def _named(name: str, asked: Mapping[str, str]) -> str:
    """An option's name for a sentence, where it cannot be a piece of a password."""
    looks_so = re.fullmatch("[a-z][a-z0-9_]{0,39}", name) is not None
    if name.removeprefix("sentinel_") in _KNOWN or (looks_so and not any(map(asked.get, _SECRET))):
        return repr(name)
    return "a name in the query"


def values(
    asked: Mapping[str, str],
    allowed: Mapping[str, Option],
    secure: bool,
    for_tls: str,
    prefix: str = "",
) -> dict[str, Any]:
    """The values of options that all begin with ``prefix``, by their names without it."""
    of_tls = {f"{prefix}{name}": option for name, option in TLS.items()}
    if secure:
        allowed = {**allowed, **of_tls}
    settings = {}
    for name, text in asked.items():
        option = allowed.get(name)
        if option is None:
            if name in of_tls:
                raise ValueError(f"{name!r} is for TLS; {for_tls}")
            raise ValueError(
                f"{_named(name, asked)} is not an option of a connection{_hint(name, allowed)}"
            )
        settings[name.removeprefix(prefix)] = value(name, text, option)
    for name in _NOT_OURS:
        settings.pop(name, None)
    if secure:
        _check_tls(settings, prefix)
    return settings


def _hint(name: str, allowed: Mapping[str, Option]) -> str:
    if name in _NOT_OPTIONS:
        return f"; {_NOT_OPTIONS[name]}"
    return near(name, allowed, 0.6, repr)


def value(name: str, text: str, option: Option) -> Any:
    if not text:
        raise ValueError(f"the option {name!r} has no value")
    try:
        return option.read(text)
    except (ValueError, TypeError, LookupError):
        raise ValueError(f"the option {name!r} takes {option.allowed}") from None


# --- TLS -----------------------------------------------------------------------------------------


def _check_tls(settings: dict[str, Any], prefix: str) -> None:
    """Completes the settings of TLS, as every redis-py is to have them; raises ValueError.

    The files are loaded here one by one, so that it can be told which of them is at fault.
    """
    if settings.get("ssl_cert_reqs") == "none":
        settings["ssl_check_hostname"] = False
    settings.setdefault("ssl_check_hostname", True)  # which 5.2 leaves out
    if "ssl_certfile" in settings:
        settings.setdefault("ssl_keyfile", settings["ssl_certfile"])
    elif "ssl_keyfile" in settings:
        raise ValueError(f"'{prefix}ssl_keyfile' needs {prefix}ssl_certfile beside it")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    get = settings.get
    load: tuple[tuple[str, Callable[[Any], object]], ...] = (
        ("ssl_ca_certs", lambda file: context.load_verify_locations(cafile=file)),
        ("ssl_ca_data", lambda text: context.load_verify_locations(cadata=text)),
        ("ssl_ca_path", lambda folder: os.scandir(folder).close()),
        ("ssl_certfile", lambda file: Path(file).open("rb").close()),
        ("ssl_keyfile", lambda file: Path(file).open("rb").close()),
        (
            "ssl_certfile",
            lambda file: context.load_cert_chain(
                # A function, or it would be asked for at the terminal.
                file,
                get("ssl_keyfile"),
                lambda: get("ssl_password") or "",
            ),
        ),
        ("ssl_ciphers", context.set_ciphers),
    )
    for name, work in load:
        if name in settings:
            try:
                work(settings[name])
            except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
                raise ValueError(
                    f"the option '{prefix}{name}' cannot be used: {_cause(error)}"
                ) from None


def _cause(error: Exception) -> str:
    """The system's or OpenSSL's words for it, without the name of a file."""
    return str(getattr(error, "strerror", None) or error)
