"""What holds for the house as a whole: imports, public names, Lua sources, and the README."""

import ast
import importlib
import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest
from starlette.testclient import TestClient

import ratelimit
from ratelimit.bans import Ban
from ratelimit.concurrency import Concurrency
from ratelimit.decisions import FIELDS, Action
from ratelimit.limits import Algorithm, Limit
from ratelimit.stores.script import FILES, SCRIPT

ROOT: Final = Path(__file__).resolve().parents[1]
PACKAGE: Final = ROOT / "ratelimit"
SHIM: Final = PACKAGE / "stores" / "memory.lua"
README: Final = ROOT / "README.md"

# --- imports -------------------------------------------------------------------------------------

ROOMS: Final = [
    "words",
    "limits",
    "bans",
    "concurrency",
    "decisions",
    "runtime",
    "stores",
    "identity",
    "rules",
    "responses",
    "control",
    "limiter",
    "asgi",
    "testing",
    "insight",
    "gateway",
    "cli",
]
"""The packages, and modules beside them, each of which may import only those before it."""

UPWARD: Final[dict[tuple[str, str], str]] = {}
"""Imports against that order: inside a function, each with its reason."""

DEFINITIONS: Final = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
SOURCES: Final = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(tree: ast.AST) -> Iterator[str]:
    """The rooms that are imported, anywhere in a module; "ratelimit" for the package itself."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            if node.level:
                yield f"a relative one ({'.' * node.level}{node.module or ''})"
                continue
            modules = [node.module or ""]
            if node.module == "ratelimit":
                modules = [f"ratelimit.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        else:
            continue
        for module in modules:
            package, *rest = module.split(".")
            if package == "ratelimit":
                yield rest[0] if rest else package


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_a_module_imports_only_modules_above_its_own(path: Path) -> None:
    room = room_of(path)
    assert room in ROOMS, f"{room} has no place in ROOMS"
    # Within a room that is a folder, its modules are free.
    allowed = ROOMS[: ROOMS.index(room) + (path.parent != PACKAGE)]
    source = path.read_text(encoding="utf-8")
    against = {(room, other) for other in set(imported_rooms(ast.parse(source))) - set(allowed)}
    assert against == {pair for pair in UPWARD if pair[0] == room}
    at_once = [node for node in ast.parse(source).body if not isinstance(node, DEFINITIONS)]
    assert set(imported_rooms(ast.Module(at_once, []))) <= set(allowed)


LIMITER: Final = PACKAGE / "limiter"
PARTS: Final = sorted(path.parent.name for path in LIMITER.glob("*/__init__.py"))
DECIDING: Final = {"limiter", "by_name", "decide", "together", "resolver", "in_force", "reload"}
"""Modules of the limiter that bring its parts together."""


def modules_of(path: Path) -> set[str]:
    """The modules and parts of the limiter that a module imports."""
    source = path.read_text(encoding="utf-8")
    return set(re.findall(r"^ *(?:from|import) ratelimit\.limiter\.(\w+)", source, re.MULTILINE))


@pytest.mark.parametrize("part", PARTS)
def test_a_part_of_the_limiter_knows_neither_another_part_nor_who_decides(part: str) -> None:
    others = ({*PARTS} - {part}) | DECIDING
    assert all((LIMITER / f"{name}.py").exists() for name in DECIDING)
    against = {name_of(path): modules_of(path) & others for path in (LIMITER / part).glob("*.py")}
    assert {name: found for name, found in against.items() if found} == {}


# --- the tree ------------------------------------------------------------------------------------

STRAY: Final = ("*.orig", "*.rej", "*~", "*.bak")
GENERATED: Final = {".git", ".venv", ".hypothesis", "dist", "node_modules"}


def tree() -> list[Path]:
    """Every file that git knows, or would add; where there is no git, every file that is there."""
    try:
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return [
            path
            for path in ROOT.rglob("*")
            if not GENERATED.intersection(path.relative_to(ROOT).parts)
        ]
    return [ROOT / name for name in listed.stdout.decode().split("\0") if name]


def stray(names: Iterable[Path]) -> list[str]:
    return [name_of(path) for path in names if any(path.match(pattern) for pattern in STRAY)]


def test_the_tree_holds_no_leftovers_of_editors_and_patches() -> None:
    assert Path(__file__).resolve() in tree()
    assert stray(tree()) == []
    assert stray([ROOT / "lua" / "decide.lua.orig", ROOT / "a.py~", ROOT / "a.py"]) == [
        "lua/decide.lua.orig",
        "a.py~",
    ]


# --- the tests -----------------------------------------------------------------------------------

TESTS: Final = ROOT / "tests"
APART: Final = {"support", "properties", "chaos", "load", "typing"}
"""Folders of the tests that are not a package's: helpers, and tests of all packages together."""
WHOLE: Final = {"docs", "house", "pages", "walk", "wheel"}
"""Tests of all packages together that stand beside those of the modules beside the packages."""


