"""Studies whose processes are killed at random: every cell is trained to its end, recorded once, and nothing is left.

`SURVIVAL_ROUNDS=10 pytest -s -k survival` kills with ten random seeds and prints what it came to.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from test_run import alive, finished, make_plan, prepare

import ablations.engine.supervisor
from ablations.design.space import grid
from ablations.engine.run import StudyRun, train_study
from ablations.engine.storage import StudyError, latest, open_study, ours, state_of
from ablations.engine.worker import Fit
from lit_simplified.config import DataConfig, RunConfig, from_dict, run_id

ROUNDS = int(os.environ.get("SURVIVAL_ROUNDS", "1"))
CELLS, WORKERS, STEPS = len(grid()), 4, 10
SURE = 6
"""The first kills hit workers that train; those after them hit whatever chance finds."""


def append(file: Path, **entry: Any) -> None:
    """Add a line that no storage can hide and no kill can tear: one write at the end of the file."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(descriptor, (json.dumps(entry) + "\n").encode())
    os.close(descriptor)


def entries(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def stepping_fit(config: RunConfig, *, on_validation: Any) -> Any:
    """Stands in for training: some steps with a checkpoint behind each, and a note at the very end."""
    home = Path(config.out_dir).parent
    checkpoint = Path(config.out_dir) / f"{run_id(config)}.step"
    checkpoint.parent.mkdir(exist_ok=True)
    first = int(checkpoint.read_text()) if checkpoint.exists() else 0
    append(home / "begun.jsonl", cell=run_id(config), worker=os.getpid(), step=first)
    for step in range(first, STEPS):
        time.sleep(0.04)
        fresh = checkpoint.with_suffix(f".{os.getpid()}")
        fresh.write_text(str(step + 1))
        fresh.replace(checkpoint)
    append(home / "ended.jsonl", cell=run_id(config), worker=os.getpid())
    return finished(config, on_validation=on_validation)


def survival_plan(folder: Path, storage: str) -> StudyRun:
    return replace(make_plan(folder, workers=WORKERS), storage=storage)


def run_apart(folder: str, storage: str, fit: Fit | None = None) -> None:
    """The command under fire, in a process of its own; notes the workers that it starts."""
    start = ablations.engine.supervisor._start

    def start_and_note(*given: Any, **named: Any) -> Any:
        process = start(*given, **named)
        append(Path(folder) / "workers.jsonl", pid=process.pid)
        return process

    ablations.engine.supervisor._start = start_and_note
    train_study(survival_plan(Path(folder), storage), fit=fit or stepping_fit, prepare=prepare)


@dataclass
class Figures:
    """What a round came to."""

    seed: int
    starts: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    hits: int = 0
    executions: int = 0
    seconds: float = 0.0


def start_command(folder: Path, storage: str) -> subprocess.Popen[bytes]:
    code = f"import test_survival; test_survival.run_apart({str(folder)!r}, {storage!r})"
    with (folder / "said.txt").open("ab") as said:
        return subprocess.Popen(
            [sys.executable, "-c", code], stdout=said, stderr=said,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )


def find_workers(folder: Path) -> tuple[list[int], list[int]]:
    """The workers that live, and those of them that train."""
    workers = [entry["pid"] for entry in entries(folder / "workers.jsonl") if alive(entry["pid"])]
    cells = {entry["worker"]: entry["cell"] for entry in entries(folder / "begun.jsonl")}
    ended = {(entry["worker"], entry["cell"]) for entry in entries(folder / "ended.jsonl")}
    return workers, [pid for pid in workers if pid in cells and (pid, cells[pid]) not in ended]


def kill_one(folder: Path, command: subprocess.Popen[bytes], dice: random.Random, *, kind: str) -> str:
    """Kill the command, a worker wherever it is (it starts, reads, writes), or one that trains; say which."""
    workers, training = find_workers(folder)
    while kind == "training" and not training and command.poll() is None:
        time.sleep(0.01)
        workers, training = find_workers(folder)
    among = {"command": [command.pid], "worker": workers, "training": training}[kind]
    if not among:
        return "in vain"
    with suppress(ProcessLookupError):
        os.kill(dice.choice(among), signal.SIGKILL)
    return kind


def wait_for_progress(folder: Path, command: subprocess.Popen[bytes], *, cells: int) -> None:
    """Wait until so many cells more are trained, or until the command ends, however slow the machine is."""
    wanted = len(entries(folder / "ended.jsonl")) + cells
    while command.poll() is None and len(entries(folder / "ended.jsonl")) < wanted:
        time.sleep(0.02)


def survive(folder: Path, storage: str, *, seed: int, states: Callable[[], Counter[str]]) -> Figures:
    """Give the command, and kill, and give it again, until all is trained."""
    dice, figures, begin = random.Random(seed), Figures(seed), time.monotonic()
    while not figures.starts or states() != {"complete": CELLS}:
        assert time.monotonic() - begin < 240, (states(), (folder / "said.txt").read_text()[-3000:])
        command = start_command(folder, storage)
        figures.starts += 1
        while command.poll() is None:
            wait_for_progress(folder, command, cells=dice.randint(1, 4))
            time.sleep(dice.uniform(0, 0.4))
            kind = dice.choices(["command", "worker", "training"], [1, 3, 6])[0]
            if figures.kills["training"] < SURE:  # on a fast machine chance alone would find too few that train
                kind = "training"
            figures.kills[kill_one(folder, command, dice, kind=kind)] += 1
    figures.seconds = time.monotonic() - begin
    return figures


def check_executions(folder: Path, trial: FrozenTrial) -> int:
    """Hold a cell's log of executions against what its training noted itself; return how often it was killed."""
    executions = trial.user_attrs["executions"]
    assert all(execution["end"] and execution["outcome"] for execution in executions), executions
    outcomes = Counter(execution["outcome"] for execution in executions)
    assert outcomes["complete"] == 1, executions
    assert set(outcomes) <= {"complete", "killed", "interrupted"}, executions
    times = [execution["start"] for execution in executions]
    assert times == sorted(times)
    cell = run_id(from_dict(RunConfig, trial.user_attrs["config"]))
    begun = [entry["worker"] for entry in entries(folder / "begun.jsonl") if entry["cell"] == cell]
    ended = [entry["worker"] for entry in entries(folder / "ended.jsonl") if entry["cell"] == cell]
    workers = {int(execution["worker"].split(":")[1]): execution["outcome"] for execution in executions}
    assert set(begun) <= set(workers), "an execution that is not in the log"
    # Who trained to the end and was killed before it could say so is on record as killed.
    assert [workers[pid] for pid in ended].count("complete") == 1, (ended, executions)
    return outcomes["killed"]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(ROUNDS))
