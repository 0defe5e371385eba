"""The queue of a study: cells put, claimed and given back exactly once."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
from optuna.trial import TrialState

from ablations.engine.lookup import find_study
from ablations.engine.queue import Queue, QueuedCell
from ablations.engine.storage import (
    MAX_KILLS,
    StudyError,
    create_study,
    journal_path,
    latest,
    open_storage,
    open_study,
    ours,
    state_of,
)

SPEC = {"version": 1, "model": {"depth": 2}, "seeds": [1, 2]}


def make_queue(storage: str, folder: Path) -> Queue:
    return Queue(create_study(storage, name="s", spec=SPEC), storage=storage, folder=folder)


def queued(count: int) -> list[QueuedCell]:
    return [QueuedCell(f"cell{index}", {"seed": index}, {"x": index}) for index in range(count)]


@pytest.fixture(params=["journal", "sqlite", "postgres"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgres":
        return str(request.getfixturevalue("postgres"))
    return str(tmp_path / "journal.log") if request.param == "journal" else f"sqlite:///{tmp_path}/study.db"


def states(queue: Queue) -> dict[str, str]:
    return {cell: state_of(trial) for cell, trial in latest(ours(queue.study.get_trials())).items()}


def executions(queue: Queue, cell: str) -> list[str]:
    return [execution["outcome"] for execution in latest(ours(queue.study.get_trials()))[cell].user_attrs["executions"]]


def claim_and_die(storage: str, folder: Path) -> None:
    make_queue(storage, folder).claim()
    os.kill(os.getpid(), signal.SIGKILL)


def let_one_die(storage: str, folder: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=claim_and_die, args=(storage, folder))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def test_a_cell_goes_from_the_queue_to_its_result(storage: str, tmp_path: Path) -> None:
    queue = make_queue(storage, tmp_path)
    assert queue.enqueue(queued(1)) == 1
    claim = queue.claim()
    assert claim is not None
    assert (claim.cell, claim.config) == ("cell0", {"seed": 0})
    assert queue.claim() is None
    queue.finish(claim, state="complete", value=1.5, result={"parameters": 3})
    trial = open_study(storage, name="s").trials[0]
    assert (trial.state, trial.value, trial.user_attrs["result"]) == (TrialState.COMPLETE, 1.5, {"parameters": 3})
    [execution] = trial.user_attrs["executions"]
    assert execution["outcome"] == "complete"
    assert execution["start"] <= execution["end"]
    assert execution["worker"].endswith(f":{os.getpid()}")


def test_only_missing_cells_are_queued_and_failed_ones_are_missing(storage: str, tmp_path: Path) -> None:
    queue = make_queue(storage, tmp_path)
    queue.enqueue(queued(4))
    for state, value in (("complete", 1.0), ("diverged", None), ("failed", None)):
        claim = queue.claim()
        assert claim is not None
        queue.finish(claim, state=state, value=value, reason="why")
    assert list(states(queue).values()) == ["complete", "diverged", "failed", "waiting"]
    assert queue.enqueue(queued(5)) == 2  # the failed one and a new one
    assert list(states(queue).values()) == ["complete", "diverged", "waiting", "waiting", "waiting"]
    assert executions(queue, "cell2") == ["failed"]  # a retry knows what came before


def test_a_dead_workers_cell_is_given_back_with_its_executions(storage: str, tmp_path: Path) -> None:
    queue = make_queue(storage, tmp_path)
    queue.enqueue(queued(2))
    mine = queue.claim()
    let_one_die(storage, tmp_path)
    assert states(queue) == {"cell0": "running", "cell1": "running"}
    assert make_queue(storage, tmp_path).reap() == 1
    assert queue.reap() == 0
    assert states(queue) == {"cell0": "running", "cell1": "waiting"}
    again = queue.claim()
    assert again is not None
    assert mine is not None
    assert again.cell == "cell1"
    for claim in (mine, again):
        queue.finish(claim, state="complete", value=0.0)
    assert executions(queue, "cell1") == ["killed", "complete"]
    assert [trial.user_attrs["state"] for trial in queue.study.trials] == ["complete", "killed", "complete"]


def test_a_cell_that_kills_is_given_up(tmp_path: Path) -> None:
    storage = str(tmp_path / "journal.log")
    queue = make_queue(storage, tmp_path)
    queue.enqueue(queued(1))
    for attempt in range(MAX_KILLS):
        assert states(queue) == {"cell0": "waiting"}, attempt
        let_one_die(storage, tmp_path)
        queue.reap()
    assert states(queue) == {"cell0": "failed"}
    assert "killed 3 times" in latest(ours(queue.study.trials))["cell0"].user_attrs["reason"]
    assert queue.unfinished() == 0
    assert executions(queue, "cell0") == ["killed"] * 3


def test_an_interruption_does_not_count_as_a_kill(tmp_path: Path) -> None:
    storage = str(tmp_path / "journal.log")
    queue = make_queue(storage, tmp_path)
    queue.enqueue(queued(1))
    for _ in range(MAX_KILLS + 1):
        claim = queue.claim()
        assert claim is not None
        claim.lock.release()  # what the end of the process does
        queue.reap(outcome="interrupted")
    assert states(queue) == {"cell0": "waiting"}


def test_a_result_of_an_older_version_stands_though_its_worker_died_before_the_end(tmp_path: Path) -> None:
    """Which wrote a result attribute by attribute, and ended the trial behind it."""
    queue = make_queue(str(tmp_path / "journal.log"), tmp_path)
    queue.enqueue(queued(1))
    claim = queue.claim()
    assert claim is not None
    claim.trial.set_user_attr("value", 2.0)
    claim.trial.set_user_attr("state", "complete")
    claim.lock.release()
    assert queue.study.trials[0].state == TrialState.RUNNING
    queue.reap()
    assert states(queue) == {"cell0": "complete"}
    assert queue.study.trials[0].value == 2.0
    assert executions(queue, "cell0") == ["complete"]


@pytest.mark.filterwarnings("ignore:Heartbeat of storage")
def test_trials_of_others_are_left_alone(storage: str, tmp_path: Path) -> None:
    """One that Optuna runs, and one that its dashboard queued: neither is claimed, counted or ended."""
    queue = make_queue(storage, tmp_path)
    queue.study.ask()
    queue.study.enqueue_trial({"x": 3})
    assert queue.claim() is None
    assert queue.reap() == queue.unfinished() == 0
    assert not queue.is_any_left()
    assert [trial.state for trial in queue.study.trials] == [TrialState.RUNNING, TrialState.WAITING]
    assert queue.enqueue(queued(1)) == 1
    claim = queue.claim()
    assert claim is not None
    assert claim.cell == "cell0"
    queue.finish(claim, state="complete", value=1.0)
    assert states(queue) == {"cell0": "complete"}


def test_a_study_of_something_else_is_refused(storage: str, tmp_path: Path) -> None:
    make_queue(storage, tmp_path)
    make_queue(storage, tmp_path)  # the same again is welcome, tuples and lists alike
    create_study(storage, name="s", spec={**SPEC, "seeds": (1, 2)})
    with pytest.raises(StudyError, match=r"model.depth: 2 there, 3 here.*--study"):
        create_study(storage, name="s", spec={**SPEC, "model": {"depth": 3}})


def test_a_missing_study_says_what_there_is(tmp_path: Path) -> None:
    storage = str(tmp_path / "journal.log")
    with pytest.raises(StudyError, match="no journal there"):
        open_study(storage, name="s")
    assert not Path(storage).exists()
    make_queue(storage, tmp_path)
    with pytest.raises(StudyError, match="Studies there: s"):
        open_study(storage, name="t")


def test_a_url_without_a_study_is_refused_without_its_password() -> None:
    with pytest.raises(StudyError, match="URL#STUDY") as caught:
        find_study("postgresql://me:secret@host/db")
    assert "secret" not in str(caught.value)


def test_a_folder_stands_for_its_journal(tmp_path: Path) -> None:
    assert journal_path(str(tmp_path)) == journal_path(f"{tmp_path}/") == tmp_path / "journal.log"


def test_a_half_written_last_line_is_cut_off(tmp_path: Path) -> None:
    storage = str(tmp_path / "journal.log")
    make_queue(storage, tmp_path).enqueue(queued(3))
    with Path(storage).open("a") as file:
        file.write('{"op_code": 8, "worker_id": "x", "tri')
    queue = make_queue(storage, tmp_path)
    assert queue.enqueue(queued(4)) == 1
    assert len(open_study(storage, name="s").trials) == 4


def hold_journal_lock_and_die(storage: str) -> None:
    open_storage(storage)._backend._lock.acquire()  # type: ignore[attr-defined]
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.timed
def test_a_journal_is_free_at_once_when_its_writer_is_killed(tmp_path: Path) -> None:
    storage = str(tmp_path / "journal.log")
    queue = make_queue(storage, tmp_path)
    process = multiprocessing.get_context("spawn").Process(target=hold_journal_lock_and_die, args=(storage,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    start = time.monotonic()
    queue.enqueue(queued(1))
    assert time.monotonic() - start < 2  # Optuna's own lock would take 30 seconds
