"""The journal of a study: a file of lines, appended atomically, in which no damage goes unnoticed.

Every line ends with a seal, a key of its own that Optuna ignores:

    "seal":"JOURNAL.LINE.STUDIES.TRIALS.BEFORE.CHECKSUM"

that is which line of which journal this is, how many studies and trials there are from here on, the checksum of the
line before and that of this line. A line that was lost, doubled, swapped, changed or put in is found where it stands,
and `repair` knows what is missing: Optuna counts studies and trials, so that the loss of one shifts all results behind.
Lines of older versions have no seal; `BEFORE` of the first seal is the checksum of all of them together.
"""

from __future__ import annotations

import io
import json
import os
import re
import secrets
import shlex
import stat
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock
from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend, JournalFileOpenLock

from ablations.engine.errors import FULL, StudyError
from ablations.engine.locks import acquire

MARK = b'{"op_code":'
"""How every line begins. A file that does not begin like this is no journal, and is never written to."""
CREATE_STUDY, DELETE_STUDY, CREATE_TRIAL, LAST_OPERATION = 0, 1, 4, 10
"""Of Optuna's codes of operations those that count here, and the highest one."""
SUBJECTS = (("study_name", str), *[("study_id", int)] * 4, *[("trial_id", int)] * 5)
"""By code, what a line is about: a key, and the type of its value. The last operation has none."""
KEY = b',"seal":"'
SEAL = re.compile(KEY + rb'([0-9a-f]{8})\.(\d+)\.(\d+)\.(\d+)\.([0-9a-f]{8})\.([0-9a-f]{8})"\}\n')
END = len('00000000"}\n')
"""Bytes of a sealed line that its checksum does not cover: itself and what follows."""


class Seal(NamedTuple):
    """The seal of a line."""

    journal: str
    """Eight random hexadecimal digits, the same in all lines."""
    line: int
    """Number of the line, from 1."""
    studies: int
    """Studies that were ever made, this line included."""
    trials: int
    """Likewise."""
    before: int
    """Checksum of the line before, or of all lines before the first seal."""
    checksum: int


def read_seal(line: bytes) -> Seal | None:
    """The seal at the end of a line; None where there is none."""
    start = line.rfind(KEY)
    found = SEAL.fullmatch(line, start) if start >= 0 else None
    if found is None:
        return None
    journal, number, studies, trials, before, checksum = found.groups()
    return Seal(journal.decode(), int(number), int(studies), int(trials), int(before, 16), int(checksum, 16))


def is_unchanged(line: bytes, seal: Seal) -> bool:
    """Whether a line is the one that was sealed."""
    return zlib.crc32(line[:-END]) == seal.checksum


@dataclass
class Census:
    """The studies and trials that some lines have made."""

    studies: int = 0
    trials: int = 0
    names: dict[int, str] = field(default_factory=dict)
    """Of the studies that were not deleted."""

    def add(self, log: dict[str, Any]) -> None:
        """Count what a line makes. Whoever opens a study tries to make it, so many of these lines make none."""
        if log["op_code"] == CREATE_STUDY and log["study_name"] not in self.names.values():
            self.names[self.studies] = log["study_name"]
            self.studies += 1
        elif log["op_code"] == DELETE_STUDY:
            self.names.pop(log["study_id"], None)
        self.trials += log["op_code"] == CREATE_TRIAL


def sealed(logs: Iterable[dict[str, Any]], *, last: Seal, census: Census) -> Iterator[bytes]:
    """Lines that continue a journal.

    Args:
        logs: what they say.
        last: the seal of the line before.
        census: what the lines before have made; is counted on.
    """
    for log in logs:
        census.add(log)
        text = json.dumps({key: value for key, value in log.items() if key != "seal"}, separators=(",", ":"))[:-1]
        seal = f"{last.journal}.{last.line + 1}.{census.studies}.{census.trials}.{last.checksum:08x}."
        line = f"{text}{KEY.decode()}{seal}".encode()
        last = Seal(last.journal, last.line + 1, census.studies, census.trials, last.checksum, zlib.crc32(line))
        yield line + f'{last.checksum:08x}"}}\n'.encode()


def new_seal(*, line: int = 0, census: Census | None = None, checksum: int = 0) -> Seal:
    """What the first sealed line of a journal continues: nothing, or lines without seals."""
    made = census or Census()
    return Seal(secrets.token_hex(4), line, made.studies, made.trials, 0, checksum)


def plain_log(line: bytes) -> dict[str, Any]:
    """What a line says, whether it is sealed or not.

    Raises:
        ValueError: it is no line of a journal; the message says why.
    """
    try:
        log = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError("it cannot be read") from error
    code = log.get("op_code") if isinstance(log, dict) else None
    if type(code) is not int or not 0 <= code <= LAST_OPERATION or not isinstance(log.get("worker_id"), str):
        raise ValueError("it is not a line of a journal")
    for name, kind in SUBJECTS[code : code + 1]:
        if type(log.get(name)) is not kind:
            raise ValueError(f"it does not say what it is about ({name})")
    return log


