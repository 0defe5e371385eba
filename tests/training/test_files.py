"""Atomic writes: durable, of the mode that the umask gives, with names that do not meet."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from lit_simplified.files import write_atomically, write_text


def test_a_file_is_on_the_disk_before_it_has_its_name_and_the_name_before_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deeds: list[str] = []
    flush, move = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: (
        deeds.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"), flush(descriptor)
    ))
    monkeypatch.setattr(os, "replace", lambda *paths: (deeds.append("move"), move(*paths)))
    write_atomically(tmp_path / "x.txt", lambda path: path.write_text("x"), before=lambda: deeds.append("before"))
    assert deeds == ["file", "before", "move", "folder"]


@pytest.mark.parametrize(("mask", "mode"), [(0o077, 0o600), (0o022, 0o644), (0o002, 0o664)])
def test_the_umask_is_respected(mask: int, mode: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        write_text(tmp_path / "x.txt", "x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x.txt").stat().st_mode) == mode


def test_two_writers_of_a_file_do_not_meet_and_one_that_fails_leaves_nothing(tmp_path: Path) -> None:
    file = tmp_path / "x.txt"

    def write(path: Path) -> None:
        path.write_text("outer")
        write_text(file, "inner")
        assert file.read_text() == "inner"

    write_atomically(file, write)
    assert file.read_text() == "outer"
    with pytest.raises(ZeroDivisionError):
        write_atomically(file, lambda path: path.write_text(str(1 / 0)))
    with pytest.raises(ZeroDivisionError):
        write_atomically(file, lambda path: path.write_text("new"), before=lambda: 1 / 0)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["outer"]
