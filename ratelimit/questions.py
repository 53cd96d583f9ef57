"""What one rule asks of the store about one request: under which key, how much, by which limits."""

from collections.abc import Callable, Mapping
from inspect import isawaitable
from typing import Any, Final, NamedTuple

from starlette.requests import HTTPConnection

from ratelimit.addresses import Address, Proxies
from ratelimit.decisions import Action
from ratelimit.headers import Refusal, forbid, unidentified
from ratelimit.identity import Identify, identity
from ratelimit.limits import Limit
from ratelimit.options import Ask
from ratelimit.rules import Rule, policy_names

__all__ = ["Question", "Registered", "Request", "TurnedAway", "question"]

_CHARGE: Final = int(Action.CHARGE)
_SHADOW: Final = int(Action.SHADOW)


class Registered(NamedTuple):
    """The functions over the connection that rules may name."""

    identities: Mapping[str, Identify]
    tiers: Mapping[str, Ask[str | None]]
    costs: Mapping[str, Ask[int]]


class Request(NamedTuple):
    """What a rule may look at."""

    scope: Mapping[str, Any]
    client: Address | None
    proxies: Proxies
    registered: Registered
    template: Callable[[], str | None]

    async def told(self, ask: Callable[[HTTPConnection], Any]) -> Any:
        """What the application says of it, sync or async."""
        answer = ask(HTTPConnection(dict(self.scope)))
        return await answer if isawaitable(answer) else answer


class Question(NamedTuple):
    """The checks of one rule: its ``limits`` on one ``key`` at one ``cost``."""

    limits: tuple[Limit, ...]
    policies: tuple[str, ...]
    key: str
    cost: int
    action: int


class TurnedAway(Exception):
    """A rule refuses the request without counting it."""

    def __init__(self, rule: str, refusal: Refusal) -> None:
        super().__init__(rule, refusal)
        self.rule = rule
        self.refusal = refusal


async def question(
    rule: Rule, path_params: Mapping[str, object], request: Request
) -> Question | None:
    """What a rule asks about a request that it matches; None where it does not apply after all.

    Raises TurnedAway where the client is on its denylist, or cannot be told and has to be, and
    whatever a function of the application's raises.
    """
    client = request.client
    if client is not None:
        if client in rule.denied_clients:
            raise TurnedAway(rule.name, forbid())
        if client in rule.allowed_clients:
            return None
    if rule.skip is not None and await request.told(rule.skip):
        return None
    found = await identity(
        rule.by,
        request.scope,
        client,
        route=request.template,
        path_params=path_params,
        registered=request.registered.identities,
        fall_back=rule.on_missing == "client",
    )
    if found is None:
        if rule.on_missing == "skip":
            return None
        raise TurnedAway(rule.name, unidentified())
    key, first = found
    limits, policies = await _limits(rule, first, request)
    if not limits:
        return None
    cost: Any = rule.cost
    if not isinstance(cost, int):
        cost = await request.told(request.registered.costs[cost] if isinstance(cost, str) else cost)
    action = _CHARGE
    if rule.mode == "shadow" or (rule.enforce_share != 1 and not rule.enforced_on(key)):
        action = _SHADOW
    return Question(limits, policies, key, cost, action)


async def _limits(
    rule: Rule, first: str, request: Request
) -> tuple[tuple[Limit, ...], tuple[str, ...]]:
    """The limits of a request, and their policies' names: an override's, a tier's, or its own."""
    limits = rule.overrides.get(first) if rule.overrides else None
    if limits is None and rule.dynamic is not None:
        limits = rule.read_limits(await request.told(rule.dynamic))
    elif limits is None and rule.tiers:
        limits = rule.tiers.get(await _tier(rule.tier, request) or "")
    if limits is None or limits is rule.limits:
        return rule.limits, rule.policies
    return limits, policy_names(rule.name, limits)


async def _tier(chooser: Any, request: Request) -> str | None:
    """The name of a request's tier, by the user, a trusted proxy's header, or the application."""
    scope = request.scope
    if not isinstance(chooser, str):
        found = await request.told(chooser)
    elif chooser.startswith("user:"):
        found = getattr(scope.get("user"), chooser.removeprefix("user:"), None)
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