def test_random_kills_cost_time_and_nothing_else(tmp_path: Path, shared_storage: str, seed: int) -> None:
    study: list[optuna.Study] = []  # opened once there is one

    def states() -> Counter[str]:
        with suppress(StudyError):  # it was killed before it could begin
            study[:] = study or [open_study(shared_storage, name="s")]
        if not study:
            return Counter()
        return Counter(state_of(trial) for trial in latest(ours(study[0].get_trials())).values())

    figures = survive(tmp_path, shared_storage, seed=seed, states=states)
    trials = ours(study[0].get_trials())
    assert {trial.state for trial in trials} <= {TrialState.COMPLETE, TrialState.FAIL}
    complete = Counter(trial.user_attrs["cell"] for trial in trials if state_of(trial) == "complete")
    assert len(complete) == CELLS
    assert set(complete.values()) == {1}
    standing = latest(trials).values()
    figures.hits = sum(check_executions(tmp_path, trial) for trial in standing)
    figures.executions = sum(len(trial.user_attrs["executions"]) for trial in standing)
    print(f"\n{shared_storage.split(':')[0][-11:]}: {figures}")
    assert figures.hits >= 5, figures
    assert any(entry["step"] > 0 for entry in entries(tmp_path / "begun.jsonl"))  # some went on from a checkpoint
    assert not [entry["pid"] for entry in entries(tmp_path / "workers.jsonl") if alive(entry["pid"])]


