"""The trials of a study in Optuna's tables, in a few indexed statements each: PostgreSQL, and SQLite for one machine.

Every change is one transaction. On a server, rows are locked by the database: a claim passes over those that another
takes at the moment (`SKIP LOCKED`), so that workers do not wait for one another. In an SQLite file, where nothing can
be locked by the row, the queue's gate is held around every change.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import optuna
import sqlalchemy
from optuna.distributions import BaseDistribution, distribution_to_json, json_to_distribution
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Connection, Row, Select, exists, func, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from ablations.engine import optuna_private as private

LEFT = (TrialState.WAITING, TrialState.RUNNING)
BATCH = 1000
"""Trials whose rows are inserted by one statement."""


class DatabaseTrials:
    """The trials of one study in a database. Taking and ending one is constant in their number.

    Args:
        study: the study.
        database: that it is in.
    """

    def __init__(self, study: optuna.Study, database: RDBStorage) -> None:
        self.study, self.database, self.engine = study, database, private.engine_of(database)
        self.study_id = private.study_id(study)
        tables = private.tables()
        self.trials, self.attrs, self.values = (
            tables["trials"], tables["trial_user_attributes"], tables["trial_values"])
        self.params, self.beats = tables["trial_params"], tables["trial_heartbeats"]
        self.system, self.points = tables["trial_system_attributes"], tables["trial_intermediate_values"]
        self.studies = tables["studies"]
        self._within: Connection | None = None
        # A question of one statement needs no transaction, which would cost two messages more.
        self._asking = self.engine.execution_options(isolation_level="AUTOCOMMIT")
        self._upsert = sqlite.insert if self.engine.dialect.name == "sqlite" else postgresql.insert

    # Reading.

    def read(self, keys: Collection[str] | None = None, *, states: Collection[TrialState] = ()) -> list[FrozenTrial]:
        """As `Trials.read`."""
        trials, chosen = self.trials.c, self._mine(*states)
        with self._transaction() as connection:
            rows = connection.execute(select(
                trials.trial_id, trials.number, trials.state, trials.datetime_start, trials.datetime_complete,
            ).where(chosen).order_by(trials.trial_id)).all()
            attrs = self._attributes_of(connection, self.attrs, chosen, keys)
            values = self._by_trial(connection, self.values, chosen)
            rest = None if keys is not None else _Rest(
                params=self._by_trial(connection, self.params, chosen),
                points=self._by_trial(connection, self.points, chosen),
                system=self._attributes_of(connection, self.system, chosen, None),
            )
        return [_frozen(row, attrs=attrs, values=values, rest=rest) for row in rows]

    def whole(self, trial_id: int) -> FrozenTrial:
        """As `Trials.whole`."""
        return private.storage_of(self.study).get_trial(trial_id)

    def unfinished(self) -> int:
        """As `Trials.unfinished`."""
        with self._question() as connection:
            return int(connection.execute(
                select(func.count()).select_from(self.trials).where(self._mine(*LEFT), self._is_cell())
            ).scalar_one())

    def is_any_left(self) -> bool:
        """As `Trials.is_any_left`."""
        with self._question() as connection:
            # State by state: the database then walks along its index, and stops at the first.
            return any(connection.execute(
                select(self.trials.c.trial_id).where(self._mine(state), self._is_cell()).limit(1)
            ).first() is not None for state in reversed(LEFT))

    def has_successor(self, trial: FrozenTrial) -> bool:
        """As `Trials.has_successor`."""
        attrs, trials = self.attrs.c, self.trials.c
        with self._question() as connection:
            return connection.execute(
                select(trials.trial_id).join(self.attrs, attrs.trial_id == trials.trial_id).where(
                    attrs.key == "cell", attrs.value_json == json.dumps(trial.user_attrs["cell"]),
                    trials.study_id == self.study_id, trials.number > trial.number,
                ).limit(1)
            ).first() is not None

    def has_begun(self, worker: str) -> bool:
        """As `Trials.has_begun`. Asked when a worker died, and the one query that looks at every trial."""
        attrs, trials = self.attrs.c, self.trials.c
        with self._question() as connection:
            return connection.execute(
                select(attrs.trial_id).join(self.trials, attrs.trial_id == trials.trial_id).where(
                    trials.study_id == self.study_id, attrs.key == "executions",
                    attrs.value_json.contains(json.dumps(worker), autoescape=True),
                ).limit(1)
            ).first() is not None

    def distributions(self) -> dict[str, BaseDistribution]:
        """As `Trials.distributions`."""
        params = self.params.c
        with self._question() as connection:
            rows = connection.execute(select(params.param_name, params.distribution_json).distinct().join(
                self.trials, params.trial_id == self.trials.c.trial_id).where(self._mine())).all()
        return {name: _distribution(text) for name, text in rows}

    def silent(self) -> set[int]:
        """As `Trials.silent`."""
        grace, beats = self.database.grace_period, self.beats.c
        if private.heartbeat_interval(self.database) is None or grace is None:
            return set()
        late = beats.heartbeat < func.localtimestamp() - sqlalchemy.literal(timedelta(seconds=grace))
        with self._question() as connection:
            return set(connection.execute(select(beats.trial_id).join(
                self.trials, beats.trial_id == self.trials.c.trial_id
            ).where(self._mine(TrialState.RUNNING), late)).scalars())

    # Changes.

    def take(self, begin: Callable[[int, Mapping[str, Any]], dict[str, Any]], *, foreign: bool) -> FrozenTrial | None:
        """As `Trials.take`."""
        trials = self.trials.c
        wanted = select(trials.trial_id, trials.number).where(self._mine(TrialState.WAITING))
        wanted = wanted.order_by(trials.trial_id).limit(1).with_for_update(skip_locked=True, of=self.trials)
        with self._transaction() as connection:
            found = connection.execute(wanted if foreign else wanted.where(self._is_cell())).first()
            if found is None:
                return None
            trial_id = found.trial_id
            attrs = self._attributes_of(connection, self.attrs, trials.trial_id == trial_id, None)[trial_id]
            attrs |= (begun := begin(found.number, attrs))
            connection.execute(update(self.trials).where(trials.trial_id == trial_id).values(
                state=TrialState.RUNNING, datetime_start=_now()))
            self._write(connection, trial_id, begun)
            self._beat(connection, trial_id)
        return FrozenTrial(**{**_BARE, "number": found.number, "trial_id": trial_id, "user_attrs": attrs})

    def start(self, begin: Callable[[int, Mapping[str, Any]], dict[str, Any]]) -> FrozenTrial:
        """As `Trials.start`."""
        with self._transaction() as connection:
            number = self._next_number(connection)
            attrs = begin(number, {})
            template = optuna.trial.create_trial(state=TrialState.RUNNING, user_attrs=attrs)
            [trial_id] = self._insert(connection, [template], first=number)
            self._beat(connection, trial_id)
        return FrozenTrial(**{**_BARE, "number": number, "trial_id": trial_id, "user_attrs": attrs})

    def put(self, trials: Sequence[FrozenTrial]) -> None:
        """As `Trials.put`."""
        with self._transaction() as connection:
            self._insert(connection, trials, first=self._next_number(connection))

    def end(
        self, trial_id: int, attrs: Mapping[str, Any], *, state: TrialState, value: float | None = None,
        put: Sequence[FrozenTrial] = (),
    ) -> None:
        """As `Trials.end`."""
        trials = self.trials.c
        with self._transaction() as connection:
            known = connection.execute(
                select(trials.state, trials.number).where(trials.trial_id == trial_id).with_for_update()
            ).one()
            if known.state != TrialState.RUNNING:
                raise UpdateFinishedTrialError(f"trial {known.number} has ended already")
            self._write(connection, trial_id, attrs)
            if value is not None:
                connection.execute(insert(self.values).values(
                    trial_id=trial_id, objective=0, **private.stored_value(value)))
            if put:
                self._insert(connection, put, first=self._next_number(connection))
            connection.execute(update(self.trials).where(trials.trial_id == trial_id).values(
                state=state, datetime_complete=_now()))

    @contextmanager
    def together(self) -> Iterator[None]:
        """As `Trials.together`."""
        with self._transaction() as connection:
            self._lock_study(connection)
            self._within = connection
            try:
                yield
            finally:
                self._within = None

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        if self._within is not None:
            yield self._within
            return
        with _as_of_optuna(), self.engine.begin() as connection:
            yield connection

    @contextmanager
    def _question(self) -> Iterator[Connection]:
        if self._within is not None:
            yield self._within
            return
        with _as_of_optuna(), self._asking.connect() as connection:
            yield connection

    def _lock_study(self, connection: Connection) -> None:
        """Let nobody else add trials until the transaction ends."""
        lock = select(self.studies.c.study_id).where(self.studies.c.study_id == self.study_id)
        connection.execute(lock.with_for_update(key_share=True)).one()

    def _next_number(self, connection: Connection) -> int:
        """The number of the next trial, which nobody else takes until the transaction ends."""
        self._lock_study(connection)
        last = connection.execute(select(func.max(self.trials.c.number)).where(self._mine())).scalar()
        return 0 if last is None else last + 1

    def _insert(self, connection: Connection, trials: Sequence[FrozenTrial], *, first: int) -> list[int]:
        ids: list[int] = []
        for start in range(0, len(trials), BATCH):
            some = trials[start : start + BATCH]
            rows = [{"number": first + start + index, "study_id": self.study_id, "state": trial.state,
                     "datetime_start": _now() if trial.state == TrialState.RUNNING else None}
                    for index, trial in enumerate(some)]
            ids += (fresh := list(connection.execute(
                insert(self.trials).returning(self.trials.c.trial_id, sort_by_parameter_order=True), rows).scalars()))
            for table, contents in self._parts(dict(zip(fresh, some, strict=True))).items():
                if contents:
                    connection.execute(insert(table), contents)
        return ids

    def _parts(self, trials: Mapping[int, FrozenTrial]) -> dict[sqlalchemy.Table, list[dict[str, Any]]]:
        """Rows of the tables that hang on a trial."""
        return {
            self.attrs: [{"trial_id": trial_id, "key": key, "value_json": json.dumps(content)}
                         for trial_id, trial in trials.items() for key, content in trial.user_attrs.items()],
            self.system: [{"trial_id": trial_id, "key": key, "value_json": json.dumps(content)}
                          for trial_id, trial in trials.items()
                          for key, content in private.optuna_attrs(trial).items()],
            self.params: [{"trial_id": trial_id, "param_name": name, "distribution_json": distribution_to_json(kind),
                           "param_value": kind.to_internal_repr(trial.params[name])}
                          for trial_id, trial in trials.items() for name, kind in trial.distributions.items()],
        }

    def _write(self, connection: Connection, trial_id: int, attrs: Mapping[str, Any]) -> None:
        if attrs:
            fresh = self._upsert(self.attrs).values([
                {"trial_id": trial_id, "key": key, "value_json": json.dumps(content)} for key, content in attrs.items()
            ])
            connection.execute(fresh.on_conflict_do_update(
                index_elements=["trial_id", "key"], set_={"value_json": fresh.excluded.value_json}))

    def _beat(self, connection: Connection, trial_id: int) -> None:
        if private.heartbeat_interval(self.database) is not None:
            connection.execute(insert(self.beats).values(trial_id=trial_id))

    # Parts of queries.

    def _mine(self, *states: TrialState) -> sqlalchemy.ColumnElement[bool]:
        trials = self.trials.c
        own = trials.study_id == self.study_id
        if len(states) == 1:
            return sqlalchemy.and_(own, trials.state == states[0])
        return sqlalchemy.and_(own, trials.state.in_(states)) if states else own

    def _is_cell(self) -> sqlalchemy.ColumnElement[bool]:
        attrs = self.attrs.c
        return exists().where(attrs.trial_id == self.trials.c.trial_id, attrs.key == "cell")

    def _joined(self, table: sqlalchemy.Table, chosen: Any) -> Select[Any]:
        return select(table).join(self.trials, table.c.trial_id == self.trials.c.trial_id).where(chosen)

    def _by_trial(self, connection: Connection, table: sqlalchemy.Table, chosen: Any) -> dict[int, list[Row[Any]]]:
        found: dict[int, list[Row[Any]]] = defaultdict(list)
        for row in connection.execute(self._joined(table, chosen).order_by(*table.primary_key)):
            found[row.trial_id].append(row)
        return found

    def _attributes_of(
        self, connection: Connection, table: sqlalchemy.Table, chosen: Any, keys: Collection[str] | None
    ) -> dict[int, dict[str, Any]]:
        wanted = self._joined(table, chosen)
        found: dict[int, dict[str, Any]] = defaultdict(dict)
        for row in connection.execute(wanted if keys is None else wanted.where(table.c.key.in_(tuple(keys)))):
            found[row.trial_id][row.key] = json.loads(row.value_json)
        return found


@contextmanager
def _as_of_optuna() -> Iterator[None]:
    """Raise what a database refuses, or that it does not answer, as Optuna does."""
    try:
        yield
    except sqlalchemy.exc.SQLAlchemyError as error:
        raise StorageInternalError(f"the database refused: {error}") from error


class _Rest:
    """What is read of a trial only where all of it is wanted."""

    def __init__(
        self, *, params: Mapping[int, list[Row[Any]]], points: Mapping[int, list[Row[Any]]],
        system: Mapping[int, dict[str, Any]],
    ) -> None:
        self.params, self.points, self.system = params, points, system

    def of(self, trial_id: int) -> dict[str, Any]:
        """Arguments of a `FrozenTrial`."""
        kinds = {row.param_name: _distribution(row.distribution_json) for row in self.params.get(trial_id, ())}
        return {
            "distributions": kinds, "system_attrs": self.system.get(trial_id, {}),
            "params": {row.param_name: kinds[row.param_name].to_external_repr(row.param_value)
                       for row in self.params.get(trial_id, ())},
            "intermediate_values": {row.step: private.point_of(row) for row in self.points.get(trial_id, ())},
        }


_BARE: dict[str, Any] = {
    "state": TrialState.RUNNING, "value": None, "values": None, "datetime_start": None, "datetime_complete": None,
    "params": {}, "distributions": {}, "user_attrs": {}, "system_attrs": {}, "intermediate_values": {},
}


def _frozen(
    row: Any, *, attrs: Mapping[int, dict[str, Any]], values: Mapping[int, list[Row[Any]]], rest: _Rest | None
) -> FrozenTrial:
    found = values.get(row.trial_id)
    return FrozenTrial(**{
        **_BARE, "number": row.number, "trial_id": row.trial_id, "state": row.state,
        "values": None if not found else [private.value_of(value) for value in found],
        "datetime_start": _local(row.datetime_start), "datetime_complete": _local(row.datetime_complete),
        "user_attrs": attrs.get(row.trial_id, {}), **({} if rest is None else rest.of(row.trial_id)),
    })


@cache
def _distribution(text: str) -> BaseDistribution:
    return json_to_distribution(text)


def _now() -> datetime:
    """The time as Optuna keeps it: UTC, without saying so."""
    return datetime.now(UTC).replace(tzinfo=None)


def _local(moment: datetime | None) -> datetime | None:
    """The time as Optuna shows it: local, without saying so."""
    return None if moment is None else moment.replace(tzinfo=UTC).astimezone().replace(tzinfo=None)
