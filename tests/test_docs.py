"""The README and the site: links, pictures, and every block of code, run."""

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Final, NamedTuple

import pytest
from starlette.testclient import TestClient

from ratelimit import Algorithm, RuleSet
from ratelimit.testing import ManualClock, by_hand
from tests.support.pages import PAGES, README, ROOT, Block, anchors, blocks, links, prose

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


EXCEPTIONS: Final = ("- **", "No. ")
"""A list whose items are a name and a sentence; an answer in a word and the sentence after it."""

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
    "failures": "tests/asgi/test_failures.py",
    "frameworks": "tests/asgi/test_frameworks.py",
    "identity": "tests/identity/test_keys.py",
    "middleware-order": "tests/asgi/test_order.py",
    "mistakes": "tests/rules/file/test_mistakes.py",
    "operations": "tests/control/test_reload.py",
    "routes": "tests/asgi/test_fastapi.py",
    "rule-files": "tests/rules/file/test_mistakes.py",
    "testing": "tests/testing/test_clock.py",
}
"""Pages whose blocks are run by the tests of what they are about."""


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
    body: dict[str, str] | None = None


ANN: Final = {"account": "ann", "password": "secret"}
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
OTHERS: Final = [
    block for block in runs("python") if block not in APPLICATIONS and "test" not in block.file
]


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
                "type": "websocket.close", "code": 1008, "reason": "too many messages",
            }  # fmt: skip
        return
    for _ in range(2):
        with client.websocket_connect("/chat") as socket:
            assert socket.receive_text() == "welcome"
    with pytest.raises(Exception) as refused, client.websocket_connect("/chat"):
        pass
    assert getattr(refused.value, "status_code", None) == 429


@pytest.mark.parametrize("block", OTHERS, ids=block_name)
def test_the_other_python_of_the_pages_runs(block: Block, folder: Folder) -> None:
    with_rules(block, folder)
    folder.take(block)
    done = subprocess.run(
        [sys.executable, "-W", "error", block.file or "block.py"],
        cwd=folder.path, env=environment(), capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


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


# --- rule files ----------------------------------------------------------------------------------

RULES: Final = [block for block in runs("yaml") if is_rules(block)]


@pytest.mark.parametrize("block", RULES, ids=block_name)
def test_the_rule_files_of_the_pages_load(block: Block, folder: Folder) -> None:
    folder.take(block)
    RuleSet.load("rules.yaml")


# --- commands ------------------------------------------------------------------------------------

COMMANDS: Final = [
    (block, line.removeprefix("$ "), shown)
    for block in runs("console")
    for line, shown in re.findall(r"^(\$ .*)\n((?:[^$\n].*\n)*)", block.text, re.MULTILINE)
]
INSTALLS: Final = re.compile(r"pip install (?:-\S+ )?(?:'?[\w-]+(?:\[([\w,]+)\])?'? ?)+$")
SERVES: Final = re.compile(r"uvicorn main:app$|curl -i http://127\.0\.0\.1:8000/$")


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
        return  # test_the_first_application_answers_curl_as_shown; tests/test_house.py
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
