"""The keys of a rule file, with the type and the description of each.

pydantic holds the values to their types; what a value means is asked of `Rule` and `RuleSet`. The
JSON Schema and the table in the documentation are made of the same definitions.
"""

import re
from collections.abc import Callable
from fractions import Fraction
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from ratelimit.identity.addresses import Network, read_network
from ratelimit.limits import parse_duration_us
from ratelimit.rules.options import REGISTERED, Mode, OnMissing, OnStoreFailure
from ratelimit.rules.ruleset import LONGEST_JITTER_US, Header, RuleSet
from ratelimit.words import shown

__all__ = ["FileKeys", "Keys", "MatchKeys", "RuleKeys"]


def _refusal(code: str, message: str) -> PydanticCustomError:
    return PydanticCustomError("refused", "{message}", {"message": message, "code": code})


def _meant(
    code: str,
    option: str,
    build: Callable[[Any], Any] = lambda it: it,
    *,
    clear: Callable[[Any], bool] = lambda _: False,
) -> Any:
    """Asks `RuleSet` whether a value means anything, and takes its sentence as the mistake.

    What is ``clear`` needs no asking: a list may hold many.
    """

    def check(value: Any) -> Any:
        try:
            if not clear(value):
                RuleSet((), **{option: build(value)})
        except ValueError as error:
            raise _refusal(code, str(error)) from None
        return value

    return AfterValidator(check)


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


def _cost(value: object) -> object:
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


def _jitter_us(value: object) -> object:
    duration_us: Any = _duration_us(value)
    if duration_us > LONGEST_JITTER_US:
        longest = LONGEST_JITTER_US // 1_000_000
        raise _refusal("bad-duration", f"{shown(str(value))} is there; it is at most {longest} s")
    return duration_us


def _max_delay(value: object) -> object:
    if value == "none":
        return None
    duration_us: Any = _duration_us(value)
    return duration_us / 1_000_000


def _network(value: object) -> object:
    if not isinstance(value, str):
        raise PydanticCustomError("string_type", "a network")
    try:
        return read_network(value)
    except ValueError as error:
        raise _refusal("bad-network", str(error)) from None


def _part(value: object) -> object:
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


_Whole = Annotated[int, BeforeValidator(_whole)]
_Duration = Annotated[int, BeforeValidator(_duration_us)]
_Share = Annotated[Fraction, BeforeValidator(_part)]
_OneNetwork = Annotated[Network, BeforeValidator(_network)]
_Networks = list[_OneNetwork]


def _key(description: str, default: Any = None) -> Any:
    """A key that may be left out. Nobody sees its default, since only given keys are read."""
    return Field(default, description=description)


