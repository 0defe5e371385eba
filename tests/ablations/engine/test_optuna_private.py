"""Optuna's private interface: what the queue takes of it does what the queue needs, and no other module uses it.

What fails here after an upgrade of Optuna is to be mended in `engine/optuna_private.py` alone.
"""

from __future__ import annotations

import ast
import time
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
import sqlalchemy
from optuna.storages import InMemoryStorage, JournalStorage, RDBStorage
from optuna.trial import TrialState

import ablations
from ablations.engine import optuna_private as private
from ablations.engine.storage import open_storage

ADAPTER = Path(private.__file__)
SOURCES = sorted(Path(ablations.__file__).parent.rglob("*.py"))


pytestmark = pytest.mark.filterwarnings("ignore:Heartbeat of storage")


@pytest.fixture(params=["memory", "journal", "sqlite", "postgres"])
def study(request: pytest.FixtureRequest, tmp_path: Path) -> optuna.Study:
    """A new study in each kind of storage, as the engine opens it."""
    places = {"journal": str(tmp_path / "journal.log"), "sqlite": f"sqlite:///{tmp_path}/study.db"}
    if request.param == "memory":
        return optuna.create_study()
    place = places.get(request.param) or str(request.getfixturevalue("postgres"))
    return optuna.create_study(storage=open_storage(place, heartbeat=1), study_name="s")


def test_the_storage_of_a_study_writes_the_trials_of_others(study: optuna.Study) -> None:
    trial = study.ask()
    storage = private.storage_of(study)
    storage.set_trial_user_attr(private.trial_id(trial), "state", "complete")
    assert study.trials[0].user_attrs == {"state": "complete"}
    frozen = storage.get_trial(private.trial_id(trial))
    assert (frozen.number, frozen.state) == (trial.number, TrialState.RUNNING)


def test_a_trial_has_the_same_id_running_and_frozen(study: optuna.Study) -> None:
    other = optuna.create_study(storage=private.storage_of(study), study_name="another")
    ids = [private.trial_id(trial) for trial in (study.ask(), other.ask(), other.ask())]
    assert len(set(ids)) == 3  # of the storage; numbers are those of a study
    assert [private.trial_id(trial) for trial in (*study.trials, *other.trials)] == ids
    assert [trial.number for trial in other.trials] == [0, 1]


def test_enqueued_parameters_are_known_before_anybody_asks_for_them(study: optuna.Study) -> None:
    study.enqueue_trial({"x": 3, "y": 4})
    assert private.enqueued_params(study.trials[0]) == {"x": 3, "y": 4}
    trial = study.ask()
    assert trial.suggest_int("x", 0, 9) == 3
    assert study.trials[0].params == {"x": 3}
    assert private.enqueued_params(study.trials[0]) == {"x": 3, "y": 4}
    study.tell(trial, 0.0)
    study.ask()
    assert private.enqueued_params(study.trials[1]) == {}


def test_only_a_database_is_a_database(study: optuna.Study) -> None:
    storage = private.storage_of(study)
    database = private.database_of(study)
    assert (database is None) == isinstance(storage, InMemoryStorage | JournalStorage)
    if database is not None:
        with private.engine_of(database).connect() as connection:
            assert connection.execute(sqlalchemy.text("SELECT study_name FROM studies")).scalar() == "s"


def test_a_file_is_opened_without_heartbeats(tmp_path: Path) -> None:
    study = optuna.create_study(storage=open_storage(f"sqlite:///{tmp_path}/study.db", heartbeat=1))
    database = private.database_of(study)
    assert database is not None
    assert private.heartbeat_interval(database) is None


@pytest.fixture(params=["sqlite", "postgres"])
def beating(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[RDBStorage, optuna.Study]]:
    """A database with a heartbeat of a second and a grace period of two, and a study in it."""
    place = f"sqlite:///{tmp_path}/study.db"
    if request.param == "postgres":
        place = str(request.getfixturevalue("postgres"))
    with pytest.warns(optuna.exceptions.ExperimentalWarning):
        storage = RDBStorage(place, heartbeat_interval=1, grace_period=2)
    study = optuna.create_study(storage=storage)
    database = private.database_of(study)
    assert database is not None
    yield database, study
    private.engine_of(database).dispose()


def test_a_trial_without_a_heartbeat_for_long_is_stale(beating: tuple[RDBStorage, optuna.Study]) -> None:
    database, study = beating
    assert private.heartbeat_interval(database) == 1
    silent, living, never = study.ask(), study.ask(), study.ask()
    private.beat(database, silent)
    private.beat(database, living)
    assert private.stale_trial_ids(database, study) == set()
    until = time.monotonic() + 10
    while not private.stale_trial_ids(database, study):
        assert time.monotonic() < until
        private.beat(database, study.trials[living.number])  # a frozen trial will do, too
        time.sleep(0.2)
    assert private.stale_trial_ids(database, study) == {private.trial_id(silent)}
    study.tell(silent, state=TrialState.FAIL)
    assert private.stale_trial_ids(database, study) == set()
    assert study.trials[never.number].state == TrialState.RUNNING  # one that never gave a sign is not stale


HALF_PRIVATE = ("system_attrs", "set_system_attr", "record_heartbeat", "get_heartbeat_interval")
"""Names without an underscore that Optuna's documentation leaves out or deprecates."""
OTHERS = {"os._exit", "argparse._SubParsersAction", "torch._dynamo"}
"""Private names of other libraries, which modules with Optuna may use."""


def private_names(tree: ast.Module) -> Iterator[str]:
    """Attributes and imports that may be private names of Optuna: of another object than the module's own."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            hidden = node.attr.startswith("_") and not node.attr.startswith("__")
            own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            if node.attr in HALF_PRIVATE or (hidden and not own and ast.unparse(node) not in OTHERS):
                yield ast.unparse(node)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("optuna."):
            yield from (f"{node.module}.{name.name}" for name in node.names if "._" in f"{node.module}.{name.name}")
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "setattr", "hasattr"):
            name = node.args[1]
            if isinstance(name, ast.Constant) and str(name.value).startswith("_"):
                yield ast.unparse(node)


def uses_optuna(text: str) -> bool:
    return "optuna" in text or "engine.queue" in text or "engine.storage" in text


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(SOURCES[0].parent)))
def test_no_other_module_uses_a_private_name_of_optuna(path: Path) -> None:
    text = path.read_text()
    if path != ADAPTER and uses_optuna(text):
        assert not list(private_names(ast.parse(text)))


def test_the_check_finds_what_it_looks_for() -> None:
    assert list(private_names(ast.parse(ADAPTER.read_text())))
    for line in ("study._storage", "trial._trial_id", "self.study._study_id", "trial.system_attrs", "getattr(s, '_b')",
                 "from optuna._x import y", "from optuna.storages import _x", "claim.trial._trial_id"):
        assert list(private_names(ast.parse(line))), line
    for line in ("self._own", "os._exit(1)", "trial.number", "from optuna.trial import Trial", "x.__dict__"):
        assert not list(private_names(ast.parse(line))), line
