"""The README and the site: links, pictures, and what the blocks of code do.

That their Python runs at all and passes a type checker is for tests/test_pages.py to say.
"""

import contextlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Final, NamedTuple

import httpx
import pytest
from starlette.testclient import TestClient

from ratelimit import Algorithm, RateLimiter, RateLimitMiddleware, Rule, RuleSet
from ratelimit.testing import ManualClock, by_hand
from tests.support.asgi import Inner, call, http_scope, websocket_scope
from tests.support.pages import PAGES, ROOT, Block, anchors, blocks, links, prose
from tests.support.servers import free_port, wait_until

DOCS: Final = ROOT / "docs"

# --- links ---------------------------------------------------------------------------------------


def page_name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_every_link_within_the_repository_leads_somewhere(page: Path) -> None:
    broken = []
    for link in links(page):
        if re.match(r"https?:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


def test_a_page_that_the_site_does_not_show_is_none_of_its_pages() -> None:
    """The navigation has each page once, so that all can be found."""
    shown = re.findall(r"[\w-]+\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert sorted(shown) == sorted(page.name for page in DOCS.glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_a_line_of_prose_holds_one_sentence(page: Path) -> None:
    lines = [line for line in prose(page).splitlines() if not line.startswith(("|", "#", "  -"))]
    several = [line for line in lines if re.search(r"[a-z)`]{2}[.!?] [A-Z]", line)]
    assert [line for line in several if not line.startswith(EXCEPTIONS)] == []


EXCEPTIONS: Final = ("- **",)
"""Items of a list that are a name and a sentence."""

# --- pictures ------------------------------------------------------------------------------------


def script(name: str) -> ModuleType:
    """A script of docs/, as a module."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_pictures_are_what_the_engine_decides() -> None:
    draw: Callable[[Algorithm], str] = script("draw").draw
    there = {path.stem: path.read_text(encoding="utf-8") for path in DOCS.glob("pictures/*.svg")}
    assert there == {str(each): draw(each) for each in Algorithm}


def test_the_pictures_keep_what_the_page_says_of_them() -> None:
    """No ten seconds of a sliding log let more than five through; a fixed window, ten."""
    draw: Callable[[Algorithm], str] = script("draw").draw
    most = {each: int(re.findall(r"at most (\d+) within", draw(each))[0]) for each in Algorithm}
    assert most[Algorithm.SLIDING_LOG] == most[Algorithm.LEAKING_BUCKET] == 5
    assert most[Algorithm.FIXED_WINDOW] == 10
    assert 5 < most[Algorithm.SLIDING_COUNTER] <= 10


# --- blocks of code ------------------------------------------------------------------------------

ELSEWHERE: Final = {
    "answers": "tests/responses/test_problems.py",
    "command": "tests/cli/test_main.py",
    "counters-and-events": "tests/test_pages.py",
    "failures": "tests/test_pages.py",
    "frameworks": "tests/asgi/test_frameworks.py",
    "identity": "tests/identity/test_keys.py",
    "middleware-order": "tests/asgi/test_order.py",
    "mistakes": "tests/rules/file/test_mistakes.py",
    "operations": "tests/limiter/test_reload.py",
    "routes": "tests/asgi/test_fastapi.py",
    "rule-files": "tests/rules/file/test_mistakes.py",
    "testing": "tests/testing/test_clock.py",
}
"""Pages whose blocks are run by the tests of what they are about."""


def test_the_tests_that_run_a_page_elsewhere_name_it() -> None:
    run = {file: (ROOT / file).read_text(encoding="utf-8") for file in ELSEWHERE.values()}
    unnamed = [page for page, file in ELSEWHERE.items() if page not in run[file]]
    assert unnamed == ["counters-and-events"]  # tests/test_pages.py runs every page


class Folder:
    """A folder that a page's blocks are written to, and run in, as its reader would."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.joinpath("blocked.txt").write_text("203.0.113.7\n", encoding="utf-8")

    def take(self, block: Block) -> None:
        """Writes a block to the file that it is."""
        name = "rules.yaml" if block.language == "yaml" else block.file or "block.py"
        self.path.joinpath(name).write_text(block.text, encoding="utf-8")

    def load(self, block: Block) -> ModuleType:
        """Runs a block of Python as the module that it is."""
        name = f"page_{block.file.removesuffix('.py') or 'block'}"
        spec = importlib.util.spec_from_file_location(name, self.path / (block.file or "block.py"))
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # FastAPI looks annotations up there
        try:
            spec.loader.exec_module(module)
        finally:
            del sys.modules[name]
        return module


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    monkeypatch.chdir(tmp_path)
    return Folder(tmp_path)


class Play(NamedTuple):
    """Requests to the application of a block: what is sent, how often, and the statuses."""

    heading: str
    path: str
    statuses: list[int]
    method: str = "GET"
    headers: dict[str, str] = {}  # noqa: RUF012  # only read
    client: str = "198.51.100.9"
    body: Mapping[str, object] | None = None


ANN: Final = {"account": "ann", "password": "secret"}
CHAT: Final = "/v1/chat/completions"
PLAYS: Final[dict[str, list[Play]]] = {
    "README": [
        Play("ratelimit", "/", [200] * 10 + [429]),
        Play("Three ways to use it", "/report", [200] * 5 + [429]),
    ],
    "index": [Play("ratelimit", "/", [200] * 10 + [429])],
    "getting-started": [
        Play("A limited application", "/", [200] * 3 + [429]),
        Play("One route", "/report", [200, 200, 429]),
        Play("A rule file", "/login", [200] * 5 + [429], "POST"),
    ],
    "recipes": [
        Play("A login that cannot be guessed at", "/login?account=ann", [200] * 5 + [429], "POST"),
        Play("By what stands in the body", "/login", [200] * 3 + [429], "POST", body=ANN),
        Play("By what stands in the body", "/login", [200], "POST", body=ANN | {"account": "bob"}),
        Play("API keys with plans", "/api/items", [403]),
        Play("API keys with plans", "/api/items", [200, 200, 429], headers={"X-Api-Key": "new"}),
        Play(
            "API keys with plans", "/api/items", [200] * 5 + [429],
            headers={"X-Api-Key": "key-of-ann"},
        ),
        Play("API keys with plans", "/api/items", [200] * 9, headers={"X-Api-Key": "key-of-ops"}),
        Play("API keys with plans", "/api/items", [403], headers={"X-Api-Key": "leaked-key"}),
        Play("What a request costs", "/print?pages=6", [200, 429]),
        Play("What a request costs", "/print?pages=4", [200, 429]),
        Play("Told in your own words", "/", [200] * 3 + [429]),
    ],
    "gateway": [Play("Within an application", "/auth", [403])],  # to a stranger
    "costs": [
        Play("Whose answer counts", "/reports", [401]),
        Play("On a route", "/stream", [200], "POST", body={"max_tokens": 30_000}),
        Play("On a route", "/stream", [429], "POST", body={"max_tokens": 90_001}),
        Play("The tokens of a model", CHAT, [200, 200], "POST", body={"max_tokens": 80_000}),
        Play("The tokens of a model", CHAT, [200, 429], "POST", body={"max_tokens": 89_589}),
        Play("The tokens of a model", CHAT, [429], "POST", body={"max_tokens": 50_000, "n": 2}),
    ],
    "dashboard": [Play("The live page", "/ratelimit/", [404])],  # to a stranger
    "migration": [
        Play("slowapi", "/report", [200, 200, 429]),
        Play("slowapi", "/items", [200] * 3 + [429]),
        Play("fastapi-limiter", "/", [200, 200, 429]),
    ],
}  # fmt: skip
"""What the applications of each page's blocks do, by the heading that they stand under."""


def runs(language: str) -> list[Block]:
    return [
        block
        for page in PAGES
        if page.stem not in ELSEWHERE
        for block in blocks(page)
        if block.language == language and not block.title
    ]


def block_name(block: Block) -> str:
    return f"{block.page.stem}: {block.heading}"


def is_rules(block: Block) -> bool:
    return block.language == "yaml" and "version:" in block.text and not block.title


def with_rules(block: Block, folder: Folder) -> None:
    """Lays the last rule file that stands above a block, as its reader has it."""
    for other in blocks(block.page):
        if other.at < block.at and is_rules(other):
            folder.take(other)


@pytest.fixture
def clock() -> Iterator[ManualClock]:
    with by_hand() as clock:
        yield clock


APPLICATIONS: Final = [block for block in runs("python") if "app = " in block.text]


@pytest.mark.parametrize("block", APPLICATIONS, ids=block_name)
def test_the_applications_of_the_pages_do_what_the_pages_say(
    block: Block, folder: Folder, clock: ManualClock
) -> None:
    with_rules(block, folder)
    folder.take(block)
    app: Any = folder.load(block).app
    plays = [play for play in PLAYS.get(block.page.stem, []) if play.heading == block.heading]
    if "@app.websocket" in block.text:
        converse(app, messages="iter_text" in block.text)
        return
    assert plays, "nothing is asked of it"
    for play in plays:
        with TestClient(app, client=(play.client, 50_000)) as client:
            statuses = [
                client.request(
                    play.method, play.path, headers=play.headers, json=play.body
                ).status_code
                for _ in play.statuses
            ]
        assert statuses == play.statuses, play


def converse(app: Any, *, messages: bool) -> None:
    """Talks over a WebSocket: the third handshake, or the third message, is one too many."""
    client = TestClient(app, client=("198.51.100.9", 50_000))
    if messages:
        with client.websocket_connect("/chat") as socket:
            for _ in range(3):
                socket.send_text("hi")
            assert [socket.receive_text() for _ in range(2)] == ["hi", "hi"]
            assert socket.receive() == {
                "type": "websocket.close", "code": 1008,
                "reason": "chat:messages: try again in 1 s",
            }  # fmt: skip
        return
    for _ in range(2):
        with client.websocket_connect("/chat") as socket:
            assert socket.receive_text() == "welcome"
    with pytest.raises(Exception) as refused, client.websocket_connect("/chat"):
        pass
    assert getattr(refused.value, "status_code", None) == 429


@pytest.mark.parametrize(("method", "closed"), [("GET", True), ("POST", False)])
async def test_to_a_rule_with_methods_a_handshake_is_a_get(method: str, closed: bool) -> None:
    app = RateLimitMiddleware(Inner(), limiter=RateLimiter([Rule("a", "1/day", methods=[method])]))
    await call(app, websocket_scope())
    (message,) = (await call(app, websocket_scope())).messages
    assert (message["type"] == "websocket.close") is closed


def test_the_pages_test_of_an_application_passes(folder: Folder) -> None:
    for block in blocks(DOCS / "getting-started.md"):
        if block.language == "python" and (block.heading == "One route" or "test" in block.file):
            folder.take(block)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_main.py"],
        cwd=folder.path, env=environment(), capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert "1 passed" in done.stdout, done.stdout + done.stderr


def environment() -> dict[str, str]:
    """A reader's environment: the package installed, and no variable of ours."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("RATELIMIT")}
    return own | {"PYTHONPATH": str(ROOT), "COLUMNS": "100"}


# --- a server, as its reader sees it -------------------------------------------------------------


@pytest.mark.parametrize("page", ["README.md", "docs/getting-started.md"])
def test_the_first_application_answers_curl_as_the_page_shows(page: str, folder: Folder) -> None:
    """From the first request to the one that is refused; what is not shown may be there as well."""
    found = blocks(ROOT / page)
    folder.take(next(block for block in found if block.language == "python"))
    shown = [block.text.splitlines() for block in found if block.language == "http"]
    port = free_port()
    serve = [sys.executable, "-m", "uvicorn", "main:app", "--port", str(port)]
    with subprocess.Popen(serve, cwd=folder.path, env=environment(), stderr=subprocess.PIPE) as run:
        try:
            wait_until(lambda: listens(port), "uvicorn to listen")
            answers = [answer(port) for _ in range(11)]
        finally:
            run.terminate()
    passed = sum(each[0] == "HTTP/1.1 200 OK" for each in answers)
    assert passed == (3 if shown else 10)
    assert answers[passed][0] == "HTTP/1.1 429 Too Many Requests"
    assert any(line.startswith("retry-after: ") for line in answers[passed])
    if shown:
        assert set(shown[0]) <= set(answers[0])
        assert set(shown[1]) <= set(answers[passed])


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def answer(port: int) -> list[str]:
    """The status and the fields of an answer, a line each, as curl prints them."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")
        received = b"".join(iter(lambda: connection.recv(65_536), b""))
    return received.partition(b"\r\n\r\n")[0].decode().splitlines()


# --- rule files ----------------------------------------------------------------------------------

RULES: Final = [block for block in runs("yaml") if is_rules(block)]


@pytest.mark.parametrize("block", RULES, ids=block_name)
def test_the_rule_files_of_the_pages_load(block: Block, folder: Folder) -> None:
    folder.take(block)
    RuleSet.load("rules.yaml")


class Say(NamedTuple):
    """Requests of one client at one instant: how many pass, and how long the last of them waits."""

    path: str
    sent: int
    passed: int
    waits_us: int = 0
    client: str = "192.0.2.1"
    fields: tuple[tuple[str, str], ...] = ()
    method: str = "GET"


KEY: Final = (("x-api-key", "one"),)
FORGED: Final = (("x-forwarded-for", "6.6.6.6, 192.0.2.7, 10.0.0.8"),)
SECOND: Final = (("x-forwarded-for", "192.0.2.8, 10.0.0.8"),)
TOLD: Final = {"migration", "recipes"}
SAID: Final[dict[str, list[Say]]] = {
    "Flask-Limiter": [Say("/slow", 3, 1), Say("/ping", 99, 99), Say("/", 60, 50)],
    "nginx": [
        Say("/api/items", 30, 21),
        Say("/search", 30, 21, 2_000_000),  # the last of 20 that wait, at 10 a second
        Say("/download", 9, 9),
        Say("/download", 21, 12, 1_200_000),
    ],
    "Envoy": [Say("/", 5, 3), Say("/login", 4, 4, client="192.0.2.77"), Say("/", 1, 0)],
    "Kong": [Say("/", 5, 3, fields=KEY), Say("/", 3, 3, fields=(("x-api-key", "two"),))],
    "Traefik": [
        Say("/", 9, 5, client="10.0.0.9", fields=FORGED),
        Say("/", 9, 5, client="10.0.0.9", fields=SECOND),
        Say("/", 1, 0, client="10.0.0.9", fields=FORGED),
    ],
    "Caddy": [Say("/api/items", 5, 3), Say("/", 9, 9)],
    "One limit for all but a few paths": [
        Say("/health", 99, 99),
        Say("/export", 3, 2),
        Say("/other", 70, 60),
        Say("/export", 1, 0),
    ],
    "A queue in front of something slow": [Say("/search", 5, 5), Say("/search", 30, 15, 1_500_000)],
    "Tried out before it refuses": [Say("/", 150, 150)],
}  # fmt: skip
"""What the rule files of those pages do, by the heading that they stand under."""


@pytest.mark.parametrize(
    "block",
    [block for block in RULES if block.page.stem in TOLD and block.heading in SAID],
    ids=block_name,
)
async def test_the_rule_files_of_the_pages_do_what_the_pages_say(
    block: Block, folder: Folder, clock: ManualClock
) -> None:
    folder.take(block)
    limiter = RateLimiter.from_file("rules.yaml")
    for say in SAID[block.heading]:
        scope = http_scope(say.path, say.method, say.fields, client=(say.client, 50_000))
        admissions = [await limiter.admit(scope) for _ in range(say.sent)]
        passed = [each for each in admissions if each.refusal is None]
        assert len(passed) == say.passed, say
        assert (passed[-1].delay_us if passed else 0) == say.waits_us, say


def test_every_recipe_and_every_translation_is_played() -> None:
    alone = {block.heading for block in RULES if block.page.stem in TOLD}
    played = {play.heading for plays in PLAYS.values() for play in plays}
    assert alone <= SAID.keys() | played


# --- commands ------------------------------------------------------------------------------------

COMMANDS: Final = [
    (block, line.removeprefix("$ "), shown)
    for block in runs("console")
    for line, shown in re.findall(r"^(\$ .*)\n((?:[^$\n].*\n)*)", block.text, re.MULTILINE)
]
INSTALLS: Final = re.compile(r"pip install (?:-\S+ )?(?:'?[\w-]+(?:\[([\w,]+)\])?'? ?)+$")
SERVES: Final = re.compile(r"uvicorn main:app$|curl -i http://127\.0\.0\.1:8000/$|pytest$")


def command_name(case: tuple[Block, str, str]) -> str:
    return f"{case[0].page.stem}: {case[1]}"


@pytest.mark.parametrize("case", COMMANDS, ids=command_name)
def test_the_commands_of_the_pages_run(case: tuple[Block, str, str], folder: Folder) -> None:
    """With what the page shows of their output; servers and installations, in tests of their own.

    Spaces may differ, since a table is as wide as its terminal.
    """
    block, command, shown = case
    if INSTALLS.match(command):
        return  # test_an_installation_names_extras_that_there_are
    if SERVES.match(command) or command.startswith("make "):
        return  # test_the_first_application_…, test_the_pages_test_…; tests/test_house.py
    if block.not_run:
        assert len(block.not_run) > 10
        return
    assert command.startswith("ratelimit "), f"neither run nor marked: {command}"
    with_rules(block, folder)
    done = subprocess.run(
        [sys.executable, "-c", "from ratelimit.cli.main import main; main()",
         *shlex.split(command)[1:]],
        cwd=folder.path, env=environment(), capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[: len(shown.split())] == shown.split()


def test_an_installation_names_extras_that_there_are() -> None:
    declared = re.search(
        r"^\[project.optional-dependencies\]\n(.*?)^\[", (ROOT / "pyproject.toml").read_text(),
        re.MULTILINE | re.DOTALL,
    )  # fmt: skip
    assert declared
    named = {
        extra
        for page in PAGES
        for extras in re.findall(r"ratelimit-asgi\[([\w,]+)\]", page.read_text(encoding="utf-8"))
        for extra in extras.split(",")
    }
    assert named
    assert named <= set(re.findall(r"^(\w+) = ", declared[1], re.MULTILINE))


# --- the demo ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("columns", [60, 80])
def test_the_demo_shows_within_its_columns_that_each_rule_does_what_it_says(columns: int) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "demo.py"],
        env=environment() | {"COLUMNS": str(columns)},
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(len(line) <= columns for line in done.stdout.splitlines())
    assert [name for name in Algorithm if name.replace("_", "-") not in done.stdout] == []
    # Two processes, an outage, a reload and the kill switch, by the figures that were measured.
    assert re.search(r"^ *both +100 +500 *$", done.stdout, re.MULTILINE)
    assert re.search(r"^Redis ●+✗{10}●+$", done.stdout, re.MULTILINE)
    allow, local, deny = (
        re.findall(rf"^{name} +([^ ]+) +(\d+) +(\d+) +(\d+) +\d+ ms$", done.stdout, re.MULTILINE)[0]
        for name in ("allow", "local", "deny")
    )
    assert "█" in allow[0]
    assert "✗" in deny[0]
    assert (allow[3], local[3]) == ("0", "0")
    assert {sum(map(int, each[1:])) for each in (allow, local, deny)} == {28 * 12}
    assert "1008 requests, none without an answer" in done.stdout
    steps = re.findall(r"^  (\S.*?)  +(\d+)(?: +[\d.]+ s)? *$", done.stdout, re.MULTILINE)
    assert [passed for step, passed in steps if "edited" in step or "minute" in step][:3] == [
        "10", "20", "30",
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("store", [None, "memory://"])
def test_the_example_is_served_with_traffic_until_ctrl_c(store: str | None) -> None:
    command = [sys.executable, str(ROOT / "examples" / "serve.py"), "--port", "0"]
    command += [] if store is None else ["--store", store]
    with subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as server:
        try:
            assert server.stdout is not None
            said = server.stdout.readline() + server.stdout.readline()
            (url,) = re.findall(r"http://127\.0\.0\.1:\d+/ratelimit/", said)
            whose = "all 2 workers" if store is None else "this process"
            assert shown(f"{url}events", whose)["passed"] > 0
            os.killpg(server.pid, signal.SIGINT)  # as a terminal does
            assert server.wait(30) == 0
            wait_until(lambda: is_gone(server.pid), "everything that it started ended")
            for port in map(int, re.findall(r"127\.0\.0\.1:(\d+)", said)):
                with pytest.raises(OSError, match="refused"):
                    socket.create_connection(("127.0.0.1", port))
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGTERM)


def is_gone(group: int) -> bool:
    """Whether a group has no process any more; multiprocessing's own helper is the last."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False


def shown(url: str, whose: str) -> dict[str, int]:
    """What all rules decided, once the page shows traffic that is counted by those workers."""
    for _ in range(200):
        try:
            with httpx.stream("GET", url, timeout=30) as stream:
                for line in stream.iter_lines():
                    told = json.loads(line[6:]) if line.startswith('data: {"worker"') else {}
                    if told and told["all"] and whose in told["scope"]:
                        return told["all"]  # type: ignore[no-any-return]
        except httpx.TransportError:  # nothing listens yet
            pass
        time.sleep(0.05)
    raise TimeoutError


def test_the_picture_of_the_live_page_is_small_and_the_command_for_it_stands_beside_it() -> None:
    picture = DOCS / "pictures" / "live.png"
    data = picture.read_bytes()
    assert data.startswith(b"\x89PNG\r\n")
    assert len(data) < 200_000
    opening = (ROOT / "README.md").read_text("utf-8").split("```")[0]
    assert "docs/pictures/live.png" in opening
    assert "make picture" in opening


# --- elsewhere -----------------------------------------------------------------------------------

URLS: Final = {"Documentation": "https://docs.test/ratelimit/", "Source": "https://forge.test/r"}


@pytest.mark.parametrize(
    ("urls", "expected"),
    [
        (
            URLS,
            "https://docs.test/ratelimit/redis/#memory https://forge.test/r/blob/main/LICENSE",
        ),
        (
            {"Source": URLS["Source"]},
            f"{URLS['Source']}/blob/main/docs/redis.md#memory {URLS['Source']}/blob/main/LICENSE",
        ),
        ({}, ""),
    ],
)
def test_on_the_package_index_a_link_leads_outside_or_is_text(
    urls: dict[str, str], expected: str
) -> None:
    text = "[Redis](docs/redis.md#memory), [licence](LICENSE), [more](https://a.test/b), [here](#x)"
    shown = build_hook().outward(text, urls)
    links = re.findall(r"\]\(([^)]+)\)", shown)
    assert links == [*expected.split(), "https://a.test/b", "#x"]
    assert re.sub(r"[\[\]]|\([^)]*\)", "", shown) == "Redis, licence, more, here"


def test_the_readme_as_the_package_index_shows_it_has_no_relative_link() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = build_hook().outward(text, project.get("urls", {}))
    targets = re.findall(r"\]\(([^)]+)\)", shown)
    assert targets
    assert [each for each in targets if not each.startswith(("https://", "#"))] == []


def build_hook() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- the site ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("broken", ["", "[gone](gone.md)", "[gone](redis.md#gone)", "[x](../gone)"])
def test_the_site_is_built_unless_a_link_or_an_anchor_is_broken(
    broken: str, tmp_path: Path
) -> None:
    pytest.importorskip("mkdocs", reason="mkdocs NOT INSTALLED: no site is built (`make docs`)")
    for path in ROOT.iterdir():
        if path.name not in {"docs", "mkdocs.yml", "site"}:
            (tmp_path / path.name).symlink_to(path)
    shutil.copytree(DOCS, tmp_path / "docs")
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    with (tmp_path / "docs" / "faq.md").open("a", encoding="utf-8") as page:
        page.write(f"\n{broken}\n")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict"],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert (done.returncode == 0) is (broken == ""), done.stderr
    if not broken:
        api = (tmp_path / "site" / "api" / "index.html").read_text(encoding="utf-8")
        assert "Rules and the store that counts for them." in api
        assert (tmp_path / "site" / "search" / "search_index.json").exists()
