"""Whatever a rule file holds, it loads or is refused; and what is called unreachable is."""

import random
import time
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from jsonschema import Draft202012Validator

from ratelimit.decisions import Check
from ratelimit.limits import Algorithm, Limit
from ratelimit.rules.effect import unreachable
from ratelimit.rules.file.mistakes import Mistake, RuleFileError
from ratelimit.rules.file.schema import schema
from ratelimit.rules.overriding import BLOCKED
from ratelimit.rules.ruleset import RuleSet
from ratelimit.stores import MemoryStore
from ratelimit.testing import START_US, ManualClock

FOLDER = Path(__file__).resolve().parents[1] / "rules" / "file" / "good"
SOURCES = [(str(file), file.read_bytes()) for file in sorted(FOLDER.glob("*.yaml"))]
LISTS = "".join(file.read_text(encoding="utf-8-sig") for file in FOLDER.glob("lists/*.txt"))
SECRET = "s3cret!"
PIECES = [
    b"\0", b"\xff", b"\xef\xbb\xbf", b"\t", b"\r", b"---\n", b"!!python/object:os.system ",
    b"&a ", b"*a ", b"<<: ", b"${", b"${HOME}", b"${RULES_PASSWORD}", b"null", b"off", b"~",
    b"[", b"]", b"{", b"}", b": ", b"- ", b"? ", b"'", b'"', b"|", b">", b"%", b"@", b"#",
    b"\n", b"\n  ", b"9" * 400, b"-1", b"1e999", b"0x1F", b"\xe2\x80\xa8", b"rules:", b"::1",
    b"unlimited", b"limits: ", b"tier: user:plan", b"none", b"100%", b"10/minute; 700/hour",
    b"20/minute", b"5/second", b"client", b"user", b"1", b"50%", b"x", b" # x\n", b"[client]",
    b"0.0.0.0/0", b"../", b"/dev/zero", b"lists/keys.txt", b"by: global", b"mode: shadow",
]  # fmt: skip
ALL_TEXT: Any = getattr(yaml, "CBaseLoader", yaml.BaseLoader)
VALIDATOR = Draft202012Validator(schema())


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"COST": "2", "PROXY": "10.0.0.0/8", "QUOTA": "5", "VIP": "198.51.100.9"}
    for name, value in {**values, "PASSWORD": SECRET}.items():
        monkeypatch.setenv(f"RULES_{name}", value)


def mutated(draw: random.Random, raw: bytearray) -> None:
    at = draw.randrange(len(raw))
    match draw.randrange(5):
        case 0:
            raw[at:at] = draw.choice(PIECES)
        case 1:
            del raw[at : at + draw.randint(1, 9)]
        case 2:
            raw[at] = draw.randrange(32, 128)
        case 3:  # what is written between two blanks is another thing
            start, end = raw.rfind(b" ", 0, at) + 1, raw.find(b" ", at)
            raw[start : end if end > 0 else len(raw)] = draw.choice(PIECES)
        case _:
            end = at + draw.randint(1, 60)
            other = draw.randrange(len(raw))
            raw[other:other] = raw[at:end]


def read(text: str, name: str) -> tuple[RuleSet | None, tuple[Mistake, ...]]:
    try:
        return RuleSet.loads(text, name), ()
    except RuleFileError as error:
        return None, error.mistakes


KEPT: Final = range(740, 741)
"""Seeds that failed once (a file with a blocked identity), so that they are always tried."""


def unlimited_in(rule_set: RuleSet) -> int:
    """Tiers and overrides without a limit; a rule without one raises."""
    found = 0
    for rule in rule_set.rules:
        assert rule.limits or any(rule.tiers.values()) or rule.concurrency
        found += sum(not limits for limits in rule.tiers.values())
        own = (limits for limits in rule.overrides.values() if limits is not BLOCKED)
        found += sum(not limits for limits in own)
    return found


def rules_of(tree: Any) -> list[Any]:
    """The rules of a file in that reading, in which nothing, as rules may be, is text as well."""
    rules = tree.get("rules")
    return rules if isinstance(rules, list) else []


def unlimited_written(text: str) -> int:
    """How often a file says it, by YAML's own reading of it; one for each line of its lists."""
    written = 0
    for rule in rules_of(yaml.load(text, ALL_TEXT)):
        for key in ("limits", "overrides"):
            written += list(rule.get(key, {}).values()).count("unlimited")
        written += LISTS.count("unlimited") if "overrides_file" in rule else 0
    return written