def folders_of_python(root: Path) -> set[str]:
    """Folders with a module of their own, from a root."""
    modules = (path for path in root.rglob("*.py") if path.name != "__init__.py")
    return {path.parent.relative_to(root).as_posix() for path in modules} - {"."}


def test_the_folders_of_the_tests_are_the_packages() -> None:
    folders = {each for each in folders_of_python(TESTS) if each.split("/")[0] not in APART}
    assert folders == folders_of_python(PACKAGE)


def test_beside_those_folders_stand_the_tests_of_the_modules_beside_the_packages() -> None:
    flat = {path.stem for path in PACKAGE.glob("*.py")} | WHOLE
    assert {path.stem for path in TESTS.glob("*.py")} <= {f"test_{name}" for name in flat} | {
        "conftest"
    }


def test_a_file_of_the_tests_that_a_page_or_a_setting_names_exists() -> None:
    named = {
        found
        for path in tree()
        if path.suffix in {".md", ".toml"} or path.name in {"Makefile", ".luacheckrc"}
        for found in re.findall(r"\btests/[\w./]+\.\w+", path.read_text(encoding="utf-8"))
    }
    assert len(named) > 50
    assert {name for name in named if not (ROOT / name).exists()} == set()


def test_the_words_that_a_page_picks_tests_by_are_in_a_name_of_a_test() -> None:
    page = (ROOT / "docs" / "faults.md").read_text(encoding="utf-8")
    picked = re.findall(r"^\|.*\| `(tests/[\w/]+\.py)` \| `(\w+)` \|$", page, re.MULTILINE)
    assert len(picked) > 10
    for file, words in picked:
        names = re.findall(r"def (test_\w+)", (ROOT / file).read_text(encoding="utf-8"))
        assert [name for name in names if words in name], (file, words)


# --- words ---------------------------------------------------------------------------------------

IS_NO: Final = re.compile(r"(?<!\bthere )\b(?:is|are) no\b(?! (?:one|longer|later)\b)")
"""Whoever reads "'unlimitted' is no limit" may take it for an unlimited one."""


def texts(path: Path) -> Iterator[str]:
    """The literals of a module, without its docstrings and the like."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    alone = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in alone:
            yield node.value


def test_a_message_says_that_a_value_is_not_something() -> None:
    saying = {
        name_of(path)
        for path in [*SOURCES, PACKAGE / "__init__.py"]
        if any(IS_NO.search(text) for text in texts(path))
    }
    assert saying == set()
    assert IS_NO.search("'x' is no limit")
    assert not IS_NO.search("there is no rule 'x'")


RIDDLE: Final = re.compile(
    r"(?:Wh(?:at|ich|o|om|ose|y|ere|en)(?:ever)?|How(?:ever)?)\b"
    r"|The same(?:[.,:;]| (?:and|as|but|for|from|in|of|on|to|where|with|without)\b)"
)
"""Openings of a sentence without a subject; a docstring begins with a noun phrase or a verb."""


def docstrings(path: Path) -> Iterator[str]:
    """The docstrings of a module, its classes and functions, and those beside its names."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            if isinstance(node.value.value, str):
                yield node.value.value


