"""The trials of a study as the queue reads and writes them: light, indexed, and each change whole or not at all.

Optuna's own interface reads every trial with all that is on it to find one, and writes attribute by attribute. The two
kinds of storage have an implementation each, which leave behind exactly what Optuna itself would write: a study stays
readable by Optuna and its dashboard.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from ablations.engine import optuna_private as private
from ablations.engine.journal_light import HEAVY, LightJournal
from ablations.engine.trials_database import DatabaseTrials
from ablations.engine.trials_journal import JournalTrials

LIGHT = ("cell", "row", "stage", "state", "executions", "locks", "reason")
"""Attributes that say how a cell fares; what is heavy (config, curve, result) is read for one cell at a time."""


class Trials(Protocol):
    """What the queue asks of a storage. A trial stands for a cell where it has the attribute `cell`."""

    def read(self, keys: Collection[str] | None = None, *, states: Collection[TrialState] = ()) -> list[FrozenTrial]:
        """The trials by number, of all states unless some are given.

        Args:
            keys: the attributes that are needed; others, and parameters, may be missing. None: all there is.
            states: of which.
        """

    def whole(self, trial_id: int) -> FrozenTrial:
        """One trial with all that is on it."""

    def take(self, begin: Callable[[int, Mapping[str, Any]], dict[str, Any]], *, foreign: bool) -> FrozenTrial | None:
        """Let the next waiting trial run; None when none waits.

        Args:
            begin: makes the attributes of its start from its number and its attributes.
            foreign: also one that stands for no cell.
        """

    def start(self, begin: Callable[[int, Mapping[str, Any]], dict[str, Any]]) -> FrozenTrial:
        """Make a trial that runs at once, of a search."""

    def put(self, trials: Sequence[FrozenTrial]) -> None:
        """Add trials, all or none."""

    def end(
        self, trial_id: int, attrs: Mapping[str, Any], *, state: TrialState, value: float | None = None,
        put: Sequence[FrozenTrial] = (),
    ) -> None:
        """Write attributes of a running trial, end it, and add others, all or nothing.

        Raises:
            UpdateFinishedTrialError: it has ended already.
        """

    def together(self) -> AbstractContextManager[Any]:
        """Around a look at the trials and what is added thereupon: on a server one transaction, so that nobody else
        adds any in between even if the session with the gate is ended."""

    def unfinished(self) -> int:
        """How many cells wait or run."""

    def is_any_left(self) -> bool:
        """Whether a cell waits or runs."""

    def has_successor(self, trial: FrozenTrial) -> bool:
        """Whether a later trial stands for its cell."""

    def has_begun(self, worker: str) -> bool:
        """Whether a worker of this name ever began a cell."""

    def distributions(self) -> dict[str, BaseDistribution]:
        """Those of the parameters so far, by name: Optuna refuses others under the same name."""

    def silent(self) -> set[int]:
        """The ids of running trials whose last heartbeat is older than the grace period of a database server."""


def trials_of(study: optuna.Study) -> Trials:
    """The trials of a study in a journal or a database.

    Raises:
        TypeError: a storage of another kind.
    """
    journal, database = private.journal_of(study), private.database_of(study)
    if journal is not None:
        return JournalTrials(study, journal)
    if database is not None:
        return DatabaseTrials(study, database)
    raise TypeError(f"no queue in {type(private.storage_of(study)).__name__}: give a journal or a database")


def read_trials(
    study: optuna.Study, keys: Collection[str] | None = None, *, states: Collection[TrialState] = ()
) -> list[FrozenTrial]:
    """The trials of a study, to be looked at and not changed; of a database in a few queries, whatever their number.

    Args:
        study: in whatever storage.
        keys: the attributes that are needed. None: all there is.
        states: only those in these states.
    """
    database = private.database_of(study)
    if database is not None:
        return DatabaseTrials(study, database).read(keys, states=states)
    trials = study.get_trials(deepcopy=False, states=tuple(states) or None)
    journal = private.journal_of(study)
    if isinstance(journal, LightJournal) and (keys is None or not set(HEAVY).isdisjoint(keys)):
        return [journal.whole(trial, trial_id=private.trial_id(trial)) for trial in trials]
    return trials
