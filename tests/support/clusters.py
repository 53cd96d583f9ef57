"""A cluster of servers, whose slots move and whose masters fail."""

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from tests.support.servers import (
    AGREED_WITHIN,
    Server,
    free_port,
    is_fed,
    temporary_folder,
    wait_until,
)

SLOTS: Final = 16_384


class Seen(NamedTuple):
    """A node as another one sees it (a line of CLUSTER NODES)."""

    port: int
    flags: frozenset[str]
    master: str  # its master's id; "-" where it has none
    epoch: int  # by which two nodes that claim one slot are told apart: the higher has it
    slots: frozenset[int]


class Cluster:
    """The servers of one cluster. Everything here blocks: `asyncio.to_thread` in a running loop.

    ``nodes`` are the masters as they were at first, then their replicas; of ``failover`` and
    ``migrate`` they know nothing, `master_of` and `masters` do.
    """

    def __init__(self, nodes: list[Server]) -> None:
        self.nodes = nodes

    @property
    def url(self) -> str:
        """The URI that names every node."""
        return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)

    @property
    def alive(self) -> list[Server]:
        """The nodes that run."""
        return [node for node in self.nodes if node.process is not None]

    def slot(self, key: str) -> int:
        """The slot of a key."""
        found: int = self.alive[0].ask("CLUSTER", "KEYSLOT", key)
        return found

    def seen(self, by: Server | None = None) -> dict[str, Seen]:
        """Every node by its id, as one of them sees it."""
        lines = (by or self.alive[0]).ask("CLUSTER", "NODES").splitlines()
        return {line.split()[0]: _read_node(line.split()) for line in lines}

    def masters(self) -> list[Server]:
        """Those that hold slots now."""
        ports = {each.port for each in self.seen().values() if each.slots}
        return [node for node in self.nodes if node.port in ports]

    def master_of(self, slot: int) -> Server:
        """The node that a slot belongs to now, by its own account: others hear of it later."""
        for node in self.alive:
            mine = next(each for each in self.seen(node).values() if each.port == node.port)
            if slot in mine.slots:
                return node
        raise LookupError(f"no node says that slot {slot} is its own")

    def replicas_of(self, master: Server) -> list[Server]:
        """Those of its replicas that run."""
        identity = master.ask("CLUSTER", "MYID")
        ports = {each.port for each in self.seen(master).values() if each.master == identity}
        return [node for node in self.alive if node.port in ports]

    def migrate(self, slot: int, source: Server, target: Server) -> None:
        """Moves a slot with its keys to another master."""
        self.begin_migration(slot, source, target)
        while self.move_keys(slot, source, target):
            pass
        self.end_migration(slot, source, target)

    def begin_migration(self, slot: int, source: Server, target: Server) -> None:
        """From here on the source answers ASK for keys of the slot that it does not have."""
        to, of = target.ask("CLUSTER", "MYID"), source.ask("CLUSTER", "MYID")
        target.ask("CLUSTER", "SETSLOT", str(slot), "IMPORTING", of)
        source.ask("CLUSTER", "SETSLOT", str(slot), "MIGRATING", to)

    def move_keys(self, slot: int, source: Server, target: Server, most: int = 100) -> int:
        """Moves so many keys of a slot whose migration has begun, and tells how many it found."""
        keys = source.ask("CLUSTER", "GETKEYSINSLOT", str(slot), str(most))
        if keys:
            to = ["127.0.0.1", str(target.port), "", "0", "5000"]
            source.ask("MIGRATE", *to, "KEYS", *keys)
        return len(keys)

    def end_migration(self, slot: int, source: Server, target: Server) -> None:
        """Gives the slot to the target, and returns when every node knows.

        The target takes an epoch one above all that it has heard of. So it must have heard of all,
        or two masters have one epoch, one of them takes another, and its claim to a slot that it
        has just given away is the higher: the slot is nobody's, or its keys are deleted.
        """
        owner = target.ask("CLUSTER", "MYID")
        others = [node for node in self.masters() if node not in (source, target)]
        self._wait(self._know_all_epochs)
        # The target first: were it the last to know, nobody would own the slot in between.
        for node in (target, source, *others):
            node.ask("CLUSTER", "SETSLOT", str(slot), "NODE", owner)
        self._wait(lambda: all(slot in self.seen(node)[owner].slots for node in self.alive))

    def _know_all_epochs(self) -> bool:
        """Whether no two masters have one epoch, and every node has heard of all of them."""
        heard = [
            {name: each.epoch for name, each in self.seen(node).items() if each.slots}
            for node in self.alive
        ]
        return len(set(heard[0].values())) == len(heard[0]) and heard.count(heard[0]) == len(heard)

    def failover(self, master: Server, *, kill: bool = True) -> Server:
        """Puts a replica in a master's place, and returns it when every node knows.

        The master is killed, so that what its replicas had not received is lost; or, without
        ``kill``, asked, so that nothing is. A killed one that is started again is a replica.
        """
        heirs = {node.ask("CLUSTER", "MYID"): node for node in self.replicas_of(master)}
        if not heirs:
            raise ValueError(f"the node at port {master.port} has no replica")
        if kill:
            master.kill()
        else:
            next(iter(heirs.values())).ask("CLUSTER", "FAILOVER")

        def found() -> list[str]:
            return [each for each in heirs if self.seen(heirs[each])[each].slots]

        self._wait(lambda: found() and self._agree(found()[0]))
        return heirs[found()[0]]

    def _agree(self, owner: str) -> bool:
        return all(
            "cluster_state:ok" in node.ask("CLUSTER", "INFO") and self.seen(node)[owner].slots
            for node in self.alive
        )

    def _wait(self, holds: Callable[[], object]) -> None:
        wait_until(holds, "all nodes of the cluster agree", AGREED_WITHIN)


