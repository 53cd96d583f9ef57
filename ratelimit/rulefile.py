"""A rule file in YAML to a `RuleSet`, or every mistake in it with its line.

pydantic holds each value to its type; what a value means is asked of `Rule` and `RuleSet`
themselves, one field at a time, so that their sentence lands on the field's line. A sentence that
could show a value from the environment is replaced.
"""

import os
import re
from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from fractions import Fraction
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, ValidationError
from pydantic_core import PydanticCustomError

from ratelimit.limits import parse_duration_us
from ratelimit.rules import Network, Rule, RuleSet
from ratelimit.yamlfile import Mistake, Mistakes, Node, below, read, shown, text_of

__all__ = ["Mistake", "RuleFileError", "load", "loads"]


class RuleFileError(Exception):
    """Every mistake in a rule file at once, by line and column; its text is one line for each."""

    def __init__(self, mistakes: tuple[Mistake, ...]) -> None:
        super().__init__(mistakes)
        self.mistakes = mistakes

    def __str__(self) -> str:
        return "\n".join(map(str, self.mistakes))


def load(path: str | os.PathLike[str]) -> RuleSet:
    """The rules in the YAML file at ``path``; ``${NAME}`` is taken from the environment.

    Raises RuleFileError with every mistake at once, also where the file cannot be read.
    """
    name = os.fspath(path)
    mistakes = Mistakes(name)
    text = text_of(name, mistakes)
    return _built(None if text is None else read(text, os.environ, mistakes), mistakes)


def loads(text: str, name: str = "<rules>") -> RuleSet:
    """The rules in YAML text; ``name`` stands for the file in mistakes. Raises as `load` does."""
    if not isinstance(text, str):
        raise TypeError(f"rules are text, not {type(text).__name__}")
    mistakes = Mistakes(name)
    return _built(read(text, os.environ, mistakes), mistakes)


def _meant(code: str, build: Callable[[Any], object]) -> AfterValidator:
    """Asks ``build`` whether a value means anything, and takes its sentence as the mistake."""

    def check(value: Any) -> Any:
        try:
            build(value)
        except (ValueError, TypeError) as error:
            raise _refusal(code, str(error)) from None
        return value

    return AfterValidator(check)


def _refusal(code: str, message: str) -> PydanticCustomError:
    return PydanticCustomError("refused", "{message}", {"message": message, "code": code})


def _whole(value: object) -> object:
    if not isinstance(value, str):
        return value
    if not re.fullmatch("0|[1-9][0-9]{0,17}", value, re.ASCII):
        raise _refusal(
            "not-whole",
            f"{shown(value)} is there; it is a whole number of at most 18 digits, "
            "without leading zeros",
        )
    return int(value)


def _duration_us(value: object) -> object:
    if not isinstance(value, str):
        raise PydanticCustomError("string_type", "a duration")
    try:
        return parse_duration_us(value)
    except ValueError as error:
        raise _refusal("bad-duration", str(error)) from None


def _max_delay(value: object) -> object:
    if value == "none":
        return None
    duration_us: Any = _duration_us(value)
    return duration_us / 1_000_000


def _network(value: object) -> object:
    if not isinstance(value, str):
        raise PydanticCustomError("string_type", "a network")
    try:
        network = ip_network(value, strict=False)
    except ValueError:
        network = None
    if network is None or "%" in value:
        raise _refusal(
            "bad-network",
            f"{shown(value)} is no address or network; write 192.0.2.7, 10.0.0.0/8 or "
            '"2001:db8::/32"',
        )
    if value.partition("/")[0] != value and ip_network(value.partition("/")[0])[0] != network[0]:
        raise _refusal(
            "bad-network",
            f"{shown(value)} has bits set beyond its prefix; the network is {network}",
        )
    if isinstance(network, IPv6Network) and network.prefixlen >= 96:
        mapped = network[0].ipv4_mapped
        if mapped is not None:  # addresses are compared unwrapped, so this one would match none
            return IPv4Network((mapped, network.prefixlen - 96))
    return network


