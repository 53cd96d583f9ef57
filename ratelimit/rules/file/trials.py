"""Questions to `Rule` about each of a rule's values, so that a refusal is reported at its place."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Final, NamedTuple

from ratelimit.limits import Algorithm
from ratelimit.rules import options
from ratelimit.rules.options import Counting
from ratelimit.rules.rule import Rule

__all__ = ["COUNTED", "Trial", "trials"]

Place = tuple[str | int, ...]

COUNTED: Final = ("limit", "algorithm", "burst", "rounding", "max_delay")
_ALONE: Final[dict[Place, str]] = {
    ("name",): "bad-name",
    ("match", "path"): "bad-path",
    ("algorithm",): "bad-algorithm",
    ("enforce_share",): "bad-share",
}
"""Values that mean something by themselves, and the codes of those that do not."""


class Trial(NamedTuple):
    """A question about one value, to which an exception is the answer that it has a mistake."""

    loc: Place
    code: str
    uses: tuple[str, ...]
    """The other keys whose values it takes."""
    ask: Callable[[], object]

    @property
    def key(self) -> str:
        return str(self.loc[self.loc[0] == "match"])


def trials(values: Mapping[str, Any]) -> Iterator[Trial]:
    """The questions about a rule's values, ordered so that a mistake spares the later ones."""

    def trial(loc: Place, code: str, *uses: str, **more: Any) -> Trial:
        names = (*uses, loc[loc[0] == "match"])
        some = {name: values[name] for name in map(str, names) if name in values}
        arguments = {"name": "a", "limit": "1/second"} | some | more
        return Trial(loc, code, uses, lambda: Rule(**arguments))

    def path_of(*parts: str) -> dict[str, Any]:
        named = any(part.startswith("path:") for part in parts)
        return {"path": values.get("path")} if named else {}

    for loc, code in _ALONE.items():
        if loc[-1] in values:
            yield trial(loc, code)
    given = enumerate(values.get("methods", ()))
    for number, method in [each for each in given if each[1] not in options.METHODS]:
        yield trial(("match", "methods", number), "bad-method", methods=[method])
    if "methods" in values:
        yield trial(("match", "methods"), "bad-method")
    if values.get("algorithm", Algorithm.TOKEN_BUCKET) not in set(Algorithm):
        values = dict(values) | {"algorithm": Algorithm.TOKEN_BUCKET}
    limit = values.get("limit", "1/second")
    tiered = isinstance(limit, Mapping)
    tier = {"tier": "user:a"} if tiered else {}
    counting = Counting(values.get("algorithm"), None, None, ...)
    for name, one in limit.items() if tiered else ():
        other = "a" if name != "a" else "b"  # since not all may be unlimited
        ask = partial(options.tiers, {name: one, other: "1/second"}, counting)
        yield Trial(("limits", name), "bad-limit", ("algorithm",), ask)
    yield trial(("limits" if tiered else "limit",), "bad-limit", "algorithm", limit=limit, **tier)
    if "tier" in values:
        yield trial(("tier",), "bad-tier", limit={"a": "1/second"})
    for option in COUNTED[2:]:
        if option in values:
            code = f"bad-{option.replace('_', '-')}"
            yield trial((option,), code, "limit", "algorithm", **tier)
    if "cost" in values:
        yield trial(("cost",), "bad-cost", *COUNTED, **tier)
    by = values.get("by", ["client"])
    for number, part in enumerate(by[:10]):
        yield trial(("by", number), "bad-by", *path_of(part), by=[part])
    if "by" in values:
        yield trial(("by",), "bad-by", *path_of(*by))
