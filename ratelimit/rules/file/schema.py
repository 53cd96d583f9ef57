"""The rule file as a JSON Schema (2020-12), for editors that complete and check it.

Keys, required ones, words to choose from and descriptions are those of the loader's own
definitions; what is text there has its shape here. The schema refuses nothing that the loader
accepts, but for text that other readers of YAML take for something else: a name such as ``true`` is
to be put in quotes. Anything that it cannot know, such as two rules that contradict each other,
is left to the loader.
"""

import json
from collections.abc import Mapping
from typing import Any, Final

from ratelimit.limits import BUCKETS, Algorithm
from ratelimit.rules.file.forms import DEFINITIONS, VARIABLE, choice, shape_of
from ratelimit.rules.file.keys import (
    FILE_KEYS,
    MATCH_KEYS,
    RULE_KEYS,
    FileKeys,
    Key,
    MatchKeys,
    RuleKeys,
)

__all__ = ["schema"]


def schema() -> dict[str, Any]:
    """The schema, ready for ``json.dumps``."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "urn:ratelimit-asgi:rules:1",
        "title": "Rate limits",
        **_object(FileKeys.__doc__, FILE_KEYS),
        "not": {"required": ["trusted_hops", "trusted_proxies"]},
        "$defs": {
            "rule": {
                **_object(RuleKeys.__doc__, RULE_KEYS),
                "anyOf": [{"required": [key]} for key in ("limit", "limits", "concurrency")],
                "not": {"required": ["limit", "limits"]},
                "dependentRequired": {
                    "limits": ["tier"],
                    "tier": ["limits"],
                    "lease": ["concurrency"],
                    "until": ["concurrency"],
                },
                "dependentSchemas": {
                    "burst": _only_with("algorithm", sorted(BUCKETS), given=True),
                    "max_delay": _only_with("algorithm", [Algorithm.LEAKING_BUCKET], given=True),
                    "free": _only_with("algorithm", [Algorithm.LEAKING_BUCKET], given=True),
                    "max_waiting": _only_with("algorithm", [Algorithm.LEAKING_BUCKET], given=True),
                    "rounding": _only_with("algorithm", [Algorithm.SLIDING_COUNTER]),
                },
            },
            "match": _object(MatchKeys.__doc__, MATCH_KEYS),
            **DEFINITIONS,
        },
    }


def as_text() -> str:
    """The schema as the text of ``docs/rules.schema.json``."""
    return json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"


def _object(about: str | None, keys: Mapping[str, Key]) -> dict[str, Any]:
    return {
        "description": about,
        "type": "object",
        "properties": {
            key: {"description": each.about, **(shape_of(each.form) if each.form else _OWN[key])}
            for key, each in keys.items()
        },
        "required": [key for key, each in keys.items() if each.needed],
        "additionalProperties": False,
    }


def _only_with(key: str, values: list[Any], *, given: bool = False) -> dict[str, Any]:
    return {
        "properties": {key: choice(map(str, values))},
        **({"required": [key]} if given else {}),
    }


_OWN: Final[Mapping[str, Any]] = {
    "version": {"anyOf": [{"enum": [1, "1"]}, VARIABLE]},
    "rules": {"type": ["array", "null"], "items": {"$ref": "#/$defs/rule"}},
    "match": {"$ref": "#/$defs/match"},
}
"""The shapes of keys whose values have keys of their own, and of the version."""