def _read_node(words: list[str]) -> Seen:
    slots: set[int] = set()
    for word in words[8:]:
        if not word.startswith("["):  # one that is on its way, which its owner still has
            first, _, last = word.partition("-")
            slots.update(range(int(first), int(last or first) + 1))
    port = int(words[1].partition("@")[0].rpartition(":")[2])
    return Seen(port, frozenset(words[2].split(",")), words[3], int(words[6]), frozenset(slots))


@contextmanager
def cluster(
    binary: str, masters: int = 3, replicas: int = 0, *options: str, node_timeout_ms: int = 2000
) -> Iterator[Cluster]:
    """A cluster that takes writes, with so many replicas of each master.

    A failover takes about ``node_timeout_ms`` and a second more. Ready after some two seconds,
    which is how long a master waits after its start before it takes writes.
    """
    nodes: list[Server] = []
    words = ["--cluster-enabled", "yes", "--cluster-node-timeout", str(node_timeout_ms)]
    words += ["--repl-diskless-sync", "yes", "--repl-diskless-sync-delay", "0"]
    with temporary_folder() as folder:
        try:
            for number in range(masters * (1 + replicas)):
                home = Path(folder, str(number))
                home.mkdir()
                nodes.append(Server(binary, str(home), *words, *options, port=_cluster_port()))
                nodes[-1].start()
            _join(nodes, masters)
            yield Cluster(nodes)
        finally:
            for node in nodes:
                node.kill()


def _cluster_port() -> int:
    """A port with which its nodes' bus, 10000 above it, is free as well.

    Servers before 7.0 have no option for another.
    """
    while True:
        port = free_port() - 10_000
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except (OSError, OverflowError):
                continue
        return port


def _join(nodes: list[Server], masters: int) -> None:
    """Makes separate nodes one cluster, and returns when each knows all and takes writes."""
    owners = [node.ask("CLUSTER", "MYID") for node in nodes[:masters]]
    for number, node in enumerate(nodes):
        node.ask("CLUSTER", "SET-CONFIG-EPOCH", str(number + 1))
        if number < masters:
            mine = range(number * SLOTS // masters, (number + 1) * SLOTS // masters)
            node.ask("CLUSTER", "ADDSLOTS", *map(str, mine))
        if number:
            node.ask("CLUSTER", "MEET", "127.0.0.1", str(nodes[0].port))
    known = f"cluster_known_nodes:{len(nodes)}\r"

    def met(node: Server) -> bool:
        flags = [each.flags for each in Cluster([node]).seen().values()]
        return known in node.ask("CLUSTER", "INFO") and not any("handshake" in f for f in flags)

    wait_until(lambda: all(map(met, nodes)), "every node knows every other", AGREED_WITHIN)
    for number, node in enumerate(nodes[masters:]):
        node.ask("CLUSTER", "REPLICATE", owners[number % masters])

    def ready(node: Server) -> bool:
        state, seen = node.ask("CLUSTER", "INFO"), Cluster([node]).seen().values()
        return (
            "cluster_state:ok" in state
            and sum(len(each.slots) for each in seen) == SLOTS
            and sum(each.master in owners for each in seen) == len(nodes) - masters
            and (node in nodes[:masters] or is_fed(node))
        )

    wait_until(lambda: all(map(ready, nodes)), "every node takes writes", AGREED_WITHIN)
