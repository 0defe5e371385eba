"""Every fault has its outcome: memory, disk, a second start, machines that vanish, a database that goes away."""

from __future__ import annotations

import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.exceptions import UpdateFinishedTrialError
from postgres import GUARDED, Server
from test_run import begun, execute, finished, make_plan, note, outcomes, prepare, quick_fit, wait_for
from test_storage import SPEC, executions, make_queue, queued, states

import ablations.__main__
import ablations.engine.checkpoints
import ablations.engine.run
from ablations.engine import optuna_private as private
from ablations.engine.queue import Claim, Queue
from ablations.engine.run import train_study
from ablations.engine.storage import (
    MAX_KILLS,
    StudyError,
    create_study,
    latest,
    open_storage,
    open_study,
    ours,
    state_of,
)
from ablations.engine.trials_database import DatabaseTrials
from ablations.engine.worker import MEMORY_REMEDY
from lit_simplified.config import PRESETS, RunConfig, from_dict, preset_of


class OutOfMemoryError(RuntimeError):
    """As torch has it for a GPU."""


def hungry_fit(config: RunConfig, *, on_validation: Any) -> Any:
    note(config)
    name = preset_of(config.model.block)
    if name == "pre_ln":
        raise OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
    if name == "parallel":
        raise MemoryError("Unable to allocate 9.00 GiB")
    if name == "sas":
        os.kill(os.getpid(), signal.SIGKILL)  # as the system does
    return finished(config, on_validation=on_validation)


@pytest.mark.slow
def test_a_cell_that_needs_too_much_memory_fails_alone(tmp_path: Path) -> None:
    presets = ("pre_ln", "parallel", "v_skipinit", "sas", "sas_p")
    trials = execute(make_plan(tmp_path, presets=presets, workers=1), hungry_fit)
    found = {
        preset_of(from_dict(RunConfig, trial.user_attrs["config"]).model.block): trial for trial in trials.values()
    }
    assert {name: outcomes(trial) for name, trial in found.items()} == {
        "pre_ln": ["failed"], "parallel": ["failed"], "v_skipinit": ["complete"], "sas": ["killed"] * MAX_KILLS,
        "sas_p": ["complete"],
    }
    for name, begin in (("pre_ln", "OutOfMemoryError: CUDA out of memory"), ("parallel", "MemoryError: Unable")):
        assert found[name].user_attrs["reason"].startswith(begin)
        assert found[name].user_attrs["reason"].endswith(f"({MEMORY_REMEDY})")
    assert "killed 3 times" in found["sas"].user_attrs["reason"]
    assert "data.batch_size" in found["sas"].user_attrs["reason"]
    pids = [line.split()[-1] for line in (tmp_path / "log.txt").read_text().splitlines()]
    assert len(set(pids[:3])) == 3  # memory in pieces is given back: a fresh process trains the next cell
    assert len(pids) == 4 + MAX_KILLS


def command(folder: Path, code: str) -> subprocess.Popen[bytes]:
    """A process of its own that runs code of this module."""
    with (folder / "said.txt").open("ab") as said:
        return subprocess.Popen(
            [sys.executable, "-c", f"import test_faults; test_faults.{code}"], stdout=said, stderr=said,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )


# The disk.


def whole_command(folder: str, fit: str) -> None:
    """`python -m ablations run` in this process."""
    ablations.__main__.execute = partial(ablations.__main__.execute, fit=globals()[fit], prepare=prepare)
    sys.exit(ablations.__main__.main([
        "run", "--scale", "smoke", "--study", "s", "--out", folder, "--no-speed", "--workers", "2",
        "--set", "trainer.accelerator=cpu", "--seeds", "0", "--presets", *PRESETS,
    ]))  # fmt: skip


def test_a_full_disk_leaves_the_journal_whole(tmp_path: Path) -> None:
    journal = tmp_path / "journal.log"
    make_queue(str(journal), tmp_path).enqueue(queued(2))
    process = multiprocessing.get_context("spawn").Process(target=enqueue_without_room, args=(journal,))
    process.start()
    process.join()
    assert process.exitcode == 7
    assert journal.read_bytes() == (tmp_path / "before").read_bytes()
    assert make_queue(str(journal), tmp_path).enqueue(queued(4)) == 2


def enqueue_without_room(journal: Path) -> None:
    """Room for half a line more."""
    queue = make_queue(str(journal), journal.parent)
    shutil.copy(journal, journal.parent / "before")
    resource.setrlimit(resource.RLIMIT_FSIZE, (journal.stat().st_size + 50, resource.RLIM_INFINITY))
    try:
        queue.enqueue(queued(4))
    except OSError:
        os._exit(7)


