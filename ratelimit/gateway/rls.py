"""Envoy's rate limit service: its descriptors, answered by the rules of a file.

A descriptor is met by the rules whose path spells it out: ``/envoy:DOMAIN/KEY/VALUE/KEY/VALUE``.
One that holds a ``:path`` is the request itself, with what else it says as header fields, and is
met by all other rules. No request's path is taken for a descriptor, whatever its client sends.

The law of this module: that of `forward_auth`. All descriptors of a question are charged, or none;
and a fault of ours lets the request through.
"""

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final

from ratelimit.asgi.answer import respond
from ratelimit.asgi.waiting import take_turn
from ratelimit.gateway.calls import DENIED, INVALID, UNKNOWN_METHOD, Answered, Peer
from ratelimit.gateway.dialects import ROOT, TooLong, target
from ratelimit.gateway.forward_auth import MOST_PEERS, STATUS, TOO_LONG, doubts, unheard
from ratelimit.gateway.messages import (
    OK,
    OVER,
    Descriptor,
    Malformed,
    Question,
    TooMany,
    read,
    status_of,
    write,
)
from ratelimit.gateway.spelling import spelled, unspelled
from ratelimit.limiter.concurrency.leases import withdraw
from ratelimit.limiter.limiter import Admission, RateLimiter
from ratelimit.limiter.parts import Part
from ratelimit.responses.headers import Refusal
from ratelimit.responses.problems import problem
from ratelimit.responses.told import binding_of
from ratelimit.rules.matching import Found
from ratelimit.rules.ruleset import RuleSet

__all__ = ["DONE", "SHOULD_RATE_LIMIT", "RateLimitService"]

_LOG: Final = logging.getLogger("ratelimit")

SHOULD_RATE_LIMIT: Final = "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit"

DONE: Final = b":done"
"""The key by which a descriptor says that its request is over: it is charged without asking."""

_ADDRESS: Final = b"remote_address"
_OF_REQUESTS: Final = frozenset(
    [b":path", b":method", b":authority", b":scheme", _ADDRESS, b"host"]
)
"""The keys that tell of a request, and are none of its header fields."""

_TOO_LARGE: Final = problem(
    431, "about:blank", "Request Header Fields Too Large",
    "The request says more of itself than any that is served.",
)  # fmt: skip


