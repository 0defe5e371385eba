"""Light journals, spacing of what grows with a study, and what a lost line or another session's settings do."""

from __future__ import annotations

import threading
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import journal_damage
import optuna
import pytest
import sqlalchemy
from test_storage import SPEC, executions, queued, states

from ablations.design.stages import SELECT
from ablations.engine import optuna_private as private
from ablations.engine import storage as engine_storage
from ablations.engine.errors import LockedError
from ablations.engine.identity import check_trials
from ablations.engine.pace import Pace
from ablations.engine.queue import Queue, QueuedCell
from ablations.engine.status import status
from ablations.engine.storage import create_study, open_storage, open_study, ours, patiently, stage_of, state_of
from ablations.engine.trials import read_trials
from ablations.engine.worker import Job, train_cell
from lit_simplified.config import RunConfig, to_dict


def light(path: Path, *, name: str = "s") -> Queue:
    """The queue as a worker opens it."""
    return Queue(open_study(str(path), name=name, light=True), storage=str(path), folder=path.parent)


def full(path: Path, *, name: str = "s") -> Queue:
    return Queue(create_study(str(path), name=name, spec=SPEC), storage=str(path), folder=path.parent)


def test_a_light_journal_has_all_of_a_cell_that_is_claimed(tmp_path: Path) -> None:
    path = tmp_path / "journal.log"
    full(path).enqueue(queued(3))
    queue = light(path)
    assert all("config" not in trial.user_attrs for trial in queue.study.trials)
    claims = [queue.claim() for _ in range(2)]
    assert [claim and claim.config for claim in claims] == [{"seed": 0}, {"seed": 1}]
    assert claims[0] is not None
    claims[0].lock.release()  # its worker died
    assert queue.reap() == 1
    again = [claim.config for claim in iter(queue.claim, None)]
    assert again == [{"seed": 2}, {"seed": 0}]


def test_a_light_journal_of_an_older_version(tmp_path: Path) -> None:
    """Whose lines have no seals; also with a study of this version behind it."""
    path = tmp_path / "journal.log"
    queue = full(path)
    queue.enqueue(queued(2))
    claim = queue.claim()
    assert claim is not None
    path.write_bytes(journal_damage.plain(path.read_bytes()))
    assert status(light(path).study).counts["running"] == 1
    full(path, name="t").enqueue(queued(1))
    claim = light(path, name="t").claim()
    assert claim is not None
    assert claim.config == {"seed": 0}


def test_a_light_journal_in_which_a_study_was_deleted(tmp_path: Path) -> None:
    """What was added to it later counts for nothing, in Optuna and here."""
    path = tmp_path / "journal.log"
    gone, kept = full(path, name="gone"), full(path)
    gone.enqueue(queued(1))
    optuna.delete_study(study_name="gone", storage=open_storage(str(path)))
    trial = optuna.trial.create_trial(state=optuna.trial.TrialState.WAITING, user_attrs={"cell": "late"})
    line = private.journal_trial(private.study_id(gone.study), trial)
    journal = private.journal_of(kept.study)
    assert journal is not None
    journal.append_logs([{**line, "worker_id": "of one who does not know"}])
    kept.enqueue(queued(1))
    claim = light(path).claim()
    assert claim is not None
    assert claim.config == {"seed": 0}


@pytest.mark.parametrize("lost", range(1, 6))
def test_lines_lost_at_the_end_of_a_result_lose_nothing_else(tmp_path: Path, lost: int) -> None:
    """As a power cut may leave it: a result stands with its loss, or its cell is trained again."""
    path = tmp_path / "journal.log"
    queue = full(path)
    queue.enqueue(queued(1))
    claim = queue.claim()
    assert claim is not None
    queue.finish(claim, state="complete", value=1.5, curve=[], result={"val_loss": 1.5})
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-lost]))
    queue = full(path)
    queue.reap()
    assert states(queue) == {"cell0": "complete" if lost <= 2 else "waiting"}
    if lost <= 2:
        assert queue.study.trials[0].value == 1.5
        assert executions(queue, "cell0") == ["complete"]


def test_a_complete_cell_whose_loss_is_lost_is_trained_again(tmp_path: Path) -> None:
    path = tmp_path / "journal.log"
    queue = full(path)
    queue.enqueue(queued(1))
    claim = queue.claim()
    assert claim is not None
    queue.finish(claim, state="complete", value=1.5)
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    queue = full(path)
    queue.reap()
    assert states(queue) == {"cell0": "waiting"}