def cramped_fit(config: RunConfig, *, on_validation: Any) -> Any:
    """From the fourth cell on there is no room in the journal for what comes of it."""
    if note_any(config) > 3:
        size = (Path(config.out_dir).parent / "journal.log").stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, resource.RLIM_INFINITY))
    return finished(config, on_validation=on_validation)


def note_any(config: RunConfig) -> int:
    """Log an execution; return how many there were of any cell."""
    note(config)
    return begun(Path(config.out_dir).parent).total()


def test_a_run_on_a_full_disk_says_so_and_the_next_goes_on(tmp_path: Path) -> None:
    process = command(tmp_path, f"whole_command({str(tmp_path)!r}, 'cramped_fit')")
    assert process.wait(120) == 2
    said = (tmp_path / "said.txt").read_text()
    assert f"error: the disk of {tmp_path} is full" in said
    assert "run the same command again" in said
    assert "Traceback" not in said
    first = latest(ours(open_study(str(tmp_path / "journal.log"), name="s").get_trials()))
    complete = {cell for cell, trial in first.items() if state_of(trial) == "complete"}
    assert len(complete) in (2, 3)  # the third may have ended beside the fourth
    trials = execute(make_plan(tmp_path, presets=tuple(PRESETS), seeds=(0,)), quick_fit)
    assert Counter(state_of(trial) for trial in trials.values()) == {"complete": len(PRESETS)}
    for cell in complete:
        assert outcomes(trials[cell]) == ["complete"]


def unsaved_fit(config: RunConfig, *, on_validation: Any) -> Any:
    """torch.save on a full disk: an error that does not say so, while the disk has no room."""
    if note_any(config) == 4:
        ablations.engine.checkpoints.SPARE = 2**62
        raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")
    return finished(config, on_validation=on_validation)


def test_a_checkpoint_that_does_not_fit_ends_the_run_and_not_the_cell(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, presets=tuple(PRESETS), workers=1)
    with pytest.raises(StudyError, match=r"disk of .* is full.*run the same command again"):
        execute(plan, unsaved_fit)
    trials = execute(plan, quick_fit)
    assert {state_of(trial) for trial in trials.values()} == {"complete"}
    assert Counter(outcome for trial in trials.values() for outcome in outcomes(trial))["failed"] == 0


def filling_fit(config: RunConfig, *, on_validation: Any) -> Any:
    note(config)
    with (Path(config.out_dir).parent / f"checkpoint-{config.seed}-{os.getpid()}").open("wb") as file:
        for _ in range(64):
            file.write(b"0" * 2**20)
    return finished(config, on_validation=on_validation)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with 32 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(folder)], capture_output=True, check=False
    ) if os.geteuid() == 0 else None
    if mounted is None or mounted.returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.slow
def test_a_disk_without_a_byte_left_for_the_log_either(small_disk: Path, tmp_path: Path) -> None:
    process = command(tmp_path, f"whole_command({str(small_disk)!r}, 'filling_fit')")
    assert process.wait(120) == 2
    said = (tmp_path / "said.txt").read_text()
    assert "disk" in said
    assert "Traceback" not in said
    for file in small_disk.glob("checkpoint-*"):
        file.unlink()
    trials = execute(make_plan(small_disk, presets=tuple(PRESETS), seeds=(0,)), quick_fit)
    assert Counter(state_of(trial) for trial in trials.values()) == {"complete": len(PRESETS)}


# A second start, and several machines.


def gated_fit(config: RunConfig, *, on_validation: Any) -> Any:
    note(config)
    wait_for((Path(config.out_dir).parent / "open").exists)
    return finished(config, on_validation=on_validation)


def run_apart(folder: str, fit: str, storage: str = "", **cells: Any) -> None:
    plan = make_plan(Path(folder), **cells)
    train_study(replace(plan, storage=storage or plan.storage), fit=globals()[fit], prepare=prepare)


@pytest.mark.slow
def test_a_second_start_on_a_machine_is_told_who_is_there(tmp_path: Path) -> None:
    presets = ("pre_ln", "sas", "sas_p")
    first = command(tmp_path, f"run_apart({str(tmp_path)!r}, 'gated_fit', presets={presets!r})")
    wait_for((tmp_path / "log.txt").exists)
    refused = rf"already being trained on this machine, by process {first.pid}\b.*--study NAME"
    with pytest.raises(StudyError, match=refused):
        execute(make_plan(tmp_path, presets=presets), quick_fit)
    (tmp_path / "open").touch()
    assert first.wait(60) == 0
    trials = latest(ours(open_study(str(tmp_path / "journal.log"), name="s").get_trials()))
    assert [outcomes(trial) for trial in trials.values()] == [["complete"]] * 3
    assert begun(tmp_path).total() == 3