@dataclass
class Position:
    """Behind the last line that was read, and what the next one has to continue."""

    offset: int = 0
    line: int = 0
    journal: str = ""
    """Empty: no line was sealed so far."""
    checksum: int = 0
    plain: int = 0
    """Lines without a seal so far."""

    def take(self, line: bytes, *, read: Callable[[bytes], dict[str, Any]] = json.loads) -> dict[str, Any]:
        """What the next line says, if it continues those before.

        Args:
            line: the line.
            read: tells what a line says that was found sound.

        Raises:
            ValueError: it does not; the message says why.
        """
        seal = read_seal(line)
        if seal is None:
            if self.journal or KEY in line:
                raise ValueError("it has no valid seal: it was changed, or written by another program")
            plain_log(line)  # checks it
            log, checksum, self.plain = read(line), zlib.crc32(line, self.checksum), self.plain + 1
        else:
            self._compare(line, seal)
            log, checksum, self.journal = read(line), seal.checksum, seal.journal
        self.offset, self.line, self.checksum = self.offset + len(line), self.line + 1, checksum
        return log

    def _compare(self, line: bytes, seal: Seal) -> None:
        if not is_unchanged(line, seal):
            raise ValueError("it was changed")
        if seal.line != self.line + 1 or (self.journal and seal.journal != self.journal):
            where = f"line {seal.line} of {'this' if seal.journal == self.journal or not self.journal else 'another'}"
            raise ValueError(f"it is {where} journal: lines were lost, swapped, doubled or put in")
        if seal.before != self.checksum:
            raise ValueError("it does not continue what stands before it, which was changed or replaced")


def damaged(path: Path, line: int, what: object) -> StudyError:
    """The error of a journal that cannot be read from some line on."""
    return StudyError(
        f"{path}, line {line}: {what}. The journal is damaged, and nothing is read from it or written to it. Repair "
        f"it; a copy is kept: python -m ablations repair --storage {shlex.quote(str(path))}"
    )


def no_journal(path: Path) -> StudyError:
    """The error of a file that is something else."""
    return StudyError(f"storage={str(path)!r}: this file is not the journal of a study, and is left as it is. Give "
                      "another path, which need not exist yet")


