"""`repair`: a sound journal out of a damaged one. What cannot be trusted is left out, and nothing moves.

Optuna numbers studies and trials by the order of the lines that make them. Such a line that was lost is therefore
replaced: by a trial that has failed and stands for no cell, or by a study of another name. A trial whose record is not
whole is replaced by such a one, too; the next `run` trains its cell again.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

from filelock import FileLock
from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend
from optuna.trial import FrozenTrial

from ablations.engine.errors import StudyError
from ablations.engine.identity import SIGNATURE, flaw
from ablations.engine.journal import (
    CREATE_STUDY,
    CREATE_TRIAL,
    MARK,
    Census,
    Position,
    Seal,
    held,
    is_unchanged,
    lock_of,
    new_seal,
    no_journal,
    plain_log,
    read_seal,
    sealed,
)
from ablations.engine.locks import is_free
from ablations.engine.optuna_private import enqueued_params, trial_id

Log = dict[str, Any]
WORKER = "repair"
LINE = re.compile(rb"\r?\n|(?=" + re.escape(MARK) + rb")")
"""Between two lines; the second also where the break between them is gone."""
FAILED = 3
"""Optuna's code of a trial's state."""
RECORD = {
    "complete": ("value", "reason", "result", "curve"), "diverged": ("value", "reason", "result", "curve"),
    "pruned": ("value", "reason", "curve"), "failed": ("value", "reason"),
}
"""What a worker writes down with a state, if the version of that time did."""


@dataclass
class Repaired:
    """What became of a damaged journal."""

    copy: Path | None = None
    """Of the damaged file. None: it was sound."""
    lines: int = 0
    """Of the new journal."""
    dropped: int = 0
    """Lines of the old file that are in the new one no more: damaged, doubled, of something else, or about a cell
    below."""
    missing: int = 0
    """Lines that were gone from the old file."""
    cells: tuple[str, ...] = ()
    """Cells whose record is not whole; they are trained again."""
    studies: tuple[str, ...] = ()
    """Names given to studies whose own name was lost."""


def repair(path: Path, *, name: str = "") -> Repaired:
    """Replace a damaged journal by a sound one, and keep a copy of it beside it.

    Args:
        path: the journal.
        name: given to a study whose name is lost, if no other is called so.

    Raises:
        StudyError: there is no journal, or a process works on it.
    """
    if not path.is_file():
        raise StudyError(f"storage={str(path)!r}: no journal there. Give the --study, --storage or --out of a study")
    with held(lock_of(path)):
        data = path.read_bytes()
        if data and MARK not in data:
            raise no_journal(path)
        if _is_sound(data):
            return Repaired(lines=data.count(b"\n"))
        _refuse_running(path)
        logs, missing, renamed = _trusted(data, name=name)
        logs, cells = _without_broken(logs)
        copy = _next_to(path)
        shutil.copy2(path, copy)
        _replace(path, b"".join(sealed(logs, last=new_seal(), census=Census())))
    pieces = sum(1 for piece in LINE.split(data) if piece.strip())
    kept = sum(log["worker_id"] != WORKER for log in logs)
    return Repaired(copy, len(logs), pieces - kept, missing, cells, renamed)


def _is_sound(data: bytes) -> bool:
    """Whether every line continues those before, and every result stands where it belongs."""
    position, logs = Position(), []
    try:
        while position.offset < data.rfind(b"\n") + 1:
            logs.append(position.take(data[position.offset : data.index(b"\n", position.offset) + 1]))
        return data.startswith(MARK) and not any(map(flaw, _cells(JournalStorage(_Listed(logs))).values()))
    except Exception:  # of whatever a line makes Optuna raise
        return not data


def _refuse_running(path: Path) -> None:
    for lock in sorted((path.parent / "locks").glob("*.lock")):
        if not is_free(FileLock(lock, is_singleton=False)):
            raise StudyError(f"{path}: a process is at work on this study ({lock.name}). Wait for it, or stop it "
                             "(Ctrl-C; finished cells stay), and repair it then")


def _next_to(path: Path) -> Path:
    number = 1
    while (copy := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    return copy


def _replace(path: Path, text: bytes) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        shutil.copymode(path, temporary)
        os.replace(temporary, path)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary)


# Which lines can be trusted.


@dataclass
class _Lines:
    """The lines of a damaged file."""

    plain: list[bytes] = field(default_factory=list)
    """Those that stand before the first seal, and may be of an older version."""
    sealed: dict[int, list[tuple[Seal, Log]]] = field(default_factory=lambda: defaultdict(list))
    """The unchanged ones of the journal, by number."""


def _trusted(data: bytes, *, name: str) -> tuple[list[Log], int, tuple[str, ...]]:
    """The lines that can be trusted, with stand-ins for lost ones; how many are missing; names given to studies."""
    lines = _sorted(data)
    first = min(lines.sealed, default=1)
    logs = _plain_logs(lines, name=name)
    missing, line = max(0, first - 1 - len(logs)), first - 1
    chain = list(_chain(lines))
    names, renamed = _names(logs, chain, given=name), []
    census = _census(logs)
    for seal, log in chain:
        missing, line = missing + seal.line - line - 1, seal.line
        after = Census(census.studies, census.trials, dict(census.names))
        after.add(log)
        for _ in range(seal.studies - after.studies):
            renamed.append(names.pop(0) if names else f"recovered-{census.studies}")
            logs.append(_study(renamed[-1]))
            census.add(logs[-1])
        makes = log["op_code"] == CREATE_STUDY and not census.names
        if makes:  # before the stand-ins, which would be trials of no study
            logs.append(log)
            census.add(log)
        for _ in range(seal.trials - after.trials):
            logs.append(_trial(next(iter(census.names), 0)))
            census.add(logs[-1])
        if makes:
            continue
        if after.studies <= seal.studies or log["study_name"] in census.names.values():  # else it would make one more
            logs.append(log)
            census.add(log)
    return logs, missing, tuple(renamed)


def _names(logs: Sequence[Log], chain: Sequence[tuple[Seal, Log]], *, given: str) -> list[str]:
    """Names for studies whose first line is lost: of those that were opened and never made, then the given one."""
    made = {log["study_name"] for log in logs if log["op_code"] == CREATE_STUDY}
    opened: list[str] = []
    before: Seal | None = None
    for seal, log in chain:
        if log["op_code"] == CREATE_STUDY:
            makes = before is not None and before.line == seal.line - 1 and before.studies < seal.studies
            (made.add if makes or seal.line == 1 else opened.append)(log["study_name"])
        before = seal
    return [name for name in dict.fromkeys([*opened, *filter(None, [given])]) if name not in made]


def _census(logs: Sequence[Log]) -> Census:
    census = Census()
    for log in logs:
        census.add(log)
    return census


def _sorted(data: bytes) -> _Lines:
    pieces = [piece + b"\n" for piece in LINE.split(data) if piece.startswith(MARK)]
    seals = [(seal, piece) for piece in pieces if (seal := read_seal(piece)) and is_unchanged(piece, seal)]
    journals = Counter(seal.journal for seal, _ in seals)
    found = _Lines()
    for seal, piece in seals:
        if seal.journal == journals.most_common(1)[0][0]:
            found.sealed[seal.line].append((seal, plain_log(piece)))
    found.plain = list(takewhile(lambda piece: read_seal(piece) is None, pieces))
    return found


def _plain_logs(lines: _Lines, *, name: str) -> list[Log]:
    """The lines of an older version, which stand before the first seal; none of a journal that was sealed from its
    first line on."""
    first = min(lines.sealed, default=0)
    if first == 1:
        return []
    seal, log = lines.sealed[first][0] if first else (None, None)
    if seal is not None and zlib.crc32(b"".join(lines.plain)) == seal.before:
        return [plain_log(line) for line in lines.plain]
    logs = list(_readable(lines.plain))
    if logs and logs[0]["op_code"] != CREATE_STUDY:
        known = [log["study_name"] for log in logs if log["op_code"] == CREATE_STUDY]
        logs.insert(0, _study([*known, name or "recovered-0"][0]))
    if seal is not None and log is not None:
        logs += [_trial(0)] * (seal.trials - _census([*logs, log]).trials)
    return logs


def _readable(lines: Sequence[bytes]) -> Iterator[Log]:
    """What lines without seals say; a stand-in for a trial that cannot be read. Trials that are there twice, once."""
    seen: set[bytes] = set()
    for line in lines:
        makes = line.startswith(MARK + b"%d," % CREATE_TRIAL)
        if makes and line in seen:
            continue
        seen.add(line)
        try:
            yield plain_log(line)
        except ValueError:
            if makes:
                yield _trial(0)


def _chain(lines: _Lines) -> Iterator[tuple[Seal, Log]]:
    """The sealed lines in order, up to where they no longer continue one another: from there on they are of a copy that
    had gone on by itself."""
    last: Seal | None = None
    for number in sorted(lines.sealed):
        follows = last is not None and number == last.line + 1
        fits = last.checksum if last is not None and follows else None
        fitting = [entry for entry in lines.sealed[number] if fits in (None, entry[0].before)]
        if not fitting:
            return
        last = fitting[0][0]
        yield fitting[0]


def _study(name: str) -> Log:
    return {"op_code": CREATE_STUDY, "worker_id": WORKER, "study_name": name, "directions": [1]}


def _trial(study: int) -> Log:
    """A trial that stands for no cell."""
    nothing: dict[str, Any] = {"distributions": {}, "params": {}, "user_attrs": {}, "system_attrs": {}}
    return {"op_code": CREATE_TRIAL, "worker_id": WORKER, "study_id": study, "datetime_start": None, "state": FAILED,
            "value": None, "values": None, "intermediate_values": {}, **nothing}


# Which trials can be trusted.


class _Listed(BaseJournalBackend):
    """Lines that are in no file."""

    def __init__(self, logs: Sequence[Log]) -> None:
        self.logs, self.read = logs, 0

    def read_logs(self, log_number_from: int) -> Iterator[Log]:
        for number, log in enumerate(self.logs[log_number_from:], start=log_number_from):
            self.read = number
            yield log

    def append_logs(self, logs: list[Log]) -> None:
        raise NotImplementedError("these lines are read only")


def _applicable(logs: list[Log]) -> JournalStorage:
    """Optuna's view of some lines; those that it cannot apply are taken out of the list."""
    while True:
        listed = _Listed(logs)
        try:
            return JournalStorage(listed)
        except Exception:  # of whatever a line makes Optuna raise
            makes = logs[listed.read]["op_code"] == CREATE_TRIAL
            logs[listed.read : listed.read + 1] = [_trial(0)] if makes else []


