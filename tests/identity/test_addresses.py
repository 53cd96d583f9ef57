"""Addresses: one identity for all notations of each, and none for what is not one."""

from ipaddress import ip_address

import pytest

from ratelimit.identity.addresses import read_address
from tests.support.addresses import read

PREFIXES = [16, 32, 48, 56, 64, 96, 127, 128]


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("::ffff:c000:201", "192.0.2.1"),
        ("0:0:0:0:0:FFFF:C000:0201", "192.0.2.1"),
        ("::ffff:192.0.2.1%eth0", "192.0.2.1"),
        ("64:ff9b::192.0.2.1", "192.0.2.1"),
        ("64:ff9b::c000:201", "192.0.2.1"),
        ("2001:db8::1", "2001:db8::/64"),
        ("2001:DB8:0:0:FFFF::1", "2001:db8::/64"),
        ("2001:db8::192.0.2.1", "2001:db8::/64"),
        ("2001:db8:0:1::1", "2001:db8:0:1::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("fe80::1%eth1", "fe80::/64"),
        ("2002:c000:201:1::1", "2002:c000:201::/48"),
        ("2002:c000:201:2::1", "2002:c000:201::/48"),
        ("64:ff9b:1::c000:201", "64:ff9b:1::c000:201/128"),
        ("64:ff9b:1:c0:0:201::", "64:ff9b:1:c0:0:201::/128"),
    ],
)
def test_every_notation_of_an_address_is_one_identity_and_ipv6_counts_by_its_64_bits(
    text: str, key: str
) -> None:
    assert read(text).key == key


@pytest.mark.parametrize(
    ("prefix", "key"),
    [
        (16, "2001::/16"),
        (48, "2001:db8:1::/48"),
        (56, "2001:db8:1:200::/56"),
        (64, "2001:db8:1:2ff::/64"),
        (128, "2001:db8:1:2ff::9/128"),
    ],
)
def test_ipv6_is_counted_by_as_many_bits_as_are_asked_for(prefix: int, key: str) -> None:
    assert read("2001:db8:1:2ff::9", prefix).key == key
    assert read("2001:db8:1:2ff::9", prefix).number == int(ip_address("2001:db8:1:2ff::9"))


@pytest.mark.parametrize("prefix", PREFIXES)
def test_an_ipv4_client_has_one_identity_at_any_ipv6_prefix(prefix: int) -> None:
    """A 6to4 site is one client too: it has one IPv4 address, and 65,536 networks of 64 bits."""
    for form in ("192.0.2.1", "::ffff:192.0.2.1", "::ffff:c000:201", "64:ff9b::192.0.2.1"):
        assert read(form, prefix) == (4, 0xC0000201, "192.0.2.1")
    assert read("2002:c000:201:7::1", prefix).key == "2002:c000:201::/48"


@pytest.mark.parametrize(
    "text",
    ["", "testclient", "unknown", "_hidden", "192.0.2.01", "192.0.2", "3221225985", "1.2.3.4.5",
     "/run/app.sock", "0x7f.1", "::g", "[::1]", "1.2.3.4:80", "<script>", "1" * 65,
     "\udcff", "1.2.3.4\x00", "1.2.3.4\n", " 1.2.3.4", "\uff11.\uff12.\uff13.\uff14", "%",
     "fe80::1%" + "x" * 60],
)  # fmt: skip
def test_text_that_is_not_an_address_is_none(text: str) -> None:
    assert read_address(text) is None


# --- bypasses that other limiters had ------------------------------------------------------------


@pytest.mark.parametrize("prefix", PREFIXES)
def test_two_ipv4_clients_never_share_an_identity_through_their_ipv6_forms(prefix: int) -> None:
    """CVE-2026-30827: a prefix laid over ::ffff:a.b.c.d put all of IPv4 into one bucket."""
    forms = ("192.0.2.{}", "::ffff:192.0.2.{}", "::ffff:c000:20{}", "64:ff9b::192.0.2.{}")
    keys = {read(form.format(last), prefix).key for last in (1, 2) for form in forms}
    assert keys == {"192.0.2.1", "192.0.2.2"}
    sites = {read(f"2002:c000:20{last}::1", prefix).key for last in (1, 2)}
    local = {read(f"64:ff9b:1::192.0.2.{last}", prefix).key for last in (1, 2)}
    assert len(sites) == len(local) == 2


def test_a_mapped_address_is_known_by_its_bits_and_not_by_its_dots() -> None:
    """express-rate-limit, pull request 667."""
    assert read("::ffff:102:304").key == "1.2.3.4"
    assert read("2001:db8::1.2.3.4").key == "2001:db8::/64"
    assert read("::fffe:1.2.3.4").key == "::/64"
