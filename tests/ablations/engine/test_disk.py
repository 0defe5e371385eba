"""Checkpoints of finished cells: which stay, and that no others go."""

from __future__ import annotations

import argparse
import errno
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from test_run import execute, finished, make_plan

import ablations.engine.checkpoints
from ablations.design.stages import JUDGE
from ablations.engine.checkpoints import is_full, keep_rule, prune, run_name
from ablations.engine.queue import Queue
from ablations.engine.run import outcomes, queued_cell, spec_of
from ablations.engine.storage import create_study, keep_design, latest, open_study, ours, stage_of
from ablations.engine.trials import read_trials
from ablations.engine.worker import Job, train_cell
from lit_simplified.config import ConfigError, DataConfig, RunConfig, from_dict, preset_of, run_id

LOSSES = {"pre_ln": 3.0, "sas": 2.0, "sas_p": 1.0}


def leaving_fit(config: RunConfig, *, on_validation: Any) -> Any:
    """Leaves a checkpoint as `fit` does; naive_skipless diverges, v_skipinit raises."""
    folder = Path(config.out_dir) / run_id(config) / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "last.ckpt").write_text("weights")
    name = preset_of(config.model.block)
    if name == "v_skipinit":
        raise RuntimeError("no luck")
    result = finished(config, on_validation=on_validation, diverged=name == "naive_skipless")
    return result if name == "naive_skipless" else replace(result, val_loss=LOSSES[name] + 0.1 * config.seed)


def left(folder: Path) -> set[str]:
    """Preset and seed of every checkpoint that is still there."""
    return {"-".join(path.parts[-3].split("-")[:2]) for path in folder.glob("runs/*/checkpoints/last.ckpt")}


@pytest.mark.parametrize(("keep", "kept"), [
    ("none", set()),
    ("best", {"pre_ln-s0", "sas-s0", "sas_p-s0"}),
    ("2", {"sas_p-s0", "sas_p-s1"}),
    ("all", {f"{name}-s{seed}" for name in (*LOSSES, "naive_skipless", "v_skipinit") for seed in (0, 1)}),
])
def test_checkpoints_stay_by_the_rule(tmp_path: Path, keep: str, kept: set[str]) -> None:
    names = ("naive_skipless", "v_skipinit", *LOSSES)
    plan = replace(make_plan(tmp_path, presets=names, seeds=(0, 1), workers=1), keep=keep)
    execute(plan, leaving_fit)
    assert left(tmp_path) == kept


def test_a_cell_that_is_not_finished_keeps_its_checkpoint(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, presets=("pre_ln",))
    execute(make_plan(tmp_path, presets=("sas",)), leaving_fit)
    study = open_study(plan.storage, name="s")
    queue = Queue(study, storage=plan.storage, folder=tmp_path)
    queue.enqueue([queued_cell(plan, cell) for cell in plan.cells])
    claim = queue.claim()
    assert claim is not None
    trial = latest(ours(study.get_trials()))[claim.cell]
    checkpoint = tmp_path / "runs" / run_name(trial) / "checkpoints" / "last.ckpt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_text("half-way")
    prune(study, keep="none", folder=tmp_path)
    assert checkpoint.exists()
    claim.lock.release()
    queue.reap()  # its worker died: whoever takes it up continues from there
    prune(study, keep="none", folder=tmp_path)
    assert checkpoint.exists()


def test_rules_are_checked() -> None:
    assert [keep_rule(text) for text in ("none", "best", "all", "12")] == ["none", "best", "all", "12"]
    with pytest.raises(argparse.ArgumentTypeError, match="none, best, all or a number"):
        keep_rule("some")


def test_a_full_disk_is_told_from_other_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_full(OSError(errno.ENOSPC, "No space left on device"), folder=tmp_path)
    hidden = RuntimeError("PytorchStreamWriter failed writing file")
    assert not is_full(hidden, folder=tmp_path)
    hidden.__cause__ = OSError(errno.EDQUOT, "Disk quota exceeded")
    assert is_full(hidden, folder=tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 1000}))
    assert is_full(RuntimeError("PytorchStreamWriter failed writing file"), folder=tmp_path)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_a_worker_that_was_given_up_disturbs_nobody_when_it_comes_back(tmp_path: Path, corpus: DataConfig) -> None:
    """Its cell is trained by another while it stands still, at a point of the curve."""
    from lit_simplified import fit

    assignments = [f"data.{name}={getattr(corpus, name)}" for name in ("recipe", "cache_dir", "val_windows")]
    assignments += ["data.batch_size=2", "data.test_windows=4", "model.vocab_size=300", "model.context=16"]
    assignments += ["model.depth=1", "optim.steps=6", "trainer.val_every=2", "trainer.checkpoint_every=1"]
    plan = make_plan(tmp_path, presets=("sas_p",), seeds=(0,), assignments=tuple(assignments))
    study = create_study(plan.storage, name="s", spec=spec_of(plan, corpus="abc"))
    keep_design(study, plan.plan.design)
    queue = Queue(study, storage=plan.storage, folder=tmp_path)
    queue.enqueue([queued_cell(plan, cell) for cell in plan.cells])
    job = Job(study="s", storage=plan.storage, folder=tmp_path, name="w", threads=1, gpu=None, log=tmp_path / "log",
              cache_dir=corpus.cache_dir, keep="all")
    ended: list[str] = []

    def come_back(config: RunConfig, *, on_validation: Any) -> Any:
        def stop(point: Any) -> None:
            if point.step == 2:
                given_up.lock.release()
                queue.reap()
                second = queue.claim()
                assert second is not None
                assert train_cell(queue, second, job=job, fit=partial(fit, take_over=True))

        try:
            return fit(config, on_validation=stop, take_over=True)
        except ConfigError as error:
            ended.append(str(error))
            raise

    given_up = queue.claim()
    assert given_up is not None
    assert train_cell(queue, given_up, job=job, fit=come_back)
    assert "has taken over" in ended[0]
    (trial,) = latest(ours(study.get_trials())).values()
    assert [execution["outcome"] for execution in trial.user_attrs["executions"]] == ["killed", "complete"]
    config = from_dict(RunConfig, trial.user_attrs["config"])
    assert trial.value == fit(replace(config, out_dir=str(tmp_path / "whole"))).val_loss
    assert left(tmp_path) == {"sas_p-s0"}