def test_a_second_start_joins_a_study_on_a_server(tmp_path: Path, postgres: str) -> None:
    """Two tasks of a cluster may meet on one machine; in a file the second would be a mistake."""
    queue = make_queue(postgres, tmp_path)
    with ablations.engine.run.exclusive(queue), ablations.engine.run.exclusive(make_queue(postgres, tmp_path)):
        assert queue.server is not None
    journal = str(tmp_path / "journal.log")
    with ablations.engine.run.exclusive(make_queue(journal, tmp_path)), \
            pytest.raises(StudyError, match="already being trained on this machine"), \
            ablations.engine.run.exclusive(make_queue(journal, tmp_path)):
        pass


def meeting_fit(config: RunConfig, *, on_validation: Any) -> Any:
    """Waits until the other machine trains too."""
    home = Path(config.out_dir).parent
    note(config)
    wait_for(lambda: len(list(home.parent.glob("*/log.txt"))) == 2)
    return finished(config, on_validation=on_validation)


@pytest.mark.slow
def test_two_machines_share_a_study_from_the_first_moment(tmp_path: Path, postgres: str) -> None:
    """Two commands with folders of their own, started at once on an empty database."""
    homes = [tmp_path / "one", tmp_path / "two"]
    for home in homes:
        home.mkdir()
    code = "run_apart({!r}, 'meeting_fit', {!r}, presets={!r})"
    commands = [command(home, code.format(str(home), postgres, tuple(PRESETS))) for home in homes]
    assert [process.wait(120) for process in commands] == [0, 0], [(home / "said.txt").read_text() for home in homes]
    trials = latest(ours(open_study(postgres, name="s").get_trials()))
    assert [outcomes(trial) for trial in trials.values()] == [["complete"]] * len(PRESETS)
    shares = [begun(home) for home in homes]
    assert (shares[0] + shares[1]).total() == len(shares[0] | shares[1]) == len(PRESETS)
    assert min(share.total() for share in shares) > 0
    assert {path.name for home in homes for path in (home / "logs").iterdir()} == {"worker-0.log", "worker-1.log"}


HEARTBEAT, GRACE = 1, 4


def machine(storage: str, folder: Path, *, host: str) -> Queue:
    """The queue as another machine sees it: of another name, and without a file in common."""
    create_study(storage, name="s", spec=SPEC)
    study = optuna.load_study(study_name="s", storage=open_storage(storage, heartbeat=HEARTBEAT))
    queue = Queue(study, storage=storage, folder=folder / host)
    queue.host = host
    return queue


def claim_of(queue: Queue) -> Claim:
    claim = queue.claim()
    assert claim is not None
    return claim