class Keys(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", arbitrary_types_allowed=True)


class MatchKeys(Keys):
    """The requests that a rule is for."""

    path: str = _key(
        "The decoded path below `root_path`, in Starlette's route syntax; every path if left out."
    )
    methods: list[str] = _key(
        "HTTP methods, GET standing for HEAD as well; every method if left out."
    )


class RuleKeys(Keys):
    """A rule: its requests, the identity it counts by, its limits and its mode."""

    name: str = Field(
        description="The rule's name in headers, logs and counters; each has its own, in any case."
    )
    match: MatchKeys = _key("Which requests the rule is for; every request if left out.")
    by: Annotated[list[str], BeforeValidator(_listed)] = _key(
        "What an identity is made of, one or a list: `client` (if left out), `global`, `route`, "
        "`user`, `header:NAME`, `cookie:NAME`, `query:NAME`, `path:NAME` or a registered name."
    )
    limit: str = _key("One limit or several, such as `5/second; 1000/hour`.")
    limits: dict[str, str] = _key(
        "Instead of `limit`: a limit, or `unlimited`, for each tier; the first holds where no "
        "known tier is chosen."
    )
    tier: str = _key(
        "Beside `limits`, who chooses the tier: `user:ATTRIBUTE`, `header:NAME` (believed from "
        "trusted proxies alone) or a registered name."
    )
    algorithm: str = _key(
        "How requests are counted: `sliding_counter` (if left out), `sliding_log`, "
        "`fixed_window`, `token_bucket` or `leaking_bucket`."
    )
    burst: _Whole = _key("What a bucket holds when full; the quota if left out.")
    rounding: Literal["down", "up"] = _key(
        "Which way a sliding counter rounds what is left of the window before; `down` if left out."
    )
    max_delay: Annotated[float | None, BeforeValidator(_max_delay)] = _key(
        "How long a leaking bucket may hold a request, or `none`; `10s` if left out."
    )
    cost: Annotated[int | str, BeforeValidator(_cost)] = _key(
        "Units that one request takes, or a registered name; 1 if left out."
    )
    mode: Mode = _key("`enforce` (if left out), `shadow` (it counts and refuses nobody) or `off`.")
    enforce_share: _Share = _key(
        "The part of all identities that is refused, such as `25%`; the others are in shadow."
    )
    on_store_failure: OnStoreFailure = _key(
        "What becomes of a request when the store fails: `allow` (if left out here and for the "
        "file), `deny` (503) or `local` (counted in the worker, at its share)."
    )
    on_missing: OnMissing = _key(
        "What becomes of a request that lacks a part of `by`: it counts by its address (`client`, "
        "if left out), the rule does not apply (`skip`), or it is refused with 403 (`refuse`)."
    )
    overrides: dict[str, str] = _key(
        "Limits, or `unlimited`, of single identities, by the first part of `by`."
    )
    overrides_file: str = _key(
        "A file of more overrides: on each line an identity, a space and its limit."
    )
    allowlist: _Networks = _key("Addresses and networks that the rule does not apply to.")
    allowlist_file: str = _key("A file of more of them, one a line.")
    denylist: _Networks = _key(
        "Addresses and networks that are refused with 403 where the rule matches; it beats the "
        "allowlist."
    )
    denylist_file: str = _key("A file of more of them, one a line.")


class FileKeys(Keys):
    """The rules, and what holds for all of them."""

    version: Literal["1"] = Field(description="The version of this format, which is 1.")
    rules: list[Any] = Field(description="The rules; all that match a request apply to it.")
    store: Annotated[str, _meant("bad-store", "store")] = _key(
        "Where the counters live; `memory://` if left out."
    )
    deadline: Annotated[_Duration, _meant("bad-duration", "deadline_us")] = _key(
        "How long a decision may take, 1 ms to 60 s; `50ms` if left out."
    )
    on_store_failure: OnStoreFailure = _key(
        "What becomes of a request when the store fails, where its rule does not say."
    )
    workers: Annotated[_Whole, _meant("bad-workers", "workers")] = _key(
        "How many workers share a quota for `local`, until heartbeats were seen; 1 if left out."
    )
    share: Annotated[_Share, _meant("bad-share", "share")] = _key(
        "The part of every quota that is this region's, such as `50%`; all of it if left out."
    )
    trusted_proxies: list[
        Annotated[
            _OneNetwork,
            _meant(
                "trusts-everyone",
                "trusted_proxies",
                lambda it: [it],
                clear=lambda it: it.prefixlen > 0,
            ),
        ]
    ] = _key("Networks of the proxies in front, whose word on a client's address is believed.")
    trusted_hops: Annotated[_Whole, _meant("bad-trusted-hops", "trusted_hops")] = _key(
        "Instead of `trusted_proxies`: how many proxies stand in front, at most 32."
    )
    forwarded_header: Literal["x-forwarded-for", "forwarded"] = _key(
        "The field in which the proxies write where a request came from; `x-forwarded-for` if "
        "left out."
    )
    ipv6_prefix: Annotated[_Whole, _meant("bad-ipv6-prefix", "ipv6_prefix")] = _key(
        "How many bits of an IPv6 address are one client, 16 to 128; 64 if left out."
    )
    allowlist: _Networks = _key("Addresses and networks that no rule applies to.")
    allowlist_file: str = _key("A file of more of them, one a line.")
    denylist: _Networks = _key(
        "Addresses and networks that are refused with 403; it beats the allowlist."
    )
    denylist_file: str = _key("A file of more of them, one a line.")
    headers: list[Header] = _key(
        "What clients are told: `draft` (if left out), `legacy`, `draft-03`, several, or none."
    )
    retry_jitter: Annotated[int, BeforeValidator(_jitter_us)] = _key(
        "At most so much is added to `Retry-After`, by chance; at most 60 s."
    )
    preflights: Literal["free", "count"] = _key(
        "Whether CORS preflights are `free` (if left out) or `count`, where a rule does not name "
        "OPTIONS."
    )


NEEDED: Final[dict[str, Any]] = {"version": "1", "rules": [], "name": "a"}
"""Values that stand in for required keys with a mistake, while the other keys are looked at."""
