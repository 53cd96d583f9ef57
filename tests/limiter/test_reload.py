"""A rule file that changes while its rules are in force; and docs/operations.md."""

import asyncio
import logging
import os
import re
import shlex
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest
import watchfiles

from ratelimit import RateLimiter, RedisStore, Rule, RuleFileError, RuleSet
from ratelimit.limiter import reload
from ratelimit.limiter.reload import Watcher
from tests.support.servers import Server


def text(limit: str, *, mode: str = "enforce", name: str = "api", more: str = "") -> str:
    """A rule file of one rule."""
    return f"version: 1\nrules:\n  - name: {name}\n    limit: {limit}\n    mode: {mode}\n{more}"


class RuleFile:
    """A rule file, and the ways in which it is written anew."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "rules.yaml"
        self.path.write_text(text("1/day"))

    def in_place(self, content: str) -> None:
        self.path.write_text(content)

    def renamed(self, content: str) -> None:
        """As editors save, and as everybody should."""
        new = self.path.with_name("rules.yaml.new")
        new.write_text(content)
        new.replace(self.path)

    def removed_first(self, content: str) -> None:
        self.path.unlink()
        self.path.write_text(content)

    def folder_swapped(self, content: str) -> None:
        """As Kubernetes mounts a ConfigMap: a link to a file below a link that is replaced."""
        folder = self.path.parent
        data = folder / f"..{time.monotonic_ns()}"
        data.mkdir()
        (data / "rules.yaml").write_text(content)
        (folder / "..data_tmp").symlink_to(data.name)
        (folder / "..data_tmp").replace(folder / "..data")
        if not self.path.is_symlink():
            (folder / "link").symlink_to(Path("..data", "rules.yaml"))
            (folder / "link").replace(self.path)


WAYS: list[Callable[[RuleFile, str], None]] = [
    RuleFile.in_place,
    RuleFile.renamed,
    RuleFile.removed_first,
]


@pytest.fixture
def file(tmp_path: Path) -> RuleFile:
    """One rule, 1/day."""
    return RuleFile(tmp_path)


class Used(list[str]):
    """Stands for a limiter: the limits of the first rule of every set that was put in force."""

    def use(self, rules: RuleSet) -> None:
        self.append(str(rules.rules[0].limits[0]))

    async def holds(self, limit: str) -> None:
        """Returns when it was put in force last."""
        await until(lambda: self[-1:] == [limit])


async def until(holds: Callable[[], object], within: float = 10) -> None:
    """Returns when it holds; TimeoutError if that takes too long."""
    async with asyncio.timeout(within):
        while not holds():  # noqa: ASYNC110  # what is waited for happens in another thread
            await asyncio.sleep(0.01)


@pytest.fixture
def _only_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A change is seen by what the system tells, or too late."""
    monkeypatch.setattr(reload, "EVERY", 60)


@asynccontextmanager
async def watching(file: RuleFile) -> AsyncIterator[tuple[Watcher, Used]]:
    """A watcher that is at work."""
    watcher, used = Watcher(file.path, watch=True), Used()
    watcher.follow(used.use)
    watcher.run()
    try:
        await asyncio.sleep(0.2)  # it is to be told of what comes, not to find it at its first look
        yield watcher, used
    finally:
        await watcher.aclose()


def scope(host: str = "192.0.2.1") -> dict[str, Any]:
    """A request, as far as rules look at it."""
    return {"type": "http", "method": "GET", "path": "/", "headers": [], "client": (host, 1)}


async def passed(limiter: RateLimiter, times: int) -> int:
    """How many of so many requests passed."""
    admissions = [await limiter.admit(scope()) for _ in range(times)]
    return sum(admission.refusal is None for admission in admissions)


# --- a call --------------------------------------------------------------------------------------


async def test_a_call_puts_the_file_in_force(
    file: RuleFile, caplog: pytest.LogCaptureFixture
) -> None:
    """The log tells which rules are new, changed or gone; `health` since when they hold."""
    caplog.set_level(logging.INFO, "ratelimit")
    watcher, used = Watcher(file.path), Used()
    watcher.follow(used.use)
    before: Any = watcher.health()["since"]
    file.in_place(text("2/day", more="  - {name: more, by: global, limit: 9/day}\n"))
    assert used == []
    assert await watcher.reload() is True
    assert used == ["2/day"]
    assert watcher.health() == {
        "file": str(file.path),
        "since": pytest.approx(time.time(), abs=5),
        "mistakes": [],
    }
    after: Any = watcher.health()["since"]
    assert after > before
    file.in_place(text("2/day"))
    await watcher.reload()
    await watcher.reload()
    assert caplog.messages == [
        f"rules-reloaded: {file.path}: new more; changed api",
        f"rules-reloaded: {file.path}: gone more",
        f"rules-reloaded: {file.path}: no rule changed",
    ]


