"""Everything of Optuna that its public interface does not offer, and that the queue cannot do without. Nothing else in
this project may use a private name of Optuna; an upgrade of Optuna is checked here, by `test_optuna_private.py`.

What is missing in the public interface: a study does not hand out its storage, so that the attributes of a trial of
another process cannot be written; a trial does not tell its id in the storage; and heartbeats are given and read by
`Study.optimize` alone, which the queue does not use.
"""

from __future__ import annotations

from typing import Any

import optuna
import sqlalchemy
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import FrozenTrial


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


def beat(database: RDBStorage, trial: optuna.Trial | FrozenTrial) -> None:
    """Note that the process of a trial is alive."""
    database.record_heartbeat(trial_id(trial))


def stale_trial_ids(database: RDBStorage, study: optuna.Study) -> set[int]:
    """The ids of the running trials whose last heartbeat is older than the grace period."""
    return set(database._get_stale_trial_ids(study._study_id))
