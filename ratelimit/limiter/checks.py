"""One rule and one request to the checks: under which key, how much, by which limits."""

# Else the annotations of a function within a function are made anew for each request.
from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from inspect import isawaitable
from typing import Any, Final, NamedTuple, TypeVar

from ratelimit.bans import Ban, covering
from ratelimit.concurrency import Concurrency
from ratelimit.decisions import Action
from ratelimit.identity.addresses import Address
from ratelimit.identity.connections import Ask, connection
from ratelimit.identity.keys import UNIDENTIFIED, Identify, identity, identity_of
from ratelimit.identity.proxies import Proxies
from ratelimit.identity.users import attribute, user_id
from ratelimit.limits import Limit
from ratelimit.responses.headers import Refusal, blocked, forbid, too_costly, unidentified
from ratelimit.rules.counting import MOST_COST
from ratelimit.rules.overriding import BLOCKED
from ratelimit.rules.policies import policy_names, with_concurrency
from ratelimit.rules.rule import Rule

__all__ = [
    "Question",
    "Registered",
    "Request",
    "TurnedAway",
    "is_enforced",
    "override_of",
    "question",
]

T = TypeVar("T")

_CHARGE: Final = int(Action.CHARGE)
_SHADOW: Final = int(Action.SHADOW)


class Registered(NamedTuple):
    """The functions over the connection that rules may name."""

    identities: Mapping[str, Identify]
    tiers: Mapping[str, Ask[str | None]]
    costs: Mapping[str, Ask[int]]
    priorities: Mapping[str, Ask[str | None]]


class Request(NamedTuple):
    """Everything that a rule may look at."""

    scope: Mapping[str, Any]
    client: Address | None
    proxies: Proxies
    registered: Registered
    template: Callable[[], str | None]
    failed: Callable[[str, str, Exception], None]
    """Told of a function that failed: whose it is, what comes of it, and why."""

    async def told(self, ask: Ask[T]) -> T:
        """The application's answer about it, sync or async."""
        answer: Any = ask(connection(self.scope))
        found: T = await answer if isawaitable(answer) else answer
        return found


class Question(NamedTuple):
    """The checks of one rule: its ``limits`` on one ``key`` at one ``cost``."""

    limits: tuple[Limit, ...]
    policies: tuple[str, ...]
    key: str
    cost: int
    action: int
    known: bool
    """Whether no other client could have picked its identity, so that it replaces what it names."""
    ban: Ban | None = None
    """The rule's ban, before these checks, where this identity can be banned."""


class TurnedAway(Exception):
    """A rule refuses the request, of an ``identity`` where it is known, without counting it."""

    def __init__(self, rule: str, refusal: Refusal, identity: str = "") -> None:
        super().__init__(rule, refusal)
        self.rule = rule
        self.refusal = refusal
        self.identity = identity


def refusal_of_blocked(rule: Rule) -> Refusal:
    """403 for an identity that the rule's overrides block."""
    return forbid() if rule.by == ("client",) else blocked()


async def question(  # noqa: PLR0912  # one step after the other, in the order of their cost
    rule: Rule,
    path_params: Mapping[str, object],
    request: Request,
    *,
    strict: bool,
    times: int = 1,
) -> Question | None:
    """The checks of a rule for a request that it matches; None where it does not apply after all.

    ``times`` is the number of times that the request counts.

    A client may be able to make a function of the application's fail, and must not gain by it:
    the request then counts by its address, at the first tier, at a cost of 1, and is not skipped.
    With ``strict``, and where no limit is left to count by, what the function raised is raised.

    Raises TurnedAway where the client is on the rule's denylist, or cannot be told and has to be.
    """
    client = request.client
    if client is not None:
        if client in rule.denied_clients:
            raise TurnedAway(rule.name, forbid(), client.key)
        if client in rule.allowed_clients:
            return None

    if rule.skip is not None:
        skips = request.told(rule.skip)
        if await _or(skips, False, rule, request, "the request is not skipped", strict=strict):
            return None
    fall_back = rule.on_missing == "client"
    try:
        found = await identity(
            rule.by,
            request.scope,
            client,
            route=request.template,
            path_params=path_params,
            registered=request.registered.identities,
            fall_back=fall_back,
        )
    except Exception as problem:
        if strict:
            raise
        request.failed(f"rule {rule.name!r}", "its identity is missing", problem)
        address = UNIDENTIFIED if client is None else client.key
        found = identity_of(("client",), [address]) if fall_back else None
    if found is None:
        if rule.on_missing == "skip":
            return None
        raise TurnedAway(rule.name, unidentified())
    key, first = found
    override = override_of(rule, key, first) if rule.overrides else None
    limits = None if override is None else rule.overrides[override]
    if limits is BLOCKED:
        if is_enforced(rule, key):
            raise TurnedAway(rule.name, refusal_of_blocked(rule), key)
        return None
    if limits is None and rule.dynamic is not None:
        limits = rule.read_limits(await request.told(rule.dynamic))
    elif limits is None and rule.tiers:
        found_tier = _tier(rule.tier, request)
        tier = await _or(found_tier, None, rule, request, "it is of the first tier", strict=strict)
        limits = rule.tiers.get(tier or "")
    is_own = limits is not None
    if limits is None:
        limits = rule.limits
    if not limits and (is_own or rule.tiers or rule.concurrency is None):
        return None  # it is unlimited, also in how many are under way at once
    limits = rule.asks if limits is rule.limits else with_concurrency(limits, rule.concurrency)
    cost = await cost_of(rule, request, strict=strict)
    asked = _asked(rule, limits, key, cost * times, override)
    return asked if rule.ban is None else asked._replace(ban=_ban(rule, rule.ban, asked, request))


