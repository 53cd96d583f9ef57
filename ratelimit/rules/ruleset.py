"""All rules, and what holds for all of them: `RuleSet`; which of them a request matches.

Pure and frozen, but for what it prepares and keeps.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from os import PathLike
from typing import Any, Final

from ratelimit.identity.addresses import Network
from ratelimit.identity.networks import Networks
from ratelimit.limits import Algorithm
from ratelimit.rules.matching import Found, Index, Matching
from ratelimit.rules.options import FILE
from ratelimit.rules.replacing import misplaced
from ratelimit.rules.rule import Rule, TooManyLimits
from ratelimit.rules.shed import Shed
from ratelimit.rules.sockets import KEYS, policy_of
from ratelimit.rules.values import LISTS_OF_HOPS, OnStoreFailure, Preflights
from ratelimit.words import shown

__all__ = ["Rule", "RuleSet", "TooManyLimits"]

MOST_AT_ONCE: Final = 500
"""Limits of one request; the in-process store has the same bound."""
ATTRIBUTES: Final = {"deadline": "deadline_us", "retry_jitter": "retry_jitter_us"}
"""Options that a file writes as durations, and what is kept of them."""


@dataclass(frozen=True)
class RuleSet:
    """The rules in the order of the file, and what holds for all of them; equal by value.

    Raises ValueError or TypeError, in one sentence: two rules of one name (in any case), a store
    that is not a URI, a deadline outside 1 ms to 60 s, proxies that would be everyone, or two ways
    to tell the client's address.
    """

    rules: Sequence[Rule]
    """Held as a tuple, as all the lists are."""
    store: str = field(default="memory://", repr=False)  # a URI may hold a password
    deadline_us: int = 50_000
    """The time that a decision may take, in microseconds."""
    on_store_failure: OnStoreFailure = "allow"
    workers: int = 1
    """Workers that share a quota which is counted locally, until heartbeats were seen."""
    share: Fraction = Fraction(1)
    """The part of every quota that is this region's, above 0 and at most 1."""
    trusted_proxies: Sequence[Network] = ()
    trusted_hops: int = 0
    """The number of proxies that stand in front, instead of their networks; at most 32."""
    forwarded_header: str = "x-forwarded-for"
    """The field in which the proxies write where a request came from."""
    ipv6_prefix: int = 64
    """The number of bits of an IPv6 address that are one client, 16 to 128."""
    allowlist: Sequence[Network] = ()
    denylist: Sequence[Network] = ()
    """Beats the allowlist."""
    headers: Sequence[Any] = ("draft",)
    """Dialects: names, or functions such as those in ratelimit.responses.headers."""
    retry_jitter_us: int = 0
    """At most so much is added to `Retry-After`, by chance; at most 60 s."""
    retry_hints: bool = False
    """Whether refusals carry `retry-after-ms`, or `x-should-retry: false`."""
    secret: str | Sequence[str] = field(default=(), repr=False)
    """Secrets that sign tokens of reservations, the first, and that may have signed one, each."""
    shed: Shed | Mapping[str, str] | None = None
    """The lateness above which requests are shed, ``{"lag": "20ms"}``; None for never."""
    preflights: Preflights = "free"
    """Whether a browser's CORS preflights count where a rule does not name OPTIONS."""
    files: tuple[str, ...] = field(default=(), compare=False, repr=False)
    """The files that were read for this."""
    allowed_clients: Networks = field(init=False, repr=False, compare=False)
    """``allowlist`` for looking up, and for a limiter to copy; made where the rules are read."""
    denied_clients: Networks = field(init=False, repr=False, compare=False)
    index: Index = field(init=False, repr=False, compare=False)
    """The rules as requests find them."""
    find: Callable[..., Found] = field(init=False, repr=False, compare=False)
    """`Index.find`: the rules for a method, a path and a host, and the plan of these rules."""

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "rules", tuple(self.rules))
        given = {key: getattr(self, ATTRIBUTES.get(key, key)) for key in FILE}
        for key, value in FILE.read(given).items():
            put(self, ATTRIBUTES.get(key, key), value)
        if self.trusted_hops and self.trusted_proxies:
            raise ValueError("both trusted_hops and trusted_proxies are given; give one of them")
        if self.trusted_hops and self.forwarded_header not in LISTS_OF_HOPS:
            raise ValueError(
                f"{self.forwarded_header} holds one address, so that no hops can be counted in it; "
                "give trusted_proxies instead of trusted_hops"
            )
        put(self, "allowed_clients", Networks(self.allowlist))
        put(self, "denied_clients", Networks(self.denylist))
        _unique_names(self.rules)
        for mistake in misplaced(dict(enumerate(self.rules))):
            raise ValueError(f"rule {self.rules[mistake.rule].name!r} replaces: {mistake.message}")
        put(self, "index", Index(self.rules))
        put(self, "find", self.index.find)
        _few_at_once(self.rules)

    def in_force(self) -> "RuleSet":
        """This set with every quota cut to this region's share, which is then 1.

        Raises ValueError where a rule's cost could no longer pass.
        """
        if self.share == 1 and self.ipv6_prefix == 64:
            return self
        rules = tuple(rule.in_force(self.share, self.ipv6_prefix) for rule in self.rules)
        return replace(self, rules=rules, share=Fraction(1))

    def counted_by(self, algorithm: Algorithm) -> "RuleSet":
        """This set with every limit counted by one algorithm, for a comparison."""
        return replace(self, rules=tuple(rule.counted_by(algorithm) for rule in self.rules))

    def without_concurrency(self) -> "RuleSet":
        """This set without concurrencies, as for a log, which tells no ends of requests."""
        if all(rule.concurrency is None for rule in self.rules):
            return self
        return replace(self, rules=tuple(rule.without_concurrency() for rule in self.rules))

    @classmethod
    def load(cls, path: str | PathLike[str]) -> "RuleSet":
        """The rules in a YAML file. Raises RuleFileError with every mistake in it at once."""
        from ratelimit.rules.file import reader  # noqa: PLC0415  # which loads pydantic and PyYAML

        return reader.load(path, cls._of)

    @classmethod
    def loads(cls, text: str, name: str = "<rules>") -> "RuleSet":
        """The rules in YAML text. Raises as `load` does.

        ``name`` stands for the file: in mistakes, and for the lists that are looked for beside it.
        """
        from ratelimit.rules.file import reader  # noqa: PLC0415  # which loads pydantic and PyYAML

        return reader.loads(text, name, cls._of)

    @classmethod
    def _of(
        cls, rules: tuple[Rule, ...], files: tuple[str, ...], top: Mapping[str, Any]
    ) -> "RuleSet":
        of_file = {ATTRIBUTES.get(key, key): value for key, value in top.items()}
        return cls(rules, files=files, **of_file)

    def matching(self, method: str, path: str, host: str = "") -> Matching:
        """Every rule that applies and is not off, in order, each with the path's parameters.

        ``host`` is in lower case, without port and final dot; no rule with a host applies to "".

        Looks only at rules whose literal start is the path's own, so the number of other rules
        does not matter. The list is not to be changed.
        """
        return self.find(method, path, host)[0]

    def without_preflight(self, matching: Matching, scope: Mapping[str, Any]) -> Matching:
        """Leaves a browser's question before a request alone, except to rules that name OPTIONS."""
        if self.preflights == "count" or scope["method"] != "OPTIONS":
            return matching
        names = {name for name, _ in scope.get("headers", ())}
        if not names >= {b"origin", b"access-control-request-method"}:
            return matching
        return [each for each in matching if "OPTIONS" in (each[0].methods or ())]

    @property
    def registered_names(self) -> frozenset[str]:
        """The parts of ``by`` that the application must have registered."""
        return frozenset().union(*(rule.registered_names for rule in self.rules))


