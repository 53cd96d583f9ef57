"""Estimates of the tokens that a request to a language model may cost: `TokenEstimate`.

The law of this module: a body is whatever a client sends, and another reader of it may believe
another field. So the largest of all readings holds, and nothing in a body raises.
"""

import json
import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any, Final, Literal, get_args

from starlette.requests import ClientDisconnect, Request

from ratelimit.decisions import MOST_COST
from ratelimit.words import shown, whole

__all__ = ["TokenEstimate"]

Tokens = Literal["tokens", "input-tokens", "output-tokens"]

CAPS: Final = frozenset(
    {
        "maxtokens", "maxcompletiontokens", "maxoutputtokens", "maxnewtokens", "maxtokenstosample",
        "maxtokencount", "maxgenlen", "maxlength", "numpredict", "npredict",
    }
)  # fmt: skip
"""Names of caps on what one candidate may hold, in lower case without ``_`` and ``-``."""
CANDIDATES: Final = frozenset(
    {"n", "bestof", "candidatecount", "numcandidates", "numgenerations", "numreturnsequences"}
)
"""Names of how many candidates there are to be."""
INSIDE: Final = frozenset(
    {
        "generationconfig", "textgenerationconfig", "inferenceconfig", "samplingparams",
        "config", "options", "parameters", "extrabody",
    }
)  # fmt: skip
"""Names of mappings in which these may stand as well."""

TOO_MANY: Final = MOST_COST + 1
"""The cost of what is larger than any limit holds."""


MOST_BYTES: Final = 1_000
"""Bytes that one token may be taken for."""


class TokenEstimate:
    """A request's tokens before they are known, as the ``cost`` of a `RateLimit` with a ``unit``.

    ``of`` is what is estimated: "output-tokens", the largest of all declared caps (``max_tokens``,
    ``max_completion_tokens``, ``maxOutputTokens``, ... in the body or its ``generationConfig``)
    times the number of candidates (``n``, ``best_of``, ``candidateCount``, and prompts in a
    list); "input-tokens", one for each ``bytes_per_token`` of the body, rounded up; or "tokens",
    both. ``default`` stands for a cap that is not declared, or that is not a number above 0: what
    the model writes at most by itself.

    English takes about four bytes for a token, other scripts fewer; 1 is never too few. A body that
    is not JSON is a length without a cap. An estimate above what a limit holds is refused as never.

    Raises TypeError or ValueError for what is none of that; a body never raises.
    """

    def __init__(
        self, of: Tokens = "tokens", *, default: int = 4_096, bytes_per_token: int = 4
    ) -> None:
        if of not in get_args(Tokens):
            names = ", ".join(get_args(Tokens))
            raise ValueError(f"an estimate of {shown(of)} is not known; there are {names}")
        whole("default", default, 1, MOST_COST)
        whole("bytes_per_token", bytes_per_token, 1, MOST_BYTES)
        self.of = of
        self.default = default
        self.bytes_per_token = bytes_per_token

    async def __call__(self, request: Request) -> int:
        """The estimate for a request, whose body is read and stays there for the endpoint.

        Raises TypeError where there is no request of an endpoint's, whose body could be read.
        """
        try:
            body = await request.body()
        except ClientDisconnect:
            return self.default
        except (AttributeError, RuntimeError) as problem:
            raise TypeError(
                "an estimate reads the body of a request, which is there for a RateLimit with a "
                "unit alone; give it as its cost"
            ) from problem
        return self.of_body(body)

    def of_body(self, body: object) -> int:
        """The estimate for a body: bytes or text as they came, or JSON that was read already.

        0 to 2^42 + 1, which no limit holds.
        """
        raw = body.encode("utf-8", "surrogatepass") if isinstance(body, str) else body
        if isinstance(raw, bytes | bytearray | memoryview):
            length, parsed = len(raw), _parsed(bytes(raw))
        else:
            length, parsed = _length(body), body
        found = 0
        if self.of != "output-tokens":
            found += -(-length // self.bytes_per_token)
        if self.of != "input-tokens":
            found += self._output(parsed)
        return min(found, TOO_MANY)

    def _output(self, parsed: object) -> int:
        caps, candidates, prompts = [0], [1], 1
        for name, value in _fields(parsed):
            if name in CAPS and value is not None:  # null is as if it were not there
                caps.append(_number(value) or self.default)
            elif name in CANDIDATES:
                candidates.append(_number(value))
            elif name == "prompt" and isinstance(value, list):
                # A list of numbers is one prompt, of tokens.
                prompts = max(prompts, sum(isinstance(each, str | list) for each in value))
        return min((max(caps) or self.default) * max(candidates) * prompts, TOO_MANY)


class _Pairs(list[tuple[str, Any]]):
    """An object of JSON, whose names may be there twice."""


def _parsed(raw: bytes) -> object:
    """The JSON of a body, each name as often as it is there; None where it is not JSON.

    Readers further on may take what Python's does not, so it is read as leniently as can be.
    """
    try:
        text = raw.decode(json.detect_encoding(raw), "replace")
        return json.loads(
            text, strict=False, object_pairs_hook=_Pairs, parse_int=_whole, parse_constant=float
        )
    except RecursionError:  # a cap may be hidden beside what is nested so deep
        return {"max_tokens": TOO_MANY}
    except ValueError:
        return None


def _whole(text: str) -> int:
    return int(text) if len(text) < 20 else TOO_MANY * (-1 if text[0] == "-" else 1)


def _pairs(value: object) -> Iterable[tuple[object, Any]]:
    if isinstance(value, _Pairs):
        return value
    return value.items() if isinstance(value, Mapping) else ()


def _fields(parsed: object) -> Iterable[tuple[str, Any]]:
    """The fields of a body and of the mappings that belong to it, by their plain names."""
    for key, value in _pairs(parsed):
        name = _plain(key)
        yield name, value
        if name in INSIDE:
            for inner, one in _pairs(value):
                yield _plain(inner), one


def _plain(name: object) -> str:
    """A name as all of its spellings: ``max_tokens``, ``maxTokens``, ``max-tokens``."""
    return name.replace("_", "").replace("-", "").lower() if isinstance(name, str) else ""


def _number(value: object) -> int:
    """A number above 0, rounded up, also as text; 0 for anything else."""
    if isinstance(value, str) and len(value) < 400:
        with suppress(ValueError):
            value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        return 0
    return TOO_MANY if value >= TOO_MANY else math.ceil(value)


def _length(body: object) -> int:
    """The length of a body that was read, as JSON in UTF-8; what is not JSON is too long."""
    try:
        text = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError):
        return TOO_MANY * MOST_BYTES
    return len(text.encode("utf-8", "surrogatepass"))