async def test_a_file_with_a_mistake_changes_nothing_and_every_mistake_is_told(
    file: RuleFile, caplog: pytest.LogCaptureFixture
) -> None:
    """In the log, each in a line of its own, and in `health` until the file is put right."""
    watcher, used = Watcher(file.path), Used()
    watcher.follow(used.use)
    since = watcher.health()["since"]
    file.in_place(text("2/dya", mode="of"))
    assert await watcher.reload() is False
    assert used == []
    with pytest.raises(RuleFileError) as error:
        RuleSet.load(file.path)
    mistakes = [str(mistake) for mistake in error.value.mistakes]
    assert len(mistakes) == 2
    assert watcher.health() == {"file": str(file.path), "since": since, "mistakes": mistakes}
    assert caplog.messages == [
        f"rules-not-reloaded: the rules stay as they are: {mistake}" for mistake in mistakes
    ]
    file.in_place(text("2/day"))
    assert await watcher.reload() is True
    assert watcher.health()["mistakes"] == []
    assert used == ["2/day"]


async def test_a_file_that_is_gone_is_a_mistake_like_others(file: RuleFile) -> None:
    watcher = Watcher(file.path)
    file.path.unlink()
    assert await watcher.reload() is False
    assert "cannot be read" in str(watcher.health()["mistakes"])


async def test_rules_that_the_application_cannot_serve_change_nothing(file: RuleFile) -> None:
    """Such as one that limits by what nobody has registered."""
    limiter = RateLimiter.from_file(file.path)
    file.in_place(text("5/day", more="    by: tenant\n"))
    assert await limiter.reload() is False
    health: Any = limiter.health()["rules"]
    (mistake,) = health["mistakes"]
    assert mistake.startswith(f"{file.path}: rule 'api' limits by tenant, which is not registered")
    assert await passed(limiter, 3) == 1


