"""Sets of networks, looked up by address."""

import re
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Network, IPv6Network

from ratelimit.identity.addresses import Address, Network, read_network, unwrapped

__all__ = ["Networks", "networks_in"]


def networks_in(text: str) -> tuple[list[Network], list[tuple[int, int, str]]]:
    """The networks in a file, one a line (``#`` starts a comment), and its mistakes.

    A mistake is its line and column, both from 1, and a sentence.
    """
    networks: list[Network] = []
    mistakes: list[tuple[int, int, str]] = []
    for number, line in enumerate(re.split("\r\n|\r|\n", text), 1):
        item = line.partition("#")[0].strip()
        if not item:
            continue
        try:
            networks.append(read_network(item))
        except ValueError as error:
            mistakes.append((number, line.index(item) + 1, str(error)))
    return networks, mistakes


class Networks:
    """A set of networks that tells whether an address lies in one: ``address in networks``.

    May be changed at any time. A look-up costs one probe per prefix length that occurs, however
    many networks there are. Networks are given as objects or as text, which raises ValueError
    where `read_network` does.
    """

    __slots__ = ("_groups", "empty")

    _groups: dict[int, tuple[tuple[int, set[int]], ...]]
    empty: bool
    """Whether the set is empty, which most requests ask of two lists."""

    def __init__(self, networks: Iterable[Network | str] = ()) -> None:
        self.replace(networks)

    def __contains__(self, address: Address) -> bool:
        version, number, _ = address
        for shift, group in self._groups[version]:  # noqa: SIM110  # any() takes half as long again
            if number >> shift in group:
                return True
        return False

    def __bool__(self) -> bool:
        return not self.empty

    def __len__(self) -> int:
        return sum(len(group) for groups in self._groups.values() for _, group in groups)

    def __iter__(self) -> Iterator[Network]:
        """Each network once, in no particular order."""
        for shift, group in self._groups[4]:
            yield from [IPv4Network((number << shift, 32 - shift)) for number in group]
        for shift, group in self._groups[6]:
            yield from [IPv6Network((number << shift, 128 - shift)) for number in group]

    def add(self, network: Network | str) -> None:
        """Adds a network, unless it is there already."""
        version, shift, number = _placed(network)
        self.empty = False
        groups = self._groups[version]
        for known, group in groups:
            if known == shift:
                group.add(number)
                return
        self._groups[version] = (*groups, (shift, {number}))

    def discard(self, network: Network | str) -> None:
        """Removes exactly this network: not those within it, nor a part of a larger one."""
        version, shift, number = _placed(network)
        for known, group in self._groups[version]:
            if known == shift:
                group.discard(number)
        self._groups[version] = tuple(each for each in self._groups[version] if each[1])
        self.empty = not any(self._groups.values())

    def replace(self, networks: Iterable[Network | str]) -> None:
        """Replaces all networks with these.

        They are put in place in one step when all of them have been read, which takes a
        microsecond or two each, and about ten as text: for very many, run it in a thread. Those
        of another `Networks` are copied at once.
        """
        if isinstance(networks, Networks):
            self._groups = {
                version: tuple((shift, group.copy()) for shift, group in each)
                for version, each in networks._groups.items()  # noqa: SLF001  # of this class
            }
            self.empty = networks.empty
            return
        groups: dict[int, dict[int, set[int]]] = {4: {}, 6: {}}
        for network in networks:
            version, shift, number = _placed(network)
            groups[version].setdefault(shift, set()).add(number)
        self._groups = {version: tuple(each.items()) for version, each in groups.items()}
        self.empty = not any(self._groups.values())


def _placed(network: Network | str) -> tuple[int, int, int]:
    """IP version, number of host bits, and the network's number without those bits."""
    if isinstance(network, str):
        network = read_network(network)
    elif not isinstance(network, IPv4Network | IPv6Network):
        raise TypeError(
            f"a network is text, IPv4Network or IPv6Network, not {type(network).__name__}"
        )
    network = unwrapped(network)
    shift = network.max_prefixlen - network.prefixlen
    return network.version, shift, int(network.network_address) >> shift
