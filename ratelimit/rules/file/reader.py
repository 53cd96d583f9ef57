"""A rule file in YAML to the arguments of a `RuleSet`, or every mistake in it with its line.

The keys hold each value to its type; what it means is read by its option, once, and a refusal is
noted at the line that it is about. A sentence that could show a value from the environment is
replaced.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from keyword import iskeyword
from typing import Any, Final, NamedTuple, TypeVar

from pydantic import ValidationError

from ratelimit.rules.file.contradictions import contradictions
from ratelimit.rules.file.keys import (
    MATCH_KEYS,
    NEEDED,
    FileKeys,
    Keys,
    MatchKeys,
    RuleKeys,
)
from ratelimit.rules.file.lists import Lists, Override
from ratelimit.rules.file.mistakes import Mistake, RuleFileError
from ratelimit.rules.file.yaml import (
    MOST_MISTAKES,
    Mistakes,
    Node,
    TooManyMistakes,
    below,
    identity_shown,
    named,
    read,
    text_of,
)
from ratelimit.rules.options import FILE, RULE
from ratelimit.rules.overriding import BadIdentity, GivenTwice, is_address
from ratelimit.rules.reading import Coded, Enough, Note, Options, Place, UnknownKey
from ratelimit.rules.rule import Rule, TooManyLimits
from ratelimit.words import near, shown

__all__ = ["load", "loads"]

MOST_OF_LIST: Final = 20
"""Most mistakes that are shown of one list: a wrong file has one in every line."""

T = TypeVar("T")
Build = Callable[..., T]
"""Makes a rule set of `rules`, `files` and the options of a file; raises ValueError."""


def load(path: str | os.PathLike[str], build: Build[T]) -> T:
    """The rules in the YAML file at ``path``; ``${NAME}`` is taken from the environment.

    Raises RuleFileError with every mistake at once, those of the files that it names among them,
    also where a file cannot be read.
    """
    name = os.fspath(path)
    mistakes = Mistakes(name, MOST_MISTAKES)
    text = text_of(name, mistakes)
    root = None if text is None else read(text, os.environ, mistakes)
    return _built(root, mistakes, (name,), build)


def loads(text: str, name: str, build: Build[T]) -> T:
    """The rules in YAML text. Raises as `load` does.

    ``name`` stands for the file: in mistakes, and for the lists that are looked for beside it.
    """
    if not isinstance(text, str):
        raise TypeError(f"rules are text, not {type(text).__name__}")
    mistakes = Mistakes(name, MOST_MISTAKES)
    return _built(read(text, os.environ, mistakes), mistakes, (), build)


def _built(root: Node | None, mistakes: Mistakes, files: tuple[str, ...], build: Build[T]) -> T:
    checker = _Checker(mistakes)
    rule_set = None
    if root is not None:
        with suppress(TooManyMistakes):
            rule_set = checker.rule_set(root, files, build)
    if rule_set is not None and mistakes.at_least is not None:
        mistakes.append(mistakes.at_least)
        rule_set = None
    if rule_set is None:
        found = tuple(_in_order(mistakes, *checker.of_lists))
        raise RuleFileError(found, tuple(checker.lists.files))
    return rule_set


def _in_order(mistakes: Mistakes, *of_lists: Mistakes) -> Iterator[Mistake]:
    """The mistakes of the rule file, then those of each list."""
    yield from sorted(mistakes, key=_position)
    if mistakes.more is not None:
        yield mistakes.more
    for some in of_lists:
        first, rest = some[:MOST_OF_LIST], some[MOST_OF_LIST:]
        yield from sorted(first, key=_position)
        if rest:
            many = f"at least {len(rest)}" if some.cut else len(rest)
            message = f"the list has {many} more mistakes; is it another kind of file?"
            yield rest[0]._replace(message=message, code="more-mistakes")


def _position(mistake: Mistake) -> tuple[int, int]:
    return mistake.line, mistake.column


_ALLOWED: Final = {
    "string_type": "it is text",
    "int_type": "it is a whole number",
    "list_type": "it is a list",
    "by_type": "it is text, or a list of texts",
    "cost_type": "it is a whole number, or a registered name",
    "dict_type": "it is a mapping",
    "model_type": "it is a mapping",
}

_MODES: Final = {
    "on": "enforce", "yes": "enforce", "true": "enforce", "no": "off", "false": "off",
}  # fmt: skip
"""Boolean-like words, mapped to modes."""


class _Given(NamedTuple):
    """A rule as it is written, with everything needed to build it."""

    node: Node
    place: str
    keys: dict[str, Any]
    """The values in the rule file itself, those of ``match`` among them."""
    arguments: dict[str, Any]
    """The options of `RULE`: these values, and those of the lists."""
    listed: dict[str, Override]
    """The overrides of the list, whose mistakes go to ``of_list``."""
    of_list: Mistakes
    failed: set[str]
    """Options with a mistake."""


class _Checker:
    """The tree's values, and the mistakes in them."""

    def __init__(self, mistakes: Mistakes) -> None:
        self.mistakes = mistakes
        self.of_lists: list[Mistakes] = []
        self.lists = Lists(mistakes.file, self.of_lists)

    def rule_set(self, root: Node, files: tuple[str, ...], build: Build[T]) -> T | None:
        top, bad = self.fields(FileKeys, root, "")
        if not isinstance(root.value, dict):
            return None
        arguments = self.with_networks(top, root, "")
        reading = FILE.read(arguments, self.noting(FILE, root, ""), bad)
        node = root.value.get("rules", root)
        given = self.rules(node) if "rules" in root.value else {}
        rules = {number: rule for number, (rule, _) in given.items() if rule is not None}
        keys = {number: one for number, (_, one) in given.items()}
        for found in contradictions(top, rules, keys, bad, set(self.names(node))):
            at, place = root.at("", found.place)
            nodes = [at, *(root.at("", other)[0] for other in found.against)]
            secret = tuple(dict.fromkeys(name for each in nodes for name in each.variables))
            self.add(at, place, found.message, found.code, secret)
        if self.mistakes or any(self.of_lists):
            return None
        try:
            rule_set = build(tuple(rules.values()), (*files, *self.lists.files), reading)
        except TooManyLimits as error:
            self.add(node, "rules", str(error), "too-many-limits")
            return None
        except ValueError as error:
            self.add(node, "rules", str(error), "same-policy")
            return None
        self.in_force(rules, reading, node)
        return None if self.mistakes else rule_set

    def names(self, node: Node) -> Iterator[str]:
        """The names of all rules, whatever else of them is wrong."""
        for each in node.value if isinstance(node.value, list) else ():
            if isinstance(each.value, dict) and "name" in each.value:
                yield str(each.value["name"].value)

    def rules(self, node: Node) -> dict[int, tuple[Rule | None, dict[str, Any]]]:
        """The rules by number, None for one with a mistake; and the values that the file has."""
        if not isinstance(node.value, list):
            return {}
        found: dict[int, tuple[Rule | None, dict[str, Any]]] = {}
        lines: dict[str, int] = {}
        for number, each in enumerate(node.value):
            place = below("rules", number)
            given = self.given(each, place)
            self.name(each, place, lines)
            if given is not None:
                found[number] = self.rule(given), given.keys
        return found

    def in_force(self, rules: Mapping[int, Rule], top: Mapping[str, Any], node: Node) -> None:
        """Reports rules that a region's share leaves no room for."""
        for number, rule in rules.items():
            try:
                rule.in_force(top["share"], top["ipv6_prefix"])
            except ValueError as error:
                at, place = node.at("rules", (number, "cost"))
                message = f"with the file's share of {top['share']}, {error}"
                self.add(at, place, message, "bad-cost", node.variables)

    def fields(self, model: type[Keys], node: Node, place: str) -> tuple[dict[str, Any], set[str]]:
        """The given values of the right type, and the keys of the others."""
        plain = node.plain()
        bad: set[str] = set()
        try:
            checked = model.model_validate(plain)
        except ValidationError as error:
            for each in error.errors(include_url=False):
                self.mistyped(model, node, place, each)
                loc = each["loc"]
                if loc == ("match",):
                    bad |= set(map(_keyword, MATCH_KEYS))
                elif loc:
                    bad.add(_keyword(str(loc[loc[0] == "match"])))
                _drop(plain, loc)
            if not isinstance(plain, dict):
                return {}, bad
            needed = {key: NEEDED[key] for key in NEEDED if key in model.model_fields}
            checked = model.model_validate(needed | plain)
        return {key: getattr(checked, key) for key in checked.model_fields_set}, bad

    def mistyped(self, model: type[Keys], node: Node, place: str, error: Any) -> None:
        """Reports one of pydantic's errors at its place."""
        loc, kind = error["loc"], error["type"]
        node, place = node.at(place, loc[:-1] if kind == "extra_forbidden" else loc)
        context = error.get("ctx", {})
        if kind == "missing":
            self.missing(node, place, loc[-1])
        elif kind == "extra_forbidden":
            in_match = loc[0] == "match" and len(loc) > 1
            known = (MatchKeys if in_match else model).model_fields
            key_node = node.keys[loc[-1]]
            names = [*known, *(MatchKeys.model_fields if model is RuleKeys else ())]
            hint = near(
                key_node.shown, names,
                write=lambda key: repr(key) if key in known else f"{key!r} in 'match'",
            )  # fmt: skip
            self.add(
                key_node, below(place, key_node.shown) if named(key_node.shown) else place,
                f"the key {named(key_node.shown)}is unknown"
                f"{hint or '; known are ' + ', '.join(known)}", "unknown-key", (),
            )  # fmt: skip
        elif kind == "refused":
            self.add(node, place, context["message"], context["code"])
        elif kind == "literal_error":
            code = f"bad-{loc[0].replace('_', '-')}"
            meant = _MODES.get(str(node.value).lower()) if loc == ("mode",) else None
            hint = f"; write {meant!r} for that" if meant else ""
            self.add(node, place, f"{node}; it is {context['expected']}{hint}", code)
        else:
            hint = ""
            if kind == "string_type" and isinstance(node.value, dict):
                hint = ", in quotes where it holds a colon or a brace"
            self.add(node, place, f"{node}; {_ALLOWED[kind]}{hint}", "wrong-type")

    def given(self, node: Node, place: str) -> _Given | None:
        """A rule's values, with those of its lists; None where it is not a mapping."""
        keys, failed = self.fields(RuleKeys, node, place)
        if not isinstance(node.value, dict):
            return None
        matched = keys.pop("match", None)
        if matched is not None:
            of_match = {key: getattr(matched, key) for key in matched.model_fields_set}
            keys |= {_keyword(key): value for key, value in of_match.items()}
        unclear = self.tiered(node, place)
        arguments = self.with_networks(keys, node, place)
        if "limits" in arguments:
            arguments["limit"] = arguments.pop("limits")
        for key in unclear:
            arguments.pop(key, None)
        failed |= unclear | ({"limit"} if "limits" in failed else set())
        listed: dict[str, Override] = {}
        of_list = Mistakes("")
        if "overrides_file" in arguments:
            del arguments["overrides_file"]
            found = self.listed("overrides_file", keys, node, place, self.lists.overrides)
            if found is None:
                failed.add("overrides")
            else:
                listed, of_list = found
                own = keys.get("overrides", {})
                arguments["overrides"] = own | {
                    identity: each.limit for identity, each in listed.items() if identity not in own
                }
        return _Given(node, place, keys, arguments, listed, of_list, failed)

    def tiered(self, node: Node, place: str) -> set[str]:
        """Holds a rule to ``limit``, or to ``limits`` with ``tier``; gives the keys in error."""
        keys = node.keys
        failed: set[str] = set()
        if keys.keys().isdisjoint(("limit", "limits", "concurrency")):
            self.missing(node, place, "limit")
            failed.add("limit")
        if "limit" in keys and "limits" in keys:
            self.add(
                keys["limits"], below(place, "limits"),
                "limits are given beside limit; a rule has one of them", "both-limits", (),
            )  # fmt: skip
            failed |= {"limit", "limits", "tier"}
        if "limits" in keys and "tier" not in keys:
            self.missing(node, place, "tier")
            failed.add("tier")
        if "tier" in keys and "limits" not in keys:
            self.add(
                keys["tier"], below(place, "tier"),
                "tier is given, but no limits to choose from; it goes with limits",
                "pointless-tier", (),
            )  # fmt: skip
            failed.add("tier")
        return failed

    def with_networks(self, keys: Mapping[str, Any], node: Node, place: str) -> dict[str, Any]:
        """The values, with the networks of the files that are named in place of their names."""
        values = dict(keys)
        for name in ("allowlist", "denylist"):
            if f"{name}_file" in values:
                del values[f"{name}_file"]
                found = self.listed(f"{name}_file", keys, node, place, self.lists.networks)
                values[name] = [*keys.get(name, ()), *(found[0] if found else ())]
        return values

    def listed(
        self, key: str, keys: Mapping[str, Any], node: Node, place: str,
        read: Callable[[str, str, str], tuple[T, Mistakes]],
    ) -> tuple[T, Mistakes] | None:  # fmt: skip
        """The contents of the file named under a key; None where it cannot be read."""
        at, place = node.at(place, (key,))
        # Where the name is taken from the environment, mistakes show it as it is written.
        title = at.shown if at.variables else os.fspath(self.lists.folder / at.shown)
        try:
            return read(keys[key], title, place)
        except ValueError as error:
            self.add(at, place, f"{shown(at.shown)}: {error}", "unreadable", ())
            return None

    def rule(self, given: _Given) -> Rule | None:
        """The rule; None where it has a mistake."""
        own = given.keys.get("overrides", {})
        for identity in given.listed.keys() & own.keys():
            self.given_twice(given, identity, identity)
        note = self.noting(RULE, given.node, given.place)

        def of_rule(place: Place, error: Exception) -> None:
            if place[0] == "overrides" and len(place) > 1:
                self.of_override(given, str(place[1]), error)
            else:
                note(place, error)

        reading = RULE.read(given.arguments, of_rule, given.failed)
        if reading.failed or given.listed.keys() & own.keys():
            return None
        try:
            return Rule.of(reading)
        except (ValueError, TypeError) as error:
            self.add(given.node, given.place, str(error), "bad-rule")
            return None

    def noting(self, known: Options, node: Node, place: str) -> Note:
        """Reports the mistakes of a mapping's options, each at its place."""

        def note(loc: Place, error: Exception) -> None:
            key = str(loc[0])
            option = known[key]
            if key == "limit" and "limits" in node.keys:
                loc = ("limits", *loc[1:])
            if option.inside:
                loc = (option.inside, key.rstrip("_"), *loc[1:])
            at, where = node.at(place, loc)
            if isinstance(error, UnknownKey):
                at = node.at("", loc[:-1])[0].keys[str(loc[-1])]
            code = option.code or f"bad-{key.replace('_', '-')}"
            if isinstance(error, Coded):
                code = error.code
            secret = self.variables(node, loc, (*option.needs, *option.shows))
            self.add(at, where, str(error), code, secret)

        return note

    def of_override(self, given: _Given, identity: str, error: Exception) -> None:
        """Reports an override with a mistake."""
        if isinstance(error, GivenTwice):
            self.given_twice(given, identity, error.first)
        else:
            of_limit = not isinstance(error, BadIdentity)
            self.override(given, identity, str(error), "bad-override", of_limit=of_limit)

    def given_twice(self, given: _Given, identity: str, first: str) -> None:
        """Reports an override whose identity is that of another, in the list or before it."""
        if first in given.keys.get("overrides", ()):
            key = given.node.at("", ("overrides",))[0].keys[first]
            where, name = f"line {key.line} of the rule file", key.shown
        else:
            where, name = f"line {given.listed[first].line}", first
        known = f", as {shown(name)}" if first != identity and is_address(first) else ""
        message = f"{identity_shown(identity)} is given on {where} already{known}; give it once"
        self.override(given, identity, message, "same-override")

    def override(
        self, given: _Given, identity: str, message: str, code: str, *, of_limit: bool = False
    ) -> None:
        """Reports an override, in the list if it is there."""
        loc: Place = ("overrides", identity)
        listed = given.listed.get(identity)
        if listed is None:
            secret = self.variables(given.node, loc, _OF_OVERRIDES)
            at, place = given.node.at(given.place, loc)
            self.add(at, place, message, code, secret)
            return
        secret = self.variables(given.node, ("overrides",), _OF_OVERRIDES)
        if len(given.of_list) >= MOST_MISTAKES:
            given.of_list.cut = True
            raise Enough
        if not self.mistakes.unset.intersection(secret):
            column = listed.limit_column if of_limit else listed.column
            place = below(given.place, "overrides_file")
            given.of_list.add(listed.line, column, place, _hidden(secret) or message, code)

    def variables(self, rule: Node, loc: Place, uses: tuple[str, ...]) -> tuple[str, ...]:
        """The environment's variables that a sentence about a value could show."""
        fields: dict[str, Node] = rule.value if isinstance(rule.value, dict) else {}
        nodes = [rule.at("", loc)[0]]
        if len(loc) > 1:
            key = rule.at("", loc[:1])[0].keys.get(str(loc[1]))
            nodes += [key] if key is not None else []
        for name in uses:
            names = (
                ("match",)
                if name == "path"
                else ("limit", "limits")
                if name == "limit"
                else (name,)
            )
            nodes += [fields[each] for each in names if each in fields]
        return tuple(dict.fromkeys(name for each in nodes for name in each.variables))

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
            "any case; each has its own", "same-name", (),
        )  # fmt: skip

    def missing(self, node: Node, place: str, key: str) -> None:
        message = f"the key {key!r} is missing; it must be given"
        self.add(node, below(place, key), message, "missing-key", ())

    def add(
        self, node: Node, place: str, message: str, code: str, secret: tuple[str, ...] | None = None
    ) -> None:
        """Notes a mistake; its sentence only where no value from the environment could be in it."""
        names = node.variables if secret is None else secret
        if self.mistakes.unset.intersection(names):
            return  # which is a mistake already
        self.mistakes.add(node.line, node.column, place, _hidden(names) or message, code)


def _keyword(key: str) -> str:
    """The option of a key; some are words of Python's."""
    return f"{key}_" if iskeyword(key) else key


def _hidden(variables: tuple[str, ...]) -> str:
    """The sentence in place of one that could show these variables; empty where there are none."""
    if not variables:
        return ""
    source = ", ".join(f"${{{name}}}" for name in variables)
    return f"the value of {source} does not fit; set it to what is allowed here"


_OF_OVERRIDES: Final = (*RULE["overrides"].shows, *RULE["overrides"].needs)


def _drop(plain: Any, loc: Place) -> None:
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
