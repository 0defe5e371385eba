"""Optuna's private interface: what the queue takes of it does what the queue needs, and no other module uses it.

What fails here after an upgrade of Optuna is to be mended in `engine/optuna_private.py` alone.
"""

from __future__ import annotations

import ast
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import optuna
import pytest
import sqlalchemy
from optuna.distributions import CategoricalDistribution, IntDistribution
from optuna.storages import InMemoryStorage, JournalStorage
from optuna.trial import TrialState

import ablations
from ablations.engine import optuna_private as private
from ablations.engine.storage import open_storage
from ablations.engine.trials import read_trials, trials_of

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


def test_a_trial_without_a_heartbeat_for_long_is_silent(postgres: str) -> None:
    """With a heartbeat of a second and a grace period of four."""
    study = optuna.create_study(storage=open_storage(postgres, heartbeat=1), study_name="s")
    database = private.database_of(study)
    assert database is not None
    assert private.heartbeat_interval(database) == 1
    trials = trials_of(study)
    silent, living, never = study.ask(), study.ask(), study.ask()
    private.beat(database, private.trial_id(silent))
    private.beat(database, private.trial_id(living))
    assert trials.silent() == set()
    until = time.monotonic() + 10
    while not trials.silent():
        assert time.monotonic() < until
        private.beat(database, private.trial_id(living))
        time.sleep(0.2)
    assert trials.silent() == {private.trial_id(silent)}
    study.tell(silent, state=TrialState.FAIL)
    assert trials.silent() == set()
    assert study.trials[never.number].state == TrialState.RUNNING  # one that never gave a sign is not silent


def cell(name: str, **attrs: object) -> optuna.trial.FrozenTrial:
    return optuna.trial.create_trial(
        state=TrialState.WAITING, params={"x": 3, "kind": "b"}, user_attrs={"cell": name, "executions": [], **attrs},
        distributions={"x": IntDistribution(0, 9), "kind": CategoricalDistribution(["a", "b"])},
        system_attrs={"fixed_params": {"y": 0.5}},
    )


@pytest.mark.parametrize("place", ["journal", "sqlite", "postgres"])
def test_what_the_queue_writes_is_what_optuna_would_write(
    place: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """The same deeds through Optuna's interface and through ours: no trial differs, in ours or in Optuna's reading."""
    places = {"journal": str(tmp_path / "journal.log"), "sqlite": f"sqlite:///{tmp_path}/study.db"}
    storage = open_storage(places.get(place) or str(request.getfixturevalue("postgres")))
    optunas, ours = (optuna.create_study(storage=storage, study_name=name) for name in ("optuna's", "ours"))
    templates = [cell(f"cell{index}", config={"seed": index}) for index in range(4)]
    for template in templates:
        optunas.add_trial(template)
    for value in (1.5, float("inf"), None):
        trial = optunas.ask()
        trial.set_user_attr("state", "complete")
        trial.report(2.5, 3)
        optunas.tell(trial, value, state=None if value is not None else TrialState.PRUNED)
    trials = trials_of(ours)
    trials.put(templates)
    for value in (1.5, float("inf"), None):
        taken = trials.take(lambda number, attrs: {"mark": number}, foreign=False)
        assert taken is not None
        trial_id = private.trial_id(taken)
        storage.set_trial_intermediate_value(trial_id, 3, 2.5)
        ended = TrialState.COMPLETE if value is not None else TrialState.PRUNED
        last = private.last_value(storage.get_trial(trial_id))
        trials.end(trial_id, {"state": "complete"}, state=ended, value=last if value is None else value)
    assert [described(trial) for trial in ours.trials] == [described(trial) for trial in optunas.trials]
    assert [described(trial) for trial in read_trials(ours)] == [described(trial) for trial in ours.trials]
    now = datetime.now()
    for trial in read_trials(ours)[:3]:
        assert trial.datetime_start is not None
        assert trial.datetime_complete is not None
        assert timedelta(0) <= now - trial.datetime_complete < now - trial.datetime_start < timedelta(minutes=1)
    waiting = read_trials(ours, ("cell",), states=(TrialState.WAITING,))
    assert [trial.user_attrs["cell"] for trial in waiting] == ["cell3"]
    assert trials.distributions() == templates[0].distributions
    assert trials.unfinished() == 1
    assert trials.is_any_left()


def described(trial: optuna.trial.FrozenTrial) -> dict[str, object]:
    attrs = {key: content for key, content in trial.user_attrs.items() if key != "mark"}
    return {"number": trial.number, "state": trial.state, "values": trial.values, "params": trial.params,
            "distributions": trial.distributions, "attrs": attrs, "fixed": private.enqueued_params(trial),
            "points": trial.intermediate_values, "ended": trial.datetime_complete is not None}


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