def _share(value: object) -> object:
    if not isinstance(value, str) or not re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,12})?", value):
        raise _refusal("bad-share", f"{shown(str(value))} is no share; it is a number such as 0.5")
    return Fraction(value)


def _listed(value: object) -> object:
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        raise PydanticCustomError("by_type", "text or a list")
    return value


_Whole = Annotated[int, BeforeValidator(_whole)]
_Failure = Literal["allow", "deny", "local"]
_NetworkItem = Annotated[Network, BeforeValidator(_network)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", arbitrary_types_allowed=True)


class _Match(_Strict):
    path: Annotated[str, _meant("bad-path", lambda path: Rule("a", "1/second", path=path))] = ""
    methods: Annotated[
        list[
            Annotated[str, _meant("bad-method", lambda one: Rule("a", "1/second", methods=[one]))]
        ],
        _meant("bad-method", lambda methods: Rule("a", "1/second", methods=methods)),
    ] = []


class _RuleFields(_Strict):
    name: Annotated[str, _meant("bad-name", lambda name: Rule(name, "1/second"))]
    limit: str
    match: _Match = _Match()
    by: Annotated[list[str], BeforeValidator(_listed)] = []
    algorithm: Annotated[
        str, _meant("bad-algorithm", lambda one: Rule("a", "1/second", algorithm=one))
    ] = ""
    burst: _Whole = 1
    rounding: Literal["down", "up"] = "down"
    max_delay: Annotated[float | None, BeforeValidator(_max_delay)] = None
    cost: _Whole = 1
    mode: Literal["enforce", "shadow", "off"] = "enforce"
    on_store_failure: _Failure = "allow"
    overrides: dict[str, str] = {}


class _FileFields(_Strict):
    version: Literal["1"]
    rules: list[Any]
    store: Annotated[str, _meant("bad-store", lambda uri: RuleSet((), store=uri))] = ""
    deadline: Annotated[
        int,
        BeforeValidator(_duration_us),
        _meant("bad-duration", lambda us: RuleSet((), deadline_us=us)),
    ] = 0
    on_store_failure: _Failure = "allow"
    workers: Annotated[
        _Whole, _meant("bad-workers", lambda workers: RuleSet((), workers=workers))
    ] = 1
    share: Annotated[
        Fraction,
        BeforeValidator(_share),
        _meant("bad-share", lambda share: RuleSet((), share=share)),
    ] = Fraction(1)
    trusted_proxies: list[
        Annotated[
            _NetworkItem,
            _meant("trusts-everyone", lambda one: RuleSet((), trusted_proxies=(one,))),
        ]
    ] = []
    allowlist: list[_NetworkItem] = []
    denylist: list[_NetworkItem] = []
    headers: list[Literal["draft", "legacy"]] = []


_NEEDED: Final[dict[str, Any]] = {"version": "1", "rules": [], "name": "a", "limit": "1/second"}
"""What stands in for a required key that has a mistake, while the others are looked at."""

_ALLOWED: Final = {
    "string_type": "it is text",
    "int_type": "it is a whole number",
    "list_type": "it is a list",
    "by_type": "it is text, or a list of texts",
    "dict_type": "it is a mapping",
    "model_type": "it is a mapping",
}


class _Checker:
    """The tree's values, and the mistakes in them."""

    def __init__(self, mistakes: Mistakes) -> None:
        self.mistakes = mistakes

    def rule_set(self, root: Node) -> RuleSet | None:
        values, _ = self.fields(_FileFields, root, "")
        rules_node = root.value.get("rules") if isinstance(root.value, dict) else None
        rules: list[Rule] = []
        lines: dict[str, int] = {}
        if rules_node is not None and isinstance(rules_node.value, list):
            if not rules_node.value:
                self.add(
                    rules_node, "rules", "the list is empty; a rule file has rules", "no-rules"
                )
            for number, node in enumerate(rules_node.value):
                rule = self.rule(node, below("rules", number))
                self.name(node, below("rules", number), lines)
                if rule is not None:
                    rules.append(rule)
        if self.mistakes:
            return None
        if "deadline" in values:
            values["deadline_us"] = values.pop("deadline")
        values.pop("version")
        try:
            return RuleSet(**values | {"rules": tuple(rules)})
        except ValueError as error:
            self.add(rules_node or root, "rules", str(error), "same-policy")
            return None

    def fields(
        self, model: type[_Strict], node: Node, place: str
    ) -> tuple[dict[str, Any], set[str]]:
        """The fields that are given and of their types, and the names of those that are not."""
        plain = node.plain()
        bad: set[str] = set()
        try:
            checked = model.model_validate(plain)
        except ValidationError as error:
            for each in error.errors(include_url=False):
                self.mistyped(model, node, place, each)
                loc = each["loc"]
                bad |= {"path", "methods"} if loc == ("match",) else set()
                bad |= {str(loc[1 if loc[0] == "match" and len(loc) > 1 else 0])} if loc else set()
                _drop(plain, loc)
            if not isinstance(plain, dict):
                return {}, bad
            needed = {key: _NEEDED[key] for key in _NEEDED if key in model.model_fields}
            checked = model.model_validate(needed | plain)
        return {key: getattr(checked, key) for key in checked.model_fields_set}, bad

    def mistyped(self, model: type[_Strict], node: Node, place: str, error: Any) -> None:
        """Reports one of pydantic's errors at its place."""
        loc, kind = error["loc"], error["type"]
        node, place = node.at(place, loc[:-1] if kind == "extra_forbidden" else loc)
        context = error.get("ctx", {})
        if kind == "missing":
            self.add(
                node, below(place, loc[-1]), f"the key {loc[-1]!r} is missing; it must be given",
                "missing-key", secret=(),
            )  # fmt: skip
        elif kind == "extra_forbidden":
            in_match = loc[0] == "match" and len(loc) > 1
            known = (_Match if in_match else model).model_fields
            key_node = node.keys[loc[-1]]
            names = [*known, *(_Match.model_fields if model is _RuleFields else ())]
            near = get_close_matches(key_node.shown, names, 1, 0.5)
            allowed = f"known are {', '.join(known)}"
            if near:
                allowed = f"did you mean {near[0]!r}" + ("" if near[0] in known else " in 'match'")
            self.add(
                key_node, below(place, key_node.shown),
                f"the key {shown(key_node.shown)} is unknown; {allowed}", "unknown-key", secret=(),
            )  # fmt: skip
        elif kind == "refused":
            self.add(node, place, context["message"], context["code"])
        elif kind == "literal_error":
            code = f"bad-{loc[0].replace('_', '-')}"
            self.add(node, place, f"{node}; it is {context['expected']}", code)
        else:
            hint = ""
            if kind == "string_type" and isinstance(node.value, dict):
                hint = ", in quotes where it holds a colon or a brace"
            self.add(node, place, f"{node}; {_ALLOWED[kind]}{hint}", "wrong-type")

    def rule(self, node: Node, place: str) -> Rule | None:
        """The rule at a node; None where it has a mistake."""
        values, bad = self.fields(_RuleFields, node, place)
        if not isinstance(node.value, dict):
            return None
        matched = values.pop("match", None)
        if matched is not None:
            values |= {key: getattr(matched, key) for key in matched.model_fields_set}
        if "algorithm" in bad:  # the one under which every text of a limit can be read
            values["algorithm"] = "token_bucket"
        failed: set[object] = set()
        for loc, code, arguments in _trials(values):
            field = str(loc[0])
            others = arguments.keys() - ({field, "algorithm"} if field == "limit" else {field})
            if bad & {*others, field} or failed & {*others, loc, *loc[: len(loc) == 1]}:
                continue
            try:
                Rule(**{"name": "a", "limit": "1/second"} | arguments)
            except (ValueError, TypeError) as error:
                at, under = node.at(place, loc)
                secret = _variables(node, loc, arguments)
                self.add(at, under, str(error), code, secret=secret)
                failed |= {field, loc}
        return None if bad or failed else Rule(**values)

    def name(self, rule: Node, place: str, lines: dict[str, int]) -> None:
        """Reports a rule that is named like an earlier one."""
        node = rule.value.get("name") if isinstance(rule.value, dict) else None
        if node is None or not isinstance(node.value, str) or not node.value:
            return
        if node.value.lower() not in lines:
            lines[node.value.lower()] = node.line
            return
        self.add(
            node, below(place, "name"),
            f"{shown(node.shown)} is the name of the rule on line {lines[node.value.lower()]}, in "
            "any case; each has its own", "same-name", secret=(),
        )  # fmt: skip

    def add(
        self, node: Node, place: str, message: str, code: str, secret: tuple[str, ...] | None = None
    ) -> None:
        """Notes a mistake; its sentence only where no value from the environment could be in it."""
        names = node.variables if secret is None else secret
        if self.mistakes.unset.intersection(names):
            return  # which is a mistake already
        if names:
            source = ", ".join(f"${{{name}}}" for name in names)
            message = f"the value of {source} does not fit; set it to what is allowed here"
        self.mistakes.add(node.line, node.column, place, message, code)


def _trials(
    values: Mapping[str, Any],
) -> Iterator[tuple[tuple[str | int, ...], str, dict[str, Any]]]:
    """What to ask `Rule`, in order: the place and the code of a refusal, and the arguments."""

    def some(*names: str) -> dict[str, Any]:
        return {name: values[name] for name in names if name in values}

    def path_of(*parts: str) -> dict[str, Any]:
        named = any(part.startswith("path:") for part in parts)
        return {"path": values.get("path")} if named else {}

    counted = ("limit", "algorithm", "burst", "rounding", "max_delay")
    yield ("limit",), "bad-limit", some("limit", "algorithm")
    for option in counted[2:]:
        if option in values:
            code = f"bad-{option.replace('_', '-')}"
            yield (option,), code, some("limit", "algorithm", option)
    if "cost" in values:
        yield ("cost",), "bad-cost", some(*counted, "cost")
    by = values.get("by", ["client"])
    for number, part in enumerate(by[:10]):
        yield ("by", number), "bad-by", {"by": [part], **path_of(part)}
    if "by" in values:
        yield ("by",), "bad-by", some("by", "path")
    for identity, limit in values.get("overrides", {}).items():
        first = some("by") and {"by": by[:1], **path_of(*by[:1])}
        at = "overrides", identity
        yield at, "bad-override", first | {"overrides": {identity: "1/second"}}
        arguments = some(*counted, "cost") | first | {"overrides": {identity: limit}}
        yield at, "bad-override", arguments
    yield ("overrides",), "bad-override", dict(values)


def _variables(
    rule: Node, loc: tuple[str | int, ...], arguments: Mapping[str, Any]
) -> tuple[str, ...]:
    """The environment's variables that a sentence about these arguments could show."""
    fields: dict[str, Node] = rule.value if isinstance(rule.value, dict) else {}
    nodes: list[Node] = []
    for name in arguments:
        field = fields.get("match" if name in ("path", "methods") else name)
        if field is not None and name == loc[0] and len(loc) > 1:
            key = loc[1]
            nodes += [field.keys[key]] if isinstance(key, str) else []
            field = field.child(key) or field  # `by` may be one text
        nodes += [field] if field is not None else []
    return tuple(dict.fromkeys(name for each in nodes for name in each.variables))


def _drop(plain: Any, loc: tuple[str | int, ...]) -> None:
    """Takes the innermost entry of a mapping that is on the way to a mistake out of the values."""
    holder, last = None, None
    for key in loc:
        if not isinstance(plain, dict):
            break
        if key not in plain:
            return
        holder, last = plain, key
        plain = plain[key]
    if holder is not None:
        del holder[last]


def _built(root: Node | None, mistakes: Mistakes) -> RuleSet:
    rule_set = None if root is None else _Checker(mistakes).rule_set(root)
    if rule_set is None:
        raise RuleFileError(tuple(sorted(mistakes, key=lambda each: each[1:3])))
    return rule_set