def test_a_docstring_begins_with_a_noun_phrase_or_a_verb() -> None:
    riddles = {
        name_of(path): found
        for path in [*SOURCES, PACKAGE / "__init__.py"]
        if (found := [text for text in docstrings(path) if RIDDLE.match(text.lstrip())])
    }
    assert riddles == {}
    assert RIDDLE.match("What a limit is.")
    assert RIDDLE.match("The same in a third of the time.")
    assert not RIDDLE.match("Whether it is open.")
    assert not RIDDLE.match("The same limit, scaled.")


# --- public names --------------------------------------------------------------------------------

EXPORTED: Final[list[str]] = getattr(ratelimit, "__all__", [])


def test_the_package_exports_the_names_that_it_imports() -> None:
    source = (PACKAGE / "__init__.py").read_text(encoding="utf-8")
    bound = [
        alias.asname or alias.name
        for node in ast.parse(source).body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]
    assert EXPORTED
    assert sorted(bound) == sorted(EXPORTED)
    assert ratelimit.__doc__


@pytest.mark.parametrize("name", EXPORTED)
def test_a_public_name_has_a_docstring_of_its_own(name: str) -> None:
    doc = vars(getattr(ratelimit, name)).get("__doc__") or getattr(ratelimit, name).__doc__
    assert doc, f"{name} has none"
    # What named tuples and dataclasses are given is their signature.
    assert not doc.startswith(f"{name}("), f"{name} has a generated one"


# --- Lua -----------------------------------------------------------------------------------------

LUA: Final = sorted((ROOT / "lua").glob("*.lua"))
ALGORITHMS: Final = [path for path in LUA if path.stem != "decide"]

TOKEN: Final = re.compile(
    r"(?P<comment> --\[(?P<eq>=*)\[ .*? \](?P=eq)\] | --[^\n]* )"
    r"|(?P<string> '(?:[^'\\\n]|\\.)*' | \"(?:[^\"\\\n]|\\.)*\" | \[(?P<q>=*)\[.*?\](?P=q)\] )"
    r"|(?P<name> [A-Za-z_]\w* )"
    r"|(?P<number> \.?[0-9](?:[eE][+-]|[\w.])* )"
    r"|(?P<sign> \.\.\.|\.\.|[=~<>]=|\S )",
    re.VERBOSE | re.DOTALL,
)
FORBIDDEN: Final = {
    "..": "keeps 14 digits of a number",
    "tostring": "keeps 14 digits of a number",
    "cjson": "is not in process",
    "cmsgpack": "is not in process",
    "struct": "is not in process",
    "bit": "is not in process",
}


def tokens(source: str) -> list[str]:
    """The tokens of Lua source, without comments."""
    return [match[0] for match in TOKEN.finditer(source) if match.lastgroup != "comment"]


class Header(NamedTuple):
    """The block comment that a Lua file opens with."""

    name: str
    sentence: str
    text: str

    @property
    def numbers(self) -> set[int]:
        """The indexes of `limit` that are described."""
        return {int(n) for n in re.findall(r"^limit\[(\d)\] +\S+ +\S", self.text, re.MULTILINE)}

    @property
    def functions(self) -> dict[str, str]:
        """The arguments of each function that is described."""
        return dict(re.findall(r"^(\w+)\(([\w, ]*)\) \w", self.text, re.MULTILINE))

    @property
    def base(self) -> str | None:
        """The algorithm that this one stands on: the third that its chunk is given."""
        found = re.findall(r"^Stands on (\w+), ", self.text, re.MULTILINE)
        assert len(found) <= 1
        return found[0] if found else None

    @property
    def taken(self) -> set[str]:
        """Whatever is taken from there: key, limit, and functions."""
        found = re.findall(r"^Taken from there: ([\w, ]+)\.$", self.text, re.MULTILINE)
        assert len(found) == (self.base is not None)
        return set(found[0].split(", ")) if found else set()


