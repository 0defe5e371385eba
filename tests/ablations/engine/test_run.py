"""`run`: every cell exactly once, by an execution log that is none of Optuna's, whatever ends a process."""

from __future__ import annotations

import csv
import io
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from ablations.__main__ import main
from ablations.bench.stand_in import Point, Result
from ablations.design.cells import StudyPlan
from ablations.design.space import grid
from ablations.design.stages import EXTEND, FIRST_SEED, JUDGE, SCREEN, SELECT
from ablations.engine.queue import Queue
from ablations.engine.run import StudyRun, jobs_of, queued_cell, spec_of, train_study
from ablations.engine.status import Running, _time_to_go, line, name_of, render, status
from ablations.engine.storage import StudyError, latest, open_study, ours, read_design, stage_of, state_of
from ablations.engine.worker import MEMORY_REMEDY, work
from ablations.study import Options, plan_run
from lit_simplified.config import (
    PRESETS,
    ConfigError,
    RunConfig,
    Task,
    block_id,
    describe,
    from_dict,
    preset_of,
    run_id,
)

CARD = {"corpus_digest": "abc"}


def prepare(data: Any, *, vocab_size: int) -> SimpleNamespace:
    return SimpleNamespace(card=CARD)


def note(config: RunConfig) -> int:
    """Log an execution where no storage can hide it; return how often this cell was begun, this time included."""
    log = Path(config.out_dir).parent / "log.txt"
    line = f"{describe(config.model.block)} {config.seed} {config.optim.learning_rate:g}"
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(descriptor, f"{line} {os.getpid()}\n".encode())
    os.close(descriptor)
    return sum(entry.startswith(line + " ") for entry in log.read_text().splitlines())


def fake_fit(config: RunConfig, *, on_validation: Any) -> Any:
    """Stands in for training: some blocks diverge, raise, run out of memory, kill their process once or always."""
    begun = note(config)
    name = preset_of(config.model.block)
    if name == "parallel" and begun == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if name == "sas_p_no_norm":
        os.kill(os.getpid(), signal.SIGKILL)
    if name == "sas":
        raise RuntimeError("CUDA error: out of luck")
    if name == "sas_p":
        raise MemoryError
    return finished(config, on_validation=on_validation, diverged=name == "naive_skipless")


def quick_fit(config: RunConfig, *, on_validation: Any) -> Any:
    note(config)
    time.sleep(0.02)
    return finished(config, on_validation=on_validation)


def choosy_fit(config: RunConfig, *, on_validation: Any) -> Any:
    """Better at the lower rate, where a seed that judges `parallel` diverges, and where `sas` fails."""
    begun, low, name = note(config), config.optim.learning_rate < 2e-3, preset_of(config.model.block)
    if name == "sas" and low and begun < 3 and config.seed >= FIRST_SEED:
        raise RuntimeError("out of luck")
    result = finished(config, on_validation=on_validation, diverged=name == "parallel" and low and config.seed == 1)
    return replace(result, val_loss=result.val_loss + (0.0 if low else 0.1))


def slow_fit(config: RunConfig, *, on_validation: Any) -> Any:
    if note(config) == 1 and preset_of(config.model.block) == "sas":
        time.sleep(600)
    return finished(config, on_validation=on_validation)


def finished(config: RunConfig, *, on_validation: Any, diverged: bool = False) -> Result:
    point = Point(step=20, tokens=100, seconds=1.0, train_loss=2.0, val_loss=1.0 + config.seed)
    on_validation(point)
    return Result(
        state="diverged" if diverged else "complete", reason="loss nan at step 3" if diverged else "", run_dir="r",
        val_loss=math.nan if diverged else point.val_loss, val_perplexity=math.nan, test={"loss": 1.1}, curve=(point,),
        steps=20, tokens=100, seconds=1.0, validation_seconds=0.1, inspection_seconds=0.01,
        tokens_per_second=100.0, parameters=7,
        peak_memory_mb=1.0,
    )