def _cells(storage: JournalStorage) -> dict[int, FrozenTrial]:
    """The trials that stand for a cell, by their id."""
    numbers = [storage.get_study_id_from_name(study.study_name) for study in storage.get_all_studies()]
    trials = [trial for number in numbers for trial in storage.get_all_trials(number, deepcopy=False)]
    return {trial_id(trial): trial for trial in trials if "cell" in trial.user_attrs}


def _without_broken(logs: list[Log]) -> tuple[list[Log], tuple[str, ...]]:
    """The lines with stand-ins for the trials whose record is not whole, and the cells of those."""
    trials = _cells(_applicable(logs))
    known = {name for trial in trials.values() for name in trial.user_attrs}
    broken = {number for number, trial in trials.items() if flaw(trial) or _lacks(trial, known=known)}
    for number in [number for number in broken if flaw(trials[number])]:
        for before in range(number - 1, -1, -1):
            if before not in trials or not _look_alike(trials[before], trials[before + 1]):
                break
            broken.add(before)
    kept, census, number = [], Census(), 0
    for log in logs:
        census.add(log)
        if log["op_code"] == CREATE_TRIAL and log["study_id"] in census.names:  # as Optuna counts them
            log, number = _trial(log["study_id"]) if number in broken else log, number + 1
        if log.get("trial_id") not in broken:
            kept.append(log)
    return kept, tuple(sorted({str(trials[number].user_attrs["cell"]) for number in broken}))


def _look_alike(one: FrozenTrial, other: FrozenTrial) -> bool:
    """Whether results without signature of these two could have been exchanged unnoticed."""
    return SIGNATURE not in (one.user_attrs.get("result") or {}) and enqueued_params(one) == enqueued_params(other)


def _lacks(trial: FrozenTrial, *, known: Collection[str]) -> bool:
    """Whether lines about a trial are missing without which its result is not whole."""
    needed = RECORD.get(str(trial.user_attrs.get("state")), ())
    return any(name in known and name not in trial.user_attrs for name in needed)