def header_of(path: Path) -> Header:
    match = re.match(
        r"--\[\[\n(?P<name>\w+): (?P<sentence>[^\n]+\.)\n(?P<text>\n.*?)\n\]\]\n",
        path.read_text(encoding="utf-8"),
        re.DOTALL,
    )
    assert match, f"{path.name} does not open with a comment block of 'name: one sentence.'"
    return Header(**match.groupdict())


def floors_of(path: Path) -> list[Path]:
    """The file of an algorithm, and before it that of the one that it stands on, if it does."""
    base = header_of(path).base
    return [path.with_stem(base), path] if base else [path]


def lua(source: str, runtime: str = "lua51") -> Any:
    """What a chunk returns."""
    module = importlib.import_module(f"lupa.{runtime}")
    return module.LuaRuntime(encoding="utf-8", register_eval=False).execute(source)


def built(path: Path) -> tuple[set[str], set[str]]:
    """The functions that an algorithm returns, and which of them are its base's own."""
    chunks = "".join(
        f"function(...) {p.read_text(encoding='ascii')}\nend," for p in floors_of(path)
    )
    made, shared = lua(f"""
        local base, algorithm, shared = {{}}, nil, {{}}
        for _, chunk in ipairs({{{chunks}}}) do
          for name, found in pairs(algorithm or {{}}) do
            base[name] = found
          end
          algorithm = chunk(false, false, algorithm)
        end
        for name, found in pairs(algorithm) do
          shared[name] = rawequal(found, base[name]) or nil
        end
        return algorithm, shared
    """)
    return set(made), set(shared)


def redis_commands(source: str) -> set[str]:
    found = tokens(source)
    calls = [found[i : i + 5] for i, token in enumerate(found) if token == "redis"]
    assert all(call[:4] == ["redis", ".", "call", "("] for call in calls), calls
    return {call[4].strip("'\"") for call in calls}


def test_lua_holds_one_file_per_algorithm_that_of_bans_and_the_driver() -> None:
    assert {path.stem for path in LUA} == {*FILES, "decide"}


@pytest.mark.parametrize("path", LUA, ids=name_of)
def test_a_script_opens_with_its_name_and_one_sentence(path: Path) -> None:
    header = header_of(path)
    assert header.name == path.stem
    assert not re.search(r"[.!?] [A-Z]", header.sentence), "more than one sentence"


@pytest.mark.parametrize("path", LUA, ids=name_of)
def test_a_script_is_part_of_what_the_stores_run(path: Path) -> None:
    assert SCRIPT.count(path.read_text(encoding="ascii")) == 1