@pytest.mark.parametrize(
    "seeds",
    [range(400), KEPT, pytest.param(range(400, 100_000), marks=pytest.mark.slow)],
    ids=str,
)
def test_a_mutilated_file_loads_or_is_refused_and_nothing_else(seeds: range) -> None:
    loaded = 0
    for seed in seeds:
        draw = random.Random(seed)
        name, source = draw.choice(SOURCES)
        raw = bytearray(source)
        for _ in range(draw.choice((1, 1, 2))):
            mutated(draw, raw)
        text = raw.decode("utf-8", "surrogateescape")
        start = time.process_time()
        rule_set, mistakes = read(text, name)
        assert all(each.line > 0 and each.column > 0 for each in mistakes), seed
        assert SECRET not in str(mistakes), seed
        assert bool(mistakes) != bool(rule_set), seed
        if rule_set is not None:
            loaded += 1
            assert unlimited_in(rule_set) <= unlimited_written(text), seed
            tree = yaml.load(text, ALL_TEXT)
            assert VALIDATOR.is_valid({**tree, "rules": rules_of(tree)}), seed
        assert time.process_time() - start < 1, seed
    if len(seeds) > 1:
        assert len(seeds) / 60 < loaded < len(seeds) / 2


# --- unreachable limits --------------------------------------------------------------------------


def pair(draw: random.Random) -> tuple[Limit, Limit]:
    """Two limits of which the second is about as much as the first lets through."""
    algorithm = draw.choice(list(Algorithm))
    window_us = draw.choice((1_000_000, 1_500_000, 2_000_000, 7_000_000, 60_000_000))
    other_us = draw.choice((window_us, 2 * window_us, 3 * window_us, window_us // 2, 5_000_000))
    quota = draw.randint(1, 6)
    windows = Fraction(other_us, window_us)
    other = max(1, round(quota * windows) + draw.randint(-1, quota + 2))
    burst: tuple[int | None, int | None] = (None, None)
    if algorithm in (Algorithm.TOKEN_BUCKET, Algorithm.LEAKING_BUCKET):
        burst = draw.randint(1, 6), draw.randint(1, 8)
    rounding: Any = draw.choice(("down", "up")) if algorithm == "sliding_counter" else "down"
    return (
        Limit.of(quota, window_us, algorithm=algorithm, burst=burst[0], rounding=rounding),
        Limit.of(other, other_us, algorithm=algorithm, burst=burst[1], rounding=rounding),
    )


async def refuses_alone(draw: random.Random, first: Limit, second: Limit) -> bool:
    """Whether the second is seen to refuse what the first lets pass, by one who tries hard."""
    clock = ManualClock()
    clock.set_us(START_US + draw.randrange(10**9))
    step_us = first.window_us // first.quota
    async with MemoryStore(clock=clock) as store:
        for _ in range(120):
            cost = draw.choice((1, 1, 1, draw.randint(1, first.capacity)))
            found = await store.decide([Check(first, "one", cost), Check(second, "two", cost)])
            if found[0].allowed and not found[1].allowed:
                return True
            if not found[0].allowed or draw.random() < 0.3:
                to_turn_us = first.window_us - clock() % first.window_us
                wait_us = draw.choice(
                    (to_turn_us - 1, to_turn_us, step_us, found[0].retry_after_us)
                )
                clock.advance(us=max(0, wait_us or 0))
    return False


@pytest.mark.parametrize(
    "seeds", [range(150), pytest.param(range(150, 4_000), marks=pytest.mark.slow)], ids=str
)
async def test_what_is_called_unreachable_never_refuses_first(seeds: range) -> None:
    called, seen = 0, 0
    for seed in seeds:
        draw = random.Random(seed)
        first, second = pair(draw)
        alone = await refuses_alone(draw, first, second)
        if unreachable(first, second):
            called += 1
            assert not alone, (seed, first, second)
        seen += alone
    assert called > len(seeds) / 10
    assert seen > len(seeds) / 10


@pytest.mark.parametrize(
    ("first", "reachable", "algorithm"),
    [
        ("10/minute", "599/hour", "fixed_window"),
        ("10/minute", "599/hour", "sliding_log"),
        ("10/minute", "9/minute", "sliding_counter"),
        ("10/minute", "10/minute burst 9", "token_bucket"),
        ("10/minute", "9/minute burst 10", "leaking_bucket"),
    ],
)
def test_one_unit_less_is_reachable(first: str, reachable: str, algorithm: str) -> None:
    limits = Limit(first, algorithm=algorithm), Limit(reachable, algorithm=algorithm)
    assert not unreachable(*limits)
    quota = limits[1].quota + (limits[1].quota < 10 or limits[1].quota == 599)
    burst = None if limits[1].burst is None else 10
    more = Limit.of(quota, limits[1].window_us, algorithm=algorithm, burst=burst)
    assert unreachable(limits[0], more)
