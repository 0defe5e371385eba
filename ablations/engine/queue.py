"""The queue of a study's cells: who works on which, what came of it, and the log of executions.

Every change is made by one process at a time (`gate`). A worker holds a lock on its cell that ends with the process,
and in a database server also records heartbeats; a cell that lost its worker is queued again with its executions.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from ablations.engine import optuna_private as private
from ablations.engine.locks import DatabaseLock, is_free
from ablations.engine.storage import (
    MAX_KILLS,
    SETTLED,
    is_missing,
    is_url,
    journal_path,
    latest,
    now,
    ours,
    patiently,
)

FINAL = (*SETTLED, "failed")
"""States that a cell's worker wrote itself: the result is valid, even if the worker died before it told Optuna."""


@dataclass(frozen=True)
class Claim:
    """A cell that this process works on. The lock is held until the trial is told, or the process ends."""

    trial: optuna.Trial
    cell: str
    config: dict[str, Any]
    row: str
    lock: FileLock


@dataclass(frozen=True)
class QueuedCell:
    """A cell to be queued."""

    cell: str
    """Its id."""
    config: dict[str, Any]
    """The run. Empty: the worker samples it."""
    params: dict[str, Any]
    """What Optuna shows of it."""
    row: str = ""
    """Its row in the study's design; of a search none."""
    tuned: dict[str, Any] = field(default_factory=dict)
    """Values of the tuned fields, by dotted path."""

    @property
    def attrs(self) -> dict[str, Any]:
        """What is kept on its trial."""
        return {"cell": self.cell, "config": self.config, "row": self.row, "tuned": self.tuned}


IDENTITY = ("cell", "config", "row", "tuned")
"""What a cell that is queued again takes along, beside its executions."""