@pytest.mark.parametrize("path", [*LUA, SHIM], ids=name_of)
def test_lua_source_is_ascii_in_at_most_100_columns(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    assert text.isascii()
    assert text.endswith("\n")
    assert [n for n, line in enumerate(lines, 1) if len(line) > 100] == []
    assert [n for n, line in enumerate(lines, 1) if line != line.rstrip() or "\t" in line] == []


@pytest.mark.parametrize("path", LUA, ids=name_of)
def test_a_script_uses_nothing_that_loses_digits_or_is_not_in_process(path: Path) -> None:
    used = set(tokens(path.read_text(encoding="ascii"))) & FORBIDDEN.keys()
    assert {name: FORBIDDEN[name] for name in used} == {}


def test_the_shim_has_the_redis_commands_that_the_algorithms_use_and_no_others() -> None:
    # The driver's own are Redis's alone: in process it is given how counters are read and written.
    used = set().union(*(redis_commands(path.read_text(encoding="ascii")) for path in ALGORITHMS))
    assert used == set(re.findall(r"^  function commands\.(\w+)", SHIM.read_text(), re.MULTILINE))


@pytest.mark.parametrize("path", ALGORITHMS, ids=name_of)
def test_an_algorithm_describes_its_key_and_the_numbers_that_it_uses(path: Path) -> None:
    source, header = path.read_text(encoding="ascii"), header_of(path)
    own_key = bool(re.search(r"^key +(numbers|list|hash) \{.+", header.text, re.MULTILINE))
    assert own_key is not ("key" in header.taken), "a key is described here or taken, not both"
    assert re.search(r"absence\s+(means|=) ", header.text)
    assert re.search(r"^Exact because ", header.text, re.MULTILINE)
    found = tokens(source)
    used = {
        int(found[i + 2])
        for i, token in enumerate(found)
        if token == "limit" and found[i + 1] == "[" and found[i + 3] == "]"
    }
    if "limit" in header.taken:
        assert header.numbers == set(), "numbers are described here or taken, not both"
        assert used <= header_of(floors_of(path)[0]).numbers | {1}  # the place, with what it holds
    else:
        assert header.numbers == used
    # `limit` is passed on whole or read by a number, so that the numbers above are all of them.
    assert not [i for i, token in enumerate(found[:-2]) if token == "limit" and found[i + 1] == "."]


@pytest.mark.parametrize("path", ALGORITHMS, ids=name_of)
def test_an_algorithm_is_given_the_numbers_that_it_describes(path: Path) -> None:
    if path.stem == "ban":
        numbers = Ban(3, 60_000_000, 600_000_000, 600_000_000).numbers
    elif path.stem == "concurrency":
        numbers = Concurrency(1).numbers
    else:
        numbers = Limit("1000001/3 days", algorithm=path.stem).numbers
    assert FILES[numbers[0] % 8 - 1] == path.stem
    given = {place for place, number in enumerate(numbers, 1) if number and place > 1}
    described = header_of(floors_of(path)[0] if "limit" in header_of(path).taken else path).numbers
    # A sliding counter's `up` is 0 where it rounds down.
    assert given == described - ({5} if path.stem == Algorithm.SLIDING_COUNTER else set())


@pytest.mark.parametrize("path", ALGORITHMS, ids=name_of)
def test_an_algorithm_returns_the_functions_that_it_describes(path: Path) -> None:
    source, header = path.read_text(encoding="ascii"), header_of(path)
    taken = header.taken - {"key", "limit"}
    returned, shared = built(path)
    assert {"look", "wait", "reset", "charge", "give_back"} <= returned
    assert returned == header.functions.keys() | taken
    assert shared == taken
    defined = dict(re.findall(r"^local function (\w+)\(([\w, ]*)\)$", source, re.MULTILINE))
    assert {name: defined[name] for name in header.functions} == header.functions


def test_only_the_leaking_bucket_stands_on_another_and_that_on_none() -> None:
    standing = {path.stem: header_of(path).base for path in ALGORITHMS if header_of(path).base}
    assert standing == {"leaking_bucket": "token_bucket"}
    # The driver hands it over by these places.
    token = list(Algorithm).index(Algorithm.TOKEN_BUCKET) + 1
    leaking = list(Algorithm).index(Algorithm.LEAKING_BUCKET) + 1
    source = (ROOT / "lua" / "decide.lua").read_text(encoding="ascii")
    assert f"local TOKEN, LEAKING = {token}, {leaking} " in source
    assert f"local BAN = {FILES.index('ban') + 1}\n" in source


def test_the_driver_describes_its_algorithms_actions_and_fields_as_python_has_them() -> None:
    source = (ROOT / "lua" / "decide.lua").read_text(encoding="ascii")
    text = " ".join(header_of(ROOT / "lua" / "decide.lua").text.split())
    places = ", ".join(f"{place} {name}" for place, name in enumerate(FILES, 1))
    assert f"({places})" in text
    actions = ", ".join(f"{a.value} {a.name.lower().replace('_', ' ')}" for a in Action)
    assert f"({actions})" in text
    names, values = ", ".join(a.name for a in Action), ", ".join(str(a.value) for a in Action)
    assert f"local {names} = {values}" in source
    written = {int(n) for n in re.findall(r"reply\[at \+ (\d)\] =", source)}
    assert written == set(range(1, FIELDS + 1))


@pytest.mark.parametrize("runtime", ["lua51", "luajit21"])
@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("made = 1", "must not create the global variable 'made'"),
        ("return missing", "nonexistent global variable 'missing'"),
        ("return tostring(1)", "nonexistent global variable 'tostring'"),
        ("return redis.call('GET', 'key')", "unknown command 'GET'"),
    ],
)
def test_the_sandbox_raises_where_redis_would(runtime: str, source: str, message: str) -> None:
    if runtime == "luajit21":
        pytest.importorskip("lupa.luajit21", reason="lupa has no LuaJIT on this platform")
    build = lua(SHIM.read_text(encoding="ascii"), runtime)
    with pytest.raises(Exception, match=re.escape(message)):
        build(source, 1, 1)


