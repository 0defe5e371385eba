"""A study in an Optuna storage: opening it, and what is kept on its trials.

The storage is the only record of a study. What is kept on a trial, as user attributes:

    cell        id of the cell; a trial without it is none of ours (see `Queue.claim`) and is ignored everywhere
    row         id of its row in the study's design
    tuned       values of the tuned fields, by dotted path
    stage       screen, select or extend where the cell judges nothing (`design.stages`)
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
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import optuna
import sqlalchemy
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import FrozenTrial

from ablations.design.design import StudyDesign, from_plain, merge, to_plain
from ablations.design.legacy import legacy_design
from ablations.design.stages import JUDGE, STAGES
from ablations.engine import optuna_private as private
from ablations.engine.errors import LockedError, MissingStudyError, StudyError, UnreachableError
from ablations.engine.identity import check_results
from ablations.engine.journal import AtomicJournal, open_journal
from ablations.engine.journal_light import LightJournal
from ablations.engine.locks import DatabaseLock, FileGate
from ablations.engine.redact import check_url, redact
from ablations.engine.trials import read_trials
from lit_simplified.config import RunConfig, block_id, from_dict

T = TypeVar("T")

JOURNAL = "journal.log"
SETTLED = ("complete", "diverged", "pruned")
"""States of a cell that is never trained again. A failed one is retried by the next `run`."""
MAX_KILLS = 3
"""A cell whose worker was killed this often is given up: it is likely the cell itself that runs out of memory."""
HEARTBEAT = 15
"""Seconds between a worker's heartbeats in a database server."""
PATIENCE, RETRY = 600, 2.0
"""Seconds for which calls to a database that does not answer are retried, and seconds between two tries."""
TIMEOUTS = {
    "connect_timeout": 10, "keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
    "options": "-c tcp_keepalives_idle=30 -c tcp_keepalives_interval=10 -c tcp_keepalives_count=3 "
               "-c idle_in_transaction_session_timeout=60s -c lock_timeout=120s -c timezone=UTC",
}
"""Timeouts of a connection, ours and the server's (seconds; tcp_user_timeout in ms). Without them we would wait
for a vanished server for ever, and a machine that vanished, or a process that was stopped, would keep its locks."""
INDEXES = {
    "lit_simplified_trials_by_state": "trials (study_id, state, trial_id)",
    "lit_simplified_trials_by_cell": "trial_user_attributes (value_json) WHERE key = 'cell'",
}
"""What finds the next cell, and a cell's trials, among ten thousand. Optuna's tables have no index on either."""

optuna.logging.set_verbosity(optuna.logging.WARNING)
logging.getLogger("filelock").setLevel(logging.WARNING)


def is_url(storage: str) -> bool:
    """Whether a storage is an RDB URL rather than the path of a journal."""
    return "://" in storage


def journal_path(storage: str) -> Path:
    """The journal of a path: itself, or the file of that name in a folder."""
    path = Path(storage)
    return (path / JOURNAL if path.is_dir() or storage.endswith("/") else path).absolute()


def open_storage(
    storage: str, *, create: bool = True, heartbeat: int = HEARTBEAT, light: bool = False
) -> BaseStorage:
    """Open a journal file (a path) or a database (a URL).

    Args:
        storage: where.
        create: false refuses a journal that does not exist.
        heartbeat: seconds between heartbeats in a database. A process is considered dead when its last heartbeat is
            four times as old, and another has watched for twice as long without seeing a new one.
        light: read a journal without configurations, curves and results (`journal_light`).

    Raises:
        StudyError: no such journal, one that is damaged, or another file; a database that is not supported or cannot
            be reached, or no driver for it.
    """
    if is_url(storage):
        return _open_database(storage, heartbeat=heartbeat)
    path = journal_path(storage)
    if not create and not path.exists():
        raise MissingStudyError(f"storage={redact(storage)!r}: no journal there. Start one with "
                                "`python -m ablations run`, or give the --storage or --out of the study")
    opened = open_journal(path, create=create, kind=LightJournal if light else AtomicJournal)
    journal = private.journal_in(opened)
    if journal is not None and journal.position.plain and not light:  # sealed lines cannot have moved
        check_results(opened, path)
    return opened


