"""The queue of a study's cells: who works on which, what came of it, and the log of executions.

Every change of a cell is one change of the storage, whole or not at all (`trials`). In a file one process at a time
makes any (`gate`); on a server the database locks the one row concerned. A worker holds a lock on its cell that ends
with the process, and in a database server also records heartbeats; a cell that lost its worker is queued again with its
executions.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock
from optuna.distributions import BaseDistribution
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState, create_trial

from ablations.design.stages import JUDGE
from ablations.engine import optuna_private as private
from ablations.engine.locks import is_free
from ablations.engine.storage import (
    MAX_KILLS,
    SETTLED,
    is_missing,
    latest,
    lock_folder,
    mutex,
    now,
    ours,
    patiently,
)
from ablations.engine.trials import LIGHT, trials_of

FINAL = (*SETTLED, "failed")
"""States that a cell's worker wrote itself: the result is valid. Studies of older versions may hold a running trial
with one, whose worker died before it told Optuna."""
IDENTITY = ("cell", "config", "row", "tuned", "stage")
"""What a cell that is queued again takes along, beside its executions."""


@dataclass(frozen=True)
class Claim:
    """A cell that this process works on. The lock is held until the trial is told, or the process ends."""

    study: optuna.Study
    number: int
    """Of its trial in the study."""
    trial_id: int
    """Of its trial in the storage."""
    attrs: Mapping[str, Any]
    """What is kept on its trial."""
    lock: FileLock

    @property
    def cell(self) -> str:
        """Its id."""
        return str(self.attrs["cell"])

    @property
    def config(self) -> dict[str, Any]:
        """The run, as a dict. Empty: to be sampled."""
        return dict(self.attrs["config"])

    @property
    def row(self) -> str:
        """The id of its row; of a search empty."""
        return str(self.attrs.get("row", ""))

    @cached_property
    def trial(self) -> optuna.Trial:
        """Its trial, to sample parameters with. It reads what the study's sampler and pruner need, all trials maybe."""
        return private.trial_of(self.study, self.trial_id)


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
    stage: str = JUDGE
    """What it is for: `design.stages`."""
    distributions: dict[str, BaseDistribution] = field(default_factory=dict)
    """Of parameters that are settled already. A search samples the others, or takes those given."""

    @property
    def attrs(self) -> dict[str, Any]:
        """What is kept on its trial."""
        stage = {} if self.stage == JUDGE else {"stage": self.stage}
        return {"cell": self.cell, "config": self.config, "row": self.row, "tuned": self.tuned, **stage}

    def waiting(self, *, executions: Sequence[Any], known: Mapping[str, BaseDistribution]) -> FrozenTrial:
        """Its trial, to be queued.

        Args:
            executions: those before.
            known: the distributions of the study so far. Optuna refuses another of the same name (a study that has got
                further levels since its first cell): such a parameter is not shown.
        """
        settled = {name: kind for name, kind in self.distributions.items() if known.get(name, kind) == kind}
        return create_trial(
            state=TrialState.WAITING, distributions=settled, params={name: self.params[name] for name in settled},
            system_attrs={} if settled else {"fixed_params": self.params},
            user_attrs={**self.attrs, "executions": list(executions)},
        )


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
        self.trials = trials_of(study)
        self.server = None if storage.startswith("sqlite") else private.database_of(study)
        """The database server. None: a file, whose locks tell who is there."""
        self.locks = lock_folder(storage, folder)
        self.locks.mkdir(parents=True, exist_ok=True)
        self.host = socket.gethostname()
        self.budget = budget
        self._gate = mutex(study, folder=self.locks, name="gate")
        self._silent_since: dict[int, float] = {}
        self._looked = 0.0

    @property
    def gate(self) -> AbstractContextManager[Any]:
        """A lock of this study, between all who share it. Held for moments, never while something trains."""
        return self._gate

    @property
    def _turn(self) -> AbstractContextManager[Any]:
        """Around a change of one cell: in a file the gate; on a server the database locks the row."""
        return self.gate if self.server is None else nullcontext()

    def enqueue(self, cells: Sequence[QueuedCell]) -> int:
        """Queue the cells that are neither settled nor queued nor running; return how many.

        Optuna's `skip_if_exists` would leave out failed cells for ever, and may queue twice from two processes.
        """
        with self.gate, self.trials.together():
            last, known = latest(ours(self.trials.read(LIGHT))), self.trials.distributions()
            missing = [cell for cell in cells if is_missing(last.get(cell.cell))]
            trials = []
            for cell in missing:
                before = last[cell.cell].user_attrs["executions"] if cell.cell in last else []
                trials.append(cell.waiting(executions=before, known=known))
                known = {**cell.distributions, **known} if cell.distributions.keys() - known.keys() else known
            if trials:
                self.trials.put(trials)
        return len(missing)

    def claim(self) -> Claim | None:
        """Take the next cell and log the start of its execution; None when none waits."""
        taken: list[FileLock] = []

        def begin(number: int, attrs: Mapping[str, Any]) -> dict[str, Any]:
            lock = self._lock(number)
            lock.acquire(blocking=False)
            taken.append(lock)
            return self._begun(number, attrs)

        try:
            with self._turn:
                trial = self.trials.take(begin, foreign=self.budget > 0)
            if trial is None and self.budget:
                trial = self._sample(begin)
        except BaseException:  # the database went away: the trial is found with a free lock and queued again
            for lock in taken:
                lock.release()
            raise
        if trial is None:
            return None
        private.forget(self.study)
        return Claim(self.study, trial.number, private.trial_id(trial), trial.user_attrs, taken[-1])

    def _sample(self, begin: Any) -> FrozenTrial | None:
        """A new trial of a search, if it may still have one."""
        with self.gate, self.trials.together():
            return self.trials.start(begin) if self._room() else None

    def _begun(self, number: int, attrs: Mapping[str, Any]) -> dict[str, Any]:
        """What is kept on a trial from its start."""
        made_up = {} if "cell" in attrs else {"cell": f"trial-{number:04}", "config": {}}
        begun = {"start": now(), "end": None, "worker": self.worker(os.getpid()), "outcome": None}
        return {
            **made_up, "locks": [self.host, str(self.locks)],
            "executions": [*attrs.get("executions", []), begun],
        }

    def finish(self, claim: Claim, *, state: str, value: float | None = None, **attrs: Any) -> None:
        """Write what came of a cell, and end its execution with the state as outcome.

        While the database does not answer, this is retried for `PATIENCE` seconds. A cell that was given to another
        worker meanwhile is left to that one.
        """
        ended = {**attrs, "state": state, "executions": _ended(claim.attrs["executions"], outcome=state)}
        try:
            patiently(lambda: self._end(claim.trial_id, ended, state=state, value=value))
        except UpdateFinishedTrialError:
            if not self._stands(claim, ended):
                print(f"{claim.cell}: its heartbeats stopped, and it was given to another worker; this result is "
                      "dropped", flush=True)
        finally:
            claim.lock.release()

    def _stands(self, claim: Claim, ended: Mapping[str, Any]) -> bool:
        """Whether a result was written after all: the server may have gone away between doing so and saying so."""
        trial = patiently(lambda: private.storage_of(self.study).get_trial(claim.trial_id))
        return bool(trial.user_attrs.get("executions") == ended["executions"])

    def reap(self, *, outcome: str = "killed") -> int:
        """Give back the cells of processes that are gone; return how many.

        A running trial of this machine whose lock can be taken has lost its process; so has one of another machine
        whose heartbeats stopped. Its cell is queued again with its executions, or given up after
        `MAX_KILLS` kills.
        """
        with self._turn:
            silent = self._silent()
            running = ours(self.trials.read(LIGHT, states=(TrialState.RUNNING,)))
            dead = [trial for trial in running if self._is_dead(trial, silent)]
            return sum(self._give_back(trial, outcome=outcome) for trial in dead)

    def lost(self) -> set[int]:
        """Numbers of the running trials whose process is gone, which `reap` would give back."""
        silent, running = self._silent(), ours(self.trials.read(LIGHT, states=(TrialState.RUNNING,)))
        return {trial.number for trial in running if self._is_dead(trial, silent)}

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
                    private.beat(server, claim.trial_id)

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def unfinished(self) -> int:
        """How many cells wait, run, here or elsewhere, or may still be sampled."""
        return self.trials.unfinished() + self._room()

    def is_any_left(self) -> bool:
        """Whether a cell waits, runs, or may still be sampled."""
        return self.trials.is_any_left() or self._room() > 0

    def has_begun(self, pid: int | None) -> bool:
        """Whether a process of this machine ever began a cell."""
        return self.trials.has_begun(self.worker(pid))

    def worker(self, pid: int | None) -> str:
        """The name of a process in the log of executions."""
        return f"{self.host}:{pid}"

    def _room(self) -> int:
        return max(0, self.budget - len(latest(ours(self.trials.read(LIGHT))))) if self.budget else 0

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
        self._silent_since = {number: known.get(number, self._looked) for number in self.trials.silent()}
        return {number for number, since in self._silent_since.items() if self._looked - since >= 2 * interval}

    def _is_dead(self, trial: FrozenTrial, silent: set[int]) -> bool:
        if "locks" not in trial.user_attrs:  # of an older version, whose process died before it began
            return True
        host, folder = trial.user_attrs["locks"]
        if self.server is None:
            return is_free(self._lock(trial.number))
        lock = self._lock(trial.number, folder=Path(folder))
        if host == self.host and Path(lock.lock_file).exists():  # not another machine of the same name
            return is_free(lock)
        return private.trial_id(trial) in silent

    def _give_back(self, trial: FrozenTrial, *, outcome: str) -> bool:
        """End a dead process's trial and queue its cell again; whether nobody else has done so at this moment."""
        trial_id, attrs = private.trial_id(trial), trial.user_attrs
        whole = self.trials.whole(trial_id)
        executions = _ended(attrs.get("executions", []), outcome=outcome)
        kills = sum(execution["outcome"] == "killed" for execution in executions)
        begun = executions != attrs.get("executions", [])
        ended: dict[str, Any] = {"executions": executions}
        with suppress(UpdateFinishedTrialError):
            value = whole.user_attrs.get("value", (whole.user_attrs.get("result") or {}).get("val_loss"))
            if attrs.get("state") in FINAL and (attrs["state"] != "complete" or value is not None):
                # Of an older version, which wrote the end behind the result; or the end alone was lost.
                state = attrs["state"]
                ended["executions"] = _ended(attrs["executions"], outcome=state)
                self._end(trial_id, ended, state=state, value=value)
            elif outcome == "killed" and begun and kills % MAX_KILLS == 0:
                reason = (f"its worker was killed {kills} times, likely by the OOM killer: try a smaller "
                          "data.batch_size with more optim.accumulate, or fewer --workers")
                self._end(trial_id, {**ended, "state": "failed", "reason": reason}, state="failed")
            else:
                again = [] if self.trials.has_successor(trial) else [_again(whole, executions=executions)]
                self._end(trial_id, {**ended, "state": outcome}, state=outcome, put=again)
            return True
        return False

    def _end(
        self, trial_id: int, attrs: Mapping[str, Any], *, state: str, value: float | None = None,
        put: Sequence[FrozenTrial] = (),
    ) -> None:
        """End a trial with its attributes, and queue others, all or nothing."""
        ended, with_value = TrialState.FAIL, None
        if state == "complete":
            ended, with_value = TrialState.COMPLETE, value
        # A sampler ignores what failed, and would go there again: in a search a diverged run counts as a bad one.
        elif state == "pruned" or (state == "diverged" and self.budget > 0):
            ended = TrialState.PRUNED
            with_value = private.last_value(private.storage_of(self.study).get_trial(trial_id))
        with self._turn:
            self.trials.end(trial_id, attrs, state=ended, value=with_value, put=put)
        private.forget(self.study)


def _again(trial: FrozenTrial, *, executions: Sequence[Any]) -> FrozenTrial:
    """The trial that takes a dead one's place."""
    kept = {key: trial.user_attrs[key] for key in IDENTITY if key in trial.user_attrs}
    given = private.enqueued_params(trial)
    return create_trial(
        state=TrialState.WAITING, params=trial.params, distributions=trial.distributions,
        system_attrs={"fixed_params": {**given, **trial.params}} if given or not trial.params else {},
        user_attrs={**kept, "executions": list(executions)},
    )


def _ended(executions: Sequence[dict[str, Any]], *, outcome: str) -> list[dict[str, Any]]:
    return [e if e["outcome"] else {**e, "end": now(), "outcome": outcome} for e in executions]
