"""Everything of Optuna that its public interface does not offer, and that the queue cannot do without. Nothing else in
this project may use a private name of Optuna; an upgrade of Optuna is checked here, by `test_optuna_private.py`.

What is missing in the public interface: a study does not hand out its storage, so that the attributes of a trial of
another process cannot be written; a trial does not tell its id in the storage; heartbeats are given by
`Study.optimize` alone, which the queue does not use; and a trial is found by reading all of them, and written attribute
by attribute. The lines of a journal and the tables of a database are written here and in `trials_database.py` as Optuna
writes them, several at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from math import isnan
from typing import Any

import optuna
import sqlalchemy
from optuna.distributions import distribution_to_json
from optuna.storages import BaseStorage, RDBStorage
from optuna.storages._rdb import models
from optuna.storages.journal._storage import JournalOperation
from optuna.trial import FrozenTrial, TrialState

from ablations.engine.journal import AtomicJournal


def storage_of(study: optuna.Study) -> BaseStorage:
    """The storage of a study, through which any of its trials can be written."""
    return study._storage


def database_of(study: optuna.Study) -> RDBStorage | None:
    """The database of a study, below the cache that Optuna puts on it; None where it is kept in a file or in memory."""
    backend = getattr(study._storage, "_backend", None)
    return backend if isinstance(backend, RDBStorage) else None


def engine_of(database: RDBStorage) -> sqlalchemy.Engine:
    """The connections to a database."""
    return database.engine


def trial_id(trial: optuna.Trial | FrozenTrial) -> int:
    """The id of a trial in its storage, which is not its number in the study."""
    return int(trial._trial_id)


def enqueued_params(trial: FrozenTrial) -> dict[str, Any]:
    """The parameters with which a trial was enqueued, also those that nobody has asked it for yet."""
    return dict(trial.system_attrs.get("fixed_params", {}))


def heartbeat_interval(database: RDBStorage) -> int | None:
    """Seconds between the heartbeats of a running trial; None where the database was opened without."""
    return database.heartbeat_interval


def beat(database: RDBStorage, trial_id: int) -> None:
    """Note that the process of a trial is alive."""
    database.record_heartbeat(trial_id)


def study_id(study: optuna.Study) -> int:
    """The id of a study in its storage."""
    return int(study._study_id)


def forget(study: optuna.Study) -> None:
    """Let samplers look at the trials anew, as `Study.ask` and `Study.tell` do."""
    study._thread_local.cached_all_trials = None


def trial_of(study: optuna.Study, trial_id: int) -> optuna.Trial:
    """A running trial, to sample its parameters."""
    study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))  # the cache of a database must have seen it
    return optuna.Trial(study, trial_id)


def last_value(trial: FrozenTrial) -> float | None:
    """The value that Optuna gives a pruned trial: its last point's, if that is a number."""
    last = trial.intermediate_values[trial.last_step] if trial.last_step is not None else float("nan")
    return None if isnan(last) else last


def optuna_attrs(trial: FrozenTrial) -> dict[str, Any]:
    """What Optuna itself keeps on a trial."""
    return dict(trial.system_attrs)


# The journal: a line of JSON for each operation, replayed in memory by every process.


def journal_of(study: optuna.Study) -> AtomicJournal | None:
    """The journal file of a study; None where it is kept elsewhere."""
    return journal_in(study._storage)


def journal_in(storage: BaseStorage) -> AtomicJournal | None:
    """The journal file of a storage; None where it is of another kind."""
    backend = getattr(storage, "_backend", None)
    return backend if isinstance(backend, AtomicJournal) else None


def sync(journal: Any) -> None:
    """Replay what was appended to a journal since."""
    with journal._thread_lock:
        journal._sync_with_backend()


def journaled(journal: Any, trial_id: int) -> FrozenTrial:
    """A trial as it was when the journal was last replayed."""
    return journal._replay_result.get_trial(trial_id)


def trials_after(journal: Any, study_id: int, number: int) -> list[int]:
    """The ids of a study's trials from a number on, as the journal was last replayed."""
    return list(journal._replay_result._study_id_to_trial_ids[study_id][number:])


def journal_trial(study_id: int, trial: FrozenTrial) -> dict[str, Any]:
    """The line that adds a trial."""
    return {
        "op_code": int(JournalOperation.CREATE_TRIAL), "study_id": study_id, "state": int(trial.state), "value": None,
        "values": None, "datetime_start": _time() if trial.state == TrialState.RUNNING else None,
        "distributions": {name: distribution_to_json(kind) for name, kind in trial.distributions.items()},
        "params": {name: kind.to_internal_repr(trial.params[name]) for name, kind in trial.distributions.items()},
        "user_attrs": trial.user_attrs, "system_attrs": trial.system_attrs, "intermediate_values": {},
    }


def journal_attribute(trial_id: int, key: str, content: Any) -> dict[str, Any]:
    """The line that writes an attribute of a trial."""
    return {"op_code": int(JournalOperation.SET_TRIAL_USER_ATTR), "trial_id": trial_id, "user_attr": {key: content}}


def journal_state(trial_id: int, state: TrialState, *, value: float | None = None) -> dict[str, Any]:
    """The line that begins or ends a trial."""
    moment = "datetime_start" if state == TrialState.RUNNING else "datetime_complete"
    return {
        "op_code": int(JournalOperation.SET_TRIAL_STATE_VALUES), "trial_id": trial_id, "state": int(state),
        "values": None if value is None else [value], moment: _time(),
    }


def _time() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")


# The database: Optuna's tables.


def tables() -> Mapping[str, sqlalchemy.Table]:
    """Optuna's tables, by name."""
    return models.BaseModel.metadata.tables


def stored_value(value: float) -> dict[str, Any]:
    """A trial's value as columns of its row: of an infinite one, the sign alone."""
    stored, kind = models.TrialValueModel.value_to_stored_repr(value)
    return {"value": stored, "value_type": kind}


def value_of(row: sqlalchemy.Row[Any]) -> float:
    """A trial's value from its row."""
    return float(models.TrialValueModel.stored_repr_to_value(row.value, row.value_type))


def point_of(row: sqlalchemy.Row[Any]) -> float:
    """A point of a trial's curve from its row."""
    kind = row.intermediate_value_type
    return float(models.TrialIntermediateValueModel.stored_repr_to_intermediate_value(row.intermediate_value, kind))