def test_a_cell_that_is_queued_again_is_still_for_the_same(tmp_path: Path) -> None:
    queue = full(tmp_path / "journal.log")
    queue.enqueue([QueuedCell("cell0", {}, {}, stage=SELECT)])
    claim = queue.claim()
    assert claim is not None
    claim.lock.release()  # what the end of its process does
    queue.reap()
    assert [stage_of(trial) for trial in ours(queue.study.get_trials())] == [SELECT, SELECT]


def test_what_waited_is_not_put_off_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that was away, or a process that was stopped, is no reason to look seldom from then on."""
    now = [0.0]
    monkeypatch.setattr("ablations.engine.pace.time.monotonic", lambda: now[0])
    pace = Pace(share=0.05)

    def take(seconds: float) -> None:
        now[0] += seconds

    pace(lambda: take(1.0))
    assert pace.wait == pytest.approx(19.0)
    now[0] += 19
    assert pace.is_due
    pace(lambda: take(600.0))
    assert pace.wait == 60.0
    now[0] += 60
    with pytest.raises(ZeroDivisionError):
        pace(lambda: take(1 / 0))
    assert pace.is_due


def test_a_lock_that_is_not_let_go_is_waited_for_like_a_server(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(engine_storage, "RETRY", 0.0)
    left = [LockedError("held by process 7"), LockedError("held by process 7")]

    def call() -> str:
        if left:
            raise left.pop()
        return "done"

    assert patiently(call) == "done"
    assert capsys.readouterr().out == "waiting for a lock; retrying for 600 s: held by process 7\n"


@pytest.mark.parametrize("given", ["", "options=-csearch_path%3Dpublic"])
def test_sessions_have_their_bounds_and_one_time_zone_whatever_the_address_sets(postgres: str, given: str) -> None:
    opened = open_storage(f"{postgres}{'&' if '?' in postgres else '?'}{given}".rstrip("?&"))
    study = optuna.create_study(storage=opened)
    database = private.database_of(study)
    assert database is not None
    with private.engine_of(database).connect() as connection:
        shown = {name: connection.execute(sqlalchemy.text(f"SHOW {name}")).scalar()
                 for name in ("timezone", "lock_timeout", "idle_in_transaction_session_timeout")}
    assert shown == {"timezone": "UTC", "lock_timeout": "2min", "idle_in_transaction_session_timeout": "1min"}


def test_two_who_enqueue_at_once_add_each_cell_once_even_without_the_gate(
    postgres: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server may end the session that holds the gate while its holder goes on."""
    queues = [Queue(create_study(postgres, name="s", spec=SPEC), storage=postgres, folder=tmp_path) for _ in range(2)]
    monkeypatch.setattr(Queue, "gate", nullcontext())
    threads = [threading.Thread(target=queue.enqueue, args=(queued(300),)) for queue in queues]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    trials = queues[0].study.trials
    assert len(trials) == len({trial.user_attrs["cell"] for trial in trials}) == 300
    assert [trial.number for trial in trials] == list(range(300))


class Sampler:
    """A search that samples on a machine of other folders than that which queued its first point."""

    budget = 1

    def policy(self, worker: int) -> dict[str, Any]:
        return {}

    def sample(self, trial: optuna.Trial) -> RunConfig:
        return RunConfig(out_dir="there")


def test_a_result_of_a_search_is_signed_with_what_was_sampled(shared_storage: str, tmp_path: Path) -> None:
    storage = shared_storage
    study = create_study(storage, name="s", spec=SPEC)
    queue = Queue(study, storage=storage, folder=tmp_path, budget=1)
    queue.enqueue([QueuedCell("default", to_dict(RunConfig(out_dir="here")), {})])
    claim = queue.claim()
    assert claim is not None
    job = Job(study="s", storage=storage, folder=tmp_path, name="w", threads=1, gpu=None, log=tmp_path / "log",
              search=Sampler())
    train_cell(queue, claim, job=job, fit=journal_damage.fit)
    trials = read_trials(open_study(storage, name="s"))
    assert [state_of(trial) for trial in trials] == ["complete"]
    assert trials[0].user_attrs["result"]["of"]
    check_trials(trials, where="s", storage=None)