def test_the_stand_ins_have_the_fields_of_the_real_ones() -> None:
    from lit_simplified.train import CurvePoint, RunResult

    for stand_in, real in ((Point, CurvePoint), (Result, RunResult)):
        assert [field.name for field in fields(stand_in)] == [field.name for field in fields(real)]


def make_plan(
    folder: Path, *, presets: tuple[str, ...] = (), workers: int = 2, task: Task = "clm", scale: str = "smoke",
    assignments: tuple[str, ...] = (), **changes: Any
) -> StudyRun:
    """The grid, or the named blocks in its place, as `run` plans it; `changes` are further options of a run."""
    return plan_run(Options(
        name="s", out=folder, scale=scale, task=task, presets=presets, workers=workers,
        assignments=("trainer.accelerator=cpu", *assignments), **changes,
    ))


def execute(plan: StudyRun, fit: Any) -> dict[str, Any]:
    with open(os.devnull, "w") as nowhere:
        study = train_study(plan, fit=fit, prepare=prepare, console=Console(file=nowhere))
    return latest(ours(study.get_trials()))


def begun(folder: Path) -> Counter[str]:
    return Counter(entry.rsplit(" ", 1)[0] for entry in (folder / "log.txt").read_text().splitlines())


def outcomes(trial: Any) -> list[str]:
    return [execution["outcome"] for execution in trial.user_attrs["executions"]]


def test_the_masked_task_trains_a_grid_of_its_own(tmp_path: Path) -> None:
    trials = execute(make_plan(tmp_path, task="mlm"), quick_fit)
    assert {state_of(trial) for trial in trials.values()} == {"complete"}
    assert {trial.params["norm"] for trial in trials.values()} == {"layer", "none"}
    assert {trial.user_attrs["config"]["model"]["block"]["glu"] for trial in trials.values()} == {True}
    assert len(trials) == len(grid("mlm")) == len(grid())


def test_two_workers_train_every_cell_once_and_a_second_run_none(tmp_path: Path) -> None:
    trials = execute(make_plan(tmp_path), quick_fit)
    assert len(trials) == len(grid())
    assert {state_of(trial) for trial in trials.values()} == {"complete"}
    assert set(begun(tmp_path).values()) == {1}
    assert len(begun(tmp_path)) == len(grid())
    assert len({entry.split()[-1] for entry in (tmp_path / "log.txt").read_text().splitlines()}) == 2  # both took part
    execute(make_plan(tmp_path), quick_fit)
    assert begun(tmp_path).total() == len(grid())
    execute(make_plan(tmp_path, presets=("pre_ln",), seeds=(0, 1)), quick_fit)  # a seed is added to the same study
    assert begun(tmp_path).total() == len(grid()) + 1


def test_failures_and_kills_are_recorded_and_do_not_stop_the_study(tmp_path: Path) -> None:
    names = tuple(PRESETS)
    trials = {preset_of(from_dict(RunConfig, trial.user_attrs["config"]).model.block): trial
              for trial in execute(make_plan(tmp_path, presets=names), fake_fit).values()}
    found = {name: (state_of(trial), outcomes(trial)) for name, trial in trials.items()}
    assert found == {
        **dict.fromkeys(("pre_ln", "v_skipinit", "shaped_orthogonal"), ("complete", ["complete"])),
        "parallel": ("complete", ["killed", "complete"]),
        "naive_skipless": ("diverged", ["diverged"]),
        "sas": ("failed", ["failed"]),
        "sas_p": ("failed", ["failed"]),
        "sas_p_no_norm": ("failed", ["killed"] * 3),
    }
    assert trials["sas"].user_attrs["reason"] == "RuntimeError: CUDA error: out of luck"
    assert "fake_fit" in trials["sas"].user_attrs["traceback"]
    assert trials["sas_p"].user_attrs["reason"] == f"MemoryError ({MEMORY_REMEDY})"
    assert trials["naive_skipless"].user_attrs["reason"] == "loss nan at step 3"
    assert trials["naive_skipless"].user_attrs["result"]["val_loss"] is None
    assert trials["pre_ln"].value == 1.0
    assert trials["pre_ln"].intermediate_values == {20: 1.0}
    assert trials["pre_ln"].user_attrs["curve"][0]["seconds"] == 1.0
    before = begun(tmp_path)
    execute(make_plan(tmp_path, presets=names), quick_fit)  # the next run tries what failed again, and nothing else
    assert (begun(tmp_path) - before).keys() == {
        f"{describe(PRESETS[name])} 0 0.003" for name in ("sas", "sas_p", "sas_p_no_norm")
    }


