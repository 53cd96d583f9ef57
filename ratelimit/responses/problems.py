"""The answer to a refused request: a problem in JSON, or its words as a page or a line of text.

Problems are those of RFC 9457; RFC 9110 section 12.5.1 negotiates the form that a client gets.
"""

import html
import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple

from starlette.exceptions import HTTPException
from starlette.responses import Response

__all__ = [
    "Field",
    "Refusal",
    "Refused",
    "blocked",
    "forbid",
    "problem",
    "unavailable",
    "unidentified",
]

Field = tuple[bytes, bytes]
"""A header field's name, in lower case, and its value."""

FORBIDDEN: Final = "urn:ratelimit-asgi:problem:address-denied"
IDENTITY_BLOCKED: Final = "urn:ratelimit-asgi:problem:identity-blocked"
IDENTITY_MISSING: Final = "urn:ratelimit-asgi:problem:identity-missing"
REDUCED_CAPACITY: Final = (
    "https://iana.org/assignments/http-problem-types#temporary-reduced-capacity"
)
SHUTTING_DOWN: Final = "urn:ratelimit-asgi:problem:shutting-down"
STORE_UNAVAILABLE: Final = "urn:ratelimit-asgi:problem:store-unavailable"

CLIENT_GONE: Final = 499
"""The status that nginx logs for a client that has gone; no response can carry it to anybody."""

PROBLEM: Final = "application/problem+json"
HTML: Final = "text/html"
TEXT: Final = "text/plain"

OFFERS: Final = {
    PROBLEM: (PROBLEM, "application/json", "application/*", "*/*"),
    HTML: (HTML, "text/*", "*/*"),
    TEXT: (TEXT, "text/*", "*/*"),
}
"""The forms, the most preferred first, each with the media ranges that take it, the closest first.

A client that asks for JSON gets a problem: it is JSON, and an error is not the place to insist."""

_LONGEST_ACCEPT: Final = 1_000
"""Most characters of an Accept field that are read; browsers send fewer than 200."""

_TOKEN: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]++"  # RFC 9110 section 5.6.2
_PARAMETER: Final = rf'({_TOKEN})=({_TOKEN}|"[^"\\]*+(?:\\.[^"\\]*+)*")'
# Runs of characters are possessive, and nothing matches in two ways, so that time stays linear.
# Groups are not: before Python 3.11.5 a possessive group keeps what it half matched (gh-106052).
_RANGE: Final = re.compile(
    rf"[ \t]*+(?:({_TOKEN}/{_TOKEN})((?:[ \t]*+;[ \t]*+(?:{_PARAMETER})?)*))?[ \t]*+(?:,|\Z)"
)
_PARAMETERS: Final = re.compile(_PARAMETER)
_WEIGHT: Final = re.compile(r"0(\.[0-9]{0,3})?|1(\.0{0,3})?")


class Refusal(NamedTuple):
    """A whole answer: a status, header fields in lower case, and a problem as JSON."""

    status: int
    headers: list[Field]
    body: bytes
    title: str
    """The kind of problem, in a few words."""
    detail: str
    """This occurrence of it, for the client, in a sentence."""

    def rendered(self, accept: str | None) -> "Refusal":
        """This refusal in the form that a client's Accept field asks for (None: it sent none).

        A page or text where the client prefers that to JSON; the problem where it does not, where
        it takes none of the three, and where the field is malformed or longer than 1,000
        characters.
        """
        form = PROBLEM
        if accept is not None and len(accept) <= _LONGEST_ACCEPT:
            form = _preferred(accept)
        if form == PROBLEM:
            return self._replace(headers=[*self.headers, (b"vary", b"accept")])
        text = self._page() if form == HTML else f"{self.title}. {self.detail}\n"
        body = text.encode()
        kept = [
            each for each in self.headers if each[0] not in (b"content-type", b"content-length")
        ]
        headers = [
            (b"content-type", b"%s; charset=utf-8" % form.encode()),
            (b"content-length", b"%d" % len(body)),
            *kept,
            (b"vary", b"accept"),
        ]
        return self._replace(headers=headers, body=body)

    def _page(self) -> str:
        title, detail = html.escape(self.title), html.escape(self.detail)
        return (
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width">\n'
            f"<title>{title}</title>\n</head>\n"
            f"<body>\n<h1>{title}</h1>\n<p>{detail}</p>\n</body>\n</html>\n"
        )

    def response(self) -> Response:
        """This refusal as a Starlette response."""
        response = Response(self.body, self.status)
        response.raw_headers = list(self.headers)
        return response


