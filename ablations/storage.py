"""A study in an Optuna storage: its queue of cells, who works on which, and the log of executions.

The storage is the only record of a study. What is kept on a trial, as user attributes:

    cell        id of the cell; a trial without it is none of ours (see `Queue.claim`) and is ignored everywhere
    config      the RunConfig, as a dict
    executions  every time the cell was begun: {start, end, worker, outcome}; a retry carries those before it
    state       complete, diverged or failed: what came out. killed or interrupted: given back to the queue
    reason      why it diverged or failed
    result      the numbers of the RunResult
    curve       the learning curve, a list of points

Optuna's own state is COMPLETE for a complete cell and FAIL for everything else that ended: a diverged run has no value,
and Optuna refuses a COMPLETE trial without one. Imports neither torch nor lightning.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock, Timeout
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState

JOURNAL = "journal.log"
SETTLED = ("complete", "diverged")
"""States of a cell that is never begun again. A failed one is tried again by the next `run`."""
MAX_KILLS = 3
"""A cell whose worker was killed this often is given up: it is likely the cell that kills (memory)."""

optuna.logging.set_verbosity(optuna.logging.WARNING)
logging.getLogger("filelock").setLevel(logging.WARNING)


class StudyError(RuntimeError):
    """A study that is not there, or that holds something else; the message says what to do."""


class _OsLock(JournalFileOpenLock):
    """The journal's lock as a lock of the operating system, which goes with its holder however that ends.

    Optuna's own leaves a link behind when its holder is killed, and everybody waits for 30 seconds.
    """

    def __init__(self, path: Path) -> None:
        self._lock = FileLock(path, is_singleton=False)

    def acquire(self) -> bool:
        self._lock.acquire()
        return True

    def release(self) -> None:
        self._lock.release()


def is_url(storage: str) -> bool:
    """Whether a storage is an RDB URL rather than the path of a journal."""
    return "://" in storage


def journal_path(storage: str) -> Path:
    """The journal of a path: itself, or the file of that name in a folder."""
    path = Path(storage)
    return (path / JOURNAL if path.is_dir() or storage.endswith("/") else path).absolute()


def open_storage(storage: str, *, create: bool = True) -> BaseStorage:
    """Open a journal file (a path) or a database (a URL).

    Raises:
        StudyError: `create` is false and there is no such journal.
    """
    if is_url(storage):
        return RDBStorage(storage)
    path = journal_path(storage)
    if not create and not path.exists():
        raise StudyError(f"storage={storage!r}: no journal there. Start one with `python -m ablations run`, or give "
                         "the --storage or --out of the study")
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = _OsLock(path.with_name(path.name + ".lock"))
    _drop_half_line(path, lock)
    return JournalStorage(JournalFileBackend(str(path), lock_obj=lock))


def _drop_half_line(path: Path, lock: _OsLock) -> None:
    """Cut off a last line that a full disk or a power cut left unfinished; the journal could not be read with it."""
    if not path.exists() or not os.access(path, os.W_OK):
        return
    lock.acquire()
    try:
        with path.open("rb+") as file:
            whole = file.seek(0, os.SEEK_END)
            while whole and file.seek(whole - 1) is not None and file.read(1) != b"\n":
                whole -= 1
            file.truncate(whole)
    finally:
        lock.release()


def open_study(storage: str, *, name: str) -> optuna.Study:
    """An existing study, to read; a `StudyError` lists those there are."""
    opened = open_storage(storage, create=False)
    try:
        return optuna.load_study(study_name=name, storage=opened, sampler=optuna.samplers.RandomSampler())
    except KeyError:
        known = ", ".join(study.study_name for study in opened.get_all_studies()) or "none"
        raise StudyError(f"study={name!r}: not in {storage}. Studies there: {known}. Give one with --study") from None


def create_study(storage: str, *, name: str, spec: Mapping[str, Any]) -> optuna.Study:
    """Open or start the study that trains what `spec` says.

    Raises:
        StudyError: the name holds a study of something else. The message names the first differences.
    """
    study = optuna.create_study(
        study_name=name, storage=open_storage(storage), load_if_exists=True, direction="minimize",
        sampler=optuna.samplers.RandomSampler(),  # the queue decides what is trained; nothing is ever sampled
    )
    known = study.user_attrs.get("spec")
    if known is None:
        study.set_user_attr("spec", dict(spec))
    elif flatten(known) != flatten(spec):
        raise StudyError(
            f"study={name!r} in {storage} was started with other settings ({_differences(known, spec)}), and its cells "
            "could not be compared with new ones. Give this study a name of its own with --study, or go back to the "
            "settings it was started with"
        )
    return study


def flatten(values: Mapping[str, Any], *, prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, with dotted keys; lists as tuples."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, prefix=f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = tuple(value) if isinstance(value, list) else value
    return flat


def _differences(known: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    old, new = flatten(known), flatten(wanted)
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    shown = "; ".join(f"{key}: {old.get(key)!r} there, {new.get(key)!r} here" for key in keys[:3])
    return shown + (f"; and {len(keys) - 3} more" if len(keys) > 3 else "")


@dataclass(frozen=True)
class Claim:
    """A cell that this process works on. The lock is held until the trial is told, or the process ends."""

    trial: optuna.Trial
    cell: str
    config: dict[str, Any]
    lock: FileLock


@dataclass(frozen=True)
class Task:
    """A cell to be queued: the id, the run's configuration, and the trial's parameters for Optuna's dashboard."""

    cell: str
    config: dict[str, Any]
    params: dict[str, Any]


