"""A real Prometheus, where one is installed, that scrapes what a test serves."""

import json
import os
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.servers import free_port, temporary_folder

Answer = dict[tuple[tuple[str, str], ...], float]
"""What a query gave: values by their labels."""


def prometheus() -> str | None:
    """The path of the program; None where there is none. PROMETHEUS may name one."""
    return os.environ.get("PROMETHEUS") or shutil.which("prometheus")


def read(told: dict[str, Any]) -> Answer:
    """The values of an instant vector, as the HTTP API tells it."""
    assert told["resultType"] == "vector", told
    return {
        tuple(sorted(each["metric"].items())): float(each["value"][1]) for each in told["result"]
    }


class Prometheus:
    """One that scrapes five times a second."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}/api/v1/query"

    def ask(self, query: str) -> Answer:
        """What a query gives now; raises OSError where it is refused."""
        asked = urllib.parse.urlencode({"query": query})
        with urllib.request.urlopen(f"{self._url}?{asked}", timeout=10) as reply:
            return read(json.load(reply)["data"])

    def wait(self, query: str, within: float = 20) -> None:
        """Returns when a query gives something."""
        until = time.monotonic() + within
        while time.monotonic() < until:
            try:
                if self.ask(query):
                    return
            except OSError:  # it has not started yet
                pass
            time.sleep(0.05)
        raise TimeoutError(f"not within {within:g} s: {query}")


@contextmanager
def scraping(program: str, ports: Sequence[int]) -> Iterator[Prometheus]:
    """A Prometheus whose targets are these ports of this machine."""
    with temporary_folder() as folder:
        targets = ", ".join(f"'127.0.0.1:{port}'" for port in ports)
        Path(folder, "prometheus.yml").write_text(
            "global: {scrape_interval: 200ms, scrape_timeout: 200ms}\n"
            f"scrape_configs: [{{job_name: test, static_configs: [{{targets: [{targets}]}}]}}]\n"
        )
        own = free_port()
        with Path(folder, "log").open("wb") as log:
            process = subprocess.Popen(
                [program, f"--config.file={folder}/prometheus.yml",
                 f"--storage.tsdb.path={folder}/data", f"--web.listen-address=127.0.0.1:{own}"],
                stdout=log, stderr=log,
            )  # fmt: skip
        try:
            yield Prometheus(own)
        finally:
            process.kill()
            process.wait()