class OsLock(JournalFileOpenLock):
    """The journal's lock as a lock of the operating system.

    Optuna's own leaves a link behind when its holder is killed, and all others then wait for 30 seconds.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, FileLock(path, is_singleton=False)

    def acquire(self) -> bool:
        acquire(self._lock, what=f"the journal {self._path}")
        return True

    def release(self) -> None:
        self._lock.release()


def lock_of(path: Path) -> OsLock:
    """The lock of a journal, which its writers hold."""
    return OsLock(path.with_name(path.name + ".lock"))


@contextmanager
def held(lock: OsLock) -> Iterator[None]:
    """Hold a lock."""
    lock.acquire()
    try:
        yield
    finally:
        lock.release()


class AtomicJournal(BaseJournalBackend):
    """A journal with sealed lines and atomic appends: what a writer that was killed, or a full disk, left of a line is
    cut off."""

    def __init__(self, path: Path, *, lock: OsLock) -> None:
        self.path, self._lock = path, lock
        self.position = Position()
        self._followers: list[list[int]] = []

    def follow(self) -> list[int]:
        """A list to which the ids of changed trials are added from now on, as lines that concern them are read."""
        self._followers.append([])
        return self._followers[-1]

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """The lines from a number on (counted from 0). Those that follow what was read last are the only ones read.

        Raises:
            StudyError: a line is damaged, or the file is no journal.
        """
        if log_number_from != self.position.line:
            self.position = Position()
        for line in io.BytesIO(self._unread()):
            try:
                log = self.position.take(line, read=self.read_line)
            except ValueError as error:
                raise damaged(self.path, self.position.line + 1, error) from error
            if self.position.line > log_number_from:
                if "trial_id" in log:
                    for follower in self._followers:
                        follower.append(log["trial_id"])
                yield log

    def append_logs(self, logs: Sequence[dict[str, Any]]) -> None:
        """Append all lines or none.

        Raises:
            StudyError: the file is no journal, or its last line is damaged.
            OSError: the disk is full.
        """
        with held(self._lock), self.path.open("rb+", buffering=0) as file:
            if os.fstat(file.fileno()).st_size and file.read(len(MARK)) != MARK:
                raise no_journal(self.path)
            whole = cut_half_line(file)
            try:
                last, census = _continued(file, end=whole, logs=logs)
            except ValueError as error:
                raise damaged(self.path, _count_lines(file), error) from error
            _append(file, b"".join(sealed(logs, last=last, census=census)), whole=whole)

    def read_line(self, line: bytes) -> dict[str, Any]:
        """What the line at `position` says."""
        log: dict[str, Any] = json.loads(line)
        return log

    def _unread(self) -> bytes:
        """The whole lines behind the position."""
        text = self._read()
        if text and not text.endswith(b"\n"):  # of a killed writer, to be replaced; or of one that is at it
            with suppress(OSError), held(self._lock):  # in a folder that cannot be written nobody replaces it
                text = self._read()
        if self.position.offset == 0 and text and not text.startswith(MARK):
            raise damaged(self.path, 1, "it was changed") if b"\n" + MARK in text else no_journal(self.path)
        return text[: text.rfind(b"\n") + 1]

    def _read(self) -> bytes:
        with self.path.open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            if size < self.position.offset:
                raise damaged(self.path, self.position.line, "it and others are gone")
            file.seek(self.position.offset)
            return _read_exactly(file, size - self.position.offset)


def _continued(file: io.FileIO, *, end: int, logs: Iterable[dict[str, Any]]) -> tuple[Seal, Census]:
    """What new lines have to continue: the last line's seal, and a count of what there is.

    Raises:
        ValueError: the last line is damaged.
    """
    if end == 0:
        return new_seal(), Census()
    line = _last_line(file, end=end)
    seal = read_seal(line)
    if seal is None:
        return _continued_plain(file, end=end)
    if not is_unchanged(line, seal):
        raise ValueError("it was changed")
    if any(log["op_code"] == CREATE_STUDY for log in logs):  # seldom, and it takes the names of all that there are
        return seal, _count(file, end=end)
    return seal, Census(seal.studies, seal.trials)


def _continued_plain(file: io.FileIO, *, end: int) -> tuple[Seal, Census]:
    """The same where the last line has no seal: then none has, and this is the first time that it is asked."""
    position = Position()
    file.seek(0)
    for line in io.BytesIO(_read_exactly(file, end)):
        position.take(line)
        if position.journal and read_seal(line) is None:
            raise ValueError("it has no seal")
    census = _count(file, end=end)
    return new_seal(line=position.line, census=census, checksum=position.checksum), census


def _count(file: io.FileIO, *, end: int) -> Census:
    census = Census()
    wanted = tuple(MARK + b"%d," % code for code in (CREATE_STUDY, DELETE_STUDY, CREATE_TRIAL))
    file.seek(0)
    for line in io.BytesIO(_read_exactly(file, end)):
        if line.startswith(wanted):
            census.add(plain_log(line))
    return census


def _count_lines(file: io.FileIO) -> int:
    file.seek(0)
    return file.readall().count(b"\n")


def _last_line(file: io.FileIO, *, end: int) -> bytes:
    """The last line before `end`, which stands behind its line break."""
    start, tail = end, b""
    while start and b"\n" not in tail[:-1]:
        step = min(start, max(4096, len(tail)))
        start -= step
        file.seek(start)
        tail = _read_exactly(file, step) + tail
    return tail[tail.rfind(b"\n", 0, -1) + 1 :]


def _read_exactly(file: io.FileIO, size: int) -> bytes:
    """One call of the system may give less than was asked for."""
    parts = []
    while size and (part := file.read(size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _append(file: io.FileIO, text: bytes, *, whole: int) -> None:
    file.seek(whole)
    try:
        while text:
            text = text[file.write(text) :]
        os.fsync(file.fileno())
    except OSError:
        file.truncate(whole)
        raise


def cut_half_line(file: io.FileIO) -> int:
    """Cut off a last line that has no end; return the size of what is left."""
    end = whole = file.seek(0, os.SEEK_END)
    while whole:
        start = max(0, whole - 4096)
        file.seek(start)
        found = _read_exactly(file, whole - start).rfind(b"\n")
        whole = start + found + 1
        if found >= 0:
            break
    if whole < end:
        file.truncate(whole)
    return whole


def open_journal(path: Path, *, create: bool = True, kind: type[AtomicJournal] = AtomicJournal) -> JournalStorage:
    """A study's journal as a storage of Optuna.

    Args:
        path: the file. Its folder is made where it does not exist.
        create: whether to make the file where it does not exist.
        kind: how it is read.

    Raises:
        StudyError: something else is there, it cannot be opened, or it is damaged.
    """
    journal = kind(path, lock=lock_of(path))
    try:
        _refuse_others(path)
        if create:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        return JournalStorage(journal)
    except StudyError:
        raise
    except OSError as error:
        if error.errno in FULL:
            raise
        raise StudyError(f"storage={str(path)!r} cannot be opened ({error.strerror or error}). Give another path, or "
                         "make this one readable and writable") from error
    except Exception as error:  # Optuna checks no line: a damaged one without a seal ends in any error
        raise damaged(path, journal.position.line, f"it makes no sense ({type(error).__name__})") from error


def _refuse_others(path: Path) -> None:
    """Refuse what is no file before it is opened: a pipe would wait for ever."""
    mode = path.stat().st_mode if path.exists() else stat.S_IFREG
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
        kind = kinds.get(stat.S_IFMT(mode), "a device")
        raise StudyError(f"storage={str(path)!r}: this is {kind}, not a file. Give the path of a journal, which need "
                         "not exist yet, or of its folder")