def test_checkpoints_of_running_cells_cost_no_look_at_all_configurations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers prune while cells of others run: with ten thousand cells that would be most of their time."""
    plan = make_plan(tmp_path, presets=("pre_ln", "sas", "sas_p"))
    queue = Queue(create_study(plan.storage, name="s", spec={}), storage=plan.storage, folder=tmp_path)
    queue.enqueue([queued_cell(plan, cell) for cell in plan.cells])
    claims = [queue.claim(), queue.claim()]
    trials = latest(ours(queue.study.get_trials()))
    for claim in claims:
        assert claim is not None
        (tmp_path / "runs" / run_name(trials[claim.cell]) / "checkpoints").mkdir(parents=True)
    looking, read = open_study(plan.storage, name="s", light=True), list[int]()  # as a worker does

    def count(*given: Any, **named: Any) -> Any:
        found = read_trials(*given, **named)
        read.append(len(found) * any(set(keys) & {"config"} for keys in given[1:]))
        return found

    monkeypatch.setattr(ablations.engine.checkpoints, "read_trials", count)
    prune(looking, keep="best", folder=tmp_path)
    assert max(read) == len(claims)
    assert len(list((tmp_path / "runs").glob("*/checkpoints"))) == len(claims)
    for claim in claims:
        assert claim is not None
        claim.lock.release()  # killed: from now on they wait, and are found once, by their configuration
    queue.reap()
    read.clear()
    prune(looking, keep="best", folder=tmp_path)
    assert max(read) == len(queue.study.trials) == 5
    read.clear()
    prune(looking, keep="best", folder=tmp_path)
    assert max(read) == 0
    assert len(list((tmp_path / "runs").glob("*/checkpoints"))) == len(claims)


def test_a_cell_that_only_chose_is_no_rows_best(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, presets=("sas",), learning_rates=(1e-3, 3e-3))
    study = create_study(plan.storage, name="s", spec={})
    keep_design(study, plan.plan.design)
    queue = Queue(study, storage=plan.storage, folder=tmp_path)
    for loss in (1.0, 2.0):  # those that choose end lower
        queue.enqueue([queued_cell(plan, cell) for cell in plan.plan.cells(outcomes(study))])
        while (claim := queue.claim()) is not None:
            queue.finish(claim, state="complete", value=loss, result={"val_loss": loss})
    trials = latest(ours(study.get_trials()))
    homes = {cell: tmp_path / "runs" / run_name(trial) / "checkpoints" for cell, trial in trials.items()}
    for home in homes.values():
        home.mkdir(parents=True)
    prune(study, keep="best", folder=tmp_path)
    assert [cell for cell, home in homes.items() if home.exists()] == [cell for cell in homes if "-s0-" in cell]


def test_a_judging_seed_that_collapses_sends_its_row_to_the_next_value(tmp_path: Path) -> None:
    """As the analysis calls it: from the unigram loss of the data card, and not at scale smoke."""
    for scale, judged in (("small", {1e-3, 3e-3}), ("smoke", {1e-3})):
        plan = make_plan(tmp_path / scale, presets=("sas",), learning_rates=(1e-3, 3e-3), seeds=(0, 1))
        study = create_study(plan.storage, name="s", spec={"scale": scale})
        study.set_user_attr("corpus", {"splits": {"validation": {"unigram_loss": 5.97}}})
        keep_design(study, plan.plan.design)
        queue = Queue(study, storage=plan.storage, folder=tmp_path / scale)
        while queue.enqueue([queued_cell(plan, cell) for cell in plan.plan.cells(outcomes(study))]):
            while (claim := queue.claim()) is not None:
                low = claim.config["optim"]["learning_rate"] == 1e-3
                loss = 5.95 if low and claim.config["seed"] == 1 else 4.0 + (not low)
                queue.finish(claim, state="complete", value=loss, result={"val_loss": loss})
        found = {trial.user_attrs["config"]["optim"]["learning_rate"] for trial in ours(study.get_trials())
                 if stage_of(trial) == JUDGE}
        assert found == judged
