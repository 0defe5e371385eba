"""The queue under a race, and under a death at every single write: nothing is lost, and nothing done twice."""

from __future__ import annotations

import itertools
import multiprocessing
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from test_run import outcomes
from test_storage import SPEC, make_queue, queued, states
from test_survival import append, entries

from ablations.engine.queue import Claim, Queue, QueuedCell
from ablations.engine.storage import MAX_KILLS, create_study, latest, ours, state_of
from ablations.engine.trials_database import DatabaseTrials
from ablations.engine.trials_journal import JournalTrials


def take_all(storage: str, folder: str) -> None:
    queue = make_queue(storage, Path(folder))
    while (claim := queue.claim()) is not None:
        append(Path(folder) / "taken.jsonl", cell=claim.cell)
        queue.finish(claim, state="complete", value=0.0)


def test_processes_that_race_take_every_cell_once(shared_storage: str, tmp_path: Path) -> None:
    queue = make_queue(shared_storage, tmp_path)
    queue.enqueue(queued(24))
    processes = [
        multiprocessing.get_context("spawn").Process(target=take_all, args=(shared_storage, str(tmp_path)))
        for _ in range(4)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert set(states(queue).values()) == {"complete"}
    assert Counter(entry["cell"] for entry in entries(tmp_path / "taken.jsonl")) == {f"cell{i}": 1 for i in range(24)}
    assert len(queue.study.get_trials()) == 24


class Death(BaseException):
    """The end of a process: only what the system does for it too, its locks' release, happens on the way."""


def pairs(count: int) -> list[QueuedCell]:
    return [QueuedCell(f"cell{index}", {"seed": index}, {"x": index, "y": 9 - index}) for index in range(count)]


def mortal_queue(storage: str, folder: Path, *, name: str, writes: int) -> Queue:
    """A process that dies before its next write after so many: an append to a journal, a statement to a database."""
    queue = Queue(create_study(storage, name=name, spec=SPEC), storage=storage, folder=folder)
    left = itertools.count(writes, -1)

    def count(*given: Any) -> None:
        if next(left) <= 0:
            raise Death

    if isinstance(queue.trials, JournalTrials):
        journal = queue.trials.journal
        append = journal.append_logs

        def append_counted(logs: Sequence[dict[str, Any]]) -> None:
            count()
            append(logs)

        journal.append_logs = append_counted  # type: ignore[method-assign]  # of this one alone
    else:
        assert isinstance(queue.trials, DatabaseTrials)
        sqlalchemy.event.listen(queue.trials.engine, "before_cursor_execute", count)
    return queue


def taken(queue: Queue) -> Claim:
    claim = queue.claim()
    assert claim is not None
    return claim


def claim_and_finish(queue: Queue) -> None:
    claim = taken(queue)
    try:
        x, y = (claim.trial.suggest_int(name, 0, 9) for name in ("x", "y"))
        assert (x, y) == (claim.config["seed"], 9 - claim.config["seed"])
        queue.finish(claim, state="complete", value=1.0, result={"parameters": 3})
    finally:
        claim.lock.release()


def abandon(queue: Queue) -> None:
    taken(queue).lock.release()


def live(deed: str, queue: Queue) -> None:
    """A process that dies somewhere in this."""
    if deed == "enqueue":
        queue.enqueue(pairs(3))
    elif deed == "finish":
        claim_and_finish(queue)
    else:
        queue.reap()


def settle(queue: Queue) -> Counter[str]:
    """What others do after a death; returns the states of all trials."""
    queue.reap()
    queue.enqueue(pairs(3))
    while queue.unfinished():
        claim_and_finish(queue)
        queue.reap()
    return Counter(state_of(trial) for trial in queue.study.get_trials())


BEFORE = {"enqueue": 0, "finish": 0, "requeue": 1, "give up": MAX_KILLS}
"""Deaths of workers before the one that is looked at; what they left is to be cleared up in the last two."""


@pytest.mark.parametrize("deed", BEFORE)
@pytest.mark.parametrize("shared_storage", ["journal", pytest.param("postgres", marks=pytest.mark.slow)], indirect=True)
def test_a_death_at_any_write_loses_and_doubles_nothing(shared_storage: str, tmp_path: Path, deed: str) -> None:
    for writes in itertools.count():
        name = f"s{writes}"
        healthy = Queue(create_study(shared_storage, name=name, spec=SPEC), storage=shared_storage, folder=tmp_path)
        healthy.enqueue(pairs(0 if deed == "enqueue" else 1))
        for _ in range(BEFORE[deed]):
            healthy.reap()
            abandon(healthy)
        try:
            live(deed, mortal_queue(shared_storage, tmp_path, name=name, writes=writes))
        except Death:
            check_after_death(healthy, most=BEFORE[deed] + (deed == "finish"))
        else:
            assert writes >= 1, "it did not die"
            return


def test_a_cell_that_was_given_up_and_is_tried_again_has_all_its_tries(tmp_path: Path) -> None:
    storage = str(tmp_path / "journal.log")
    queue = make_queue(storage, tmp_path)
    queue.enqueue(pairs(1))
    for _ in range(MAX_KILLS):
        abandon(queue)
        queue.reap()
    assert states(queue) == {"cell0": "failed"}
    assert queue.enqueue(pairs(1)) == 1
    with pytest.raises(Death):  # not begun: no kill of this cell
        mortal_queue(storage, tmp_path, name="s", writes=0).claim()
    queue.reap()
    assert states(queue) == {"cell0": "waiting"}


def check_after_death(healthy: Queue, *, most: int) -> None:
    found = settle(healthy)
    assert found["complete"] == 3, found
    assert set(found) <= {"complete", "killed", "failed"}, found
    for trial in latest(ours(healthy.study.get_trials())).values():
        assert all(execution["end"] for execution in trial.user_attrs["executions"])
        *before, last = outcomes(trial)
        assert last == "complete"
        assert set(before) <= {"killed"}
        assert len(before) <= most
