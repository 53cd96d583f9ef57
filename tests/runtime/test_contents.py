"""The bytes of a file that an operator named, whatever has that name by now."""

import os
from pathlib import Path

import pytest

from ratelimit.runtime.contents import contents


def test_the_beginning_of_a_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc\r\n\xff")
    assert contents(tmp_path / "file", 100) == b"abc\r\n\xff"
    assert contents(tmp_path / "file", 2) == b"ab"
    (tmp_path / "link").symlink_to("file")
    assert contents(tmp_path / "link", 100) == b"abc\r\n\xff"


def test_what_is_not_a_file_is_an_error_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "circle").symlink_to("circle")
    for path, said in (
        (tmp_path / "pipe", "it is a pipe, not a file"),
        (tmp_path, "it is a folder, not a file"),
        (Path("/dev/zero"), "it is a device, not a file"),
        (tmp_path / "circle", "symbolic links"),
        (tmp_path / "nowhere", "No such file"),
    ):
        with pytest.raises(OSError, match=said):
            contents(path, 1)
    with pytest.raises(ValueError, match="null"):
        contents("a\0b", 1)


def test_a_file_that_becomes_a_pipe_before_it_is_opened_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    before = (tmp_path / "file").stat()
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.setattr(os, "stat", lambda _: before)
    with pytest.raises(OSError, match="it is a pipe, not a file"):
        contents(tmp_path / "pipe", 1)