async def test_of_two_readings_at_once_the_one_that_began_later_holds(
    file: RuleFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    watcher, used = Watcher(file.path), Used()
    watcher.follow(used.use)
    read, first, go_on = reload._read, threading.Event(), threading.Event()

    def slow_at_first(*arguments: Any) -> Any:
        reading = read(*arguments)
        if not first.is_set():
            first.set()
            go_on.wait(10)
        return reading

    monkeypatch.setattr(reload, "_read", slow_at_first)
    file.in_place(text("2/day"))
    earlier = asyncio.create_task(watcher.reload())
    await until(first.is_set)
    file.in_place(text("3/day"))
    assert await watcher.reload() is True
    go_on.set()
    assert await earlier is True
    assert used == ["3/day"]


def test_a_mistake_at_the_start_is_raised(file: RuleFile) -> None:
    file.in_place(text("2/dya"))
    with pytest.raises(RuleFileError, match="2/dya"):
        Watcher(file.path)


async def test_rules_that_came_from_no_file_cannot_be_read_again() -> None:
    with pytest.raises(RuntimeError, match="came from no file"):
        await RateLimiter([Rule("api", "1/day")]).reload()


# --- the watcher ---------------------------------------------------------------------------------


@pytest.mark.usefixtures("_only_told")
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
async def test_a_change_is_seen_however_the_file_is_written(
    file: RuleFile, way: Callable[[RuleFile, str], None]
) -> None:
    """Twice, since the first time may replace what is watched."""
    async with watching(file) as (_, used):
        way(file, text("2/day"))
        await until(lambda: used == ["2/day"])
        way(file, text("3/day"))
        await until(lambda: used == ["2/day", "3/day"])


async def test_a_swapped_folder_is_seen_again_and_again(file: RuleFile) -> None:
    """What is watched changes with each swap; one meanwhile is found by the next look."""
    async with watching(file) as (watcher, used):
        for number in (2, 3):
            file.folder_swapped(text(f"{number}/day"))
            await used.holds(f"{number}/day")
        file.folder_swapped(text("4/dya"))
        await until(lambda: watcher.health()["mistakes"])
        file.folder_swapped(text("5/day"))
        await used.holds("5/day")


@pytest.mark.usefixtures("_only_told")
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
async def test_a_mistake_is_passed_over_and_its_correction_seen(
    file: RuleFile, way: Callable[[RuleFile, str], None]
) -> None:
    async with watching(file) as (watcher, used):
        way(file, text("2/dya"))
        await until(lambda: watcher.health()["mistakes"])
        way(file, text("2/day"))
        await until(lambda: used == ["2/day"])
        assert watcher.health()["mistakes"] == []


@pytest.mark.usefixtures("_only_told")
async def test_any_link_on_the_way_may_be_swapped(tmp_path: Path) -> None:
    """As releases are: /srv/current/rules.yaml, where current is a link."""
    files = [RuleFile(folder(tmp_path / number)) for number in ("1", "2")]
    files[1].in_place(text("2/day"))
    current = tmp_path / "current"
    current.symlink_to("1")
    here = RuleFile.__new__(RuleFile)
    here.path = current / "rules.yaml"
    async with watching(here) as (_, used):
        swap(current, "2")
        await until(lambda: used == ["2/day"])


def folder(path: Path) -> Path:
    path.mkdir()
    return path


def swap(link: Path, target: str) -> None:
    new = link.with_name("new")
    new.symlink_to(target)
    new.replace(link)


async def test_a_change_that_was_made_before_anybody_watched_is_seen(file: RuleFile) -> None:
    watcher, used = Watcher(file.path, watch=True), Used()
    watcher.follow(used.use)
    file.in_place(text("2/day"))
    watcher.run()
    await until(lambda: used == ["2/day"])
    await watcher.aclose()


async def test_a_file_that_is_written_again_with_what_it_held_is_not_read(file: RuleFile) -> None:
    async with watching(file) as (_, used):
        file.renamed(text("1/day"))
        await asyncio.sleep(0.3)
        file.renamed(text("2/day"))
        await until(lambda: used)
        assert used == ["2/day"]


async def test_changes_in_quick_succession_are_one(file: RuleFile) -> None:
    async with watching(file) as (_, used):
        for number in range(2, 12):
            file.in_place(text(f"{number}/day"))
            await asyncio.sleep(0.01)
        await until(lambda: used[-1:] == ["11/day"])
        assert len(used) <= 2


async def test_a_file_that_the_rule_file_names_is_watched_as_well(
    file: RuleFile, tmp_path: Path
) -> None:
    """Also one that is named only now, or that has a mistake itself."""
    blocked = tmp_path / "lists" / "blocked.txt"
    blocked.parent.mkdir()
    watcher, denied = Watcher(file.path, watch=True), list[Any]()
    watcher.follow(lambda rules: denied.append([str(each) for each in rules.denylist]))
    watcher.run()
    file.renamed(f"denylist_file: lists/blocked.txt\n{text('1/day')}")
    await until(lambda: watcher.health()["mistakes"])
    blocked.write_text("192.0.2.300\n")
    await until(lambda: "192.0.2.300" in str(watcher.health()["mistakes"]))
    blocked.write_text("192.0.2.1\n")
    await until(lambda: denied == [["192.0.2.1/32"]])
    blocked.write_text("192.0.2.2\n")
    await until(lambda: denied[1:] == [["192.0.2.2/32"]])
    await watcher.aclose()


async def test_a_folder_may_be_replaced_with_all_that_is_in_it(tmp_path: Path) -> None:
    file = RuleFile(folder(tmp_path / "conf"))
    async with watching(file) as (_, used):
        RuleFile(folder(tmp_path / "new")).path.write_text(text("2/day"))
        file.path.parent.rename(tmp_path / "old")
        (tmp_path / "new").rename(file.path.parent)
        await until(lambda: used == ["2/day"])


async def test_where_the_system_tells_of_no_change_the_file_is_looked_at(
    file: RuleFile, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Such as where its watches are used up; the log says so once."""

    class Exhausted:
        """What the system says when its watches are used up."""

        def __init__(self, *_: Any, **__: Any) -> None:
            pass

        def __aiter__(self) -> AsyncIterator[Any]:
            raise OSError("no space left on device: too many watches")

        async def aclose(self) -> None:
            pass

    monkeypatch.setattr(watchfiles, "awatch", Exhausted)
    monkeypatch.setattr(reload, "EVERY", 0.05)
    async with watching(file) as (_, used):
        file.in_place(text("2/day"))
        await until(lambda: used == ["2/day"])
        file.in_place(text("3/day"))
        await until(lambda: used == ["2/day", "3/day"])
    (line,) = [each for each in caplog.messages if "watch-failed" in each]
    assert "too many watches; the rule file is looked at every 0.05 seconds" in line


def test_links_in_a_circle_lead_nowhere(tmp_path: Path) -> None:
    """They are followed as often as the system does, and no more."""
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a/deeper")
    assert len(reload._trail(str(tmp_path / "a" / "rules.yaml"))) <= 2 * reload.MOST_LINKS


def test_without_watchfiles_nothing_is_promised(
    file: RuleFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "watchfiles", None)
    with pytest.raises(ImportError, match=r"pip install 'ratelimit-asgi\[watch\]'"):
        RateLimiter.from_file(file.path, watch=True)
    RateLimiter.from_file(file.path)


# --- the signal ----------------------------------------------------------------------------------


async def test_a_sighup_has_the_file_read_again(file: RuleFile) -> None:
    """And means what it meant before, once the limiter is closed."""
    watcher, used = Watcher(file.path, sighup=True), Used()
    watcher.follow(used.use)
    heard: list[int] = []
    before = signal.signal(signal.SIGHUP, lambda number, _: heard.append(number))
    try:
        watcher.run()
        await asyncio.sleep(0)
        for limit in ("2/day", "3/day"):
            file.in_place(text(limit))
            os.kill(os.getpid(), signal.SIGHUP)
            await used.holds(limit)
        await watcher.aclose()
        assert heard == []
        os.kill(os.getpid(), signal.SIGHUP)
        assert heard == [signal.SIGHUP]
    finally:
        signal.signal(signal.SIGHUP, before)


async def test_a_sighup_that_comes_before_the_first_request_is_not_lost(file: RuleFile) -> None:
    """And does not end the process, as it would if nobody heeded it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        limiter = RateLimiter.from_file(file.path, sighup=True)
        file.in_place(text("2/day"))
        os.kill(os.getpid(), signal.SIGHUP)
        await limiter.admit(scope())
        await until(lambda: limiter.rules.rules[0].limits[0].quota == 2)
        await limiter.aclose()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_handler_that_is_there_already_is_left_alone_until_the_first_request(
    file: RuleFile,
) -> None:
    """Such as that of a server's parent process, which loads the application before it forks."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        Watcher(file.path, sighup=True)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_outside_the_main_thread_no_signal_is_heard(
    file: RuleFile, caplog: pytest.LogCaptureFixture
) -> None:
    """The log says so once."""
    watcher = Watcher(file.path, sighup=True)

    async def run() -> None:
        for _ in range(3):
            watcher.run()
            await asyncio.sleep(0.01)
        await watcher.aclose()

    thread = threading.Thread(target=asyncio.run, args=(run(),))
    thread.start()
    thread.join()
    assert [line.partition(":")[0] for line in caplog.messages] == ["sighup-unheard"]


def test_a_system_without_the_signal_is_told_so(
    file: RuleFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reload, "_HANGUP", None)
    with pytest.raises(ValueError, match="this system has no such signal"):
        RateLimiter.from_file(file.path, sighup=True)


# --- what goes on --------------------------------------------------------------------------------


async def test_unchanged_rules_keep_their_counters_and_changed_ones_start_afresh(
    file: RuleFile,
) -> None:
    other = "  - {name: other, by: global, limit: 5/day}\n"
    file.in_place(text("9/day", more=other))
    limiter = RateLimiter.from_file(file.path)
    assert await passed(limiter, 3) == 3
    file.in_place(text("4/day", more=other))
    await limiter.reload()
    assert await passed(limiter, 9) == 2
    file.in_place(text("4/day"))
    await limiter.reload()
    assert await passed(limiter, 9) == 2


async def test_a_rule_is_rolled_out_by_its_mode_and_keeps_its_counters(file: RuleFile) -> None:
    """Off, it does nothing; shadow, it counts; enforced, it goes on from that count."""
    file.in_place(text("5/day", mode="off"))
    limiter = RateLimiter.from_file(file.path)
    assert await passed(limiter, 9) == 9
    file.in_place(text("5/day", mode="shadow"))
    await limiter.reload()
    assert await passed(limiter, 3) == 3
    file.in_place(text("5/day"))
    await limiter.reload()
    assert await passed(limiter, 9) == 2


async def test_a_watched_limiter_follows_its_file_by_itself(file: RuleFile) -> None:
    """From the first request on; `health` shows it."""
    limiter = RateLimiter.from_file(file.path, watch=True)
    assert await passed(limiter, 3) == 1
    file.renamed(text("4/day"))
    await until(lambda: limiter.rules.rules[0].limits[0].quota == 4)
    assert await passed(limiter, 9) == 4
    file.renamed(text("4/dya"))
    await until(lambda: "4/dya" in str(limiter.health()["rules"]))
    await limiter.aclose()


# --- whose it is ---------------------------------------------------------------------------------


async def test_the_watcher_ends_with_its_limiter(file: RuleFile) -> None:
    limiter = RateLimiter.from_file(file.path, watch=True, sighup=True)
    before = asyncio.all_tasks()
    await passed(limiter, 2)
    tasks = asyncio.all_tasks() - before
    assert sorted(task.get_name() for task in tasks) == ["ratelimit sighup", "ratelimit watch"]
    await limiter.aclose()
    assert all(task.cancelled() for task in tasks)


def test_an_event_loop_ends_at_once_and_without_a_word(
    file: RuleFile, caplog: pytest.LogCaptureFixture
) -> None:
    """Though nobody has closed the limiter."""
    limiter = RateLimiter.from_file(file.path, watch=True)

    async def serve() -> None:
        await passed(limiter, 2)
        await asyncio.sleep(0.2)

    before = set(threading.enumerate())
    for _ in range(2):
        start = time.monotonic()
        asyncio.run(serve())
        assert time.monotonic() - start < 1
    assert caplog.messages == []
    for thread in set(threading.enumerate()) - before:
        thread.join(1)
        assert not thread.is_alive()


# --- docs/operations.md --------------------------------------------------------------------------

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", DOCUMENT, re.MULTILINE | re.DOTALL)


async def test_the_examples_of_the_documentation_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rule to try out is counted and never refuses; the limiter follows its file."""
    monkeypatch.chdir(tmp_path)
    file = RuleFile(tmp_path)
    (rules,) = blocks("yaml")
    file.in_place(rules)
    (code,) = blocks("python")
    before = signal.getsignal(signal.SIGHUP)
    names: dict[str, Any] = {}
    exec(code, names)
    limiter: RateLimiter = names["limiter"]
    admissions = [await limiter.admit({**scope(), "path": "/search"}) for _ in range(30)]
    assert all(admission.refusal is None for admission in admissions)
    assert limiter.counts["search", "shadow-denied"] >= 10
    file.renamed(text("2/day"))
    await until(lambda: limiter.rules.rules[0].name == "api")
    await limiter.aclose()
    signal.signal(signal.SIGHUP, before)


def test_the_documentation_lists_the_lines_of_the_log() -> None:
    sources = [
        (ROOT / "ratelimit" / name).read_text()
        for name in ("limiter/reload.py", "control/switches.py")
    ]
    logged = set(re.findall(r'"([a-z-]+): ', "".join(sources)))
    assert logged == set(re.findall(r"^\| `([a-z]+(?:-[a-z]+)*)` \| ", DOCUMENT, re.MULTILINE))


async def test_the_documentation_turns_rules_off_and_on(redis_server: Server) -> None:
    redis_server.command("FLUSHALL")
    (console,) = blocks("console")
    async with RedisStore(redis_server.url, deadline=10) as store:
        found = []
        for line in console.splitlines():
            redis_server.ask(*shlex.split(line.removeprefix("redis-cli ")))
            found.append(await store.switches())
    assert found == [{"search"}, set(), {"*"}, set()]


async def test_a_rule_file_that_becomes_a_pipe_or_a_device_changes_nothing(file: RuleFile) -> None:
    watcher = Watcher(file.path)
    before = watcher.rules
    for kind in ("pipe", "device"):
        file.path.unlink()
        if kind == "pipe":
            os.mkfifo(file.path)
        else:
            file.path.symlink_to("/dev/zero")
        async with asyncio.timeout(5):
            assert not await watcher.reload()
        assert watcher.rules is before
        (mistake,) = cast("list[str]", watcher.health()["mistakes"])
        assert f"it is a {kind}, not a file" in mistake


def test_a_list_that_is_a_pipe_is_a_mistake_and_never_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "blocked")
    file = tmp_path / "rules.yaml"
    file.write_text(text("1/day", more="denylist_file: blocked\n"))
    reading = threading.Thread(target=_unreadable, args=(file,), daemon=True)
    reading.start()
    reading.join(5)
    assert not reading.is_alive()


def _unreadable(file: Path) -> None:
    with pytest.raises(RuleFileError, match="unreadable"):
        Watcher(file)
