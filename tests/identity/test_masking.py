"""Identities as a log may show them."""

import pytest

from ratelimit.decisions import identity_digest
from ratelimit.identity.keys import identity_of
from ratelimit.identity.masking import masked

SECRET = "sk_live_51HxQ7abcdef"

WHOLE: list[tuple[tuple[str, ...], tuple[str, ...], str]] = [
    (("client",), ("192.0.2.1",), "192.0.2.1"),
    (("client",), ("2001:db8::1",), "2001:db8::/64"),
    (("client",), ("1::",), "1::/64"),
    (("client",), ("4::",), "4::/64"),  # four characters follow the colon
    (("client",), ("unidentified",), "unidentified"),
    (("global",), ("",), "global"),
    (("route",), ("/items/{id}",), "route=/items/{id}"),
    (("client", "route"), ("1::", "/a b"), "client=1::/64 route=/a?b"),
]


@pytest.mark.parametrize(("by", "values", "shown"), WHOLE)
def test_addresses_and_routes_are_shown(
    by: tuple[str, ...], values: tuple[str, ...], shown: str
) -> None:
    assert masked(identity_of(by, values)[0]) == shown


PARTS: list[tuple[tuple[str, ...], tuple[str, ...], str]] = [
    (("header:x-api-key",), (SECRET,), "header:x-api-key=sk_l…"),
    (("cookie:session",), ("abcdefghijklmno",), "cookie:session=…"),
    (("cookie:session",), ("abcdefghijklmnop",), "cookie:session=abcd…"),
    (("query:key",), ("\x1b[3 1m" + SECRET,), "query:key=?[3?…"),
    (("query:key",), ("\n\u202e\u2028" + SECRET,), "query:key=???s…"),
    (("user",), ("alice",), "user=…"),
    (("path:token",), (SECRET,), "path:token=sk_l…"),
    (("account",), ("8:client=1",), "account=…"),
    (("header:x",), ("x" * 65_536,), "header:x=…"),
    (("header:x",), ("",), "header:x=…"),
    (("header:x#y",), (SECRET,), "header:x#y=sk_l…"),
    (("client", "header:x"), ("192.0.2.1", f"11:client=1::{SECRET}"),
     "client=192.0.2.1 header:x=11:c…"),
    (("header:x", "header:y"), ("client=198.51.100.1", "5:a=b=c"), "header:x=clie… header:y=…"),
]  # fmt: skip


@pytest.mark.parametrize(("by", "values", "shown"), PARTS)
def test_of_anything_else_at_most_four_characters_and_a_digest_are_shown(
    by: tuple[str, ...], values: tuple[str, ...], shown: str
) -> None:
    identity = identity_of(by, values)[0]
    assert masked(identity) == f"{shown} #{identity_digest(identity)}"
    assert SECRET not in masked(identity)


@pytest.mark.parametrize(
    "identity", ["sk_live", "7:", "3:a=b2:c", "99999:x=y", "²:a=b", "-1:a=b", SECRET, "a#b"]
)
def test_a_text_that_is_no_identity_of_ours_shows_nothing_of_itself(identity: str) -> None:
    text, _, digest = masked(identity).partition(" #")
    assert digest == identity_digest(identity)
    assert SECRET not in text
    assert text.endswith("…")


def test_nobody_is_shown_as_nobody() -> None:
    assert masked("") == ""
