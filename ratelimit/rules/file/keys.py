"""The keys of a rule file, as pydantic holds values to their types: made of the options.

The JSON Schema and the tables of the documentation are made of the same.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, create_model

from ratelimit.rules.file.forms import type_of
from ratelimit.rules.options import FILE, RULE
from ratelimit.rules.reading import Form, Option

__all__ = ["FILE_KEYS", "MATCH_KEYS", "RULE_KEYS", "FileKeys", "Key", "Keys", "MatchKeys"]


class Key(NamedTuple):
    about: str
    form: Form | None
    """None for a mapping or a list with keys of its own."""
    needed: bool = False


def _keys(options: Mapping[str, Option], inside: str) -> Iterator[tuple[str, Key]]:
    for key, option in options.items():
        if option.form is None or option.inside != inside:
            continue
        # A keyword of Python's has a line behind it there.
        yield key.rstrip("_"), Key(option.about, option.form, key == "name")
        if option.also is not None:
            other, form, about = option.also
            yield other, Key(about, form)


class Keys(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", arbitrary_types_allowed=True)


def _model(name: str, doc: str, keys: Mapping[str, Key], **own: Any) -> type[Keys]:
    fields: dict[str, Any] = {
        key: (
            own.get(key) or type_of(each.form or Form("text")),
            Field(... if each.needed else None, description=each.about),
        )
        for key, each in keys.items()
    }
    return create_model(name, __base__=Keys, __doc__=doc, **fields)


MATCH_KEYS: Final = dict(_keys(RULE, "match"))
MatchKeys: Final = _model("MatchKeys", "The requests that a rule is for.", MATCH_KEYS)

_OF_RULE: Final = dict(_keys(RULE, ""))
RULE_KEYS: Final[dict[str, Key]] = {
    "name": _OF_RULE.pop("name"),
    "match": Key("Which requests the rule is for; every request if left out.", None),
    **_OF_RULE,
}
RuleKeys: Final = _model(
    "RuleKeys",
    "A rule: its requests, the identity it counts by, its limits and its mode.",
    RULE_KEYS,
    match=MatchKeys,
)

FILE_KEYS: Final[dict[str, Key]] = {
    "version": Key("The version of this format, which is 1.", None, needed=True),
    "rules": Key(
        "The rules; all that match a request apply to it. Without any, the rest serves limits on "
        "routes.",
        None,
    ),
    **dict(_keys(FILE, "")),
}
FileKeys: Final = _model(
    "FileKeys",
    "The rules, and what holds for all of them.",
    FILE_KEYS,
    version=Literal["1"],
    rules=list[Any] | None,
)

NEEDED: Final[dict[str, Any]] = {"version": "1", "name": "a"}
"""Values that stand in for required keys with a mistake, while the other keys are looked at."""
