"""A master with replicas under sentinels, which choose another when it fails."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.support.servers import (
    AGREED_WITHIN,
    CommandError,
    Server,
    is_fed,
    temporary_folder,
    wait_until,
)

SERVICE: Final = "mymaster"


class Sentinel(Server):
    """One sentinel: the same program, told by a file that it writes to."""

    def _arguments(self) -> list[str]:
        return [str(Path(self.folder, "sentinel.conf")), "--sentinel"]

    def state(self) -> dict[str, str]:
        """What it knows of the master, as redis-py asks for it.

        A failover that was asked for is seen here up to two seconds later than by
        GET-MASTER-ADDR-BY-NAME: when the other replicas have turned round.
        """
        said = self.ask("SENTINEL", "MASTER", SERVICE)
        return dict(zip(said[::2], said[1::2], strict=True))


class Sentinels:
    """A master, its replicas, and the sentinels that watch them. Everything here blocks.

    ``nodes`` are the master as it was at first, then the replicas.
    """

    def __init__(self, nodes: list[Server], sentinels: list[Sentinel]) -> None:
        self.nodes = nodes
        self.sentinels = sentinels

    @property
    def alive(self) -> list[Sentinel]:
        """The sentinels that run."""
        return [each for each in self.sentinels if each.process is not None]

    @property
    def url(self) -> str:
        """The URI that names every sentinel, and the service."""
        hosts = ",".join(f"127.0.0.1:{each.port}" for each in self.sentinels)
        return f"redis+sentinel://{hosts}/{SERVICE}"

    def master(self, by: Sentinel | None = None) -> Server:
        """The master now, as one of the sentinels sees it."""
        state = (by or self.alive[0]).state()
        return next(node for node in self.nodes if str(node.port) == state["port"])

    def failover(self, *, kill: bool = True) -> Server:
        """Puts a replica in the master's place, and returns it when every sentinel knows.

        The master is killed, so that what its replicas had not received is lost; or, without
        ``kill``, the sentinels are asked. The old master then takes writes for some 8 s more,
        which are lost when it becomes a replica; `settle` waits for that.
        """
        before = self.master()
        if kill:
            before.kill()
        else:
            wait_until(self._accepted, "the sentinels take the request", AGREED_WITHIN)

        def agreed() -> bool:
            states = [each.state() for each in self.alive]
            seen = {(state["port"], state["flags"]) for state in states}
            after = self.master()
            return after is not before and seen == {(str(after.port), "master")}

        wait_until(agreed, "the sentinels agree on a new master", AGREED_WITHIN)
        return self.master()

    def settle(self) -> None:
        """Returns when every node that runs, but for the master, is its replica and up to date."""
        master = self.master()
        role = ["slave", "127.0.0.1", master.port]

        def follows(node: Server) -> bool:
            return node.ask("ROLE")[:3] == role and is_fed(node)

        followers = [node for node in self.nodes if node is not master and node.process is not None]
        wait_until(lambda: all(map(follows, followers)), "the replicas follow", AGREED_WITHIN)

    def _accepted(self) -> bool:
        """False while an earlier failover is not over, or its replicas are not yet turned round."""
        try:
            self.alive[0].ask("SENTINEL", "FAILOVER", SERVICE)
        except CommandError as error:
            if str(error).startswith(("INPROG", "NOGOODSLAVE")):
                return False
            raise
        return True


@contextmanager
def sentinel(
    binary: str, replicas: int = 2, sentinels: int = 3, *options: str, down_after_ms: int = 1500
) -> Iterator[Sentinels]:
    """A master under sentinels that know each other and its replicas, ready after some 2 s.

    A failover takes some 4 s. ``down_after_ms`` is above a second: that is how long a sentinel may
    take to connect to a new master, which it else thinks down at once, and replaces again.
    """
    nodes: list[Server] = []
    watchers: list[Sentinel] = []
    with temporary_folder() as folder:
        try:
            for number in range(1 + replicas):
                home = Path(folder, str(number))
                home.mkdir()
                words = ["--repl-diskless-sync", "yes", "--repl-diskless-sync-delay", "0"]
                if number:
                    words += ["--replicaof", "127.0.0.1", str(nodes[0].port)]
                nodes.append(Server(binary, str(home), *words, *options))
                nodes[-1].start()
            for number in range(sentinels):
                home = Path(folder, f"sentinel-{number}")
                home.mkdir()
                watchers.append(Sentinel(binary, str(home)))
                _configure(watchers[-1], nodes[0].port, sentinels // 2 + 1, down_after_ms)
                watchers[-1].start()
            wait_until(
                lambda: (
                    all(map(is_fed, nodes[1:]))
                    and all(_knows(each, replicas, sentinels - 1) for each in watchers)
                ),
                "the sentinels know each other and the replicas",
                AGREED_WITHIN,
            )
            yield Sentinels(nodes, watchers)
        finally:
            for each in (*watchers, *nodes):
                each.kill()


def _configure(watcher: Sentinel, master: int, quorum: int, down_after_ms: int) -> None:
    lines = [
        f"port {watcher.port}",
        "bind 127.0.0.1",
        f"dir {watcher.folder}",
        f"sentinel monitor {SERVICE} 127.0.0.1 {master} {quorum}",
        f"sentinel down-after-milliseconds {SERVICE} {down_after_ms}",
        f"sentinel failover-timeout {SERVICE} 2000",
        f"sentinel parallel-syncs {SERVICE} 1",
    ]
    Path(watcher.folder, "sentinel.conf").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _knows(watcher: Sentinel, replicas: int, others: int) -> bool:
    state = watcher.state()
    return (state["num-slaves"], state["num-other-sentinels"]) == (str(replicas), str(others))
