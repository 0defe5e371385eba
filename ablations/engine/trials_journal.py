"""The trials of a study in a journal file: an index of this process, brought up to date by what was appended since.

A change is a number of lines that are appended at once. Who changes anything holds the queue's gate, so that nobody
else appends between the look and the change.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from ablations.engine import optuna_private as private
from ablations.engine.journal import AtomicJournal
from ablations.engine.journal_light import LightJournal


class JournalTrials:
    """The trials of one study in a journal. Reading is near constant in their number, as is every change.

    Args:
        study: the study.
        journal: the file that it is in.
    """

    def __init__(self, study: optuna.Study, journal: AtomicJournal) -> None:
        self.study, self.journal, self.storage = study, journal, private.storage_of(study)
        self.study_id = private.study_id(study)
        self.writer = uuid.uuid4().hex
        self._ids: dict[int, None] = {}
        self._waiting: dict[int, None] = {}
        self._running: dict[int, None] = {}
        self._cells: dict[str, list[int]] = {}
        self._distributions: dict[str, BaseDistribution] = {}
        self._changes = journal.follow()

    def read(self, keys: Collection[str] | None = None, *, states: Collection[TrialState] = ()) -> list[FrozenTrial]:
        """As `Trials.read`."""
        if tuple(states) == (TrialState.RUNNING,):
            self._refresh()
            return [self._get(trial_id) for trial_id in self._running]
        # A light journal leaves out what nobody asks for here: see `whole`.
        return self.storage.get_all_trials(self.study_id, deepcopy=False, states=tuple(states) or None)

    def take(self, begin: Callable[[int, Mapping[str, Any]], dict[str, Any]], *, foreign: bool) -> FrozenTrial | None:
        """As `Trials.take`."""
        self._refresh()
        waiting = (self._get(trial_id) for trial_id in self._waiting)
        trial = next((trial for trial in waiting if foreign or "cell" in trial.user_attrs), None)
        if trial is None:
            return None
        trial_id = private.trial_id(trial)
        attrs = begin(trial.number, trial.user_attrs)
        self._append([private.journal_state(trial_id, TrialState.RUNNING), *_attributes(trial_id, attrs)])
        return self.whole(trial_id)

    def whole(self, trial_id: int) -> FrozenTrial:
        """As `Trials.whole`."""
        trial = self._get(trial_id)
        return self.journal.whole(trial, trial_id=trial_id) if isinstance(self.journal, LightJournal) else trial

    def start(self, begin: Callable[[int, Mapping[str, Any]], dict[str, Any]]) -> FrozenTrial:
        """As `Trials.start`."""
        self._refresh()
        template = optuna.trial.create_trial(state=TrialState.RUNNING, user_attrs=begin(len(self._ids), {}))
        self.put([template])
        return self._get(next(reversed(self._running)))

    def put(self, trials: Sequence[FrozenTrial]) -> None:
        """As `Trials.put`."""
        self._append([private.journal_trial(self.study_id, trial) for trial in trials])

    def end(
        self, trial_id: int, attrs: Mapping[str, Any], *, state: TrialState, value: float | None = None,
        put: Sequence[FrozenTrial] = (),
    ) -> None:
        """As `Trials.end`."""
        self._refresh()
        if trial_id not in self._running:
            raise UpdateFinishedTrialError(f"trial {self._get(trial_id).number} has ended already")
        self._append([  # the end last: if it alone is lost, the rest is still whole
            *_attributes(trial_id, attrs), *(private.journal_trial(self.study_id, trial) for trial in put),
            private.journal_state(trial_id, state, value=value),
        ])

    def together(self) -> AbstractContextManager[Any]:
        """As `Trials.together`: the gate will do, which is a lock of this machine."""
        return nullcontext()

    def unfinished(self) -> int:
        """As `Trials.unfinished`."""
        self._refresh()
        return sum("cell" in self._get(trial_id).user_attrs for trial_id in (*self._waiting, *self._running))

    def is_any_left(self) -> bool:
        """As `Trials.is_any_left`."""
        self._refresh()
        return any("cell" in self._get(id_).user_attrs for ids in (self._running, self._waiting) for id_ in ids)

    def has_successor(self, trial: FrozenTrial) -> bool:
        """As `Trials.has_successor`."""
        self._refresh()
        return self._cells[trial.user_attrs["cell"]][-1] > private.trial_id(trial)

    def has_begun(self, worker: str) -> bool:
        """As `Trials.has_begun`."""
        return any(worker == execution["worker"] for trial in self.read()
                   for execution in trial.user_attrs.get("executions", ()))

    def distributions(self) -> dict[str, BaseDistribution]:
        """As `Trials.distributions`."""
        self._refresh()
        return dict(self._distributions)

    def silent(self) -> set[int]:
        """None: the locks beside a file tell who is there."""
        return set()

    def _append(self, lines: list[dict[str, Any]]) -> None:
        self.journal.append_logs([{**line, "worker_id": self.writer} for line in lines])
        self._refresh()

    def _get(self, trial_id: int) -> FrozenTrial:
        return private.journaled(self.storage, trial_id)

    def _refresh(self) -> None:
        """Read what was appended since, and look again at the trials that it concerns."""
        private.sync(self.storage)
        changed, self._changes[:] = list(self._changes), []
        new = private.trials_after(self.storage, self.study_id, len(self._ids))
        self._ids.update(dict.fromkeys(new))
        for trial_id in dict.fromkeys([*new, *changed]):
            if trial_id in self._ids:
                self._note(self._get(trial_id))

    def _note(self, trial: FrozenTrial) -> None:
        trial_id = private.trial_id(trial)
        for ids, state in ((self._waiting, TrialState.WAITING), (self._running, TrialState.RUNNING)):
            if trial.state == state:
                ids[trial_id] = None
            else:
                ids.pop(trial_id, None)
        cell = trial.user_attrs.get("cell")
        if cell is not None and trial_id not in self._cells.setdefault(cell, []):
            self._cells[cell].append(trial_id)
        for name, distribution in trial.distributions.items():
            self._distributions.setdefault(name, distribution)


def _attributes(trial_id: int, attrs: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [private.journal_attribute(trial_id, key, content) for key, content in attrs.items()]
