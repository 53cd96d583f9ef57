"""The bytes of a file that an operator named, whatever kind of thing has that name by now."""

import os
import stat
from typing import Final

__all__ = ["contents"]

_NEVER_WAIT: Final = getattr(os, "O_NONBLOCK", 0)  # to open a pipe waits for its other end
_FLAGS: Final = os.O_RDONLY | _NEVER_WAIT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_KINDS: Final = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFDIR: "a folder",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def contents(path: str | os.PathLike[str], most: int) -> bytes:
    """The first ``most`` bytes of a file.

    Raises OSError where it is not there, or is not a plain file: a pipe or a device could be
    without end, or never begin. Raises ValueError for a name that no file can have.
    """
    _hold_plain(os.stat(path).st_mode)  # noqa: PTH116  # a device may act on being opened
    with open(os.open(path, _FLAGS), "rb") as file:  # noqa: PTH123
        _hold_plain(os.fstat(file.fileno()).st_mode)  # it may have been replaced meanwhile
        return file.read(most)


def _hold_plain(mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "something else")
        raise OSError(f"it is {kind}, not a file")