class Queue:
    """The cells of one study: put, claimed and given back, exactly once whatever number of processes take part.

    Args:
        study: the study.
        storage: where it is, a path or a URL.
        folder: for a database server, where this machine keeps its locks. A journal or an SQLite file has them beside
            it, so that all who share the file share the locks.
    """

    def __init__(self, study: optuna.Study, *, storage: str, folder: Path) -> None:
        self.study = study
        self.trials = study._storage  # the public BaseStorage API; a Study hands out no other way to a running trial
        self.locks = _lock_folder(storage, folder)
        self.on_server = is_url(storage) and not storage.startswith("sqlite")
        self.locks.mkdir(parents=True, exist_ok=True)
        self.gate = FileLock(self.locks / f"{study.study_name}.gate", is_singleton=False)
        """Held for moments: while the queue is changed, never while something trains."""
        self.host = socket.gethostname()

    def enqueue(self, tasks: Sequence[Task]) -> int:
        """Queue the cells that are neither settled nor queued nor running; return how many.

        Optuna's `skip_if_exists` would leave out failed cells for ever, and may queue twice from two processes.
        """
        with self.gate:
            last = latest(self._get())
            missing = [task for task in tasks if _is_missing(last.get(task.cell))]
            for task in missing:
                before = last[task.cell].user_attrs["executions"] if task.cell in last else []
                self._put({"cell": task.cell, "config": task.config, "executions": before}, task.params)
        return len(missing)

    def claim(self) -> Claim | None:
        """Take the next cell and log the begin of its execution, or None when none waits."""
        with self.gate:
            if not self._get(TrialState.WAITING):
                return None
            trial = self.study.ask()
            attrs = trial.user_attrs
            if "cell" not in attrs:
                # Another machine took the last cell in between, and Optuna made up a trial of its own.
                self.study.tell(trial, state=TrialState.FAIL)
                return None
            lock = self._lock(trial.number)
            lock.acquire(blocking=False)
            trial.set_user_attr("locks", [self.host, str(self.locks)])
            begun = {"start": now(), "end": None, "worker": self.worker(os.getpid()), "outcome": None}
            trial.set_user_attr("executions", [*attrs["executions"], begun])
        return Claim(trial, attrs["cell"], attrs["config"], lock)

    def finish(self, claim: Claim, *, state: str, value: float | None = None, **attrs: Any) -> None:
        """Write what came of a cell, and end its execution with the state as outcome."""
        trial_id = claim.trial._trial_id
        for key, content in attrs.items():
            claim.trial.set_user_attr(key, content)
        self._end_execution(trial_id, claim.trial.user_attrs["executions"], outcome=state)
        claim.trial.set_user_attr("value", value)
        claim.trial.set_user_attr("state", state)  # last: from here on the result stands, even if we die before tell
        self._tell(claim.trial.number, state=state, value=value)
        claim.lock.release()

    def reap(self, *, outcome: str = "killed") -> int:
        """Give back the cells of processes of this machine that are gone; return how many.

        A running trial whose lock can be taken has lost its process. Its cell is queued again with its executions, or
        given up after `MAX_KILLS` kills.
        """
        with self.gate:
            dead = [trial for trial in self._get(TrialState.RUNNING) if self._is_dead(trial)]
            for trial in dead:
                self._bury(trial, outcome=outcome)
        return len(dead)

    def unfinished(self) -> int:
        """How many cells wait or run, here or elsewhere."""
        return len(self._get(TrialState.WAITING, TrialState.RUNNING))

    def has_begun(self, pid: int | None) -> bool:
        """Whether a process of this machine ever began a cell."""
        workers = (execution["worker"] for trial in self._get() for execution in trial.user_attrs["executions"])
        return self.worker(pid) in workers

    def worker(self, pid: int | None) -> str:
        """The name of a process in the log of executions."""
        return f"{self.host}:{pid}"

    def _get(self, *states: TrialState) -> list[FrozenTrial]:
        return ours(self.study.get_trials(deepcopy=False, states=states or None))

    def _put(self, attrs: dict[str, Any], params: dict[str, Any]) -> None:
        self.study.enqueue_trial(params, user_attrs=attrs)

    def _lock(self, number: int, *, folder: Path | None = None) -> FileLock:
        return FileLock((folder or self.locks) / f"{self.study.study_name}.{number}.lock", is_singleton=False)

    def _is_dead(self, trial: FrozenTrial) -> bool:
        host, folder = trial.user_attrs.get("locks", (self.host, str(self.locks)))
        if self.on_server and host != self.host:
            return False  # only its own machine can tell
        lock = self._lock(trial.number, folder=Path(folder) if self.on_server else None)
        try:
            lock.acquire(blocking=False)
        except (Timeout, OSError):
            return False
        lock.release()
        return True

    def _bury(self, trial: FrozenTrial, *, outcome: str) -> None:
        attrs = trial.user_attrs
        if "state" in attrs:  # it died between its result and the end of its trial: nothing is lost
            self._tell(trial.number, state=attrs["state"], value=attrs["value"])
            return
        executions = self._end_execution(trial._trial_id, attrs["executions"], outcome=outcome)
        kills = sum(execution["outcome"] == "killed" for execution in executions)
        give_up = outcome == "killed" and kills > 0 and kills % MAX_KILLS == 0
        if give_up:
            reason = f"its worker was killed {kills} times (often by the system, for want of memory)"
            self.trials.set_trial_user_attr(trial._trial_id, "reason", reason)
        self.trials.set_trial_user_attr(trial._trial_id, "state", "failed" if give_up else outcome)
        # Told before it is queued again: if we die in between, the next `run` finds the cell missing.
        self.study.tell(trial.number, state=TrialState.FAIL)
        if not give_up:
            kept = {key: attrs[key] for key in ("cell", "config")}
            self._put({**kept, "executions": executions}, trial.system_attrs.get("fixed_params", {}))

    def _end_execution(
        self, trial_id: int, executions: Sequence[dict[str, Any]], *, outcome: str
    ) -> list[dict[str, Any]]:
        ended = [e if e["outcome"] else {**e, "end": now(), "outcome": outcome} for e in executions]
        self.trials.set_trial_user_attr(trial_id, "executions", ended)
        return ended

    def _tell(self, number: int, *, state: str, value: float | None) -> None:
        if state == "complete":
            self.study.tell(number, value)
        else:
            self.study.tell(number, state=TrialState.FAIL)