def test_tuned_values_are_chosen_and_then_judged(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, presets=("pre_ln", "parallel", "sas"), learning_rates=(1e-3, 3e-3), seeds=(0, 1),
                     workers=1)
    trials = execute(plan, choosy_fit)
    found = {(preset_of(from_dict(RunConfig, config).model.block), config["optim"]["learning_rate"], config["seed"],
              stage_of(trial)) for trial in trials.values()
             for config in [trial.user_attrs["config"]]}
    apart = {(name, rate, FIRST_SEED, SELECT) for name in ("pre_ln", "parallel", "sas") for rate in (1e-3, 3e-3)}
    judged = {("pre_ln", 1e-3), ("parallel", 1e-3), ("parallel", 3e-3), ("sas", 3e-3)}
    assert found == apart | {(*cell, seed, JUDGE) for cell in judged for seed in (0, 1)}
    assert set(begun(tmp_path).values()) == {1}


@pytest.mark.slow
def test_rows_are_screened_and_those_that_go_on_are_judged(tmp_path: Path) -> None:
    study = {"compare": {"model.block.norm": ["rms", "layer"], "model.block.activation": ["relu", "gelu"]},
             "tune": {"optim.learning_rate": [1e-3, 3e-3]}, "seeds": 2, "screen": {"share": 0.5, "keep": 1}}
    plan = plan_run(Options(study=study, name="s", out=tmp_path, scale="smoke", workers=2,
                            assignments=("trainer.accelerator=cpu",)))
    trials = execute(plan, choosy_fit)
    by_stage = Counter((stage_of(trial), trial.user_attrs["config"]["optim"]["steps"]) for trial in trials.values())
    assert by_stage == {(SCREEN, 10): 4 * 2, (SELECT, 20): 2 * 2, (JUDGE, 20): 2 * 2}
    assert {trial.user_attrs["config"]["optim"]["learning_rate"] for trial in trials.values()
            if stage_of(trial) == JUDGE} == {1e-3}
    before = begun(tmp_path).total()
    execute(plan, choosy_fit)
    assert begun(tmp_path).total() == before  # nothing is left to do
    whole = Options(study={**study, "screen": None}, name="s", out=tmp_path, scale="smoke", workers=2,
                    assignments=("trainer.accelerator=cpu",))
    added = execute(plan_run(whole), choosy_fit)  # the other rows, too
    assert Counter(map(stage_of, added.values())) == {SCREEN: 8, SELECT: 8, JUDGE: 8}


def test_the_time_that_is_left_counts_short_runs_as_short() -> None:
    def running(share: float, elapsed: float, *, lost: bool = False) -> Running:
        return Running("a", "w", 0, 1, elapsed, 1, lost=lost, share=share)

    assert _time_to_go([], waiting=3, running=()) is None
    assert _time_to_go([100.0, 200.0], waiting=2.5, running=()) == 375
    assert _time_to_go([100.0], waiting=1.0, running=(running(0.1, 4), running(1.0, 70))) == (100 + 6 + 30) / 2
    assert _time_to_go([100.0], waiting=0.0, running=(running(0.1, 4), running(0.2, 9, lost=True))) == 20 + 6


@pytest.mark.slow
def test_a_choice_that_failed_is_made_by_the_next_run(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, presets=("sas",), learning_rates=(1e-3, 3e-3), seeds=(0, 1), workers=1)
    execute(plan, choosy_fit)
    assert begun(tmp_path).total() == 2 + 2
    execute(plan, choosy_fit)  # the choice fails once more, and nothing is trained beside it
    assert begun(tmp_path).total() == 2 + 2 + 1
    trials = execute(plan, choosy_fit)  # and now it does not: it is another, and judged
    assert begun(tmp_path).total() == 2 + 2 + 2 + 2
    assert {state_of(trial) for trial in trials.values()} == {"complete"}