def sandbox_names() -> set[str]:
    sandbox = re.search(r"setmetatable\(\{\n(.*?)\n  \}, \{", SHIM.read_text(), re.DOTALL)
    assert sandbox
    return set(re.findall(r"^    (\w+) =", sandbox[1], re.MULTILINE))


def test_the_linter_knows_the_names_of_the_sandbox() -> None:
    config = (ROOT / ".luacheckrc").read_text(encoding="ascii")
    known = lua(f"files = {{}} {config} return read_globals")
    # ARGV is Redis's alone: in process the driver's function is called instead.
    assert set(known.values()) == sandbox_names() | {"ARGV"}


PAGE: Final = ROOT / "lua" / "README.md"


def test_the_page_on_lua_names_every_function_and_field_that_algorithms_share() -> None:
    page = PAGE.read_text(encoding="ascii")
    functions = dict(re.findall(r"^\| `(\w+)\(([\w, ]*)\)` \|", page, re.MULTILINE))
    described = [item for path in ALGORITHMS for item in header_of(path).functions.items()]
    described.remove(("after", "counter, units"))  # for the leaking bucket alone, and so is this
    described.remove(("left", "counter, at_us, level"))
    described.remove(("renew", "counter, units"))  # of what is under way at once alone
    assert functions.keys() == {name for name, _ in described}
    # Who has no use for the last arguments leaves them out.
    assert all(functions[name].startswith(arguments) for name, arguments in described)
    assert all(item in described for item in functions.items())
    filled = [
        set(re.findall(r"^  counter\.(\w+) =", path.read_text(encoding="ascii"), re.MULTILINE))
        for path in ALGORITHMS
        if not header_of(path).base
    ]
    fields = set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE))
    assert fields == set.intersection(*filled)


def test_the_page_on_lua_names_what_the_sandbox_has() -> None:
    page = PAGE.read_text(encoding="ascii")
    there = re.search(r"^There are (.*?), and in Redis `ARGV`", page, re.MULTILINE)
    commands = re.search(r"^The commands are (.*?); only the driver uses (.*)$", page, re.MULTILINE)
    assert there
    assert commands
    names = {name.removesuffix(".call") for name in re.findall(r"`([\w.]+)`", there[1])}
    assert names == sandbox_names()
    used = set().union(*(redis_commands(path.read_text(encoding="ascii")) for path in ALGORITHMS))
    assert set(re.findall(r"`(\w+)`", commands[1])) == used
    driver = redis_commands((ROOT / "lua" / "decide.lua").read_text(encoding="ascii"))
    assert set(re.findall(r"`(\w+)`", commands[2])) == driver


# --- README --------------------------------------------------------------------------------------