def _lock_folder(storage: str, folder: Path) -> Path:
    if not is_url(storage):
        return journal_path(storage).parent / "locks"
    if storage.startswith("sqlite:///") and storage != "sqlite:///:memory:":
        return Path(storage.removeprefix("sqlite:///")).absolute().parent / "locks"
    return folder.absolute() / "locks"


def ours(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The trials that stand for a cell."""
    return [trial for trial in trials if "cell" in trial.user_attrs]


def latest(trials: Sequence[FrozenTrial]) -> dict[str, FrozenTrial]:
    """The trial that stands for each cell: a settled one, else the last."""
    standing: dict[str, FrozenTrial] = {}
    for trial in trials:
        known = standing.get(trial.user_attrs["cell"])
        if known is None or state_of(known) not in SETTLED:
            standing[trial.user_attrs["cell"]] = trial
    return standing


def _is_missing(trial: FrozenTrial | None) -> bool:
    return trial is None or state_of(trial) not in (*SETTLED, "waiting", "running")


def state_of(trial: FrozenTrial) -> str:
    """complete, diverged, failed, killed, interrupted, waiting or running."""
    if not trial.state.is_finished():
        return trial.state.name.lower()
    return str(trial.user_attrs.get("state", "failed"))


def now() -> str:
    """The time in UTC, ISO 8601, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
