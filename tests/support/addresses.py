"""Addresses for the tests that need them as values."""

from ratelimit.identity.addresses import Address, read_address


def read(text: str, prefix: int = 64) -> Address:
    """The address that a text surely is."""
    address = read_address(text, prefix)
    assert address is not None, text
    return address
