"""A run's folder: who may write to it, and how it is emptied or moved aside."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
import socket
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

from lit_simplified.config import ConfigError

OWNER = ".owner"
CHECKPOINTS, LAST, PREVIOUS = "checkpoints", "last.ckpt", "previous.ckpt"
"""The folder of the checkpoints, and the files in it. The checkpoint before the last stays until a run is finished."""
_UNFINISHED = (PREVIOUS, f".{Path(LAST).stem}-*.ckpt")
_LEFT = (f"{CHECKPOINTS}/{LAST}", *(f"{CHECKPOINTS}/{name}" for name in _UNFINISHED), "events.out.tfevents.*",
         "inspection", "result.json", "tokenizer.json")
"""What a training leaves in its folder, beside its configuration, which it writes anew."""


class Owner:
    """The process that trains a run, as a context: it alone writes to the run's folder.

    The file `.owner` says who that is, by a token, and is locked for as long as that process lives (`flock`, not
    `filelock`: what is locked is what says who holds it, and where there are no locks nothing is left behind to look
    like one). Whoever takes over puts a file of his own in its place. The former owner, which may have been stopped
    and not be able to let go, finds out by `check`.

    Args:
        folder: the run's; it is made.
        take_over: take the folder from a process that has it.

    Raises:
        ConfigError: another process has it, or it cannot be made.
    """

    def __init__(self, folder: Path, *, take_over: bool = False) -> None:
        self.folder, self.file = folder, folder / OWNER
        self.token = secrets.token_hex(16)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.descriptor = self._lock(take_over)
        except OSError as error:
            raise ConfigError("out_dir", str(folder.parent), f"cannot be used ({error.strerror or error}): give a "
                              "folder that can be written") from error
        note = {"token": self.token, "pid": os.getpid(), "host": socket.gethostname()}
        os.ftruncate(self.descriptor, 0)
        os.pwrite(self.descriptor, json.dumps(note).encode(), 0)

    def _lock(self, take_over: bool) -> int:
        """The descriptor of the locked file.

        Raises:
            ConfigError: another process has the lock.
        """
        while True:
            descriptor = os.open(self.file, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                if not take_over:
                    raise ConfigError(
                        "out_dir", str(self.folder.parent), f"{_describe(self._note())} is training "
                        f"{self.folder.name} there: wait for it, or give another folder"
                    ) from None
                self.file.unlink(missing_ok=True)  # it keeps the lock of a file without a name
                continue
            except OSError:
                return descriptor  # a file system without locks: the token alone has to do
            if self.file.exists() and os.path.samestat(os.fstat(descriptor), self.file.stat()):
                return descriptor
            os.close(descriptor)  # its name was given to another file between the two calls

    def check(self) -> None:
        """Before anything is put in place in the folder.

        Raises:
            ConfigError: another process has taken over.
        """
        note = self._note()
        if note.get("token") != self.token:
            raise ConfigError("out_dir", str(self.folder.parent), f"{_describe(note)} has taken over "
                              f"{self.folder.name}: leave it to that process, which goes on there")

    def _note(self) -> dict[str, Any]:
        try:
            note = json.loads(self.file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return note if isinstance(note, dict) else {}

    def __enter__(self) -> Owner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._note().get("token") == self.token:
            self.file.unlink(missing_ok=True)
        os.close(self.descriptor)


def _describe(note: dict[str, Any]) -> str:
    return f"process {note['pid']} on {note['host']}" if {"pid", "host"} <= note.keys() else "another process"


def clear(folder: Path) -> None:
    """Delete what a training left in its folder, and nothing else that lies there."""
    _delete(folder, _LEFT)


def tidy(checkpoints: Path) -> None:
    """Delete what only an unfinished run needs, and what a process that was killed left half-written."""
    _delete(checkpoints, _UNFINISHED)


def _delete(folder: Path, patterns: Iterable[str]) -> None:
    for path in [path for pattern in patterns for path in folder.glob(pattern)]:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def move_aside(folder: Path) -> Path:
    """Rename a run's folder to `*.old-1`, or the next number that is free; return its new path.

    Raises:
        ConfigError: a process trains it.
    """
    number = 1
    while (aside := folder.with_name(f"{folder.name}.old-{number}")).exists():
        number += 1
    with Owner(folder):
        folder.rename(aside)
    (aside / OWNER).unlink(missing_ok=True)
    return aside