class RateLimitService:
    """Answers calls of ``envoy.service.ratelimit.v3.RateLimitService`` by a limiter.

    A question's ``hits_addend`` is how often each rule's cost is charged: a descriptor's own beats
    the question's, and 0 only looks. The answer has a status for each descriptor, and the fields
    for the client, also those of a refusal with its problem document.
    """

    def __init__(self, limiter: RateLimiter) -> None:
        self._limiter = limiter
        self._told: set[str] = set()
        self._peers: dict[str | None, bool] = {}
        self._take(limiter.rules)

    async def __call__(self, path: str, message: bytes | None, peer: Peer) -> Answered:
        """Answers a call."""
        if self._limiter.rules is not self._rules:
            self._take(self._limiter.rules)
        if path != SHOULD_RATE_LIMIT:
            return Answered(status=UNKNOWN_METHOD, sentence=f"there is only {SHOULD_RATE_LIMIT}")
        if not self.trusts(peer):
            return Answered(status=DENIED, sentence="the caller is not trusted")
        try:
            if message is None:
                raise TooMany("the message is longer than any that is read")
            question = read(message)
        except Malformed as malformed:
            self._once("question-malformed", f"a question of {peer}: {malformed}")
            return Answered(status=INVALID, sentence=str(malformed))
        except TooMany as many:
            # A client may have chosen the length of what it sends, and gains nothing by it.
            self._once("question-too-large", f"a question of {peer}: {many}; it is refused")
            return Answered(await self._over(_TOO_LARGE, {}))
        try:
            answer = await self._answer(question)
        except TooLong:
            answer = await self._over(TOO_LONG, {})
        except Exception as error:  # noqa: BLE001  # the law of this module
            self._fail(error)
            answer = write([OK] * len(question.descriptors), over=False)
        return Answered(answer)

    def trusts(self, peer: Peer) -> bool:
        """Whether a trusted proxy calls, of which there are few."""
        host = peer[0] if peer else None
        trusted = self._peers.get(host)
        if trusted is None:
            trusted = self._limiter.proxies.trusts_peer({"client": peer})
            if not trusted:
                self._once("proxy-untrusted", f"{peer} is not in trusted_proxies; it is hung up on")
            elif len(self._peers) < MOST_PEERS:
                self._peers[host] = True
        return trusted

    async def _answer(self, question: Question) -> bytes:
        parts: list[Part] = []
        asked: list[Part] = []
        owed: list[Part] = []
        for each in question.descriptors:
            part = self._part(question, each)
            parts.append(part)
            (owed if part.forced else asked).append(part)
        admission = await self._decided(asked) if asked else None
        if owed:  # whatever becomes of the others
            charged = await self._decided(owed)
            admission = admission or charged
        if admission is None or admission.refusal is None:
            fields = () if admission is None else admission.headers()
            return write(map(_status, parts), fields, over=False)
        all_over = not any(_is_over(part) for part in parts)
        statuses = [_status(part, over=all_over) for part in parts]
        scope = next((part.scope for part in parts if "headers" in part.scope), {})
        return await self._over(admission.refusal, scope, statuses)

    async def _decided(self, parts: Sequence[Part]) -> Admission:
        """The outcome of these parts, of which all pass or none, once their turn has come."""
        admission = await self._limiter.admit_together(parts)
        try:
            if (admission.turns or self._limiter.waits.count) and admission.refusal is None:
                await take_turn(admission, unheard)
        finally:
            if admission.held:
                withdraw(admission, 0)  # nobody tells when the request ends
        return admission

    async def _over(
        self, refusal: Refusal, scope: Mapping[str, Any], statuses: Sequence[bytes] = ()
    ) -> bytes:
        """A refusal; its status goes along where it is not the one that Envoy gives."""
        response = await respond(self._limiter, dict(scope), refusal)
        headers = [field for field in response.raw_headers if field[0] != b"content-length"]
        if response.status_code != 429:
            headers.append((STATUS, b"%d" % response.status_code))
        return write(statuses, headers, bytes(response.body), over=True)

    def _part(self, question: Question, descriptor: Descriptor) -> Part:
        """The question of a descriptor."""
        if descriptor.has_limit:
            self._once("limit-ignored", "a descriptor brings a limit of its own, which the rules "
                       "do not ask for; it is not used")  # fmt: skip
        times = question.hits if descriptor.hits is None else descriptor.hits
        said = dict(descriptor.entries)
        address = said.get(_ADDRESS)
        client = None if address is None else (address.decode("latin-1"), 0)
        forced = DONE in said
        if b":path" not in said:
            entries = [each for each in descriptor.entries if each[0] != DONE]
            path = "/".join([spelled(text) for each in entries for text in each])
            scope: dict[str, Any] = {
                "type": "http", "method": "GET", "client": client, "root_path": "",
                "path": f"{ROOT}{spelled(question.domain)}/{path}",
            }  # fmt: skip
            return Part(scope, self._find, times, forced)
        scope, paths = _request(said, descriptor.entries, client)
        find = self._limiter.find if len(paths) == 1 else partial(self._find_of_each, paths)
        return Part(scope, find, times, forced)

    def _find(self, scope: Mapping[str, Any]) -> Found:
        """The rules for a descriptor, with its values as parameters."""
        rules = self._rules
        found = [
            (rule, {name: unspelled(value) for name, value in parameters.items()})
            for rule, parameters in rules.matching("GET", scope["path"])
            if rule.path is not None and rule.path.startswith(ROOT)
        ]
        if scope["client"] is None and any("client" in rule.by for rule, _ in found):
            self._once(
                "address-missing", "a rule counts by client, and its descriptor has no "
                "remote_address, so that all share one bucket",
            )  # fmt: skip
        return found, rules.index.plan(found)

    def _find_of_each(self, paths: Sequence[str], scope: Mapping[str, Any]) -> Found:
        """The rules for a request, by each of several paths that it may be taken for."""
        found: list[Any] = []
        for path in paths:
            known = [rule for rule, _ in found]
            others, _ = self._limiter.find({**scope, "path": path})
            found += [each for each in others if each[0] not in known]
        return found, self._rules.index.plan(found)

    def _take(self, rules: RuleSet) -> None:
        """Believes as new rules say."""
        self._rules = rules
        self._peers = {}
        for code, sentence in doubts(rules):
            _LOG.warning("%s: %s", code, sentence)

    def _fail(self, error: Exception) -> None:
        if "failed" not in self._told:
            self._told.add("failed")
            _LOG.error(
                "rate-limit-service-failed: a question could not be answered, and its request "
                "goes on uncounted (said once)", exc_info=error,
            )  # fmt: skip

    def _once(self, code: str, sentence: str) -> None:
        if code not in self._told:
            self._told.add(code)
            _LOG.warning("%s: %s (said once)", code, sentence)


def _request(
    said: Mapping[bytes, bytes], entries: Sequence[tuple[bytes, bytes]], client: Peer
) -> tuple[dict[str, Any], Sequence[str]]:
    """The scope of a request that is told as a descriptor, and the paths it may be taken for."""
    paths, raw, query = target(said[b":path"])
    method = said.get(b":method", b"GET").decode("latin-1")
    if method == "CONNECT" and paths[0].startswith("/"):
        method = "GET"  # RFC 8441: a WebSocket through HTTP/2, a GET to applications
    headers = [
        (key.lower(), value)
        for key, value in entries
        if key not in _OF_REQUESTS and key[:1] != b":"
    ]
    if b":authority" in said:
        headers.append((b"host", said[b":authority"]))
    scope: dict[str, Any] = {
        "type": "http",
        "method": method,
        "path": paths[0],
        "raw_path": raw,
        "query_string": query,
        "root_path": "",
        "headers": headers,
        "client": client,
        "scheme": "https" if said.get(b":scheme") == b"https" else "http",
    }
    return scope, paths


def _status(part: Part, over: bool = False) -> bytes:
    """The outcome of a descriptor: of its rules, that of the binding one."""
    told = part.told
    if not told:
        return OVER if over or part.over else OK
    name, decision = told[0] if len(told) == 1 else binding_of(told)
    return status_of(decision, name, over=over or not decision[1])


def _is_over(part: Part) -> bool:
    return part.over or not all(decision.allowed for _, decision in part.told)