def _open_database(storage: str, *, heartbeat: int) -> RDBStorage:
    if not storage.startswith(("postgresql", "sqlite")):
        raise StudyError(f"storage={redact(storage)!r}: give the path of a journal, or a URL "
                         "postgresql://USER@HOST/DATABASE")
    check_url(storage)
    try:
        if storage.startswith("sqlite"):
            return RDBStorage(_escaped(storage))
        return _open_server(storage, heartbeat=heartbeat)
    except (ImportError, ModuleNotFoundError) as error:
        raise StudyError(f"storage={redact(storage)!r}: {error}. Install the driver: "
                         "pip install -e '.[postgres]'") from error
    except (sqlalchemy.exc.SQLAlchemyError, StorageInternalError) as error:
        first = str(error.__cause__ if isinstance(error, StorageInternalError) else error).splitlines()[0]
        raise UnreachableError(f"storage={redact(storage)!r} cannot be reached ({first}). Check that the "
                         "server is running, that the database exists, and that user and password are right") from error


def _open_server(storage: str, *, heartbeat: int) -> RDBStorage:
    url = sqlalchemy.make_url(storage)
    timeouts = TIMEOUTS if url.get_dialect().driver.startswith("psycopg") else {}
    named = {**timeouts, "application_name": f"{socket.gethostname()}:{os.getpid()}"}  # who holds a lock
    own = {name: value for name, value in named.items() if name not in url.query}
    if timeouts and "options" in url.query:  # beside those that were given
        own["options"] = f"{timeouts['options']} {url.query['options']}"
    options = {"pool_pre_ping": True, "connect_args": own}
    engine = sqlalchemy.create_engine(url, **options)
    try:
        # Of several machines that start at once, one makes the tables.
        with nullcontext() if _has_tables(engine) else DatabaseLock(engine, "tables"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the heartbeat is called experimental
            opened = RDBStorage(
                _escaped(storage), engine_kwargs=options, heartbeat_interval=heartbeat, grace_period=4 * heartbeat
            )
        _add_indexes(engine)
        return opened
    finally:
        engine.dispose()


def _add_indexes(engine: sqlalchemy.Engine) -> None:
    """Add the indexes that are missing. Without the right to do so the study is slower, and the same."""
    known = "SELECT indexname FROM pg_indexes WHERE schemaname = ANY(current_schemas(false))"
    with engine.connect() as connection:
        there = set(connection.execute(sqlalchemy.text(known)).scalars())
    missing = {name: on for name, on in INDEXES.items() if name not in there}
    if not missing:
        return
    with suppress(sqlalchemy.exc.DBAPIError), DatabaseLock(engine, "tables"), engine.begin() as connection:
        for name, on in missing.items():
            connection.execute(sqlalchemy.text(f"CREATE INDEX IF NOT EXISTS {name} ON {on}"))


def _has_tables(engine: sqlalchemy.Engine) -> bool:
    """Whether Optuna has made its tables, the last of which says which version they have."""
    with engine.connect() as connection:
        if not sqlalchemy.inspect(connection).has_table("alembic_version"):
            return False
        return connection.execute(sqlalchemy.text("SELECT 1 FROM alembic_version")).first() is not None


def _escaped(storage: str) -> str:
    """Optuna takes a URL for a template of `str.format`; a password may hold anything."""
    return storage.replace("{", "{{").replace("}", "}}")


def is_unreachable(error: StorageInternalError) -> bool:
    """Whether an error means that the database does not answer, rather than that it was asked something wrong."""
    away = (sqlalchemy.exc.OperationalError, sqlalchemy.exc.InterfaceError)
    return isinstance(error.__cause__, away) or bool(getattr(error.__cause__, "connection_invalidated", False))


def patiently(call: Callable[[], T]) -> T:
    """Call, and retry for `PATIENCE` seconds while the database does not answer, or a lock is not let go.

    The call must be safe to repeat.
    """
    until, reported = time.monotonic() + PATIENCE, False
    while True:
        try:
            return call()
        except (StorageInternalError, LockedError, UnreachableError) as error:
            away = isinstance(error, LockedError | UnreachableError) or is_unreachable(error)
            if not away or time.monotonic() > until:
                raise
            if not reported:
                what = "waiting for a lock" if isinstance(error, LockedError) else "the database does not answer"
                reason = str(error.__cause__ or error).splitlines()[0]
                print(f"{what}; retrying for {PATIENCE} s: {reason}", flush=True)
            reported = True
            time.sleep(RETRY)


def open_study(storage: str, *, name: str, light: bool = False, **policy: Any) -> optuna.Study:
    """An existing study, to read; a `StudyError` lists those there are.

    Args:
        storage: where.
        name: the study's.
        light: see `open_storage`.
        policy: a sampler and a pruner, for a search. An ablation never samples: its queue decides what is trained.
    """
    return _study_in(open_storage(storage, create=False, light=light), storage, name=name, **policy)


def _study_in(opened: BaseStorage, storage: str, *, name: str, **policy: Any) -> optuna.Study:
    try:
        return optuna.load_study(study_name=name, storage=opened, **_policy(policy))
    except KeyError:
        known = ", ".join(study.study_name for study in opened.get_all_studies()) or "none"
        raise MissingStudyError(
            f"study={name!r}: not in {redact(storage)}. Studies there: {known}. Give one with --study"
        ) from None


def studies_called(storage: str, *, name: str) -> list[optuna.Study]:
    """The study of a name, or those of the search of that name, to be looked at in passing."""
    opened = open_storage(storage, create=False, light=True)
    known = [study.study_name for study in opened.get_all_studies()]
    called = [name] if name in known else [other for other in known if other.startswith(f"{name}-")] or [name]
    return [_study_in(opened, storage, name=one) for one in called]


def create_study(storage: str, *, name: str, spec: Mapping[str, Any], **policy: Any) -> optuna.Study:
    """Open or start the study that trains what `spec` says.

    Args:
        storage: where.
        name: the study's.
        spec: what all its cells share.
        policy: a sampler and a pruner, for a search.

    Raises:
        StudyError: the name holds a study of something else. The message names the first differences.
    """
    opened = open_storage(storage)
    try:
        study = optuna.load_study(study_name=name, storage=opened, **_policy(policy))
    except KeyError:
        study = optuna.create_study(
            study_name=name, storage=opened, load_if_exists=True, direction="minimize", **_policy(policy)
        )
    folder = lock_folder(storage, Path())
    with mutex(study, folder=folder, name="gate"):  # of two that start at once with different settings, one is refused
        known = study.user_attrs.get("spec")
        if known is None:
            study.set_user_attr("spec", dict(spec))
    if known is not None and _comparable(known) != _comparable(spec):
        raise StudyError(
            f"study={name!r} in {redact(storage)} was started with other settings ({_differences(known, spec)}), and "
            f"its cells could not be compared with new ones. {_remedy(known, spec)}"
        )
    return study


def mutex(study: optuna.Study, *, folder: Path, name: str) -> AbstractContextManager[Any]:
    """A lock of a study, between all who share it; held for moments.

    Args:
        study: the study.
        folder: where files have their locks (see `lock_folder`).
        name: of the lock.

    Returns:
        A context, which raises `StudyError` where somebody holds it for long.
    """
    database = private.database_of(study)
    whole = f"{study.study_name}.{name}"
    if database is not None and not is_file(database):
        return DatabaseLock(private.engine_of(database), whole)
    folder.mkdir(parents=True, exist_ok=True)
    return FileGate(folder / whole, what=f"the queue of study {study.study_name!r} ({folder / whole})")


def is_file(database: RDBStorage) -> bool:
    """Whether a database is a file, which is locked as a whole and has no heartbeats."""
    return private.engine_of(database).dialect.name == "sqlite"


def lock_folder(storage: str, folder: Path) -> Path:
    """Where the locks of a study are: beside its file; of one on a server, in a folder of this machine."""
    if not is_url(storage):
        return journal_path(storage).parent / "locks"
    if storage.startswith("sqlite") and (file := sqlalchemy.make_url(storage).database) not in (None, "", ":memory:"):
        return Path(str(file)).absolute().parent / "locks"
    return folder.absolute() / "locks"


FIRST_WITH_SOURCES = 3
"""The version of a specification that first told the code that trains."""


def _remedy(known: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """What to do about a study that was started with something else."""
    name = "Give this study a name of its own with --study"
    if int(known.get("version", 0)) < FIRST_WITH_SOURCES <= int(wanted.get("version", 0)):
        return f"{name}: it was started by an older version, which did not note the code that trains; it stays readable"
    if known.get("sources") != wanted.get("sources"):
        return (f"{name}, or go back to the code it was started with: the modules that `fit` reaches have changed "
                "since, or this is another minor version of Python")
    return f"{name}, or go back to the settings it was started with"


def _comparable(spec: Mapping[str, Any]) -> dict[str, Any]:
    """A specification without what only older studies say of themselves."""
    return {key: value for key, value in flatten(spec).items() if key != "space"}


def keep_design(study: optuna.Study, design: StudyDesign) -> StudyDesign:
    """Keep what a study asks, beside what it asked before; its claims with the time at which they were registered.

    Raises:
        ConfigError: a row of the same id had another configuration.
    """
    cells = read_trials(study, ("cell",))
    registered = f"{now()}{' (after its first run was queued)' if cells else ''}"
    design = replace(design, claims=tuple(replace(claim, registered=registered) for claim in design.claims))
    known = read_design(study) if cells else None
    whole = merge(known, design) if known is not None else design
    study.set_user_attr("design", to_plain(whole))
    return whole


def read_design(study: optuna.Study) -> StudyDesign:
    """What a study asks; of one recorded before studies were files, as its cells tell it.

    Raises:
        StudyError: its record is damaged, as can be in a journal without checksums.
    """
    kept = study.user_attrs.get("design")
    if kept is not None:
        try:
            return from_plain(kept)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise StudyError(f"study={study.study_name!r}: what it asks cannot be read ({error}): its record is "
                             "damaged. Restore it from a backup, or train it anew under another name with "
                             "--study") from error
    configs = [from_dict(RunConfig, trial.user_attrs["config"]) for trial in ours(read_trials(study))
               if trial.user_attrs["config"]]
    return legacy_design(
        {block_id(config.model.block): config.model.block for config in configs},
        task="mlm" if study.user_attrs.get("spec", {}).get("task") == "mlm" else "clm",
        learning_rates=[config.optim.learning_rate for config in configs],
    )


def row_of(trial: FrozenTrial) -> str:
    """The id of a cell's row; of one recorded before rows were kept, that of its block."""
    kept = trial.user_attrs.get("row")
    return str(kept) if kept else block_id(from_dict(RunConfig, trial.user_attrs["config"]).model.block)


def trained_rows(study: optuna.Study) -> dict[str, RunConfig]:
    """A configuration of each row that the study has a cell of, by its id."""
    found: dict[str, RunConfig] = {}
    for trial in ours(read_trials(study, ("cell", "row", "config"))):
        row = row_of(trial)
        if row not in found:
            found[row] = from_dict(RunConfig, trial.user_attrs["config"])
    return found


def tuned_of(trial: FrozenTrial) -> dict[str, Any]:
    """Values of a cell's tuned fields, by dotted path."""
    return dict(trial.user_attrs.get("tuned") or {})


def stage_of(trial: FrozenTrial) -> str:
    """What a cell is for: `design.stages`.

    Raises:
        StudyError: a stage that this version does not know; its cells must not be taken for others, nor be dropped.
    """
    stage = str(trial.user_attrs.get("stage", JUDGE))
    if stage not in STAGES:
        raise StudyError(f"cell {trial.user_attrs['cell']}: stage={stage!r}, where this version knows "
                         f"{', '.join(STAGES)}: read the study with the version that trained it")
    return stage


def _policy(given: Mapping[str, Any]) -> dict[str, Any]:
    return {"sampler": optuna.samplers.RandomSampler(), **given}


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
    first = "; ".join(f"{key}: {old.get(key)!r} there, {new.get(key)!r} here" for key in keys[:3])
    return first + (f"; and {len(keys) - 3} more" if len(keys) > 3 else "")


def attributes(study: optuna.Study) -> dict[str, Any]:
    """A study's own attributes; those that several processes write have a key each (`KIND:name`) and are merged here.

    Returns:
        spec, corpus, speed, ... and `machines` (a list), `commands` (a list, oldest first), `workers` (by name).
    """
    plain: dict[str, Any] = {}
    gathered: dict[str, dict[str, Any]] = {"machine": {}, "command": {}, "worker": {}}
    for key, value in study.user_attrs.items():
        kind, _, name = key.partition(":")
        (gathered[kind] if kind in gathered and name else plain)[name or key] = value
    return {
        **plain, "machines": [*plain.get("machines", []), *gathered["machine"].values()], "workers": gathered["worker"],
        "commands": sorted(gathered["command"].values(), key=lambda command: str(command["time"])),
    }


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


def is_missing(trial: FrozenTrial | None) -> bool:
    return trial is None or state_of(trial) not in (*SETTLED, "waiting", "running")


def state_of(trial: FrozenTrial) -> str:
    """complete, diverged, failed, killed, interrupted, waiting or running."""
    if not trial.state.is_finished():
        return trial.state.name.lower()
    return str(trial.user_attrs.get("state", "failed"))


def now() -> str:
    """The time in UTC, ISO 8601, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