def _asked(
    rule: Rule, limits: tuple[Limit, ...], key: str, cost: int, override: str | None
) -> Question:
    policies = rule.policies
    if limits is not rule.asks:
        policies = policy_names(rule.name, limits, rule.unit)
    enforced = is_enforced(rule, key)
    if cost > MOST_COST:  # which no check can carry, and a client may have chosen
        rates = [limit.capacity for limit in limits if not isinstance(limit, Concurrency)]
        if enforced and rates and min(rates) >= MOST_COST:
            raise TurnedAway(rule.name, too_costly(MOST_COST, policies), key)
        cost = MOST_COST
    known = rule.is_known(override)
    return Question(limits, policies, key, cost, _CHARGE if enforced else _SHADOW, known)


def _ban(rule: Rule, ban: Ban, asked: Question, request: Request) -> Ban | None:
    """The ban of a request's identity; None where that is not its bearer's alone."""
    client = request.client
    if "user" in rule.by and "client" not in rule.by and user_id(request.scope.get("user")):
        return covering(ban, len(asked.limits))
    if client is None or request.proxies.are_at(client, request.scope):
        # The address of all whose own is not known.
        return None
    return covering(ban, len(asked.limits))


def override_of(rule: Rule, key: str, first: str) -> str | None:
    """The text by which an identity has limits of its own: by all its parts, else by the first."""
    if len(rule.by) > 1:
        if "\0" + key in rule.overrides:
            return "\0" + key
        if first[:1] == "\0":  # of the application's own, which is not to name all parts
            return None
    return first if first in rule.overrides else None


def is_enforced(rule: Rule, key: str) -> bool:
    """Whether a rule has a say in what becomes of an identity."""
    return rule.mode == "enforce" and (rule.enforce_share == 1 or rule.enforced_on(key))


async def _or(
    answer: Awaitable[T], otherwise: T, rule: Rule, request: Request, words: str, *, strict: bool
) -> T:
    """The application's answer; where that fails, ``otherwise``, which is reported."""
    try:
        return await answer
    except Exception as problem:
        if strict:
            raise
        request.failed(f"rule {rule.name!r}", words, problem)
        return otherwise


async def cost_of(rule: Rule, request: Request, *, strict: bool = False) -> int:
    """The cost of a request by a rule; 1 where a function fails, unless ``strict``."""
    if isinstance(rule.cost, int):
        return rule.cost
    cost = _cost(rule.cost, request)
    return await _or(cost, 1, rule, request, "it costs 1", strict=strict)


async def _cost(given: Any, request: Request) -> int:
    """The cost that a function gives for a request; above 2^42 it can never pass."""
    cost = await request.told(request.registered.costs[given] if isinstance(given, str) else given)
    if type(cost) is not int:
        raise TypeError(f"the cost is a whole number, not {type(cost).__name__}")
    if cost < 0:
        raise ValueError("the cost is at least 0")
    return cost


async def _tier(chooser: Any, request: Request) -> str | None:
    """The name of a request's tier, by the user, a trusted proxy's header, or the application."""
    scope = request.scope
    if not isinstance(chooser, str):
        found = await request.told(chooser)
    elif chooser.startswith("user:"):
        found = attribute(scope.get("user"), chooser.removeprefix("user:"))
    elif chooser.startswith("header:"):
        if not request.proxies.trusts_peer(scope):
            return None  # a client does not choose its own tier
        wanted = chooser.removeprefix("header:").encode("latin-1")
        lines = [value for name, value in scope.get("headers", ()) if name == wanted]
        # What a proxy adds comes behind what a client has sent.
        found = lines[-1].decode("latin-1").strip() if lines else None
    else:
        found = await request.told(request.registered.tiers[chooser])
    if found is not None and not isinstance(found, str):
        raise TypeError(f"the tier {chooser!r} gave {type(found).__name__}, not text")
    return found