def _few_at_once(rules: Iterable[Rule]) -> None:
    """Refuses more limits for one request than a store decides at once: none would be counted."""
    by_path: Counter[str | None] = Counter()
    for rule in rules:
        if rule.mode != "off":
            groups = (rule.limits, *rule.tiers.values(), *rule.overrides.values())
            held = (rule.concurrency is not None) + (rule.ban is not None)
            by_path[rule.path] += max(map(len, groups)) + held
    always = by_path.pop(None, 0)
    path, most = max(by_path.items(), key=lambda each: each[1], default=(None, 0))
    if always + most > MOST_AT_ONCE:
        of = "to every request" if path is None else f"to one request for {shown(path)}"
        raise TooManyLimits(f"{always + most} limits would apply {of}; at most {MOST_AT_ONCE}")


def _unique_names(rules: Iterable[object]) -> None:
    names: set[str] = set()
    policies: dict[str, str] = {}
    for rule in rules:
        if not isinstance(rule, Rule):
            raise TypeError(f"a RuleSet holds Rule objects, not {type(rule).__name__}")
        # Policy names may become case-insensitive (ietf-wg-httpapi/ratelimit-headers#166).
        if rule.name.lower() in names:
            raise ValueError(
                f"two rules are named {shown(rule.name)}; each has its own name, in any case"
            )
        names.add(rule.name.lower())
        flow = rule.websocket
        messages = [policy_of(rule.name, what) for what in KEYS[:2] if getattr(flow, what, None)]
        for policy in (*rule.policies, *messages):
            other = policies.setdefault(policy.lower(), rule.name)
            if other != rule.name:
                raise ValueError(
                    f"rules {other!r} and {rule.name!r} would both be shown to clients as "
                    f"{policy!r}; rename one"
                )
