"""The question of a proxy, answered by the limiter that an application would ask itself.

The law of this module: nobody but a trusted proxy is told anything; a request is refused by a rule,
or because its proxy does not say whose it is; and a fault of ours lets it through.
"""

import logging
from collections.abc import Iterator
from typing import Final

import anyio
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from ratelimit.asgi.answer import SCOPE_KEY, respond
from ratelimit.asgi.waiting import take_turn
from ratelimit.gateway.dialects import DIALECTS, Reader, TooLong, Unsaid
from ratelimit.limiter.concurrency.leases import withdraw
from ratelimit.limiter.limiter import Admission, RateLimiter
from ratelimit.limits import Algorithm, Limit
from ratelimit.responses.headers import Refusal
from ratelimit.responses.problems import problem
from ratelimit.rules.ruleset import RuleSet
from ratelimit.words import near, shown

__all__ = ["MOST_PEERS", "PROBLEM", "STATUS", "TOO_LONG", "ForwardAuth", "doubts", "unheard"]

_LOG: Final = logging.getLogger("ratelimit")

STATUS: Final = b"x-ratelimit-status"
"""The field of an answer that tells the status of a refusal which the proxy hands on as 403."""

PROBLEM: Final = b"x-ratelimit-problem"
"""The field of such an answer that holds the problem document, in one line of ASCII."""

PATIENCE: Final = 0.2
"""Seconds that a proxy waits for an answer by our recipes, with some room."""

MOST_PEERS: Final = 1_000
"""Most proxies that are remembered."""

_ALLOWED: Final = [(b"content-length", b"0")]

_UNTRUSTED: Final = problem(
    403, "about:blank", "Forbidden",
    "The rate limiter does not take the word of who asks it; its log says why.",
)  # fmt: skip
TOO_LONG: Final = problem(
    414, "about:blank", "URI Too Long", "The URI is longer than any that is served."
)


class ForwardAuth:
    """Answers a proxy that asks about each request: an ASGI application to serve or to mount.

    ``dialect`` is the proxy's: ``nginx`` (auth_request), ``caddy`` (forward_auth), ``traefik``
    (ForwardAuth) or ``envoy`` (ext_authz over HTTP). 200 lets a request go on, with the fields for
    its client; anything else is the answer to give instead. Method, URI, host and client are
    believed from the rules' trusted proxies alone, and nobody else is told more than 403.

    It answers a lifespan as well, and closes the limiter's store at its end.

    Raises ValueError for an unknown dialect, and where the rules trust no proxy.
    """

    def __init__(self, limiter: RateLimiter, dialect: str = "nginx") -> None:
        if dialect not in DIALECTS:
            raise ValueError(
                f"{shown(dialect)} is not a dialect{near(dialect, DIALECTS)}; there are "
                f"{', '.join(DIALECTS)}"
            )
        if not limiter.proxies.believes:
            raise ValueError(
                "the rules trust no proxy, so that anybody could say whose a request is; name "
                "those that ask in trusted_proxies"
            )
        self.limiter = limiter
        """The limiter that decides."""
        self._dialect = DIALECTS[dialect]
        self._read: Reader  # of the rules that hold
        self._rules: RuleSet | None = None
        self._peers: dict[str | None, bool] = {}
        """The hosts that were trusted, by these rules."""
        self._told: set[str] = set()

    async def __call__(  # noqa: PLR0912  # one step after the other; a call for each would be felt
        self, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Answers one question, or a lifespan."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        if scope["type"] == "websocket":
            # By Caddy, which hands a handshake on as one; the answer to it is that to a request.
            await receive()
            send = _instead_of_a_handshake(scope, send)
        elif scope["type"] != "http":
            return
        request = scope
        admission: Admission | None = None
        refusal: Refusal | None = None
        headers = _ALLOWED
        try:
            limiter = self.limiter
            if limiter.rules is not self._rules:
                self._take(limiter.rules)
            if self._trusts(scope):
                request, paths = self._read(scope)
                admission = await limiter.admit(request)
                if len(paths) > 1 and admission.refusal is None:
                    await limiter.admit({**request, "path": paths[1], SCOPE_KEY: admission})
                if (admission.turns or limiter.waits.count) and admission.refusal is None:
                    await take_turn(admission, unheard)
                refusal = admission.refusal
                if refusal is None:
                    headers = [*_ALLOWED, *admission.headers()]
            else:
                refusal = _UNTRUSTED
        except Unsaid as unsaid:
            self._once("proxy-unclear", f"a question of {scope.get('client')}: {unsaid}")
            refusal = _UNTRUSTED
        except TooLong:
            refusal = TOO_LONG
        except Exception as error:  # noqa: BLE001  # the law of this module
            self._fail(error)
        finally:
            if admission is not None and admission.held:
                withdraw(admission, 0)  # nobody tells when the request ends
        if refusal is not None:
            if admission is not None:
                await admission.give_back()
            response = await self._refused(refusal, request)
            await response({**scope, "type": "http"}, receive, send)
            return
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b""})

    def _trusts(self, scope: Scope) -> bool:
        """Whether a trusted proxy asks, of which there are few."""
        peer = scope.get("client")
        host = peer[0] if peer else None
        trusted = self._peers.get(host)
        if trusted is None:
            proxies = self.limiter.proxies
            trusted = proxies.believes and proxies.trusts_peer(scope)
            if not trusted:
                self._once("proxy-untrusted", f"{peer} is not in trusted_proxies")
            elif len(self._peers) < MOST_PEERS:
                self._peers[host] = True
        return trusted

    async def _refused(self, refusal: Refusal, request: Scope) -> Response:
        """A refusal as the proxy hands it on."""
        hands_on = self._dialect.hands_on
        if hands_on:
            response = await respond(self.limiter, request, refusal)
            if response.status_code in hands_on:
                return response
        # Such a proxy writes the answer itself: of what we know, not of what an application says.
        response = Response(refusal.body, 403)
        response.raw_headers = [
            *refusal.headers, (STATUS, b"%d" % refusal.status), (PROBLEM, refusal.body)
        ]  # fmt: skip
        return response

    def _fail(self, error: Exception) -> None:
        if "failed" not in self._told:
            self._told.add("failed")
            _LOG.error(
                "forward-auth-failed: a question could not be answered, and its request goes on "
                "uncounted (said once)", exc_info=error,
            )  # fmt: skip

    def _once(self, code: str, sentence: str) -> None:
        if code not in self._told:
            self._told.add(code)
            _LOG.warning("%s: %s; such questions are answered with 403 (said once)", code, sentence)

    def _take(self, rules: RuleSet) -> None:
        """Believes as new rules say, and tells what a proxy's question cannot tell them."""
        self._rules = rules
        self._peers = {}
        by_host = rules.index.hosts
        self._read = Reader(self._dialect, self.limiter.proxies.field, by_host=by_host)
        for code, sentence in doubts(rules):
            _LOG.warning("%s: %s", code, sentence)

    async def _live(self, receive: Receive, send: Send) -> None:
        """The lifespan of an application that is nothing but this."""
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                self.limiter.start()
                await send({"type": "lifespan.startup.complete"})
            else:
                try:
                    await self.limiter.aclose()
                except Exception:  # noqa: BLE001  # the server ends all the same
                    _LOG.exception("close-failed: the store did not close; the shutdown goes on")
                await send({"type": "lifespan.shutdown.complete"})
                return


