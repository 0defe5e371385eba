"""Atomic and durable writes, and numbers that JSON can hold. Imports nothing outside the library."""

from __future__ import annotations

import math
import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any


def write_atomically(path: Path, write: Callable[[Path], Any], *, before: Callable[[], Any] | None = None) -> None:
    """Let `write` write a temporary file, and move it to `path` when all of it is on the disk.

    Whoever reads finds the old content or the new, also after a power cut, and two writers do not meet. The mode of the
    file is that of any new file (umask).

    Args:
        path: where the content goes; missing folders are made.
        write: writes to the path that it is given.
        before: called between the two, when nothing but the move is left to be done; what it raises prevents that.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}-{secrets.token_hex(8)}{path.suffix}")
    try:
        write(temporary)
        _flush(temporary)
        if before is not None:
            before()
        os.replace(temporary, path)
        with suppress(OSError):  # some network file systems flush no folders
            _flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a text file, in UTF-8."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def finite(value: Any) -> Any:
    """NaN and infinity as None, through dicts and lists: databases and JSON cannot store them."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, list | tuple) else value
