"""Every option of a rule and of a rule file, each defined once.

An entry says how a rule file writes the option, its sentence in the documentation, and the function
that reads it, for `Rule` and `RuleSet` as for files. The keys of files, the JSON Schema and the
pages are made of these entries; `RuleOptions` is also the type of the keywords of `Rule`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from types import EllipsisType, MappingProxyType
from typing import Annotated, Any, Final, TypedDict, get_args, get_type_hints

from starlette.responses import Response

from ratelimit.bans import Ban
from ratelimit.concurrency import MOST, Until
from ratelimit.identity.addresses import Network
from ratelimit.identity.connections import Ask
from ratelimit.limits import Algorithm, Rounding
from ratelimit.rules import at_once, banning, charging, counting, overriding, sockets, values
from ratelimit.rules.reading import REQUIRED, Form, Option, Options
from ratelimit.rules.shed import PRIORITIES, Priority, priority, shed
from ratelimit.rules.values import (
    METHODS,
    MOST_WORKERS,
    Header,
    Mode,
    OnMissing,
    OnStoreFailure,
    Preflights,
    SomeLimits,
)

__all__ = ["FILE", "RULE", "RouteOptions", "RuleOptions"]


def _choice(about: str, words: Any, default: str | None, *, code: str = "") -> Option:
    choices = get_args(words)
    return Option(about, Form("word", choices), values.one_of(choices), default, code=code)


def _whole(about: str, least: int, most: int, default: int) -> Option:
    return Option(about, Form("whole", (), least, most), values.between(least, most), default)


def _networks(about: str, key: str) -> Option:
    also = f"{key}_file", Form("file"), "A file of more of them, one a line."
    return Option(about, Form("networks"), values.networks, (), also=also)


_COUNTED: Final = ("limit", *counting.COUNTED)


class _Matching(TypedDict, total=False):
    """The requests that a rule is for, and the identity it counts by."""

    path: Annotated[
        str | None,
        Option(
            "The decoded path below `root_path`, in Starlette's route syntax; every path if left "
            "out.",
            Form("path", examples=("/api/{rest:path}",)),
            values.path,
            inside="match",
        ),
    ]
    except_: Annotated[
        str | Sequence[str],
        Option(
            "Paths that the rule is not for, in the same syntax; a request is left out only where "
            "its path is one of them as it was sent and also without `//`, `/./` and `/../`.",
            Form("paths", examples=("/health", "/static/{rest:path}")),
            values.paths,
            (),
            code="bad-path",
            inside="match",
        ),
    ]
    host: Annotated[
        str | Sequence[str] | None,
        Option(
            "The host that a request names, one or several, compared without port and case; "
            "`X-Forwarded-Host` counts from trusted proxies alone; every host if left out.",
            Form("hosts", examples=("app.example.com",)),
            values.hosts,
            inside="match",
        ),
    ]
    replaces: Annotated[
        Sequence[str],
        Option(
            "Rules that do not apply where this one is enforced and has counted the request, such "
            "as a looser or tighter limit for one path under a rule for all.",
            Form("names", examples=("everything",)),
            values.names,
            (),
        ),
    ]
    by: Annotated[
        str | Sequence[str],
        Option(
            "What an identity is made of, one or a list: `client` (if left out), `global`, "
            "`route`, `user`, `header:NAME`, `cookie:NAME`, `query:NAME`, `path:NAME` or a "
            "registered name.",
            Form("by"),
            values.by,
            ("client",),
            shows=("path",),
        ),
    ]


class RouteOptions(TypedDict, total=False):
    """The options of a limit wherever it stands, also on a route."""

    methods: Annotated[
        Iterable[str] | None,
        Option(
            "HTTP methods, GET standing for HEAD as well; every method if left out.",
            Form("methods", tuple(sorted(METHODS))),
            values.methods,
            code="bad-method",
            inside="match",
        ),
    ]
    tier: Annotated[
        str | Ask[str | None] | None,
        Option(
            "Beside `limits`, who chooses the tier: `user:ATTRIBUTE`, `header:NAME` (believed from "
            "trusted proxies alone) or a registered name.",
            Form("tier", examples=("user:plan",)),
            counting.tier,
            needs=("limit",),
        ),
    ]
    algorithm: Annotated[
        Algorithm | str | None,
        Option(
            "How requests are counted: `sliding_counter` (if left out), `sliding_log`, "
            "`fixed_window`, `token_bucket` or `leaking_bucket`.",
            Form("some-word", tuple(map(str, Algorithm))),
            counting.algorithm,
        ),
    ]
    burst: Annotated[
        int | None,
        Option(
            "What a bucket holds when full; the quota if left out.",
            Form("whole", (), 1),
            counting.burst,
            needs=("limit", "algorithm"),
        ),
    ]
    rounding: Annotated[
        Rounding | None,
        Option(
            "Which way a sliding counter rounds what is left of the window before; `down` if left "
            "out.",
            Form("word", get_args(Rounding)),
            counting.rounding,
            needs=("limit", "algorithm"),
        ),
    ]
    max_delay: Annotated[
        float | EllipsisType | None,
        Option(
            "How long a leaking bucket may hold a request, or `none`; `10s` if left out.",
            Form("delay", examples=("500ms",)),
            counting.max_delay,
            ...,
            needs=("limit", "algorithm"),
        ),
    ]
    free: Annotated[
        int | None,
        Option(
            "How many units pass a leaking bucket at once, while the others wait their turn; 1 if "
            "left out.",
            Form("whole", (), 1),
            counting.free,
            needs=("limit", "algorithm", "burst"),
        ),
    ]
    max_waiting: Annotated[
        int,
        Option(
            "How many requests may wait for their turn by a leaking bucket, for the whole rule in "
            "one worker, up to 100,000; `1000` if left out.",
            Form("whole", (), 1, 100_000),
            counting.max_waiting,
            counting.DEFAULT_MAX_WAITING,
            needs=("limit", "algorithm"),
        ),
    ]
    cost: Annotated[
        int | str | Ask[int],
        Option(
            "Units that one request takes, or a registered name; 1 if left out.",
            Form("whole-or-name"),
            counting.cost_of_rule,
            1,
            needs=_COUNTED,
        ),
    ]
    concurrency: Annotated[
        int | None,
        Option(
            "How many requests may be under way at once, beside or instead of `limit`.",
            Form("whole", (), 1, MOST),
            at_once.concurrency,
        ),
    ]
    lease: Annotated[
        float | None,
        Option(
            "How long after its last word a worker is taken to be dead, so that its places are "
            "free, 1 s to an hour; `10s` if left out.",
            Form("seconds", examples=("10s",)),
            at_once.lease,
            needs=("concurrency",),
            code="bad-lease",
        ),
    ]
    until: Annotated[
        Until | None,
        Option(
            "When a request gives its place up: with the `response`'s last byte (if left out), or "
            "when the application's call is `done`, its background tasks included.",
            Form("word", get_args(Until)),
            at_once.until,
            needs=("concurrency",),
        ),
    ]
    unit: Annotated[
        str,
        Option(
            "What a limit counts, such as `tokens`, as clients are told; `requests` if left out.",
            Form("unit", examples=("tokens",)),
            values.unit,
            "requests",
        ),
    ]
    charge: Annotated[
        Mapping[str, Sequence[int | str]] | None,
        Option(
            "The outcomes that keep a charge: `on_status`, a list such as `[401, 403, 5xx]`; any "
            "other outcome gives it back. With `reset_on`, another list, the failures of an "
            "account are forgotten after a success.",
            Form("charge"),
            charging.charge,
            needs=("by",),
            shows=("by",),
        ),
    ]
    charge_if: Annotated[
        Callable[[Response], object] | None,
        Option(
            "Says of a response, sync or async, whether the charge is kept.",
            None,
            charging.charge_if,
            needs=("charge",),
        ),
    ]
    priority: Annotated[
        Priority | str | Ask[str | None] | None,
        Option(
            "How late such requests are shed where the file says `shed`: `critical` (never), "
            "`high`, `normal`, `low`, `bulk`, or a registered name; `normal` if no rule says.",
            Form("priority", examples=PRIORITIES),
            priority,
        ),
    ]
    mode: Annotated[
        Mode,
        _choice(
            "`enforce` (if left out), `shadow` (it counts and refuses nobody) or `off`.",
            Mode,
            "enforce",
        ),
    ]
    enforce_share: Annotated[
        float | Fraction,
        Option(
            "The part of all identities that is refused, such as `25%`; the others are in shadow.",
            Form("share"),
            values.part,
            Fraction(1),
            code="bad-share",
        ),
    ]
    ban: Annotated[
        Ban | Mapping[str, int | str] | None,
        Option(
            "Whom the rule has refused `after` times `within` a time is banned `for` another, "
            "twice as long each time, `up_to` a longest (`for` if left out).",
            Form("ban", examples=("10m",)),
            banning.ban,
            needs=("by",),
        ),
    ]
    on_store_failure: Annotated[
        OnStoreFailure | None,
        _choice(
            "What becomes of a request when the store fails: `allow` (if left out here and for "
            "the file), `deny` (503) or `local` (counted in the worker, at its share).",
            OnStoreFailure,
            None,
        ),
    ]
    on_missing: Annotated[
        OnMissing,
        _choice(
            "What becomes of a request that lacks a part of `by`: it counts by its address "
            "(`client`, if left out), the rule does not apply (`skip`), or it is refused with 403 "
            "(`refuse`).",
            OnMissing,
            "client",
        ),
    ]
    websocket: Annotated[
        sockets.MessagesOptions | None,
        Option(
            "What a WebSocket that the rule let in may send: `messages` and `bytes`, a limit each, "
            "and `on_excess`: `close` (if left out), `drop` or `pause`.",
            Form("websocket"),
            sockets.messages,
        ),
    ]
    skip: Annotated[
        Ask[bool] | None,
        Option("Says of a request that the rule does not apply to it.", None, values.skip),
    ]
    overrides: Annotated[
        Mapping[str, SomeLimits],
        Option(
            "Limits, `unlimited` or `blocked` (403), of single identities, by the first part of "
            "`by`, or by all of its parts with a bar between.",
            Form("overrides"),
            overriding.overrides,
            MappingProxyType({}),
            needs=("by",),
            shows=(*_COUNTED, "cost"),
            code="bad-override",
            also=(
                "overrides_file",
                Form("file"),
                "A file of more overrides: on each line an identity, a space and its limit.",
            ),
        ),
    ]
    allowlist: Annotated[
        Iterable[Network],
        _networks("Addresses and networks that the rule does not apply to.", "allowlist"),
    ]
    denylist: Annotated[
        Iterable[Network],
        _networks(
            "Addresses and networks that are refused with 403 where the rule matches; it beats "
            "the allowlist.",
            "denylist",
        ),
    ]


class RuleOptions(_Matching, RouteOptions, total=False):
    """The keywords of `Rule`."""


def _of(keywords: type) -> dict[str, Option]:
    hints = get_type_hints(keywords, include_extras=True)
    return {key: hint.__metadata__[0] for key, hint in hints.items()}


RULE: Final = Options(
    name=Option(
        "The rule's name in headers, logs and counters; each has its own, in any case.",
        Form("name"),
        values.name,
        REQUIRED,
    ),
    **_of(_Matching),
    limit=Option(
        "One limit or several, such as `5/second; 1000/hour`.",
        Form("limits"),
        counting.limit,
        shows=("algorithm",),
        also=(
            "limits",
            Form("tiers"),
            (
                "Instead of `limit`: a limit, or `unlimited`, for each tier; the first holds where "
                "no known tier is chosen."
            ),
        ),
    ),
    **_of(RouteOptions),
)
"""The options of a rule, in the order of the documentation."""

FILE: Final = Options(
    store=Option(
        "Where the counters live; `memory://` if left out.",
        Form("store", examples=("redis://localhost:6379/0",)),
        values.store,
        "memory://",
    ),
    deadline=Option(
        "How long a decision may take, 1 ms to 60 s; `50ms` if left out.",
        Form("duration", examples=("50ms",)),
        values.deadline,
        50_000,
        code="bad-duration",
    ),
    on_store_failure=_choice(
        "What becomes of a request when the store fails, where its rule does not say.",
        OnStoreFailure,
        "allow",
    ),
    workers=_whole(
        "How many workers share a quota for `local`, until heartbeats were seen; 1 if left out.",
        1,
        MOST_WORKERS,
        1,
    ),
    share=Option(
        "The part of every quota that is this region's, such as `50%`; all of it if left out.",
        Form("share"),
        values.part,
        Fraction(1),
    ),
    trusted_proxies=Option(
        "Networks of the proxies in front, whose word on a client's address is believed.",
        Form("proxies"),
        values.trusted_proxies,
        (),
        code="trusts-everyone",
    ),
    trusted_hops=_whole(
        "Instead of `trusted_proxies`: how many proxies stand in front, at most 32.", 0, 32, 0
    ),
    forwarded_header=Option(
        "The field in which the proxies write where a request came from: `x-forwarded-for` (if "
        "left out), `forwarded`, or one that holds a single address, such as `x-real-ip`.",
        Form("field", examples=("x-real-ip", "cf-connecting-ip")),
        values.forwarded_header,
        "x-forwarded-for",
    ),
    ipv6_prefix=_whole(
        "How many bits of an IPv6 address are one client, 16 to 128; 64 if left out.",
        16,
        128,
        64,
    ),
    allowlist=_networks("Addresses and networks that no rule applies to.", "allowlist"),
    denylist=_networks(
        "Addresses and networks that are refused with 403; it beats the allowlist.", "denylist"
    ),
    headers=Option(
        "What clients are told: `draft` (if left out), `legacy`, `draft-03`, `openai`, "
        "`anthropic`, several, or none.",
        Form("words", get_args(Header)),
        values.headers,
        ("draft",),
    ),
    retry_jitter=Option(
        "At most so much is added to `Retry-After`, by chance; at most 60 s.",
        Form("duration", examples=("2s",)),
        values.retry_jitter,
        0,
        code="bad-duration",
    ),
    retry_hints=Option(
        "Whether a refusal also carries `retry-after-ms`, or `x-should-retry: false` where it is "
        "in vain to come again; `false` if left out.",
        Form("flag"),
        values.retry_hints,
        False,
    ),
    secret=Option(
        "What signs the tokens with which a reservation is committed elsewhere; of a list, the "
        "first signs, and each is believed; at least 16 characters.",
        Form("secrets", examples=("${RATELIMIT_SECRET}",)),
        values.secrets,
        (),
    ),
    shed=Option(
        "When requests are answered with 503, those of the lowest `priority` first: `lag`, such as "
        "`20ms`, is how late this process may be; `mode` may stand beside it.",
        Form("shed"),
        shed,
        None,
    ),
    preflights=_choice(
        "Whether CORS preflights are `free` (if left out) or `count`, where a rule does not name "
        "OPTIONS.",
        Preflights,
        "free",
    ),
)
"""Settings of all rules of a file, in the order of the documentation."""
