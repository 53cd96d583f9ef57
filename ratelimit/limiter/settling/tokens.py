"""Tokens that carry a reservation to another process, signed so that nobody makes one up.

They are signed, not encrypted: whoever holds one can read whom it is for.
"""

import hmac
import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterable, Sequence
from hashlib import sha256
from typing import Any, Final

from ratelimit.rules.values import secrets as check_secrets

__all__ = ["Signer"]

LONGEST: Final = 100_000
"""Characters of a token that are looked at."""

_MAC: Final = 24
"""Bytes of a signature: 192 bits."""


class Signer:
    """Signs and reads tokens; the first secret signs, and each of them may have signed.

    Raises TypeError or ValueError for secrets that are not text of at least 16 characters.
    """

    def __init__(self, secrets: str | Iterable[str]) -> None:
        self._keys = [each.encode() for each in check_secrets(secrets)]

    def sign(self, content: Sequence[Any]) -> str:
        """A token of these plain values: letters, digits, ``-``, ``_`` and a dot.

        Raises RuntimeError where there is no secret.
        """
        if not self._keys:
            raise RuntimeError(
                "there is no secret to sign a token with; give RateLimiter(secret=...), or "
                "secret: ${NAME} in the rule file"
            )
        body = json.dumps(content, separators=(",", ":")).encode()
        return f"{_text(body)}.{_text(_mac(self._keys[0], body))}"

    def read(self, token: str) -> list[Any]:
        """The values in a token; raises ValueError where none of the secrets has signed it."""
        if not isinstance(token, str):
            raise TypeError(f"a token is text, not {type(token).__name__}")
        body, _, mac = token[:LONGEST].rpartition(".")
        try:
            content, signature = _bytes(body), _bytes(mac)
        except ValueError:
            raise ValueError("this is not a reservation's token") from None
        # All of them are compared, whichever matches.
        signed = [hmac.compare_digest(_mac(key, content), signature) for key in self._keys]
        if not any(signed):
            raise ValueError("this token was not signed with a secret of this limiter's")
        found: list[Any] = json.loads(content)
        return found


def _mac(key: bytes, body: bytes) -> bytes:
    return hmac.new(key, b"ratelimit reservation\0" + body, sha256).digest()[:_MAC]


def _text(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def _bytes(text: str) -> bytes:
    if not text.isascii():
        raise ValueError("not base64")
    return urlsafe_b64decode(text + "=" * (-len(text) % 4))