def readme_blocks(language: str) -> list[str]:
    if not README.exists():
        pytest.skip("README.md IS MISSING: its examples are not tested")
    text = README.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def test_the_first_example_of_the_readme_limits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    example = readme_blocks("python")[0]
    # A rule file that the example reads is the README's first.
    for rules in readme_blocks("yaml")[:1]:
        (tmp_path / "rules.yaml").write_text(rules, encoding="utf-8")
    (tmp_path / "readme_example.py").write_text(example, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    spec = importlib.util.spec_from_file_location("readme_example", "readme_example.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "readme_example", module)
    spec.loader.exec_module(module)
    paths = re.findall(r"\"(/[\w/-]*)\"", example)
    with TestClient(module.app) as client:
        statuses = {path: [client.get(path).status_code for _ in range(300)] for path in paths}
    limited = [found for found in statuses.values() if found[0] == 200 and 429 in found]
    assert limited, f"no path of the example passes first and is refused later: {statuses}"


def test_every_make_command_of_the_readme_is_a_target() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert phony
    assert set(phony[1].split()) == targets
    named = {
        word
        for block in readme_blocks("console")
        for arguments in re.findall(r"^(?:\$ )?make\b([^#\n]*)", block, re.MULTILINE)
        for word in arguments.split()
        if "=" not in word
    }
    assert named, "the README names no make command"
    assert named <= targets


@pytest.mark.parametrize("store", ["http://x", "redis://h?ssl=true", "", "redis://u:p/s3cret@h"])
def test_a_store_that_cannot_be_served_is_told_in_a_sentence(store: str) -> None:
    served = [sys.executable, str(ROOT / "examples" / "serve.py"), "--store", store]
    result = subprocess.run(served, capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 1
    assert result.stderr.startswith("this store cannot be used: ")
    assert result.stderr.count("\n") == 1
    assert "s3cret" not in result.stderr


# --- sizes ---------------------------------------------------------------------------------------

LONGEST_MODULE: Final = 350
LONGEST_FUNCTION: Final = 60
LONG: Final = {
    "ratelimit/asgi/decorators.py": "one decorator for every kind of endpoint",
    "ratelimit/asgi/decorators.py:_wrap": "what it knows of a function, the functions in it share",
    "ratelimit/limiter/decide.py": "every outcome of a request, in the order they are found",
    "ratelimit/limiter/decide.py:decide": "one step after the other; a call for each would be felt",
    "ratelimit/limiter/limiter.py:__init__": "one part of it after the other, each from a keyword",
    "ratelimit/limiter/limiter.py": "half of it says what each method takes and gives",
    "ratelimit/limits.py": "the grammar of limits, and exact arithmetic",
    "ratelimit/rules/file/reader.py": "finds the place of each mistake",
    "ratelimit/rules/matching.py": "the rules of a request, and the plan that they come to",
    "ratelimit/rules/options.py": "an entry for each option",
    "ratelimit/rules/file/yaml.py": "places for every value, also behind aliases",
    "ratelimit/stores/memory.py": "three ways to ask, each as cheap as it can be",
    "ratelimit/stores/redis/cluster.py": "slots and redirections",
    "ratelimit/stores/redis/pipeline.py": "sending, receiving and time are one law",
    "ratelimit/stores/redis/store.py": "a method for each thing that workers share",
    "ratelimit/testing/tables.py": "data",
    "ratelimit/limiter/checks.py:question": "what only the application knows",
}
"""Modules and functions that are longer than others may be, each with its reason."""


def test_what_is_long_has_a_reason() -> None:
    found = set()
    for path in SOURCES:
        source = path.read_text(encoding="utf-8")
        if len(source.splitlines()) > LONGEST_MODULE:
            found.add(name_of(path))
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                if node.end_lineno - node.lineno + 1 > LONGEST_FUNCTION:
                    found.add(f"{name_of(path)}:{node.name}")
    assert found == LONG.keys()