@pytest.mark.slow
def test_a_machine_that_vanished_is_relieved_and_one_that_lives_is_not(
    postgres: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here, there = machine(postgres, tmp_path, host="here"), machine(postgres, tmp_path, host="there")
    there.enqueue(queued(2))
    living, vanished = claim_of(there), claim_of(there)
    start = time.monotonic()
    with there.heartbeats(living):
        wait_for(lambda: here.reap() == 1)
        assert time.monotonic() - start >= GRACE
        assert states(here) == {"cell0": "running", "cell1": "waiting"}
        with pytest.raises(UpdateFinishedTrialError):  # what ends the training of one who comes back
            vanished.trial.report(1.0, 1)
        there.finish(vanished, state="complete", value=13.0)
        assert "given to another worker; this result is dropped" in capsys.readouterr().out
        assert here.reap() == there.reap() == 0
    again = claim_of(here)
    assert again.cell == "cell1"
    for queue, claim in ((here, again), (there, living)):
        queue.finish(claim, state="complete", value=1.0)
    assert states(here) == {"cell0": "complete", "cell1": "complete"}
    assert executions(here, "cell0") == ["complete"]
    assert executions(here, "cell1") == ["killed", "complete"]
    assert [trial.value for trial in here.study.trials] == [1.0, None, 1.0]


@pytest.mark.slow
def test_nobody_is_taken_for_dead_because_the_server_was_away(postgres: str, tmp_path: Path) -> None:
    """After a pause of the server, or a jump of its clock, all look dead until they give their next sign."""
    here, there = machine(postgres, tmp_path, host="here"), machine(postgres, tmp_path, host="there")
    there.enqueue(queued(1))
    claim = claim_of(there)
    with there.heartbeats(claim):
        assert there.server is not None
        with private.engine_of(there.server).begin() as connection:
            connection.exec_driver_sql("UPDATE trial_heartbeats SET heartbeat = heartbeat - interval '1 hour'")
        assert here.trials.silent() == {claim.trial_id}
        until = time.monotonic() + 2.5 * HEARTBEAT
        while time.monotonic() < until:
            assert here.reap() == 0
            time.sleep(0.1)
    assert states(here) == {"cell0": "running"}


def test_a_machine_of_the_same_name_is_another_machine(postgres: str, tmp_path: Path) -> None:
    """Containers may all be called alike, and have folders of the same name that are not the same."""
    one, other = machine(postgres, tmp_path, host="same"), machine(postgres, tmp_path, host="same")
    one.enqueue(queued(1))
    claim = claim_of(one)
    os.rename(one.locks, tmp_path / "elsewhere")  # where `other` sees nothing
    one.locks.mkdir()
    assert other.reap() == 0
    one.finish(claim, state="complete", value=1.0)
    assert states(other) == {"cell0": "complete"}


def test_a_result_is_not_torn_between_two_machines(
    postgres: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One writes its result while another takes it for dead: whoever comes first decides, and wholly."""
    here, there = machine(postgres, tmp_path, host="here"), machine(postgres, tmp_path, host="there")
    there.enqueue(queued(1))
    claim = claim_of(there)
    thread = threading.Thread(target=there.finish, args=(claim,), kwargs={"state": "complete", "value": 1.0})
    assert isinstance(here.trials, DatabaseTrials)
    insert = here.trials._insert

    def insert_slowly(*given: Any, **named: Any) -> Any:
        """Half-way through giving the cell back, with the row locked."""
        thread.start()
        time.sleep(0.5)
        [trial] = there.study.get_trials()
        assert "state" not in trial.user_attrs  # the result waits for the row, with all that it has to write
        return insert(*given, **named)

    monkeypatch.setattr(here.trials, "_insert", insert_slowly)
    [trial] = here.study.get_trials()
    assert here._give_back(trial, outcome="killed")
    thread.join()
    assert states(here) == {"cell0": "waiting"}
    assert executions(here, "cell0") == ["killed"]
    assert "state" not in ours(here.study.get_trials())[1].user_attrs


# A database that does not answer.


def outage_fit(config: RunConfig, *, on_validation: Any) -> Any:
    note(config)
    time.sleep(0.5)
    return finished(config, on_validation=on_validation)


@pytest.mark.slow
def test_a_database_may_go_away_for_some_seconds(tmp_path: Path, postgres: str, postgres_server: Server) -> None:
    presets = tuple(PRESETS)
    process = command(tmp_path, f"run_apart({str(tmp_path)!r}, 'outage_fit', {postgres!r}, presets={presets!r})")
    try:
        wait_for((tmp_path / "log.txt").exists)
        postgres_server.stop()
        time.sleep(1.5)
        assert process.poll() is None
    finally:
        postgres_server.start()
    assert process.wait(90) == 0, (tmp_path / "said.txt").read_text()
    trials = latest(ours(open_study(postgres, name="s").get_trials()))
    assert Counter(state_of(trial) for trial in trials.values()) == {"complete": len(PRESETS)}
    for trial in trials.values():  # a claim may break off half-way; its cell is given back
        assert outcomes(trial)[-1] == "complete"
        assert set(outcomes(trial)[:-1]) <= {"killed"}
    pids = {line.split()[-1] for line in (tmp_path / "log.txt").read_text().splitlines()}
    assert len(pids) <= 2  # the workers lived through it
    texts = [(tmp_path / "said.txt"), *(tmp_path / "logs").iterdir()]
    assert any("the database does not answer" in text.read_text() for text in texts)


@pytest.mark.parametrize(("url", "says"), [
    ("mysql://user:secret@host/database", r"give the path of a journal, or a URL postgresql://"),
    ("postgresql://user:secret@/database?host=/nowhere", r"cannot be reached .*server is running"),
    ("postgresql://user@/database?host=/nowhere&password=secret", r"cannot be reached"),
    ("postgresql+nosuch://user:secret@host/database", r"cannot be reached"),
    ("postgresql://user:se/c{ret@127.0.0.1:1/database", r"cannot be reached"),
])  # fmt: skip
def test_an_address_that_cannot_serve_is_refused_without_its_password(url: str, says: str) -> None:
    with pytest.raises(StudyError, match=says) as caught:
        open_storage(url)
    for part in ("secret", "c{ret"):
        assert part not in str(caught.value)


def test_a_wrong_password_is_refused_without_it(postgres: str, postgres_server: Server) -> None:
    database = postgres.split("/")[3].split("?")[0]
    with pytest.raises(StudyError, match=r"password authentication failed.*user and password are right") as caught:
        open_storage(postgres_server.url(database, login=f"{GUARDED}:wrong"))
    assert "wrong@" not in str(caught.value)
    assert ":***@" in str(caught.value)
    open_storage(postgres_server.url(database, login=f"{GUARDED}:right"))


def test_a_missing_driver_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(StudyError, match=r"psycopg.*pip install -e '\.\[postgres\]'"):
        open_storage("postgresql://user@host/database")
