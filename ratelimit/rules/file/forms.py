"""The forms in which a rule file writes values: the type of each for pydantic, and its shape.

What a value means is read by its option (`ratelimit.rules.options`); here is only how it is
written, and the same as JSON Schema says it.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from fractions import Fraction
from typing import Annotated, Any, Final, Literal, get_args

from pydantic import AfterValidator, BeforeValidator
from pydantic_core import PydanticCustomError

from ratelimit.identity.addresses import Network, read_network
from ratelimit.limits import UNITS_US, parse_duration_us
from ratelimit.rules.banning import KEYS as BAN_KEYS
from ratelimit.rules.banning import NEEDED as BAN_NEEDED
from ratelimit.rules.charging import KEYS as CHARGE_KEYS
from ratelimit.rules.reading import Form
from ratelimit.rules.sockets import OnExcess
from ratelimit.rules.values import REGISTERED, Mode, refuse_everyone
from ratelimit.words import shown

__all__ = ["VARIABLE", "choice", "shape_of", "text", "type_of"]

# --- types ---------------------------------------------------------------------------------------


def _refusal(code: str, message: str) -> PydanticCustomError:
    return PydanticCustomError("refused", "{message}", {"message": message, "code": code})


def _whole(value: object, otherwise: str = "") -> object:
    if not isinstance(value, str):
        return value
    if not re.fullmatch("0|[1-9][0-9]{0,17}", value, re.ASCII):
        raise _refusal(
            "not-whole",
            f"{shown(value)} is there; it is a whole number of at most 18 digits, "
            f"without leading zeros{otherwise}",
        )
    return int(value)


def _whole_or_name(value: object) -> object:
    if not isinstance(value, str):
        raise PydanticCustomError("cost_type", "a number or a name")
    if REGISTERED.fullmatch(value):
        return value
    return _whole(value, ", or a registered name (a-z, 0-9 and _)")


def _duration_us(value: object) -> object:
    if not isinstance(value, str):
        raise PydanticCustomError("string_type", "a duration")
    clock = re.fullmatch("([0-9]{1,6}):([0-9]{2})", value, re.ASCII)
    if clock:
        number = 60 * int(clock[1]) + int(clock[2])
        raise _refusal(
            "bad-duration",
            f"{shown(value)} is not a duration, since it has no unit; write '{number}s' for "
            f"minutes and seconds, '{number}m' for hours and minutes",
        )
    try:
        return parse_duration_us(value)
    except ValueError as error:
        raise _refusal("bad-duration", str(error)) from None


def _delay(value: object) -> object:
    """Seconds, or None for no bound."""
    if value == "none":
        return None
    return _seconds(value)


def _seconds(value: object) -> object:
    duration_us: Any = _duration_us(value)
    return duration_us / 1_000_000


def _network(value: object) -> object:
    if not isinstance(value, str):
        raise PydanticCustomError("string_type", "a network")
    try:
        return read_network(value)
    except ValueError as error:
        raise _refusal("bad-network", str(error)) from None


def _proxies(network: Network) -> Network:
    # Here already, since of a list with a mistake nothing is read.
    try:
        refuse_everyone(network)
    except ValueError as error:
        raise _refusal("trusts-everyone", str(error)) from None
    return network


def _share(value: object) -> object:
    """A part of a whole, as a number or in percent."""
    found = re.fullmatch(r"([0-9]{1,3}(?:\.[0-9]{1,12})?)\s?(%?)", str(value), re.ASCII)
    if not isinstance(value, str) or found is None:
        raise _refusal(
            "bad-share", f"{shown(str(value))} is not a share; it is a number such as 0.5, or 50%"
        )
    return Fraction(found[1]) / (100 if found[2] else 1)


def _listed(value: object) -> object:
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        raise PydanticCustomError("by_type", "text or a list")
    return value


_Network = Annotated[Network, BeforeValidator(_network)]

_TYPES: Final[Mapping[str, Any]] = {
    "ban": dict[str, str],
    "by": Annotated[list[str], BeforeValidator(_listed)],
    "charge": dict[str, Annotated[list[str], BeforeValidator(_listed)]],
    "delay": Annotated[float | None, BeforeValidator(_delay)],
    "duration": Annotated[int, BeforeValidator(_duration_us)],
    "flag": Annotated[Literal["true", "false"], AfterValidator(lambda word: word == "true")],
    "hosts": Annotated[list[str], BeforeValidator(_listed)],
    "methods": list[str],
    "names": Annotated[list[str], BeforeValidator(_listed)],
    "networks": list[_Network],
    "overrides": dict[str, str],
    "paths": Annotated[list[str], BeforeValidator(_listed)],
    "proxies": list[Annotated[_Network, AfterValidator(_proxies)]],
    "secrets": Annotated[list[str], BeforeValidator(_listed)],
    "seconds": Annotated[float, BeforeValidator(_seconds)],
    "share": Annotated[Fraction, BeforeValidator(_share)],
    "shed": dict[str, str],
    "tiers": dict[str, str],
    "websocket": dict[str, str],
    "whole": Annotated[int, BeforeValidator(_whole)],
    "whole-or-name": Annotated[int | str, BeforeValidator(_whole_or_name)],
}
"""The type of each kind that is not text as it is."""


def type_of(form: Form) -> Any:
    """The type to which pydantic holds what a file writes."""
    if form.kind in ("word", "words"):
        word: Any = Literal[form.words]
        return word if form.kind == "word" else list[word]
    return _TYPES.get(form.kind, str)


# --- shapes --------------------------------------------------------------------------------------

VARIABLE: Final = {"$ref": "#/$defs/variable"}

_NAME: Final = "[a-z_][a-z0-9_]{0,63}"
_ATTRIBUTE: Final = "[A-Za-z_][A-Za-z0-9_]{0,63}"
_TOKEN: Final = r"[A-Za-z0-9!#$%&'*+.^_`|~-]+"
_WHOLE: Final = "0|[1-9][0-9]{0,17}"


def _any_case(words: Iterable[str]) -> str:
    """A pattern of words in any case, since patterns have no flag for it."""
    spelled = (
        "".join(f"[{each.upper()}{each}]" if each.isalpha() else each for each in word.lower())
        for word in words
    )
    return f"({'|'.join(spelled)})"


_UNIT: Final = _any_case(UNITS_US)
_DURATION: Final = rf"\s*[0-9]{{1,15}}(\.[0-9]{{1,15}})?\s*{_UNIT}\s*"
_LIMIT: Final = (
    rf"\s*0*[1-9][0-9]{{0,17}}(\s*/|\s+{_any_case(['per'])}\s)\s*([0-9][0-9.]*)?\s*{_UNIT}"
    rf"(\s+{_any_case(['burst'])}\s+[0-9]{{1,18}})?\s*"
)
_LIMITS: Final = rf"[\s;,|]*{_LIMIT}([;,|]({_LIMIT}|\s*))*"

_TEXTS: Final[Mapping[str, tuple[str, ...]]] = {
    "delay": (_DURATION, "none"),
    "duration": (_DURATION,),
    "field": (_TOKEN,),
    "name": ("[A-Za-z][A-Za-z0-9_.:-]{0,63}",),
    "path": (r"/([^?#%\x00-\x1f\x7f]|%(?![0-9A-Fa-f]{2}))*",),
    "priority": (_NAME,),
    "seconds": (_DURATION,),
    "store": (
        "memory://",
        r"((redis|valkey)s?(\+cluster)?)://\S+",
        r"(redis|valkey)s?\+sentinel://[^/\s]+/[^/?\s]\S*",
        r"unix://\S*/\S*",
    ),
    "unit": ("[a-z][a-z0-9-]{0,31}",),
    "tier": (f"user:{_ATTRIBUTE}", f"header:{_TOKEN}", _NAME),
}
"""Patterns of the kinds that are text, one of which matches."""


def choice(words: Iterable[str]) -> dict[str, Any]:
    return {"anyOf": [{"enum": list(words)}, VARIABLE]}


def text(*patterns: str, examples: Iterable[str] = ()) -> dict[str, Any]:
    whole = "|".join(f"({pattern})" for pattern in patterns)
    some = {"examples": list(examples)} if examples else {}
    return {"anyOf": [{"type": "string", "pattern": f"^({whole})$", **some}, VARIABLE]}


def _number(form: Form, *otherwise: str) -> dict[str, Any]:
    """A whole number, in quotes or not."""
    bounds = {"minimum": form.least} | ({} if form.most is None else {"maximum": form.most})
    return {"anyOf": [{"type": "integer", **bounds}, text(_WHOLE, *otherwise)]}


def _list(items: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "array", "items": items, **more}


def _mapping(values: str, **more: Any) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": {"$ref": f"#/$defs/{values}"}, **more}


def _one_or_more(*patterns: str, **more: Any) -> dict[str, Any]:
    one = text(*patterns, **more)
    return {"anyOf": [one, _list(one, minItems=1, maxItems=100)]}


_BY: Final = {"$ref": "#/$defs/by"}
_STATUS: Final = {
    "anyOf": [
        {"type": "integer", "minimum": 100, "maximum": 599},
        text("[1-5]([0-9][0-9]|[xX][xX])", examples=["401", "5xx"]),
    ]
}

_SHAPES: Final[Mapping[str, Callable[[Form], dict[str, Any]]]] = {
    "ban": lambda form: {
        "type": "object",
        "properties": {
            "after": _number(Form("whole", (), 1)),
            **dict.fromkeys(BAN_KEYS[1:], text(_DURATION, examples=form.examples)),
        },
        "required": list(BAN_NEEDED),
        "additionalProperties": False,
    },
    "by": lambda _: {"anyOf": [_BY, _list(_BY, minItems=1, maxItems=10)]},
    "charge": lambda _: {
        "type": "object",
        "properties": {key: {"$ref": "#/$defs/statuses"} for key in CHARGE_KEYS},
        "required": ["on_status"],
        "additionalProperties": False,
    },
    "file": lambda _: {"type": "string", "minLength": 1},
    "flag": lambda _: {"anyOf": [{"enum": [True, False, "true", "false"]}, VARIABLE]},
    "limits": lambda _: {"$ref": "#/$defs/limits"},
    "methods": lambda form: _list(
        {"anyOf": [{"enum": list(form.words)}, text(_any_case(form.words))]}, minItems=1
    ),
    "hosts": lambda form: _one_or_more("[A-Za-z0-9_:.-]+", examples=form.examples),
    "names": lambda form: _one_or_more(*_TEXTS["name"], examples=form.examples),
    "paths": lambda form: _one_or_more(*_TEXTS["path"], examples=form.examples),
    "networks": lambda _: _list({"$ref": "#/$defs/network"}),
    "overrides": lambda _: _mapping("limits_of_one"),
    "proxies": lambda _: _list({"$ref": "#/$defs/network"}),
    "secrets": lambda form: _one_or_more(".{16,}", examples=form.examples),
    "share": lambda _: {
        "anyOf": [
            {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
            text(r"[0-9]{1,3}(\.[0-9]{1,12})?\s?%?", examples=["25%"]),
        ]
    },
    "shed": lambda _: {
        "type": "object",
        "properties": {
            "lag": text(_DURATION, examples=["20ms"]),
            "mode": choice(get_args(Mode)),
        },
        "required": ["lag"],
        "additionalProperties": False,
    },
    "some-word": lambda form: choice(form.words),
    "tiers": lambda _: _mapping(
        "limits_or_none", propertyNames={"minLength": 1, "maxLength": 64}, minProperties=1
    ),
    "websocket": lambda _: {
        "type": "object",
        "properties": {
            "messages": {"$ref": "#/$defs/limits"},
            "bytes": {"$ref": "#/$defs/limits"},
            "on_excess": choice(get_args(OnExcess)),
        },
        "anyOf": [{"required": ["messages"]}, {"required": ["bytes"]}],
        "additionalProperties": False,
    },
    "whole": _number,
    "whole-or-name": lambda form: _number(form, _NAME),
    "word": lambda form: choice(form.words),
    "words": lambda form: _list(choice(form.words)),
}


def shape_of(form: Form) -> dict[str, Any]:
    """The JSON Schema of a value."""
    if form.kind in _TEXTS:
        return text(*_TEXTS[form.kind], examples=form.examples)
    return _SHAPES[form.kind](form)


DEFINITIONS: Final[Mapping[str, Any]] = {
    "limits": text(_LIMITS, examples=["100/minute", "5/second; 1000/hour"]),
    "limits_of_one": text(
        _LIMITS, "unlimited", "blocked", examples=["1000/minute", "unlimited", "blocked"]
    ),
    "limits_or_none": text(_LIMITS, "unlimited", examples=["1000/minute", "unlimited"]),
    "network": text("[0-9A-Fa-f:.]+(/[0-9]{1,3})?"),
    "statuses": {"anyOf": [_STATUS, _list(_STATUS, minItems=1, maxItems=100)]},
    "by": text(
        f"(?!(header|cookie|query|path)$){_NAME}",
        f"(header|cookie):{_TOKEN}",
        "(query|path):.+",
        examples=["client", "global", "route", "user", "header:X-API-Key"],
    ),
    "variable": {
        "description": "Text with a variable of the environment in it.",
        "type": "string",
        "pattern": r"\$\{[A-Za-z_][A-Za-z0-9_]*\}",
    },
}
"""Shapes that several values have."""