def test_a_killed_worker_costs_its_cell_a_second_execution_and_nothing_else(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, presets=("pre_ln", "sas", "sas_p"), workers=1)
    log = tmp_path / "log.txt"
    nothing = StudyPlan(design=plan.plan.design, template=plan.template, rows={}, seeds={})
    execute(replace(plan, plan=nothing), quick_fit)
    queue = Queue(open_study(plan.storage, name="s"), storage=plan.storage, folder=tmp_path)
    queue.enqueue([queued_cell(plan, cell) for cell in plan.cells])
    process = multiprocessing.get_context("spawn").Process(
        target=work, args=(jobs_of(plan, workers=1, gpus=[])[0],), kwargs={"fit": slow_fit}
    )
    process.start()
    wait_for(lambda: log.exists() and describe(PRESETS["sas"]) in log.read_text())
    process.kill()
    process.join()
    running = status(queue.study)
    assert [cell.name for cell in running.running] == ["sas-s0-lr0.003"]
    trials = execute(plan, slow_fit)
    assert {state_of(trial) for trial in trials.values()} == {"complete"}
    sas = block_id(PRESETS["sas"]) + "-s0-lr0.003"
    assert {cell: outcomes(trial) for cell, trial in trials.items()} == {
        cell: ["killed", "complete"] if cell == sas else ["complete"] for cell in trials
    }
    times = {"pre_ln": 1, "sas": 2, "sas_p": 1}
    assert begun(tmp_path) == {f"{describe(PRESETS[name])} 0 0.003": count for name, count in times.items()}
    complete = [trial for trial in ours(queue.study.get_trials()) if state_of(trial) == "complete"]
    assert len(complete) == 3


def run_apart(folder: str) -> None:
    """What the test below runs in a process of its own."""
    # A shell that started the tests in the background had them ignore Ctrl-C, which this process would inherit.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        train_study(make_plan(Path(folder), presets=("sas", "pre_ln"), workers=1), fit=slow_fit, prepare=prepare)
    except KeyboardInterrupt:
        sys.exit(130)


@pytest.mark.parametrize("end", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow), signal.SIGKILL])
def test_an_interrupted_run_leaves_no_process_and_its_cell_in_the_queue(tmp_path: Path, end: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", f"import test_run; test_run.run_apart({str(tmp_path)!r})"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}, start_new_session=True,
    )
    log = tmp_path / "log.txt"
    wait_for(lambda: log.exists() and bool(log.read_text().endswith("\n")))
    os.kill(process.pid, end)
    assert process.wait(30) == (130 if end != signal.SIGKILL else -signal.SIGKILL)
    worker = int(log.read_text().split()[-1])
    wait_for(lambda: not alive(worker))
    trials = execute(make_plan(tmp_path, presets=("sas", "pre_ln"), workers=1), slow_fit)
    first = trials[block_id(PRESETS["sas"]) + "-s0-lr0.003"]
    assert outcomes(first) == ["killed" if end == signal.SIGKILL else "interrupted", "complete"]
    assert all(state_of(trial) == "complete" for trial in trials.values())


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def wait_for(condition: Any, *, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def broken_worker_fit(config: RunConfig, *, on_validation: Any) -> Any:
    raise AssertionError("never called")


def test_workers_that_cannot_start_end_the_run_with_their_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ablations.engine.run.jobs_of", lambda plan, **kwargs: [
        replace(job, study="another") for job in jobs_of(plan, **kwargs)
    ])
    with pytest.raises(StudyError, match="Studies there: s"):
        execute(make_plan(tmp_path, presets=("pre_ln",), workers=1), broken_worker_fit)