def doubts(rules: RuleSet) -> Iterator[tuple[str, str]]:
    """The rules that cannot hold, or not as they are meant, where only a proxy's question is seen.

    The response never is: whatever an option asks of it belongs here.
    """
    for rule in rules.rules:
        if rule.mode == "off":
            continue
        if "route" in rule.by:
            text = "counts by route, which a proxy does not know, so its requests are counted by "
            text += "address instead; write a rule for each path"
            yield "routes-unknown", f"rule {rule.name!r} {text}"
        if rule.charge is not None:
            text = "keeps a charge by the response, which a proxy does not tell, so every request "
            text += "is charged; let the application count these"
            yield "outcomes-unknown", f"rule {rule.name!r} {text}"
        if rule.websocket is not None:
            text = "limits what comes over WebSockets, which a proxy does not ask about, so only "
            text += "handshakes are counted; let the application limit messages"
            yield "messages-unknown", f"rule {rule.name!r} {text}"
        if rule.concurrency is not None:
            text = "bounds what is under way at once, and a proxy does not tell when a request "
            text += "ends, so that no place is held; let the application count these"
            yield "ends-unknown", f"rule {rule.name!r} {text}"
        longest = max((_longest_wait(each) for each in rule.limits), default=0.0)
        if longest > PATIENCE:
            text = f"lets requests wait up to {longest:g} s for their turn; a proxy that gives up "
            text += "before lets them go on too early; give it a max_delay below what that waits"
            yield "waits-too-long", f"rule {rule.name!r} {text}"


def _longest_wait(limit: Limit) -> float:
    """Seconds that a limit lets a request wait at most."""
    if limit.algorithm is not Algorithm.LEAKING_BUCKET:
        return 0.0
    drained = (limit.capacity - 1) * limit.window / limit.quota
    return drained if limit.max_delay is None else min(drained, limit.max_delay)


async def unheard() -> Message:
    """Hears nothing: where a proxy gives up, its request goes on, and must stay counted."""
    await anyio.sleep_forever()
    raise RuntimeError("it slept for ever")


def _instead_of_a_handshake(scope: Scope, send: Send) -> Send:
    """Sends a response where a handshake is awaited; closes it where the server cannot."""
    able = "websocket.http.response" in (scope.get("extensions") or {})

    async def send_response(message: Message) -> None:
        if able:
            await send({**message, "type": f"websocket.{message['type']}"})
        elif message["type"] == "http.response.start":
            await send({"type": "websocket.close", "code": 1008})

    return send_response
