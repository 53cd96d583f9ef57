"""Networks: what they hold, how they are written and changed, and files of them."""

import time
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

import pytest

from ratelimit.identity.addresses import Network, read_network
from ratelimit.identity.networks import Networks, networks_in
from tests.support.addresses import read


def test_a_network_holds_its_addresses_and_no_others() -> None:
    networks = Networks(["192.0.2.0/25", ip_network("198.51.100.7/32"), "2001:db8::/33"])
    inside = ["192.0.2.127", "::ffff:192.0.2.0", "198.51.100.7", "2001:db8:7fff::1"]
    outside = ["192.0.2.128", "198.51.100.6", "2001:db8:8000::", "::192.0.2.1"]
    for text, expected in [(each, True) for each in inside] + [(each, False) for each in outside]:
        assert (read(text) in networks) is expected, text
    assert networks
    assert not Networks()


def test_networks_are_added_and_taken_out_one_by_one_whatever_lies_within_them() -> None:
    networks = Networks()
    inner, outer = read("10.1.2.3"), read("10.9.9.9")
    for text in ("10.1.2.0/24", "10.0.0.0/8", "10.0.0.0/8", "2001:db8::/32", "10.3.0.0/24"):
        networks.add(text)
    assert (len(networks), inner in networks, outer in networks) == (4, True, True)
    networks.discard(IPv4Network("10.0.0.0/8"))
    networks.discard("10.0.0.0/9")
    assert (len(networks), inner in networks, outer in networks) == (3, True, False)
    networks.add("0.10.0.0/16")  # of the same bits as 10.0.0.0/8, which are not the same network
    networks.discard("10.0.0.0/8")
    assert read("0.10.0.1") in networks
    networks.discard("0.10.0.0/16")
    networks.discard("10.3.0.0/24")
    assert set(networks) == {IPv4Network("10.1.2.0/24"), IPv6Network("2001:db8::/32")}
    networks.discard("10.1.2.0/24")
    networks.discard("2001:db8::/32")
    assert (len(networks), inner in networks, bool(networks)) == (0, False, False)


def test_networks_are_replaced_all_at_once_or_not_at_all() -> None:
    networks = Networks(["192.0.2.0/24"])
    with pytest.raises(ValueError, match="not an address or a network"):
        networks.replace(["198.51.100.0/24", "x"])
    assert list(networks) == [IPv4Network("192.0.2.0/24")]
    networks.replace(iter(networks))
    assert list(networks) == [IPv4Network("192.0.2.0/24")]
    networks.replace([])
    assert list(networks) == []


def test_networks_made_of_other_networks_are_changed_alone() -> None:
    first = Networks(["192.0.2.0/24", "2001:db8::/32"])
    second = Networks(first)
    assert set(second) == set(first)
    second.add("198.51.100.0/24")
    first.discard("2001:db8::/32")
    assert set(first) == {IPv4Network("192.0.2.0/24")}
    assert len(second) == 3


def test_a_network_of_ipv4_addresses_in_ipv6_is_that_of_the_ipv4_addresses() -> None:
    """Addresses are compared unwrapped, so that it would match none otherwise."""
    for network in ("::ffff:192.0.2.0/120", "64:ff9b::c000:200/120"):
        assert read_network(network) == IPv4Network("192.0.2.0/24")
        assert read("192.0.2.9") in Networks([IPv6Network(network)])
        assert read("192.0.3.9") not in Networks([IPv6Network(network)])
    assert read_network("::ffff:0:0/96") == IPv4Network("0.0.0.0/0")
    assert read("1.2.3.4") not in Networks(["::/0"])
    assert read("2001:db8::") in Networks(["::/0"])