def test_cells_differ_in_block_seed_and_learning_rate_alone(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, seeds=(0, 1), learning_rates=(1e-3, 3e-3), select=0)
    configs = [from_dict(RunConfig, queued_cell(plan, cell).config) for cell in plan.cells]
    assert len({queued_cell(plan, cell).cell for cell in plan.cells}) == len(grid()) * 2 * 2
    same = [
        replace(config, seed=0, model=replace(config.model, block=PRESETS["pre_ln"]),
                optim=replace(config.optim, learning_rate=1.0))
        for config in configs
    ]
    assert all(config == same[0] for config in same)


def test_the_default_study_screens_every_block_and_judges_the_named_ones_and_the_best_other(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, scale="small").plan
    named = {block for block in grid() if preset_of(block)}
    assert Counter(cell.stage for cell in plan.likely()) == {
        SCREEN: 2 * len(grid()), SELECT: 4 * (len(named) + 1), JUDGE: 3 * (len(named) + 1), EXTEND: len(named)}
    assert {plan.rows[cell.row].model.block for cell in plan.likely() if cell.stage == EXTEND} == named
    assert Counter(map(len, make_plan(tmp_path, scale="medium").plan.seeds.values())) == {5: len(grid())}
    assert Counter(cell.stage for cell in make_plan(tmp_path).plan.likely()) == {JUDGE: len(grid())}  # smoke
    assert len(make_plan(tmp_path, scale="paper").cells) == 3 * len(PRESETS)


def test_a_study_is_kept_to_its_corpus_scale_and_sizes_but_not_to_its_axes(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, presets=("pre_ln",))
    spec = spec_of(plan, corpus="abc")
    more = make_plan(tmp_path, presets=("sas",), seeds=(1, 2), learning_rates=(1e-2,))
    assert spec_of(more, corpus="abc") == spec
    assert spec_of(plan, corpus="other") != spec
    trainer = replace(plan.template.trainer, options={"max_steps": 1})  # what Lightning is told trains another run
    options = replace(plan, plan=replace(plan.plan, template=replace(plan.template, trainer=trainer)))
    assert spec_of(options, corpus="abc") != spec
    longer = make_plan(tmp_path, presets=("pre_ln",), assignments=("optim.steps=21",))
    assert spec_of(longer, corpus="abc") != spec
    execute(plan, quick_fit)
    with pytest.raises(StudyError, match=r"optim\.steps: 20 there, 21 here"):
        execute(longer, quick_fit)


def test_gpus_and_cores_are_dealt_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ablations.engine.resources.cores", lambda: 6)
    jobs = jobs_of(make_plan(tmp_path), workers=3, gpus=["4", "7"])
    assert [(job.gpu, job.threads) for job in jobs] == [("4", 2), ("7", 2), ("4", 2)]
    assert jobs_of(make_plan(tmp_path), workers=2, gpus=[])[0].gpu is None


def test_status_tells_counts_and_reasons(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trials = execute(make_plan(tmp_path, presets=("pre_ln", "sas"), workers=1), fake_fit)
    study = open_study(str(tmp_path / "journal.log"), name="s")
    now = status(study)
    assert (now.total, now.done, now.left) == (2, 2, 0)
    assert "1 complete, 1 failed" in line(now)
    Console(width=200).print(render(now, title="s"))
    assert "out of luck" in capsys.readouterr().out
    names = {name_of(trial, read_design(study)) for trial in trials.values()}
    assert names == {"pre_ln-s0-lr0.003", "sas-s0-lr0.003"}
    assert main(["status", "--study", "s", "--out", str(tmp_path)]) == 0
    assert "2/2 cells" in capsys.readouterr().out


def test_a_dry_run_prints_the_cells_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "study"
    assert main(["run", "--scale", "smoke", "--out", str(out), "--dry-run", "--seeds", "0", "1"]) == 0
    printed = capsys.readouterr().out.splitlines()
    rows = len(grid())
    listed = [line for line in printed if line.endswith(tuple("0123456789")) and "to train  " in line]
    assert len(listed) == 2 * rows
    assert f"{2 * rows} cells of {rows} rows, 20 steps each" in printed[-2]
    assert f"with 2 workers, without the speed pass (from a few steps of {rows} rows" in printed[-1]
    assert not out.exists()


def test_wrong_arguments_end_in_a_line_that_says_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "--scale", "smoke", "--set", "optim.step=3", "--dry-run"]) == 2
    assert "optim.step" in capsys.readouterr().err
    assert main(["status", "--study", "none", "--out", str(tmp_path)]) == 2
    assert "no journal there" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["run", "--workers", "0"])