def tiny_corpus(folder: Path) -> DataConfig:
    """A folder of generated Python files as a corpus, with a cache of its own."""
    (folder / "corpus").mkdir()
    for i in range(60):
        lines = [f"def function_{i}_{j}(value):\n    return value * {i + j} + len('{i * j}')\n" for j in range(25)]
        (folder / "corpus" / f"module_{i}.py").write_text("\n".join(lines))
    recipe = folder / "tiny.yaml"
    recipe.write_text(yaml.safe_dump({
        "kind": "files", "description": "generated functions", "paths": [str(folder / "corpus")], "include": ["*.py"],
    }))
    return DataConfig(
        recipe=str(recipe), cache_dir=str(folder / "cache"), batch_size=4, val_windows=16, test_windows=16
    )


def mortal_fit(config: RunConfig, *, on_validation: Any) -> Any:
    """Real training that notes its points; in a cell's first execution something kills it, somewhere behind a third."""
    from lit_simplified import fit

    home, cell = Path(config.out_dir).parent, run_id(config)
    first = cell not in {entry["cell"] for entry in entries(home / "points.jsonl")}

    def note_point(point: Any) -> None:
        append(home / "points.jsonl", cell=cell, worker=os.getpid(), step=point.step)
        on_validation(point)
        if first and point.step == 4:
            moment = random.Random(cell).uniform(0.0, 1.0)
            threading.Timer(moment, os.kill, [os.getpid(), signal.SIGKILL]).start()
        if first:
            time.sleep(0.3)  # the rest takes longer than that, on any machine

    return fit(config, on_validation=note_point)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_a_cell_whose_worker_is_killed_goes_on_from_its_checkpoint_and_loses_no_digit(tmp_path: Path) -> None:
    from lit_simplified import fit

    data = tiny_corpus(tmp_path)
    plan = make_plan(tmp_path, presets=("pre_ln", "sas_p"), workers=1, seeds=(0,), assignments=(
        *(f"data.{name}={value}" for name, value in asdict(data).items() if value != getattr(DataConfig(), name)),
        "model.vocab_size=300", "model.context=16", "trainer.val_every=2", "trainer.checkpoint_every=1",
        "trainer.threads=1",
    ))
    assert plan.template.data == data
    with open(os.devnull, "w") as nowhere:
        study = train_study(plan, fit=mortal_fit, console=Console(file=nowhere))
    trials = latest(ours(study.get_trials()))
    assert len(trials) == 2
    for trial in trials.values():
        assert [execution["outcome"] for execution in trial.user_attrs["executions"]] == ["killed", "complete"]
        config = from_dict(RunConfig, trial.user_attrs["config"])
        points = [entry for entry in entries(tmp_path / "points.jsonl") if entry["cell"] == run_id(config)]
        killed, second = (
            [point["step"] for point in points if point["worker"] == worker]
            for worker in dict.fromkeys(point["worker"] for point in points)
        )
        assert killed[-1] < config.optim.steps
        assert second[0] in (killed[-1], killed[-1] + 2)  # and not 2: the steps before came from the checkpoint
        whole = fit(replace(config, out_dir=str(tmp_path / "whole")))
        assert trial.value == whole.val_loss
        assert trial.user_attrs["result"]["test"] == whole.test
        curve = [(point["step"], point["train_loss"], point["val_loss"]) for point in trial.user_attrs["curve"]]
        assert curve == [(point.step, point.train_loss, point.val_loss) for point in whole.curve]
        assert len(curve) == config.optim.steps // 2