class Refused(HTTPException):
    """A route's limit did not let the request pass; carries the whole answer as ``refusal``.

    Where the application does not handle it, the client gets the answer that the middleware gives.
    """

    def __init__(self, refusal: Refusal) -> None:
        self.refusal = refusal
        super().__init__(
            refusal.status,
            refusal.title,
            {
                name.decode("latin-1"): value.decode("latin-1")
                for name, value in refusal.headers
                if name not in (b"content-type", b"content-length")
            },
        )


@lru_cache(maxsize=256)
def _preferred(accept: str) -> str:
    """The form that an Accept field asks for: the greatest weight wins, and of equals the first.

    The weight of a form is that of the closest range that takes it. A range with parameters is
    for what has them, and all that ours have is a charset.
    """
    weights: dict[str, float] = {}
    at = 0
    while at < len(accept):
        found = _RANGE.match(accept, at)
        if found is None:
            return PROBLEM
        at = found.end()
        if found[1] is None:  # a list may have empty items (RFC 9110 section 5.6.1)
            continue
        media, weight, ours = found[1].lower(), 1.0, True
        for name, value in _PARAMETERS.findall(found[2]):
            if name.lower() == "q":
                if not _WEIGHT.fullmatch(value):
                    return PROBLEM
                weight = float(value)
                break  # what follows was for extensions, which never came (RFC 9110 appendix B.3)
            if (name.lower(), value.lower().strip('"')) != ("charset", "utf-8"):
                ours = False
        if ours:
            weights[media] = max(weight, weights.get(media, 0.0))

    def weight_of(form: str) -> float:
        return next((weights[media] for media in OFFERS[form] if media in weights), 0.0)

    return max(OFFERS, key=weight_of)


def problem(
    status: int,
    type_uri: str,
    title: str,
    detail: str,
    extra: Sequence[Field] = (),
    members: Mapping[str, Any] = {},  # only read
) -> Refusal:
    """A refusal with a problem as its body; ``extra`` fields and ``members`` beside the usual."""
    content = {"type": type_uri, "title": title, "status": status, "detail": detail, **members}
    body = json.dumps(content).encode()
    headers = [
        (b"content-type", PROBLEM.encode()),
        (b"content-length", b"%d" % len(body)),
        (b"cache-control", b"no-store"),  # RFC 6585 section 4 for 429, and no better elsewhere
        *extra,
    ]
    return Refusal(status, headers, body, title, detail)


def forbid() -> Refusal:
    """403: the client's address is on the denylist."""
    return problem(403, FORBIDDEN, "Forbidden", "Requests from this address are not served.")


def blocked() -> Refusal:
    """403: an override blocks the identity, which is more than an address."""
    detail = "Requests of this identity are not served."
    return problem(403, IDENTITY_BLOCKED, "Forbidden", detail)


def unidentified() -> Refusal:
    """403: a rule wants to know who is asking, and the request does not say."""
    return problem(
        403,
        IDENTITY_MISSING,
        "Identity Missing",
        "The request does not say who is asking, and this one may not pass without.",
    )


def unavailable() -> Refusal:
    """503: the store failed, and a rule says that nothing passes then."""
    return problem(
        503,
        STORE_UNAVAILABLE,
        "Rate Limiter Unavailable",
        "Requests cannot be counted at the moment, and this one may not pass uncounted.",
    )


def shed(retry_after: int) -> Refusal:
    """503: this process has more requests than it can serve, and others come first."""
    return problem(
        503,
        REDUCED_CAPACITY,
        "Temporary Reduced Capacity",
        f"There are more requests at the moment than can be served; try again in {retry_after} "
        f"second{'s' * (retry_after != 1)}.",
        [(b"retry-after", b"%d" % retry_after)],
        {"violated-policies": []},
    )


def overloaded() -> Refusal:
    """503: this process has more to decide than it gets to, whatever rules say of the store."""
    return problem(
        503,
        REDUCED_CAPACITY,
        "Temporary Reduced Capacity",
        "There are more requests at the moment than can be counted; try again in 1 second.",
        [(b"retry-after", b"1")],
        {"violated-policies": []},
    )


def closing() -> Refusal:
    """503: the application shuts down before a request's turn has come."""
    return problem(
        503,
        SHUTTING_DOWN,
        "Shutting Down",
        "The server shuts down before the turn of this request, which has not run; try again.",
        [(b"retry-after", b"1")],
    )


def left() -> Refusal:
    """499: the client has gone while its request waited; nobody gets this but logs."""
    detail = "The client has gone before the turn of this request, which has not run."
    return problem(CLIENT_GONE, "about:blank", "Client Closed Request", detail)
