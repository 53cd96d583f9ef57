"""The rule file as a JSON Schema (2020-12), for editors that complete and check it.

Keys, required ones, words to choose from and descriptions are those of the loader's own
definitions; what is text there has its shape here. The schema refuses nothing that the loader
accepts, but for text that other readers of YAML take for something else: a name such as ``true`` is
to be put in quotes. Anything that it cannot know, such as two rules that contradict each other,
is left to the loader.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal, get_args, get_origin

from ratelimit.limits import BUCKETS, UNITS_US, Algorithm
from ratelimit.rules.file.keys import FileKeys, Keys, MatchKeys, RuleKeys
from ratelimit.rules.options import METHODS
from ratelimit.rules.ruleset import Header

__all__ = ["schema"]

_WORD: Final = "[a-z_][a-z0-9_]{0,63}"
_ATTRIBUTE: Final = "[A-Za-z_][A-Za-z0-9_]{0,63}"
_TOKEN: Final = r"[A-Za-z0-9!#$%&'*+.^_`|~-]+"
_WHOLE: Final = "0|[1-9][0-9]{0,17}"
_PATH: Final = r"/([^?#%\x00-\x1f\x7f]|%(?![0-9A-Fa-f]{2}))*"


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

_VARIABLE: Final = {"$ref": "#/$defs/variable"}


def schema() -> dict[str, Any]:
    """The schema, ready for ``json.dumps``."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "urn:ratelimit-asgi:rules:1",
        "title": "Rate limits",
        **_object(FileKeys),
        "not": {"required": ["trusted_hops", "trusted_proxies"]},
        "$defs": {
            "rule": {
                **_object(RuleKeys),
                "oneOf": [{"required": ["limit"]}, {"required": ["limits", "tier"]}],
                "dependentRequired": {"limits": ["tier"], "tier": ["limits"]},
                "dependentSchemas": {
                    "burst": _only_with("algorithm", sorted(BUCKETS), given=True),
                    "max_delay": _only_with("algorithm", [Algorithm.LEAKING_BUCKET], given=True),
                    "rounding": _only_with("algorithm", [Algorithm.SLIDING_COUNTER]),
                    "enforce_share": _only_with("mode", ["enforce"]),
                },
            },
            "match": _object(MatchKeys),
            "limits": _text(_LIMITS, examples=["100/minute", "5/second; 1000/hour"]),
            "limits_or_none": _text(_LIMITS, "unlimited", examples=["1000/minute", "unlimited"]),
            "network": _text("[0-9A-Fa-f:.]+(/[0-9]{1,3})?"),
            "by": _text(
                f"(?!(header|cookie|query|path)$){_WORD}",
                f"(header|cookie):{_TOKEN}",
                "(query|path):.+",
                examples=["client", "global", "route", "user", "header:X-API-Key"],
            ),
            "variable": {
                "description": "Text with a variable of the environment in it.",
                "type": "string",
                "pattern": r"\$\{[A-Za-z_][A-Za-z0-9_]*\}",
            },
        },
    }


def as_text() -> str:
    """The schema as the text of ``docs/rules.schema.json``."""
    return json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"


def _object(keys: type[Keys]) -> dict[str, Any]:
    fields = keys.model_fields
    return {
        "description": (keys.__doc__ or "").strip(),
        "type": "object",
        "properties": {
            key: {"description": field.description, **_value(key, field.annotation)}
            for key, field in fields.items()
        },
        "required": [key for key, field in fields.items() if field.is_required()],
        "additionalProperties": False,
    }


def _value(key: str, annotation: Any) -> dict[str, Any]:
    if key not in _SHAPES and get_origin(annotation) is Literal:
        return _choice(get_args(annotation))
    return _SHAPES[key]


def _choice(words: Any) -> dict[str, Any]:
    return {"anyOf": [{"enum": list(words)}, _VARIABLE]}


def _text(*patterns: str, **more: Any) -> dict[str, Any]:
    whole = "|".join(f"({pattern})" for pattern in patterns)
    return {"anyOf": [{"type": "string", "pattern": f"^({whole})$", **more}, _VARIABLE]}


def _number(least: int, most: int | None = None, *otherwise: str) -> dict[str, Any]:
    """A whole number, in quotes or not."""
    bounds = {"minimum": least} | ({} if most is None else {"maximum": most})
    return {"anyOf": [{"type": "integer", **bounds}, _text(_WHOLE, *otherwise)]}


def _list(items: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "array", "items": items, **more}


def _mapping(values: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": values, **more}


def _only_with(key: str, values: list[Any], *, given: bool = False) -> dict[str, Any]:
    return {
        "properties": {key: _choice(map(str, values))},
        **({"required": [key]} if given else {}),
    }


_NETWORKS: Final = _list({"$ref": "#/$defs/network"})
_FILE: Final = {"type": "string", "minLength": 1}
_BY: Final = {"$ref": "#/$defs/by"}
_PART: Final = {
    "anyOf": [
        {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
        _text(r"[0-9]{1,3}(\.[0-9]{1,12})?\s?%?", examples=["25%"]),
    ]
}

_SHAPES: Final[dict[str, dict[str, Any]]] = {
    "version": {"anyOf": [{"enum": [1, "1"]}, _VARIABLE]},
    "rules": _list({"$ref": "#/$defs/rule"}, minItems=1),
    "store": _text(
        "memory://",
        r"(rediss?|redis\+cluster)://\S+",
        r"redis\+sentinel://[^/\s]+/[^/?\s]\S*",
        r"unix://\S*/\S*",
        examples=["redis://localhost:6379/0"],
    ),
    "deadline": _text(_DURATION, examples=["50ms"]),
    "workers": _number(1, 10_000),
    "share": _PART,
    "trusted_proxies": _NETWORKS,
    "trusted_hops": _number(0, 32),
    "ipv6_prefix": _number(16, 128),
    "headers": _list(_choice(get_args(Header)), uniqueItems=True),
    "retry_jitter": _text(_DURATION, examples=["2s"]),
    "name": _text("[A-Za-z][A-Za-z0-9_.:-]{0,63}"),
    "match": {"$ref": "#/$defs/match"},
    "path": _text(_PATH, examples=["/api/{rest:path}"]),
    "methods": _list(
        {"anyOf": [{"enum": sorted(METHODS)}, _text(_any_case(sorted(METHODS)))]},
        minItems=1,
    ),
    "by": {"anyOf": [_BY, _list(_BY, minItems=1, maxItems=10)]},
    "limit": {"$ref": "#/$defs/limits"},
    "limits": _mapping(
        {"$ref": "#/$defs/limits_or_none"},
        propertyNames={"minLength": 1, "maxLength": 64},
        minProperties=1,
    ),
    "tier": _text(f"user:{_ATTRIBUTE}", f"header:{_TOKEN}", _WORD, examples=["user:plan"]),
    "algorithm": _choice(map(str, Algorithm)),
    "burst": _number(1),
    "max_delay": _text(_DURATION, "none", examples=["500ms"]),
    "cost": _number(0, None, _WORD),
    "enforce_share": _PART,
    "overrides": _mapping({"$ref": "#/$defs/limits_or_none"}),
    "overrides_file": _FILE,
    "allowlist": _NETWORKS,
    "allowlist_file": _FILE,
    "denylist": _NETWORKS,
    "denylist_file": _FILE,
}
"""The shape of each key's value, where its type does not say it."""
