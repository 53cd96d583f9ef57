"""The speed of a replay beside that of reading the log alone, in one run.

`python benchmarks/replay.py [LINES]` writes a log of so many lines (500,000 unless given) into a
temporary folder, reads it, and plays it against one rule in one reading, in turns; then with all
readings and orders. Times are those of the process's CPU, since machines are shared.
"""

import gc
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

from ratelimit import RuleSet
from ratelimit.insight.replay.log import Log
from ratelimit.insight.replay.session import Replay
from ratelimit.limits import Algorithm

ROUNDS = 5
TARGET = 0.4
RULES = "version: 1\nrules:\n  - name: api\n    limit: {quota}/minute\n    algorithm: {algorithm}\n"


def write(path: Path, lines: int) -> None:
    """A log in the combined format: 400 requests a second of clients of a Zipf-like law."""
    chance = random.Random(1)
    now = 1_700_352_000.0
    with path.open("w", encoding="utf-8") as file:
        for number in range(lines):
            now += chance.expovariate(400)
            client = min(int(chance.paretovariate(0.8)), 20_000)
            at = datetime.fromtimestamp(int(now), UTC)
            file.write(
                f"10.0.{client >> 8}.{client & 255} - - [{at:%d/%b/%Y:%H:%M:%S} +0000] "
                f'"GET /api/items/{chance.randrange(1_000)}?q={number} HTTP/1.1" 200 1234 '
                '"https://example.com/" "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36"\n'
            )


def rate(lines: int, work: Callable[[], object]) -> float:
    """Lines a second of CPU time."""
    gc.collect()
    start = time.process_time()
    work()
    return lines / (time.process_time() - start)


def parse(path: Path) -> int:
    """Reads the requests of a log and does nothing with them."""
    return sum(len(block) for block in Log([str(path)]).entries())


def play(path: Path, rules: str, *, everything: bool = False) -> Replay:
    """Plays a log against rules: one reading in one order, or all of them."""
    log = Log([str(path)])
    replay = (
        Replay(RuleSet.loads(rules), log)
        if everything
        else Replay(RuleSet.loads(rules), log, readings=["logged"], orders=["worst"])
    )
    replay.run()
    return replay


def measured(path: Path, lines: int, rules: str) -> tuple[list[float], list[float], int]:
    """The rates of the parser and of the replay, in turns, and the refusals."""
    alone, played, replays = [], [], []
    for _ in range(ROUNDS):
        alone.append(rate(lines, lambda: parse(path)))
        played.append(rate(lines, lambda: replays.append(play(path, rules))))
    return alone, played, replays[0].passes[0].player.refused


def main() -> int:
    """Prints a table, and ends with 1 where the target is missed."""
    lines = int(sys.argv[1]) if len(sys.argv) > 1 else 500_000
    gc.set_threshold(100_000)  # as the command has it
    missed = False
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "access.log"
        write(path, lines)
        parse(path)
        print("| algorithm | quota | refused | parser alone | replay | replay / parser |")
        print("| --- | ---: | ---: | ---: | ---: | ---: |")
        for algorithm in Algorithm:
            for quota in (1_000_000, 5_000, 100):
                if algorithm is Algorithm.SLIDING_LOG and quota > 5_000:
                    continue  # a log of a million units is another benchmark
                rules = RULES.format(quota=quota, algorithm=algorithm.value)
                alone, played, refused = measured(path, lines, rules)
                ratio = median(played) / median(alone)
                missed |= quota == 5_000 and ratio < TARGET
                print(
                    f"| {algorithm.value} | {quota} | {refused / lines:.0%} | {median(alone):,.0f} "
                    f"| {median(played):,.0f} | {ratio:.2f} |"
                )
        rules = RULES.format(quota=5_000, algorithm="sliding_counter")
        every = rate(lines, lambda: play(path, rules, everything=True))
        print(f"\nAll three readings in two orders, six passes: {every:,.0f} lines a second.")
        print(f"Most memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB.")
        outcome = "missed" if missed else "met"
        print(f"Target at least {TARGET} where about a fifth is refused: {outcome}.")
    return missed


if __name__ == "__main__":
    sys.exit(main())