def test_an_object_of_another_type_is_not_a_network() -> None:
    with pytest.raises(
        TypeError, match=r"^a network is text, IPv4Network or IPv6Network, not IPv4Address$"
    ):
        Networks().add(ip_address("192.0.2.1"))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "network"),
    [
        ("192.0.2.7", IPv4Network("192.0.2.7/32")),
        ("10.0.0.0/8", IPv4Network("10.0.0.0/8")),
        ("10.0.0.0/255.0.0.0", IPv4Network("10.0.0.0/8")),
        ("2001:DB8::/32", IPv6Network("2001:db8::/32")),
        ("::1", IPv6Network("::1/128")),
    ],
)
def test_a_network_is_written_as_an_address_or_with_its_prefix(text: str, network: Network) -> None:
    assert read_network(text) == network


NONE = 'is not an address or a network; write 192.0.2.7, 10.0.0.0/8 or "2001:db8::/32"'
WHOLE = (
    "would be every IPv4 address, as which those of NAT64 are counted; write 0.0.0.0/0 if all are "
    "meant"
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", f"'' {NONE}"),
        ("proxy", f"'proxy' {NONE}"),
        ("192.0.2.0/33", f"'192.0.2.0/33' {NONE}"),
        ("192.0.2.0/", f"'192.0.2.0/' {NONE}"),
        ("fe80::1%eth0", f"'fe80::1%eth0' {NONE}"),
        ("fe80::%eth0/64", f"'fe80::%eth0/64' {NONE}"),
        ("1.2.3.4:80", f"'1.2.3.4:80' {NONE}"),
        ("x" * 99, f"'{'x' * 56}... {NONE}"),
        (
            "192.0.2.7/24",
            "'192.0.2.7/24' has bits set beyond its prefix; the network is 192.0.2.0/24",
        ),
        (
            "2001:db8::1/32",
            "'2001:db8::1/32' has bits set beyond its prefix; the network is 2001:db8::/32",
        ),
        ("64:ff9b::/96", f"'64:ff9b::/96' {WHOLE}"),
    ],
)  # fmt: skip
def test_text_that_is_not_a_network_is_refused_in_one_sentence(text: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        read_network(text)
    assert str(caught.value) == message


def test_a_file_of_networks_has_one_a_line_and_comments() -> None:
    text = "# office\r\n192.0.2.0/24  # all of it\n\n\t2001:db8::7\r::ffff:198.51.100.9\n#"
    networks = ["192.0.2.0/24", "2001:db8::7/128", "198.51.100.9/32"]
    assert networks_in(text) == ([ip_network(each) for each in networks], [])
    assert networks_in("") == ([], [])


def test_every_mistake_in_a_file_of_networks_has_its_line_and_column() -> None:
    text = "192.0.2.1\n  192.0.2.1 192.0.2.2\n10.0.0.0/8\n10.1.1.1/8#x\n"
    networks, mistakes = networks_in(text)
    assert networks == [ip_network("192.0.2.1"), ip_network("10.0.0.0/8")]
    assert mistakes == [
        (2, 3, f"'192.0.2.1 192.0.2.2' {NONE}"),
        (4, 1, "'10.1.1.1/8' has bits set beyond its prefix; the network is 10.0.0.0/8"),
    ]


def test_a_hundred_thousand_networks_are_looked_up_as_fast_as_a_few() -> None:
    """One probe per prefix length; and one more network is added at once, or all are copied."""
    few = Networks(f"10.0.0.0/{length}" for length in range(9, 33))
    many = Networks(
        IPv4Network((11 << 24 | number << 32 - length & 0xFFFFFF, length))
        for length in range(9, 33)
        for number in range(8_000)
    )
    assert len(many) > 100_000
    miss = read("192.0.2.1")

    def seconds(networks: Networks) -> float:
        best = 1.0
        for _ in range(20):
            start = time.thread_time()
            for _ in range(200):
                assert miss not in networks
            best = min(best, time.thread_time() - start)
        return best

    assert seconds(many) < 4 * seconds(few)
    start = time.thread_time()
    many.add("192.0.2.0/24")
    many.discard("11.0.0.0/9")
    assert time.thread_time() - start < 0.005
    assert miss in many
    start = time.thread_time()
    copied = Networks(many)
    assert time.thread_time() - start < 0.05
    assert miss in copied