@pytest.mark.slow
@pytest.mark.timed  # models of full size: all cores, and 5 GB
@pytest.mark.parametrize("name", ["base", "paper"])
def test_the_scales_for_a_gpu_train_here_for_two_steps(name: str, tmp_path: Path) -> None:
    """The same code, models at their full size; small batches of the default corpus in float32."""
    arguments = [
        "run", "--scale", name, "--out", str(tmp_path), "--presets", "pre_ln", "sas_p", "--seeds", "0", "--rounds", "1",
        "--workers", "1", "--set", "trainer.accelerator=cpu", "trainer.precision=32-true", "data.recipe=stdlib",
        "data.batch_size=1", "data.val_windows=2", "data.test_windows=2", "optim.steps=2", "model.vocab_size=2048",
        "trainer.checkpoint_every=1",
    ]  # fmt: skip
    assert main(arguments) == 0
    rows = list(csv.DictReader((tmp_path / "summary.csv").read_text().splitlines()))
    assert {(row["preset"], row["state"]) for row in rows} == {("pre_ln", "complete"), ("sas_p", "complete")}
    parameters = {row["preset"]: int(row["params"]) for row in rows}
    saved = 1 - parameters["sas_p"] / parameters["pre_ln"]
    assert 0.14 < saved < 0.17  # half of the attention's weights, of a model with a small vocabulary
    assert all(float(row["speed_ratio"]) > 0 for row in rows)


def test_a_start_that_is_refused_leaves_and_overwrites_nothing(tmp_path: Path) -> None:
    def no_corpus(*given: Any, **named: Any) -> Any:
        raise ConfigError("data.recipe", "x", "no such recipe")

    new = make_plan(tmp_path / "new", presets=("pre_ln",))
    with pytest.raises(ConfigError):
        train_study(new, fit=quick_fit, prepare=no_corpus)
    assert not (tmp_path / "new").exists()
    execute(make_plan(tmp_path, presets=("pre_ln",)), quick_fit)
    kept = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".lock"}
    journal = kept.pop(tmp_path / "journal.log")
    assert tmp_path / "study.yaml" in kept
    with pytest.raises(StudyError, match="other settings"):
        execute(make_plan(tmp_path, presets=("sas",), assignments=("optim.steps=21",)), quick_fit)
    assert {path: path.read_bytes() for path in kept} == kept
    assert (tmp_path / "journal.log").read_bytes().startswith(journal)


def test_named_blocks_that_differ_in_fields_of_the_setting_alone_are_cells_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And however many there are, the plots that follow all training have a colour for each."""
    from ablations.report.html.page import write_report  # here: workers import this module for its stand-ins
    from ablations.report.summary import summarise

    changes = {"gelu": {"activation": "gelu"}, "layer": {"norm": "layer"}, "gated": {"glu": True}}
    added = {name: replace(PRESETS["pre_ln"], **changed) for name, changed in changes.items()}
    more = {**PRESETS, **added}
    monkeypatch.setattr("lit_simplified.config.presets.PRESETS", more)
    plan = make_plan(tmp_path, presets=tuple(more), seeds=(0,))
    assert len({run_id(cell.config) for cell in plan.cells}) == len(more) == len(plan.cells) >= 11
    study = train_study(plan, fit=quick_fit, prepare=prepare, console=Console(file=io.StringIO()))
    found, _ = summarise(study, folder=tmp_path, console=Console(file=io.StringIO()))
    assert set(added) <= set(found.rows.preset)
    assert write_report(study, folder=tmp_path).stat().st_size > 100_000
