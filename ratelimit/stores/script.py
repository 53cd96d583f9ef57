"""The one script that both stores run, composed of ``lua/``, and its digest.

The files stand alone; the only text added is a line before and after each, so that an error's line
number is that of the file plus a constant. In a checkout ``lua/`` is beside the package, in a wheel
inside it.
"""

from hashlib import sha1
from pathlib import Path
from typing import Final

from ratelimit.limits import Algorithm

__all__ = ["FILES", "OOM_SCRIPT", "OOM_SHA1", "SCRIPT", "SHA1"]

_PACKAGE: Final = Path(__file__).resolve().parents[1]
_FOLDER: Final = next(
    (folder for folder in (_PACKAGE / "lua", _PACKAGE.parent / "lua") if folder.is_dir()),
    _PACKAGE / "lua",
)


FILES: Final = (*map(str, Algorithm), "ban", "concurrency")
"""The files of ``lua/`` but the driver, each at its place, counted from 1 (`Limit.numbers`)."""


def _read(name: str) -> str:
    return (_FOLDER / f"{name}.lua").read_text(encoding="ascii")


def _compose() -> str:
    """Each algorithm as a function that is called when first needed, then the driver."""
    chunks = "".join(f"function(...)\n{_read(name)}\nend,\n" for name in FILES)
    return f"local chunks = {{\n{chunks}}}\n{_read('decide')}"


SCRIPT: Final = _compose()
"""The Lua 5.1 source of the whole decision; lua/decide.lua's header says what it takes."""

SHA1: Final = sha1(SCRIPT.encode(), usedforsecurity=False).hexdigest()
"""Its name for EVALSHA (Redis names scripts by SHA-1)."""

OOM_SCRIPT: Final = "#!lua flags=allow-oom\n" + SCRIPT
"""The script again, allowed to write where the server is at maxmemory (Redis 7 and later)."""

OOM_SHA1: Final = sha1(OOM_SCRIPT.encode(), usedforsecurity=False).hexdigest()
"""Its name for EVALSHA."""