class Queue:
    """The cells of one study: put, claimed and given back, exactly once whatever number of processes take part.

    Args:
        study: the study.
        storage: where it is, a path or a URL.
        folder: for a database server, where this machine keeps its locks. A journal or an SQLite file has them beside
            it, so that all who share the file share the locks.
        budget: cells that a search may have in all; when none waits, a new one is sampled. 0: nothing is ever sampled.
    """

    def __init__(self, study: optuna.Study, *, storage: str, folder: Path, budget: int = 0) -> None:
        self.study = study
        self.trials = private.storage_of(study)  # a Study hands out no other way to a trial that runs elsewhere
        self.server = None if storage.startswith("sqlite") else private.database_of(study)
        """The database server. None: a file, whose locks tell who is there."""
        self.locks = _lock_folder(storage, folder)
        self.locks.mkdir(parents=True, exist_ok=True)
        self.host = socket.gethostname()
        self.budget = budget
        self._silent_since: dict[int, float] = {}
        self._looked = 0.0

    def mutex(self, name: str) -> AbstractContextManager[Any]:
        """A lock of this study, between all who share it."""
        if self.server is not None:
            return DatabaseLock(private.engine_of(self.server), f"{self.study.study_name}.{name}")
        return FileLock(self.locks / f"{self.study.study_name}.{name}", is_singleton=False)

    @property
    def gate(self) -> AbstractContextManager[Any]:
        """Held for moments: while the queue is changed, never while something trains."""
        return self.mutex("gate")

    def enqueue(self, cells: Sequence[QueuedCell]) -> int:
        """Queue the cells that are neither settled nor queued nor running; return how many.

        Optuna's `skip_if_exists` would leave out failed cells for ever, and may queue twice from two processes.
        """
        with self.gate:
            last = latest(self._get())
            missing = [cell for cell in cells if is_missing(last.get(cell.cell))]
            for cell in missing:
                before = last[cell.cell].user_attrs["executions"] if cell.cell in last else []
                self._put({**cell.attrs, "executions": before}, cell.params)
        return len(missing)

    def claim(self) -> Claim | None:
        """Take the next cell and log the start of its execution; None when none waits."""
        with self.gate:
            if not self._get(TrialState.WAITING) and not self._room():
                return None
            trial = self._ask()
            if trial is None:
                return None
            lock = self._lock(trial.number)
            lock.acquire(blocking=False)
            try:
                self._begin(trial)
            except BaseException:  # the database went away: the trial is found with a free lock and queued again
                lock.release()
                raise
        attrs = trial.user_attrs
        return Claim(trial, attrs["cell"], attrs["config"], str(attrs.get("row", "")), lock)

    def _begin(self, trial: optuna.Trial) -> None:
        if self.server is not None:
            private.beat(self.server, trial)
        trial.set_user_attr("locks", [self.host, str(self.locks)])
        begun = {"start": now(), "end": None, "worker": self.worker(os.getpid()), "outcome": None}
        trial.set_user_attr("executions", [*trial.user_attrs["executions"], begun])

    def finish(self, claim: Claim, *, state: str, value: float | None = None, **attrs: Any) -> None:
        """Write what came of a cell, and end its execution with the state as outcome.

        While the database does not answer, this is retried for `PATIENCE` seconds. A cell that was given to another
        worker meanwhile is left to that one.
        """
        try:
            patiently(lambda: self._finish(claim, state=state, value=value, attrs=attrs))
        except UpdateFinishedTrialError:
            print(f"{claim.cell}: its heartbeats stopped, and it was given to another worker; this result is dropped",
                  flush=True)
        finally:
            claim.lock.release()

    def _finish(self, claim: Claim, *, state: str, value: float | None, attrs: dict[str, Any]) -> None:
        with self.gate:  # else it could be reaped half-way, and be both finished and queued again
            for key, content in {**attrs, "value": value}.items():
                claim.trial.set_user_attr(key, content)
            claim.trial.set_user_attr("state", state)  # from here on the result stands, even if we die before `_close`
            self._close(private.trial_id(claim.trial), claim.trial.number, state=state, value=value)

    def reap(self, *, outcome: str = "killed") -> int:
        """Give back the cells of processes that are gone; return how many.

        A running trial of this machine whose lock can be taken has lost its process; so has one of another machine
        whose heartbeats stopped. Its cell is queued again with its executions, or given up after
        `MAX_KILLS` kills.
        """
        with self.gate:
            silent = self._silent()
            running = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
            for trial in running:
                if "cell" not in trial.user_attrs:  # its process died while it took the trial, behind this very gate
                    self.study.tell(trial.number, state=TrialState.FAIL)
            dead = [trial for trial in ours(running) if self._is_dead(trial, silent)]
            for trial in dead:
                self._give_back(trial, outcome=outcome)
        return len(dead)

    def lost(self) -> set[int]:
        """Numbers of the running trials whose process is gone, which `reap` would give back."""
        with self.gate:
            silent = self._silent()
            return {trial.number for trial in self._get(TrialState.RUNNING) if self._is_dead(trial, silent)}

    @contextmanager
    def heartbeats(self, claim: Claim) -> Iterator[None]:
        """Record heartbeats for a cell while it trains, in a database server; for a file, locks do."""
        server, done = self.server, threading.Event()
        if server is None:
            yield
            return

        def beat() -> None:
            while not done.wait(private.heartbeat_interval(server)):
                with suppress(StorageInternalError):  # the next beat may get through
                    private.beat(server, claim.trial)

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def unfinished(self) -> int:
        """How many cells wait, run, here or elsewhere, or may still be sampled."""
        return len(self._get(TrialState.WAITING, TrialState.RUNNING)) + self._room()

    def has_begun(self, pid: int | None) -> bool:
        """Whether a process of this machine ever began a cell."""
        workers = (execution["worker"] for trial in self._get() for execution in trial.user_attrs["executions"])
        return self.worker(pid) in workers

    def worker(self, pid: int | None) -> str:
        """The name of a process in the log of executions."""
        return f"{self.host}:{pid}"

    def _room(self) -> int:
        return max(0, self.budget - len(latest(self._get()))) if self.budget else 0

    def _ask(self) -> optuna.Trial | None:
        """A trial that stands for a cell; None where another program took the last one that waited."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Heartbeat of storage")  # see `heartbeats`
            trial = self.study.ask()
        if "cell" not in trial.user_attrs:
            if not self.budget:
                self.study.tell(trial, state=TrialState.FAIL)
                return None
            for key, value in {"config": {}, "executions": [], "cell": f"trial-{trial.number:04}"}.items():
                trial.set_user_attr(key, value)
        return trial

    def _get(self, *states: TrialState) -> list[FrozenTrial]:
        return ours(self.study.get_trials(deepcopy=False, states=states or None))

    def _put(self, attrs: dict[str, Any], params: dict[str, Any]) -> None:
        self.study.enqueue_trial(params, user_attrs=attrs)

    def _lock(self, number: int, *, folder: Path | None = None) -> FileLock:
        return FileLock((folder or self.locks) / f"{self.study.study_name}.{number}.lock", is_singleton=False)

    def _silent(self) -> set[int]:
        """The running trials whose last heartbeat is old, and that recorded none while this process watched.

        After an outage of the server, or a jump of its clock, all look dead until their next heartbeat.
        """
        interval = None if self.server is None else private.heartbeat_interval(self.server)
        if self.server is None or interval is None:
            return set()
        looked, self._looked = self._looked, time.monotonic()
        known = self._silent_since if self._looked - looked < 4 * interval else {}
        stale = private.stale_trial_ids(self.server, self.study)
        self._silent_since = {number: known.get(number, self._looked) for number in stale}
        return {number for number, since in self._silent_since.items() if self._looked - since >= 2 * interval}

    def _is_dead(self, trial: FrozenTrial, silent: set[int]) -> bool:
        if "locks" not in trial.user_attrs:  # its process died while it took the trial, before it began
            return True
        host, folder = trial.user_attrs["locks"]
        if self.server is None:
            return is_free(self._lock(trial.number))
        lock = self._lock(trial.number, folder=Path(folder))
        if host == self.host and Path(lock.lock_file).exists():  # not another machine of the same name
            return is_free(lock)
        return private.trial_id(trial) in silent

    def _give_back(self, trial: FrozenTrial, *, outcome: str) -> None:
        attrs = trial.user_attrs
        if attrs.get("state") in FINAL:  # it died between its result and the end of its trial: nothing is lost
            self._close(private.trial_id(trial), trial.number, state=attrs["state"], value=attrs["value"])
            return
        executions = _ended(attrs["executions"], outcome=outcome)
        kills = sum(execution["outcome"] == "killed" for execution in executions)
        begun = executions != attrs["executions"]
        give_up = outcome == "killed" and begun and kills % MAX_KILLS == 0
        if give_up:
            reason = (f"its worker was killed {kills} times, likely by the OOM killer: try a smaller data.batch_size "
                      "with more optim.accumulate, or fewer --workers")
            self._set(trial, reason=reason, value=None)
        elif not self._has_successor(trial):
            # Queued again before it is told: who dies in between leaves nothing undone.
            self._put({**{key: attrs[key] for key in IDENTITY if key in attrs}, "executions": executions},
                      {**private.enqueued_params(trial), **trial.params})  # it may have come to some only
        state = "failed" if give_up else outcome
        self._set(trial, executions=executions, state=state)
        self._close(private.trial_id(trial), trial.number, state=state)

    def _set(self, trial: FrozenTrial, **attrs: Any) -> None:
        for key, content in attrs.items():
            self.trials.set_trial_user_attr(private.trial_id(trial), key, content)

    def _has_successor(self, trial: FrozenTrial) -> bool:
        cell = trial.user_attrs["cell"]
        return any(other.number > trial.number and other.user_attrs["cell"] == cell for other in self._get())

    def _close(self, trial_id: int, number: int, *, state: str, value: float | None = None) -> None:
        """End the execution, where that is not done, and Optuna's trial."""
        ended = _ended(self.trials.get_trial(trial_id).user_attrs["executions"], outcome=state)
        self.trials.set_trial_user_attr(trial_id, "executions", ended)
        if state == "complete":
            self.study.tell(number, value)
        else:
            # A sampler ignores what failed, and would go there again: in a search a diverged run counts as a bad one.
            bad = state == "pruned" or (state == "diverged" and self.budget > 0)
            self.study.tell(number, state=TrialState.PRUNED if bad else TrialState.FAIL)


def _ended(executions: Sequence[dict[str, Any]], *, outcome: str) -> list[dict[str, Any]]:
    return [e if e["outcome"] else {**e, "end": now(), "outcome": outcome} for e in executions]


def _lock_folder(storage: str, folder: Path) -> Path:
    if not is_url(storage):
        return journal_path(storage).parent / "locks"
    if storage.startswith("sqlite:///") and storage != "sqlite:///:memory:":
        return Path(storage.removeprefix("sqlite:///")).absolute().parent / "locks"
    return folder.absolute() / "locks"
